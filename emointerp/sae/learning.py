"""Training a top-k SAE: sparse gradients, dead features brought back, and runs that are cut off and go on to the same weights.

The loss is the fraction of variance unexplained. A feature that has not fired for `dead_after` vectors is dead: no gradient reaches
it, and without help many features of a large SAE end so. Two remedies:

- "restart" (after Bricken et al. 2023, "Towards monosemanticity", neuron resampling): a dead feature begins anew in the direction
  of the error of one of the batch's worst rebuilt vectors, at the living features' mean length, and Adam forgets it. We take the
  worst vectors, where they draw at random, so that a step depends on its batch alone; and none in the last fifth of the steps,
  where the rate falls and what begins anew could not be learned. Hundreds that begin at once can drown what the living ones tell: a
  tied run over the bundled tower (4,096 features, batches of 512, `dead_after` 20,000) fell from 0.97 of the variance to 0.35.
  Then take a larger `dead_after`, or "auxiliary", with which the bundled SAEs were trained.
- "auxiliary" (Gao et al. 2024, "Scaling and evaluating sparse autoencoders", appendix A.2): the `aux_k` dead features with the
  largest scores are asked to rebuild the living ones' error; scores below zero count, as in sparsify and SAELens.

Initialisation and decoder rows of unit length are Gao's; a tied SAE's rows stay free, because they also read.
"""

import hashlib
import json
import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from emointerp.errors import EmointerpError, InputError
from emointerp.files import alone
from emointerp.resumable import batch_indices, log, resume, save_checkpoint
from emointerp.sae.coding import sparse_decode, sparse_encode
from emointerp.sae.value import SAE

Vectors = Float[Tensor, "n d_in"] | Float[np.ndarray, "n d_in"]  # an array may be a memory map
REVIVALS = ("restart", "auxiliary", "none")
SAMPLE = 4096  # vectors that tell mean and variance before training


@dataclass(frozen=True)
class SaeRecipe:
    """What is trained and how hard.

    `biases` gives it `b_enc` and `b_dec`; `dead_after` counts vectors; `revival` is "restart", "auxiliary" (`aux_k` features at
    a time, None: half of d_in, with the weight `aux_weight`) or "none"; `chunk` as in `SAE.encode`.
    """

    d_hidden: int
    k: int
    steps: int
    batch: int = 256
    rate: float = 1e-3
    warmup: int = 100
    tied: bool = False
    biases: bool = True
    dead_after: int = 20_000
    revival: str = "restart"
    aux_k: int | None = None
    aux_weight: float = 1 / 32
    chunk: int | None = None
    seed: int = 0


def train_sae(
    data: Vectors,
    recipe: SaeRecipe,
    folder: str | Path | None = None,
    name: str = "sae",
    every: int = 200,
    about: Mapping[str, Any] | None = None,
) -> SAE:
    """Train an SAE on the rows of `data`; with a `folder`, go on from its checkpoint, if a run was cut off.

    A batch depends on seed and step alone, so that a resumed run equals an uninterrupted one. Every `every` steps a checkpoint
    replaces the last and `name`.log.jsonl gets a line. InputError where the folder's run had another recipe or other data (another
    shape, or other numbers in the `SAMPLE` rows that are looked at); OutputError where another process trains `name` there;
    EmointerpError where the loss stops being a number.

    `about` goes into the SAE, and says what it is shown of pictures later: "reads", the "pooled" vectors (where nothing is said) or
    the "patches"; "unit", whether they are brought to length 1, which is seen from the data where it is not said.

    >>> import emointerp as ei
    >>> import torch
    >>> ei.train_sae(torch.randn(300, 8), ei.sae.SaeRecipe(d_hidden=32, k=4, steps=10))
    SAE(8 -> 32, top 4, untied, b_enc, b_dec)
    """
    coder, variance, fingerprint = _start(data, recipe)
    optimizer = torch.optim.Adam(coder.parameters(), lr=recipe.rate, eps=6.25e-10, fused=True)
    file = None if folder is None else Path(folder) / f"{name}.safetensors"
    about_run = {"recipe": _fixed(recipe), "data": json.dumps([*data.shape, fingerprint])}
    state = coder.state_dict()
    with alone(file.parent, name) if file else nullcontext():
        start = resume(file, state, optimizer, about_run) if file else 0
        progress = tqdm(range(start, recipe.steps), initial=start, total=recipe.steps, desc=name, mininterval=10)
        began = time.time()
        for step in progress:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * _schedule(step, recipe)
            told = coder.step(_batch(data, step, recipe), variance, optimizer, restart=step < 0.8 * recipe.steps)
            _check_finite(told["loss"], step, recipe)
            progress.set_postfix(fvu=f"{told['fvu']:.3f}", dead=f"{told['dead']:.2f}", refresh=False)
            if file and ((step + 1) % every == 0 or step + 1 == recipe.steps):
                save_checkpoint(file, state, optimizer, step + 1, about_run)
                log(file, {"step": step + 1, **told, "seconds": time.time() - began})
    unit = {"unit": True} if bool(((torch.as_tensor(data[:SAMPLE]).norm(dim=-1) - 1).abs() < 1e-3).all()) else {}
    return coder.value({**unit, **(about or {}), "recipe": asdict(recipe), "vectors": len(data)})


