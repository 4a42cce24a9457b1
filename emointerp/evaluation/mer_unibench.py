"""MER-UniBench from a copy on disk: labels, transcripts, the one frame that an image model sees, and the benchmark's metrics.

The data is given out on request and is no part of this package; the user says where it lies. Nine sets, each in a folder of its
own: a label file, a table of transcripts and a folder of videos, as in the benchmark's public code (`SETS` has the names).

>>> layout_of("IEMOCAPFour").name, SETS["MELD"].expected, SETS["CH-SIMS v2"].metric
('IEMOCAP-4', 2610, 'WAF')
>>> score_set("MER2023", ["I was glad.", "I was sad."], ["happy", "happy"]).percent
50.0

With data: `rows = read("data", "MELD")`, then `for picture, text, gold in rows.items(seed=0)` asks a model, and
`benchmark_table([score_set("MELD", answers, rows.golds, wheels), ...])` is the table; `compared_table` sets methods side by side.
"""

import math
import os
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from emointerp.emotions import NEUTRAL, Extractor, extract, f_s, read_pickled_npz, sentiment_sign, weighted_average_f
from emointerp.emotions.extraction import read_words
from emointerp.emotions.wheels import WheelsLike, as_wheels
from emointerp.errors import InputError
from emointerp.evaluation.clips import BESIDE, F_S, HIT, INTERVAL, OFFICIAL, WAF, clip_scores, method_table, once
from emointerp.evaluation.tables import NONE
from emointerp.models import to_image
from emointerp.pairs import PICTURES

# Of FFmpeg only what videos of people come in: a playlist may name addresses, and rare decoders are where it is attacked.
CODECS = ("h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video", "vp8", "vp9", "libdav1d", "mjpeg", "msmpeg4v2", "wmv2", "wmv3")
SAFE = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,matroska,avi,mpeg,mpegts,asf",
    "codec_whitelist": ",".join(CODECS),
}
NAMED = 12  # names that a message lists before it says how many more there are
_POLISH = "transcription-engchi-polish.csv"

Gold = str | float | tuple[str, ...]


@dataclass(frozen=True)
class Layout:
    """How one set lies on disk.

    alias: its name in the benchmark's code; folder: the usual name of its folder; expected: rows in test; metric: "hit rate", "WAF"
    or "F_s". label_file: an npz file in which `corpus` is a dict, name -> entry with the field `label`, or (corpus "") a CSV file
    with the columns name and `label`. emotions: what an index stands for, in order; session: the fifth letter of names in test.
    videos, endings: where NAME.mp4 lies; transcripts: a CSV file with the columns name and `text`.
    """

    name: str
    alias: str
    folder: str
    expected: int
    metric: str
    label_file: str = "label.npz"
    corpus: str = "test_corpus"
    label: str = "emo"
    emotions: tuple[str, ...] = ()
    session: str = ""
    videos: str = "video"
    endings: tuple[str, ...] = (".mp4", ".avi")
    transcripts: str = _POLISH
    text: str = "english"


_MELD = ("anger", "joy", "sadness", "neutral", "disgust", "fear", "surprise")
_IEMOCAP = ("happy", "sad", "neutral", "anger")
_MER = {"label_file": "label-6way.npz", "corpus": "test1_corpus"}
_MERGED = {"transcripts": "transcription_merge.csv", "text": "chinese"}
_FIVE = {"label_file": "label_4way.npz", "corpus": "whole_corpus", "session": "5", "endings": (".avi", ".mp4")}
_OPEN = {"label_file": "ovlabel.csv", "corpus": "", "label": "openset", "transcripts": "subtitle_eng.csv", "text": "sentence"}

# Read off the benchmark's public evaluation code (github.com/zeroQiaoba/AffectGPT).
SETS: Mapping[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("MER2023", "MER2023", "mer2023-dataset-process", 411, HIT, **_MER),
        Layout("MER2024", "MER2024", "mer2024-dataset-process", 1169, HIT, **_MER, **_MERGED),
        Layout("MELD", "MELD", "meld-process", 2610, HIT, emotions=_MELD, videos="subvideo"),
        Layout("IEMOCAP-4", "IEMOCAPFour", "iemocap-process", 1241, HIT, **_FIVE, emotions=_IEMOCAP, videos="subvideo-tgt"),
        Layout("CMU-MOSI", "CMUMOSI", "cmumosi-process", 686, WAF, label="val", videos="subvideo"),
        Layout("CMU-MOSEI", "CMUMOSEI", "cmumosei-process", 4659, WAF, label="val", videos="subvideo_new"),
        Layout("CH-SIMS", "SIMS", "sims-process", 457, WAF, label="val"),
        Layout("CH-SIMS v2", "SIMSv2", "simsv2-process", 1034, WAF, label="val", videos="video_new"),
        Layout("OV-MERD+", "OVMERDPlus", "ovmerdplus-process", 532, F_S, **_OPEN),
    )
}


