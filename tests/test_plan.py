"""What a plan says, held against hand-worked sizes, loaded models, real processors, counted operations and real gradients."""

import json
import math
import os
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_families
import torch
import transformers as hf
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

import emointerp as ei
from emointerp import cli
from emointerp.errors import InputError, ModelError
from emointerp.models import VLM, machine, planned
from emointerp.models.budget import GPUS, KNOWN, expect, named, visual_tokens
from emointerp.models.loading import WELL_KNOWN
from emointerp.models.plan import AT_ONCE, COPIES, tasks
from emointerp.saliency import answer, toward
from emointerp.steering import ALPHAS
from emointerp.world import sample

SEVEN, TILES, QWEN = "llava-hf/llava-1.5-7b-hf", "llava-hf/llava-v1.6-vicuna-13b-hf", "Qwen/Qwen2-VL-7B-Instruct"
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (672, 672, 3), dtype=np.uint8))
CACHE = 640 * 2 * 32 * 4096 * 2  # keys and values of 32 layers, two bytes a number, for a prompt of 640 tokens


@pytest.fixture(autouse=True)
def sealed(monkeypatch):
    """A plan fetches nothing."""

    def refused(*args, **options):
        raise AssertionError("a plan reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refused)


@pytest.fixture(scope="module")
def seven():
    return planned(SEVEN, "24GB").to_frame()


def row(frame, start):
    """The row of the task that begins so."""
    (found,) = [name for name in frame.index if name.startswith(start)]
    return frame.loc[found]


# sizes


def test_every_well_known_model_has_its_sizes():
    assert set(KNOWN) == set(WELL_KNOWN)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        (TILES, "13.4"), ("llava-hf/llava-onevision-qwen2-7b-ov-hf", "8.03"), ("Qwen/Qwen2.5-VL-7B-Instruct", "8.29"),
        ("Qwen/Qwen3-VL-4B-Instruct", "4.44"), ("Qwen/Qwen3-VL-8B-Instruct", "8.77"), ("google/gemma-3-4b-it", "4.3"),
        ("HuggingFaceTB/SmolVLM-256M-Instruct", "0.256"), ("HuggingFaceTB/SmolVLM-500M-Instruct", "0.507"),
        ("HuggingFaceM4/Idefics3-8B-Llama3", "8.46"),
    ],
)  # fmt: skip
def test_parameters_are_as_many_as_the_models_pages_count(name, billions):
    assert f"{sum(expect(name).parameters.values()) / 1e9:.3g}" == billions


def test_seven_billion_parameters_by_hand(seven):
    language = 32 * (4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096) + 4096 + 2 * 32064 * 4096
    projector = 1024 * 4096 + 4096 + 4096**2 + 4096
    layer = 4 * (1024**2 + 1024) + (1024 * 4096 + 4096) + (4096 * 1024 + 1024) + 4 * 1024
    tower = 1024 + 3 * 14**2 * 1024 + 577 * 1024 + 2 * 1024 + 24 * layer + 2 * 1024
    assert expect(SEVEN).parameters == {"language": language, "projector": projector, "tower": tower}
    assert row(seven, "load").gigabytes == pytest.approx(2 * (language + projector + tower) / 1e9)


@pytest.mark.parametrize("family", ["llava_clip", "llava_siglip", "llava_next", "llava_onevision", "gemma3"])
def test_visual_tokens_are_those_of_a_familys_processor(family):
    vlm = tiny_families.vlm(family)
    assert visual_tokens(vlm.model.config) == len(vlm.prompt(PICTURE, "It rained.").visual)


def test_visual_tokens_of_published_settings():
    images = hf.LlavaNextImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    assert (
        images([[PICTURE]], return_tensors="pt")["pixel_values"].shape[1] == 5
    )  # the whole, and 2 x 2 tiles of 24 x 24 patches, a line break a row
    assert expect(TILES).visual == 5 * 576 + 48
    rows, columns = hf.Qwen2VLImageProcessorPil()([PICTURE])["image_grid_thw"][0][1:]
    assert expect(QWEN).visual == rows * columns // 4 == 576
    for name, side, tokens in (("HuggingFaceM4/Idefics3-8B-Llama3", 364, 169), ("HuggingFaceTB/SmolVLM-256M-Instruct", 512, 64)):
        cut = hf.Idefics3ImageProcessorPil(size={"longest_edge": 4 * side}, max_image_size={"longest_edge": side})
        assert expect(name).visual == cut([[PICTURE]], return_tensors="pt")["pixel_values"].shape[1] * tokens


