"""What a model is expected to take, held against loaded models, counted operations and real caches."""

import importlib

import pytest
import tiny_families
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

import emointerp as ei
from emointerp.errors import InputError, ModelError
from emointerp.models.budget import BRANCHES, CONFIGS, GPUS, SWEEP, expect
from emointerp.tracing import SetHead, collect, sweep
from emointerp.tracing.branches import forget, prefix_of
from emointerp.world import sample

SEVEN, THIRTEEN, QWEN = CONFIGS
EVENT = "The phone rang twice while I was cooking."


@pytest.fixture(scope="module")
def bundled():
    return ei.load()


@pytest.fixture(scope="module")
def seven():
    return expect(SEVEN)


def prompt_of(vlm):
    return vlm.prompt(sample("test", 1)[0].scene, EVENT)


def budget_of(vlm, prompt, **options):
    return expect(vlm, visual=len(prompt.visual), text=len(prompt) - len(prompt.visual), **options)


# against models whose weights are there


@pytest.mark.parametrize("name", [*tiny_families.NAMES, "bundled"])
def test_parameters_are_those_of_the_loaded_model(name, bundled):
    vlm = bundled if name == "bundled" else tiny_families.vlm(name)
    budget = expect(vlm)
    family, real = vlm.anatomy.family, dict(vlm.model.named_parameters())
    assert sum(budget.parameters.values()) == sum(p.numel() for p in real.values())
    assert budget.weights == sum(p.nbytes for p in real.values())
    projector = [p.numel() for n, p in real.items() if n.startswith(family.projector + ".")]
    language = [p.numel() for n, p in real.items() if n.startswith((family.language + ".", family.unembedding + "."))]
    assert budget.parameters["projector"] == sum(projector) > 0
    assert budget.parameters["language"] == sum(language) > budget.parameters["projector"]


@pytest.mark.parametrize("name", tiny_families.NAMES)
def test_operations_of_a_prompt_are_those_that_are_counted(name):
    vlm = tiny_families.vlm(name, "eager")
    prompt = prompt_of(vlm)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        vlm.model(**prompt.inputs, logits_to_keep=1)
    assert budget_of(vlm, prompt).prompt_flops == pytest.approx(counter.get_total_flops(), rel=0.06)


def test_operations_of_the_bundled_model_and_of_branches(bundled):
    vlm = bundled
    vlm.model.set_attn_implementation("eager")
    prompt, a = prompt_of(vlm), vlm.anatomy
    cells = [[SetHead(i, h, torch.zeros(a.d_head))] for i in range(a.n_layers) for h in range(a.n_heads)]
    forget(vlm)
    try:
        with FlopCounterMode(display=False) as counter:
            sweep(vlm, prompt, cells, lambda logits: logits[:, 0], progress=False)
    finally:
        vlm.model.set_attn_implementation("sdpa")
    budget = budget_of(vlm, prompt)
    assert budget.prompt_flops + budget.branch_flops(65) == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert budget.head_map_flops == 2 * budget.prompt_flops + budget.branch_flops(65)


@pytest.mark.parametrize("name", tiny_families.NAMES)
def test_cache_and_collected_activations_have_the_bytes_of_the_tensors(name):
    vlm = tiny_families.vlm(name)
    prompt = prompt_of(vlm)
    budget, sites = budget_of(vlm, prompt), ("residual", "heads", "neurons", "attention")
    acts = collect(vlm, prompt, sites)
    assert budget.cache(len(prompt)) == prefix_of(vlm, prompt).bytes
    assert budget.cache(len(prompt), batch=3) == 3 * prefix_of(vlm, prompt).bytes
    for site in sites:
        assert budget.collected((site,)) == getattr(acts, site).nbytes
    assert budget.collected(sites) == sum(getattr(acts, site).nbytes for site in sites)


def test_a_vlm_counts_the_tokens_of_its_own_pictures(bundled):
    assert expect(bundled).visual == 64 and expect(bundled).itemsize == 4
    assert expect(bundled, dtype="float16").weights == expect(bundled).weights / 2


# what is published


