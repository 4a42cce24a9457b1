"""The whole tour on a tiny random model of each family, from the smallest sizes: every chapter runs or says why it cannot."""

import html
import json
import re
import subprocess
import sys

import pytest
import tiny_families

from emointerp.emotions import BASIC, words_for
from emointerp.start_here import EVENT
from emointerp.statistics import Interval
from emointerp.tour import Job, Sizes, heads, lens, run
from emointerp.world import sample

TINIEST = Sizes(
    "tiniest",
    start_here={"test": 7, "conflict": 6},
    superposition={"direction": 40, "test": 24},
    sae={"direction": 49, "selection": 49, "test": 49},
    saliency={"pictures": 2, "copies": 2, "steps": 2, "draws": 1},
    lens={"pictures": 6, "pairs": 2},
    steering={"direction": 12, "selection": 6, "tuning": 6, "test": 6, "layers": 1, "draws": 2},
    heads={"selection": 4, "test": 3, "sets": 4, "neurons": 3},
    veena={"tuning": 2, "conflict": 6, "neutrals": 2, "draws": 1},
)
WORDS = {emotion: words_for(emotion) for emotion in BASIC} | {"joy": ("church",), "disgust": ("teacher",)}
NO_TOKENS = "this model's tokenizer does not tell all six apart by these. No word of disgust, joy begins with a token of its own"


@pytest.fixture
def words(monkeypatch):
    """Words for all emotions in the few that these tokenizers know, and differences where random models show none.

    Figures are drawn, but not written out, which would take longest.
    """
    monkeypatch.setattr("emointerp.lens.words_for", WORDS.__getitem__)
    monkeypatch.setattr("emointerp.tour.chapter.data_uri", lambda figure: "data:,")
    monkeypatch.setattr(heads, "ALPHA", 1.0)
    for module in (heads, lens):
        monkeypatch.setattr(module, "_gap", lambda found: Interval(1.0, 0.5, 1.5, 6))


def told(page):
    """The words of a page."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page.read_text())).split())


@pytest.mark.parametrize("family", tiny_families.NAMES)
def test_every_chapter_runs_on_every_family(family, words, tmp_path):
    scene = sample("test", 1, emotions=("fear",))[0].scene
    page = run([scene], model=tiny_families.vlm(family), out=tmp_path, force=True, size=TINIEST)
    results = json.loads((tmp_path / "results.json").read_text())
    states = {name: state for name, state in results["chapters"].items() if state != "ran"}
    assert states == {"sae": "left out"}
    assert set(results["heads"]["test split"]["together"]) == set(heads.DONE)
    assert (
        set(results["lens"]["roads"]["stages"]) == {"denoising", "noising"} and results["veena"]["circuit"]["upstream"] is not None
    )
    said = told(page)
    assert "No sparse autoencoder comes with the vision tower" in said and "Traceback" not in said
    assert "How this model reads photographs: what is counted are drawings" in said


def test_with_two_layers_three_stages_are_not_looked_for(words, monkeypatch):
    monkeypatch.setattr(tiny_families, "LAYERS", 2)
    vlm = tiny_families.vlm.__wrapped__("llava_clip")
    chapter = lens.chapter(vlm, Job((("fear", sample("test", 1, emotions=("fear",))[0].scene),), EVENT, sizes=TINIEST))
    assert chapter.summary[-1] == "This model has 2 layers, and three stages need three or more: none were looked for."
    assert chapter.results["roads"]["stages"] == {} and set(chapter.results["roads"]["transplants"]["noising"]["V"]) == {"0", "1"}


def test_a_saved_model_from_the_command_line(tmp_path):
    """Nothing is forced here: the tokenizer lacks words, the model reads nothing, and the page says both, with the exit code 0."""
    place = tiny_families.folder("qwen2_vl")
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import test_tour_families as t; t.command()"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_families.__file__).rpartition("/")[0], str(place), str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = told(tmp_path / "out" / "index.html")
    assert said.count(NO_TOKENS) == 3 and "“Heads and neurons” finds, and that one was left out" in said
    assert "Neither is shown: this model does not read the drawn faces" in said


def command():
    """`emointerp tour --model FOLDER --out FOLDER` in a process of its own, with the smallest sizes in place of the quick ones."""
    from emointerp import cli
    from emointerp.tour import report

    folder, out = sys.argv[1:]
    report.NAMED["quick"] = TINIEST
    sys.argv = ["emointerp", "tour", "--model", folder, "--out", out, "--size", "quick"]
    cli.main()
