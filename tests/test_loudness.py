"""How loud parts are, against writes made by hand; and that random controls can be matched by it."""

import warnings

import numpy as np
import oracle
import pytest
import tiny_families
import torch
from tiny_models import picture

from emointerp.circuit import Circuit, Neuron, collect_donors
from emointerp.errors import InputError
from emointerp.evaluation import random_like
from emointerp.faithfulness import _Trial, faithfulness
from emointerp.loudness import as_loud, write_norms
from emointerp.pairs import Pair, twin_prompts
from emointerp.tracing import collect
from emointerp.veena import Veena

WORDS = {"up": ["uncle", "friend"], "down": ["morning", "church", "teacher"]}
WIDE = ("query", "last")


def some_pairs(first: int, n: int) -> list[Pair]:
    """Pairs of noise pictures."""
    seen = range(first, first + 2 * n, 2)
    return [Pair(picture(i)[:48, :64], picture(i + 1)[:48, :64], f"I ate soup {i}.", ("up", "down")[i // 2 % 2]) for i in seen]


@pytest.fixture(scope="module")
def vlm():
    return tiny_families.vlm("llava_clip")


@pytest.fixture(scope="module")
def prompts(vlm):
    return [twin_prompts(vlm, pair, "I felt")[0] for pair in some_pairs(20, 3)]


def by_hand(vlm, prompts, span: str) -> dict[str, np.ndarray]:
    """Lengths of writes of each head and neuron [layer, unit], tokens and then prompts averaged, from plain hooks."""
    d, found = vlm.anatomy.d_head, {"heads": [], "neurons": []}
    for prompt in prompts:
        seen, at = oracle.caches(vlm, prompt), list(prompt.span(span))
        heads, neurons = [], []
        for i, layer in enumerate(vlm.model.model.language_model.layers):
            out, down = layer.self_attn.o_proj.weight.detach(), layer.mlp.down_proj.weight.detach()
            z, m = seen["heads", i][at], seen["neurons", i][at]
            parts = [slice(h * d, (h + 1) * d) for h in range(vlm.anatomy.n_heads)]
            heads.append([float((z[:, mine] @ out[:, mine].T).norm(dim=-1).mean()) for mine in parts])
            neurons.append((m[:, :, None] * down.T).norm(dim=-1).mean(0).tolist())
        found["heads"].append(heads)
        found["neurons"].append(neurons)
    return {site: np.mean(some, 0) for site, some in found.items()}


@pytest.mark.parametrize("span", ["last", "query", "visual"])
def test_loudness_is_the_length_of_what_is_written(vlm, prompts, span):
    acts, expected = collect_donors(vlm, prompts, [span])[span], by_hand(vlm, prompts, span)
    for site in ("heads", "neurons"):
        np.testing.assert_allclose(write_norms(vlm, acts, site), expected[site], rtol=1e-4)
    some = collect(vlm, prompts, ["neurons"], layers=[1, 3], positions=span)
    found = write_norms(vlm, some, "neurons")
    np.testing.assert_allclose(found[[1, 3]], expected["neurons"][[1, 3]], rtol=1e-4)
    assert np.isnan(found[[0, 2]]).all()
    with pytest.raises(InputError, match="site is 'residual'; expected 'heads' or 'neurons'"):
        write_norms(vlm, acts, "residual")
    with pytest.raises(InputError, match="There are no activations to measure by"):
        write_norms(vlm, [], "heads")


def test_where_a_norm_follows_the_heads_their_outputs_are_measured():
    vlm = tiny_families.vlm("gemma3")
    prompt = twin_prompts(vlm, some_pairs(20, 1)[0], "I felt")[0]
    z = oracle.caches(vlm, prompt)["heads", 2][-1].unflatten(0, (vlm.anatomy.n_heads, -1))
    acts = collect_donors(vlm, [prompt])["last"]
    np.testing.assert_allclose(write_norms(vlm, acts, "heads")[2], z.norm(dim=-1), rtol=1e-4)


def test_as_loud_parts_are_among_the_nearest_and_each_is_drawn_once():
    norms, rng = np.random.default_rng(1).uniform(1, 5, 40), np.random.default_rng(0)
    free = [i for i in range(40) if i not in (3, 7, 11)]
    drawn = [as_loud([3, 7, 11], free, norms, 5, rng) for _ in range(400)]
    assert all(len(set(some)) == 3 and not {3, 7, 11} & set(some) for some in drawn)
    nearest = sorted(free, key=lambda i: abs(norms[i] - norms[3]))
    counts = np.bincount([some[0] for some in drawn], minlength=40)
    assert set(np.flatnonzero(counts)) <= set(nearest[:7])  # two places may be taken by the others' draws
    assert counts[nearest[:5]].min() > 30
    assert sorted(as_loud([0, 1, 2], [8, 9], norms, 4, rng)) == [8, 9]  # there are no more
    with pytest.raises(InputError, match="near is 0; expected 1 or more others to draw one from"):
        as_loud([0], [8, 9], norms, 0, rng)


def circuit_of(vlm, heads, neurons=()) -> Circuit:
    parts = [(*at, 1.0) for at in heads], [Neuron(*at, 1.0) for at in neurons]
    return Circuit.of(vlm, *parts, pairs=some_pairs(0, 2), metric="log mass")


def test_random_sets_of_faithfulness_can_be_as_loud(vlm, prompts, monkeypatch):
    """With `near` every part of a random set is one of the nearest; without it, a seed draws what it always drew."""
    held_out, donors, made = some_pairs(40, 2), collect_donors(vlm, prompts), []
    heads, neurons = [(1, 2), (3, 0)], [(2, 7), (2, 40)]
    circuit = circuit_of(vlm, heads, neurons)
    kept = _Trial.values
    monkeypatch.setattr(_Trial, "values", lambda trial, removed: made.append((trial, removed)) or kept(trial, removed))
    options = {"draws": 12, "neurons": True, "words": WORDS}
    near = faithfulness(vlm, circuit, held_out, donors, near=3, **options)
    faithfulness(vlm, circuit, held_out, donors, **options)
    norms = by_hand(vlm, prompts, "last")
    (trial, removed), (_, before) = made
    sets = [trial.universe - some for name, some in removed.items() if name.startswith("random")]
    for some in sets:
        assert sorted(key[:3] for key in some) == sorted(key[:3] for key in trial.parts)
    close = {n for at in neurons for n in np.argsort(np.abs(norms["neurons"][2] - norms["neurons"][at]))[:4].tolist()}
    assert {key[3] for some in sets for key in some if key[2] == "neuron"} <= close
    closest = np.argsort(np.abs(norms["heads"][1] - norms["heads"][1, 2]), kind="stable")[:3].tolist()
    assert {key[3] for some in sets for key in some if key[1:3] == (1, "head")} == set(closest)
    assert near.distinct <= 12 and 0 <= near.overlap <= 1
    rng, old = np.random.default_rng(0), []
    for _ in range(12):
        mine: list = []
        for place in dict.fromkeys(key[:3] for key in trial.parts):
            there = sorted(key for key in trial.universe if key[:3] == place)
            mine += [there[i] for i in rng.choice(len(there), sum(key[:3] == place for key in trial.parts), replace=False)]
        old.append(frozenset(mine))
    assert [trial.universe - before[f"random {i}"] for i in range(12)] == old
    with pytest.raises(InputError, match="near is 1; expected 2 or more, the circuit's own part among them"):
        faithfulness(vlm, circuit, held_out, donors, near=1, **options)


def test_the_control_of_veena_can_be_as_loud(vlm, prompts):
    """Upstream heads are compared at the query, others at the last token; without runs nothing changes."""
    value = Veena([(0, 1), (1, 0)], [(2, 2), (3, 0)], [(2, 7), (2, 40)], beta=3.0, gamma=2.0, l_emo=1)
    like = collect_donors(vlm, prompts, WIDE)
    drawn = [random_like(vlm, value, seed, like, near=2) for seed in range(30)]
    norms = {span: by_hand(vlm, prompts, span) for span in WIDE}

    def nearest(span: str, site: str, layer: int, unit: int, taken: list[int], k: int) -> set:
        row = norms[span][site][layer]
        others = sorted((i for i in range(len(row)) if i not in taken), key=lambda i: abs(row[i] - row[unit]))
        return {(layer, i) for i in others[:k]}

    for name, span in (("upstream", "query"), ("downstream", "last")):
        for k, (layer, head) in enumerate(getattr(value, name)):
            assert {getattr(one, name)[k] for one in drawn} == nearest(span, "heads", layer, head, [head], 2)
    allowed = nearest("last", "neurons", 2, 7, [7, 40], 3) | nearest("last", "neurons", 2, 40, [7, 40], 3)
    assert {place for one in drawn for place in one.neurons} <= allowed
    for one in drawn:
        assert len(set(one.neurons)) == 2 and (one.beta, one.gamma, one.l_emo) == (3.0, 2.0, 1)
    assert random_like(vlm, value, 4, like) == random_like(vlm, value, 4, like)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        random_like(vlm, Veena([(0, 0), (0, 1), (0, 2)], [], l_emo=1), 0, like)
    assert "The control has 2 parts fewer" in str(said[0].message)
    with pytest.raises(InputError, match="`like` has no runs at 'query'; give collect_donors"):
        random_like(vlm, value, 0, collect_donors(vlm, prompts[:1]))


def test_without_runs_a_seed_draws_what_it_always_drew(vlm):
    value = Veena([(0, 1)], [(2, 2)], [(2, 7), (2, 40)], l_emo=1)
    rng, left = np.random.default_rng(5), [i for i in range(4) if i != 1]
    up = int(rng.choice(left, 1, replace=False)[0])
    down = int(rng.choice([i for i in range(4) if i != 2], 1, replace=False)[0])
    neurons = rng.choice([i for i in range(tiny_families.MLP) if i not in (7, 40)], 2, replace=False).tolist()
    found = random_like(vlm, value, 5)
    assert (found.upstream, found.downstream) == (((0, up),), ((2, down),))
    assert sorted(found.neurons) == sorted((2, n) for n in neurons)


def test_lengths_are_no_part_of_a_graph(vlm, prompts):
    assert not torch.is_tensor(write_norms(vlm, collect_donors(vlm, prompts[:1])["last"], "heads"))
