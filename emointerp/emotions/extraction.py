"""Find the emotion words of a text, offline: longest match on word forms and idioms, denied words left out.

:func:`extract` is the default ``extractor=`` of every score. Anything that takes a text and wheels and returns emotion
words, as :class:`EmotionWord` or as plain strings, can stand in its place, a language model for instance.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from emointerp.emotions.lexicon import base_forms
from emointerp.emotions.negation import Span, denied
from emointerp.emotions.tokens import Token, tokenise, words_of
from emointerp.emotions.wheels import Wheel, WheelsLike, as_wheels, majority
from emointerp.errors import InputError


@dataclass(frozen=True)
class EmotionWord:
    """An emotion word in a text: ``source_text[start:end] == text``.

    lemma: its dictionary form. emotion: the emotion it names by majority of the wheels, or None. clusters: wheel name
    -> level-1 cluster, for the wheels that know the word.
    """

    text: str
    start: int
    end: int
    lemma: str
    emotion: str | None
    clusters: Mapping[str, str] = field(hash=False)


Extractor = Callable[[str, WheelsLike], Iterable[EmotionWord | str]]


class _Entry(NamedTuple):
    lemma: str
    emotion: str | None
    clusters: dict[str, str]


class _Index(NamedTuple):
    """All forms of all wheels: single words, phrases by base forms, and the longest phrase after each first word."""

    words: dict[str, _Entry]
    phrases: dict[tuple[str, ...], _Entry]
    longest: dict[str, int]


def extract(text: str, wheels: WheelsLike = None) -> list[EmotionWord]:
    """The emotion words of ``text`` in order, without those that are denied ("not happy", "no fear").

    The longest match wins ("scared to death" is one word here); case and the kind of apostrophe do not matter. Takes
    time linear in the text. Raises InputError where ``text`` is no string.

    >>> [(w.text, w.emotion) for w in extract("I wasn't sad; I was over the moon.")]
    [('over the moon', 'joy')]
    """
    if not isinstance(text, str):
        raise InputError(f"text must be a str, got {type(text).__name__}: {text!r:.80}; pass the answer itself")
    index = _index(as_wheels(wheels))
    tokens = tokenise(text)
    found = _find(tokens, index)
    dropped = denied(tokens, [span for span, _ in found])
    return [_word(text, tokens, *hit) for n, hit in enumerate(found) if n not in dropped]


def _word(text: str, tokens: Sequence[Token], span: Span, entry: _Entry) -> EmotionWord:
    start, end = tokens[span.first].start, tokens[span.stop - 1].end
    return EmotionWord(text[start:end], start, end, entry.lemma, entry.emotion, dict(entry.clusters))


def _find(tokens: Sequence[Token], index: _Index) -> list[tuple[Span, _Entry]]:
    """Longest matches from left to right, without overlap."""
    bases = base_forms(token.word for token in tokens)
    found, at = [], 0
    while at < len(tokens):
        length, entry = _longest(tokens, bases, at, index)
        if entry is not None:
            found.append((Span(at, at + length, entry.lemma), entry))
        at += length
    return found


def _longest(tokens: Sequence[Token], bases: tuple[str, ...], at: int, index: _Index) -> tuple[int, _Entry | None]:
    for length in range(min(index.longest.get(bases[at], 1), len(tokens) - at), 1, -1):
        entry = index.phrases.get(bases[at : at + length])
        if entry is not None:  # clause marks are tokens too, so no phrase reaches across one
            return length, entry
    return 1, index.words.get(tokens[at].word)


@lru_cache(maxsize=32)
def _index(wheels: tuple[Wheel, ...]) -> _Index:
    tables = [wheel.vocabulary.forms for wheel in wheels]
    words = {form: _entry(form, wheels, [t.get(form) for t in tables]) for t in tables for form in t}
    tables = [wheel.vocabulary.phrases for wheel in wheels]
    phrases = {key: _entry(" ".join(key), wheels, [t.get(key) for t in tables]) for t in tables for key in t}
    longest: dict[str, int] = {}
    for key in phrases:
        longest[key[0]] = max(longest.get(key[0], 1), len(key))
    return _Index(_known(words), _known(phrases), longest)


def _known(entries: dict) -> dict:
    return {key: entry for key, entry in entries.items() if entry.clusters}


def _entry(form: str, wheels: tuple[Wheel, ...], lemmas: Sequence[str | None]) -> _Entry:
    """What the wheels make of one surface form; wheels whose stop-list holds it do not count."""
    pairs = [(w, lemma) for w, lemma in zip(wheels, lemmas, strict=True) if lemma and form not in w.stop]
    clusters = {w.name: w.table[lemma] for w, lemma in pairs if lemma in w.table}
    lemma = pairs[0][1] if pairs else form
    return _Entry(lemma, majority(clusters, wheels), clusters)


def emotion_words(text: str, wheels: WheelsLike = None, extractor: Extractor = extract) -> int:
    """How many words (occurrences) of a text name an emotion: the verbosity that stands beside a hit rate.

    Words that name none of the emotions by majority ("proud") are not counted.

    >>> emotion_words("Happy, so happy, and a little scared.")
    3
    """
    return sum(word.emotion is not None for word in read_words(text, wheels, extractor))


def read_words(text: str, wheels: WheelsLike = None, extractor: Extractor = extract) -> list[EmotionWord]:
    """What an extractor finds, as EmotionWords; plain strings are looked up in the wheels and get offsets -1."""
    chosen = as_wheels(wheels)
    return [w if isinstance(w, EmotionWord) else _from_string(w, chosen) for w in extractor(text, chosen)]


def _from_string(word: Any, wheels: tuple[Wheel, ...]) -> EmotionWord:
    if not isinstance(word, str):
        raise InputError(f"an extractor must return EmotionWord values or strings; got {word!r}")
    clusters = {w.name: w.cluster(word) for w in wheels}
    clusters = {name: cluster for name, cluster in clusters.items() if cluster}
    return EmotionWord(word, -1, -1, " ".join(words_of(word)), majority(clusters, wheels), clusters)
