"""The tour's chapter on superposition: what can be read from the vision tower's vectors, and how its directions share them.

Scenes of the drawn world, whose factors are known; read on other identities than the fit saw. Sizes are small, so that the chapter
takes some seconds; notebook 01 shows the same step by step, beside toy models.
"""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from emointerp.models import VLM
from emointerp.superposition import (
    Embedded,
    Interference,
    Readings,
    embed,
    interference,
    read_factors,
    thumbnails,
    untrained,
)
from emointerp.tour.chapter import Chapter, Job, figure_html, muted, number, table_html
from emointerp.world import face_scenes

TITLE, EYE = "Superposition", "What does its eye tell?"
SHOWN, NAMED = 24, 5
ALPHA = 0.05
TOWER, FRESH, SMALL, EXCHANGED = "tower", "untrained tower", "picture shrunk to 8 x 8 pixels", "tower, factors exchanged"
MATCHED = "random, same covariance"


def chapter(vlm: VLM, job: Job) -> Chapter:
    """Read the scenes' factors from the tower and its controls; measure how the directions of the readable ones interfere."""
    scenes, fresh = [face_scenes(split, n) for split, n in job.sizes.superposition.items()], untrained(vlm)
    sides = {
        TOWER: [embed(vlm, some) for some in scenes],
        FRESH: [embed(fresh, some) for some in scenes],
        SMALL: [thumbnails(some) for some in scenes],
    }
    sides[EXCHANGED] = [sides[TOWER][0].exchanged(), sides[TOWER][1]]
    read = {name: read_factors(*pair) for name, pair in sides.items()}
    apart = _interference({name: sides[name][0] for name in (TOWER, FRESH)}, read[TOWER].readable)
    summary = (_readable_line(read[TOWER]), _control_line(read), _apart_line(apart))
    blocks = [("What can be read from the tower", _read_block(read, job.sizes.superposition))]
    if apart:
        alt = "Histogram of the absolute cosines between directions, beside those of random ones"
        blocks.append(("How far directions interfere", figure_html(apart[TOWER].plot(), alt) + _explained()))
    return Chapter("superposition", TITLE, summary, tuple(blocks), _results(read, apart), plain=((EYE, _eye(read)),))


def _interference(embedded: Mapping[str, Embedded], factors: list[str]) -> dict[str, Interference]:
    """Of the same factors in both towers; nothing where fewer than two are readable."""
    return {name: interference(some, factors) for name, some in embedded.items()} if len(factors) > 1 else {}


def _eye(read: Mapping[str, Readings]) -> str:
    """In plain words."""
    found, best = read[TOWER], read[TOWER].to_frame().iloc[0]
    return (
        f"{len(found.readable)} of {len(found.table)} things that vary in the drawings can be read from it (correlation above 0.5 "
        f"with its whole interval; best: {best.factor}, {number(best.r)}); before training {len(read[FRESH].readable)}."
    )


def _readable_line(found: Readings) -> str:
    best = found.to_frame().head(NAMED)
    named = ", ".join(f"{row.factor} {number(row.r)}" for row in best.itertuples())
    return (
        f"{len(found.readable)} of {len(found.table)} drawn factors can be read from the mean of the tower's patches, {found.d} "
        f"numbers, on pictures of other identities (correlation above 0.5 with its whole interval). Read best: {named}."
    )


def _control_line(read: Mapping[str, Readings]) -> str:
    counts = {name: len(found.readable) for name, found in read.items()}
    verdict = "So training made them readable." if counts[TOWER] > max(counts[FRESH], counts[SMALL]) else (
        "So these scenes do not show that training made anything readable."
    )  # fmt: skip
    return (
        f"Control: {counts[FRESH]} from the same tower with untrained weights, {counts[SMALL]} from the pictures shrunk to "
        f"{read[SMALL].d} numbers, {counts[EXCHANGED]} where each picture has the factors of another. {verdict}"
    )


def _apart_line(apart: Mapping[str, Interference]) -> str:
    if not apart:
        return "Fewer than two factors are readable, so there are no directions whose interference could be measured."
    frame, fresh = apart[TOWER].to_frame(), apart[FRESH]
    chance, seen = frame.loc[MATCHED], frame.loc["factors"].interval
    return (
        f"Their directions have a mean absolute cosine of {number(seen)}, {_verdict(chance)} "
        f"random directions that lie where the embeddings lie ({number(chance.interval)}; p = {_p(chance):.2g}). The embeddings "
        f"fill about {apart[TOWER].effective:.0f} of {apart[TOWER].d} dimensions, in the untrained tower {fresh.effective:.0f}, "
        f"where the mean absolute cosine of the same factors is {number(fresh.to_frame().interval['factors'])}."
    )


def _p(row: pd.Series) -> float:
    """Of both sides."""
    return min(1.0, 2 * min(row.p_less, row.p_more))


def _verdict(row: pd.Series) -> str:
    if _p(row) > ALPHA:
        return "no surely other than that of"
    return "less than" if row.p_less < row.p_more else "more than"


def _read_block(read: Mapping[str, Readings], scenes: Mapping[str, int]) -> str:
    best = read[TOWER].to_frame().head(SHOWN)
    alt = f"Bars: correlation of what is read with what was drawn, {len(best)} factors, from {number(best.r.iloc[0])} down"
    rows = [(name, str(found.d), f"{len(found.readable)} of {len(found.table)}") for name, found in read.items()]
    said = (
        f"Fitted on {scenes['direction']} scenes, read from {scenes['test']}. A count of factors has no interval of its own: "
        "counted are those whose whole 95% interval lies above 0.5. Fewer pictures make fewer factors sure: notebook 01 takes more."
    )
    table = table_html(pd.DataFrame(rows, columns=["read from", "numbers", "factors readable"]))
    return figure_html(read[TOWER].plot(SHOWN), alt) + table + muted(said)


def _explained() -> str:
    return muted(
        "A direction is how the embedding moves with a factor, all others held. Lines: the mean of the factors, and of random "
        "directions, anywhere and with the covariance of the embeddings; their brackets hold the middle 95% of the draws. The "
        "number of dimensions filled is one number of all pictures together, without an interval. Noise in the directions drives "
        "cosines towards chance."
    )


def _results(read: Mapping[str, Readings], apart: Mapping[str, Interference]) -> dict[str, Any]:
    frames = {name: found.to_frame() for name, found in apart.items()}
    return {
        "readable": {name: {"factors": len(found.readable), "of": len(found.table), "d": found.d} for name, found in read.items()},
        "correlations": {row.factor: row.r for row in read[TOWER].to_frame().itertuples()},
        "interference": {name: frame.astype(object).to_dict("index") for name, frame in frames.items()},
        "dimensions filled": {name: found.effective for name, found in apart.items()},
    }
