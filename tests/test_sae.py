"""The SAE: exact selection, sparse gradients, training that goes on, metrics and files, against dense forms written out here."""

import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import mean_squared_error, r2_score, roc_auc_score
from torch.nn.functional import normalize

from emointerp.errors import EmointerpError, InputError, OutputError
from emointerp.models import load_tower
from emointerp.sae import (
    SAE,
    Codes,
    FactorScores,
    SaeRecipe,
    aurocs,
    best_features,
    coding,
    learning,
    load_sae,
    monosemanticity,
    picture_codes,
    quality,
    save_sae,
    train_sae,
)
from emointerp.world import Scene

KINDS = list(itertools.product([True, False], [True, False]))  # tied, with biases


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_sae(d_in=6, d_hidden=40, k=5, tied=False, biases=True, seed=0, dtype=torch.float64):
    """Every tensor random, biases too."""
    tensors = [noise(*shape, seed=seed + i, dtype=dtype) for i, shape in enumerate([(d_hidden, d_in)] * 2 + [(d_hidden,), (d_in,)])]
    encoder, decoder, b_enc, b_dec = tensors
    return SAE(encoder, k, None if tied else decoder, b_enc if biases else None, b_dec if biases else None)


def dense_code(x, encoder, b_enc, k):
    """The dense form: all scores, and a mask of the k largest; no ties are expected."""
    z = (x @ encoder.T + (0 if b_enc is None else b_enc)).relu()
    kth = z.sort(-1, descending=True).values[..., k - 1 : k]
    return torch.where(z >= kth, z, 0.0)


def dense_form(sae, x):
    z = dense_code(x, sae.encoder, sae.b_enc, sae.k)
    return z, z @ (sae.encoder if sae.tied else sae.decoder) + (0 if sae.b_dec is None else sae.b_dec)


# encoding and decoding


@pytest.mark.parametrize("tied, biases", KINDS)
def test_codes_and_vectors_are_those_of_the_dense_form(tied, biases):
    sae, x = random_sae(tied=tied, biases=biases), noise(50, 6, seed=9)
    z, rebuilt = dense_form(sae, x)
    codes = sae.encode(x)
    assert torch.allclose(codes.dense(), z, atol=1e-12) and torch.allclose(sae(x), rebuilt, atol=1e-12)
    assert (codes.values.diff(dim=-1) <= 0).all()


def test_the_tied_form_is_the_blogs_formula():
    sae = SAE.random(24, 300, 7, tied=True, biases=False)
    x = normalize(noise(1, 24, seed=3, dtype=torch.float32), dim=1)[0]
    z = torch.relu(sae.encoder @ x)
    kept = torch.zeros(300).index_copy(0, z.argsort(descending=True)[:7], z.sort(descending=True).values[:7])
    assert torch.allclose(sae(x), sae.encoder.T @ kept, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 5, 16, 39, 40, 8192])
def test_chunks_give_the_same_codes(chunk):
    sae, x = random_sae(), noise(30, 6, seed=9)
    whole, parts = sae.encode(x), sae.encode(x, chunk=chunk, batch=7)
    assert torch.equal(whole.indices[whole.values > 0], parts.indices[parts.values > 0])
    assert torch.allclose(whole.values, parts.values, atol=1e-12)


def test_candidates_in_bfloat16_find_every_feature_of_the_float64_form(monkeypatch):
    sae, x = random_sae(64, 4096, 16, dtype=torch.float32), noise(40, 64, seed=9, dtype=torch.float32)
    z = dense_code(x.double(), sae.encoder.double(), sae.b_enc.double(), 16)
    full = []
    largest = coding._largest
    monkeypatch.setattr(coding, "_largest", lambda x, *rest: full.append(len(x)) or largest(x, *rest))
    codes = sae.encode(x, candidates=64)
    assert torch.equal(codes.dense() > 0, z > 0) and torch.allclose(codes.dense().double(), z, atol=1e-5)
    assert sum(full) < 4  # the short way was gone


def test_candidates_that_bfloat16_cannot_tell_apart_are_done_in_full():
    base = noise(1, 32, seed=1)
    close = base + 1e-4 * noise(200, 32, seed=2)  # 200 rows, equal but for what bfloat16 rounds away
    sae, x = SAE(torch.cat([close, noise(300, 32, seed=3) * 0.1]), 8), base + 0.1 * noise(5, 32, seed=4)
    z, _ = dense_form(sae, x)
    coarse = (x.bfloat16() @ sae.encoder.bfloat16().T).topk(12).indices
    missed = [set(some.tolist()) - set(at.tolist()) for some, at in zip(z.topk(8).indices, coarse, strict=True)]
    assert any(missed)  # candidates alone would be wrong
    assert torch.equal(sae.encode(x, candidates=12).dense() > 0, z > 0)


