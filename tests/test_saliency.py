"""Saliency: maps against autograd by hand, Captum, the blog's loop and closed forms; pixels land where the picture has them."""

import dataclasses
import math

import numpy as np
import pytest
import tiny_families
import torch
from captum.attr import NoiseTunnel, Saliency
from PIL import Image, ImageFilter
from torch.nn.functional import cosine_similarity, multi_head_attention_forward

import emointerp
from emointerp.emotions import BASIC
from emointerp.errors import InputError
from emointerp.models import load_tower
from emointerp.sae import SAE
from emointerp.sae.emotion import EmotionDirections, emotion_directions
from emointerp.saliency import (
    METHODS,
    TowerTarget,
    answer,
    check_maps,
    count_registers,
    feature,
    find_registers,
    plot_methods,
    saliency_map,
    smoothed_gradient,
    toward,
    tune_smoothgrad,
)
from emointerp.saliency.methods import grad_cam, gradient, integrated_gradients, random_map, rolled_out, rollout, smoothgrad
from emointerp.saliency.places import paint, place, tower_region
from emointerp.saliency.registers import robust_z
from emointerp.saliency.value import mass
from emointerp.tracing import Metric, projection
from emointerp.world import Scene, sample

EVENT = "The phone rang."
FACES = [e.scene for e in sample("test", 24, seed=3, emotions=BASIC) if e.scene.has_face]
JOY = next(scene for scene in FACES if scene.emotion == "joy")


def directions(tower) -> EmotionDirections:
    return emotion_directions(tower.embed(FACES, progress=False), [scene.emotion for scene in FACES])


@pytest.fixture(scope="module")
def tower():
    return load_tower("tiny")


@pytest.fixture(scope="module")
def target(tower):
    return toward(tower, torch.randn(tower.d, generator=torch.Generator().manual_seed(0)), "a direction")


def linear(tower, weights: torch.Tensor) -> TowerTarget:
    """f is a weighted sum of the pixels: its gradient is the weights, whatever the picture."""
    return TowerTarget("a sum", tower, lambda pixels: (pixels * weights).flatten(1).sum(1))


def weights(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(seed))


# methods


def test_smoothgrad_is_the_loop_of_the_blog(target):
    x, sigma, n = target.pixels([JOY]), 0.3, 7
    noise = torch.randn(n, *x.shape[1:], generator=torch.Generator().manual_seed(5))
    total, signed = torch.zeros(128, 128), torch.zeros(3, 128, 128)
    for eps in noise:
        noisy = (x + eps * sigma * x.std()).requires_grad_(True)
        (g,) = torch.autograd.grad(target(noisy)[0], noisy)
        total, signed = total + g.abs().mean(dim=1)[0], signed + g[0]
    ours = smoothgrad(target, JOY.image(), n=n, sigma=sigma, batch=3, seed=5)
    assert np.abs(ours - total.numpy() / n).max() < 1e-6 and ours.max() > 1e-4
    ours = smoothgrad(target, JOY.image(), n=n, sigma=sigma, signed=True, seed=5)
    assert np.abs(ours - (signed / n).abs().mean(0).numpy()).max() < 1e-6


def test_captum_agrees_where_it_draws_the_same_noise(target, monkeypatch):
    x, sigma, n = target.pixels([JOY]), 0.2, 6
    noise = torch.randn(n, *x.shape[1:], generator=torch.Generator().manual_seed(1))
    asked = []

    def drawn(mean, deviations):
        asked.append(deviations)
        return deviations * noise

    monkeypatch.setattr(torch, "normal", drawn)
    tunnel = NoiseTunnel(Saliency(target))
    asked_for = {"nt_type": "smoothgrad", "nt_samples": n, "stdevs": float(sigma * x.std())}
    theirs = tunnel.attribute(x.clone().requires_grad_(), abs=True, **asked_for)
    ours = smoothed_gradient(target, x, n, sigma, seed=1)
    assert len(asked) == 1 and (ours - theirs[0]).abs().max() < 1e-6 and ours.max() > 1e-4


