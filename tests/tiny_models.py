"""A small model with random weights in the bundled model's form, for tests that need behaviour and not skill.

The folder is made once a test run; every module that imports the fixture opens it again.
"""

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, SiglipVisionConfig

import emointerp
from emointerp.training.llava import IMAGE_ID, PATCHES, new_processor
from emointerp.training.tokenizer import VOCABULARY, train_tokenizer
from emointerp.world.language import vocabulary_sentences

WIDTH, LAYERS, HEADS = 32, 3, 4


def random_config() -> LlavaConfig:
    """The bundled model's configuration with fewer and smaller layers; wide weights, so that answers differ."""
    vision = SiglipVisionConfig(
        hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=2,
        image_size=128, patch_size=16,
    )  # fmt: skip
    text = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=1024, initializer_range=0.3,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return LlavaConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), image_token_index=IMAGE_ID,
        vision_feature_layer=-1, vision_feature_select_strategy="full", image_seq_length=PATCHES,
        projector_hidden_act="gelu",
    )  # fmt: skip


def random_model() -> LlavaForConditionalGeneration:
    """The model itself, float32, the same on every call; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlavaForConditionalGeneration(random_config())
        torch.nn.init.normal_(model.model.multi_modal_projector.linear_2.weight, std=0.5)  # so that pictures count
    model.generation_config.update(max_new_tokens=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, do_sample=False)
    return model.eval()


@cache
def _folder() -> tempfile.TemporaryDirectory:
    place = tempfile.TemporaryDirectory(prefix="random_vlm")
    random_model().to(torch.float16).save_pretrained(place.name)
    new_processor(train_tokenizer(vocabulary_sentences(scenes=50))).save_pretrained(place.name)
    return place


def random_folder() -> Path:
    """Where the model lies, in float16 as the bundled one; removed when the test run ends."""
    return Path(_folder().name)


def picture(seed: int = 0) -> np.ndarray:
    """A picture of noise, uint8 [128, 128, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (128, 128, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def random_vlm():
    """The random model in hand, float32."""
    return emointerp.load(random_folder(), dtype="float32")
