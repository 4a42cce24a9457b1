"""Chapter 06: which token does a head read? The source token, found with a gradient and checked without one.

A head at the last token moves the metric through each token t by `A[q, t] * dM/dA[q, t]`: its *source token* is the t with the
largest. The check needs no gradient: `A[q, t] * <v_t W_O[h], S_hat>`, how much of the direction S the head fetches from t. Where
the two agree more often than attention alone explains, the head reads the feeling there, and does not only look.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from emointerp.circuit import Edge, Head, head_name
from emointerp.directions import Directions
from emointerp.errors import InputError
from emointerp.lens import Words, metrics_of
from emointerp.models import VLM, Prompt
from emointerp.models.anatomy import part
from emointerp.pairs import Pair, asked_of, fingerprint
from emointerp.plots import BLUE, GRAY, GREEN, ORANGE, PALE, YELLOW, ends, new_figure
from emointerp.saved import Saved
from emointerp.statistics import value_interval
from emointerp.tracing import Activations, Metric, collect
from emointerp.tracing.branches import prefix_of
from emointerp.tracing.remote import values_of
from emointerp.tracing.verbs import checked_layers
from emointerp.tracing.weights import part_here
from emointerp.world import Scene

Place = tuple[int, int]  # layer, and number of a head or neuron
SPANS = {"V": "visual", "Q": "query", "L": "last"}
OTHER, MASKS = "other", ("face", "expression")


@dataclass(frozen=True, eq=False)
class Sources(Saved):
    """The token that each head takes from, a row a pair (`picture`: the emotional one's fingerprint) and head in `table`:

    - `token`, `span` ("V", "Q", "L" or "other"), `attribution` (`A * dM/dA` there) and `attention` (A there); `most_attended`,
      whether it is the most attended token; `from_V`, `from_Q`, `from_L`: sums of attribution over these spans;
    - `check`, the token with the largest `A * <v W_O, S_hat>`, and `agrees`, whether it is the same (only with directions);
    - in the drawn world, for tokens of the picture: the share of the patch that lies on the `face` and on the `expression`, and the
      share of the whole picture that these are (`face_area`, `expression_area`), which is chance.
    """

    table: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """A row a head, `Interval`s over pairs.

        `agrees` beside two levels of chance: `attention`, how often a token drawn in proportion to attention would be the source,
        and `most_attended`, how often the most attended token is.
        """
        table = self.table.assign(**{span: self.table.span == span for span in (*SPANS, OTHER)})
        shown = ["agrees", "attention", "most_attended", *SPANS, OTHER, *(f"{m}{end}" for m in MASKS for end in ("", "_area"))]
        rows = {at: {name: value_interval(some[name]) for name in shown if name in some} for at, some in _by_head(table)}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["layer", "head"])

    def check_pairs(self, prompts: Iterable[Prompt]) -> None:
        """InputError if these are not the emotional prompts that the tokens were found in, in their order."""
        found = self.table.drop_duplicates("pair").sort_values("pair").picture.tolist()
        given = [fingerprint(prompt.image) for prompt in prompts]
        if found != given:
            raise InputError(
                f"These source tokens are of {len(found)} pairs, and other pairs came ({len(given)}), or in another order; "
                "find them on the same: source_tokens(vlm, pairs, heads)."
            )

    def tokens(self, layer: int, head: int) -> list[int]:
        """The source token of a head in each pair's prompts."""
        mine = self.table[(self.table.layer == layer) & (self.table["head"] == head)]
        if mine.empty:
            known = ", ".join(f"({a}, {b})" for (a, b), _ in _by_head(self.table))
            raise InputError(f"There are no source tokens of head ({layer}, {head}); there are those of {known}.")
        return mine.sort_values("pair").token.tolist()

    def edges(self, heads: Iterable[Head]) -> list[Edge]:
        """From V, Q and L to each head: its score, split as its attribution is over the spans (mean of absolute values)."""
        edges = []
        for head in heads:
            self.tokens(head.layer, head.head)
            mine = self.table[(self.table.layer == head.layer) & (self.table["head"] == head.head)]
            sizes = mine[[f"from_{span}" for span in SPANS]].abs().mean().to_numpy()
            edges += [Edge(span, head.name, head.score * size / sizes.sum()) for span, size in zip(SPANS, sizes, strict=True)]
        return edges

    def plot(self) -> Figure:
        """Left: where the source lies. Middle: how often the gradient-free check finds the same. Right: is it on the face?"""
        frame = self.to_frame()
        figure, axes = new_figure(1, 3, width=11, height=1.4 + 0.28 * len(frame))
        y, names, left = np.arange(len(frame)), [head_name(*at) for at in frame.index], np.zeros(len(frame))
        for span, color in zip((*SPANS, OTHER), (BLUE, GREEN, ORANGE, PALE), strict=True):
            share = np.array([i.mean for i in frame[span]])
            axes[0].barh(y, share, left=left, color=color, label=span)
            left += share
        styles = {
            "attention": (GRAY, "drawn by attention"),
            "most_attended": (YELLOW, "most attended"),
            "agrees": (BLUE, "check"),
        }
        _dots(axes[1], y, {label: (frame[c], color) for c, (color, label) in styles.items() if c in frame})
        styles = {"expression_area": (GRAY, "chance"), "expression": (BLUE, "expression")}
        _dots(axes[2], y, {label: (frame[c], color) for c, (color, label) in styles.items() if c in frame})
        for axis, title in zip(axes, ("Span of the source token", "Same token", "Share of the patch on"), strict=True):
            axis.set(yticks=y, yticklabels=names, xlim=(0, 1.02), title=title)
            axis.invert_yaxis()
            axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, frameon=False)
        return figure


