"""Families of models: parts, prompts, boxes of visual tokens against what the tower really reads, refusals in words."""

import copy
import json
import os
import shutil

import numpy as np
import pytest
import tiny_families
import torch
import transformers as hf
from tiny_families import CONTEXT, NAMES, WINDOW, folder, vlm

import emointerp
from emointerp.errors import InputError, ModelError
from emointerp.models import loading
from emointerp.models.anatomy import part
from emointerp.models.patches import seen_region
from emointerp.models.processors import completed

SHAPES = {"square": (150, 150), "wide": (250, 110), "tall": (110, 250), "mild": (220, 160)}  # width, height
TEXT = "It rained."


def noise(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """A picture of noise, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def sample(name: str, size: tuple[int, int] = SHAPES["mild"], seed: int = 0):
    return vlm(name).prompt(noise(size, seed), TEXT, instruction="")


@pytest.fixture(params=NAMES)
def name(request) -> str:
    return request.param


# parts and sizes


def test_sizes_are_those_of_the_weights(name):
    model, anatomy = vlm(name).model, vlm(name).anatomy
    layers = part(model, anatomy.layers)
    assert len(layers) == anatomy.n_layers == 4
    attention, mlp = layers[0].self_attn, layers[0].mlp
    assert attention.q_proj.weight.shape == (anatomy.n_heads * anatomy.d_head, anatomy.d_model)
    assert attention.k_proj.weight.shape == (anatomy.n_kv_heads * anatomy.d_head, anatomy.d_model)
    assert attention.o_proj.weight.shape == (anatomy.d_model, anatomy.n_heads * anatomy.d_head)
    assert mlp.down_proj.weight.shape == (anatomy.d_model, anatomy.d_mlp)
    assert part(model, anatomy.family.unembedding).weight.shape == (anatomy.vocabulary, anatomy.d_model)
    assert part(model, anatomy.norm).weight.shape == (anatomy.d_model,)
    assert (anatomy.n_heads, anatomy.n_kv_heads, anatomy.context) == (4, 2, CONTEXT)


def test_heads_may_be_wider_than_their_share_of_the_residual():
    wide = {name for name in NAMES if vlm(name).anatomy.d_head != vlm(name).anatomy.d_model // 4}
    assert wide == {"llava_siglip", "qwen3_vl", "gemma3"}


def test_only_gemma_has_a_window_and_images_that_see_themselves(name):
    anatomy = vlm(name).anatomy
    assert anatomy.window == (WINDOW if name == "gemma3" else None)
    assert anatomy.family.image_blocks == (name == "gemma3")
    assert len(sample(name)) > 2 * WINDOW


def test_vision_layers_and_projector_run_before_the_language_layers(name):
    in_hand, ran = vlm(name), []
    anatomy = in_hand.anatomy
    paths = {
        "vision": f"{anatomy.family.vision_layers}.0",
        "projector": anatomy.family.projector,
        "language": f"{anatomy.layers}.0",
        "norm": anatomy.norm,
        "unembedding": anatomy.family.unembedding,
    }
    hooks = [part(in_hand.model, p).register_forward_hook(lambda *_, what=what: ran.append(what)) for what, p in paths.items()]
    with torch.no_grad():
        in_hand.model(**sample(name).inputs)
    for hook in hooks:
        hook.remove()
    assert ran == list(paths)


# prompts and generation


def test_spans(name):
    in_hand, prompt = vlm(name), sample(name)
    ids = prompt.input_ids[0].tolist()
    mark = vlm(name).tokenizer.image_token_id
    assert [i for i, token in enumerate(ids) if token == mark] == list(prompt.visual)
    assert 4 <= len(prompt.visual) <= 40
    after = in_hand.tokenizer.decode([ids[i] for i in prompt.query])
    assert TEXT in after and ids.count(1) == 1 == ids.index(1) + 1  # one opening token, the first


def test_the_text_alone_changes_the_answer_and_so_does_the_picture(name):
    in_hand = vlm(name)
    with torch.no_grad():
        here, seen, told = (
            in_hand.model(**prompt.inputs).logits[0, -1]
            for prompt in (sample(name), sample(name, seed=1), in_hand.prompt(noise(SHAPES["mild"]), "It snowed.", instruction=""))
        )
    assert (here - seen).abs().max() > 1e-3 and (here - told).abs().max() > 1e-3


def test_a_batch_answers_as_its_prompts_one_by_one(name):
    in_hand = vlm(name)
    prompts = [in_hand.prompt(noise(size, i), text, "") for i, (size, text) in enumerate(zip(SHAPES.values(), "abcd", strict=True))]
    prompts.append(in_hand.prompt(noise(SHAPES["wide"], 9), "The phone rang twice while I was cooking.", ""))
    alone = [in_hand.generate(p, max_new_tokens=5) for p in prompts]
    assert len(set(alone)) > 1
    assert in_hand.generate(prompts, max_new_tokens=5) == alone


def test_eager_and_sdpa_agree(name):
    with torch.no_grad():
        eager, sdpa = (vlm(name, kind).model(**sample(name).inputs).logits for kind in ("eager", "sdpa"))
    assert (eager - sdpa).abs().max() < 1e-4 * sdpa.abs().max()


# boxes


def blind(name: str) -> torch.nn.Module:
    """The model with vision layers that add nothing, so that a visual token is a function of its own pixels only."""
    model = copy.deepcopy(vlm(name).model)
    for layer in part(model, vlm(name).anatomy.family.vision_layers):
        ends = [m for n, m in layer.named_modules() if n.split(".")[-1] in ("out_proj", "proj", "fc2", "down_proj", "linear_fc2")]
        assert len(ends) == 2
        for end in ends:
            torch.nn.init.zeros_(end.weight)
            torch.nn.init.zeros_(end.bias)
    return model


@torch.no_grad()
def visual_inputs(model: torch.nn.Module, name: str, picture: np.ndarray) -> tuple:
    """The prompt of a picture, and what the language model gets at its visual positions, [visual tokens, d_model]."""
    prompt, seen = vlm(name).prompt(picture, TEXT, instruction=""), []
    language = part(model, vlm(name).anatomy.family.language)
    hook = language.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"]), with_kwargs=True)
    model(**prompt.inputs)
    hook.remove()
    return prompt, seen[0][0, list(prompt.visual)]


def touches(boxes: np.ndarray, region: tuple, grow: np.ndarray) -> np.ndarray:
    """Which boxes, grown by so many pixels a side, overlap a region; never those that are NaN."""
    left, top, right, bottom = boxes.T
    x = (left - grow[:, 0] < region[2]) & (region[0] < right + grow[:, 0])
    return x & (top - grow[:, 1] < region[3]) & (region[1] < bottom + grow[:, 1])


def spread(name: str) -> float:
    """How far, as a part of a token's box, resampling carries a pixel; OneVision also interpolates between tokens."""
    return {"llava_onevision": 0.9, "idefics3": 0.5}.get(name, 0.3)


@pytest.mark.parametrize("shape", SHAPES)
def test_visual_tokens_read_what_lies_in_their_boxes(name, shape):
    size, model, rng = SHAPES[shape], blind(name), np.random.default_rng(7)
    picture = noise(size)
    prompt, before = visual_inputs(model, name, picture)
    boxes = vlm(name).boxes(prompt)
    sides = boxes[:, 2:] - boxes[:, :2]
    sides = np.maximum(sides, np.nanmedian(sides, axis=0))  # boxes at an edge are cut, resampling is not
    for _ in range(8):
        side = min(size) // 8
        left, top = (int(rng.integers(0, length - side)) for length in size)
        changed = picture.copy()
        changed[top : top + side, left : left + side] = 255 - changed[top : top + side, left : left + side].mean().round()
        changed[top : top + side, left : left + side, 0] = 255
        _, after = visual_inputs(model, name, changed)
        moved = (after - before).abs().amax(1).numpy() > 1e-5
        region = (left, top, left + side, top + side)
        surely = touches(boxes, region, -0.15 * sides)
        assert moved[surely].all()
        assert not moved[~touches(boxes, region, spread(name) * sides)].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_boxes_lie_in_the_picture_and_cover_it(name, shape):
    size = SHAPES[shape]
    boxes = vlm(name).boxes(sample(name, size))
    real = boxes[~np.isnan(boxes[:, 0])]
    assert (real[:, :2] >= 0).all() and (real[:, 2:] <= size).all() and (real[:, 2:] > real[:, :2]).all()
    covered = np.zeros((size[1], size[0]), bool)
    for left, top, right, bottom in real.round().astype(int):
        covered[top:bottom, left:right] = True
    left, top, right, bottom = seen_region(size, vlm(name).processor.image_processor if "clip" in name else None)
    least = {"llava_siglip": (32 / 36) ** 2, "llava_onevision": (16 / 17) ** 2, "smolvlm": (64 / 68) ** 2}.get(name, 1)
    assert covered.sum() > 0.97 * least * (right - left) * (bottom - top)


def test_line_breaks_have_no_box():
    for name in NAMES:
        breaks = np.isnan(vlm(name).boxes(sample(name))).all(1)
        assert breaks.any() == (name in ("llava_next", "llava_onevision"))


def test_boxes_worked_by_hand():
    """LLaVA-NeXT, 200 x 100: one tile for the whole, then two of 2 x 2 patches side by side, a break after each row of four."""
    boxes = vlm("llava_next").boxes(sample("llava_next", (200, 100))).round(6).tolist()
    broken = [pytest.approx([np.nan] * 4, nan_ok=True)]
    base = [[0, 0, 100, 50], [100, 0, 200, 50], [0, 50, 100, 100], [100, 50, 200, 100]]
    rows = [[[x, y, x + 50, y + 50] for x in (0, 50, 100, 150)] for y in (0, 50)]
    assert boxes == base + rows[0] + broken + rows[1] + broken


def test_clip_crops_the_middle_and_padding_has_no_box():
    boxes = vlm("llava_clip").boxes(sample("llava_clip", (200, 100)))
    assert boxes[0].tolist() == [50, 0, 75, 25] and boxes[-1].tolist() == [125, 75, 150, 100]
    padded = hf.LlavaImageProcessorPil(do_pad=True, do_center_crop=False)
    assert seen_region((200, 100), padded) == (0, -50, 200, 150)


# opening


def copied(name: str, place) -> str:
    shutil.copytree(folder(name), place)
    return place


@torch.no_grad()
def test_a_folder_opens_as_the_model_in_memory(name):
    opened, prompt = emointerp.load(folder(name)), sample(name)
    same = opened.prompt(noise(SHAPES["mild"]), TEXT, instruction="")
    assert prompt.inputs.keys() == same.inputs.keys()
    assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(same.inputs[k])) for k, v in prompt.inputs.items())
    assert torch.equal(opened.model(**same.inputs).logits, vlm(name).model(**prompt.inputs).logits)
    assert opened.anatomy == vlm(name).anatomy and opened.folder == str(folder(name))


