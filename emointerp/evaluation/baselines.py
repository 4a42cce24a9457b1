"""Decoding baselines from the literature that give the picture more weight: PAI, VAF and VCD, as methods of the harness.

They were made against things that are told and not in the picture; here they stand beside VEENA. Two devices carry them:

- `Contrast`, a transformers LogitsProcessor, sets the logits of the next token against those of a second prompt that gets the same
  answer: the noised picture (VCD), or no picture (PAI). `Beside` reads that prompt, token by token, with a cache of its own.
- `image_scores` changes the scores of image columns by a function of the scores themselves (`z + a |z|`), which the additive masks
  of `ScaleAttention` cannot: they are made before the scores are known.

Both go with plain generation, not with edits: a trace would take the second prompt's forwards for steps of the answer.
"""

import math
import operator
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any, SupportsIndex

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from emointerp.errors import InputError
from emointerp.evaluation.items import Item
from emointerp.evaluation.methods import Decoding, Method, per_prompt
from emointerp.models import VLM, Prompt
from emointerp.models.anatomy import part
from emointerp.tracing import ScaleAttention, generate
from emointerp.tracing.interleave import check_maskable
from emointerp.tracing.plan import check
from emointerp.tracing.verbs import checked_layers

STEPS = 1000  # of forward diffusion, until a picture is noise
FORMS = ("weights", "scores")

Indices = Iterable[SupportsIndex]
Through = Callable[..., Tensor]  # (vlm, prompts, inputs, **options) -> token ids, for one batch


def pai(alpha: float = 0.2, gamma: float = 1.1, first_layer: int = 2, beta: float = 0.1) -> Method:
    """PAI, "Paying more attention to image" (Liu et al. 2024, arXiv 2407.21771), with the authors' settings.

    The scores `z` from the current token to image columns become `z + alpha |z|` before the softmax, in all heads from
    `first_layer` up; then guidance against the logits without the picture: `gamma l - (gamma - 1) l_text`, for tokens of at least
    `beta` times the probability of the likeliest. The logits without the picture are those of the same question in the same chat
    template with the text alone, under plain attention. `gamma=1` is without guidance, and without the cut, as the authors have it.
    """
    settings = {"alpha": alpha, "gamma": gamma, "first_layer": first_layer, "beta": beta}
    _check("PAI", alpha=(alpha, 0, math.inf), gamma=(gamma, 1, math.inf), beta=(beta, 0, 1))

    def through(vlm: VLM, prompts: Sequence[Prompt], inputs: dict[str, Any], **options: Any) -> Tensor:
        layers = range(*checked_layers(vlm, first_layer), vlm.anatomy.n_layers)
        with image_scores(vlm, inputs["input_ids"], layers, lambda z: alpha * z.abs()) as scores:
            if gamma > 1:
                beside = Beside(vlm, _without_picture(vlm, prompts), around=scores.paused)
                options["logits_processor"] = [*options.get("logits_processor", ()), Contrast(beside, gamma - 1, beta)]
            return vlm.model.generate(**inputs, **options)

    return _decoded("PAI", through, settings)


