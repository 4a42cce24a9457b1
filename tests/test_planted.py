"""Scores of methods on planted models: held against scikit-learn, plain hooks, and methods whose score is known beforehand."""

import numpy as np
import oracle
import pandas as pd
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_score, recall_score

from emointerp.circuit import revision
from emointerp.emotions import BASIC
from emointerp.errors import InputError
from emointerp.lens import emotion_tokens
from emointerp.pairs import fingerprint
from emointerp.planted import METHODS, Comparison, Score, compare, planted_pairs, planted_vlm, score, truth
from emointerp.planted.circuit import BACKUP, DECOY, GENERAL, LAYERS, NEURONS, PLANTED, SPECIFIC, STATES, TRIGGERS
from emointerp.planted.methods import BEGUN, PLACES, direct
from emointerp.statistics import mean_interval

NEURON_PLACES = pd.MultiIndex.from_product([range(LAYERS), range(NEURONS)], names=["layer", "neuron"])


def ranked(*first) -> pd.Series:
    """A ranking that begins with some places, in their order; all others are alike."""
    return pd.Series(0.0, PLACES) + pd.Series({at: 9.0 - i for i, at in enumerate(first)}).reindex(PLACES, fill_value=0)


def perfect(vlm, pairs) -> pd.Series:
    return ranked(*PLANTED["heads"])


def taken_in(vlm, pairs) -> pd.Series:
    return ranked(DECOY, *PLANTED["heads"])


# scores


def test_the_truth_names_every_part_once():
    heads = truth()
    assert set(heads.index[heads.role == "specific"]) == set(SPECIFIC.values())
    assert heads.emotion[SPECIFIC["joy"]] == "joy" and heads.role[DECOY] == "decoy" and heads.emotion[GENERAL] == ""
    for parts, places in (("triggers", TRIGGERS), ("states", STATES)):
        assert truth(parts).emotion.to_dict() == {at: emotion for emotion in BASIC for at in places[emotion]}
    assert len(truth("neurons")) == 24 and truth("neurons").index.names == ["layer", "neuron"]


def test_a_set_is_scored_and_the_backup_counts_neither_way():
    found = score([*PLANTED["heads"][:4], DECOY, (0, 0), BACKUP])
    assert (found.precision, found.recall) == (4 / 6, 4 / 7) and np.isnan(found.average_precision)
    table = found.to_frame()
    assert table.index[table.found].tolist() == [*PLANTED["heads"][:4], DECOY] and table["rank"].isna().all()
    assert score([*PLANTED["heads"], BACKUP]).precision == score(np.array(PLANTED["heads"])).recall == 1
    assert (score([]).precision, score([BACKUP]).precision, score([]).recall) == (0, 0, 0)
    assert score(iter(PLANTED["states"] * 2), "neurons").recall == 0.5 and score(PLANTED["states"], "states").recall == 1
    turned = pd.MultiIndex.from_tuples(PLANTED["heads"], names=["layer", "head"]).reorder_levels(["head", "layer"])
    assert score(turned).recall == 1


def test_values_of_true_and_false_are_a_set():
    """Such as of a test for each head; as a ranking all eight would tie across the cut, and none be found."""
    passed = ranked(*PLANTED["heads"], DECOY) > 0
    for given in (passed, passed.to_dict(), passed[passed]):
        found = score(given)
        assert (found.precision, found.recall) == (7 / 8, 1) and np.isnan(found.average_precision)


@pytest.mark.parametrize("parts", ["heads", "neurons", "triggers"])
def test_a_ranking_is_scored_as_scikit_learn_does(parts):
    places, rng = PLACES if parts == "heads" else NEURON_PLACES, np.random.default_rng(3)
    values = pd.Series(rng.normal(size=len(places)), places)
    values[PLANTED[parts]] += 1
    found, others = score(values.sample(frac=1, random_state=1), parts), values.drop(BACKUP if parts == "heads" else [])
    labels = others.index.isin(PLANTED[parts])
    first = others.rank(ascending=False) <= len(PLANTED[parts])
    assert found.average_precision == average_precision_score(labels, others)
    assert (found.precision, found.recall) == (precision_score(labels, first), recall_score(labels, first))
    ranks = found.to_frame()["rank"].drop(BACKUP if parts == "heads" else [])
    assert ranks.to_dict() == others.rank(ascending=False)[ranks.index].to_dict()


def test_a_ranking_is_read_by_the_names_of_its_levels_and_from_a_mapping():
    values = pd.Series(np.random.default_rng(4).normal(size=64), PLACES)
    whole = score(values)
    for other in (values.reorder_levels(["head", "layer"]), values.to_dict(), values.rename_axis([None, None])):
        pd.testing.assert_frame_equal(score(other).table, whole.table)


