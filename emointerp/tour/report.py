"""From pictures and an event to `index.html` and `results.json`, whole or not at all."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

import emointerp
from emointerp.errors import OutputError
from emointerp.models import VLM, load, to_image
from emointerp.models.prompts import checked_text
from emointerp.start_here import EVENT
from emointerp.statistics import Interval
from emointerp.tour import heads, lens, sae, saliency, start_here, steering, superposition, veena
from emointerp.tour.chapter import Chapter, Job

CHAPTERS: tuple[Callable[[VLM, Job], Chapter], ...] = (
    start_here.chapter,
    superposition.chapter,
    sae.chapter,
    saliency.chapter,
    lens.chapter,
    steering.chapter,
    heads.chapter,
    veena.chapter,
)


def run(
    images: Sequence[Any] = (), event: str | None = None, model: str = "tiny", out: Path | str | None = None, force: bool = False
) -> Path:
    """Make the report in the folder `out` and return the path of its page.

    `images` are paths, PIL images, arrays or scenes; without any, pictures of the drawn world. Bad input is refused before
    the model is loaded; a folder that exists is left alone unless `force` is set; an interrupted run writes nothing.
    """
    images = [images] if isinstance(images, str | Path) else list(images)
    folder = _checked_folder(out, force)
    event = checked_text(EVENT if event is None else event)
    for image in images:
        to_image(image)
    pictures = _named(images) or start_here.bundled_pictures()
    job = Job(pictures, event)
    vlm = load(model)
    chapters = _chapters(vlm, job)
    return _written(folder, {"index.html": _page(vlm, job, chapters), "results.json": _json(_results(vlm, job, chapters))})


def _chapters(vlm: VLM, job: Job) -> list[Chapter]:
    """All chapters; each is told what those before it found."""
    chapters: list[Chapter] = []
    for make in CHAPTERS:
        chapters.append(make(vlm, replace(job, found={chapter.name: chapter.found for chapter in chapters})))
    return chapters


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
        if folder.exists() and not folder.is_dir():
            raise OutputError(f"{folder} is a file; --out expects a folder. Name another one.")
        if folder.exists() and any(folder.iterdir()) and not force:
            raise OutputError(f"{folder} exists and is not empty; nothing was written. Name another folder, or add --force.")
        parent = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        if not parent.is_dir():
            raise OutputError(f"{parent} is a file, so {folder} cannot be made below it. Name another folder with --out.")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError
    except PermissionError as error:
        raise OutputError(f"No permission to write in {out or Path.cwd()}; name another folder with --out.") from error
    return folder


def _free_folder(force: bool) -> Path:
    names = ["emointerp-tour", *(f"emointerp-tour-{i}" for i in range(2, 1000))]
    return next(Path(name) for name in names if force or not Path(name).exists())


def _written(folder: Path, files: dict[str, str]) -> Path:
    """Write all files beside their places, then move them there, so that no half-written report is ever seen."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".part-", dir=folder))
        try:
            for name, text in files.items():
                (scratch / name).write_text(text, encoding="utf-8", errors="replace")
            for name in files:
                os.replace(scratch / name, folder / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
            if made and not any(folder.iterdir()):
                folder.rmdir()
    except OSError as error:
        raise OutputError(f"Cannot write the report to {folder}: {error.strerror}. Name another folder with --out.") from error
    return folder / "index.html"


def _json(results: dict) -> str:
    return json.dumps(results, indent=2, ensure_ascii=False) + "\n"


def _page(vlm: VLM, job: Job, chapters: list[Chapter]) -> str:
    environment = Environment(
        loader=PackageLoader("emointerp.tour"), autoescape=select_autoescape(default=True, default_for_string=True)
    )
    return environment.get_template("page.html").render(
        model=vlm.name, event=job.event, chapters=chapters, version=emointerp.__version__
    )


def _results(vlm: VLM, job: Job, chapters: list[Chapter]) -> dict:
    head = {"emointerp": emointerp.__version__, "model": vlm.name, "event": job.event}
    return head | {chapter.name: _plain(chapter.results) for chapter in chapters}


def _plain(value: Any) -> Any:
    """As JSON has it: numbers rounded, intervals as objects, and null for what is no number."""
    if isinstance(value, Interval):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
