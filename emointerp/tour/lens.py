"""The tour's chapter on the logit lens and information flow: when the answer becomes an emotion word, and by which road.

The lens reads each layer at the last token. Then three ways to ask for the road from the picture's tokens (V) by those of the event
and the request (Q) to the last one (L): saliency, cutting and transplants. Sizes are small; notebook 05 shows the same step by
step, and cuts window by window.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from emointerp.emotions import BASIC
from emointerp.flow import BOTH, DIRECTIONS, ROADS, SPANS, Flow, Knockouts, Patching, information_flow, knockouts, patching, thirds
from emointerp.lens import Emergence, LogitLens, emergence, logit_lens
from emointerp.models import VLM
from emointerp.pairs import world_pairs
from emointerp.statistics import ChangePoints, Interval, mean_interval
from emointerp.tour.chapter import Chapter, Job, figure_html, left_out, muted, no_words, points, share, table_html
from emointerp.world import sample

TITLE, BEGUN = "Logit lens and information flow", "I felt"
WHEN, ROAD = "When, in the model?", "By which road?"
RESAMPLES, ALPHA, STAGES = 1000, 0.05, 3
TOLD = {
    "V->L": "from the picture straight to the word that is due",
    "V->Q": "from the picture to the words of the event and the request",
    "Q->L": "from these words to the word that is due",
    BOTH: "from the picture to all of them",
}


@dataclass(frozen=True, eq=False)
class _Roads:
    """Views of the same pairs; `changes` by direction of the patch, empty where a model has too few layers for stages.

    `patched` has single layers without controls, `beside` the thirds of the model beside them: in each layer of a deep model they
    would take longer than all else.
    """

    flow: Flow
    cut: Knockouts
    patched: Patching
    beside: Patching
    changes: dict[str, ChangePoints]

    @property
    def falls(self) -> pd.DataFrame:
        """A row a road, cut in all layers at once."""
        return self.cut.to_frame().droplevel("centre")


def chapter(vlm: VLM, job: Job) -> Chapter:
    """Read the pictures' prompts layer by layer, then the test split's; ask for the road where pictures make a difference."""
    if why := no_words(vlm):
        return left_out("lens", TITLE, why)
    prompts = [(name, vlm.prompt(picture, job.event, answer=BEGUN)) for name, picture in job.pictures]
    read = [(name, logit_lens(vlm, prompt)) for name, prompt in tqdm(prompts, desc="lens")]
    measured = emergence(vlm, sample("test", job.sizes.lens["pictures"], seed=5, emotions=BASIC), batch=job.batch)
    gap = _gap(measured)
    roads = _roads(vlm, job.sizes.lens["pairs"]) if gap.low > 0 else None
    blocks = [("When the word becomes likely, over the test split", _lens_block(measured))]
    blocks += _road_blocks(roads) if roads else []
    blocks += [(name, _picture_block(lens)) for name, lens in read]
    results = {"test split": {str(i): dict(row) for i, row in measured.to_frame().iterrows()}, "gap": gap}
    results |= {"half": _half(measured), "pictures": dict(map(_result, read)), "roads": _road_results(roads)}
    summary = (*_summary(vlm, measured, gap), *(_road_lines(vlm, roads) if roads else (_no_road(gap),)))
    plain = ((WHEN, _when(vlm, measured, gap)), *([(ROAD, _by_road(roads))] if roads else []))
    return Chapter("lens", TITLE, summary, tuple(blocks), results, plain=plain)


# what is measured


def _gap(measured: Emergence) -> Interval:
    """After the last layer, what the words of the pictured emotion have more than beside the twin."""
    table = measured.table[measured.table.layer == measured.table.layer.max()]
    return mean_interval(table.pictured - table.twin, signed=True)


def _half(measured: Emergence, seed: int = 0) -> Interval:
    """The first layer after which the mean mass is above half of what it is at the end; the interval draws pictures anew."""
    curves = measured.table.pivot(index="picture", columns="layer", values="pictured").to_numpy()
    drawn = np.random.default_rng(seed).integers(len(curves), size=(RESAMPLES, len(curves)))
    means = np.concatenate([curves.mean(0)[None], curves[drawn].mean(1)])
    first, *others = (means > means[:, -1:] / 2).argmax(1)
    return Interval(float(first), *np.quantile(others, [0.025, 0.975], method="inverted_cdf").tolist(), len(curves))


def _roads(vlm: VLM, n: int) -> _Roads:
    pairs, layers = world_pairs("test", n, seed=11), vlm.anatomy.n_layers
    patched = patching(vlm, pairs, stages={i: (i,) for i in range(layers)}, controls=())
    beside = patching(vlm, pairs, stages=thirds(vlm))
    changes = {d: patched.change_points(d, STAGES - 1) for d in DIRECTIONS} if layers >= STAGES else {}
    return _Roads(information_flow(vlm, pairs), knockouts(vlm, pairs, "mass", width=layers), patched, beside, changes)


def _needed(falls: pd.DataFrame) -> list[str]:
    """Roads without which the words lose probability, by more than where other readers are cut off; the largest loss first."""
    lost = {road: falls.fall[road].mean for road in ROADS if falls.fall[road].low > 0 and falls.p[road] <= ALPHA}
    return sorted(lost, key=lost.__getitem__, reverse=True)


# in plain words


def _when(vlm: VLM, measured: Emergence, gap: Interval) -> str:
    frame, last = measured.to_frame(), vlm.anatomy.n_layers - 1
    ends, twin = share(frame.pictured[last]), share(frame.twin[last])
    if gap.low <= 0:
        return f"Not shown: at the end the words of the drawn emotion have {ends} of the probability, with the face at rest {twin}."
    return (
        f"{_layers(_half(measured), vlm)}: from there on the words of the drawn emotion have more than half of their probability "
        f"at the end, {ends}; with the face at rest {twin}."
    )


def _layers(half: Interval, vlm: VLM) -> str:
    place = f"{half.mean:.0f}" if half.low == half.high else f"{half.mean:.0f} [{half.low:.0f}, {half.high:.0f}]"
    return f"After layer {place} of 0 to {vlm.anatomy.n_layers - 1}"


def _by_road(roads: _Roads) -> str:
    falls = roads.falls
    straight, to_words, onwards = (points(falls.fall[road], lost=True) for road in ("V->L", "V->Q", "Q->L"))
    return (
        f"{_road_verdict(_needed(falls))}. What these words lose where a road is cut: the one straight from the picture {straight} "
        f"of probability, from the picture to the request {to_words}, from there on {onwards}."
    )


def _road_verdict(needed: list[str]) -> str:
    if not needed:
        return "No road alone is surely needed"
    if "V->L" not in needed:
        return "By way of the words" if {"V->Q", "Q->L"} <= set(needed) else f"Needed is the road {TOLD[needed[0]]}"
    if needed == ["V->L"] or "V->Q" not in needed:
        return "Straight from the picture"
    return "Mostly straight from the picture" if needed[0] == "V->L" else "Both straight and by way of the words"


# in words


def _summary(vlm: VLM, measured: Emergence, gap: Interval) -> tuple[str, ...]:
    frame, last, half = measured.to_frame(), vlm.anatomy.n_layers - 1, _half(measured)
    reached = f"; half of that is reached {_layers(half, vlm).lower()}" if gap.low > 0 else ""
    return (
        f"The answer begins “{BEGUN}”. After the last layer the words of the pictured emotion have "
        f"{share(frame.pictured[last])} of the probability on average{reached}.",
        f"Control: beside the neutral twin the same words have {share(frame.twin[last])}; the difference, picture by picture, is "
        f"{points(gap)}.",
    )


def _no_road(gap: Interval) -> str:
    return (
        f"Pictures make no sure difference to these words ({points(gap)}), so there is no road to look for, and none was: no "
        "saliency, no cuts, no transplants."
    )


def _road_lines(vlm: VLM, roads: _Roads) -> tuple[str, ...]:
    falls = roads.falls
    listed = "; ".join(
        f"{road.replace('->', ' → ')} {points(falls.fall[road], lost=True)} (control {points(falls.control[road], lost=True)}, "
        f"p = {falls.p[road]:.2g})"
        for road in (*ROADS, BOTH)
    )
    cut = (
        f"{_road_verdict(_needed(falls))}. Cut in all layers at once, roads from the picture (V), the words of the event and the "
        f"request (Q) and the last token (L) cost: {listed}. Controls cut as many other readers off."
    )
    return cut, _patch_line(roads.patched), _beside_line(roads.beside), _stage_line(vlm, roads)


def _patch_line(patched: Patching) -> str:
    """Where V stops being enough, and L begins to be: of single layers, transplanted into the twin's run."""
    effect = patched.to_frame().effect["denoising"]
    first, last = (sorted(effect.index.unique("stage"))[i] for i in (0, -1))
    listed = ", ".join(
        f"{span} {share(effect[span, first])} after layer {first} and {share(effect[span, last])} after layer {last}"
        for span in SPANS
    )
    return f"Transplants into the neutral twin's run close so much of the difference between the two runs: {listed}."