def test_candidates_that_are_exact_do_not_hide_a_feature_that_bfloat16_rounds_away():
    """Feature 0 scores 1.5 and is the best, by 1001.5 - 1000; in bfloat16 it is 0, and both candidates are exact there."""
    rows, x = torch.tensor([[1001.5, -1000.0], [1.0, 0.0], [0.5, 0.0], [0.25, 0.0]]), torch.ones(1, 2)
    assert rows[0].bfloat16().sum() == 0
    assert SAE(rows, 1).encode(x, candidates=2).indices.item() == 0


def test_no_full_score_is_above_the_bound_from_its_rough_one():
    for scale, seed in itertools.product([1e-3, 1.0, 300.0], range(3)):
        sae, x = random_sae(48, 500, 4, seed=seed, dtype=torch.float32), scale * noise(20, 48, seed=9, dtype=torch.float32)
        rough, exact = sae._rough, x.double() @ sae.encoder.double().T + sae.b_enc.double()
        coarse = torch.nn.functional.linear(x.bfloat16(), rough.rows, rough.bias).float()
        most = torch.stack([rough.most(x, column) for column in coarse.T], 1)
        assert (exact <= most).all() and (exact > coarse).any()
        width = (most - coarse).mean() / (exact - coarse).abs().max()
        assert 1 < width < 20  # and the bound is near enough to be of use


def test_ties_keep_exactly_k_where_a_strict_threshold_keeps_too_few():
    sae = SAE(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]]), 3)
    z = torch.relu(sae.encoder @ torch.tensor([1.0, 0.0]))
    assert (z > z.sort(descending=True).values[2]).sum() == 1  # the slip
    codes = sae.encode(torch.tensor([1.0, 0.0]))
    assert codes.values.tolist() == [2.0, 1.0, 1.0] and len(set(codes.indices.tolist()) & {0, 1, 2, 3}) == 3


def test_fewer_than_k_fire_where_fewer_are_positive():
    sae = SAE(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]), 2)
    codes = sae.encode(torch.tensor([[3.0, -1.0], [-1.0, -1.0], [0.0, 0.0]]))
    assert codes.values.tolist() == [[3.0, 0.0], [2.0, 0.0], [0.0, 0.0]]
    assert sae.decode(codes).tolist() == [[3.0, 0.0], [-2.0, -2.0], [0.0, 0.0]]
    assert codes.fired().tolist() == [1, 0, 1]


def test_leading_axes_and_empty_collections_keep_their_shape():
    sae, x = random_sae(), noise(4, 3, 6, seed=9)
    codes = sae.encode(x)
    assert codes.values.shape == (4, 3, 5) and sae(x).shape == (4, 3, 6)
    assert torch.allclose(sae(x)[2, 1], sae(x[2, 1]), atol=1e-12)
    assert sae(x[:0]).shape == (0, 3, 6)


def test_codes_by_hand():
    codes = Codes(torch.tensor([[[3.0, 1.0]], [[2.0, 0.0]]]), torch.tensor([[[4, 1]], [[1, 0]]]), 5)
    assert codes.dense().tolist() == [[[0, 1, 0, 0, 3]], [[0, 2, 0, 0, 0]]]
    assert codes.mean().tolist() == [0, 1.5, 0, 0, 1.5] and codes.feature(1).tolist() == [[1], [2]]
    assert codes.fired().tolist() == [0, 2, 0, 0, 1] and codes.flat().values.shape == (2, 2)
    assert repr(codes) == "Codes(2 x 1 x 2 of 5 features)"


# gradients