def layout_of(name: str | Layout) -> Layout:
    """The layout of a set by its name, here or in the benchmark's code; case, blanks and hyphens do not matter."""
    if isinstance(name, Layout):
        return name
    known = {_key(n): layout for layout in SETS.values() for n in (layout.name, layout.alias)}
    if (key := _key(name)) not in known:
        near = get_close_matches(key, known, n=1)
        hint = f" Did you mean {known[near[0]].name}?" if near else ""
        raise InputError(f"{name!r} is no set of MER-UniBench; expected one of {', '.join(SETS)}.{hint}")
    return known[key]


def _key(name: str) -> str:
    return "".join(c for c in str(name).lower() if c.isalnum() or c == "+")


def folders(root: str | Path) -> dict[str, Path]:
    """The sets that lie under a folder: name -> its own folder, in the order of `SETS`. InputError where there is none."""
    root = Path(root)
    found = {layout.name: folder for layout in SETS.values() if (folder := _below(root, layout))}
    if not found:
        expected = ", ".join(layout.folder for layout in SETS.values())
        raise InputError(f"{root} holds no set of MER-UniBench; expected one or more of the folders {expected}.")
    return found


def _below(root: Path, layout: Layout) -> Path | None:
    places = (root / name for name in (layout.folder, layout.name, layout.alias))
    return next((place for place in places if os.path.isdir(place)), None)


# what a set holds


@dataclass(frozen=True)
class Row:
    """One clip: its gold label (an emotion, a valence, or a tuple of words), its transcript, and its video, frames or picture."""

    name: str
    gold: Gold
    transcript: str
    path: Path

    def picture(self, seed: int = 0) -> Image.Image:
        """One frame, drawn by `frame`: the same for the same seed and name."""
        return frame(self.path, seed, self.name)