def test_the_processor_of_a_family_without_video_is_the_ordinary_one():
    assert type(emointerp.load(folder("llava_next")).processor) is hf.LlavaNextProcessor


@pytest.mark.parametrize("name", ["llava_onevision", "qwen2_vl", "qwen3_vl", "smolvlm"])
def test_a_folder_laid_out_as_on_the_hub(name, tmp_path):
    """Older checkpoints keep the image processor and the rest of the processor in files of their own."""
    in_hand, place = vlm(name), copied(name, tmp_path / "model")
    kept = json.loads((place / "processor_config.json").read_text())
    rest = {key: value for key, value in kept.items() if key != "image_processor"}
    (place / "processor_config.json").write_text(json.dumps(rest))
    in_hand.processor.image_processor.save_pretrained(place)
    opened = emointerp.load(place)
    assert torch.equal(opened.prompt(noise((90, 60)), TEXT).input_ids, in_hand.prompt(noise((90, 60)), TEXT).input_ids)


def test_options_reach_transformers():
    opened = emointerp.load(folder("gemma3"), dtype="bfloat16", attn_implementation="eager", device_map="cpu")
    assert opened.model.dtype == torch.bfloat16 and opened.model.config._attn_implementation == "eager"
    assert not opened.model.training


def test_a_model_in_memory_is_the_same_object():
    tiny = vlm("qwen2_vl")
    again = emointerp.load(tiny.model, processor=tiny.processor, device="cpu")
    assert again.model is tiny.model and again.processor is tiny.processor and again.name == "qwen2_vl"


