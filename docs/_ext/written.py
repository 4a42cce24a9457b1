"""Write a page that a build makes, and leave an equal one alone, so that Sphinx does not read it again."""

import shutil
from collections.abc import Mapping
from pathlib import Path


def keep(folder: Path, pages: Mapping[str, str]) -> None:
    """Let `folder` hold these pages, name -> text, and no others."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        if old.is_dir() and not old.is_symlink():  # .ipynb_checkpoints, say
            shutil.rmtree(old)
        elif old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
