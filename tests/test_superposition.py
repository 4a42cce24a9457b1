"""Toy models against hand-made shapes, closed forms and a plain training loop; the tower's against worlds planted by hand."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import tiny_families
import torch

from emointerp.errors import InputError
from emointerp.models import load
from emointerp.models.anatomy import part
from emointerp.superposition import (
    Embedded,
    ToyModels,
    by_dimensions,
    dimensionality,
    dimensions_per_feature,
    embed,
    factor_table,
    interference,
    plot_by_dimensions,
    read_factors,
    shapes,
    thumbnails,
    tower,
    toy_loss,
    train_toys,
    untrained,
)
from emointerp.world import Scene, face_scenes


def polygon(corners: int) -> torch.Tensor:
    angles = torch.arange(corners) * 2 * math.pi / corners
    return torch.stack([angles.cos(), angles.sin()])


TETRAHEDRON = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 3**0.5


# shapes by hand


@pytest.mark.parametrize(
    ("W", "D", "name"),
    [
        (torch.eye(3), 1, "own dimension"),
        (torch.tensor([[1.0, -1.0]]), 1 / 2, "antipodal pair"),
        (polygon(3), 2 / 3, "triangle"),
        (polygon(4), 1 / 2, "antipodal pair"),
        (polygon(5), 2 / 5, "pentagon"),
        (TETRAHEDRON, 3 / 4, "tetrahedron"),
        (polygon(6)[:, [0, 1, 3, 4]], None, "4 features in 2 dimensions"),
    ],
)
def test_shapes_with_a_name_have_their_dimensionality(W, D, name):
    turned = torch.linalg.qr(torch.randn(len(W), len(W), generator=torch.Generator().manual_seed(0))).Q @ W
    assert shapes(turned) == [name] * W.shape[1]
    if D is not None:
        torch.testing.assert_close(dimensionality(turned), torch.full((W.shape[1],), float(D)))
        torch.testing.assert_close(dimensions_per_feature(turned), torch.tensor(float(D)))
        torch.testing.assert_close(dimensionality(turned).sum(), torch.tensor(float(len(W))))


def test_dimensionality_is_the_formula_and_ignores_what_is_not_stored():
    W = torch.randn(3, 7, generator=torch.Generator().manual_seed(1))
    W[:, 4] = 0
    for i in range(7):
        length = math.sqrt(sum(float(x) ** 2 for x in W[:, i]))
        shared = sum((float(W[:, i] @ W[:, j]) / length) ** 2 for j in range(7)) if length else 1
        assert float(dimensionality(W)[i]) == pytest.approx(length**2 / shared, abs=1e-5)
    assert shapes(0.3 * W)[4] == "not represented"
    torch.testing.assert_close(dimensionality(torch.stack([W, W]))[1], dimensionality(W))


# closed forms of the loss


def by_hand(W: list, b: list, densities: tuple[float, ...]) -> ToyModels:
    """The same weights at each density, none trained."""
    n = len(densities)
    some = [torch.tensor(value).expand(n, *torch.tensor(value).shape) for value in (W, b)]
    return ToyModels(densities, torch.ones(len(b)), *some, torch.zeros(n, 1))


def dedicated(p: float) -> float:
    """One of two features exact, the other always guessed to be its mean p / 2: its variance."""
    return p / 3 - p**2 / 4


def antipodal(p: float) -> float:
    """Wrong only where both are at work, each by the smaller of the two: p^2 times twice the mean of min(u, v)^2 = 1 / 6."""
    return p**2 / 3


def test_losses_of_hand_made_models_are_the_closed_forms():
    densities = (1.0, 4 / 7, 0.2)
    pair = toy_loss(by_hand([[1.0, -1.0]], [0.0, 0.0], densities))
    torch.testing.assert_close(pair, torch.tensor([antipodal(p) for p in densities]), rtol=0.03, atol=0)
    for i, p in enumerate(densities):
        alone = toy_loss(by_hand([[1.0, 0.0]], [0.0, p / 2], densities))
        assert float(alone[i]) == pytest.approx(dedicated(p), rel=0.03)
    assert dedicated(4 / 7) == pytest.approx(antipodal(4 / 7))


# what training finds


def test_two_features_in_one_dimension_share_it_from_density_one_half_down():
    toys = train_toys(2, 1, (1.0, 0.5, 0.2), 1.0, steps=800, progress=False)
    assert toys.summary().features.tolist() == [1, 2, 2]
    best = torch.tensor([min(dedicated(p), antipodal(p)) for p in toys.densities])
    loss = toy_loss(toys)
    assert bool((loss < 1.03 * best).all()) and bool((loss > 0.8 * best).all())
    assert shapes(toys.W[2]) == ["antipodal pair"] * 2


def test_five_features_in_two_dimensions_orthogonal_then_pairs_then_a_pentagon():
    toys = train_toys(5, 2, (1.0, 0.2, 0.05), 0.9, progress=False)
    names = [set(shapes(W)) - {"not represented"} for W in toys.W]
    assert names == [{"own dimension"}, {"antipodal pair"}, {"pentagon"}]
    assert toys.summary().features.tolist() == [2, 4, 5]
    frame = toys.to_frame()
    for density, D in ((1.0, 1), (0.2, 1 / 2), (0.05, 2 / 5)):
        kept = frame[(frame.density == density) & frame.represented]
        np.testing.assert_allclose(kept.dimensionality, D, atol=0.03)
    assert frame[(frame.density == 1.0) & frame.represented].feature.tolist() == [0, 1]  # the most important two


def test_twenty_features_in_five_dimensions():
    toys = train_toys(20, 5, (1.0, 0.3, 0.1, 0.03), 0.7, progress=False)
    dense, *sparse = toys.summary().features.tolist()
    assert dense == 5 and sparse[0] in (7, 8) and sparse[1] == 9 and sparse[2] in (10, 11)
    np.testing.assert_allclose(toys.summary().sum_D, 5, atol=0.25)


def test_a_dense_linear_model_keeps_the_most_important_as_principal_components_do():
    importance = [0.2, 1.0, 0.1, 0.8, 0.4, 0.6]
    toys = train_toys(6, 3, (1.0,), importance, seeds=4, steps=1200, relu=False, progress=False)
    kept = torch.diag(torch.tensor([0.0, 1, 0, 1, 0, 1]))
    torch.testing.assert_close(toys.W[0].T @ toys.W[0], kept, atol=0.02, rtol=0)
    assert float(toys.losses.min()) == pytest.approx((0.2 + 0.1 + 0.4) / 12, rel=0.05)  # variances of what is dropped


# the tensor program


def test_models_trained_together_are_those_of_a_plain_loop():
    """Each seed and density alone, written out: same start, same data, Adam, a rate that falls as half a cosine."""
    toys = train_toys(4, 2, (1.0, 0.3), 0.9, seeds=3, steps=30, batch=16, lr=0.02, progress=False)
    found = [[_plain(density, which) for which in range(3)] for density in (1.0, 0.3)]
    for i, some in enumerate(found):
        losses = torch.tensor([loss for _, _, loss in some])
        torch.testing.assert_close(toys.losses[i], losses)
        W, b, _ = some[int(losses.argmin())]
        torch.testing.assert_close(toys.W[i], W)
        torch.testing.assert_close(toys.b[i], b)


def _plain(density: float, which: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    rng = torch.Generator().manual_seed(0)
    W = ((torch.randn(3, 2, 4, generator=rng) / 3**0.5)[which]).clone().requires_grad_()
    b = torch.zeros(4, requires_grad=True)
    optimizer, late = torch.optim.Adam([W, b], lr=0.02), []
    for step in range(30):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / 30))
        values, chances = torch.rand(16, 4, generator=rng), torch.rand(16, 4, generator=rng)
        x = torch.where(chances < density, values, 0)
        guess = torch.stack([torch.relu(W.T @ (W @ row) + b) for row in x])
        loss = sum(0.9**i * ((x - guess)[:, i] ** 2).mean() for i in range(4))
        optimizer.zero_grad()
        (loss / density).backward()
        optimizer.step()
        late += [float(loss.detach())] * (step >= 27)
    return W.detach(), b.detach(), sum(late) / 3


def test_training_leaves_threads_and_random_state_alone():
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    torch.set_num_threads(2)
    try:
        train_toys(3, 2, (0.5,), seeds=2, steps=3, progress=False)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"features": 2, "hidden": 3}, "2 features in 3 dimensions"),
        ({"densities": (0.0, 1.0)}, "expected chances above 0, up to 1"),
        ({"densities": ()}, "densities are an empty list"),
        ({"seeds": 0}, "seeds is 0; expected a whole number from 1 up"),
        ({"importance": [1.0, 0.5]}, "expected 5 numbers above 0, one a feature"),
        ({"importance": [1.0, 0.5, 0.0, 1.0, 1.0]}, "expected 5 numbers above 0"),
    ],
)
def test_what_cannot_be_trained_is_said(given, words):
    with pytest.raises(InputError) as error:
        train_toys(**given)
    assert words in str(error.value)


def test_a_density_that_was_not_trained():
    with pytest.raises(InputError, match=r"No model was trained at density 0.3; there are 1, 0.2"):
        by_hand([[1.0, -1.0]], [0.0, 0.0], (1.0, 0.2)).index(0.3)


def test_figures_of_toys_show_what_was_measured():
    flat = ToyModels((1.0, 0.2), torch.ones(5), torch.stack([polygon(5)] * 2), torch.zeros(2, 5), torch.zeros(2, 1))
    assert [axis.get_title() for axis in flat.plot().axes] == ["density 1", "density 0.2"]
    deep = by_hand([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, -1.0]], [0.0] * 4, (0.5,))
    gram = deep.plot().axes[0].images[0].get_array()
    assert gram[2, 3] == -1 and gram[0, 0] == 1
    assert deep.plot_features().axes[0].images[0].get_array().shape == (4, 1)
    line = deep.plot_dimensions().axes[0].lines[-1]
    assert line.get_xydata().tolist() == [[2.0, 0.75]]


# the tower's measures, on worlds planted by hand


def planted(W: np.ndarray, n: int = 400, noise: float = 0.1, seed: int = 0, mixed: float = 0.0) -> Embedded:
    """Vectors `z @ W` and noise; `mixed` makes the factors go with the first of them."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, len(W)))
    z[:, 1:] += mixed * z[:, :1]
    names = [f"factor {i}" for i in range(len(W))]
    return Embedded(z @ W + noise * rng.standard_normal((n, W.shape[1])), pd.DataFrame(z, columns=names))


