"""Chapter 06, second half: what wakes the heads? From a head to the token that it reads, and to the neurons that write there.

A head at the last token takes the feeling from somewhere, its *source token* (`sources`). What lies there was written by neurons
of earlier layers: *trigger* neurons answer to the picture (`trigger_neurons`). At the last token others say what has been gathered:
*state* neurons, whose value vectors name an emotion (`state_neurons`). And a neuron again is fed by heads below it (`feeders`).

Scores are attribution patching, `(m+ - m-) * dM/dm` of emotional picture and neutral twin (Nanda 2023; Syed et al. 2023), for all
neurons at once: the metric M is taken for a straight line. It is none where a head looks elsewhere, or a neuron rests, until much
has come together: beside the neutral twin alone the slope of what wakes such a part is nothing, or has the wrong sign. So the slope
is the mean of those in both runs (the trapezoid rule of integrated gradients: Sundararajan et al. 2017; Hanna et al. 2024). The
best are then patched exactly (`patched`), on the same pairs or better on others. What a neuron does *through a head* is the
metric's whole change less its change with the head held still.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from emointerp.circuit import GENERAL, Edge, Neuron, head_name, neuron_name
from emointerp.directions import Directions
from emointerp.errors import InputError
from emointerp.lens import Words, emotion_tokens, lens_logits, metrics_of, value_vectors, words_of
from emointerp.models import VLM, Prompt
from emointerp.models.anatomy import part
from emointerp.pairs import Pair, check_aligned, check_disjoint, twin_prompts
from emointerp.plots import COLORS, GRAY, QUIET, new_figure
from emointerp.sources import SPANS, Place, Sources, checked_places, refuse_norms, source_tokens, unit
from emointerp.statistics import benjamini_hochberg, flips_by_group, sign_flips, value_interval
from emointerp.tracing import Edit, Metric, SetHead, collect, patch, sweep
from emointerp.tracing.weights import part_here

Tokens = Sequence[int] | str | None  # one a pair, a span, or the last
FLIPS, COLUMNS_AT_ONCE = 10_000, 2**14


# scores


@dataclass(frozen=True, eq=False)
class NeuronScores:
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
        p, where = _corrected(self.scores.reshape(len(self.scores), -1), flips).reshape(self.scores.shape[1:]), self.top(k)
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
    words: Words = None,
    answer: str = "I felt",
    progress: bool = True,
) -> NeuronScores:
    """`(m+ - m-)[l, n, t] * dM/dm[l, n, t]` of all neurons, the slope a mean over both runs.

    Without a head: at the last token, all layers. With one: at its source token (of `sources`, found where they are not given), or
    at all tokens of the picture (`sources="visual"`), in the layers below it, through the head alone: the gradient less that with
    the head's output held at its own value.
    """
    at = () if head is None else checked_places(vlm, [head], "head")
    if at and at[0][0] == 0:
        raise InputError(f"{head_name(*at[0])} is in the first layer; no neurons lie below it.")
    both, metrics = _twins(vlm, pairs, answer), metrics_of(vlm, pairs, metric, words)
    if head is not None and sources is None:
        sources = source_tokens(vlm, pairs, at, metric=metric, words=words, answer=answer, progress=progress)
    tokens = _fitting(None if head is None else "visual" if sources == "visual" else sources.tokens(*at[0]), both)
    layers = range(vlm.anatomy.n_layers if head is None else at[0][0])
    found = []
    for pair, prompts, where in zip(tqdm(pairs, desc="neurons", disable=not progress), both, tokens, strict=True):
        held = [_held(vlm, prompt, at[0]) for prompt in prompts] if at else None
        found.append(attribution(vlm, prompts, metrics[pair.emotion], "neurons", layers, where, held))
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
) -> tuple[np.ndarray, np.ndarray]:
    """`(a+ - a-) * dM/da` of a site's activations, summed over tokens, and the mean of a+; [layer, …, width].

    `prompts`: the emotional one and its twin; `site`: "neurons" or "heads". The slope is the mean of those in the two runs.

    With `held`, an edit for each prompt that leaves something at its own value, only what goes through that something: the
    difference of two gradients. What is a thousandth of the whole has three digits fewer; in 16 bits nothing is left of it, so load
    in float32.
    """
    where: dict[str, Any] = {"layers": layers, "positions": tokens, "wrt": metric}
    acts = [collect(vlm, prompt, [site], **where) for prompt in prompts]
    slope = sum(getattr(one.gradients, site) for one in acts) / 2
    for prompt, edit in zip(prompts, held or (), strict=held is not None):
        slope = slope - getattr(collect(vlm, prompt, [site], [edit], **where).gradients, site) / 2
    plus, minus = (getattr(one, site) for one in acts)
    return ((plus - minus) * slope).float().sum(-2).cpu().numpy(), plus.float().mean(-2).cpu().numpy()


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
    both, metrics, found = _twins(vlm, pairs, answer), metrics_of(vlm, pairs, metric, words), []
    places = _fitting(tokens, both)
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


# trigger and state neurons


@dataclass(frozen=True, eq=False)
class Neurons:
    """Neurons that were looked at closely, a row each (and a head that it wakes) in `table`:

    - `layer`, `neuron`, `kind` ("trigger", "state", or "unnamed": at the last token, naming nothing), `head`, its token's `span`;
    - `score`, attribution, and `p`, corrected for all neurons; `exact`, by patching, and `p_exact`, that it does nothing for the
      better in all pairs or in those of an emotion (`flips_by_group`), corrected for those listed;
    - `activation` (its sign: the sense in which the neuron writes), `aligned` (`m * <v_n, S_hat>`);
    - `words`, what `sign(m) * v_n` makes likely; `mass`, the probability of the words of the emotion that it names best;
    - `emotion`: for neurons at the last token the named one; for triggers the one of `moves`, if that has half of the effect;
      else "general". `moves`: on whose pictures the exact effect is largest, and `share`, its part of all positive effects.

    `control` is the share of random neurons of the same layers whose value vectors name an emotion.
    """

    table: pd.DataFrame
    control: float = np.nan

    @property
    def named(self) -> float:
        """The share of the listed neurons that name an emotion; to be compared with `control`."""
        return float((self.table.names != "").mean())

    def stands(self, p: float = 0.05) -> pd.DataFrame:
        """The rows that exact patching confirms: a positive effect, corrected p at most `p`; unnamed ones left out."""
        t = self.table
        return t[(t.p_exact <= p) & (t.kind != "unnamed") & t.exact.map(lambda i: i.mean > 0)]

    def parts(self, p: float = 0.05) -> list[Neuron]:
        """Parts for a `Circuit`: confirmed neurons, each once, with its largest effect."""
        best: dict[Place, Neuron] = {}
        for row in self.stands(p).itertuples():
            span = SPANS.get(row.span, "query")
            new = Neuron(row.layer, row.neuron, row.exact.mean, row.p_exact, row.emotion, span, row.kind)
            best[row.layer, row.neuron] = max(new, best.get((row.layer, row.neuron), new), key=lambda part: part.score)
        return list(best.values())

    def edges(self, p: float = 0.05) -> list[Edge]:
        """Triggers: from their span, and to the head that they wake. State neurons: to the logits."""
        edges: dict[tuple[str, str], Edge] = {}
        for row in self.stands(p).itertuples():
            name, weight = neuron_name(row.layer, row.neuron), row.exact.mean
            ends = [(name, row.head or "logits")] + [(row.span, name)] * (row.kind == "trigger" and row.span in SPANS)
            edges |= {end: Edge(*end, weight) for end in ends}
        return list(edges.values())

    def plot(self, most: int = 24) -> Figure:
        """Exact effects with 95% intervals, attribution as open circles, and the words that each neuron writes."""
        table = self.table.iloc[:most]
        figure, axis = new_figure(width=8.5, height=1.0 + 0.26 * len(table))
        y = np.arange(len(table))[::-1]
        for height, row in zip(y, table.itertuples(), strict=True):
            color = COLORS.get(row.emotion, GRAY)
            axis.plot([row.exact.low, row.exact.high], [height] * 2, color=color, linewidth=2)
            axis.plot(row.exact.mean, height, "o", color=color)
            axis.plot(row.score.mean, height, "o", color=color, markerfacecolor="white")
        rows = table.itertuples()
        names = [f"{neuron_name(r.layer, r.neuron)}{f' > {r.head}' if r.head else ''}  {_short(r.words)}" for r in rows]
        axis.axvline(0, color=QUIET, linewidth=0.8)
        axis.set(yticks=y, xlabel="effect on the metric (filled: patched, open: attribution)")
        axis.set_yticks(y, names, fontsize=8)
        return figure


def state_neurons(
    vlm: VLM,
    pairs: Sequence[Pair],
    directions: Directions | None = None,
    metric: Any = "log mass",
    *,
    k: int = 30,
    held_out: Sequence[Pair] | None = None,
    words: Words = None,
    answer: str = "I felt",
    noising: bool = False,
    flips: int = FLIPS,
    seed: int = 0,
    progress: bool = True,
) -> Neurons:
    """The k neurons that do most at the last token, and whether their value vectors name an emotion.

    A value vector names the emotion whose words have the largest mass in it, if one of these is among its ten likeliest words.
    `held_out`: pairs to patch exactly; on `pairs` themselves, the default, the winners of the scan look better than they are.
    """
    check_disjoint(pairs, held_out or ())
    options: dict[str, Any] = {"metric": metric, "words": words, "answer": answer, "progress": progress}
    found = neuron_scores(vlm, pairs, directions=directions, **options)
    table = _listed(vlm, found, held_out or pairs, None, k, flips, options | {"noising": noising}).assign(head="", span="L")
    named = table.names != ""
    table = table.assign(kind=np.where(named, "state", "unnamed"), emotion=table.names.where(named, GENERAL))
    table["p_exact"] = benjamini_hochberg(table.p_exact)
    return Neurons(table, _named_by_chance(vlm, table.layer, words, seed))


def trigger_neurons(
    vlm: VLM,
    pairs: Sequence[Pair],
    heads: Iterable[Place],
    directions: Directions | None = None,
    metric: Any = "log mass",
    *,
    k: int = 5,
    at: str = "source",
    held_out: Sequence[Pair] | None = None,
    words: Words = None,
    answer: str = "I felt",
    noising: bool = False,
    flips: int = FLIPS,
    seed: int = 0,
    progress: bool = True,
) -> Neurons:
    """For each head the k neurons below it that move the metric most through the head; as `state_neurons`.

    `at`: "source", the head's source token in each picture, or "visual", all tokens of the picture.
    """
    if at not in ("source", "visual"):
        raise InputError(f"at is {at!r}; expected 'source' or 'visual'.")
    check_disjoint(pairs, held_out or ())
    heads, tables = checked_places(vlm, heads, "head"), []
    options: dict[str, Any] = {"metric": metric, "words": words, "answer": answer, "progress": progress}
    sources, later = (
        "visual" if at == "visual" else source_tokens(vlm, some, heads, **options) for some in (pairs, held_out or pairs)
    )
    for head in (head for head in heads if head[0] > 0):
        found = neuron_scores(vlm, pairs, head, sources, directions, **options)
        tokens = later if at == "visual" else later.tokens(*head)
        table = _listed(vlm, found, held_out or pairs, tokens, k, flips, options | {"noising": noising})
        spans = ["V" if at == "visual" else _usual_span(later, head, emotion) for emotion in table.moves]
        tables.append(table.assign(head=head_name(*head), span=spans))
    if not tables:
        raise InputError("All heads are in the first layer; no neurons lie below them.")
    table = pd.concat(tables, ignore_index=True).assign(kind="trigger")
    table["emotion"] = table.moves.where(table["share"] >= 0.5, GENERAL)
    table["p_exact"] = benjamini_hochberg(table.p_exact)
    return Neurons(table, _named_by_chance(vlm, table.layer, words, seed))


def _usual_span(sources: Sources, head: Place, emotion: str) -> str:
    """Where a head's source token lies most often in an emotion's pictures; it may rest elsewhere in those of others."""
    t = sources.table
    return t.span[(t.layer == head[0]) & (t["head"] == head[1]) & (t.emotion == emotion)].mode()[0]


def _listed(
    vlm: VLM, found: NeuronScores, pairs: Sequence[Pair], tokens: Tokens, k: int, flips: int, options: dict
) -> pd.DataFrame:
    """The k best of a scan, patched exactly, with what they write."""
    table, emotions = found.to_frame(k, flips), [pair.emotion for pair in pairs]
    exact = patched(vlm, pairs, found.top(k), found.head, tokens, **options)
    p_exact = flips_by_group(exact, emotions, flips, "greater").min()
    table = table.assign(exact=[value_interval(x) for x in exact.T], p_exact=p_exact)
    vectors = torch.cat([written(vlm, row.layer, [row.neuron]) for row in table.itertuples()])
    signs = torch.tensor(np.where(table.activation < 0, -1.0, 1.0)[:, None]).to(vectors)
    return table.join(_moves(exact, emotions)).join(naming(vlm, signs * vectors, options["words"]))


def _moves(exact: Float[np.ndarray, "pair neuron"], emotions: Sequence[str]) -> pd.DataFrame:
    """On which emotion's pictures each neuron does most, and its share of all positive effects."""
    means = pd.DataFrame(exact).groupby(emotions).mean().clip(lower=0)
    return pd.DataFrame({"moves": means.idxmax(), "share": (means.max() / means.sum()).fillna(0.0)})