@pytest.mark.parametrize(
    ("name", "billions", "projector"), [(SEVEN, 7.063, 21.0e6), (THIRTEEN, 13.35, 31.5e6), (QWEN, 8.291, 44.6e6)]
)
def test_published_totals(name, billions, projector):
    budget = expect(name)
    assert sum(budget.parameters.values()) / 1e9 == pytest.approx(billions, rel=0.01)
    assert budget.parameters["projector"] == pytest.approx(projector, rel=0.01)  # by hand: two matrices, biases, Qwen's norm


def test_seven_billion_by_hand(seven):
    assert seven.cache(1) == 2 * 32 * 4096 * 2  # half a megabyte a token
    assert expect(QWEN).cache(1) == 2 * 28 * 4 * 128 * 2  # four key/value heads serve 28
    layers = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert seven.language_flops(1, 640) == 2 * layers + 4 * 32 * 4096 * 640 + 2 * 4096 * 32064
    tower = 2 * (24 * (4 * 1024**2 + 2 * 1024 * 4096) + 3 * 14**2 * 1024) * 576 + 4 * 24 * 1024 * 576**2
    projector = 2 * (1024 * 4096 + 4096**2) * 576
    assert seven.prompt_flops == seven.language_flops(640, 640) + tower + projector
    assert seven.head_map_flops < 4 * seven.prompt_flops  # of 1,024 heads: the prompt is shared


def test_times_follow_the_two_bounds(seven):
    gpu = GPUS["A100 80 GB"]
    assert seven.prompt_seconds(gpu, 0.5) == pytest.approx(2 * seven.prompt_flops / 312e12)
    assert seven.step_seconds(gpu, 4, 1) == pytest.approx((seven.weights + 4 * seven.cache(672)) / 2039e9)
    frame = seven.to_frame(0.5)
    story, batch = frame.loc["A100 80 GB", ["story", "batch"]]
    assert story == pytest.approx(seven.prompt_seconds(gpu, 0.5) + 64 * seven.step_seconds(gpu, 1, 0.5)) and batch == 32
    assert (frame.story / seven.to_frame(1.0).story).dropna().tolist() == pytest.approx([2] * 4)
    assert frame.prompt["H100 80 GB"] == pytest.approx(frame.prompt["A100 80 GB"] * 312 / 989.4)


def test_what_fits_where(seven):
    fits = {name: expect(name).to_frame().fits.tolist() for name in CONFIGS}
    assert fits == {SEVEN: [False, True, True, True, True], THIRTEEN: [False, False, True, True, True], QWEN: fits[SEVEN]}
    quantised = expect(SEVEN, bits=4)
    assert 3.5e9 < quantised.weights < 4.5e9 and quantised.to_frame().fits.all()
    frame = seven.to_frame()
    assert frame.loc["T4 16 GB", "batch"] == 0 and frame.loc["T4 16 GB", ["prompt", "evaluation"]].isna().all()
    for name, gpu in GPUS.items():
        batch = seven.batch(gpu)
        assert frame.batch[name] == batch and (batch == 0 or seven.peak(batch) <= 0.9 * gpu.memory)
        assert batch == 32 or seven.peak(max(1, 2 * batch)) > 0.9 * gpu.memory
    assert "Computed, not measured" in str(seven) and "7.06 billion parameters" in str(seven)


def test_the_numbers_of_sweeps_are_those_of_sweeps():
    module = importlib.import_module("emointerp.tracing.sweep")  # the package's name `sweep` is the function
    assert (BRANCHES, SWEEP) == (module.TOKENS, module.BUDGET)


# bad input


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: expect("llava-7b"), "Known by name are llava-hf/llava-1.5-7b-hf.*for 'llava-7b' give transformers.AutoConfig"),
        (lambda: expect(AutoConfig.for_model(**CONFIGS[QWEN])), "visual is None; expected a number of tokens, 1 or more"),
        (lambda: expect(SEVEN, new=0), "new is 0"),
        (lambda: expect(SEVEN, dtype="nn"), "dtype='nn', bits=None: expected a dtype such as 'float32'"),
        (lambda: expect(SEVEN, bits=3), "bits=3"),
        (lambda: expect(SEVEN).to_frame(efficiency=0), "efficiency is 0; expected a share of the peak"),
        (lambda: expect(SEVEN).collected(("logits",)), "logits is nothing to collect"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_a_model_without_pictures_is_refused():
    llama = AutoConfig.for_model("llama", hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    with pytest.raises(ModelError, match="has no vision part"):
        expect(llama, visual=4)
