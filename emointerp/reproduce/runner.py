"""The order of the steps, what each stands on, and the page at the end."""

import hashlib
import json
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

import emointerp
from emointerp.circuit import revision
from emointerp.errors import EmointerpError, InputError, ModelError, OutputError
from emointerp.evaluation.mer_unibench import SETS, Layout, folders
from emointerp.files import alone, writing
from emointerp.models import VLM, load
from emointerp.models.budget import named
from emointerp.models.loading import BUNDLED
from emointerp.pairs import PICTURES
from emointerp.reproduce import cases, checked_pairs, circuit_heads, layers, mending, reading, roads, vectors, woken
from emointerp.reproduce.claims import comparison
from emointerp.reproduce.kept import Result, Steps, digest, write_text
from emointerp.reproduce.material import Material, from_table, from_world
from emointerp.reproduce.page import written
from emointerp.reproduce.sizes import FULL, Sizes, checked, cut, planned, work
from emointerp.reproduce.task import BEGUN, Task
from emointerp.start_here import EVENT
from emointerp.tour.chapter import BECAME, LEFT_OUT, RAN, STOPPED, Chapter, left_out, listed
from emointerp.tour.sizes import Pace, spoken, stories_together
from emointerp.world import Scene

STEPS: tuple[ModuleType, ...] = (checked_pairs, vectors, layers, reading, roads, circuit_heads, woken, mending, cases)
ALSO = {"cases": ("veena",)}  # what a step uses where it is there, and does without
RUN, FORMAT, VERSION = "run.json", "emointerp reproduction", 1
NOT_ASKED = "Not asked for: this run was of {}. Run it without --only, or with this one, and it is added here."


def run(
    model: str | Path | VLM = "tiny",
    pairs: str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path = "emointerp-veena",
    *,
    size: str | Sizes = FULL,
    only: Sequence[str] = (),
    force: bool = False,
    device: str | None = None,
    dtype: str = "auto",
) -> Path:
    """Reproduce the paper's analyses in the folder `out` and return the path of its page.

    `model` as in `load`, or in hand. `pairs`: a table or folder (`pairs.read_pairs`); None: pairs of the drawn world. `data`: a
    copy of MER-UniBench; None: the drawn world's evaluation. `only`: names of steps, which are done with what they stand on (cases
    are told with VEENA where its step is finished in `out`, and do not wait for it).

    A step that is finished is read and not done again while its stamp says the same: model (its weights and prompts), pairs, sizes,
    version, earlier steps. `out` is of one model, of one set of pairs, of one size: another run is refused with what differs, and
    with `force` what no longer stands is done again. A step, or a part of one, that this model or these pairs do not allow is left
    out, with the reason; where that was an error of the model, the next run tries it again. A step that another error stops is done
    again by the next run, and after the page is written `EmointerpError` says so. Versions of torch and transformers are noted with
    each step; the page says where they differ, and no run is refused for them.
    """
    sizes, wanted, folder = checked(size), _wanted(only), Path(out)
    if data is not None:
        folders(data)  # refuses, before a model is loaded, what holds no set
    material = _material(pairs, sizes)
    _check_folder(folder)
    with alone(folder):
        vlm = model if isinstance(model, VLM) else load(model, device=device, dtype=dtype)
        task = Task(vlm, material, sizes, None if data is None else Path(data), _batch(vlm, material))
        walk = Walk(task, Steps(folder / "steps"))
        _claimed(folder, walk.about, force)
        chapters = _chapters(walk, wanted)
        table = comparison(vlm.name, material, data is not None, chapters)
        page = written(folder, task, chapters, table, walk.versions(chapters))
    if stopped := [f"{c.title} ({c.results['error']})" for c in chapters if c.state == STOPPED]:
        raise EmointerpError(f"Stopped by an error: {'; '.join(stopped)}. What others found stands. Page: {page}")
    return page


def plan(
    model: str = "tiny",
    pairs: str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path = "emointerp-veena",
    *,
    size: str | Sizes = FULL,
    only: Sequence[str] = (),
) -> pd.DataFrame:
    """What `run` would do: a row a step, whether it is `finished` in `out`, and hours on GPUs, computed; no weights are loaded.

    Of `pairs` so many are counted as each part has. A step is finished ("yes"; "in part" where the next run tries again what was
    left out) if it was done with these pairs and sizes; that model and data are the same is not looked at. For the bundled model
    hours on this machine as well, from the pace of one prompt and one story.
    """
    sizes, wanted = checked(size), _wanted(only)
    return _planned(model, _material(pairs, sizes), data, Path(out), sizes, wanted)


