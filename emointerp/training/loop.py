"""A training loop that survives being cut off: AdamW with warm-up and cosine decay, over the checkpoints of `resumable`."""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm.auto import tqdm

from emointerp.files import alone
from emointerp.resumable import log, resume, save_checkpoint


@dataclass(frozen=True)
class Recipe:
    """How long and how hard to train."""

    steps: int
    batch: int
    rate: float
    warmup: int = 100
    decay: float = 0.05
    seed: int = 0


def fit(
    model: torch.nn.Module,
    loss_of: Callable[[int], torch.Tensor],
    recipe: Recipe,
    folder: Path,
    name: str,
    every: int = 200,
) -> None:
    """Minimise `loss_of(step)` with AdamW, warm-up and cosine decay; continue from `folder` if an earlier run was cut off.

    `loss_of` must depend on `step` alone (and the weights), so that a resumed run equals an uninterrupted one. OutputError where
    another process trains `name` in the folder, or a checkpoint cannot be written.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=recipe.decay, betas=(0.9, 0.98))
    file, state, about = folder / f"{name}.safetensors", _own_state(model), {"recipe": _fixed(recipe)}
    with alone(folder, name):
        start = resume(file, state, optimizer, about)
        progress = tqdm(range(start, recipe.steps), initial=start, total=recipe.steps, desc=name, mininterval=10)
        average, began = None, time.time()
        for step in progress:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * _schedule(step, recipe)
            loss = loss_of(step)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            average = loss.item() if average is None else 0.98 * average + 0.02 * loss.item()
            progress.set_postfix(loss=f"{average:.3f}", refresh=False)
            if (step + 1) % every == 0 or step + 1 == recipe.steps:
                save_checkpoint(file, state, optimizer, step + 1, about)
                log(file, {"step": step + 1, "loss": average, "seconds": time.time() - began})


def _schedule(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def _own_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trained weights: frozen parts are read from elsewhere."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _fixed(recipe: Recipe) -> str:
    """What may not change within a run; it may be made longer."""
    return json.dumps({k: v for k, v in asdict(recipe).items() if k != "steps"})
