"""Finished pairs in a file, so that a map or a check of hours goes on where it was stopped."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from emointerp.circuit import revision
from emointerp.directions import Directions
from emointerp.emotions.wheels import Wheel, WheelsLike
from emointerp.errors import InputError
from emointerp.files import whole, writing
from emointerp.lens import Words
from emointerp.measures import Measure
from emointerp.models import VLM, Prompt
from emointerp.pairs import Pair, fingerprint
from emointerp.tracing import Metric


class Kept:
    """Finished pairs, in a file of JSON lines if one is named: the settings first, then a line a pair."""

    def __init__(self, file: str | Path | None, settings: dict[str, Any]):
        self.file, self.rows = None if file is None else Path(file), []
        if self.file is not None and self.file.exists():
            self._read(settings)
        elif self.file is not None:
            self._write([json.dumps(settings, default=int) + "\n"])

    def _write(self, lines: list[str]) -> None:
        """The file anew, whole or not at all: a run may be killed at any moment."""
        with writing(self.file), whole(self.file) as part:
            part.write_text("".join(lines))

    def add(self, row: dict[str, Any]) -> None:
        """Keep a pair's rows."""
        self.rows.append(row)
        if self.file is not None:
            with writing(self.file), self.file.open("a") as opened:
                opened.write(json.dumps({"pair": len(self.rows) - 1} | row) + "\n")

    def _read(self, settings: dict[str, Any]) -> None:
        """The settings must be the same; a last line that an interruption cut off is dropped."""
        settings = json.loads(json.dumps(settings, default=int))
        try:
            finished = [line for line in self.file.read_text().splitlines(keepends=True) if line.endswith("\n")]
            before, *self.rows = map(json.loads, finished)
            pairs = [row.pop("pair") for row in self.rows]
            different = [name for name in settings if before[name] != settings[name]]
        except (OSError, ValueError, KeyError, TypeError):
            raise InputError(f"{self.file} holds no finished pairs of such a run; name another file.") from None
        if different:
            said = "; ".join(f"{name} was {_short(before[name])}, now {_short(settings[name])}" for name in different)
            raise InputError(f"{self.file} was begun with other settings: {said}. Name another file, or give the same settings.")
        if pairs != list(range(len(pairs))):
            raise InputError(f"{self.file} has the pairs of two runs at once; delete it, and give each run a file of its own.")
        self._write(finished)


def kept_of(
    file: str | Path | None,
    measure: Measure,
    pairs: Sequence[Pair],
    both: Sequence[list[Prompt]],
    words: Words,
    wheels: WheelsLike,
    directions: Directions | None,
    asked: Mapping[str, Any],
) -> Kept:
    """The pairs that a run has finished, if it was begun with this model, these pairs and what else was `asked`.

    Metrics are known by what they say of random numbers, as those of one's own may share a name. Without a file nothing is
    compared: to hash a large model takes a while.
    """
    if file is None:
        return Kept(None, {})
    settings = {
        "model": measure.vlm.name,
        "weights": revision(measure.vlm),
        "metric": measure.name,
        **asked,
        "pairs": [[fingerprint(prompt.image) for prompt in prompts] for prompts in both],
        "emotions": [pair.emotion for pair in pairs],
        "events": [pair.event for pair in pairs],
        "prompts": _hash([prompt.input_ids.tolist() for prompts in both for prompt in prompts]),
        "words": {emotion: list(some) for emotion, some in words.items()} if words else None,
        "wheels": None if wheels is None or measure.metrics else [_described_wheel(wheel) for wheel in measure.wheels],
        "directions": _hash([directions.emotions, directions.vectors.double().tolist()]) if directions else None,
        "metric's values": {emotion: _said(metric, measure.vlm) for emotion, metric in (measure.metrics or {}).items()},
    }
    return Kept(file, settings)


def _said(metric: Metric, vlm: VLM) -> list:
    """A metric's layer, and what it says of three random vectors; to three digits, as machines differ in the last."""
    width = vlm.anatomy.vocabulary if metric.layer is None else vlm.anatomy.d_model
    made = torch.randn(3, width, generator=torch.Generator().manual_seed(0)).to(vlm.device)
    return [metric.layer, [f"{value:.3g}" for value in metric(made).flatten().tolist()]]


def _described_wheel(wheel: Wheel) -> list[str]:
    """A wheel's name, and a hash of what it sorts where."""
    return [wheel.name, _hash(sorted(wheel.table.items()))]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