def vaf(factor: float = 1.15, layers: Indices | None = None, heads: Indices | None = None, form: str = "weights") -> Method:
    """VAF, visual amplification fusion (Yin et al. 2025, "ClearSight", arXiv 2503.13107): more attention to the picture.

    Acts in the middle third of the `layers` and in all `heads`, where none are named, from the last prompt token and those of the
    answer to the picture. `form="weights"` multiplies attention before it is normalised (`log factor` added to the scores: VEE's
    form, so that the two can be compared, and right for scores of either sign); `form="scores"` multiplies the scores themselves,
    as the authors do, which takes attention from columns with a score below 0. The authors act from all text tokens after the
    picture, and also lower the scores of the text before it (by 0.95); both are left out here.
    """
    layers, heads = (None if some is None else [operator.index(i) for i in some] for some in (layers, heads))
    settings = {"factor": factor, "layers": layers, "heads": heads, "form": form}
    _check("VAF", factor=(factor, 0, math.inf))
    if form not in FORMS:
        raise InputError(f"VAF: form is {form!r}; expected one of {', '.join(FORMS)}.")

    def edits(vlm: VLM) -> list[ScaleAttention]:
        n = vlm.anatomy.n_layers
        chosen = range(round(n / 3), round(2 * n / 3)) if layers is None else layers
        return [ScaleAttention(layer, factor, heads=heads) for layer in checked_layers(vlm, chosen)]

    def through(vlm: VLM, prompts: Sequence[Prompt], inputs: dict[str, Any], **options: Any) -> Tensor:
        check(edits(vlm), vlm.anatomy, prompts[0])
        mine = torch.zeros(vlm.anatomy.n_heads, 1, 1, device=vlm.device, dtype=vlm.model.dtype)
        mine[slice(None) if heads is None else heads] = 1
        with image_scores(
            vlm, inputs["input_ids"], [edit.layer for edit in edits(vlm)], lambda z: (factor - 1) * z * mine.to(z.device)
        ):
            return vlm.model.generate(**inputs, **options)

    if form == "scores":
        return _decoded("VAF", through, settings)
    return per_prompt("VAF", lambda vlm, prompts: [edits(vlm)] * len(prompts), settings)


def vcd(alpha: float = 1.0, beta: float = 0.1, noise: int = 500, seed: int = 0) -> Method:
    """Visual contrastive decoding (Leng et al. 2024, arXiv 2311.16922), with the authors' settings.

    `(1 + alpha) l - alpha l_noised`, for tokens of at least `beta` times the probability of the likeliest (the others are ruled
    out). `l_noised` are the logits under the same picture after `noise` of 1,000 steps of forward diffusion (see `noised`). The
    noise is drawn from `seed` and the picture, so it does not depend on the batch. Where a processor doubles a still picture in
    time (Qwen), each copy has noise of its own.
    """
    settings = {"alpha": alpha, "beta": beta, "noise": noise, "seed": seed}
    _check("VCD", alpha=(alpha, 0, math.inf), beta=(beta, 0, 1), noise=(noise, 0, STEPS - 1))
    if noise != int(noise):
        raise InputError(f"VCD: noise is {noise}; expected a whole number of steps.")

    def through(vlm: VLM, prompts: Sequence[Prompt], inputs: dict[str, Any], **options: Any) -> Tensor:
        beside = Beside(vlm, inputs | {"pixel_values": _noised_pixels(prompts, inputs["pixel_values"], int(noise), seed)})
        processors = [*options.pop("logits_processor", ()), Contrast(beside, alpha, beta)]
        return vlm.model.generate(**inputs, logits_processor=processors, **options)

    return _decoded("VCD", through, settings)


def _decoded(name: str, through: Through, settings: Mapping[str, Any]) -> Method:
    """A method that generates in a way of its own, batch by batch."""

    def answers(vlm: VLM, items: Sequence[Item], decoding: Decoding) -> list[str]:
        return generate(vlm, [item.prompt(vlm) for item in items], through=partial(through, vlm), **decoding.options())

    return Method(name, answers, settings)


def _check(method: str, **given: tuple[Any, float, float]) -> None:
    """Refuse what is no number between two bounds."""
    for name, (value, low, high) in given.items():
        number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not low <= value <= high:
            expected = f"from {low} up" if high == math.inf else f"from {low} to {high}"
            raise InputError(f"{method}: {name} is {value!r}; expected a number {expected}.")


# logits set against those of a second prompt


class Contrast(LogitsProcessor):
    """`(1 + weight) l - weight l'`, with `l'` the logits of a second prompt; `beta` as in `contrasted`. For one batch.

    transformers hands over `l` before temperature, so sampling draws from the contrasted distribution. Rows that have ended go on
    with padding, in both prompts, and nobody reads what comes of it.
    """

    def __init__(self, beside: "Beside", weight: float, beta: float):
        self.beside, self.weight, self.beta = beside, weight, beta

    def __call__(self, input_ids: Int[Tensor, "batch tokens"], scores: Float[Tensor, "batch vocabulary"]) -> Tensor:
        others = self.beside.logits(input_ids[:, -1:]).to(scores)
        return contrasted(scores, others, self.weight, self.beta)


