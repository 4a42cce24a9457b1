"""Aligned pairs: an emotional picture and its neutral counterfactual, beside an event that has no word of feeling in it.

Whatever is measured as "emotional minus neutral" stands on pairs whose two sides differ in the feeling and in nothing else. The
drawn world makes such pairs exactly (`world_pairs`, `text_pairs`); your own come from a table (`read_pairs`) or from two folders
(`folder_pairs`), and `check` says what is wrong with them before a method is blamed for it.

>>> pairs = world_pairs("direction", 6)
>>> pairs[0].emotion, pairs[0].plus[1] == pairs[0].minus[1]
('anger', True)
>>> check(pairs, progress=False).summary
'6 of 6 pairs pass. In 1 the whole picture changes: no background to judge.'

With a model, `vlm.prompt(*pair.plus)` and `vlm.prompt(*pair.minus)` are the two sides of a difference.
"""

import csv
import hashlib
import os
import re
import textwrap
import warnings
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import uniform_filter
from tqdm.auto import tqdm

from emointerp.emotions import BASIC, NEUTRAL, Wheel
from emointerp.emotions.wheels import WheelsLike, as_wheels
from emointerp.errors import InputError, OutputError
from emointerp.files import whole
from emointerp.given import expected, listed, whole_number
from emointerp.markup import thumbnail
from emointerp.models import VLM, Prompt, to_image
from emointerp.models.images import opened
from emointerp.models.vlm import check_model
from emointerp.plots import new_figure
from emointerp.world import Scene, loaded_events, sample
from emointerp.world.events import problems

TABLE = "pairs.csv"
REQUIRED = ("emotional", "neutral", "event", "emotion")
OPTIONAL = ("split", "name", "neutral_event", "aligned")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
TWINS = ("full", "expression")

# Set on the drawn world and on photographs with a third of the picture replaced. Drift there: 0 to 0.005 in the world's twins (0.01
# for faint expressions), 0.001 to 0.005 in JPEG files that were edited and saved again, 0.02 to 0.04 in a PNG beside a JPEG of
# quality 50, 0.01 for sensor noise of 2 levels of 255.
DRIFT = 0.02  # mean change of the background, of 1, beyond which it has drifted
CHANGED = 0.08  # mean change around a pixel, of 1, beyond which it is no background
ALIKE = 0.4  # correlation of brightness beyond which two pictures are one scene, maybe in other colours
JUDGED = 0.02  # share of the picture that must be left for a judgement
MOVED = 0.8  # two pictures are shifted if undoing the shift leaves less than this share of their misfit
SIDE = 512  # pictures are reduced by whole steps to between this and twice this many pixels a side


@dataclass(frozen=True)
class Pair:
    """Two sides of a contrast: `emotional` and `neutral` pictures of one moment, an event, and the emotion (or label) of the first.

    Pictures are whatever `vlm.prompt` takes. `split` keeps pairs for finding apart from pairs for testing. `neutral_event` goes
    with the neutral side, None: the same event. `aligned=False` marks pairs that are no twins, whose sizes and backgrounds may
    differ.

    >>> pair = Pair("smile.png", "rest.png", "The phone rang twice while I was cooking.", "joy")
    >>> pair.minus
    ('rest.png', 'The phone rang twice while I was cooking.')
    """

    emotional: Any = field(repr=False)
    neutral: Any = field(repr=False)
    event: str
    emotion: str
    split: str = ""
    name: str = ""
    neutral_event: str | None = None
    aligned: bool = True

    @property
    def plus(self) -> tuple[Any, str]:
        """Picture and event of the emotional side."""
        return self.emotional, self.event

    @property
    def minus(self) -> tuple[Any, str]:
        """Picture and event of the neutral side."""
        return self.neutral, self.event if self.neutral_event is None else self.neutral_event


