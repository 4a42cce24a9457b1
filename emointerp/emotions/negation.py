"""Which emotion words are denied: "not happy" names no joy, "never felt so happy" does.

Why our own and not a library's: the known ones (NegEx and its kin) are tuned to medical records or need a parser. The
rules here are few, run in one pass, and their word lists are ``data/negation.json``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from emointerp.emotions.lexicon import load_data
from emointerp.emotions.tokens import Token


class Span(NamedTuple):
    """A found emotion word: tokens ``first`` up to, but not with, ``stop``; its lemma."""

    first: int
    stop: int
    lemma: str


@dataclass
class _Scope:
    """An open negation: how many more words it reaches, what opened it, what it has met."""

    reach: int = 0
    never: bool = False
    can: bool = False
    raising: bool = False
    listed: bool = False


@cache
def _rules() -> dict[str, frozenset]:
    data = load_data("negation")
    rules = {key: frozenset(value) for key, value in data.items() if isinstance(value, list) and key != "negator_pairs"}
    return rules | {"pairs": frozenset(map(tuple, data["negator_pairs"]))}


def denied(tokens: Sequence[Token], spans: Sequence[Span]) -> set[int]:
    """Indices of the spans that stand inside a negation. One pass from left to right; spans in text order."""
    starts = {span.first: index for index, span in enumerate(spans)}
    out: set[int] = set()
    scope, at = _Scope(), 0
    while at < len(tokens):
        if at in starts:
            span = spans[starts[at]]
            if scope.reach and not _is_degree(tokens, span, scope):
                out.add(starts[at])
                scope.listed = True
            else:
                scope = _Scope()
            at = span.stop
            continue
        scope, step = _advance(tokens, at, scope, starts)
        at += step
    return out


def _advance(tokens: Sequence[Token], at: int, scope: _Scope, starts: dict[int, int]) -> tuple[_Scope, int]:
    """The scope after the token at ``at``, and how many tokens that took."""
    if (_word(tokens, at), _word(tokens, at + 1)) in _rules()["pairs"]:
        return _open(tokens, at), 2
    if _word(tokens, at) in _rules()["negators"]:
        return (_Scope() if _cancelled(tokens, at) else _open(tokens, at)), 1
    if scope.reach and _ends(tokens, at, scope, starts):
        return _Scope(), 1
    scope.raising |= _word(tokens, at) in _rules()["neg_raising"]
    scope.reach = max(scope.reach - 1, 0)
    return scope, 1


def _word(tokens: Sequence[Token], at: int) -> str:
    """The word at a position, "n't" as "not"; empty beyond the ends and for clause marks before the first word."""
    if not 0 <= at < len(tokens):
        return ""
    return "not" if tokens[at].word == "n't" else tokens[at].word


def _open(tokens: Sequence[Token], at: int) -> _Scope:
    word = _word(tokens, at)
    can = word in ("cannot", "cant", "couldnt") or _word(tokens, at - 1) in ("can", "ca", "could")
    return _Scope(reach=load_data("negation")["window"], never=word == "never", can=can)


def _cancelled(tokens: Sequence[Token], at: int) -> bool:
    """ "not only", "could not help", "no doubt", "nothing but", "not without": no negation."""
    word = _word(tokens, at)
    if word == "without" and _word(tokens, at - 1) in ("not", "never"):
        return True
    rule = load_data("negation")["cancelled_by_next"].get(word, ())
    return _word(tokens, at + 1) in rule or (_word(tokens, at + 2) in rule and tokens[at + 1].is_word)


def _ends(tokens: Sequence[Token], at: int, scope: _Scope, starts: dict[int, int]) -> bool:
    word, rules = tokens[at].word, _rules()
    if not tokens[at].is_word:
        return not (word == "," and scope.listed and _list_goes_on(tokens, at, starts))
    if word == "and":
        return not (scope.listed and at + 1 in starts)
    if word in rules["pronouns"]:
        inverted = _word(tokens, at - 2) in ("nor", "never", "neither")  # "nor was I afraid"
        return not (scope.raising or inverted)
    return word in rules["terminators"] or (scope.can and word in rules["after_can"])


def _list_goes_on(tokens: Sequence[Token], at: int, starts: dict[int, int]) -> bool:
    """ "not sad, angry or afraid": after the comma comes the next emotion word, with or without "or"."""
    return at + 1 in starts or (_word(tokens, at + 1) in ("or", "nor", "and") and at + 2 in starts)


def _is_degree(tokens: Sequence[Token], span: Span, scope: _Scope) -> bool:
    """ "never so happy", "never happier", "could not be more thrilled": the highest degree, not a denial."""
    before = {_word(tokens, span.first - 1), _word(tokens, span.first - 2)}
    word = tokens[span.first].word
    more = "more" in before or (word.endswith("er") and word != span.lemma)
    return (scope.never and (more or bool(before & _rules()["degree"]))) or (scope.can and more)
