"""What the course's work will take on a machine, before a model is fetched: `planned(model, gpu)`, `emointerp plan`.

Memory and operations are those of `budget`, counted from the configuration. Times are a range, because the share of a card's
published speed that is reached is a guess (`machines.SHARES`), and so is what Python and the start of kernels take (`STARTS`).

>>> forecast = planned("llava-hf/llava-1.5-7b-hf", "24GB")
>>> forecast.to_frame().verdict["load"], planned("llava-hf/llava-1.5-7b-hf", "12GB").to_frame().verdict["load"]
('fits', 'fits with bits=4 (3.93 GB)')
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from emointerp.models.budget import GPU, SITES, Budget, named
from emointerp.models.machines import Machine, machine
from emointerp.models.towers import QWEN_SIDE

STARTS = (1e-4, 1e-3)  # seconds a layer and forward that Python, nnsight and the start of kernels take, at best and at worst
READ = (2e9, 2e8)  # bytes a second that come from a disk
SINGLE = (1 / 2, 1 / 16)  # of the speed in 16 bits, what a card does in float32
ALPHAS, COPIES, AT_ONCE = 6, 50, 25  # `steering.steer`'s strengths; noisy copies of SmoothGrad, and of them in one forward
FEATURES, WIDTH, CHUNK = 262_144, 1152, 8192  # the SAE of "Decoding Emotion in Vision-Language Models"; features scored at a time
QWEN = (2 * QWEN_SIDE) ** 2  # patches of the square that Qwen's towers are given
SMALL = 1e8  # bytes of weights, below which nobody packs them into fewer bits
NEEDS = "bits=4 needs bitsandbytes and accelerate, device_map accelerate, remote=True a key of NDIF."

Seconds = Callable[[GPU, float, int], float]  # of a card, at a share of its speed, at the best end of guesses (0) or the worst (1)


@dataclass(frozen=True, eq=False)
class Forecast:
    """What a model's work takes on a machine: `table` has a row a task.

    `gigabytes` at its peak, weights with it, and seconds at best (`low`) and at worst (`high`), both of the model as it is; in
    which `bits` it fits (16: as it is, 4: packed, 0: not at all); and a `verdict`, which says what to do where it does not.
    """

    budget: Budget = field(repr=False)
    machine: Machine
    table: pd.DataFrame = field(repr=False)

    def to_frame(self) -> pd.DataFrame:
        """A row a task."""
        return self.table

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        b, m = self.budget, self.machine
        about = {"model": b.name, "machine": m.name, "usable_gigabytes": m.usable / 1e9, "times": m.speed}
        about |= {"parameters": sum(b.parameters.values()), "weights_gigabytes": b.weights / 1e9, "bytes_a_number": b.itemsize}
        about |= {"tokens": {"picture": b.visual, "text": b.text, "answer": b.new}, "measured": False}
        return about | {"tasks": self.table.reset_index().to_dict("records")}

    def __str__(self) -> str:
        b, m = self.budget, self.machine
        size = f"{sum(b.parameters.values()) / 1e9:.3g} billion parameters, {_bytes(b.weights)} in {8 * b.itemsize} bits"
        lines = [
            f"{b.name}: {size}; a prompt of {b.tokens:,} tokens, {b.visual:,} of them the picture's.",
            f"{m.name}: {_bytes(m.usable)} can be used. Times {m.speed}. Computed, not measured.",
            f"\n{'':35}{'memory':>8}   {'time':<17}",
        ]
        for task, row in self.table.iterrows():
            lines.append(f"{task:35}{_bytes(1e9 * row.gigabytes):>8}   {_range(row.low, row.high):<17}{row.verdict}")
        return "\n".join([*lines, *([f"\n{NEEDS}"] if (self.table.bits < 16).any() else [])])


def planned(model: str, gpu: str | None = None) -> Forecast:
    """What can be done with a model on a machine, and how long it takes.

    `model`: bundled, one of `loading.WELL_KNOWN`, a folder, or an id that the hub's cache holds; nothing is fetched. `gpu`: a
    card's name ("T4", "A100 80 GB"), a size of memory ("24GB", "24 GiB"), "cpu", or None: this machine's own card, else its
    processor.
    InputError for what is neither, and for a model whose sizes are not known.
    """
    budget = named(model)
    there = machine(gpu, budget.itemsize)
    whole = tasks(budget)
    packed = tasks(named(model, bits=4)) if budget.weights > SMALL and not there.is_cpu else {}
    rows = [_row(task, packed.get(name), there) for name, task in whole.items()]
    return Forecast(budget, there, pd.DataFrame(rows, index=pd.Index(list(whole), name="task")))


@dataclass(frozen=True)
class Task:
    """Something to do with a model: bytes at its peak, weights with them, and its seconds.

    `less(room)` says how it fits into so many bytes when less of it is done at a time, or None.
    """

    memory: float
    seconds: Seconds
    less: Callable[[float], str | None] = lambda room: None


def tasks(b: Budget) -> dict[str, Task]:
    """What the course does with a model, on one prompt or pair."""
    heads, stories = b.anatomy.n_layers * b.anatomy.n_heads, ALPHAS * b.anatomy.n_layers
    return {
        "load": Task(b.weights, lambda gpu, share, end: sum(b.parameters.values()) * b.itemsize / READ[end]),
        "read a prompt": Task(b.weights + b.cache(b.tokens) + b.layer(), _reading(b)),
        "collect the residual stream": _collecting(b, ("residual",)),
        "collect heads": _collecting(b, ("heads",)),
        "collect all sites": _collecting(b, SITES),
        f"head map, {heads:,} heads of a pair": Task(b.swept(), _mapping(b)),
        f"alpha x layer, {stories} stories": Task(b.swept(), _sweeping(b, stories)),
        "VEENA, a story": Task(b.weights + b.cache() + b.layer() + 3 * scores(b), _telling(b)),
        f"SmoothGrad of the tower, {COPIES} copies": _smoothing(b, *_by_tower(b)),
        f"SmoothGrad of an answer, {COPIES} copies": _smoothing(b, *_by_answer(b)),
        f"SAE of {FEATURES:,} features": _coding(b),
    }


def _starts(b: Budget, forwards: float, end: int, layers: int | None = None) -> float:
    """What the start of so many forwards takes, of the whole model or of some `layers`."""
    return forwards * (b.anatomy.n_layers + b.tower[0] if layers is None else layers) * STARTS[end]


def scores(b: Budget) -> int:
    """Bytes of a layer's attention scores while a prompt is read; only eager attention and masks a head make them."""
    return b.anatomy.n_heads * b.tokens**2 * b.itemsize


