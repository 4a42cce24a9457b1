"""What a model will take before it is fetched: memory and time, computed from its configuration and not measured.

`expect` builds the model on PyTorch's meta device, which holds shapes and no weights, and counts. Parameters, caches and operations
are exact or nearly so (tests hold them against loaded models). Times are not: they stand on `efficiency`, the share of a GPU's peak
that is reached, which is a guess, leave out the overhead of Python and nnsight, and were never held against a GPU.

>>> budget = expect("llava-hf/llava-1.5-7b-hf")
>>> round(sum(budget.parameters.values()) / 1e9, 2), round(budget.weights / 1e9, 1)
(7.06, 14.1)
>>> round(budget.cache(tokens=640) / 1e9, 2)
0.34
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import nn
from transformers import PreTrainedConfig

from emointerp.errors import InputError
from emointerp.models.anatomy import Anatomy, anatomy_of, family_of, part
from emointerp.models.loading import BUNDLED, WEIGHTS
from emointerp.models.patches import anyres
from emointerp.models.published import CONFIGS, OTHERS
from emointerp.models.vlm import VLM


@dataclass(frozen=True)
class GPU:
    """Memory in bytes, peak in FLOP a second (dense, 16 bits, sums in float32), bandwidth in bytes a second."""

    memory: float
    peak: float
    bandwidth: float


# NVIDIA's figures of the T4, A100 (SXM), H100 (SXM, without sparsity) and of Ada, as others quote them: its sheets were not at hand
GPUS = {
    "T4 16 GB": GPU(16e9, 65e12, 320e9),
    "RTX 4090 24 GB": GPU(24e9, 165.2e12, 1008e9),
    "A100 40 GB": GPU(40e9, 312e12, 1555e9),
    "A100 80 GB": GPU(80e9, 312e12, 2039e9),
    "H100 80 GB": GPU(80e9, 989.4e12, 3350e9),
}
USABLE = 0.9  # share of the memory that is left when CUDA has its own and blocks are lost between others
MOST = 32  # prompts that are answered together, if they fit
BRANCHES, SWEEP = 512, 2**30  # of `tracing.sweep`: branches a forward at most, and what a forward of them may take
SITES = ("residual", "heads", "neurons", "attention")

KNOWN = CONFIGS | OTHERS
PICTURE = (672, 672)  # width and height of the picture whose tokens are counted where it is not said how many
SPLIT = 17  # tiles that Idefics3's and SmolVLM's processors make of a square picture: 4 x 4, and the whole


@dataclass(frozen=True)
class Budget:
    """What a model takes, by formulas that its methods name; nothing here was measured.

    `parameters`: of the language model, the projector and the vision tower. `matrices`: the weights among them by which tokens are
    multiplied, of the language layers, the unembedding, the tower's layers, the projector, and those that read the patches.
    `patches`: of a prompt's picture, and how many of them see each other; `tower`: its layers and width. Prompts have `visual` and
    `text` tokens, answers `new`. `itemsize`: bytes a number; `bits`: of quantised matrices, else None.
    """

    name: str
    parameters: Mapping[str, int]
    visual: int
    text: int
    new: int
    itemsize: int
    bits: int | None
    anatomy: Anatomy = field(repr=False)
    matrices: Mapping[str, int] = field(repr=False)
    patches: tuple[int, int] = field(repr=False)
    tower: tuple[int, int] = field(repr=False)

    @property
    def tokens(self) -> int:
        """Of a prompt."""
        return self.visual + self.text

    # memory, in bytes

    @property
    def weights(self) -> float:
        """All parameters; with `bits`, those of the layers and the projector in so many bits, as bitsandbytes does it."""
        packed = sum(self.matrices[name] for name in ("language", "tower", "projector")) if self.bits else 0
        return packed * (self.bits or 0) / 8 + (sum(self.parameters.values()) - packed) * self.itemsize

    def cache(self, tokens: int | None = None, batch: int = 1) -> int:
        """Keys and values: 2 x layers x key/value heads x d_head numbers a token; by default of a prompt with its answer."""
        a, n = self.anatomy, self.tokens + self.new if tokens is None else tokens
        return 2 * a.n_layers * a.n_kv_heads * a.d_head * n * batch * self.itemsize

    def collected(self, sites: tuple[str, ...] = ("residual",), tokens: int | None = None) -> int:
        """What `collect` keeps of a prompt, all layers: of some of "residual", "heads", "neurons", "attention"."""
        a, n = self.anatomy, self.tokens if tokens is None else tokens
        widths = dict(zip(SITES, (a.d_model, a.n_heads * a.d_head, a.d_mlp, a.n_heads * n), strict=True))
        if strange := set(sites) - set(SITES):
            raise InputError(f"{', '.join(sorted(strange))} is nothing to collect; expected some of {', '.join(SITES)}.")
        return sum(widths[site] for site in sites) * a.n_layers * n * self.itemsize

    def layer(self, batch: int = 1) -> int:
        """Activations of one layer while `batch` prompts are read, and their last tokens' logits (estimated)."""
        a = self.anatomy
        activations = batch * self.tokens * (8 * a.d_model + 4 * a.d_mlp + 4 * a.n_heads * a.d_head) * self.itemsize
        return activations + 3 * 4 * batch * a.vocabulary

    def swept(self) -> float:
        """While a prompt is swept: weights, its cache, the copy of that which a forward of branches makes, and the branches."""
        return self.weights + 2 * self.cache(self.tokens) + SWEEP

    def peak(self, batch: int = 1) -> float:
        """While `batch` prompts are read and answered, or one is swept: weights, cache, and a layer's activations (estimated)."""
        return max(self.weights + self.cache(batch=batch) + self.layer(batch), self.swept())

    # operations

    def language_flops(self, tokens: int, keys: int, read: int = 1) -> float:
        """2 x matrices x tokens; 4 x layers x heads x d_head for each token and key; and the logits of `read` tokens.

        Attention is counted whole, as masked products compute it; kernels that skip the future do half of it.
        """
        a = self.anatomy
        attention = 4 * a.n_layers * a.n_heads * a.d_head * tokens * keys
        return 2 * self.matrices["language"] * tokens + attention + 2 * self.matrices["unembedding"] * read

    @property
    def prompt_flops(self) -> float:
        """Of a prompt's forward, its picture with it."""
        projector = 2 * self.matrices["projector"] * self.visual
        return self.tower_flops(*self.patches) + projector + self.language_flops(self.tokens, self.tokens)

    def tower_flops(self, patches: int, seen: int) -> float:
        """Of the tower: 2 x matrices x patches; 4 x layers x width for each patch and one that it sees."""
        layers, width = self.tower
        return 2 * (self.matrices["tower"] + self.matrices["patches"]) * patches + 4 * layers * width * patches * seen

    def branch_flops(self, branches: int) -> float:
        """Of interventions at the last token, which share the prompt: a token each, and its logits, in forwards of `together`.

        A token's attention passes over the prompt and over the other branches of its forward, which a mask hides.
        """
        return self.language_flops(branches, self.tokens - 1 + min(branches, self.together()), branches)

    def together(self, new: int = 0) -> int:
        """Interventions at the last token that share a forward, with answers of `new` tokens: as `tracing.sweep` decides it."""
        a = self.anatomy
        most = min(BRANCHES, 3 * (4 * a.d_model + 3 * a.d_mlp) // (1 + new)) if new else BRANCHES
        while most > 1 and self._branch_bytes(most, 1 + new) > SWEEP:
            most = most * 3 // 4
        return most

    def _branch_bytes(self, branches: int, own: int) -> int:
        """Of a forward of branches with `own` tokens each: masks, activations, keys and values, logits."""
        a, keys = self.anatomy, self.tokens - 1 + branches * own
        activations = branches * (8 * a.d_model + 4 * a.d_mlp + 4 * a.n_heads * a.d_head)
        cache = 2 * a.n_kv_heads * a.d_head * (a.n_layers * branches * own + keys)
        numbers = branches * keys + activations + cache + 3 * branches * a.vocabulary
        return numbers * self.itemsize + 16 * branches * keys

    @property
    def head_map_flops(self) -> float:
        """Of `head_map` on one pair: the donor and the receiver are read, and each head of each layer is a branch, and none."""
        return 2 * self.prompt_flops + self.branch_flops(self.anatomy.n_layers * self.anatomy.n_heads + 1)

    # time, in seconds

    def prompt_seconds(self, gpu: GPU, efficiency: float = 0.4) -> float:
        """Reading a prompt, which operations bind, or (on small models) the weights that pass by."""
        return max(self.prompt_flops / gpu.peak, self.weights / gpu.bandwidth) / efficiency

    def step_seconds(self, gpu: GPU, batch: int = 1, efficiency: float = 0.4) -> float:
        """One more token of `batch` answers, half-way: weights and caches pass by once, which bandwidth binds."""
        n = self.tokens + self.new // 2
        moved = self.weights + self.cache(n, batch)
        return max(batch * self.language_flops(1, n) / gpu.peak, moved / gpu.bandwidth) / efficiency

    def head_map_seconds(self, gpu: GPU, efficiency: float = 0.4) -> float:
        """`head_map` on one pair."""
        forwards = 2 + math.ceil((self.anatomy.n_layers * self.anatomy.n_heads + 1) / self.together())
        return max(self.head_map_flops / gpu.peak, forwards * self.weights / gpu.bandwidth) / efficiency

    def batch(self, gpu: GPU) -> int:
        """How many prompts fit together, of 1, 2, 4, … 32; 0 where none does."""
        return max((b for b in (1, 2, 4, 8, 16, MOST) if self.peak(b) <= USABLE * gpu.memory), default=0)

    def to_frame(self, efficiency: float = 0.4) -> pd.DataFrame:
        """A row a GPU: whether the model `fits`, the `batch` that does, and seconds, where it fits; computed, not measured.

        `prompt`: to read one; `story`: a prompt and its answer, alone; `head_map`: of one pair; `evaluation`: 1,000 answers in
        batches, each read once more for its perplexity. `efficiency`: the share of peak and bandwidth that is reached.
        """
        if not 0 < efficiency <= 1:
            raise InputError(f"efficiency is {efficiency!r}; expected a share of the peak, above 0 and at most 1, such as 0.4.")
        return pd.DataFrame({name: self._row(gpu, efficiency) for name, gpu in GPUS.items()}).T.convert_dtypes()

    def _row(self, gpu: GPU, efficiency: float) -> dict[str, Any]:
        if not (batch := self.batch(gpu)):
            return {"fits": False, "batch": 0} | dict.fromkeys(("prompt", "story", "head_map", "evaluation"), math.nan)
        prompt, heads = self.prompt_seconds(gpu, efficiency), self.head_map_seconds(gpu, efficiency)
        alone, together = (self.new * self.step_seconds(gpu, b, efficiency) for b in (1, batch))
        times = {"prompt": prompt, "story": prompt + alone, "head_map": heads, "evaluation": 1000 * (2 * prompt + together / batch)}
        return {"fits": True, "batch": batch, **times}

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {n / 1e9:.3g}" for name, n in self.parameters.items())
        kept = ", ".join(f"{site} {self.collected((site,)) / 1e9:.2g}" for site in SITES)
        memory = (
            f"weights {self.weights / 1e9:.3g}, a prompt's keys and values {self.cache() / 1e9:.2g}, peak {self.peak() / 1e9:.3g}"
        )
        work = f"a prompt {self.prompt_flops / 1e12:.3g}, a head map of one pair {self.head_map_flops / 1e12:.3g}"
        total = f"{sum(self.parameters.values()) / 1e9:.3g} billion parameters ({counts})"
        return f"{self.name}: {total}. Computed, not measured.\n  GB: {memory}; collected: {kept}\n  TFLOP: {work}"


def expect(
    model: str | VLM | PreTrainedConfig,
    *,
    visual: int | None = None,
    text: int = 64,
    new: int = 64,
    dtype: str | None = None,
    bits: int | None = None,
) -> Budget:
    """Memory and time to expect of a model: one of `KNOWN` by its name, a transformers configuration, or a VLM in hand.

    `visual` tokens of a picture: by default those of a VLM's prompt with a picture of 512 x 384 pixels, or of one of 672 x 672 for
    a name; a configuration alone does not say (`visual_tokens`). `text` tokens stand beside them, and answers have `new`.
    `dtype`: a VLM's own, else bfloat16; `bits` (4 or 8) as in `load`.

    >>> import emointerp as ei
    >>> ei.models.expect("llava-hf/llava-1.5-7b-hf").parameters
    {'language': 6738939904, 'projector': 20979712, 'tower': 303507456}
    """
    if isinstance(model, VLM):
        name, config, own = model.name, model.model.config, str(model.model.dtype).removeprefix("torch.")
        visual = len(model.prompt(Image.new("RGB", (512, 384), "grey"), "It rained.").visual) if visual is None else visual
    else:
        name, config, own = model if isinstance(model, str) else model.model_type, _configuration(model), "bfloat16"
        visual = visual_tokens(config) if visual is None and isinstance(model, str) else visual
    for what, value in {"visual": visual, "text": text, "new": new}.items():
        if value is None or value < 1:
            raise InputError(f"{what} is {value!r}; expected a number of tokens, 1 or more.")
    size = getattr(torch, dtype or own, None)
    if not isinstance(size, torch.dtype) or bits not in (None, 4, 8):
        raise InputError(f"dtype={dtype!r}, bits={bits!r}: expected a dtype such as 'float32', and bits 4, 8 or None.")
    return _counted(name, config, visual, text, new, size.itemsize, bits)


def _configuration(model: str | PreTrainedConfig) -> PreTrainedConfig:
    from transformers import AutoConfig

    if isinstance(model, PreTrainedConfig):
        return model
    if model not in KNOWN:
        known = f"Known by name are {', '.join(KNOWN)}"
        raise InputError(f"{known}; for {model!r} give transformers.AutoConfig.from_pretrained({model!r}), or load(…) of it.")
    return AutoConfig.for_model(**copy.deepcopy(KNOWN[model]))


def named(model: str, bits: int | None = None) -> Budget:
    """What a model takes, by its name: bundled, published (`models.published`), a folder, or an id that the hub's cache holds.

    Of the last two the configuration is read, never the weights, and nothing is fetched. Raises an InputError where there is none.
    """
    if model in KNOWN:
        return expect(model, bits=bits)
    config = _kept(model)
    given = {"visual": visual_tokens(config)} | ({"dtype": "float32"} if model in BUNDLED else {"bits": bits})
    return replace(expect(config, **given), name=model)


def _kept(model: str) -> PreTrainedConfig:
    """The configuration that this machine holds."""
    from transformers import AutoConfig

    folder = WEIGHTS / model if model in BUNDLED else Path(model).expanduser()
    try:
        return AutoConfig.from_pretrained(str(folder) if folder.is_dir() else model, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        fetched = f"transformers.AutoConfig.from_pretrained({model!r})"
        raise InputError(
            f"No model's configuration is found under {model!r}: it is no folder with a config.json, and no id in the hub's "
            f"cache. With a network, {fetched} fetches some kilobytes and no weights; after that it is found here."
        ) from error


def visual_tokens(config: PreTrainedConfig) -> int:
    """Tokens of a picture of 672 x 672 pixels, as the family's processor makes them with its published settings.

    >>> visual_tokens(_configuration("llava-hf/llava-v1.6-vicuna-13b-hf"))  # 2 x 2 tiles, their line breaks, and the whole
    2928
    """
    family_of(config)  # refuses what has no pictures, in words
    vision = config.vision_config
    if merged := getattr(vision, "spatial_merge_size", None):  # the Qwen families
        return math.prod(max(1, round(side / (vision.patch_size * merged))) for side in PICTURE)
    side = vision.image_size // vision.patch_size
    if shuffled := getattr(config, "scale_factor", None):  # Idefics3, SmolVLM
        return SPLIT * (side // shuffled) ** 2
    if pinpoints := getattr(config, "image_grid_pinpoints", None):  # LLaVA-NeXT, LLaVA-OneVision
        most = float(getattr(config, "vision_aspect_ratio", "").partition("anyres_max_")[2] or "inf")
        return len(anyres(PICTURE, pinpoints, vision.image_size, vision.patch_size, side, most))
    return getattr(config, "mm_tokens_per_image", None) or side**2


def _counted(name: str, config: PreTrainedConfig, visual: int, text: int, new: int, itemsize: int, bits: int | None) -> Budget:
    """The model without weights, counted."""
    from transformers import AutoModelForImageTextToText

    family_of(config)  # refuses what has no pictures, in words
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    anatomy, vision = anatomy_of(model), config.vision_config
    family, layers = anatomy.family, part(model, anatomy.family.vision_layers)
    language, unembedding, projector = (part(model, p) for p in (family.language, family.unembedding, family.projector))
    parameters = {"language": _size(nn.ModuleList([language, unembedding])), "projector": _size(projector)}
    parameters["tower"] = _size(model) - sum(parameters.values())
    first = [m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    matrices = {"language": part(model, anatomy.layers), "unembedding": unembedding, "tower": layers, "projector": projector}
    matrices = {name: _size(module, matrices=True) for name, module in matrices.items()} | {"patches": sum(first)}
    tower = len(layers), getattr(vision, "embed_dim", None) or vision.hidden_size
    return Budget(name, parameters, visual, text, new, itemsize, bits, anatomy, matrices, _patches(config, visual), tower)


def _size(module: nn.Module, matrices: bool = False) -> int:
    """Parameters, each counted once; or those of matrices alone."""
    return sum(p.numel() for p in module.parameters() if p.ndim > 1 or not matrices)


def _patches(config: PreTrainedConfig, visual: int) -> tuple[int, int]:
    """Patches behind so many visual tokens, and how many of them see each other: all of a picture, or those of a tile."""
    vision = config.vision_config
    if merged := getattr(vision, "spatial_merge_size", None):
        return visual * merged**2, visual * merged**2
    tile = (vision.image_size // vision.patch_size) ** 2
    tokens = getattr(config, "mm_tokens_per_image", None) or tile // getattr(config, "scale_factor", 1) ** 2
    return math.ceil(visual / tokens) * tile, tile
