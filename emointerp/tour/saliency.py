"""The tour's chapter on saliency: where in the picture the feeling comes from, and how far such maps can be believed.

The target is the log probability of an emotion's words next after the begun answer: of a picture, of the emotion that the model
itself names; of the test split, of the one that is drawn. Sizes are small; notebook 03 measures the tower on more.
"""

from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from emointerp.emotions import BASIC
from emointerp.lens import emotion_metrics
from emointerp.models import VLM
from emointerp.saliency import AnswerTarget, MapCheck, SaliencyMap, answer, check_maps, saliency_map
from emointerp.saliency.check import ALONE, CONTROLS, OTHER, RANDOM
from emointerp.tour.chapter import Chapter, Job, figure_html, muted
from emointerp.tracing import Metric
from emointerp.world import Scene, sample

TITLE, BEGUN = "Saliency", "I felt"
PICTURES, STEPS, DRAWS = 18, 5, 2
METHODS: dict[str, dict[str, Any]] = {
    "smoothgrad": {"n": 9},
    "gradient": {},
    "input x gradient": {},
    "integrated gradients": {"steps": 16, "batch": 16},
    "grad-cam": {},
}


def chapter(vlm: VLM, job: Job) -> Chapter:
    """Maps of the pictures for the emotion that the model names, and a check of maps over the test split."""
    metrics = emotion_metrics(vlm)
    shown = {name: _map(vlm, picture, job.event, metrics) for name, picture in tqdm(job.pictures, desc="maps")}
    scenes = [e.scene for e in sample("test", PICTURES + 6, seed=5, emotions=BASIC) if e.scene.has_face][:PICTURES]

    def target_of(scene: Scene) -> AnswerTarget:
        return answer(vlm, vlm.prompt(scene, job.event, answer=BEGUN), metrics[scene.emotion])

    checked = check_maps(target_of, scenes, METHODS, draws=DRAWS, steps=STEPS)
    blocks = [("Can the maps be believed?", figure_html(checked.plot(), "Methods beside random maps") + _explained())]
    blocks += [
        (name, figure_html(found.plot(), f"Where {found.target} comes from") + _registers(found)) for name, found in shown.items()
    ]
    results = {"test split": _by_name(checked), "pictures": {name: _result(found) for name, found in shown.items()}}
    return Chapter("saliency", TITLE, _summary(checked), tuple(blocks), results)


def _map(vlm: VLM, picture: Any, event: str, metrics: dict[str, Metric]) -> SaliencyMap:
    """SmoothGrad for the emotion whose words are likeliest next."""
    prompt = vlm.prompt(picture, event, answer=BEGUN)
    targets = {emotion: answer(vlm, prompt, metric) for emotion, metric in metrics.items()}
    pixels = next(iter(targets.values())).pixels([prompt.image])
    with torch.no_grad():
        values = {emotion: float(target(pixels)) for emotion, target in targets.items()}
    return saliency_map(targets[max(values, key=values.__getitem__)], method="smoothgrad", **METHODS["smoothgrad"])


def _summary(checked: MapCheck) -> tuple[str, ...]:
    table = checked.to_frame()
    told = table.drop(list(CONTROLS))
    best = max(told.index, key=lambda method: told.ratio[method].mean)
    own = [method for method in told.index if told.own[method].low > 1]
    passed = [method for method in told.index if max(told["p deletion"][method], told["p insertion"][method]) <= 0.05]
    return (
        f"Most of all, {best} lies on the drawn expression: {_times(table.ratio[best])} times its share of the picture; SmoothGrad "
        f"{_times(table.ratio['smoothgrad'])}. Control: random maps {_times(table.ratio[RANDOM])}; SmoothGrad's map of another "
        f"picture {_times(table.ratio[OTHER])}, since faces are mostly in the middle; the picture alone, without a model, "
        f"{_times(table.ratio[ALONE])}, since ink is where things are drawn.",
        f"More than their own map of another picture, with its whole interval: {', '.join(own) or 'none of the methods'}. "
        f"Better than random maps both in deletion and in insertion (corrected): {', '.join(passed) or 'none of the methods'}.",
    )


def _times(interval: Any) -> str:
    return f"{interval.mean:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def _explained() -> str:
    return muted(
        f"{PICTURES} test pictures; the target is the log probability of the drawn emotion's words after “{BEGUN}”. Mass on the "
        "expression over its area; the same over that of the method's own map of another picture; how far deletion stays below and "
        "insertion comes above random maps. Bars: 95% over pictures. A map says what the output moves with, not why."
    )


def _registers(found: SaliencyMap) -> str:
    n = len(found.registers)
    return muted(f"{n} patches of the background look like registers (framed).") if n else ""


def _by_name(checked: MapCheck) -> dict[str, dict[str, Any]]:
    table = checked.to_frame().drop(columns=["deletion", "insertion"])
    return {str(method): {name: _plain(value) for name, value in row.items()} for method, row in table.iterrows()}


def _plain(value: Any) -> Any:
    """None in the place of NaN, which JSON lacks."""
    missing = pd.isna(value) if isinstance(value, float) else np.isnan(getattr(value, "mean", 0.0))
    return None if missing else value


def _result(found: SaliencyMap) -> dict[str, Any]:
    return {"target": found.target, "value": found.value, "method": found.method, "registers": len(found.registers)}