def contrasted(
    logits: Float[Tensor, "batch vocabulary"], others: Float[Tensor, "batch vocabulary"], weight: float, beta: float
) -> Float[Tensor, "batch vocabulary"]:
    """`(1 + weight) logits - weight others`; -inf where a token has less than `beta` times the probability of the likeliest.

    Which is where `logits < log beta + max logits`. Guidance with strength gamma is `weight = gamma - 1`.

    >>> contrasted(torch.tensor([[2.0, 1.0, -9.0]]), torch.tensor([[2.0, 0.0, 0.0]]), 1.0, 0.1)
    tensor([[2., 2., -inf]])
    """
    mixed = (1 + weight) * logits - weight * others
    if not beta:
        return mixed
    return mixed.masked_fill(logits < math.log(beta) + logits.amax(-1, keepdim=True), -torch.inf)


@dataclass(eq=False)
class Beside:
    """A second batch of prompts that is read beside the one that is answered, and gets the same answers.

    Its positions are given explicitly, since models of the Qwen families keep those of the prompt that they read last.
    `around()` is a context for its forwards.
    """

    vlm: VLM
    inputs: dict[str, Any] = field(repr=False)
    around: Callable[[], AbstractContextManager] = nullcontext
    cache: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self.inputs = self.inputs | {"position_ids": _positions(self.vlm, self.inputs)}

    def logits(self, newest: Int[Tensor, "batch 1"]) -> Float[Tensor, "batch vocabulary"]:
        """Logits of the next token after the answers' newest ones; the first call reads the prompts, and no token yet."""
        if self.cache is not None:
            mask, positions = self.inputs["attention_mask"], self.inputs["position_ids"]
            longer = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
            self.inputs = {"input_ids": newest, "attention_mask": longer, "position_ids": positions[..., -1:] + 1}
        with self.around():
            out = self.vlm.model(**self.inputs, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        return out.logits[:, -1]


def _positions(vlm: VLM, inputs: dict[str, Any]) -> Tensor:
    """Token numbers that do not count the padding, [batch, tokens], or [3, batch, tokens] of a Qwen prompt with a picture."""
    if "pixel_values" in inputs and hasattr(vlm.model.model, "get_rope_index"):
        return vlm.model.model.get_rope_index(**inputs)[0]
    return (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)


def _without_picture(vlm: VLM, prompts: Sequence[Prompt]) -> dict[str, Any]:
    """Inputs of the prompts' texts in the model's chat template, as if no picture had been sent; padded on the left."""
    asked = ([{"role": "user", "content": [{"type": "text", "text": prompt.text}]}] for prompt in prompts)
    texts = [vlm.processor.apply_chat_template(one, add_generation_prompt=True) for one in asked]
    opened = bool(vlm.tokenizer.bos_token) and texts[0].startswith(vlm.tokenizer.bos_token)  # else the tokenizer opens it
    padding = {"padding": True, "padding_side": "left"} if len(texts) > 1 else {}
    made = vlm.tokenizer(texts, return_tensors="pt", add_special_tokens=not opened, **padding)
    return vlm.placed({name: made[name] for name in ("input_ids", "attention_mask")})


# a noised picture


def noised(pixels: Float[Tensor, "..."], step: int, generator: torch.Generator | None = None) -> Float[Tensor, "..."]:
    """Pixel values after so many steps of forward diffusion, in one: `sqrt(k) x + sqrt(1 - k) eps`, `eps` normal.

    `k` is the product of `1 - b` over steps 0 to `step`; `b` rises from 1e-5 to 5e-3 along a sigmoid over 1,000 steps, as in VCD.
    """
    b = torch.linspace(-6, 6, STEPS, dtype=torch.float64).sigmoid() * (5e-3 - 1e-5) + 1e-5
    k = float((1 - b[: step + 1]).prod())
    return math.sqrt(k) * pixels + math.sqrt(1 - k) * torch.randn(pixels.shape, generator=generator)


def _noised_pixels(prompts: Sequence[Prompt], batch: Tensor, step: int, seed: int) -> Tensor:
    """Each prompt's own pixels, noised, laid as they lie in the batch: tiles that only fill it up stay empty."""
    laid = []
    for prompt in prompts:
        generator = torch.Generator().manual_seed(seed + zlib.crc32(prompt.image.tobytes()))
        own = noised(prompt.inputs["pixel_values"], step, generator)
        laid.append(pad(own, (*(0, 0) * (own.ndim - 2), 0, batch.shape[1] - own.shape[1])))
    return torch.cat(laid).to(batch)


# scores of image columns


@dataclass(eq=False)
class ImageScores:
    """An attention function for transformers: from the current token to image columns, `added(z)` is added to the scores `z`.

    `image` marks image tokens, [batch, prompt tokens]; `added` takes and gives [batch, heads, 1, keys], before the softmax. The
    current token is the prompt's last, then each of the answer's in turn; other tokens are read as they would be.
    """

    image: Tensor
    added: Callable[[Tensor], Tensor]
    seen: dict[int, int] = field(default_factory=dict)
    active: bool = True

    def __call__(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, None]:
        """The attention of transformers' "sdpa", with the last query's computed anew: query [batch, heads, queries, d_head]."""
        plain = ALL_ATTENTION_FUNCTIONS["sdpa"]
        if not self.active:
            return plain(module, query, key, value, attention_mask, **options)
        mask = self._mask(module.layer_idx, query, key, attention_mask, options["scaling"])
        last = plain(module, query[:, :, -1:], key, value, mask, **options)[0]
        if query.shape[2] == 1:
            return last, None
        before = plain(module, query, key, value, attention_mask, **options)[0][:, :-1]
        return torch.cat([before, last], 1), None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While this lasts, attention is plain: for forwards of another prompt."""
        self.active = False
        try:
            yield
        finally:
            self.active = True

    def _mask(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
        """Scores to add to the last query's, [batch, heads, 1, keys]: what the mask has, and the change at image columns."""
        last = query[:, :, -1].unflatten(1, (key.shape[1], -1))  # [batch, key heads, query heads of each, d_head]
        z = (last @ key.mT).flatten(1, 2)[:, :, None] * scaling
        change = self.added(z) * self._columns(layer, query.shape[2], key.shape[2])[:, None, None]
        if mask is None:
            return change
        own = mask[..., -1:, :]
        return change.masked_fill(~own, -torch.inf) if own.dtype == torch.bool else change + own

    def _columns(self, layer: int, queries: int, keys: int) -> Tensor:
        """Which of the keys are image tokens, [batch, keys]; a sliding cache holds the last keys only."""
        self.seen[layer] = seen = self.seen.get(layer, 0) + queries
        return pad(self.image, (0, max(seen, keys) - self.image.shape[1]))[:, max(seen - keys, 0) :]


@contextmanager
def image_scores(
    vlm: VLM, input_ids: Int[Tensor, "batch tokens"], layers: Sequence[int], added: Callable[[Tensor], Tensor]
) -> Iterator[ImageScores]:
    """While this lasts, attention of the language model's `layers` goes through an `ImageScores`: for one batch, generated once.

    The function stands in transformers' registry under a name of its own, and the layers get a copy of their configuration that
    names it; so masks, other layers and other models are as ever, and both are gone afterwards. Models with eager attention
    compute these layers by sdpa (the same up to rounding); other implementations are refused.
    """
    check_maskable(vlm)
    scores = ImageScores(input_ids == vlm.anatomy.image_token, added)
    name = f"emointerp_image_scores_{id(scores)}"
    modules = [part(vlm.model, f"{vlm.anatomy.layers}.{layer}").self_attn for layer in layers]
    before = [module.config for module in modules]
    ALL_ATTENTION_FUNCTIONS[name] = scores
    try:
        for module in modules:
            module.config = _naming(module.config, name)
        yield scores
    finally:
        for module, config in zip(modules, before, strict=True):
            module.config = config
        del ALL_ATTENTION_FUNCTIONS[name]


def _naming(config: Any, attention: str) -> Any:
    """A copy of a configuration that names another attention function."""
    config = copy(config)
    config._attn_implementation = attention
    return config
