"""The tour's chapter on saliency: where in the picture the feeling comes from, and how far such maps can be believed.

The target is the log probability of an emotion's words next after the begun answer: of a picture, of the emotion that the model
itself names; of the test split, of the one that is drawn. Sizes are small; notebook 03 measures the tower on more, and shows
integrated gradients too, which take longest.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from emointerp.emotions import BASIC
from emointerp.lens import emotion_metrics
from emointerp.models import VLM
from emointerp.saliency import AnswerTarget, SaliencyMap, answer, check_maps, saliency_map
from emointerp.saliency.check import ALONE, CONTROLS, OTHER, RANDOM
from emointerp.tour.chapter import Chapter, Job, by_name, figure_html, left_out, muted, no_words
from emointerp.tracing import Metric, run
from emointerp.world import Scene, sample

TITLE, BEGUN = "Saliency", "I felt"
SMOOTH, WHERE = "smoothgrad", "Where in the picture?"
METHODS = (SMOOTH, "gradient", "input x gradient", "grad-cam")
BATCH, PARAMETERS = 16, 1e9  # pictures together, of a model with fewer parameters; of a larger one a picture at a time
ALPHA = 0.05


def chapter(vlm: VLM, job: Job) -> Chapter:
    """Maps of the pictures for the emotion that the model names, and a check of maps over the test split."""
    if why := no_words(vlm):
        return left_out("saliency", TITLE, why)
    sizes, metrics = job.sizes.saliency, emotion_metrics(vlm)
    batch = BATCH if sum(p.numel() for p in vlm.model.parameters()) < PARAMETERS else 1
    methods = {name: {"n": sizes["copies"], "batch": batch} if name == SMOOTH else {} for name in METHODS}
    shown = {name: _map(vlm, picture, job.event, metrics, methods[SMOOTH]) for name, picture in tqdm(job.pictures, desc="maps")}
    n = sizes["pictures"]
    scenes = [e.scene for e in sample("test", n + n // 3 + 1, seed=5, emotions=BASIC) if e.scene.has_face][:n]

    def target_of(scene: Scene) -> AnswerTarget:
        return answer(vlm, vlm.prompt(scene, job.event, answer=BEGUN), metrics[scene.emotion])

    checked = check_maps(target_of, scenes, methods, draws=sizes["draws"], steps=sizes["steps"], batch=batch)
    table = checked.to_frame()
    blocks = [("Can the maps be believed?", figure_html(checked.plot(), _alt(table)) + _explained(len(scenes)))]
    blocks += [(name, figure_html(found.plot(), _map_alt(name, found)) + _registers(found)) for name, found in shown.items()]
    kept = table.drop(columns=["deletion", "insertion"]).map(_plain)
    results = {"test split": by_name(kept), "pictures": {name: _result(found) for name, found in shown.items()}}
    return Chapter("saliency", TITLE, _summary(table), tuple(blocks), results, plain=((WHERE, _where(table)),))


def _map(vlm: VLM, picture: Any, event: str, metrics: Mapping[str, Metric], how: Mapping[str, Any]) -> SaliencyMap:
    """SmoothGrad for the emotion whose words are likeliest next."""
    prompt = vlm.prompt(picture, event, answer=BEGUN)
    logits = run(vlm, prompt).logits
    likeliest = max(metrics, key=lambda emotion: float(metrics[emotion](logits[None])))
    return saliency_map(answer(vlm, prompt, metrics[likeliest]), method=SMOOTH, **how)


# in plain words


def _where(table: pd.DataFrame) -> str:
    smooth, random = table.loc[SMOOTH], table.loc[RANDOM]
    sure = smooth["p ratio"] <= ALPHA
    verdict = "On the drawn expression" if sure else "Not surely on the drawn expression" if smooth.ratio.low > 1 else "Not shown"
    p = "" if sure else f" (p = {smooth['p ratio']:.2g})"
    own = "" if smooth.own.low > 1 else ", but hardly more than in the map of another picture, as faces are mostly in the middle"
    return (
        f"{verdict}: in maps of what the answer moves with, {_times(smooth.ratio)} times its share of the picture lies there, in "
        f"random maps {_times(random.ratio)}{p}{own}."
    )


# in words


def _summary(table: pd.DataFrame) -> tuple[str, ...]:
    told = table.drop(list(CONTROLS))
    best = max(told.index, key=lambda method: told.ratio[method].mean)
    own = [method for method in told.index if told.own[method].low > 1]
    passed = [method for method in told.index if max(told["p deletion"][method], told["p insertion"][method]) <= ALPHA]
    return (
        f"Most of all, {best} lies on the drawn expression: {_times(table.ratio[best])} times its share of the picture; SmoothGrad "
        f"{_times(table.ratio[SMOOTH])}. Control: random maps {_times(table.ratio[RANDOM])}; SmoothGrad's map of another "
        f"picture {_times(table.ratio[OTHER])}, since faces are mostly in the middle; the picture alone, without a model, "
        f"{_times(table.ratio[ALONE])}, since ink is where things are drawn.",
        f"More than their own map of another picture, with its whole interval: {', '.join(own) or 'none of the methods'}. "
        f"Better than random maps both in deletion and in insertion (corrected): {', '.join(passed) or 'none of the methods'}.",
    )


def _times(interval: Any) -> str:
    return f"{interval.mean:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def _explained(n: int) -> str:
    return muted(
        f"{n} test pictures; the target is the log probability of the drawn emotion's words after “{BEGUN}”. Mass on the "
        "expression over its area; the same over that of the method's own map of another picture; how far deletion stays below and "
        "insertion comes above random maps. Bars: 95% over pictures. A map says what the output moves with, not why."
    )


def _registers(found: SaliencyMap) -> str:
    n = len(found.registers)
    return muted(f"{n} patches of the background look like registers (framed).") if n else ""


def _alt(table: pd.DataFrame) -> str:
    listed = "; ".join(f"{method} {_times(ratio)}" for method, ratio in table.ratio.items())
    return f"Intervals, methods beside controls. Mass on the expression over its share of the picture: {listed}."


def _map_alt(name: str, found: SaliencyMap) -> str:
    return f"{name}, and over it a heat map of what {found.target} moves with"


def _plain(value: Any) -> Any:
    """None in the place of NaN, which JSON lacks."""
    missing = pd.isna(value) if isinstance(value, float) else np.isnan(getattr(value, "mean", 0.0))
    return None if missing else value


def _result(found: SaliencyMap) -> dict[str, Any]:
    return {"target": found.target, "value": found.value, "method": found.method, "registers": len(found.registers)}
