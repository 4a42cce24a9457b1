"""Emotion wheels: published sortings of feelings into clusters, and concepts of one's own in the same shape.

Several wheels exist because people disagree; a score is a mean over wheels, so that no single sorting decides.
``G_w(word)`` is :meth:`Wheel.cluster`: lower case -> dictionary form -> group of synonyms -> level-1 cluster.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, cached_property, lru_cache

from emointerp.emotions.lexicon import (
    BASIC,
    NEUTRAL,
    Vocabulary,
    builtin_vocabulary,
    chain,
    entry_key,
    group_of,
    load_data,
    make_vocabulary,
)
from emointerp.errors import InputError

BUILTIN = ("plutchik", "parrott", "ekman", "geneva", "willcox")


@dataclass(frozen=True, eq=False)
class Wheel:
    """One sorting of words into clusters.

    tree: level-1 cluster -> level-2 name -> words, as the source has it.
    emotions: level-1 cluster -> the emotion it stands for, or None (pride, trust, ...).
    vocabulary: which surface forms count as which word; table: word -> level-1 cluster.
    labels: the emotions that scores ask about; stop: surface words skipped in running text.
    """

    name: str
    source: str
    tree: Mapping[str, Mapping[str, Sequence[str]]] = field(repr=False)
    emotions: Mapping[str, str | None] = field(repr=False)
    vocabulary: Vocabulary = field(repr=False)
    table: Mapping[str, str] = field(repr=False)
    labels: tuple[str, ...] = BASIC
    stop: frozenset[str] = field(default=frozenset(), repr=False)

    def cluster(self, word: str) -> str | None:
        """``G_w(word)``: the level-1 cluster of a word, phrase or inflected form; None where the wheel knows none.

        >>> wheel = wheels()[0]
        >>> wheel.name, wheel.cluster("Terrified"), wheel.cluster("table")
        ('plutchik', 'fear', None)
        """
        return self.table.get(entry_key(word)) or self.table.get(self.vocabulary.lemma(word))


@dataclass(frozen=True)
class Concept:
    """A set of labels with a lexicon of its own, for hypotheses that are not about emotion.

    Use it wherever ``wheels=`` is asked for. Words match in every regular inflection. Raises InputError where a label
    has no words, or a word belongs to two labels.

    >>> light = Concept("light", ("day", "night"), {"day": ["sunny", "at noon"], "night": ["dark", "moonlit"]})
    >>> light.wheel.cluster("darker")
    'night'
    """

    name: str
    labels: Sequence[str]
    words: Mapping[str, Sequence[str]] = field(hash=False)

    def __post_init__(self) -> None:
        _check_concept(self)
        object.__setattr__(self, "labels", tuple(self.labels))
        object.__setattr__(self, "words", {label: tuple(entries) for label, entries in self.words.items()})

    @cached_property
    def wheel(self) -> Wheel:
        """The concept as a wheel: one cluster a label."""
        table = {entry_key(entry): label for label, entries in self.words.items() for entry in entries}
        vocabulary = make_vocabulary({entry: ("nouns", "adjectives", "verbs") for entry in table})
        return Wheel(
            name=self.name,
            source=f"concept {self.name!r}, given by the user",
            tree={label: {label: entries} for label, entries in self.words.items()},
            emotions={label: label for label in self.labels},
            vocabulary=vocabulary,
            table={entry_key(label): label for label in self.labels} | table,
            labels=tuple(self.labels),
        )


def _check_concept(concept: Concept) -> None:
    if not concept.labels or set(concept.labels) != set(concept.words):
        raise InputError(
            f"concept {concept.name!r} has labels {list(concept.labels)} but words for {sorted(concept.words)}; "
            "give every label, and only those, a list of words"
        )
    seen: dict[str, str] = {}
    for label, entries in concept.words.items():
        if not entries or isinstance(entries, str) or not all(entry_key(e) for e in entries):
            raise InputError(f"label {label!r} of concept {concept.name!r} needs a list of words; got {entries!r}")
        for key in map(entry_key, entries):
            if seen.setdefault(key, label) != label:
                raise InputError(f"{key!r} belongs to both {seen[key]!r} and {label!r} of concept {concept.name!r}; give it one")


WheelsLike = Wheel | Concept | Iterable["Wheel | Concept"] | None


def wheels(names: Iterable[str] = BUILTIN) -> tuple[Wheel, ...]:
    """The package's wheels: Plutchik 1980, Parrott 2001, Ekman 1992, Geneva (Scherer 2005), Willcox 1982.

    >>> [wheel.name for wheel in wheels()]
    ['plutchik', 'parrott', 'ekman', 'geneva', 'willcox']
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    for name in names:
        if name not in BUILTIN:
            raise InputError(f"unknown wheel {name!r}; expected some of {', '.join(BUILTIN)}")
    return tuple(_builtin_wheel(name) for name in names)


@cache
def _builtin_wheel(name: str) -> Wheel:
    data = load_data(f"wheels/{name}")
    clusters = data["clusters"]
    return Wheel(
        name=name,
        source=data["source"],
        tree={cluster: body["words"] for cluster, body in clusters.items()},
        emotions={cluster: body["emotion"] for cluster, body in clusters.items()},
        vocabulary=builtin_vocabulary(),
        table=_climb(_listed(clusters)),
        stop=stop_words(),
    )


