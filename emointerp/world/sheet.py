"""A contact sheet: scenes and their neutral twins side by side, for a slide."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from emointerp.emotions import BASIC, NEUTRAL
from emointerp.plots import COLORS, new_figure
from emointerp.world.scene import Scene
from emointerp.world.splits import sample


def contact_sheet(scenes: Sequence[Scene] | None = None, columns: int = 8, seed: int = 0, captions: Sequence[str] = ()) -> Figure:
    """Scenes in a grid, each framed in the colour of its emotion; without scenes, a row of each emotion from the test split.

    `captions` stand above the scenes, in their order.
    """
    if scenes is None:
        scenes = [e.scene for emotion in (*BASIC, NEUTRAL) for e in sample("test", columns, seed, emotions=(emotion,))]
    rows = -(-len(scenes) // columns)
    figure, axes = new_figure(rows, columns, width=1.25 * columns, height=1.25 * rows, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for scene, axis in zip(scenes, axes.flat, strict=False):
        axis.axis("on")
        axis.imshow(scene.pixels(), interpolation="lanczos")
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set(visible=True, color=COLORS[scene.emotion], linewidth=3)
    for first in range(0, len(scenes), columns):
        row = scenes[first : first + columns]
        if len({s.emotion for s in row}) == 1:
            axes[first // columns, 0].set_ylabel(row[0].emotion, color=COLORS[row[0].emotion], fontweight="bold")
    for axis, caption in zip(axes.flat, captions, strict=False):
        axis.set_title(caption, fontsize=9)
    emotions = ", ".join(scene.emotion for scene in scenes)
    figure.alt = " ".join([f"{len(scenes)} drawn scenes, {columns} a row: {emotions}.", ", ".join(captions)]).strip()
    return figure