def source_tokens(
    vlm: VLM,
    pairs: Sequence[Pair],
    heads: Iterable[Place],
    directions: Directions | None = None,
    metric: Any = "log mass",
    *,
    words: Words = None,
    answer: str = "I felt",
    progress: bool = True,
) -> Sources:
    """Which token does each head (layer, head) read at the last token, on each pair's emotional picture?

    `t* = argmax_t |A[q, t] * dM/dA[q, t]|` with q the last token and M the metric ("log mass", "mass", or a `Metric` such as
    `projection(S[e, l], l)`). With `directions` the check `argmax_t A[q, t] * <v_t W_O[h], S_hat[e, l]>` stands beside it, l the
    head's layer: it needs no gradient, and knows nothing of what comes later. In Gemma models there is no such check.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> ei.sources.source_tokens(vlm, pairs, [(6, 5), (5, 2)], progress=False).to_frame().index.tolist()
    [(6, 5), (5, 2)]
    """
    pairs = asked_of(vlm, pairs)
    heads = checked_places(vlm, heads, "head")
    metrics, rows = metrics_of(vlm, pairs, metric, words), []
    check_read_after(metrics, heads)
    for i, pair in enumerate(tqdm(pairs, desc="source tokens", disable=not progress)):
        prompt = vlm.prompt(*pair.plus, answer=answer)
        layers = sorted({layer for layer, _ in heads})
        acts = collect(vlm, prompt, ["attention"], layers=layers, positions="last", wrt=metrics[pair.emotion])
        seen, picture = _Masks(vlm, pair, prompt), fingerprint(prompt.image)
        for layer, head in heads:
            a, product = _attended(acts, prompt, layer, head)
            row = {"pair": i, "emotion": pair.emotion, "picture": picture, "layer": layer, "head": head}
            row |= _source(prompt, a, product)
            if directions is not None:
                along = a * value_path(vlm, prompt, layer, head, directions[pair.emotion, layer]).cpu().numpy()
                row |= {"check": int(along.argmax()), "agrees": bool(along.argmax() == row["token"])}
            rows.append(row | seen.at(row["token"]))
    return Sources(pd.DataFrame(rows))


def _attended(acts: Activations, prompt: Prompt, layer: int, head: int) -> tuple[np.ndarray, np.ndarray]:
    """Attention of the last token, and its product with the gradient; [token] each."""
    a, slope = (some.at("attention", layer, prompt.last)[head].float().cpu().numpy() for some in (acts, acts.gradients))
    return a, a * slope


def _source(prompt: Prompt, a: np.ndarray, product: np.ndarray) -> dict[str, Any]:
    token, where = int(np.abs(product).argmax()), {span: list(prompt.span(name)) for span, name in SPANS.items()}
    span = next((span for span, some in where.items() if token in some), OTHER)
    found = {"token": token, "span": span, "attribution": float(product[token]), "attention": float(a[token])}
    sums = {f"from_{span}": float(product[some].sum()) for span, some in where.items()}
    return found | {"most_attended": token == int(a.argmax())} | sums


