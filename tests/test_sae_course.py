"""Chapter 02's exercises, panel and page of the tour: right answers pass, usual slips hear their own words, views show numbers."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import tiny_families
import torch
from sklearn.metrics import average_precision_score, roc_auc_score
from tiny_models import picture

import emointerp.widgets.sae  # noqa: F401 - below by its name, which the package may give to a function
from emointerp.errors import InputError
from emointerp.exercises import sae as exercise
from emointerp.models import load, load_tower
from emointerp.sae import SAE, Codes, load_sae, quality
from emointerp.sae.emotion import EmotionDirections
from emointerp.sae.signifiers import MEAN, MIX, TEST, SignifierAudit
from emointerp.start_here import EVENT
from emointerp.statistics import Interval
from emointerp.tour import Job, Sizes
from emointerp.tour import sae as tour
from emointerp.tour.chapter import number, share
from emointerp.tour.page import plain
from emointerp.tour.report import _json
from emointerp.world import face_scenes, sample

MODULE = sys.modules["emointerp.widgets.sae"]
NAMED, SAD = "sad", sample("test", 1, seed=6, emotions=("sadness",))[0].scene


def says(verdict, words: str) -> bool:
    """Whether a verdict is "not yet" and has these words."""
    return not verdict and verdict.message.startswith("Not yet: ") and words in verdict.message


# 1: scores of X are 0.5, 2, -3, 1.5, 1, 0.2, with the biases 0.5, 2, -3, 1.2, 1.4, 0.2; k is 3

ROWS = torch.tensor([[0.5, 0.0], [2.0, 0.0], [-3.0, 0.0], [1.5, 0.0], [1.0, 0.0], [0.2, 0.0]])
BIAS = torch.tensor([0.0, 0.0, 0.0, -0.3, 0.4, 0.0])
ONE = SAE(ROWS, 3, None, BIAS, torch.tensor([0.2, 0.1]))
X = torch.tensor([1.0, 0.0])


def test_a_code_by_hand():
    truth = [0.0, 2.0, 0.0, 1.2, 1.4, 0.0]
    for answer in (truth, np.array(truth), torch.tensor([truth])):
        verdict = exercise.code_by_hand(answer, ONE, X)
        assert verdict and verdict.message.startswith("Right. 3 of 6 features fire") and "is 1.00." in verdict.message
    for answer, words in (
        (None, "still None"),
        ("2", "this is a str"),
        ([1, [2, 3]], "this is a list"),
        ([2.0, 1.4, 1.2], "yours is 3; expected 6 numbers, one for each of the features: their values alone"),
        (torch.zeros(6, 2), "yours is 6 x 2; expected 6 numbers"),
        ([0.5, 2.0, 0.0, 1.2, 1.4, 0.2], "relu without the top k"),
        ([0.0, 2.0, 0.0, 0.0, 1.4, 0.0], "a strict > the k-th largest score"),
        ([0.5, 2.0, -3.0, 1.2, 1.4, 0.2], "negative ones too"),
        ([0.0, 2.0, -3.0, 0.0, 1.4, 0.0], "by their size without sign"),
        ([0.0, 1.0, 0.0, 1.0, 1.0, 0.0], "its score as its value, not 1"),
        ([0.0, 2.0, 0.0, 1.5, 1.0, 0.0], "b_enc is left out"),
        ([0.0, 1.6, 0.0, 0.9, 1.2, 0.0], "b_dec was taken off"),
        ([0.0, 9.0, 0.0, 0.0, 0.0, 0.0], "that is another code; 1 numbers of yours are not 0, and k is 3"),
    ):
        assert says(exercise.code_by_hand(answer, ONE, X), words), words


def test_a_code_by_hand_without_biases_and_with_fewer_than_k_that_fire():
    plain = SAE(ROWS[:3] * torch.tensor([[1.0], [-1.0], [1.0]]), 2)
    assert exercise.code_by_hand([0.5, 0.0, 0.0], plain, X).message.startswith("Right. 1 of 3 features fire")


# 2: codes of five pictures, two of joy, two of fear, one of anger

LABELS = ["joy", "joy", "fear", "fear", "anger"]
CODES = Codes(
    torch.tensor([[4.0, 1.0], [3.0, 2.0], [3.0, 2.0], [1.0, 1.0], [6.0, 1.0]]),
    torch.tensor([[0, 3], [3, 1], [2, 3], [3, 0], [1, 2]]),
    5,
)
DENSE = np.array([[4, 0, 0, 1, 0], [0, 2, 0, 3, 0], [0, 0, 3, 2, 0], [1, 0, 0, 1, 0], [0, 6, 1, 0, 0]], float)
JOY, FEAR, ANGER = DENSE[:2].mean(0), DENSE[2:4].mean(0), DENSE[4]
ALL = (JOY + FEAR + ANGER) / 3


def test_a_direction_by_hand():
    for answer in (JOY - ALL, torch.tensor(3 * (JOY - ALL)), JOY - (FEAR + ANGER) / 2):
        verdict = exercise.direction_by_hand(answer, CODES, LABELS, "joy")
        assert verdict and verdict.message.startswith("Right. Feature 0 weighs most; the first five features hold 100%")
    for answer, words in (
        (None, "still None"),
        (3, "this is a int"),
        (np.zeros((3, 5)), "yours is 3 x 5; expected 5 numbers, one for each of the features: give one emotion's direction"),
        (JOY, "that is the raw mean code"),
        (ALL - JOY, "the sign is turned"),
        (DENSE[:2].sum(0) - (DENSE[:2].sum(0) + DENSE[2:4].sum(0) + DENSE[4]) / 3, "those are sums"),
        ([4, 2, 0, 2, 0], "and nothing is taken off yet"),
        (np.array([4, 2, 0, 2, 0]) - ALL, "Silence counts"),
        (FEAR - ALL, "that is the direction of fear; asked is joy"),
        (np.eye(5)[4], "its cosine to the direction of joy is 0.00"),
    ):
        assert says(exercise.direction_by_hand(answer, CODES, LABELS, "joy"), words), words


# 3


@pytest.fixture(scope="module")
def noise():
    """Codes of 240 pictures, and of 240 others, on which 300 features fire at random."""
    drawn = torch.Generator().manual_seed(0)
    values, indices = torch.rand(480, 12, generator=drawn), torch.rand(480, 300, generator=drawn).argsort(1)[:, :12]
    return Codes(values[:240], indices[:240], 300), Codes(values[240:], indices[240:], 300)


def test_the_best_of_many_features_for_labels_without_meaning(noise):
    codes, others = noise
    labels = np.arange(240) < 34
    shuffled = np.random.default_rng(7).permutation(labels)
    best = max(roc_auc_score(shuffled, column) for column in codes.dense().T.numpy())
    assert 0.55 < best < 0.65
    verdict = exercise.best_by_chance(best, 0.5, codes, others, labels)
    assert verdict and "The best of 300 features has 0." in verdict.message and " and 0.50 on other pictures" in verdict.message
    for chosen, elsewhere, words in (
        (None, 0.5, "`chosen` is None"),
        (best, "no", "these are a float and a str"),
        (True, 0.5, "these are a bool"),
        (60, 0.5, "between 0 and 1; 60 and 0.5 came"),
        (0.5, 0.5, "so good would one feature be"),
        (0.53, 0.5, "Over 40 draws the luckiest had 0.5"),
        (0.9, 0.5, "Were labels shuffled?"),
        (best, best, "on pictures that did not choose, what is left?"),
    ):
        assert says(exercise.best_by_chance(chosen, elsewhere, codes, others, labels), words), words


# 4


def audited(mix: tuple[float, float, float], test: tuple[float, float, float]) -> SignifierAudit:
    """An audit whose mean row has, by set: the change, p that it costs more than random sets, p that it costs less."""
    rows = []
    for name, (change, more, less) in {MIX: mix, TEST: test}.items():
        numbers = {"difference": Interval(change, change - 0.02, change + 0.02, 700), "p costs more": more, "p costs less": less}
        rows.append({"emotion": MEAN, "set": name, "random difference": Interval(-0.03, -0.05, -0.01, 100)} | numbers)
    features = pd.DataFrame({"emotion": ["joy"], "feature": [0], "label": ["prop"], "weight": [1.0]})
    directions = EmotionDirections(("joy",), torch.ones(1, 1), (1,))
    return SignifierAudit(features, pd.DataFrame(), pd.DataFrame(rows), directions, 0.05, 100)


def test_what_it_costs_to_leave_signifiers_out():
    audit = audited((-0.2, 0.01, 1.0), (0.01, 1.0, 0.01))
    verdict = exercise.what_it_costs({MIX: "more", TEST: "less"}, audit)
    assert verdict and "train mix: more (AP -0.200 without them, -0.030 without random ones)" in verdict.message
    for answer, words in (
        (None, "give a word for each of 'train mix', 'test'"),
        ({MIX: "more"}, "give a word for each"),
        ({MIX: "much", TEST: "less"}, "'much' is none of 'more', 'the same', 'less'"),
        ({MIX: "less", TEST: "less"}, "train mix: AP -0.200 without them, -0.030 without random ones"),
        ({MIX: "more", TEST: "more"}, "test: AP +0.010 without them"),
    ):
        assert says(exercise.what_it_costs(answer, audit), words), words


def test_a_loss_that_random_features_cost_too_is_no_finding():
    audit = audited((-0.04, 0.2, 0.8), (-0.04, 0.03, 0.97))  # 0.03 is one side of two
    assert exercise.what_it_costs({MIX: "the same", TEST: "the same"}, audit)
    assert says(exercise.what_it_costs({MIX: "more", TEST: "more"}, audit), "the loss is real, but is it more than random")
    assert says(exercise.what_it_costs({MIX: "the same", TEST: "less"}, audit), "neither is below 0.025")
    with pytest.raises(InputError, match="There is no audit of 'fear'; there are joy, mean"):
        exercise.what_it_costs({MIX: "more", TEST: "more"}, audit, "fear")


# the panel


@pytest.fixture(scope="module")
def scenes():
    return face_scenes("test", 84)


@pytest.fixture(scope="module")
def panel(scenes):
    return MODULE.sae(scenes=scenes, progress=False)


def choose(panel, **values) -> str:
    """What the panel says for these values."""
    for name, value in values.items():
        panel.controls[name].value = value
    return panel.view.value


def vectors_of(scenes, patches: bool = False) -> torch.Tensor:
    """The bundled tower's vectors at length 1."""
    return torch.nn.functional.normalize(load_tower("tiny").embed(scenes, patches=patches, progress=False), dim=-1)


