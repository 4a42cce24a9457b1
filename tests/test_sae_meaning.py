"""What features mean, against codes made by hand: the pictures, factors, captions and companions that must come out."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from emointerp.errors import InputError
from emointerp.models import load_tower
from emointerp.sae import Codes, meaning
from emointerp.sae.meaning import by_picture, feature_meanings, with_emotions, yes_or_no
from emointerp.world import sample

CATS, HATS, BOTH, RARE = 3, 5, 8, 11  # the planted features, of 12


def planted(n=60, seed=0):
    """Feature 3 fires for cats, 5 for hats, 8 wherever both 3 and 5 do, 11 on the first picture only; and the factors."""
    rng = np.random.default_rng(seed)
    cat, hat = rng.random(n) < 0.5, rng.random(n) < 0.4
    cat[0] = hat[0] = False
    dense = np.zeros((n, 12), np.float32)
    dense[:, CATS] = cat * (1 + rng.random(n))
    dense[:, HATS] = hat * (1 + rng.random(n))
    dense[:, BOTH] = cat * hat * (3 + rng.random(n))
    dense[0, RARE] = 1.0
    values, indices = torch.from_numpy(dense).topk(4)
    tears = np.where(hat, 0.5, 0.1)  # the median is 0.1, so that none lies below it
    return Codes(values, indices, 12), pd.DataFrame({"subject: cat": cat * 1.0, "hat: cap": hat * 1.0, "tears": tears})


@pytest.fixture(scope="module")
def features():
    (codes, factors), held = planted(), planted(200, seed=1)
    return feature_meanings(codes, factors=factors, held_out=held)


def test_planted_factors_are_the_words_of_their_features(features):
    table = features.to_frame().set_index("feature")
    assert list(table.index) == [CATS, HATS, BOTH, RARE]
    assert table.loc[CATS, ["factor", "auroc", "held out", "there", "elsewhere"]].tolist() == ["subject: cat", 1, 1, 1, 0]
    assert table.loc[CATS, "words"] == "subject cat"
    assert table.loc[HATS, "words"] == "hat cap, tears high" and table.loc[RARE, "words"] == "nothing named"
    assert set(table.loc[BOTH, "words"].split(", ")) == {"subject cat", "hat cap", "tears high"}


def test_scores_are_those_of_scikit_learn_and_of_counting(features):
    codes, factors = planted()
    other_codes, other = planted(200, seed=1)
    told = features.factors(BOTH).set_index("factor")
    fires = codes.feature(BOTH).numpy() > 0
    for name in ("subject: cat", "hat: cap"):
        assert told.loc[name, "auroc"] == pytest.approx(roc_auc_score(factors[name], codes.feature(BOTH)))
        assert told.loc[name, "held out"] == pytest.approx(roc_auc_score(other[name], other_codes.feature(BOTH)))
        assert told.loc[name, "elsewhere"] == pytest.approx(factors[name][~fires].mean())
    assert told["auroc"].is_monotonic_decreasing and told["there"].iloc[0] == 1


def test_a_feature_that_fires_everywhere_is_named_by_its_strength():
    cat = np.arange(40) < 10
    values = torch.tensor(np.where(cat, 2.0, 1.0))[:, None].float()
    codes = Codes(values, torch.zeros(40, 1, dtype=torch.long), 2)
    words = [feature_meanings(codes, factors=pd.DataFrame({"subject: cat": there})).table["words"][0] for there in (cat, ~cat)]
    assert words == ["subject cat", "nothing named"]


def test_what_fires_on_a_few_pictures_has_no_words():
    """Of 40 random factors some are on all of any three pictures, and on few others; of five pictures too, held out or not."""
    rng = np.random.default_rng(0)
    tables = [pd.DataFrame((rng.random((200, 40)) < 0.3) * 1.0).add_prefix("f") for _ in range(2)]
    dense = torch.zeros(200, 3)
    dense[[3, 50, 90], 0] = 1.0
    dense[:5, 1] = 1.0
    dense[rng.permutation(200)[:60], 2] = 1.0
    codes = Codes(*dense.topk(2), 3)
    alone = feature_meanings(codes, factors=tables[0]).to_frame()
    assert (alone["there"] - alone["elsewhere"])[0] > 0.5 and alone["words"][0] == "nothing named" != alone["words"][1]
    held = feature_meanings(codes, factors=tables[0], held_out=(codes, tables[1])).to_frame()
    assert held["words"].tolist() == ["nothing named"] * 3


def test_held_out_numbers_are_cut_where_those_that_chose_were():
    codes, factors = planted()
    shifted = factors.assign(tears=np.where(factors["hat: cap"] > 0, 0.9, 0.5))  # all above the median of those that chose
    told = feature_meanings(
        codes, factors=factors.assign(tears=factors["tears"] + 0.01 * np.arange(60) / 60), held_out=(codes, shifted)
    )
    assert np.isnan(told.factors(HATS, None).set_index("factor").loc["tears: high", "held out"])
    table = yes_or_no(shifted, like=factors)
    assert list(table) == list(yes_or_no(factors)) and table["tears: high"].all()
    assert list(yes_or_no(shifted.drop(columns="tears"), like=factors)) == ["subject: cat", "hat: cap"]


def test_each_features_companion_is_the_first_that_goes_together(monkeypatch):
    monkeypatch.setattr(meaning, "AT_ONCE", 7)
    scores = torch.randn(80, 30, generator=torch.Generator().manual_seed(0)) - torch.linspace(0, 2, 30)
    features = feature_meanings(Codes(*scores.relu().topk(6), 30))
    first = [features.together(i, 1)["feature"].tolist() for i in features.table["feature"]]
    assert features.table["with"].tolist() == [some[0] if some else -1 for some in first]
    lonely = Codes(torch.ones(2, 1), torch.tensor([[0], [1]]), 3)
    assert feature_meanings(lonely).table["with"].tolist() == [-1, -1]


def test_how_often_and_how_strongly_a_feature_fires(features):
    codes, _ = planted()
    table, there = features.to_frame().set_index("feature"), codes.feature(HATS) > 0
    assert table.loc[HATS, "fires"] == pytest.approx(there.float().mean())
    assert table.loc[HATS, "mean"] == pytest.approx(float(codes.feature(HATS)[there].mean()))


def test_top_pictures_are_in_order_of_activation(features):
    codes, _ = planted()
    top = features.top(CATS, 5)
    assert top["picture"].tolist() == codes.feature(CATS).argsort(descending=True, stable=True)[:5].tolist()
    assert top["value"].is_monotonic_decreasing and len(features.top(RARE)) == 1


def test_companions_by_lift_and_normalised_pmi():
    """Of 8 pictures feature 0 fires on 4, feature 1 on those and no others, feature 2 on half of everything."""
    rows = [[0, 1, 2], [0, 1, 2], [0, 1], [0, 1], [2], [2], [], []]
    dense = torch.zeros(8, 4)
    for row, some in zip(dense, rows, strict=True):
        row[some] = 1.0
    values, indices = dense.topk(3)
    features = feature_meanings(Codes(values, indices, 4))
    table = features.together(0).set_index("feature")
    assert table.loc[1].tolist() == [4, 2.0, 1.0]  # always and only together
    assert table.loc[2].tolist() == [2, 1.0, 0.0]  # as often as by chance
    assert features.to_frame()["with"].tolist() == [1, 0, 0]


def test_captions_are_compared_from_the_means_of_both_sides():
    """Pictures and texts point elsewhere on the whole, as in a dual encoder; only what differs within a side may count."""
    codes, factors = planted()
    cat, hat = torch.tensor(factors["subject: cat"].to_numpy()), torch.tensor(factors["hat: cap"].to_numpy())
    embeddings = torch.stack([torch.full_like(cat, 9.0), 0 * cat, cat, hat], 1).float()
    sentences = ["a cat", "a cap", "a dog"]
    texts = torch.tensor([[0.0, 9.0, 1.0, 0.0], [0.0, 9.0, 0.0, 1.0], [0.0, 9.0, -1.0, -1.0]])
    features = feature_meanings(codes, factors=factors, embeddings=embeddings, captions=(sentences, texts))
    assert features.captions(CATS, 1)["caption"].tolist() == ["a cat"]
    assert features.captions(HATS, 1)["caption"].tolist() == ["a cap"]
    assert features.captions(RARE, 1)["caption"].tolist() == ["a dog"]
    assert features.to_frame().set_index("feature").loc[HATS, "captions"].startswith("a cap; ")
    centred = embeddings / embeddings.norm(dim=1, keepdim=True)
    mean = (centred - centred.mean(0))[codes.feature(CATS) > 0].mean(0)
    told = texts / texts.norm(dim=1, keepdim=True)
    expected = torch.cosine_similarity((told - told.mean(0))[:1], mean[None])
    assert features.captions(CATS, 1)["cosine"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_picture_counts_by_its_strongest_patch():
    dense = torch.zeros(2, 3, 6)  # picture, patch, feature
    dense[0, 1, 4], dense[0, 2, 4], dense[0, 0, 2] = 1.0, 3.0, 2.0
    dense[1, 0, 5] = 0.5
    values, indices = dense.topk(2)
    codes, places = by_picture(Codes(values, indices, 6))
    assert torch.equal(codes.dense(), dense.amax(1))
    assert codes.values.tolist() == [[3.0, 2.0], [0.5, 0.0]] and places[0].tolist() == [2, 0] and places[1, 0] == 0
    assert feature_meanings(Codes(values, indices, 6)).top(4).to_dict("list") == {"picture": [0], "value": [3.0], "patch": [2]}


def test_numbers_are_split_at_the_median_and_what_hardly_varies_is_left_out():
    table = pd.DataFrame({"curve": np.arange(100.0), "glasses": [1.0] * 40 + [0.0] * 60, "rare": [1.0] + [0.0] * 99})
    split = yes_or_no(table)
    assert list(split) == ["curve: high", "curve: low", "glasses"]
    assert split["curve: high"].tolist() == [0.0] * 50 + [1.0] * 50 and split["curve: low"].sum() == 50


def test_emotions_are_kept_apart_from_factors():
    codes, factors = planted()
    felt = np.where(factors["subject: cat"] > 0, "joy", "fear")
    table = feature_meanings(codes, factors=with_emotions(factors, felt.tolist())).to_frame().set_index("feature")
    assert table.loc[CATS, ["emotion", "emotion auroc", "factor"]].tolist() == ["joy", 1, "subject: cat"]
    assert np.isnan(table.loc[CATS, "emotion, held out"])


def test_the_sheet_shows_top_pictures_and_frames_the_patch():
    scenes = [e.scene for e in sample("test", 3)]
    dense = torch.zeros(3, 64, 4)
    dense[1, 9, 2], dense[2, 63, 2] = 2.0, 1.0
    values, indices = dense.topk(2)
    features = feature_meanings(Codes(values, indices, 4), scenes, factors=pd.DataFrame({"$x_a": [0, 1, 1]}))
    figure = features.plot(2, tower=load_tower("tiny"))
    assert [axis.get_title() for axis in figure.axes[:3]] == ["2", "1", ""]
    assert (figure.axes[0].images[0].get_array() == scenes[1].pixels()).all()
    (frame,) = figure.axes[0].patches
    assert (frame.get_x(), frame.get_y(), frame.get_width()) == (16.0, 16.0, 16.0)  # patch 9 of 8 x 8: second row, second column
    assert "Feature 2" in figure.get_suptitle() and r"\$x a" in figure.get_suptitle()
    figure.draw_without_rendering()


def test_what_cannot_be_told_is_said(features):
    codes, factors = planted()
    with pytest.raises(InputError, match="There is no feature 12; this SAE has features 0 to 11"):
        features.top(12)
    with pytest.raises(InputError, match="Feature 0 fires on none of these 60 pictures"):
        features.together(0)
    with pytest.raises(InputError, match="There are codes of 60 pictures and 59 rows of factors"):
        feature_meanings(codes, factors=factors[1:])
    with pytest.raises(InputError, match="give `embeddings` too"):
        feature_meanings(codes, captions=(["a"], torch.ones(1, 4)))
    with pytest.raises(InputError, match=r"1 captions came with vectors of shape \[1, 3\], for pictures' vectors of width 4"):
        feature_meanings(codes, embeddings=torch.randn(60, 4), captions=(["a"], torch.ones(1, 3)))
    with pytest.raises(InputError, match="No captions were given"):
        features.captions(CATS)
    with pytest.raises(InputError, match="No factors were given"):
        feature_meanings(codes).factors(CATS)
    with pytest.raises(InputError, match="No pictures were given"):
        features.plot(CATS)
    with pytest.raises(InputError, match="None of the 1 factors varies"):
        feature_meanings(codes, factors=pd.DataFrame({"x": np.ones(60)}))
    with pytest.raises(InputError, match="have 11 features and the others 12: two SAEs"):
        other = Codes(codes.values[:, :1], torch.zeros(60, 1, dtype=torch.long), 11)
        feature_meanings(codes, factors=factors, held_out=(other, factors))
    with pytest.raises(InputError, match="There are 59 emotions and 60 rows"):
        with_emotions(factors, ["joy"] * 59)
