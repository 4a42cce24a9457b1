"""Which pictures a folder holds. Own code: `Path.rglob` runs round symlink loops, and drops in silence what it may not read."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emointerp.errors import InputError

PICTURES = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


@dataclass(frozen=True, order=True)
class Listed:
    """A picture file: its path below the folder, with `/` between names, its bytes and when it was changed (nanoseconds)."""

    path: str
    size: int
    modified: int


@dataclass(frozen=True)
class Listing:
    """The pictures of a folder in order of their paths, and what could not be looked at, with the reason."""

    pictures: tuple[Listed, ...]
    failures: dict[str, str]


def listed(folder: str | Path, skip: Path | None = None) -> Listing:
    """All pictures below a folder, known by the ends of their names; hidden files and folders, and the folder `skip`, are left out.

    Links to folders are followed, and each folder is gone through once, whatever links lead to it. InputError where there is no
    folder, or no picture in it.
    """
    top = Path(folder)
    if not os.path.isdir(top):
        raise InputError(f"{folder} is {'no folder' if os.path.exists(top) else 'not there'}; give a folder of pictures.")
    pictures, failures, others = [], {}, 0
    for path, found in _walked(top, skip):
        if isinstance(found, str):
            failures[path] = found
        elif path.lower().endswith(PICTURES):
            pictures.append(Listed(path, *found))
        else:
            others += 1
    if not pictures and not failures:
        ends = ", ".join(PICTURES)
        raise InputError(f"There is no picture in {folder} ({others} other files); expected names that end in {ends}.")
    return Listing(tuple(sorted(pictures)), dict(sorted(failures.items())))


def _walked(top: Path, skip: Path | None) -> Iterator[tuple[str, tuple[int, int] | str]]:
    """Files below a folder: (path below it, (size, time of change)), or why it cannot be looked at."""
    waiting, seen = [""], {_identity(top)} | ({_identity(skip)} if skip and os.path.exists(skip) else set())
    while waiting:
        below = waiting.pop()
        try:
            names = sorted(os.listdir(top / below))
        except OSError as error:
            yield _text(below) or ".", f"The folder may not be read: {error.strerror}."
            continue
        for name in names:
            if name.startswith("."):
                continue
            path = f"{below}/{name}" if below else name
            found = _looked_at(top, path)
            if isinstance(found, str):
                yield _text(path), found
            elif not stat.S_ISDIR(found.st_mode):
                yield path, (found.st_size, found.st_mtime_ns)
            elif _identity(top / path) not in seen:
                seen.add(_identity(top / path))
                waiting.append(path)


def _looked_at(top: Path, path: str) -> os.stat_result | str:
    """What the system says of a path; a reason, in words, for pictures that cannot be opened, or that would never end."""
    try:
        found = (top / path).stat()
    except OSError as error:
        return f"It cannot be looked at: {error.strerror}."
    if stat.S_ISDIR(found.st_mode) or not path.lower().endswith(PICTURES):
        return found
    if path != _text(path):
        return "Its name is not UTF-8; rename it."
    return found if stat.S_ISREG(found.st_mode) else "It is no ordinary file (a pipe, a socket or a device)."


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _text(path: str) -> str:
    """A path as text that every encoding can hold: bytes of a name that are not UTF-8 become backslashes and numbers."""
    return path.encode("utf-8", "backslashreplace").decode()
