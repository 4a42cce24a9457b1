"""The figures' style and the words that go with them."""

import matplotlib
import numpy as np
import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib import style
from skimage.color import deltaE_ciede2000, rgb2lab

from emointerp.plots import COLORS, STYLE, described, new_figure
from emointerp.world import contact_sheet, sample


def shown(thing) -> tuple[dict, dict]:
    """What a notebook would store of a thing: its data and metadata by type."""
    return DisplayFormatter().format(thing)


def test_the_style_is_a_matplotlib_style_with_the_emotions_colours_in_order():
    with style.context(STYLE):
        assert matplotlib.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLORS.values())
        assert matplotlib.rcParams["axes.titlelocation"] == "left"
    assert matplotlib.rcParams["axes.titlelocation"] == "center"  # nothing stays behind


def test_colours_differ_also_without_red_or_green():
    """Machado et al. (2009), severity 1: the seven colours as two kinds of colour-blind readers see them stay apart."""
    rows = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    }
    rgb = np.array([matplotlib.colors.to_rgb(color) for color in COLORS.values()])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    for matrix in rows.values():
        seen = np.clip(linear @ np.array(matrix).T, 0, 1)
        lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
        apart = deltaE_ciede2000(lab[:, None], lab[None])
        assert apart[~np.eye(len(lab), dtype=bool)].min() > 8


def test_a_figure_says_what_it_shows_in_a_notebook():
    figure, axes = new_figure(1, 2)
    axes[0].plot([0, 1], label="fear")
    axes[0].plot([1, 0], label="joy")
    axes[0].set(title="Lens", xlabel="layer", ylabel="probability")
    axes[1].bar(["raw", "centred"], [1, 2])
    axes[1].set(title="Directions", ylabel="cosine")
    figure.legend(*axes[0].get_legend_handles_labels())
    words = "Figure: Lens: probability by layer; fear, joy. Directions: cosine; raw, centred. fear, joy."
    data, metadata = shown(figure)
    assert described(figure) == figure.alt == data["text/plain"] == metadata["image/png"]["alt"] == words
    figure.alt = "Fear rises, joy falls."
    assert shown(figure)[1] == {"image/png": {"alt": "Fear rises, joy falls."}}


def test_panels_without_words_are_left_out_and_long_ones_cut():
    figure, axes = new_figure(2, 2)
    assert described(figure) == "Figure: without titles."
    axes[0, 0].set_title("one  " + "word " * 200)
    assert len(described(figure)) <= 600 and described(figure).endswith(" …")


@pytest.mark.parametrize("emotion", ["joy", "sadness"])
def test_scenes_and_sheets_of_scenes_say_what_they_are(emotion):
    scene = sample("test", 1, 3, emotions=(emotion,))[0].scene
    assert shown(scene)[1]["image/png"]["alt"] == f"A drawn scene: {scene.subject}, {emotion}, {scene.place}."
    sheet = contact_sheet([scene, scene], columns=2)
    assert shown(sheet)[0]["text/plain"] == f"2 drawn scenes, 2 a row: {emotion}, {emotion}."