@pytest.mark.parametrize("tied, biases", KINDS)
@pytest.mark.parametrize("chunk", [None, 7])
def test_sparse_gradients_are_those_of_the_dense_form(tied, biases, chunk):
    sae, x, weights = random_sae(tied=tied, biases=biases, k=30), noise(20, 6, seed=9), noise(20, 6, seed=8)
    leaves = [t.clone().requires_grad_() for t in (x, sae.encoder, sae.decoder, sae.b_enc, sae.b_dec) if t is not None]

    def spread(tensors):
        x, encoder, *rest = tensors
        decoder = encoder if tied else rest.pop(0)
        return x, encoder, decoder, *(rest or (None, None))

    x, encoder, decoder, b_enc, b_dec = spread(leaves)
    values, indices = coding.sparse_encode(x, encoder, b_enc, 30, chunk)
    sparse = torch.autograd.grad((coding.sparse_decode(values, indices, decoder, b_dec) * weights).sum(), leaves)
    z = dense_code(x, encoder, b_enc, 30)
    dense = torch.autograd.grad(((z @ decoder + (0 if b_dec is None else b_dec)) * weights).sum(), leaves)
    assert (values == 0).any()  # some rows have fewer than k positive scores: no gradient may pass there
    for a, b in zip(sparse, dense, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_a_feature_can_be_traced_to_the_vector():
    sae, x = random_sae(), noise(1, 6, seed=9).requires_grad_()
    strongest = int(sae.encode(x).indices[0, 0])
    (gradient,) = torch.autograd.grad(sae.encode(x).feature(strongest).sum(), x)
    assert torch.allclose(gradient[0], sae.encoder[strongest])


# errors of values


def test_a_wrong_width_names_both():
    sae = SAE(torch.ones(8, 4), 2, about={"tower": "SigLIP SO400M"})
    with pytest.raises(InputError, match="of SigLIP SO400M reads vectors of width 4, and those given are 3 wide; take an SAE"):
        sae.encode(torch.ones(2, 3))
    with pytest.raises(InputError, match="SigLIP SO400M reads vectors of width 4, and those given of tiny are 192 wide"):
        sae.check(192, "tiny")


def test_values_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="k is 9; expected 1 to 8"):
        SAE(torch.ones(8, 4), 9)
    with pytest.raises(InputError, match=r"decoder is \[4, 8\]; with an encoder of 8 x 4 it must be \[8, 4\]"):
        SAE(torch.ones(8, 4), 2, torch.ones(4, 8))
    with pytest.raises(InputError, match="There is no feature 8; this SAE has features 0 to 7"):
        SAE(torch.ones(8, 4), 2).encode(torch.ones(4)).feature(8)
    with pytest.raises(InputError, match="codes are of an SAE with 40 features; this one has 8"):
        SAE(torch.ones(8, 6), 2).decode(random_sae().encode(noise(2, 6)))


# training


def planted(n, d_in=16, features=24, fired=3, seed=0):
    """Vectors that are sums of a few of 24 planted directions, and the directions."""
    rng = np.random.default_rng(seed)
    directions = normalize(noise(features, d_in, seed=77, dtype=torch.float32), dim=1)
    amounts = torch.zeros(n, features)
    for row in amounts:
        row[torch.from_numpy(rng.choice(features, fired, replace=False))] = torch.from_numpy(rng.uniform(1, 2, fired)).float()
    return amounts @ directions, directions, amounts


SMALL = SaeRecipe(d_hidden=48, k=3, steps=40, batch=32, rate=0.01, warmup=5, dead_after=200)


@pytest.mark.parametrize("tied", [True, False])
def test_a_cut_off_run_continues_to_the_same_weights(tmp_path, monkeypatch, tied):
    data, recipe = planted(300)[0], SaeRecipe(**{**vars(SMALL), "tied": tied})
    whole = train_sae(data, recipe)
    batch = learning._batch

    def cut(data, step, recipe):
        if step == 27:
            raise KeyboardInterrupt
        return batch(data, step, recipe)

    monkeypatch.setattr(learning, "_batch", cut)
    with pytest.raises(KeyboardInterrupt):
        train_sae(data, recipe, tmp_path, every=10)
    steps = []
    monkeypatch.setattr(learning, "_batch", lambda data, step, recipe: steps.append(step) or batch(data, step, recipe))
    resumed = train_sae(data, recipe, tmp_path, every=10)
    assert steps == list(range(20, 40))
    for name in ("encoder", "b_enc", "b_dec") + (() if tied else ("decoder",)):
        assert torch.equal(getattr(whole, name), getattr(resumed, name))
    assert resumed.tied == tied and resumed.about["recipe"]["k"] == 3
    assert [json.loads(line)["step"] for line in (tmp_path / "sae.log.jsonl").open()] == [10, 20, 30, 40]


def test_every_vector_is_seen_once_an_epoch():
    data, recipe = torch.arange(40.0)[:, None], SaeRecipe(d_hidden=2, k=1, steps=1, batch=8)
    seen = torch.cat([learning._batch(data, step, recipe)[:, 0] for step in range(10)]).tolist()
    assert sorted(seen[:40]) == list(range(40)) == sorted(seen[40:]) and seen[:40] != seen[40:]