@dataclass(frozen=True, eq=False)
class BenchmarkSet:
    """One set as it lies on disk.

    missing: labelled clips that were left out for lack of a video or transcript; extra: names of videos that no label names.
    """

    layout: Layout
    rows: tuple[Row, ...] = field(repr=False)
    missing: tuple[str, ...] = field(default=(), repr=False)
    extra: tuple[str, ...] = field(default=(), repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def golds(self) -> list[Gold]:
        """The gold labels in the order of the rows, for `score_set`."""
        return [row.gold for row in self.rows]

    @property
    def summary(self) -> str:
        """Rows beside the number that the benchmark has, in words."""
        gone = f", {len(self.missing)} left out" if self.missing else ""
        return f"{self.layout.name}: {len(self)} rows{gone}; the benchmark has {self.layout.expected}"

    def items(self, seed: int = 0) -> Iterator[tuple[Image.Image, str, Gold]]:
        """Picture, transcript and gold label of each row in turn; a video is opened when its turn comes."""
        return ((row.picture(seed), row.transcript, row.gold) for row in self.rows)

    def to_frame(self) -> pd.DataFrame:
        """One row a clip: name, gold, transcript, path."""
        return pd.DataFrame([vars(row) for row in self.rows], columns=list(Row.__dataclass_fields__))


def read(folder: str | Path, name: str | Layout, wheels: WheelsLike = None, skip_missing: bool = False) -> BenchmarkSet:
    """One set of the benchmark, from its own folder or from the folder above it.

    Label files are read by an unpickler that builds plain types only. `wheels` must know every emotion label (default: the
    package's five; `emotions.read_mer_unibench_wheels` reads the benchmark's). A clip may have a video, a folder of frames or a
    picture, each called as the clip. Where your copy has other names for its files or folders, give a layout as `name`:
    `dataclasses.replace(SETS["MELD"], videos="clips")`. Another number of rows than the benchmark's, and videos that no label
    names, give a warning. Raises an InputError that names the files, columns, labels, videos and transcripts that are missing
    or cannot be used; `skip_missing=True` leaves out clips without a video or transcript instead, and warns.
    """
    layout = layout_of(name)
    folder = _own_folder(Path(folder), layout)
    texts = _read_table(folder / layout.transcripts, layout.text)
    values, named = _read_labels(folder / layout.label_file, layout, texts)
    golds = _golds(values, layout, folder / layout.label_file)
    _check_known(golds, layout, wheels)
    paths = _paths(folder / layout.videos, layout)
    missing = _check_complete(golds, paths, texts, layout, folder, skip_missing)
    rows = tuple(Row(n, gold, texts[n], paths[n]) for n, gold in golds.items() if n in paths and n in texts)
    found = BenchmarkSet(layout, rows, missing, tuple(sorted(paths.keys() - named)))
    _warn(found, len(golds), folder)
    return found


def _own_folder(folder: Path, layout: Layout) -> Path:
    if not os.path.isdir(folder):
        raise InputError(f"There is no folder {folder}; give the folder of {layout.name}, or the one above it.")
    own = _below(folder, layout) or folder
    missing = [name for name in (layout.label_file, layout.transcripts) if not os.path.isfile(own / name)]
    missing += [f"{layout.videos}/"] if not os.path.isdir(own / layout.videos) else []
    if missing:
        where = "" if own != folder else f", either here or in a folder {layout.folder} below it"
        raise InputError(f"{own} lacks {', '.join(missing)}; {layout.name} needs them{where}.")
    return own


def _read_table(path: Path, column: str) -> dict[str, str]:
    """A CSV file in UTF-8 as name -> cell; blank cells are ""."""
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError as error:  # pandas' parser errors and UnicodeDecodeError are both of this kind
        raise InputError(f"{path} is no CSV table in UTF-8 ({error}); save it as one.") from error
    missing = [c for c in ("name", column) if c not in table.columns]
    if missing:
        raise InputError(f"{path} lacks the columns {', '.join(missing)}; it has {', '.join(map(str, table.columns))}.")
    return dict(zip(table["name"], table[column], strict=True))


# labels


def _read_labels(path: Path, layout: Layout, texts: Mapping[str, str]) -> tuple[dict[str, Any], set[str]]:
    """The labels of the test rows as the file has them, and the names of all rows, in test or not."""
    if layout.corpus:
        return _read_npz(path, layout)
    table = _read_table(path, layout.label)
    return {name: table.get(name) for name in texts}, {*table, *texts}


def _read_npz(path: Path, layout: Layout) -> tuple[dict[str, Any], set[str]]:
    corpora = {key: value for key, value in read_pickled_npz(path).items() if isinstance(value, dict)}
    if layout.corpus not in corpora:
        found = ", ".join(corpora) or "no dict"
        raise InputError(f"{path} holds {found}; expected the dict {layout.corpus}, name -> {{{layout.label!r}: label, ...}}.")
    test = {str(name): entry for name, entry in corpora[layout.corpus].items() if layout.session in str(name)[4:5]}
    values = {name: entry.get(layout.label) if isinstance(entry, dict) else None for name, entry in test.items()}
    return values, {str(name) for corpus in corpora.values() for name in corpus}


def _golds(values: Mapping[str, Any], layout: Layout, path: Path) -> dict[str, Gold]:
    if not values:
        raise InputError(f"{path} has no test rows of {layout.name}; the benchmark has {layout.expected}.")
    golds = {name: _gold(value, layout) for name, value in values.items()}
    bad = [f"{name}: {str(values[name])[:40]!r}" for name, gold in golds.items() if gold is None]
    if bad:
        said = f"{len(bad)} of {len(golds)} labels in {path} cannot be used: {_listed(bad)}"
        raise InputError(f"{layout.name}: {said}. Expected {_expected(layout)}.")
    return golds


def _gold(value: Any, layout: Layout) -> Gold | None:
    """A label in the form that its metric takes; None where it cannot be used."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if layout.metric == WAF:
        return float(value) if number else None
    if layout.emotions and number:
        return layout.emotions[int(value)] if value in range(len(layout.emotions)) else None
    if not isinstance(value, str) or value.strip().lower() in ("", "nan", "none"):
        return None
    if layout.metric == F_S:
        return _words(value)
    word = value.strip().lower()
    return word if word in (layout.emotions or (word,)) else None


def _words(value: str) -> tuple[str, ...]:
    """Words written as a list ("['glad', 'proud']") or with commas; an empty list is neutral, as in the benchmark's code."""
    parts = (part.strip(" []'\"").lower() for part in value.split(","))
    return tuple(part for part in parts if part) or (NEUTRAL,)


def _expected(layout: Layout) -> str:
    if layout.metric == WAF:
        return "a finite number, negative to positive"
    if layout.metric == F_S:
        return "a list of words for each name in the transcripts, such as ['glad', 'proud']"
    if layout.emotions:
        return f"an index from 0 to {len(layout.emotions) - 1} or a name, in the order {', '.join(layout.emotions)}"
    return "the name of an emotion"


def _check_known(golds: Mapping[str, Gold], layout: Layout, wheels: WheelsLike) -> None:
    """Refuse emotion labels that no wheel knows; words of an open vocabulary may be unknown, and drop out when scored."""
    if layout.metric != HIT:
        return
    chosen = as_wheels(wheels)
    outside = {g for g in golds.values() if g != NEUTRAL and not any(wheel.cluster(g) for wheel in chosen)}
    if outside:
        rows = [f"{name}: {gold!r}" for name, gold in golds.items() if gold in outside]
        raise InputError(
            f"{layout.name}: {len(rows)} labels are outside the wheels {', '.join(w.name for w in chosen)}: {_listed(rows)}. Mend "
            f"{layout.label_file}, or give wheels that know them: wheels=emotions.read_mer_unibench_wheels(folder)."
        )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


# videos


def _paths(folder: Path, layout: Layout) -> dict[str, Path]:
    """Clip -> its video; where there is none its folder of frames or its picture."""
    kinds = (*layout.endings, "folder", *PICTURES)
    found = [p for p in folder.iterdir() if _kind(p) in kinds and not p.name.startswith(".")]
    paths: dict[str, Path] = {}
    for path in sorted(found, key=lambda p: (kinds.index(_kind(p)), p.name)):
        paths.setdefault(path.name if os.path.isdir(path) else path.stem, path)
    return paths


def _kind(path: Path) -> str:
    return "folder" if os.path.isdir(path) else path.suffix.lower()


def _check_complete(
    golds: Mapping[str, Gold], paths: Mapping, texts: Mapping, layout: Layout, folder: Path, skip: bool
) -> tuple[str, ...]:
    """The clips without a video or a transcript; an InputError names them unless they may be left out."""
    endings = ", ".join(f"NAME{ending}" for ending in layout.endings)
    lacks = {
        f"no video in {layout.videos}/ ({endings}, a folder of frames or a picture)": [n for n in golds if n not in paths],
        f"no transcript in {layout.transcripts}": [n for n in golds if n not in texts],
    }
    faults = [f"{len(names)} of {len(golds)} clips have {what}: {_listed(names)}" for what, names in lacks.items() if names]
    missing = {name for names in lacks.values() for name in names}
    if faults and (not skip or len(missing) == len(golds)):
        leave = "" if skip else " Complete the copy, or leave these clips out with skip_missing=True."
        raise InputError(f"{layout.name} in {folder} is not complete. {'. '.join(faults)}.{leave}")
    if faults:
        warnings.warn(f"{layout.name}: {'. '.join(faults)}. They are left out.", stacklevel=3)
    return tuple(name for name in golds if name in missing)


def _warn(found: BenchmarkSet, labelled: int, folder: Path) -> None:
    layout = found.layout
    if labelled != layout.expected:
        said = f"{folder} has {labelled} test rows; the benchmark has {layout.expected}"
        warnings.warn(f"{layout.name}: {said}. Scores are of another selection than published ones.", stacklevel=3)
    if found.extra:
        said = f"{len(found.extra)} files in {layout.videos}/ belong to no label and are not used: {_listed(found.extra)}"
        warnings.warn(f"{layout.name}: {said}.", stacklevel=3)


def frame(path: str | Path, seed: int = 0, name: str | None = None) -> Image.Image:
    """One frame of a clip, each equally likely, drawn by the seed and the clip's name (default: the file's) and by nothing else.

    path: a video (needs PyAV: `pip install emointerp[video]`), a folder of frames, or a picture, which is the frame. A video is
    decoded once from beginning to end, because the number of frames in its header need not be right. Raises an InputError where
    there is no such file or it cannot be decoded.
    """
    path = Path(path)
    name = name or (path.name if os.path.isdir(path) else path.stem)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    if os.path.isdir(path):
        frames = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURES and not p.name.startswith("."))
        if not frames:
            raise InputError(f"The folder {path} holds no frames ({', '.join(PICTURES)}).")
        return to_image(frames[rng.integers(len(frames))])
    if path.suffix.lower() in PICTURES:
        return to_image(path)
    if not os.path.isfile(path):
        raise InputError(f"There is no video {path}; expected a video, a folder of frames or a picture.")
    return _drawn(path, rng)