def dense_codes(sae: SAE, x: torch.Tensor) -> np.ndarray:
    """[picture, feature] from the formula; of patches the strongest."""
    scores = (x @ sae.encoder.T + sae.b_enc).relu()
    codes = scores * (scores >= scores.topk(sae.k).values[..., -1:])
    return (codes.amax(1) if codes.ndim == 3 else codes).numpy()


def centred_means(dense: np.ndarray, scenes) -> tuple[np.ndarray, list[str]]:
    """Each emotion's mean code less the mean of the means, and the emotions."""
    labels = np.array([scene.emotion for scene in scenes])
    means = np.stack([dense[labels == emotion].mean(0) for emotion in np.unique(labels)])
    return means - means.mean(0), np.unique(labels).tolist()


@pytest.mark.parametrize("reads", ["whole pictures", "patches"])
def test_the_circle_holds_the_features_that_stand_out_for_an_emotion(panel, scenes, reads):
    said = choose(panel, reads=reads, emotion="sadness", n=10)
    dense = dense_codes(load_sae(MODULE.BUNDLED[reads]), vectors_of(scenes, reads == "patches"))
    centred, emotions = centred_means(dense, scenes)
    above = centred[emotions.index("sadness")]
    top = np.argsort(-above)[:10]
    assert set(panel.explorer.tree["leaves"]["feature"]) == set(top.tolist())
    assert panel.explorer.selected == top[0] and f"The one that stands out most: <b>{top[0]}</b>" in said
    kinds = panel.explorer.tree["leaves"]["emotion"]
    told = [(panel.explorer.tree["emotions"][kind]["said"], kinds.count(kind)) for kind in set(kinds)]
    assert said.startswith("<p>10 features; ") and all(f"{count} go with {name}" in said for name, count in told)
    strongest = np.sort(dense[:, top[0]])[::-1][:6]
    assert [shot["caption"] for shot in panel.explorer.pictures] == [f"{value:.2f}" for value in strongest if value > 0]
    assert all((shot["heat"] is not None) == (reads == "patches") for shot in panel.explorer.pictures)


