"""The pairs of a reproduction: read, looked at, and parted into four roles that are kept apart.

Directions come from one part, layers and heads from the next, strengths from the third, and what is reported from the last. A
table's own splits are taken where it has them; else pairs are parted so that no picture stands in two parts, and, where there are
events enough, no event either. Where pairs share so few neutral pictures that a part would stay empty, these stand in several.
"""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from emointerp.emotions import BASIC, emotion_of
from emointerp.errors import InputError
from emointerp.models import to_image
from emointerp.pairs import Pair, fingerprint, read_pairs, world_pairs

ROLES = ("direction", "selection", "tuning", "test")
PARTS = dict(zip(ROLES, (0.4, 0.2, 0.15, 0.25), strict=True))  # of the pairs, where the table says nothing
KNOWN = {role: role for role in ROLES} | {"train": "direction", "val": "selection", "validation": "selection", "dev": "selection"}
WORLD = "the drawn world"
MANY = 2  # pairs of a role in which a pair's neutral picture stands, on average over pairs, beyond which they are told to share it
Prints = tuple[str, str]  # of a pair's emotional and neutral picture


@dataclass(frozen=True)
class Material:
    """Pairs whose `split` is one of `ROLES` and whose emotion is one of the six; `said` tells what was left out or decided.

    `warned`: what pairs share, which weakens whatever is found on them. `shared_events`: events stand in several roles, so that
    what is chosen beside them is tested beside the same. `prints`: of each pair, the pixels of both sides as fingerprints.
    """

    pairs: Sequence[Pair] = field(repr=False)
    source: str
    said: Sequence[str] = ()
    warned: Sequence[str] = ()
    shared_events: bool = False
    prints: Sequence[Prints] = field(default=(), repr=False)

    @property
    def drawn(self) -> bool:
        """Whether these are pairs of the drawn world."""
        return self.source == WORLD

    def of(self, role: str, most: int | None = None, emotions: Iterable[str] = BASIC) -> list[Pair]:
        """The pairs of a role, emotions in turn, so that the first n of them are of all emotions."""
        queues = [[p for p in self.pairs if p.split == role and p.emotion == emotion] for emotion in emotions]
        turns = [queue[i] for i in range(max(map(len, queues), default=0)) for queue in queues if i < len(queue)]
        return turns[:most]

    @property
    def counts(self) -> dict[str, int]:
        """How many pairs each role has."""
        return {role: sum(pair.split == role for pair in self.pairs) for role in ROLES}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all pictures by their pixels, events, emotions and roles: whatever results depend on, wherever it lies."""
        both = zip(self.pairs, self.prints, strict=True)
        rows = [[*prints, p.plus[1], p.minus[1], p.emotion, p.split, p.aligned] for p, prints in both]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def to_frame(self) -> pd.DataFrame:
        """How many pairs of each emotion (a row) have each role (a column)."""
        table = pd.crosstab([p.emotion for p in self.pairs], [p.split for p in self.pairs])
        return table.reindex(index=[e for e in BASIC if e in table.index], columns=list(ROLES), fill_value=0)


def from_world(sizes: Mapping[str, int]) -> Material:
    """As many pairs of the drawn world as each role takes; its own splits share no person and no event."""
    pairs = [pair for role in ROLES for pair in world_pairs(role, sizes[role])]
    prints = [_prints(pair) for pair in pairs]
    return Material(pairs, WORLD, warned=_shared_neutrals(pairs, prints), prints=prints)


def from_table(table: str | Path) -> Material:
    """The pairs of a table or folder (`read_pairs`); InputError where a role would be left without a pair."""
    given = read_pairs(table)
    pairs, said = _of_six(given)
    pairs = [replace(pair, name=f"{pair.name} ({i})") for i, pair in enumerate(pairs)]
    prints = [_prints(pair) for pair in pairs]
    splits = {pair.split.lower() for pair in pairs}
    if splits <= set(KNOWN) and {KNOWN[s] for s in splits} >= {"direction", "selection", "test"}:
        pairs, more = _by_table(pairs)
    else:
        pairs, by = _parted(pairs, prints)
        more = [f"The table names no splits, so the pairs were parted here, {by}."]
        if splits - {""}:
            named = ", ".join(sorted(splits - {""}))
            more = [f"The table's splits ({named}) are not those that are known, so the pairs were parted here, {by}."]
    if lacking := _lacking(pairs):
        raise InputError(
            f"{table} has too few pairs: {len(pairs)} can be used, and {', '.join(lacking)} would have fewer than two. Give eight "
            f"or more, better a dozen of each emotion; or name splits of train, selection, tuning and test.{_tail(said)}"
        )
    _check_leaks(pairs, prints, table)
    shared = any(len(some) > 1 for some in _roles((pair.event, pair.split) for pair in pairs).values())
    warned = ["Events stand in several parts: what is chosen beside an event is tested beside the same."] * shared
    warned += _shared_neutrals(pairs, prints)
    missing = [emotion for emotion in BASIC if emotion not in {pair.emotion for pair in pairs}]
    said += more + [f"There are no pairs of {', '.join(missing)}: nothing is said of these."] * bool(missing)
    return Material(pairs, str(Path(table)), said, warned, shared, prints)


def _lacking(pairs: Sequence[Pair]) -> list[str]:
    """The roles with fewer than two pairs."""
    return [role for role in ROLES if sum(pair.split == role for pair in pairs) < 2]


def _check_leaks(pairs: Sequence[Pair], prints: Sequence[Prints], table: str | Path) -> None:
    """Refuse emotional pictures that stand in two roles: what is chosen on one must not be reported on the same."""
    roles = _roles((emotional, pair.split) for pair, (emotional, _) in zip(pairs, prints, strict=True))
    if leaks := sum(len(some) > 1 for some in roles.values()):
        raise InputError(
            f"In {table} {leaks} emotional pictures stand in two splits or more; keep each in one, or leave the column split empty."
        )


def _shared_neutrals(pairs: Sequence[Pair], prints: Sequence[Prints]) -> list[str]:
    """What is to say of neutral pictures that stand in several roles, on whichever side, and of roles whose pairs share many."""
    roles = _roles((picture, pair.split) for pair, sides in zip(pairs, prints, strict=True) for picture in sides)
    times = {role: Counter(n for pair, (_, n) in zip(pairs, prints, strict=True) if pair.split == role) for role in ROLES}
    neutrals = {neutral for _, neutral in prints}
    across = sum(len(roles[neutral]) > 1 for neutral in neutrals)
    crowded = [f"{role} {len(n)} for {n.total()}" for role, n in times.items() if sum(k * k for k in n.values()) > MANY * n.total()]
    beside = f"Neutral pictures stand in several parts ({across} of {len(neutrals)})"
    few = f"Many pairs share a neutral picture (different ones, and pairs: {', '.join(crowded)})"
    beside += ": what is chosen beside one is tested beside the same."
    few += ": such pairs are not independent, so intervals over them are narrower than they should be."
    return [beside] * bool(across) + [few] * bool(crowded)


def _roles(rows: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """In which roles each thing stands."""
    found: dict[str, set[str]] = defaultdict(set)
    for thing, role in rows:
        found[thing].add(role)
    return found


def _tail(said: Sequence[str]) -> str:
    return f" {' '.join(said)}" if said else ""


def _of_six(pairs: Sequence[Pair]) -> tuple[list[Pair], list[str]]:
    """Pairs whose label means one of the six emotions, which takes its place; and which labels do not."""
    means = {label: emotion_of(label) for label in {pair.emotion for pair in pairs}}
    kept = [replace(pair, emotion=means[pair.emotion]) for pair in pairs if means[pair.emotion] in BASIC]
    strange = sorted(label for label, emotion in means.items() if emotion not in BASIC)
    if not kept:
        raise InputError(f"No pair shows one of {', '.join(BASIC)}; the labels are {', '.join(strange)}.")
    left = len(pairs) - len(kept)
    return kept, [f"{left} pairs were left out: {', '.join(strange)} is none of the six emotions."] * bool(left)


def _by_table(pairs: Sequence[Pair]) -> tuple[list[Pair], list[str]]:
    """The table's own splits; where none is for tuning, a third of the training part is taken, and no emotion's last pair."""
    pairs = [replace(pair, split=KNOWN[pair.split.lower()]) for pair in pairs]
    if any(pair.split == "tuning" for pair in pairs):
        return pairs, []
    training = sorted((i for i, pair in enumerate(pairs) if pair.split == "direction"), key=lambda i: pairs[i].emotion)
    left = Counter(pairs[i].emotion for i in training)
    for i in training[2::3]:
        if left[pairs[i].emotion] > 1:
            left[pairs[i].emotion] -= 1
            pairs[i] = replace(pairs[i], split="tuning")
    return pairs, ["The table has no split for tuning: a third of the training part was taken for it."]


def _parted(pairs: Sequence[Pair], prints: Sequence[Prints]) -> tuple[list[Pair], str]:
    """Groups of pairs that share a picture (and an event, where that leaves groups enough) given to roles; and by what, in words.

    Where that leaves a role without two pairs, only those that share an emotional picture stay together.
    """
    groups = _groups([[*some, pair.event] for some, pair in zip(prints, pairs, strict=True)])
    if len(set(groups)) < max(len(ROLES), len(pairs) // 2):
        groups = _groups(prints)
    parted = _given(pairs, groups)
    if not _lacking(parted):
        return parted, "by picture"
    return _given(pairs, _groups([[emotional] for emotional, _ in prints])), "by emotional picture"


def _given(pairs: Sequence[Pair], groups: Sequence[int]) -> list[Pair]:
    """Pairs with a role each, one a group, emotion by emotion."""
    role_of: dict[int, str] = {}
    taken: dict[str, dict[str, int]] = {emotion: dict.fromkeys(ROLES, 0) for emotion in BASIC}
    for pair, group in zip(pairs, groups, strict=True):
        mine = taken[pair.emotion]
        n = sum(mine.values()) + 1
        role = role_of.setdefault(
            group, max(ROLES, key=lambda role, mine=mine, n=n: (not mine[role], PARTS[role] * n - mine[role]))
        )
        mine[role] += 1
    return [replace(pair, split=role_of[group]) for pair, group in zip(pairs, groups, strict=True)]


def _groups(marks: Sequence[Sequence[str]]) -> list[int]:
    """A number for each row, the same for rows that share a mark, directly or by way of others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    codes = {mark: len(marks) + i for i, mark in enumerate(dict.fromkeys(m for some in marks for m in some))}
    ends = [(i, codes[mark]) for i, some in enumerate(marks) for mark in some]
    rows, columns = np.array(ends).T
    n = len(marks) + len(codes)
    return connected_components(coo_array((np.ones(len(ends)), (rows, columns)), (n, n)), directed=False)[1][: len(marks)].tolist()


def _prints(pair: Pair) -> Prints:
    """The pixels of both sides, as fingerprints."""
    return fingerprint(to_image(pair.emotional)), fingerprint(to_image(pair.neutral))
