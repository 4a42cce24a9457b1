"""How well a text names an emotion: hit rate and what must stand beside it, and the benchmark's other two metrics.

The hit rate is recall only: an answer that names every emotion scores 1. So exact rate, precision, F, emotion words
per answer and the false-emotion rate are here too, and :func:`score` gives them all in one table.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from emointerp.emotions.extraction import EmotionWord, Extractor, extract, read_words
from emointerp.emotions.lexicon import NEUTRAL, valence
from emointerp.emotions.tokens import words_of
from emointerp.emotions.wheels import Wheel, WheelsLike, as_wheels, emotion_of, knowing, labels_of
from emointerp.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def named(text: str, wheels: WheelsLike = None, extractor: Extractor = extract) -> tuple[str, ...]:
    """The emotions that a text names, by majority of the wheels, each once, in the order of the labels.

    >>> named("Startled at first, then delighted; not afraid.")
    ('joy', 'surprise')
    """
    return _named(read_words(text, wheels, extractor), as_wheels(wheels))


def _named(words: Sequence[EmotionWord], chosen: Sequence[Wheel]) -> tuple[str, ...]:
    found = {word.emotion for word in words}
    return tuple(label for label in labels_of(chosen) if label in found)


def false_emotion(text: str, wheels: WheelsLike = None, extractor: Extractor = extract) -> int:
    """1 where a text names any emotion, else 0; its mean over neutral pictures is the false-emotion rate.

    >>> false_emotion("She looked at the calendar, calm as usual."), false_emotion("She was thrilled.")
    (0, 1)
    """
    return int(bool(named(text, wheels, extractor)))


def hit_rate(text: str, emotion: str, wheels: WheelsLike = None, extractor: Extractor = extract) -> float:
    """Share of the wheels in which a text names the emotion's cluster: between 0 and 1.

    ``H = (1/|W_y|) * sum over w in W_y of 1[G_w(y) in G_w(words of text)]``, ``W_y`` = the wheels that know ``y``
    (VEENA, arXiv 2605.21980; AffectGPT). For "neutral" it is 1 if no emotion is named, else 0. Raises InputError for
    an emotion that no wheel knows, with the nearest known ones.

    >>> hit_rate("I was terrified.", "fear"), hit_rate("I was terrified.", "joy")
    (1.0, 0.0)
    """
    return _score_one(text, emotion, wheels, extractor).hit


def exact_rate(text: str, emotion: str, wheels: WheelsLike = None, extractor: Extractor = extract) -> float:
    """1 if a text names the emotion in more than half of the wheels that know it, and no other one; else 0.

    Another is one of :func:`named`, so feelings outside the six (pride, trust) do not count as another. For "neutral"
    it is 1 if no emotion is named.

    >>> exact_rate("I was glad.", "joy"), exact_rate("Glad and angry.", "joy")
    (1.0, 0.0)
    """
    return _score_one(text, emotion, wheels, extractor).exact


def precision(text: str, emotion: str, wheels: WheelsLike = None, extractor: Extractor = extract) -> float:
    """Share of the named clusters that are the emotion's own, mean over the wheels that know it.

    Clusters that stand for no emotion (trust, pride) are not counted; a text that names nothing scores 0. For
    "neutral" it equals the hit rate.

    >>> precision("Glad and angry.", "joy")
    0.5
    """
    return _score_one(text, emotion, wheels, extractor).precision


def f_score(text: str, emotion: str, wheels: WheelsLike = None, extractor: Extractor = extract) -> float:
    """``2PR / (P + R)`` in each wheel that knows the emotion (P as in precision, R = hit), mean over these wheels.

    >>> round(f_score("Glad and angry.", "joy"), 3)
    0.667
    """
    return _score_one(text, emotion, wheels, extractor).f


def token_hit_rate(text: str, emotion: str, wheels: WheelsLike = None, extractor: Extractor = extract) -> float:
    """Share of a text's words that belong to the emotion's cluster, mean over the wheels that know it.

    This is one digest's reading of the hit rate ("proportion of tokens"), unverified, and not what the package uses
    elsewhere. An idiom counts with all its words; an empty text scores 0. For "neutral": the share of words that name
    no emotion.

    >>> token_hit_rate("I was over the moon", "joy")  # 3 of 5 words
    0.6
    """
    chosen = as_wheels(wheels)
    words = read_words(text, chosen, extractor)
    total = len(words_of(text))
    if _is_neutral(emotion):
        return 1.0 - _share([word for word in words if word.emotion], total)
    golds = knowing(emotion, chosen)
    hits = [[w for w in words if w.clusters.get(wheel.name) == gold] for wheel, gold in golds.items()]
    return _mean(_share(words, total) for words in hits)


def _share(words: Sequence[EmotionWord], total: int) -> float:
    return min(sum(len(words_of(word.text)) for word in words) / total, 1.0) if total else 0.0


@dataclass(frozen=True)
class _Row:
    """All scores of one text against one emotion; the fields are the columns of :func:`score`."""

    emotion: str
    named: tuple[str, ...]
    hit: float
    exact: float
    precision: float
    f: float
    n_words: int
    false_emotion: int


def _is_neutral(emotion: str) -> bool:
    if not isinstance(emotion, str):
        raise InputError(f"emotion must be a str such as 'joy', got {type(emotion).__name__}: {emotion!r:.80}")
    return emotion.strip().lower() == NEUTRAL


def _score_one(text: str, emotion: str, wheels: WheelsLike, extractor: Extractor) -> _Row:
    chosen = as_wheels(wheels)
    golds = {} if _is_neutral(emotion) else knowing(emotion, chosen)
    words = read_words(text, chosen, extractor)
    found = _named(words, chosen)
    per_wheel = [_wheel_scores(words, wheel, gold) for wheel, gold in golds.items()] or [[float(not found)] * 3]
    hit, share, f = np.mean(per_wheel, axis=0).tolist()
    others = set(found) - {emotion_of(emotion, chosen)}
    exact = float(hit > 0.5 and not others)
    n_words = sum(word.emotion is not None for word in words)
    return _Row(emotion, found, hit, exact, share, f, n_words, int(bool(found)))


def _wheel_scores(words: Sequence[EmotionWord], wheel: Wheel, gold: str) -> list[float]:
    """Hit, precision and F of one text in one wheel."""
    clusters = {word.clusters[wheel.name] for word in words if wheel.name in word.clusters}
    counted = {cluster for cluster in clusters if wheel.emotions.get(cluster) or cluster == gold}
    hit = float(gold in counted)
    share = hit / len(counted) if counted else 0.0
    return [hit, share, _f(share, hit)]


def _f(p: float, r: float) -> float:
    return 2 * p * r / (p + r) if p + r else 0.0


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def score(
    texts: Iterable[str], emotions: str | Iterable[str], wheels: WheelsLike = None, extractor: Extractor = extract
) -> "pd.DataFrame":
    """All scores of many texts, one row a text.

    emotions: the gold emotion of each text, or one for all. Columns: emotion, named (tuple), hit, exact, precision, f,
    n_words, false_emotion. Raises InputError where the two lengths differ.

    >>> score(["I was glad.", "I was glad."], ["joy", "neutral"])[["hit", "false_emotion"]].values.tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    import pandas as pd

    texts = [texts] if isinstance(texts, str) else list(texts)
    emotions = [emotions] * len(texts) if isinstance(emotions, str) else list(emotions)
    if len(texts) != len(emotions):
        raise InputError(f"got {len(texts)} texts but {len(emotions)} emotions; give one each, or one for all")
    rows = [_score_one(text, emotion, wheels, extractor) for text, emotion in zip(texts, emotions, strict=True)]
    return pd.DataFrame([vars(row) for row in rows], columns=list(_Row.__dataclass_fields__))


