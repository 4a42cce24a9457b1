"""Exercises of notebook 08, on a study of one's own: what fits, what leaks between splits, and what a table lets one say."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from emointerp.errors import InputError
from emointerp.exercises.verdict import Verdict, not_yet, quoted, right
from emointerp.models import Budget, to_image
from emointerp.pairs import Pair, fingerprint
from emointerp.statistics import Interval

# 1


def cache_by_hand(answer: Any, budget: Budget) -> Verdict:
    """Exercise 1: bytes of the keys and values that one token leaves in the cache, all layers together.

    2 (a key and a value) x layers x key/value heads x d_head x bytes a number.
    """
    a = budget.anatomy
    if answer is None:
        return not_yet(
            "the answer is still None. How many numbers does a key/value head keep of a token, and how many of them are there?"
        )
    if isinstance(answer, bool) or not isinstance(answer, Real):
        return not_yet(f"give a number of bytes; this is a {type(answer).__name__}.")
    truth = budget.cache(1)
    if abs(answer - truth) < 0.5:
        heads = f"{a.n_kv_heads} key/value heads serve {a.n_heads} heads" if a.n_kv_heads < a.n_heads else "every head has its own"
        return right(
            f"{truth:,} bytes: {heads}. A prompt of {budget.tokens} tokens takes {budget.cache(budget.tokens) / 1e6:.0f} MB."
        )
    if words := [words for slip, words in _slips(budget) if abs(answer - slip) < 0.5]:
        return not_yet(" Or: ".join(words))
    return not_yet(f"{answer:,} is not it: 2 x layers x key/value heads x d_head x bytes a number.")


def _slips(budget: Budget) -> list[tuple[float, str]]:
    """What wrong steps give, with the words for each."""
    a, truth = budget.anatomy, budget.cache(1)
    return [
        (truth / 2, "a token leaves a key and a value, not one of them."),
        (truth * a.n_heads / a.n_kv_heads, f"that is with {a.n_heads} heads; keys and values are kept of {a.n_kv_heads} alone."),
        (truth / a.n_layers, f"that is one layer; there are {a.n_layers}."),
        (truth * 8, "that is bits; eight of them are a byte."),
        (truth / budget.itemsize, f"that is how many numbers are kept; each takes {budget.itemsize} bytes."),
        (truth * 4 / budget.itemsize, f"that is with 4 bytes a number; in this dtype it is {budget.itemsize}."),
        (truth * budget.tokens, f"that is a whole prompt of {budget.tokens} tokens; one token is asked."),
    ]  # fmt: skip


# 2


def spoilt(selection: Sequence[Pair], test: Sequence[Pair], seed: int = 0) -> list[Pair]:
    """A list such as one inherits: both splits in one, where some test pairs were given something of a selection pair's.

    One has its event, one its picture, one its neutral picture, and one only the name of its file.

    Raises InputError for fewer than four pairs of each.
    """
    if min(len(selection), len(test)) < 4:
        raise InputError(f"{len(selection)} and {len(test)} pairs came; four or more of each split are needed.")
    rng = np.random.default_rng(seed)
    pairs, taken = [*selection, *test], len(selection) + rng.permutation(len(test))[:4]
    for i, name in zip(taken, ("event", "emotional", "neutral", "name"), strict=True):
        pairs[i] = replace(pairs[i], **{name: getattr(selection[rng.integers(len(selection))], name)})
    return pairs


def leaks(answer: Any, pairs: Sequence[Pair], split: str = "test") -> Verdict:
    """Exercise 2: the numbers of the pairs of `split` that share a picture (either side) or an event with another split.

    Pictures are compared by their pixels. Raises InputError where no pair is of this split, or all are.
    """
    if not 0 < sum(pair.split == split for pair in pairs) < len(pairs):
        raise InputError(f"Of these {len(pairs)} pairs some have to be of split {split!r}, and some of another.")
    if not isinstance(answer, Iterable) or not all(isinstance(i, Integral) for i in answer):
        return not_yet(f"the answer is {answer!r}; give a list of the numbers of {split} pairs that leak, [] for none.")
    given, found = {int(i) for i in answer}, _leaking(pairs, split)
    if strange := [i for i in given if not 0 <= i < len(pairs) or pairs[i].split != split]:
        return not_yet(f"pair {strange[0]} is not of the split {split!r}; name the test pairs, as these are what is taken out.")
    if given == found.keys():
        said = "; ".join(f"{i}: {why}" for i, why in found.items())
        return right(f"{said or 'Nothing leaks'}. A model, a head or a strength that was chosen on it has seen it.")
    if extra := sorted(given - found.keys()):
        return not_yet(
            f"pair {extra[0]} shares neither a picture nor an event with another split; a file's name is not its picture."
        )
    missed = min(found.keys() - given)
    return not_yet(f"{len(found.keys() - given)} are missing. Look at pair {missed} again: {_hint(found[missed])}")


def _leaking(pairs: Sequence[Pair], split: str) -> dict[int, str]:
    """Pairs of the split that share something with another split, and what."""
    looks = [_look(pair) for pair in pairs]
    others = {what for pair, look in zip(pairs, looks, strict=True) if pair.split != split for what in look}
    shared = {i: [look[what] for what in look if what in others] for i, look in enumerate(looks) if pairs[i].split == split}
    return {i: ", ".join(dict.fromkeys(some)) for i, some in shared.items() if some}


def _look(pair: Pair) -> dict[str, str]:
    """What tells a pair's pictures and events from others, and what it is called."""
    sides = {"the picture": pair.emotional, "the neutral picture": pair.neutral}
    events = {event.strip().casefold(): "the event" for event in (pair.event, pair.minus[1])}
    return events | {fingerprint(to_image(picture)): role for role, picture in sides.items()}


