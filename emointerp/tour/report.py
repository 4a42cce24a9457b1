"""From pictures and an event to `index.html` and `results.json`, whole or not at all."""

import json
import os
import re
import shutil
import tempfile
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import emointerp
from emointerp.errors import EmointerpError, InputError, ModelError, OutputError
from emointerp.files import alone
from emointerp.models import VLM, load, to_image
from emointerp.models.loading import BUNDLED
from emointerp.models.prompts import checked_text
from emointerp.start_here import EVENT
from emointerp.tour import heads, lens, sae, saliency, start_here, steering, superposition, veena
from emointerp.tour.chapter import BECAME, RAN, STOPPED, Chapter, Job, left_out
from emointerp.tour.page import machine, plain, rendered
from emointerp.tour.sizes import FULL, LIMIT, NAMED, QUICK, Pace, Sizes, seconds, spoken, stories_together

CHAPTERS: tuple[ModuleType, ...] = (start_here, superposition, sae, saliency, steering, lens, heads, veena)
NEEDS = {"veena": "heads"}  # a chapter that goes on from what another found
QUESTIONS = (
    start_here.SHOWN, start_here.SAID, start_here.CAUSE, saliency.WHERE, superposition.EYE, sae.MADE_OF, lens.WHEN, lens.ROAD,
    heads.PARTS, steering.PUSHED, veena.MENDED,
)  # fmt: skip
AUTO = "auto"


def run(
    images: Sequence[Any] = (),
    event: str | None = None,
    model: str | Path | VLM = "tiny",
    out: Path | str | None = None,
    force: bool = False,
    size: str | Sizes = AUTO,
    device: str | None = None,
    dtype: str = "auto",
) -> Path:
    """Make the report in the folder `out` and return the path of its page.

    `images` are paths, PIL images, arrays or scenes; without any, pictures of the drawn world. `model`: as in `load`, or in hand.
    `size` is "full", "quick", sizes of your own, or "auto": full, unless that would take more than a quarter of an hour with this
    model on this machine; then quick, and chapters that would still take too long are left out, as the page says.

    Bad input is refused before the model is loaded; a folder that exists is left alone unless `force` is set; an interrupted run
    writes nothing. Where a chapter stops with an error, the others stand, the page is written and says so, and then
    `EmointerpError` is raised.
    """
    images, began = [images] if isinstance(images, str | Path) else list(images), time.perf_counter()
    folder, asked = _checked_folder(out, force), _checked_size(size)
    event = checked_text(EVENT if event is None else event)
    for image in images:
        to_image(image)
    job = Job(_named(images) or start_here.bundled_pictures(), event)
    vlm = model if isinstance(model, VLM) else load(model, device=device, dtype=dtype)
    job = replace(job, batch=stories_together(vlm, [picture for _, picture in job.pictures], event))
    sizes, omitted = (asked, {}) if isinstance(asked, Sizes) else _planned(vlm, job)
    job = replace(job, sizes=sizes)
    chapters = _chapters(vlm, job, omitted)
    took = time.perf_counter() - began
    files = {"results.json": _json(_results(vlm, job, chapters, took)), "index.html": _page(vlm, job, chapters, took)}
    page = _written(folder if out or force else _free_folder(force), files, force)
    if stopped := [f"{c.title} ({c.results['error']})" for c in chapters if c.state == STOPPED]:
        raise EmointerpError(f"Stopped by an error: {'; '.join(stopped)}. The other chapters stand. Report: {page}")
    return page


def _checked_size(size: str | Sizes) -> Sizes | None:
    """None for "auto"."""
    if isinstance(size, Sizes) or size == AUTO:
        return size if isinstance(size, Sizes) else None
    if size not in NAMED:
        raise InputError(f"size is {size!r}; expected {AUTO}, {' or '.join(NAMED)}.")
    return NAMED[size]


