"""The emotion words themselves: their inflected forms, their groups of synonyms and their valence.

The data is ``data/lexicon.json``: each word belongs to one group, each group to a broader one ("livid" -> "rage" ->
"anger"). A wheel that does not list a word is asked for its group, then for the broader one.

Why our own inflections: the lexicon is closed, so its forms can be listed once and looked up. The well-kept offline
lemmatiser, simplemma, is a 19 MB install, leaves adverbs as they are ("furiously") and turns "fed" of "fed up" into
"feed".
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from emointerp.emotions.tokens import words_of

BASIC = ("anger", "disgust", "fear", "joy", "sadness", "surprise")
NEUTRAL = "neutral"
ALL = BASIC + (NEUTRAL,)

_PARTS = ("nouns", "adjectives", "verbs", "fixed", "phrases")


@cache
def load_data(name: str) -> Any:
    """The parsed JSON file ``data/<name>.json`` of this package; read-only by agreement."""
    return json.loads(files(__package__).joinpath("data", f"{name}.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Vocabulary:
    """Which surface forms count as which dictionary word (lemma).

    ``forms`` maps one lower-case word to its lemma; ``phrases`` maps the base forms of several words to theirs.
    """

    forms: Mapping[str, str]
    phrases: Mapping[tuple[str, ...], str]

    def lemma(self, entry: str) -> str:
        """The dictionary form of a word or phrase, or the entry itself, lower-cased, where it is unknown.

        >>> builtin_vocabulary().lemma("Furiously"), builtin_vocabulary().lemma("Her blood boils")
        ('furious', 'my blood boiled')
        """
        words = words_of(entry)
        if len(words) == 1:
            return self.forms.get(words[0], words[0])
        return self.phrases.get(base_forms(words), " ".join(words))


def base_forms(words: Iterable[str]) -> tuple[str, ...]:
    """Words as they are compared inside phrases: verbs in the infinitive, all pronouns and possessives as "my".

    >>> base_forms(["his", "blood", "was", "boiling"])
    ('my', 'blood', 'be', 'boil')
    """
    table = _phrase_bases()
    return tuple(table.get(word, word) for word in words)


@cache
def _phrase_bases() -> dict[str, str]:
    verbs = load_data("inflections")["phrase_verbs"]
    return {form: verb for verb, forms in verbs.items() for form in forms}


def inflect(lemma: str, parts: Iterable[str] = ("nouns", "adjectives", "verbs")) -> set[str]:
    """All regular and listed forms of a word as the given parts of speech; may hold forms that nobody uses.

    >>> sorted(inflect("angry", ["adjectives"]))
    ['angrier', 'angriest', 'angrily', 'angriness', 'angry']
    """
    rules = {"nouns": _noun_forms, "verbs": _verb_forms, "adjectives": _adjective_forms}
    forms = {lemma, *load_data("inflections")["irregular"].get(lemma, ())}
    return forms.union(*(rules[part](lemma) for part in parts if part in rules))


def _soft_y(word: str) -> bool:
    return word.endswith("y") and word[-2:-1] not in tuple("aeiou")


def _noun_forms(word: str) -> set[str]:
    if _soft_y(word):
        return {word[:-1] + "ies"}
    return {word + ("es" if word.endswith(("s", "x", "z", "ch", "sh")) else "s")}


def _verb_forms(word: str) -> set[str]:
    past = word[:-1] + "ied" if _soft_y(word) else word + ("d" if word.endswith("e") else "ed")
    ing = (word[:-1] if word.endswith("e") and not word.endswith("ee") else word) + "ing"
    return _noun_forms(word) | {past, ing, past + "ly", ing + "ly"}


def _adjective_forms(word: str) -> set[str]:
    stem = word[:-1] + "i" if _soft_y(word) else word
    if word.endswith("le"):
        adverb = word[:-1] + "y"
    else:
        adverb = stem + ("ally" if word.endswith("ic") else "ly")
    compared = stem[:-1] if word.endswith("e") else stem
    return {adverb, stem + "ness", compared + "er", compared + "est"}


@cache
def _groups() -> dict[str, dict[str, Any]]:
    """The groups of the lexicon by head noun, each part of speech as a list."""
    groups = load_data("lexicon")["groups"]
    return {head: {key: _entries(key, value) for key, value in body.items()} for head, body in groups.items()}


def _entries(key: str, value: Any) -> Any:
    return value.split() if key in _PARTS and isinstance(value, str) else value


@cache
def group_of() -> dict[str, str]:
    """Lemma or phrase -> head noun of its group, for every entry of the lexicon."""
    table = {head: head for head in _groups()}
    for head, body in _groups().items():
        table.update((entry_key(entry), head) for part in _PARTS for entry in body.get(part, ()))
    return table


def entry_key(entry: str) -> str:
    """An entry as it is stored: lower case, one blank between words ("Terror-Stricken" -> "terror stricken")."""
    return " ".join(words_of(entry))


def chain(lemma: str) -> list[str]:
    """The names to try in a wheel, nearest first: the word, its group, the broader groups.

    >>> chain("livid")
    ['livid', 'rage', 'anger']
    """
    names, head = [lemma], group_of().get(lemma)
    while head is not None:
        names += [head] if head not in names else []
        head = _groups()[head].get("broader")
    return names


def valence(word: str) -> int:
    """+1 for a pleasant feeling, -1 for an unpleasant one, 0 for neither or an unknown word.

    >>> valence("furiously"), valence("overjoyed"), valence("table")
    (-1, 1, 0)
    """
    return _groups().get(chain(builtin_vocabulary().lemma(word))[-1], {}).get("valence", 0)


def make_vocabulary(entries: Mapping[str, Iterable[str]]) -> Vocabulary:
    """Words and phrases with their parts of speech -> every form of each. A listed word beats another word's form."""
    single = {entry_key(entry): parts for entry, parts in entries.items() if len(words_of(entry)) == 1}
    phrases = {base_forms(words_of(entry)): entry_key(entry) for entry in entries if len(words_of(entry)) > 1}
    forms = {form: lemma for lemma, parts in single.items() for form in sorted(inflect(lemma, parts))}
    return Vocabulary(forms | {lemma: lemma for lemma in single}, phrases)


@cache
def builtin_vocabulary() -> Vocabulary:
    """Every form of every entry of ``data/lexicon.json``."""
    parts: dict[str, set[str]] = {}
    for body in _groups().values():
        for part in _PARTS:
            for entry in body.get(part, ()):
                parts.setdefault(entry, set()).add(part)
    return make_vocabulary(parts)