def _hint(shared: str) -> str:
    return {
        "the event": "its pictures are its own, but is its event?",
        "the neutral picture": "its emotional picture is its own, but a pair has two.",
    }.get(shared, "is its picture its own, whatever the file is called?")


# 3

CLOSE = 0.1  # points
CLAIMS = {"helps": "it helps", "harms": "it does harm", "not shown": "no difference is shown"}


def what_to_say(claim: Any, largest: Any, difference: Interval) -> Verdict:
    """Exercise 3: what a paired `difference` to "none" lets one say, one of CLAIMS; and the `largest` gain that is not ruled out.

    `difference` is a share; `largest` is in points, the upper end of its 95% interval, right within 0.1.
    """
    mean, low, high = (100 * end for end in (difference.mean, difference.low, difference.high))
    truth, shown = "helps" if low > 0 else "harms" if high < 0 else "not shown", f"{mean:+.1f} [{low:+.1f}, {high:+.1f}] points"
    if claim is None or largest is None:
        return not_yet(f"`claim` is {claim!r} and `largest` is {largest!r}; claims are {quoted(CLAIMS)}.")
    if claim not in CLAIMS:
        return not_yet(f"{claim!r} is no claim; there are {quoted(CLAIMS)}. “It makes no difference” is none that data can give.")
    if claim != truth:
        return not_yet(f"with {shown} one cannot say that {CLAIMS[claim]}. Where does 0 lie?")
    if isinstance(largest, bool) or not isinstance(largest, Real):
        return not_yet(f"`largest` is a number of points; this is a {type(largest).__name__}.")
    if abs(largest - high) <= CLOSE:
        return right(f"{shown}: {CLAIMS[truth]}, and a gain of more than {high:.1f} points is ruled out. Report both.")
    slips = {
        "that is the mean, what was seen; how large may the truth still be?": mean,
        "that is the lower end.": low,
        "that is the width of the interval; its upper end is asked.": high - low,
        "that is a share; 0.05 is 5 points.": difference.high,
    }
    said = [words for words, slip in slips.items() if abs(largest - slip) <= (CLOSE if abs(slip) > 1 else 0.001)]
    return not_yet(said[0] if said else f"with {shown} the interval's upper end is not {largest:g}.")
