"""Stage 1: a SigLIP-style dual encoder on pictures and what captions say of them.

Two steps, because a small tower on two cores learns fine details of a face far faster from a caption's phrases than from
matching whole captions (a first run with the pairwise loss alone was near chance after 58,000 pictures):

1. the tower learns to name every caption phrase (SuperClass, Huang et al. 2024) and to read the face's visible parameters in the
   manner of FACS (never the emotion); these heads are thrown away afterwards;
2. the text encoder is tuned to the locked tower with SigLIP's pairwise sigmoid loss (LiT, Zhai et al. 2022; Zhai et al. 2023).
"""

from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import (
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from emointerp.resumable import batch_indices
from emointerp.training.data import augmented, example, examples, pictures
from emointerp.training.loop import Recipe, fit
from emointerp.training.tokenizer import VOCABULARY
from emointerp.training.vectors import vectors
from emointerp.world.expression import Expression
from emointerp.world.language import FILLED_STYLES, caption, present_things, seen_parts
from emointerp.world.scene import Scene
from emointerp.world.splits import Example

WIDTH, CAPTION_TOKENS = 192, 64
PARAMETERS = tuple(f.name for f in fields(Expression))


def config() -> SiglipConfig:
    """A tower of 6 layers over 64 patches of 16 x 16 pixels, and a text encoder of 3 layers."""
    vision = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=6,
        num_attention_heads=6,
        image_size=128,
        patch_size=16,
    )
    text = SiglipTextConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=3, num_attention_heads=6,
        max_position_embeddings=CAPTION_TOKENS, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())


def phrases(scene: Scene) -> list[str]:
    """Everything that a caption could say of a scene, one phrase each.

    >>> phrases(Scene())[:4]
    ['a girl', 'style flat', 'place plain', 'sky clear']
    """
    said = [f"a {scene.subject}", f"style {scene.style}", f"place {scene.place}", f"sky {scene.weather}"]
    if not scene.has_face:
        return [said[1]]
    said += [f"thing {t}" for t in present_things(scene)]
    said += [phrase for words in seen_parts(scene).values() for phrase in words.split(", ")]
    said += [f"haircut {scene.haircut}", f"hat {scene.hat}", f"glasses {scene.glasses}"]
    if scene.style in FILLED_STYLES:
        said += [f"skin {scene.skin}", f"clothes {scene.clothes}", f"hair {scene.hair}"]
        said += [f"hat color {scene.hat_color}"] if scene.hat != "none" else []
    return said


def phrase_targets(scenes: list[Example]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Phrases as a 0/1 table [n, phrases], facial parameters in deviations [n, 28], has_face [n]."""
    said = [phrases(e.scene) for e in scenes]
    column = {phrase: i for i, phrase in enumerate(sorted({p for some in said for p in some}))}
    table = torch.zeros(len(said), len(column), dtype=torch.uint8)
    for row, some in zip(table, said, strict=True):
        row[[column[p] for p in some]] = 1
    values = torch.tensor([list(asdict(e.scene.expression).values()) for e in scenes])
    return table, (values - values.mean(0)) / values.std(0).clamp(min=1e-3), torch.tensor([e.scene.has_face for e in scenes])


class Reader(torch.nn.Module):
    """The tower with heads on its pooled and on its mean patch embedding: one logit a phrase, one value a facial parameter."""

    def __init__(self, n_phrases: int):
        super().__init__()
        self.tower = SiglipVisionModel(config().vision_config)
        self.heads = torch.nn.ModuleList(torch.nn.Linear(WIDTH, n_phrases + len(PARAMETERS)) for _ in range(2))

    def forward(self, pixel_values: torch.Tensor, said: torch.Tensor, moved: torch.Tensor, has_face: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of the phrases (summed) plus twenty times the parameters' Huber loss, mean over pictures and heads."""
        out = self.tower(pixel_values=pixel_values)
        losses = []
        for head, embedding in zip(self.heads, (out.pooler_output, out.last_hidden_state.mean(1)), strict=True):
            predicted = head(embedding).float()
            logits, values = predicted.split([said.shape[1], moved.shape[1]], dim=1)
            named = F.binary_cross_entropy_with_logits(logits, said.float(), reduction="none").sum(1)
            read = F.smooth_l1_loss(values, moved, reduction="none").mean(1) * has_face
            losses.append((named + 20 * read).mean())
        return sum(losses) / 2


def train_tower(folder: Path, n: int, recipe: Recipe) -> SiglipVisionModel:
    """Step 1: train, or continue, the tower in `folder`."""
    torch.manual_seed(recipe.seed)
    scenes, board = examples(n, recipe.seed), pictures(n, folder, recipe.seed)
    said, moved, has_face = phrase_targets(scenes)
    model = Reader(said.shape[1])

    def loss_of(step: int) -> torch.Tensor:
        chosen, rng = batch_indices(step, recipe.batch, n, recipe.seed), np.random.default_rng([recipe.seed, 1, step])
        with torch.autocast("cpu", torch.bfloat16):
            return model(augmented(board[chosen], rng), said[chosen], moved[chosen], has_face[chosen])

    fit(model, loss_of, recipe, folder, "tower")
    model.tower.eval().save_pretrained(folder / "siglip-vision")
    return model.tower


def train_text(folder: Path, tokenizer: PreTrainedTokenizerFast, tower: SiglipVisionModel, n: int, recipe: Recipe) -> SiglipModel:
    """Step 2: tune the text encoder to the locked tower; saves `folder/siglip`, and its text side as `folder/tiny-text`."""
    torch.manual_seed(recipe.seed)
    model = SiglipModel(config())
    model.vision_model.load_state_dict(tower.state_dict())
    model.vision_model.requires_grad_(False)
    torch.nn.init.constant_(model.logit_scale, 2.3)  # as SigLIP starts: temperature 10, and a bias against pairing
    torch.nn.init.constant_(model.logit_bias, -8.0)
    images = F.normalize(torch.from_numpy(np.array(vectors(tower, n, folder, recipe.seed)["pooled"])), dim=-1)

    def loss_of(step: int) -> torch.Tensor:
        chosen, rng = batch_indices(step, recipe.batch, n, recipe.seed), np.random.default_rng([recipe.seed, 3, step])
        captions = [caption(example(int(i), recipe.seed).scene, rng) for i in chosen]
        ids = tokenizer(captions, padding="max_length", truncation=True, max_length=CAPTION_TOKENS, padding_side="right")
        with torch.autocast("cpu", torch.bfloat16):
            texts = model.text_model(input_ids=torch.tensor(ids.input_ids)).pooler_output
        logits = F.normalize(texts.float(), dim=-1) @ images[chosen].T * model.logit_scale.exp() + model.logit_bias
        return -F.logsigmoid((2 * torch.eye(len(logits)) - 1) * logits).sum(1).mean()

    fit(model, loss_of, recipe, folder, "text", every=50)
    model.eval().save_pretrained(folder / "siglip")
    deepcopy(model.text_model).half().save_pretrained(folder / "tiny-text")
    return model
