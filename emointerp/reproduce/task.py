"""What a step of the reproduction is handed, and the few things that steps share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from emointerp.directions import Directions
from emointerp.emotions import BASIC
from emointerp.errors import InputError, ModelError
from emointerp.models import VLM
from emointerp.pairs import Pair
from emointerp.reproduce.kept import Parts, Result
from emointerp.reproduce.material import Material
from emointerp.reproduce.sizes import Sizes
from emointerp.statistics import Interval, mean_interval

BEGUN = "I felt"  # how an answer begins, after which an emotion word is due; N is its last token


@dataclass(frozen=True)
class Task:
    """The model, the pairs, how much is measured; what earlier steps `found`, by name; and where a step keeps its parts.

    `data`: a folder of MER-UniBench, or None. `batch`: stories told together.
    """

    vlm: VLM
    material: Material
    sizes: Sizes
    data: Path | None = None
    batch: int = 32
    found: Mapping[str, Result] = field(default_factory=dict, repr=False)
    parts: Parts | None = field(default=None, repr=False)

    def pairs(self, role: str, most: int | None = None, emotions: Iterable[str] = BASIC) -> list[Pair]:
        """Pairs of a role, emotions in turn; of the sizes' number, or of at most `most` of these."""
        n = self.sizes.pairs[role]
        return self.material.of(role, n if most is None else min(n, most), emotions)

    def known(self, role: str, most: int | None = None) -> list[Pair]:
        """The same of emotions that have a direction; InputError where there are fewer than two."""
        emotions = self.directions.emotions
        found = self.pairs(role, most, [e for e in BASIC if e in emotions])
        if len(found) < 2:
            raise InputError(f"There are {len(found)} {role} pairs of {', '.join(emotions)}; two or more are needed.")
        return found

    @property
    def directions(self) -> Directions:
        """S, as the step "vectors" found it."""
        found = self.found["vectors"]
        facts = found.facts
        return Directions(tuple(facts["emotions"]), found.tensors["vectors"], tuple(facts["n"]), {"tau": facts["tau"]})

    @property
    def l_emo(self) -> int:
        """The emotional layer, as the step "layers" found it."""
        return self.found["layers"].facts["l_emo"]


def or_why(make: Callable[[], Any]) -> tuple[Any, str]:
    """What is made and "", or None and why these pairs do not allow it: of what a chapter works out from kept numbers."""
    try:
        return make(), ""
    except InputError as error:
        return None, str(error)


def each(makes: Mapping[str, Callable[[], Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The analyses of a step that this model and these pairs allow, by name; and as its facts why others are "left out".

    What the pairs do not allow (InputError) is a finding and stays. A ModelError (an overflow, a server that does not answer) may
    have come once: its analysis is named under "again", and the next run tries it again (`Result.unfinished`).
    """
    made, why, again = {}, {}, []
    for name, make in makes.items():
        try:
            made[name] = make()
        except (InputError, ModelError) as error:
            why[name] = str(error)
            again += [name] * isinstance(error, ModelError)
    return made, {"left out": why, "again": again}


def why_not(facts: Mapping[str, Any], name: str) -> str:
    """Why an analysis was left out, as `each` kept it."""
    return facts["left out"].get(name, "") + " The next run tries it again." * (name in facts.get("again", ()))


def lines_left_out(facts: Mapping[str, Any]) -> list[str]:
    """A line of a summary for each analysis that was left out."""
    return [f"Left out, {name}: {why_not(facts, name)}" for name in facts["left out"]]


def rate(values: Any, signed: bool = False) -> Interval:
    """A mean and its interval."""
    return mean_interval(pd.Series(values).astype(float), signed=signed)


def heads_of(rows: pd.DataFrame) -> list[tuple[int, int]]:
    """Places of a table with the columns layer and head."""
    return [(int(layer), int(head)) for layer, head in zip(rows.layer, rows["head"], strict=True)]


def named(heads: Sequence[tuple[int, int]]) -> str:
    """Heads as a sentence has them: layer.head.

    >>> named([(3, 5), (6, 0)])
    '3.5, 6.0'
    """
    return ", ".join(f"{layer}.{head}" for layer, head in heads) or "none"