def same_answer(answer: str, gold: str) -> bool:
    """Whether an answer is the right one, whatever its case and full stop.

    >>> same_answer("yes", "Yes."), same_answer("Yes, two.", "Yes.")
    (True, False)
    """
    return answer.strip(" .!\n").casefold() == gold.strip(" .!\n").casefold()


def sentiment_sign(text: str, extractor: Extractor = extract) -> int:
    """+1 where pleasant emotion words outnumber unpleasant ones, -1 the other way round, 0 where neither does.

    >>> sentiment_sign("Sad at first, then happy and proud."), sentiment_sign("A usual day.")
    (1, 0)
    """
    return int(np.sign(sum(valence(word.lemma) for word in read_words(text, None, extractor))))


def weighted_average_f(gold_valences: Iterable[Real], predicted: Iterable[Real | str]) -> float:
    """WAF of the sentiment sets of MER-UniBench: support-weighted F1 of positive against negative.

    gold_valences: real numbers; where the gold is 0 the sample is dropped. predicted: texts (their sign is
    :func:`sentiment_sign`) or numbers. Positive is > 0; a neutral prediction counts as negative (AffectGPT's code).
    Raises InputError where lengths differ, a value is no number, or no gold is left.

    >>> weighted_average_f([1.5, -2.0, 0.0], ["I was glad.", "I was sad.", "I was glad."])
    1.0
    """
    from sklearn.metrics import f1_score

    gold_valences, predicted = list(gold_valences), list(predicted)
    if len(gold_valences) != len(predicted):
        raise InputError(f"got {len(gold_valences)} gold valences but {len(predicted)} predictions; give one for each")
    gold = [_number(value) for value in gold_valences]
    signs = [sentiment_sign(p) if isinstance(p, str) else _number(p) for p in predicted]
    kept = [(g > 0, p > 0) for g, p in zip(gold, signs, strict=True) if g != 0]
    if not kept:
        raise InputError("every gold valence is 0 (or there is none), so no sample is left to score")
    truth, guess = zip(*kept, strict=True)
    return float(f1_score(truth, guess, average="weighted"))


