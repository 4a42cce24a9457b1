"""The notebooks on a reader's disk, the teacher's copy, and the stored notebooks: what each must have, and that each runs again.

A notebook is executed once here. The same run tries every exercise, open, solved and with typical wrong answers, and is kept for
the site in the folder that the environment variable EMOINTERP_EXECUTED names.
"""

import ast
import copy
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from wrong_answers import TYPICAL

from emointerp.course import Exercise, copy_notebooks, exercises, solved, source
from emointerp.errors import InputError, OutputError

NOTEBOOKS = sorted(source().glob("*.ipynb"))
each = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)


def read(notebook: Path) -> dict:
    return json.loads(notebook.read_text(encoding="utf-8"))


def text(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(notebook: Path) -> list[dict]:
    return [cell for cell in read(notebook)["cells"] if cell["cell_type"] == "code"]


def words_cells(notebook: Path) -> list[str]:
    return [text(cell) for cell in read(notebook)["cells"] if cell["cell_type"] == "markdown"]


# copies


def test_copies_are_made_once_and_never_overwritten(tmp_path):
    first = copy_notebooks(tmp_path / "mine")
    assert first.name == "00_start_here.ipynb" and first.read_bytes() == (source() / first.name).read_bytes()
    first.write_text("my notes")
    copy_notebooks(tmp_path / "mine")
    assert first.read_text() == "my notes" and len(list(first.parent.iterdir())) == len(NOTEBOOKS)


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write the notebooks to"):
        copy_notebooks(tmp_path / "file" / "below")


def test_the_teachers_copies_are_never_mixed_with_a_learners(tmp_path):
    first = copy_notebooks(tmp_path / "teacher", solutions=True)
    assert read(first) == solved(read(source() / first.name))
    nbformat.validate(nbformat.read(first, as_version=4))
    changed = read(first) | {"cells": read(first)["cells"][1:]}
    first.write_text(json.dumps(changed))
    assert copy_notebooks(tmp_path / "teacher", solutions=True) == first and read(first) == changed
    with pytest.raises(OutputError, match="holds the teacher's copies of the notebooks. Name another folder"):
        copy_notebooks(tmp_path / "teacher")
    copy_notebooks(tmp_path / "mine").write_text("my notes")
    with pytest.raises(OutputError, match="holds a learner's copies"):
        copy_notebooks(tmp_path / "mine", solutions=True)


def test_nothing_is_copied_beside_one_notebook_of_the_other_kind(tmp_path):
    foreign = next(notebook for notebook in NOTEBOOKS if notebook.name.startswith("05"))
    (tmp_path / foreign.name).write_text(json.dumps(solved(read(foreign))))
    with pytest.raises(OutputError, match="holds the teacher's copies"):
        copy_notebooks(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [foreign.name]


def test_a_copy_that_cannot_be_finished_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OutputError, match="Cannot write the notebooks to .*: No space left on device. Name another folder"):
        copy_notebooks(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "folder"), [(["course"], "course"), (["--solutions"], "emointerp-course-solutions")])
