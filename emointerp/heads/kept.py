"""Finished pairs in a file, so that a map or a check of hours goes on where it was stopped."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emointerp.circuit import revision
from emointerp.directions import Directions
from emointerp.emotions.wheels import Wheel, WheelsLike
from emointerp.errors import InputError
from emointerp.files import whole
from emointerp.lens import Words
from emointerp.measures import Measure
from emointerp.models import Prompt
from emointerp.pairs import Pair, fingerprint


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
        with whole(self.file) as part:
            part.write_text("".join(lines))

    def add(self, row: dict[str, Any]) -> None:
        """Keep a pair's rows."""
        self.rows.append(row)
        if self.file is not None:
            with self.file.open("a") as opened:
                opened.write(json.dumps({"pair": len(self.rows) - 1} | row) + "\n")

    def _read(self, settings: dict[str, Any]) -> None:
        """The settings must be the same; a last line that an interruption cut off is dropped."""
        settings = json.loads(json.dumps(settings, default=int))
        lines = self.file.read_text().splitlines(keepends=True)
        finished = [line for line in lines if line.endswith("\n")]
        try:
            before, *self.rows = map(json.loads, finished)
            pairs = [row.pop("pair") for row in self.rows]
            different = [name for name in settings if before[name] != settings[name]]
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{self.file} holds no finished pairs of such a run; name another file.") from None
        if different:
            said = "; ".join(f"{name} was {_short(before[name])}, now {_short(settings[name])}" for name in different)
            raise InputError(f"{self.file} was begun with other settings: {said}. Name another file, or give the same settings.")
        if pairs != list(range(len(pairs))):
            raise InputError(f"{self.file} has the pairs of two runs at once; delete it, and give each run a file of its own.")
        self._write(finished)


def settings_of(
    measure: Measure,
    pairs: Sequence[Pair],
    both: Sequence[list[Prompt]],
    words: Words,
    wheels: WheelsLike,
    directions: Directions | None,
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """What a run over pairs that goes on must have been begun with, as JSON, `asked` among it; `Kept` compares it.

    A `Metric` of one's own is known by its name alone.
    """
    begun = {"model": measure.vlm.name, "weights": revision(measure.vlm), "metric": measure.name}
    return {
        **begun,
        **asked,
        "pairs": [[fingerprint(prompt.image) for prompt in prompts] for prompts in both],
        "emotions": [pair.emotion for pair in pairs],
        "events": [pair.event for pair in pairs],
        "prompts": _hash([prompt.input_ids.tolist() for prompts in both for prompt in prompts]),
        "words": {emotion: list(some) for emotion, some in words.items()} if words else None,
        "wheels": None if wheels is None or measure.metrics else [_described_wheel(wheel) for wheel in measure.wheels],
        "directions": _hash([directions.emotions, directions.vectors.double().tolist()]) if directions else None,
    }


def _described_wheel(wheel: Wheel) -> list[str]:
    """A wheel's name, and a hash of what it sorts where."""
    return [wheel.name, _hash(sorted(wheel.table.items()))]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