@torch.no_grad()
def written(vlm: VLM, layer: int, neurons: Sequence[int]) -> Float[Tensor, "neuron d_model"]:
    """What neurons write when they are 1: `value_vectors`. In Gemma through the norm that follows, so only its direction counts."""
    path = f"{vlm.anatomy.layers}.{layer}"
    vectors = value_vectors(vlm, layer, neurons)
    if not hasattr(part(vlm.structure, path), "post_feedforward_layernorm"):
        return vectors
    norm = part_here(vlm, f"{path}.post_feedforward_layernorm")
    return norm(vectors.to(norm.weight.device)).to(vectors.device)


def naming(vlm: VLM, vectors: Float[Tensor, "vector d_model"], words: Words = None, k: int = 10) -> pd.DataFrame:
    """Which emotion vectors of the residual stream name, a row each: `names`, `mass`, `words` (the five likeliest).

    It is the emotion whose words have the largest mass, if one of these is among the k likeliest tokens; else "".
    """
    p, table = lens_logits(vlm, vectors).softmax(-1).cpu(), emotion_tokens(vlm, words)
    ids = {emotion: some.id.tolist() for emotion, some in table.groupby("emotion", sort=False)}
    mass = torch.stack([p[:, some].sum(-1) for some in ids.values()])
    best, top = mass.argmax(0).tolist(), p.topk(k).indices.tolist()
    said = [list(ids)[e] if set(ids[list(ids)[e]]) & set(some) else "" for e, some in zip(best, top, strict=True)]
    likely = words_of(vlm, vectors, 5).agg(", ".join, axis=1)
    return pd.DataFrame({"names": said, "mass": mass.amax(0).tolist(), "words": likely.tolist()})


