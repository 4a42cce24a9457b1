"""Scores of neurons: attribution for all of them at once, and exact patching of some."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from emointerp.circuit import head_name
from emointerp.directions import Directions
from emointerp.errors import InputError
from emointerp.lens import Words, metrics_of, value_vectors
from emointerp.models import VLM, Prompt
from emointerp.pairs import Pair, asked_of, check_aligned, twin_prompts
from emointerp.plots import new_figure
from emointerp.saved import Saved
from emointerp.sources import SPANS, Place, Sources, check_read_after, checked_places, refuse_norms, source_tokens, unit
from emointerp.statistics import benjamini_hochberg, sign_flips, value_interval
from emointerp.tracing import Edit, Metric, SetHead, collect, patch, sweep

Tokens = Sequence[int] | str | None  # one a pair, a span, or the last
FLIPS, COLUMNS_AT_ONCE = 10_000, 2**14
SLOPES = {"both": (0, 1), "donor": (0,), "receiver": (1,)}  # whose runs the slope is a mean of: 0 the picture, 1 its twin


@dataclass(frozen=True, eq=False)
class NeuronScores(Saved):
    """Attribution of every neuron at some `tokens` of each pair's prompts: `scores` (summed over them) and `activations` (on the
    emotional picture, their mean).

    Positive: the neuron moves the metric towards the pictured emotion. `head` is the (layer, head) that it goes through, None:
    everything. `aligned` is the mean of `m * <v_n, S_hat>`, None without directions.
    """

    scores: Float[np.ndarray, "pair layer neuron"] = field(repr=False)
    activations: Float[np.ndarray, "pair layer neuron"] = field(repr=False)
    emotions: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    head: Place | None = None
    aligned: Float[np.ndarray, "layer neuron"] | None = field(default=None, repr=False)

    def top(self, k: int = 20) -> list[Place]:
        """The k neurons (layer, neuron) of the largest mean score."""
        mean = self.scores.mean(0)
        best = np.argsort(-mean, axis=None, kind="stable")[:k]
        return [(int(layer), int(neuron)) for layer, neuron in zip(*np.unravel_index(best, mean.shape), strict=True)]

    def to_frame(self, k: int = 20, flips: int = FLIPS) -> pd.DataFrame:
        """The k best: layer, neuron, `score` (`Interval` over pairs), `p` corrected for all neurons (sign flips,
        Benjamini-Hochberg), `activation`, `aligned`.
        """
        p, where = corrected(self.scores.reshape(len(self.scores), -1), flips).reshape(self.scores.shape[1:]), self.top(k)
        rows = [
            (*at, value_interval(self.scores[:, *at]), float(p[at]), float(self.activations[:, *at].mean()),
             np.nan if self.aligned is None else float(self.aligned[at]))
            for at in where
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["layer", "neuron", "score", "p", "activation", "aligned"])

    def plot(self) -> Figure:
        """Scores of each layer's neurons, the largest first: how few carry how much."""
        figure, axis = new_figure(width=7, height=3.4)
        for layer, mean in enumerate(self.scores.mean(0)):
            axis.plot(1 + np.arange(mean.size), np.sort(mean)[::-1], color=_layer_color(layer, self.scores.shape[1]), label=layer)
        axis.set(xscale="log", xlabel="rank of the neuron in its layer", ylabel="attribution, mean over pairs")
        axis.set_title("Everything" if self.head is None else f"Through {head_name(*self.head)}")
        figure.legend(*axis.get_legend_handles_labels(), title="layer", loc="outside right upper", fontsize=8)
        return figure