def _drawn(path: Path, rng: np.random.Generator) -> Image.Image:
    """A frame by reservoir sampling (Vitter 1985): the i-th frame takes the place of the one held with probability 1/i."""
    av = _pyav(path)
    held = None
    try:
        with av.open(f"file:{path}", options=SAFE) as container:
            for stream in container.streams.video[:1]:
                _check_codec(path, stream.codec_context.name)
                stream.thread_type = "AUTO"
                for i, decoded in enumerate(container.decode(stream)):
                    held = decoded if rng.random() * (i + 1) < 1 else held
            image = None if held is None else held.to_image()
    except av.error.FFmpegError as error:
        raise InputError(f"The video {path} cannot be read ({error}); copy it again, or leave this clip out.") from error
    if image is None:
        raise InputError(f"The video {path} has no frames; copy it again, or leave this clip out.")
    return image


def _check_codec(path: Path, codec: str) -> None:
    if codec not in CODECS:
        raise InputError(
            f"The video {path} is packed with {codec!r}; expected one of {', '.join(CODECS)}. Convert it, for instance by ffmpeg "
            f"-i {path.name} -c:v libx264 {path.stem}.mp4, or put pictures of its frames into a folder {path.stem}/ in its place."
        )


def _pyav(path: Path) -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise InputError(
            f"Reading a frame of {path.name} needs PyAV; run: pip install 'emointerp[video]'. Or put pictures of its frames into a "
            f"folder {path.stem}/, or one picture {path.stem}.jpg, in the place of the video."
        ) from error
    return av


