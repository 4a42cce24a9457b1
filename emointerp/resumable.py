"""Long training that may be cut off: batches that depend on seed and step alone, checkpoints, a log.

What a run's settings are travels with its checkpoint, so that it goes on with the same or not at all.
"""

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from emointerp.errors import InputError, OutputError


def batch_indices(step: int, batch: int, n: int, seed: int) -> Int[np.ndarray, " batch"]:
    """Which of `n` examples a step sees: epochs are seeded permutations, so a step's batch depends on nothing else.

    >>> batch_indices(0, 4, 4, seed=0), batch_indices(1, 4, 4, seed=0)
    (array([2, 0, 1, 3]), array([3, 0, 2, 1]))
    """
    positions = step * batch + np.arange(batch)
    orders = {epoch: _order(n, seed, epoch) for epoch in np.unique(positions // n).tolist()}
    return np.array([orders[position // n][position % n] for position in positions.tolist()])


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    """Kept for the next step: to permute a million examples takes longer than many a step."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def save_checkpoint(
    file: Path, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, step: int, about: Mapping[str, str]
) -> None:
    """Write weights and the optimiser's state, with the step and what the run is about; the file appears whole or not at all.

    OutputError where it cannot be written; then the checkpoint of before stays.
    """
    tensors = {f"model.{name}": tensor for name, tensor in state.items()}
    for i, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{name}": tensor for name, tensor in moments.items()}
    part = file.with_suffix(".part")  # one name, so that what a killed run left is written over; runs hold the folder alone
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: t.contiguous().clone() for name, t in tensors.items()}, part, metadata={**about, "step": str(step)})
        os.replace(part, file)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink()
        then = f"Free space there; the same run then goes on from {_kept(file)}."
        raise OutputError(f"Cannot write {file} ({error}). {then}") from error


def _kept(file: Path) -> str:
    return f"step {step_of(file)}" if file.exists() else "the beginning"


def resume(file: Path, state: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, about: Mapping[str, str]) -> int:
    """The number of steps that a checkpoint holds, its tensors copied into `state` and the optimiser; 0 where there is none.

    InputError where the run was about something else, or the file is broken.
    """
    if not file.exists():
        return 0
    kept, tensors = _read(file)
    for what, asked in about.items():
        if kept.get(what) != asked:
            begun = f"{file} was begun with {what} {kept.get(what)} and cannot go on with {asked}"
            raise InputError(f"{begun}; take another folder or the old settings.")
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(tensors[f"model.{name}"])
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".", 2)
            moments.setdefault(int(i), {})[key] = tensor
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(kept["step"])


def _read(file: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(file, "pt") as opened:
            return opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}
    except SafetensorError as error:
        raise InputError(f"{file} is no whole checkpoint ({error}); take it away to begin anew.") from None


def step_of(file: Path) -> int:
    """The number of steps that a checkpoint holds."""
    with safe_open(file, "pt") as opened:
        return int(opened.metadata()["step"])


def log(file: Path, told: Mapping[str, float]) -> None:
    """Add a line of figures to a checkpoint's log, `name.log.jsonl` beside `name.safetensors`; OutputError where it cannot."""
    place = file.with_suffix(".log.jsonl")
    try:
        with place.open("a") as f:
            f.write(json.dumps({name: round(value, 4) for name, value in told.items()}) + "\n")
    except OSError as error:
        raise OutputError(f"Cannot write {place} ({error.strerror}). Free space there, and run the same again.") from error
