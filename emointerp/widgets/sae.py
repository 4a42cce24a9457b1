"""Panel of chapter 02, the emotion explorer: what an emotion is made of, feature by feature, with the pictures of each.

The circle is `Explorer`; this panel reads the pictures once, and makes the tree anew for each emotion and number of features.
An SAE over patches also tells where in a picture a feature fires; one over whole pictures does not.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import numpy as np
from jaxtyping import Bool

from emointerp.errors import InputError
from emointerp.models import Tower, load_tower
from emointerp.plots import INK, ShownFigure
from emointerp.sae import SAE, Codes, load_sae, picture_codes
from emointerp.sae.emotion import EmotionDirections, emotion_directions
from emointerp.sae.meaning import by_picture, feature_meanings
from emointerp.sae.tree import NONE, FeatureTree, feature_tree
from emointerp.superposition import factor_table
from emointerp.widgets.drawing import FAINT, Sheet, image_of
from emointerp.widgets.explorer import Explorer, top_pictures, warmed
from emointerp.widgets.panel import Panel, arranged
from emointerp.world import Scene, face_scenes

ALL = "all"
PICTURES = 420  # test scenes that are read, unless others are given
NUMBERS = (10, 20, 40, 80, 160)
UNNAMED = "nothing named"  # as `feature_meanings` says it
BUNDLED = {"whole pictures": "tiny", "patches": "tiny-patches"}


@dataclass(frozen=True, eq=False)
class ReadPictures:
    """Scenes as an SAE reads them: codes, a name for each feature that has one, and the emotions' directions."""

    sae: SAE
    scenes: Sequence[Scene] = field(repr=False)
    codes: Codes
    words: Mapping[int, str] = field(repr=False)
    directions: EmotionDirections

    @classmethod
    def of(cls, sae: SAE, tower: Tower, scenes: Sequence[Scene], progress: bool = True) -> "ReadPictures":
        """Scenes with a face, read by an SAE over whole pictures or over patches."""
        codes = picture_codes(sae, tower, scenes, progress=progress)
        told = feature_meanings(codes, factors=factor_table(scenes)).to_frame()
        words = {i: words.partition(",")[0] for i, words in zip(told.feature, told.words, strict=True) if words != UNNAMED}
        directions = emotion_directions(by_picture(codes)[0], [scene.emotion for scene in scenes])
        return cls(sae, scenes, codes, words, directions)


def compute(read: ReadPictures, emotion: str, n: int) -> FeatureTree:
    """The tree of the `n` features that stand out most for one emotion (fewer, where fewer do), or for all of them in turn."""
    labels = [scene.emotion for scene in read.scenes]
    if emotion == ALL:
        return feature_tree(read.codes, labels, sae=read.sae, words=read.words, n=n)
    top = read.directions.top_features(emotion, n)
    return feature_tree(read.codes, labels, sae=read.sae, words=read.words, choose=top.feature[top.weight > 0].tolist())


def summary_html(tree: FeatureTree, emotion: str) -> str:
    """What the circle holds, in a sentence: how many features go with which emotion, and which stands out most."""
    counts = Counter(tree.leaves.emotion)
    kinds = [name for name in (*tree.emotions, NONE) if counts[name]]
    said = ", ".join(f"{counts[name]} go with {'no one emotion' if name == NONE else escape(name)}" for name in kinds)
    row = tree.leaves[tree.leaves.feature == first(tree, emotion)].iloc[0]
    words = f" ({escape(row.words)})" if row.words else ""
    return f"<p>{len(tree)} features; {said}. The one that stands out most: <b>{row.feature}</b>{words}.</p>"


def first(tree: FeatureTree, emotion: str) -> int:
    """The feature that stands out most, for an emotion or for any."""
    at = slice(None) if emotion == ALL else [tree.emotions.index(emotion)]
    above = tree.means[:, at] - tree.means.mean(1, keepdims=True)
    return int(tree.leaves.feature[above.max(1).argmax()])


