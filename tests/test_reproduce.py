"""One command for a paper: every step on a tiny random model, stopped and killed at random moments, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import test_mer_unibench
import tiny_families
import torch
from PIL import Image
from safetensors.torch import load_file

from emointerp import reproduce
from emointerp.cli import main
from emointerp.emotions import BASIC, hit_rate, words_for
from emointerp.errors import EmointerpError, InputError, OutputError
from emointerp.evaluation.items import CONFLICT
from emointerp.evaluation.mer_unibench import SETS
from emointerp.files import alone
from emointerp.flow import Flow
from emointerp.heads.kept import Kept
from emointerp.pairs import TABLE, Pair, fingerprint, save_pairs, world_pairs
from emointerp.reproduce import kept, layers, mending, roads, runner, sizes
from emointerp.reproduce import task as task_module
from emointerp.reproduce.claims import comparison, digest
from emointerp.reproduce.kept import STAMP, Parts, Result, Steps, from_parquet
from emointerp.reproduce.layers import _chosen, stage_gains
from emointerp.reproduce.material import ROLES, WORLD, Material, from_table
from emointerp.reproduce.runner import Walk
from emointerp.reproduce.sizes import Sizes, stages, work
from emointerp.reproduce.task import Task
from emointerp.statistics import Interval
from emointerp.steering import Steering
from emointerp.tour.chapter import Chapter, left_out
from emointerp.tracing.overflow import Overflow

FAMILY = "llava_clip"
TWO = ("joy", "fear")
N = {"direction": 4, "selection": 4, "tuning": 2, "test": 4}
TINIEST = Sizes(
    "tiniest", N, layers=3, alphas=(1.0,), draws=1, swept=4, flow=2, heads=4, sets=3, neurons=3, betas=(1.0, 4.0),
    gammas=(1.0, 2.0), tuned=False, items=6, seeds=2, cases=2, tokens=6,
)  # fmt: skip
WORDS = {emotion: words_for(emotion) for emotion in BASIC} | {"joy": ("church",), "disgust": ("teacher",)}
NAMES = [step.NAME for step in reproduce.STEPS]
NOT_COMPARED = {"seconds"}  # of an answer: how long it took


def write_pairs(folder):
    """Two emotions, four splits; an event with HTML in it."""
    pairs = [pair for role in ROLES for pair in world_pairs(role, N[role], emotions=TWO)]
    save_pairs([replace(pairs[0], event="I found a <b>letter</b> on my own table."), *pairs[1:]], folder)
    return folder


def counted(monkeypatch, stop=None, at=-1):
    """`stop()` after the `at`-th thing that is kept: a part, or a step."""
    count = iter(range(10_000))
    for owner, name in ((Parts, "once"), (Steps, "write")):
        original = getattr(owner, name)

        def wrapped(*args, original=original):
            found = original(*args)
            if next(count) == at:
                stop()
            return found

        monkeypatch.setattr(owner, name, wrapped)
    return count


def smaller(patch):
    """Words for all emotions in the few that these tokenizers know, parts of two pairs, one drawn set."""
    patch.setattr("emointerp.lens.words_for", WORDS.__getitem__)
    patch.setattr("emointerp.tour.chapter.data_uri", lambda figure: "data:,")  # to write figures out would take longest
    patch.setattr(kept, "AT_ONCE", 2)
    patch.setattr(mending, "ASKED", (CONFLICT,))


@pytest.fixture(scope="module")
def words():
    with pytest.MonkeyPatch.context() as patch:
        smaller(patch)
        yield


@pytest.fixture(scope="module")
def counted_run(tmp_path_factory, words):
    """A run that nothing stops: its pairs, its folder, and how often it keeps something."""
    root = tmp_path_factory.mktemp("reproduce")
    pairs = write_pairs(root / "<img src=x onerror=alert(1)>")
    with pytest.MonkeyPatch.context() as patch:
        count = counted(patch)
        again(pairs, root / "out")
    return pairs, root / "out", next(count)


@pytest.fixture(scope="module")
def whole_run(counted_run):
    """Its pairs and its folder."""
    return counted_run[:2]


@pytest.fixture
def no_page(monkeypatch):
    """Nothing is drawn."""
    monkeypatch.setattr(runner, "_chapter", lambda task, step, *rest: left_out(step.NAME, step.TITLE, "not drawn"))


def again(pairs, out, **options):
    return reproduce.run(tiny_families.vlm(FAMILY), pairs, out=out, **{"size": TINIEST} | options)


def content(out):
    """All that the steps of a folder hold, but for how long things took."""
    found = {}
    for place in sorted((out / "steps").iterdir()):
        assert not list(place.glob("parts-*")), "parts of a finished step are left"
        stamp = json.loads((place / STAMP).read_text())
        for name in stamp["files"]:
            found[place.name, name] = place / name
    return found


def assert_equal(one, other):
    a, b = content(one), content(other)
    assert a.keys() == b.keys() and len({step for step, _ in a}) == len(NAMES)
    for key, file in a.items():
        if file.suffix == ".parquet":
            x, y = (from_parquet(f).drop(columns=NOT_COMPARED, errors="ignore") for f in (file, b[key]))
            pd.testing.assert_frame_equal(x, y, check_exact=True, obj=str(key))
        elif file.suffix == ".safetensors":
            x, y = load_file(file), load_file(b[key])
            assert x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x), key
        else:
            assert file.read_text() == b[key].read_text(), key


# what a run finds


def test_every_step_runs_and_is_kept_with_its_stamp(whole_run):
    _, out = whole_run
    results = json.loads((out / "results.json").read_text())
    assert results["chapters"] == dict.fromkeys(NAMES, "ran")
    places = sorted(p.name for p in (out / "steps").iterdir())
    assert places == [f"{i:02}-{name}" for i, name in enumerate(NAMES, 1)]
    stamp = json.loads((out / "steps" / "06-heads" / STAMP).read_text())
    assert set(stamp["stands on"]["upstream"]) == {"vectors", "layers"} and stamp["stands on"]["pairs"]["n"] == sum(N.values())
    assert len(stamp["stands on"]["model"]["weights"]) == 64 and stamp["stands on"]["sizes"]["name"] == "tiniest"


def test_directions_are_means_of_differences_of_pairs_that_pass(whole_run):
    _, out = whole_run
    place = out / "steps" / "02-vectors"
    tensors, stories = load_file(place / "tensors.safetensors"), pd.read_parquet(place / "stories.parquet")
    facts = json.loads((place / "facts.json").read_text())["facts"]
    mine = stories[stories.side == "emotional"]
    assert [hit_rate(row.story, row.emotion) for row in mine.itertuples()] == mine.hit.tolist()
    kept_pairs = mine.hit > 0.5 if facts["tau"] > 0 else mine.hit >= 0
    for emotion, vector in zip(facts["emotions"], tensors["vectors"], strict=True):
        rows = np.flatnonzero((mine.emotion == emotion) & kept_pairs)
        torch.testing.assert_close(vector, tensors["differences"][rows].mean(0))


def test_methods_answer_both_sides_of_the_readers_pairs_with_every_seed(whole_run):
    pairs, out = whole_run
    table = from_parquet(out / "steps" / "08-veena" / "answers.parquet")
    own = table[table.set == mending.OWN]
    test = [row for row in from_table(pairs).pairs if row.split == "test"]
    assert own[(own.method == "none") & (own.seed == 0)].gold.tolist() == [p.emotion for p in from_table(pairs).of("test")]
    assert len(own) == own.method.nunique() * 2 * len(test)
    assert {"none", "emotion prompt", "VEENA", "steering", "vaf", "pai", "vcd"} <= {*own.method, *own.method.str.lower()} | {
        "VEENA"
    }


def test_the_page_is_escaped_and_shows_the_digest_beside_what_was_found(whole_run):
    _, out = whole_run
    page, claims = (out / "index.html").read_text(), pd.read_csv(out / "digest.csv")
    assert "<img src=x" not in page and "&lt;img src=x onerror=alert(1)&gt;" in page
    assert "<b>letter</b>" not in page and "http:" not in page and "https:" not in page and "<script" not in page
    assert "The paper says (unverified digest)" in page and "Traceback" not in page
    assert claims.says.str.contains("48.9%").sum() == 1 and "48.9%" in page
    assert all(f'id="{name}"' in page for name in NAMES)
    measured = claims[claims.comparable.notna()]
    assert len(measured) >= 15 and measured.comparable.str.startswith("no: ").all()


def test_a_second_run_measures_nothing_and_makes_the_same_page(whole_run, monkeypatch):
    pairs, out = whole_run
    before, page = content(out), (out / "index.html").read_text()
    for step in reproduce.STEPS:
        monkeypatch.setattr(step, "measure", lambda task: pytest.fail("measured again"))
    again(pairs, out)
    assert content(out) == before and (out / "index.html").read_text() == page


# stopped, killed, damaged


def interrupted():
    raise KeyboardInterrupt


def test_stopped_at_two_random_moments_it_ends_with_the_same(counted_run, no_page, tmp_path, monkeypatch):
    pairs, out, total = counted_run
    rng = np.random.default_rng(int.from_bytes(os.urandom(4)))
    for at in (moments := [int(rng.integers(1, total // 2)), int(rng.integers(1, total // 4))]):
        with monkeypatch.context() as patch:
            counted(patch, interrupted, at)
            with pytest.raises(KeyboardInterrupt):
                again(pairs, tmp_path / "out")
        assert not (tmp_path / "out" / "index.html").exists(), moments
    again(pairs, tmp_path / "out")
    assert_equal(out, tmp_path / "out")


def test_killed_at_a_random_moment_it_ends_with_the_same(counted_run, no_page, tmp_path):
    pairs, out, total = counted_run
    at = str(np.random.default_rng(int.from_bytes(os.urandom(4))).integers(total // 4, total))
    code = "import sys; sys.path.insert(0, sys.argv.pop(1)); import test_reproduce as t; t.command()"
    asked = [sys.executable, "-c", code, str(Path(__file__).parent), str(pairs), str(tmp_path / "out"), at]
    done = subprocess.run(asked, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    again(pairs, tmp_path / "out")
    assert_equal(out, tmp_path / "out")


def command():
    """A run in a process of its own that kills itself after so many parts and steps were kept."""
    pairs, out, at = sys.argv[1:]
    with pytest.MonkeyPatch.context() as patch:
        smaller(patch)
        counted(patch, lambda: os.kill(os.getpid(), signal.SIGKILL), int(at))
        again(Path(pairs), Path(out))


@pytest.fixture
def copied(whole_run, tmp_path):
    """The finished run once more, to be damaged."""
    import shutil

    shutil.copytree(whole_run[1], tmp_path / "copy")
    return whole_run[0], tmp_path / "copy"


def test_only_what_is_damaged_is_done_again(copied, no_page, monkeypatch):
    pairs, out = copied
    file, done = out / "steps" / "04-lens" / "read.parquet", []
    file.write_bytes(file.read_bytes()[:-7])
    (out / "steps" / "05-flow" / STAMP).unlink()
    for step in reproduce.STEPS:
        original = step.measure
        monkeypatch.setattr(step, "measure", lambda task, original=original, name=step.NAME: done.append(name) or original(task))
    with pytest.warns(UserWarning, match="04-lens: read.parquet changed or gone; this step is done again"):
        again(pairs, out)
    assert done == ["lens", "flow"]


def test_a_step_done_again_with_other_numbers_takes_those_that_stand_on_it_along(copied):
    pairs, out = copied
    steps = Steps(out / "steps")
    walk = Walk(Task(tiny_families.vlm(FAMILY), from_table(pairs), TINIEST), steps)
    found, by_name = {}, {step.NAME: step for step in reproduce.STEPS}
    for name in ("pairs", "vectors", "layers"):
        found[name] = walk.kept(by_name[name], found)
    assert walk.kept(by_name["heads"], found) is not None
    stamp = steps.stamp("03-layers")
    other = replace(found["layers"], facts=dict(found["layers"].facts) | {"l_emo": 0, "alpha": 9.0})
    steps.write("03-layers", stamp["stands on"], other, 0.0)
    assert walk.kept(by_name["heads"], found) is None and walk.kept(by_name["vectors"], found) is not None


def test_an_error_in_a_step_leaves_the_others_and_is_mended_by_the_next_run(copied, monkeypatch):
    pairs, out = copied
    (out / "steps" / "05-flow" / STAMP).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(roads, "measure", lambda task: 1 / 0)
        with pytest.raises(EmointerpError, match=r"Stopped by an error: Information flow \(ZeroDivisionError: .*What others found"):
            again(pairs, out)
    states = json.loads((out / "results.json").read_text())["chapters"]
    assert states == dict.fromkeys(NAMES, "ran") | {"flow": "stopped"} and "stopped by an error" in (out / "index.html").read_text()
    again(pairs, out)
    assert json.loads((out / "results.json").read_text())["chapters"]["flow"] == "ran"


def test_a_function_check_killed_as_it_begins_or_goes_on_leaves_no_half_of_a_file(tmp_path, monkeypatch):
    """Before, the settings went into an emptied file: killed there, the next run found no settings and refused to go on."""
    file, settings = tmp_path / "check.jsonl", {"seed": 0}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", lambda *args, **kwargs: interrupted())
        with pytest.raises(KeyboardInterrupt):
            Kept(file, settings)
    assert not file.exists()
    Kept(file, settings).add({"value": [1.0]})
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *args: interrupted())
        with pytest.raises(KeyboardInterrupt):
            Kept(file, settings)
    assert Kept(file, settings).rows == [{"value": [1.0]}]


def overflowing(*args, **options):
    raise Overflow("Numbers are not finite in layer 1.")


def test_what_a_models_error_left_out_is_tried_again_and_only_that(whole_run, copied, no_page, monkeypatch):
    """An InputError is a finding and stays; what was made is read from its parts, which go when nothing is lacking."""
    pairs, out = copied
    place, steps = out / "steps" / "05-flow", Steps(out / "steps")
    (place / STAMP).unlink()
    with monkeypatch.context() as patch:
        patch.setattr(roads, "knockouts", overflowing)
        again(pairs, out)
    assert steps.stamp("05-flow")["unfinished"] and len(list(place.glob("parts-*"))) == 1
    facts = json.loads((place / "facts.json").read_text())["facts"]
    assert facts["again"] == ["windows", "cut"] == list(facts["left out"]) and "not finite in layer 1" in facts["left out"]["cut"]
    assert not (place / "cut.parquet").exists() and (place / "saliency.parquet").exists()
    assert reproduce.plan(str(tiny_families.folder(FAMILY)), pairs, out=out, size=TINIEST).finished["flow"] == "in part"
    lines = task_module.lines_left_out(facts)
    assert lines[1] == "Left out, cut: Numbers are not finite in layer 1. The next run tries it again."
    stamp = (place / STAMP).read_text()
    with monkeypatch.context() as patch:
        patch.setattr(roads, "knockouts", overflowing)
        again(pairs, out)  # fails alike: what is kept stays as it is
        assert (place / STAMP).read_text() == stamp
    for name in ("information_flow", "patching"):
        monkeypatch.setattr(roads, name, lambda *args, name=name, **options: pytest.fail(f"{name} was measured again"))
    again(pairs, out)
    assert_equal(whole_run[1], out)
    assert not steps.stamp("05-flow")["unfinished"] and not list(place.glob("parts-*"))


def test_cases_do_not_wait_for_veena_and_show_it_where_it_is(copied, monkeypatch):
    pairs, out = copied
    assert runner._wanted(["cases"]) == {"pairs", "vectors", "layers", "heads", "cases"}
    with monkeypatch.context() as patch:
        for step in reproduce.STEPS:
            patch.setattr(step, "measure", lambda task: pytest.fail("measured again"))
        again(pairs, out, only=["cases"])
    assert "<th>with VEENA</th>" in (out / "index.html").read_text()
    (out / "steps" / "08-veena" / STAMP).unlink()
    monkeypatch.setattr(mending, "measure", lambda task: pytest.fail("VEENA was not asked for"))
    again(pairs, out, only=["cases"])
    results, page = json.loads((out / "results.json").read_text()), (out / "index.html").read_text()
    assert results["chapters"]["cases"] == "ran" and results["chapters"]["veena"] == "left out"
    assert {row["method"] for row in results["cases"]["stories"]} == {"as it is", "pushed"}
    assert "<th>with VEENA</th>" not in page and "VEENA is not among them" in page


def test_versions_are_noted_and_told_where_they_differ_and_nothing_is_done_again(copied, monkeypatch):
    pairs, out = copied
    results = json.loads((out / "results.json").read_text())
    (said,) = results["versions"]
    assert said == f"torch {version('torch')} and transformers {version('transformers')}" and results["versions"][said] == NAMES
    assert said in (out / "index.html").read_text() and "Beware" not in (out / "index.html").read_text()
    file = out / "steps" / "02-vectors" / STAMP
    stamp = json.loads(file.read_text())
    file.write_text(json.dumps(stamp | {"versions": {"torch": "1.0", "transformers": "4.0"}}))
    for step in reproduce.STEPS:
        monkeypatch.setattr(step, "measure", lambda task: pytest.fail("measured again"))
    again(pairs, out)
    page = (out / "index.html").read_text()
    assert "<b>Beware</b>: Steps were measured with different versions" in page
    assert "torch 1.0 and transformers 4.0 (vectors)" in page
    assert json.loads((out / "results.json").read_text())["versions"]["torch 1.0 and transformers 4.0"] == ["vectors"]


# whose folder it is


def test_a_second_run_in_a_folder_is_refused_before_a_model_is_loaded(tmp_path):
    with alone(tmp_path / "out"), pytest.raises(OutputError, match="Another run is at work in .*out"):
        reproduce.run("no/such-model", out=tmp_path / "out", size="quick")


def test_a_folder_of_another_run_is_left_alone_and_with_force_done_again(copied, tmp_path):
    pairs, out = copied
    before = content(out)
    other = tmp_path / "pairs"
    save_pairs([replace(pair, event="I counted the same seven buttons twice.") for pair in from_table(pairs).pairs], other)
    with pytest.raises(OutputError, match=r"another run: of 14 other pairs than the 14 that came\. Nothing was .*add --force"):
        again(other, out)
    with pytest.raises(OutputError, match="of size tiniest, and this is quick"):
        again(pairs, out, size="quick")
    with pytest.raises(OutputError, match="another run: of the model llava with other weights, prompts or precision"):
        reproduce.run(tiny_families.vlm("llava_siglip"), pairs, out=out, size=TINIEST)
    assert content(out) == before
    again(other, out, force=True, only=["pairs"])
    states = json.loads((out / "results.json").read_text())["chapters"]
    assert states == {"pairs": "ran"} | dict.fromkeys(NAMES[1:], "left out")


def test_folders_that_cannot_be_used(tmp_path, whole_run):
    pairs, _ = whole_run
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file is a file; --out expects a folder"):
        again(pairs, tmp_path / "file")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="mine is not empty and holds no reproduction; nothing was written"):
        again(pairs, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    (tmp_path / "mine" / "run.json").write_text("{}")
    with pytest.raises(OutputError, match="run.json is damaged or of something else"):
        again(pairs, tmp_path / "mine")


def test_what_is_asked_for_and_does_not_exist(tmp_path, whole_run):
    pairs, _ = whole_run
    with pytest.raises(InputError, match=r"No table of pairs at .*nowhere"):
        again(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(InputError, match="There is no step 'head'; there are pairs, vectors, layers, lens, flow, heads"):
        again(pairs, tmp_path / "out", only=["head"])
    with pytest.raises(InputError, match="size is 'huge'; expected full or quick"):
        again(pairs, tmp_path / "out", size="huge")
    with pytest.raises(InputError, match="MER-UniBench|no set"):
        again(pairs, tmp_path / "out", data=tmp_path)
    assert not (tmp_path / "out").exists()


def test_the_command_line_asks_for_the_same(monkeypatch, capsys, tmp_path, whole_run):
    pairs, out = whole_run
    asked = []
    monkeypatch.setattr(reproduce, "run", lambda *given, **options: asked.append((given, options)) or "page")
    monkeypatch.setattr(
        sys, "argv", f"emointerp reproduce veena --pairs a --out {out} --size quick --only heads --only flow --force".split()
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0 and "Page: page" in capsys.readouterr().out
    assert asked == [
        (
            ("tiny", Path("a"), None, out),
            {"size": "quick", "only": ["heads", "flow"], "force": True, "device": None, "dtype": "auto"},
        )
    ]
    monkeypatch.undo()
    monkeypatch.setattr(sys, "argv", ["emointerp", "reproduce", "veena", "--pairs", str(tmp_path), "--out", str(tmp_path / "o")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2 and "No table of pairs at" in capsys.readouterr().err
    monkeypatch.setitem(sizes.NAMED, "tiniest", TINIEST)
    folder, asked = str(tiny_families.folder(FAMILY)), ["--pairs", str(pairs), "--size", "tiniest", "--only", "layers"]
    monkeypatch.setattr(sys, "argv", ["emointerp", "reproduce", "veena", "--plan", "--model", folder, "--out", str(out), *asked])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().out
    assert "A100 80 GB" in said and said.count("yes") == 3 and "test 4 of 4" in said and "heads" not in said


# a model without the words


def test_what_a_model_cannot_do_is_told_and_the_rest_goes_on(tmp_path, whole_run, monkeypatch):
    """Nothing is patched: the tokenizer has no first token for joy's words, which the lens needs and maps of directions do not."""
    pairs, _ = whole_run
    monkeypatch.setattr("emointerp.lens.words_for", words_for)
    again(pairs, tmp_path / "out", only=["heads", "lens"])
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    expected = dict.fromkeys(("pairs", "vectors", "layers", "heads"), "ran") | dict.fromkeys(
        ("flow", "neurons", "veena", "cases", "lens"), "left out"
    )
    assert results["chapters"] == expected
    assert results["lens"]["left out"].startswith("Left out: No word of disgust, joy begins with a token of its own")
    assert results["flow"]["left out"].startswith("Not asked for: this run was of pairs, vectors, layers, lens, heads")
    assert set(results["heads"]["check"]) == {"mean-ablation", "resample-ablation", "restoration"}
    stamp = Steps(tmp_path / "out" / "steps").stamp("06-heads")
    assert not stamp["unfinished"] and not list((tmp_path / "out" / "steps" / "06-heads").glob("parts-*"))


