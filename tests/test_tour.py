"""The main job from the outside: what it writes, and the words and exit codes of what it refuses."""

import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import oracle
import pytest
from PIL import Image
from tiny_models import picture, random_vlm  # noqa: F401 - a fixture

from emointerp.emotions import named
from emointerp.errors import InputError, ModelError, OutputError
from emointerp.models import load
from emointerp.pairs import world_pairs
from emointerp.start_here import EVENT
from emointerp.statistics import with_controls
from emointerp.steering import steering_vectors
from emointerp.tour import Job, run, steering
from emointerp.tour.report import _json, _plain
from emointerp.tracing import AddVector, perplexity
from emointerp.world import sample

SMALL = {"direction": 24, "selection": 6, "tuning": 12, "test": 6}


@pytest.fixture(scope="session")
def small_steering():
    """The chapter on steering with fewer pictures and draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steering, "PAIRS", SMALL)
        patch.setattr(steering, "DRAWS", 2)
        yield


@pytest.fixture(scope="session")
def report(tmp_path_factory, small_steering):
    """One tour for several tests: a drawn picture from a file, a photograph, and a name that needs escaping."""
    from skimage import data

    folder = tmp_path_factory.mktemp("tour")
    photo, drawn = folder / "astronaut.png", folder / "<script>alert(1)</script>.png".replace("/", "_")
    Image.fromarray(data.astronaut()).save(photo)
    sample("test", 1, emotions=("joy",))[0].scene.image().save(drawn)
    page = run(
        [photo, drawn, sample("test", 1, emotions=("fear",))[0].scene],
        event="I found a <b>letter</b> on the table.",
        out=folder / "out",
    )
    return page, json.loads((page.parent / "results.json").read_text())


def test_report_is_one_offline_page(report):
    page, _ = report
    html = page.read_text()
    assert sorted(p.name for p in page.parent.iterdir()) == ["index.html", "results.json"]
    assert "http:" not in html and "https:" not in html
    assert html.count("data:image/png;base64,") >= 5
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "<b>letter</b>" not in html and "&lt;b&gt;letter" in html


def test_report_is_unsure_of_a_photograph_and_not_of_its_own_world(report):
    page, results = report
    photo, drawn, scene = results["start_here"]["pictures"]
    assert photo["percentile"] > 95 and photo["times the typical distance"] > 1.2
    assert drawn["percentile"] < 95 and scene["percentile"] < 95
    assert "Unsure: astronaut.png lies far" in page.read_text()


def test_report_reads_the_pictures_layer_by_layer(report):
    _, results = report
    lens = results["lens"]
    assert list(lens["pictures"]) == [p["picture"] for p in results["start_here"]["pictures"]]
    assert [row["layer"] for row in lens["pictures"]["astronaut.png"]["layers"]] == list(range(8))
    last = lens["test split"]["7"]
    assert last["pictured"]["n"] == 60 and last["pictured"]["low"] > lens["test split"]["0"]["pictured"]["high"]
    assert last["pictured"]["low"] > last["twin"]["high"]


def test_report_pushes_the_stories_of_the_pictures(report):
    """Layer and strengths are the report's; the direction and the story are made anew, the story by plain hooks."""
    page, results = report
    steered, vlm = results["steering"], load()
    assert list(steered["pictures"]) == [p["picture"] for p in results["start_here"]["pictures"]]
    assert steered["layer"] == max(range(8), key=lambda i: steered["layers"][str(i)])
    S = steering_vectors(vlm, world_pairs("direction", SMALL["direction"]), answer="I felt", progress=False).sharpened(2)
    scene, told = sample("test", 1, emotions=("fear",))[0].scene, list(steered["pictures"].values())[2]
    prompt = vlm.prompt(scene, "I found a <b>letter</b> on the table.")
    assert {e for e, alpha in steered["alphas"].items() if alpha} == set(told["pushed"]) != set()
    layer, alphas, named_before = steered["layer"], steered["alphas"], named(told["story"])
    for emotion, pushed in list(told["pushed"].items())[:2]:
        vector = alphas[emotion] * S[emotion, layer] - sum(alphas[o] * S[o, layer] for o in named_before if o != emotion)
        ids = oracle.tokens(vlm, prompt, [AddVector(layer, vector)], n=steering.TOKENS)
        assert pushed["story"] == vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert pushed["names"] == list(named(pushed["story"]))
        both = perplexity(vlm, prompt, [pushed["story"], told["story"]])
        assert pushed["times the perplexity"] == pytest.approx(both[0] / both[1], rel=1e-2)
    assert "pushed towards" in page.read_text()


def test_report_tests_the_push_beside_controls(report):
    page, results = report
    test, html = results["steering"]["test split"], page.read_text()
    assert test["clean"]["n"] == SMALL["test"] and list(test["controls"]) == list(steering.CONTROLS)
    gain = test["clean"]["mean"] - test["clean without a push"]["mean"]
    gap = test["clean goal"]["mean"] - test["clean without a push"]["mean"]
    assert test["plain"]["mean"] == pytest.approx(gain, abs=1e-3) and test["C"]["mean"] == pytest.approx(gain / gap, abs=1e-3)
    for name, control in test["controls"].items():
        assert control["less"]["mean"] == pytest.approx(gain - control["value"]["mean"], abs=1e-3)
        assert f"{name} {control['value']['mean']:.0%} [" in html
    assert set(test["names"]) == set(test["towards"]) == {e for e, alpha in results["steering"]["alphas"].items() if alpha}


