"""The notebooks on a reader's disk: copied once, never overwritten, opened in JupyterLab; and a teacher's copy with solutions.

A notebook is plain JSON here. An exercise is a code cell that ends in its check, `exercise.NAME(…)`, after a blank line; before
it stand a stub (`answer = None`) and perhaps lines that prepare it. The text cell after it is folded and holds the solution, which
takes the stub's place, and that of preparing lines from the first on that it repeats.
"""

import ast
import json
import os
import re
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emointerp.errors import InputError, OutputError
from emointerp.files import whole

TEACHERS = {"emointerp": {"copy": "teacher's"}}  # in the metadata of a notebook with solutions
ON_TOP = (
    "**Teacher's copy.** The exercises hold their solutions; run the notebook, and their checks answer. Learners start from "
    "`emointerp lab`, whose copies have the exercises open."
)
SOLUTION = re.compile(r"<details>\s*<summary>Solution</summary>.*?```python\n(.*?)\n```", re.DOTALL)


def source() -> Path:
    """Where the notebooks lie: inside an installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    return next(p for p in (package.parent / "notebooks", package / "notebooks") if (p / "00_start_here.ipynb").exists())


def copy_notebooks(folder: Path, solutions: bool = False) -> Path:
    """Copy the course to `folder`, leave what is there alone, and return the first notebook.

    With `solutions` the copies are the teacher's (`solved`). Raises OutputError where a folder cannot be written, or holds copies
    of the other kind; then nothing is copied.
    """
    try:
        new = [notebook for notebook in sorted(source().glob("*.ipynb")) if not _is_there(folder / notebook.name, solutions)]
        folder.mkdir(parents=True, exist_ok=True)
        for notebook in new:
            with whole(folder / notebook.name) as part:
                part.write_text(_text(notebook, solutions), encoding="utf-8")
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"Cannot write the notebooks to {folder}: {error.strerror}. Name another folder.") from error
    return folder / "00_start_here.ipynb"


def _text(notebook: Path, solutions: bool) -> str:
    text = notebook.read_text(encoding="utf-8")
    return json.dumps(solved(json.loads(text)), indent=1, ensure_ascii=False) + "\n" if solutions else text


def _is_there(path: Path, solutions: bool) -> bool:
    """Whether a copy is there already; OutputError where it is of the other kind."""
    if path.exists() and _is_teachers(path) != solutions:
        others = "a learner's" if solutions else "the teacher's"
        raise OutputError(f"{path.parent} holds {others} copies of the notebooks. Name another folder.")
    return path.exists()


def _is_teachers(path: Path) -> bool:
    """Whether a file is a notebook of the teacher's copy; what a reader made of a file need not be a notebook."""
    try:
        return TEACHERS.items() <= json.loads(path.read_text(encoding="utf-8"))["metadata"].items()
    except (ValueError, TypeError, KeyError, AttributeError):
        return False


def open_lab(notebook: Path) -> None:
    """JupyterLab on a notebook, in place of this process, so that Ctrl-C is JupyterLab's own."""
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", str(notebook)])


@dataclass(frozen=True)
class Exercise:
    """An exercise of a notebook: the number of its `cell`, its code in parts, and the `name` of the function that checks it.

    A second exercise with the same function is called "name 2".
    """

    cell: int
    name: str
    prepared: str  # what stands before the stub, up to a line that the solution repeats
    solution: str
    check: str

    @property
    def answered(self) -> str:
        """What the solved cell does before its check."""
        return f"{self.prepared}\n{self.solution}".strip()

    @property
    def solved(self) -> str:
        """The cell with the solution in the stub's place."""
        return f"{self.answered}\n\n{self.check}"


def exercises(book: Mapping[str, Any]) -> list[Exercise]:
    """The exercises of a notebook, from the top.

    Raises InputError where a check has no stub before it or no solution after it, and where the notebook has no exercise.
    """
    cells = book["cells"]
    found = [_exercise(cells, i) for i in range(len(cells)) if _check(cells[i]) is not None]
    if not found:
        raise InputError("This notebook has no exercise: a code cell that ends in its check, such as exercise.by_hand(answer).")
    again = [sum(other.name == one.name for other in found[:i]) for i, one in enumerate(found)]
    return [replace(one, name=f"{one.name} {n + 1}") if n else one for one, n in zip(found, again, strict=True)]


def solved(book: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher's copy of a notebook (its JSON): each stub replaced by its solution, the outputs of these cells cleared.

    The check stays, the cell bears the tag "solution", and a new first cell says whose copy it is. Raises InputError where an
    exercise lacks a stub or a solution, and where there is none.
    """
    book = deepcopy(dict(book))
    for exercise in exercises(book):
        cell = book["cells"][exercise.cell]
        cell |= {"source": exercise.solved.splitlines(keepends=True), "outputs": [], "execution_count": None}
        cell["metadata"] = {**cell["metadata"], "tags": [*cell["metadata"].get("tags", ()), "solution"]}
    top = {"cell_type": "markdown", "id": "teachers-copy", "metadata": {}, "source": [ON_TOP]}
    return book | {"cells": [top, *book["cells"]], "metadata": book.get("metadata", {}) | TEACHERS}


def _exercise(cells: list[Mapping[str, Any]], at: int) -> Exercise:
    name, check = _check(cells[at])
    lines, where = _source(cells[at]).splitlines(), f"The exercise {name} in cell {at}"
    stubs = [s.lineno for s in ast.parse(_source(cells[at])).body if _is_stub(s)]
    if not stubs or lines[check - 2].strip():
        raise InputError(f"{where} needs a stub before its check, such as `answer = None`, and a blank line between the two.")
    found = SOLUTION.findall(_source(cells[at + 1])) if at + 1 < len(cells) else []
    if len(found) != 1:
        said = "expected is a text cell with <details><summary>Solution</summary> and one ```python block"
        raise InputError(f"{where} has {len(found) or 'no'} solutions in the cell after it; {said}.")
    repeated = [i for i, line in enumerate(lines[: stubs[0] - 1]) if line.strip() and line in found[0].splitlines()]
    prepared, rest = lines[: min([*repeated, stubs[0] - 1])], lines[check - 1 :]
    return Exercise(at, name, "\n".join(prepared), found[0], "\n".join(rest))


def _source(cell: Mapping[str, Any]) -> str:
    return "".join(cell["source"])


def _check(cell: Mapping[str, Any]) -> tuple[str, int] | None:
    """The name of the function and the line of the check that a cell ends in; None for a cell without one."""
    if cell["cell_type"] != "code" or "exercise" not in _source(cell):
        return None
    match ast.parse(_source(cell)).body[-1:]:
        case [ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr=name))) as last]:
            return (name, last.lineno) if module.startswith("exercise") else None
    return None


def _is_stub(statement: ast.stmt) -> bool:
    """Whether a statement sets a name to None, or to a tuple or dict with None in it."""
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Constant | ast.Tuple | ast.Dict):
        return False
    return any(isinstance(node, ast.Constant) and node.value is None for node in ast.walk(statement.value))
