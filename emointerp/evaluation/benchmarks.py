"""What `emointerp evaluate` runs: the drawn world, offline, or a copy of MER-UniBench, with the methods that need no fitting."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from emointerp.emotions import BASIC
from emointerp.emotions.wheels import WheelsLike
from emointerp.errors import InputError, OutputError
from emointerp.evaluation.baselines import pai, vaf, vcd
from emointerp.evaluation.harness import Run, evaluate
from emointerp.evaluation.items import SETS, Item, world_items
from emointerp.evaluation.mer_unibench import Row, benchmark_table, folders, read, score_set
from emointerp.evaluation.methods import Decoding, Method, emotion_prompt, none
from emointerp.evaluation.tables import NONE, RATES, Evaluation
from emointerp.models import VLM
from emointerp.pairs import PICTURES

STANDARD = (none, emotion_prompt, vaf, pai, vcd)  # need no fitting; "none" is first
SAID, SILENT = 'I said: "{}"', "I said nothing."
QUALITY = 95  # of the JPEG files that frames are kept as


def standard(names: Sequence[str] = ()) -> list[Method]:
    """The methods that need no fitting, or those named among them; "none" comes first, always."""
    known = {method.name: method for method in (make() for make in STANDARD)}
    if strange := [name for name in names if name not in known]:
        raise InputError(f"There is no method {strange[0]!r} that needs no fitting; there are {', '.join(known)}.")
    return [known[name] for name in dict.fromkeys([NONE, *(names or known)])]


def run_world(
    vlm: VLM,
    methods: Sequence[Method],
    folder: str | Path | None = None,
    *,
    sets: Sequence[str] = SETS,
    n: int = 120,
    **options: Any,
) -> Evaluation:
    """Methods on sets of the drawn world's test split, `n` items each; `options` as in `evaluate`."""
    if n < len(BASIC):
        raise InputError(f"n is {n}; at least {len(BASIC)} items of each set are needed, one an emotion.")
    return evaluate(vlm, methods, {name: world_items(vlm, name, n) for name in sets}, folder=folder, **options)


def run_mer_unibench(
    vlm: VLM,
    methods: Sequence[Method],
    data: str | Path,
    folder: str | Path,
    *,
    n: int | None = None,
    seed: int = 0,
    temperature: float = 0.0,
    wheels: WheelsLike = None,
    skip_missing: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Every set found under `data`, one frame a clip, by each method: `benchmark_table` with the method before it.

    The frame is drawn by `seed` and kept in `folder` (JPEG; for all nine sets some gigabytes), so that each video is opened once.
    The model is asked for a story of what was said, as everywhere here: the benchmark asks for emotions outright, so its published
    means are for orientation. `n`: so many clips of each set, drawn by the seed. Finished cells are kept as in `evaluate`.
    """
    found = {name: read(place, name, wheels, skip_missing) for name, place in folders(data).items()}
    rows = {name: _some(one.rows, n, seed) for name, one in found.items()}
    for name, some in rows.items():
        score_set(name, [""] * len(some), [row.gold for row in some], wheels)  # refuses now what cannot be scored later
    frames = Path(folder) / "frames" / f"seed-{seed}"
    total = sum(map(len, rows.values()))
    with tqdm(total=total, desc="frames", disable=not progress) as bar:
        sets = {name: [_item(name, row, frames, seed, bar) for row in some] for name, some in rows.items()}
    answers = Run.of(vlm, methods, sets, (seed,), Decoding(temperature=temperature)).answered(folder, progress)
    tables = []
    for method, mine in answers.groupby("method", sort=False):
        said = {name: some.sort_values("item").answer.tolist() for name, some in mine.groupby("set")}
        scores = [score_set(name, said[name], [row.gold for row in some], wheels) for name, some in rows.items()]
        table = benchmark_table(scores)
        table.insert(0, "method", method)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def write_tables(result: Evaluation, folder: str | Path) -> str:
    """Write table.md, table.tex and the figures beside a result, and give its chief figures as a text."""
    texts = {"table.md": result.to_markdown(), "table.tex": result.to_latex()}
    figures = {"sets.png": result.plot_sets} | ({"gains.png": result.plot} if len(result.methods) > 1 else {})
    with _writing(folder):
        for name, text in texts.items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        for name, draw in figures.items():
            draw().savefig(Path(folder) / name, dpi=150)
    shown = result.shown()
    labels = {name: RATES[result.figure_of(name)] for name in result.sets}
    shown["rate"] = [f"{labels[row.set]} {row[labels[row.set]]}" for _, row in shown.iterrows()]
    brief = shown[["set", "method", "rate", "difference to none", "p (Holm)", "time ratio"]]
    return f"{brief.to_string(index=False)}\n\n{result.note}"


def write_table(table: pd.DataFrame, folder: str | Path) -> str:
    """Write scores.csv, and give the table as a text."""
    with _writing(folder):
        table.to_csv(Path(folder) / "scores.csv", index=False)
    return table.round({"percent": 2}).to_string(index=False)


@contextmanager
def _writing(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"Cannot write to {folder}: {error.strerror}. Give another folder.") from error


def _some(rows: Sequence[Row], n: int | None, seed: int) -> list[Row]:
    """`n` rows drawn by a seed, in their order; all where there are no more."""
    if n is not None and n < 1:
        raise InputError(f"n is {n}; expected 1 or more clips of each set.")
    drawn = np.random.default_rng(seed).permutation(len(rows))[:n]
    return [rows[i] for i in sorted(drawn)]


def _item(name: str, row: Row, frames: Path, seed: int, bar: tqdm) -> Item:
    picture = row.path if row.path.suffix.lower() in PICTURES else _kept(row, frames / name / f"{row.name}.jpg", seed)
    bar.update()
    text = " ".join(row.transcript.split())
    return Item(name, picture, SAID.format(text) if text else SILENT, str(row.gold))


def _kept(row: Row, file: Path, seed: int) -> Path:
    """The clip's frame, as a file that is written once."""
    if not file.is_file():
        picture, part = row.picture(seed), file.with_name(f".part-{file.name}")
        with _writing(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(part, quality=QUALITY, subsampling=0)
            os.replace(part, file)
    return file