def _named_by_chance(vlm: VLM, layers: pd.Series, words: Words, seed: int, times: int = 20) -> float:
    """The share of neurons drawn at random, `times` as many in each layer, that name an emotion in either sense."""
    rng, counts = np.random.default_rng(seed), Counter(layers.tolist())
    drawn = {layer: rng.choice(vlm.anatomy.d_mlp, min(times * n, vlm.anatomy.d_mlp), replace=False) for layer, n in counts.items()}
    vectors = torch.cat([written(vlm, layer, some.tolist()) for layer, some in drawn.items()])
    weights = np.concatenate([np.full(len(some), counts[layer] / len(some)) for layer, some in drawn.items()])
    named = [naming(vlm, sense * vectors, words).names != "" for sense in (1, -1)]
    return float(np.average((named[0].astype(float) + named[1]) / 2, weights=weights))


# one step further up


@dataclass(frozen=True, eq=False)
class Feeders:
    """What heads up to a neuron's layer give it at its token: `scores`, attribution through the neuron alone."""

    scores: Float[np.ndarray, "pair layer head"] = field(repr=False)
    neuron: Place

    def to_frame(self, flips: int = FLIPS) -> pd.DataFrame:
        """A row a head, the strongest first: `score` (`Interval`), `p` (sign flips, Benjamini-Hochberg over all these heads)."""
        flat = self.scores.reshape(len(self.scores), -1)
        places = pd.MultiIndex.from_product([range(n) for n in self.scores.shape[1:]], names=["layer", "head"])
        frame = pd.DataFrame({"score": [value_interval(x) for x in flat.T], "p": _corrected(flat, flips)}, places)
        return frame.iloc[np.argsort(-flat.mean(0), kind="stable")]

    def edges(self, heads: Iterable[Place]) -> list[Edge]:
        """From those of `heads` that lie below, to the neuron."""
        mean = self.scores.mean(0)
        return [Edge(head_name(*at), neuron_name(*self.neuron), float(mean[at])) for at in map(tuple, heads) if at[0] < len(mean)]

    def plot(self) -> Figure:
        """A map of layers and heads."""
        figure, axis = new_figure(width=5, height=1.6 + 0.3 * self.scores.shape[1])
        mean = self.scores.mean(0)
        limit = np.abs(mean).max() or 1.0
        drawn = axis.imshow(mean, cmap="RdBu_r", vmin=-limit, vmax=limit, origin="lower", aspect="auto")
        axis.set(xlabel="head", ylabel="layer", yticks=range(len(mean)), title=f"What feeds {neuron_name(*self.neuron)}")
        figure.colorbar(drawn, label="attribution through it")
        return figure