def test_a_memory_map_of_half_floats_trains_as_the_tensor_does(tmp_path):
    data = planted(300)[0].half()
    np.save(tmp_path / "vectors.npy", data.numpy())
    mapped = train_sae(np.load(tmp_path / "vectors.npy", mmap_mode="r"), SMALL)
    assert torch.equal(mapped.encoder, train_sae(data, SMALL).encoder)


def test_training_finds_the_planted_features():
    data, directions, amounts = planted(3000)
    sae = train_sae(data, SaeRecipe(d_hidden=48, k=3, steps=1500, batch=64, rate=3e-3, dead_after=2000))
    test, _, there = planted(1000, seed=1)
    assert quality(sae, test).explained_variance > 0.85
    assert ((normalize(sae.features, dim=1) @ directions.T).amax(0) > 0.9).float().mean() > 0.8
    assert torch.allclose(sae.decoder.norm(dim=1), torch.ones(48), atol=1e-5)
    told, held = (pd.DataFrame((amount > 0).numpy().astype(int)) for amount in (amounts, there))
    found = best_features(sae.encode(data), told, (sae.encode(test), held))
    assert found.to_frame()["held out"].median() > 0.9 and found.share(0.8) > 0.7


@pytest.mark.parametrize("biases", [True, False])
def test_restarts_bring_dead_features_back(monkeypatch, biases):
    start = learning._start

    def asleep(data, recipe):
        """All but 8 of 48 features begin so that they hardly ever fire."""
        coder, *told = start(data, recipe)
        if biases:
            coder.b_enc.data[8:] -= 4
        else:
            coder.encoder.data[8:] *= 0.01
        return coder, *told

    monkeypatch.setattr(learning, "_start", asleep)
    data, test = planted(2000)[0], planted(500, seed=1)[0]
    recipe = {"d_hidden": 48, "k": 3, "steps": 800, "batch": 64, "rate": 3e-3, "dead_after": 1000, "biases": biases}
    without = quality(train_sae(data, SaeRecipe(**recipe, revival="none")), test)
    revived = quality(train_sae(data, SaeRecipe(**recipe)), test)
    assert revived.dead < without.dead - 0.2
    assert revived.explained_variance > without.explained_variance


def test_the_losses_are_their_formulas():
    data, recipe = planted(50)[0], SaeRecipe(d_hidden=40, k=3, steps=1, dead_after=100, aux_k=6, revival="auxiliary")
    coder, variance, _ = learning._start(data, recipe)
    assert variance == pytest.approx(float(data.var(0, correction=0).sum()), rel=1e-5)
    asleep = torch.arange(0, 40, 5)  # 8 of them, whatever they would do
    coder.silent[asleep] = 100 - 1
    coder.b_enc.data[asleep] -= 100  # so that they cannot fire
    fvu, aux = coder.losses(data, variance)
    encoder, decoder, b_enc, b_dec = (p.detach() for p in (coder.encoder, coder.decoder, coder.b_enc, coder.b_dec))
    error = data - dense_code(data, encoder, b_enc, 3) @ decoder - b_dec
    assert fvu.item() == pytest.approx(float(error.square().sum(1).mean()) / variance, rel=1e-5)
    scores = data @ encoder[asleep].T + b_enc[asleep]  # all below zero: they count as they are
    kept = torch.where(scores >= scores.sort(1, descending=True).values[:, 5:6], scores, 0.0)
    assert aux.item() == pytest.approx(float((error - kept @ decoder[asleep]).square().sum(1).mean()) / variance, rel=1e-4)
    rebuilt = scores[:, :4] @ decoder[asleep[:4]]  # fewer dead than aux_k: less weight
    few = coder._auxiliary(data, error, decoder, asleep[:4])
    assert few.item() == pytest.approx(4 / 6 * float((error - rebuilt).square().sum(1).mean()), rel=1e-4)


