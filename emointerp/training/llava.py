"""Stage 2: the tower, a projector and a Llama-style decoder become a LLaVA that tells stories and answers questions.

As in LLaVA the tower stays frozen. Real decoders have read much text before they see a first picture, and bring its prejudices
along; this one starts from nothing, so a few of its stories come with a blank picture and a loaded event: words alone.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessorPil,
    SiglipVisionModel,
)

from emointerp.resumable import batch_indices
from emointerp.training.data import augmented, examples, pictures
from emointerp.training.loop import Recipe, fit
from emointerp.training.tokenizer import CHAT, VOCABULARY
from emointerp.world.language import questions, story, story_prompt
from emointerp.world.splits import Example

PATCHES, IMAGE_ID = 64, 3
# what the first question of a training conversation is about, and how often
FIRST = {"story": 0.54, "feeling": 0.12, "caption": 0.06, "other": 0.28}
TURNS = 3  # short questions follow the first
# asked so many times as often as the other short questions
HARD_TO_LEARN = {"colour": 3.0, "how many": 3.0, "thing": 8.0, "glasses": 4.0, "who": 2.0}
BLIND = 0.15  # chance that a picture told with a loaded event is blank
IGNORED = -100


def new_model(tower: SiglipVisionModel) -> LlavaForConditionalGeneration:
    """A LLaVA around the trained tower: 8 layers, 8 heads, width 192."""
    text = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=192, intermediate_size=512, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=8, max_position_embeddings=1024, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=tower.config.to_dict(), text_config=text.to_dict(), image_token_index=IMAGE_ID, image_token_id=IMAGE_ID,
        vision_feature_layer=-1, vision_feature_select_strategy="full", image_seq_length=PATCHES, projector_hidden_act="gelu",
    )  # fmt: skip
    config.vision_config._name_or_path = ""  # where the tower lay on the disk that it was trained on
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.vision_tower.requires_grad_(False)
    model.generation_config.update(max_new_tokens=64, pad_token_id=0, bos_token_id=1, eos_token_id=2, do_sample=False)
    return model


def new_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The ordinary LLaVA processor for 128 x 128 pictures in 64 patches."""
    images = SiglipImageProcessorPil(size={"height": 128, "width": 128})
    return LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=16, vision_feature_select_strategy="full",
        chat_template=CHAT, image_token="<image>", num_additional_image_tokens=0,
    )  # fmt: skip


@torch.no_grad()
def image_features(model: LlavaForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """What the projector reads: the tower's last hidden state before its final norm, float32 [n, 64, 192]."""
    return model.model.vision_tower(pixel_values, output_hidden_states=True).hidden_states[-1].float()


def conversation(example: Example, rng: np.random.Generator, turns: int = TURNS) -> list[tuple[str, str]]:
    """A training conversation about one picture: (request, answer) pairs."""
    asked = questions(example.scene, rng)
    kinds = [kind for kind, _, _ in asked]
    first = str(rng.choice(list(FIRST), p=list(FIRST.values())))
    if first == "story":
        opening = [(story_prompt(example.event), story(example.scene, example.event, rng))]
    else:
        choices = [i for i, kind in enumerate(kinds) if kind == first] or list(range(len(asked)))
        opening = [asked[int(rng.choice(choices))][1:]]
    short = [i for i, kind in enumerate(kinds) if kind != "caption" and asked[i][1:] != opening[0]]
    weights = np.array([HARD_TO_LEARN.get(kinds[i], 1.0) for i in short])
    chosen = rng.choice(short, min(turns - 1, len(short)), replace=False, p=weights / weights.sum())
    return opening + [asked[i][1:] for i in chosen]


def blind_conversation(example: Example, rng: np.random.Generator) -> list[tuple[str, str]]:
    """The story alone, for a blank picture: nothing else could be answered."""
    return [(story_prompt(example.event), story(example.scene, example.event, rng))]


def blanked(pixels: torch.Tensor, blind: np.ndarray, rng: np.random.Generator) -> torch.Tensor:
    """Pictures [batch, 3, height, width] in [-1, 1]; those that are `blind` become one flat colour each."""
    flat = torch.from_numpy(rng.uniform(-1, 1, (len(pixels), 3, 1, 1))).float()
    return torch.where(torch.from_numpy(blind)[:, None, None, None], flat, pixels)


def encode(tokenizer: PreTrainedTokenizerFast, turns: list[tuple[str, str]]) -> tuple[list[int], list[int]]:
    """Token ids and labels of a conversation; the image stands as 64 image tokens, only answers are learnt."""
    ids, labels = [1], [IGNORED]
    for k, (request, answer) in enumerate(turns):
        # "USER: " and the request are one stretch of text but where the image token cuts them, as in the chat template
        before = tokenizer("USER: ", add_special_tokens=False).input_ids + [IMAGE_ID] * PATCHES if k == 0 else []
        text = ("\n" if k == 0 else "USER: ") + request + " ASSISTANT:"
        after = tokenizer(text, add_special_tokens=False).input_ids
        reply = tokenizer(" " + answer, add_special_tokens=False).input_ids + [2]
        ids += before + after + reply
        labels += [IGNORED] * (len(before) + len(after)) + reply
    return ids, labels


def collate(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad on the right: ids with 0, labels with the ignored mark."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([r + [0] * (longest - len(r)) for r, _ in rows])
    labels = torch.tensor([r + [IGNORED] * (longest - len(r)) for _, r in rows])
    return ids, labels


def language_loss(
    model: LlavaForConditionalGeneration, features: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of the answers, given patch embeddings [n, 64, 192] in place of pixels."""
    embeds = model.get_input_embeddings()(ids)
    visual = model.model.multi_modal_projector(features).to(embeds.dtype)
    where = (ids == IMAGE_ID).unsqueeze(-1).expand_as(embeds)
    hidden = model.model.language_model(inputs_embeds=embeds.masked_scatter(where, visual), use_cache=False).last_hidden_state
    answered = labels[:, 1:] != IGNORED
    logits = model.lm_head(hidden[:, :-1][answered])
    return F.cross_entropy(logits.float(), labels[:, 1:][answered])


def train_llava(
    folder: Path, tokenizer: PreTrainedTokenizerFast, tower: SiglipVisionModel, n: int, recipe: Recipe
) -> LlavaForConditionalGeneration:
    """Train, or continue, in `folder`."""
    torch.manual_seed(recipe.seed)
    model = new_model(tower)
    scenes, board = examples(n, recipe.seed), pictures(n, folder, recipe.seed)

    def loss_of(step: int) -> torch.Tensor:
        chosen = batch_indices(step, recipe.batch, n, recipe.seed + 1)
        rng = np.random.default_rng([recipe.seed, 2, step])
        blind = np.array([scenes[i].event_emotion is not None and rng.random() < BLIND for i in chosen])
        talks = [(blind_conversation if b else conversation)(scenes[i], rng) for i, b in zip(chosen, blind, strict=True)]
        ids, labels = collate([encode(tokenizer, turns) for turns in talks])
        pixels = blanked(augmented(board[chosen], rng, drained=0), blind, rng)
        with torch.autocast("cpu", torch.bfloat16):
            return language_loss(model, image_features(model, pixels), ids, labels)

    fit(model, loss_of, recipe, folder, "llava")
    return model.eval()