def test_noise_is_the_same_for_a_seed_whatever_the_batch_and_leaves_the_global_state(target):
    x, before = target.pixels([JOY]), torch.get_rng_state()
    runs = [smoothed_gradient(target, x, 5, 0.2, batch=batch, seed=seed) for batch, seed in ((5, 0), (2, 0), (5, 1))]
    assert torch.allclose(runs[0], runs[1], atol=1e-7) and not torch.allclose(runs[0], runs[2], atol=1e-5)
    assert torch.equal(before, torch.get_rng_state())


def test_a_sum_has_its_weights_as_every_gradient(tower):
    w = weights()
    target, mean = linear(tower, w), w.abs().mean(0).numpy()
    assert np.allclose(gradient(target, JOY.image()), mean, atol=1e-6)
    assert np.allclose(smoothgrad(target, JOY.image(), n=3, sigma=0.8), mean, atol=1e-6)
    x = target.pixels([JOY])[0]
    assert np.allclose(METHODS["input x gradient"](target, JOY.image()), (x * w).sum(0).numpy(), atol=1e-4)
    along = ((x - x.mean((1, 2), keepdim=True)) * w).sum(0)
    assert np.allclose(integrated_gradients(target, JOY.image(), steps=4), along.numpy(), atol=1e-4)


def test_the_noise_is_scaled_by_the_pictures_own_spread(tower):
    squares = TowerTarget("squares", tower, lambda pixels: (pixels**3).flatten(1).sum(1) / 3)  # df/dx = x^2, so the mean of
    x = squares.pixels([JOY])  # it over noise is x^2 + (sigma std)^2
    found = smoothed_gradient(squares, x, n=400, sigma=0.5, batch=50)
    assert float((found - x[0] ** 2).mean()) == pytest.approx(float((0.5 * x.std()) ** 2), rel=0.01)


def test_the_plain_gradient_is_the_slope_that_finite_differences_see(target):
    x = target.pixels([JOY])
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(target(leaf).sum(), leaf)
    assert np.allclose(gradient(target, JOY.image()), slope[0].abs().mean(0).numpy(), atol=1e-7)
    with torch.no_grad():
        difference = float((target(x + 0.01 * way) - target(x - 0.01 * way)) / 0.02)
    assert difference == pytest.approx(float((slope * way).sum()), rel=0.02) and abs(difference) > 1e-3


def test_integrated_gradients_add_up_to_what_the_picture_adds(target):
    x = target.pixels([JOY])
    with torch.no_grad():
        difference = float(target(x) - target(x.mean((2, 3), keepdim=True).expand_as(x)))
    found = integrated_gradients(target, JOY.image(), steps=256)
    assert found.sum() == pytest.approx(difference, rel=0.02) and abs(difference) > 0.02 and found.min() < 0


def test_grad_cam_by_hand(tower, target):
    vision = tower.model
    hidden = vision.embeddings(target.pixels([JOY]))
    for layer in vision.encoder.layers[:-1]:
        hidden = layer(hidden, None)
    hidden = (hidden[0] if isinstance(hidden, tuple) else hidden).detach().requires_grad_()
    last = vision.encoder.layers[-1](hidden, None)
    pooled = vision.head(vision.post_layernorm(last[0] if isinstance(last, tuple) else last))
    way = torch.randn(tower.d, generator=torch.Generator().manual_seed(0))
    (slope,) = torch.autograd.grad(cosine_similarity(pooled, way[None]).sum(), hidden)
    cam = torch.relu((hidden * slope.mean(1, keepdim=True)).sum(-1))[0].detach().numpy().reshape(8, 8)
    found = grad_cam(target, JOY.image())
    assert np.allclose(found, np.kron(cam, np.ones((16, 16))) / 256, atol=1e-7) and cam.max() > 0