def feeders(
    vlm: VLM,
    pairs: Sequence[Pair],
    neuron: Place,
    tokens: Tokens = None,
    metric: Any = "log mass",
    *,
    words: Words = None,
    answer: str = "I felt",
    progress: bool = True,
) -> Feeders:
    """Which heads, at the same token, make a neuron what it is beside the emotional picture and not beside its twin?

    `(z+ - z-)[l, h, t] * dM/dz[l, h, t]` of heads up to the neuron's layer, through the neuron alone: the gradient less that with
    the neuron held at its own value. At the last token, or at `tokens` as in `patched` (`Sources.tokens`). What a token brings
    along by itself (a patch's own embedding) is in no head, and not in here.
    """
    layer, n = checked_places(vlm, [neuron], "neuron")[0]
    both, metrics, found = _twins(vlm, pairs, answer), metrics_of(vlm, pairs, metric, words), []
    for pair, prompts, where in zip(tqdm(pairs, desc="feeders", disable=not progress), both, _fitting(tokens, both), strict=True):
        own = collect(vlm, prompts, ["neurons"], layers=layer, positions=where)
        held = [patch(one, layer, neurons=[n], positions=where) for one in own]
        scores, _ = attribution(vlm, prompts, metrics[pair.emotion], "heads", range(layer + 1), where, held)
        found.append(scores.sum(-1))
    return Feeders(np.stack(found), (layer, n))


