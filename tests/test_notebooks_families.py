"""Notebook 03 on other models: its own lines, and only the one that loads a model changed, on a tiny random model of each family.

The cell with an autoencoder is left out, as the notebook says. Sizes are smaller, so that it takes seconds.
"""

import ast
import json
from pathlib import Path

import pytest
import tiny_families
from test_tour_families import WORDS

from emointerp.course import exercises

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "03_saliency.ipynb"
LOADS = "vlm = ei.load()"
SMALLER = {'("direction", 350)': '("direction", 42)', '("test", 36': '("test", 6', '("tuning", 24': '("tuning", 4', "n=25": "n=2"}
METHODS = {"smoothgrad", "gradient", "integrated gradients", "grad-cam", "rollout"}


def cells() -> list[str]:
    """The notebook's code with smaller sizes, but for the line that loads and the cell that wants an autoencoder."""
    book = json.loads(NOTEBOOK.read_text())
    sources = ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code"]
    whole = "\n".join(sources)
    assert whole.count(LOADS) == 1 and not [long for long in SMALLER if long not in whole]
    for long, short in SMALLER.items():
        sources = [source.replace(long, short) for source in sources]
    kept = [source for source in sources if "load_sae" not in source]
    assert len(sources) - len(kept) == 1
    return ["\n".join(line for line in source.splitlines() if not line.startswith(LOADS)) for source in kept]


def run(source: str, names: dict):
    """A cell as Jupyter runs it: what its last expression gives."""
    tree = ast.parse(source)
    last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    return eval(compile(last, "<cell>", "eval"), names) if last else None


@pytest.mark.filterwarnings("error:.*left out")
@pytest.mark.parametrize("family", tiny_families.NAMES)
def test_notebook_03_runs_on_every_family_with_one_line_changed(family, monkeypatch):
    monkeypatch.setattr("emointerp.lens.words_for", WORDS.__getitem__)  # joy and disgust in words that these tokenizers know
    names, shown = {"vlm": tiny_families.vlm(family)}, []
    for source in cells():
        shown.append(run(source, names))
        if hasattr(shown[-1], "_repr_png_"):
            assert shown[-1]._repr_png_()[0].startswith(b"\x89PNG")
        elif hasattr(shown[-1], "_repr_html_"):
            assert 'role="alert"' not in shown[-1]._repr_html_()
    assert METHODS < set(names["checked"].methods) and not names["checked"].left_out
    assert names["checked"].table[["deletion", "insertion", "inside", "area"]].notna().all().all()
    assert "left out" not in " ".join(str(some) for some in shown)
    for exercise in exercises(json.loads(NOTEBOOK.read_text()))[:2]:  # the others' answers are the bundled model's
        run(exercise.answered, names)
        assert run(exercise.check, names), exercise.name
    assert names["found"].map.shape == (128, 128) and names["found"].map.max() > 0