def _planned(vlm: VLM, job: Job) -> tuple[Sizes, dict[str, str]]:
    """Sizes that this model can do in time, and, by chapter, why it is left out all the same."""
    if vlm.name in BUNDLED:
        return FULL, {}
    pace, n = Pace.measured(vlm, job.pictures[0][1], job.event, job.batch), len(job.pictures)
    full, quick = (seconds(sizes, pace, vlm.anatomy, n) for sizes in (FULL, QUICK))
    if sum(full.values()) <= LIMIT:
        return FULL, {}
    if quick["start_here"] > LIMIT:
        raise InputError(
            f"{vlm.name} takes about {spoken(pace.story)} for a story here, so the first chapter alone would take about "
            f"{spoken(quick['start_here'])}. Give a GPU (--device cuda), or --size quick to have it all the same."
        )
    return QUICK, _too_long(quick, pace)


def _too_long(expected: Mapping[str, float], pace: Pace) -> dict[str, str]:
    """Chapters for which no time is left, in the order of the page; what goes on from one of them takes none."""
    total, omitted = 0.0, {}
    for name, takes in expected.items():
        if NEEDS.get(name) in omitted:
            continue
        if total + takes <= LIMIT:
            total += takes
        else:
            omitted[name] = (
                f"Left out: at the speed of this model here ({spoken(pace.read)} to read a prompt, {spoken(pace.story)} a story) "
                f"it would take about {spoken(takes)}, and the tour is held to about {spoken(LIMIT)}. With --size quick it is done "
                "all the same."
            )
    return omitted


def _chapters(vlm: VLM, job: Job, omitted: Mapping[str, str]) -> list[Chapter]:
    """All chapters; each is told what those before it found."""
    chapters: list[Chapter] = []
    for module in CHAPTERS:
        name, states = _name_of(module), {chapter.name: chapter for chapter in chapters}
        before = states.get(NEEDS.get(name, ""))
        if name in omitted:
            chapters.append(left_out(name, module.TITLE, omitted[name]))
        elif before is not None and before.state != RAN:
            why = f"Left out: it goes on from what the chapter “{before.title}” finds, and that one {BECAME[before.state]}."
            chapters.append(left_out(name, module.TITLE, why))
        else:
            found = {name: chapter.found for name, chapter in states.items()}
            chapters.append(_made(module, vlm, replace(job, found=found, states={n: c.state for n, c in states.items()})))
    return chapters


def _made(module: ModuleType, vlm: VLM, job: Job) -> Chapter:
    """A chapter; or, where it stops, the words of the error: the other chapters are worth having without it."""
    began = time.perf_counter()
    try:
        chapter = module.chapter(vlm, job)
    except ModelError as error:
        return left_out(_name_of(module), module.TITLE, f"This model cannot be read in the way that this chapter needs. {error}")
    except Exception as error:
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0] or 'no words'}"
        traceback.print_exception(error)
        results = {"error": said, "traceback": _frames(error)}
        why = f"This chapter was stopped by an error, so nothing of it stands. {said}"
        return Chapter(_name_of(module), module.TITLE, (why,), (), results, state=STOPPED)
    return replace(chapter, results=chapter.results | {"seconds": time.perf_counter() - began})


def _frames(error: Exception) -> list[str]:
    """Where an error came from, without the folders of this machine: results are passed on."""
    frames = traceback.extract_tb(error.__traceback__)
    return [f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}" for frame in frames]


