"""For each family a tiny random model in float32, with its processor, made offline and without torchvision.

Four language layers, four heads with two key/value heads, weights wide enough that outputs differ between inputs, and a handful
of image tokens a picture. `vlm(name)` gives one in hand, `folder(name)` the same one saved.
"""

import json
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

import emointerp
from emointerp.models import VLM
from emointerp.models.processors import pictures_only
from emointerp.training.tokenizer import CHAT as LLAVA_CHAT
from emointerp.world.language import vocabulary_sentences

WIDTH, MLP, LAYERS, HEADS, KV_HEADS, CONTEXT = 32, 48, 4, 4, 2, 512
WINDOW = 16  # of Gemma 3's sliding layers
TURN = "{% for c in m['content'] %}{% if c['type'] == 'image' %}IMAGE{% else %}{{ c['text'] }}{% endif %}{% endfor %}"
QWEN_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    + TURN.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ m['role'] }}\n"
    + TURN.replace("IMAGE", "<start_of_image>")
    + "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
IDEFICS_CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] | capitalize }}:"
    + TURN.replace("IMAGE", "<image>")
    + "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
IMAGE_MARK = {"image_token": "<image>"}
QWEN_MARKS = {
    "image_token": "<|image_pad|>", "video_token": "<|video_pad|>", "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>", "turn_token": "<|im_start|>", "end_token": "<|im_end|>",
}  # fmt: skip
GEMMA_MARKS = {
    "image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>",
    "turn_token": "<start_of_turn>", "end_token": "<end_of_turn>",
}  # fmt: skip
IDEFICS_MARKS = {
    "image_token": "<image>", "fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
} | {f"row_{i}_col_{j}": f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)}  # fmt: skip


@cache
def _trained() -> str:
    """A byte-level BPE of the world's texts, as JSON."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    marks = ["<pad>", "<s>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=marks, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(list(vocabulary_sentences(scenes=3)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tokenizer.to_str()


def new_tokenizer(marks: dict[str, str]) -> hf.PreTrainedTokenizerFast:
    """The tokenizer with a family's own marks after its vocabulary."""
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()), pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens=marks, padding_side="left", model_max_length=CONTEXT,
    )  # fmt: skip


def text_sizes(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Sizes that all language models share."""
    return {
        "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": MLP, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": CONTEXT,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    } | more  # fmt: skip


def vision_sizes(image_size: int, patch_size: int) -> dict[str, Any]:
    """Sizes of a CLIP or SigLIP tower."""
    return {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": image_size, "patch_size": patch_size,
    }  # fmt: skip


def llava_clip() -> tuple:
    """CLIP with its class token and its middle square; 16 image tokens."""
    tokenizer = new_tokenizer(IMAGE_MARK)
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**vision_sizes(32, 8)), text_config=hf.LlamaConfig(**text_sizes(tokenizer)),
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    images = hf.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = hf.LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )  # fmt: skip
    return config, processor


def llava_siglip() -> tuple:
    """SigLIP, whose patches leave the last pixels of a side out; 16 image tokens, heads wider than d_model / heads."""
    tokenizer = new_tokenizer(IMAGE_MARK)
    config = hf.LlavaConfig(
        vision_config=hf.SiglipVisionConfig(**vision_sizes(36, 8)),
        text_config=hf.LlamaConfig(**text_sizes(tokenizer, head_dim=12)), image_token_index=tokenizer.image_token_id,
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )  # fmt: skip
    images = hf.SiglipImageProcessorPil(size={"height": 36, "width": 36})
    processor = hf.LlavaProcessor(images, tokenizer, patch_size=8, vision_feature_select_strategy="full", chat_template=LLAVA_CHAT)
    return config, processor


def llava_next() -> tuple:
    """The whole picture and up to four tiles of 2 x 2 tokens, with a line break a row."""
    tokenizer = new_tokenizer(IMAGE_MARK)
    grids = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**vision_sizes(16, 8)), text_config=hf.LlamaConfig(**text_sizes(tokenizer)),
        image_token_index=tokenizer.image_token_id, image_grid_pinpoints=grids,
    )  # fmt: skip
    images = hf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_grid_pinpoints=grids
    )
    processor = hf.LlavaNextProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=LLAVA_CHAT,
    )  # fmt: skip
    return config, processor


def llava_onevision() -> tuple:
    """The whole picture and up to nine tiles of 2 x 2 tokens, made coarser beyond twelve."""
    tokenizer = new_tokenizer({**IMAGE_MARK, "video_token": "<video>"})
    sides = (17, 34, 51)
    grids = [[height, width] for height in sides for width in sides]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**vision_sizes(17, 8)), text_config=hf.Qwen2Config(**text_sizes(tokenizer)),
        image_token_index=tokenizer.image_token_id, video_token_index=tokenizer.video_token_id,
        image_grid_pinpoints=grids, vision_aspect_ratio="anyres_max_3",
    )  # fmt: skip
    images = hf.LlavaOnevisionImageProcessorPil(size={"height": 17, "width": 17}, image_grid_pinpoints=grids)
    processor = pictures_only(hf.LlavaOnevisionProcessor)(
        images, tokenizer, num_image_tokens=4, vision_feature_select_strategy="full", vision_aspect_ratio="anyres_max_3",
        chat_template=LLAVA_CHAT,
    )  # fmt: skip
    return config, processor


def _qwen(kind: str, processor: type, vision: dict[str, Any], **text: Any) -> tuple:
    """4 to 24 merged patches of 16 pixels a side, as the picture's form asks."""
    tokenizer = new_tokenizer(QWEN_MARKS)
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    config = hf.AutoConfig.for_model(
        kind, vision_config=vision | {"depth": 3, "num_heads": 2, "patch_size": 8},
        text_config=text_sizes(tokenizer, **({"rope_parameters": rope} | text)), image_token_id=tokenizer.image_token_id,
        video_token_id=tokenizer.video_token_id, vision_start_token_id=tokenizer.vision_bos_token_id,
        vision_end_token_id=tokenizer.vision_eos_token_id,
    )  # fmt: skip
    images = hf.Qwen2VLImageProcessorPil(size={"shortest_edge": 32 * 32, "longest_edge": 64 * 96}, patch_size=8)
    return config, pictures_only(processor)(images, tokenizer, chat_template=QWEN_CHAT)


def qwen2_vl() -> tuple:
    """Three-axis rotary positions."""
    return _qwen("qwen2_vl", hf.Qwen2VLProcessor, {"embed_dim": 16, "hidden_size": WIDTH, "mlp_ratio": 2})


def qwen2_5_vl() -> tuple:
    """Windowed attention in the vision tower."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": WIDTH}
    vision |= {"window_size": 32, "fullatt_block_indexes": [2]}
    return _qwen("qwen2_5_vl", hf.Qwen2_5_VLProcessor, vision)


def qwen3_vl() -> tuple:
    """Visual features again in the first two layers; heads wider than d_model / heads."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "out_hidden_size": WIDTH}
    vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2], "mrope_interleaved": True}
    return _qwen("qwen3_vl", hf.Qwen3VLProcessor, vision, head_dim=16, rope_parameters=rope)


