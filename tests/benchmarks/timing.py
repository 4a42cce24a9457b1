"""Seconds and memory of a call.

Machines drift while they are measured, so things that are compared run in turn (A B A B …), and each one's median counts. The peak
of memory is the process's own, as the kernel keeps it, so that what libraries take beside PyTorch's tensors counts too.
"""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

MIB = 2**20


def in_turns(runs: dict[str, Callable[[], Any]], least: int = 3, most: int = 25, seconds: float = 5.0) -> dict[str, list[float]]:
    """Seconds of each run in rounds of all; more than `least` rounds while less than `seconds` have gone by."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    opened = perf_counter()
    for done in range(most):
        if done >= least and perf_counter() - opened > seconds:
            break
        for name, run in runs.items():
            start = perf_counter()
            run()
            taken[name].append(perf_counter() - start)
    return taken


def alternating(runs: dict[str, Callable[[], Any]], **rounds: Any) -> dict[str, float]:
    """Median seconds of each run; `rounds` as in `in_turns`."""
    return {name: median(times) for name, times in in_turns(runs, **rounds).items()}


def ratio_bounds(above: list[float], below: list[float], resamples: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval of the ratio of two medians, rounds drawn together; of three, about the least and the largest."""
    drawn = np.random.default_rng(0).integers(len(above), size=(resamples, len(above)))
    ratios = np.median(np.array(above)[drawn], axis=1) / np.median(np.array(below)[drawn], axis=1)
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def peak_mib(run: Callable[[], Any]) -> float | None:
    """MiB that the process took at most during the run beside what it had before; None where the kernel does not tell."""
    try:
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed, but not given back, would hide what the run takes
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
        before = _status("VmRSS")
        run()
        return (_status("VmHWM") - before) / MIB
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    """A figure of the process in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024
