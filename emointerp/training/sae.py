"""Stage 4: sparse autoencoders over the finished tower, one on its pooled vectors and one on its patches.

The training pictures pass the tower once. Their vectors are kept on disk, so that recipes can be compared without the tower.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm.auto import tqdm

from emointerp.models import Tower
from emointerp.sae import SAE, SaeRecipe, save_sae, train_sae
from emointerp.training.data import pictures

PER_PICTURE = 8  # patches kept of each picture, drawn at random
_CHUNK = 200
NAMES = {"pooled": "tiny-sae", "patches": "tiny-sae-patches"}


def vectors(tower: Tower, n: int, folder: Path, seed: int = 0) -> dict[str, np.ndarray]:
    """The tower's vectors of the first `n` training pictures, memory-mapped: "pooled" [n, d] and "patches" [8 n, d].

    Made on the first call, and continued if that call was cut off.
    """
    files = {reads: folder / f"{reads}-{n}-{seed}.npy" for reads in ("pooled", "patches")}
    done_path = folder / f"vectors-{n}-{seed}.done.json"
    done = json.loads(done_path.read_text()) if done_path.exists() and all(f.exists() for f in files.values()) else 0
    if not done:
        np.lib.format.open_memmap(files["pooled"], "w+", np.float32, (n, tower.d)).flush()
        np.lib.format.open_memmap(files["patches"], "w+", np.float16, (n * PER_PICTURE, tower.d_patch)).flush()
    board, out = pictures(n, folder, seed), {reads: np.load(file, mmap_mode="r+") for reads, file in files.items()}
    for first in tqdm(range(done, n, _CHUNK), initial=done // _CHUNK, total=-(-n // _CHUNK), desc="vectors", mininterval=10):
        last = min(first + _CHUNK, n)
        pooled, patches = _read(tower, board[first:last], np.random.default_rng([seed, 4, first]))
        out["pooled"][first:last], out["patches"][first * PER_PICTURE : last * PER_PICTURE] = pooled, patches
        for some in out.values():
            some.flush()
        done_path.write_text(json.dumps(last))
    return {reads: np.load(file, mmap_mode="r") for reads, file in files.items()}


@torch.no_grad()
def _read(tower: Tower, board: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Pooled vectors, and `PER_PICTURE` patches of each picture; the tower runs once for both.

    The pictures have the tower's size, so that its processor would do nothing but this to them.
    """
    pixels = torch.from_numpy(np.array(board)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.autocast("cpu", torch.bfloat16):
        out = tower.model(pixel_values=pixels)
    which = torch.from_numpy(rng.random((len(board), tower.n_patches)).argsort(1)[:, :PER_PICTURE].copy())
    patches = out.last_hidden_state.gather(1, which[..., None].expand(-1, -1, tower.d_patch))
    return out.pooler_output.float(), patches.flatten(0, 1)


def train(made: Mapping[str, np.ndarray], recipes: Mapping[str, SaeRecipe], folder: Path) -> dict[str, SAE]:
    """An SAE on each kind of vectors, at length 1; written to `folder/tiny-sae` and `folder/tiny-sae-patches` in float16."""
    trained = {}
    for reads, recipe in recipes.items():
        about = {"tower": "tiny", "reads": reads, "unit": True}
        data = normalize(torch.from_numpy(np.array(made[reads])).float(), dim=-1)
        trained[reads] = train_sae(data, recipe, folder, NAMES[reads], every=500, about=about)
        save_sae(trained[reads].to(torch.float16), folder / NAMES[reads])
    return trained