def world_pairs(split: str = "direction", n: int = 60, seed: int = 0, twin: str = "full", **options: Any) -> list[Pair]:
    """Pairs of the drawn world, emotions in turn; `options` as in `world.sample`.

    `twin="full"`: the face at rest and emotional things gone; `"expression"`: only the face at rest, so that a direction cannot be
    partly one of balloons and rain.

    >>> import emointerp as ei
    >>> pairs = ei.world_pairs("test", 6)
    >>> [pair.emotion for pair in pairs]
    ['anger', 'disgust', 'fear', 'joy', 'sadness', 'surprise']
    >>> pairs[0].emotional.image().size
    (128, 128)
    """
    if twin not in TWINS:
        raise InputError(f"twin is {twin!r}; expected {' or '.join(map(repr, TWINS))}.")
    examples = sample(split, n, seed, **{"emotions": BASIC} | options)
    return [
        Pair(e.scene, e.scene.neutral(props=twin == "full"), e.event, e.scene.emotion, split, f"{split} {i}")
        for i, e in enumerate(examples)
    ]


def text_pairs(split: str = "direction", n: int = 60, seed: int = 0) -> list[Pair]:
    """Pairs whose contrast lies in the text: a neutral picture beside an event that suggests the emotion, and beside a neutral one.

    >>> pair = text_pairs("test", 1)[0]
    >>> pair.emotional == pair.neutral, pair.event == pair.neutral_event
    (True, False)
    """
    whole_number(seed, "seed", 0)
    rng = np.random.default_rng([seed, zlib.crc32(f"text {split}".encode())])
    pairs = []
    for i, e in enumerate(sample(split, n, seed, emotions=(NEUTRAL,))):
        picture, emotion = e.scene.neutral(), BASIC[i % len(BASIC)]
        loaded = str(rng.choice(loaded_events(emotion, split)))
        pairs.append(Pair(picture, picture, loaded, emotion, split, f"{split} text {i}", e.event))
    return pairs


# pairs as prompts


def twin_prompts(vlm: VLM, pair: Pair, answer: str = "") -> list[Prompt]:
    """The emotional and the neutral side of a pair as prompts; `answer` is how the answer has begun.

    >>> import emointerp as ei
    >>> vlm, pair = ei.load(), ei.world_pairs("test", 1)[0]
    >>> plus, minus = ei.pairs.twin_prompts(vlm, pair, "I felt")
    >>> plus.input_ids.shape == minus.input_ids.shape, vlm.tokenizer.decode(plus.input_ids[0, -2:])
    (True, ' I felt')
    """
    return [vlm.prompt(*side, answer=answer) for side in (pair.plus, pair.minus)]


def as_pairs(given: Iterable[Pair]) -> list[Pair]:
    """Pairs as a list, read once: a generator is empty afterwards. A pair by itself, and what is none, are refused."""
    return listed(given, Pair, "pair", "world_pairs('test', 36), or read_pairs(table) for your own")


def asked_of(vlm: VLM, pairs: Iterable[Pair]) -> list[Pair]:
    """What a method of pairs begins with: the model is one, and the pairs are read once."""
    check_model(vlm)
    return as_pairs(pairs)


def check_sides(pairs: Sequence[Pair]) -> None:
    """Refuse pairs whose two sides are one: the same path, object or scene beside the same event. No picture is opened for it."""
    if alike := [pair.name or str(i) for i, pair in enumerate(pairs) if _alike(pair)]:
        what = "the same picture and event on both sides, so nothing differs that could be measured"
        raise InputError(f"{len(alike)} of {len(pairs)} pairs ({', '.join(alike[:5])}) have {what}; give the neutral picture.")


def _alike(pair: Pair) -> bool:
    a, b = pair.emotional, pair.neutral
    paths = isinstance(a, str | Path) and isinstance(b, str | Path) and Path(a) == Path(b)
    return pair.plus[1] == pair.minus[1] and (a is b or paths or (isinstance(a, Scene) and isinstance(b, Scene) and a == b))


def check_number(pairs: Sequence[Pair]) -> None:
    """Refuse fewer pairs than say how sure a mean is, and pairs whose two sides are one."""
    check_sides(pairs)
    if len(pairs) < 2:
        raise InputError(f"{len(pairs)} pairs came; two or more are needed to say how sure a mean is: world_pairs('test', 36).")