def test_what_ties_across_the_line_is_not_found():
    """In whatever order the ranking comes: six stand first, and the seventh with 57 others."""
    values = ranked(*PLANTED["heads"][:6])
    for some in (values, values[::-1]):
        found = score(some)
        assert (found.precision, found.recall) == (1, 6 / 7) and found.to_frame()["rank"][DECOY] == 35
    assert score(ranked()).recall == 0


def test_what_is_alike_shares_its_rank_and_intervals_are_ranked_by_their_means():
    found = score(pd.Series(0.0, PLACES))
    assert found.average_precision == pytest.approx(7 / 63)
    assert found.to_frame()["rank"].drop(BACKUP).unique() == [32]
    intervals = ranked(*PLANTED["heads"]).map(lambda value: mean_interval([value, value + 0.1]))
    assert score(intervals).average_precision == 1


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("heads", "'heads' came; expected places"),
        (pd.DataFrame({"effect": [1.0]}), "a DataFrame came; expected places .layer, number., or a Series by place"),
        ([(3, 1), (3, 8)], r"\(3, 8\) is no place in this model; expected \(layer, number\), from \(0, 0\) to \(7, 7\)"),
        ([(3, 1.5)], r"\(3, 1.5\) is no place"),
        ([3, 1], "3 is no place"),
        (["L3H1"], "'L3H1' is no place"),
        (
            pd.Series(1.0, PLACES[:-2]),
            "This ranking has 62 of 64 places; expected all. Where only some are known, give these as a set",
        ),
        (pd.Series(1.0, [*PLACES, (0, 0)]), "1 places come twice in this ranking"),
        (ranked(DECOY) / 0, "64 of this ranking's values are no finite numbers"),
        (dict.fromkeys(PLACES, "high") | {DECOY: None}, "64 of this ranking's values are no finite numbers"),
    ],
)
def test_what_cannot_be_scored_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        score(given)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda: score([], "layers"), "parts is 'layers'; expected one of heads, neurons, triggers, states"),
        (lambda: planted_vlm(-1), "seed is -1; expected a whole number from 0 up"),
        (lambda: planted_pairs(n=0), "n is 0; expected a whole number from 1 up"),
        (lambda: planted_pairs("dev", 6), "split is 'dev'; expected one of train, direction, selection, tuning, test"),
        (lambda: compare(seeds=3), "3 came; expected seeds, such as range"),
        (lambda: compare(seeds=()), "There are no seeds; expected some, such as range"),
        (lambda: compare({}), "There are no methods; expected some, such as METHODS"),
        (lambda: compare(perfect), "expected methods by name, such as METHODS"),
        (lambda: compare({"mine": "head_map"}), "The method 'mine' is 'head_map'; expected a function of a model and pairs"),
        (lambda: compare({"mine": lambda vlm, pairs: PLANTED["heads"]}), "The method 'mine' gave a set; expected a ranking"),
        (lambda: compare({"mine": lambda vlm, pairs: ranked().head(3)}), "The method 'mine': This ranking has 3 of 64 places"),
        (lambda: compare({"mine": METHODS["linear probe"]}, n=18), "'mine': An emotion has 3 pairs; .* needs 4 of each, so 24"),
        (lambda: compare({"mine": perfect}, n=3), "n is 3; expected a whole number from 6 up"),
    ],
)
def test_bad_input_is_refused_in_words(ask, said):
    with pytest.raises(InputError, match=said):
        ask()


# methods


def test_methods_are_compared_and_kept(tmp_path):
    asked = []

    def mine(vlm, pairs):
        asked.append((vlm.name, revision(vlm), [(pair.split, fingerprint(pair.emotional)) for pair in pairs]))
        return taken_in(vlm, pairs) if vlm.name == "planted 1" else perfect(vlm, pairs)

    found = compare({"mine": mine, "perfect": perfect}, seeds=(0, 1), n=12, progress=False)
    assert asked == [
        (f"planted {seed}", revision(planted_vlm(seed)), [("selection", fingerprint(pair.emotional)) for pair in pairs])
        for seed, pairs in ((seed, planted_pairs("selection", 12, seed)) for seed in (0, 1))
    ]
    assert asked[0][2] != asked[1][2]
    frame = found.to_frame()
    assert frame.index.tolist() == ["perfect", "mine"]  # the best first
    assert frame.loc["perfect"].tolist()[:3] == [1, 1, 1]
    by_hand = np.mean([k / (k + 1) for k in range(1, 8)])  # the k-th planted head comes at rank k + 1
    decoy = np.mean([1, found.table.query("method == 'mine' and seed == 0 and role == 'decoy'")["rank"].item()])
    assert frame.loc["mine"].tolist() == pytest.approx([(1 + 6 / 7) / 2, (1 + by_hand) / 2, by_hand, decoy])
    pd.testing.assert_frame_equal(Comparison.load(found.save(tmp_path / "found")).to_frame(), frame)
    one = score(ranked(DECOY))
    pd.testing.assert_frame_equal(Score.load(one.save(tmp_path / "one")).table, one.table)


