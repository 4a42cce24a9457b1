"""The signifier audit against a hand-made tower whose features are known to read faces, props or weather, and pixel by pixel."""

from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity
from torch import nn

from emointerp.emotions import BASIC
from emointerp.errors import InputError
from emointerp.models import Tower
from emointerp.sae import SAE
from emointerp.sae.signifiers import (
    FACTORS,
    MEAN,
    MIX,
    SIGNIFIERS,
    TEST,
    _compared,
    _distinct,
    _label,
    _matched,
    _removed,
    changed,
    mixed_scenes,
    signifier_audit,
)
from emointerp.world import Scene, face_scenes, identity
from emointerp.world.face import PEOPLE
from emointerp.world.setting import SIGNIFIERS as THINGS

FACES = {emotion: i for i, emotion in enumerate((*BASIC, "neutral"))}
READERS = {"joy things": 7, "fear things": 8, "anger things": 9, "rain": 10, "sunny": 11, "beach": 12, "blue": 13, "cat": 14}
D = 16  # the last is always on


def reading(scene: Scene) -> list[float]:
    """What the hand-made tower sees: the face if it is clear enough, and what stands around it."""
    x = [0.0] * D
    clear = scene.intensity > 0.5
    x[FACES[scene.emotion if clear else "neutral"]] = scene.intensity if clear else 1.0
    x[D - 1] = 1.0
    for emotion in ("joy", "fear", "anger"):
        x[READERS[f"{emotion} things"]] = 1.0 * sum(THINGS.get(thing) == emotion for thing in scene.things)
    for name, there in (("rain", scene.weather), ("sunny", scene.weather), ("beach", scene.place)):
        x[READERS[name]] = float(there == name)
    x[READERS["blue"]], x[READERS["cat"]] = float(scene.clothes == "blue"), float(scene.subject == "cat")
    return x


class Reader(Tower):
    """A tower that is told what is in a scene, without drawing it."""

    def pixels(self, pictures):
        return torch.tensor([reading(scene) for scene in pictures])[:, None, None]


def hand_made(weak_faces: float = 1.0):
    tower = Reader(
        "hand-made", D, D, 1, nn.Linear(1, 1), reading, lambda x: x[:, 0, 0], lambda x: x[:, 0], lambda size: np.zeros((1, 4))
    )
    scale = torch.ones(D)
    scale[:7] = weak_faces
    return SAE(torch.diag(scale), D), tower


@pytest.fixture(scope="module")
def audit():
    return signifier_audit(*hand_made(0.3), fit=800, scenes=60, ranked=800, draws=30, flips=2000, progress=False)


# one factor at a time


ALLOWED = {
    "face": {"expression", "emotion", "mode", "intensity"},
    "prop": {"things"},
    "weather": {"weather"},
    "place": {"place"},
    "clothes": {"clothes", "hat"},
    "subject": {"subject", "skin"},
}


@pytest.mark.parametrize("factor", FACTORS)
def test_one_factor_changes_and_nothing_else(factor):
    scenes = mixed_scenes(150, seed=3)
    moved = 0
    for scene in scenes:
        other = changed(scene, factor, seed=1)
        differs = {f.name for f in fields(Scene) if getattr(scene, f.name) != getattr(other, f.name)}
        assert differs <= ALLOWED[factor]
        assert changed(scene, factor, seed=1) == other
        moved += bool(differs)
        other.pixels()  # it can be drawn
    assert moved > 20
    if factor in ("place", "subject"):
        assert moved == len(scenes)
    if factor == "clothes":
        assert moved == sum(scene.subject in PEOPLE for scene in scenes)


@pytest.mark.parametrize("factor", ["face", "prop", "weather", "place"])
def test_every_pixel_that_the_change_does_not_cover_stays(factor):
    for scene in mixed_scenes(60, seed=5):
        differs = (scene.pixels() != changed(scene, factor).pixels()).any(2)
        if factor == "place":  # the edge of the face is blended with what is behind it
            assert differs[scene.masks()["face"]].mean() < 0.2
        else:
            assert not (differs & ~covered(scene, factor)).any()


def covered(scene: Scene, factor: str) -> np.ndarray:
    """Where an expression, props or weather may touch the picture."""
    masks = scene.masks()
    names = {"face": ["expression"], "prop": [t for t in scene.things if t in THINGS], "weather": [scene.weather]}[factor]
    return np.any([np.zeros((128, 128), bool), *(masks[name] for name in names if name in masks)], axis=0)


def test_what_cannot_be_changed_is_refused():
    with pytest.raises(InputError, match="no factor 'light'; there are face, prop"):
        changed(Scene(), "light")
    with pytest.raises(InputError, match="abstract mood"):
        changed(Scene(style="mood", emotion="joy"), "face")


