"""EMOTIC from a copy on disk: people in pictures, each with some of 26 emotions, in the three forms in which copies go round.

The pictures are given out on request, for research only, and are no part of this package; the user says where they lie.

| form | lies under the folder | emotions are told |
|---|---|---|
| "mat" | `Annotations.mat` (there or in `Annotations/`) and the pictures' own folders (there or in `emotic/`) | in words |
| "arrays" | `{split}.csv` with `{split}_{context,body,cat,cont}_arr.npy`, as public code prepares them | in words, and by place |
| "columns" | `annots_arrs/annot_arrs_{split}.csv` with `img_arrs/*.npy` | a column an emotion |

All three give the same frame. Emotions are found by their names, because files order them differently. A person counts as usable
who has a box, one emotion or more, and the three numbers; that is the selection that public code trains and tests on.

>>> len(EMOTIONS), PUBLISHED_ROWS["test"]
(26, 7203)

With data: `people = read_emotic("data/emotic")`, `people.to_frame()`, `people.picture(0, "body")`.
"""

import ast
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from emointerp.errors import InputError
from emointerp.models import to_image
from emointerp.plots import BLUE, GRAY, YELLOW, new_figure

EMOTIONS = (
    "Affection", "Anger", "Annoyance", "Anticipation", "Aversion", "Confidence", "Disapproval", "Disconnection", "Disquietment",
    "Doubt/Confusion", "Embarrassment", "Engagement", "Esteem", "Excitement", "Fatigue", "Fear", "Happiness", "Pain", "Peace",
    "Pleasure", "Sadness", "Sensitivity", "Suffering", "Surprise", "Sympathy", "Yearning",
)  # fmt: skip
VAD = ("valence", "arousal", "dominance")  # from 1 to 10
SPLITS = ("train", "val", "test")
VIEWS = ("context", "body")
PUBLISHED_ROWS = {"train": 23_266, "val": 3_315, "test": 7_203}
FORMS = ("mat", "arrays", "columns")
ARRAYS = ("context", "body", "cat", "cont")
BOX = ("X_min", "Y_min", "X_max", "Y_max")
ABOUT = ("Filename", "Width", "Height", *BOX, "Arr_name", "Crop_name", *(name.title() for name in VAD))
OTHER = ("Age", "Gender", "Folder", "Index")  # columns that copies have and nothing here needs
NAMED = 12  # names that a message lists

Box = tuple[int, int, int, int]

_END_TO_END = "a network trained on EMOTIC's pictures, which sees the person and the scene apart"
_ROWS = (
    ("CAER-Net", 20.84, "Lee et al. 2019, as given by Mittal et al. 2020", _END_TO_END),
    ("SAE directions", 24.11, "the blog post behind this package, mean of its chart", "SigLIP SO400M and its public SAE"),
    ("Kosti et al.", 27.38, "Kosti et al. 2019, as given by Mittal et al. 2020", _END_TO_END),
    ("Zhang et al.", 28.42, "Zhang et al. 2019, as given by Mittal et al. 2020", _END_TO_END),
    ("EmotiCon, GCN", 32.03, "Mittal et al. 2020", f"{_END_TO_END}; also faces, gait and who is near"),
    ("EmotionCLIP, linear probe", 32.91, "Zhang et al. 2023", "a tower trained on people in videos, and a probe"),
    ("EmotiCon, depth", 35.48, "Mittal et al. 2020", f"{_END_TO_END}; also faces, gait and depth"),
    ("Xenos et al.", 38.52, "Xenos et al. 2024", "pictures beside a large VLM's descriptions of them"),
)
NOT_COMPARABLE = (
    "Published figures, as their sources give them; none was measured here. They differ from ours in what is trained (most train "
    "on EMOTIC end to end, here directions or a probe are fitted on frozen vectors), in what is seen (person, scene, depth or "
    "words), and maybe in the rows."
)