# scores


def score_set(
    name: str | Layout,
    answers: Iterable[str],
    gold: Iterable[Any],
    wheels: WheelsLike = None,
    extractor: Extractor = extract,
    neutral: bool = False,
) -> pd.Series:
    """One set's score by its own metric, in percent as in the benchmark's tables, and what has to stand beside it.

    Fields: set, metric, percent, n (rows that count) and skipped; low and high, the 95% bootstrap interval over these rows (WAF and
    F_s anew in each resample); precision and f in percent (of WAF, weighted by support, and of F_s; both are an F themselves),
    n_words, the emotion words an answer; of rows whose gold is no emotion, `neutral` of them, false_emotion in percent with
    false_low and false_high; and clips, a row each (`clips.clip_scores`). answers: the model's texts; gold: as `read` gives it.

    - hit rate: mean of `emotions.hit_rate`. The benchmark's code leaves rows out whose label no wheel knows, that is, neutral ones
      ("non-neutral label hit rate"), and so they are skipped; `neutral=True` counts them, as hit where no emotion is named. It also
      takes the mean over rows first and over wheels second, which differs only where a label is unknown to some wheels.
    - WAF: `emotions.weighted_average_f` of the signs of the answers; rows with gold 0 are skipped.
    - F_s: `emotions.f_s` of the emotion words of the answers; rows without a known gold word are skipped.

    The benchmark has a language model find the words of an answer; `extractor` puts one here. Raises InputError where the
    numbers of answers and labels differ, a label is outside the wheels or NaN, or no row is left.
    """
    score = score_clips(name, answers, gold, wheels, extractor, neutral)
    row = benchmark_table([score]).iloc[0]
    drawn = {field: row[field].item() for field in (*INTERVAL, *BESIDE)}
    return pd.Series(score[OFFICIAL].to_dict() | drawn | {"clips": score.clips}, name=score["set"])


