"""What a benchmark is: our road and its peers, which must give the same numbers; and the rows of the table that come of it."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import pandas as pd
import torch
from timing import MIB, in_turns, peak_mib, ratio_bounds

OURS = "ours"
Numbers = dict[Any, Any]  # what a road found: a tensor, or a text, by a name that all roads use


@dataclass(frozen=True)
class Peer:
    """Another road, which does `timed` of a case's cells; `afresh`, if its peak of memory is asked for too, as in `Case`."""

    run: Callable[[], Numbers]
    timed: int = 1
    afresh: Callable[[], Numbers] | None = None


@dataclass(frozen=True)
class Case:
    """Our road and its peers; `budget` is what our road was told to take at most, in bytes.

    `afresh` is our road with nothing made before, where its peak of memory is to count what the timed one keeps from run to run.
    """

    ours: Callable[[], Numbers]
    peers: dict[str, Peer]
    cells: int = 1
    budget: int | None = None
    afresh: Callable[[], Numbers] | None = None


@dataclass(frozen=True)
class Section:
    """Cases that share what they are measured on: makers of `subjects` (each with a `name`), and of a `Case` from a subject."""

    subjects: dict[str, Callable[[], Any]]
    cases: dict[str, Callable[[Any], Case]]


def measured(name: str, subject: Any, case: Case, **rounds: Any) -> list[dict[str, Any]]:
    """The rows of one case on one subject; `rounds` go to `in_turns`."""
    found, others = case.ours(), {peer: road.run() for peer, road in case.peers.items()}  # a warm-up too
    seconds = in_turns({OURS: case.ours} | {peer: road.run for peer, road in case.peers.items()}, **rounds)
    apart = {peer: difference(found, numbers) for peer, numbers in others.items()}
    del found, others  # they would be reckoned to what was there before
    peaks = {OURS: peak_mib(case.afresh or case.ours)}
    peaks |= {peer: peak_mib(road.afresh) for peer, road in case.peers.items() if road.afresh}
    return [_row(name, subject, case, peer, seconds, apart[peer], peaks) for peer in case.peers]


def _row(name: str, subject: Any, case: Case, peer: str, seconds: dict, apart: float, peaks: dict) -> dict[str, Any]:
    timed = case.peers[peer].timed
    ours, theirs = median(seconds[OURS]), median(seconds[peer]) * case.cells / timed
    low, high = (case.cells / timed * bound for bound in ratio_bounds(seconds[peer], seconds[OURS]))
    return {
        "name": name,
        "model": subject.name,
        "ours s": ours,
        "peer": peer,
        "peer s": theirs,
        "ratio": theirs / ours,
        "ratio low": low,
        "ratio high": high,
        "rounds": len(seconds[OURS]),
        "difference": apart,
        "cells timed": f"{timed} of {case.cells}",
        "peak MiB": peaks[OURS],
        "peer MiB": peaks.get(peer),
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
    memory = ["peak MiB", "peer MiB", "budget MiB"]
    formats: dict[str, Callable[[Any], str]] = {
        name: "{:.3g}".format for name in ("ours s", "peer s", "ratio", "ratio low", "ratio high")
    }
    formats |= {"difference": "{:.0e}".format} | dict.fromkeys(memory, "{:.0f}".format)
    return pd.DataFrame(rows).astype(dict.fromkeys(memory, float)).to_string(index=False, formatters=formats, na_rep="")
