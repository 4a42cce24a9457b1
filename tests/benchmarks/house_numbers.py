"""The house in numbers: how long its functions are, which are the longest, which files the largest, which tests the slowest.

    python tests/benchmarks/house_numbers.py [--tests [LOG]] [--json FILE]

Lines of a function are all from `def` to its end, the docstring too. With --tests the slowest tests: all are run, or a LOG of
such a run is read, as `pytest --durations=25` prints it. `report.md.jinja` says why the first five of each list are as they are.
"""

import argparse
import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from emointerp.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "emointerp"
CODE = {".py", ".js"}
RUN = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "--durations=25"]  # as continuous integration does
SHORT, LONG = 15, 40
DURATION = re.compile(r"^(\d+\.\d+)s (call|setup|teardown) +(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class Function:
    """A function and its number of lines."""

    name: str
    lines: int


def functions(folder: Path = PACKAGE) -> list[Function]:
    """All functions and methods under a folder, inner ones too, longest first."""
    return sorted((one for file in folder.rglob("*.py") for one in _inside(file)), key=lambda one: -one.lines)


def _inside(file: Path) -> Iterator[Function]:
    where = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(f"{where.as_posix()}: {node.name}", node.end_lineno - node.lineno + 1)


def summary(found: list[Function]) -> dict[str, Any]:
    """How many functions there are, and how long."""
    lines = [one.lines for one in found]
    shares = {"median": median(lines), "under 15": _share(lines, SHORT), "under 40": _share(lines, LONG)}
    return {"list": "functions", "functions": len(lines)} | shares


def _share(lines: list[int], limit: int) -> float:
    return sum(n < limit for n in lines) / len(lines)


def files(folders: tuple[Path, ...] = (PACKAGE, ROOT / "tests", ROOT / "js", ROOT / "docs")) -> list[Function]:
    """Files of code, longest first; what is built of others is left out."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.suffix in CODE and not _built(path)]
    counted = [Function(path.relative_to(ROOT).as_posix(), len(path.read_text(encoding="utf-8").splitlines())) for path in paths]
    return sorted(counted, key=lambda one: -one.lines)


def _built(path: Path) -> bool:
    return bool({"node_modules", "__pycache__", "static", "api", "course"} & set(path.parts))


def slowest(log: str) -> list[tuple[str, float]]:
    """Tests and their seconds, slowest first: what pytest lists of a test's parts, added up."""
    taken: dict[str, float] = {}
    for seconds, _, test in DURATION.findall(log):
        taken[test] = taken.get(test, 0) + float(seconds)
    return sorted(taken.items(), key=lambda item: -item[1])


def house(n: int = 10) -> list[dict[str, Any]]:
    """How long functions are, and the `n` longest functions and files."""
    found = functions()
    longest = [{"list": "longest functions", "what": one.name, "lines": one.lines} for one in found[:n]]
    return [summary(found), *longest, *({"list": "largest files", "what": one.name, "lines": one.lines} for one in files()[:n])]


def tests(log: Path | None, n: int = 10) -> list[dict[str, Any]]:
    """The `n` slowest tests; InputError where a log does not list them."""
    text = log.read_text(errors="replace") if log else subprocess.run(RUN, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
    found = slowest(text)
    if not found:
        raise InputError("No durations are listed there; run pytest with --durations=25.")
    return [{"list": "slowest tests", "what": test, "seconds": seconds} for test, seconds in found[:n]]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", nargs="?", const="", metavar="LOG", help="the slowest tests: of a log, or of a run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    given = parser.parse_args(arguments)
    rows = house() if given.tests is None else tests(Path(given.tests) if given.tests else None)
    print(pd.DataFrame(rows).to_string(index=False, na_rep=""))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