# the pairs


def told(folder, **columns):
    """A table of world pairs with other columns."""
    table = pd.read_csv(save_pairs(world_pairs("direction", 24), folder))
    table.assign(**columns).to_csv(folder / TABLE, index=False)
    return folder


def test_pairs_without_splits_are_parted_so_that_no_picture_stands_in_two_parts(tmp_path):
    folder = told(tmp_path / "a", split="")
    table = pd.read_csv(folder / TABLE)
    table.loc[7, "neutral"] = table.loc[1, "neutral"]  # two pairs of one emotion share a twin
    table.to_csv(folder / TABLE, index=False)
    found = from_table(folder)
    assert found.to_frame().sum().to_dict() == pytest.approx({"direction": 9.6, "selection": 4.8, "tuning": 3.6, "test": 6}, abs=3)
    assert (found.to_frame()["direction"] >= 1).all() and len(found.pairs) == 24
    by_picture = {}
    for pair in found.pairs:
        for side in (pair.emotional, pair.neutral):
            by_picture.setdefault(Path(side).read_bytes(), set()).add(pair.split)
    assert {len(splits) for splits in by_picture.values()} == {1}
    assert "parted here, by picture" in " ".join(found.said)


def test_a_tables_own_splits_are_kept_and_tuning_is_taken_from_training(tmp_path):
    splits = ["train"] * 12 + ["selection"] * 6 + ["test"] * 6
    found = from_table(told(tmp_path / "a", split=splits))
    assert [pair.split for pair in found.pairs[12:]] == ["selection"] * 6 + ["test"] * 6
    assert [pair.split for pair in found.pairs[:12]].count("tuning") == 4
    assert {pair.emotion for pair in found.of("direction")} == set(BASIC)
    found = from_table(told(tmp_path / "b", split=splits, emotion=["joy", "fear"] * 12))
    assert [sum(pair.emotion == emotion for pair in found.of("tuning")) for emotion in TWO] == [2, 2]


