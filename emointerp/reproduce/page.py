"""The page: the tour's, with the digest's figures beside those measured here, and `results.json`."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import emointerp
from emointerp.reproduce.claims import verdict
from emointerp.reproduce.kept import write_text
from emointerp.reproduce.task import Task
from emointerp.tour.chapter import RAN, Chapter
from emointerp.tour.page import machine, plain, rendered

PAGE, RESULTS, CLAIMS = "index.html", "results.json", "digest.csv"
MIXED = (
    "Steps were measured with different versions of libraries, which are named at the end; numbers may differ in their last digits "
    "by that. To have all steps of one version, take another folder."
)
HEADS = ("What", "The paper says (unverified digest)", "Here", "Can the two be compared?")


def written(
    folder: Path, task: Task, chapters: Sequence[Chapter], table: pd.DataFrame, versions: Mapping[str, Sequence[str]]
) -> Path:
    """Write the table, the numbers and the page, each whole; the page last. `versions`: by which of them steps were measured."""
    results = _results(task, chapters, table) | {"versions": versions}
    write_text(folder / CLAIMS, table.to_csv(index=False))
    write_text(folder / RESULTS, json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    write_text(folder / PAGE, _page(task, chapters, table, versions).encode("utf-8", "replace").decode("utf-8"))
    return folder / PAGE


def _page(task: Task, chapters: Sequence[Chapter], table: pd.DataFrame, versions: Mapping[str, Sequence[str]]) -> str:
    mixed = len(versions) > 1
    return rendered(
        "reproduction.html",
        ("emointerp.reproduce", "emointerp.tour"),
        model=task.vlm.name,
        version=emointerp.__version__,
        chapters=chapters,
        missing=[chapter for chapter in chapters if chapter.state != RAN],
        heads=HEADS,
        claims=table.to_dict("records"),
        verdict=verdict(table),
        pairs=f"{len(task.material.pairs)} pairs from {task.material.source}",
        data="MER-UniBench" if task.data is not None else "the drawn world's sets",
        command=_command(task),
        size=task.sizes.name,
        where=machine(task.vlm),
        drawn=task.material.drawn,
        warned=[*task.material.warned, *([MIXED] if mixed else [])],
        versions="; ".join(f"{said} ({', '.join(names)})" for said, names in versions.items()) if mixed else "".join(versions),
    )


def _command(task: Task) -> str:
    given = {"--model": task.vlm.name, "--pairs": None if task.material.drawn else task.material.source, "--data": task.data}
    told = " ".join(f"{option} {shlex.quote(str(value))}" for option, value in given.items() if value is not None)
    return f"emointerp reproduce veena {told} --size {task.sizes.name}"


def _results(task: Task, chapters: Sequence[Chapter], table: pd.DataFrame) -> dict[str, Any]:
    head = {"emointerp": emointerp.__version__, "model": task.vlm.name, "size": task.sizes.name}
    head |= {"pairs": {"source": task.material.source, "n": len(task.material.pairs)}}
    head |= {"chapters": {chapter.name: chapter.state for chapter in chapters}, "digest, unverified": table.to_dict("records")}
    return plain(head) | {chapter.name: plain(chapter.results) for chapter in chapters}