def score_clips(
    name: str | Layout,
    answers: Iterable[str],
    gold: Iterable[Any],
    wheels: WheelsLike = None,
    extractor: Extractor = extract,
    neutral: bool = False,
    clips: Iterable[str] | None = None,
) -> pd.Series:
    """The same as `score_set` without what is drawn: set, metric, percent, n, skipped and clips, which bear the names `clips`."""
    layout, answers, gold = layout_of(name), _texts(answers), list(gold)
    if len(answers) != len(gold):
        raise InputError(f"{layout.name}: {len(answers)} answers came with {len(gold)} gold labels; give one for each.")
    _check_gold(gold, layout)
    if layout.metric == HIT and not neutral and all(str(g).strip().lower() == NEUTRAL for g in gold):
        raise InputError("Every gold label is neutral (or there is none), so no row is left to score; neutral=True counts these.")
    wheels, extractor = as_wheels(wheels), once(extractor)
    table = clip_scores(layout.metric, answers, gold, wheels, extractor, neutral)
    table.insert(0, "clip", list(map(str, range(len(gold)) if clips is None else clips)))
    if layout.metric == HIT:
        share = float(np.mean(table.score[table.counted]))
    elif layout.metric == WAF:
        share = weighted_average_f(gold, [sentiment_sign(answer, extractor) for answer in answers])
    else:
        share = f_s([[word.lemma for word in read_words(answer, wheels, extractor)] for answer in answers], gold, wheels).f
    n = int(table.counted.sum())
    values = {"set": layout.name, "metric": layout.metric, "percent": 100 * share, "n": n, "skipped": len(gold) - n}
    return pd.Series(values | {"clips": table}, name=layout.name)


def _texts(answers: Iterable[str]) -> list[str]:
    if isinstance(answers, str):
        raise InputError(f"answers must be a list of texts, one a row; got the text {answers[:60]!r}.")
    answers = list(answers)
    if strange := [f"row {i}: {answer!r:.60}" for i, answer in enumerate(answers) if not isinstance(answer, str)]:
        raise InputError(f'{len(strange)} answers are no texts: {_listed(strange)}. Give a str each, "" for no answer.')
    return answers


def _check_gold(gold: Sequence[Any], layout: Layout) -> None:
    kind, said = {HIT: (str, "a word"), WAF: (Real, "a number"), F_S: ((tuple, list), "a tuple of words")}[layout.metric]
    bad = [f"row {i}: {value!r}" for i, value in enumerate(gold) if not isinstance(value, kind) or value != value]
    if bad:
        raise InputError(
            f"{layout.name}: {len(bad)} gold labels cannot be used: {_listed(bad)}. Expected {said} each, as read gives it."
        )


def benchmark_table(scores: Iterable[pd.Series]) -> pd.DataFrame:
    """Scores of `score_set` in the order of `SETS`, and as the last row their plain mean, as in the benchmark's tables.

    Columns: the fields of `score_set` but clips. The mean's interval resamples clips within sets; its `false_emotion` is the mean
    over the sets that have neutral clips. Where sets are lacking, the last row says of how many it is the mean.
    """
    table = compared_table({"": [list(scores)]}, None)
    return table[[*OFFICIAL, *INTERVAL, *BESIDE]]


def compared_table(runs: Mapping[str, Sequence[Iterable[pd.Series]]], baseline: str | None = NONE) -> pd.DataFrame:
    """Methods beside a baseline: the rows of `benchmark_table` for each, with `method` before them, and what they gain.

    `runs`: for each method a list a seed of scores (`score_set`, with the clips' names; or `score_clips`), one a set. Clips are the
    unit, and seeds are averaged within them. Beside the columns of `benchmark_table`, in points, paired over clips:

    - `difference` in percent to the baseline with `difference_low` and `difference_high`, 95% bootstrap; `p`, two-sided, from
      exchanging the two methods' answers clip by clip (for the hit rate: sign flips), and `p_holm`, corrected over the method's
      sets; the mean is one test and has `p` alone;
    - the harm: `more_false`, with `more_false_low` and `more_false_high` and its own `p_false`.
    """
    ordered = {method: [_in_order(scores) for scores in some] for method, some in runs.items()}
    n = len(next((some[0] for some in ordered.values() if some), ()))
    return method_table(ordered, baseline, "mean of nine sets" if n == len(SETS) else f"mean of {n} of {len(SETS)} sets")


def _in_order(scores: Iterable[pd.Series]) -> list[pd.Series]:
    scores = list(scores)
    names = [score["set"] for score in scores]
    if not names or len(set(names)) < len(names):
        raise InputError(f"The table takes one score a set, as score_set gives them; got {', '.join(names) or 'none'}.")
    return sorted(scores, key=lambda score: list(SETS).index(score["set"]))
