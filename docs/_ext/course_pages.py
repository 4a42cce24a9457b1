"""The course: the nine notebooks as they were executed, and the page that says what each is about.

A notebook's copy here differs from the notebook in what a site needs: panels by the HTML that stands in for them, figures with
their alternative text where myst-nb looks for it, and a line that says where the notebook itself is.
"""

import copy
import json
import os
import re
from pathlib import Path
from typing import Any

import written
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

from emointerp.course import exercises
from emointerp.errors import InputError

VIEW = "application/vnd.jupyter.widget-view+json"
TITLE = re.compile(r"^# (\d\d) · (.+?): (.+)$", re.MULTILINE)
AFTER = re.compile(r"\*\*After this notebook you can\*\* (.+)")
FACTS = re.compile(r"^\| *level *\|.*\n\|[-| ]+\n\|(.+)\|$", re.MULTILINE)

UNTOLD = "Figure that the code above draws"  # of a figure without words of its own

Book = dict[str, Any]


def source(root: Path) -> Path:
    """The folder of executed notebooks that was handed over, or else the stored ones."""
    given = os.environ.get("EMOINTERP_EXECUTED")
    return Path(given) if given else root / "notebooks"


def text(cell: Book) -> str:
    """A cell's source, which nbformat keeps as one string or as lines."""
    return "".join(cell["source"])


def staged(book: Book, name: str) -> Book:
    """A notebook for the site."""
    book = copy.deepcopy(book)
    book["metadata"].pop("widgets", None)
    for cell in book["cells"]:
        for output in cell.get("outputs", ()):
            _stage_output(cell, output)
    _put_after_title(book["cells"], f"{{download}}`{name} <../../notebooks/{name}>`, or all nine in JupyterLab: `emointerp lab`.")
    return book


def _stage_output(cell: Book, output: Book) -> None:
    data = output.get("data", {})
    if "text/html" in data:
        data.pop(VIEW, None)
    if "image/png" in data:
        alt = output.get("metadata", {}).get("image/png", {}).get("alt") or UNTOLD
        cell["metadata"] = {"mystnb": {"image": {"alt": " ".join(alt.split())}}} | cell["metadata"]


def _put_after_title(cells: list[Book], line: str) -> None:
    """Put a line below the title of the first cell."""
    title, _, rest = text(cells[0]).partition("\n")
    cells[0]["source"] = f"{title}\n\n:::{{container}} taken\n{line}\n:::\n{rest}"


def facts(book: Book, name: str) -> dict[str, str]:
    """What the first cell says of a notebook, and how many exercises it has."""
    first = text(book["cells"][0])
    title, able, row = TITLE.search(first), AFTER.search(first), FACTS.search(first)
    if not (title and able and row):
        raise ExtensionError(
            f"{name}: the first cell has to hold '# NN · Name: question', what one can do after it, and its times."
        )
    level, to_read, to_run, before = (part.strip() for part in row[1].split("|"))
    try:
        count = len(exercises(book))
    except InputError as error:
        raise ExtensionError(f"{name}: {error}") from error
    keys = ("number", "name", "question", "able", "level", "read", "run", "before", "exercises")
    return dict(zip(keys, (*title.groups(), able[1], level, to_read, to_run, before, str(count)), strict=True))


def overview(books: dict[str, Book]) -> str:
    """The page of the course."""
    found = {name: facts(book, name) for name, book in books.items()}
    rows = [
        f"| [{f['number']} {f['name']}]({name}) | {f['question'][:1].upper()}{f['question'][1:]} | {f['level']} | {f['read']} "
        f"| {f['run']} | {f['exercises']} |"
        for name, f in found.items()
    ]
    able = [f"{f['number']} {f['name']}\n: After it you can {f['able']}\n" for f in found.values()]
    pages = [f"{f['number']} {f['name']} <{name.removesuffix('.ipynb')}>" for name, f in found.items()]
    return TEMPLATE.format(rows="\n".join(rows), able="\n".join(able), pages="\n".join(pages))


TEMPLATE = """# The course

Nine notebooks, one question each. They run offline on the bundled model on two CPU cores, in this order or by themselves, and on
another model by changing one line. Each has an arc: a guess, the experiment, what it means and what it does not show, the control
that could have refuted it; then exercises whose checks say what is wrong, with their solutions folded away.

```bash
emointerp lab                # to a folder of yours, opened in JupyterLab
emointerp lab --no-browser   # to a folder of yours
```

Here they are with the outputs of their last run. What moves in JupyterLab, the panels, stands still here.

| notebook | question | level | to read | to run | exercises |
|---|---|---|---|---|---|
{rows}

## What you can do after each

{able}
Teachers find the copy with solutions and exports for slides in [](../teach.md).

```{{toctree}}
:hidden:

{pages}
```
"""


def write(app: Sphinx) -> None:
    """Stage the notebooks, before Sphinx looks for sources."""
    folder = source(Path(app.srcdir).parent)
    books = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("[0-9]*.ipynb"))}
    if not books:
        raise ExtensionError(f"There are no notebooks in {folder}.")
    pages = {name: json.dumps(staged(book, name), ensure_ascii=False, indent=1) for name, book in books.items()}
    written.keep(Path(app.srcdir) / "course", {"index.md": overview(books), **pages})


def setup(app: Sphinx) -> dict[str, bool]:
    """Stage the notebooks of every build."""
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
