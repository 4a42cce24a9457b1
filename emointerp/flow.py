"""Chapter 05, second half: by which road does the feeling get from the picture (V) to the query (Q) to the last token (L)?

Three methods, each over pairs (`emointerp.pairs`), and each with what it cannot say:

- `information_flow`: saliency of attention, `I[l] = |sum over heads of A_h * dLoss/dA_h|` (Wang et al. 2023, "Label words are
  anchors"). A gradient: what a small change would do, not what is needed; and it fades where the model is already certain.
- `knockouts`: attention of one span to another blocked over a window of layers. What is needed there; where two roads carry the
  same, cutting either shows nothing, so both at once are cut as well.
- `patching`: the residual stream of V, Q or L from the other picture's run, over stages of layers, in both directions. A patch
  lasts: V set after an early layer stays so. So the curve of V falls where V has been read, and that of L rises where L has read.
  Beside it stand transplants from other pictures: what any would bring is no sign of this emotion.

What is measured is the mass of the pictured emotion's words after "I felt", how far the residual stream at l_emo points along S
(restoration), or the hit rate of the story that follows.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor
from tqdm.auto import tqdm

from emointerp.directions import Directions
from emointerp.emotions.wheels import WheelsLike
from emointerp.errors import InputError
from emointerp.lens import Words, metrics_of
from emointerp.measures import Measure, Measured, measure_of
from emointerp.measures import thirds as thirds_of
from emointerp.models import VLM, Prompt
from emointerp.pairs import Pair, asked_of, check_aligned, fingerprint, in_same_places, twin_prompts
from emointerp.plots import BLUE, GRAY, GREEN, INK, ORANGE, PALE, PINK, band, ends, new_figure
from emointerp.saved import Saved
from emointerp.statistics import ChangePoints, Interval, change_points, ratio_interval, sign_flips, value_interval
from emointerp.tracing import Activations, block_attention, collect, patch
from emointerp.tracing.edits import Edit
from emointerp.tracing.verbs import checked_layers

PICTURES = ("emotional", "neutral")
ROADS, REST, BOTH = ("V->Q", "V->L", "Q->L"), "text->text", "V->Q+L"
SPANS = {"V": "visual", "Q": "query", "L": "last"}
DIRECTIONS = {"denoising": "emotional into neutral", "noising": "neutral into emotional"}
OTHER_EMOTION, OTHER_PICTURE = "other_emotion", "other_picture"
CONTROLS = {OTHER_EMOTION: "control: another emotion's picture", OTHER_PICTURE: "control: another picture, feeling unchanged"}
PLACE = ["direction", "span", "stage"]
COLORS = {"V->Q": BLUE, "V->L": ORANGE, "Q->L": GREEN, BOTH: PINK, REST: GRAY}
XLABELS = ("stage and its layers", "patched after layer")
COLORS |= {"V": BLUE, "Q": GREEN, "L": ORANGE}
_STYLES = {OTHER_EMOTION: "--", OTHER_PICTURE: ":"}


def saliency(acts: Activations, heads: bool = False) -> Float[Tensor, "layer *head token key"]:
    """`|sum over heads of A * dm/dA|` of attention collected with a metric's gradients; with `heads`, of each head alone."""
    product = acts.attention * acts.gradients.attention
    return product.abs() if heads else product.sum(1).abs()


