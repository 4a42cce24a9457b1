"""What a patch of heads is judged by, and the patch itself: shared by the map and the function check."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from emointerp.directions import Directions
from emointerp.emotions import hit_rate
from emointerp.errors import InputError
from emointerp.lens import MASSES, Words, metrics_of
from emointerp.models import VLM, Prompt
from emointerp.pairs import Pair, check_number
from emointerp.tracing import Activations, Metric, SetHead, cosine, generate, patch, projection, sweep
from emointerp.tracing.edits import FROM_LAST, Edit
from emointerp.tracing.metrics import as_metric
from emointerp.tracing.verbs import checked_layers

RESTORATION, PROJECTION, HITS = "restoration", "projection", "hit rate"
NAMES = (*MASSES, RESTORATION, PROJECTION, HITS)
Measured = str | Metric | Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Measure:
    """What is read of a run: a metric for each emotion, or, where there are none, the hit rate of the story that follows."""

    vlm: VLM
    name: str
    metrics: Mapping[str, Metric] | None
    max_new_tokens: int

    @property
    def last_layer(self) -> int:
        """The last layer whose heads can matter."""
        read = [metric.layer for metric in (self.metrics or {}).values() if metric.layer is not None]
        return max(read, default=self.vlm.anatomy.n_layers - 1)

    def own(self, prompt: Prompt, acts: Activations, emotion: str) -> float:
        """The measure of a prompt's own run, whose residual stream at the last token was collected."""
        if self.metrics is None:
            return hit_rate(generate(self.vlm, prompt, max_new_tokens=self.max_new_tokens), emotion)
        metric = self.metrics[emotion]
        last = acts.logits if metric.layer is None else acts.at("residual", metric.layer, prompt.last)
        return self._one(metric(last[None]))

    def under(
        self, prompt: Prompt, lists: Mapping[Hashable, Sequence[Edit]], emotion: str
    ) -> tuple[float, Float[np.ndarray, " intervention"]]:
        """The measure without edits, and under each list of them, through one sweep."""
        if self.metrics is None:
            told = sweep(self.vlm, prompt, lists, max_new_tokens=self.max_new_tokens, progress=False)
            own, *values = (hit_rate(text, emotion) for text in (*told.baseline_texts, *told.texts[0]))
            return own, np.array(values)
        found = sweep(self.vlm, prompt, lists, self.metrics[emotion], progress=False)
        return self._one(found.baseline), found.values[0].double().numpy()

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
) -> Measure:
    """The measure that is meant by a name, or by a `Metric` of your own.

    - "log mass", "mass": of the words of the pair's emotion, next after the begun answer (`lens.metrics_of`);
    - "restoration": `cos(h[l_emo, N], S[e, l_emo])`, for which `layer` names l_emo;
    - "projection": of the last layer's residual stream on `S[e]`;
    - "hit rate": of the story.
    """
    check_number(pairs)
    emotions = [pair.emotion for pair in pairs]
    if metric == HITS:
        return Measure(vlm, HITS, None, max_new_tokens)
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


def check_directions(vlm: VLM, directions: Directions | None, what: str) -> None:
    """Refuse to compare with no directions, or with those of a model of another shape."""
    if directions is None:
        raise InputError(f"For {what}, directions S are needed: directions=steering_vectors(vlm, pairs).")
    came, expected = tuple(directions.vectors.shape[1:]), (vlm.anatomy.n_layers, vlm.anatomy.d_model)
    if came != expected:
        shapes = "{} layers of width {}".format(*came), "{} of {}".format(*expected)
        raise InputError(f"The directions have {shapes[0]}; this model has {shapes[1]}. Make them with this model.")


def patched_head(donor: Activations, layer: int, head: int, positions: Sequence[int], lasts: bool) -> SetHead:
    """A head's output from the donor's run at `positions`; where it `lasts`, that of the last one, also in the answer's tokens."""
    if lasts:
        return SetHead(layer, head, donor.at("heads", layer, positions[-1])[head], FROM_LAST)
    return patch(donor, layer, head=head, positions=positions)


def checked_positions(positions: object, measure: Measure) -> tuple:
    """Positions as a tuple; a story is told with heads patched from the last token on."""
    where = (positions,) if isinstance(positions, str | int) else tuple(positions)
    if measure.metrics is None and where != ("last",):
        raise InputError(f"A story's heads are patched from the last token on: positions='last', not {positions!r}.")
    return where
