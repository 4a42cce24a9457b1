"""Chapter 03's panel, exercises and page of the tour: the panel shows what it names, usual slips hear their own words."""

import numpy as np
import pandas as pd
import pytest
import torch

import emointerp
from emointerp.emotions import BASIC
from emointerp.exercises import saliency as exercise
from emointerp.models import load_tower
from emointerp.sae.emotion import EmotionDirections, emotion_directions
from emointerp.saliency import METHODS, MapCheck, saliency_map, toward
from emointerp.tour import saliency as tour
from emointerp.tour.chapter import Job
from emointerp.tour.sizes import Sizes
from emointerp.widgets.saliency import saliency
from emointerp.world import sample

FACES = [e.scene for e in sample("test", 18, seed=3, emotions=BASIC) if e.scene.has_face]
SCENE = next(scene for scene in FACES if scene.emotion == "joy")


def directions(tower) -> EmotionDirections:
    return emotion_directions(tower.embed(FACES, progress=False), [scene.emotion for scene in FACES])


@pytest.fixture(scope="module")
def tower():
    return load_tower("tiny")


@pytest.fixture(scope="module")
def target(tower):
    return toward(tower, directions(tower).vector("joy"), "joy")


def says(verdict, words: str) -> bool:
    """Whether a verdict is "not yet" and has these words."""
    return not verdict and verdict.message.startswith("Not yet: ") and words in verdict.message


# the panel


def test_the_panel_shows_the_map_of_what_is_chosen(tower):
    S = directions(tower)
    panel = saliency(tower, {"joy": SCENE, "<b>photo": SCENE.image()}, S)
    assert panel.controls["read"].options == ("embedding",) and panel.controls["emotion"].value == "joy"
    found = saliency_map(toward(tower, S.vector("joy"), "joy"), SCENE, n=25, sigma=0.15)
    mask = SCENE.masks()["expression"]
    assert f"cosine to joy = <b>{found.value:.3f}</b>" in panel.view.value
    assert (
        f"<b>{found.mass(mask) / mask.mean():.1f} times</b>" in panel.view.value and panel.view.value.count("data:image/png") == 4
    )
    first = panel.view.value
    panel.controls["sigma"].value = 0.6
    assert panel.view.value != first and panel.busy.value == ""
    panel.controls["sigma"].value = 0.15
    assert panel.view.value == first
    for method in METHODS:
        panel.controls["method"].value = method
        assert 'role="alert"' not in panel.view.value and f'alt="{method}"' in panel.view.value
    panel.controls["picture"].value = "<b>photo"
    assert "times</b>" not in panel.view.value and "<b>photo" not in panel.view.value and 'role="alert"' not in panel.view.value


def test_the_panel_reads_answers_of_a_vlm_and_says_what_it_cannot_show(tower):
    panel = saliency(emointerp.load(), {"joy": SCENE}, directions(tower))
    panel.controls["n"].value = 1
    panel.controls["read"].value = "answer"
    assert "log p(joy) = " in panel.view.value
    panel.controls["method"].value = "rollout"
    assert 'role="alert"' in panel.view.value and "Rollout tells of a tower" in panel.view.value


# 1


def test_a_gradient_by_hand(target):
    image = SCENE.image()
    x = target.pixels([image]).requires_grad_()
    (slope,) = torch.autograd.grad(target(x).sum(), x)
    for answer in (slope.abs().mean(1), slope[0].abs().mean(0).numpy()):
        assert exercise.gradient_by_hand(answer, target, image)
    for answer, words in (
        (None, "still None"),
        ([1], "this is a list"),
        (slope.abs(), "which axis is for the channels"),
        (slope[0].mean(0).abs(), "signs cancel"),
        (slope[0].mean(0), "still has signs"),
        (slope[0].abs().sum(0), "the sum over channels"),
        (slope[0].abs().amax(0), "the largest channel"),
        (torch.zeros(128, 128), "the numbers are not"),
    ):
        assert says(exercise.gradient_by_hand(answer, target, image), words), words