def plan_text(
    model: str = "tiny",
    pairs: str | Path | None = None,
    data: str | Path | None = None,
    out: str | Path = "emointerp-veena",
    *,
    size: str | Sizes = FULL,
    only: Sequence[str] = (),
) -> str:
    """`plan` as a text, with the pairs of each part, what is wrong with them, and what the times are good for."""
    sizes, wanted = checked(size), _wanted(only)
    material = _material(pairs, sizes)
    frame = _planned(model, material, data, Path(out), sizes, wanted)
    hours = [column for column in frame if column.endswith(", h")]
    shown = frame.assign(**{column: (3600 * frame[column]).map(spoken) for column in hours})
    shown = shown.rename(columns=lambda name: name.removesuffix(", h"))
    counts = ["prompts", "branches", "stories"]
    shown[counts] = shown[counts].round().astype(int)
    good = "computed and not measured: good to a factor of a few, and too short for a model as small as the bundled one"
    said = f"Times on GPUs are {good}." if hours else "It fits on none of the GPUs."
    said += f" A step that is finished in {out} is not done again while what it stands on is the same."
    return "\n\n".join([_pairs_said(material, sizes), shown.to_string(), said])


def _planned(model: str, material: Material, data: str | Path | None, out: Path, sizes: Sizes, wanted: set[str]) -> pd.DataFrame:
    budget, pace = replace(named(model), new=sizes.tokens), None
    if model in BUNDLED:
        pace = Pace.measured(load(model), material.pairs[0].emotional, EVENT)
    done = work(cut(sizes, material.counts), budget.anatomy, data is not None, not material.drawn)
    frame = planned({name: some for name, some in done.items() if name in wanted}, budget, pace)
    asked = {"pairs": _about_pairs(material), "sizes": _as_json(sizes)}
    stamps = [Steps(out / "steps").stamp(_place(_number(name))) for name in frame.index[:-1]]
    return frame.assign(finished=[*(_finished(stamp, asked) for stamp in stamps), ""])


def _finished(stamp: Mapping[str, Any] | None, asked: Mapping[str, Any]) -> str:
    """Whether a step with such a stamp, or none, is finished with what is asked."""
    if stamp is None or any(stamp["stands on"].get(name) != value for name, value in asked.items()):
        return "no"
    return "in part" if stamp.get("unfinished") else "yes"


def _pairs_said(material: Material, sizes: Sizes) -> str:
    """How many pairs each part has and how many of them are used; what was decided, and what pairs share."""
    used, there = cut(sizes, material.counts).pairs, material.counts
    told = ", ".join(f"{role} {n} of {there[role]}" for role, n in used.items())
    return "\n".join([f"Pairs of {material.source}: {told}.", *material.said, *(f"Beware: {line}" for line in material.warned)])


def _material(pairs: str | Path | None, sizes: Sizes) -> Material:
    return from_world(sizes.pairs) if pairs is None else from_table(pairs)


def _number(name: str) -> int:
    return [step.NAME for step in STEPS].index(name) + 1


def _place(number: int) -> str:
    """A step's folder."""
    return f"{number:02}-{STEPS[number - 1].NAME}"


def _wanted(only: Sequence[str]) -> set[str]:
    """The steps asked for and all that they need, or all."""
    needs = {step.NAME: step.NEEDS for step in STEPS}
    if strange := [name for name in only if name not in needs]:
        raise InputError(f"There is no step {strange[0]!r}; there are {', '.join(needs)}.")
    wanted, left = set(), list(only or needs)
    while left:
        name = left.pop()
        wanted.add(name)
        left += needs[name]
    return wanted


def _batch(vlm: VLM, material: Material) -> int:
    return stories_together(vlm, [pair.emotional for pair in material.pairs[:6]], EVENT)


# whose folder it is


def _about(vlm: VLM, material: Material, data: str | Path | None, sizes: Sizes) -> dict[str, Any]:
    """What a folder is of: it must be the same for a run to go on there."""
    asked = vlm.prompt(Scene(), EVENT, answer=BEGUN).inputs["input_ids"].tolist()
    return {
        "model": {"name": vlm.name, "weights": revision(vlm), "prompt": digest(asked), "dtype": str(vlm.model.dtype)},
        "pairs": _about_pairs(material),
        "data": None if data is None else _copy(data),
        "sizes": _as_json(sizes),
    }


