"""Training pictures, rendered once to disk and read back as a memory map; the scenes come back from their seeds."""

import json
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from emointerp.files import alone, whole
from emointerp.world.canvas import SIZE
from emointerp.world.splits import Example, training_example

_CHUNK = 500


def example(i: int, seed: int = 0) -> Example:
    """Training example number `i` of a seed."""
    return training_example(np.random.default_rng([seed, i]))


def examples(n: int, seed: int = 0) -> list[Example]:
    """The first `n` training examples of a seed."""
    return [example(i, seed) for i in tqdm(range(n), desc="scenes", mininterval=10)]


def _render(job: tuple[Path, int, int, int]) -> int:
    path, first, last, seed = job
    board = np.load(path, mmap_mode="r+")
    for i in range(first, last):
        board[i] = example(i, seed).scene.pixels()
    board.flush()
    return first


def pictures(n: int, folder: Path, seed: int = 0, processes: int = 2) -> np.ndarray:
    """uint8 [n, 128, 128, 3], memory-mapped; rendered on the first call, and continued if that call was cut off."""
    with alone(folder, f"pictures-{n}-{seed}"):
        return _pictures(n, folder, seed, processes)


def _pictures(n: int, folder: Path, seed: int, processes: int) -> np.ndarray:
    path, done_path = folder / f"pictures-{n}-{seed}.npy", folder / f"pictures-{n}-{seed}.done.json"
    done = set(json.loads(done_path.read_text())) if done_path.exists() and path.exists() else set()
    if not done:
        np.lib.format.open_memmap(path, "w+", np.uint8, (n, SIZE, SIZE, 3)).flush()
    jobs = [(path, i, min(i + _CHUNK, n), seed) for i in range(0, n, _CHUNK) if i not in done]
    with get_context("spawn").Pool(processes) as pool:
        for first in tqdm(pool.imap_unordered(_render, jobs), total=len(jobs), desc="pictures", mininterval=10):
            done.add(first)
            with whole(done_path) as part:
                part.write_text(json.dumps(sorted(done)))
    return np.load(path, mmap_mode="r")


def augmented(pixels: np.ndarray, rng: np.random.Generator, drained: float = 0.15) -> torch.Tensor:
    """Pictures as the image processor gives them, float [batch, 3, 128, 128] in [-1, 1], mirrored and recoloured at random.

    Colours are jittered and, with probability `drained`, taken away, so that the drawing's lines count for more than its paint.
    """
    n = len(pixels)
    flip = rng.random(n) < 0.5
    pixels = np.where(flip[:, None, None, None], pixels[:, :, ::-1], pixels)
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    gain = torch.from_numpy(rng.uniform(0.85, 1.1, (n, 3, 1, 1))).float()
    shift = torch.from_numpy(rng.uniform(-0.08, 0.08, (n, 3, 1, 1))).float()
    gray = torch.from_numpy(rng.random((n, 1, 1, 1)) < drained)
    x = torch.where(gray, x.mean(1, keepdim=True), x)
    return (x * gain + shift).clamp(-1, 1)
