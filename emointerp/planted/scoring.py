"""What a method found in a planted model, beside what is there."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd
from sklearn.metrics import average_precision_score

from emointerp.errors import InputError
from emointerp.given import index_of, said
from emointerp.planted.circuit import BACKUP, HEADS, LAYERS, NEURONS, PLANTED, truth
from emointerp.saved import Saved

Place = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Score(Saved):
    """How well heads or neurons were found. Of a ranking the largest values count as found, as many as are planted (7 heads).

    Values that tie across that cut count as not found. `average_precision` is the ranking's (nan of a set): 1 where all planted
    ones come first; where all are alike their share (for heads 0.11); in a random order somewhat more (for heads 0.16 on average,
    and above 0.31 in one order of twenty). `table` has a row a planted part, and for heads the decoy and the backup: layer, head or
    neuron, role, emotion, `found`, and its `rank` from 1 (ties share theirs; nan of a set). The backup is never found and unranked.
    """

    precision: float
    recall: float
    average_precision: float
    table: pd.DataFrame = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """The table, by place."""
        return self.table.set_index(list(self.table.columns[:2]))


def score(found: pd.Series | Mapping[Place, Any] | Iterable[Any], parts: str = "heads") -> Score:
    """Score a set of places, such as `HeadMap.passed()` gives; or a ranking, a Series or mapping by place, the largest first.

    Places are (layer, head), or (layer, neuron) where `parts` is "neurons", "triggers" or "states"; a ranking's values are numbers
    or `Interval`s. Values that are all True or False, such as of `frame.corrected < 0.05`, are a set: the True ones. The decoy
    counts against a method. The backup counts neither way, as it is silent while its head speaks. Nothing found has precision 0.
    Raises InputError for places that the model has not, and for a ranking with gaps, doubles or values that are no finite numbers.

    >>> score([(3, 1), (4, 6), (4, 5), (5, 7)])
    Score(precision=0.6666666666666666, recall=0.2857142857142857, average_precision=nan)
    """
    known, planted = truth(parts), PLANTED[parts]
    if isinstance(found, pd.Series | Mapping):
        found = pd.Series(found)
        found = found.index[found] if found.dtype == bool else found
    if isinstance(found, pd.Series):
        values = _ranking(found, parts)
        first, ranks = values.index[values.rank(ascending=False, method="max") <= len(planted)], values.rank(ascending=False)
        average = average_precision_score(values.index.isin(planted), values)
    else:
        first, ranks, average = _without_backup(_places(found, parts), parts), pd.Series(dtype=float), math.nan
    right = len(set(first).intersection(planted))
    table = known.assign(found=known.index.isin(list(first)), rank=[ranks.get(at, math.nan) for at in known.index])
    return Score(right / max(1, len(first)), right / len(planted), float(average), table.reset_index())


def _ranking(values: pd.Series, parts: str) -> pd.Series:
    """A ranking's numbers by place, without the backup."""
    places, n = _places(values.index, parts), LAYERS * (HEADS if parts == "heads" else NEURONS)
    if len(places) < len(values):
        raise InputError(f"{len(values) - len(places)} places come twice in this ranking; expected each once.")
    if len(places) < n:
        raise InputError(
            f"This ranking has {len(places)} of {n} places; expected all. Where only some are known, give these as a set."
        )
    numbers = pd.Series([_number(value) for value in values], pd.MultiIndex.from_tuples(places))
    if bad := int((~numbers.map(math.isfinite)).sum()):
        raise InputError(f"{bad} of this ranking's values are no finite numbers; expected one a place, larger where there is more.")
    return numbers[_without_backup(places, parts)]


def _number(value: Any) -> float:
    """What an `Interval` or a number is; nan for what is none."""
    try:
        return math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        return math.nan


def _places(given: Any, parts: str) -> list[Place]:
    """Places of the model, each once."""
    if isinstance(given, str | pd.DataFrame) or not isinstance(given, Iterable):
        raise InputError(
            f"{said(given)} came; expected places (layer, number), or a Series by place: found.to_frame().effect, say."
        )
    part, n, places = ("head", HEADS, []) if parts == "heads" else ("neuron", NEURONS, [])
    if isinstance(given, pd.MultiIndex) and set(given.names) == {"layer", part}:
        given = given.reorder_levels(["layer", part])
    for at in given:
        place = tuple(index_of(i) for i in at) if isinstance(at, Iterable) and not isinstance(at, str) else ()
        if len(place) != 2 or None in place or not (0 <= place[0] < LAYERS and 0 <= place[1] < n):
            raise InputError(f"{at!r} is no place in this model; expected (layer, number), from (0, 0) to ({LAYERS - 1}, {n - 1}).")
        places.append(place)
    return list(dict.fromkeys(places))


def _without_backup(places: list[Place], parts: str) -> list[Place]:
    return [at for at in places if parts != "heads" or at != BACKUP]