# memory


def test_what_tasks_take_by_hand(seven):
    weights = row(seven, "load").gigabytes
    assert row(seven, "head map, 1,024 heads").gigabytes == pytest.approx(weights + (2 * CACHE + 2**30) / 1e9)
    layer = 640 * (8 * 4096 + 4 * 11008 + 4 * 4096) * 2 + 12 * 32064
    assert row(seven, "read a prompt").gigabytes == pytest.approx(weights + (CACHE + layer) / 1e9)
    assert row(seven, "collect heads").gigabytes == pytest.approx(weights + (layer + 32 * 640 * 4096 * 2) / 1e9)
    assert row(seven, "SAE").gigabytes == pytest.approx(weights + (2 * 1152 * 262_144 * 4 + 576 * 262_144 * 4) / 1e9)
    assert f"alpha x layer, {32 * len(ALPHAS)} stories" in seven.index  # of `steer`, for a pair


def test_a_loaded_model_has_the_bytes_that_were_planned():
    vlm = ei.load()
    assert row(planned("tiny", "T4").to_frame(), "load").gigabytes == sum(p.nbytes for p in vlm.model.parameters()) / 1e9
    folder = tiny_families.folder("qwen3_vl")
    halved = sum(p.numel() for p in tiny_families.vlm("qwen3_vl").model.parameters()) * 2  # planned in 16 bits
    assert row(planned(str(folder), "T4").to_frame(), "load").gigabytes == pytest.approx(halved / 1e9)


def kept_by(vlm, forward):
    """Bytes that a forward keeps for its gradient, beside the weights; a tensor that is kept twice counts once."""
    own = {t.untyped_storage().data_ptr() for t in (*vlm.model.parameters(), *vlm.model.buffers())}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        value = forward()
    found = sum(t.untyped_storage().nbytes() for t in kept.values())
    return found, value


@pytest.mark.parametrize("family", ["bundled", "llava_clip", "llava_siglip", "llava_onevision", "idefics3", "gemma3"])
def test_gradients_keep_about_as_many_bytes_as_were_planned(family):
    vlm = ei.load() if family == "bundled" else tiny_families.vlm(family)
    prompt = vlm.prompt(sample("test", 1)[0].scene, "It rained.")
    budget = expect(vlm, visual=len(prompt.visual), text=len(prompt) - len(prompt.visual))
    planned_bytes = {name: task.memory - budget.weights for name, task in tasks(budget).items() if "SmoothGrad" in name}
    tower = ei.models.load_tower(vlm)
    targets = [toward(tower, torch.ones(tower.d)), answer(vlm, prompt, lambda logits: logits[:, 0])]
    for target, (name, expected) in zip(targets, planned_bytes.items(), strict=True):
        x = target.pixels([prompt.image]).requires_grad_()
        found, _ = kept_by(vlm, lambda target=target, x=x: target(x))
        depth = budget.tower[0] if "tower" in name else budget.anatomy.n_layers
        expected *= depth / (depth + 1)  # without the layer that is reckoned for the way back
        assert 0.6 < expected / AT_ONCE / found < 1.6, name


def test_smoothgrad_takes_a_forward_and_as_much_backwards():
    vlm = ei.load()
    tower = ei.models.load_tower(vlm)
    target = toward(tower, torch.ones(tower.d))
    x = target.pixels([sample("test", 1)[0].scene]).requires_grad_()
    vlm.model.requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        target(x).sum().backward()
    budget, card = expect(vlm), GPUS["T4 16 GB"]
    (task,) = [task for name, task in tasks(budget).items() if name.startswith("SmoothGrad of the tower")]
    starts = 2 * COPIES / AT_ONCE * (budget.anatomy.n_layers + budget.tower[0]) * 1e-4
    assert (task.seconds(card, 1.0, 0) - starts) * card.peak / COPIES == pytest.approx(counter.get_total_flops(), rel=0.15)