def test_what_was_planted_is_read_and_what_was_not_is_not():
    W = np.eye(4, 6)
    W[3] = 0
    fit, held = planted(W), planted(W, seed=1)
    readings = read_factors(fit, held)
    assert readings.readable == ["factor 0", "factor 1", "factor 2"] and readings.d == 6
    assert readings.to_frame().factor.iloc[-1] == "factor 3" and abs(readings.to_frame().r.iloc[-1].mean) < 0.2
    assert read_factors(fit.exchanged(), held).readable == []
    assert len(readings.plot().axes[0].get_yticks()) == 4


def test_correlations_are_pearsons_with_honest_intervals():
    held = planted(np.eye(1, 1), n=300, noise=1.0, seed=1)
    r = read_factors(planted(np.eye(1, 1), noise=1.0), held).table.r[0]
    truth = np.corrcoef(held.vectors[:, 0], held.factors["factor 0"])[0, 1]  # one number: whatever line, the same correlation
    assert r.mean == pytest.approx(truth) and r.n == 300
    spread = np.tanh(np.arctanh(truth) + np.array([-1.96, 1.96]) / 297**0.5)
    np.testing.assert_allclose([r.low, r.high], spread, atol=0.02)


def test_fewer_factors_are_readable_from_fewer_dimensions():
    """Six factors of equal variance in six dimensions; one random direction holds a sixth of each, on average."""
    sides = [planted(np.eye(6), 800, seed=seed) for seed in (0, 1)]
    counts = by_dimensions(*sides, dimensions=(1, 6), draws=2).groupby("dimensions").readable.mean()
    assert counts[1] < 3 and counts[6] == 6


