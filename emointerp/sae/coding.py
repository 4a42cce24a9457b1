"""The arithmetic of a top-k SAE, on plain tensors: which features fire, and what they add up to.

A dense code has a number for each of perhaps 262,144 features, k = 128 of them above zero. Nothing here makes one: codes are
(values, indices) of width k, decoding adds k rows (`embedding_bag`), and gradients touch the rows that fired and no others.

Rows stand for features in both matrices: `encoder[i]` reads feature i, `decoder[i]` is what it writes.

Two things cost more than arithmetic on a processor: a matrix product with few vectors, which is quicker turned around (`_scores`),
and memory that is new in every step, whose pages the system has to clear. So a training loop may hand in the matrix that a gradient
is to be added to (`into`), the same in every step, of which only the rows that fired are touched.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

TURNED = 512  # as many vectors and more are scored the usual way round
BLOCK = 8192  # rows of a gradient, or of scores turned around, at a time
ROUNDED = 2.0**-8  # the largest share of a number that bfloat16 rounds away
SUMMED = 2.0**-22  # and of a float32 sum, for each of its terms: four times the unit roundoff, because two sums are compared


@dataclass(frozen=True, eq=False)
class Rough:
    """An encoder in bfloat16, and how far it lies from the one that it stands for.

    `lost` is the largest length of what rounding took from a row, `longest` the length of the longest row, `bias_lost` and
    `bias_largest` the same of the bias.
    """

    rows: Float[Tensor, "d_hidden d_in"]
    bias: Float[Tensor, " d_hidden"] | None
    lost: float
    longest: float
    bias_lost: float
    bias_largest: float

    @classmethod
    def of(cls, encoder: Float[Tensor, "d_hidden d_in"], bias: Float[Tensor, " d_hidden"] | None) -> "Rough":
        """Round, and measure what that took."""
        encoder, bias = encoder.detach(), None if bias is None else bias.detach()
        rows, parts = encoder.bfloat16(), encoder.split(BLOCK)
        lost = max(float((part - some).norm(dim=1).max()) for part, some in zip(parts, rows.split(BLOCK), strict=True))
        longest = max(float(part.norm(dim=1).max()) for part in parts)
        if bias is None:
            return cls(rows, None, lost, longest, 0.0, 0.0)
        rounded = bias.bfloat16()
        return cls(rows, rounded, lost, longest, float((bias - rounded).abs().max()), float(bias.abs().max()))

    def most(self, x: Float[Tensor, "n d_in"], coarse: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """What a full score can be at most where the one in bfloat16 is at most `coarse`, for each vector.

        With w' and x' the rounded row and vector, `|w . x - w' . x'| <= |w - w'| |x'| + |w| |x - x'|` (Cauchy-Schwarz); to that
        come the float32 sum's own error (at most `d_in` roundings) and two roundings of the result, before and after the bias.
        """
        rounded = x.bfloat16().to(x)
        length = rounded.norm(dim=1)
        inner = self.lost * length + self.longest * ((x - rounded).norm(dim=1) + x.shape[1] * SUMMED * length)
        outer = ROUNDED * (2 * coarse.abs() + (self.bias_largest if self.bias is not None else 0))
        return coarse + self.bias_lost + 1.01 * (inner + outer)  # 1.01: products of roundings, and those in this line


def sparse_encode(
    x: Float[Tensor, "n d_in"],
    encoder: Float[Tensor, "d_hidden d_in"],
    bias: Float[Tensor, " d_hidden"] | None,
    k: int,
    chunk: int | None = None,
    rough: Rough | None = None,
    candidates: int = 0,
    negative: bool = False,
    into: Float[Tensor, "d_hidden d_in"] | None = None,
) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """`relu(encoder x + bias)`: the k largest, in falling order, and their features; differentiable in `x`, `encoder` and `bias`.

    Where fewer than k scores are positive, the rest of the values is 0; `negative` leaves them as they are. `chunk` features are
    scored at a time and the best kept, so that memory is n * chunk in place of n * d_hidden. `rough` is the encoder in bfloat16:
    see `_rescored`. `into` is where a backward pass adds the encoder's gradient, in place of handing it to autograd.
    """
    return _TopK.apply(x, encoder, bias, k, chunk, rough, candidates, negative, into)


def sparse_decode(
    values: Float[Tensor, "n k"],
    indices: Int[Tensor, "n k"],
    decoder: Float[Tensor, "d_hidden d_in"],
    bias: Float[Tensor, " d_in"] | None,
    into: Float[Tensor, "d_hidden d_in"] | None = None,
) -> Float[Tensor, "n d_in"]:
    """`sum over j of values[:, j] * decoder[indices[:, j]] + bias`; `into` is for the decoder's gradient as in `sparse_encode`."""
    summed = _summed_rows(values, indices, decoder) if into is None else _Decode.apply(values, indices, decoder, into)
    return summed if bias is None else summed + bias