def _name_of(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def _named(images: Sequence[Any]) -> tuple[tuple[str, Any], ...]:
    names = [_name(image, i) for i, image in enumerate(images, 1)]
    numbered = [f"{name} ({names[:i].count(name) + 1})" if names.count(name) > 1 else name for i, name in enumerate(names)]
    return tuple(zip(numbered, images, strict=True))


def _name(image: Any, number: int) -> str:
    if not isinstance(image, str | Path):
        return f"picture {number}"
    return Path(image).name.encode("utf-8", "replace").decode()  # a name may hold bytes that are no text


def _checked_folder(out: Path | str | None, force: bool) -> Path:
    """The folder of the report, found writable and free before any work is done."""
    try:
        folder = _free_folder(force) if out is None else Path(out)
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise OutputError(f"{folder} is a file; --out expects a folder. Name another one.")
        if os.path.exists(folder) and any(not path.name.startswith(".") for path in folder.iterdir()) and not force:
            raise OutputError(f"{folder} exists and is not empty; nothing was written. Name another folder, or add --force.")
        parent = next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))
        if not os.path.isdir(parent):
            raise OutputError(f"{parent} is a file, so {folder} cannot be made below it. Name another folder with --out.")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError
    except PermissionError as error:
        raise OutputError(f"No permission to write in {out or Path.cwd()}; name another folder with --out.") from error
    return folder


def _check_free(folder: Path, force: bool) -> None:
    """Refuse a folder that was free when the tour began, and holds another's report now."""
    if not force and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise OutputError(
            f"{folder} was written to while this tour ran; nothing of it was changed. Name another folder with --out."
        )


def _free_folder(force: bool) -> Path:
    names = ["emointerp-tour", *(f"emointerp-tour-{i}" for i in range(2, 1000))]
    return next(Path(name) for name in names if force or not os.path.exists(Path(name)))


def _written(folder: Path, files: dict[str, str], force: bool) -> Path:
    """Write all files beside their places, then move them there, so that no half-written report is ever seen.

    The folder is looked at again: another tour may have written there while this one measured.
    """
    made = not os.path.exists(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
        try:
            for name, text in files.items():
                (scratch / name).write_text(text, encoding="utf-8", errors="replace")
            with alone(folder):
                _check_free(folder, force)
                for name in files:
                    os.replace(scratch / name, folder / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            if made and not any(folder.iterdir()):
                folder.rmdir()
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"Cannot write the report to {folder}: {error.strerror}. Name another folder with --out.") from error
    return folder / "index.html"


def _json(results: dict) -> str:
    return json.dumps(results, indent=2, ensure_ascii=False) + "\n"


# the page


def _page(vlm: VLM, job: Job, chapters: list[Chapter], took: float) -> str:
    said = {question: (answer, chapter.name) for chapter in chapters for question, answer in chapter.plain}
    ordered = [(question, said[question]) for question in QUESTIONS if question in said]
    return rendered(
        "page.html",
        model=vlm.name,
        event=job.event,
        chapters=chapters,
        answers=[(question, name, *_verdict(question, answer)) for question, (answer, name) in ordered],
        missing=[chapter for chapter in chapters if chapter.state != RAN],
        bundled=vlm.name in BUNDLED,
        sizes={chapter.title: _said(getattr(job.sizes, chapter.name)) for chapter in chapters},
        size=job.sizes.name,
        took=spoken(took),
        where=machine(vlm),
        version=emointerp.__version__,
    )


def _verdict(question: str, answer: str) -> tuple[str, str]:
    """The few words that an answer begins with where it gives a verdict, else ""; and the rest.

    >>> _verdict("Which parts carry it?", "A few heads: 6 of 64.")
    ('A few heads:', ' 6 of 64.')
    """
    found = None if question in (start_here.SHOWN, start_here.SAID) else re.match(r"(.{1,45}?[.:])( .*)", answer)
    return (found[1], found[2]) if found else ("", answer)


def _said(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {n}" for what, n in numbers.items())


# as numbers


def _results(vlm: VLM, job: Job, chapters: list[Chapter], took: float) -> dict:
    head = {"emointerp": emointerp.__version__, "model": vlm.name, "event": job.event, "seconds": took, "sizes": asdict(job.sizes)}
    head["batch"] = job.batch
    head["chapters"] = {chapter.name: chapter.state for chapter in chapters}
    return plain(head) | {chapter.name: plain(chapter.results) for chapter in chapters}
