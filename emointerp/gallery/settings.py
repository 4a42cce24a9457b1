"""What a gallery was made of, in `gallery.json`: pictures, tower, SAE, versions, and which tables are the finished ones."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cosine_similarity

import emointerp
from emointerp.errors import InputError
from emointerp.files import whole, writing
from emointerp.models import Tower
from emointerp.sae import SAE
from emointerp.sae.reading import PATCHES, POOLED

FILE = "gallery.json"
FORMAT, VERSION = "emointerp gallery", 1
PACKAGES = ("torch", "transformers", "duckdb", "pyarrow", "pillow")
PROBE = np.add.outer(np.arange(96), 2 * np.arange(128)).astype(np.uint8)  # any picture does, if it is always the same
ALIKE = 0.999  # of a tower's vectors for it, in other precisions and on other machines; other weights are far from it


@dataclass(frozen=True)
class Settings:
    """The settings of a gallery; `generation` counts its finished tables, 0 before the first."""

    pictures: str
    tower: Mapping[str, Any]
    sae: Mapping[str, Any]
    versions: Mapping[str, str]
    generation: int = 0

    @classmethod
    def of(cls, pictures: Path, tower: Tower, sae: SAE) -> "Settings":
        """Of a gallery to be made."""
        versions = {"emointerp": emointerp.__version__} | {name: version(name) for name in PACKAGES}
        return cls(str(pictures.resolve()), _tower(tower), _sae(sae), versions)

    @classmethod
    def read(cls, folder: Path) -> "Settings | None":
        """What a folder holds; None where nothing was begun there."""
        file = folder / FILE
        if not os.path.isfile(file):
            return None
        try:
            held = json.loads(file.read_text(encoding="utf-8"))
            if (held.pop("format"), held.pop("version")) != (FORMAT, VERSION):
                raise ValueError(f"not marked as {FORMAT!r}, version {VERSION}")
            return cls(**held)._checked()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(f"{file} is damaged or of something else ({error}). Give another folder.") from None

    def _checked(self) -> "Settings":
        """These settings; ValueError where a file by other hands brought something else."""
        kinds = {"pictures": str, "generation": int, "tower.name": str, "tower.width": int, "tower.probe": list}
        kinds |= {"sae.name": str, "sae.fingerprint": str, "sae.d_hidden": int, "sae.reads": str}
        for name, kind in kinds.items():
            what, _, key = name.partition(".")
            value = getattr(self, what)[key] if key else getattr(self, what)
            if type(value) is not kind or (kind is int and value < 0):
                raise ValueError(f"{name} is {value!r:.60}")
        return self

    def write(self, folder: Path) -> None:
        """Whole and then renamed, so that no half of it is ever seen."""
        with writing(folder), whole(folder / FILE) as part:
            part.write_text(json.dumps({"format": FORMAT, "version": VERSION} | vars(self), indent=1) + "\n", encoding="utf-8")

    def next(self) -> "Settings":
        """With the tables that come after these."""
        return replace(self, generation=self.generation + 1)

    @property
    def by_patch(self) -> bool:
        """Whether the SAE reads patches, so that every value has a place."""
        return self.sae["reads"] == PATCHES

    def check_same(self, other: "Settings", folder: Path) -> None:
        """InputError, both named, where tower or SAE are others; and where the pictures are."""
        if self.sae["fingerprint"] != other.sae["fingerprint"] or not _alike(self.tower, other.tower):
            raise InputError(
                f"{folder} holds a gallery by {self._made_by()}; {other._made_by()} came. Nothing was changed there; take the ones "
                "of before, or give another folder."
            )
        if self.pictures != other.pictures:
            raise InputError(
                f"{folder} holds a gallery of {self.pictures}; {other.pictures} came. Nothing was changed; give another folder."
            )

    def _made_by(self) -> str:
        sae = f"{self.sae['name']}, reading {self.sae['reads']} vectors ({self.sae['fingerprint'][:12]})"
        return f"the tower {self.tower['name']!r} and {sae}"


def _tower(tower: Tower) -> dict[str, Any]:
    vector = tower.embed([PROBE], progress=False)[0]
    return {"name": tower.name, "width": tower.d, "patches": tower.n_patches, "probe": [round(x, 6) for x in vector.tolist()]}


def _alike(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether two towers see the same in the probe; names differ where a folder was moved."""
    if len(a["probe"]) != len(b["probe"]):
        return False
    return float(cosine_similarity(torch.tensor(a["probe"]), torch.tensor(b["probe"]), dim=0)) > ALIKE


def _sae(sae: SAE) -> dict[str, Any]:
    reads = str(sae.about.get("reads", POOLED))
    return {"name": repr(sae), "fingerprint": fingerprint(sae), "d_hidden": sae.d_hidden, "k": sae.k, "reads": reads}


def fingerprint(sae: SAE) -> str:
    """A sha256 of all that decides an SAE's codes: k, what it reads, encoder and its bias."""
    digest = hashlib.sha256(json.dumps([sae.k, sae.about.get("reads", POOLED), bool(sae.about.get("unit"))]).encode())
    for tensor in (sae.encoder, sae.b_enc):
        digest.update(b"none" if tensor is None else tensor.detach().float().cpu().contiguous().numpy())
    return digest.hexdigest()
