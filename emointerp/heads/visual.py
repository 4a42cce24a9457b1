"""Visual heads: which heads look at the picture from the last token, and where they look.

A head that attends to the picture whatever it shows is *universal*: its least share of attention over the emotions is high. Looking
is no proof of reading: what a head takes from there may be anything, which the map of heads tells apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from emointerp.errors import InputError
from emointerp.heads.drawing import draw_map, means
from emointerp.lens import draw_over
from emointerp.models import VLM, Prompt
from emointerp.pairs import Pair, asked_of, check_number
from emointerp.plots import new_figure
from emointerp.saved import Saved
from emointerp.statistics import ratio_interval, sign_flips, value_interval
from emointerp.tracing import collect
from emointerp.world.scene import Scene

REGIONS = ("face", "expression")


@dataclass(frozen=True, eq=False)
class VisualHeads(Saved):
    """Attention of the last token over the picture. `table` has a row a pair, layer and head:

    pair, emotion, layer, head; `share` of attention on visual tokens; `entropy` of its spread over them (1: even; 0: one token);
    and, of scenes of the drawn world with a face, the part of it inside the `face` and the `expression`, beside `face_area` and
    `expression_area`, what attention that is even over the tokens would have there (else NaN).
    """

    table: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """A row a layer and head: `share`, its `least` mean over emotions, `entropy`; and what the face and the expression get.

        `face`, `expression`: how many times what even attention would have there; `p` that `expression` is 1, by sign flips over
        pairs, corrected for all heads (max-T).
        """
        rows = {}
        for place, some in self.table.groupby(["layer", "head"]):
            rows[place] = {"share": value_interval(some.share), "least": some.groupby("emotion").share.mean().min()}
            rows[place] |= {"entropy": value_interval(some.entropy)}
            known = some.dropna(subset=REGIONS)
            if len(known):
                rows[place] |= {region: ratio_interval(known[region], known[f"{region}_area"]) for region in REGIONS}
        frame, known = (
            pd.DataFrame.from_dict(rows, orient="index").rename_axis(["layer", "head"]),
            self.table.dropna(subset=REGIONS),
        )
        if known.pair.nunique() < 2:
            return frame
        more = known.assign(more=known.expression - known.expression_area)
        test = sign_flips(more.pivot(index="pair", columns=["layer", "head"], values="more")[frame.index])
        return frame.assign(p=test.corrected)

    def universal(self, k: int = 10) -> pd.DataFrame:
        """The k heads that look at the picture most whatever it shows, by `least`."""
        return self.to_frame().nlargest(k, "least")

    def plot(self) -> Figure:
        """Share of attention on the picture; its spread there; and, in the drawn world, how much of it the expression gets."""
        frame = self.to_frame()
        shown = {"share": ("Attention on the picture", {"vmin": 0, "vmax": 1})}
        shown |= {"entropy": ("Its spread (1: even)", {"vmax": 1})}
        if "expression" in frame:
            shown |= {"expression": ("On the expression, times its area", {"vmin": 0})}
        figure, axes = new_figure(1, len(shown), width=3.9 * len(shown), height=3.4, squeeze=False)
        for axis, (column, (title, limits)) in zip(axes.flat, shown.items(), strict=True):
            figure.colorbar(draw_map(axis, means(frame[column]), cmap="viridis", **limits), ax=axis)
            axis.set_title(title, fontsize=10)
        return figure


def visual_heads(vlm: VLM, pairs: Sequence[Pair], *, answer: str = "I felt", progress: bool = True) -> VisualHeads:
    """Attention of the last token over the emotional pictures of pairs, by head; `answer` is how the answer has begun.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> ei.heads.visual_heads(vlm, pairs, progress=False).to_frame().shape
    (64, 6)
    """
    pairs = asked_of(vlm, pairs)
    check_number(pairs)
    frames = []
    for i, pair in enumerate(tqdm(pairs, desc="visual heads", disable=not progress)):
        prompt = vlm.prompt(pair.emotional, pair.event, answer=answer)
        regions = _coverage(vlm, prompt, pair.emotional)
        frames.append(_looks(attention_on(vlm, prompt), regions).assign(pair=i, emotion=pair.emotion))
    return VisualHeads(pd.concat(frames, ignore_index=True))


def attention_on(vlm: VLM, prompt: Prompt) -> Float[np.ndarray, "layer head visual"]:
    """Attention of the last token to each visual token."""
    attention = collect(vlm, prompt, ["attention"], positions="last").attention[:, :, 0]
    return attention[..., list(prompt.visual)].float().cpu().numpy()


def plot_attention(vlm: VLM, prompt: Prompt, heads: Sequence[tuple[int, int]]) -> Figure:
    """Attention of the last token over the picture, a panel a (layer, head), each on its own scale; its share is in the title."""
    if not len(heads):
        raise InputError("There are no heads; expected (layer, head) pairs such as (3, 5).")
    on = attention_on(vlm, prompt)
    if wrong := [head for head in heads if not all(0 <= i < n for i, n in zip(head, on.shape, strict=False))]:
        raise InputError(f"Heads {wrong} are out of range; this model has {on.shape[0]} layers of {on.shape[1]} heads.")
    rows = -(-len(heads) // 4)
    columns = -(-len(heads) // rows)  # six are three above three
    figure, axes = new_figure(rows, columns, width=2.2 * columns, height=2.4 * rows, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, (layer, head) in zip(axes.flat, heads, strict=False):
        values = on[layer, head]
        draw_over(axis, prompt, vlm.boxes(prompt), values, Normalize(0, max(1e-6, values.max())))
        axis.set_title(f"{layer}.{head}: {values.sum():.0%}", fontsize=9)
    return figure


def _looks(on: Float[np.ndarray, "layer head visual"], regions: dict[str, Float[np.ndarray, " visual"]]) -> pd.DataFrame:
    """A row a layer and head."""
    share = on.sum(-1)
    spread = on / np.maximum(share[..., None], 1e-12)
    entropy = -(spread * np.log(np.maximum(spread, 1e-12))).sum(-1) / np.log(max(2, on.shape[-1]))
    columns = {"share": share, "entropy": entropy}
    for region in REGIONS:
        covered = regions.get(region, np.full(on.shape[-1], np.nan))
        known = ~np.isnan(covered) if region in regions else slice(None)
        inside = (spread[..., known] * covered[known]).sum(-1) / np.maximum(spread[..., known].sum(-1), 1e-12)
        columns |= {region: inside, f"{region}_area": np.full_like(share, covered[known].mean())}
    places = dict(zip(("layer", "head"), np.indices(share.shape).reshape(2, -1), strict=True))
    return pd.DataFrame(places | {name: values.ravel() for name, values in columns.items()})


def _coverage(vlm: VLM, prompt: Prompt, picture: object) -> dict[str, Float[np.ndarray, " visual"]]:
    """How much of each visual token's box a region takes, for a scene with a face; NaN where a token has no place."""
    if not isinstance(picture, Scene) or not picture.has_face:
        return {}
    masks, boxes = picture.masks(), vlm.boxes(prompt)
    return {region: np.array([_covered(masks[region], box) for box in boxes]) for region in REGIONS}


def _covered(mask: Bool[np.ndarray, "height width"], box: Float[np.ndarray, " 4"]) -> float:
    if np.isnan(box).any():
        return np.nan
    left, top, right, bottom = np.round(box).astype(int)
    return float(mask[top : max(top + 1, bottom), left : max(left + 1, right)].mean())