def test_what_a_method_changes_meets_no_other():
    """Weights through `.data`, which nobody can see from outside; hooks; pairs."""
    seen = []

    def changing(vlm, pairs):
        seen.append((vlm.model.lm_head.weight.sum().item(), len(vlm.model.lm_head._forward_hooks), len(pairs)))
        vlm.model.lm_head.weight.data += 1
        vlm.model.lm_head.register_forward_hook(lambda *_: None)
        pairs.pop()
        return perfect(vlm, pairs)

    compare({"first": changing, "second": changing}, n=6, progress=False)
    assert seen[0] == seen[1] and seen[0][1:] == (0, 6)


def test_the_figure_shows_each_methods_ranks():
    figure = compare({"mine": taken_in, "perfect": perfect}, n=6, progress=False).plot()
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["perfect  1.00", "mine  0.75"]
    points = {some.get_label(): some.get_offsets() for some in axis.collections}
    assert sorted(points["general"][:, 0]) == [7, 8] and points["decoy"][:, 0].min() == 1
    assert sorted(points["specific"][points["specific"][:, 1] == 1][:, 0]) == [2, 3, 4, 5, 6, 7]


def test_without_a_decoy_there_is_none_to_show():
    asked = []

    def mine(vlm, pairs):
        asked.append(revision(vlm))
        return perfect(vlm, pairs)

    found = compare({"perfect": mine}, n=6, decoy=False, progress=False)
    assert asked == [revision(planted_vlm(decoy=False))] != [revision(planted_vlm())]
    assert "decoy" not in set(found.table.role) and np.isnan(found.to_frame().decoy_rank["perfect"])
    assert found.plot().alt


@torch.no_grad()
def test_direct_attribution_by_hand():
    """A head's write taken out of the last residual, then the model's own norm and head: with plain hooks."""
    vlm, pair = planted_vlm(), planted_pairs("test", 4)[3]
    found, language = direct(vlm, [pair]), vlm.model.model.language_model
    seen = oracle.caches(vlm, vlm.prompt(*pair.plus, answer=BEGUN))
    table = emotion_tokens(vlm)
    ids = table.id[table.emotion == pair.emotion].tolist()

    def named(residual) -> float:
        return float(vlm.model.lm_head(language.norm(residual)).double().log_softmax(-1)[ids].logsumexp(-1))

    last = seen["residual", LAYERS - 1][-1]
    for layer, head in PLACES:
        mine = slice(16 * head, 16 * (head + 1))
        write = language.layers[layer].self_attn.o_proj.weight[:, mine] @ seen["heads", layer][-1, mine]
        assert found[layer, head] == pytest.approx(named(last) - named(last - write), abs=2e-5)
    assert found.abs().max() > 1e-3  # there is something to agree about


@pytest.fixture(scope="module")
def compared() -> Comparison:
    return compare(n=48, progress=False)


def test_what_exchanges_finds_the_circuit_and_what_reads_is_taken_in(compared):
    """The lesson of the planted model, in numbers: see `emointerp.planted`."""
    frame = compared.to_frame()
    assert set(frame.index) == set(METHODS)
    for method in ("head patching", "head patching, noising", "attribution, either sign"):
        assert frame.average_precision[method] == pytest.approx(1) and frame.decoy_rank[method] > 14
    for method in ("emotional intention", "linear probe"):
        assert 0.3 < frame.average_precision[method] < 0.9 and frame.decoy_rank[method] < 3
    rng = np.random.default_rng(0)
    chance = np.mean([score(pd.Series(rng.random(64), PLACES)).average_precision for _ in range(200)])
    assert 0.14 < chance < 0.19
    assert frame.average_precision["direct logit attribution"] < chance  # no planted head writes words
    assert frame.average_precision["attention to the picture"] < chance and frame.decoy_rank["attention to the picture"] == 1
    last = np.mean([k / (56 + k) for k in range(1, 8)])
    assert frame.average_precision["attribution patching"] == pytest.approx(last)  # all seven last: it has their sign wrong
