"""Exercises of notebook 02: a code by hand, a direction by hand, the best of many by luck, and what an audit lets one say."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity

from emointerp.errors import InputError
from emointerp.exercises.verdict import Verdict, not_yet, one_number, quoted, right
from emointerp.sae import SAE, Codes, aurocs
from emointerp.sae.emotion import EmotionDirections, emotion_directions, label_table
from emointerp.sae.signifiers import MEAN, MIX, TEST, SignifierAudit

CLOSE = 1e-3  # of the largest number in a vector
PARALLEL = 0.9999  # cosine from which two directions are one

Slips = list[tuple[str, Tensor]]  # what to say, and the vector that calls for it

# 1


def code_by_hand(answer: Any, sae: SAE, x: Float[Tensor, " d"]) -> Verdict:
    """Exercise 1: the code of one vector, a number for each feature: `relu(encoder x + b_enc)`, all but the k largest set to 0."""
    if answer is None:
        return not_yet("the answer is still None. Scores of all features first, relu, then keep the sae.k largest of them.")
    code = _vector(answer)
    if code is None:
        return not_yet(f"a code is a vector of {sae.d_hidden} numbers; this is a {type(answer).__name__}.")
    truth = sae.encode(x[None]).dense()[0].detach()
    if wrong := _wrong_length(code, truth, "features", {sae.k: "their values alone do not say whose they are"}):
        return not_yet(wrong)
    if _same(code, truth):
        kept = float(cosine_similarity(sae.decode(sae.encode(x[None]))[0], x, dim=0))
        return right(
            f"{int((truth > 0).sum())} of {sae.d_hidden} features fire, and what they write adds up to a vector whose cosine to "
            f"the one that came is {kept:.2f}."
        )
    fired = f"{int((code != 0).sum())} numbers of yours are not 0, and k is {sae.k}"
    return not_yet(_called_for(code, _code_slips(sae, x)) or f"that is another code; {fired}. Which feature differs first?")


def _code_slips(sae: SAE, x: Float[Tensor, " d"]) -> Slips:
    """What other steps give for the same vector."""
    plain = (sae.encoder @ x).detach()
    scores = plain if sae.b_enc is None else plain + sae.b_enc.detach()
    z, least = scores.relu(), scores.topk(sae.k).values[-1]
    one_fewer = "your code has one feature too few: a strict > the k-th largest score throws the k-th away. Keep exactly k."
    slips = [
        (
            "that is relu without the top k: all positive scores fire. Keep the k largest and set the others to 0.",
            z,
        ),
        (one_fewer, z * (z > least)),
        ("that keeps the scores as they are, negative ones too; relu comes first.", scores),
        ("the k largest are chosen by their size without sign; a feature cannot fire below 0.", _kept(scores, scores.abs(), sae.k)),
        ("what fires has its score as its value, not 1.", _kept(torch.ones_like(z), z, sae.k) * (z > 0)),
    ]
    if sae.b_enc is not None:
        slips.append(("b_enc is left out: scores are encoder @ x + b_enc.", _kept(plain.relu(), plain, sae.k)))
    if sae.b_dec is not None:
        shifted = scores - (sae.encoder @ sae.b_dec).detach()
        taken_off = "b_dec was taken off before encoding, as other autoencoders do; this one adds it at the end and not before."
        slips.append((taken_off, _kept(shifted.relu(), shifted, sae.k)))
    return slips


def _kept(values: Tensor, by: Tensor, k: int) -> Tensor:
    """`values` where `by` is among its k largest, else 0."""
    chosen = by.topk(k).indices
    return torch.zeros_like(values).index_copy(0, chosen, values[chosen])


# 2


def direction_by_hand(answer: Any, codes: Codes, labels: Sequence[str] | pd.DataFrame, emotion: str) -> Verdict:
    """Exercise 2: an emotion's centred direction, a number for each feature: its mean code less the mean of all emotions' means.

    Its length does not count, because pictures are ranked by cosine.
    """
    if answer is None:
        return not_yet("the answer is still None. `codes.dense()` is [picture, feature]; average the rows of each emotion.")
    found = _vector(answer)
    if found is None:
        return not_yet(f"a direction is a vector of {codes.d_hidden} numbers; this is a {type(answer).__name__}.")
    directions = emotion_directions(codes, labels)
    truth = directions.vector(emotion)
    if wrong := _wrong_length(found, truth, "features", {len(directions.emotions): "give one emotion's direction"}):
        return not_yet(wrong)
    if _cosine(found, truth) > PARALLEL:
        return right(_direction_told(directions, emotion))
    slips = _direction_slips(codes, labels, directions, emotion)
    near = next((said for said, slip in slips if _cosine(found, slip) > PARALLEL), None)
    said = f"its cosine to the direction of {emotion} is {_cosine(found, truth):.2f}; it should be 1."
    return not_yet(near or said)


def _direction_told(directions: EmotionDirections, emotion: str) -> str:
    top = directions.top_features(emotion, 5)
    raw, centred = directions.mean_cosine(centred=False), directions.mean_cosine()
    return (
        f"Feature {top.feature[0]} weighs most; the first five features hold {top.share.sum():.0%} of the squared length. Two "
        f"emotions' directions have a mean cosine of {centred:.2f}; without the centring it would be {raw:.2f}."
    )


def _direction_slips(codes: Codes, labels: Any, directions: EmotionDirections, emotion: str) -> Slips:
    """What other steps give for the same pictures."""
    truth, at = directions.vector(emotion), directions.emotions.index(emotion)
    counts = torch.tensor(directions.n, dtype=torch.float32)[:, None]
    there = torch.from_numpy(label_table(labels)[emotion].to_numpy() > 0)
    fired = Codes(codes.values[there], codes.indices[there], codes.d_hidden).fired().clamp(min=1)
    sums = directions.means * counts
    often = sums[at] / fired
    slips = [
        ("that is the raw mean code. What all pictures share is still in it; take off the mean of the emotions' means.",
         directions.means[at]),
        ("the sign is turned: the emotion's mean less the mean of all.", -truth),
        ("those are sums; emotions with more pictures would weigh more. Divide each by its number of pictures.",
         sums[at] - sums.mean(0)),
        ("you divided by the pictures on which a feature fires; divide by all pictures of the emotion. Silence counts.",
         often - directions.means.mean(0)),
        ("that is the mean over the pictures on which a feature fires, and nothing is taken off yet.", often),
    ]  # fmt: skip
    others = [e for e in directions.emotions if e != emotion]
    return slips + [(f"that is the direction of {e}; asked is {emotion}.", directions.vector(e)) for e in others]


# 3

DRAWS = 40  # labels drawn at random
SLACK = 0.01


def best_by_chance(chosen: Any, elsewhere: Any, codes: Codes, others: Codes, labels: Iterable[Any], seed: int = 0) -> Verdict:
    """Exercise 3: the AUROC of the best of all features for labels that mean nothing, where it was `chosen` and `elsewhere`.

    `labels` are 0 and 1; at random they are given to other pictures. The best feature is found on `codes`; on the pictures of
    `others` it meets labels that are just as meaningless. The answers may be one draw's or a mean over several.
    """
    if chosen is None or elsewhere is None:
        return not_yet(f"`chosen` is {chosen!r} and `elsewhere` is {elsewhere!r}; both are to be numbers.")
    first, second = one_number(chosen), one_number(elsewhere)
    if first is None or second is None:
        return not_yet(f"an AUROC is one number; these are a {type(chosen).__name__} and a {type(elsewhere).__name__}.")
    if not (0 <= first <= 1 and 0 <= second <= 1):
        return not_yet(f"an AUROC lies between 0 and 1; {first:g} and {second:g} came.")
    best, luck = _by_chance(codes, others, np.asarray(list(labels), float), seed)
    if abs(second - 0.5) > max(SLACK, 3 * luck.std()) or abs(second - first) < SLACK < second - 0.5:
        return not_yet(f"`elsewhere` is {second:.2f}: the labels mean nothing, so on pictures that did not choose, what is left?")
    if first < best.min() - SLACK:
        said = f"`chosen` is {first:.2f}: so good would one feature be. The best of {codes.d_hidden} is picked for being lucky."
        return not_yet(said if first < 0.52 else f"{said} Over {DRAWS} draws the luckiest had {best.min():.2f} at least.")
    if first > best.max() + SLACK:
        return not_yet(
            f"`chosen` is {first:.2f}; over {DRAWS} draws the luckiest had {best.max():.2f} at most. Were labels shuffled?"
        )
    return right(
        f"The best of {codes.d_hidden} features has {best.mean():.2f} for labels without meaning, and {luck.mean():.2f} on other "
        "pictures. Read a feature's AUROC where it was not chosen."
    )


def _by_chance(
    codes: Codes, others: Codes, labels: Float[np.ndarray, " n"], seed: int
) -> tuple[Float[np.ndarray, " draw"], Float[np.ndarray, " draw"]]:
    """AUROCs of the luckiest feature of each draw, where it was chosen and on other pictures."""
    rng = np.random.default_rng(seed)
    rows = len(others.flat().values)
    there = pd.DataFrame({i: rng.permutation(labels) for i in range(DRAWS)})
    share = max(1, round(labels.mean() * rows))
    new = pd.DataFrame({i: rng.permutation(np.arange(rows) < share).astype(float) for i in range(DRAWS)})
    scores = aurocs(codes, there)
    best = scores.argmax(1)
    return scores.max(1), aurocs(others, new)[np.arange(DRAWS), best]


# 4

COSTS = ("more", "the same", "less")


def what_it_costs(answer: Any, audit: SignifierAudit, emotion: str = MEAN, level: float = 0.05) -> Verdict:
    """Exercise 4: without its signifier features, does a direction lose "more" than without random ones, "the same", or "less"?

    `answer` maps the audit's two sets of pictures to a word; `emotion` is one that was audited, or "mean".
    """
    rows = audit.ranking[audit.ranking.emotion == emotion].set_index("set")
    if rows.empty:
        raise InputError(f"There is no audit of {emotion!r}; there are {', '.join([*audit.emotions, MEAN])}.")
    if rows[["p costs more", "p costs less"]].isna().any(axis=None):
        raise InputError(f"No random sets of {emotion!r} weigh as much as its signifiers, so there is no control; take another.")
    if not isinstance(answer, Mapping) or any(answer.get(name) is None for name in (MIX, TEST)):
        return not_yet(f"give a word for each of {quoted((MIX, TEST))}, one of {quoted(COSTS)}; {answer!r} came.")
    for name in (MIX, TEST):
        said, row = answer[name], rows.loc[name]
        if said not in COSTS:
            return not_yet(f"{said!r} is none of {quoted(COSTS)}.")
        if said != (truth := _cost(row, level)):
            return not_yet(_cost_told(name, said, truth, row, level))
    told = "; ".join(f"{name}: {answer[name]} ({_numbers(rows.loc[name])})" for name in (MIX, TEST))
    return right(f"{told}. Without the random sets the first number would be read as the price of the signifiers.")


def _cost(row: pd.Series, level: float) -> str:
    """What a row of the ranking lets one say; both tails are looked at, so each has half of the level."""
    return "more" if row["p costs more"] < level / 2 else "less" if row["p costs less"] < level / 2 else "the same"


def _cost_told(name: str, said: str, truth: str, row: pd.Series, level: float) -> str:
    numbers, ranks = _numbers(row), f"p costs more {row['p costs more']:.2g}, p costs less {row['p costs less']:.2g}"
    if said == "more" and row.difference.high < 0:
        return f"{name}: the loss is real, but is it more than random features cost? {numbers}; {ranks}."
    if truth == "the same":
        return f"{name}: {numbers}; {ranks}: neither is below {level / 2:g}, half of {level:g} for each side."
    if said == "the same":
        return f"{name}: {numbers}; {ranks}: one is below {level / 2:g}, so random sets seldom lose as much or as little."
    return f"{name}: {numbers}; {ranks}. A difference of AP below 0 is a loss, and here the signifiers lose {truth}."


def _numbers(row: pd.Series) -> str:
    return f"AP {row.difference.mean:+.3f} without them, {row['random difference'].mean:+.3f} without random ones"


# what they share


def _vector(answer: Any) -> Tensor | None:
    """The answer as one vector of float32; None where it is no array of numbers."""
    if not isinstance(answer, list | tuple) and not hasattr(answer, "__array__"):
        return None
    try:
        numbers = np.asarray(answer.detach() if isinstance(answer, Tensor) else answer, np.float32)
    except (TypeError, ValueError):
        return None
    return torch.tensor(numbers).squeeze()


def _wrong_length(found: Tensor, truth: Tensor, of: str, known: Mapping[int, str]) -> str | None:
    """What is wrong with a vector's shape; `known` are lengths that come of a usual slip, and what to say to them."""
    if found.shape == truth.shape:
        return None
    shape = " x ".join(map(str, found.shape)) or "1"
    hint = next((f": {said}" for length, said in known.items() if length in found.shape), "")
    return f"yours is {shape}; expected {len(truth)} numbers, one for each of the {of}{hint}."


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= CLOSE * b.abs().max())


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(cosine_similarity(a.double(), b.double(), dim=0))


def _called_for(found: Tensor, slips: Slips) -> str | None:
    return next((said for said, slip in slips if _same(found, slip)), None)