def test_training_on_what_cannot_be_learned_from_is_refused(tmp_path):
    data = planted(50)[0]
    with pytest.raises(InputError, match="variance is nan; expected finite numbers"):
        train_sae(torch.full((5, 3), torch.nan), SMALL)
    with pytest.raises(InputError, match="variance is 0.0"):
        train_sae(torch.ones(5, 3), SMALL)
    with pytest.raises(InputError, match="1 vectors came"):
        train_sae(torch.ones(1, 3), SMALL)
    with pytest.raises(InputError, match="revival is 'prayer'; expected 'restart', 'auxiliary', 'none'"):
        train_sae(data, SaeRecipe(**{**vars(SMALL), "revival": "prayer"}))
    with pytest.raises(EmointerpError, match="The loss became nan in step .*; take a rate below"):
        holed = data.clone().repeat(100, 1)
        holed[learning.np.setdiff1d(range(5000), np.random.default_rng(0).permutation(5000)[: learning.SAMPLE])] = torch.nan
        train_sae(holed, SaeRecipe(**{**vars(SMALL), "steps": 200}))
    train_sae(data, SMALL, tmp_path)
    with pytest.raises(InputError, match="was begun with recipe .* and cannot go on with .*another folder"):
        train_sae(data, SaeRecipe(**{**vars(SMALL), "k": 4}), tmp_path)
    with pytest.raises(InputError, match=r"was begun with data \[50, 16, .* and cannot go on with \[49, 16, "):
        train_sae(data[1:], SMALL, tmp_path)
    with pytest.raises(InputError, match=r"was begun with data \[50, 16, .* and cannot go on with \[50, 16, "):
        train_sae(data * 1.001, SMALL, tmp_path)
    (tmp_path / "sae.safetensors").write_bytes((tmp_path / "sae.safetensors").read_bytes()[:-100])
    with pytest.raises(InputError, match="is no whole checkpoint .*take it away to begin anew"):
        train_sae(data, SMALL, tmp_path)


# metrics


def test_quality_is_that_of_scikit_learn():
    sae, x = random_sae(k=3), noise(70, 6, seed=9)
    z, rebuilt = dense_form(sae, x)
    got = quality(sae, x, batch=16)
    assert got.explained_variance == pytest.approx(r2_score(x, rebuilt, multioutput="variance_weighted"))
    assert got.mse == pytest.approx(mean_squared_error(x, rebuilt))
    assert got.l0 == pytest.approx(float((z > 0).sum(1).double().mean()))
    assert got.dead == pytest.approx(float((z == 0).all(0).double().mean()))
    assert np.allclose(got.firing, (z > 0).double().mean(0))
    assert list(got.to_frame().columns) == ["n", "explained variance", "mse", "l0", "dead"]
    drawn = got.plot().axes[0]
    assert sum(bar.get_height() for bar in drawn.patches) == (got.firing > 0).sum()


def test_l0_is_k_where_k_scores_are_positive():
    x = noise(30, 6, seed=9)
    assert quality(random_sae(k=3, biases=False), x).l0 == 3
    assert quality(random_sae(k=38, biases=False), x).l0 < 38


def test_quality_needs_vectors_that_differ():
    with pytest.raises(InputError, match="at least two vectors that differ; 3 came, of variance 0"):
        quality(random_sae(), torch.ones(3, 6, dtype=torch.float64))


def test_quality_refuses_vectors_of_other_lengths_than_were_read():
    """As the tower gives them; without a word the bundled SAE seemed to explain a third of their variance."""
    x = noise(40, 192, seed=9)
    with pytest.raises(InputError, match="reads vectors of length 1; these have 13.* on average. Divide each by its own"):
        quality(load_sae("tiny"), x)
    assert quality(load_sae("tiny"), x / x.norm(dim=-1, keepdim=True)).l0 == 32


def test_quality_of_patches_is_that_of_their_vectors():
    sae, x = random_sae(k=3), noise(70, 6, seed=9)
    whole, patches = quality(sae, x), quality(sae, x.reshape(10, 7, 6))
    assert (patches.n, patches.l0, patches.explained_variance) == (70, whole.l0, pytest.approx(whole.explained_variance))


def test_what_was_trained_on_vectors_of_length_1_says_so():
    data = noise(200, 6)
    recipe = SaeRecipe(d_hidden=12, k=3, steps=5)
    assert train_sae(data / data.norm(dim=-1, keepdim=True), recipe).about["unit"]
    assert "unit" not in train_sae(data, recipe).about
    assert not train_sae(data / data.norm(dim=-1, keepdim=True), recipe, about={"unit": False}).about["unit"]


def test_one_folder_holds_one_sae(tmp_path):
    """What `load_sae` found first came back: another's weights, or these with this one's k."""
    save_sae(random_sae(k=3), tmp_path, "saelens")
    for form in ("emointerp", "sparsify"):
        with pytest.raises(OutputError, match="holds an SAE in another form .sae_weights.safetensors.; give another folder"):
            save_sae(random_sae(k=5), tmp_path, form)
    assert load_sae(save_sae(random_sae(k=5), tmp_path, "saelens")).k == 5


