"""Intervals, tests and corrections against closed forms, scipy and simulations of the null."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from scipy.stats import bootstrap

from emointerp.errors import InputError
from emointerp.statistics import (
    Interval,
    against_random,
    benjamini_hochberg,
    flat,
    flips_by_group,
    holm,
    mean_interval,
    random_directions,
    ratio_interval,
    sign_flips,
    with_controls,
)


def test_interval_of_a_share_is_the_binomial_one():
    """For 300 of 400 the percentile bootstrap comes within a point of the normal interval 0.75 +- 1.96 sqrt(pq/n)."""
    interval = mean_interval([1.0] * 300 + [0.0] * 100)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert interval.mean == 0.75 and interval.n == 400
    assert interval.low == pytest.approx(0.75 - half, abs=0.01)
    assert interval.high == pytest.approx(0.75 + half, abs=0.01)


def test_gains_of_zero_may_be_losses_too():
    interval = mean_interval([0.0] * 30, signed=True)
    assert (interval.low, interval.mean, interval.high) == pytest.approx((-0.1, 0, 0.1))


def test_interval_covers_the_truth_as_often_as_it_says():
    """Of 200 samples of 80 draws with a known mean of 0.3, about 95% of intervals hold it (binomial, four standard errors)."""
    rng = np.random.default_rng(0)
    covered = [(i := mean_interval(rng.random(80) < 0.3, resamples=500)).low <= 0.3 <= i.high for _ in range(200)]
    assert np.mean(covered) > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 200)


def test_all_equal_values_leave_room_for_what_was_not_seen():
    """Rule of three: none in 60 bounds the share by 3/60."""
    none, everything = mean_interval([0] * 60), mean_interval([1] * 60)
    assert (none.low, none.mean, none.high) == (0.0, 0.0, 0.05)
    assert (everything.low, everything.mean, everything.high) == (0.95, 1.0, 1.0)


def test_same_seed_same_interval():
    values = np.random.default_rng(1).random(50)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)


def test_nothing_to_average_is_said():
    with pytest.raises(InputError, match="No values to average"):
        mean_interval([])


# tests and corrections


def test_sign_flips_agree_with_scipy():
    x = np.random.default_rng(3).normal(0.4, 1, 12)
    for alternative in ("two-sided", "greater"):
        kind = {"permutation_type": "samples", "n_resamples": np.inf, "alternative": alternative}
        exact = scipy.stats.permutation_test(
            (x, np.zeros(12)), lambda a, b, axis: (a - b).mean(axis), vectorized=True, **kind
        ).pvalue
        found = sign_flips(x, flips=40_000, alternative=alternative)
        assert found.p[0] == pytest.approx(exact, abs=0.008) and found.mean[0] == pytest.approx(x.mean())


def test_p_values_are_uniform_under_the_null_and_max_t_keeps_the_family_error():
    rng = np.random.default_rng(0)
    runs = [sign_flips(rng.standard_normal((20, 15)) * rng.uniform(0.1, 10, 15), flips=400, seed=i) for i in range(200)]
    own = np.concatenate([run.p[:1] for run in runs])
    assert scipy.stats.kstest(own, "uniform").pvalue > 0.01
    family = np.mean([run.corrected.min() <= 0.05 for run in runs])
    assert 0.01 <= family <= 0.10
    assert all((run.corrected >= run.p).all() for run in runs)


def test_a_real_effect_among_many_is_found():
    x = np.random.default_rng(1).standard_normal((40, 64))
    x[:, 7] += 1
    found = sign_flips(x)
    assert found.corrected[7] < 0.01 and found.corrected.argmin() == 7 and np.median(found.corrected) > 0.3


def test_corrections_by_hand():
    p = [0.005, 0.011, 0.02, 0.04, 0.13]
    assert holm(p) == pytest.approx([0.025, 0.044, 0.06, 0.08, 0.13])
    assert benjamini_hochberg(p) == pytest.approx([0.025, 0.0275, 1 / 30, 0.05, 0.13])
    assert holm([0.6, 0.9]).max() == 1.0


def test_random_controls():
    assert against_random(0.5, [0.1, 0.5, 0.9]) == 0.75
    direction = np.array([3.0, 0, 4.0])
    free = random_directions(direction, 500)
    assert free.shape == (500, 3) and np.allclose(np.linalg.norm(free, axis=1), 5)
    samples = np.random.default_rng(0).standard_normal((200, 3)) * [10, 1, 0]
    matched = random_directions(direction, 500, like=samples)
    assert np.allclose(matched[:, 2], 0, atol=1e-9) and np.abs(matched[:, 0]).mean() > 4 * np.abs(matched[:, 1]).mean()
    assert np.allclose(random_directions(direction, 3, seed=5), random_directions(direction, 3, seed=5))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sign_flips([1.0]), r"shape \[1\]; expected \[pairs\] or \[pairs, columns\]"),
        (lambda: sign_flips([1.0, 2.0], alternative="less"), "alternative is 'less'; expected 'two-sided' or 'greater'"),
        (lambda: against_random(1.0, []), "no random controls"),
        (lambda: random_directions([1.0, 2.0], like=[[1.0, 2.0, 3.0]]), r"shape \[1, 3\]; expected \[samples, 2\]"),
    ],
)
def test_statistics_that_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_ratio_of_means_and_its_interval():
    rng = np.random.default_rng(0)
    below = rng.uniform(1, 2, 400)
    found = ratio_interval(0.5 * below + rng.normal(0, 0.01, 400), below)
    assert found.mean == pytest.approx(0.5, abs=2e-3) and found.low < found.mean < found.high and found.high - found.low < 0.01
    independent = bootstrap(
        (np.arange(20.0), np.arange(20.0) + 5), lambda a, b, axis=-1: a.mean(axis) / b.mean(axis), paired=True, method="percentile",
        n_resamples=4000, rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    ours = ratio_interval(np.arange(20.0), np.arange(20.0) + 5, resamples=4000)
    assert (ours.low, ours.high) == pytest.approx((independent.low, independent.high), abs=0.02)
    assert np.isnan(ratio_interval([1.0, 2.0], [1.0, -1.0]).mean)
    with pytest.raises(InputError, match="two values a pair; 2 and 3 came"):
        ratio_interval([1, 2], [1, 2, 3])


def test_an_effect_beside_its_controls():
    rng = np.random.default_rng(0)
    effect, noise = rng.normal(1, 0.5, 40), rng.normal(0, 0.5, (30, 40))
    table = with_controls(effect, {"drawn": noise, "equal": effect, "once": rng.normal(0, 0.5, 40)})
    assert table.value["effect"].mean == pytest.approx(effect.mean()) and table.draws.tolist()[1:] == [30, 1, 1]
    assert table.less["drawn"].mean == pytest.approx((effect - noise.mean(0)).mean())
    assert table.p_draws["drawn"] == pytest.approx(1 / 31) and np.isnan(table.p_draws["once"])
    assert table.p["equal"] == 1 and table.p["once"] < 0.001
    largest = [max(1 / 31, table.p["drawn"]), 1.0, table.p["once"]]
    assert table.p_holm.tolist()[1:] == pytest.approx(holm(largest).tolist())
    with pytest.raises(InputError, match=r"effect has shape \[40\]; controls with other pairs: wrong \[3\]"):
        with_controls(effect, {"wrong": [1, 2, 3]})


def test_flips_by_group_find_what_works_in_one_group_and_keep_their_level():
    """Under nothing at all no more than 5% are below 0.05; what works in one group of six is seen, which the test of all is not."""
    rng, groups = np.random.default_rng(0), np.repeat(list("abcdef"), 12)
    noise = rng.normal(size=(72, 2000))
    p = flips_by_group(noise, groups, 2000).min()
    assert (p <= 0.05).mean() < 0.05 and (benjamini_hochberg(p) <= 0.05).sum() <= 2
    mine = np.where(groups == "c", 1.0, 0.0)[:, None] + 0.5 * rng.normal(size=(72, 40))
    assert (flips_by_group(mine, groups).min() <= 0.05).mean() > 0.9 > (sign_flips(mine).p <= 0.05).mean()
    steady = np.r_[np.ones(10), np.tile([1.0, -1.0], 5)][:, None]  # in a only its own sign and the opposite are as far out, of 1024
    found = flips_by_group(steady, list(10 * "a" + 10 * "b"), 100_000)
    assert found.index.tolist() == ["all", "a", "b"] and found.loc["a", 0] == pytest.approx(3 * 2 / 1024, rel=0.3)
    one_sided = flips_by_group(-steady, list(10 * "a" + 10 * "b"), 10_000, "greater")
    assert one_sided.loc["a", 0] == 1.0  # of the other sign


def test_a_table_of_intervals_becomes_one_of_numbers(tmp_path):
    index = pd.MultiIndex.from_tuples([(0, 1), (0, 2), (3, 1)], names=["layer", "head"])
    cells = [Interval(0.2, 0.1, 0.3, 4), Interval(0.5, 0.4, 0.7, 5), None]
    frame = pd.DataFrame({"effect": cells, "p": [0.1, 0.2, 0.3], "kind": ["a", "b", "c"]}, index=index)
    table = flat(frame)
    assert list(table) == ["effect", "effect_low", "effect_high", "effect_n", "p", "kind"] and table.index.equals(index)
    assert table.effect.tolist()[:2] == [0.2, 0.5] and np.isnan(table.effect.iloc[2]) and table.effect_high.max() == 0.7
    assert table.query("effect > 0.3").index.tolist() == [(0, 2)] and table.sort_values("effect").effect_n.iloc[0] == 4
    table.to_parquet(tmp_path / "flat.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "flat.parquet"), table)
    wide = flat(frame[["effect", "p"]].head(2).unstack("head"))
    assert "effect 1_low" in wide and wide["effect 2"].tolist() == [0.5] and wide["p 1"].tolist() == [0.1]
    assert frame.effect.head(2).astype(float).sum() == 0.7 and max(cells[:2]) is cells[1]


def test_what_is_no_number_has_no_p_and_spoils_no_other():
    """Comparisons with nan are false, so that nothing was ever "as large": p was the least there is, by max-T in all columns."""
    x = np.random.default_rng(5).normal(size=(20, 5))
    spoilt = x.copy()
    spoilt[3, 2] = np.nan
    found, clean = sign_flips(spoilt), sign_flips(np.delete(x, 2, axis=1))
    for name in ("p", "corrected"):
        values = getattr(found, name)
        assert np.isnan(values[2]) and np.array_equal(np.delete(values, 2), getattr(clean, name))
    assert np.isnan(sign_flips(np.full((4, 2), np.nan)).corrected).all()
    assert np.isnan(against_random(np.nan, np.zeros(99))) and np.isnan(against_random(0.0, [np.nan] * 99))
    table = with_controls([0, 0, 0, np.nan], {"random": [0, 0, 0, 0], "other": [0, 0, 0, 0]})
    assert table[["p", "p_holm"]].isna().all(axis=None)
    below = -np.abs(spoilt)
    greater = [sign_flips(some, alternative="greater").corrected for some in (below, np.delete(below, 2, axis=1))]
    assert np.array_equal(np.delete(greater[0], 2), greater[1]) and greater[1].min() > 0.9
    p = np.array([0.01, np.nan, 0.04, 0.5])
    assert np.array_equal(benjamini_hochberg(p), [*np.insert(benjamini_hochberg(p[[0, 2, 3]]), 1, np.nan)], equal_nan=True)


def test_the_rule_of_three_follows_the_level():
    """What a share of n may be that was never seen: `(1 - s) ** n = 1 - level`, nearly."""
    assert mean_interval([0.0] * 60).high == pytest.approx(3 / 60)
    assert mean_interval([0.0] * 60, level=0.99).high == pytest.approx(1 - 0.01 ** (1 / 60), rel=0.05)
