"""The notebooks on a reader's disk: copied once, never overwritten, opened in JupyterLab."""

import os
import shutil
import sys
from pathlib import Path

from emointerp.errors import OutputError


def source() -> Path:
    """Where the notebooks lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return next(p for p in (package.parent / "notebooks", package / "notebooks") if (p / "00_start_here.ipynb").exists())


def copy_notebooks(folder: Path) -> Path:
    """Copy the course to `folder`, leave what is there alone, and return the first notebook."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for notebook in sorted(source().glob("*.ipynb")):
            if not (folder / notebook.name).exists():
                part = folder / f".part-{notebook.name}"
                shutil.copyfile(notebook, part)
                os.replace(part, folder / notebook.name)
    except OSError as error:
        raise OutputError(f"Cannot write the notebooks to {folder}: {error.strerror}. Name another folder.") from error
    return folder / "00_start_here.ipynb"


def open_lab(notebook: Path) -> None:
    """JupyterLab on a notebook, in place of this process, so that Ctrl-C is JupyterLab's own."""
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", str(notebook)])