def test_the_figure_of_dimensions_has_a_line_for_each_embedding():
    counts = pd.DataFrame({"dimensions": [4, 4, 8, 8], "draw": [0, 1, 0, 1], "readable": [1, 3, 5, 7]})
    lines = {line.get_label(): line.get_xydata().tolist() for line in plot_by_dimensions({"planted": counts}).axes[0].lines}
    assert lines["planted"] == [[4, 2], [8, 6]]
    equal = np.array(lines["one a dimension"])
    np.testing.assert_array_equal(equal[:, 0], equal[:, 1])
    assert np.diff(np.log2(equal[:, 0])).max() < 0.1  # dense enough to be drawn as the curve it is on a log axis


def test_projections_are_orthogonal_and_the_same_for_a_seed():
    some = planted(np.eye(4))
    lengths = np.linalg.norm(some.projected(4, 1).vectors, axis=1)
    np.testing.assert_allclose(lengths, np.linalg.norm(some.vectors, axis=1))
    np.testing.assert_array_equal(some.projected(2, 1).vectors, some.projected(2, 1).vectors)
    with pytest.raises(InputError, match="4 dimensions cannot be projected to 5"):
        some.projected(5)


def test_orthogonal_directions_interfere_less_than_random_ones():
    some = planted(np.eye(6, 8), n=1000, noise=0.05, mixed=1.0)  # factors go together; their directions do not
    found = interference(some, list(some.factors), draws=99)
    table = found.to_frame()
    assert table.interval["factors"].mean < 0.03 and table.p_less["random"] == 0.01 and table.p_more["random"] == 1
    np.testing.assert_allclose(found.table.dimensionality, 1, atol=0.03)
    assert found.table.reliability.min() > 0.98
    assert table.interval["random"].mean == pytest.approx(math.sqrt(2 / math.pi / 8), rel=0.1)  # mean |cos| in 8 dimensions
    assert found.plot().axes[0].get_title() == f"6 directions in 8 dimensions ({found.effective:.0f} of them effective)"