def _listed(clusters: Mapping) -> dict[str, str]:
    """Word -> cluster, for the words that the wheel itself names at one of its levels."""
    table: dict[str, str] = {}
    for cluster, body in clusters.items():
        for level2, words in body["words"].items():
            table |= dict.fromkeys([cluster, level2, *words], cluster)
    return table | {body["emotion"]: cluster for cluster, body in clusters.items() if body["emotion"]}


def _climb(listed: Mapping[str, str]) -> dict[str, str]:
    """The listed words, and every word of the lexicon whose group or broader group is listed."""
    found = {word: next((listed[n] for n in chain(word) if n in listed), None) for word in group_of()}
    return dict(listed) | {word: cluster for word, cluster in found.items() if cluster}


@cache
def stop_words() -> frozenset[str]:
    """Surface words that lists of feelings hold but running text seldom uses for one (bad, face, left, open, ...)."""
    return frozenset(load_data("stop")["words"])


def as_wheels(given: WheelsLike) -> tuple[Wheel, ...]:
    """What ``wheels=`` may hold -> a tuple of wheels with different names; None is the package's five."""
    if given is None:
        return wheels()
    items = (given,) if isinstance(given, Wheel | Concept) else tuple(given)
    chosen = tuple(item.wheel if isinstance(item, Concept) else item for item in items)
    for item in chosen:
        if not isinstance(item, Wheel):
            raise InputError(f"wheels= takes Wheel or Concept values, got {item!r}; wheels(['ekman']) makes one")
    if not chosen or len({wheel.name for wheel in chosen}) < len(chosen):
        raise InputError(f"wheels= needs at least one wheel, each with its own name; got {[w.name for w in chosen]}")
    return chosen


def labels_of(chosen: Sequence[Wheel]) -> tuple[str, ...]:
    """The emotions (or the concept's labels) that these wheels are asked about, in order."""
    return tuple(dict.fromkeys(label for wheel in chosen for label in wheel.labels))


def knowing(emotion: str, chosen: Sequence[Wheel]) -> dict[Wheel, str]:
    """``W_y`` with ``G_w(y)``: the wheels that know the emotion, each with its cluster. InputError where none does."""
    golds = {wheel: wheel.cluster(emotion) for wheel in chosen}
    golds = {wheel: gold for wheel, gold in golds.items() if gold is not None}
    if not golds:
        raise InputError(_unknown(emotion, chosen))
    return golds


def _unknown(emotion: str, chosen: Sequence[Wheel]) -> str:
    known = sorted({word for wheel in chosen for word in wheel.table} | {NEUTRAL})
    near = get_close_matches(emotion.lower(), known, n=3) or list(labels_of(chosen))
    return (
        f"unknown emotion {emotion!r}: it is in none of the wheels {', '.join(w.name for w in chosen)}; "
        f"nearest known: {', '.join(near)}. Use one of {', '.join(labels_of(chosen))}, {NEUTRAL}, or a word of a wheel"
    )


def majority(clusters: Mapping[str, str], chosen: tuple[Wheel, ...]) -> str | None:
    """The emotion that more than half of the wheels knowing it give to a word; None where none gets so far.

    clusters: wheel name -> the word's cluster. The same 0.5 as the hit rate's threshold: a word counts for an emotion
    if an answer of this one word would have a hit rate above one half.
    """
    shares = {}
    for label, golds in _gold_clusters(chosen).items():
        shares[label] = sum(clusters.get(name) == gold for name, gold in golds.items()) / len(golds)
    best = max(shares, key=shares.__getitem__, default=None)
    return best if best is not None and shares[best] > 0.5 else None


@lru_cache(maxsize=64)
def _gold_clusters(chosen: tuple[Wheel, ...]) -> dict[str, dict[str, str]]:
    """Label -> wheel name -> the label's cluster, for the wheels that know the label."""
    table = {label: {w.name: w.cluster(label) for w in chosen if w.cluster(label)} for label in labels_of(chosen)}
    return {label: golds for label, golds in table.items() if golds}


def words_for(emotion: str, wheels: WheelsLike = None, phrases: bool = False) -> tuple[str, ...]:
    """The dictionary words that name an emotion by majority of the wheels; with ``phrases``, idioms too.

    >>> "furious" in words_for("anger"), "fed up" in words_for("anger", phrases=True)
    (True, True)
    """
    chosen = as_wheels(wheels)
    knowing(emotion, chosen)
    entries = {lemma for wheel in chosen for lemma in wheel.vocabulary.forms.values()}
    entries |= {lemma for wheel in chosen if phrases for lemma in wheel.vocabulary.phrases.values()}
    return tuple(sorted(entry for entry in entries if emotion_of(entry, chosen) == emotion))


def emotion_of(word: str, wheels: WheelsLike = None) -> str | None:
    """The emotion that a word or phrase names by majority of the wheels, or None.

    >>> emotion_of("Revolted"), emotion_of("over the moon"), emotion_of("proud"), emotion_of("usual")
    ('disgust', 'joy', None, None)
    """
    chosen = as_wheels(wheels)
    found = {wheel.name: wheel.cluster(word) for wheel in chosen}
    return majority({name: cluster for name, cluster in found.items() if cluster}, chosen)
