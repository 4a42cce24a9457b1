"""The TransformerLens twin against plain PyTorch hooks on the model itself, family by family."""

import copy
import importlib
import tomllib
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_families import FAMILIES, HEADS, LAYERS
from tiny_models import random_model, random_vlm  # noqa: F401
from transformer_lens import patching
from transformer_lens.factories.architecture_adapter_factory import ArchitectureAdapterFactory
from transformer_lens.tools.analysis.attribution_patching import Node, attribution_patch
from transformers import LlavaForConditionalGeneration

from emointerp.errors import InputError, ModelError
from emointerp.models import VLM, Prompt
from emointerp.models.anatomy import part
from emointerp.models.bridge import Bridge, activation_cache, bridge
from emointerp.models.qwen2_vl_adapter import Qwen2VLArchitectureAdapter

CLOSE = 2e-5
EVENT = "The phone rang twice."
NATIVE = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # attention stays inside the Hugging Face module
every_family = pytest.mark.parametrize("name", FAMILIES)


@dataclass(frozen=True, eq=False)
class Case:
    """A tiny model, its twin, two prompts of one length, and what the model was like before the twin was made."""

    vlm: VLM
    clean: Prompt
    corrupted: Prompt
    twin: Bridge
    before: dict[str, Any]


@pytest.fixture(scope="module", autouse=True)
def qwen2_vl_is_known():
    """What the entry point does, for an install that is older than it."""
    ArchitectureAdapterFactory.discover_entry_points()
    ArchitectureAdapterFactory.register_adapter("Qwen2VLForConditionalGeneration", Qwen2VLArchitectureAdapter)


@cache
def case(name: str) -> Case:
    vlm = FAMILIES[name]()
    clean, corrupted = (vlm.prompt(noise(seed), EVENT, instruction="") for seed in (0, 1))
    before = state(vlm, clean)
    return Case(vlm, clean, corrupted, bridge(vlm), before)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def state(vlm: VLM, prompt: Prompt) -> dict[str, Any]:
    return {
        "logits": logits_of(vlm, prompt),
        "names": list(vlm.model.state_dict()),
        "modules": [(name, type(module)) for name, module in vlm.model.named_modules()],
        "attention": vlm.model.config.get_text_config()._attn_implementation,
        "places": [p.data_ptr() for p in vlm.model.parameters()],
        "tokenizer": (vlm.tokenizer.padding_side, vlm.tokenizer.pad_token, len(vlm.tokenizer)),
    }


@torch.no_grad()
def logits_of(vlm: VLM, prompt: Prompt) -> torch.Tensor:
    return vlm.model(**vlm.placed(prompt.inputs)).logits


def layers_of(vlm: VLM) -> torch.nn.ModuleList:
    return part(vlm.model, vlm.anatomy.layers)


def plain_sites(layer: torch.nn.Module) -> dict[str, tuple[torch.nn.Module, bool]]:
    """Hook names, and the module whose input (True) or output (False) they stand for; Gemma 3 has norms after its sublayers."""
    sandwich = hasattr(layer, "post_feedforward_layernorm")
    return {
        "hook_resid_pre": (layer, True),
        "hook_resid_post": (layer, False),
        "hook_resid_mid": (layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm, True),
        "hook_attn_out": (layer.post_attention_layernorm if sandwich else layer.self_attn, False),
        "hook_mlp_out": (layer.post_feedforward_layernorm if sandwich else layer.mlp, False),
        "attn.hook_z": (layer.self_attn.o_proj, True),
        "mlp.hook_post": (layer.mlp.down_proj, True),
    }