def test_parts_of_the_mix_share_no_identity():
    found = {part: {identity(s) for s in mixed_scenes(200, 0, part)} for part in ("fit", "audit", "ranked")}
    assert not found["fit"] & found["audit"] and not found["fit"] & found["ranked"] and not found["audit"] & found["ranked"]
    joys = mixed_scenes(40, 0, "audit", "joy")
    assert {s.emotion for s in joys} == {"joy"} and mixed_scenes(40, 0, "audit", "joy") == joys
    own = np.mean([any(THINGS.get(t) == "joy" for t in s.things) for s in joys])
    assert own > 0.15  # signifiers go with emotions here
    with pytest.raises(InputError, match="no part 'test' of the training mix; there are fit, audit, ranked"):
        mixed_scenes(1, 0, "test")
    with pytest.raises(InputError, match="no emotion 'bogus' in the training mix; there are anger, .*neutral"):
        mixed_scenes(1, emotion="bogus")


# labels


def test_each_reader_is_found_out(audit):
    found = {(e, f): label for e in audit.emotions for label, some in audit.labels(e).items() for f in some}
    for emotion in BASIC:
        assert found[emotion, FACES[emotion]] == "face"
    for emotion, reader, factor in (
        ("joy", "joy things", "prop"),
        ("fear", "fear things", "prop"),
        ("anger", "anger things", "prop"),
        ("joy", "sunny", "weather"),
        ("sadness", "rain", "weather"),
    ):
        assert found[emotion, READERS[reader]] == factor
    never = {READERS[name] for name in ("beach", "blue", "cat")} | {D - 1}
    assert {label for (_, feature), label in found.items() if feature in never} <= {"none"}


def test_shares_are_the_formula_written_out(audit):
    sae, tower = hand_made(0.3)

    def codes(scenes):
        return sae.encode(tower.pooled(tower.pixels(scenes))).dense().double().numpy()

    told = mixed_scenes(800, 0)
    z, emotions = codes(told), np.array([s.emotion for s in told])
    means = {e: z[emotions == e].mean(0) for e in FACES}
    c = means["joy"] - np.mean(list(means.values()), axis=0)
    scenes = mixed_scenes(60, 0, "audit", "joy")
    rows = audit.features[audit.features.emotion == "joy"].set_index(["factor", "feature"])
    for factor in FACTORS:
        went = codes(scenes).mean(0) - codes([changed(s, factor, 0) for s in scenes]).mean(0)
        for feature in (FACES["joy"], READERS["joy things"], READERS["sunny"]):
            row = rows.loc[factor, feature]
            assert row["share"] == pytest.approx(c[feature] * went[feature] / (c @ c), abs=1e-6)
            assert row["low"] <= row["share"] <= row["high"]
        total = audit.totals.set_index(["emotion", "factor"]).loc["joy", factor]
        assert total.share.mean == pytest.approx(c @ went / (c @ c), abs=1e-6)
        assert total.scenes == sum(changed(s, factor, 0) != s for s in scenes)
    assert rows.loc["prop", FACES["joy"]].share == 0 and rows.loc["face", READERS["sunny"]].share == 0


def test_composition_adds_up(audit):
    parts = audit.composition()
    assert parts.sum(axis=1).to_numpy() == pytest.approx(1) and (parts.to_numpy() > -1e-9).all()
    direction = audit.directions.vector("joy").numpy()
    props = audit.labels("joy")["prop"]
    assert parts.loc["joy", "prop"] == pytest.approx(sum(direction[f] ** 2 for f in props) / (direction @ direction), abs=1e-5)
    wide = audit.to_frame().set_index(["emotion", "feature"])
    assert wide.loc[("joy", READERS["sunny"]), "label"] == "weather" and wide.loc[("joy", READERS["sunny"]), "weather"] > 0


def test_the_largest_share_that_passes_gives_the_label():
    shares = np.zeros((len(FACTORS), 4))
    p = np.ones_like(shares)
    shares[:2, 0], p[:2, 0] = (0.1, 0.3), (0.01, 0.2)  # the larger does not pass
    shares[:2, 1], p[:2, 1] = (0.1, 0.3), 0.01
    shares[4, 2], p[4, 2] = -0.5, 0.001  # the wrong way
    assert _label(shares, p, 0.05).tolist() == ["face", "prop", "none", "none"]


# ranking without


def test_taking_signifiers_out_costs_where_they_go_with_emotions_and_helps_where_they_do_not(audit):
    rows = audit.ranking.set_index(["set", "emotion"])
    assert rows.loc[(MIX, MEAN), "difference"].high < 0 < rows.loc[(TEST, MEAN), "difference"].low
    assert rows.loc[(TEST, "sadness"), "p costs less"] < 0.05  # the others' signifiers outweigh all other features
    assert np.isnan(rows.loc[(TEST, MEAN), "p costs less"])
    assert rows.loc[(TEST, "joy"), "features"] == len([f for kind in SIGNIFIERS for f in audit.labels("joy").get(kind, [])])