def value_path(vlm: VLM, prompt: Prompt, layer: int, head: int, direction: Float[Tensor, " d_model"]) -> Float[Tensor, " token"]:
    """`<v_t W_O[h], S_hat>`: how far a head's write would lie along a direction if it attended to token t only.

    v_t is the value vector of the head's key-value group (grouped queries share one), as it stands in the model's cache.
    """
    refuse_norms(vlm)
    a, weight = vlm.anatomy, part_here(vlm, f"{vlm.anatomy.layers}.{layer}.self_attn.o_proj").weight.detach()
    if not weight.is_floating_point():
        raise InputError("Quantised weights cannot be read as vectors; load the model without `bits`.")
    kept = values_of(vlm, prompt, layer) if vlm.remote else prefix_of(vlm, prompt).keys_values[layer][1][0]
    values = kept[head // (a.n_heads // a.n_kv_heads)]
    read = weight[:, head * a.d_head : (head + 1) * a.d_head].float().T @ unit(direction).to(weight.device)
    return values.float() @ read


class _Masks:
    """Where the face and the expression are in a pair's picture, and what of a token's patch lies on them."""

    def __init__(self, vlm: VLM, pair: Pair, prompt: Prompt):
        drawn = isinstance(pair.emotional, Scene)
        self.masks = {name: mask for name, mask in pair.emotional.masks().items() if name in MASKS} if drawn else {}
        self.boxes = dict(zip(prompt.visual, vlm.boxes(prompt), strict=True)) if drawn else {}

    def at(self, token: int) -> dict[str, float]:
        """Shares of the token's patch on each mask, and of the picture; NaN where they are not known."""
        box = self.boxes.get(token, np.full(4, np.nan))
        if np.isnan(box).any() or not self.masks:
            return {f"{name}{end}": np.nan for name in MASKS for end in ("", "_area")}
        left, top, right, bottom = np.r_[np.floor(box[:2]), np.ceil(box[2:])].astype(int)
        on = {name: float(mask[top:bottom, left:right].mean()) for name, mask in self.masks.items()}
        return on | {f"{name}_area": float(mask.mean()) for name, mask in self.masks.items()}


# what neurons and sources share


def check_read_after(metrics: Mapping[str, Metric], heads: Iterable[Place]) -> None:
    """Refuse a metric that is read before a head writes: nothing of the head can reach it."""
    for metric in metrics.values():
        if metric.layer is not None and (late := [head for head in heads if head[0] > metric.layer]):
            raise InputError(
                f"The metric {metric.name!r} is read after layer {metric.layer}, before {head_name(*late[0])} writes; take heads "
                "up to that layer."
            )


def checked_places(vlm: VLM, places: Iterable[Sequence[SupportsIndex]], what: str) -> list[Place]:
    """Places (layer, number) that the model has, each once, in their order."""
    places, n = list(dict.fromkeys((int(layer), int(i)) for layer, i in places)), vlm.anatomy.n_heads
    n = n if what == "head" else vlm.anatomy.d_mlp
    if not places:
        raise InputError(f"There are no {what}s; expected (layer, {what}) pairs such as (3, 5).")
    checked_layers(vlm, [layer for layer, _ in places])
    if outside := [place for place in places if not 0 <= place[1] < n]:
        raise InputError(f"There is no {what} {outside[0]}; a layer of this model has {what}s 0 to {n - 1}.")
    return places


def refuse_norms(vlm: VLM) -> None:
    """Refuse models where a norm stands between what a part writes and the residual stream."""
    if hasattr(part(vlm.structure, f"{vlm.anatomy.layers}.0"), "pre_feedforward_layernorm"):
        raise InputError(
            "In Gemma models a norm follows what heads and neurons write, so a single one's length along S cannot be told; "
            "leave the directions out."
        )


def unit(direction: Tensor) -> Tensor:
    """A direction of length 1, in float32."""
    return direction.float() / direction.float().norm()


def _dots(axis: Any, y: np.ndarray, shown: Mapping[str, tuple[pd.Series, str]]) -> None:
    for k, (label, (intervals, color)) in enumerate(shown.items()):
        at = y + 0.18 * (k - (len(shown) - 1) / 2)
        mean, low, high = ends(intervals)
        axis.errorbar(mean, at, xerr=np.maximum(0, (mean - low, high - mean)), fmt="o", markersize=4, color=color, label=label)


def _by_head(table: pd.DataFrame) -> Any:
    return table.groupby(["layer", "head"], sort=False)