def test_labels_that_mean_an_emotion_count_and_others_are_told(tmp_path):
    found = from_table(told(tmp_path / "a", split="", emotion=["happiness", "furious", "pride", "fear"] * 6))
    assert {pair.emotion for pair in found.pairs} == {"joy", "anger", "fear"}
    said = " ".join(found.said)
    assert "6 pairs were left out: pride is none of the six emotions" in said
    assert "There are no pairs of disgust, sadness, surprise" in said
    with pytest.raises(InputError, match="No pair shows one of anger, .*; the labels are pride"):
        from_table(told(tmp_path / "b", emotion="pride"))


def test_a_picture_in_two_splits_is_refused(tmp_path):
    folder = told(tmp_path / "a", split=["train"] * 12 + ["selection"] * 6 + ["test"] * 6)
    table = pd.read_csv(folder / TABLE)
    table.loc[23, "emotional"] = table.loc[0, "emotional"]
    table.to_csv(folder / TABLE, index=False)
    with pytest.raises(InputError, match="1 emotional pictures stand in two splits or more; keep each in one"):
        from_table(folder)


def test_too_few_pairs_are_refused(tmp_path):
    save_pairs(world_pairs("direction", 6), tmp_path)
    with pytest.raises(InputError, match="has too few pairs: 6 can be used, and .* would have fewer than two. Give eight or more"):
        from_table(tmp_path)