def neuron_scores(
    vlm: VLM,
    pairs: Sequence[Pair],
    head: Place | None = None,
    sources: Sources | str | None = None,
    directions: Directions | None = None,
    metric: Any = "log mass",
    *,
    slope: str = "both",
    words: Words = None,
    answer: str = "I felt",
    progress: bool = True,
) -> NeuronScores:
    """`(m+ - m-)[l, n, t] * dM/dm[l, n, t]` of all neurons (attribution patching), the slope a mean over both runs.

    Without a head: at the last token, all layers. With one: at its source token (of `sources`, found where they are not given), in
    the layers below it, through the head alone: the gradient less that with the head's output held at its own value. Either way
    `sources` may name a span instead, at all of whose tokens neurons are taken: "visual", "query" or "last".

    `slope`: whose run `dM/dm` is taken in. "both", the mean of the two (Hanna et al. 2024); "receiver", the neutral twin's, which
    patching starts from, as attribution patching has it (Nanda 2023; Syed et al. 2023); "donor", the emotional picture's.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> ei.neuron_scores(vlm, pairs, progress=False).scores.shape
    (2, 8, 512)
    """
    pairs = asked_of(vlm, pairs)
    slope_runs(slope)
    if isinstance(sources, str) and sources not in SPANS.values():
        raise InputError(f"sources is {sources!r}; expected Sources, or one of {', '.join(map(repr, SPANS.values()))}.")
    at = () if head is None else checked_places(vlm, [head], "head")
    if at and at[0][0] == 0:
        raise InputError(f"{head_name(*at[0])} is in the first layer; no neurons lie below it.")
    both, metrics = twins_of(vlm, pairs, answer), metrics_of(vlm, pairs, metric, words)
    check_read_after(metrics, at)
    if head is not None and sources is None:
        sources = source_tokens(vlm, pairs, at, metric=metric, words=words, answer=answer, progress=progress)
    if isinstance(sources, Sources):
        sources.check_pairs(prompts[0] for prompts in both)
    tokens = tokens_of(sources if isinstance(sources, str) else sources.tokens(*at[0]) if at else None, both)
    layers = range(vlm.anatomy.n_layers if head is None else at[0][0])
    found = []
    for pair, prompts, where in zip(tqdm(pairs, desc="neurons", disable=not progress), both, tokens, strict=True):
        held = [_held(vlm, prompt, at[0]) for prompt in prompts] if at else None
        found.append(attribution(vlm, prompts, metrics[pair.emotion], "neurons", layers, where, held, slope))
    scores, activations = (np.stack(some) for some in zip(*found, strict=True))
    emotions = tuple(pair.emotion for pair in pairs)
    aligned = None if directions is None else _aligned(vlm, activations, emotions, directions)
    return NeuronScores(scores, activations, emotions, tuple(tokens), at[0] if at else None, aligned)


def attribution(
    vlm: VLM,
    prompts: Sequence[Prompt],
    metric: Metric,
    site: str,
    layers: Iterable[int],
    tokens: Sequence[int],
    held: Sequence[Edit] | None = None,
    slope: str = "both",
) -> tuple[np.ndarray, np.ndarray]:
    """`(a+ - a-) * dM/da` of a site's activations, summed over tokens, and the mean of a+; [layer, …, width].

    `prompts`: the emotional one and its twin; `site`: "neurons" or "heads". `slope` as in `neuron_scores`.

    With `held`, an edit for each prompt that leaves something at its own value, only what goes through that something: the
    difference of two gradients. What is a thousandth of the whole has three digits fewer; in 16 bits nothing is left of it, so load
    in float32.
    """
    runs, where = slope_runs(slope), {"layers": layers, "positions": tokens}
    acts = [collect(vlm, prompt, [site], **where, wrt=metric if i in runs else None) for i, prompt in enumerate(prompts)]
    gradient = sum(getattr(acts[i].gradients, site) for i in runs) / len(runs)
    for i in runs if held else ():
        still = collect(vlm, prompts[i], [site], [held[i]], **where, wrt=metric)
        gradient = gradient - getattr(still.gradients, site) / len(runs)
    plus, minus = (getattr(one, site) for one in acts)
    return ((plus - minus) * gradient).float().sum(-2).cpu().numpy(), plus.float().mean(-2).cpu().numpy()