def _summed_rows(values: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    return F.embedding_bag(indices, rows, per_sample_weights=values, mode="sum")


def sum_by_feature(
    values: Float[Tensor, "n k"], indices: Int[Tensor, "n k"], source: Float[Tensor, "n d"], d_hidden: int
) -> Float[Tensor, "d_hidden d"]:
    """The transposed code times `source`: row i is the sum of `value * source[row]` over the rows where feature i fires."""
    features, order = indices.flatten().sort(stable=True)
    starts = torch.searchsorted(features, torch.arange(d_hidden, device=features.device))
    weights = values.flatten()[order]
    return F.embedding_bag(order // indices.shape[1], source, starts, per_sample_weights=weights, mode="sum")


def _add_by_feature(values: Tensor, indices: Tensor, source: Tensor, into: Tensor) -> None:
    """`into += sum_by_feature(values, indices, source)`, `BLOCK` of the rows that fired at a time."""
    features, order = indices.flatten().sort(stable=True)
    fired, counts = torch.unique_consecutive(features, return_counts=True)
    weights, rows, first = values.flatten()[order], order // indices.shape[1], 0
    for some, many in zip(fired.split(BLOCK), counts.split(BLOCK), strict=True):
        here = slice(first, first := first + int(many.sum()))
        starts = many.cumsum(0) - many
        into.index_add_(0, some, F.embedding_bag(rows[here], source, starts, per_sample_weights=weights[here], mode="sum"))


class _Decode(torch.autograd.Function):
    """Decoding whose backward pass adds the decoder's gradient to a matrix at hand."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, indices: Tensor, decoder: Tensor, into: Tensor) -> Tensor:
        """What the codes add up to."""
        ctx.save_for_backward(values, indices, decoder)
        ctx.into = into
        return _summed_rows(values, indices, decoder)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        """Of `sum over j of values[b, j] * decoder[indices[b, j]]`."""
        values, indices, decoder = ctx.saved_tensors
        if ctx.needs_input_grad[2]:
            _add_by_feature(values, indices, gradient, ctx.into)
        return _read(decoder, indices, gradient), None, None, None


def _read(rows: Tensor, indices: Tensor, x: Tensor) -> Tensor:
    """`rows[indices[b, j]] . x[b]` for every b and j, a vector at a time: the rows of all at once would be n k d_in numbers."""
    return torch.stack([rows[some] @ one for some, one in zip(indices, x, strict=True)])


class _TopK(torch.autograd.Function):
    """Selection forward, gathered rows backward: autograd of the dense form would fill an [n, d_hidden] gradient with zeros."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, encoder: Tensor, bias: Any, k: int, chunk: Any, rough: Any, candidates: int, negative: bool, into: Any
    ) -> Any:
        """The k largest scores and their features."""
        if rough is None:
            values, indices = _largest(x, encoder, bias, k, chunk)
        else:
            values, indices = _rescored(x, encoder, bias, k, chunk, rough, candidates)
        passes = (values > 0) | negative
        values = values * passes
        ctx.save_for_backward(x, encoder, indices, passes)
        ctx.has_bias, ctx.into = bias is not None, into
        ctx.mark_non_differentiable(indices)
        return values, indices

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Any:
        """Of `values[b, j] = encoder[indices[b, j]] . x[b] + bias[indices[b, j]]` where that passes."""
        x, encoder, indices, passes = ctx.saved_tensors
        gradient = gradient * passes
        for_x, for_encoder, for_bias = ctx.needs_input_grad[:3]
        dx = sparse_decode(gradient, indices, encoder, None) if for_x else None
        rows = None
        if for_encoder and ctx.into is not None:
            _add_by_feature(gradient, indices, x, ctx.into)
        elif for_encoder:
            rows = sum_by_feature(gradient, indices, x, len(encoder))
        needs_bias = ctx.has_bias and for_bias
        dbias = gradient.new_zeros(len(encoder)).index_add_(0, indices.flatten(), gradient.flatten()) if needs_bias else None
        return dx, rows, dbias, None, None, None, None, None, None


def _largest(x: Tensor, encoder: Tensor, bias: Tensor | None, k: int, chunk: int | None) -> tuple[Tensor, Tensor]:
    """The k largest scores and their features, `chunk` features at a time."""
    step = chunk or len(encoder)
    values, indices = x.new_empty(len(x), 0), torch.empty(len(x), 0, dtype=torch.long, device=x.device)
    for start in range(0, len(encoder), step):
        scores = _scores(x, encoder[start : start + step], None if bias is None else bias[start : start + step])
        some, at = scores.topk(min(k, scores.shape[1]))
        if start:
            some, at = torch.cat([values, some], 1), torch.cat([indices, at + start], 1)
            some, kept = some.topk(min(k, some.shape[1]))
            at = at.gather(1, kept)
        values, indices = some, at
    return values, indices


def _scores(x: Tensor, encoder: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`; few vectors on a processor as `encoder @ x.T`, in blocks turned while in its cache: 1.6 times as quick."""
    if x.device.type != "cpu" or len(x) >= TURNED:
        return F.linear(x, encoder, bias)
    scores = x.new_empty(len(x), len(encoder))
    for start in range(0, len(encoder), BLOCK):
        scores[:, start : start + BLOCK] = (encoder[start : start + BLOCK] @ x.T).T
    return scores if bias is None else scores.add_(bias)


def _rescored(
    x: Tensor, encoder: Tensor, bias: Tensor | None, k: int, chunk: int | None, rough: Rough, candidates: int
) -> tuple[Tensor, Tensor]:
    """The same by scores in bfloat16, whose best `candidates` are scored again in full.

    The selection is right where the k-th full score is above every score that was not looked at. None of those is above
    `rough.most` of the lowest candidate's rough score, which is a bound and no estimate, as long as products of bfloat16 are summed
    in float32. Rows whose k-th score does not reach it are done in full.
    """
    scores = F.linear(x.bfloat16(), rough.rows, rough.bias)
    coarse, at = scores.topk(min(max(candidates, k), len(encoder)), sorted=False)
    fine = _read(encoder, at, x)
    fine = fine if bias is None else fine + bias[at]
    values, kept = fine.topk(k)
    indices = at.gather(1, kept)
    unsure = ~(values[:, -1].clamp(min=0) > rough.most(x, coarse.amin(1).to(x)))
    if at.shape[1] < len(encoder) and unsure.any():
        values[unsure], indices[unsure] = _largest(x[unsure], encoder, bias, k, chunk)
    return values, indices
