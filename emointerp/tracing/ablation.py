"""Edits made of activations: patching from a donor, mean-ablation, resample-ablation.

Each gives one edit for the residual stream, for a `head`, or for `neurons`, from what `collect` gave of other prompts.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from emointerp.errors import InputError
from emointerp.tracing.activations import Activations
from emointerp.tracing.edits import Positions, SetHead, SetNeurons, SetResidual, Write


def patch(
    donor: Activations, layer: int, *, head: int | None = None, neurons: Sequence[int] | None = None, positions: Sequence[int]
) -> Write:
    """Put the donor's activations at token `positions` in the place of a prompt's own at the same positions.

    The two prompts are aligned: token i of one stands for token i of the other, as in pairs of equal text.
    """
    values = torch.stack([_value(donor, layer, p, head, neurons) for p in positions])
    return _edit(layer, values, head, neurons, tuple(positions))


def mean_ablation(
    donors: Sequence[Activations],
    layer: int,
    *,
    head: int | None = None,
    neurons: Sequence[int] | None = None,
    positions: Positions = "last",
) -> Write:
    """Put the mean over donors, and over all positions that they hold, in the place of a prompt's own activation."""
    values = _pool(donors, layer, head, neurons)
    return _edit(layer, values.float().mean(0).to(values.dtype), head, neurons, positions)


def resample_ablation(
    donors: Sequence[Activations],
    layer: int,
    *,
    head: int | None = None,
    neurons: Sequence[int] | None = None,
    positions: Positions = "last",
    seed: int = 0,
) -> Write:
    """Put one donor's activation, at one of the positions that it holds, in the place of a prompt's own; both drawn at random."""
    values = _pool(donors, layer, head, neurons)
    return _edit(layer, values[np.random.default_rng(seed).integers(len(values))], head, neurons, positions)


def _pool(donors: Sequence[Activations], layer: int, head: int | None, neurons: Sequence[int] | None) -> Tensor:
    if not donors:
        raise InputError("There are no donors; collect activations of some other prompts first.")
    return torch.stack([_value(donor, layer, p, head, neurons) for donor in donors for p in donor.positions])


def _value(donor: Activations, layer: int, position: int, head: int | None, neurons: Sequence[int] | None) -> Tensor:
    if head is not None and neurons is not None:
        raise InputError("A head and neurons came together; give one of them, or neither for the residual stream.")
    if head is not None:
        heads = donor.at("heads", layer, position)
        if not 0 <= head < len(heads):
            raise InputError(f"Head {head} is out of range; the donor has heads 0 to {len(heads) - 1}.")
        return heads[head]
    if neurons is not None:
        return donor.at("neurons", layer, position)[list(neurons)]
    return donor.at("residual", layer, position)


def _edit(layer: int, value: Tensor, head: int | None, neurons: Sequence[int] | None, positions: Positions) -> Write:
    if head is not None:
        return SetHead(layer, head, value, positions)
    return SetResidual(layer, value, positions) if neurons is None else SetNeurons(layer, neurons, value, positions)