def test_one_event_for_all_is_told(tmp_path):
    found = from_table(told(tmp_path / "a", split="", event="I counted the same seven buttons twice."))
    assert found.shared_events and found.warned[0].startswith("Events stand in several parts") and len(found.warned) == 1


def one_neutral(folder, splits):
    """A table of 24 pairs of which all have the first one's neutral picture."""
    told(folder, split=splits)
    table = pd.read_csv(folder / TABLE, keep_default_na=False)
    table.assign(neutral=table.neutral[0]).to_csv(folder / TABLE, index=False)
    return folder


def test_neutral_pictures_that_pairs_share_are_told(tmp_path):
    found = from_table(one_neutral(tmp_path / "a", ["train"] * 12 + ["selection"] * 6 + ["test"] * 6))
    across, crowded = found.warned[-2:]
    assert across == "Neutral pictures stand in several parts (1 of 1): what is chosen beside one is tested beside the same."
    assert "pairs: direction 1 for 8, selection 1 for 6, tuning 1 for 4, test 1 for 6): such pairs are not independent" in crowded
    parted = from_table(one_neutral(tmp_path / "b", ""))
    assert "parted here, by emotional picture." in " ".join(parted.said)
    assert parted.warned[-2] == across and "Many pairs share a neutral picture" in parted.warned[-1]
    assert min(parted.counts.values()) >= 2 and sum(parted.counts.values()) == 24
    folder = told(tmp_path / "c", split=["train"] * 12 + ["selection"] * 6 + ["test"] * 6)
    assert "Neutral pictures stand in several parts (1 of 22)" in from_table(folder).warned[-1], "an empty scene"
    table = pd.read_csv(folder / TABLE)
    table.loc[23, "neutral"] = table.loc[0, "emotional"]
    table.to_csv(folder / TABLE, index=False)
    assert "Neutral pictures stand in several parts (2 of 22)" in from_table(folder).warned[-1], "and an emotional picture"


