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
import pandas as pd
import pytest
import tiny_families
import torch
from PIL import Image
from tiny_models import picture, random_vlm  # noqa: F401 - a fixture

from emointerp.emotions import named, words_for
from emointerp.errors import InputError, ModelError, OutputError
from emointerp.heads.visual import attention_on
from emointerp.lens import emotion_tokens
from emointerp.models import load
from emointerp.pairs import twin_prompts, world_pairs
from emointerp.start_here import EVENT
from emointerp.statistics import Interval, with_controls
from emointerp.steering import steering_vectors
from emointerp.tour import Job, heads, run, steering
from emointerp.tour.report import _json, _plain
from emointerp.tracing import AddVector, SetHead, perplexity
from emointerp.world import sample

SMALL = {"direction": 24, "selection": 6, "tuning": 12, "test": 6}
FEW = {"selection": 24, "test": 6}


@pytest.fixture(scope="session")
def small_steering():
    """The chapter on steering with fewer pictures and draws."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steering, "PAIRS", SMALL)
        patch.setattr(steering, "DRAWS", 2)
        yield


@pytest.fixture(scope="session")
def small_heads():
    """The chapter on heads with fewer pictures, random sets and neurons."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "PAIRS", FEW)
        patch.setattr(heads, "SETS", 20)
        patch.setattr(heads, "NEURONS", 5)
        yield


@pytest.fixture(scope="session")
def report(tmp_path_factory, small_steering, small_heads):
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


def masses(vlm):
    """Log probability of an emotion's words, next after a prompt, by plain hooks: a function of prompt, emotion and edits."""
    table = emotion_tokens(vlm)

    def log_mass(prompt, emotion, edits=()):
        ids = table.id[table.emotion == emotion].tolist()
        return float(oracle.logits(vlm, prompt, edits).log_softmax(-1)[ids].logsumexp(-1))

    return log_mass


def place(name):
    """A head by its name in the report."""
    return tuple(map(int, name.split(".")))


def test_report_finds_heads_and_tests_them_on_other_pictures(report):
    """The heads are the report's; what they do on the test split is done anew by plain hooks."""
    page, results = report
    told, vlm, html = results["heads"], load(), page.read_text()
    assert len(told["map"]) == 64 and len(told["heads"]) == heads.MOST and set(told["heads"]) <= set(told["passed"])
    effects = [told["map"][name]["effect"]["mean"] for name in told["heads"]]
    assert effects == sorted(effects, reverse=True) and min(effects) > 0
    assert all(told["map"][name]["corrected"] <= 0.05 for name in told["passed"])
    log_mass, gained, gaps, names = masses(vlm), [], [], told["heads"][:2]
    for pair in world_pairs("test", FEW["test"]):
        emotional, neutral = twin_prompts(vlm, pair, "I felt")
        kept = oracle.caches(vlm, emotional)
        last = {layer: kept["heads", layer][-1].unflatten(-1, (vlm.anatomy.n_heads, -1)) for layer in range(vlm.anatomy.n_layers)}
        put = [SetHead(layer, head, last[layer][head]) for layer, head in map(place, told["heads"])]
        own = log_mass(neutral, pair.emotion)
        gaps.append(log_mass(emotional, pair.emotion) - own)
        gained.append([log_mass(neutral, pair.emotion, edits) - own for edits in (put, put[:1], put[1:2])])
    expected = np.mean(gained, 0) / np.mean(gaps)
    test = told["test split"]
    assert test["together"]["restoration"]["effect"]["mean"] == pytest.approx(expected[0], abs=2e-4)
    assert [test["alone"][name]["effect"]["mean"] for name in names] == pytest.approx(expected[1:].tolist(), abs=2e-4)
    assert test["together"]["restoration"]["sets"] == 20 and "20 sets cannot put p below 0.048; notebook 06 draws 100" in html
    assert "Enough: put together into the neutral twins&#39; runs they close" in html and "Not needed: without them" in html


def test_report_looks_where_the_heads_look(report):
    """Attention of a plain eager forward."""
    page, results = report
    told, vlm = results["heads"]["pictures"], load(attn_implementation="eager")
    assert list(told) == [p["picture"] for p in results["start_here"]["pictures"]]
    scene = sample("test", 1, emotions=("fear",))[0].scene
    prompt = vlm.prompt(scene, "I found a <b>letter</b> on the table.", answer="I felt")
    with torch.no_grad():
        attention = vlm.model(**prompt.inputs, use_cache=False, output_attentions=True).attentions
    shown = list(told.values())[2]
    assert list(shown["on the picture"]) == results["heads"]["heads"]
    for name, on in shown["on the picture"].items():
        layer, head = place(name)
        assert on == pytest.approx(float(attention[layer][0, head, -1, list(prompt.visual)].sum()), abs=1e-3)
    assert shown["even"] == pytest.approx(64 / len(prompt), abs=1e-4)
    assert f"would have {shown['even']:.0%} there" in page.read_text()


