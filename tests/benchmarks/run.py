"""Times the package beside other roads to the same numbers, and shows that they are the same.

Models beside plain hooks, TransformerLens and nnsight; the SAE beside the dense form of the blog post it comes from;
SmoothGrad beside Captum and the loop; a gallery beside a scan in memory.

    python tests/benchmarks/run.py [--only NAME ...] [--model NAME ...] [--seconds N] [--pairs N] [--json FILE]
    python tests/benchmarks/run.py --panels [NAME ...] [--json FILE]
    python tests/benchmarks/run.py --report [SECTION ...] | --take SECTION FILE | --check

A row a case and peer: median seconds of ours and of the peer's, in turns within one run; `ratio`, how many times as long the peer
takes, with its 95% bootstrap interval over the `rounds`; `difference`, the largest absolute difference of their numbers (for texts,
1 if any differs); `cells timed`, where a loop was timed on a sample and scaled; `peak MiB` and `peer MiB`, what ours and (in some
cases) the peer took beside what was in memory before; `budget MiB`, what ours was allowed.

With --panels: how long the notebooks' panels take to answer, in milliseconds (`panels.py`). With --report: the sections named are
measured, or with `all` those without a result of this code, and docs/benchmarks.md is written from all results that are kept.
--take keeps what a section's command wrote elsewhere; with --check page and README are compared with the results (`report.py`).
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cases
import gallery
import panels
import report
import sae_cases
import saliency_cases
from case import Section, measured, shown
from subjects import Subject

SECTIONS: tuple[Section, ...] = (
    cases.SECTION,
    sae_cases.SECTION,
    saliency_cases.SECTION,
    gallery.SECTION,
)  # a file of cases adds its own here


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    names = [name for section in SECTIONS for name in section.cases]
    models = list(dict.fromkeys(name for section in SECTIONS for name in section.subjects))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--model", nargs="+", choices=models, default=models, metavar="NAME", help=", ".join(models))
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long a case is timed, after at least three rounds")
    parser.add_argument(
        "--pairs", type=int, help="pictures that are steered in alpha-layer; 64 is the full table, and takes minutes"
    )
    every = [*panels.PANELS, panels.EXPLORER]
    parser.add_argument(
        "--panels", nargs="*", choices=every, metavar="NAME", help=f"time panels: {', '.join(every)}; by default all"
    )
    sections = [*report.SECTIONS, "all"]
    parser.add_argument("--report", nargs="*", choices=sections, metavar="SECTION", help=f"write the report: {', '.join(sections)}")
    parser.add_argument("--take", nargs=2, metavar=("SECTION", "FILE"), help="keep rows that a section's command wrote to a file")
    parser.add_argument("--check", action="store_true", help="compare the report and the README with the results")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    given = parser.parse_args(arguments)
    if given.check:
        return report.check()
    if given.take:
        return report.take(*given.take)
    if given.report is not None:
        return report.main(given.report)
    if given.panels is not None:
        return panels.main(given.panels, given.json)
    rows = [row for section in SECTIONS for row in _rows(section, given)]
    print(shown(rows) if rows else "Nothing to measure: none of these cases is measured on such a model.")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


def _rows(section: Section, given: argparse.Namespace) -> list[dict[str, Any]]:
    """All that was asked for of a section; a subject is made only if a case needs it, and let go before the next."""
    rows: list[dict[str, Any]] = []
    wanted = [name for name in section.cases if name in given.only]
    for maker in [section.subjects[name] for name in section.subjects if name in given.model and wanted]:
        subject = maker()
        if isinstance(subject, Subject):
            subject = replace(subject, pairs=given.pairs or subject.pairs)
        for name in wanted:
            rows += measured(name, subject, section.cases[name](subject), seconds=given.seconds)
    return rows


if __name__ == "__main__":
    main()