def _about_pairs(material: Material) -> dict[str, Any]:
    return {"n": len(material.pairs), "fingerprint": material.fingerprint}


def _as_json(sizes: Sizes) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(sizes)))


def _copy(data: str | Path) -> dict[str, str]:
    """Of each set of a copy of MER-UniBench a hash of its labels, transcripts and clips: what is asked, wherever the copy lies."""
    found = {}
    for name, place in folders(data).items():
        files = [file for which in (SETS[name].label_file, SETS[name].transcripts) if (file := place / which).is_file()]
        found[name] = digest([*(hashlib.sha256(file.read_bytes()).hexdigest() for file in files), _clips(place, SETS[name])])
    return found


def _clips(place: Path, layout: Layout) -> list[list[Any]]:
    """Names and sizes of a set's clips (of frames and pictures too), without opening one: they may be hundreds of gigabytes."""
    folder, endings = place / layout.videos, {*layout.endings, *PICTURES}
    files = (file for file in folder.rglob("*") if file.suffix.lower() in endings and not file.name.startswith("."))
    return sorted([file.relative_to(folder).as_posix(), file.stat().st_size] for file in files if file.is_file())


def _check_folder(folder: Path) -> None:
    """Refuse, before a model is loaded, a file, and a folder of something else."""
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; --out expects a folder. Name another one.")
    if folder.is_dir() and any(not p.name.startswith(".") for p in folder.iterdir()) and not (folder / RUN).is_file():
        raise OutputError(f"{folder} is not empty and holds no reproduction; nothing was written. Name another folder.")


def _claimed(folder: Path, about: Mapping[str, Any], force: bool) -> None:
    """Write what the folder is of, or refuse one that is of something else."""
    file = folder / RUN
    held = _held(file)
    if held is not None and held != about and not force:
        raise OutputError(
            f"{folder} holds another run: {_apart(held, about)}. Nothing was changed there. Name another folder, or add --force to "
            "do again what no longer stands."
        )
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"format": FORMAT, "version": VERSION} | dict(about), indent=1) + "\n")


