"""Emotion directions against dense arithmetic written out, scikit-learn's cosine and average precision, and a probe by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler

from emointerp.errors import InputError
from emointerp.models import load_tower
from emointerp.sae import SAE, Codes
from emointerp.sae.emotion import (
    STRENGTHS,
    Labelled,
    check_apart,
    emotion_directions,
    emotion_scores,
    label_table,
    resampled,
    weighted_ap,
)
from emointerp.world import face_scenes

EMOTIONS = ["fear", "joy", "sadness"]


def random_codes(n=40, k=4, d=30, seed=0):
    rng = np.random.default_rng(seed)
    indices = np.stack([rng.permutation(d)[:k] for _ in range(n)])
    return Codes(torch.from_numpy(rng.random((n, k)).astype(np.float32)), torch.from_numpy(indices), d)


def random_labels(n=40, seed=0, share=0.4):
    table = (np.random.default_rng(seed).random((n, 3)) < share).astype(float)
    return pd.DataFrame(table, columns=EMOTIONS)


def planted(n, seed, noise=1.0, d=12):
    """Vectors that hold a shared part, one direction an emotion (several may be there), and noise."""
    rng = np.random.default_rng(seed)
    labels = random_labels(n, seed, 0.3)
    vectors = 4 * np.eye(d)[0] + labels.to_numpy() @ np.eye(d)[1:4] + noise * 0.3 * rng.standard_normal((n, d))
    return Labelled(torch.from_numpy(vectors).float(), labels)


# labels


def test_words_become_a_table():
    assert label_table(["joy", "fear", "joy"]).to_dict("list") == {"fear": [0, 1, 0], "joy": [1, 0, 1]}
    assert label_table([["joy", "fear"], [], ("joy",)]).to_dict("list") == {"fear": [1, 0, 0], "joy": [1, 0, 1]}


def test_labels_that_are_no_labels_are_refused():
    with pytest.raises(InputError, match="labels of 'joy' hold 2.0; expected 0 or 1"):
        label_table(pd.DataFrame({"joy": [0, 2.0]}))
    with pytest.raises(InputError, match="0 rows and 1 emotions"):
        label_table(pd.DataFrame({"joy": []}))
    with pytest.raises(InputError, match="No picture is labelled sadness"):
        emotion_directions(torch.ones(2, 3), pd.DataFrame({"joy": [1, 1], "sadness": [0, 0]}))
    with pytest.raises(InputError, match="There are 2 pictures and 3 rows of labels"):
        emotion_directions(torch.ones(2, 3), ["joy", "fear", "joy"])


# directions


def test_directions_are_means_of_codes_over_all_pictures_that_have_the_label():
    codes, labels = random_codes(), random_labels()
    found, dense = emotion_directions(codes, labels), codes.dense().numpy()
    for i, emotion in enumerate(EMOTIONS):
        mean = np.mean([row for row, there in zip(dense, labels[emotion], strict=True) if there], axis=0)
        assert np.allclose(found.means[i], mean, atol=1e-6)
        others = np.mean([dense[labels[e] == 1].mean(0) for e in EMOTIONS], axis=0)
        assert np.allclose(found.vector(emotion), mean - others, atol=1e-6)
    assert found.n == tuple(int(labels[e].sum()) for e in EMOTIONS)
    assert np.allclose(emotion_directions(codes.dense(), labels).means, found.means, atol=1e-6)


@pytest.mark.parametrize("centred", [True, False])
def test_scores_are_cosines_and_ranking_follows_them(centred):
    codes, labels = random_codes(), random_labels()
    found = emotion_directions(codes, labels)
    expected = cosine_similarity(codes.dense().numpy(), found.vectors(centred).numpy())
    assert np.allclose(found.scores(codes, centred), expected, atol=1e-5)
    assert np.allclose(found.scores(codes.dense(), centred), expected, atol=1e-5)
    assert found.rank(codes, "joy", 5, centred).tolist() == np.argsort(-expected[:, 1], kind="stable")[:5].tolist()


def test_a_picture_on_which_nothing_fires_scores_nothing():
    codes = Codes(torch.tensor([[0.0, 0.0], [1.0, 0.5]]), torch.tensor([[0, 1], [0, 1]]), 3)
    assert emotion_directions(codes, ["joy", "fear"]).scores(codes)[0].tolist() == [0, 0]


def test_codes_are_never_made_dense():
    d = 2_000_000
    codes = random_codes(2000, 4, 30)
    codes = Codes(codes.values, codes.indices * (d // 30), d)  # as a dense matrix 16 GB
    labels = random_labels(2000)
    found = emotion_directions(codes, labels)
    small = emotion_directions(random_codes(2000, 4, 30), labels)
    assert found.means.shape == (3, d)
    assert np.allclose(found.scores(codes), small.scores(random_codes(2000, 4, 30)), atol=1e-5)


def test_raw_means_collapse_and_centred_ones_do_not():
    part = planted(400, 1)
    found = emotion_directions(part.vectors, part.labels)
    raw, centred = found.vectors(False).numpy(), found.vectors().numpy()
    for vectors, kind in ((raw, False), (centred, True)):
        pairs = [cosine_similarity(vectors)[i, j] for i in range(3) for j in range(i)]
        assert found.mean_cosine(kind) == pytest.approx(np.mean(pairs), abs=1e-5)
    assert found.mean_cosine(False) > 0.9 and found.mean_cosine() == pytest.approx(-0.5, abs=0.05)  # three that sum to nothing
    frame = found.to_frame().set_index("emotion")
    assert frame["cosine, raw"].mean() == pytest.approx(found.mean_cosine(False), abs=1e-5)
    assert frame.n.tolist() == part.labels.sum().tolist()
    titles = [axis.get_title() for axis in found.plot().axes[:2]]
    assert titles == [f"Raw: mean cosine {found.mean_cosine(False):.2f}", f"Centred: mean cosine {found.mean_cosine():.2f}"]


def test_top_features_by_hand():
    codes = Codes(torch.tensor([[3.0, 1.0], [1.0, 1.0], [2.0, 1.0]]), torch.tensor([[7, 2], [7, 2], [4, 2]]), 9)
    table = emotion_directions(codes, ["joy", "joy", "fear"]).top_features("joy", 2)
    assert table.feature.tolist()[0] == 7 and table["weight"].tolist()[0] == 1.0  # mean 2 less (2 + 0) / 2
    assert table[["mean", "elsewhere", "share"]].iloc[0].tolist() == [2, 1, 0.5]  # feature 4 has the other half


def test_questions_that_have_no_answer_are_refused():
    one = emotion_directions(torch.ones(2, 3), ["joy", "joy"])
    with pytest.raises(InputError, match="There is one emotion, joy; centring needs two"):
        one.vectors()
    with pytest.raises(InputError, match="cosines need two or more"):
        one.mean_cosine(False)
    assert one.scores(torch.ones(1, 3), centred=False) == pytest.approx(1)
    with pytest.raises(InputError, match="no direction of 'anger'; there are joy"):
        one.vector("anger", centred=False)
    with pytest.raises(InputError, match="The pictures have 4 features and the directions 3"):
        one.scores(torch.ones(1, 4), centred=False)
    with pytest.raises(InputError, match="codes are 2 x 5 x 1; expected one a picture"):
        emotion_directions(Codes(torch.ones(2, 5, 1), torch.zeros(2, 5, 1, dtype=torch.long), 3), ["joy", "fear"])


# average precision


def test_weighted_average_precision_is_scikit_learns():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (50, 3)).astype(float)  # many ties
    labels = random_labels(50).to_numpy()
    weights = rng.integers(0, 4, (250, 50)).astype(np.float32)
    found = weighted_ap(scores, labels, weights)
    for r in (0, 7, 249):
        for j in range(3):
            expected = average_precision_score(labels[:, j], scores[:, j], sample_weight=weights[r])
            assert found[r, j] == pytest.approx(expected, abs=1e-9)
    nothing = weighted_ap(scores, labels, (1 - labels[:, :1].T).astype(np.float32))
    assert np.isnan(nothing[0, 0]) and not np.isnan(nothing[0, 1])


def test_pictures_of_one_name_are_drawn_together():
    counts = resampled(["a", "b", "a", "c", "b"], 200, 0)
    assert (counts[:, 0] == counts[:, 2]).all() and (counts[:, 1] == counts[:, 4]).all()
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all() and counts.std() > 0
    assert np.array_equal(resampled(3, 5, 1), resampled(["x", "y", "z"], 5, 1))


# the table


@pytest.fixture(scope="module")
def parts():
    return planted(300, 1), planted(150, 2), planted(200, 3)


@pytest.fixture(scope="module")
def sae():
    return SAE.random(12, 64, 6, tied=True, biases=False)


@pytest.fixture(scope="module")
def result(parts, sae):
    return emotion_scores(*parts, sae, resamples=300)


def unit(part):
    return part.vectors / part.vectors.norm(dim=1, keepdim=True)


def test_the_table_is_what_scikit_learn_says_of_each_method(parts, sae, result):
    fit, _, test = parts
    codes, held = sae.encode(fit.vectors), sae.encode(test.vectors)
    assert result.methods == ["SAE, centred", "SAE, raw", "dense mean, centred", "dense mean, raw", "linear probe"]
    for name, x, asked in (("SAE", codes.dense(), held.dense()), ("dense mean", unit(fit), unit(test))):
        x, asked = x.numpy(), asked.numpy()
        means = np.stack([x[fit.labels[e] == 1].mean(0) for e in EMOTIONS])
        for kind, directions in ((", raw", means), (", centred", means - means.mean(0))):
            rows = result.table[result.table.method == name + kind].set_index("emotion")
            said = cosine_similarity(asked, directions)
            for j, emotion in enumerate(EMOTIONS):
                assert rows.ap[emotion] == pytest.approx(average_precision_score(test.labels[emotion], said[:, j]), abs=1e-4)
    rows = result.to_frame().drop_duplicates("emotion").set_index("emotion")
    assert rows.prevalence.to_dict() == pytest.approx(test.labels.mean().to_dict())
    assert rows.n.to_dict() == test.labels.sum().to_dict() and result.pictures == 200
    assert (result.table.low <= result.table.ap).all() and (result.table.ap <= result.table.high).all()


def test_the_probe_is_chosen_on_the_selection_part(parts, result):
    fit, selection, test = parts
    scaler = StandardScaler().fit(unit(fit))
    x, chosen_on, asked = (scaler.transform(unit(part)) for part in parts)
    maps, aps = {}, {}
    for C in STRENGTHS:
        models = [LogisticRegression(C=C, max_iter=300).fit(x, fit.labels[e]) for e in EMOTIONS]
        said = [model.decision_function(chosen_on) for model in models]
        maps[C] = np.mean([average_precision_score(selection.labels[e], s) for e, s in zip(EMOTIONS, said, strict=True)])
        said = [model.decision_function(asked) for model in models]
        aps[C] = [average_precision_score(test.labels[e], s) for e, s in zip(EMOTIONS, said, strict=True)]
    best = max(maps, key=maps.get)
    assert result.strength == best
    assert result.table[result.table.method == "linear probe"].ap.tolist() == pytest.approx(aps[best], abs=1e-6)


def test_differences_are_paired(parts, result):
    summary = result.summary()
    maps = result.table.groupby("method").ap.mean()
    for i, method in enumerate(result.methods):
        assert summary.mAP[method].mean == pytest.approx(maps[method])
        if i:
            assert summary.difference[method].mean == pytest.approx(maps[method] - maps["SAE, centred"])
            drawn = result.draws[:, i].mean(1) - result.draws[:, 0].mean(1)
            assert summary.difference[method].low == pytest.approx(np.quantile(drawn, 0.025))
    wide = summary.mAP["linear probe"].high - summary.mAP["linear probe"].low
    same = emotion_scores(*parts, SAE(torch.eye(12), 12, b_enc=torch.full((12,), 50.0), about={"unit": True}), resamples=99)
    twins = same.summary().difference["dense mean, centred"]
    assert twins.high - twins.low < wide  # nearly the same ranking: paired, the difference hardly varies
    assert summary.mAP["chance"].mean == pytest.approx(parts[2].labels.mean().mean())


def test_without_an_sae_the_dense_mean_is_what_others_are_compared_with(parts):
    found = emotion_scores(*parts, resamples=50)
    assert found.methods == ["dense mean, centred", "dense mean, raw", "linear probe"] and list(found.directions) == ["dense mean"]
    assert found.summary().difference["linear probe"].mean == pytest.approx(
        found.summary().mAP["linear probe"].mean - found.summary().mAP["dense mean, centred"].mean
    )


def test_an_emotion_that_a_part_lacks_is_left_out_and_named(parts, sae):
    fit, selection, test = parts
    none = Labelled(selection.vectors, selection.labels.assign(fear=0.0))
    found = emotion_scores(fit, none, test, sae, resamples=20)
    assert found.left_out == ("fear",) and found.emotions == ["joy", "sadness"]
    with pytest.raises(InputError, match="No emotion is shown by some pictures of each part"):
        emotion_scores(fit, Labelled(selection.vectors, selection.labels * 0), test, sae)
    with pytest.raises(InputError, match="different emotions: fear are not in all"):
        emotion_scores(fit, Labelled(selection.vectors, selection.labels[["joy", "sadness"]]), test, sae)


def test_vectors_are_brought_to_length_1_where_the_sae_wants_that(parts):
    of_length_1 = SAE(torch.eye(12), 12, about={"unit": True})
    longer = [Labelled(part.vectors * torch.linspace(1, 9, len(part.labels))[:, None], part.labels) for part in parts]
    plain, scaled = (emotion_scores(*some, of_length_1, resamples=20).table.ap.to_numpy() for some in (parts, longer))
    assert np.allclose(plain, scaled, atol=1e-3)


def test_means_and_probe_are_the_same_beside_any_sae(parts):
    """Raw vectors of other lengths go to an SAE that reads them so; what it is compared with does not change by it."""
    longer = [Labelled(part.vectors * torch.linspace(1, 9, len(part.labels))[:, None], part.labels) for part in parts]
    saes = (None, SAE(torch.eye(12), 4), SAE(torch.eye(12), 4, about={"unit": True}))
    tables = [emotion_scores(*longer, sae, resamples=20).table.set_index(["method", "emotion"]).ap for sae in saes]
    for table in tables[1:]:
        pd.testing.assert_series_equal(table.loc[tables[0].index], tables[0])


def test_intervals_of_the_mean_are_over_resamples_that_show_every_emotion(parts, sae):
    fit, selection, test = parts
    rare = test.labels.assign(joy=(np.arange(200) == 5) * 1.0)  # in 37% of the resamples its picture is not drawn
    found = emotion_scores(fit, selection, Labelled(test.vectors, rare), sae, resamples=300)
    whole = ~np.isnan(found.draws[:, 0, 1])
    assert found.complete == whole.sum() and 0.5 < found.complete / 300 < 0.75
    assert emotion_scores(*parts, sae, resamples=30).complete == 30
    said = found.summary()
    assert said.mAP["SAE, centred"].high == pytest.approx(np.quantile(found.draws[whole, 0].mean(1), 0.975))
    nothing = replace(found, draws=np.full_like(found.draws, np.nan)).summary()
    assert np.isnan(nothing.difference["linear probe"].low) and nothing.mAP["linear probe"].mean == said.mAP["linear probe"].mean


def test_the_plot_says_what_was_ranked(result):
    axis = result.plot().axes[0]
    assert axis.get_title() == "Ranking 200 held-out pictures by emotion"
    assert {text.get_text() for text in axis.get_yticklabels()} == set(EMOTIONS)


# pictures on both sides


def test_the_same_pictures_on_both_sides_are_refused(parts, sae):
    fit, selection, test = parts
    with pytest.raises(
        InputError, match="200 of the 200 pictures of 'test' are also in 'fit' .number 0, number 1, number 2.; keep"
    ):
        emotion_scores(test, selection, test, sae)
    named = Labelled(fit.vectors, fit.labels, tuple(f"a{i}" for i in range(300)))
    other = Labelled(test.vectors, test.labels, ("a7", *(f"b{i}" for i in range(199))))
    with pytest.raises(InputError, match="1 of the 200 pictures of 'test' are also in 'fit' .a7."):
        check_apart(fit=named, test=other)
    check_apart(fit=fit, selection=selection, test=test)


def test_parts_that_do_not_fit_are_refused(parts, sae):
    fit, selection, test = parts
    with pytest.raises(InputError, match="There are 1 names and 300 pictures"):
        Labelled(fit.vectors, fit.labels, ("a",))
    with pytest.raises(InputError, match="reads vectors of width 5, and those given are 12 wide"):
        emotion_scores(fit, selection, test, SAE.random(5, 8, 2))
    with pytest.raises(InputError, match="reads patches; emotion directions are of whole pictures"):
        emotion_scores(fit, selection, test, SAE(torch.eye(12), 2, about={"reads": "patches"}))


# the drawn world


def test_scenes_bring_their_emotion_and_identity():
    scenes = face_scenes("test", 14)
    found = Labelled.of_scenes(load_tower("tiny"), scenes, progress=False)
    assert found.vectors.shape == (14, 192) and all(scene.has_face for scene in scenes)
    assert [found.labels.columns[i] for i in found.labels.to_numpy().argmax(1)] == [scene.emotion for scene in scenes]
    assert all(scene.subject in name for scene, name in zip(scenes, found.names, strict=True))
    assert found.some([3, 1]).names == (found.names[3], found.names[1])
    mask = np.arange(len(found.labels)) % 2 == 1
    assert found.some(mask).names == found.names[1::2] and torch.equal(found.some(mask).vectors, found.vectors[1::2])
    with pytest.raises(InputError, match=r"The mask has 2 values for \d+ pictures; expected one for each"):
        found.some(mask[:2])
    with pytest.raises(InputError, match="The rows are float64; expected whole numbers, or a mask"):
        found.some(np.array([1.9, 2.2]))
