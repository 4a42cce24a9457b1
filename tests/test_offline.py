"""Nothing leaves the machine unasked: no address is looked up and nothing connected to, though no variable forbids it.

The package is used from end to end in a process of its own, in which every way of Python's to the network counts and refuses.
HF_HUB_OFFLINE, which all other tests set, is not set there. What reaches for the network below Python (DuckDB's extensions, Ray, a
video's demuxer) is not seen here: the first has them switched off, the second is used where it is asked for, the third is held to
files (test_security.py).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hostile import Skeleton
from tiny_models import random_folder

GUARD = '''
import json, os, socket, sys
attempts, step = [], "start"

class Refused(OSError):
    """No network."""

def watched(owner, name, host):
    real = getattr(owner, name)
    def call(*args, **options):
        if not within(host(args)):
            attempts.append([step, name, repr(host(args))])
            raise Refused(f"{name} {host(args)!r}")
        return real(*args, **options)
    setattr(owner, name, call)

def within(address):
    """On this machine: a path of AF_UNIX, or the loopback."""
    host = address[0] if isinstance(address, tuple) else address
    return not isinstance(address, tuple | str | bytes | None) or host in ("127.0.0.1", "::1", "localhost", "", None, b"") or (
        not isinstance(address, tuple) and isinstance(host, str) and host.startswith("/")
    )

for name in ("connect", "connect_ex"):
    watched(socket.socket, name, lambda args: args[1])
watched(socket.socket, "sendto", lambda args: args[-1])
for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    watched(socket, name, lambda args: args[0])
'''

STEPS = """
from pathlib import Path
folder, model = Path(sys.argv[1]), sys.argv[2]

step = "import"
import emointerp as ei
for name in ei.__all__:
    getattr(ei, name)

step = "the bundled model"
from emointerp.world import Scene, sample
scene = sample("test", 1)[0].scene
vlm = ei.load()
reading = ei.start_here.read(vlm, scene)
tower, sae = ei.load_tower("tiny"), ei.load_sae("tiny")
tower.texts(["I was glad."])

step = "a model's folder"
small = ei.load(model)
prompt = small.prompt(scene, "It rained.", answer="I felt")
ei.load_tower(model)

step = "the verbs"
acts = ei.collect(small, prompt, ["residual", "heads"])
push = ei.AddVector(layer=1, vector=acts.residual[1, -1])
ei.run(small, prompt, edits=[push])
ei.sweep(small, prompt, [[push]], max_new_tokens=2, progress=False)
ei.save_edits([push], folder / "edits.json")
ei.load_edits(folder / "edits.json")

step = "verify"
assert ei.verify(small).agrees

step = "panels"
from emointerp import widgets
widgets.start_here(small, {"one": scene}).export(folder / "start_here.html")
widgets.lens(small, {"one": scene}).export(folder / "lens.html", layer=[0, 1])
widgets.own_model().export(folder / "own_model.html", model=["tiny", "llava-hf/llava-1.5-7b-hf"])
widgets.sae(sae, tower, ei.world.face_scenes("test", 70)).export(folder / "sae.html")

step = "a gallery"
from emointerp.gallery import index
(folder / "pictures").mkdir()
for i in range(3):
    sample("test", 3)[i].scene.image().save(folder / "pictures" / f"{i}.png")
gallery = index(folder / "gallery", folder / "pictures", tower, sae, progress=False).gallery
gallery.nearest("0.png").plot()
gallery.along(gallery.code(scene, tower, sae))

step = "evaluate"
from emointerp.evaluation.benchmarks import run_world, standard, write_tables
write_tables(run_world(small, standard(["none"]), folder / "world", n=6, progress=False), folder / "world")

step = "tour"
from emointerp.errors import EmointerpError
from emointerp.tour import Sizes, run
steering = {"direction": 24, "selection": 6, "tuning": 12, "test": 6, "layers": 1, "draws": 2}
least = Sizes(
    "least", start_here={"test": 7, "conflict": 6}, superposition={"direction": 60, "test": 30},
    sae={"direction": 98, "selection": 49, "test": 70}, saliency={"pictures": 2, "copies": 1, "steps": 2, "draws": 1},
    lens={"pictures": 12, "pairs": 3}, steering=steering, heads={"selection": 6, "test": 6, "sets": 4, "neurons": 2},
    veena={"tuning": 6, "conflict": 6, "neutrals": 6, "draws": 2},
)
try:
    run([scene], out=folder / "tour", model=small, size=least)
except EmointerpError as error:  # a chapter may stop on a random model; the page is there
    print(error, file=sys.stderr)

step = "doctests"
import doctest, importlib
for name in ("models.loading", "models.towers", "pairs", "sae.value", "widgets.own_model"):
    assert not doctest.testmod(importlib.import_module(f"emointerp.{name}")).failed, name

step = "the command line"
from emointerp.course import copy_notebooks
copy_notebooks(folder / "course")

step = "control"
made, attempts = attempts, []
import httpx
for ask in (lambda: socket.socket().connect(("203.0.113.1", 80)), lambda: httpx.get("https://example.org")):
    try:
        ask()
    except (OSError, httpx.HTTPError):
        pass
print(json.dumps([made, attempts]))
"""
UNSET = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


@pytest.fixture(scope="module")
def used(tmp_path_factory) -> tuple[Path, list, list]:
    """A folder with all that was written, the attempts at the network, and those of the control."""
    folder = tmp_path_factory.mktemp("offline")
    unset = {*UNSET, *map(str.lower, UNSET)}
    environment = {name: value for name, value in os.environ.items() if name not in unset} | {"HOME": str(folder)}
    command = [sys.executable, "-c", GUARD + STEPS, str(folder), str(random_folder())]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder, *json.loads(done.stdout.splitlines()[-1])


def test_the_guard_sees_and_refuses_what_is_asked(used, record_property):
    """The oracle of the test below."""
    _, _, control = used
    assert [name for _, name, _ in control] == ["connect", "getaddrinfo"]
    record_property("tried", len(control))


def test_nothing_is_asked_of_the_network(used, record_property):
    _, attempts, _ = used
    record_property("tried", len(attempts))
    assert not attempts


def test_pages_that_were_written_load_nothing_from_outside(used):
    pages = sorted(used[0].rglob("*.html"))
    assert [page.name for page in pages] == ["lens.html", "own_model.html", "sae.html", "start_here.html", "index.html"]
    for page in pages:
        found = Skeleton(page.read_text(encoding="utf-8"))
        outside = [(tag, value[:60]) for tag, value in found.fetched if not value.startswith(("data:", "#", "@"))]
        assert not outside and "@import" not in found.text and "url(" not in found.text.partition("base64")[0], page.name