def _idefics(config: type, images: type, tile: int, shuffle: int) -> tuple:
    """Up to four tiles and the whole picture, four tokens each."""
    tokenizer = new_tokenizer(IDEFICS_MARKS)
    whole = config(
        vision_config=vision_sizes(tile, 8), text_config=hf.LlamaConfig(**text_sizes(tokenizer)),
        image_token_id=tokenizer.image_token_id, scale_factor=shuffle,
    )  # fmt: skip
    pictures = images(size={"longest_edge": 2 * tile}, max_image_size={"longest_edge": tile})
    return whole, hf.Idefics3Processor(pictures, tokenizer, image_seq_len=4, chat_template=IDEFICS_CHAT)


def idefics3() -> tuple:
    """Tiles of 32 pixels, 2 x 2 patches a token."""
    return _idefics(hf.Idefics3Config, hf.Idefics3ImageProcessorPil, 32, 2)


def smolvlm() -> tuple:
    """Tiles of 68 pixels, of which patches see 64, 4 x 4 patches a token."""
    return _idefics(hf.SmolVLMConfig, hf.SmolVLMImageProcessorPil, 68, 4)


def gemma3() -> tuple:
    """16 pooled tokens; sliding and full layers in turn, a window shorter than the prompt, heads wider than d_model / heads."""
    tokenizer = new_tokenizer(GEMMA_MARKS)
    text = hf.Gemma3TextConfig(
        **text_sizes(tokenizer, head_dim=16, query_pre_attn_scalar=16, sliding_window=WINDOW),
        layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
    )  # fmt: skip
    config = hf.Gemma3Config(
        vision_config=hf.SiglipVisionConfig(**vision_sizes(32, 4)), text_config=text, mm_tokens_per_image=16,
        boi_token_index=tokenizer.boi_token_id, eoi_token_index=tokenizer.eoi_token_id,
        image_token_index=tokenizer.image_token_id,
    )  # fmt: skip
    images = hf.Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    return config, hf.Gemma3Processor(images, tokenizer, chat_template=GEMMA_CHAT, image_seq_length=16)


MAKERS: dict[str, Callable[[], tuple]] = {
    maker.__name__: maker
    for maker in (
        llava_clip, llava_siglip, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, idefics3, smolvlm, gemma3,
    )
}  # fmt: skip
NAMES = tuple(MAKERS)


@torch.no_grad()
def widened(model: torch.nn.Module) -> torch.nn.Module:
    """Weights that keep activations near one, so that every part of an input counts."""
    for name, weights in model.named_parameters():
        if weights.ndim > 1:
            weights.normal_(std=1.5 / weights[0].numel() ** 0.5)
        elif name.endswith("bias"):
            weights.normal_(std=0.1)
    return model


@cache
def vlm(name: str, attn_implementation: str = "sdpa") -> VLM:
    """The tiny model of a family in hand, the same weights on every call; the global random state stays as it was."""
    config, processor = MAKERS[name]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = widened(hf.AutoModelForImageTextToText.from_config(config, attn_implementation=attn_implementation))
    model.generation_config.update(pad_token_id=0, bos_token_id=1, eos_token_id=2, do_sample=False)
    return emointerp.load(model, processor=processor)


@cache
def _saved(name: str) -> tempfile.TemporaryDirectory:
    place = tempfile.TemporaryDirectory(prefix=f"tiny_{name}")
    in_hand = vlm(name)
    in_hand.model.save_pretrained(place.name)
    in_hand.processor.save_pretrained(place.name)
    if name == "smolvlm":  # under the name of its own class, as on the hub
        kept = Path(place.name) / "processor_config.json"
        kept.write_text(json.dumps(json.loads(kept.read_text()) | {"processor_class": "SmolVLMProcessor"}))
    return place


def folder(name: str) -> Path:
    """Where the tiny model of a family is saved; removed when the test run ends."""
    return Path(_saved(name).name)


FAMILIES: dict[str, Callable[..., VLM]] = {name: partial(vlm, name) for name in NAMES}
