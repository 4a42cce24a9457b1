"""What a reproduction keeps on disk: each finished step as tables, tensors and facts, under a stamp that says what it stands on.

A step is finished when its stamp is there, and the stamp is written last: so a run that is stopped at any moment, also by kill -9,
leaves finished steps, parts of the one that it was at, and nothing that is half of either. What was measured goes to disk and is
read back before anything is made of it, in every run: so a run that was stopped and one that was not end with the same numbers.
Our own few lines: workflow engines know files and commands, and bring a scheduler along.
"""

import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from emointerp.files import whole, writing
from emointerp.saved import from_parquet, to_parquet

FORMAT, VERSION = "emointerp reproduction step", 2
PACKAGES = ("torch", "transformers")  # whose versions may move a number's last digits
STAMP, FACTS, TENSORS = "stamp.json", "facts.json", "tensors.safetensors"
AT_ONCE = 6  # pairs that are measured before they are kept; never fewer than two, which single methods refuse


@dataclass(frozen=True, eq=False)
class Result:
    """What a step found, as it is kept: tables, tensors and facts (what JSON holds), by name.

    `left_out` says in words why there is nothing, "" where there is something. Facts may name under "again" what a model's error
    left out of it (`task.each`).
    """

    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    left_out: str = ""

    @property
    def unfinished(self) -> bool:
        """Whether the next run measures what is lacking: it may be there then, and whatever was made is kept in parts."""
        return bool(self.left_out or self.facts.get("again"))


def digest(value: Any) -> str:
    """A sha256 of what JSON holds."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Steps:
    """The steps of one reproduction, a folder each below `folder`."""

    folder: Path

    def place(self, name: str) -> Path:
        """Where a step lies; its name begins with its number, so that folders are listed in the paper's order."""
        return self.folder / name

    def read(self, name: str, stands_on: Mapping[str, Any]) -> Result | None:
        """A finished step that stands on the same; None where there is none, or (with a warning) its files are damaged."""
        stamp = self.stamp(name)
        if stamp is None or stamp["stands on"] != json.loads(json.dumps(stands_on)):
            return None
        damaged = [file for file, known in stamp["files"].items() if _hashed(self.place(name) / file) != known]
        if damaged:
            warnings.warn(f"{self.place(name)}: {', '.join(damaged)} changed or gone; this step is done again.", stacklevel=2)
            return None
        return _read(self.place(name), stamp["files"])

    def stamp(self, name: str) -> dict[str, Any] | None:
        """What a finished step says of itself: what it stands on, its files with their hashes.

        And for information, on which nothing stands: the seconds that it took, versions of `PACKAGES`, whether it is `unfinished`.
        """
        try:
            stamp = json.loads((self.place(name) / STAMP).read_text(encoding="utf-8"))
            return stamp if (stamp["format"], stamp["version"]) == (FORMAT, VERSION) else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def signature(self, name: str) -> str:
        """A hash of what a finished step stands on and holds, for the stamps of steps that go on from it."""
        stamp = self.stamp(name) or {}
        return digest([stamp.get("stands on"), stamp.get("files")])

    def write(self, name: str, stands_on: Mapping[str, Any], result: Result, seconds: float) -> None:
        """Keep a finished step: its files, each whole, the stamp last, and then its parts go, if nothing is to be tried again."""
        place = self.place(name)
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
            (place / STAMP).unlink(missing_ok=True)
            files = {file: _hashed(place / file) for file in _write(place, result)}
            stamp = {"format": FORMAT, "version": VERSION, "step": name, "stands on": stands_on, "files": files}
            about = {"seconds": seconds, "versions": {name: version(name) for name in PACKAGES}, "unfinished": result.unfinished}
            write_text(place / STAMP, json.dumps(stamp | about, indent=1) + "\n")
            for file in [*place.glob("*.parquet"), *place.glob("*.safetensors")]:
                if file.name not in files:
                    file.unlink()
            for parts in () if result.unfinished else place.glob("parts-*"):
                shutil.rmtree(parts, ignore_errors=True)

    def parts(self, name: str, stands_on: Mapping[str, Any]) -> "Parts":
        """Where a step that is not finished keeps what it has; other stamps have other places."""
        return Parts(self.place(name) / f"parts-{digest(stands_on)[:12]}")


@dataclass(frozen=True)
class Parts:
    """Finished parts of a step that is not finished."""

    folder: Path

    def table(self, what: str, pairs: Sequence[Any], measure: Callable[[Sequence[Any]], pd.DataFrame]) -> pd.DataFrame:
        """A table with a column `pair` (0, 1, …), measured for a few pairs at a time, each time kept; as if measured at once."""
        frames = []
        for start, stop in _bounds(len(pairs)):
            some = self.once(f"{what}-{start:05}", lambda start=start, stop=stop: measure(pairs[start:stop]))
            frames.append(some.assign(pair=some.pair + start))
        return pd.concat(frames, ignore_index=True)

    def once(self, what: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table that is made once."""
        file = self.folder / f"{what}.parquet"
        if not file.is_file():
            made = make()
            with writing(file):
                self.folder.mkdir(parents=True, exist_ok=True)
                to_parquet(made.reset_index(drop=True), file)
        return from_parquet(file)

    def place(self, name: str) -> Path:
        """A file or folder in which a method keeps its own parts."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name


def _bounds(n: int) -> list[tuple[int, int]]:
    """Runs of at most `AT_ONCE` of n pairs, and none of a single one where there are two.

    >>> _bounds(13), _bounds(1)
    ([(0, 5), (5, 9), (9, 13)], [(0, 1)])
    """
    runs = np.array_split(np.arange(n), max(1, min(-(-n // AT_ONCE), n // 2)))
    return [(int(run[0]), int(run[-1]) + 1) for run in runs if len(run)]


def write_text(file: Path, text: str) -> None:
    """A text file, whole or not at all."""
    with writing(file), whole(file) as part:
        part.write_text(text, encoding="utf-8")


# files


def _write(place: Path, result: Result) -> list[str]:
    """The names of a result's files."""
    for name, table in result.tables.items():
        to_parquet(table.reset_index(drop=True), place / f"{name}.parquet")
    if result.tensors:
        with whole(place / TENSORS) as part:
            save_file({name: tensor.contiguous() for name, tensor in result.tensors.items()}, part)
    write_text(place / FACTS, json.dumps({"facts": dict(result.facts), "left out": result.left_out}, indent=1) + "\n")
    return [*(f"{name}.parquet" for name in result.tables), *([TENSORS] if result.tensors else []), FACTS]


def _read(place: Path, files: Mapping[str, str]) -> Result | None:
    try:
        held = json.loads((place / FACTS).read_text(encoding="utf-8"))
        tables = {Path(name).stem: from_parquet(place / name) for name in files if name.endswith(".parquet")}
        tensors = load_file(place / TENSORS) if TENSORS in files else {}
        return Result(tables, tensors, held["facts"], held["left out"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        warnings.warn(f"{place} cannot be read ({error}); this step is done again.", stacklevel=3)
        return None


def _hashed(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""
