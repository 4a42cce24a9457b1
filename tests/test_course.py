"""The notebooks on a reader's disk, and the stored notebooks themselves."""

import json
import subprocess
import sys

import pytest

from emointerp.course import copy_notebooks, source
from emointerp.errors import OutputError

NOTEBOOKS = sorted(source().glob("*.ipynb"))


def test_copies_are_made_once_and_never_overwritten(tmp_path):
    first = copy_notebooks(tmp_path / "mine")
    assert first.name == "00_start_here.ipynb" and first.exists()
    first.write_text("my notes")
    copy_notebooks(tmp_path / "mine")
    assert first.read_text() == "my notes"


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write the notebooks to"):
        copy_notebooks(tmp_path / "file" / "below")


def test_lab_copies_and_says_how_to_open(tmp_path):
    command = [sys.executable, "-m", "emointerp.cli", "lab", "course", "--no-browser"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and "jupyter lab course/00_start_here.ipynb" in done.stdout
    assert (tmp_path / "course" / "00_start_here.ipynb").exists()


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_stored_notebook_was_run_top_to_bottom_without_errors(notebook):
    cells = [c for c in json.loads(notebook.read_text())["cells"] if c["cell_type"] == "code"]
    assert [c["execution_count"] for c in cells] == list(range(1, len(cells) + 1))
    outputs = [o for c in cells for o in c["outputs"]]
    assert not [o for o in outputs if o["output_type"] == "error"]
    assert 'role=\\"alert\\"' not in notebook.read_text()
    figures = [c for c in cells if "".join(c["source"]).rstrip().endswith((".plot()", "columns=8)", "columns=6)"))]
    assert figures and all("image/png" in o["data"] for c in figures for o in c["outputs"] if o["output_type"] == "execute_result")
    panels = [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {}) and "Panel" in str(o["data"])]
    assert all("text/html" in o["data"] for o in panels)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_again(notebook, tmp_path):
    """Re-executed as stored; no cell fails and no output, widget views included, holds an error."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(notebook, as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    states = book.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    held = json.dumps([c.get("outputs", []) for c in book.cells]) + json.dumps(states)
    assert '"output_type": "error"' not in held and 'role=\\"alert\\"' not in held
