"""The report of all measurements, docs/benchmarks.md: rows that the scripts here wrote, and prose around them.

    python tests/benchmarks/run.py --report [SECTION ...]   # measure these sections ("all": what is missing or old), write the page
    python tests/benchmarks/run.py --take SECTION FILE      # keep what a section's command wrote by itself, on another machine say
    python tests/benchmarks/run.py --check                  # does the page, and what README.md quotes, say what the results say?

A section is a command that writes rows as JSON. What it gave is kept in `results/SECTION.json` with its date, commit, machine and
versions, so each section can be measured alone, and `all` goes on where it was stopped. `report.md.jinja` makes the page of them;
`readme.jinja` the figures that the README quotes. A section without a result is not on the page.
"""

import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import provenance
import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from wording import FILTERS

from emointerp.files import whole
from emointerp.models import WEIGHTS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results"
PAGE, README = ROOT / "docs" / "benchmarks.md", ROOT / "README.md"
_RUN = "tests/benchmarks/run.py"
_ENGINE = "forward collect one-patch head-map patch-query patch-visual generate generate-steered generate-veena generate-sweep many"
SECTIONS = {
    "engine-bundled": f"{_RUN} --model bundled --seconds 2 --only {_ENGINE} alpha-layer panel",
    "engine-wide": f"{_RUN} --model wide --seconds 2 --only {_ENGINE}",
    "stories": f"{_RUN} --model bundled --only alpha-layer --pairs 64",
    "sae": f"{_RUN} --model sae-65536 sae-262144 --seconds 4",
    "candidates": "tests/benchmarks/candidates.py",
    "saelens": "tests/saelens_check.py --seconds 4",
    "smoothgrad": f"{_RUN} --only smoothgrad --seconds 2",
    "gallery": "tests/benchmarks/gallery.py",
    "gallery-scan": f"{_RUN} --only gallery-top gallery-nearest",
    "panels": f"{_RUN} --panels",
    "tour": "tests/benchmarks/readme_times.py tour",
    "tour-quick": "tests/benchmarks/readme_times.py tour-quick",
    "fit": "tests/benchmarks/readme_times.py fit",
    "house": "tests/benchmarks/house_numbers.py",
    "tests": "tests/benchmarks/house_numbers.py --tests",
    "release": "tests/benchmarks/release.py",
    "real-sizes": "tests/benchmarks/real_sizes.py --device cpu --layers 2 4",
    "real-sizes-gpu": "tests/benchmarks/real_sizes.py --device cuda",
    "endurance": "tests/benchmarks/endurance.py",
    "faults": "tests/benchmarks/faults.py",
}
# A share, a size or a time in the prose of the README, in digits or in words.
FIGURE = re.compile(
    r"\d[\d.,]*\s?(?:%|[KMG]i?B\b|ms\b|s\b|seconds?\b|minutes?\b|hours?\b|times\b)|\b(?:seconds?|minutes?|hours?)\b"
)
CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Quote:
    """Words of the README with a figure in them, and where that comes from."""

    source: str
    text: str


# measuring


def measure(section: str) -> dict[str, Any]:
    """Run a section's command and keep what it wrote; raises CalledProcessError where it fails."""
    command, stamp = SECTIONS[section], provenance.stamp(f"python {SECTIONS[section]}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "rows.json")
        subprocess.run([sys.executable, *shlex.split(command), "--json", file], cwd=ROOT, check=True)
        return keep(section, json.loads(file.read_text()), stamp)


def keep(section: str, written: list | dict[str, Any], stamp: dict[str, Any]) -> dict[str, Any]:
    """Put rows into `results/`; a script that says itself where it was measured, and with what, is believed."""
    said = written if isinstance(written, dict) else {"rows": written}
    result = {"section": section, "measured": datetime.now(UTC).date().isoformat()} | stamp | said
    RESULTS.mkdir(exist_ok=True)
    with whole(RESULTS / f"{section}.json") as part:
        part.write_text(json.dumps(result, indent=1) + "\n")
    return result


def take(section: str, file: str) -> None:
    """Keep what a section's command wrote to a file, and write the page."""
    if section not in SECTIONS:
        sys.exit(f"There is no section {section!r}; there are {', '.join(SECTIONS)}.")
    keep(section, json.loads(Path(file).read_text()), provenance.stamp(f"python {SECTIONS[section]}"))
    main([])


def wanted(names: Sequence[str]) -> list[str]:
    """The sections named; of "all" those that have no result of the code that is here, and can be measured on this machine."""
    if "all" not in names:
        return list(names)
    now, there, gpu = provenance.commit(), results(), torch.cuda.is_available()
    old = [name for name in SECTIONS if name not in there or there[name]["commit"] != now]
    return [name for name in old if gpu or not name.endswith("-gpu")]


# writing


def results() -> dict[str, dict[str, Any]]:
    """What is kept, by section."""
    return {file.stem: json.loads(file.read_text()) for file in sorted(RESULTS.glob("*.json"))}


def _rendered(template: str, **more: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= FILTERS
    card = json.loads((WEIGHTS / "tiny" / "card.json").read_text())
    weights = sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file())
    return environment.get_template(template).render(results=results(), card=card, weights=weights, **more)


def quotes() -> list[Quote]:
    """All that the README quotes: the lines of `readme.jinja`, "source | words"."""
    lines = [line for line in _rendered("readme.jinja").splitlines() if line.strip()]
    return [Quote(*(part.strip() for part in line.split("|", 1))) for line in lines]


def page() -> str:
    """The report."""
    return _rendered("report.md.jinja", quotes=quotes()).rstrip() + "\n"


# checking


def problems() -> Iterator[str]:
    """What the page or the README says differently from the results."""
    if PAGE.read_text(encoding="utf-8") != page():
        yield f"{PAGE.name} is not what the results give: `python {_RUN} --report` writes it; its words stand in report.md.jinja."
    yield from wrong_quotes(README.read_text(encoding="utf-8"), quotes())


def wrong_quotes(readme: str, quoted: Iterable[Quote]) -> Iterator[str]:
    """Quotes that a README lacks, and figures in its prose that are no part of a quote."""
    prose = " ".join(CODE.sub("", readme).split())
    for quote in quoted:
        if quote.text not in prose:
            yield f"README.md does not say {quote.text!r}, which is what {quote.source} gives."
        prose = prose.replace(quote.text, "…")
    prose = re.sub("`[^`]+`", "…", prose)  # what one types is no claim
    for found in FIGURE.finditer(prose):
        around = prose[max(0, found.start() - 40) : found.end() + 20]
        yield f"README.md gives a figure that no line of readme.jinja stands for: {found.group()!r} in {around!r}."


def main(names: Sequence[str]) -> None:
    """Measure what is named, one after the other, and write the page."""
    for section in wanted(names):
        print(f"== {section}: python {SECTIONS[section]}", flush=True)
        measure(section)
    PAGE.write_text(page(), encoding="utf-8")
    missing = [name for name in SECTIONS if name not in results()]
    print(f"Written: {PAGE.relative_to(ROOT)}" + (f"; not measured yet: {', '.join(missing)}" if missing else ""))


def check() -> None:
    """Say what is wrong; exit with 1 if anything is."""
    found = list(problems())
    print("\n".join(found) or "The page and the README say what the results say.")
    sys.exit(bool(found))