def _reading(b: Budget) -> Seconds:
    return lambda gpu, share, end: b.prompt_seconds(gpu, share) + _starts(b, 1, end)


def _collecting(b: Budget, sites: tuple[str, ...]) -> Task:
    """One forward; attention weights make it an eager one, which writes scores several times."""
    weighed, layers = "attention" in sites, b.anatomy.n_layers
    eager, kept = 5 * scores(b) * weighed, b.collected(sites)
    base = b.weights + b.layer() + eager

    def seconds(gpu: GPU, share: float, end: int) -> float:
        return _reading(b)(gpu, share, end) + (2 * eager * layers + kept) / gpu.bandwidth / share

    def less(room: float) -> str | None:
        some = int((room - base) / (kept / layers))
        return f"fits with layers=range({some}) at a time" if some > 0 else None

    return Task(base + kept, seconds, less)


def _mapping(b: Budget) -> Seconds:
    forwards = 2 + math.ceil((b.anatomy.n_layers * b.anatomy.n_heads + 1) / b.together())
    return lambda gpu, share, end: b.head_map_seconds(gpu, share) + _starts(b, forwards, end)


def _sweeping(b: Budget, stories: int) -> Seconds:
    """Stories in forwards of as many as a sweep takes together, a token each; a step moves the weights, and the cache thrice.

    Thrice, because transformers' cache grows by being copied: read, written, and read by attention.
    """
    rounds = math.ceil((stories + 1) / b.together(b.new))
    some = math.ceil((stories + 1) / rounds)
    keys = b.tokens + some * b.new // 2
    flops, moved = b.language_flops(some, keys, some), b.weights + 3 * b.cache(keys)

    def seconds(gpu: GPU, share: float, end: int) -> float:
        step = max(flops / gpu.peak, moved / gpu.bandwidth) / share + _starts(b, 1, end, b.anatomy.n_layers)
        return _reading(b)(gpu, share, end) + rounds * b.new * step

    return seconds


def _telling(b: Budget) -> Seconds:
    def seconds(gpu: GPU, share: float, end: int) -> float:
        step = b.step_seconds(gpu, 1, share) + _starts(b, 1, end, b.anatomy.n_layers)
        return _reading(b)(gpu, share, end) + b.new * step

    return seconds