def test_pairs_are_known_by_what_their_pictures_show_and_not_by_where_they_lie(tmp_path):
    here, there = told(tmp_path / "a", split=""), told(tmp_path / "b" / "c", split="")
    (there / "000_anger.png").rename(there / "another name.png")
    table = (there / TABLE).read_text().replace("000_anger.png", "another name.png")
    (there / TABLE).write_text(table)
    assert from_table(here).fingerprint == from_table(there).fingerprint
    with Image.open(there / "another name.png") as picture:
        red, *rest = picture.getpixel((5, 5))
        picture.putpixel((5, 5), (red ^ 1, *rest))
        picture.save(there / "another name.png")
    assert from_table(here).fingerprint != from_table(there).fingerprint


# MER-UniBench


def test_a_copy_of_the_benchmark_takes_the_place_of_the_drawn_sets(whole_run, tmp_path):
    pairs, out = whole_run
    test_mer_unibench.write(tmp_path / "data", "MER2023")
    material, steps = from_table(pairs), Steps(out / "steps")
    task = Task(tiny_families.vlm(FAMILY), material, TINIEST, batch=5)
    found, walk = {}, Walk(task, steps)
    for step in reproduce.STEPS[:7]:
        found[step.NAME] = walk.kept(step, found)
    task = replace(task, data=tmp_path / "data", found=found, parts=Parts(tmp_path / "parts"))
    with pytest.warns(UserWarning, match="MER2023"):
        result = mending.measure(task)
    table = result.tables["benchmark"]
    assert {"none", "VEENA"} <= set(table.method) and "answers" not in result.tables
    by_seed, clips = result.tables["seeds"], result.tables["clips"]
    assert set(by_seed.seed) == {0, 1} and len(clips) == 2 * 2 * table.method.nunique()
    asked = [
        json.loads(file.read_text())["settings"]["decoding"] for file in (tmp_path / "parts").glob("benchmark-*/settings.json")
    ]
    assert [(one["max_new_tokens"], one["batch"], one["temperature"]) for one in asked] == [(TINIEST.tokens, 5, 0.7)] * 2
    chapter = mending.chapter(task, result)
    none = by_seed.percent[by_seed.method == "none"]
    row = table[(table.method == "none") & (table["set"] == f"mean of 1 of {len(SETS)} sets")].iloc[0]
    assert row.percent == pytest.approx(none.mean()) == pytest.approx(100 * clips.score[clips.method == "none"].mean())
    said = f"{row.percent:.1f} [{row.low:.1f}, {row.high:.1f}] ({none.min():.1f} to {none.max():.1f} over seeds)"
    assert chapter.found["baseline"] == f"{said}, mean of 1 of 9 sets"
    names = [name for name, _ in chapter.blocks]
    assert names[1:] == ["MER-UniBench: mean of 1 of 9 sets", "MER-UniBench: MER2023"] and "over clips" in chapter.blocks[1][1]
    mine = table[(table.method == "VEENA") & (table["set"] == row["set"])].iloc[0]
    assert chapter.results["gained"][row["set"]]["difference"] == mine.difference == pytest.approx(mine.percent - row.percent)
    json.dumps(chapter.results, allow_nan=False)
    Steps(tmp_path / "kept").write("08-veena", {}, result, 1.0)
    kept = Steps(tmp_path / "kept").read("08-veena", {})
    pd.testing.assert_frame_equal(kept.tables["benchmark"], table, check_dtype=False)
    assert mending.chapter(task, kept).found == chapter.found