@dataclass(frozen=True, eq=False)
class Flow(Saved):
    """Saliency by road and layer. `table` has a row a pair, picture ("emotional", "neutral"), road and layer (and head).

    `value` is the mean over the road's source-target pairs, `edges` their number. The road "text->text" is the control: the query
    and the last token reading earlier text, apart from Q->L.
    """

    table: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """A row a picture, road and layer (and head), an `Interval` a column.

        `value`: mean over pairs; `to_rest`: its ratio to that of text->text; `share`: the road's part of all four roads' sums,
        which counts how many edges a road has, and, being relative, also compares pictures of different certainty.
        """
        places = ["layer", "head"] if "head" in self.table else ["layer"]
        seen, within = self.table.assign(sum=self.table.value * self.table.edges), ["picture", "pair", *places]
        seen["all"] = seen.groupby(within)["sum"].transform("sum")
        seen = seen.join(seen[seen.road == REST].set_index(within).value.rename("rest"), on=within)

        def columns(some: pd.DataFrame) -> dict[str, Interval]:
            ratios = {"to_rest": ratio_interval(some.value, some.rest), "share": ratio_interval(some["sum"], some["all"])}
            return {"value": value_interval(some.value)} | ratios

        return _by_place(seen, ["picture", "road", *places], columns)

    def curves(self, road: str, picture: str = "emotional") -> Float[np.ndarray, "pair layer"]:
        """A road's saliency of each pair, mean over heads where they were kept apart."""
        chosen = self.table[(self.table.road == road) & (self.table.picture == picture)]
        return chosen.pivot_table(index="pair", columns="layer", values="value").to_numpy()

    def plot(self, column: str = "value") -> Figure:
        """Lines by layer with 95% intervals, beside the neutral twins; or, where heads were kept apart, a map a road."""
        frame = self.to_frame()[column]
        if "head" in self.table:
            return _maps(frame.map(lambda interval: interval.mean), column)
        figure, (left, right) = new_figure(1, 2, width=9.5, height=3.4)
        for axis, picture, title in zip((left, right), PICTURES, ("Emotional picture", "Neutral twin"), strict=True):
            for road in (*ROADS, REST):
                some = frame.loc[picture, road]
                some = some[[interval.mean > 0 for interval in some]]  # what nothing reads any more has no place on a log scale
                band(axis, some.index, some, COLORS[road], _arrow(road), "--" if road == REST else "-")
            axis.set(xlabel="layer", title=title, yscale="linear" if column == "share" else "log")
        left.set_ylabel({"value": "saliency, mean over edges", "share": "share of all saliency"}.get(column, column))
        right.sharey(left)
        left.autoscale(axis="y")
        _legend(figure, left)
        return figure


def information_flow(
    vlm: VLM,
    pairs: Sequence[Pair],
    metric: Measured = "log mass",
    *,
    words: Words = None,
    answer: str = "I felt",
    heads: bool = False,
    progress: bool = True,
) -> Flow:
    """Saliency of attention for V->Q, V->L and Q->L by layer, of each pair's emotional picture and its neutral twin.

    The loss is less the log mass of the pair's emotion words where the answer goes on after `answer`; or less any `Metric`. `words`
    as in `emotion_tokens`. With `heads`, the sum over heads is left out.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> ei.information_flow(vlm, pairs, progress=False).to_frame().shape
    (64, 3)
    """
    pairs = asked_of(vlm, pairs)
    metrics, frames = metrics_of(vlm, pairs, metric, words), []
    for i, pair in enumerate(tqdm(pairs, desc="flow", disable=not progress)):
        prompts = twin_prompts(vlm, pair, answer)
        acts = collect(vlm, prompts, ["attention"], positions=("query", "last"), wrt=metrics[pair.emotion])
        for picture, prompt, one in zip(PICTURES, prompts, acts, strict=True):
            frames.append(_flows(prompt, saliency(one, heads)).assign(pair=i, emotion=pair.emotion, picture=picture))
    return Flow(pd.concat(frames, ignore_index=True))


def _flows(prompt: Prompt, value: Tensor) -> pd.DataFrame:
    """Means of saliency [layer, (head,) target, key] over each road's edges: a row a road and place."""
    frames = []
    for road, edges in _edges(prompt).items():
        mean = value[..., torch.from_numpy(edges).to(value.device)].float().mean(-1).cpu().numpy()
        places = dict(zip(("layer", "head"), np.indices(mean.shape).reshape(mean.ndim, -1), strict=False))
        frames.append(pd.DataFrame({"road": road} | places | {"value": mean.ravel(), "edges": int(edges.sum())}))
    return pd.concat(frames)


def _edges(prompt: Prompt) -> dict[str, Bool[np.ndarray, "target key"]]:
    """Which attention belongs to which road; the targets are the query's tokens and the last."""
    target, key = np.array([*prompt.query, prompt.last])[:, None], np.arange(len(prompt))
    at_last, from_v, from_q = target == prompt.last, np.isin(key, prompt.visual), np.isin(key, prompt.query)
    roads = {"V->Q": ~at_last & from_v, "V->L": at_last & from_v, "Q->L": at_last & from_q}
    return roads | {REST: ~from_v & (key < target) & ~roads["Q->L"]}