def test_lab_copies_and_says_how_to_open(options, folder, tmp_path):
    command = [sys.executable, "-m", "emointerp.cli", "lab", *options, "--no-browser"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and f"jupyter lab {folder}/00_start_here.ipynb" in done.stdout
    assert ("Teacher's copy" in (tmp_path / folder / "00_start_here.ipynb").read_text()) == ("--solutions" in options)


# the teacher's copy

CHECKED = "import math\n\nrows = [1, 2]\nanswer = None  # a number\n\nexercise.total(\n    answer, rows\n)"
SOLVED = "<details><summary>Solution</summary>\n\n```python\n{}\n```\n</details>\n\n**2.** And now?"


def made_up(*sources: str) -> dict:
    """A notebook of these cells; text begins with "<" or "#"."""
    cells = []
    for i, said in enumerate(sources):
        cell = {"id": f"c{i}", "metadata": {"tags": ["kept"]}, "source": said.splitlines(keepends=True)}
        code = {"cell_type": "code", "execution_count": i, "outputs": [{"output_type": "stream"}]}
        cells.append(cell | ({"cell_type": "markdown"} if said[0] in "<#" else code))
    return {"cells": cells, "metadata": {"kernelspec": {}}, "nbformat": 4, "nbformat_minor": 5}


def test_a_stub_gives_way_to_its_solution():
    book = made_up("# Title", "import emointerp as ei", CHECKED, SOLVED.format("answer = sum(rows)"))
    before = copy.deepcopy(book)
    top, title, code, cell, folded = solved(book)["cells"]
    assert book == before and [title, code, folded] == [before["cells"][i] for i in (0, 1, 3)]
    assert top["cell_type"] == "markdown" and text(top).startswith("**Teacher's copy.**")
    assert text(cell) == "import math\n\nrows = [1, 2]\nanswer = sum(rows)\n\nexercise.total(\n    answer, rows\n)"
    assert cell["outputs"] == [] and cell["execution_count"] is None and cell["metadata"]["tags"] == ["kept", "solution"]
    assert solved(book)["metadata"] == {"kernelspec": {}, "emointerp": {"copy": "teacher's"}}


def test_lines_that_a_solution_repeats_stand_once_and_in_its_order():
    checked = CHECKED.replace("answer = None", "hint = max(rows)\nanswer = None")
    book = made_up(checked, SOLVED.format("rows = [1, 2]\nanswer = sum(rows)"))
    assert exercises(book)[0].solved.startswith("import math\n\nrows = [1, 2]\nanswer = sum(rows)\n\nexercise.total(")


def test_two_exercises_of_one_function_have_two_names():
    pair = ("answer, n = None, None\n\nexercise_two.total(answer)", SOLVED.format("answer = 3"))
    assert [found.name for found in exercises(made_up(*pair, *pair))] == ["total", "total 2"]


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (("# Title", "exercise = 3", "# exercise"), r"has no exercise: a code cell that ends in its check"),
        (
            ("x = 1", "answer = 3\n\nexercise.total(answer)"),
            "exercise total in cell 1 needs a stub before its check, such as `answer",
        ),
        (("answer = None\nexercise.total(answer)", SOLVED), "a blank line between the two"),
        (
            ("answer = None\n\nexercise.total(answer)",),
            "has no solutions in the cell after it; expected is a text cell with <details>",
        ),
        (("answer = None\n\nexercise.total(answer)", "# Solution"), "has no solutions"),
        (("answer = None\n\nexercise.total(answer)", SOLVED + SOLVED), "has 2 solutions"),
    ],
)
def test_a_notebook_without_stubs_or_solutions_is_refused(sources, words):
    with pytest.raises(InputError, match=words):
        solved(made_up(*sources))


# what each stored notebook must have


@each
def test_stored_notebook_was_run_top_to_bottom_without_errors(notebook):
    cells = code_cells(notebook)
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    outputs = [o for c in cells for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert 'role=\\"alert\\"' not in notebook.read_text()
    figures = [c for c in cells if text(c).rstrip().endswith((".plot()", "columns=8)", "columns=6)"))]
    assert figures and all("image/png" in o["data"] for c in figures for o in c["outputs"] if o["output_type"] == "execute_result")
    panels = [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {}) and "Panel" in str(o["data"])]
    assert panels and all("text/html" in o["data"] for o in panels)