def test_a_copy_is_known_by_its_labels_and_by_names_and_sizes_of_its_clips(tmp_path):
    own = test_mer_unibench.write(tmp_path / "data", "MER2023")
    clip, before = next((own / "video").iterdir()), runner._copy(tmp_path / "data")
    test_mer_unibench.write(tmp_path / "elsewhere", "MER2023")
    (own / "video" / ".DS_Store").write_text("")
    assert set(before) == {"MER2023"} and runner._copy(tmp_path / "elsewhere") == before
    held = clip.read_bytes()
    clip.write_bytes(held + b"more")
    assert runner._copy(tmp_path / "data") != before
    clip.write_bytes(bytes(len(held)))
    assert runner._copy(tmp_path / "data") == before, "contents are not read: there may be hundreds of gigabytes"
    clip.rename(clip.with_name("other.png"))
    assert runner._copy(tmp_path / "data") != before
    clip.with_name("other.png").rename(clip)
    (own / SETS["MER2023"].transcripts).write_text("name,english\na,other\nb,words\n")
    assert runner._copy(tmp_path / "data") != before


# figures, sizes, plans


def test_a_figure_can_be_compared_only_where_model_and_questions_are_the_same():
    mine = Chapter("veena", "", (), (), {}, found={"baseline": "40.0", "VEENA": "41.0"})
    own = Material([Pair("a", "b", "c", "joy", "test")], "photographs")
    known = digest()["models"]["LLaVA-1.5-7B"][0]
    for model, data, fit in ((known, True, 2), (known, False, 0), ("tiny", True, 0)):
        table = comparison(model, own, data, [mine])
        assert table.comparable.str.startswith("with care").sum() == fit
    table = table.set_index("what")
    rlhf = table.loc["hit rate on MER-UniBench, with RLHF"].iloc[0]
    assert (rlhf.here, rlhf.says, rlhf.of) == ("not measured: needs training, which is not done here", "43.7%", "LLaVA-1.5-7B")
    assert table.here["the emotional layer"] == "not measured: the step “layers” is missing"
    assert (table.source.str.len() > 10).all()


def test_the_stages_are_parts_of_any_depth_and_their_gains_stand_beside_random_directions():
    """Four pairs, two layers, a stage each; of the deep one S gains in two pairs, and one of two random draws in one of these."""
    assert stages(32)["middle"] == tuple(range(8, 20)) and stages(2) == {"middle": (0,), "deep": (1,)}
    after = {("S", 0): [[1, 1, 1, 1], [1, 1, 0, 0]], ("random", 0): [[0] * 4, [1, 0, 0, 0]], ("random", 1): [[0] * 4, [0] * 4]}
    rows = [
        (*key, layer, pair, float(hit))
        for key, both in after.items()
        for layer, hits in enumerate(both)
        for pair, hit in enumerate(hits)
    ]
    table = pd.DataFrame(rows, columns=["direction", "draw", "layer", "pair", "hit"]).assign(hit_before=0.0)
    found = stage_gains(table, 2)
    means = {name: [one.value["effect"].mean, one.value["random"].mean, one.less["random"].mean] for name, one in found.items()}
    assert means == {"middle": [1.0, 0.0, 1.0], "deep": [0.5, 0.125, 0.375]} and found["deep"].value["effect"].n == 4
    p = [one.p["random"] for one in found.values()]
    assert p == pytest.approx([1 / 16, 1 / 4], abs=0.02)  # of all signs: all four positive, and the two that differ
    rows = layers._stage_rows(found, 2)
    assert rows["draws that gain as much"].tolist() == ["0 of 2", "0 of 2"]
    assert rows["p (Holm)"].astype(float).tolist() == pytest.approx([2 * p[0], p[1]], abs=1e-4)
    line = layers._stage_line(found)
    assert "middle +100 [" in line and "deep +50 [" in line and line.count("random directions 0 [") == 1 and "+12 [" in line


def test_a_result_comes_back_as_it_was(tmp_path):
    table = pd.DataFrame(
        {"pair": [0, 1], "effect": [Interval(0.5, 0.1, 0.9, 4), Interval(1.0, 1.0, 1.0, 4)], "named": [("joy",), ()]}
    )
    steps, about = Steps(tmp_path), {"model": "a"}
    steps.write("01-x", about, Result({"t": table}, {"v": torch.arange(3.0)}, {"k": [1, None]}), 1.0)
    found = steps.read("01-x", about)
    pd.testing.assert_frame_equal(found.tables["t"], table)
    assert torch.equal(found.tensors["v"], torch.arange(3.0)) and found.facts == {"k": [1, None]}
    assert steps.read("01-x", {"model": "b"}) is None and steps.read("02-y", about) is None