def patched(
    vlm: VLM,
    pairs: Sequence[Pair],
    neurons: Iterable[Place],
    head: Place | None = None,
    tokens: Tokens = None,
    metric: Any = "log mass",
    *,
    words: Words = None,
    answer: str = "I felt",
    noising: bool = False,
    progress: bool = True,
) -> Float[np.ndarray, "pair neuron"]:
    """What each neuron does by exact patching: the metric's rise beside the neutral twin when it gets its value of the emotional
    picture; with `noising`, the fall the other way round.

    At the last token, or at `tokens`: one a pair, or a span such as "visual". With a head, only what goes through it: the effect
    less that with the head held.
    """
    neurons, held = checked_places(vlm, neurons, "neuron"), checked_places(vlm, [head], "head") if head else []
    both, metrics, found = twins_of(vlm, pairs, answer), metrics_of(vlm, pairs, metric, words), []
    places = tokens_of(tokens, both)
    layers = sorted({layer for layer, _ in neurons})
    for pair, prompts, where in zip(tqdm(pairs, desc="patching", disable=not progress), both, places, strict=True):
        receiver, other = prompts if noising else prompts[::-1]
        donor = collect(vlm, other, ["neurons"], layers=layers, positions=where)
        moved = {n: [patch(donor, n[0], neurons=[n[1]], positions=where)] for n in neurons}
        still = {(*n, "held"): [*edits, _held(vlm, receiver, at)] for at in held for n, edits in moved.items()}
        lists = {(*n, "free"): edits for n, edits in moved.items()} | still
        swept = sweep(vlm, receiver, lists, metrics[pair.emotion], progress=False)
        risen = (swept.values - swept.baseline[:, None])[0].numpy() * (-1 if noising else 1)
        found.append(risen[: len(moved)] - (risen[len(moved) :] if held else 0))
    return np.stack(found)


# what these and their neighbours share


def slope_runs(slope: str) -> tuple[int, ...]:
    """Whose gradients a slope is the mean of: 0 the emotional picture's, 1 its twin's; what is no slope is refused."""
    if slope not in SLOPES:
        raise InputError(f"slope is {slope!r}; expected {', '.join(map(repr, SLOPES))}.")
    return SLOPES[slope]


def _held(vlm: VLM, prompt: Prompt, head: Place) -> SetHead:
    """An edit that changes nothing and lets no gradient pass: a head's output at the last token set to its own value."""
    own = collect(vlm, prompt, ["heads"], layers=head[0], positions="last").at("heads", head[0], prompt.last)
    return SetHead(*head, own[head[1]])


def twins_of(vlm: VLM, pairs: Sequence[Pair], answer: str) -> list[list[Prompt]]:
    both = [twin_prompts(vlm, pair, answer) for pair in pairs]
    check_aligned(vlm, pairs, both)
    return both


def tokens_of(tokens: Tokens, both: Sequence[list[Prompt]]) -> list[tuple[int, ...]]:
    """Token indices for each pair: the last, those of a span, or one each."""
    if tokens is None or isinstance(tokens, str):
        return [prompts[0].span(tokens or "last") for prompts in both]
    if len(tokens) != len(both):
        raise InputError(f"There are {len(tokens)} source tokens for {len(both)} pairs; find them on the same pairs.")
    return [prompts[0].positions([int(token)]) for token, prompts in zip(tokens, both, strict=True)]


def _aligned(
    vlm: VLM, activations: Float[np.ndarray, "pair layer neuron"], emotions: Sequence[str], directions: Directions
) -> Float[np.ndarray, "layer neuron"]:
    """Mean over pairs of `m * <v_n, S_hat[e, l]>`."""
    refuse_norms(vlm)
    n_layers, all_neurons = activations.shape[1], range(vlm.anatomy.d_mlp)
    along = {
        emotion: np.stack([_along(vlm, layer, all_neurons, directions[emotion, layer]) for layer in range(n_layers)])
        for emotion in dict.fromkeys(emotions)
    }
    return np.mean([m * along[emotion] for m, emotion in zip(activations, emotions, strict=True)], axis=0)


def _along(vlm: VLM, layer: int, neurons: Sequence[int], direction: Tensor) -> np.ndarray:
    vectors = value_vectors(vlm, layer, neurons).float()
    return (vectors @ unit(direction).to(vectors.device)).cpu().numpy()


def corrected(x: Float[np.ndarray, "pair unit"], flips: int) -> Float[np.ndarray, " unit"]:
    """p-values of sign flips over pairs, corrected over all units (Benjamini-Hochberg); some columns at a time, to spare memory."""
    starts = range(0, x.shape[1], COLUMNS_AT_ONCE)
    return benjamini_hochberg(np.concatenate([sign_flips(x[:, i : i + COLUMNS_AT_ONCE], flips).p for i in starts]))


def _layer_color(layer: int, n: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](layer / n)
