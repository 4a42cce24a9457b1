"""What a run is judged by, under patches, cuts and ablations, and the stages of depth that layers are told apart in.

Shared by `flow` and `heads`: a number for a run, by name or as a `Metric` of your own, for a pair's emotion or label.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from emointerp.directions import Directions
from emointerp.emotions import hit_rate
from emointerp.emotions.wheels import Wheel, WheelsLike, as_wheels
from emointerp.errors import InputError
from emointerp.lens import MASSES, Words, metrics_of
from emointerp.models import VLM, Prompt
from emointerp.pairs import Pair, check_number
from emointerp.tracing import Activations, Metric, cosine, generate, projection, sweep
from emointerp.tracing.edits import Edit
from emointerp.tracing.metrics import as_metric
from emointerp.tracing.verbs import checked_layers

RESTORATION, PROJECTION, HITS = "restoration", "projection", "hit rate"
NAMES = (*MASSES, RESTORATION, PROJECTION, HITS)
STAGES = ("shallow", "middle", "deep")  # as reproductions name those of the paper
Measured = str | Metric | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measure:
    """What is read of a run: a metric for each emotion, or, where there are none, the hit rate of the story that follows."""

    vlm: VLM
    name: str
    metrics: Mapping[str, Metric] | None
    max_new_tokens: int
    wheels: tuple[Wheel, ...] | None = None

    @property
    def last_layer(self) -> int:
        """The last layer that can matter."""
        read = [metric.layer for metric in (self.metrics or {}).values() if metric.layer is not None]
        return max(read, default=self.vlm.anatomy.n_layers - 1)

    def own(self, prompt: Prompt, acts: Activations, emotion: str) -> float:
        """The measure of a prompt's own run, whose residual stream at the last token was collected."""
        if self.metrics is None:
            return self._hit(generate(self.vlm, prompt, max_new_tokens=self.max_new_tokens), emotion)
        metric = self.metrics[emotion]
        last = acts.logits if metric.layer is None else acts.at("residual", metric.layer, prompt.last)
        return self._one(metric(last[None]))

    def under(
        self, prompt: Prompt, lists: Mapping[Hashable, Sequence[Edit]], emotion: str
    ) -> tuple[float, Float[np.ndarray, " intervention"]]:
        """The measure without edits, and under each list of them, through one sweep."""
        if self.metrics is None:
            told = sweep(self.vlm, prompt, lists, max_new_tokens=self.max_new_tokens, progress=False)
            own, *values = (self._hit(text, emotion) for text in (*told.baseline_texts, *told.texts[0]))
            return own, np.array(values)
        found = sweep(self.vlm, prompt, lists, self.metrics[emotion], progress=False)
        return self._one(found.baseline), found.values[0].double().numpy()

    def _hit(self, story: str, emotion: str) -> float:
        return hit_rate(story, emotion, self.wheels)

    def _one(self, value: Tensor) -> float:
        if value.ndim > 1:
            raise InputError(f"The metric {self.name!r} gives {list(value.shape[1:])} values a run; expected one.")
        return float(value[0])


def measure_of(
    vlm: VLM,
    pairs: Sequence[Pair],
    metric: Measured,
    directions: Directions | None = None,
    layer: int | None = None,
    words: Words = None,
    max_new_tokens: int = 64,
    wheels: WheelsLike = None,
) -> Measure:
    """The measure that is meant by a name, or by a `Metric` of your own.

    - "log mass", "mass", "log odds": of the words of the pair's emotion, next after the begun answer (`lens.metrics_of`);
    - "restoration": `cos(h[l_emo, N], S[e, l_emo])`, for which `layer` names l_emo;
    - "projection": of the last layer's residual stream on `S[e]`;
    - "hit rate": of the story, by `wheels` as in `emotions.hit_rate`.
    """
    check_number(pairs)
    emotions = [pair.emotion for pair in pairs]
    if metric == HITS:
        return Measure(vlm, HITS, None, max_new_tokens, _knowing(emotions, wheels))
    if isinstance(metric, str) and metric not in NAMES:
        raise InputError(f"metric is {metric!r}; expected {', '.join(map(repr, NAMES))} or a Metric.")
    if metric not in (RESTORATION, PROJECTION):
        name = metric if isinstance(metric, str) else as_metric(metric).name
        return Measure(vlm, name, metrics_of(vlm, pairs, metric, words), max_new_tokens)
    check_directions(vlm, directions, metric)
    if metric == RESTORATION and layer is None:
        raise InputError("Restoration is measured at l_emo; name it: layer=3 (`Steering.emotional_layer` finds it).")
    at = checked_layers(vlm, layer if metric == RESTORATION else vlm.anatomy.n_layers - 1)[0]
    made = cosine if metric == RESTORATION else projection
    return Measure(vlm, metric, {e: made(directions[e, at], at) for e in emotions}, max_new_tokens)


def _knowing(labels: Sequence[str], wheels: WheelsLike) -> tuple[Wheel, ...]:
    """The wheels; refuses, before anything is generated, a label that none of them knows."""
    chosen = as_wheels(wheels)
    try:
        for label in dict.fromkeys(labels):
            hit_rate("", label, chosen)
    except InputError as error:
        own = "" if wheels is not None else ". For a concept of your own give wheels=Concept(name, labels, words)"
        raise InputError(f"{error}{own}.") from None
    return chosen


def check_directions(vlm: VLM, directions: Directions | None, what: str) -> None:
    """Refuse to compare with no directions, or with those of a model of another shape."""
    if directions is None:
        raise InputError(f"For {what}, directions S are needed: directions=steering_vectors(vlm, pairs).")
    came, expected = tuple(directions.vectors.shape[1:]), (vlm.anatomy.n_layers, vlm.anatomy.d_model)
    if came != expected:
        shapes = "{} layers of width {}".format(*came), "{} of {}".format(*expected)
        raise InputError(f"The directions have {shapes[0]}; this model has {shapes[1]}. Make them with this model.")


def evenly(n: int, most: int) -> list[int]:
    """All of n layers, or, where there are more than `most`, so many of them, evenly spaced.

    >>> evenly(8, 4), evenly(3, 8)
    ([0, 2, 5, 7], [0, 1, 2])
    """
    return sorted({round(at) for at in np.linspace(0, n - 1, min(n, most))})


def thirds(n_layers: int) -> dict[str, tuple[int, ...]]:
    """Layers in three stages of about the same length; empty ones are left out.

    >>> thirds(8)
    {'shallow': (0, 1, 2), 'middle': (3, 4, 5), 'deep': (6, 7)}
    """
    parts = np.array_split(np.arange(n_layers), len(STAGES))
    return {name: tuple(part.tolist()) for name, part in zip(STAGES, parts, strict=True) if len(part)}
