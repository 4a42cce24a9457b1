"""Pages that are kept elsewhere in the repository: the changelog, and the cards of the bundled weights."""

import re
from pathlib import Path

import written
from sphinx.application import Sphinx

KEPT = {
    "changelog.md": "CHANGELOG.md",
    "tiny.md": "emointerp/models/weights/tiny/README.md",
    "tiny-sae.md": "emointerp/models/weights/tiny-sae/README.md",
}
FRONT = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)  # what the hub reads of a card


def write(app: Sphinx) -> None:
    """Copy the pages, before Sphinx looks for sources."""
    root = Path(app.srcdir).parent
    pages = {name: FRONT.sub("", (root / path).read_text(encoding="utf-8")) for name, path in KEPT.items()}
    written.keep(Path(app.srcdir) / "copied", pages)


def setup(app: Sphinx) -> dict[str, bool]:
    """Copy the pages of every build."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