def check_disjoint(chosen_on: Sequence[Pair], held_out: Sequence[Pair]) -> None:
    """Refuse to test on pictures that something was chosen on."""
    shared = set.intersection(*({fingerprint(to_image(pair.emotional)) for pair in some} for some in (chosen_on, held_out)))
    if shared:
        raise InputError(f"{len(shared)} emotional pictures stand in both sets; take pairs of different splits.")


def check_aligned(vlm: VLM, pairs: Sequence[Pair], both: Sequence[list[Prompt]]) -> None:
    """Refuse pairs whose two prompts do not have their tokens in the same places, which patching needs; `both` are theirs."""

    check_sides(pairs)

    def said(prompt: Prompt) -> str:
        return f"{len(prompt)} tokens, picture {' x '.join(map(str, prompt.image.size))}"

    apart = [
        f"{pair.name or i} ({said(a)}; {said(b)})"
        for i, (pair, (a, b)) in enumerate(zip(pairs, both, strict=True))
        if not in_same_places(vlm, a, b)
    ]
    if apart:
        same = "Patching needs token i of one prompt to stand for token i of the other: bring a pair's pictures to one size."
        raise InputError(f"The two prompts of these pairs differ in their tokens: {', '.join(apart)}. {same}")


def in_same_places(vlm: VLM, a: Prompt, b: Prompt) -> bool:
    """Whether token i of one prompt stands for token i of the other: as many of them, and visual ones of the same place."""
    if len(a) != len(b) or a.visual != b.visual:
        return False
    return np.allclose(_where(vlm, a), _where(vlm, b), atol=0.02, equal_nan=True)


def _where(vlm: VLM, prompt: Prompt) -> np.ndarray:
    """Where visual tokens look, as parts of the picture's width and height."""
    return vlm.boxes(prompt) / np.tile(prompt.image.size, 2)


# tables and folders


def read_pairs(table: str | Path) -> list[Pair]:
    """Pairs of a CSV table (UTF-8), or of the `pairs.csv` in a folder.

    Columns: emotional, neutral (pictures, looked up from the table's folder), event, emotion; if given, split, name, neutral_event
    and aligned ("no" for pairs that are no twins). Raises an InputError that lists all that is missing or cannot be read.

    >>> import emointerp as ei
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     table = ei.pairs.save_pairs(ei.world_pairs("test", 2), folder)
    ...     [pair.emotion for pair in ei.read_pairs(table)]
    ['anger', 'disgust']
    """
    expected(table, str | os.PathLike, "the path of a CSV table or its folder (a DataFrame has to_csv)")
    table = Path(table) / TABLE if os.path.isdir(Path(table)) else Path(table)
    columns, rows = _table(table)
    faults = [] if rows else ["it has no rows: write a line for each pair"]
    if missing := [c for c in REQUIRED if c not in columns]:
        faults.append(f"it lacks the columns {', '.join(missing)}; it has {', '.join(columns) or 'none'}")
    faults += [fault for line, row in rows for fault in _row_faults(line, row, columns)]
    faults += _picture_faults([table.parent / row[c] for _, row in rows for c in REQUIRED[:2] if row.get(c)])
    _refuse(faults, f"{table} cannot be used")
    return [_pair(row, table.parent) for _, row in rows]


def _table(table: Path) -> tuple[list[str], list[tuple[int, dict[str | None, Any]]]]:
    """Columns, and each row with the number of its line; cells beyond the last column come under None."""
    if not os.path.isfile(table):
        raise InputError(f"No table of pairs at {table}; expected a CSV file with the columns {', '.join(REQUIRED)}.")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", skipinitialspace=True)
            reader.fieldnames = columns = [c.strip().lower() for c in reader.fieldnames or ()]
            return columns, [(reader.line_num, {c: v.strip() if c else v for c, v in row.items()}) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table} is no CSV table in UTF-8 ({error}); save it as one.") from error


def _row_faults(line: int, row: dict[str | None, Any], columns: Sequence[str]) -> list[str]:
    faults = [f"line {line} has no {c}" for c in REQUIRED if c in columns and not row[c]]
    extra = f"line {line} has more cells than there are columns: put a text with commas in quotes"
    return [*faults, extra] if any(row.get(None, ())) else faults