def test_codes_of_one_picture_as_an_array_are_one():
    sae, tower, scene = load_sae("tiny"), load_tower(), Scene()
    one, same = (picture_codes(sae, tower, given, progress=False) for given in (scene.pixels(), [scene]))
    assert len(one.values) == 1 and torch.equal(one.values, same.values)


def test_monosemanticity_is_the_sum_over_pairs():
    sae, x, embeddings = random_sae(), noise(25, 6, seed=9), noise(25, 11, seed=5)
    z, unit = sae.encode(x).dense(), normalize(embeddings, dim=1)
    for chunk in (8192, 7):
        got = monosemanticity(sae.encode(x), embeddings, chunk=chunk)
        for i in range(40):
            pairs = [(z[a, i] * z[b, i], unit[a] @ unit[b]) for a, b in itertools.combinations(range(25), 2)]
            total = sum(float(w) for w, _ in pairs)
            expected = sum(float(w * c) for w, c in pairs) / total if total else np.nan
            assert got[i] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    assert np.isnan(got).any() or (z > 0).sum(0).min() >= 2


def test_one_picture_says_nothing_of_meaning_and_equal_pictures_everything():
    codes = Codes(torch.tensor([[1.0, 0.5], [2.0, 0.0]]), torch.tensor([[0, 1], [0, 2]]), 3)
    got = monosemanticity(codes, torch.tensor([[2.0, 0.0], [5.0, 0.0]]))
    assert got[0] == pytest.approx(1) and np.isnan(got[1:]).all()


def test_aurocs_are_those_of_scikit_learn_with_ties():
    sae, x = random_sae(d_hidden=20, k=4), noise(60, 6, seed=9)
    codes = sae.encode(x)
    codes = Codes((codes.values * 2).round() / 2, codes.indices, 20)  # many ties, some at 0
    labels = pd.DataFrame({"a": np.arange(60) % 2, "b": (np.arange(60) < 7).astype(int), "c": (x[:, 0] > 0).int().numpy()})
    got, dense = aurocs(codes, labels), codes.dense().numpy()
    for row, name in zip(got, labels, strict=True):
        assert np.allclose(row, [roc_auc_score(labels[name], column) for column in dense.T])


def test_the_best_feature_is_found_and_judged_elsewhere():
    codes = Codes(torch.tensor([[2.0], [3.0], [1.0], [1.0]]), torch.tensor([[1], [1], [0], [2]]), 4)
    factors = pd.DataFrame({"hat": [1, 1, 0, 0], "rain": [0, 0, 0, 1]})
    elsewhere = Codes(torch.tensor([[2.0], [3.0], [1.0], [1.0]]), torch.tensor([[1], [0], [1], [0]]), 4)
    found = best_features(codes, factors, (elsewhere, factors[["rain", "hat"]]))
    table = found.to_frame().set_index("factor")
    assert table.loc["hat", ["feature", "auroc", "prevalence"]].tolist() == [1, 1, 0.5]
    assert table.loc["rain", ["feature", "auroc", "prevalence"]].tolist() == [2, 1, 0.25]
    assert table.loc["hat", "held out"] == pytest.approx(0.625) and table.loc["rain", "held out"] == 0.5
    holed = FactorScores(found.to_frame().replace({"held out": {0.5: np.nan}}))
    assert holed.share(0.7) == 0 and holed.share(0.6) == 1  # 1.0 where it was chosen is no held-out number
    assert found.share(0.6) == 0.5 and best_features(codes, factors).share(0.6) == 1
    labels = [text.get_text() for text in found.plot().axes[0].get_yticklabels()]
    assert set(labels) == {"hat · 1", "rain · 2"}


def test_factors_that_do_not_fit_are_refused():
    codes = Codes(torch.ones(4, 1), torch.zeros(4, 1, dtype=torch.long), 3)
    with pytest.raises(InputError, match="Factor 'hat' holds 1 in all 4 rows; AUROC needs both 0 and 1"):
        aurocs(codes, pd.DataFrame({"hat": [1, 1, 1, 1]}))
    with pytest.raises(InputError, match="There are 4 codes and 3 rows of factors"):
        aurocs(codes, pd.DataFrame({"hat": [1, 0, 1]}))
    with pytest.raises(InputError, match="There are 4 codes and 5 embeddings"):
        monosemanticity(codes, torch.ones(5, 2))
    held = pd.DataFrame({"hat": [1, 0, 1, 0]})
    with pytest.raises(InputError, match="held-out factors lack hat"):
        best_features(codes, held, (codes, held.rename(columns={"hat": "cap"})))


