"""Jobs that fill a folder, each done in a process of its own that has an accident; `test_survival` looks at what is left.

A process is forked from a server that has imported everything, so it starts in milliseconds. `Fate` says what happens to it: it is
killed at its n-th act on the folder (files opened for writing, renamed, removed, folders made), or after some time; its files may
not grow beyond a size, as on a full disk; it may not write at all; or it waits for another that starts at the same moment.
"""

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file
from tiny_models import picture

from emointerp.course import copy_notebooks
from emointerp.errors import EmointerpError
from emointerp.evaluation import Item, evaluate
from emointerp.evaluation.methods import emotion_prompt, none
from emointerp.gallery import index
from emointerp.models import load, load_tower
from emointerp.sae import SAE, SaeRecipe, train_sae
from emointerp.tour import report
from emointerp.tracing import AddVector, save_edits
from emointerp.training.loop import Recipe, fit

SERVER = multiprocessing.get_context("forkserver")
DONE = "done"
ACTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "shutil.move")
PICTURES = Path("pictures")  # set by the tests
TOWER, VLM, CODER = load_tower("tiny"), load("tiny"), SAE.random(192, 64, 4)


# jobs: each goes on where one of before was cut off


def training(folder: Path, steps: int = 40) -> None:
    torch.manual_seed(0)
    model, target = torch.nn.Linear(400, 1), torch.arange(400.0) / 400

    def loss_of(step: int) -> torch.Tensor:
        x = torch.from_numpy(np.random.default_rng(step).standard_normal((8, 400))).float()
        return ((model(x)[:, 0] - x @ target) ** 2).mean()

    fit(model, loss_of, Recipe(steps=steps, batch=8, rate=0.05, warmup=5), folder, "line", every=5)


def autoencoder(folder: Path, steps: int = 30) -> None:
    data = torch.randn(400, 12, generator=torch.Generator().manual_seed(3))
    train_sae(data, SaeRecipe(48, 4, steps, batch=16, dead_after=100), folder, every=5)


def indexing(folder: Path) -> None:
    index(folder, PICTURES, TOWER, CODER, batch=2, progress=False)


def evaluation(folder: Path, methods: int = 2) -> None:
    items = [Item("one", picture(i), "The phone rang.", "joy") for i in range(3)]
    sets = {"one": items, "two": [Item("two", item.picture, "I left.", "anger") for item in items[:2]]}
    some = [none(), emotion_prompt()][:methods]
    evaluate(VLM, some, sets, max_new_tokens=2, perplexity=False, folder=folder, progress=False)


def touring(folder: Path, event: str = "The phone rang while I was cooking.", force: bool = True) -> None:
    report.CHAPTERS = ()
    report.run([picture(1)], event, VLM, folder, force=force)


def notebooks(folder: Path) -> None:
    copy_notebooks(folder)


def edits(folder: Path, alpha: float = 1.0) -> None:
    folder.mkdir(exist_ok=True)
    save_edits([AddVector(i, torch.full((3000,), alpha), alpha) for i in range(3)], folder / "edits.json")


JOBS: dict[str, Callable] = {f.__name__: f for f in (training, autoencoder, indexing, evaluation, touring, notebooks, edits)}


def left(folder: Path) -> dict[str, Any]:
    """What lies in a folder, without times and without hidden files that an accident may leave: to compare with another's."""
    files = {str(f.relative_to(folder)): f for f in sorted(folder.rglob("*")) if f.is_file()}
    return {
        name: _content(file)
        for name, file in files.items()
        if "/." not in f"/{name}" and not name.endswith((".part", ".log.jsonl"))
    }


def _content(file: Path) -> Any:
    if file.suffix == ".safetensors":
        return {name: tensor.flatten().tolist() for name, tensor in load_file(file).items()}
    if file.suffix == ".parquet":
        return pq.read_table(file).to_pylist()
    if file.suffix == ".jsonl":
        return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in file.read_text().splitlines()]
    if file.name == "results.json":
        return {k: v for k, v in json.loads(file.read_text()).items() if k != "seconds"}
    return len(file.read_text()) > 0 if file.name == "index.html" else file.read_bytes()


# accidents


@dataclass(frozen=True)
class Fate:
    """What happens to a process."""

    killed_at: int = 0  # which act on the folder
    killed_after: float = 0.0  # seconds
    largest: int = 0  # bytes of a file
    poor: bool = False  # no right to write where the permissions forbid it, though it is root's


@dataclass
class Process:
    """A job on its way."""

    process: Any
    says: Any

    def end(self) -> tuple[str, int]:
        """What it said at its end ("" if it was killed), and how many acts there were."""
        try:
            said = self.says.recv() if self.says.poll(60) else ("hangs", 0)
        except EOFError:
            said = ("", 0)
        self.process.join(10)
        return said


def start(job: str, folder: Path, fate: Fate | None = None, together: Any = None, **options: Any) -> Process:
    ours, theirs = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_live, args=(job, folder, fate or Fate(), together, options, PICTURES, theirs), daemon=True)
    process.start()
    theirs.close()
    if fate and fate.killed_after:
        time.sleep(fate.killed_after)
        process.kill()
    return Process(process, ours)


def done(job: str, folder: Path, fate: Fate | None = None, **options: Any) -> tuple[str, int]:
    """A job to its end."""
    return start(job, folder, fate, **options).end()


def _live(job: str, folder: Path, fate: Fate, together: Any, options: dict[str, Any], pictures: Path, says: Any) -> None:
    global PICTURES
    PICTURES = pictures
    os.environ["TQDM_DISABLE"] = "1"
    sys.stderr = sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - the process ends with it
    if fate.poor:
        _give_up_rights()
    if fate.largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fate.largest, fate.largest))
    if together is not None:
        together.wait(30)
    with _counted(folder, fate.killed_at) as acts:
        try:
            JOBS[job](folder, **options)
            said = DONE
        except EmointerpError as error:
            said = f"{type(error).__name__}: {error}"
        except BaseException:
            said = f"bare: {traceback.format_exc()}"
    says.send((said, len(acts)))


@contextmanager
def _counted(folder: Path, killed_at: int) -> Iterator[list[str]]:
    """Acts on a folder, as Python's audit events tell them; the process is killed before one of them is done."""
    acts: list[str] = []
    writes, at = os.O_WRONLY | os.O_RDWR | os.O_CREAT, str(folder)

    def hook(event: str, args: tuple) -> None:
        acting = event in ACTS or (event == "open" and isinstance(args[2], int) and args[2] & writes)
        if acting and isinstance(args[0], str | Path) and str(args[0]).startswith(at):
            acts.append(event)
            if len(acts) == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    yield acts


def _give_up_rights() -> None:
    """Root without its capabilities keeps to permissions as everybody does; for everybody else nothing changes."""
    header, none_left = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None, use_errno=True).capset(header, none_left)