# what fits


def test_verdicts_by_hand():
    (four,) = {row(planned(SEVEN, card).to_frame(), "load").verdict for card in ("12GB", "10 GiB")}
    assert four == "fits with bits=4 (3.93 GB)"
    assert (
        row(planned(SEVEN, "2GB").to_frame(), "load").verdict == 'does not fit: device_map="auto" over 8 such cards, or remote=True'
    )
    assert math.ceil(14.13 / 1.8) == 8
    smooth = row(planned(SEVEN, "24GB").to_frame(), "SmoothGrad of the tower")
    one = (smooth.gigabytes - 14.127) / AT_ONCE
    assert smooth.verdict == f"fits with batch={int((21.6 - 14.127) / one)}" and smooth.bits == 16
    everything = row(planned(TILES, "40GB").to_frame(), "collect all sites")
    assert everything.verdict.startswith("fits with layers=range(") and everything.gigabytes > 36
    assert (planned("tiny", "T4").to_frame().verdict == "fits").all()


@pytest.mark.parametrize("name", [SEVEN, TILES, QWEN])
def test_more_memory_never_fits_less(name):
    def rank(verdict):
        order = ["does not fit", "bits=4", "fits with", "fits"]
        return max(i for i, words in enumerate(order) if words in verdict) if "bits=4" not in verdict else 1

    frames = [planned(name, f"{gigabytes} GiB").to_frame() for gigabytes in (2, 4, 8, 12, 16, 24, 32, 48, 80, 141, 1000)]
    ranks = np.array([[rank(verdict) for verdict in frame.verdict] for frame in frames])
    assert (np.diff(ranks, axis=0) >= 0).all() and (ranks[0] == 0).any() and (ranks[-1] == 3).all()
    assert all((frame.gigabytes == frames[0].gigabytes).all() for frame in frames)


# times


def test_times_by_hand():
    frame, gpu, budget = planned(SEVEN, "A100 80 GB").to_frame(), GPUS["A100 80 GB"], expect(SEVEN)
    read = row(frame, "read a prompt")
    assert read.low == pytest.approx(budget.prompt_flops / 312e12 / 0.6 + (32 + 24) * 1e-4)
    assert read.high == pytest.approx(budget.prompt_flops / 312e12 / 0.25 + (32 + 24) * 1e-3)
    assert read.low < budget.to_frame().prompt["A100 80 GB"] < read.high  # of the same formula, at 0.4
    story = row(frame, "VEENA")
    assert story.low < budget.to_frame().story["A100 80 GB"] < story.high
    assert row(frame, "load").low == pytest.approx(2 * 7.0634e9 / 2e9, rel=1e-3)
    assert (frame.low < frame.high).all()
    assert row(planned(SEVEN, "H100").to_frame(), "read").low < read.low < row(planned(SEVEN, "T4").to_frame(), "read").low
    assert budget.head_map_seconds(gpu) < 6 * budget.prompt_seconds(gpu)  # of 1,024 heads


def test_a_size_of_memory_has_the_times_of_the_nearest_card_and_says_so(seven):
    card = planned(SEVEN, "4090").to_frame()
    assert (seven.low == card.low).all() and (seven.high == card.high).all()
    assert machine("24GB").speed == "those of the RTX 4090 24 GB, the known card nearest by memory"
    assert [machine(text).speed.split()[3] for text in ("6GB", "80 GB", "0.5 TB")] == ["T4", "A100", "A100"]
    assert machine("24 GiB").gpu.memory == 24 * 2**30 and machine("24000 mb").gpu.memory == 24e9


@pytest.mark.parametrize(
    ("text", "name"),
    [("t4", "T4 16 GB"), ("NVIDIA GeForce RTX 4090", "RTX 4090 24 GB"), ("a100-40gb", "A100 40 GB"), ("H100", "H100 80 GB")],
)
def test_cards_by_the_names_that_people_write(text, name):
    assert machine(text).name == name and machine(text).gpu == GPUS[name]