# files


def same(a, b, atol=0.0):
    x = noise(40, a.d_in, seed=9).to(a.encoder)
    return torch.allclose(a.encode(x).dense(), b.encode(x).dense(), atol=atol) and torch.allclose(a(x), b(x), atol=atol)


@pytest.mark.parametrize("tied, biases", KINDS)
def test_our_own_form_comes_back_as_it_was(tmp_path, tied, biases):
    sae = SAE.random(6, 40, 5, tied, biases).to(torch.float64)
    sae = SAE(sae.encoder, 5, sae.decoder, sae.b_enc, sae.b_dec, {"tower": "tiny", "names": ["ä"]})
    back = load_sae(save_sae(sae, tmp_path / "a folder"))
    assert (back.tied, back.k, back.about, repr(back)) == (tied, 5, sae.about, repr(sae))
    assert torch.equal(back.encoder, sae.encoder) and same(sae, back)


def saelens_form(folder, x):
    """What SAELens' TopKSAE computes (sae_lens/saes/topk_sae.py), from its two files alone."""
    settings, t = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae_weights.safetensors")
    scores = (x - t["b_dec"] * settings["apply_b_dec_to_input"]) @ t["W_enc"] + t["b_enc"]
    norms = t["W_dec"].norm(dim=-1) if settings["rescale_acts_by_decoder_norm"] else torch.ones(len(t["W_dec"]))
    top = (scores * norms).topk(settings["k"], dim=-1)
    acts = torch.zeros_like(scores).scatter(-1, top.indices, top.values.relu())
    return acts, acts / norms @ t["W_dec"] + t["b_dec"]