@each
def test_a_notebook_is_short(notebook):
    trees = [ast.parse(text(cell)) for cell in code_cells(notebook)]
    calls = [ast.unparse(node.func) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    long = [
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.body[0].lineno + 1 > 6
    ]
    assert len(read(notebook)["cells"]) <= 30 and not long
    assert (calls.count("ei.load") or calls.count("load_tower")) == 1, "the one line that loads"


@each
def test_a_notebook_says_what_a_learner_needs(notebook):
    cells = read(notebook)["cells"]
    top, everything = text(cells[0]), "\n".join(words_cells(notebook))
    assert "**After this notebook you can**" in top
    header, row = re.search(r"(\| level .*\|)\n\|[-|]+\|\n(\|.*\|)", top).groups()
    assert [name.strip() for name in header.split("|")[1:-1]] == ["level", "to read", "to run", "before this"]
    assert len([said for said in row.split("|")[1:-1] if said.strip()]) == 4
    first = next(i for i, cell in enumerate(cells) if cell["cell_type"] == "code" and ".plot" in text(cell))
    guesses = [i for i, cell in enumerate(cells) if cell["cell_type"] == "markdown" and re.search(r"\*\*(A g|G)uess\b", text(cell))]
    assert guesses and guesses[0] < first, "a guess before the first result"
    missing = [
        part
        for part in ("**Open question", "## Key points", "## On a real model", "## Sources", "What it does not show")
        if part not in everything
    ]
    assert not missing


@each
def test_exercises_are_open_and_wrong_answers_are_listed(notebook):
    found, typical = exercises(read(notebook)), TYPICAL[notebook.stem]
    assert 2 <= len(found) <= 4 and [e.name for e in found] == list(typical)
    assert all(len(some.wrong) >= 2 for some in typical.values())
    cells = read(notebook)["cells"]
    for exercise in found:
        assert wrong_verdict(shown(cells[exercise.cell]), typical[exercise.name].open) is None
        ast.parse(exercise.solved)


def test_no_wrong_answer_is_left_over():
    assert list(TYPICAL) == [notebook.stem for notebook in NOTEBOOKS]


@each
def test_figures_can_be_read_aloud(notebook):
    outputs = [o for cell in code_cells(notebook) for o in cell["outputs"] if "image/png" in o.get("data", {})]
    for output in outputs:
        alt = output["metadata"].get("image/png", {}).get("alt", "")
        assert len(alt) > 20 and "".join(output["data"]["text/plain"]) == alt


# the one execution


def shown(cell: dict) -> str:
    """What the last expression of a cell shows as plain text."""
    return next("".join(o["data"]["text/plain"]) for o in cell["outputs"] if o["output_type"] == "execute_result")


def wrong_verdict(message: str, words: str, begins: str = "Not yet: ") -> str | None:
    """What is wrong with what a check says; None where it begins as it should and has these words."""
    return None if message.startswith(begins) and words in message else f"{message!r}, expected {begins!r} and {words!r}"


# Runs in the notebook before an exercise: its solution, and after that each wrong answer, on copies of the notebook's names.
TRY = """\
def _tried(answered, wrong, check):
    names = dict(globals())
    exec(answered, names)
    for code in ("", *wrong):
        tried = dict(names)
        exec(code, tried)
        print("<verdict>", eval(check, tried), "</verdict>", sep="")


_tried({!r}, {!r}, {!r})
del _tried
"""


def trial(exercise: Exercise, wrong: list[str]) -> str:
    """The code of a cell that tries an exercise and leaves the notebook's names as they are."""
    return TRY.format(exercise.answered, wrong, exercise.check)


def verdicts(printed: str) -> list[str]:
    return re.findall(r"<verdict>(.*?)</verdict>", printed, re.DOTALL)


def test_a_trial_leaves_the_names_as_they_are(capsys):
    from emointerp.exercises import superposition

    book = made_up("answer = None\n\nexercise.break_even(answer)", SOLVED.format("half = 2\nanswer = 4 / 7"))
    names = {"exercise": superposition, "half": 0.5}
    exec(trial(exercises(book)[0], ["answer = 1 - answer", "answer = half"]), names)
    assert {name for name in names if name != "__builtins__"} == {"exercise", "half"} and names["half"] == 0.5
    said = verdicts(capsys.readouterr().out)
    assert [one[:8] for one in said] == ["Right. A", "Not yet:", "Not yet:"] and "sparsity" in said[1] and "2.000" in said[2]


def execute(notebook: Path, folder: Path) -> tuple[nbformat.NotebookNode, list[str]]:
    """A notebook run from top to bottom with a trial before each exercise, and what each trial printed."""
    book = nbformat.read(notebook, as_version=4)
    for exercise in reversed(exercises(book)):
        code = trial(exercise, list(TYPICAL[notebook.stem][exercise.name].wrong))
        book.cells.insert(exercise.cell, nbformat.v4.new_code_cell(code, metadata={"trial": True}))
    NotebookClient(book, timeout=300, record_timing=False, resources={"metadata": {"path": str(folder)}}).execute()
    trials = [cell for cell in book.cells if cell.metadata.get("trial")]
    book.cells = [cell for cell in book.cells if not cell.metadata.get("trial")]
    return book, ["".join(o.text for o in cell.outputs if o.get("name") == "stdout") for cell in trials]


def keep(book: nbformat.NotebookNode, path: Path) -> None:
    """Write an executed notebook as stored ones are: no progress bars, no warnings, no state of widgets, cells counted from 1."""
    book = copy.deepcopy(book)
    book.metadata.pop("widgets", None)
    for count, cell in enumerate((cell for cell in book.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = count
        cell.outputs = [o for o in cell.outputs if o.output_type != "display_data" and o.get("name") != "stderr"]
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)


@each
def test_notebook_runs_again_with_its_exercises(notebook, tmp_path):
    """As stored, no cell fails and no output, widget views included, holds an error; checks hear open, right and wrong answers."""
    book, printed = execute(notebook, tmp_path)
    if folder := os.environ.get("EMOINTERP_EXECUTED"):
        keep(book, Path(folder) / notebook.name)
    states = book.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    held = json.dumps([cell.get("outputs", []) for cell in book.cells]) + json.dumps(states)
    assert '"output_type": "error"' not in held and 'role=\\"alert\\"' not in held
    faults = []
    for exercise, said in zip(exercises(book), printed, strict=True):
        typical, (right, *wrong) = TYPICAL[notebook.stem][exercise.name], verdicts(said)
        faults += [wrong_verdict(shown(book.cells[exercise.cell]), typical.open), wrong_verdict(right, "", "Right. ")]
        faults += [wrong_verdict(one, words) for one, words in zip(wrong, typical.wrong.values(), strict=True)]
    assert not [fault for fault in faults if fault]