@dataclass(frozen=True, eq=False)
class Knockouts(Saved):
    """What blocking attention does. `table` has a row a pair, road and window of layers (`start` to `stop`, both in it, `centre`).

    `value` is the metric with the road cut, `baseline` without, `control` with as many other readers, drawn at random, cut off from
    the same sources: for V->L and Q->L one other token of the query; for V->Q and V->Q+L tokens of the picture, since there are no
    others that can read it. Where stories are told, the answer's tokens are cut off as well (not in the control), and Q->L then
    takes the event and the request away, not the feeling only.
    """

    table: pd.DataFrame
    metric: str

    def to_frame(self) -> pd.DataFrame:
        """A row a road and window: `fall` of the metric and of the control's (`Interval`s), and `p` that they differ.

        `p` by sign flips over pairs, corrected for all rows (max-T).
        """
        falls = self.table.assign(fall=self.table.baseline - self.table.value, other=self.table.baseline - self.table.control)
        places = ["road", "centre"]
        frame = _by_place(falls, places, lambda some: {"fall": value_interval(some.fall), "control": value_interval(some.other)})
        less = falls.assign(less=falls.fall - falls.other).pivot(index="pair", columns=places, values="less")
        return frame.join(pd.Series(sign_flips(less).corrected, less.columns, name="p"))

    def curves(self, road: str) -> Float[np.ndarray, "pair window"]:
        """The fall of each pair by window."""
        some = self.table[self.table.road == road]
        return some.assign(fall=some.baseline - some.value).pivot(index="pair", columns="start", values="fall").to_numpy()

    def plot(self) -> Figure:
        """The fall by window, a panel a road, with 95% intervals; one window only makes bars. Gray is the control."""
        frame, roads = self.to_frame(), (*ROADS, BOTH)
        single = self.table.start.nunique() == 1
        figure, axes = new_figure(1, 1 if single else 4, width=5.5 if single else 11, height=3.2, squeeze=False)
        if single:
            bars = {"cut": (COLORS["V"], frame.fall), "other readers": (COLORS[REST], frame.control)}
            _bars(axes[0, 0], [_arrow(road) for road in roads], {k: (c, some.loc[list(roads)]) for k, (c, some) in bars.items()})
        for axis, road in zip(axes.flat, () if single else roads, strict=False):
            some = frame.loc[road]
            band(axis, some.index, some.control, COLORS[REST], "other readers", "--")
            band(axis, some.index, some.fall, COLORS[road], "cut")
            axis.set(xlabel="middle of the window", title=f"{_arrow(road)} cut")
        low, high = min(i.low for i in [*frame.fall, *frame.control]), max(i.high for i in [*frame.fall, *frame.control])
        for axis in axes.flat:
            axis.axhline(0, color=PALE, linewidth=0.8, zorder=0)
            axis.set_ylim(min(0, low) - 0.05 * (high - low), high + 0.05 * (high - low))
        axes[0, 0].set_ylabel(f"fall of the {self.metric}")
        _legend(figure, axes[0, 0])
        return figure