class _Coder(nn.Module):
    """The weights while they are trained, and for how many vectors each feature has been silent."""

    def __init__(self, first: SAE, recipe: SaeRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        for name in ("encoder", "decoder", "b_enc", "b_dec"):
            tensor = getattr(first, name)
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor.clone()))
        for weights in self.parameters():
            weights.grad = torch.zeros_like(weights)  # stays where it is: `sparse_encode(into=…)` adds to it
        self.register_buffer("silent", torch.zeros(first.d_hidden, dtype=torch.long))

    def step(self, x: Tensor, variance: float, optimizer: torch.optim.Optimizer, restart: bool) -> dict[str, float]:
        """One step of the optimiser; what it saw before it moved."""
        fvu, aux = self.losses(x, variance)
        loss = fvu + self.recipe.aux_weight * aux
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        optimizer.step()
        if self.decoder is not None:
            with torch.no_grad():
                self.decoder.copy_(F.normalize(self.decoder, dim=1))
        if restart and self.recipe.revival == "restart":
            self._restart(x, optimizer)
        return {"loss": loss.item(), "fvu": fvu.item(), "dead": float(self.dead().float().mean())}

    def losses(self, x: Tensor, variance: float) -> tuple[Tensor, Tensor]:
        """The unexplained fraction of the variance, and the same of the error as rebuilt by dead features."""
        decoder = self.encoder if self.decoder is None else self.decoder
        values, indices = sparse_encode(x, self.encoder, self.b_enc, self.recipe.k, self.recipe.chunk, into=self.encoder.grad)
        error = x - sparse_decode(values, indices, decoder, self.b_dec, into=decoder.grad)
        self.silent += len(x)
        self.silent[indices[values > 0]] = 0
        fvu = error.square().sum(1).mean() / variance
        dead = self.dead().nonzero().flatten()
        if not len(dead) or self.recipe.revival != "auxiliary":
            return fvu, fvu.new_zeros(())
        return fvu, self._auxiliary(x, error.detach(), decoder, dead) / variance

    def _auxiliary(self, x: Tensor, error: Tensor, decoder: Tensor, dead: Int[Tensor, " dead"]) -> Tensor:
        """Squared distance of the error to what the best dead features make of it; less weight where few are dead."""
        wanted = self.recipe.aux_k or max(1, x.shape[1] // 2)
        bias = None if self.b_enc is None else self.b_enc[dead]
        values, indices = sparse_encode(x, self.encoder[dead], bias, min(wanted, len(dead)), negative=True)
        rebuilt = sparse_decode(values, indices, decoder[dead], None)
        return min(1.0, len(dead) / wanted) * (error - rebuilt).square().sum(1).mean()

    @torch.no_grad()
    def _restart(self, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Dead features, as many as there are vectors, begin anew at the errors of those that are rebuilt worst."""
        dead = self.dead().nonzero().flatten()[: len(x)]
        if not len(dead):
            return
        decoder = self.encoder if self.decoder is None else self.decoder
        values, indices = sparse_encode(x, self.encoder, self.b_enc, self.recipe.k, self.recipe.chunk)
        error = x - sparse_decode(values, indices, decoder, self.b_dec)
        rows = F.normalize(error[error.square().sum(1).topk(len(dead)).indices], dim=1)
        living = self.encoder[~self.dead()]
        self.encoder[dead] = rows * (living.norm(dim=1).mean() if len(living) else 1.0)
        if self.decoder is not None:
            self.decoder[dead] = rows
        if self.b_enc is not None:
            self.b_enc[dead] = -(self.encoder[dead] @ self.b_dec)
        self.silent[dead] = 0
        for parameter in (self.encoder, self.decoder, self.b_enc):
            if parameter is not None:
                for moment in ("exp_avg", "exp_avg_sq"):
                    optimizer.state[parameter][moment][dead] = 0

    def dead(self) -> Tensor:
        """Which features have been silent for `dead_after` vectors: bool [d_hidden]."""
        return self.silent >= self.recipe.dead_after

    def value(self, about: Mapping[str, Any]) -> SAE:
        """The weights as they are now."""
        tensors = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}
        return SAE(k=self.recipe.k, about=about, **tensors)


def _start(data: Vectors, recipe: SaeRecipe) -> tuple[_Coder, float, str]:
    """The weights before the first step, the vectors' variance, and a fingerprint of the rows that told it."""
    """Random unit features that look from the data's mean, and the data's variance about it."""
    if len(data) < 2:
        raise InputError(f"{len(data)} vectors came; an SAE needs at least two, and learns little from fewer than d_hidden.")
    if recipe.steps < 1 or recipe.batch < 1:
        raise InputError(f"The recipe has {recipe.steps} steps of {recipe.batch} vectors; expected at least 1 of each.")
    if recipe.revival not in REVIVALS:
        raise InputError(f"revival is {recipe.revival!r}; expected {', '.join(map(repr, REVIVALS))}.")
    chosen = np.sort(np.random.default_rng(recipe.seed).permutation(len(data))[:SAMPLE])
    sample = _float(data, chosen)
    mean = sample.mean(0)
    variance = float((sample - mean).square().sum(1).mean())
    if not math.isfinite(variance) or variance == 0:
        raise InputError(f"The vectors' variance is {variance}; expected finite numbers that differ. Look for NaN or equal rows.")
    first = SAE.random(data.shape[1], recipe.d_hidden, recipe.k, recipe.tied, recipe.biases, recipe.seed)
    coder = _Coder(first, recipe)
    if recipe.biases:
        with torch.no_grad():
            coder.b_dec.copy_(mean)
            coder.b_enc.copy_(-(first.encoder @ mean))
    return coder, variance, hashlib.sha256(sample.numpy().tobytes()).hexdigest()[:16]


def _batch(data: Vectors, step: int, recipe: SaeRecipe) -> Float[Tensor, "batch d_in"]:
    """The rows of a step: every epoch is a seeded permutation of all rows."""
    return _float(data, batch_indices(step, recipe.batch, len(data), recipe.seed))


def _float(data: Vectors, rows: np.ndarray) -> Float[Tensor, "rows d_in"]:
    picked = data[torch.from_numpy(rows)] if isinstance(data, Tensor) else torch.from_numpy(np.asarray(data[rows]))
    return picked.float()


def _schedule(step: int, recipe: SaeRecipe) -> float:
    """Linear warm-up, then constant, then linear to nothing in the last fifth."""
    left = (recipe.steps - step) / max(1.0, 0.2 * recipe.steps)
    return min(1.0, (step + 1) / max(1, recipe.warmup), left)


def _check_finite(loss: float, step: int, recipe: SaeRecipe) -> None:
    if not math.isfinite(loss):
        raise EmointerpError(
            f"The loss became {loss} in step {step}; take a rate below {recipe.rate:g}, or look for NaN in the data."
        )


def _fixed(recipe: SaeRecipe) -> str:
    """What may not change within a run; it may be made longer."""
    return json.dumps({name: value for name, value in asdict(recipe).items() if name != "steps"})
