"""What there is to compute on, from what people write: "24GB", "T4", "A100 80 GB", "cpu", or this machine's own.

Cards are those of `budget.GPUS`. A size of memory says nothing of speed, so that of the known card nearest by memory stands in for
it, and the machine says so. The processor's speed is measured for a moment, because no table knows it.
"""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from emointerp.errors import InputError
from emointerp.models.budget import GPU, GPUS, USABLE

SHARES = (0.6, 0.25)  # of a card's published speed that are reached, at best and at worst: a guess; `budget` takes 0.4
MEASURED = (1.0, 0.4)  # of a processor's, measured on a product of matrices
UNITS = {"MB": 1e6, "GB": 1e9, "TB": 1e12, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
SIDE = 4096  # of the matrix that a processor is measured on


@dataclass(frozen=True)
class Machine:
    """A card or a processor. `shares`: the best and the worst part of its speed that is reached.

    `speed` says whose speed it is: the card's own, that of the nearest card by memory, or the processor's, measured.
    """

    name: str
    gpu: GPU
    speed: str
    shares: tuple[float, float] = SHARES
    is_cpu: bool = False

    @property
    def usable(self) -> float:
        """Bytes that can be used."""
        return USABLE * self.gpu.memory


def machine(text: str | None = None, itemsize: int = 2) -> Machine:
    """A machine from what people write, or (None) this one; a processor's speed is measured with numbers of `itemsize` bytes.

    >>> machine("a100 80gb").name, machine("24 GiB").speed
    ('A100 80 GB', 'those of the RTX 4090 24 GB, the known card nearest by memory')
    """
    if text is None:
        return _here(itemsize)
    plain = _plain(text)
    if plain == "cpu":
        return _processor(itemsize)
    if size := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b)", text.strip(), re.IGNORECASE):
        return _of_memory(text.strip(), float(size[1]), size[2])
    found = [name for name in GPUS if plain in _names(name)]
    if len(found) == 1:
        return Machine(found[0], GPUS[found[0]], f"at {SHARES[1]:.0%} to {SHARES[0]:.0%} of its published speed")
    if found:
        raise InputError(f"{text!r} is {' or '.join(found)}; say which.")
    raise InputError(f"{text!r} is no card that is known ({', '.join(GPUS)}); give its memory, such as '24GB', or 'cpu'.")


def _plain(name: str) -> str:
    """A name without case, dashes and the maker's words: "NVIDIA A100-80GB" and "a100 80 gb" are one.

    >>> _plain("NVIDIA A100-80GB")
    'a100 80 gb'
    """
    words = re.sub(r"\b(nvidia|geforce|tesla)\b", "", name.lower())
    return re.sub(r"[\s_-]+", " ", re.sub(r"(\d)\s*gi?b\b", r"\1 gb", words)).strip()


def _names(card: str) -> set[str]:
    """What a card of the table may be called.

    >>> sorted(_names("RTX 4090 24 GB"))
    ['4090', 'rtx 4090', 'rtx 4090 24 gb']
    """
    whole = _plain(card)
    model = whole.rsplit(" ", 2)[0]
    return {whole, model, model.split()[-1]}


def _of_memory(text: str, size: float, unit: str) -> Machine:
    """A card of which the memory is known, and nothing else."""
    factor = {name.lower(): value for name, value in UNITS.items()}.get(unit.lower())
    if not factor or not size:
        raise InputError(f"{text!r} is no size of memory; expected one such as '24GB' or '24 GiB'.")
    memory = size * factor
    nearest = min(GPUS, key=lambda name: (abs(GPUS[name].memory - memory), GPUS[name].peak))
    card = GPUS[nearest]
    return Machine(text, GPU(memory, card.peak, card.bandwidth), f"those of the {nearest}, the known card nearest by memory")


def _here(itemsize: int) -> Machine:
    """This machine's own card, or its processor."""
    if not torch.cuda.is_available():
        return _processor(itemsize)
    try:
        return machine(torch.cuda.get_device_name(0))
    except InputError:
        memory = torch.cuda.mem_get_info(0)[1] / 1e9
        return _of_memory(f"{memory:.0f} GB", memory, "GB")


def _processor(itemsize: int) -> Machine:
    """This machine's processor: operations a second on a product of matrices, bytes a second on one with a vector."""
    dtype = torch.float32 if itemsize == 4 else torch.bfloat16
    weights, some, one = (torch.ones(n, SIDE, dtype=dtype) for n in (SIDE, 256, 1))
    peak = 2 * 256 * SIDE**2 / _seconds(lambda: some @ weights.T)
    bandwidth = weights.nbytes / _seconds(lambda: one @ weights.T)
    speed = "by this processor's speed on a product of matrices"
    return Machine("cpu", GPU(_memory(), peak, bandwidth), speed, MEASURED, is_cpu=True)


def _memory() -> float:
    """Of this machine, in bytes."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):
        raise InputError("This system does not say how much memory it has; give it in place of 'cpu', such as '16GB'.") from None


def _seconds(work: Callable[[], Any]) -> float:
    """The quickest of three."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)