# 2


def test_inside_over_area(target):
    found, mask = saliency_map(target, SCENE, n=2), SCENE.masks()["expression"]
    inside, area, face = found.mass(mask), mask.mean(), SCENE.masks()["face"]
    assert exercise.inside_over_area(inside / area, found, SCENE)
    for answer, words in (
        (None, "still None"),
        ("two", "this is a str"),
        (inside, "the share of the mass alone"),
        (area / inside, "upside down"),
        (found.mass(mask.T) / area, "columns and rows"),
        (found.mass(face) / face.mean(), "the whole face"),
        (found.map[mask].sum() / area, "not its share"),
        (77.0, "77.000 is not it"),
    ):
        assert says(exercise.inside_over_area(answer, found, SCENE), words), words


# 3


def checked() -> MapCheck:
    """A map that knows the picture, one that knows the middle, and the controls."""
    rng, rows = np.random.default_rng(0), []
    for picture in range(30):
        for method, inside, elsewhere in (
            ("knows", 0.4, 0.2), ("middle", 0.3, 0.3), ("picture alone", 0.4, 0.2), ("map of another picture", 0.2, np.nan),
            ("random", 0.1, np.nan),
        ):  # fmt: skip
            rows.append((picture, "joy", method, 0, 0.1, 0.2, inside + 0.02 * rng.random(), elsewhere + 0.02 * rng.random(), 0.1))
    columns = ["picture", "emotion", "method", "draw", "deletion", "insertion", "inside", "elsewhere", "area"]
    return MapCheck(pd.DataFrame(rows, columns=columns), np.zeros((len(rows), 2, 3)))


def test_which_maps_know_this_picture():
    found = checked()
    assert exercise.knows_this_picture({"knows"}, found) and exercise.knows_this_picture(["knows"], found)
    for answer, words in (
        (None, "still None"),
        ("knows", "give a set or list"),
        ({"nobody"}, "'nobody' is no row"),
        ({"knows", "middle"}, "that is the column `ratio`"),
        ({"middle"}, "which is not above 1"),
        ({"knows", "random"}, "random is a control"),
        (set(), "1 intervals lie above 1"),
    ):
        assert says(exercise.knows_this_picture(answer, found), words), words


# 4


def test_how_many_copies_are_enough(target):
    image = SCENE.image()
    alike = {}
    for n in (1, 2, 4, 8, 16, 32):
        a, b = (METHODS["smoothgrad"](target, image, n=n, sigma=0.3, seed=seed).ravel() for seed in (0, 1))
        a, b = a - a.mean(), b - b.mean()
        alike[n] = a @ b / np.sqrt((a @ a) * (b @ b))
    truth = min(n for n in alike if alike[n] > 0.95)
    assert truth > 1 and exercise.enough_copies(truth, target, image, 0.3)
    assert says(exercise.enough_copies(truth // 2, target, image, 0.3), f"{alike[truth // 2]:.3f}; more copies are needed")
    assert says(exercise.enough_copies(32, target, image, 0.3), f"but so is {truth}") or truth == 32
    assert says(exercise.enough_copies(None, target, image, 0.3), "still None")
    assert says(exercise.enough_copies(3, target, image, 0.3), "3 is none of 1, 2, 4")


# the tour


def test_a_chapter_of_the_tour(monkeypatch):
    monkeypatch.setattr(tour, "METHODS", ("smoothgrad", "gradient"))
    sizes = Sizes(saliency={"pictures": 3, "copies": 2, "steps": 2, "draws": 2})
    made = tour.chapter(emointerp.load(), Job((("joy", SCENE),), "The phone rang.", sizes=sizes))
    assert made.results["pictures"]["joy"]["target"] == "log p(joy)" and len(made.blocks) == 2
    split = made.results["test split"]
    assert split["random"]["own"] is None and split["smoothgrad"]["ratio"].n == 3
    assert f"{split['random']['ratio'].mean:.1f} [" in made.summary[0] and "deletion" in made.summary[1]