def test_quantisation_is_asked_of_transformers(monkeypatch):
    asked = {}

    def from_pretrained(place, **options):
        asked.update(options)
        return vlm("llava_clip").model

    monkeypatch.setattr(loading, "find_spec", lambda _: True)
    monkeypatch.setattr(hf.AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    emointerp.load(folder("llava_clip"), bits=4, device="cpu", revision="main")
    assert asked["quantization_config"].load_in_4bit and not asked["quantization_config"].load_in_8bit
    assert asked["device_map"] == {"": "cpu"} and asked["revision"] == "main" and asked["trust_remote_code"] is False
    asked.clear()
    emointerp.load(folder("llava_clip"), bits=8)
    assert asked["quantization_config"].load_in_8bit and "device_map" not in asked


def test_older_checkpoints_leave_out_how_to_count_image_tokens():
    config, processor = tiny_families.llava_clip()
    processor.patch_size = processor.vision_feature_select_strategy = None
    processor.num_additional_image_tokens = 0
    opened = emointerp.load(vlm("llava_clip").model, processor=processor)
    assert len(opened.prompt(noise((40, 40)), TEXT).visual) == 16
    config, processor = tiny_families.llava_onevision()
    processor.num_image_tokens = None
    assert completed(processor, config).num_image_tokens == 4


# refusals, by their words


def test_a_model_without_a_vision_part(tmp_path):
    config = hf.LlamaConfig(**tiny_families.text_sizes(vlm("llava_clip").tokenizer))
    model = hf.LlamaForCausalLM(config)
    message = "type 'llama' has no vision part; emointerp reads vision-language models such as llava, "
    with pytest.raises(ModelError, match=message):
        emointerp.load(model, processor=vlm("llava_clip").processor)
    model.save_pretrained(tmp_path)
    vlm("llava_clip").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        emointerp.load(tmp_path)


def test_a_family_that_is_not_known():
    model = torch.nn.Linear(1, 1)
    model.config = hf.VipLlavaConfig()
    with pytest.raises(ModelError, match="'vipllava' are not known yet; .* To add a family, copy .*llava.py"):
        emointerp.load(model, processor=vlm("llava_clip").processor)


def test_a_module_that_is_no_transformers_model():
    with pytest.raises(ModelError, match="A Linear is no transformers model"):
        emointerp.load(torch.nn.Linear(1, 1))


def test_a_model_in_memory_without_its_processor():
    with pytest.raises(ModelError, match=r"needs its processor: load\(model, processor=...\); Llava"):
        emointerp.load(vlm("llava_clip").model)


@pytest.mark.parametrize("options", [{"dtype": "float16"}, {"bits": 4}, {"device_map": "auto"}])
def test_options_for_a_model_in_memory(options):
    with pytest.raises(InputError, match=f"{next(iter(options))}: only for models that are loaded by name"):
        emointerp.load(vlm("llava_clip").model, processor=vlm("llava_clip").processor, **options)


def test_a_folder_with_a_tokenizer_only(tmp_path):
    vlm("llava_clip").tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"the folder holds a tokenizer and no model \(no config.json\)"):
        emointerp.load(tmp_path)