def sparsify_form(folder, x):
    """What sparsify's SparseCoder computes (sparsify/sparse_coder.py), from its two files alone."""
    settings, t = json.loads((folder / "cfg.json").read_text()), load_file(folder / "sae.safetensors")
    scores = ((x - t["b_dec"]) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    top = scores.topk(settings["k"], dim=-1)
    acts = torch.zeros_like(scores).scatter(-1, top.indices, top.values)
    return acts, acts @ t["W_dec"] + t["b_dec"]


@pytest.mark.parametrize("form, compute", [("saelens", saelens_form), ("sparsify", sparsify_form)])
@pytest.mark.parametrize("tied, biases", KINDS)
def test_other_programs_compute_the_same_from_what_we_write(tmp_path, form, compute, tied, biases):
    sae, x = random_sae(tied=tied, biases=biases, dtype=torch.float32), noise(40, 6, seed=9, dtype=torch.float32)
    acts, rebuilt = compute(save_sae(sae, tmp_path, form), x)
    assert torch.allclose(acts, sae.encode(x).dense(), atol=1e-5) and torch.allclose(rebuilt, sae(x), atol=1e-5)
    assert same(sae, load_sae(tmp_path), atol=1e-5)


@pytest.mark.parametrize("form", ["saelens", "sparsify"])
def test_what_an_sae_reads_is_kept_in_the_forms_of_others(tmp_path, form):
    said = {"tower": "tiny", "reads": "patches", "unit": True}
    back = load_sae(save_sae(replace(random_sae(), about=said), tmp_path, form)).about
    assert {name: back[name] for name in said} == said


def saelens_folder(folder, **settings):
    tensors = {"W_enc": noise(6, 40), "W_dec": noise(40, 6, seed=1), "b_enc": noise(40, seed=2), "b_dec": noise(6, seed=3)}
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    base = {"architecture": "topk", "k": 5, "d_in": 6, "d_sae": 40, "normalize_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps(base | settings))
    return folder


@pytest.mark.parametrize("centred, rescaled", KINDS)
def test_saelens_forms_are_read_as_saelens_computes_them(tmp_path, centred, rescaled):
    folder = saelens_folder(tmp_path, apply_b_dec_to_input=centred, rescale_acts_by_decoder_norm=rescaled)
    sae, x = load_sae(folder), noise(40, 6, seed=9)
    acts, rebuilt = saelens_form(folder, x)
    assert torch.allclose(sae.encode(x).dense(), acts, atol=1e-10) and torch.allclose(sae(x), rebuilt, atol=1e-10)


RELEASE = """
import dataclasses, safetensors.torch, sys, torch
import model

@dataclasses.dataclass
class TrainConfig:
    model: object
    lr: float

config = TrainConfig(model.SAEConfig(6, 40, 5, False, "cuda", torch.float32), 3e-4)
up, down = torch.nn.Linear(6, 40, bias=False), torch.nn.Linear(40, 6)
net = torch.nn.ModuleDict({"up_proj": up, "down_proj": down})
torch.save({"model": net.state_dict(), "config": config}, sys.argv[1])
safetensors.torch.save_file(net.state_dict(), "plain.safetensors")
"""
RELEASE_MODEL = """
import dataclasses, torch

@dataclasses.dataclass
class SAEConfig:
    d_emb: int
    d_hidden: int
    top_k: int
    up_proj_bias: bool
    device: str
    dtype: torch.dtype
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A file of the release's exact form, written by a program like the one that wrote it, whose classes are not here."""
    folder = tmp_path_factory.mktemp("release")
    (folder / "train.py").write_text(RELEASE)
    (folder / "model.py").write_text(RELEASE_MODEL)
    subprocess.run([sys.executable, "train.py", "big.pt"], cwd=folder, check=True)
    return folder / "big.pt"


def test_the_public_release_is_read(release):
    sae = load_sae(release)
    assert repr(sae) == "SAE(6 -> 40, top 5, untied, b_dec)" and sae.about["settings"]["d_emb"] == 6
    assert (sae.about["reads"], sae.about["unit"]) == ("pooled", True)  # SigLIP's vectors come to it at length 1
    held, x = load_file(release.parent / "plain.safetensors"), noise(30, 6, dtype=torch.float32)
    scores = torch.relu(x @ held["up_proj.weight"].T)
    kept = torch.where(scores > scores.kthvalue(40 - 5, dim=-1, keepdim=True).values, scores, 0.0)  # as its model.py selects
    assert torch.allclose(sae.encode(x).dense(), kept, atol=1e-6)
    assert torch.allclose(sae(x), kept @ held["down_proj.weight"].T + held["down_proj.bias"], atol=1e-6)


class Harmful:
    """Pickled, it asks for a folder to be made when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path):
    torch.save({"model": {}, "config": Harmful(tmp_path / "made")}, tmp_path / "bad.pt")
    with pytest.raises(InputError, match=r"bad.pt is refused: it asks to run \w+.mkdir. An SAE is tensors and settings"):
        load_sae(tmp_path / "bad.pt")
    assert not (tmp_path / "made").exists()


def test_broken_torch_files_say_so(tmp_path, release):
    (tmp_path / "cut.pt").write_bytes(release.read_bytes()[:-200])
    (tmp_path / "text.pt").write_text("hello")
    for name in ("cut.pt", "text.pt"):
        with pytest.raises(InputError, match=f"{name} is no whole file of torch.save"):
            load_sae(tmp_path / name)
    torch.save({"up_proj.weight": torch.ones(4, 2)}, tmp_path / "bare.pt")
    with pytest.raises(InputError, match="bare.pt lacks 'model' and 'config'"):
        load_sae(tmp_path / "bare.pt")


def test_broken_folders_say_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="There is no SAE at .*expected a .pt file, or a folder with one of these pairs: sae.json"):
        load_sae(tmp_path)
    folder = saelens_folder(tmp_path / "lens")
    weights = folder / "sae_weights.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-50])
    with pytest.raises(InputError, match="sae_weights.safetensors is broken or cut off"):
        load_sae(folder)
    save_file({"W_enc": torch.ones(6, 40)}, weights)
    with pytest.raises(InputError, match="lens lacks 'W_dec'; it has W_enc, architecture"):
        load_sae(folder)
    save_file({name: torch.ones(3, 5) for name in ("W_enc", "W_dec", "b_enc", "b_dec")}, weights)
    with pytest.raises(InputError, match="lens holds no SAE that can be used"):
        load_sae(folder)
    weights.write_bytes(whole)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(InputError, match="cfg.json is no JSON"):
        load_sae(folder)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"architecture": "jumprelu"}, "architecture is 'jumprelu'; only 'topk'"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'; only 'none'"),
        ({"k": 41}, "k is 41; expected 1 to 40"),
        ({"k": "five"}, "holds no SAE that can be used"),
    ],
)
def test_other_architectures_are_refused(tmp_path, settings, words):
    with pytest.raises(InputError, match=words):
        load_sae(saelens_folder(tmp_path, **settings))


def test_writing_where_nothing_can_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written to .*file"):
        save_sae(random_sae(), tmp_path / "file")
    with pytest.raises(InputError, match="form is 'pickle'; expected 'emointerp', 'saelens', 'sparsify'"):
        save_sae(random_sae(), tmp_path, "pickle")