@contextmanager
def hooked(module: torch.nn.Module, at_input: bool, change: Callable[[torch.Tensor], torch.Tensor | None]):
    """A plain hook on a module's first input or output; `change` returns what replaces it, or None."""

    def before(_, args, kwargs):
        given = args[0] if args else kwargs["hidden_states"]
        changed = change(given)
        if changed is not None:
            return ((changed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": changed})

    def after(_, __, out):
        changed = change(out[0] if isinstance(out, tuple) else out)
        return None if changed is None else (changed, *out[1:]) if isinstance(out, tuple) else changed

    handle = module.register_forward_pre_hook(before, with_kwargs=True) if at_input else module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


@cache
def plain_cache(name: str) -> dict[str, torch.Tensor]:
    """What plain hooks see on the clean prompt, under TransformerLens's names; z is [1, token, head, d_head]."""
    this, seen = case(name), {}
    with ExitStack() as stack:
        for i, layer in enumerate(layers_of(this.vlm)):
            for site, (module, at_input) in plain_sites(layer).items():
                keep = lambda x, key=f"blocks.{i}.{site}": seen.update({key: x.detach().clone()})  # noqa: E731
                stack.enter_context(hooked(module, at_input, keep))
        logits_of(this.vlm, this.clean)
    return {k: v.unflatten(-1, (HEADS, -1)) if k.endswith("hook_z") else v for k, v in seen.items()}


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    assert a.shape == b.shape
    return (a - b).abs().max().item()


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest difference, in units of the largest value where that is above one (residuals here reach fifteen)."""
    return difference(a, b) / max(1.0, b.abs().max().item())


def metric(logits: torch.Tensor) -> torch.Tensor:
    return logits[0, -1, 5] - logits[0, -1, 6]


@every_family
def test_the_twin_computes_the_same_logits_from_the_same_weights(name):
    this = case(name)
    with torch.no_grad():
        logits = this.twin(this.clean)
        assert difference(logits, logits_of(FAMILIES[name](attn_implementation="eager"), this.clean)) <= 1e-6
        assert gap(logits, this.before["logits"]) <= CLOSE  # of sdpa
        assert difference(this.twin(this.corrupted), logits) > 100 * CLOSE  # it sees the picture
    shared = {p.data_ptr() for p in this.twin.tl.original_model.parameters()}
    assert shared == set(this.before["places"])


@every_family
def test_the_model_itself_stays_as_it_was(name):
    this = case(name)
    this.twin.run_with_cache(this.clean)
    after = state(this.vlm, this.clean)
    assert torch.equal(after.pop("logits"), this.before["logits"])
    assert after == {k: v for k, v in this.before.items() if k != "logits"}


@every_family
def test_the_cache_holds_what_plain_hooks_see(name):
    this, plain = case(name), plain_cache(name)
    logits, found = this.twin.run_with_cache(this.clean)
    assert gap(logits, this.before["logits"]) <= CLOSE
    for key, value in plain.items():
        assert gap(found[key], value) <= CLOSE, key


@every_family
def test_the_cache_is_of_the_language_part_and_without_patterns(name):
    this = case(name)
    _, found = this.twin.run_with_cache(this.clean)
    scales = {f"blocks.{i}.{norm}.hook_scale" for i in range(LAYERS) for norm in ("ln1", "ln2")}
    assert set(found) == set(plain_cache(name)) | scales | {"ln_final.hook_scale", "hook_embed"}
    _, heads = this.twin.run_with_cache(this.clean, names_filter=lambda each: each.endswith("hook_z"))
    assert set(heads) == {f"blocks.{i}.attn.hook_z" for i in range(LAYERS)}
    touched = []
    this.twin.run_with_hooks(this.clean, [(lambda each: each.endswith("hook_z"), lambda x, hook: touched.append(hook.name))])
    assert len(touched) == LAYERS


@every_family
def test_decompositions_add_up(name):
    this = case(name)
    _, found = this.twin.run_with_cache(this.clean)
    text = list(this.clean.query)  # on Qwen3-VL, visual tokens get more than layers write
    places = text if name == "qwen3_vl" else slice(None)
    last = found["blocks.3.hook_resid_post"]
    assert gap(found.decompose_resid().sum(0)[:, places], last[:, places]) <= CLOSE
    if name != "gemma3":  # where a norm stands between the heads and the residual stream
        heads = found.stack_head_results(layer=1)
        assert gap(heads.sum(0), found["blocks.0.hook_attn_out"]) <= CLOSE


@every_family
def test_patching_heads_gives_what_plain_hooks_give(name):
    this = case(name)
    _, clean = this.twin.run_with_cache(this.clean, names_filter=lambda each: each.endswith("hook_z"))
    ids = this.corrupted.input_ids
    with torch.no_grad():
        found = patching.get_act_patch_attn_head_out_all_pos(this.twin.on(this.corrupted), ids, clean, metric)
    expected = torch.zeros(LAYERS, HEADS)
    for i, layer in enumerate(layers_of(this.vlm)):
        donor = plain_cache(name)[f"blocks.{i}.attn.hook_z"]
        for head in range(HEADS):

            def patch(x, donor=donor, head=head):
                z = x.unflatten(-1, (HEADS, -1)).clone()
                z[:, :, head] = donor[:, :, head]
                return z.flatten(2)

            with hooked(layer.self_attn.o_proj, True, patch):
                expected[i, head] = metric(logits_of(this.vlm, this.corrupted))
    assert difference(found, expected) <= CLOSE
    assert expected.std() > 100 * CLOSE


@pytest.mark.parametrize("name", ["llava_clip", "qwen2_vl"])
def test_patching_at_positions_gives_what_plain_hooks_give(name):
    this = case(name)
    _, clean = this.twin.run_with_cache(this.clean)
    visual, last = this.clean.visual[3], this.clean.last
    where = pd.DataFrame([(0, visual), (2, visual), (3, last)], columns=["layer", "pos"])
    model, ids = this.twin.on(this.corrupted), this.corrupted.input_ids
    chosen = {"index_axis_names": None, "index_df": where}
    with torch.no_grad():
        found = patching.get_act_patch_resid_pre(model, ids, clean, metric, **chosen)
        heads = where.assign(head=1)
        by_head = patching.get_act_patch_attn_head_out_by_pos(model, ids, clean, metric, **chosen | {"index_df": heads})
    for row, (i, token) in enumerate(where.itertuples(index=False)):
        for site, result in (("hook_resid_pre", found), ("attn.hook_z", by_head)):
            module, at_input = plain_sites(layers_of(this.vlm)[i])[site]
            donor = plain_cache(name)[f"blocks.{i}.{site}"]

            def patch(x, donor=donor, token=token, site=site):
                x = x.unflatten(-1, (HEADS, -1)).clone() if site.endswith("z") else x.clone()
                cell = (0, token, 1) if site.endswith("z") else (0, token)
                x[cell] = donor[cell]
                return x.flatten(2) if site.endswith("z") else x

            with hooked(module, at_input, patch):
                assert abs(result[row] - metric(logits_of(this.vlm, this.corrupted))) <= CLOSE


def test_attribution_patching_takes_the_picture_along():
    this, words = case("llava_clip"), case("llava_clip").clean.input_ids.clone()
    words[0, -3] = 77
    runs = {}
    for run, ids in (("clean", this.clean.input_ids), ("corrupted", words)):
        with hooked(layers_of(this.vlm)[2].mlp, False, lambda x, run=run: runs.update({run: x})):
            value = metric(this.vlm.model(**this.clean.inputs | {"input_ids": ids}).logits)
    slope = torch.autograd.grad(value, runs["corrupted"])[0]
    last = this.clean.last
    expected = ((runs["clean"] - runs["corrupted"]) * slope)[0, last].sum().item()
    scores = attribution_patch(this.twin.on(this.clean), this.clean.input_ids, words, metric).node_scores
    assert scores[Node("mlp_out", position=last, layer=2)] == pytest.approx(expected, abs=CLOSE)
    assert abs(expected) > 100 * CLOSE
    assert all(weights.grad is None for weights in this.vlm.model.parameters())


@every_family
def test_image_tokens_without_pixels_are_refused_on_every_road(name):
    this = case(name)
    ids, count = this.clean.input_ids, len(this.clean.visual)
    words = rf"The ids hold {count} image tokens, but no pixels came .* bridge\.on\(prompt\)"
    for model in (this.twin, this.twin.tl):
        with pytest.raises(InputError, match=words):
            model(ids)
        with pytest.raises(InputError, match=words):
            model.run_with_cache(ids)
        with pytest.raises(InputError, match=words):
            patching.get_act_patch_attn_head_out_all_pos(model, ids, plain_cache(name), metric)


def test_ids_without_image_tokens_need_no_picture():
    this = case("llava_clip")
    ids = this.clean.input_ids[:, list(this.clean.query)]
    with torch.no_grad():
        assert difference(this.twin(ids), this.vlm.model(input_ids=ids).logits) <= CLOSE


def test_a_bound_bridge_takes_other_words_but_not_other_places():
    this = case("llava_clip")
    ids = this.clean.input_ids.clone()
    ids[0, -2] = 77
    with torch.no_grad():
        expected = this.vlm.model(**this.clean.inputs | {"input_ids": ids}).logits
        assert difference(this.twin.on(this.clean)(ids), expected) <= CLOSE
    shape, count = ids.shape[1], len(this.clean.visual)
    words = rf"ids are \[1, {shape}\] with {count} image tokens; given are \[1, {shape - 1}\] with {count} image tokens\. Give ids"
    with pytest.raises(InputError, match=words):
        this.twin.on(this.clean)(ids[:, :-1])
    with pytest.raises(InputError, match=f"with {count} image tokens; given are .* with {count}"):
        this.twin.on(this.clean)(ids.roll(1, dims=1))
    with pytest.raises(InputError, match=r"bound to a prompt, whose ids are .*; given are a str\."):
        this.twin.on(this.clean)(EVENT)


@pytest.mark.parametrize("name", NATIVE)
def test_patterns_that_are_only_shown_cannot_be_edited(name):
    this = case(name)
    pattern = "blocks.1.attn.hook_pattern"
    for where in (pattern, lambda each: each.endswith("hook_pattern")):
        with pytest.raises(InputError, match=r"blocks\.\d\.attn\.hook_pattern: TransformerLens only shows attention patterns"):
            this.twin.run_with_hooks(this.clean, [(where, lambda x, hook: x.mul_(0))])
    _, found = this.twin.run_with_cache(this.clean, names_filter=pattern)
    assert torch.allclose(found[pattern].sum(-1), torch.ones(1, HEADS, this.clean.last + 1))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in NATIVE])
def test_patterns_can_be_edited_elsewhere(name):
    this = case(name)
    with torch.no_grad():
        found = this.twin.run_with_hooks(this.clean, [("blocks.1.attn.hook_pattern", lambda x, hook: torch.zeros_like(x))])
        with hooked(layers_of(this.vlm)[1].self_attn.o_proj, True, torch.zeros_like):
            assert difference(found, logits_of(this.vlm, this.clean)) <= CLOSE


def activations(
    name: str, layers: tuple[int, ...] = tuple(range(LAYERS)), sites: str = "residual heads neurons"
) -> SimpleNamespace:
    """What `collect` gives, made of what plain hooks saw."""
    plain = plain_cache(name)
    stacked = {
        "residual": torch.cat([plain[f"blocks.{i}.hook_resid_post"] for i in layers]),
        "heads": torch.cat([plain[f"blocks.{i}.attn.hook_z"].transpose(1, 2) for i in layers]),
        "neurons": torch.cat([plain[f"blocks.{i}.mlp.hook_post"] for i in layers]),
    }
    given = {site: value if site in sites.split() else None for site, value in stacked.items()}
    return SimpleNamespace(layers=layers, attention=None, **given)


@every_family
def test_activations_become_the_cache_that_the_twin_would_give(name):
    this = case(name)
    _, expected = this.twin.run_with_cache(this.clean)
    found = activation_cache(this.twin, activations(name))
    assert set(found) == set(expected)
    for key in expected:
        assert gap(found[key], expected[key]) <= CLOSE, key
    assert gap(found.decompose_resid(apply_ln=True), expected.decompose_resid(apply_ln=True)) <= CLOSE
    assert gap(found.stack_head_results(layer=4), expected.stack_head_results(layer=4)) <= CLOSE
    assert gap(found.accumulated_resid(incl_mid=True), expected.accumulated_resid(incl_mid=True)) <= CLOSE


def test_activations_give_what_their_sites_tell_and_no_more():
    this = case("llava_clip")
    _, expected = this.twin.run_with_cache(this.clean)
    without_neurons = activation_cache(this.twin, activations("llava_clip", sites="residual heads"))
    assert gap(without_neurons["mlp_out", 2], expected["mlp_out", 2]) <= CLOSE
    assert "blocks.0.hook_mlp_out" not in without_neurons and "hook_embed" not in without_neurons
    some = activation_cache(this.twin, activations("llava_clip", layers=(1, 3), sites="residual"))
    assert set(some) == {"blocks.1.hook_resid_post", "blocks.3.hook_resid_post", "ln_final.hook_scale"}
    assert torch.equal(some["resid_post", 3], plain_cache("llava_clip")["blocks.3.hook_resid_post"])


def test_attention_of_activations_is_the_pattern():
    this = case("llava_clip")
    name = "blocks.2.attn.hook_pattern"
    _, expected = this.twin.run_with_cache(this.clean, names_filter=name)
    given = SimpleNamespace(layers=(2,), residual=None, heads=None, neurons=None, attention=expected[name])
    assert torch.equal(activation_cache(this.twin, given)["pattern", 2], expected[name])


def test_the_models_of_this_package_have_twins(random_vlm):  # noqa: F811
    picture = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    prompt = random_vlm.prompt(picture, EVENT)
    twin = bridge(random_vlm)
    with torch.no_grad():
        assert difference(twin(prompt), logits_of(random_vlm, prompt)) <= CLOSE
    assert twin.to_single_token(random_vlm.tokenizer.decode([500])) == 500


def test_a_model_that_nnsight_holds_has_a_twin_of_its_own():
    from nnsight import NNsight  # beartype cannot be imported after it

    this = case("llava_clip")
    held = copy.deepcopy(this.vlm.model)
    NNsight(held)
    vlm = VLM("held", held, this.vlm.processor, "")
    twin = bridge(vlm)
    with torch.no_grad():
        changed = twin.run_with_hooks(this.clean, [("blocks.3.hook_resid_post", lambda x, hook: 0 * x)])
        assert difference(twin(this.clean), this.before["logits"]) <= CLOSE
    assert changed.abs().max() == 0
    assert torch.equal(logits_of(vlm, this.clean), this.before["logits"])


def test_a_family_that_transformer_lens_does_not_know():
    class Unheard(LlavaForConditionalGeneration):
        pass

    this = case("llava_clip")
    vlm = VLM("unheard", Unheard(random_model().config), this.vlm.processor, "")
    words = r"cannot wrap Unheard \(Unsupported architecture: Unheard\)\. emointerp's own verbs .* transformer_lens\.architectures"
    with pytest.raises(ModelError, match=words):
        bridge(vlm)


def test_the_entry_point_names_the_adapter():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    points = project["entry-points"]["transformer_lens.architectures"]
    assert list(points) == ["Qwen2VLForConditionalGeneration"]
    module, name = points["Qwen2VLForConditionalGeneration"].split(":")
    assert getattr(importlib.import_module(module), name) is Qwen2VLArchitectureAdapter


def test_qwen2_vl_names_the_two_layers_of_its_vision_mlp():
    this = case("qwen2_vl")
    names = ["vision_encoder.blocks.0.mlp.in.hook_in", "vision_encoder.blocks.0.mlp.out.hook_in"]
    _, found = this.twin.run_with_cache(this.clean, names_filter=names)
    mlp, seen = this.vlm.model.model.visual.blocks[0].mlp, {}
    with hooked(mlp.fc1, True, lambda x: seen.update({names[0]: x})), hooked(mlp.fc2, True, lambda x: seen.update({names[1]: x})):
        logits_of(this.vlm, this.clean)
    for key in names:
        assert gap(found[key], seen[key]) <= CLOSE
