"""Faults tried and survived, counted: `python tests/benchmarks/faults.py [--json FILE]`, some minutes.

The tests of hardening are run, and what they go through in this run is added up by kind. A test that goes through many faults by
itself says how many (`record_property("tried", n)`); where Hypothesis draws inputs, its own count of them is taken; any other test
is one fault. Survived is what was tried in tests that passed; a test that was skipped tried nothing. `EMOINTERP_FUZZ=10` and
`EMOINTERP_KILLS=10` try ten times as many. The exit code is pytest's.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

TESTS = Path(__file__).resolve().parents[1]
FILES = [TESTS / f"test_{name}.py" for name in "fuzz survival gallery_ray overflow security offline escaping".split()]
TRIED = "tried"
KINDS = {  # what a fault is, and which tests ("file::test") try it; the first that fits counts
    "a file damaged at random, read": r"fuzz::test_(a_damaged_file|.*in_the_place_of_others)",
    "a command line drawn at random": r"fuzz::test_every_command",
    "an input that fell over once": r"fuzz::test_(.*_that_fell_over|.*_not_utf8|a_dtype_that_is_none)",
    "a path, text, edit, picture or prompt drawn at random": r"fuzz::",
    "a process killed, its work gone on with": r"survival::test_killed|gallery_ray::test_a_worker_killed",
    "a write that failed because the disk was full": r"survival::test_a_full_disk",
    "two processes at once in a folder": r"survival::test_(of_)?two",
    "a folder that may not be written": r"survival::test_a_folder",
    "numbers that overflow or are none": r"overflow::test_(?!all_verbs)",
    "a file that would run or fetch something": r"security::test_(a_pickle|classes_of|code_beside|a_model_of|a_chat|a_video)",
    "a name that points elsewhere": r"security::test_(a_table_of_pairs|no_name|emotic_writes|clips_are|the_file_of|a_link)",
    "a picture or archive that is none, takes the memory or never ends": r"security::test_no_picture",
    "a hostile string in a place where HTML is made": r"escaping::test_a_text",
    "a hostile string in a figure": r"escaping::test_(a_figure|figures)",
    "a page of all hostile strings, opened in a browser": r"escaping::test_nothing_runs",
    "a socket or an address asked for by a control, refused": r"offline::test_the_guard",
    "a socket or an address asked for by the package itself": r"offline::test_nothing_is_asked",
}


class Count:
    """A plugin of pytest that adds up, by kind, what the tests of a run go through."""

    def __init__(self, kinds: dict[str, str]):
        self.kinds = kinds
        self.rows = {kind: {"what": kind, TRIED: 0, "survived": 0, "tests": 0} for kind in kinds}

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """A test says how many inputs Hypothesis drew in it."""
        from hypothesis.statistics import collector  # imported late: the processes of test_survival read this file as well

        with collector.with_value(lambda told: item.user_properties.append((TRIED, _drawn(told)))):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a test that passed or failed, or whose fixtures failed."""
        kind = _kind(report, self.kinds)
        if kind and (report.when == "call" and not report.skipped or report.when == "setup" and report.failed):
            said = [n for name, n in report.user_properties if name == TRIED]
            tried, row = sum(said) if said else 1, self.rows[kind]
            row[TRIED] += tried
            row["survived"] += tried * report.passed
            row["tests"] += 1


def _drawn(told: dict[str, Any]) -> int:
    """The inputs that came to a test, of Hypothesis' statistics; those that did not come to be are left out."""
    cases = [case for phase in ("reuse-phase", "generate-phase") for case in told.get(phase, {}).get("test-cases", [])]
    return sum(case["status"] in ("valid", "interesting") for case in cases)


def _kind(report: pytest.TestReport, kinds: dict[str, str]) -> str | None:
    file, _, test = report.location
    return next((kind for kind, of in kinds.items() if re.match(of, f"{Path(file).stem.removeprefix('test_')}::{test}")), None)


def counted(arguments: list[str], kinds: dict[str, str]) -> tuple[list[dict[str, Any]], int]:
    """A row a kind of what a run of pytest tried, and its exit code."""
    count = Count(kinds)
    code = pytest.main(arguments, plugins=[count])
    return list(count.rows.values()), int(code)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    given = parser.parse_args()
    rows, code = counted(["-q", "-p", "no:cacheprovider", *map(str, FILES)], KINDS)
    print(pd.DataFrame(rows).to_string(index=False))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    sys.exit(code)


if __name__ == "__main__":
    main()
