"""Directions and differences: closed forms on small made-up tensors, files, and what goes wrong."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics.pairwise import cosine_similarity

from emointerp.directions import Differences, Directions
from emointerp.errors import InputError

GENERATOR = torch.Generator().manual_seed(0)
VECTORS = torch.randn(3, 4, 8, generator=GENERATOR)


@pytest.fixture
def directions() -> Directions:
    return Directions(("anger", "fear", "joy"), VECTORS, (1, 2, 3), {"model": "made up"})


@pytest.fixture
def found() -> Differences:
    vectors = torch.randn(7, 4, 8, generator=torch.Generator().manual_seed(1))
    emotions = ("joy", "fear", "joy", "fear", "joy", "fear", "joy")
    return Differences(emotions, vectors, np.array([1.0, 0.6, 0.5, 0.8, 0.7, 0.2, 1.0]))


def test_lookup_by_emotion_and_layer(directions):
    assert torch.equal(directions["fear", 2], VECTORS[1, 2])
    pooled = (1 * VECTORS[0, 3] + 2 * VECTORS[1, 3] + 3 * VECTORS[2, 3]) / 6
    torch.testing.assert_close(directions["pooled", 3], pooled)
    with pytest.raises(InputError, match="no direction of 'fera'; there are anger, fear, joy, pooled"):
        directions["fera", 0]
    with pytest.raises(InputError, match="Layer 4 is out of range; these directions have layers 0 to 3"):
        directions["fear", 4]


def test_centred_sharpened_and_scaled(directions):
    mean = VECTORS.mean(0)
    torch.testing.assert_close(directions.centred().vectors, VECTORS - mean)
    torch.testing.assert_close(directions.sharpened(2.5).vectors, mean + 2.5 * (VECTORS - mean))
    torch.testing.assert_close(directions.sharpened(1).vectors, VECTORS)
    torch.testing.assert_close(directions.sharpened(0).vectors, mean.expand(3, -1, -1))
    scaled = directions.scaled({"anger": 2.0, "fear": 0.0, "joy": -1.0}).vectors
    torch.testing.assert_close(scaled, torch.stack([2 * VECTORS[0], 0 * VECTORS[1], -VECTORS[2]]))
    by_layer = directions.scaled({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}).vectors
    torch.testing.assert_close(by_layer, torch.stack([VECTORS[:, i] * (i + 1) for i in range(4)], 1))
    torch.testing.assert_close(directions.scaled(0.5).vectors, VECTORS / 2)
    with pytest.raises(InputError, match="Strengths are given for joy; anger, fear lack one"):
        directions.scaled({"joy": 1.0})


def test_matched_directions_have_the_others_lengths(directions):
    other = Directions(directions.emotions, 3 * VECTORS.flip(-1), (1, 1, 1))
    matched = other.matched(directions)
    torch.testing.assert_close(matched.vectors, VECTORS.flip(-1))  # three times as long, and as long as before
    with pytest.raises(InputError, match="Directions of anger, fear, joy in 4 layers cannot have the lengths of those of joy in 4"):
        directions.matched(Directions(("joy",), VECTORS[:1], (1,)))


def test_random_directions_keep_norms_and_differ_by_seed(directions):
    one, again, other = directions.random(3), directions.random(3), directions.random(4)
    torch.testing.assert_close(one.vectors.norm(dim=-1), VECTORS.norm(dim=-1))
    assert torch.equal(one.vectors, again.vectors) and not torch.allclose(one.vectors, other.vectors)
    assert torch.cosine_similarity(one.vectors, VECTORS, -1).abs().max() < 0.95


def test_covariance_matched_directions_lie_where_the_samples_lie(directions):
    samples = torch.zeros(50, 4, 8)
    samples[:, :, 2] = torch.randn(50, 4, generator=GENERATOR)  # samples differ along one axis only
    drawn = directions.random(0, like=samples).vectors
    assert torch.allclose(drawn[..., 2].abs(), VECTORS.norm(dim=-1), atol=1e-4)


def test_cosines_are_scikit_learns(directions):
    np.testing.assert_allclose(directions.between_emotions(1), cosine_similarity(VECTORS[:, 1]), atol=1e-6)
    np.testing.assert_allclose(directions.between_layers("joy"), cosine_similarity(VECTORS[2]), atol=1e-6)
    frame = directions.to_frame()
    assert frame.norm.tolist() == pytest.approx(VECTORS.norm(dim=-1).flatten().tolist())
    assert len(directions.plot(1).axes) == 4


def test_files(directions, tmp_path):
    file = tmp_path / "S.safetensors"
    directions.save(file)
    read = Directions.load(file)
    assert torch.equal(read.vectors, VECTORS) and (read.emotions, read.n) == (directions.emotions, directions.n)
    assert dict(read.about) == {"model": "made up"}
    save_file({"vectors": VECTORS}, tmp_path / "other.safetensors")
    for name in ("other.safetensors", "text.safetensors"):
        (tmp_path / "text.safetensors").write_text("no tensors")
        with pytest.raises(InputError, match="holds no directions"):
            Directions.load(tmp_path / name)
    with pytest.raises(InputError, match="There is no file .*nowhere"):
        Directions.load(tmp_path / "nowhere")


def test_tau_keeps_pairs_above_it(found):
    assert found.valid(0.5) == [0, 1, 3, 4, 6]  # a hit rate of exactly tau is not above it
    S = found.directions(0.5)
    assert S.emotions == ("joy", "fear") and S.n == (3, 2)
    torch.testing.assert_close(S["joy", 2], (found.vectors[0, 2] + found.vectors[4, 2] + found.vectors[6, 2]) / 3)
    assert found.directions(-1).n == (4, 3)


def test_no_pair_above_tau_says_who_hit_what(found):
    with pytest.raises(InputError, match=r"above tau = 0.9 for fear: 0 of 3, the best hit rate is 0.80. Enough for: joy 2 of 4"):
        found.directions(0.9)
    with pytest.raises(InputError, match="Enough for: none"):
        found.directions(1.0)


def test_shuffled_directions_average_the_same_pairs_under_other_names(found):
    S, shuffled = found.directions(), found.shuffled(seed=1)
    assert shuffled.n == S.n and not torch.allclose(shuffled.vectors, S.vectors)
    torch.testing.assert_close(shuffled["pooled", 1], S["pooled", 1])
    assert torch.equal(found.shuffled(seed=1).vectors, shuffled.vectors)


def test_edits_steer_from_the_last_token_on(directions):
    (edit,) = directions.edits("joy", 1, alpha=0.5)
    assert torch.equal(edit.vector, VECTORS[2, 1]) and (edit.layer, edit.alpha, edit.positions) == (1, 0.5, ("last", "answer"))
