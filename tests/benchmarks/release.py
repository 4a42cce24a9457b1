"""A release, rehearsed: both distributions are built, installed in an empty environment, and the main job is done with them.

    python tests/benchmarks/release.py [--python PYTHON ...] [--tests] [--json FILE]

By hand, as it fetches what the package needs and takes minutes. For each interpreter a fresh environment gets the wheel with the
versions of requirements.lock; then, in an empty folder and with nothing of the checkout on the path, come `tour --size quick`,
`lab --no-browser` and `verify`. The source distribution takes the wheel's place, has to install the same files, and is verified as
well. With --tests the environment gets the extra `test` too, and the tests of `QUICK` run on the installed wheel. A step that fails
ends it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
QUICK = [
    f"tests/test_{name}.py"
    for name in ("import", "emotions", "world", "models", "images", "statistics", "plots", "tracing", "verify", "bridge", "pairs")
]
SETTINGS = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}


def done(command: list[Any], folder: Path) -> float:
    """Seconds of a command in a folder; what it prints is shown only where it fails."""
    began = perf_counter()
    ended = subprocess.run([*map(str, command)], cwd=folder, env=SETTINGS, capture_output=True, text=True)
    if ended.returncode:
        print(ended.stdout[-3000:], ended.stderr[-3000:], file=sys.stderr)
        ended.check_returncode()
    return perf_counter() - began


def installed(python: Path) -> dict[str, str]:
    """A fingerprint of each file of the package in an environment."""
    where = subprocess.check_output(
        [python, "-c", "import emointerp; print(emointerp.__path__[0])"], cwd="/", env=SETTINGS, text=True
    )
    folder = Path(where.strip())
    files = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(folder).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


def rehearsed(interpreter: str, dist: Path, scratch: Path, tests: bool) -> Iterator[tuple[str, float]]:
    """Each step with its seconds, for one interpreter."""
    (wheel,), (source,), empty = dist.glob("*.whl"), dist.glob("*.tar.gz"), scratch / "empty"
    empty.mkdir()
    done([interpreter, "-m", "venv", scratch / "venv"], scratch)
    python, ours = scratch / "venv" / "bin" / "python", scratch / "venv" / "bin" / "emointerp"
    pip = [python, "-m", "pip", "install", "-q", "--no-cache-dir"]
    extra = "[test]" if tests else ""
    yield "wheel installed", done([*pip, "-c", ROOT / "requirements.lock", f"{wheel}{extra}"], empty)
    yield "emointerp tour --size quick", done([ours, "tour", "--size", "quick"], empty)
    yield "emointerp lab --no-browser", done([ours, "lab", "--no-browser"], empty)
    yield "emointerp verify", done([ours, "verify"], empty)
    if tests:
        yield "quick tests", done([python.with_name("pytest"), "-q", "-p", "no:cacheprovider", *QUICK], ROOT)
    there = installed(python)
    yield "source distribution in its place", done([*pip, "--force-reinstall", "--no-deps", source], empty)
    if installed(python) != there:
        raise SystemExit("The source distribution installs other files than the wheel.")
    yield "emointerp verify, again", done([ours, "verify"], empty)


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters; by default this one")
    parser.add_argument("--tests", action="store_true", help="the quick tests too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    given = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        done([sys.executable, "-m", "hatchling", "build", "-d", Path(folder, "dist")], ROOT)
        for i, interpreter in enumerate(given.python):
            version = subprocess.check_output(
                [interpreter, "-c", "import platform; print(platform.python_version())"], text=True
            ).strip()
            scratch = Path(folder, str(i))
            scratch.mkdir()
            for step, seconds in rehearsed(interpreter, Path(folder, "dist"), scratch, given.tests):
                rows.append({"python": version, "step": step, "seconds": round(seconds, 1)})
                print(f"{version:8s} {step:34s} {seconds:6.1f} s", flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
