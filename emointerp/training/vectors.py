"""The tower's vectors of the training pictures, made once and kept on disk: text encoder and autoencoders learn from them."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import SiglipVisionModel

from emointerp.files import alone, whole
from emointerp.training.data import pictures

PER_PICTURE = 8  # patches kept of each picture, drawn at random
_CHUNK = 200


def vectors(tower: SiglipVisionModel, n: int, folder: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Vectors of the first `n` training pictures, memory-mapped: "pooled" float32 [n, d] and "patches" float16 [8 n, d].

    Made on the first call, and continued if that call was cut off; made anew where the folder's are another tower's.
    """
    board = pictures(n, folder, seed)
    with alone(folder, f"vectors-{n}-{seed}"):
        return _vectors(tower, board, n, folder, seed)


def _vectors(tower: SiglipVisionModel, board: np.ndarray, n: int, folder: Path, seed: int) -> dict[str, np.ndarray]:
    files = {reads: folder / f"{reads}-{n}-{seed}.npy" for reads in ("pooled", "patches")}
    done_path, d = folder / f"vectors-{n}-{seed}.done.json", tower.config.hidden_size
    mine, begun = fingerprint(tower), done_path.exists() and all(f.exists() for f in files.values())
    kept = json.loads(done_path.read_text()) if begun else {}
    done = kept["done"] if kept.get("tower") == mine else 0
    if not done:
        np.lib.format.open_memmap(files["pooled"], "w+", np.float32, (n, d)).flush()
        np.lib.format.open_memmap(files["patches"], "w+", np.float16, (n * PER_PICTURE, d)).flush()
    out = {reads: np.load(file, mmap_mode="r+") for reads, file in files.items()}
    for first in tqdm(range(done, n, _CHUNK), initial=done // _CHUNK, total=-(-n // _CHUNK), desc="vectors", mininterval=10):
        last = min(first + _CHUNK, n)
        pooled, patches = _read(tower, board[first:last], np.random.default_rng([seed, 4, first]))
        out["pooled"][first:last], out["patches"][first * PER_PICTURE : last * PER_PICTURE] = pooled, patches
        for some in out.values():
            some.flush()
        with whole(done_path) as part:
            part.write_text(json.dumps({"done": last, "tower": mine}))
    return {reads: np.load(file, mmap_mode="r") for reads, file in files.items()}


def fingerprint(tower: SiglipVisionModel) -> str:
    """16 hexadecimal digits that tell a tower's weights from another's."""
    digest = hashlib.sha256()
    for name, tensor in tower.state_dict().items():
        digest.update(name.encode() + tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def _read(tower: SiglipVisionModel, board: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Pooled vectors, and `PER_PICTURE` patches of each picture; the tower runs once for both.

    The pictures have the tower's size, so that its processor would do nothing but this to them.
    """
    pixels = torch.from_numpy(np.array(board)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.autocast("cpu", torch.bfloat16):
        out = tower(pixel_values=pixels)
    n_patches, d = out.last_hidden_state.shape[1:]
    which = torch.from_numpy(rng.random((len(board), n_patches)).argsort(1)[:, :PER_PICTURE].copy())
    patches = out.last_hidden_state.gather(1, which[..., None].expand(-1, -1, d))
    return out.pooler_output.float(), patches.flatten(0, 1)
