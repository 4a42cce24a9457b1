"""Emotional intention: does what a head writes at the last token point where the emotion lies?

`I(A_c) = cos(A_c, S[l])`, with `A_c = z[l, h] W_O[h]` (arXiv 2605.21980). It says what a head writes, not that anything comes of
it: a later layer may never read it, or a constant part of S, which every picture has, may be all there is. So the neutral twin,
with the same S, stands beside it, and the difference is tested.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from emointerp.directions import Directions
from emointerp.heads.drawing import draw_map, means
from emointerp.lens import head_writes
from emointerp.measures import check_directions
from emointerp.models import VLM
from emointerp.pairs import Pair, asked_of, check_number, twin_prompts
from emointerp.plots import new_figure
from emointerp.saved import Saved
from emointerp.statistics import sign_flips, value_interval
from emointerp.tracing import Activations, collect


@dataclass(frozen=True, eq=False)
class Intention(Saved):
    """`table` has a row a pair, layer and head: pair, emotion, and the cosine at the `emotional` picture and its `neutral` twin."""

    table: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """A row a layer and head: `emotional`, `neutral` and `difference` (`Interval`s), and its p, also `corrected` (max-T)."""
        rows, table = {}, self.table.assign(difference=self.table.emotional - self.table.neutral)
        for place, some in table.groupby(["layer", "head"]):
            rows[place] = {column: value_interval(some[column]) for column in ("emotional", "neutral", "difference")}
        frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["layer", "head"])
        test = sign_flips(table.pivot(index="pair", columns=["layer", "head"], values="difference")[frame.index])
        return frame.assign(p=test.p, corrected=test.corrected)

    def plot(self, alpha: float = 0.05) -> Figure:
        """The emotional picture's cosines, and how much they exceed the neutral twin's; dots where that passes its test."""
        frame, (figure, axes) = self.to_frame(), new_figure(1, 2, width=9, height=3.6)
        shown = {"emotional": "Heads' writes and S: cosine", "difference": "Less that of the neutral twin"}
        for axis, (column, title) in zip(axes, shown.items(), strict=True):
            values, passed = means(frame[column]), frame.corrected <= alpha
            limit = max(1e-6, values.abs().max())
            drawn = draw_map(axis, values, passed if column == "difference" else None, vmin=-limit, vmax=limit)
            axis.set_title(title)
            figure.colorbar(drawn, ax=axis)
        return figure


def intention(
    vlm: VLM, pairs: Sequence[Pair], directions: Directions, *, answer: str = "I felt", progress: bool = True
) -> Intention:
    """The cosine of each head's write at the last token to its layer's `S[e, l]`, e the pair's emotion, for both pictures.

    `answer` begins the answer, as where S was found. InputError for Gemma 3, where a norm follows the heads' sum, and for
    quantised weights: a single head's write cannot be told there.

    >>> import emointerp as ei
    >>> vlm = ei.load()
    >>> S = ei.steering_vectors(vlm, ei.world_pairs("direction", 6), tau=-1, progress=False)
    >>> ei.heads.intention(vlm, ei.world_pairs("test", 2), S, progress=False).to_frame().shape
    (64, 5)
    """
    pairs = asked_of(vlm, pairs)
    check_number(pairs)
    check_directions(vlm, directions, "emotional intention")
    frames = []
    for i, pair in enumerate(tqdm(pairs, desc="intention", disable=not progress)):
        both = collect(vlm, twin_prompts(vlm, pair, answer), ["heads"], positions="last")
        towards = torch.stack([directions[pair.emotion, layer] for layer in range(vlm.anatomy.n_layers)])
        emotional, neutral = (_cosines(vlm, acts, towards) for acts in both)
        places = dict(zip(("layer", "head"), np.indices(emotional.shape).reshape(2, -1), strict=True))
        found = {"emotional": emotional.ravel(), "neutral": neutral.ravel()}
        frames.append(pd.DataFrame({"pair": i, "emotion": pair.emotion} | places | found))
    return Intention(pd.concat(frames, ignore_index=True))


def _cosines(vlm: VLM, acts: Activations, towards: Float[Tensor, "layer d_model"]) -> Float[np.ndarray, "layer head"]:
    written = head_writes(vlm, acts.heads)[:, :, 0].float().cpu()
    return torch.cosine_similarity(written, towards[:, None].float(), -1).numpy()
