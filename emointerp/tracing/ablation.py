"""Edits made of activations: patching from a donor, mean-ablation, resample-ablation.

Each gives one edit for the residual stream, for a `head`, or for `neurons`, from what `collect` gave of other prompts.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from emointerp.errors import InputError
from emointerp.given import expected, index_of, listed
from emointerp.tracing.activations import Activations
from emointerp.tracing.edits import Positions, SetHead, SetNeurons, SetResidual, Write


def patch(
    donor: Activations, layer: int, *, head: int | None = None, neurons: Iterable[int] | None = None, positions: Iterable[int] | int
) -> Write:
    """Put the donor's activations at token `positions` in the place of a prompt's own at the same positions.

    The two prompts are aligned: token i of one stands for token i of the other, as in pairs of equal text.

    >>> import emointerp as ei
    >>> vlm, pair = ei.load(), ei.world_pairs("test", 1)[0]
    >>> plus, minus = ei.pairs.twin_prompts(vlm, pair, "I felt")
    >>> donor = ei.collect(vlm, plus, ["heads"], positions="last")
    >>> edit = ei.patch(donor, 6, head=5, positions=minus.last)
    >>> edit.value.shape, ei.run(vlm, minus, [edit]).logits.shape
    (torch.Size([1, 24]), torch.Size([2048]))
    """
    expected(donor, Activations, "what collect(vlm, prompt, …) gives for one prompt")
    neurons = _read(neurons)
    places = tuple(positions) if isinstance(positions, Iterable) else (positions,)
    if not places or any(index_of(p) is None for p in places):
        raise InputError(f"positions are {positions!r}; expected token indices, such as those of `donor.positions`.")
    values = torch.stack([_value(donor, layer, p, head, neurons) for p in places])
    return _edit(layer, values, head, neurons, places)


def mean_ablation(
    donors: Iterable[Activations],
    layer: int,
    *,
    head: int | None = None,
    neurons: Iterable[int] | None = None,
    positions: Positions = "last",
) -> Write:
    """Put the mean over donors, and over all positions that they hold, in the place of a prompt's own activation.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> donors = ei.collect(vlm, [vlm.prompt(*pair.minus) for pair in pairs], ["heads"], positions="last")
    >>> ei.mean_ablation(donors, 6, head=5).value.shape
    torch.Size([24])
    """
    neurons = _read(neurons)
    values = _pool(donors, layer, head, neurons)
    return _edit(layer, values.float().mean(0).to(values.dtype), head, neurons, positions)


def resample_ablation(
    donors: Iterable[Activations],
    layer: int,
    *,
    head: int | None = None,
    neurons: Iterable[int] | None = None,
    positions: Positions = "last",
    seed: int = 0,
) -> Write:
    """Put one donor's activation, at one of the positions that it holds, in the place of a prompt's own; both drawn at random.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> donors = ei.collect(vlm, [vlm.prompt(*pair.minus) for pair in pairs], ["neurons"], positions="last")
    >>> ei.resample_ablation(donors, 6, neurons=[7, 9]).value.shape
    torch.Size([2])
    """
    neurons = _read(neurons)
    values = _pool(donors, layer, head, neurons)
    return _edit(layer, values[np.random.default_rng(seed).integers(len(values))], head, neurons, positions)


def _read(neurons: Iterable[int] | None) -> tuple[int, ...] | None:
    """Neurons once read: a generator is empty afterwards."""
    if neurons is not None and not isinstance(neurons, Iterable):
        raise InputError(f"neurons is {neurons!r}; expected a list of numbers, such as [3, 5].")
    return None if neurons is None else tuple(neurons)


def _pool(donors: Iterable[Activations], layer: int, head: int | None, neurons: Sequence[int] | None) -> Tensor:
    donors = listed(donors, Activations, "donor", "what collect(vlm, prompts, …) gives for several prompts")
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