def _by_tower(b: Budget) -> tuple[float, float]:
    """Bytes that the gradient of one copy keeps in the tower, and operations of its forward; it sees a picture whole and once."""
    patches = QWEN if _is_qwen(b) else b.patches[1]
    return _kept_by_tower(b, patches), b.tower_flops(patches, patches)


def _kept_by_tower(b: Budget, patches: int) -> float:
    """Of each layer and patch 8 times the width (CLIP, SigLIP; Qwen's rotary towers 11) and 3 times that inside its MLP.

    Counted once on towers of transformers with sdpa attention; SigLIP's MLP keeps a third less. One layer more is for gradients.
    """
    layers, width = b.tower
    inner = (b.matrices["tower"] / layers / width - 4 * width) / 2
    return (layers + 1) * patches * ((11 if _is_qwen(b) else 8) * width + 3 * inner) * b.itemsize


def _is_qwen(b: Budget) -> bool:
    return b.anatomy.family.vision_layers == "model.visual.blocks"


def _by_answer(b: Budget) -> tuple[float, float]:
    """The same of the whole model, from the picture to the logits of the last token; counted on a Llama and a Qwen2."""
    a = b.anatomy
    numbers = 8 * a.d_model + 4 * a.n_heads * a.d_head + 4 * a.d_mlp
    return _kept_by_tower(b, b.patches[0]) + (a.n_layers + 1) * b.tokens * numbers * b.itemsize, b.prompt_flops


def _smoothing(b: Budget, kept: float, flops: float) -> Task:
    """Forwards and backwards of noisy copies: the gradient of a picture alone takes as many operations as the forward."""

    def seconds(gpu: GPU, share: float, end: int) -> float:
        return 2 * COPIES * flops / gpu.peak / share + _starts(b, 2 * COPIES / AT_ONCE, end)

    def less(room: float) -> str | None:
        some = int((room - b.weights) / kept)
        return f"fits with batch={some}" if some > 0 else None

    return Task(b.weights + AT_ONCE * kept, seconds, less)


def _coding(b: Budget) -> Task:
    """The patches of a picture, encoded and decoded in float32 beside the model: both matrices, and a score for each feature."""
    patches, matrices = b.patches[1], 2 * WIDTH * FEATURES * 4
    smaller = b.weights + matrices + 2 * patches * CHUNK * 4

    def seconds(gpu: GPU, share: float, end: int) -> float:
        return max(2 * WIDTH * FEATURES * patches / gpu.peak / SINGLE[end], matrices / 2 / gpu.bandwidth) / share

    return Task(
        b.weights + matrices + patches * FEATURES * 4,
        seconds,
        lambda room: f"fits with encode(…, chunk={CHUNK})" if smaller <= room else None,
    )


def _row(task: Task, packed: Task | None, there: Machine) -> dict[str, Any]:
    low, high = (task.seconds(there.gpu, share, end) for end, share in enumerate(there.shares))
    bits, verdict = _verdict(task, packed, there)
    return {"gigabytes": task.memory / 1e9, "low": low, "high": high, "bits": bits, "verdict": verdict}


def _verdict(task: Task, packed: Task | None, there: Machine) -> tuple[int, str]:
    """In how many bits a task fits, and what to do for it."""
    room = there.usable
    if task.memory <= room:
        return 16, "fits"
    if less := task.less(room):
        return 16, less
    if packed and packed.memory <= room:
        return 4, f"fits with bits=4 ({_bytes(packed.memory)})"
    if packed and (less := packed.less(room)):
        return 4, f"{less} and bits=4"
    cards = math.ceil(task.memory / room)
    shared = "" if there.is_cpu else f'device_map="auto" over {cards} such cards, or '
    return 0, f"does not fit: {shared}remote=True"


def _bytes(n: float) -> str:
    """
    >>> _bytes(14.13e9), _bytes(9.6e6)
    ('14.1 GB', '9.6 MB')
    """
    return f"{n / 1e9:.3g} GB" if n >= 1e9 else f"{n / 1e6:.3g} MB"


def _range(low: float, high: float) -> str:
    """
    >>> _range(0.0312, 0.21), _range(40, 400)
    ('0.031 - 0.21 s', '0.67 - 6.7 min')
    """
    unit, name = next((size, name) for size, name in ((3600, "h"), (60, "min"), (1, "s")) if high >= 2 * size or size == 1)
    return f"{low / unit:.2g} - {high / unit:.2g} {name}"