def _picture_faults(paths: Sequence[Path]) -> list[str]:
    """What is wrong with picture files, in words, each said once."""
    paths = list(dict.fromkeys(paths))
    gone = [f"there is no picture {path}" for path in paths if not os.path.isfile(path)]
    return gone + [f"{path} is not a picture that can be read" for path in paths if os.path.isfile(path) and not _readable(path)]


def _readable(path: Path) -> bool:
    try:
        with opened(path) as image:
            image.verify()
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        return False
    return True


def _refuse(faults: Sequence[str], what: str) -> None:
    if faults:
        raise InputError(f"{what}:" + "".join(f"\n- {fault}" for fault in faults))


def _pair(row: dict[str, str], folder: Path) -> Pair:
    return Pair(
        folder / row["emotional"],
        folder / row["neutral"],
        row["event"],
        row["emotion"],
        split=row.get("split", ""),
        name=row.get("name") or row["emotional"],
        neutral_event=row.get("neutral_event") or None,
        aligned=row.get("aligned", "").lower() not in ("no", "false", "0"),
    )


def save_pairs(pairs: Iterable[Pair], folder: str | Path) -> Path:
    """Write pictures as PNG files and their table `pairs.csv`, to look at and to edit; `read_pairs(folder)` brings them back.

    Returns the table's path. It is written last, and a folder that holds one already is refused.
    """
    pairs, folder = as_pairs(pairs), Path(folder)
    if (folder / TABLE).exists():
        raise OutputError(f"{folder} holds pairs already; choose another folder, or delete its {TABLE} first.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        frame = pd.DataFrame([_saved(pair, i, folder) for i, pair in enumerate(pairs)], columns=[*REQUIRED, *OPTIONAL])
        empty = [c for c in OPTIONAL if not frame[c].any()]
        with whole(folder / TABLE) as part:
            frame.drop(columns=empty).to_csv(part, index=False)
    except (OSError, UnicodeError) as error:
        raise OutputError(f"Pairs cannot be written to {folder} ({error}); choose a folder that can be written to.") from error
    return folder / TABLE


def _saved(pair: Pair, i: int, folder: Path) -> tuple[str, ...]:
    stem = f"{i:03}_{re.sub(r'[^0-9A-Za-z]+', '_', pair.emotion)}"
    names = f"{stem}.png", f"{stem}_neutral.png"
    for name, picture in zip(names, (pair.emotional, pair.neutral), strict=True):
        to_image(picture).save(folder / name)
    return *names, pair.event, pair.emotion, pair.split, pair.name, pair.neutral_event or "", "" if pair.aligned else "no"


def folder_pairs(shows: str | Path, lacks: str | Path, label: str, event: str, split: str = "") -> list[Pair]:
    """A contrast of your own: a folder of pictures that show something (`label`) and one of pictures that lack it.

    Where both hold files of the same names (whatever their endings), pictures are matched by name as twins. Otherwise they are
    paired in the order of their names, as no twins, and a warning says so and how many are left over.
    """
    folders = [Path(expected(folder, str | os.PathLike, "the path of a folder of pictures")) for folder in (shows, lacks)]
    faults = [fault for folder in folders for fault in _folder_faults(folder)]
    _refuse(faults, "These folders cannot be paired")
    a, b = map(_pictures_in, folders)
    twins = [p.stem for p in a] == [p.stem for p in b]
    if not twins:
        warnings.warn(_why_no_twins(a, b), stacklevel=2)
    return [Pair(x, y, event, label, split, _said(x), aligned=twins) for x, y in zip(a, b, strict=twins)]


def _said(file: Path) -> str:
    """A file's name as text that tables and pages can hold: bytes of it that are not UTF-8 become backslashes and numbers."""
    return file.name.encode("utf-8", "backslashreplace").decode()


def _pictures_in(folder: Path) -> list[Path]:
    found = [p for p in folder.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith(".")]
    return sorted(found, key=lambda p: (p.stem, p.name))


def _folder_faults(folder: Path) -> list[str]:
    if not os.path.isdir(folder):
        return [f"there is no folder {folder}"]
    found = _pictures_in(folder)
    return _picture_faults(found) if found else [f"{folder} holds no pictures ({', '.join(PICTURES)})"]


def _why_no_twins(a: list[Path], b: list[Path]) -> str:
    lonely = [str(p) for these, others in ((a, b), (b, a)) for p in these if p.stem not in {o.stem for o in others}]
    said = f"The file names differ (without a partner: {', '.join(lonely[:3])}{', …' if len(lonely) > 3 else ''}), "
    said += "so pictures are paired in order, as no twins."
    return said + (f" Left over in the larger folder: {over}." if (over := abs(len(a) - len(b))) else "")


# looking at pairs before they are used


@dataclass(frozen=True, eq=False)
class Check:
    """What `check` found. `table` has a row a pair:

    name, emotion, split; `same_size`; `background`, the share of the picture left to judge; `drift`, its mean change, of 1 (both
    NaN for no twins, drift also where nothing is left to judge); `problems`, in words ("" for none).
    """

    table: pd.DataFrame
    pairs: Sequence[Pair] = field(repr=False)

    @property
    def passed(self) -> bool:
        """Whether no pair has a problem."""
        return self.failing().empty

    def failing(self) -> pd.DataFrame:
        """The pairs with a problem."""
        return self.table[self.table.problems != ""]

    @property
    def summary(self) -> str:
        """How many pairs pass, and of how many twins the background could not be judged."""
        n, bad = len(self.table), len(self.failing())
        said = f"{n - bad} of {n} pairs pass."
        blind = int((self.table.background < JUDGED).sum())
        return said + (f" In {blind} the whole picture changes: no background to judge." if blind else "")

    def contact_sheet(self, most: int = 10) -> Figure:
        """The pairs that fail (or, if none does, the first ones): both pictures, where they differ, and the problems in words."""
        rows = (self.table if self.passed else self.failing()).index
        shown = rows[:most]
        height, top = 1.45 * len(shown) + 0.7, 0.35
        figure, axes = new_figure(len(shown), 4, width=8.5, height=height, squeeze=False)
        axes[0, 0].get_gridspec().set_width_ratios([1, 1, 1, 3.2])
        figure.get_layout_engine().set(rect=(0, 0, 1, 1 - top / height))
        for axis, title in zip(axes[0], ("emotional", "neutral", "change"), strict=False):
            axis.set_title(title, fontsize=9, fontweight="normal")
        for i, line in zip(shown, axes, strict=True):
            _draw(line, self.pairs[i], self.table.loc[i])
        more = f" Shown: {len(shown)} of {len(rows)}." if len(shown) < len(rows) else ""
        figure.text(0.01, 1 - 0.1 / height, self.summary + more, va="top", fontsize=11, fontweight="bold")
        return figure

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            rows = "" if self.passed else self.failing().to_html(float_format="{:.3f}".format)
        return f"<p><b>{self.summary}</b></p>{rows}"


def check(pairs: Iterable[Pair] | str | Path, wheels: WheelsLike = None, progress: bool = True) -> Check:
    """Look at pairs, or at a table or folder of them as in `read_pairs`, before they are used.

    - Twins have one size, differ somewhere, lie on each other without a shift, and keep their background: outside the region that
      changes, pixels change by 0.02 of 1 on average at most (the largest of their channels). The region is where the change,
      smoothed over a 24th of the side and freed of a common shift in colour, exceeds 0.08; where it is the whole picture, nothing
      is judged. Pictures of more than 1023 pixels a side are compared reduced.
    - Events are in the first person, of six words or more, without second or third person and without words of feeling.
    - The emotion is known to the `wheels` (default: the package's five; or a `Concept` of your own).
    - No event and no picture stands in two splits.
    """
    pairs = read_pairs(pairs) if isinstance(pairs, str | Path) else as_pairs(pairs)
    if not pairs:
        raise InputError("There are no pairs to check.")
    chosen = as_wheels(wheels)
    looks = [_look(pair, chosen) for pair in tqdm(pairs, desc="pairs", disable=not progress)]
    places: dict[str, set[str]] = {}
    for pair, look in zip(pairs, looks, strict=True):
        for what in look.roles:
            places.setdefault(what, set()).add(pair.split)
    rows = [_row(pair, look, places) for pair, look in zip(pairs, looks, strict=True)]
    return Check(pd.DataFrame(rows), pairs)


@dataclass(frozen=True)
class _Look:
    """What one pair shows by itself; `roles` says what each of its pictures (by fingerprint) and events is in it."""

    roles: dict[str, str]
    problems: list[str]
    same_size: bool = False
    background: float = np.nan
    drift: float = np.nan


def _look(pair: Pair, wheels: Sequence[Wheel]) -> _Look:
    events = {pair.event: "event"} | ({} if pair.minus[1] == pair.event else {pair.minus[1]: "neutral event"})
    found = [f"{role}: {problem}" for event, role in events.items() for problem in problems(event)]
    if not any(wheel.cluster(pair.emotion) for wheel in wheels):
        found.append(f"the emotion {pair.emotion!r} is in none of the wheels {', '.join(w.name for w in wheels)}")
    images, unreadable = _opened(pair)
    if unreadable:
        return _Look(events, unreadable + found)
    prints = [fingerprint(image) for image in images]
    roles = events | {prints[1]: "neutral picture"} | {prints[0]: "emotional picture"}
    if prints[0] == prints[1] and len(events) == 1:
        found.insert(0, "the two sides are equal")
    same_size = images[0].size == images[1].size
    if not pair.aligned:
        return _Look(roles, found, same_size)
    if not same_size:
        return _Look(roles, [f"the sizes differ: {images[0].size} and {images[1].size} pixels", *found])
    background, drift, seen = _compared(*images)
    return _Look(roles, (seen if prints[0] != prints[1] else []) + found, True, background, drift)


def _opened(pair: Pair) -> tuple[list[Image.Image], list[str]]:
    """The pictures that can be read, and what is wrong with the others."""
    images, found = [], []
    for role, picture in (("emotional", pair.emotional), ("neutral", pair.neutral)):
        try:
            images.append(to_image(picture))
        except InputError as error:
            found.append(f"{role} picture: {str(error).replace('; ', ', ')}")
    return images, found


def fingerprint(image: Image.Image) -> str:
    """Tells pictures apart by their pixels, whatever they are called."""
    return hashlib.blake2b(image.tobytes() + str(image.size).encode(), digest_size=16).hexdigest()


def _row(pair: Pair, look: _Look, places: dict[str, set[str]]) -> dict[str, Any]:
    leaks = []
    for what, role in look.roles.items():
        if others := sorted(split or "none" for split in places[what] - {pair.split}):
            leaks.append(f"the {role} is also in split {', '.join(others)}")
    return {
        "name": pair.name, "emotion": pair.emotion, "split": pair.split, "same_size": look.same_size,
        "background": look.background, "drift": look.drift, "problems": "; ".join(look.problems + leaks),
    }  # fmt: skip


# twins compared


def _compared(emotional: Image.Image, neutral: Image.Image) -> tuple[float, float, list[str]]:
    """Share of the picture that is background, its drift, and what is wrong with the twins."""
    a, b = _pixels(emotional), _pixels(neutral)
    change, background = _change(a, b), _background(a, b)
    share = float(background.mean())
    drift = float(change[background].mean()) if share >= JUDGED else np.nan
    right, down = (step * _factor(emotional) for step in _moved(a, b))
    if right or down:
        return share, drift, [f"the emotional picture is shifted against its twin (right {right}, down {down} pixels)"]
    found = [f"the background drifts by {drift:.3f} on average (limit {DRIFT})"] if drift > DRIFT else []
    return share, drift, found + (["the two pictures hardly differ"] if change.max() <= CHANGED else [])


def _factor(image: Image.Image) -> int:
    return max(1, max(image.size) // SIDE)


def _pixels(image: Image.Image) -> Float[np.ndarray, "height width 3"]:
    return np.asarray(image.reduce(_factor(image)), np.float32) / 255


def _change(a: Float[np.ndarray, "height width 3"], b: Float[np.ndarray, "height width 3"]) -> Float[np.ndarray, "height width"]:
    return np.abs(a - b).max(-1)


def _background(a: Float[np.ndarray, "height width 3"], b: Float[np.ndarray, "height width 3"]) -> Bool[np.ndarray, "height width"]:
    """Where two pictures agree but for one shift of all colours.

    Two that are alike neither in structure nor over half of their pixels share no background: an abstract picture, all mood.
    """
    with np.errstate(invalid="ignore", divide="ignore"):  # a picture of one colour correlates with nothing
        alike = np.corrcoef(a.mean(-1).ravel(), b.mean(-1).ravel())[0, 1] > ALIKE
    tint = np.median(a - b, axis=(0, 1)) if alike else 0
    agree = uniform_filter(_change(a - tint, b), max(3, max(a.shape) // 24)) <= CHANGED
    return agree if alike or agree.mean() > 0.5 else np.zeros_like(agree)


def _moved(a: Float[np.ndarray, "height width 3"], b: Float[np.ndarray, "height width 3"]) -> tuple[int, int]:
    """How far `a` lies right of and below `b`, in pixels; (0, 0) unless undoing that makes the two agree clearly better."""
    (right, down), (height, width) = _offset(a.mean(-1), b.mean(-1)), a.shape[:2]
    if 4 * abs(right) > width or 4 * abs(down) > height:
        return 0, 0
    here = a[max(down, 0) : height + min(down, 0), max(right, 0) : width + min(right, 0)]
    there = b[max(-down, 0) : height - max(down, 0), max(-right, 0) : width - max(right, 0)]
    better = _misfit(here, there) < MOVED * _misfit(a, b) and _background(here, there).any()
    return (right, down) if better else (0, 0)


def _misfit(a: Float[np.ndarray, "height width 3"], b: Float[np.ndarray, "height width 3"]) -> float:
    """Mean change but for one shift of all colours; no pixel counts for more than `CHANGED`, so that the background decides."""
    return float(np.minimum(_change(a - np.median(a - b, axis=(0, 1)), b), CHANGED).mean())


def _offset(a: Float[np.ndarray, "height width"], b: Float[np.ndarray, "height width"]) -> tuple[int, int]:
    """Phase correlation (Kuglin and Hines 1975); written out, because scipy has none and scikit-image is no dependency."""
    cross = np.fft.rfft2(a - a.mean()) * np.fft.rfft2(b - b.mean()).conj()
    peak = np.fft.irfft2(cross / np.maximum(np.abs(cross), 1e-9), a.shape).argmax()
    down, right = (int(i - n if i > n // 2 else i) for i, n in zip(np.unravel_index(peak, a.shape), a.shape, strict=True))
    return right, down


# the contact sheet


def _draw(axes: np.ndarray, pair: Pair, row: pd.Series) -> None:
    images, unreadable = _opened(pair)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set(visible=not unreadable, color="#c5c9cf")
    if not unreadable:
        for axis, image in zip(axes, images, strict=False):
            axis.imshow(thumbnail(image))
    if row.same_size:
        axes[2].imshow(_change(*map(_pixels, images)), cmap="gray_r", vmin=0, vmax=0.25)
    else:
        axes[2].axis("off")
    axes[3].axis("off")
    said = axes[3].text(0, 0.5, _words(pair, row), va="center", fontsize=8, linespacing=1.35, parse_math=False)
    said.set_in_layout(False)


def _words(pair: Pair, row: pd.Series) -> str:
    head = ", ".join(filter(None, (pair.name, pair.emotion, pair.split and f"split {pair.split}")))
    events = " / ".join(dict.fromkeys((pair.event, pair.minus[1])))
    said = row.problems.split("; ") if row.problems else []
    if row.background < JUDGED:
        said.append("the whole picture changes: no background to judge")
    elif not said and row.background > 0:
        said.append(f"background {row.background:.0%} of the picture, drift {row.drift:.3f}")
    lines = [*textwrap.wrap(head, 66), *textwrap.wrap(events, 66)]
    return "\n".join(lines + [part for line in said for part in textwrap.wrap(f"→ {line}", 66, subsequent_indent="   ")])
