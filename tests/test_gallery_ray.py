"""Two workers of Ray Data read a collection, one of them is killed in the middle of a batch, and nothing is missing afterwards."""

import os
import signal
import time
from pathlib import Path

import pytest
from ray_worker import MARKS, Marked
from test_gallery import fill, same

from emointerp.gallery import extraction, index, indexing

ray = pytest.importorskip("ray")


@pytest.fixture
def marks(monkeypatch, tmp_path):
    """Where workers say what they do; Ray has two CPUs."""
    folder = tmp_path / "marks"
    folder.mkdir()
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv(MARKS, str(folder))
    here = Path(__file__).parent  # Ray's processes look there for `ray_worker`
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield folder
    ray.shutdown()


def read(marks, said: str) -> set[tuple[int, str]]:
    """Processes and the batches of which they last said so."""
    found = (file.name.split(" ", 1) for file in marks.iterdir() if file.read_text() == said)
    return {(int(process), batch) for process, batch in found}


def two_at_work(marks, seconds: float = 60) -> list[int]:
    """The two processes that are at a batch, as soon as there are two."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if len(processes := {process for process, _ in read(marks, "at it")}) == 2:
            return sorted(processes)
        time.sleep(0.02)
    raise AssertionError("There were never two workers at work.")


def test_a_worker_killed_in_the_middle_loses_nothing(tmp_path, marks, monkeypatch):
    pictures, killed, later = fill(tmp_path / "pictures"), [], []

    def interrupted(*arguments):
        tables = extraction.with_ray(*arguments)
        yield next(tables)
        killed.append(two_at_work(marks)[0])
        os.kill(killed[0], signal.SIGKILL)
        for table in tables:
            later.append(table.num_rows)
            yield table

    monkeypatch.setattr(extraction, "_Worker", Marked)
    monkeypatch.setattr(indexing, "with_ray", interrupted)
    far = index(tmp_path / "ray", pictures, batch=2, engine="ray", progress=False)
    lost = {batch for process, batch in read(marks, "at it") if process == killed[0]}
    assert len(lost) == 1 and later  # it died at a batch,
    assert lost <= {batch for process, batch in read(marks, "done") if process != killed[0]}  # which another read
    assert far.added == 21
    same(far.gallery, index(tmp_path / "local", pictures, batch=2, progress=False).gallery)
