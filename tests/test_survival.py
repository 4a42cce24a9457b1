"""Accidents: a job that is killed, runs out of disk, may not write, or meets another in its folder leaves no harm behind.

Each is done in a process of its own (`survival`). By hand, `EMOINTERP_KILLS=20 pytest tests/test_survival.py` kills twenty times as
often, at other moments each time.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import survival
from PIL import Image
from survival import DONE, JOBS, SERVER, Fate, done, left, start
from tiny_models import picture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked, limited and deprived as Linux does it")
TIMES = int(os.environ.get("EMOINTERP_KILLS", "0"))
KILLS = {"training": 8, "autoencoder": 6, "indexing": 8, "evaluation": 6, "touring": 3, "notebooks": 4, "edits": 4}
LONG = {"training": "steps", "autoencoder": "steps"}


@pytest.fixture(scope="module", autouse=True)
def server(tmp_path_factory):
    """Where processes are forked from; it has imported what they need."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent), *sys.path[:1], before]))
    SERVER.set_forkserver_preload(["survival"])
    survival.PICTURES = tmp_path_factory.mktemp("pictures")
    for i in range(8):
        Image.fromarray(picture(i)[:16, :16]).save(survival.PICTURES / f"{i}.png")
    yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What each job leaves where nothing happens, and in how many acts; made once."""
    kept: dict[str, tuple[dict, int]] = {}

    def of(job, **options):
        key = f"{job}{options}"
        if key not in kept:
            folder = tmp_path_factory.mktemp("whole") / "out"
            said, acts = done(job, folder, **options)
            assert said == DONE
            kept[key] = left(folder), acts
        return kept[key]

    return of


def moments(job: str, acts: int) -> list[int]:
    """At which acts a job is killed, one kill after another in the same folder."""
    rng = np.random.default_rng(None if TIMES else [7, acts])
    return rng.integers(1, acts // 2 + 2, KILLS[job] * max(1, TIMES)).tolist()


@pytest.mark.parametrize("job", JOBS)
def test_killed_at_its_acts_a_job_goes_on_to_the_same(job, whole, tmp_path, record_property):
    expected, acts = whole(job)
    killed = 0
    for at in moments(job, acts):
        said, _ = done(job, tmp_path / "out", Fate(killed_at=at))
        assert said in ("", DONE), said
        killed += said == ""
    assert killed, "no kill met it"
    assert done(job, tmp_path / "out")[0] == DONE
    assert left(tmp_path / "out") == expected
    print(f"{job}: {killed} kills at acts")
    record_property("tried", killed)


@pytest.mark.parametrize("job", ["indexing", "evaluation"])
def test_killed_at_any_time_a_job_goes_on_to_the_same(job, whole, tmp_path, record_property):
    expected, _ = whole(job)
    rng = np.random.default_rng(None if TIMES else 3)
    killed = 0
    for after in rng.uniform(0.02, 0.4, 3 * max(1, TIMES)):
        killed += done(job, tmp_path / "out", Fate(killed_after=after))[0] == ""
    assert done(job, tmp_path / "out")[0] == DONE
    assert left(tmp_path / "out") == expected
    print(f"{job}: {killed} kills by the clock")
    record_property("tried", killed)


# a full disk


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("largest", [1, 700, 9000])
def test_a_full_disk_is_told_in_words_and_the_next_run_goes_on(job, largest, whole, tmp_path, record_property):
    expected, _ = whole(job)
    (tmp_path / "out").mkdir()
    said, _ = done(job, tmp_path / "out", Fate(largest=largest))
    assert said == DONE or said.startswith("OutputError: "), said
    assert said != DONE or largest > 1
    record_property("tried", int(said != DONE))  # else all files were small enough
    assert done(job, tmp_path / "out")[0] == DONE
    assert left(tmp_path / "out") == expected


@pytest.mark.parametrize("job", LONG)
def test_a_full_disk_leaves_the_checkpoint_of_before(job, tmp_path):
    assert done(job, tmp_path / "out", steps=10)[0] == DONE
    before = left(tmp_path / "out")
    said, _ = done(job, tmp_path / "out", Fate(largest=700))
    assert said.startswith("OutputError: Cannot write") and "goes on from step 10" in said
    assert left(tmp_path / "out") == before
    assert done(job, tmp_path / "out")[0] == DONE


def test_a_full_disk_leaves_the_report_and_the_edits_of_before(tmp_path, record_property):
    for job, options in (("touring", {"event": "Something else happened to me."}), ("edits", {"alpha": 2.0})):
        assert done(job, tmp_path / job, **options)[0] == DONE
        before = left(tmp_path / job)
        assert done(job, tmp_path / job, Fate(largest=700))[0].startswith("OutputError: ")
        assert left(tmp_path / job) == before
        record_property("tried", 1)


# two at once


@pytest.mark.parametrize("job", JOBS)
def test_of_two_at_once_one_is_refused_or_both_end_with_the_whole(job, whole, tmp_path):
    expected, _ = whole(job)
    said = both(job, tmp_path / "out", {}, {})
    assert DONE in said
    assert all(one == DONE or one.startswith("OutputError: ") for one in said), said
    assert left(tmp_path / "out") == expected


def both(job: str, folder: Path, *options: dict) -> list[str]:
    """What two processes say that begin at the same moment."""
    together = SERVER.Barrier(len(options))
    return [one.end()[0] for one in [start(job, folder, together=together, **some) for some in options]]


def test_two_evaluations_of_other_methods_do_not_mix(whole, tmp_path):
    said = both("evaluation", tmp_path / "out", {"methods": 1}, {"methods": 2})
    refused = [one for one in said if one != DONE]
    assert all("Another run is at work in" in one for one in refused), said
    found = left(tmp_path / "out")
    results = [whole("evaluation", methods=n)[0] for n in (1, 2)]
    assert (found["table.jsonl"], found["about.json"]) in [(some["table.jsonl"], some["about.json"]) for some in results]


def test_two_tours_of_other_events_do_not_mix(tmp_path, record_property):
    events = ["The phone rang while I was cooking.", "Somebody opened the door for me."]
    for force in (False, True):
        folder = tmp_path / f"out{force}"
        said = both("touring", folder, *({"event": event, "force": force} for event in events))
        assert all(one == DONE or one.startswith("OutputError: ") for one in said) and DONE in said, said
        assert force or said.count(DONE) == 1, "without --force only one report can have the folder"
        told = left(folder)["results.json"]["event"]
        assert told in (folder / "index.html").read_text()
        assert all(event == told or event not in (folder / "index.html").read_text() for event in events)
        record_property("tried", 1)


def test_two_saves_of_other_edits_do_not_mix(tmp_path, record_property):
    from emointerp.errors import InputError
    from emointerp.tracing import load_edits

    for _ in range(4):
        assert both("edits", tmp_path / "out", {"alpha": 1.0}, {"alpha": 2.0}) == [DONE, DONE]
        try:
            found = load_edits(tmp_path / "out" / "edits.json")
        except InputError as error:
            assert "is not the tensor that was saved with it" in str(error)
        else:
            assert {(edit.alpha, float(edit.vector[0])) for edit in found} in ({(1.0, 1.0)}, {(2.0, 2.0)})
        record_property("tried", 1)


# no right to write


@pytest.mark.parametrize("job", JOBS)
def test_a_folder_that_may_not_be_written_is_told_in_words(job, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o555)
    said, _ = done(job, tmp_path / "out", Fate(poor=True))
    (tmp_path / "out").chmod(0o755)
    assert said.startswith("OutputError: ") and str(tmp_path / "out") in said, said
    assert list((tmp_path / "out").iterdir()) == []