def test_parts_are_measured_once_and_number_pairs_as_if_measured_together(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "AT_ONCE", 2)
    asked = []

    def measure(some):
        asked.append(len(some))
        return pd.DataFrame({"pair": range(len(some)), "value": some})

    for _ in range(2):
        table = Parts(tmp_path).table("x", list("abcde"), measure)
        assert table.pair.tolist() == list(range(5)) and table.value.tolist() == list("abcde")
    assert sum(asked) == 5 and min(asked) >= 2


def test_the_plan_says_what_is_finished_and_adds_up(whole_run):
    pairs, out = whole_run
    asked = {"model": str(tiny_families.folder(FAMILY)), "out": out}
    frame = reproduce.plan(**asked, size="full")
    assert frame.index.tolist() == [*NAMES, "all"] and frame.finished.tolist() == ["no"] * 9 + [""]
    assert frame.stories["all"] == pytest.approx(frame.stories[:-1].sum()) and frame.stories["veena"] > 1000
    hours = frame["A100 80 GB, h"]
    assert hours["all"] == pytest.approx(hours[:-1].sum()) and 0 < hours["heads"]
    assert reproduce.plan(**asked, pairs=pairs, size=TINIEST).finished.tolist() == ["yes"] * 9 + [""]
    assert reproduce.plan(**asked, size=TINIEST).finished.tolist() == ["no"] * 9 + [""], "these are other pairs"


def test_the_plan_counts_the_pairs_that_there_are_and_the_steps_that_are_asked_for(tmp_path):
    """Of 24 pairs 8 are for directions, 4 for tuning, 6 each for selection and test; a size would take 120, 48, 48 and 48."""
    splits = ["train"] * 12 + ["selection"] * 6 + ["test"] * 6
    pairs = told(tmp_path / "a", split=splits, event="I counted the same seven buttons twice.")
    asked = {"model": str(tiny_families.folder(FAMILY)), "pairs": pairs, "out": tmp_path / "out"}
    frame = reproduce.plan(**asked, only=["layers"])
    assert frame.index.tolist() == ["pairs", "vectors", "layers", "all"] and frame.stories["vectors"] == 2 * 8
    # 4 layers, 6 selection pairs at 6 strengths, 6 test pairs under S and 5 random directions; both sides of all by themselves
    assert frame.prompts["layers"] == 4 * (6 * 6 + 6 * 6) and frame.stories["layers"] == 4 * (6 * 6 + 6 * 6) + 2 * 12
    said = reproduce.plan_text(**asked, only=["layers"])
    assert f"Pairs of {pairs}: direction 8 of 8, selection 6 of 6, tuning 4 of 4, test 6 of 6." in said
    assert "Beware: Events stand in several parts" in said and "computed and not measured" in said and "veena" not in said
    drawn = reproduce.plan_text(asked["model"], out=tmp_path, size=TINIEST, only=["pairs"])
    assert "Pairs of the drawn world: direction 4 of 4, selection 4 of 4, tuning 2 of 2, test 4 of 4." in drawn
    with pytest.raises(InputError, match="There is no step 'head'"):
        reproduce.plan(**asked, only=["head"])


def test_the_benchmark_takes_the_longest_and_quick_is_less_than_full():
    anatomy = tiny_families.vlm(FAMILY).anatomy
    with_data, without = work(reproduce.FULL, anatomy, True), work(reproduce.FULL, anatomy, False)
    assert with_data["veena"].stories > 10 * without["veena"].stories
    quick = work(reproduce.QUICK, anatomy, False)
    assert all(quick[name].seconds(1, 1) <= without[name].seconds(1, 1) for name in NAMES)


def test_pairs_of_the_drawn_world_stand_in_where_none_are_given():
    found = runner.from_world(N)
    assert found.drawn and found.source == WORLD and found.to_frame().to_numpy().sum() == sum(N.values())
    prints = {role: {fingerprint(pair.emotional.image()) for pair in found.of(role)} for role in ROLES}
    assert not set.intersection(prints["selection"], prints["test"]) and len(prints["test"]) == 4


def test_the_last_layer_is_no_candidate_for_the_emotional_one():
    """The push gains most after the last layer, 3; of the others layer 1 gains most, under alpha 2 more than under 1."""
    gains = {(1, 1.0): 0.0, (1, 2.0): 0.75, (2, 1.0): 0.25, (2, 2.0): 0.25, (3, 1.0): 1.0, (3, 2.0): 1.0}
    rows = [
        {"pair": i, "direction": "S", "draw": 0, "layer": layer, "alpha": alpha, "clean": float(i < 4 * gained),
         "clean_before": 0.0, "clean_goal": 1.0}
        for (layer, alpha), gained in gains.items()
        for i in range(4)
    ]  # fmt: skip
    found = Steering(pd.DataFrame(rows), ())
    by, alpha, l_emo, won = _chosen(found, [1, 2, 3], 4)
    assert (by, alpha, l_emo) == ("clean", 2.0, 1) and set(won) == {"1", "2"} and won["1"] > 0.8
    nothing = replace(found, table=found.table.assign(clean=0.0, hit=0.0, hit_before=0.0, hit_goal=1.0))
    assert _chosen(nothing, [1, 2, 3], 4) == ("", 1.0, 2, {})