def test_report_says_what_neurons_write_beside_random_ones(report):
    page, results = report
    told, vlm = results["heads"]["neurons"], load()
    best = told["strongest"][0]
    assert len(told["strongest"]) == 5 and told["name"]["n"] == 5 and 0 < told["random ones"] < 0.5
    vector = vlm.model.get_submodule(f"{vlm.anatomy.layers}.{best['layer']}.mlp.down_proj").weight[:, best["neuron"]]
    with torch.no_grad():
        likely = [vlm.model.lm_head(vlm.model.model.language_model.norm(sign * vector)).argmax() for sign in (1, -1)]
    assert best["words"].split(" (")[0].strip() in [vlm.tokenizer.decode([i]).strip() for i in likely]
    assert f"{told['random ones']:.0%} of random neurons of the same layers do" in page.read_text()


def test_where_pictures_make_no_sure_difference_no_heads_are_tested(random_vlm, small_heads):  # noqa: F811
    chapter = heads.chapter(random_vlm, Job((("noise", picture()),), EVENT))
    assert "no sure difference that heads could bring over, and none were tested" in chapter.summary[0]
    assert chapter.results["heads"] == [] and [title for title, _ in chapter.blocks] == ["noise"]
    on = attention_on(random_vlm, random_vlm.prompt(picture(), EVENT, answer="I felt")).sum(-1)
    shown = chapter.results["pictures"]["noise"]["on the picture"]
    assert list(shown.values()) == pytest.approx(sorted(on.flatten(), reverse=True)[: heads.MOST])
    assert all(on[place(name)] == share for name, share in shown.items())
    json.loads(_json(_plain(chapter.results)), parse_constant=refuse)


def test_where_no_head_passes_the_chapter_says_so_and_ends(small_heads, monkeypatch):
    monkeypatch.setattr(heads, "ALPHA", 0.0)
    chapter = heads.chapter(load(), Job((("noise", picture()),), EVENT))
    assert "None of 64 heads, put alone" in chapter.summary[0] and "no set to check" in chapter.summary[0]
    assert len(chapter.blocks) == 2 and "test split" not in chapter.results and len(chapter.results["map"]) == 64


@pytest.mark.parametrize("family", ["qwen2_5_vl", "gemma3"])
def test_the_whole_chapter_on_random_models_of_other_families(family, small_heads, monkeypatch):
    """Their few words name no joy or disgust, and what they see makes no difference; here both are said to be so."""
    lists = {"joy": ["church"], "disgust": ["teacher"]}
    monkeypatch.setattr("emointerp.lens.words_for", lambda emotion: lists.get(emotion) or words_for(emotion))
    monkeypatch.setattr(heads, "PAIRS", {"selection": 6, "test": 4})
    monkeypatch.setattr(heads, "SETS", 4)
    monkeypatch.setattr(heads, "ALPHA", 1.0)
    monkeypatch.setattr(heads, "_gap", lambda found: Interval(1.0, 0.5, 1.5, 6))
    chapter = heads.chapter(tiny_families.vlm(family), Job((("noise", picture()),), EVENT))
    assert chapter.results["heads"] and set(chapter.results["test split"]["together"]) == set(heads.DONE)
    assert len(chapter.summary) == 5 and len(chapter.blocks) == 5
    json.loads(_json(_plain(chapter.results)), parse_constant=refuse)


@pytest.mark.parametrize(
    ("effects", "words"),
    [
        ([(0.8, 0.6, 0.9, 0.01)], "Enough"),
        ([(0.8, 0.6, 0.9, 0.2)], "No more enough than random heads of these layers"),
        ([(0.3, 0.2, 0.4, 0.01)], "Not enough"),
        ([(0.6, 0.4, 0.8, 0.01)], "Not surely enough"),
        ([(0.8, 0.6, 0.9, 0.01), (0.2, 0.1, 0.3, 0.01)], "Not surely enough"),
    ],
)
def test_what_effects_and_random_sets_say_of_a_set(effects, words):
    rows = [pd.Series({"effect": Interval(*effect, 9), "p": p}) for *effect, p in effects]
    assert heads._verdict("enough", rows) == words


def test_a_set_of_heads_leaves_others_of_its_layers_for_random_sets():
    passed = pd.MultiIndex.from_tuples([(2, 1), (2, 0), (2, 3), (0, 2), (1, 0)], names=["layer", "head"])
    assert heads._with_room(passed, 4) == [(2, 1), (2, 0), (0, 2), (1, 0)]


def test_where_weights_cannot_be_read_neurons_are_left_out(random_vlm, monkeypatch):  # noqa: F811
    def refused(*_, **__):
        raise InputError("Quantised weights cannot be read as vectors; load the model without `bits`.")

    monkeypatch.setattr(heads, "state_neurons", refused)
    neurons = heads._neurons(random_vlm, [], [])
    assert heads._neuron_line(neurons).startswith("Neurons were left out. Quantised weights cannot be read")
    assert heads._neuron_blocks(neurons) == [] and set(heads._neuron_results(neurons)) == {"left out"}


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