def _held(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        if (held.pop("format"), held.pop("version")) != (FORMAT, VERSION):
            raise ValueError("of another version")
        return held
    except (ValueError, KeyError, AttributeError) as error:
        raise OutputError(f"{file} is damaged or of something else ({error}). Name another folder.") from None


def _apart(held: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What differs, in a few words."""
    said = []
    for kind, now in about.items():
        was = held.get(kind)
        if was == now:
            continue
        if kind == "model" and was["name"] == now["name"]:
            said.append(f"of the model {now['name']} with other weights, prompts or precision")
        elif kind == "model":
            said.append(f"of the model {was['name']}, and this is {now['name']}")
        elif kind == "pairs":
            said.append(f"of {was['n']} other pairs than the {now['n']} that came")
        elif kind == "sizes":
            said.append(f"of size {was['name']}, and this is {now['name']}" if was["name"] != now["name"] else "of other sizes")
        else:
            said.append(f"{'with another' if was and now else 'with a' if was else 'without a'} copy of MER-UniBench")
    return "; ".join(said) or "of other settings"


# walking through the steps


@dataclass(frozen=True)
class Walk:
    """A task, and where its steps are kept."""

    task: Task
    steps: Steps

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the run is of; looked at once, since a copy of MER-UniBench has many files."""
        return _about(self.task.vlm, self.task.material, self.task.data, self.task.sizes)

    def done(self, step: ModuleType, found: Mapping[str, Result]) -> Result:
        """A step's result: read if it is finished and stands on the same, else measured and kept; read back in any case.

        Of an unfinished one the parts that are there are read, and what was left out is tried again.
        """
        place, stands_on = _place(_number(step.NAME)), self.stands_on(step, found)
        held = self.steps.read(place, stands_on)
        if held is None or held.unfinished:
            began = time.perf_counter()
            result = self._measured(step, found, place, stands_on)
            if held is None or not _lacks_the_same(held, result):
                self.steps.write(place, stands_on, result, time.perf_counter() - began)
                held = self.steps.read(place, stands_on)
        if held is None:
            raise OutputError(f"{self.steps.place(place)} was written and cannot be read again; look at the disk.")
        return held

    def kept(self, step: ModuleType, found: Mapping[str, Result]) -> Result | None:
        """A step's result if it is finished."""
        return self.steps.read(_place(_number(step.NAME)), self.stands_on(step, found))

    def stands_on(self, step: ModuleType, found: Mapping[str, Result]) -> dict[str, Any]:
        """What a step's numbers depend on: model, pairs, sizes, version, and the earlier steps that it uses."""
        used = [name for name in (*step.NEEDS, *ALSO.get(step.NAME, ())) if name in found]
        about = self.about if step.NAME in ("veena", "cases") else self.about | {"data": None}
        upstream = {name: self.steps.signature(_place(_number(name))) for name in used}
        return about | {"step": step.NAME, "emointerp": emointerp.__version__, "upstream": upstream}

    def versions(self, chapters: Sequence[Chapter]) -> dict[str, list[str]]:
        """Which steps on the page were measured with which versions, in words; no run is refused for these."""
        found: dict[str, list[str]] = {}
        for chapter in (one for one in chapters if one.state == RAN):
            held = (self.steps.stamp(_place(_number(chapter.name))) or {}).get("versions", {})
            said = listed([f"{name} {n}" for name, n in held.items()], "and") or "versions that were not noted"
            found.setdefault(said, []).append(chapter.name)
        return found

    def _measured(self, step: ModuleType, found: Mapping[str, Result], place: str, stands_on: Mapping[str, Any]) -> Result:
        """Measured; or why this model or these pairs do not allow it, which is a finding as well."""
        if gone := [name for name in step.NEEDS if name in found and found[name].left_out]:
            return Result(left_out=f"It goes on from the step “{_titled(gone[0])}”, and that one {BECAME[LEFT_OUT]}.")
        try:
            return step.measure(replace(self.task, found=found, parts=self.steps.parts(place, stands_on)))
        except OutputError:
            raise
        except (InputError, ModelError) as error:
            return Result(left_out=str(error))


def _lacks_the_same(held: Result, result: Result) -> bool:
    """Whether another try made nothing more of a step that was done in part; then what is kept stays, and what stands on it too."""
    if held.left_out:
        return False
    return bool(result.left_out) or result.facts.get("again") == held.facts.get("again")


def _titled(name: str) -> str:
    return next(step.TITLE for step in STEPS if step.NAME == name)


def _chapters(walk: Walk, wanted: set[str]) -> list[Chapter]:
    """All chapters in their order; a step that an error stops takes those with it that need it, and no others."""
    found: dict[str, Result] = {}
    stopped: dict[str, str] = {}
    with tqdm(STEPS, desc="steps") as bar:
        for step in bar:
            bar.set_postfix_str(step.NAME)
            if lost := [name for name in step.NEEDS if name in stopped]:
                stopped[step.NAME] = f"It goes on from the step “{_titled(lost[0])}”, and that one {BECAME[STOPPED]}."
                continue
            try:
                result = walk.done(step, found) if step.NAME in wanted else walk.kept(step, found)
            except OutputError:
                raise
            except Exception as error:
                traceback.print_exception(error)
                stopped[step.NAME] = _words(error)
                continue
            if result is not None:
                found[step.NAME] = result
    return [_chapter(walk.task, step, found, stopped, wanted) for step in STEPS]


def _chapter(task: Task, step: ModuleType, found: Mapping[str, Result], stopped: Mapping[str, str], wanted: set[str]) -> Chapter:
    """A step on the page."""
    if step.NAME in stopped:
        return _stopped(step, stopped[step.NAME])
    if step.NAME not in found:
        return left_out(step.NAME, step.TITLE, NOT_ASKED.format(", ".join(s.NAME for s in STEPS if s.NAME in wanted)))
    if why := found[step.NAME].left_out:
        return left_out(step.NAME, step.TITLE, f"Left out: {why}")
    try:
        return step.chapter(replace(task, found=found), found[step.NAME])
    except Exception as error:
        traceback.print_exception(error)
        return _stopped(step, _words(error))


def _stopped(step: ModuleType, said: str) -> Chapter:
    why = f"This step was stopped by an error; the next run tries it again. {said}"
    return Chapter(step.NAME, step.TITLE, (why,), (), {"error": said}, state=STOPPED)


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0] or 'no words'}"
