"""How loud parts are: how long the writes of heads and neurons are, and other parts that write about as much.

A random control that writes less than what it stands beside does less for that alone. So random parts are drawn among those of the
same layer whose writes are about as long, wherever a run is at hand to measure them in.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from emointerp.errors import InputError
from emointerp.lens import head_writes, value_vectors
from emointerp.models import VLM
from emointerp.tracing import Activations

SITES = ("heads", "neurons")
TOKENS = 16  # whose writes are in memory at once
NEAR = 8


def near_of(n: int) -> int:
    """Among how many of a layer's `n` parts one as loud is drawn by default: half of them, at most 8.

    >>> near_of(8), near_of(11008)
    (4, 8)
    """
    return max(2, min(n // 2, NEAR))


def write_norms(vlm: VLM, acts: Sequence[Activations], site: str) -> Float[np.ndarray, "layer unit"]:
    """Length of what each head or neuron writes into the residual stream: mean over a prompt's tokens, then over prompts.

    `site` is "heads", collected in all layers, or "neurons"; rows of layers that were not collected are NaN. A neuron's write is
    `|m| * ||v_n||`. Where a single write cannot be told (heads in Gemma 3, quantised weights), the length of the activation.
    """
    if site not in SITES:
        raise InputError(f"site is {site!r}; expected {' or '.join(map(repr, SITES))}.")
    if not acts:
        raise InputError(f"There are no activations to measure by; collect some: collect(vlm, prompts, [{site!r}]).")
    if site == "heads":
        means = torch.stack([_head_lengths(vlm, one) for one in acts]).mean(0)
    else:
        means = torch.stack([one.neurons.float().abs().mean(1).cpu() for one in acts]).mean(0)
        means = means * _vector_lengths(vlm, acts[0].layers)
    found = torch.full((vlm.anatomy.n_layers, means.shape[1]), torch.nan)
    found[list(acts[0].layers)] = means
    return found.numpy()


def _head_lengths(vlm: VLM, acts: Activations) -> Float[Tensor, "layer head"]:
    def length(z: Tensor) -> Tensor:
        try:
            z = head_writes(vlm, z)
        except InputError:
            pass
        return z.float().norm(dim=-1)

    return torch.cat([length(z) for z in acts.heads.split(TOKENS, 2)], 2).mean(-1).cpu()


def _vector_lengths(vlm: VLM, layers: Sequence[int]) -> Float[Tensor, "layer neuron"]:
    """Lengths of all neurons' value vectors; 1 where they cannot be read."""
    try:
        return torch.stack([value_vectors(vlm, i, range(vlm.anatomy.d_mlp)).float().norm(dim=-1).cpu() for i in layers])
    except InputError:
        return torch.ones(len(layers), vlm.anatomy.d_mlp)


def as_loud(
    units: Sequence[int], free: Sequence[int], norms: Float[np.ndarray, " unit"], near: int, rng: np.random.Generator
) -> list[int]:
    """For each of `units` one of `free`, each at most once, among the `near` whose norms are nearest to its own.

    Fewer come back where there are fewer in `free`.

    >>> as_loud([0, 1], [2, 3, 4, 5], np.array([1.0, 9.0, 1.1, 9.1, 5.0, 5.1]), near=1, rng=np.random.default_rng(0))
    [2, 3]
    """
    if near < 1:
        raise InputError(f"near is {near}; expected 1 or more others to draw one from.")
    left, found = list(free), {}
    for unit in rng.permutation(list(units))[: len(left)].tolist():
        order = np.argsort(np.abs(norms[left] - norms[unit]), kind="stable")
        found[unit] = left.pop(int(order[rng.integers(min(near, len(left)))]))
    return [found[unit] for unit in units if unit in found]
