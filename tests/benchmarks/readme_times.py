"""What a reader waits for: the report, on one core; the fit of the README, on all; the import; each in a process of its own.

    python tests/benchmarks/readme_times.py NAME ... [--json FILE]

A row has the seconds on the clock, and those of the processor, which other work on the machine hardly changes.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOUR = ["-m", "emointerp.cli", "tour", "--out", "tour"]


def fit_of_the_readme() -> str:
    """The README's lines up to the fit."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    (lines,) = (block for block in blocks if "veena.fit" in block)
    return "import emointerp as ei\nvlm = ei.load()\n" + lines.partition("with ")[0]


COMMANDS = {
    "tour": TOUR,
    "tour-quick": [*TOUR, "--size", "quick"],
    "fit": ["-c", fit_of_the_readme()],
    "import": ["-c", "import emointerp"],
}
ON_ONE_CORE = {"tour", "tour-quick"}


def timed(name: str) -> dict[str, Any]:
    """A row: seconds of one run in an empty folder."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    settings = (
        os.environ | (one if name in ON_ONE_CORE else {}) | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    )
    before, began = _processor_seconds(), perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, *COMMANDS[name]], cwd=folder, env=settings, check=True, stdout=subprocess.DEVNULL)
    return {"what": name, "seconds": perf_counter() - began, "processor s": _processor_seconds() - before}


def _processor_seconds() -> float:
    """Of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=COMMANDS, metavar="NAME", help=", ".join(COMMANDS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    given = parser.parse_args(arguments)
    rows = [timed(name) for name in given.names]
    for row in rows:
        print(f"{row['what']:12s} {row['seconds']:.1f} s, processor {row['processor s']:.1f} s")
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
