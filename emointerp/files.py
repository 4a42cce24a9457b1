"""Files that come into being whole or not at all: written beside their place, then moved there; and folders with one writer."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from emointerp.errors import OutputError


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to. It takes the place of `file` when the block ends; where anything fails, it goes.

    Its name bears the process's number: two that write one file at a time would else write into each other's. Our own few lines, as
    the standard library has none. Raises the OSError of what cannot be written or moved: whoever writes says in words what was
    written, and what to do.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with whole(Path(folder, "told.txt")) as part:
    ...         _ = part.write_text("all of it")
    ...     [file.name for file in Path(folder).iterdir()]
    ['told.txt']
    """
    part = file.with_name(f".part-{os.getpid()}-{file.name}")
    with suppress(FileNotFoundError):
        part.unlink()  # a link that somebody put there would be written through
    try:
        yield part
        os.replace(part, file)
    finally:
        with suppress(OSError):  # moved, or never begun; that it cannot be taken away must not hide what went wrong before
            part.unlink()


@contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """While this lasts, what the disk refuses in a folder or at a file becomes OutputError, which names it and says what to do."""
    try:
        yield
    except OutputError:
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"Cannot write in {place}: {reason}. Free space there, or give another folder.") from error


@contextmanager
def alone(folder: Path, name: str = "") -> Iterator[None]:
    """No other process at work in a folder, or on `name` in it, while this lasts; OutputError where there is one already.

    The lock is the system's, on a hidden file: it goes when its process does, killed or not, whether the file stays or not. The
    folder is made where there is none; OutputError where that cannot be done.
    """
    place = folder / f".lock{'-' * bool(name)}{name}"
    lock = FileLock(place)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout:
        what = f"on {name!r} in {folder}" if name else f"in {folder}"
        raise OutputError(f"Another run is at work {what}; wait until it is done, or give another folder.") from None
    except OSError as error:
        raise OutputError(f"Cannot write in {folder}: {error.strerror or error}. Give another folder.") from error
    try:
        yield
    finally:
        with suppress(OSError):  # while it is held: whoever waits for a file that has gone asks for a new one
            place.unlink()
        lock.release()