def test_the_emotional_layer_has_the_largest_mean_gain_and_not_the_most_wins():
    """Gains of four pairs; drawn anew, layer 1 wins oftenest, since layers 2 and 3 win where the same pairs are drawn."""
    gains = {1: [1, 0, 0.5, 0], 2: [0, 0, 0.5, 1], 3: [0.5, 0, 0.5, 1]}
    rows = [
        {
            "pair": i,
            "direction": "S",
            "draw": 0,
            "layer": layer,
            "alpha": 1.0,
            "clean": gain,
            "clean_before": 0.0,
            "clean_goal": 1.0,
        }
        for layer, some in gains.items()
        for i, gain in enumerate(some)
    ]
    by, _, l_emo, won = _chosen(Steering(pd.DataFrame(rows), ()), [1, 2, 3], 5)
    assert (by, l_emo) == ("clean", 3) and max(won, key=won.get) == "1" and sum(won.values()) == pytest.approx(1)
    table = pd.DataFrame({"value": [Interval(0.4, 0.3, 0.5, 4), Interval(0.1, 0, 0.2, 4)]}, index=["effect", "random"])
    tested = table.assign(less=Interval(0.3, 0.2, 0.4, 4), p=0.0123, draws=1.0)
    facts = {"l_emo": l_emo, "alpha": 1.0, "measure": by, "won": won}
    chosen, claim = layers._layer_lines(facts, tested)
    assert chosen.startswith("The emotional layer: 3, the one after which S makes the most stories of the selection part name the")
    assert f"it is layer 1 in {won['1']:.0%}, 3 in {won['3']:.0%}, 2 in {won['2']:.0%} of the draws" in chosen
    assert claim.startswith(
        "On the test part, at that strength, S after layer 3 changes the share of stories that name the emotion"
    )
    assert "+40 [+30, +50] points" in claim and "+10 [0, +20] points" in claim and "(p = 0.0123)" in claim
    assert "most stories name the emotion alone and stay fluent, each layer at its best strength, after layer 3" in layers._alt(
        facts
    )


# what the page claims


def mean_gain(table, direction, measure="hit"):
    mine = table[table.direction == direction]
    return (mine[measure] - mine[f"{measure}_before"]).groupby(mine.pair).mean().mean()


def test_what_is_claimed_of_layers_comes_from_the_test_part_beside_random_directions(whole_run):
    _, out = whole_run
    results, page = json.loads((out / "results.json").read_text())["layers"], (out / "index.html").read_text()
    tested = from_parquet(out / "steps" / "03-layers" / "tested.parquet")
    for measure in ("clean", "hit"):
        at = tested[tested.layer == results["l_emo"]]
        for key, direction in (("S", "S"), ("random", "random")):
            assert results["test"][measure][key]["mean"] == pytest.approx(mean_gain(at, direction, measure), abs=1e-4)
    there = {name: run for name, run in stages(4).items() if set(run) & set(tested.layer)}
    assert set(results["stages"]) == set(there) and all(0 < one["p"] <= 1 for one in results["stages"].values())
    for name, run in there.items():
        some = tested[tested.layer.isin(run)]
        assert results["stages"][name]["random"]["mean"] == pytest.approx(mean_gain(some, "random"), abs=1e-4)
    line = next(line for line in page.splitlines() if "beside random directions as long" in line)
    assert len(there) > 1 and all(f"{name} " in line for name in there)
    assert f"Layer {results['l_emo']}, on the test part" in page and "draws that gain as much" in page


def test_a_road_that_is_cut_is_told_with_its_control_and_p(whole_run):
    _, out = whole_run
    cut = json.loads((out / "results.json").read_text())["flow"]["cut"]
    table = from_parquet(out / "steps" / "05-flow" / "cut.parquet")
    assert set(cut) == {"V->Q", "V->L", "Q->L", "V->Q+L"} == set(table.road)
    for road, some in table.groupby("road"):
        assert cut[road]["fall"]["mean"] == pytest.approx((some.baseline - some.value).mean(), abs=1e-4)
        assert cut[road]["control"]["mean"] == pytest.approx((some.baseline - some.control).mean(), abs=1e-4)
        assert cut[road]["p"] >= 0.45, "of two pairs, whose signs have four patterns"
    page = (out / "index.html").read_text()
    assert page.count(", control ") >= 4 and "Cut in all layers, beside other readers" in page


def test_shares_of_saliency_are_of_sums_and_stand_beside_shares_of_edges():
    """Layer 0: sums 8 and 2, layer 1: 4 and 6, so shares of 80% and 40%, 60% on average; eight of ten edges."""
    rows = [("V->Q", 0, 1.0, 8), ("text->text", 0, 1.0, 2), ("V->Q", 1, 0.5, 8), ("text->text", 1, 3.0, 2)]
    table = pd.DataFrame(rows, columns=["road", "layer", "value", "edges"])
    both = [table.assign(pair=i, picture=picture, value=table.value * (1 if picture == "emotional" else 7 + i))
            for i in range(2) for picture in ("emotional", "neutral")]  # fmt: skip
    shares = roads._road_shares(Flow(pd.concat(both, ignore_index=True)))
    assert shares.saliency.to_dict() == pytest.approx({"V->Q": 0.6, "text->text": 0.4})
    assert shares.edges.to_dict() == pytest.approx({"V->Q": 0.8, "text->text": 0.2})
    line = roads._saliency_line(shares)
    assert "V->Q 60% (of the edges 80%), text->text 40% (of the edges 20%)" in line and "mean over layers" in line


def test_heads_silenced_are_told_as_well_as_heads_restored_beside_random_sets(whole_run):
    _, out = whole_run
    check = json.loads((out / "results.json").read_text())["heads"]["check"]
    place = out / "steps" / "06-heads"
    table, sets = (from_parquet(place / f"{name}.parquet") for name in ("check", "sets"))
    page = (out / "index.html").read_text()
    line = next(line for line in page.splitlines() if "Silenced together the heads lose" in line)
    for name, found in check.items():
        moved = table[table.check == name].assign(moved=lambda t: t.value - t.own, gap=lambda t: t.goal - t.own)
        shares = moved.groupby("set").moved.mean() / moved.groupby("set").gap.mean()
        assert found["effect"]["mean"] == pytest.approx(shares[0], abs=1e-4)
        assert found["random"] == pytest.approx(shares[1:].mean(), abs=1e-4)
        assert found["p"] == pytest.approx((1 + (shares[1:] >= shares[0]).sum()) / len(shares), abs=1e-4)
        assert f"(random sets {found['random']:.0%} on average, p = {found['p']:.3f})" in line
        assert found["overlap"] == pytest.approx(sets.overlap[1:].mean(), abs=1e-4)
        assert found["norm"] == pytest.approx(sets.norm[1:].mean() / sets.norm[0], abs=1e-4)
    assert f"They hold {check['restoration']['overlap']:.0%} of the tested heads on average" in page
