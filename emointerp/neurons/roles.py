"""Trigger and state neurons: the best of a scan, patched exactly, with the words that they write."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from emointerp.circuit import GENERAL, Edge, Neuron, head_name, neuron_name
from emointerp.directions import Directions
from emointerp.errors import InputError
from emointerp.lens import Words, emotion_tokens, lens_logits, value_vectors, words_of
from emointerp.models import VLM
from emointerp.models.anatomy import part
from emointerp.neurons.scores import FLIPS, NeuronScores, Tokens, neuron_scores, patched
from emointerp.pairs import Pair, asked_of, check_disjoint
from emointerp.plots import COLORS, GRAY, QUIET, new_figure
from emointerp.saved import Saved
from emointerp.sources import SPANS, Place, Sources, checked_places, source_tokens
from emointerp.statistics import benjamini_hochberg, flips_by_group, value_interval
from emointerp.tracing.weights import part_here


@dataclass(frozen=True, eq=False)
class Neurons(Saved):
    """Neurons that were looked at closely, a row each (and a head that it wakes) in `table`:

    - `layer`, `neuron`, `kind` ("trigger", "state", or "unnamed": found as these, naming nothing), `head`, its token's `span`;
    - `score`, attribution, and `p`, corrected for all neurons; `exact`, by patching, and `p_exact`, that it does nothing for the
      better in all pairs or in those of an emotion (`flips_by_group`), corrected for those listed;
    - `activation` (its sign: the sense in which the neuron writes), `aligned` (`m * <v_n, S_hat>`);
    - `words`, what `sign(m) * v_n` makes likely; `mass`, the probability of the words of the emotion that it names best;
    - `emotion`: for state neurons the named one; for triggers the one of `moves`, if that has half of the effect;
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
        told = ["no one emotion" if emotion == GENERAL else emotion for emotion in dict.fromkeys(table.emotion)]
        handles = [Line2D([], [], color=COLORS.get(name, GRAY), marker="o", label=name) for name in told]
        figure.legend(handles=handles, loc="outside lower center", ncols=7, fontsize=8)
        axis.set_yticks(y, names, fontsize=8)
        return figure


def state_neurons(
    vlm: VLM,
    pairs: Sequence[Pair],
    directions: Directions | None = None,
    metric: Any = "log mass",
    *,
    k: int = 30,
    at: str = "last",
    slope: str = "both",
    held_out: Sequence[Pair] | None = None,
    words: Words = None,
    answer: str = "I felt",
    noising: bool = False,
    flips: int = FLIPS,
    seed: int = 0,
    progress: bool = True,
) -> Neurons:
    """The k neurons that do most at the last token, and whether their value vectors name an emotion.

    `at`: "last", or "query", all tokens of the text between the picture and the last token. `slope` as in `neuron_scores`.

    A value vector names the emotion whose words have the largest mass in it, if one of these is among its ten likeliest words.
    `held_out`: pairs to patch exactly; on `pairs` themselves, the default, the winners of the scan look better than they are.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> found = ei.state_neurons(vlm, pairs, k=2, progress=False)
    >>> found.table[["layer", "neuron", "kind"]]
       layer  neuron   kind
    0      7     392  state
    1      6     104  state
    """
    pairs = asked_of(vlm, pairs)
    if at not in ("last", "query"):
        raise InputError(f"at is {at!r}; expected 'last' or 'query'.")
    check_disjoint(pairs, held_out or ())
    options: dict[str, Any] = {"metric": metric, "words": words, "answer": answer, "progress": progress}
    found = neuron_scores(vlm, pairs, None, at, directions, slope=slope, **options)
    table = _listed(vlm, found, held_out or pairs, at, k, flips, options | {"noising": noising})
    table = table.assign(head="", span="Q" if at == "query" else "L")
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
    slope: str = "both",
    held_out: Sequence[Pair] | None = None,
    words: Words = None,
    answer: str = "I felt",
    noising: bool = False,
    flips: int = FLIPS,
    seed: int = 0,
    progress: bool = True,
) -> Neurons:
    """For each head the k neurons below it that move the metric most through the head; as `state_neurons`.

    `at`: "source", the head's source token in each picture, or "visual", all tokens of the picture. `slope` as in `neuron_scores`.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> found = ei.trigger_neurons(vlm, pairs, [(6, 5)], k=2, progress=False)
    >>> found.table[["layer", "neuron", "head", "span"]]
       layer  neuron  head span
    0      2     159  L6H5    Q
    1      4     326  L6H5    Q
    """
    pairs = asked_of(vlm, pairs)
    if at not in ("source", "visual"):
        raise InputError(f"at is {at!r}; expected 'source' or 'visual'.")
    check_disjoint(pairs, held_out or ())
    heads, tables = checked_places(vlm, heads, "head"), []
    options: dict[str, Any] = {"metric": metric, "words": words, "answer": answer, "progress": progress}
    sources, later = (
        "visual" if at == "visual" else source_tokens(vlm, some, heads, **options) for some in (pairs, held_out or pairs)
    )
    for head in (head for head in heads if head[0] > 0):
        found = neuron_scores(vlm, pairs, head, sources, directions, slope=slope, **options)
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


def _short(words: str) -> str:
    """The first three words, without what a font cannot draw."""
    words = "".join(c for c in words if c.isprintable())
    return ", ".join(word.split(" (")[0].strip() for word in words.split("), ")[:3]).replace("$", r"\$")