def test_ap_is_scikit_learns_of_the_cut_direction(audit):
    sae, tower = hand_made(0.3)
    scenes = face_scenes("test", 800, 0)
    z = sae.encode(tower.pooled(tower.pixels(scenes))).dense().numpy()
    c = audit.directions.vector("fear").numpy()
    cut = c.copy()
    cut[[f for kind in SIGNIFIERS for f in audit.labels("fear").get(kind, [])]] = 0
    truth = np.array([s.emotion == "fear" for s in scenes])
    row = audit.ranking.set_index(["set", "emotion"]).loc[(TEST, "fear")]
    whole, without = (average_precision_score(truth, cosine_similarity(z, v[None])[:, 0].astype(np.float32)) for v in (c, cut))
    assert (row.whole, row.without) == pytest.approx((whole, without), abs=2e-3)  # ties that rounding breaks
    assert row.difference.mean == pytest.approx(row.without - row.whole)
    assert row.removed == pytest.approx(1 - (cut @ cut) / (c @ c), abs=1e-5)


def test_random_sets_weigh_as_much():
    rng = np.random.default_rng(0)
    squares = rng.exponential(1.0, 200)
    sets = [_matched(squares, 10.0, rng) for _ in range(20)]
    assert all(9.0 <= squares[some].sum() <= 11.0 and len(set(some)) == len(some) for some in sets)
    assert len({tuple(sorted(some)) for some in sets}) == 20
    assert _matched(squares, 0.0, rng) == []


def test_where_signifiers_outweigh_the_rest_there_is_no_rank(audit):
    rows = pd.DataFrame({"emotion": "joy", "feature": [3, 1, 4, 2], "weight": [3.0, 2.0, 1.0, 0.5]})
    rows["label"] = ["prop", "weather", "face", "none"]
    sets = _removed(rows, audit.directions, 20, 0)["joy"]
    assert sets[0].tolist() == [3, 1] and all(set(some) == {4, 2} for some in sets[1:]) and _distinct([sets]) == 1
    aps, random = (np.linspace(0.7, 0.8, 11), np.linspace(0.5, 0.6, 11)), np.full(20, -0.05)
    heavy, equal = (_compared(*aps, random, 40, 0.9, other) for other in (0.08, 0.85))
    assert np.isnan([heavy["p costs more"], heavy["p costs less"]]).all() and heavy["random removed"] == 0.08
    assert (equal["p costs more"], equal["p costs less"]) == (1 / 21, 1.0)
    table = audit.ranking
    far = (table["random removed"] - table.removed).abs() > 0.1 * table.removed
    assert (table["p costs more"].isna() == far).all() and (table["p costs less"].isna() == far).all()
    assert table.distinct.between(1, audit.draws).all()


def test_distinct_sets_of_several_emotions_are_told_apart_together():
    a, b = np.array([1]), np.array([2])
    assert _distinct([[a, a, b, a, b], [b, a, a, b, b]]) == 4 and _distinct([[a, a, b], [b, a, a]]) == 2
    assert _distinct([[a, np.array([1, 2]), np.array([2, 1])]]) == 1


def test_figures_say_what_they_show(audit):
    figure = audit.plot()
    assert [axis.get_title() for axis in figure.axes] == ["What a direction is made of", "What changes it"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == list(BASIC)
    assert len(figure.axes[0].patches) == 6 * 8  # emotions times labels
    assert [axis.get_title() for axis in audit.plot_ranking().axes] == ["Where signifiers go with emotions", "Where they do not"]


def test_bad_questions_are_refused(audit):
    with pytest.raises(InputError, match="No scene of the 30 to fit shows awe"):
        signifier_audit(*hand_made(), emotions=["awe"], fit=30, progress=False)
    with pytest.raises(InputError, match="This SAE reads patches"):
        signifier_audit(SAE(torch.eye(D), 4, about={"reads": "patches"}), hand_made()[1], progress=False)
    with pytest.raises(InputError, match="no audit of 'neutral'; there are anger"):
        audit.labels("neutral")
    with pytest.raises(InputError, match="reads vectors of width 5, and those given of hand-made are 16 wide"):
        signifier_audit(SAE.random(5, 8, 2), hand_made()[1], fit=60, progress=False)
    for name in ("fit", "scenes", "ranked", "draws"):
        with pytest.raises(InputError, match=f"{name} is 0; expected 1 or more"):
            signifier_audit(*hand_made(), **{name: 0}, progress=False)
