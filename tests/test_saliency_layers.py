"""Inside towers: patches come out in rows whatever order a tower keeps them in, told by what plain hooks see of changed patches."""

import dataclasses

import numpy as np
import pytest
import tiny_families
import torch
from test_saliency import logit_of
from torch.nn.functional import conv2d, cosine_similarity
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from emointerp.emotions import BASIC
from emointerp.errors import InputError
from emointerp.models import load_tower
from emointerp.saliency import answer, check_maps, count_registers, find_registers, plot_methods, saliency_map, toward
from emointerp.saliency.layers import in_rows, layer_boxes, tower_layers
from emointerp.saliency.methods import grad_cam, rolled_out, rollout
from emointerp.world import sample

QWENS = [name for name in tiny_families.NAMES if name.startswith("qwen")]
FACES = [e.scene for e in sample("test", 24, seed=3, emotions=BASIC) if e.scene.has_face]
SIZE = 128  # pixels a side of a drawn scene
AGAINST = ("llava_onevision", "idefics3")  # random weights, of which all patches speak against `way`
SIDE = 8  # patches a side of the tiny Qwens


def seen(tower, pixels: torch.Tensor, layers) -> list[dict]:
    """What plain hooks see go into layers: hidden states, and what else is given by name."""
    found = []

    def see(module, given, named):
        found.append(named | {"hidden": given[0] if given else named["hidden_states"]})

    hooks = [layer.register_forward_pre_hook(see, with_kwargs=True) for layer in layers]
    try:
        tower.pooled(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def way(tower) -> torch.Tensor:
    return torch.randn(tower.d, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def places(tower) -> torch.Tensor:
    """Where a Qwen tower's sequence holds each patch, in rows: found by the embeddings of two pictures of noise.

    Their difference is a convolution of the pictures' difference; biases and embeddings of positions fall away.
    """
    a, b = torch.randn(2, 1, *tower.pixels(FACES[:1]).shape[1:], generator=torch.Generator().manual_seed(1))
    weight = tower.model.patch_embed.proj.weight.sum(2)  # over the two frames, which are equal
    rows = conv2d(a - b, weight, stride=weight.shape[-1])[0].flatten(1).T
    held = [seen(tower, pixels, tower.model.blocks[:1])[0]["hidden"] for pixels in (a, b)]
    distance = torch.cdist(rows, held[0] - held[1], compute_mode="donot_use_mm_for_euclid_dist")
    assert distance.min(1).values.max() < 1e-3 < distance.kthvalue(2, 1).values.min()
    return distance.argmin(1)


def test_there_are_all_qwens():
    assert QWENS == ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]


@pytest.mark.parametrize("name", tiny_families.NAMES)
@torch.no_grad()
def test_in_every_family_a_changed_patch_is_found_where_its_box_is(name):
    """Before attention a change of one patch's pixels changes one vector; the first and the last, and some between."""
    tower = load_tower(tiny_families.vlm(name))
    patch, pixels = tower.model.config.patch_size, tower.pixels(FACES[:1])
    side = pixels.shape[-1] // patch
    chosen = sorted({0, 1, side, side**2 - 2, side**2 - 1, *np.random.default_rng(0).integers(0, side**2, 6).tolist()})
    changed = pixels.repeat(len(chosen), 1, 1, 1)
    for picture, (row, column) in zip(changed, (divmod(i, side) for i in chosen), strict=True):
        picture[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].mul_(-1).add_(0.5)
    before, after = (
        in_rows(tower, seen(tower, some, tower_layers(tower)[:1])[0]["hidden"]) for some in (pixels.expand_as(changed), changed)
    )
    moved = (after - before).abs().amax(-1) > 1e-6
    assert moved.nonzero().tolist() == [[k, i] for k, i in enumerate(chosen)]
    used = side * patch
    boxes = layer_boxes(tower, (pixels.shape[-1],) * 2)
    for i in chosen:
        row, column = divmod(i, side)
        assert boxes[i] == pytest.approx(np.array([column, row, column + 1, row + 1]) * patch) and boxes.max() <= used
    assert len(boxes) == side**2


@pytest.mark.parametrize("name", QWENS)
@torch.no_grad()
def test_all_patches_of_qwens_towers_come_in_rows(name):
    tower = load_tower(tiny_families.vlm(name))
    where, pixels = places(tower), tower.pixels(FACES[:2])
    assert sorted(where.tolist()) == list(range(SIDE**2)) and where.tolist() != list(range(SIDE**2))
    hidden = seen(tower, pixels, tower.model.blocks[-1:])[0]["hidden"]
    assert torch.equal(in_rows(tower, hidden), torch.stack([one[where] for one in hidden.split(SIDE**2)]))


def test_windows_change_the_order():
    """Windows of 2 x 2 merged patches, 4 x 4 patches: the second window begins in column 4, and its second token in column 6."""
    merged, windows = (places(load_tower(tiny_families.vlm(name))).reshape(SIDE, SIDE) for name in ("qwen2_vl", "qwen2_5_vl"))
    assert merged[:2, :4].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]] and merged[2, 0] == 16
    assert windows[:4, :4].tolist() == [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert windows[0, 4:8].tolist() == [16, 17, 20, 21] and windows[4, 0] == 32


@torch.no_grad()
def test_windows_at_the_edge_may_be_smaller(monkeypatch):
    """Windows of 3 x 3 merged patches on 4 x 4 of them: what is left over is a window of its own."""
    tower = load_tower(tiny_families.vlm("qwen2_5_vl"))
    monkeypatch.setattr(tower.model, "window_size", 48)
    where = places(tower)
    hidden = seen(tower, tower.pixels(FACES[:1]), tower.model.blocks[-1:])[0]["hidden"]
    assert torch.equal(in_rows(tower, hidden)[0], hidden[where]) and where.reshape(SIDE, SIDE)[0, 6] == 36


@pytest.mark.parametrize("name", QWENS)
def test_grad_cam_of_qwens_towers_by_hand(name):
    tower = load_tower(tiny_families.vlm(name))
    target, where = toward(tower, way(tower), "a direction"), places(tower)
    kept = []
    hook = tower.model.blocks[-1].register_forward_pre_hook(lambda module, given: kept.append(given[0]))
    value = cosine_similarity(tower.pooled(tower.pixels(FACES[:1])), way(tower)[None])
    hook.remove()
    (slope,) = torch.autograd.grad(value.sum(), kept[0])
    cam = torch.relu((kept[0] * slope.mean(0, keepdim=True)).sum(-1))[where].detach().numpy().reshape(SIDE, SIDE)
    found = grad_cam(target, FACES[0].image())
    assert np.allclose(found, np.kron(cam, np.ones((16, 16))) / 256, atol=1e-7) and (cam > 0).any() and (cam == 0).any()
    assert not np.allclose(found, np.kron(cam.T, np.ones((16, 16))) / 256, atol=1e-7)


def attention_by_hand(layer: torch.nn.Module, given: dict) -> torch.Tensor:
    """Mean over heads of softmax(q k / sqrt(d)), queries and keys turned by their angles, within each chunk alone."""
    of, (cos, sin) = layer.attn, (some[:, None].double() for some in given["position_embeddings"])
    q, k, _ = of.qkv(layer.norm1(given["hidden"])).unflatten(-1, (3, of.num_heads, -1)).double().unbind(1)
    half = q.shape[-1] // 2
    q, k = (x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin for x in (q, k))
    scores = q.transpose(0, 1) @ k.permute(1, 2, 0) / q.shape[-1] ** 0.5
    chunk = torch.searchsorted(given["cu_seqlens"][1:], torch.arange(len(q)), right=True)
    return scores.masked_fill(chunk[:, None] != chunk[None], -torch.inf).softmax(-1).mean(0)


@pytest.mark.parametrize("name", QWENS)
@torch.no_grad()
def test_rollout_of_qwens_towers_by_hand(name):
    """Two pictures in one batch, each by hand alone; the vector is the mean of all patches."""
    tower = load_tower(tiny_families.vlm(name))
    pixels, where, config = tower.pixels(FACES[:2]), places(tower), tower.model.blocks[0].attn.config
    before, registered = config._attn_implementation, set(ALL_ATTENTION_FUNCTIONS)
    found = rolled_out(tower, pixels)
    assert config._attn_implementation == before != "eager" and set(ALL_ATTENTION_FUNCTIONS) == registered
    for i, picture in enumerate(pixels.split(1)):
        product = torch.eye(SIDE**2, dtype=torch.float64)
        for layer, given in zip(tower.model.blocks, seen(tower, picture, tower.model.blocks), strict=True):
            product = 0.5 * (attention_by_hand(layer, given) + torch.eye(SIDE**2)) @ product
        truth = product.mean(0)[where]
        assert torch.allclose(found[i].double(), truth, rtol=1e-4, atol=1e-9) and truth.std() > 1e-6
    assert truth.sum() == pytest.approx(1)
    painted = rollout(toward(tower, way(tower)), FACES[1].image())
    assert np.allclose(painted, np.kron(truth.reshape(SIDE, SIDE).numpy(), np.ones((16, 16))) / 256, rtol=1e-3, atol=1e-9)


@torch.no_grad()
def test_only_full_layers_see_beyond_a_window():
    """With windowed layers alone, a patch takes from its own window; nothing is left out of its share."""
    tower = load_tower(tiny_families.vlm("qwen2_5_vl"))
    chunks = [len(given["cu_seqlens"]) - 1 for given in seen(tower, tower.pixels(FACES[:1]), tower.model.blocks)]
    assert chunks == [4, 4, 1]


@pytest.mark.parametrize("name", tiny_families.NAMES)
def test_coarse_maps_can_be_had_of_every_familys_tower(name):
    tower = load_tower(tiny_families.vlm(name))
    target = toward(tower, way(tower))
    cam, rolled = (method(target, FACES[0].image()) for method in (grad_cam, rollout))
    assert cam.shape == rolled.shape == (SIZE, SIZE) and cam.min() >= 0
    assert (cam.max() > 0) == (name not in AGAINST)
    assert rolled.min() >= 0 and 0.3 < rolled.sum() <= 1 + 1e-4  # all, but for a class token's share
    counted = count_registers(tower, FACES[:2], progress=False)
    assert (counted.patches == len(layer_boxes(tower, (SIZE, SIZE)))).all()


def test_a_map_of_zeros_is_not_said_to_be_of_a_target_that_does_not_move():
    tower = load_tower(tiny_families.vlm("idefics3"))
    with pytest.raises(InputError, match="moves with its pixels, but the map by 'grad-cam' is 0 everywhere"):
        saliency_map(toward(tower, way(tower)), FACES[0], "grad-cam")
    assert saliency_map(toward(tower, -way(tower)), FACES[0], "grad-cam").map.max() > 0


@pytest.mark.parametrize("name", QWENS)
def test_a_register_planted_in_qwens_tower_is_marked_where_it_is(name):
    tower = load_tower(tiny_families.vlm(name))
    where, patch = places(tower), SIDE + 3  # row 1, column 3, which is background

    def longer(module, given, out):
        changed = out.clone()
        changed[where[patch]] *= 1000
        return changed

    hooks = [layer.register_forward_hook(longer) for layer in tower.model.blocks[-2:]]
    try:
        found = find_registers(tower, FACES[0])
    finally:
        for hook in hooks:
            hook.remove()
    assert found.high.nonzero()[0].tolist() == [patch] and found.marked_boxes.tolist() in ([[48, 16, 64, 32]], [])
    assert found.boxes[patch].tolist() == [48, 16, 64, 32] and found.norms.shape == (2, SIDE**2) and len(found.plot().axes) == 3


# what cannot be had


class Unheard(torch.nn.Module):
    """A tower whose layers are nowhere that we know."""

    def __init__(self, inner: torch.nn.Module):
        super().__init__()
        self.inner, self.config = inner, inner.config


@pytest.fixture
def strange():
    tower = load_tower("tiny")
    return dataclasses.replace(tower, model=Unheard(tower.model))


def words(figure) -> list[str]:
    """Titles, and what is written in the panels."""
    return [f"{axis.get_title()} | {' '.join(text.get_text() for text in axis.texts)}".split() for axis in figure.axes]


def test_methods_that_cannot_be_had_are_left_out_of_the_figure_and_say_why(strange):
    said = [" ".join(some) for some in words(plot_methods(toward(strange, way(strange)), FACES[0]))]
    assert said[:2] == ["the picture |", "smoothgrad |"] and said[7:9] == ["picture alone |", "random |"]
    for method, told in zip(("grad-cam", "rollout"), said[5:7], strict=True):
        assert told.startswith(f"{method}: left out | In which order the layers of Unheard hold patches is not known; take another")
    vlm = tiny_families.vlm("qwen2_vl")
    target = answer(vlm, vlm.prompt(FACES[0], "The phone rang."), logit_of(7))
    figure = plot_methods(target, FACES[0], ["gradient", "grad-cam", "rollout"])
    assert [" ".join(some)[:40] for some in words(figure)] == [
        "the picture |", "gradient |", "grad-cam |", "rollout: left out | Rollout tells of a t",
    ]  # fmt: skip
    assert "rollout: left out" in figure.alt
    with pytest.raises(InputError, match="no method 'lime'"):
        plot_methods(target, FACES[0], ["lime"])


def test_methods_that_cannot_be_had_are_left_out_of_a_check_with_a_warning(strange):
    target = toward(strange, way(strange))
    asked = {"draws": 1, "cells": 4, "steps": 2, "progress": False}
    with pytest.warns(UserWarning, match="grad-cam is left out: In which order .* rollout is left out: "):
        found = check_maps(lambda _: target, FACES[:2], ["grad-cam", "gradient", "rollout"], **asked)
    assert set(found.left_out) == {"grad-cam", "rollout"}
    assert found.methods == ["gradient", "picture alone", "map of another picture", "random"] and len(found.table) == 8
    assert len(found.plot().axes) == 4 and len(found.plot_curves(["rollout", "gradient", "random"]).axes[0].lines) == 2
    with pytest.raises(InputError, match="No method is left to check. rollout is left out: In which order"):
        check_maps(lambda _: target, FACES[:2], ["rollout"], **asked)
    with pytest.raises(InputError, match="take another method, or an `answer`"):
        saliency_map(target, FACES[0], "grad-cam")


def test_registers_of_an_unknown_tower_are_told_by_its_last_layer(strange):
    with torch.no_grad():
        truth = strange.patches(strange.pixels(FACES[:1]))[0].norm(dim=-1).numpy()
    found = find_registers(strange, FACES[0])
    assert np.allclose(found.norms, truth[None]) and len(found.boxes) == 64
