"""Read the emotion wheels of MER-UniBench from the files that the benchmark gives out, to score as it scores.

The files are not part of this package; the user says where they lie. A word is looked up as in the benchmark's own
code: its spellings (format) -> their synonym roots -> the first root, in alphabetical order, that the wheel holds.
"""

import csv
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emointerp.emotions.lexicon import Vocabulary, base_forms, entry_key
from emointerp.emotions.pickled import check_unpacked, read_pickled_npz
from emointerp.emotions.tokens import words_of
from emointerp.emotions.wheels import Wheel, emotion_of, stop_words
from emointerp.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

_SHEETS = tuple(f"wheel{n}.xlsx" for n in range(1, 6))
_RUNS = range(1, 9)
_SOURCE = "MER-UniBench (AffectGPT), read from {}"

Tree = dict[str, dict[str, list[str]]]
Roots = dict[str, list[str]]


def read_mer_unibench_wheels(path: str | Path) -> list[Wheel]:
    """The benchmark's wheels, from a folder or from ``wheel_mapping.npz``.

    A folder holds either ``wheel_mapping.npz`` (taken where both are there, as the benchmark's code does) or
    ``wheel1.xlsx`` ... ``wheel5.xlsx`` (level1, level2, level3; a blank repeats the value above), ``synonym.xlsx``
    (word_run1, synonym_run1 ... word_run8, synonym_run8) and ``format.csv`` (name, format). Sheets need openpyxl
    (``pip install emointerp[mer]``). Pickled data is read by an unpickler that builds plain types only. Raises
    InputError where files are missing or not of this form.
    """
    path = Path(path)
    if not os.path.exists(path):
        raise InputError(f"no file or folder at {path}; give the benchmark's emotion_wheel folder or wheel_mapping.npz")
    npz = path if os.path.isfile(path) else path / "wheel_mapping.npz"
    return _from_npz(npz) if os.path.isfile(npz) else _from_sheets(path)


def _from_npz(path: Path) -> list[Wheel]:
    data = read_pickled_npz(path)
    try:
        formats, roots, whole = (data[key] for key in ("format_mapping", "raw_mapping", "wheel_map_whole"))
        trees = {name: _tree_of(levels["level1"], levels["level2"]) for name, levels in whole.items()}
        return [_wheel(name, path, tree, formats, roots) for name, tree in sorted(trees.items())]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is not a wheel mapping ({error!r}); expected the dicts format_mapping (form -> words), "
            "raw_mapping (word -> roots) and wheel_map_whole (wheel -> level1 / level2 -> root -> cluster)"
        ) from error


def _tree_of(level1: Mapping[str, str], level2: Mapping[str, str]) -> Tree:
    tree: Tree = {}
    for word, cluster in level1.items():
        tree.setdefault(cluster, {}).setdefault(level2[word], []).append(word)
    return tree


def _from_sheets(folder: Path) -> list[Wheel]:
    missing = [name for name in (*_SHEETS, "synonym.xlsx", "format.csv") if not os.path.isfile(folder / name)]
    if missing:
        raise InputError(f"{folder} lacks {', '.join(missing)}; expected these files, or wheel_mapping.npz")
    trees = {name.removesuffix(".xlsx"): _read_tree(folder / name) for name in _SHEETS}
    roots, formats = _read_roots(folder / "synonym.xlsx"), _read_formats(folder / "format.csv")
    return [_wheel(name, folder, tree, formats, roots) for name, tree in trees.items()]


def _wheel(name: str, path: Path, tree: Tree, formats: Roots, roots: Roots) -> Wheel:
    level1 = {word: c for c, levels in tree.items() for l2, words in levels.items() for word in (c, l2, *words)}
    table = {}
    for form, words in formats.items():
        candidates = sorted({root for word in words for root in roots.get(word, ())})
        cluster = next((level1[root] for root in candidates if root in level1), None)
        if cluster and entry_key(form):
            table[entry_key(form)] = cluster
    return Wheel(
        name=name,
        source=_SOURCE.format(path.name),
        tree=tree,
        emotions={cluster: emotion_of(cluster) for cluster in tree},
        vocabulary=_vocabulary(table),
        table=table,
        stop=stop_words(),
    )


def _vocabulary(entries: Iterable[str]) -> Vocabulary:
    """Every listed form is its own dictionary word, because the files give clusters to forms."""
    split = {entry: words_of(entry) for entry in entries}
    forms = {entry: entry for entry, words in split.items() if len(words) == 1}
    return Vocabulary(forms, {base_forms(words): entry for entry, words in split.items() if len(words) > 1})


def _read_sheet(path: Path, columns: Iterable[str]) -> "pd.DataFrame":
    try:
        import openpyxl  # noqa: F401
    except ImportError as error:
        raise InputError(f"reading {path.name} needs openpyxl; run: pip install 'emointerp[mer]'") from error
    import pandas as pd

    try:
        check_unpacked(path)
        frame = pd.read_excel(path, dtype=str, engine="openpyxl")
    except Exception as error:  # openpyxl raises many kinds for a file that is no workbook
        raise InputError(f"{path} cannot be read as an Excel sheet ({error}); expected an .xlsx file") from error
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")
    return frame


def _read_tree(path: Path) -> Tree:
    frame = _read_sheet(path, ("level1", "level2", "level3"))[["level1", "level2", "level3"]].ffill().dropna()
    tree: Tree = {}
    for level1, level2, level3 in frame.itertuples(index=False):
        tree.setdefault(_clean(level1), {}).setdefault(_clean(level2), []).append(_clean(level3))
    return tree


def _read_roots(path: Path) -> Roots:
    """Synonym -> the wheel words it was given for, over all eight runs; each wheel word is its own root, too."""
    frame = _read_sheet(path, [f"{kind}_run{n}" for n in _RUNS for kind in ("word", "synonym")])
    roots: Roots = {}
    for n in _RUNS:
        for word, synonyms in _run(frame, n):
            for synonym in (word, *_split(synonyms)):
                roots.setdefault(_clean(synonym), []).append(_clean(word))
    return roots


def _run(frame: "pd.DataFrame", n: int) -> Iterable[tuple[str, Any]]:
    columns = [f"word_run{n}", f"synonym_run{n}"]
    return frame[columns].dropna(subset=columns[:1]).itertuples(index=False)


def _read_formats(path: Path) -> Roots:
    """Spelling -> the words it is a form of; each word is its own form, too."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = csv.DictReader(stream)
            named, columns = list(rows), rows.fieldnames or ()
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV table in UTF-8 ({error}); save it as one") from error
    if not {"name", "format"} <= set(columns):
        raise InputError(f"{path} has the columns {columns}; expected name and format")
    formats: Roots = {}
    for row in named:
        for form in (row["name"], *_split(row["format"])):
            formats.setdefault(_clean(form), []).append(_clean(row["name"]))
    return formats


def _clean(value: Any) -> str:
    return str(value).strip().lower()


def _split(value: Any) -> list[str]:
    """A list written with commas, with or without brackets and quotes; a blank cell is empty."""
    if not isinstance(value, str):
        return []
    inner = value.strip().removeprefix("[").removesuffix("]")
    return [item.strip() for item in re.split("['\",]", inner) if item.strip()]
