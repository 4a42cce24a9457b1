"""Stage 1: a SigLIP-style dual encoder on pictures and captions that say what is visible.

Loss: SigLIP's pairwise sigmoid loss (Zhai et al. 2023) plus a caption-token classification loss (SuperClass, Huang et al. 2024),
which makes a small tower learn fine details from few pictures. The classification head is thrown away afterwards.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel, SiglipTextConfig, SiglipVisionConfig

from emointerp.training.data import augmented, batch_indices, examples, pictures
from emointerp.training.loop import Recipe, fit
from emointerp.training.tokenizer import VOCABULARY
from emointerp.world.language import caption
from emointerp.world.splits import Example

WIDTH, CAPTION_TOKENS = 192, 64


def config() -> SiglipConfig:
    """A tower of 6 layers over 64 patches of 16 x 16 pixels, and a text encoder of 3 layers."""
    vision = SiglipVisionConfig(
        hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=6, num_attention_heads=6, image_size=128, patch_size=16
    )
    text = SiglipTextConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=3, num_attention_heads=6,
        max_position_embeddings=CAPTION_TOKENS, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict())


class WithWordHeads(torch.nn.Module):
    """The dual encoder and the two heads that name caption tokens from the pooled and from the mean patch embedding."""

    def __init__(self):
        super().__init__()
        self.siglip = SiglipModel(config())
        self.pooled_words = torch.nn.Linear(WIDTH, VOCABULARY)
        self.patch_words = torch.nn.Linear(WIDTH, VOCABULARY)

    def forward(self, pixel_values: torch.Tensor, input_ids: torch.Tensor, word_weights: torch.Tensor) -> torch.Tensor:
        """Sum of the losses for matching rows of pixels [n, 3, 128, 128] and captions [n, tokens]."""
        vision = self.siglip.vision_model(pixel_values=pixel_values)
        text = self.siglip.text_model(input_ids=input_ids)
        words = self._word_loss(self.pooled_words(vision.pooler_output), input_ids, word_weights)
        words = words + self._word_loss(self.patch_words(vision.last_hidden_state.mean(1)), input_ids, word_weights)
        return self._pair_loss(vision.pooler_output, text.pooler_output) + words

    def _pair_loss(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        similarity = F.normalize(text.float(), dim=-1) @ F.normalize(image.float(), dim=-1).T
        logits = similarity * self.siglip.logit_scale.exp() + self.siglip.logit_bias
        signs = 2 * torch.eye(len(logits)) - 1
        return -F.logsigmoid(signs * logits).sum(-1).mean()

    @staticmethod
    def _word_loss(logits: torch.Tensor, input_ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """Softmax over the vocabulary against the caption's tokens, rare tokens counting more."""
        target = torch.zeros(logits.shape, dtype=torch.float32).scatter_(1, input_ids, 1.0) * weights
        target = target / target.sum(1, keepdim=True).clamp(min=1e-6)
        return -(target * F.log_softmax(logits.float(), -1)).sum(1).mean()


def word_weights(tokenizer: PreTrainedTokenizerFast, scenes: list[Example], seed: int = 0) -> torch.Tensor:
    """Inverse document frequency of every token over captions, zero for padding and marks."""
    rng = np.random.default_rng(seed)
    counts = torch.zeros(VOCABULARY)
    for e in scenes[:4000]:
        counts[list(set(tokenizer(caption(e.scene, rng)).input_ids))] += 1
    weights = torch.log(len(scenes[:4000]) / counts.clamp(min=1)) * (counts > 0)
    weights[: len(tokenizer.all_special_ids)] = 0.0
    return weights


def train_dual_encoder(folder: Path, tokenizer: PreTrainedTokenizerFast, n: int, recipe: Recipe) -> SiglipModel:
    """Train, or continue, in `folder`; returns the dual encoder and saves it as `folder/siglip`."""
    torch.manual_seed(recipe.seed)
    model = WithWordHeads()
    scenes, board = examples(n, recipe.seed), pictures(n, folder, recipe.seed)
    weights = word_weights(tokenizer, scenes)

    def loss_of(step: int) -> torch.Tensor:
        chosen, rng = batch_indices(step, recipe.batch, n, recipe.seed), np.random.default_rng([recipe.seed, 1, step])
        captions = [caption(scenes[i].scene, rng) for i in chosen]
        ids = tokenizer(captions, padding="max_length", truncation=True, max_length=CAPTION_TOKENS, return_tensors="pt", padding_side="right")
        with torch.autocast("cpu", torch.bfloat16):
            return model(augmented(board[np.sort(chosen)][np.argsort(np.argsort(chosen))], rng), ids.input_ids, weights)

    fit(model, loss_of, recipe, folder, "dual-encoder")
    model.siglip.eval().save_pretrained(folder / "siglip")
    return model.siglip