def test_steering_of_a_model_whose_stories_name_nothing(random_vlm, small_steering):  # noqa: F811
    chapter = steering.chapter(random_vlm, Job((("noise", picture()),), EVENT))
    assert "no story of its pictures names it" in chapter.summary[0]
    assert chapter.results["directions"]["tau"] == -1 and sum(chapter.results["directions"]["pairs"].values()) == 24
    json.loads(_json(_plain(chapter.results)), parse_constant=refuse)


def test_where_no_push_helps_the_chapter_says_so_and_ends(small_steering, monkeypatch):
    monkeypatch.setattr(steering, "ALPHAS", {"selection": (0.0,), "tuning": (0.0,)})
    chapter = steering.chapter(load(), Job((("noise", picture()),), EVENT))
    assert chapter.summary[-1].endswith("there is nothing to test, and the pictures' stories were left alone.")
    assert chapter.results["layer"] is None and "test split" not in chapter.results and len(chapter.blocks) == 1


@pytest.mark.parametrize(
    ("effect", "drawn", "words"),
    [
        (1, (0, 0), "No drawn direction gains as much"),
        (1, (1, 0), "not clearly above random (1 of 2 draws gain as much)"),
        (0, (0, 0), "This gain could be chance"),
    ],
)
def test_what_the_controls_leave_of_a_gain(effect, drawn, words, small_steering):
    table = with_controls(np.full(20, effect), {"random": [np.full(20, x) for x in drawn]})
    assert words in steering._verdict(table)


def test_results_are_json_for_strict_readers():
    assert _plain({"a": [float("nan"), 0.12345], "b": float("inf")}) == {"a": [None, 0.1235], "b": None}


def test_report_has_twins_of_scenes_only_and_intervals(report):
    _, results = report
    photo, _, scene = results["start_here"]["pictures"]
    assert photo["twin's story"] is None and scene["twin's story"]
    rate = results["start_here"]["test split"]["hit rate"]
    assert rate["low"] <= rate["mean"] <= rate["high"] and rate["n"] == 120
    shares = results["start_here"]["see or guess"]["named"]
    assert all(abs(sum(row.values()) - 1) < 1e-3 for row in shares.values())


BAD = {
    "missing": (["--image", "nowhere.png"], 2, "No such picture: nowhere.png"),
    "not an image": (["--image", "text.png"], 2, "not a picture that Pillow can read"),
    "empty file": (["--image", "empty.png"], 2, "is empty (0 bytes)"),
    "truncated": (["--image", "cut.png"], 2, "damaged or cut off"),
    "bomb": (["--image", "bomb.png"], 2, "unpacks to too many pixels"),
    "empty event": (["--event", "  "], 2, "The event is empty"),
    "endless event": (["--event", "a " * 50_000], 2, "at most 2,000 are read"),
    "unknown model": (["--model", "tinny"], 3, "Nearest known names: tiny"),
    "out is taken": (["--out", "taken"], 4, "exists and is not empty"),
    "out is a file": (["--out", "text.png"], 4, "is a file; --out expects a folder"),
}


def png_of_size(width, height):
    """A PNG that says it is that large, without the pixels."""
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + zlib.compress(b"few"), b"IEND"]
    packed = [struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.fixture
def bad_files(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.effect_noise((200, 200), 60).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:9000])
    (tmp_path / "bomb.png").write_bytes(png_of_size(20_000, 20_000))
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").write_text("keep me")
    return tmp_path


def command(*arguments, folder, **options):
    return subprocess.run(
        [sys.executable, "-m", "emointerp.cli", *arguments], cwd=folder, capture_output=True, text=True, **options
    )


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_words(case, bad_files):
    arguments, code, words = BAD[case]
    before = sorted(bad_files.rglob("*"))
    done = command("tour", *arguments, folder=bad_files)
    assert done.returncode == code, done.stderr
    assert words in done.stderr and "Traceback" not in done.stderr
    assert sorted(bad_files.rglob("*")) == before


def test_no_permission_is_refused_before_the_work(tmp_path, monkeypatch):
    """Root may write anywhere, so the question to the system is answered for it here."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutputError, match="No permission to write in"):
        run(out=tmp_path / "report")
    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(OutputError, match="No permission to write in"):
        run(out=tmp_path / "report")


def refuse(*_):
    raise PermissionError


def test_the_same_refusals_in_python(tmp_path):
    with pytest.raises(InputError, match="No such picture"):
        run([tmp_path / "no.png"])
    with pytest.raises(ModelError, match="Cannot open the model 'llava-1.5-7b'"):
        run(model="llava-1.5-7b", out=tmp_path / "a")


def test_force_replaces_the_report_and_nothing_else(bad_files, monkeypatch):
    monkeypatch.setattr("emointerp.tour.report.CHAPTERS", ())
    page = bad_files / "taken" / "index.html"
    page.write_text("an old report")
    with pytest.raises(OutputError, match="exists and is not empty"):
        run(out=bad_files / "taken")
    assert page.read_text() == "an old report"
    run(out=bad_files / "taken", force=True)
    assert (bad_files / "taken" / "mine.txt").read_text() == "keep me"
    assert "an old report" not in page.read_text()


def test_equal_names_are_numbered(bad_files):
    from emointerp.tour.report import _named

    assert [name for name, _ in _named(["a/x.png", "b/x.png", "y.png"])] == ["x.png (1)", "x.png (2)", "y.png"]


def test_interrupt_leaves_nothing_behind(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-m", "emointerp.cli", "tour", "--out", "report"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell would have it ignored
    )
    said = ""
    while "stories" not in said and process.poll() is None:  # a progress bar ends no line
        said += process.stderr.read(1)
    process.send_signal(signal.SIGINT)
    words = process.communicate(timeout=60)[1]
    assert process.returncode == 130, words
    assert "emointerp: Stopped." in words
    assert not list(Path(tmp_path).iterdir())