def _beside_line(beside: Patching) -> str:
    """What the transplants of a third of the layers bring beyond their controls, where each span brings most."""
    frame, said = beside.to_frame().loc["denoising"], []
    for span in SPANS:
        stage = frame.loc[span].effect.map(lambda effect: effect.mean).idxmax()
        row = frame.loc[(span, stage)]
        controls = f"beyond controls {share(row.beyond)}, p = {row.p:.2g}" if row.beyond.n else "no controls"
        said.append(f"{span} {share(row.effect)} in {stage} layers ({controls})")
    return (
        f"Beside controls, a third of the layers at a time, and there where it brings most: {', '.join(said)}. The controls are "
        "another emotion's picture and another neutral one, beside the same event; what counts is what lies beyond the stronger."
    )


def _stage_line(vlm: VLM, roads: _Roads) -> str:
    n = vlm.anatomy.n_layers
    if not roads.changes:
        return f"This model has {n} layers, and three stages need three or more: none were looked for."
    return " ".join(f"{direction.capitalize()} ({what}): {roads.changes[direction]}" for direction, what in DIRECTIONS.items())


# on the page


def _lens_block(measured: Emergence) -> str:
    frame = measured.to_frame()
    said = (
        f"{measured.table.picture.nunique()} test pictures with neutral events. Each layer's residual stream at the last token is "
        "read with the model's own final norm and unembedding. What a layer would say is no proof that the model uses it."
    )
    alt = (
        "Lines by layer: probability of the pictured emotion's words, of the other five emotions' words, and of the same beside "
        f"the neutral twin; at the end {share(frame.pictured.iloc[-1])}, {share(frame.others.iloc[-1])}, "
        f"{share(frame.twin.iloc[-1])}."
    )
    return figure_html(measured.plot(), alt) + muted(said)


