"""Files that come into being whole or not at all: written beside their place, then moved there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to. It takes the place of `file` when the block ends; where anything fails, it goes.

    Our own few lines, as the standard library has none. Raises the OSError of what cannot be written or moved: whoever writes
    says in words what was written, and what to do.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     with whole(Path(folder, "told.txt")) as part:
    ...         _ = part.write_text("all of it")
    ...     [file.name for file in Path(folder).iterdir()]
    ['told.txt']
    """
    part = file.with_name(f".part-{file.name}")
    try:
        yield part
        os.replace(part, file)
    finally:
        with suppress(OSError):  # moved, or never begun; that it cannot be taken away must not hide what went wrong before
            part.unlink()
