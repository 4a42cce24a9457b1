"""Chapter 06, first half: which heads carry the emotion?

- `intention`: does what a head writes at the last token point towards the emotion? A correlation.
- `head_map`: each head's output put from a picture's run into its twin's: what it alone carries. `attribution_map` is a quick look.
- `amplification_map`: what a larger look at the picture does, head by head, where an event contradicts it. VEENA's choice.
- `specificity`: do the heads that were found serve one emotion or all? On data that did not find them, against noise.
- `visual_heads`: which heads look at the picture, and where.
- `check_heads`: all found heads together silenced and restored, against random sets of the same build.

>>> found = head_map(vlm, world_pairs("selection", 72))                                       # doctest: +SKIP
>>> held = head_map(vlm, world_pairs("test", 72))                                             # doctest: +SKIP
>>> specificity(found, held).plot()                                                           # doctest: +SKIP
>>> check_heads(vlm, world_pairs("test", 72), found.passed()[:6]).to_frame()                  # doctest: +SKIP
"""

from emointerp.heads.amplification import amplification_map
from emointerp.heads.check import HeadCheck, check_heads, matched_sets
from emointerp.heads.intention import Intention, intention
from emointerp.heads.maps import HeadMap, attribution_map, head_map
from emointerp.heads.specificity import Specificity, specificity
from emointerp.heads.visual import VisualHeads, plot_attention, visual_heads

__all__ = [
    "HeadCheck", "HeadMap", "Intention", "Specificity", "VisualHeads", "amplification_map", "attribution_map", "check_heads",
    "head_map", "intention", "matched_sets", "plot_attention", "specificity", "visual_heads",
]  # fmt: skip