def test_an_antipodal_pair_is_found_with_its_cosine_and_dimensionality():
    W = np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0]])
    found = interference(planted(W, n=1000, noise=0.02), ["factor 0", "factor 1", "factor 2"], draws=20).table
    assert found.nearest.tolist()[:2] == ["factor 1", "factor 0"]
    np.testing.assert_allclose(found.cosine[:2], -1, atol=0.01)
    np.testing.assert_allclose(found.dimensionality, [0.5, 0.5, 1], atol=0.02)


def test_effective_dimension_counts_equal_variances():
    some = planted(np.eye(4, 10), n=4000, noise=0.0)
    assert interference(some, ["factor 0", "factor 1"], draws=5).effective == pytest.approx(4, abs=0.05)


def test_kinds_of_one_thing_are_not_compared_and_things_are():
    rng = np.random.default_rng(0)
    cat = (rng.random(200) < 0.5).astype(float)
    columns = {
        "subject: cat": cat,
        "subject: dog": 1 - cat,
        "thing: cup": rng.random(200) < 0.5,
        "thing: ball": rng.random(200) < 0.5,
    }
    columns |= {"look: eye: dot": rng.random(200) < 0.5, "look: line": rng.random(200), "look: eye_size": rng.random(200)}
    factors = pd.DataFrame(columns).astype(float)
    cosines = interference(Embedded(rng.standard_normal((200, 5)), factors), list(factors), draws=5).cosines
    assert np.isnan(cosines.loc["subject: cat", "subject: dog"])
    for pair in (("thing: cup", "thing: ball"), ("look: line", "look: eye_size"), ("look: eye: dot", "look: line")):
        assert not np.isnan(cosines.loc[pair])


# scenes and towers


def test_factors_of_scenes():
    table = factor_table([Scene(things=("cup", "", "", "", "")), Scene(subject="cat", glasses=True), Scene(scale=0.4)])
    assert table["thing: cup"].tolist() == [1, 0, 0] and table["subject: cat"].tolist() == [0, 1, 0]
    assert table.glasses.tolist() == [0, 1, 0] and table["scale"].tolist() == [0.3, 0.3, 0.4]
    assert not [name for name in table if name.startswith(("emotion", "intensity", "seed", "hat_color"))]
    with pytest.raises(InputError, match="1 of 2 scenes are abstract moods"):
        factor_table([Scene(), Scene(style="mood")])


def test_scenes_to_measure_have_faces_and_are_as_many_as_asked():
    scenes = face_scenes("test", 40)
    assert len(scenes) == 40 and all(scene.has_face for scene in scenes)
    assert scenes == face_scenes("test", 40) and scenes != face_scenes("test", 40, seed=1)


