"""Towers: the vectors are those of transformers' own classes, gradients reach the pixels, and places are where the patches look."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny_families
import torch
import transformers as hf
from PIL import Image

from emointerp.errors import InputError, ModelError
from emointerp.models import load, load_tower
from emointerp.models.towers import flattened, unflattened
from emointerp.world import sample

SCENES = [example.scene for example in sample("test", 3)]
NOISE = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)


@pytest.fixture(scope="module", params=["siglip", "clip"])
def dual(request, tmp_path_factory) -> str:
    """A dual encoder with random weights, saved as on the hub; CLIP's vectors are projected to another width."""
    kind, place = request.param, tmp_path_factory.mktemp(request.param)
    tokenizer = tiny_families.new_tokenizer({})
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    text |= {"max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    vision = tiny_families.vision_sizes(32, 8)
    if kind == "siglip":
        config = hf.SiglipConfig(text_config=text, vision_config=vision)
        images = hf.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    else:
        config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        images = hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    torch.manual_seed(0)
    tiny_families.widened(hf.AutoModel.from_config(config)).save_pretrained(place)
    images.save_pretrained(place)
    tokenizer.save_pretrained(place)
    return str(place)


def test_the_bundled_text_side_finds_what_a_picture_shows():
    """Phrases of a kind, of which the scenes show different ones; far above chance, one in five."""
    tower, kinds = load_tower("tiny"), ("cat", "dog", "robot", "girl", "rabbit")
    scenes = [e.scene for e in sample("test", 120, seed=3) if e.scene.subject in kinds and e.scene.has_face]
    nearest = tower.texts([f"a {kind}" for kind in kinds]) @ tower.embed(scenes, progress=False).T
    said = [kinds[i] for i in nearest.argmax(0)]
    assert np.mean([a == scene.subject for a, scene in zip(said, scenes, strict=True)]) > 0.8


def test_the_bundled_tower_gives_what_transformers_gives():
    tower, vlm = load_tower("tiny"), load()
    pixels = tower.pixels(SCENES)
    own = vlm.processor.image_processor([s.image() for s in SCENES], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, own)
    with torch.no_grad():
        out = vlm.model.model.vision_tower(pixel_values=own)
    assert torch.allclose(tower.embed(SCENES, progress=False), out.pooler_output, atol=1e-5)
    assert torch.allclose(tower.embed(SCENES, patches=True, batch=2, progress=False), out.last_hidden_state, atol=1e-5)
    assert (tower.d, tower.d_patch, tower.n_patches) == (192, 192, 64)


@pytest.mark.parametrize("name", tiny_families.NAMES)
def test_in_every_family_a_gradient_reaches_the_pixels_that_a_patch_sees(name):
    """The gradient is the slope (finite differences), and vectors do not depend on who else is in the batch."""
    tower = load_tower(tiny_families.vlm(name))
    pixels = tower.pixels([*SCENES[:2], NOISE]).requires_grad_()
    weights = torch.linspace(-1, 1, tower.d)
    vectors = tower.pooled(pixels)
    (gradient,) = torch.autograd.grad((vectors[2] * weights).sum(), pixels)
    assert not gradient[:2].any()
    step = 2e-4 * torch.sign(gradient)
    with torch.no_grad():
        there, back = (tower.pooled(pixels + s)[2] @ weights for s in (step, -step))
    assert float((there - back) / 2) == pytest.approx(float((gradient * step).sum()), rel=0.05)
    alone = tower.embed([NOISE], progress=False)
    assert torch.allclose(alone[0], vectors[2].detach(), atol=1e-4)
    assert tower.patches(pixels).shape == (3, tower.n_patches, tower.d_patch)
    assert tower.boxes((60, 40)).shape == (tower.n_patches, 4)


@pytest.mark.parametrize("name", tiny_families.NAMES)
def test_before_attention_a_bright_place_moves_the_patch_whose_box_it_lies_in(name):
    """Through the patch embedding alone: what a hook sees there changes only in patches whose box meets the bright place."""
    tower = load_tower(tiny_families.vlm(name))
    side = 2 * tower.pixels([NOISE]).shape[-1]  # a square, so that every processor shows all of it
    dark = np.zeros((side, side, 3), np.uint8)
    boxes = tower.boxes((side, side))
    which = tower.n_patches - 2  # in the last row, not in the last column
    left, top, right, bottom = boxes[which]
    bright = dark.copy()
    bright[
        round((3 * top + bottom) / 4) : round((top + 3 * bottom) / 4), round((3 * left + right) / 4) : round((left + 3 * right) / 4)
    ] = 255
    seen = []
    first = next(
        module for module in tower.model.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Conv3d | torch.nn.Linear)
    )
    hook = first.register_forward_hook(lambda module, given, out: seen.append(out.detach()))
    tower.embed([dark], progress=False), tower.embed([bright], progress=False)
    hook.remove()
    change = (seen[-1] - seen[-2]).abs()
    if change.ndim == 4:  # [n, channel, row, column]
        moved = change[0].sum(0).flatten()
    else:  # Qwen: a row a patch, four neighbours a token
        moved = change.reshape(-1, 4, change[0].numel()).sum((1, 2))
    assert int(moved.argmax()) == which


