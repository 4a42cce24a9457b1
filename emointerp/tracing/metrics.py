"""Metrics: a number for each forward, a function of the last token's logits or of the residual stream there."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from emointerp.errors import InputError
from emointerp.given import expected, texts
from emointerp.models import VLM
from emointerp.models.vlm import check_model


@dataclass(frozen=True)
class Metric:
    """`function` maps the last token's logits [forwards, vocabulary] to [forwards] or [forwards, values].

    Where a `layer` is given, it maps the residual stream after that layer, [forwards, d_model], instead.
    """

    function: Callable[[Tensor], Tensor]
    layer: int | None = None
    name: str = "metric"

    def __call__(self, last: Float[Tensor, "forwards width"]) -> Tensor:
        """The metric of each forward, computed in float32: effects are small beside the grain of 16 bits."""
        value = self.function(last.float())
        if value.shape[:1] != last.shape[:1]:
            raise InputError(
                f"The metric {self.name!r} gave shape {list(value.shape)} for {len(last)} forwards; expected one row each."
            )
        return value

    def one_each(self, last: Float[Tensor, "forwards width"]) -> Tensor:
        """The metric of each forward, refused if it gives several values: then it has no one gradient."""
        values = self(last)
        if values.ndim != 1:
            raise InputError(f"The metric {self.name!r} gives {list(values.shape[1:])} values a forward; a gradient needs one.")
        return values


def as_metric(given: Metric | Callable[[Tensor], Tensor]) -> Metric:
    """A metric itself, or one made of a function of logits."""
    if isinstance(given, Metric):
        return given
    function = expected(given, Callable, "a metric: a function of logits, or such as logit_mass(vlm, ['afraid'])")
    return Metric(function, name=getattr(given, "__name__", "metric"))


def first_tokens(vlm: VLM, words: str | Iterable[str]) -> list[int]:
    """The first token of each word as it stands inside a sentence; words of several tokens are stood for by their first.

    Different words may share a first token; each token is given once, in the order of the words. A text is one word.
    """
    check_model(vlm)
    return list(dict.fromkeys(first_token(vlm, f" {word}")[0] for word in texts(words, "words")))


def first_token(vlm: VLM, text: str) -> tuple[int, bool]:
    """The first token of a text that is more than a space, and whether nothing comes after it."""
    ids = vlm.tokenizer(text, add_special_tokens=False).input_ids
    if not ids:
        raise InputError(f"The word {text.strip()!r} has no token in this model's vocabulary.")
    at = next((i for i, token in enumerate(ids) if vlm.tokenizer.decode([token]).strip()), 0)
    return ids[at], at == len(ids) - 1


def logit_mass(vlm: VLM, words: str | Iterable[str]) -> Metric:
    """Log of the summed probability of the words' first tokens, in nats; a text is one word."""
    check_model(vlm)
    words = texts(words, "words")
    ids, name = first_tokens(vlm, words), f"log p({words[0]}{', …' * (len(words) > 1)})"
    return Metric(lambda logits: F.log_softmax(logits, -1)[:, ids].logsumexp(-1), name=name)


def logit_difference(vlm: VLM, word: str, other: str) -> Metric:
    """Logit of one word's first token less that of another's."""
    a, b = first_tokens(vlm, [word])[0], first_tokens(vlm, [other])[0]
    if a == b:
        raise InputError(f"{word!r} and {other!r} begin with the same token in this model; their logits cannot differ.")
    return Metric(lambda logits: logits[:, a] - logits[:, b], name=f"logit({word}) - logit({other})")


def _with_length(direction: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """A direction, refused where it points nowhere: its metric would be nan, or 0 of all runs."""
    if not 0 < (length := float(direction.float().norm())) < float("inf"):
        raise InputError(f"The direction has length {length:g}; expected one that points somewhere. Were all its pairs alike?")
    return direction


def projection(direction: Float[Tensor, " d_model"], layer: int) -> Metric:
    """Length of the residual stream after a layer along a direction, at the last token."""
    unit = _with_length(direction) / direction.norm()
    return Metric(lambda h: h @ unit.to(h), layer, f"projection at layer {layer}")


def cosine(direction: Float[Tensor, " d_model"], layer: int) -> Metric:
    """Cosine between the residual stream after a layer and a direction, at the last token."""
    _with_length(direction)
    return Metric(lambda h: torch.cosine_similarity(h, direction.to(h)[None], -1), layer, f"cosine at layer {layer}")