def test_the_processor_is_measured_and_has_no_cards_beside_it():
    there = machine("cpu", itemsize=4)
    assert there.gpu.memory == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 1e8 < there.gpu.peak < 1e15 and 1e8 < there.gpu.bandwidth < 1e13 and "this processor's speed" in there.speed
    said = " ".join(planned(TILES, "cpu").to_frame().verdict)
    assert "bits=4" not in said and "device_map" not in said


def test_this_machine_is_asked_for_its_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 47_500_000_000))
    for told, name in (("Tesla T4", "T4 16 GB"), ("NVIDIA L40S", "48 GB")):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, told=told: told)
        assert machine().name == name
    assert machine().gpu.memory == 47_500_000_000


# sweeps of long prompts


def stand_in(budget):
    """As much of a model in 16 bits as a sweep asks for its sizes."""
    language = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))
    model = SimpleNamespace(dtype=torch.bfloat16, model=SimpleNamespace(language_model=language))
    vlm = object.__new__(VLM)
    vlm.__dict__.update(anatomy=budget.anatomy, model=model, remote=False)
    return vlm


@pytest.mark.parametrize("new", [0, 64])
@pytest.mark.parametrize("name", [SEVEN, TILES, QWEN])
def test_a_sweep_takes_as_many_together_as_were_planned(name, new):
    module, budget = sys.modules["emointerp.tracing.sweep"], named(name)
    size = module._Size(stand_in(budget), 1, budget.tokens - 1, False, new)
    most = budget.together(new)
    assert size.chunk(most * 1000, module.BUDGET) == most and size.chunk(7, module.BUDGET) == min(
        7, math.ceil(7 / math.ceil(7 / most))
    )


def test_a_long_prompt_does_not_leave_room_for_one_branch_only():
    """Of 2,992 tokens, whose keys and values alone are larger than the budget of a forward."""
    budget = expect(TILES)
    assert budget.cache(budget.tokens) > 2**30
    assert budget.together() == 512 and budget.together(64) > 8


# bad input, and the command


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: machine("A100"), "'A100' is A100 40 GB or A100 80 GB; say which"),
        (lambda: machine("V100"), r"'V100' is no card that is known \(T4 16 GB, .*; give its memory, such as '24GB', or 'cpu'"),
        (lambda: machine(""), "'' is no card that is known"),
        (lambda: machine("24"), "'24' is no card"),
        (lambda: machine("0 GB"), "'0 GB' is no size of memory; expected one such as '24GB'"),
        (lambda: machine("24 kb"), "'24 kb' is no size of memory"),
        (
            lambda: planned("owner/unheard-of", "T4"),
            "No model's configuration is found under 'owner/unheard-of'.*after that it is found",
        ),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_a_folder_of_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="bert"):
        planned(str(tmp_path), "T4")


def told(capsys, monkeypatch, *arguments):
    """What the command says, and its exit code."""
    monkeypatch.setattr(sys, "argv", ["emointerp", "plan", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    said = capsys.readouterr()
    return said.out + said.err, ended.value.code


def test_the_command_fits_on_a_screen_and_says_the_same_as_json(capsys, monkeypatch):
    page, code = told(capsys, monkeypatch, SEVEN, "--gpu", "12GB")
    assert code == 0 and page.rstrip() == str(planned(SEVEN, "12GB")) and len(page.splitlines()) <= 24
    assert max(map(len, page.splitlines())) <= 132 and "Computed, not measured" in page and "bits=4 needs bitsandbytes" in page
    found = json.loads(told(capsys, monkeypatch, SEVEN, "--gpu", "12GB", "--json")[0])
    assert found == json.loads(json.dumps(planned(SEVEN, "12GB").to_dict())) and found["measured"] is False
    assert found["tokens"] == {"picture": 576, "text": 64, "answer": 64} and len(found["tasks"]) == 11
    page, code = told(capsys, monkeypatch, SEVEN, "--gpu", "A100")
    assert code == InputError.exit_code and "say which" in page and "Traceback" not in page