def _road_blocks(roads: _Roads) -> list[tuple[str, str]]:
    n = roads.cut.table.pair.nunique()
    falls = roads.falls
    rows = [
        {
            "road": f"{road.replace('->', ' → ')}: {TOLD[road]}",
            "cut: probability lost": points(falls.fall[road], lost=True),
            "control": points(falls.control[road], lost=True),
            "p, corrected": f"{falls.p[road]:.2g}",
        }
        for road in (*ROADS, BOTH)
    ]
    flow = figure_html(roads.flow.plot("share"), "Lines by layer: share of saliency on V to Q, V to L, Q to L and other text")
    patch = figure_html(roads.patched.plot(roads.changes), "Lines by layer: share of the gap closed by patching V, Q or L")
    return [
        ("By which road: what a small change would do (saliency)", flow + muted(_FLOW.format(n=n))),
        ("By which road: what is needed (cuts)", table_html(pd.DataFrame(rows)) + muted(_CUT.format(n=n))),
        ("By which road: what is enough, and what is needed (transplants)", patch + muted(_PATCH.format(n=n))),
    ]


_FLOW = (
    "{n} test pictures and their neutral twins; attention times the gradient of the loss with respect to it, averaged over the "
    "pairs of tokens of a road, as a share of all four. Bands: 95% over pictures."
)
_CUT = (
    "Attention of one span to another blocked in all layers, on the same {n} pictures, in points of the probability that the words "
    "of the drawn emotion have next. Control: as many other readers, drawn at random. Where two roads carry the same, cutting "
    "either shows nothing; hence the last row. p: sign flips over pictures, corrected for all rows. Notebook 05 cuts window by "
    "window."
)
_PATCH = (
    "The residual stream of V, Q or L after a layer, put from one run of a pair into the other, {n} pairs: 0 is the receiver's own "
    "run, 1 the donor's (log probability of the emotion's words). Bands: 95% over pairs; dotted: layers at which V and L change "
    "their parts, with their intervals. Stages are a manner of speaking where a straight line would fit as well. Controls stand in "
    "the summary above: they are asked by thirds of the layers."
)


def _picture_block(lens: LogitLens) -> str:
    return figure_html(
        lens.plot(), "Lines by layer: emotion words' probability at the last token, an emotion a line"
    ) + figure_html(lens.plot_picture(), "Maps, one for each layer: emotion words' probability at each visual token")


# as numbers


def _result(named: tuple[str, LogitLens]) -> tuple[str, dict]:
    name, lens = named
    rows = lens.to_frame().drop(columns=["position", "token"])
    return name, {"layers": rows.to_dict("records")}


def _road_results(roads: _Roads | None) -> dict[str, Any] | None:
    if roads is None:
        return None
    flow, patched, beside = roads.flow.to_frame().share["emotional"], roads.patched.to_frame(), roads.beside.to_frame()

    def by_place(column: pd.Series) -> dict[str, Any]:
        return {d: {s: {str(i): one for i, one in column[d, s].items()} for s in SPANS} for d in DIRECTIONS}

    return {
        "saliency, share": {road: {str(i): one for i, one in flow[road].items()} for road in flow.index.unique("road")},
        "cut in all layers": roads.falls.to_dict("index"),
        "transplants": by_place(patched.effect),
        "transplants by thirds": {what: by_place(beside[what]) for what in ("effect", "beyond", "p")},
        "stages": {
            d: {"at": found.locations, "low": found.low, "high": found.high, "p": found.p} for d, found in roads.changes.items()
        },
    }
