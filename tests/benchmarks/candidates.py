"""Candidates from bfloat16: how many rows have to be done in full after all, by how many candidates, and what encoding takes.

    python tests/benchmarks/candidates.py [--seconds N] [--json FILE]

The bundled autoencoders on pictures of the drawn world, and the random ones of `sae_cases.py`, whose k-th and 2 k-th scores lie
close together. A row also says whether the features are those of float32 throughout.
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from sae_cases import SUBJECTS
from timing import alternating
from torch import Tensor

from emointerp.models import load_tower
from emointerp.sae import SAE, coding, load_sae
from emointerp.sae.reading import inputs
from emointerp.world import face_scenes

TIMES_K = (1.5, 2, 3)
PICTURES = 60


def rows_in_full(sae: SAE, x: Tensor, candidates: int) -> int:
    """For how many rows the bound did not settle the selection."""
    full, largest = [0], coding._largest

    def counted(rows: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        full.append(len(rows))
        return largest(rows, *rest)

    with patch.object(coding, "_largest", counted):
        sae.encode(x, candidates=candidates)
    return sum(full)


def measured(name: str, sae: SAE, x: Tensor, seconds: float) -> Iterator[dict[str, Any]]:
    """A row for float32 and for each number of candidates."""
    found = sae.encode(x).indices.sort().values
    roads = {1.0: partial(sae.encode, x)} | {times: partial(sae.encode, x, candidates=int(times * sae.k)) for times in TIMES_K}
    taken = alternating(roads, seconds=seconds)
    for times in TIMES_K:
        same = torch.equal(roads[times]().indices.sort().values, found)
        full = rows_in_full(sae, x, int(times * sae.k))
        row = {"sae": name, "rows": len(x), "times k": times, "in full": full, "seconds": taken[times]}
        yield row | {"float32 s": taken[1.0], "same features": same}


def subjects() -> Iterator[tuple[str, SAE, Tensor]]:
    """Name, autoencoder and what it reads."""
    tower, scenes = load_tower("tiny"), face_scenes("test", PICTURES)
    for name in ("tiny", "tiny-patches"):
        sae = load_sae(name)
        with torch.no_grad():
            yield f"bundled {name}", sae, inputs(sae, tower, tower.pixels(scenes)).reshape(-1, sae.d_in)
    for subject in (maker() for maker in SUBJECTS.values()):
        yield f"random, {subject.d_hidden:,}", subject.sae, subject.x


@torch.no_grad()
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="about how long each autoencoder is timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    given = parser.parse_args(arguments)
    rows = [row for subject in subjects() for row in measured(*subject, given.seconds)]
    print(pd.DataFrame(rows).to_string(index=False))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
