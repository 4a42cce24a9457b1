"""A gallery of synthetic codes: how long it takes to build, how large it is, how fast it answers.

    python tests/benchmarks/gallery.py [--images N] [--memory 2GB] [--folder DIR] [--json FILE]

As many pictures as one likes (a million by default), 128 features each of 65,536, some on nearly every picture and most on few. No
tower reads and no picture file is opened: the time is that of the gallery alone, from codes to tables. `run.py` asks a small one
beside a scan of all codes in memory, which must find the same.
"""

import argparse
import json
import resource
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from case import Case, Numbers, Peer, Section

from emointerp.gallery import Gallery
from emointerp.gallery.extraction import coded
from emointerp.gallery.listing import Listed
from emointerp.gallery.settings import Settings
from emointerp.gallery.tables import Work
from emointerp.sae import Codes

D_HIDDEN, K, BATCH = 65_536, 128, 64
DRAWS = 2 * K  # features drawn for a picture, of which the first K that differ are its own
SLOPE, FLAT = 0.8, 1.0  # feature r is drawn with a probability like (r + FLAT) ** -SLOPE
TOWER = {"name": "none", "width": 0, "probe": []}
SETTINGS = Settings(
    "nowhere", TOWER, {"name": "none", "fingerprint": "synthetic", "d_hidden": D_HIDDEN, "k": K, "reads": "pooled"}, {}
)


def synthetic(images: int, seed: int = 0) -> Iterator[pa.Table]:
    """Batches of codes as a reader gives them: distinct features, values from a gamma distribution."""
    odds = (np.arange(D_HIDDEN) + FLAT) ** -SLOPE
    edges = np.cumsum(odds / odds.sum())
    for start in range(0, images, BATCH):
        rng = np.random.default_rng([seed, start])
        n = min(BATCH, images - start)
        drawn = np.searchsorted(edges[:-1], rng.random((n, DRAWS)))
        features = np.stack([row[np.sort(np.unique(row, return_index=True)[1])[:K]] for row in drawn])
        values = -np.sort(-rng.gamma(2.0, 0.1, (n, K)).astype(np.float32), axis=1)
        files = [Listed(f"{i // 1000:04d}/picture {i:08d}.jpg", 100_000, 0) for i in range(start, start + n)]
        yield coded(files, [None] * n, Codes(torch.from_numpy(values), torch.from_numpy(features), D_HIDDEN))


def build(folder: Path, images: int, memory: str) -> dict[str, float]:
    """Make a gallery; seconds of writing batches and of sorting, mebibytes on disk and of the process at its peak."""
    began = perf_counter()
    with Work.begun(folder, SETTINGS, memory) as work:
        made = sum(work.keep(synthetic(images)))
        written = perf_counter()
        work.finish({})
    disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    figures = {"images": made, "batches s": written - began, "sorting s": perf_counter() - written, "disk MiB": disk / 2**20}
    return figures | {"peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def asked(folder: Path, times: int = 100) -> dict[str, float]:
    """Milliseconds to open a gallery, and the median and worst of each question; every question is a new one."""
    began = perf_counter()
    gallery = Gallery.open(folder)
    figures = {"open ms": 1e3 * (perf_counter() - began) + _milliseconds(partial(len, gallery))}
    rng, counts, paths = np.random.default_rng(1), gallery.counts(), gallery.images()["path"]
    figures["entries"] = float(counts["images"].sum())
    some = rng.choice(counts["feature"], times, replace=False).tolist()
    often = counts.sort_values("images", ascending=False)["feature"].head(times // 10).tolist()
    shown = rng.choice(paths, times // 5, replace=False).tolist()
    directions = [torch.from_numpy(rng.normal(size=D_HIDDEN)) for _ in range(3)]
    questions: dict[str, list[Callable[[], Any]]] = {
        "top 100": [partial(gallery.top, feature, 100) for feature in some],
        "top 100, commonest features": [partial(gallery.top, feature, 100) for feature in often],
        "features of a picture": [partial(gallery.features, path) for path in shown],
        "nearest 24": [partial(gallery.nearest, path, 24) for path in shown],
        "along a dense direction": [partial(gallery.along, direction, 24) for direction in directions],
    }
    for name, ask in questions.items():
        taken = [_milliseconds(one) for one in ask]
        figures |= {f"{name}, median ms": median(taken), f"{name}, worst ms": max(taken)}
    return figures | {"peak MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def _milliseconds(ask: Callable[[], Any]) -> float:
    began = perf_counter()
    ask()
    return 1e3 * (perf_counter() - began)


# beside a scan of all codes in memory


@dataclass(frozen=True)
class GallerySubject:
    """A gallery in a folder of its own, and the same codes in memory."""

    images: int = 20_000

    @property
    def name(self) -> str:
        """Its size."""
        return f"gallery of {self.images}"

    @cached_property
    def _folder(self) -> tempfile.TemporaryDirectory:
        return tempfile.TemporaryDirectory()

    @cached_property
    def gallery(self) -> Gallery:
        """The gallery."""
        build(Path(self._folder.name), self.images, "1GB")
        return Gallery.open(self._folder.name)

    @cached_property
    def codes(self) -> tuple[np.ndarray, np.ndarray]:
        """Features and values, a row a picture."""
        tables = list(synthetic(self.images))
        return tuple(np.concatenate([np.stack(t[name].to_numpy()) for t in tables]) for name in ("features", "values"))


def top(subject: GallerySubject) -> Case:
    """The 100 pictures on which a feature fires most."""
    feature, n, (features, values) = 40, 100, subject.codes

    def scan() -> Numbers:
        return {"values": torch.from_numpy(np.sort((values * (features == feature)).max(1))[::-1][:n].copy())}

    def ours() -> Numbers:
        return {"values": torch.from_numpy(subject.gallery.top(feature, n).table["value"].to_numpy(copy=True))}

    return Case(ours, {"scan": Peer(scan)})


def nearest(subject: GallerySubject) -> Case:
    """The 24 pictures most like one of them."""
    image, n, (features, values) = 7, 24, subject.codes
    path = subject.gallery.images()["path"][image]

    def scan() -> Numbers:
        weights = np.zeros(D_HIDDEN, np.float32)
        weights[features[image]] = values[image]
        cosines = (weights[features] * values).sum(1) / np.linalg.norm(values, axis=1) / np.linalg.norm(weights)
        return {"values": torch.from_numpy(np.sort(np.delete(cosines, image))[::-1][:n].copy())}

    def ours() -> Numbers:
        return {"values": torch.from_numpy(subject.gallery.nearest(path, n).table["value"].to_numpy(copy=True))}

    return Case(ours, {"scan": Peer(scan)})


SECTION = Section({"gallery": GallerySubject}, {"gallery-top": top, "gallery-nearest": nearest})


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, metavar="N")
    parser.add_argument("--memory", default="2GB", help="what DuckDB may take to sort")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where the gallery is made and kept; one that is there is only asked"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        held = Settings.read(folder)
        figures = {} if held and held.generation else {"building": build(folder, given.images, given.memory)}
        figures["asking"] = asked(folder)
    for part, numbers in figures.items():
        print(f"{part}\n" + "\n".join(f"  {name:38} {value:12,.1f}" for name, value in numbers.items()))
    if given.json:
        rows = [
            {"part": part, "what": name, "value": value} for part, numbers in figures.items() for name, value in numbers.items()
        ]
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