def test_all_emotions_have_a_part_of_the_circle_and_a_choice_that_comes_back_is_not_made_again(panel):
    said = choose(panel, reads="whole pictures", emotion="all", n=20)
    shown = panel.explorer
    assert len(shown.tree["leaves"]["feature"]) == 20 and said.startswith("<p>20 features")
    choose(panel, n=10)
    assert panel.explorer is not shown and len(panel.children) == 4 and panel.children[3] is panel.explorer
    choose(panel, n=20)
    assert panel.explorer is shown
    html = panel._repr_mimebundle_()["text/html"]
    assert said in html and "What emotions are made of" in html and html.count("<img") == 1 + len(shown.pictures)


def test_a_problem_is_said_in_words_and_there_is_no_circle(panel, monkeypatch):
    def refuse(read, emotion, n):
        raise InputError("1 features are left of <n>")

    with monkeypatch.context() as patched:
        patched.setattr(MODULE, "compute", refuse)
        said = choose(panel, emotion="disgust", n=160)
        assert 'role="alert"' in said and "left of &lt;n&gt;" in said
        assert panel.explorer is None and len(panel.children) == 3 and said in panel._repr_mimebundle_()["text/html"]
    assert 'role="alert"' not in choose(panel, n=10) and panel.explorer is not None


