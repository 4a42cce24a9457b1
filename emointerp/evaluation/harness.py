"""Methods on data sets, asked once: every finished cell is on disk at once, and a run that was stopped goes on.

A *cell* is a method on a set with a seed. In a folder, `settings.json` says what a run is made of and `cells/` holds a file for
each finished cell, written whole and then renamed, so that a kill loses at most one. Later runs may bring more methods, sets and
seeds; one with another model, or with other settings or items under a name that is there already, is refused with the difference
shown.

>>> result = evaluate(vlm, [none(), better], {"conflict": world_items(vlm, "conflict")}, folder="run")   # doctest: +SKIP
>>> result.to_frame()                                                                                    # doctest: +SKIP
"""

import hashlib
import json
import math
import os
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from itertools import product
from pathlib import Path
from platform import python_version
from time import perf_counter
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

import emointerp
from emointerp.circuit import revision
from emointerp.emotions import Extractor, extract
from emointerp.emotions.wheels import WheelsLike
from emointerp.errors import EmointerpError, InputError, OutputError
from emointerp.evaluation.items import Item
from emointerp.evaluation.methods import Decoding, Method
from emointerp.evaluation.tables import NONE, Evaluation, check_golds
from emointerp.files import alone, whole
from emointerp.models import VLM
from emointerp.tracing import perplexity as perplexity_of
from emointerp.world import Scene

SETTINGS, CELLS = "settings.json", "cells"
FORMAT, VERSION = "emointerp evaluation settings", 1
PACKAGES = ("torch", "transformers", "nnsight", "numpy")
STRIDE = 1_000_003  # between the seeds of a cell's batches: two that share a seed would draw the same numbers
SHOWN = 60  # characters of a setting that a message shows


def evaluate(
    vlm: VLM,
    methods: Sequence[Method],
    sets: Mapping[str, Sequence[Item]],
    *,
    seeds: Sequence[int] = (0,),
    temperature: float = 0.0,
    max_new_tokens: int = 64,
    batch: int = 32,
    perplexity: bool = True,
    wheels: WheelsLike = None,
    extractor: Extractor = extract,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Evaluation:
    """Ask every method on every set, score the answers and compare them with those of "none", which must be among the methods.

    At temperature 0 there is one answer, so one seed is all that is taken; above it, answers are sampled once a seed. `perplexity`:
    measure each answer's under the unedited model (a forward more an answer). With a `folder` finished cells are kept there, and
    the result is saved there at the end. Cells hold answers and no scores: each run scores them anew, by its own `wheels` and the
    words that its own `extractor` finds (a language model, for instance; asked once a text), and the saved result says by which.

    Raises an InputError for two methods of one name, golds that no wheel knows, and a folder that holds a run with other settings;
    an OutputError where another process is at work in the folder. An error inside a cell names the cell; those finished before it
    are kept.

    >>> import emointerp as ei
    >>> from emointerp import evaluation as ev
    >>> vlm = ei.load()
    >>> sets = {"conflict": ev.world_items(vlm, "conflict", 6)}
    >>> found = ev.evaluate(vlm, [ev.none(), ev.emotion_prompt()], sets, perplexity=False, max_new_tokens=24)
    >>> found.to_frame().index.tolist()
    [('conflict', 'none'), ('conflict', 'emotion prompt')]
    """
    run = Run.of(vlm, methods, sets, seeds, Decoding(max_new_tokens, temperature, batch=batch), perplexity)
    if NONE not in run.methods:
        raise InputError(f"Among the methods {', '.join(run.methods)} is no {NONE!r}, which all are compared with; add none().")
    check_golds(run.sets, wheels)
    with nullcontext() if folder is None else alone(Path(folder)):
        result = Evaluation.of(run.answered(folder, progress), run.sets, run.about, wheels, extractor)
        if folder is not None:
            result.save(folder)
    return result


@dataclass(frozen=True)
class Cell:
    """A method on a set with a seed."""

    method: str
    set: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method!r} on {self.set!r}, seed {self.seed}"

    @property
    def file(self) -> str:
        """Its file's name: readable, and unlike that of any other cell.

        >>> Cell("none", "conflict, blank picture", 0).file
        'none-conflict-blank-picture-0-4c265077.jsonl'
        """
        parts = [self.method, self.set, str(self.seed)]
        readable = re.sub(r"\W+", "-", "-".join(parts), flags=re.ASCII)[:80]
        return f"{readable}-{zlib.crc32(json.dumps(parts).encode()):08x}.jsonl"


