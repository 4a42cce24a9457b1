"""A training loop that survives being cut off: checkpoints in safetensors and JSON, batches that depend on seed and step only."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from emointerp.errors import InputError


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

    `loss_of` must depend on `step` alone (and the weights), so that a resumed run equals an uninterrupted one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe.rate, weight_decay=recipe.decay, betas=(0.9, 0.98))
    start = _resume(model, optimizer, folder / name, recipe)
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
            save_checkpoint(model, optimizer, step + 1, folder / name, recipe)
            _log(folder / f"{name}.log.jsonl", step + 1, average, time.time() - began)


def _schedule(step: int, recipe: Recipe) -> float:
    if step < recipe.warmup:
        return (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done))


def save_checkpoint(model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, path: Path, recipe: Recipe) -> None:
    """Write weights and optimiser state; the file appears whole or not at all."""
    tensors = {f"model.{k}": v.contiguous() for k, v in _own_state(model).items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v.contiguous() for k, v in state.items()}
    part = path.with_suffix(".part")
    save_file({k: v.clone() for k, v in tensors.items()}, part, metadata={"step": str(step), "recipe": _fixed(recipe)})
    os.replace(part, path.with_suffix(".safetensors"))


def _own_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trained weights: frozen parts are read from elsewhere."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def _resume(model: torch.nn.Module, optimizer: torch.optim.Optimizer, path: Path, recipe: Recipe) -> int:
    file = path.with_suffix(".safetensors")
    if not file.exists():
        return 0
    kept, asked = metadata_of(file).get("recipe"), _fixed(recipe)
    if kept and kept != asked:
        raise InputError(f"{file} was begun with {kept} and cannot go on with {asked}; take another folder or the old settings.")
    tensors = load_file(file)
    own = _own_state(model)
    with torch.no_grad():
        for name, p in own.items():
            p.copy_(tensors[f"model.{name}"])
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, field = key.split(".", 2)
            state.setdefault(int(i), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step_of(file)


def _fixed(recipe: Recipe) -> str:
    """What may not change within a run; it may be made longer."""
    return json.dumps({k: v for k, v in asdict(recipe).items() if k != "steps"})


def metadata_of(file: Path) -> dict[str, str]:
    """What a checkpoint says of itself."""
    with safe_open(file, "pt") as f:
        return f.metadata()


def step_of(file: Path) -> int:
    """The number of steps that a checkpoint holds."""
    return int(metadata_of(file)["step"])


def _log(file: Path, step: int, loss: float, seconds: float) -> None:
    with file.open("a") as f:
        f.write(json.dumps({"step": step, "loss": round(loss, 4), "seconds": round(seconds, 1)}) + "\n")