def test_what_the_panel_refuses(scenes):
    with pytest.raises(InputError, match="There is no SAE to show"):
        MODULE.sae({}, scenes=scenes)
    with pytest.raises(InputError, match="reads vectors of width 64, and those given of tiny are 192 wide"):
        MODULE.sae(SAE.random(64, 128, 4), scenes=scenes)


# the tour


@pytest.fixture(scope="module")
def told():
    """The chapter on the bundled model: a scene, and noise under a name that needs escaping."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tour, "RESAMPLES", 50)
        sizes = Sizes(sae={"direction": 210, "selection": 70, "test": 140})
        return tour.chapter(load(), Job(((NAMED, SAD), ("<noise>", picture())), EVENT, sizes=sizes))


def test_the_tour_tells_pictures_in_features_as_the_formulas_say(told):
    sae = load_sae("tiny")
    fit, test = face_scenes("direction", 210), face_scenes("test", 140)
    x = vectors_of([SAD, *test])
    dense = dense_codes(sae, x)
    centred, emotions = centred_means(dense_codes(sae, vectors_of(fit)), fit)
    cosine = dense @ centred.T / np.linalg.norm(dense, axis=1, keepdims=True) / np.linalg.norm(centred, axis=1)
    found = told.results["pictures"][NAMED]
    assert found["emotions"][0]["emotion"] == "sadness"
    for row in found["emotions"]:
        column = cosine[:, emotions.index(row["emotion"])]
        assert row["cosine"] == pytest.approx(column[0], abs=1e-4) and row["nearer than"] == (column[1:] < column[0]).mean()
    assert [row["feature"] for row in found["features"]] == np.argsort(-dense[0])[:8].tolist()
    rebuilt = torch.from_numpy(dense) @ sae.features + sae.b_dec
    kept = 1 - (x - rebuilt).square().sum(1) / (x - x[1:].mean(0)).square().sum(1)
    assert found["kept"] == pytest.approx(float(kept[0]), abs=1e-4)
    assert found["keeps less of"] == pytest.approx(float((kept[1:] < kept[0]).float().mean()))
    truth = np.array([scene.emotion for scene in test])
    aps = [average_precision_score(truth == e, cosine[1:, i]) for i, e in enumerate(emotions)]
    assert told.results["mean AP"]["SAE, centred"].mean == pytest.approx(np.mean(aps), abs=1e-4)


def test_the_tours_sentences_are_made_of_its_numbers(told):
    results, summary = told.results, told.summary
    kept, ranked = results["quality"]["explained variance"], results["mean AP"]["SAE, centred"]
    assert kept.mean == pytest.approx(quality(load_sae("tiny"), vectors_of(face_scenes("test", 140))).explained_variance, abs=1e-4)
    assert kept.low < kept.mean < kept.high
    assert f"keeps {share(kept)} of the variance of 140 test pictures" in summary[0]
    assert f"a mean AP of {number(ranked)}" in summary[1] and number(ranked) in told.plain[0][1]
    assert f"cosine {results['mean cosine of directions']['raw']:.2f} on average" in summary[2]
    assert summary[3] == "sad lies nearest to the direction of sadness."
    assert summary[4].startswith("<noise> lies nearest to") and "do not rely on it" in summary[4]  # escaped by the page
    titles, blocks = zip(*told.blocks, strict=True)
    assert titles == ("How well features rank emotions", "What emotions are made of", NAMED, "<noise>")
    assert "linear probe" in blocks[0] and "data:image/png" in blocks[1] and blocks[2].count("<table") == 2
    json.loads(_json(plain(results)))


@pytest.mark.parametrize("family", ["llava_clip", "qwen2_vl"])
def test_for_a_model_without_an_autoencoder_the_tour_says_so_and_measures_nothing(family, monkeypatch):
    def costly(*_):
        raise AssertionError("nothing should be read")

    for name in ("load_tower", "load_sae", "face_scenes"):
        monkeypatch.setattr(tour, name, costly)
    vlm = tiny_families.vlm(family)
    chapter = tour.chapter(vlm, Job((("noise", picture()),), EVENT))
    assert len(chapter.summary) == 1 and f"comes with the vision tower of {vlm.name}" in chapter.summary[0]
    assert chapter.blocks == () and chapter.results["sae"] is None and chapter.state == "left out"


@pytest.mark.parametrize(
    ("low", "high", "words"), [(0.01, 0.1, "worse than"), (-0.1, -0.01, "better than"), (-0.1, 0.1, "no worse")]
)
def test_better_or_worse_is_said_only_where_the_paired_interval_tells(low, high, words):
    rows = {name: {"mAP": Interval(0.5, 0.4, 0.6, 9), "difference": Interval(0.0, low, high, 9)} for name in tour.METHODS}
    assert words in tour._ranked_line(pd.DataFrame.from_dict(rows, orient="index"))


@pytest.mark.parametrize(("shift", "there", "elsewhere"), [(1.5, 40, 200), (0.5, 100, 100), (0.0, 30, 60)])
def test_the_interval_of_an_auroc_is_about_that_of_a_bootstrap(shift, there, elsewhere):
    rng = np.random.default_rng(0)
    labels = np.arange(there + elsewhere) < there
    values = rng.normal(size=len(labels)) + shift * labels
    drawn = [np.concatenate([rng.choice(there, there), there + rng.choice(elsewhere, elsewhere)]) for _ in range(400)]
    low, high = np.quantile([roc_auc_score(labels[some], values[some]) for some in drawn], [0.025, 0.975])
    found = tour.auroc_interval(float(roc_auc_score(labels, values)), there, elsewhere)
    assert found.low == pytest.approx(low, abs=0.03) and found.high == pytest.approx(high, abs=0.03)


def test_a_perfect_auroc_is_not_sure_and_a_factor_that_is_not_there_has_none():
    assert tour.auroc_interval(1.0, 10, 90) == Interval(1.0, 0.7, 1.0, 100)
    assert np.isnan(tour.auroc_interval(0.9, 0, 100).mean) and np.isnan(tour.auroc_interval(np.nan, 10, 10).mean)