def test_thumbnails_are_means_of_the_pixels():
    scene = Scene()
    vector = thumbnails([scene], side=2).vectors[0].reshape(2, 2, 3)
    np.testing.assert_allclose(vector[0, 1], scene.pixels()[:64, 64:].mean((0, 1)) / 255, atol=0.005)


def shown(vlm, scene: Scene) -> np.ndarray:
    """The mean over the tower's patches while the whole model answers."""
    kept = []
    layer = part(vlm.model, vlm.anatomy.family.vision_layers)[-1]
    hook = layer.register_forward_hook(lambda module, given, out: kept.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        vlm.model(**vlm.placed(vlm.prompt(scene, "Look.").inputs))
    hook.remove()
    return kept[0].reshape(-1, kept[0].shape[-1]).mean(0).float().numpy()


SCENES = [Scene(), replace(Scene(), subject="woman", place="night"), replace(Scene(), place="forest")]


@pytest.mark.parametrize("family", tiny_families.NAMES)
def test_embeddings_are_means_over_the_towers_patches(family, monkeypatch):
    monkeypatch.setattr(tower, "BATCH", 2)
    vlm = tiny_families.vlm(family)
    vectors = embed(vlm, SCENES, progress=False).vectors
    np.testing.assert_allclose(vectors, [shown(vlm, scene) for scene in SCENES], atol=1e-5)
    assert min(np.abs(a - b).max() for a, b in zip(vectors, np.roll(vectors, 1, 0), strict=True)) > 1e-4


@pytest.mark.parametrize("family", tiny_families.NAMES)
def test_the_untrained_tower_is_another_one_and_the_rest_is_shared(family):
    vlm = tiny_families.vlm(family)
    before, state = embed(vlm, SCENES, progress=False).vectors, torch.random.get_rng_state()
    twins = [untrained(vlm, seed) for seed in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    first, again, other = (embed(twin, SCENES, progress=False).vectors for twin in twins)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4 and np.abs(first - before).max() > 1e-4
    np.testing.assert_array_equal(embed(vlm, SCENES, progress=False).vectors, before)
    trained, fresh = (dict(model.named_parameters()) for model in (vlm.model, twins[0].model))
    place = ".".join(vlm.anatomy.family.vision_layers.split(".")[:2])
    assert {name: p.shape for name, p in trained.items()} == {name: p.shape for name, p in fresh.items()}
    shared = {name for name in trained if trained[name] is fresh[name]}
    assert shared == {name for name in trained if not name.startswith(place + ".")} and len(shared) < len(trained)
    assert all(torch.isfinite(p).all() for p in fresh.values()) and twins[0].name == f"{vlm.name}, tower untrained"


def kinds_of_one_thing() -> Embedded:
    rng = np.random.default_rng(0)
    kinds = pd.get_dummies(pd.Series(rng.choice(list("abc"), 90)), prefix="hat", prefix_sep=": ", dtype=float)
    return Embedded(rng.standard_normal((90, 5)), kinds)


def test_training_makes_factors_readable_and_spreads_them():
    """The control at small size: a tower of random weights tells few factors, and crowds its vectors into few dimensions."""
    vlm = load()
    scenes = face_scenes("direction", 240), face_scenes("test", 120)
    trained, fresh = ([embed(model, some, progress=False) for some in scenes] for model in (vlm, untrained(vlm)))
    good = read_factors(*trained).readable
    assert len(good) > 4 * len(read_factors(*fresh).readable)
    assert interference(trained[0], good, draws=5).effective > 5 * interference(fresh[0], good, draws=5).effective


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a, b: read_factors(a, b.projected(2)), "The vectors to fit have 4 numbers, those held out 2"),
        (lambda a, b: read_factors(a, replace(b, factors=0 * b.factors)), "Of 4 factors none varies in both sets"),
        (lambda a, b: interference(a, ["factor 0", "hat"]), "do not vary in hat; take factors"),
        (lambda a, b: interference(a, ["factor 0"]), "interference needs two or more"),
        (lambda a, b: interference(kinds_of_one_thing(), ["hat: a", "hat: b"]), "hat: a, hat: b are kinds of one thing"),
    ],
)
def test_bad_input_is_said(call, words):
    with pytest.raises(InputError) as error:
        call(planted(np.eye(4), 50), planted(np.eye(4), 50, seed=1))
    assert words in str(error.value)