def test_a_model_without_an_image_processor(tmp_path):
    place = copied("llava_clip", tmp_path / "model")
    for file in ("processor_config.json", "preprocessor_config.json", "chat_template.jinja"):
        (place / file).unlink(missing_ok=True)
    with pytest.raises(ModelError, match="Cannot open the model .*image processor"):
        emointerp.load(place)
    with pytest.raises(
        ModelError, match=r"A llava model came with a tokenizer but no image processor \(preprocessor_config.json\)"
    ):
        emointerp.load(vlm("llava_clip").model, processor=vlm("llava_clip").tokenizer)


def test_weights_that_are_cut_off(tmp_path):
    place = copied("qwen2_vl", tmp_path / "model")
    os.truncate(place / "model.safetensors", 5000)
    with pytest.raises(ModelError, match="its weights are damaged or cut off .* Copy or download them again"):
        emointerp.load(place)


def test_no_weights(tmp_path):
    place = copied("qwen2_vl", tmp_path / "model")
    (place / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="Cannot open the model .*model.safetensors"):
        emointerp.load(place)


def test_a_model_without_a_chat_template(tmp_path):
    place = copied("gemma3", tmp_path / "model")
    (place / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template, .* Set `processor.chat_template`"):
        emointerp.load(place)


def test_a_processor_that_counts_otherwise():
    _, processor = tiny_families.llava_clip()
    processor.num_additional_image_tokens = 0
    with pytest.raises(ModelError, match="makes 15 image tokens of a picture, where the LLaVA-1.5 family has 16 patches; .*To add"):
        emointerp.load(vlm("llava_clip").model, processor=processor)


def test_a_processor_of_another_family():
    with pytest.raises(ModelError, match="'gemma3' makes 20 image tokens .* Gemma 3 family has 16 patches; processor and"):
        emointerp.load(vlm("gemma3").model, processor=vlm("idefics3").processor)


def test_a_chat_template_that_forgets_the_picture():
    _, processor = tiny_families.qwen2_vl()
    processor.chat_template = "{{ messages[0]['content'][1]['text'] }}"
    with pytest.raises(
        ModelError,
        match="'qwen2_vl' .*makes no prompt of a picture and a text: ValueError: .*To add a family",
    ):
        emointerp.load(vlm("qwen2_vl").model, processor=processor)


def test_parts_that_are_missing_or_of_another_width():
    model = copy.deepcopy(vlm("llava_clip").model)
    model.config.text_config.intermediate_size += 1
    with pytest.raises(ModelError, match="d_mlp is 49 in the configuration, but the weights have 48"):
        emointerp.load(model, processor=vlm("llava_clip").processor)
    del model.model.multi_modal_projector
    with pytest.raises(ModelError, match="has no part 'model.multi_modal_projector', where LLaVA-1.5 models have one"):
        emointerp.load(model, processor=vlm("llava_clip").processor)


def test_a_device_named_twice_or_not_there():
    with pytest.raises(InputError, match="device='cpu' and device_map='auto': give one of them"):
        emointerp.load("tiny", device="cpu", device_map="auto")
    with pytest.raises(ModelError, match="Cannot move the model to device 'warp:0'"):
        emointerp.load("tiny", device="warp:0")


def test_quantisation_that_cannot_be(monkeypatch):
    with pytest.raises(InputError, match="bits=3: give 4 or 8"):
        emointerp.load("tiny", bits=3)
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="Loading in 4 bits needs bitsandbytes: pip install bitsandbytes accelerate"):
        emointerp.load("tiny", bits=4)


def test_two_pictures(name):
    with pytest.raises(InputError, match="2 pictures came where one was expected; make a prompt of each"):
        vlm(name).prompt([noise((30, 30)), noise((30, 30))], TEXT)


def test_a_prompt_beyond_the_context(name):
    n = len(sample(name).visual)
    message = rf"has [5-9]\d\d tokens, {n} of them for the picture; '{vlm(name).name}' reads at most 512. Shorten the text"
    with pytest.raises(InputError, match=message):
        vlm(name).prompt(noise(SHAPES["mild"]), "東" * 170, instruction="")


def test_configuration_names_the_image_token_in_the_old_way_too(tmp_path):
    place = copied("llava_next", tmp_path / "model")
    config = json.loads((place / "config.json").read_text())
    config["image_token_index"] = config.pop("image_token_id", config.get("image_token_index"))
    (place / "config.json").write_text(json.dumps(config))
    assert emointerp.load(place).anatomy.image_token == vlm("llava_next").anatomy.image_token
