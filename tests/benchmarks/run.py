"""Times the package beside plain hooks, TransformerLens and nnsight, and shows that all give the same numbers.

    python tests/benchmarks/run.py [--only NAME ...] [--model NAME ...] [--seconds N] [--pairs N] [--json FILE]

A row a case and peer: median seconds of ours and of the peer's, in turns within one run; `ratio`, how many times as long the peer
takes; `difference`, the largest absolute difference of their numbers (for texts, 1 if any differs); `cells timed`, where a loop
was timed on a sample and scaled; `peak MiB`, what ours took beside what was in memory before; `budget MiB`, what it was allowed.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from cases import CASES, Case
from peers import Numbers
from subjects import SUBJECTS, Subject
from timing import MIB, alternating, peak_mib

OURS = "ours"


def measured(name: str, subject: Subject, **rounds: Any) -> list[dict[str, Any]]:
    """The rows of one case on one model; `rounds` go to `alternating`."""
    case = CASES[name](subject)
    found, others = case.ours(), {peer: road.run() for peer, road in case.peers.items()}  # a warm-up too
    seconds = alternating({OURS: case.ours} | {peer: road.run for peer, road in case.peers.items()}, **rounds)
    peak = peak_mib(case.ours)
    return [_row(name, subject, case, peer, seconds, difference(found, others[peer]), peak) for peer in case.peers]


def _row(name: str, subject: Subject, case: Case, peer: str, seconds: dict, apart: float, peak: float | None) -> dict[str, Any]:
    timed = case.peers[peer].timed
    theirs = seconds[peer] * case.cells / timed
    return {
        "name": name,
        "model": subject.name,
        "ours s": seconds[OURS],
        "peer": peer,
        "peer s": theirs,
        "ratio": theirs / seconds[OURS],
        "difference": apart,
        "cells timed": f"{timed} of {case.cells}",
        "peak MiB": peak,
        "budget MiB": case.budget and case.budget / MIB,
    }


def difference(ours: Numbers, theirs: Numbers) -> float:
    """The largest absolute difference of what both hold; of texts, 1 where any differs."""
    shared = ours.keys() & theirs.keys()
    if not shared:
        raise ValueError(f"Nothing to compare: ours holds {list(ours)[:3]}, the peer {list(theirs)[:3]}.")
    return max(_apart(ours[key], theirs[key]) for key in shared)


def _apart(a: Any, b: Any) -> float:
    return float((a - b).abs().max()) if torch.is_tensor(a) else float(a != b)


def shown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table."""
    formats: dict[str, Callable[[Any], str]] = {name: "{:.3g}".format for name in ("ours s", "peer s", "ratio")}
    formats |= {"difference": "{:.0e}".format, "peak MiB": "{:.0f}".format, "budget MiB": "{:.0f}".format}
    return pd.DataFrame(rows).astype({"peak MiB": float, "budget MiB": float}).to_string(index=False, formatters=formats, na_rep="")


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--model", nargs="+", choices=SUBJECTS, default=list(SUBJECTS), metavar="NAME", help=", ".join(SUBJECTS))
    parser.add_argument("--seconds", type=float, default=5.0, help="about how long a case is timed, after at least three rounds")
    parser.add_argument(
        "--pairs", type=int, help="pictures that are steered in alpha-layer; 64 is the full table, and takes minutes"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    given = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = []
    for subject in (SUBJECTS[name]() for name in given.model):
        subject = replace(subject, pairs=given.pairs or subject.pairs)
        for name in given.only:
            rows += measured(name, subject, seconds=given.seconds)
    print(shown(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
