"""The two short cuts of `sae/coding.py`: gradients added to a matrix at hand, and scores made the other way round."""

import itertools

import pytest
import torch
from torch.nn.functional import linear

from emointerp.sae import coding


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(x, encoder, decoder, b_enc, k):
    z = (x @ encoder.T + b_enc).relu()
    values, indices = z.topk(k)
    return torch.zeros_like(z).scatter(-1, indices, values) @ decoder


@pytest.mark.parametrize("tied, block", list(itertools.product([True, False], [1, 3, 8192])))
def test_gradients_are_added_to_the_matrices_at_hand(monkeypatch, tied, block):
    """Twice, onto what was there: two batches before a step."""
    monkeypatch.setattr(coding, "BLOCK", block)
    x, weights, b_enc = noise(20, 6, seed=9), noise(20, 6, seed=8), noise(40, seed=7).requires_grad_()
    encoder = noise(40, 6).requires_grad_()
    decoder = encoder if tied else noise(40, 6, seed=1).requires_grad_()
    leaves = list({id(t): t for t in (encoder, decoder, b_enc)}.values())
    truth = torch.autograd.grad((dense(x, encoder, decoder, b_enc, 30) * weights).sum(), leaves)
    into = {id(t): torch.ones_like(t) for t in (encoder, decoder)}
    for _ in range(2):
        values, indices = coding.sparse_encode(x, encoder, b_enc, 30, into=into[id(encoder)])
        (coding.sparse_decode(values, indices, decoder, None, into=into[id(decoder)]) * weights).sum().backward()
    assert encoder.grad is None and decoder.grad is None  # nothing came by the other road
    found = [into[id(t)] - 1 for t in leaves[:-1]] + [b_enc.grad]
    for a, b in zip(found, truth, strict=True):
        torch.testing.assert_close(a, 2 * b, atol=1e-10, rtol=0)


def test_rows_that_did_not_fire_are_not_touched():
    x, encoder = noise(3, 6, seed=9), noise(40, 6).requires_grad_()
    into = torch.full((40, 6), torch.nan, dtype=torch.float64)
    values, indices = coding.sparse_encode(x, encoder, None, 2, into=into)
    values.sum().backward()
    untouched = sorted(set(range(40)) - set(indices.flatten().tolist()))
    assert 34 <= len(untouched) < 40 and into[untouched].isnan().all()


def test_no_gradient_is_written_where_none_is_asked_for():
    into, decoder = torch.zeros(40, 6, dtype=torch.float64), noise(40, 6)
    values, indices = coding.sparse_encode(noise(3, 6, seed=9).requires_grad_(), noise(40, 6), None, 2, into=into)
    coding.sparse_decode(values, indices, decoder, None, into=into).sum().backward()
    assert not into.any()


@pytest.mark.parametrize("n, biased", list(itertools.product([0, 1, 7, 8, 9], [True, False])))
def test_scores_are_the_same_either_way_round(monkeypatch, n, biased):
    monkeypatch.setattr(coding, "TURNED", 8)  # 8 and 9 vectors go the usual way
    monkeypatch.setattr(coding, "BLOCK", 16)
    x, encoder, bias = noise(n, 6, seed=9), noise(40, 6), noise(40, seed=1) if biased else None
    torch.testing.assert_close(coding._scores(x, encoder, bias), linear(x, encoder, bias), atol=1e-12, rtol=0)