# what all of these share


def _held(vlm: VLM, prompt: Prompt, head: Place) -> SetHead:
    """An edit that changes nothing and lets no gradient pass: a head's output at the last token set to its own value."""
    own = collect(vlm, prompt, ["heads"], layers=head[0], positions="last").at("heads", head[0], prompt.last)
    return SetHead(*head, own[head[1]])


def _twins(vlm: VLM, pairs: Sequence[Pair], answer: str) -> list[list[Prompt]]:
    both = [twin_prompts(vlm, pair, answer) for pair in pairs]
    check_aligned(vlm, pairs, both)
    return both


def _fitting(tokens: Tokens, both: Sequence[list[Prompt]]) -> list[tuple[int, ...]]:
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


def _corrected(x: Float[np.ndarray, "pair unit"], flips: int) -> Float[np.ndarray, " unit"]:
    """p-values of sign flips over pairs, corrected over all units (Benjamini-Hochberg); some columns at a time, to spare memory."""
    starts = range(0, x.shape[1], COLUMNS_AT_ONCE)
    return benjamini_hochberg(np.concatenate([sign_flips(x[:, i : i + COLUMNS_AT_ONCE], flips).p for i in starts]))


def _short(words: str) -> str:
    """The first three words, without what a font cannot draw."""
    words = "".join(c for c in words if c.isprintable())
    return ", ".join(word.split(" (")[0].strip() for word in words.split("), ")[:3]).replace("$", r"\$")


def _layer_color(layer: int, n: int) -> Any:
    from matplotlib import colormaps

    return colormaps["viridis"](layer / n)
