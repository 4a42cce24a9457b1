"""What the digests of the paper say, beside what was measured here, and whether the two can be compared at all.

The figures are in `digest.json`, with where each stands. They are quoted, never aimed at: no test and no step knows them.
"""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import pandas as pd

from emointerp.errors import InputError
from emointerp.reproduce.material import Material
from emointerp.tour.chapter import RAN, Chapter

FORMAT, VERSION = "emointerp digest", 1
COLUMNS = ("what", "says", "of", "here", "comparable", "source")


def digest() -> dict[str, Any]:
    """The digest's figures, and which hub ids its models have."""
    held = json.loads(files(__package__).joinpath("digest.json").read_text(encoding="utf-8"))
    if (held["format"], held["version"]) != (FORMAT, VERSION):
        raise InputError("The package's digest.json is not of this version; install the package again.")
    return held


def comparison(model: str, material: Material, data: bool, chapters: Sequence[Chapter]) -> pd.DataFrame:
    """A row a figure of the digest: what it says and of which model, what was found here, and whether they can be compared."""
    held, by_name = digest(), {chapter.name: chapter for chapter in chapters}
    rows = []
    for row in held["figures"]:
        chapter = by_name.get(row["step"])
        found = (chapter.found or {}).get(row["here"]) if chapter is not None and row["here"] else None
        here = _absent(row, chapter) if found is None else str(found)
        ids = held["models"].get(row["model"], [])
        said = "" if found is None else _comparable(row, ids, model, material, data)
        rows.append((row["what"], row["says"], row["model"], here, said, row["source"]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _absent(row: Mapping[str, str], chapter: Chapter | None) -> str:
    if not row["here"]:
        return f"not measured: {row['note']}"
    if chapter is None or chapter.state != RAN:
        return f"not measured: the step “{row['step']}” {'is missing' if chapter is None else chapter.state}"
    return "not measured"


ALIKE = (
    "with care: the same model and benchmark, as far as the digest says, in the sets and clips of this run; the digest calls "
    "all of it hit rate, here each set has its measure"
)


def _comparable(row: Mapping[str, str], ids: Sequence[str], model: str, material: Material, data: bool) -> str:
    """Why a number cannot be held against the digest's; "with care" where nothing that is known differs."""
    apart = []
    if not ids:
        apart.append("the digest names no one model")
    elif model not in ids:
        apart.append("another model")
    benchmark = row["step"] == "veena"
    if benchmark and not data:
        apart.append("other questions, not MER-UniBench")
    if not benchmark:
        apart.append("drawn pairs" if material.drawn else "other pairs (the paper's are not published)")
    if row["note"]:
        apart.append(row["note"])
    return f"no: {'; '.join(apart)}" if apart else ALIKE


def verdict(table: pd.DataFrame) -> str:
    """A line for the top of the page: how many figures have a number here, and how many of these can be held against it."""
    measured = table[table.comparable != ""]
    fit = int(measured.comparable.str.startswith("with care").sum())
    can = "none of them can be compared with it" if not fit else f"{fit} of them can be compared with it, with care"
    return f"Of {len(table)} figures that the digests give, {len(measured)} have a counterpart here, and {can}; the table says why."