def published() -> pd.DataFrame:
    """mAP on EMOTIC's test split as others published it: method, mAP in percent, source, what it is. See `NOT_COMPARABLE`."""
    return pd.DataFrame(_ROWS, columns=["method", "mAP, %", "published by", "what it is"])


@dataclass(frozen=True)
class Place:
    """Where a picture lies: a picture file or an .npy array; `row` of an array that holds many, `box` if it is to be cut out."""

    file: Path
    row: int | None = None
    box: Box | None = None

    def __str__(self) -> str:
        return str(self.file) if self.row is None else f"{self.file}, row {self.row}"

    def open(self) -> Image.Image:
        """The picture, RGB."""
        if self.file.suffix == ".npy":
            array = _mapped(self.file)
            return to_image(array if self.row is None else array[self.row])
        picture = to_image(self.file)
        return picture if self.box is None else picture.crop(self.box)


@dataclass(frozen=True, eq=False)
class Emotic:
    """People of EMOTIC. `table` has a row a person: split, image, bbox, a 0/1 column an emotion, valence, arousal, dominance.

    image: the picture's name with its folder, "mscoco/images/1.jpg"; without one where a copy tells none, which makes pictures of
    one name one. bbox: left, top, right, bottom in pixels of the picture. `places` say where the pictures of the rows are, by view;
    `form` how the copy lies on disk. `unusable`: people left out, by split, for want of a box, an emotion or the three numbers;
    `missing`: files that were not there, whose people are left out too; `damaged`: those that could not be read.
    """

    table: pd.DataFrame = field(repr=False)
    places: Mapping[str, tuple[Place, ...]] = field(repr=False)
    form: str
    unusable: Mapping[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = field(default=(), repr=False)
    damaged: tuple[str, ...] = field(default=(), repr=False)

    def to_frame(self) -> pd.DataFrame:
        """A row a person."""
        return self.table.copy()

    def picture(self, i: int, view: str = "context") -> Image.Image:
        """The picture of row `i`: the whole ("context"), or the person's box of it ("body")."""
        if view not in VIEWS:
            raise InputError(f"view is {view!r}; expected {' or '.join(map(repr, VIEWS))}.")
        if not 0 <= i < len(self.table):
            raise InputError(f"There is no row {i}; there are rows 0 to {len(self.table) - 1}.")
        return self.places[view][i].open()

    def some(self, rows: Sequence[int] | np.ndarray) -> "Emotic":
        """The people of these rows."""
        places = {view: tuple(all_of[i] for i in rows) for view, all_of in self.places.items()}
        return replace(self, table=self.table.iloc[rows].reset_index(drop=True), places=places)

    def split(self, name: str) -> "Emotic":
        """The people of one split."""
        if name not in set(self.table.split):
            raise InputError(f"There is no split {name!r} here; there are {', '.join(dict.fromkeys(self.table.split))}.")
        return self.some(np.flatnonzero(self.table.split == name))

    def drawn(self, n: int, seed: int = 0) -> "Emotic":
        """`n` people of each split, drawn by a seed, in their order; all where there are no more."""
        if n < 1:
            raise InputError(f"n is {n}; expected 1 or more people of each split.")
        rng = np.random.default_rng(seed)
        splits = [np.flatnonzero(self.table.split == name) for name in dict.fromkeys(self.table.split)]
        return self.some(np.concatenate([np.sort(rng.permutation(rows)[:n]) for rows in splits]))

    @property
    def labels(self) -> pd.DataFrame:
        """The emotions alone."""
        return self.table[list(EMOTIONS)]

    @property
    def summary(self) -> str:
        """How many people and pictures, what was left out, and where the numbers differ from the published ones."""
        counts = self.table.split.value_counts().to_dict()
        said = ", ".join(f"{name} {counts.get(name, 0):,}" for name in dict.fromkeys(self.table.split))
        lines = [f"{len(self.table):,} people in {self.table.image.nunique():,} pictures (form {self.form!r}): {said}."]
        if other := [f"{name} {PUBLISHED_ROWS[name]:,}" for name in counts if counts[name] != PUBLISHED_ROWS[name]]:
            lines.append(f"Published work has {', '.join(other)}: figures are of another selection.")
        if left := [f"{name} {count:,}" for name, count in self.unusable.items() if count]:
            lines.append(f"Left out for want of a box, an emotion or the three numbers: {', '.join(left)}.")
        if self.missing:
            lines.append(f"Left out for want of their files: the people of {len(self.missing):,} ({_listed(self.missing)}).")
        if self.damaged:
            lines.append(f"Left out because they cannot be read: the people of {len(self.damaged):,} ({_listed(self.damaged)}).")
        return " ".join(lines)

    def plot(self) -> Figure:
        """The share of people who have each emotion, by split."""
        shares = self.table.groupby("split", sort=False)[list(EMOTIONS)].mean().T
        shares = shares.sort_values(shares.columns[0])
        figure, axis = new_figure(width=6.5, height=1 + 0.22 * len(shares))
        for split, color in zip(shares, (GRAY, YELLOW, BLUE), strict=False):
            axis.plot(shares[split], range(len(shares)), "o", color=color, markersize=5, label=split)
        axis.set_yticks(range(len(shares)), shares.index, fontsize=8)
        axis.set(xlabel="share of people (the AP of chance)", xlim=(0, None))
        axis.legend(loc="lower right")
        return figure


@dataclass(frozen=True)
class _Person:
    """One person as a file tells it; numbers are NaN where it tells none."""

    split: str
    image: str
    box: Box
    emotions: tuple[float, ...]
    vad: tuple[float, ...]
    context: Place
    body: Place

    @property
    def usable(self) -> bool:
        left, top, right, bottom = self.box
        return left < right and top < bottom and any(self.emotions) and all(map(math.isfinite, self.vad))


def read_emotic(folder: str | Path, form: str | None = None, splits: Sequence[str] = SPLITS, skip_missing: bool = False) -> Emotic:
    """Read a copy of EMOTIC. `form` is told from the files (the first found of "columns", "arrays", "mat") unless it is given.

    Where several people annotated one (val and test), their combined annotation is taken, as published work does. Arrays are
    mapped into memory and never unpickled. InputError where files, columns or emotions are missing, unknown or do not fit together;
    pictures that are not there are counted and named, or with `skip_missing` their people are left out.
    """
    root = Path(folder)
    form = form or form_of(root)
    if form not in FORMS:
        raise InputError(f"form is {form!r}; expected {', '.join(map(repr, FORMS))}.")
    if strange := [name for name in splits if name not in SPLITS]:
        raise InputError(f"There is no split {strange[0]!r} of EMOTIC; there are {', '.join(SPLITS)}.")
    people = list({"mat": _from_mat, "arrays": _from_arrays, "columns": _from_columns}[form](root, splits))
    usable = [person for person in people if person.usable]
    unusable = {name: sum(not p.usable for p in people if p.split == name) for name in splits}
    missing = _missing(usable, root, skip_missing)
    kept = [person for person in usable if not {str(person.context.file), str(person.body.file)} & missing]
    if not kept:
        raise InputError(
            f"{root} holds no person with a box, an emotion, the three numbers and a picture; {len(people)} are told of."
        )
    places = {view: tuple(getattr(person, view) for person in kept) for view in VIEWS}
    return Emotic(_table(kept), places, form, unusable, tuple(sorted(missing)))


def form_of(folder: str | Path) -> str:
    """How the copy in a folder lies on disk, by its files; InputError where there is none."""
    root = Path(folder)
    if not os.path.isdir(root):
        raise InputError(f"There is no folder {root}; give the folder of your copy of EMOTIC.")
    if os.path.isdir(root / "annots_arrs"):
        return "columns"
    if any(os.path.isfile(root / f"{name}_cat_arr.npy") for name in SPLITS):
        return "arrays"
    if _mat_file(root):
        return "mat"
    expected = (
        "Annotations.mat with the pictures; or train.csv with train_context_arr.npy and so on; or annots_arrs/ with img_arrs/"
    )
    raise InputError(f"{root} holds no copy of EMOTIC; expected {expected}.")


def _table(people: Sequence[_Person]) -> pd.DataFrame:
    columns: dict[str, Any] = {"split": [p.split for p in people], "image": [p.image for p in people]}
    columns |= {"bbox": [p.box for p in people]}
    columns |= dict(zip(EMOTIONS, np.array([p.emotions for p in people]).astype(int).T, strict=True))
    return pd.DataFrame(columns | dict(zip(VAD, np.array([p.vad for p in people], float).T, strict=True)))


def _missing(people: Iterable[_Person], root: Path, skip: bool) -> set[str]:
    """Files that are not there; InputError, unless they are to be skipped."""
    files = {str(place.file) for person in people for place in (person.context, person.body)}
    missing = {file for file in files if not os.path.isfile(file)}
    if missing and not skip:
        said = f"{len(missing):,} of {len(files):,} picture files are not there: {_listed(sorted(missing))}"
        raise InputError(f"{said}. Complete the copy in {root}, or leave these people out with skip_missing=True (--skip-missing).")
    return missing


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _identity(folder: str, name: str) -> str:
    """A picture's name with its folder: the collections that EMOTIC was made of number their pictures alike."""
    return PurePosixPath(folder, name).as_posix()


def _key(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


_KEYS = {_key(name): i for i, name in enumerate(EMOTIONS)}


def _by_name(words: Iterable[str], where: str) -> tuple[float, ...]:
    """Words as 26 numbers, 0 or 1; case, blanks and strokes do not matter."""
    found = [0.0] * len(EMOTIONS)
    for word in words:
        if _key(word) not in _KEYS:
            raise InputError(f"{where} names the emotion {word!r}, which is none of EMOTIC's: {', '.join(EMOTIONS)}.")
        found[_KEYS[_key(word)]] = 1.0
    return tuple(found)


def _boxed(values: Any, width: float, height: float) -> Box:
    """Whole numbers within the picture, as public code takes them; an empty box where there is none."""
    numbers = np.asarray(values, float).ravel()
    if numbers.size != 4 or not np.isfinite(numbers).all():
        return 0, 0, 0, 0
    left, top, right, bottom = np.clip(numbers, 0, [width, height, width, height]).astype(int).tolist()
    return left, top, right, bottom


# Annotations.mat


def _mat_file(root: Path) -> Path | None:
    below = (root.joinpath(*["Annotations"] * depth, "Annotations.mat") for depth in range(3))
    return next((file for file in below if os.path.isfile(file)), None)


def _from_mat(root: Path, splits: Sequence[str]) -> Iterator[_Person]:
    """People of a MATLAB file, in which whatever there is one of comes without a list around it."""
    from scipy.io import loadmat

    file = _mat_file(root)
    if file is None:
        raise InputError(f"{root} holds no Annotations.mat, neither there nor in Annotations/.")
    try:
        held = loadmat(file, simplify_cells=True, variable_names=list(splits))
    except Exception as error:  # scipy raises almost anything on a damaged file
        raise InputError(f"{file} is no MATLAB file that scipy can read ({error!r}); copy it again.") from None
    if absent := [name for name in splits if name not in held]:
        raise InputError(f"{file} lacks the structs {', '.join(absent)}; EMOTIC has train, val and test.")
    for name in splits:
        for number, entry in enumerate(_many(held[name])):
            try:
                yield from _of_entry(entry, name, root, f"{file}, {name}({number + 1})")
            except InputError:
                raise
            except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
                raise InputError(f"{file}: {name}({number + 1}) lacks or garbles {error}; expected EMOTIC's fields.") from None


def _of_entry(entry: Mapping[str, Any], split: str, root: Path, where: str) -> Iterator[_Person]:
    file = _picture_file(root, str(entry["folder"]), str(entry["filename"]))
    width, height = float(entry["image_size"]["n_col"]), float(entry["image_size"]["n_row"])
    for person in _many(entry["person"]):
        box = _boxed(person["body_bbox"], width, height)
        words = [word.strip() for word in _categories(person)]
        name = _identity(str(entry["folder"]), str(entry["filename"]))
        yield _Person(split, name, box, _by_name(words, where), _numbers(person), Place(file), Place(file, box=box))


def _many(found: Any) -> list[Any]:
    """What MATLAB has one, several or none of, as a list."""
    if isinstance(found, np.ndarray):
        return found.ravel().tolist()
    return found if isinstance(found, list) else [found]


def _categories(person: Mapping[str, Any]) -> list[str]:
    """The combined annotation; where a person has none, all words of the annotators."""
    if "combined_categories" in person:
        return [str(word) for word in _many(person["combined_categories"])]
    each = [_many(one["categories"]) for one in _many(person["annotations_categories"])]
    return [str(word) for words in each for word in words]


def _numbers(person: Mapping[str, Any]) -> tuple[float, ...]:
    """Valence, arousal and dominance: combined, or the mean over annotators; NaN where one is not told."""
    told = _many(person["combined_continuous"] if "combined_continuous" in person else person["annotations_continuous"])
    rows = [[_number(one[name]) for name in VAD] for one in told]
    return tuple(np.mean(rows, 0).tolist()) if rows else (math.nan,) * 3


def _number(value: Any) -> float:
    """A number, or NaN for MATLAB's empty array."""
    return float(value) if np.size(value) == 1 else math.nan


def _picture_file(root: Path, folder: str, name: str) -> Path:
    """Where a picture lies, or where it is looked for first."""
    places = [base / folder / name for base in (root / "emotic", root, root / "emotic" / "emotic")]
    return next((place for place in places if os.path.isfile(place)), places[0])


# csv and four arrays a split


def _from_arrays(root: Path, splits: Sequence[str]) -> Iterator[_Person]:
    for split in splits:
        files = {name: root / f"{split}_{name}_arr.npy" for name in ARRAYS}
        table = _csv(root / f"{split}.csv", ("Filename", "Image Size", "BBox", "Categorical_Labels", "Continuous_Labels"))
        arrays = {name: _mapped(file) for name, file in files.items()}
        lengths = {f"{split}.csv": len(table)} | {files[name].name: len(np.atleast_1d(array)) for name, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} {n}" for name, n in lengths.items())
            raise InputError(f"The rows of {root} do not fit together: {said}. They must come from one run of what prepared them.")
        people = [_of_row(row, split, i, files) for i, row in enumerate(table.to_dict("records"))]
        _check_arrays(people, arrays, files)
        yield from people


def _of_row(row: Mapping[str, str], split: str, i: int, files: Mapping[str, Path]) -> _Person:
    where = f"{split}.csv, row {i + 1}"
    names = ("Image Size", "BBox", "Categorical_Labels", "Continuous_Labels")
    try:
        size, box, words, numbers = (ast.literal_eval(row[name]) for name in names)
        box, vad = _boxed(box, *size), tuple(map(float, numbers))
        emotions = _by_name(words, where)
    except InputError:
        raise
    except (ValueError, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError, OverflowError) as error:
        raise InputError(
            f"{where} is not as expected ({error}); {', '.join(names)} must be lists, such as [10, 20, 90, 200]."
        ) from None
    context, body = (Place(files[view], row=i) for view in VIEWS)
    name = _identity(row.get("Folder", ""), row["Filename"])
    return _Person(split, name, box, emotions, vad if len(vad) == 3 else (math.nan,) * 3, context, body)


def _check_arrays(people: Sequence[_Person], arrays: Mapping[str, np.ndarray], files: Mapping[str, Path]) -> None:
    """The arrays must tell of the same people as the table; emotions are compared by their number, since places differ."""
    told = {"cat": [sum(p.emotions) for p in people], "cont": [p.vad for p in people]}
    try:
        held = {"cat": np.asarray(arrays["cat"], float).reshape(len(people), -1).sum(1), "cont": np.asarray(arrays["cont"], float)}
    except (ValueError, TypeError) as error:
        raise InputError(f"{files['cat']} or {files['cont']} holds no numbers ({error}); prepare them again.") from None
    for name, values in told.items():
        expected = np.array(values)
        same = np.isclose(held[name], expected, equal_nan=True) if held[name].shape == expected.shape else np.zeros(1, bool)
        if not same.all():
            first = int(np.argmin(same.reshape(len(same), -1).all(1)))
            raise InputError(f"{files[name]} tells of other people than the table from row {first + 1} on; prepare both again.")


# a csv with a column an emotion, and an array a picture


def _from_columns(root: Path, splits: Sequence[str]) -> Iterator[_Person]:
    for split in splits:
        file = root / "annots_arrs" / f"annot_arrs_{split}.csv"
        table = _csv(file, ABOUT)
        columns = _emotion_columns(table, file)
        try:
            emotions = table[columns].astype(float).to_numpy()
            boxes, sizes = table[list(BOX)].astype(float).to_numpy(), table[["Width", "Height"]].astype(float).to_numpy()
            vad = table[[name.title() for name in VAD]].replace("", "nan").astype(float).to_numpy()
        except ValueError as error:
            raise InputError(f"{file} holds something that is no number where one is expected ({error}).") from None
        if not np.isin(emotions, (0, 1)).all():
            at = np.argwhere(~np.isin(emotions, (0, 1)))[0]
            raise InputError(f"{file}, row {at[0] + 1}: {columns[at[1]]} is {emotions[tuple(at)]:g}; expected 0 or 1.")
        for i, row in enumerate(table.to_dict("records")):
            context, body = (Place(root / "img_arrs" / row[name]) for name in ("Arr_name", "Crop_name"))
            box, name = _boxed(boxes[i], *sizes[i]), _identity(row.get("Folder", ""), row["Filename"])
            yield _Person(split, name, box, tuple(emotions[i].tolist()), tuple(vad[i].tolist()), context, body)


def _emotion_columns(table: pd.DataFrame, file: Path) -> list[str]:
    """The columns of the 26 emotions in our order, found by name; InputError names what is missing and what is unknown."""
    known = {_key(name): name for name in table.columns}
    missing = [name for name in EMOTIONS if _key(name) not in known]
    beside = {*map(_key, (*ABOUT, *OTHER)), *_KEYS}
    unknown = [name for name in table.columns if _key(name) not in beside and not name.startswith("Unnamed") and name]
    unknown = [name for name in unknown if missing or set(table[name]) <= {"0", "1", "0.0", "1.0"}]
    if missing or unknown:
        lacks = f"lacks the emotions {', '.join(missing) or 'none'}"
        raise InputError(
            f"{file} {lacks}, and has columns that are none of EMOTIC's: {', '.join(unknown) or 'none'}. Mend their names."
        )
    return [known[_key(name)] for name in EMOTIONS]


# files


def _csv(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table of texts."""
    if not os.path.isfile(file):
        raise InputError(f"There is no {file}; each split has one.")
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError as error:  # pandas' parser errors and UnicodeDecodeError are both of this kind
        raise InputError(f"{file} is no CSV table in UTF-8 ({error}); save it as one.") from None
    if lacking := [name for name in columns if name not in table.columns]:
        raise InputError(f"{file} lacks the columns {', '.join(lacking)}; it has {', '.join(table.columns)}.")
    return table


def _mapped(file: Path) -> np.ndarray:
    """An array on disk, mapped into memory; nothing is unpickled."""
    if not os.path.isfile(file):
        raise InputError(f"There is no {file}; this form of EMOTIC needs it.")
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy reads the head as Python's text, whose faults are of many kinds
        raise InputError(f"{file} is no plain array that can be read ({error}); copy or prepare it again.") from None