@dataclass(frozen=True, eq=False)
class Run:
    """What is asked: methods and sets by name, seeds, and how answers are drawn."""

    vlm: VLM
    methods: Mapping[str, Method]
    sets: Mapping[str, Sequence[Item]] = field(repr=False)
    seeds: tuple[int, ...]
    decoding: Decoding
    perplexity: bool
    likely: dict[tuple[str, int, str], float | None] = field(default_factory=dict, init=False, repr=False)  # set, item, answer
    drawn: dict[str, list[Item]] = field(default_factory=dict, init=False, repr=False)  # the set that is being asked

    @classmethod
    def of(
        cls,
        vlm: VLM,
        methods: Sequence[Method],
        sets: Mapping[str, Sequence[Item]],
        seeds: Sequence[int] = (0,),
        decoding: Decoding | None = None,
        perplexity: bool = False,
    ) -> "Run":
        """A run, checked before anything is asked."""
        decoding, names = decoding or Decoding(), [method.name for method in methods]
        if not names or (twice := sorted({name for name in names if names.count(name) > 1})):
            said = f"{', '.join(map(repr, twice))} more than once" if names else "none at all"
            raise InputError(
                f"Every method needs a name of its own; there is {said}. Rename one: dataclasses.replace(m, name=...)."
            )
        if not sets or (empty := [name for name, items in sets.items() if not len(items)]):
            raise InputError(f"There is nothing to ask: {f'no items in {empty}' if sets else 'no sets'}. world_items makes some.")
        if not seeds or len(set(seeds)) < len(seeds):
            raise InputError(f"The seeds are {list(seeds)}; expected one or more, each once.")
        if not decoding.temperature and len(seeds) > 1:
            raise InputError(
                f"At temperature 0 every seed gives the same answers, and {len(seeds)} seeds came; give one, or a temperature "
                "above 0."
            )
        named = dict(zip(names, methods, strict=True))
        return cls(vlm, named, {name: list(items) for name, items in sets.items()}, tuple(seeds), decoding, perplexity)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What must be the same for a run to be continued, as JSON has it."""
        decoding = {name: value for name, value in self.decoding.options().items() if name != "seed"}
        settings = {
            "model": {"revision": revision(self.vlm), "instruction": self.vlm.instruction},
            "decoding": decoding,
            "perplexity": self.perplexity,
            "methods": {name: {"settings": m.settings, "oracle": m.oracle} for name, m in self.methods.items()},
            "sets": {name: {"n": len(items), "items": digest(items)} for name, items in self.sets.items()},
        }
        return json.loads(json.dumps(settings, default=str))

    @property
    def about(self) -> dict[str, Any]:
        """The settings, and what is noted beside them: the model's name, seeds, versions."""
        versions = {"python": python_version(), "emointerp": emointerp.__version__} | {name: version(name) for name in PACKAGES}
        model = {"name": self.vlm.name} | self.settings["model"]
        return self.settings | {"model": model, "seeds": list(self.seeds), "versions": versions}

    def answered(self, folder: str | Path | None = None, progress: bool = True) -> pd.DataFrame:
        """An answer a row: method, set, seed, item, answer, tokens (with the end token), seconds a token, perplexity.

        Seconds are those of the batch, over the tokens of its answers: the same for all of a batch. All methods answer a set before
        the next comes, so that what they are compared in was measured at about the same time.
        """
        cells = [Cell(method, name, seed) for name, seed, method in product(self.sets, self.seeds, self.methods)]
        place, warm = None if folder is None else _Folder.open(Path(folder), self), set()
        tables = []
        with tqdm(total=sum(len(self.sets[cell.set]) for cell in cells), desc="answers", disable=not progress) as bar:
            for cell in cells:
                bar.set_postfix_str(str(cell))
                rows = place.read(cell, len(self.sets[cell.set])) if place else None
                if rows is None:
                    rows = self._asked(cell, bar, cell.method not in warm)
                    warm.add(cell.method)
                    if place:
                        place.write(cell, rows)
                else:
                    bar.update(len(rows))
                tables.append(pd.DataFrame(rows).assign(method=cell.method, set=cell.set, seed=cell.seed))
        table = pd.concat(tables, ignore_index=True)
        return table.astype({"perplexity": float})[["method", "set", "seed", "item", *ROW[1:]]]

    def _asked(self, cell: Cell, bar: tqdm, first: bool) -> list[dict[str, Any]]:
        """The rows of a cell; before a method's `first` a short answer is asked, as what loads then is no cost of the method."""
        items, step, rows = self._drawn(cell.set), self.decoding.batch, []
        with _naming(cell):
            if first:
                self.methods[cell.method].answers(self.vlm, items[:1], replace(self.decoding, max_new_tokens=2, seed=cell.seed))
            for start in range(0, len(items), step):
                rows += self._batch(cell, items[start : start + step], start)
                bar.update(len(rows) - start)
        return rows

    def _drawn(self, name: str) -> list[Item]:
        """A set's items, their scenes drawn once for all methods, which is none of their costs."""
        if name not in self.drawn:
            self.drawn.clear()
            some = self.sets[name]
            self.drawn[name] = [replace(i, picture=i.picture.image()) if isinstance(i.picture, Scene) else i for i in some]
        return self.drawn[name]

    def _batch(self, cell: Cell, items: Sequence[Item], start: int) -> list[dict[str, Any]]:
        decoding = replace(self.decoding, seed=cell.seed + STRIDE * (start // self.decoding.batch))
        began = perf_counter()
        answers = self.methods[cell.method].answers(self.vlm, items, decoding)
        seconds = perf_counter() - began
        if len(answers) != len(items) or not all(isinstance(answer, str) for answer in answers):
            raise InputError(f"the method gave {len(answers)} answers to {len(items)} items; expected a text for each.")
        tokens = [self._length(answer) for answer in answers]
        likely = [self._perplexity(cell.set, start + i, *both) for i, both in enumerate(zip(items, answers, strict=True))]
        each = zip(range(start, start + len(items)), answers, tokens, likely, strict=True)
        return [dict(zip(ROW, (i, a, n, seconds / sum(tokens), p), strict=True)) for i, a, n, p in each]

    def _length(self, answer: str) -> int:
        return min(len(self.vlm.tokenizer(answer, add_special_tokens=False).input_ids) + 1, self.decoding.max_new_tokens)

    def _perplexity(self, name: str, i: int, item: Item, answer: str) -> float | None:
        """That of an answer under the unedited model, measured once, whichever methods give it."""
        if (name, i, answer) not in self.likely:
            found = perplexity_of(self.vlm, item.prompt(self.vlm), [answer])[0] if self.perplexity else math.nan
            self.likely[name, i, answer] = found if math.isfinite(found) else None
        return self.likely[name, i, answer]


ROW = ("item", "answer", "tokens", "seconds", "perplexity")


def digest(items: Sequence[Item]) -> str:
    """A sha256 of what items ask: pictures by their pixels, texts, golds and instructions, in order."""
    return hashlib.sha256("\n".join(item.key for item in items).encode()).hexdigest()


@contextmanager
def _naming(cell: Cell) -> Iterator[None]:
    """Errors inside a cell say which it was."""
    try:
        yield
    except EmointerpError as error:
        raise type(error)(f"{cell}: {error}") from error
    except Exception as error:
        error.add_note(f"This was in the cell {cell}; those finished before it are kept where a folder was given.")
        raise


# on disk


@dataclass(frozen=True)
class _Folder:
    """Where a run is kept."""

    path: Path

    @classmethod
    def open(cls, path: Path, run: Run) -> "_Folder":
        """The folder, made where there is none, and refused where it holds another run; its settings take in this one's."""
        file = path / SETTINGS
        if unsaid := [name for name, method in run.methods.items() if not method.settings]:
            raise InputError(
                f"The method {unsaid[0]!r} does not say what it is made of, so kept answers could be another's of its name. "
                "Give it settings: Method(name, answers, settings={…}), per_prompt(name, edits_of, settings={…})."
            )
        held = _settings(file)
        if held is None and os.path.isdir(path / CELLS) and any((path / CELLS).iterdir()):
            raise InputError(f"{path} holds cells but no {SETTINGS}, so what they are is not known. Give another folder.")
        if held is not None and (other := _differences(held, run.settings)):
            said = "; ".join(other)
            raise InputError(
                f"{path} holds a run with other settings: {said}. Nothing was changed there; ask with the settings of before, or "
                "give another folder."
            )
        both = {kind: (held or {}).get(kind, {}) | run.settings[kind] for kind in ("methods", "sets")}
        text = {"format": FORMAT, "version": VERSION, "settings": run.settings | both, "versions": run.about["versions"]}
        _write(file, json.dumps(text, indent=1) + "\n")
        return cls(path)

    def read(self, cell: Cell, n: int) -> list[dict[str, Any]] | None:
        """The rows of a finished cell; None where it is not there, or (with a warning) its file is damaged."""
        file = self.path / CELLS / cell.file
        if not os.path.isfile(file):
            return None
        try:
            head, *rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            if (
                head != _head(cell, n)
                or [row["item"] for row in rows] != list(range(n))
                or any(set(row) != set(ROW) for row in rows)
            ):
                raise ValueError("rows are missing or not this cell's")
        except (ValueError, TypeError, KeyError) as error:
            warnings.warn(f"{file} is damaged ({error}); this cell is asked again.", stacklevel=4)
            return None
        return rows

    def write(self, cell: Cell, rows: Sequence[dict[str, Any]]) -> None:
        """Keep a finished cell."""
        lines = [json.dumps(line) for line in (_head(cell, len(rows)), *rows)]
        _write(self.path / CELLS / cell.file, "\n".join(lines) + "\n")


def _head(cell: Cell, n: int) -> dict[str, Any]:
    return {"method": cell.method, "set": cell.set, "seed": cell.seed, "n": n}


def _settings(file: Path) -> dict[str, Any] | None:
    if not os.path.isfile(file):
        return None
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        if (held["format"], held["version"]) != (FORMAT, VERSION):
            raise ValueError(f"not marked as {FORMAT!r}, version {VERSION}")
        return held["settings"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file} is damaged or of something else ({error}). Give another folder.") from None


def _write(file: Path, text: str) -> None:
    """Whole and then renamed, so that no half of it is ever seen."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"Cannot write {file}: {error.strerror}. Give another folder.") from error


def _differences(held: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Which settings differ, of those that both runs have: a method or set that only one has is no difference.

    >>> _differences({"decoding": {"batch": 8}, "sets": {"a": 1}}, {"decoding": {"batch": 4}, "sets": {"b": 2}})
    ['decoding.batch was 8, is 4']
    """
    a, b = (_flat(_shared(some, other)) for some, other in ((held, now), (now, held)))
    return [_told(key, a, b) for key in {**a, **b} if key not in a or key not in b or a[key] != b[key]]


def _shared(some: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    kinds = [kind for kind in ("methods", "sets") if kind in some]
    return dict(some) | {kind: {name: v for name, v in some[kind].items() if name in other.get(kind, {})} for kind in kinds}


def _flat(value: Any, path: str = "") -> dict[str, str]:
    """Nested settings as {"methods.vaf.settings.layers[0]": "2"}."""
    if isinstance(value, dict) and value:
        return {k: v for key, some in value.items() for k, v in _flat(some, f"{path}.{key}" if path else key).items()}
    if isinstance(value, list) and value:
        return {k: v for i, some in enumerate(value) for k, v in _flat(some, f"{path}[{i}]").items()}
    return {path: json.dumps(value, ensure_ascii=False)}


def _told(key: str, a: Mapping[str, str], b: Mapping[str, str]) -> str:
    """What a setting was and is; of long ones the place where they part."""
    was, now = (some.get(key, "not there") for some in (a, b))
    start = max(0, len(os.path.commonprefix([was, now])) - SHOWN // 3)
    was, now = (_cut(text, start) if len(text) > SHOWN else text for text in (was, now))
    return f"{key} was {was}, is {now}"


def _cut(text: str, start: int) -> str:
    return f"{'…' * (start > 0)}{text[start : start + SHOWN]}{'…' * (start + SHOWN < len(text))}"