def _number(value: Any) -> float:
    if not isinstance(value, Real) or np.isnan(value):
        raise InputError(f"a valence must be a number, got {value!r}; texts are allowed as predictions only")
    return float(value)


@dataclass(frozen=True)
class SetScore:
    """Precision, recall and F of sets of words, each a mean over wheels."""

    precision: float
    recall: float
    f: float


def f_s(predicted: Iterable[Iterable[str]], gold: Iterable[Iterable[str]], wheels: WheelsLike = None) -> SetScore:
    """Set-level F of open-vocabulary labels (AffectGPT, OV-MER).

    predicted, gold: for each sample the words named and the words that are right. In each wheel words become clusters,
    unknown words drop out, and ``P = mean |pred & gold| / |pred|``, ``R = mean |pred & gold| / |gold|`` over samples:
    a sample with no gold cluster is skipped, one with no predicted cluster scores 0 in both.
    ``F = 2PR / (P + R)``, 0 where both are 0; then the mean over wheels. Raises InputError where lengths differ or no
    wheel knows any gold word.

    >>> f_s([["glad", "livid"]], [["joyful"]])
    SetScore(precision=0.5, recall=1.0, f=0.6666666666666666)
    """
    predicted, gold = list(predicted), list(gold)
    if len(predicted) != len(gold):
        raise InputError(f"got {len(predicted)} predictions but {len(gold)} gold sets; give one for each")
    per_wheel = [row for wheel in as_wheels(wheels) if (row := _set_scores(predicted, gold, wheel))]
    if not per_wheel:
        raise InputError("no wheel knows any of the gold words, so there is nothing to score; check the gold labels")
    return SetScore(*np.mean(per_wheel, axis=0).tolist())


def _set_scores(predicted: Sequence, gold: Sequence, wheel: Wheel) -> tuple[float, float, float] | None:
    pairs = [(_clusters(p, wheel), _clusters(g, wheel)) for p, g in zip(predicted, gold, strict=True)]
    pairs = [(p, g) for p, g in pairs if g]
    if not pairs:
        return None
    mean_p = _mean(len(p & g) / len(p) if p else 0.0 for p, g in pairs)
    mean_r = _mean(len(p & g) / len(g) for p, g in pairs)
    return mean_p, mean_r, _f(mean_p, mean_r)


def _clusters(words: Iterable[str], wheel: Wheel) -> set[str]:
    if isinstance(words, str):
        raise InputError(f"each sample must be a list of words, got the string {words!r:.80}; split it at its commas")
    return {cluster for cluster in map(wheel.cluster, words) if cluster is not None}