def test_qwens_rows_of_patches_and_pictures_are_the_same_numbers():
    vlm = tiny_families.vlm("qwen2_vl")
    images = vlm.processor.image_processor
    made = images(images=[Image.fromarray(NOISE)], return_tensors="pt")
    thw = made["image_grid_thw"]
    picture = unflattened(made["pixel_values"], thw, 8, 2)
    rows, grid = flattened(picture, 8, 2)
    assert torch.equal(rows, made["pixel_values"]) and torch.equal(grid, thw)
    height, width = picture.shape[-2:]
    resized = np.asarray(Image.fromarray(NOISE).resize((width, height), Image.Resampling.BICUBIC)) / 255
    expected = ((resized - images.image_mean) / images.image_std).transpose(2, 0, 1)
    assert np.allclose(picture[0], expected, atol=1e-5)


def test_a_dual_encoders_pictures_and_texts_lie_in_one_space(dual):
    tower, model = load_tower(dual), hf.AutoModel.from_pretrained(dual).eval()
    said = ["a cat", "a dog in the rain, crying"]
    tokenizer, siglip = hf.AutoTokenizer.from_pretrained(dual), "siglip" in model.config.model_type
    padded = {"padding": "max_length", "max_length": 32} if siglip else {"padding": True}
    tokens = tokenizer(said, return_tensors="pt", padding_side="right", **padded)
    given = {name: tokens[name] for name in (["input_ids"] if siglip else ["input_ids", "attention_mask"])}
    with torch.no_grad():
        out = model(**given, pixel_values=tower.pixels(SCENES))
    unit = torch.nn.functional.normalize(tower.embed(SCENES, progress=False), dim=-1)
    assert torch.allclose(unit, out.image_embeds, atol=1e-5)
    assert torch.allclose(tower.texts(said), out.text_embeds, atol=1e-5)
    assert tower.d == out.image_embeds.shape[1]
    assert tower.embed(SCENES, patches=True, progress=False).shape == (3, 16, tower.d_patch)


def test_pictures_need_no_tokenizer(dual, tmp_path):
    for file in Path(dual).iterdir():
        if "token" not in file.name:
            shutil.copy(file, tmp_path)
    assert torch.equal(load_tower(tmp_path).embed(SCENES, progress=False), load_tower(dual).embed(SCENES, progress=False))


def test_clips_crop_is_told_from_a_whole_picture(dual):
    tower = load_tower(dual)
    boxes = tower.boxes((80, 40))
    across = (20, 60) if tower.model.config.model_type == "clip" else (0, 80)
    assert (boxes[:, 0].min(), boxes[:, 2].max()) == across


def test_what_cannot_be_opened_or_read_is_said():
    with pytest.raises(ModelError, match="Cannot open the model 'no/such'"):
        load_tower("no/such")
    with pytest.raises(InputError, match="No pictures came"):
        load_tower("tiny").embed([])
    with pytest.raises(InputError, match="'llava' has no text encoder; 'tiny' and dual encoders"):
        load_tower(tiny_families.vlm("llava_clip")).texts(["a cat"])
