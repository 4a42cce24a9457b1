"""Making a gallery: find the pictures, read those that are new, sort the tables. Killed anywhere, the next run goes on there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm.auto import tqdm

from emointerp.errors import InputError
from emointerp.gallery.extraction import Reader, with_ray
from emointerp.gallery.listing import Listed, listed
from emointerp.gallery.settings import Settings
from emointerp.gallery.tables import Work
from emointerp.gallery.value import Gallery
from emointerp.models import Tower
from emointerp.sae import SAE

ENGINES = ("local", "ray")
SHOWN = 5  # failures that are told in words


@dataclass(frozen=True)
class Indexed:
    """A gallery after a run: how many pictures were read in it, and those that the gallery has and the folder no longer."""

    gallery: Gallery
    added: int
    vanished: tuple[str, ...] = field(repr=False)

    def __str__(self) -> str:
        failures = self.gallery.failures()
        lines = [f"{len(self.gallery)} pictures in {self.gallery.folder}, {self.added} of them new."]
        if len(failures):
            lines.append(f"{len(failures)} could not be read:")
            lines += [f"  {row.path!r}: {row.reason}" for row in failures.head(SHOWN).itertuples()]
            lines += ["  …"] * (len(failures) > SHOWN)
        if self.vanished:
            lines.append(f"{len(self.vanished)} are no longer there ({self.vanished[0]!r} …); --forget leaves them out.")
        lines.append(
            f"In Python: ei.Gallery.open({str(self.gallery.folder)!r}), then .top(feature), .nearest(picture) or .along(direction)."
        )
        return "\n".join(lines)


def index(
    folder: str | Path,
    pictures: str | Path,
    tower: str | Tower = "tiny",
    sae: str | SAE = "tiny",
    *,
    batch: int = 64,
    engine: str = "local",
    device: str | None = None,
    forget: bool = False,
    memory: str = "2GB",
    progress: bool = True,
) -> Indexed:
    """Read all pictures below a folder into the gallery in `folder`; where there is one, read those that are new or were changed.

    What cannot be read is skipped, listed with its reason (`Gallery.failures`), and tried again by the next run. Pictures that
    are no longer there stay in the gallery and are told, or are left out with `forget`. Every `batch` is on disk as soon as it is
    read; the tables come at the end, whole or not at all, and are the same whether or not runs were killed on the way.

    `engine` "ray" reads through Ray Data, on all machines of its cluster, and loads `tower` and `sae` there where they are given by
    name. `memory` is what DuckDB may take to sort; the rest lies in the gallery's folder for the time being. InputError where there
    is no picture, none can be read, or the folder holds a gallery by another tower or SAE, or of other pictures.
    """
    if engine not in ENGINES:
        raise InputError(f"engine is {engine!r}; expected {' or '.join(map(repr, ENGINES))}.")
    if batch < 1:
        raise InputError(f"batch is {batch}; expected 1 or more pictures.")
    folder, pictures = Path(folder), Path(pictures)
    listing, reader = listed(pictures, skip=folder), Reader(pictures, tower, sae, device)
    with Work.begun(folder, Settings.of(pictures, reader.tower, reader.sae), memory) as work:
        known, waiting = work.known(), work.waiting()
        pending = [file for file in listing.pictures if known.get(file.path) != file]
        batches = _batches(pending, waiting, batch)
        read = map(reader, batches) if engine == "local" else with_ray(batches, pictures, tower, sae, device)
        left = sum(map(len, batches))
        with tqdm(total=len(pending), initial=len(pending) - left, desc="pictures", disable=not progress) as bar:
            for n in work.keep(read):
                bar.update(n)
        there = {file.path for file in listing.pictures}
        vanished = sorted(known.keys() - there - listing.failures.keys())
        never = waiting.keys() - there - known.keys()  # gone again before they were in a table
        added = work.finish(listing.failures, [*never, *(vanished if forget else ())])
    return Indexed(Gallery.open(folder), added, () if forget else tuple(vanished))


def _batches(pending: Sequence[Listed], waiting: Mapping[str, Listed], batch: int) -> list[list[Listed]]:
    """What is to be read, in the batches that a run without a kill would make, less what it has done."""
    cut = [pending[i : i + batch] for i in range(0, len(pending), batch)]
    left = ([file for file in some if waiting.get(file.path) != file] for some in cut)
    return [some for some in left if some]