def knockouts(
    vlm: VLM,
    pairs: Sequence[Pair],
    metric: Measured = "log mass",
    *,
    width: int = 3,
    directions: Directions | None = None,
    layer: int | None = None,
    words: Words = None,
    wheels: WheelsLike = None,
    answer: str = "I felt",
    max_new_tokens: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Knockouts:
    """Attention V->Q, V->L, Q->L, and V to both, blocked over each window of `width` layers, on each pair's emotional picture.

    `metric` is "log mass" or "mass" of the pair's emotion words after `answer`; "restoration", `cos(h[l_emo, N], S[e, l_emo])`,
    which needs `directions` and l_emo as `layer`, and which no cut in later layers can change; "hit rate" of the story (then no
    answer is begun, and the answer's tokens are cut off as L is); or any `Metric` (`emointerp.measures.measure_of`). For a concept
    of your own give its `words` as in `emotion_tokens`, or, for the hit rate, `wheels=Concept(…)`. A `width` of all layers asks
    whether a road is needed at all.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> ei.knockouts(vlm, pairs, width=8, progress=False).to_frame().index.tolist()
    [('Q->L', 3.5), ('V->L', 3.5), ('V->Q', 3.5), ('V->Q+L', 3.5)]
    """
    pairs = asked_of(vlm, pairs)
    measure, n = measure_of(vlm, pairs, metric, directions, layer, words, max_new_tokens, wheels), vlm.anatomy.n_layers
    answer = answer if measure.metrics else ""
    if not 1 <= width <= n:
        raise InputError(f"The window is {width} layers wide; this model has {n}, so expected 1 to {n}.")
    frames = []
    for i, pair in enumerate(tqdm(pairs, desc="knock-outs", disable=not progress)):
        prompt = vlm.prompt(*pair.plus, answer=answer)
        cuts = _cuts(prompt, n, width, np.random.default_rng([seed, i]))
        own, found = _under(measure, prompt, cuts, pair.emotion, ["road", "start", "cut"])
        frames.append(found.unstack("cut").reset_index().assign(baseline=own, pair=i, emotion=pair.emotion))
    table = pd.concat(frames, ignore_index=True)
    table = table.assign(stop=table.start + width - 1, centre=table.start + (width - 1) / 2)
    return Knockouts(table.rename_axis(columns=None), measure.name)


def _cuts(prompt: Prompt, n_layers: int, width: int, rng: np.random.Generator) -> dict[tuple, list[Edit]]:
    """Edits by road, first layer of the window, and "value" or "control"."""
    visual, query, last = prompt.span("visual"), prompt.span("query"), (prompt.last, "answer")
    roads = {"V->Q": (query, visual), "V->L": (last, visual), "Q->L": (last, query), BOTH: ((*query, *last), visual)}
    lists = {}
    for road, (readers, sources) in roads.items():
        others = _other_readers(prompt, readers, sources, rng)
        for start in range(n_layers - width + 1):
            window = range(start, start + width)
            lists[road, start, "value"] = _cut(window, readers, sources)
            lists[road, start, "control"] = _cut(window, others, sources)
    return lists


def _other_readers(prompt: Prompt, readers: Sequence, sources: Sequence[int], rng: np.random.Generator) -> list[int]:
    """As many tokens, drawn at random: behind all sources if there are so many, else behind the first; never the last token."""
    n = len(set(readers) - {"answer"})
    behind, among = ([t for t in range(start + 1, prompt.last) if t not in readers] for start in (sources[-1], sources[0]))
    chosen = behind if len(behind) >= n else among
    return sorted(rng.choice(chosen, min(n, len(chosen)), replace=False).tolist())


def _cut(layers: Iterable[int], readers: Sequence, sources: Sequence[int]) -> list[Edit]:
    """The readers cut off from the sources, each still free to attend to itself."""
    apart = set(sources).isdisjoint(readers)
    groups = [(readers, sources)] if apart else [((t,), [s for s in sources if s != t]) for t in readers]
    return [block_attention(layer, to, of) for layer in layers for to, of in groups]


@dataclass(frozen=True, eq=False)
class Patching(Saved):
    """What patches do. `table` has a row a pair, direction, span and stage.

    `value` is the metric with the patch, `receiver` without, `donor` that of the run that the patch comes from. "denoising" puts
    the emotional picture's residual stream into the neutral twin's run, "noising" the other way round. Stages that are numbers are
    single layers; `layers` names the first and last of a stage.

    Controls are transplants from a run on another picture beside the same event, NaN where there is no such picture:

    - `other_emotion`, denoising only: from a picture of another emotion. What does any emotional picture bring?
    - `other_picture`: from another neutral picture; for noising, from another picture of the same emotion. What does the change of
      the picture bring, where the feeling stays?
    """

    table: pd.DataFrame
    metric: str

    def to_frame(self) -> pd.DataFrame:
        """A row a direction, span and stage: normalised `effect` and plain `difference`, `Interval`s over pairs.

        `effect = (value - receiver) / (donor - receiver)`, means over pairs: 0 is the receiver's own run, 1 the donor's. For
        noising this is the share of the feeling that is lost, one less the formula of denoising.

        Where there are controls: the effect of each, of the same gap; `beyond`, the effect less that of the control that does more
        (paired); and `p` that a control does as much: by sign flips over pairs, one-sided, corrected for all rows (max-T), the
        larger where there are two controls, since a claim must beat both.
        """
        moved = self.table.assign(difference=self.table.value - self.table.receiver, gap=self.table.donor - self.table.receiver)
        controls = [control for control in CONTROLS if control in moved]

        def columns(some: pd.DataFrame) -> dict[str, Interval]:
            found = {"effect": ratio_interval(some.difference, some.gap), "difference": value_interval(some.difference)}
            return found | (_beside(some, controls) if controls else {})

        frame = _by_place(moved, PLACE, columns)
        return frame.assign(p=_no_more_than(moved, controls)) if controls else frame

    def curves(self, direction: str = "denoising", spans: Sequence[str] = tuple(SPANS)) -> Float[np.ndarray, "pair layer span"]:
        """Effects of single layers: each pair's difference over the mean gap, so that means over pairs are normalised effects."""
        some = self.table[(self.table.direction == direction) & self.table.stage.map(_single)]
        if some.empty:
            raise InputError("There are no stages of single layers here; name them by their numbers: stages={0: [0], 1: [1], …}.")
        some = some.assign(effect=(some.value - some.receiver) / (some.donor - some.receiver).mean())
        return np.stack([some[some.span == s].pivot(index="pair", columns="stage", values="effect").to_numpy() for s in spans], -1)

    def change_points(self, direction: str = "denoising", n: int = 2, **options: Any) -> ChangePoints:
        """The layers at which V, Q and L together change their parts: between adapt, aggregate and execute, for `n` of 2."""
        return change_points(self.curves(direction), n, **options)

    def plot(self, changes: Mapping[str, ChangePoints] | None = None) -> Figure:
        """Stages as bars, single layers as curves; broken lines are the controls. Where there are both, a row a direction.

        `changes` by direction are drawn with their intervals.
        """
        frame = self.to_frame()
        stages = self.table.drop_duplicates("stage").set_index("stage").layers
        wide, single = ([stage for stage in stages.index if _single(stage) is kind] for kind in (False, True))
        shown = [some for some in (wide, single) if some]
        figure, axes = new_figure(len(shown), 2, width=9.5, height=0.6 + 2.8 * len(shown))
        for row, direction in zip(axes.reshape(2, -1), DIRECTIONS, strict=True):
            for axis, some in zip(row, shown, strict=True):
                spans = {span: frame.loc[direction].loc[span].loc[some] for span in self.table.span.unique()}
                colors = {span: COLORS.get(span, f"C{k}") for k, span in enumerate(spans)}
                if some is wide:
                    bars = {span: (colors[span], spans[span].effect) for span in spans}
                    _bars(axis, [f"{s}\n{stages[s]}" for s in wide], bars)
                for span in spans if some is single else ():
                    band(axis, single, spans[span].effect, colors[span], span)
                for k, span in enumerate(spans):
                    _control_lines(axis, spans[span], colors[span], None if some is single else (k, len(spans)))
                axis.axhline(0, color=PALE, linewidth=0.8, zorder=0)
                axis.set(title=f"{direction.capitalize()}: {DIRECTIONS[direction]}", xlabel=XLABELS[some is single])
            row[0].set_ylabel("share of the gap closed")
            if changes and direction in changes:
                _mark(row[-1], changes[direction])
        _legend(figure, axes.flat[0], {CONTROLS[c]: _STYLES[c] for c in CONTROLS if c in frame})
        return figure


def patching(
    vlm: VLM,
    pairs: Sequence[Pair],
    metric: Measured = "log mass",
    *,
    stages: Mapping[str | int, Iterable[int]] | None = None,
    spans: Mapping[str, Any] = SPANS,
    directions: Directions | None = None,
    layer: int | None = None,
    controls: Sequence[str] = tuple(CONTROLS),
    others: Sequence[Pair] | None = None,
    words: Words = None,
    wheels: WheelsLike = None,
    answer: str = "I felt",
    max_new_tokens: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Patching:
    """The residual stream at each of `spans` put from each picture's run into its twin's, after every layer of each stage.

    `stages` maps names to layers: by default the thirds of the model (`thirds`) and every single layer by its number, as far as
    the metric is read. `metric`, `directions`, `layer`, `words` and `wheels` as in `knockouts`. The two prompts of a pair must have
    their tokens in the same places. Qwen3-VL adds the picture's features once more after its first layers: a patch of V there is
    followed by the receiver's own.

    `controls` (`Patching` says what they are; `()`: none) take their pictures at random from `others`, by default the other pairs:
    those that differ from the pair's own and whose prompts have their tokens in the same places. Where the two sides of a pair
    have different events there is no `other_emotion`, since the event would say the emotion still. A control has the donor's run
    collected and as many patches read as the transplant itself: both together make five runs and sets of patches of two.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> found = ei.patching(vlm, pairs, stages={"early": [0, 1], "late": [6, 7]}, controls=(), progress=False)
    >>> list(found.to_frame().index.names), len(found.to_frame())
    (['direction', 'span', 'stage'], 12)
    """
    pairs = asked_of(vlm, pairs)
    if strange := [control for control in controls if control not in CONTROLS]:
        raise InputError(f"controls name {', '.join(map(repr, strange))}; expected some of {', '.join(map(repr, CONTROLS))}.")
    measure = measure_of(vlm, pairs, metric, directions, layer, words, max_new_tokens, wheels)
    answer, layers = answer if measure.metrics else "", _staged(measure, stages)
    frames, both = [], [twin_prompts(vlm, pair, answer) for pair in pairs]
    check_aligned(vlm, pairs, both)
    pool = pairs if others is None else others
    for i, (pair, prompts) in enumerate(zip(tqdm(pairs, desc="patching", disable=not progress), both, strict=True)):
        found = []
        for direction, receiver, donor in zip(DIRECTIONS, reversed(prompts), prompts, strict=True):
            more = _other_donors(vlm, direction, pair, prompts, pool, controls, answer, seed)
            found.append(_transplanted(measure, receiver, {"value": donor} | more, spans, layers, pair.emotion))
        for direction, (receiver, values), (donor, _) in zip(DIRECTIONS, found, reversed(found), strict=True):
            frame = values.reindex(columns=["value", *controls]).reset_index()
            frames.append(frame.assign(pair=i, emotion=pair.emotion, direction=direction, receiver=receiver, donor=donor))
    table, ends = pd.concat(frames, ignore_index=True), {stage: (min(some), max(some)) for stage, some in layers.items()}
    names = {stage: str(first) if first == last else f"{first}-{last}" for stage, (first, last) in ends.items()}
    return Patching(table.rename_axis(columns=None).assign(layers=table.stage.map(names)), measure.name)


def thirds(vlm: VLM) -> dict[str, tuple[int, ...]]:
    """The model's layers in three stages of about the same length: shallow, middle and deep."""
    return thirds_of(vlm.anatomy.n_layers)


def _staged(measure: Measure, stages: Mapping[str | int, Iterable[int]] | None) -> dict[str | int, tuple[int, ...]]:
    """Layers by stage; one that begins after the layer where the metric is read is left out, or refused if it was asked for."""
    read = measure.last_layer
    if stages is None:
        own = thirds(measure.vlm) | {i: (i,) for i in range(measure.vlm.anatomy.n_layers)}
        stages = {stage: some for stage, some in own.items() if some[0] <= read}
    layers = {stage: checked_layers(measure.vlm, some) for stage, some in stages.items()}
    if late := [stage for stage, some in layers.items() if min(some) > read]:
        raise InputError(f"{measure.name!r} is read after layer {read}; stage {late[0]!r} begins at layer {min(layers[late[0]])}.")
    return layers


def _transplanted(
    measure: Measure, receiver: Prompt, donors: Mapping[str, Prompt], spans: Mapping[str, Any], stages: Mapping, emotion: str
) -> tuple[float, pd.DataFrame]:
    """The measure of the receiver's own run, and with each donor's residual stream: a row a span and stage, a column a donor."""
    acts = collect(measure.vlm, list(donors.values()), ["residual"])
    patches = {name: _patches(one, receiver, spans, stages) for name, one in zip(donors, acts, strict=True)}
    lists = {(name, *at): edits for name, some in patches.items() for at, edits in some.items()}
    own, values = _under(measure, receiver, lists, emotion, ["donor", "span", "stage"])
    return own, values.unstack("donor", sort=False)


def _patches(donor: Activations, receiver: Prompt, spans: Mapping[str, Any], stages: Mapping) -> dict[tuple, list[Edit]]:
    where = {span: receiver.positions((given,) if isinstance(given, str | int) else given) for span, given in spans.items()}
    return {
        (span, stage): [patch(donor, layer, positions=positions) for layer in layers]
        for span, positions in where.items()
        for stage, layers in stages.items()
    }


def _other_donors(
    vlm: VLM,
    direction: str,
    pair: Pair,
    prompts: Sequence[Prompt],
    pool: Sequence[Pair],
    controls: Sequence[str],
    answer: str,
    seed: int,
) -> dict[str, Prompt]:
    """For each control another picture beside this pair's event; none where the pool has none that fits."""
    event, calm = pair.plus[1], pair.minus[1]
    if direction == "noising":
        sides = {OTHER_PICTURE: [(p.emotional, event) for p in pool if p.emotion == pair.emotion]}
    else:
        sides = {OTHER_PICTURE: [(p.neutral, calm) for p in pool]}
        sides[OTHER_EMOTION] = [(p.emotional, event) for p in pool if p.emotion != pair.emotion and event == calm]
    found = {control: _another(vlm, prompts, sides.get(control, ()), answer, seed) for control in controls}
    return {control: prompt for control, prompt in found.items() if prompt is not None}


def _another(vlm: VLM, prompts: Sequence[Prompt], sides: Sequence[tuple], answer: str, seed: int) -> Prompt | None:
    """The prompt of a side drawn at random, whose picture is another and whose tokens lie in the same places."""
    own = [fingerprint(prompt.image) for prompt in prompts]
    rng = np.random.default_rng([seed, int(own[0][:8], 16)])  # by picture: a pair has the same control in any batch
    for k in rng.permutation(len(sides)):
        prompt = vlm.prompt(*sides[k], answer=answer)
        if fingerprint(prompt.image) not in own and in_same_places(vlm, prompt, prompts[0]):
            return prompt
    return None


def _beside(some: pd.DataFrame, controls: Sequence[str]) -> dict[str, Interval]:
    """Each control's effect, and how far the transplant's goes beyond that of the one that does more; over pairs that have it."""
    there = {control: some.dropna(subset=control) for control in controls}
    effects = {control: _ratio(kept[control] - kept.receiver, kept.gap) for control, kept in there.items()}
    most = max(controls, key=lambda control: np.nan_to_num(effects[control].mean, nan=-np.inf))
    return effects | {"beyond": _ratio(there[most].value - there[most][most], there[most].gap)}


def _ratio(above: pd.Series, below: pd.Series) -> Interval:
    return ratio_interval(above, below) if len(above) else Interval(np.nan, np.nan, np.nan, 0)


def _no_more_than(moved: pd.DataFrame, controls: Sequence[str]) -> np.ndarray:
    """For each place the p that a control brings the metric as far towards the donor; NaN where fewer than two pairs have one.

    A pair without the control counts as 0, which a flip leaves as it is.
    """
    towards = np.sign(moved.groupby("direction").gap.transform("mean"))
    tests = []
    for control in controls:
        more = moved.assign(more=(moved.value - moved[control]) * towards)
        columns = [some.set_index("pair").more for _, some in more.groupby(PLACE, sort=False)]
        table = pd.concat(columns, axis=1).to_numpy()
        known = (~np.isnan(table)).sum(0) > 1
        tests.append(np.where(known, sign_flips(np.nan_to_num(table), alternative="greater").corrected, np.nan))
    return pd.DataFrame(tests).max().to_numpy()


def _under(
    measure: Measure, prompt: Prompt, lists: Mapping[tuple, list[Edit]], emotion: str, names: list[str]
) -> tuple[float, pd.Series]:
    """The measure without edits, and under each list of them by its label."""
    own, values = measure.under(prompt, lists, emotion)
    return own, pd.Series(values, pd.MultiIndex.from_tuples(lists, names=names))


def _by_place(table: pd.DataFrame, places: list[str], columns: Callable[[pd.DataFrame], dict[str, Any]]) -> pd.DataFrame:
    """A row a place, in the order of the table, with columns made of its rows."""
    rows = {at: columns(some) for at, some in table.groupby(places, sort=False)}
    codes, levels = zip(*(pd.factorize(pd.Series(level)) for level in zip(*rows, strict=True)), strict=True)
    return pd.DataFrame(list(rows.values()), pd.MultiIndex(levels, codes, names=places))


def _arrow(road: str) -> str:
    return road.replace("->", "→")


def _bars(axis: Any, ticks: list[str], groups: Mapping[str, tuple[str, Iterable[Interval]]]) -> None:
    wide = 0.8 / len(groups)
    for k, (label, (color, intervals)) in enumerate(groups.items()):
        mean, low, high = ends(intervals)
        x, errors = _bar_middles(len(ticks), k, len(groups)), np.maximum(0, (mean - low, high - mean))
        axis.bar(x, mean, 0.9 * wide, color=color, yerr=errors, ecolor=INK, label=label)
    axis.set_xticks(range(len(ticks)), ticks)


def _bar_middles(ticks: int, k: int, groups: int) -> np.ndarray:
    """Where the bars of a group stand."""
    return np.arange(ticks) + (k - (groups - 1) / 2) * 0.8 / groups


def _control_lines(axis: Any, frame: pd.DataFrame, color: str, bars: tuple[int, int] | None) -> None:
    """Controls of single layers as broken lines, or across the bars of a group, the k-th of n."""
    for control in (control for control in CONTROLS if control in frame):
        mean = np.array([interval.mean for interval in frame[control]])
        if bars is None:
            axis.plot(frame.index, mean, color=color, linestyle=_STYLES[control], linewidth=1)
        else:
            x, half = _bar_middles(len(mean), *bars), 0.4 / bars[1]
            axis.hlines(mean, x - half, x + half, colors=INK, linestyles=_STYLES[control], linewidth=1.2)


def _legend(figure: Figure, axis: Any, styles: Mapping[str, str] | None = None) -> None:
    """What the axis names, and below all of it what kinds of lines mean where these have names."""
    handles, labels = axis.get_legend_handles_labels()
    handles += [Line2D([], [], color=INK, linestyle=style, linewidth=1.2) for style in (styles or {}).values()]
    where = {"loc": "outside lower center", "ncols": len(handles)} if styles else {"loc": "outside right upper"}
    figure.legend(handles, [*labels, *(styles or {})], fontsize=9, **where)


def _maps(mean: pd.Series, column: str) -> Figure:
    """A map of layers and heads for each road, on one scale."""
    figure, axes = new_figure(1, len(ROADS), width=9.5, height=3.2, squeeze=False)
    shown = mean["emotional"]
    for axis, road in zip(axes.flat, ROADS, strict=True):
        drawn = axis.imshow(shown[road].unstack("head"), cmap="viridis", vmin=0, vmax=shown[list(ROADS)].max(), origin="lower")
        axis.set(xlabel="head", ylabel="layer", title=_arrow(road))
    figure.colorbar(drawn, ax=axes, label=f"saliency ({column})")
    return figure


def _single(stage: Any) -> bool:
    """Whether a stage is a single layer, named by its number."""
    return isinstance(stage, Integral)


def _mark(axis: Any, changes: ChangePoints) -> None:
    for at, low, high in zip(changes.locations, changes.low, changes.high, strict=True):
        axis.axvline(at - 0.5, color=INK, linestyle=":", linewidth=1.2)
        axis.axvspan(low - 0.5, high - 0.5, color=INK, alpha=0.08, linewidth=0)