def attention_by_hand(layer: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Mean over heads of softmax(q k / sqrt(d))."""
    of, normed = layer.self_attn, layer.layer_norm1(hidden)
    q, k = (projected(normed).unflatten(-1, (of.num_heads, -1)).transpose(1, 2).double() for projected in (of.q_proj, of.k_proj))
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1).mean(1)


@torch.no_grad()
def test_rollout_by_hand_with_a_pooling_head(tower, target):
    vision, x = tower.model, target.pixels([JOY])
    hidden, product = vision.embeddings(x), torch.eye(64, dtype=torch.float64)
    for layer in vision.encoder.layers:
        product = 0.5 * (attention_by_hand(layer, hidden)[0] + torch.eye(64)) @ product
        out = layer(hidden, None)
        hidden = out[0] if isinstance(out, tuple) else out
    pool, kept = vision.head.attention, vision.post_layernorm(hidden).transpose(0, 1)
    _, taken = multi_head_attention_forward(
        vision.head.probe, kept, kept, pool.embed_dim, pool.num_heads, pool.in_proj_weight, pool.in_proj_bias, None, None, False,
        0.0, pool.out_proj.weight, pool.out_proj.bias, training=False,
    )  # fmt: skip
    truth = (taken[0].double() @ product).numpy().reshape(8, 8)
    before = vision.encoder.layers[0].self_attn.config._attn_implementation
    assert np.allclose(rollout(target, JOY.image()), np.kron(truth, np.ones((16, 16))) / 256, atol=1e-7)
    assert truth.sum() == pytest.approx(1, abs=1e-5)
    assert vision.encoder.layers[0].self_attn.config._attn_implementation == before != "eager"


@torch.no_grad()
def test_rollout_of_a_tower_with_a_class_token_starts_there():
    clip = load_tower(tiny_families.vlm("llava_clip"))
    x, vision = clip.pixels([JOY]), clip.model
    hidden, product = vision.pre_layrnorm(vision.embeddings(x)), torch.eye(17, dtype=torch.float64)
    for layer in vision.encoder.layers:
        product = 0.5 * (attention_by_hand(layer, hidden)[0] + torch.eye(17)) @ product
        out = layer(hidden, None)
        hidden = out[0] if isinstance(out, tuple) else out
    assert torch.allclose(rolled_out(clip, x)[0].double(), product[0, 1:], atol=1e-6)


def test_random_maps_favour_no_place(tower, target):
    maps = np.stack([random_map(target, JOY.image(), seed) for seed in range(300)])
    edge = np.ones((128, 128), bool)
    edge[16:-16, 16:-16] = False
    assert maps[:, edge].mean() == pytest.approx(maps[:, ~edge].mean(), rel=0.1)
    assert not np.array_equal(maps[0], maps[1]) and np.array_equal(maps[0], random_map(target, JOY.image(), 0))


# targets


def test_cosines_and_features_of_an_sae_are_those_of_its_code(tower):
    sae = dataclasses.replace(SAE.random(tower.d, 96, 12, seed=1), about={"unit": True})
    pixels, way = tower.pixels(FACES[:3]), torch.randn(96, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        pooled = torch.nn.functional.normalize(tower.pooled(pixels), dim=-1)
        scores = torch.relu(pooled @ sae.encoder.T)
        dense = torch.where(scores >= scores.topk(12).values[:, -1:], scores, 0)
        assert torch.allclose(toward(tower, way, "w", sae)(pixels), cosine_similarity(dense, way[None]), atol=1e-5)
        assert torch.allclose(toward(tower, pooled[0])(pixels), pooled @ pooled[0], atol=1e-5)
        fires = int(dense[0].argmax())
        assert torch.allclose(feature(tower, sae, fires)(pixels), dense[:, fires], atol=1e-5) and dense[0, fires] > 0


def test_features_over_patches_take_the_largest_or_all(tower):
    sae = dataclasses.replace(SAE.random(tower.d, 64, 6, seed=2), about={"reads": "patches"})
    pixels = tower.pixels(FACES[:2])
    with torch.no_grad():
        scores = torch.relu(tower.patches(pixels) @ sae.encoder.T)
        dense = torch.where(scores >= scores.topk(6).values[..., -1:], scores, 0)
        for over, truth in (("max", dense.amax(1)), ("sum", dense.sum(1))):
            i = int(truth[0].argmax())
            assert torch.allclose(feature(tower, sae, i, over)(pixels), truth[:, i], rtol=1e-4) and truth[0, i] > 0
        way = torch.randn(64, generator=torch.Generator().manual_seed(3))
        assert torch.allclose(toward(tower, way, "w", sae)(pixels), cosine_similarity(dense.mean(1), way[None]), atol=1e-5)


def logit_of(token: int) -> Metric:
    return Metric(lambda logits: logits[:, token], name="a logit")


@pytest.mark.parametrize("name", tiny_families.NAMES)
def test_an_answer_is_the_models_own_and_moves_with_the_pixels(name):
    vlm = tiny_families.vlm(name)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8))
    prompt = vlm.prompt(picture, EVENT)
    target = answer(vlm, prompt, logit_of(7))
    pixels = target.pixels([picture])
    with torch.no_grad():
        truth = vlm.model(**prompt.inputs).logits[0, -1, 7]
        other = target.pixels([picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)])
        both = target(torch.cat([pixels, other, pixels]))
    assert torch.allclose(both[[0, 2]], truth.expand(2), atol=1e-4) and abs(both[1] - truth) > 1e-3
    found = smoothgrad(target, picture, n=3, sigma=0.1)
    assert found.shape == (48, 40) and found.min() >= 0 and found.max() > 0
    leaf = pixels.clone().requires_grad_()
    (slope,) = torch.autograd.grad(target(leaf).sum(), leaf)
    way = slope / slope.norm()
    with torch.no_grad():
        step = 0.01 * pixels.std()
        difference = (target(pixels + step * way) - target(pixels - step * way)) / (2 * step)
    assert float(difference) == pytest.approx(float(slope.norm()), rel=0.05)
    cam = grad_cam(target, picture)
    assert cam.shape == (48, 40) and np.isfinite(cam).all()


@pytest.mark.parametrize("name", tiny_families.NAMES)
@pytest.mark.parametrize("size", [(48, 48), (60, 40)])
def test_what_is_read_of_a_bright_spot_lies_where_the_spot_is(name, size):
    vlm = tiny_families.vlm(name)
    dark, bright = Image.new("RGB", size), Image.new("RGB", size)
    left, top, right, bottom = size[0] // 2 - 14, size[1] // 2 - 4, size[0] // 2 - 2, size[1] // 2 + 8
    bright.paste((255, 255, 255), (left, top, right, bottom))
    target = answer(vlm, vlm.prompt(dark, EVENT), logit_of(7))
    read = (target.pixels([bright]) - target.pixels([dark])).abs().mean(-3)[0]
    heat = target.onto(read.numpy(), size)
    y, x = np.indices(heat.shape)
    assert (heat * x).sum() / heat.sum() == pytest.approx((left + right - 1) / 2, abs=1.0)
    assert (heat * y).sum() / heat.sum() == pytest.approx((top + bottom - 1) / 2, abs=1.0)
    near = np.zeros(heat.shape, bool)
    near[top - 4 : bottom + 4, left - 4 : right + 4] = True
    assert heat[near].sum() > 0.9 * heat.sum()


@pytest.mark.parametrize("name", ["llava_clip", "llava_siglip", "qwen2_vl", "gemma3", "idefics3"])
def test_what_a_tower_reads_of_a_bright_spot_lies_where_the_spot_is(name):
    tower, size = load_tower(tiny_families.vlm(name)), (60, 40)
    dark, bright = Image.new("RGB", size), Image.new("RGB", size)
    bright.paste((255, 255, 255), (14, 22, 26, 32))
    target = linear(tower, torch.ones(()))
    heat = target.onto((target.pixels([bright]) - target.pixels([dark])).abs().mean(-3)[0].numpy(), size)
    y, x = np.indices(heat.shape)
    assert (heat * x).sum() / heat.sum() == pytest.approx(19.5, abs=1.0)
    assert (heat * y).sum() / heat.sum() == pytest.approx(26.5, abs=1.0)


def test_an_emotion_against_another_is_a_difference_of_log_probabilities():
    vlm = emointerp.load()
    prompt = vlm.prompt(JOY, EVENT, answer="I felt")
    joy, fear, both = (answer(vlm, prompt, *asked) for asked in (("joy",), ("fear",), ("joy", "fear")))
    pixels = joy.pixels([JOY, JOY.neutral()])
    with torch.no_grad():
        assert torch.allclose(both(pixels), joy(pixels) - fear(pixels), atol=1e-5)
        assert joy(pixels)[0] > joy(pixels)[1] and joy(pixels).max() <= 0
    assert both.name == "log p(joy) - log p(fear)" and joy.image is prompt.image


# places


def test_a_tile_as_large_as_its_region_stays_as_it_is_and_mass_is_kept():
    tile = np.random.default_rng(0).random((1, 12, 8))
    assert np.allclose(place(tile, [(0, 0, 8, 12)], (8, 12)), tile[0], atol=1e-6)
    for size in ((24, 24), (5, 6), (30, 10)):
        assert place(tile, [(0.0, 0.0, *map(float, size))], size).sum() == pytest.approx(tile.sum(), rel=0.03)
    half = place(np.ones((2, 4, 4)), [(0, 0, 4, 4), (-2, 0, 2, 4)], (4, 4))  # the second reaches beyond the left edge
    assert half[:, :2].tolist() == [[2.0, 2.0]] * 4 and half[:, 2:].tolist() == [[1.0, 1.0]] * 4
    with pytest.raises(InputError, match="1 tiles of pixels came for 2 regions"):
        place(np.ones((1, 4, 4)), [(0, 0, 4, 4)] * 2, (4, 4))


def test_tokens_are_spread_over_their_boxes_and_add_up():
    found = paint(np.array([4.0, 6.0, 9.0]), np.array([[0, 0, 2, 2], [0, 0, 3, 2], [np.nan] * 4]), (3, 2))
    assert found.tolist() == [[2.0, 2.0, 1.0], [2.0, 2.0, 1.0]]


def test_the_region_of_a_tower_that_crops_and_of_one_that_leaves_pixels_out():
    assert tower_region(load_tower(tiny_families.vlm("llava_clip")), (60, 40), 32) == pytest.approx((10, 0, 50, 40))
    assert tower_region(load_tower(tiny_families.vlm("llava_siglip")), (60, 40), 36) == pytest.approx((0, 0, 60, 40))


# the value


def test_a_map_weighs_itself_and_draws_itself(target):
    found = saliency_map(target, JOY, n=3, sigma=0.1)
    mask = JOY.masks()["expression"]
    assert found.mass(mask) == pytest.approx(found.map[mask].sum() / found.map.sum())
    assert found.mass(mask.astype(int)) == found.mass(255 * mask.astype(np.uint8)) == found.mass(mask)  # numbers are no rows
    assert found.settings == {"n": 3, "sigma": 0.1} and np.allclose(found.raw, gradient(target, JOY.image()))
    with torch.no_grad():
        assert found.value == pytest.approx(float(target(target.pixels([JOY]))))
    assert found.heat.max() == 1 and found.heat.min() >= 0 and len(found.plot().axes) == 3
    assert len(saliency_map(target, JOY, "gradient").plot().axes) == 3
    assert len(plot_methods(target, JOY, ["gradient", "random"]).axes) == 3 and len(plot_methods(target, JOY).axes) == 10
    frame = found.to_frame().set_index(["x", "y"]).value
    assert frame[5, 90] == found.map[90, 5]
    signed = np.array([[1.0, -3.0], [0.0, 0.0]])
    assert mass(signed, np.array([[False, True], [False, False]])) == 0.75
    assert mass(np.zeros((2, 2)), np.array([[True, False], [False, False]])) == 0.25


def test_hovering_needs_no_script_and_names_are_escaped(target):
    found = saliency_map(dataclasses.replace(target, name="<b>joy"), JOY, n=2)
    page = found._repr_html_()
    assert page.count("data:image/png") == 2 and ":hover" in page and "<script" not in page
    assert "&lt;b&gt;joy" in page and "<b>joy" not in page


def test_what_cannot_be_shown_is_said(tower, target):
    vlm = tiny_families.vlm("llava_clip")
    prompt, bundled = vlm.prompt(JOY, EVENT), emointerp.load()
    sae = SAE.random(tower.d, 64, 2)
    quiet = int((sae.encode(tower.embed([JOY], progress=False)).dense()[0] == 0).nonzero()[0])
    for words, wrong in (
        ("a target of a tower needs one", lambda: saliency_map(target)),
        ("no method 'smooth'; expected one of smoothgrad, gradient", lambda: saliency_map(target, JOY, "smooth")),
        ("n is 0; expected a whole number", lambda: saliency_map(target, JOY, n=0)),
        ("sigma is -1; expected 0 or more", lambda: saliency_map(target, JOY, sigma=-1)),
        ("batch is 0", lambda: saliency_map(target, JOY, batch=0)),
        (r"shape \[3\]; embeddings of tiny have 192 numbers", lambda: toward(tower, torch.ones(3))),
        (r"shape \[192\]; codes of this SAE have 64", lambda: toward(tower, torch.ones(192), sae=sae)),
        ("points nowhere", lambda: toward(tower, torch.zeros(192))),
        ("no feature 64; this SAE has features 0 to 63", lambda: feature(tower, sae, 64)),
        ("over is 'mean'; expected 'max' or 'sum'", lambda: feature(tower, sae, 0, "mean")),
        ("moves with none of its pixels", lambda: saliency_map(feature(tower, sae, quiet), JOY)),
        ("Rollout tells of a tower", lambda: rollout(answer(vlm, prompt, logit_of(7)), prompt.image)),
        ("no words of 'envy'; expected one of anger", lambda: answer(bundled, bundled.prompt(JOY, EVENT), "envy")),
        ("reads the residual stream of layer 1", lambda: answer(vlm, prompt, projection(torch.ones(32), 1))),
        (r"gives \[2\] numbers a picture", lambda: saliency_map(answer(vlm, prompt, Metric(lambda logits: logits[:, :2])))),
        (r"A picture of \(64, 64\) pixels came", lambda: answer(vlm, prompt, logit_of(7)).pixels([Image.new("RGB", (64, 64))])),
        (r"The mask has shape \[2, 2\]", lambda: mass(np.ones((3, 3)), np.ones((2, 2), bool))),
    ):
        with pytest.raises(InputError, match=words):
            wrong()


# registers


def lengthened(tower, patch: int, times: float):
    """A hook that makes one patch's vector longer before the tower's last layer but one."""

    def longer(module, given, out):
        hidden = out[0] if isinstance(out, tuple) else out
        changed = hidden.clone()
        changed[:, patch] *= times
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    return tower.model.encoder.layers[-3].register_forward_hook(longer)


def test_a_planted_register_is_marked_on_the_background_and_only_there(tower):
    empty = Scene()
    assert not find_registers(tower, empty).marked.any()
    for patch, marked in ((0, True), (27, False)):  # a corner; the middle of the face
        hook = lengthened(tower, patch, 30)
        try:
            found = find_registers(tower, empty)
            shown = saliency_map(toward(tower, torch.ones(tower.d)), empty, n=2)
        finally:
            hook.remove()
        assert found.high.nonzero()[0].tolist() == [patch] and bool(found.marked[patch]) == marked
        assert len(found.marked_boxes) == len(shown.registers) == marked and len(found.plot().axes) == 3
    assert find_registers(tower, empty).norms.shape == (2, 64)
    hook = lengthened(tower, 0, 30)
    shown = saliency_map(toward(tower, torch.ones(tower.d)), empty, n=2)
    hook.remove()
    kept = shown.without_registers()
    assert (kept.map[:16, :16] == 0).all() and np.array_equal(kept.map[16:], shown.map[16:]) and shown.map[:16, :16].any()


def test_robust_scores_are_those_of_the_median(tower):
    values = np.random.default_rng(0).normal(5, 2, (1, 4001))
    assert robust_z(values)[0].std() == pytest.approx(1, abs=0.05) and abs(np.median(robust_z(values))) < 1e-9
    assert (robust_z(np.ones((2, 5))) == 0).all()


def test_the_bundled_tower_has_no_registers(tower):
    counted = count_registers(tower, FACES, progress=False)
    assert len(count_registers(tower, np.asarray(FACES[0].image()), progress=False)) == 1  # its rows are no pictures
    assert (counted.high == 0).all() and (counted.marked == 0).all() and counted.longest.max() < 2


# checks


def on_expression(tower, scene: Scene) -> TowerTarget:
    """f is a sum over this scene's expression alone, so its gradient is right by construction."""
    mask = torch.tensor(scene.masks()["expression"]).float()
    return linear(tower, mask * weights(1))


def test_a_map_of_the_expression_has_all_its_mass_there(tower):
    found = check_maps(lambda scene: on_expression(tower, scene), FACES[:6], ["gradient"], draws=4, steps=4, progress=False)
    frame = found.to_frame()
    areas = [scene.masks()["expression"].mean() for scene in FACES[:6]]
    assert frame.ratio["gradient"].mean == pytest.approx(1 / np.mean(areas), rel=1e-5)
    assert found.methods == ["gradient", "picture alone", "map of another picture", "random"] and len(found.table) == 6 * (
        1 + 1 + 1 + 4
    )
    others = [FACES[:6][i - 1].masks()["expression"] * np.abs(weights(1).abs().mean(0).numpy()) for i in range(6)]
    shares = [other[scene.masks()["expression"]].sum() / other.sum() for other, scene in zip(others, FACES, strict=False)]
    assert frame.own["gradient"].mean == pytest.approx(1 / np.mean(shares), rel=1e-4)
    assert frame.loc["map of another picture"].ratio.mean == pytest.approx(np.mean(shares) / np.mean(areas), rel=1e-4)
    pictures = tower.pixels(FACES[:6])
    ink = (pictures - pictures.mean((2, 3), keepdim=True)).abs().mean(1).numpy()
    on = [some[scene.masks()["expression"]].sum() / some.sum() for some, scene in zip(ink, FACES, strict=False)]
    assert frame.ratio["picture alone"].mean == pytest.approx(np.mean(on) / np.mean(areas), rel=1e-4)
    assert 0.4 < frame.ratio["random"].mean < 2 and frame["p ratio"]["gradient"] < 0.05
    assert len(found.plot().axes) == 4 and len(found.plot_curves(["gradient", "random"]).axes) == 2


def test_deletion_takes_the_largest_cells_first(tower):
    """f is the mean of the pixels' red, and cells are taken in the order of the map: each step by hand."""
    scene = FACES[0]
    image, mean = scene.image(), torch.zeros(3, 128, 128)
    mean[0] = torch.linspace(0, 1, 128)[None] / 128**2  # the right side counts most, and no cell as much as its neighbour
    target = linear(tower, mean)
    found = check_maps(lambda _: target, FACES[:2], ["gradient"], draws=1, cells=4, steps=4, progress=False)
    blank = np.asarray(image.filter(ImageFilter.GaussianBlur(12.8)))
    for k, gone in enumerate(np.linspace(0, 128, 5).astype(int)):
        deleted, inserted = np.asarray(image).copy(), np.asarray(image).copy()
        deleted[:, 128 - gone :] = blank[:, 128 - gone :]
        inserted[:, : 128 - gone] = blank[:, : 128 - gone]
        with torch.no_grad():
            truth = target(target.pixels([deleted, inserted])).numpy()
        assert found.curves[0, :, k] == pytest.approx(truth, abs=1e-6)
    row = found.table.iloc[0]
    assert row.deletion == pytest.approx(np.trapezoid(found.curves[0, 0], dx=0.25))
    assert row.insertion == pytest.approx(np.trapezoid(found.curves[0, 1], dx=0.25))


def test_gains_are_beside_random_maps_picture_by_picture(tower):
    target = toward(tower, directions(tower).vector("joy"), "joy")
    methods = {"gradient": {}, "smoothgrad": {"n": 2}}
    found = check_maps(lambda _: target, FACES[:4], methods, draws=3, steps=3, fill="mean", progress=False)
    by = found.table.groupby(["picture", "method"])[["deletion", "insertion"]].mean().unstack()
    frame = found.to_frame()
    gain = (by["deletion"]["random"] - by["deletion"]["smoothgrad"]).mean()
    assert frame["deletion gain"]["smoothgrad"].mean == pytest.approx(gain)
    gain = (by["insertion"]["gradient"] - by["insertion"]["random"]).mean()
    assert frame["insertion gain"]["gradient"].mean == pytest.approx(gain)
    assert frame["deletion gain"]["random"].mean == 0 and frame.index[-1] == "random"


def test_pictures_that_are_no_scenes_have_no_mask_and_are_checked_all_the_same(tower):
    target = toward(tower, torch.ones(tower.d))
    images = [scene.image() for scene in FACES[:3]]
    found = check_maps(lambda _: target, images, ["grad-cam", "rollout"], draws=1, steps=2, progress=False)
    assert found.table.inside.isna().all() and found.to_frame().ratio["grad-cam"].n == 0
    assert found.to_frame()["deletion gain"]["rollout"].n == 3 and len(found.plot().axes) == 2


def test_settings_are_chosen_where_most_mass_is_on_the_expression(tower):
    """The square of pixels outside the mask: its gradient is 0 without noise and grows with it."""

    def target_of(scene: Scene) -> TowerTarget:
        mask = torch.tensor(scene.masks()["expression"]).float()
        x = tower.pixels([scene])
        return TowerTarget("f", tower, lambda p: (p * mask).sum((1, 2, 3)) + ((p - x) ** 2 * (1 - mask)).sum((1, 2, 3)))

    found = tune_smoothgrad(target_of, FACES[:3], sigmas=(0.1, 0.5), ns=(2, 4), progress=False)
    ratio = found.to_frame().ratio
    assert found.best["sigma"] == 0.1 and ratio[0.1, 4].mean > ratio[0.5, 4].mean > 1 and ratio[0.1, 4].n == 3
    assert len(found.plot().axes) == 1


def test_bad_checks_are_refused(target):
    for words, asked in (
        ("1 pictures came", {"pictures": FACES[:1]}),
        ("fill is 'noise'; expected 'blur' or 'mean'", {"fill": "noise"}),
        ("controls always come", {"methods": ["random"]}),
        ("each must be 1 or more", {"draws": 0}),
        ("no method 'lime'", {"methods": ["lime"]}),
    ):
        with pytest.raises(InputError, match=words):
            check_maps(lambda _: target, **{"pictures": FACES[:2], "progress": False} | asked)
    with pytest.raises(InputError, match="None of these scenes shows an expression"):
        tune_smoothgrad(lambda _: target, [Scene(style="mood")], progress=False)