class SaePanel(Panel):
    """The explorer, with a choice of emotion and number of features; of whole pictures or patches, where both are given.

    A test sets a control's value and reads `explorer`, the widget that is shown, and `view.value`, a sentence about it.
    """

    def __init__(self, read: Mapping[str, ReadPictures]):
        self._read, self.explorer = dict(read), None
        self._tree = lru_cache(maxsize=64)(lambda reads, emotion, n: compute(self._read[reads], emotion, n))
        self._explorer = lru_cache(maxsize=16)(self._made)
        emotions = [ALL, *next(iter(self._read.values())).directions.emotions]
        controls: dict[str, widgets.Widget] = {
            "reads": widgets.ToggleButtons(options=list(self._read), description="features of"),
            "emotion": widgets.Dropdown(options=emotions, description="emotion"),
            "n": widgets.SelectionSlider(options=NUMBERS, value=40, continuous_update=False, description="features"),
        }
        super().__init__(controls, self._told, arranged(controls, wide=("reads",)), draw=self._figure, still=self._still)

    def refresh(self) -> None:
        """Say what the present choice holds, and show its circle; a problem is said in words, and there is no circle."""
        super().refresh()
        try:
            self.explorer = self._explorer(**{name: control.value for name, control in self.controls.items()})
        except Exception:  # the panel met it above, and shows it in words
            self.explorer = None
        self.children = [*self.children[:3], *filter(None, [self.explorer])]

    def _told(self, reads: str, emotion: str, n: int) -> str:
        return summary_html(self._tree(reads, emotion, n), emotion)

    def _made(self, reads: str, emotion: str, n: int) -> Explorer:
        read, tree = self._read[reads], self._tree(reads, emotion, n)
        explorer = Explorer(tree, top_pictures(read.codes, read.scenes), title=_title(emotion))
        explorer.selected = first(tree, emotion)
        return explorer

    def export(self, path: str | Path, **grid: Any) -> Path:
        """As every panel's; without a grid the page is the explorer itself, alive, with the pictures of every feature inside."""
        return super().export(path, **grid) if grid or self.explorer is None else self.explorer.save(path)

    def _still(self, reads: str, emotion: str, n: int) -> str:
        return self._told(reads, emotion, n) + self._explorer(reads, emotion, n).static_html()

    def _figure(self, reads: str, emotion: str, n: int) -> ShownFigure:
        """The circle as the explorer has it now, and the pictures of the feature that is selected."""
        return draw(self._tree(reads, emotion, n), self._explorer(reads, emotion, n))


def draw(tree: FeatureTree, explorer: Explorer) -> ShownFigure:
    """The circle with the selected feature ringed and what is not looked for pale; beside it that feature's pictures."""
    sheet, figure = Sheet(700), tree.plot(width=7.5)
    figure.set_figheight(8.2)  # so that the lowest labels stay clear of the legend
    _emphasise(figure.axes[0], tree, explorer)
    y = sheet.text(0, 0, explorer.title, size=13, weight="bold")
    sheet.picture(0, y, image_of(figure), 470)
    if explorer.selected < 0:
        return sheet.figure("The emotion explorer")
    row = tree.leaves[tree.leaves.feature == explorer.selected].iloc[0]
    y = sheet.text(490, y + 30, row.words or f"feature {row.feature}", size=11, weight="bold")
    kind = "no one emotion" if row.emotion == NONE else row.emotion
    y = sheet.text(490, y, f"feature {row.feature}; {kind}, mean activation {row.activation:.2g}", size=9, color=FAINT) + 4
    for i, shot in enumerate(explorer.pictures):
        x, at = 490 + 106 * (i % 2), y + 118 * (i // 2)
        sheet.text(x, sheet.picture(x, at, warmed(shot), 100), shot["caption"], 100, size=8, color=FAINT)
    return sheet.figure("The emotion explorer")


def _emphasise(axis: Any, tree: FeatureTree, explorer: Explorer) -> None:
    """A ring around the selected feature, and white over those that the explorer's search or emotions leave out."""
    places = np.pi / 2 - 2 * np.pi * (np.arange(len(tree)) + 1) / (len(tree) + 1)
    x, y = np.cos(places), np.sin(places)
    chosen, out = (tree.leaves.feature == explorer.selected).to_numpy(), ~lit(tree, explorer.search, explorer.emotions)
    axis.scatter(x[out], y[out], s=340, c="white", alpha=0.75, linewidths=0, zorder=3)
    axis.scatter(x[chosen], y[chosen], s=300, facecolors="none", edgecolors=INK, linewidths=2.2, zorder=4)


def lit(tree: FeatureTree, search: str, emotions: Sequence[str]) -> Bool[np.ndarray, " leaf"]:
    """The features that the explorer shows for a search and a choice of emotions: those whose words, or number, have each word."""
    wanted, leaves = search.lower().split(), tree.leaves
    found = [
        all(word in words.lower() or str(feature).startswith(word) for word in wanted)
        for feature, words in zip(leaves.feature, leaves.words, strict=True)
    ]
    return np.array(found) & (leaves.emotion.isin(emotions).to_numpy() if emotions else True)


def _title(emotion: str) -> str:
    return "What emotions are made of" if emotion == ALL else f"What {emotion} is made of"


def sae(
    saes: SAE | Mapping[str, SAE] | None = None,
    tower: Tower | None = None,
    scenes: Sequence[Scene] | None = None,
    progress: bool = False,
) -> SaePanel:
    """A panel to see what emotions are made of, by default of the bundled SAEs, over whole pictures and over patches.

    `saes`: one SAE, or several of one tower by the names that the panel shows. `scenes` have a face, and each emotion comes twice
    or more; by default they are 420 of the test split, expressions from faint to clear.
    """
    if saes is None:
        saes = {name: load_sae(bundled) for name, bundled in BUNDLED.items()}
    named = saes if isinstance(saes, Mapping) else {"the SAE": saes}
    if not named:
        raise InputError("There is no SAE to show; give one, or none for the bundled ones.")
    tower, scenes = tower or load_tower("tiny"), scenes or face_scenes("test", PICTURES)
    return SaePanel({name: ReadPictures.of(some, tower, scenes, progress) for name, some in named.items()})
