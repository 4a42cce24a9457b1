"""What `emointerp evaluate` runs: the drawn world, offline, or a copy of MER-UniBench, with the methods that need no fitting; or a
copy of EMOTIC, on which emotion directions are fitted and rank pictures."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from emointerp.emotions import BASIC, Extractor, extract
from emointerp.emotions.wheels import WheelsLike
from emointerp.errors import InputError
from emointerp.evaluation.baselines import pai, vaf, vcd
from emointerp.evaluation.clips import NOTE, shown
from emointerp.evaluation.emotic import NOT_COMPARABLE, SPLITS, VIEWS, Emotic, Place, published, read_emotic
from emointerp.evaluation.harness import Run, evaluate
from emointerp.evaluation.items import SETS, Item, world_items
from emointerp.evaluation.mer_unibench import Row, compared_table, folders, read, score_clips
from emointerp.evaluation.methods import Decoding, Method, emotion_prompt, none
from emointerp.evaluation.tables import BESIDE, NONE, RATES, Evaluation
from emointerp.files import alone, whole, writing
from emointerp.models import VLM, Tower
from emointerp.pairs import PICTURES
from emointerp.sae.emotion import SPARSE, EmotionScores, Labelled, emotion_scores
from emointerp.sae.value import SAE
from emointerp.statistics import Interval
from emointerp.world import Scene

STANDARD = (none, emotion_prompt, vaf, pai, vcd)  # need no fitting; "none" is first
SAID, SILENT = 'I said: "{}"', "I said nothing."
QUALITY = 95  # of the JPEG files that frames are kept as
AT_ONCE = 256  # pictures whose vectors are kept in one file


def standard(names: Sequence[str] = ()) -> list[Method]:
    """The methods that need no fitting, or those named among them; "none" comes first, always."""
    known = {method.name: method for method in (make() for make in STANDARD)}
    if strange := [name for name in names if name not in known]:
        raise InputError(f"There is no method {strange[0]!r} that needs no fitting; there are {', '.join(known)}.")
    return [known[name] for name in dict.fromkeys([NONE, *(names or known)])]


def run_world(
    vlm: VLM,
    methods: Sequence[Method],
    folder: str | Path | None = None,
    *,
    sets: Sequence[str] = SETS,
    n: int = 120,
    own: Mapping[str, Sequence[Item]] | None = None,
    **options: Any,
) -> Evaluation:
    """Methods on sets of the drawn world's test split, `n` items each, after those of your `own`; `options` as in `evaluate`."""
    if n < len(BASIC):
        raise InputError(f"n is {n}; at least {len(BASIC)} items of each set are needed, one an emotion.")
    asked = dict(own or {}) | {name: world_items(vlm, name, n) for name in sets}
    return evaluate(vlm, methods, asked, folder=folder, **options)


def run_mer_unibench(
    vlm: VLM, methods: Sequence[Method], data: str | Path, folder: str | Path, *, baseline: str = NONE, **options: Any
) -> pd.DataFrame:
    """Every set found under `data`, one frame a clip, by each method, beside `baseline`: `compared_table` of `mer_unibench`.

    `options` as in `score_mer_unibench`, which asks.
    """
    if baseline not in (names := [method.name for method in methods]):
        raise InputError(f"Among the methods {', '.join(names)} is no {baseline!r}, which all are compared with; add it.")
    scores = score_mer_unibench(vlm, methods, data, folder, **options)
    return compared_table({method: [some] for method, some in scores.items()}, baseline)


def score_mer_unibench(
    vlm: VLM,
    methods: Sequence[Method],
    data: str | Path,
    folder: str | Path,
    *,
    n: int | None = None,
    seed: int = 0,
    temperature: float = 0.0,
    max_new_tokens: int = 64,
    batch: int = 32,
    wheels: WheelsLike = None,
    extractor: Extractor = extract,
    skip_missing: bool = False,
    progress: bool = True,
) -> dict[str, list[pd.Series]]:
    """For each method the score of every set found under `data`, one frame a clip (`mer_unibench.score_clips`).

    The frame is drawn by `seed` and kept in `folder` (JPEG; for all nine sets some gigabytes), so that each video is opened once.
    The model is asked for a story of what was said, as everywhere here: the benchmark asks for emotions outright, so its published
    means are for orientation. `n`: so many clips of each set, drawn by the seed. Answers have at most `max_new_tokens` tokens and
    are told `batch` at a time. Finished cells are kept as in `evaluate`; a folder with other settings is refused. What is kept are
    answers: they are scored anew by the `wheels` and the `extractor` of each run, and written to clips.csv, a row a clip.
    """
    found = {name: read(place, name, wheels, skip_missing) for name, place in folders(data).items()}
    rows = {name: _some(one.rows, n, seed) for name, one in found.items()}
    for name, some in rows.items():  # refuses now what cannot be scored later
        score_clips(name, [""] * len(some), [row.gold for row in some], wheels)
    frames = Path(folder) / "frames" / f"seed-{seed}"
    total = sum(map(len, rows.values()))
    with alone(Path(folder)):
        with tqdm(total=total, desc="frames", disable=not progress) as bar:
            sets = {name: [_item(name, row, frames, seed, bar) for row in some] for name, some in rows.items()}
        decoding = Decoding(max_new_tokens, temperature, batch=batch)
        answers = Run.of(vlm, methods, sets, (seed,), decoding).answered(folder, progress)
        scores = {method: _scored(mine, rows, wheels, extractor) for method, mine in answers.groupby("method", sort=False)}
        each = [s.clips.assign(method=method, set=s["set"]) for method, some in scores.items() for s in some]
        clips = pd.concat(each).drop(columns="parts").set_index(["method", "set", "clip"])
        _told(folder, {"clips.csv": clips.to_csv()}, {})
    return scores


def _scored(answers: pd.DataFrame, rows: Mapping[str, Sequence[Row]], wheels: WheelsLike, extractor: Extractor) -> list[pd.Series]:
    said = {name: some.sort_values("item").answer.tolist() for name, some in answers.groupby("set")}
    how = {"wheels": wheels, "extractor": extractor}
    return [
        score_clips(name, said[name], [row.gold for row in some], clips=[row.name for row in some], **how)
        for name, some in rows.items()
    ]


def write_tables(result: Evaluation, folder: str | Path) -> str:
    """Write table.md, table.tex and the figures beside a result, and give its chief figures as a text."""
    texts = {"table.md": result.to_markdown(), "table.tex": result.to_latex()}
    figures = {"sets.png": result.plot_sets} | ({"gains.png": result.plot} if len(result.methods) > 1 else {})
    _told(folder, texts, figures)
    rates = result.shown()
    labels = {name: RATES[result.figure_of(name)] for name in result.sets}
    rates["rate"] = [f"{labels[row.set]} {row[labels[row.set]]}" for _, row in rates.iterrows()]
    beside = [label for label in BESIDE.values() if label in rates]
    brief = rates[["set", "method", "rate", "difference to none", "p (Holm)", *beside, "time ratio"]]
    return f"{brief.to_string(index=False)}\n\n{result.note}"


def write_table(table: pd.DataFrame, folder: str | Path) -> str:
    """Write scores.csv, and give the table as a text."""
    _told(folder, {"scores.csv": table.to_csv(index=False)}, {})
    return f"{shown(table).to_string(index=False)}\n\n{NOTE}"


# EMOTIC


def run_emotic(
    tower: Tower,
    sae: SAE | None,
    data: str | Path,
    folder: str | Path,
    *,
    view: str = "context",
    form: str | None = None,
    n: int | None = None,
    seed: int = 0,
    skip_missing: bool = False,
    progress: bool = True,
) -> tuple[EmotionScores, Emotic, str]:
    """Emotion directions on EMOTIC: fitted on train, the probe's strength chosen on val, pictures of test ranked.

    `view`: the whole picture ("context") or the person ("body"); `n`: so many people of each split, drawn by the seed. Vectors are
    kept in `folder`, `AT_ONCE` pictures a file, so that a run that was stopped goes on there. A picture, by its name or to the last
    bit of its vector, counts in one split only: it is left out of val and train if it is in test, and of train if it is in val.
    Gives the scores, the people behind them, and how many rows were left out so. InputError where a split has no one, or a picture
    cannot be read; with `skip_missing` its people are left out.
    """
    if view not in VIEWS:
        raise InputError(f"view is {view!r}; expected {' or '.join(map(repr, VIEWS))}.")
    if sae is not None:
        sae.check(tower.d, tower.name)  # refused before hours of work
    people = read_emotic(data, form, skip_missing=skip_missing)
    people = people if n is None else people.drawn(n, seed)
    _by_split(people, "has an emotion, a box, the three numbers and a picture")
    vectors = embedded(tower, people.places[view], Path(folder) / "vectors", progress, skip_missing)
    people, vectors = _readable(people, vectors, view)
    rows = _by_split(people, "has a picture that can be read")
    rows, said = _apart(Labelled(vectors, people.labels, tuple(people.table.image)), rows)
    kept = np.sort(np.concatenate(list(rows.values())))
    people, vectors = people.some(kept), vectors[torch.from_numpy(kept)]
    rows = _by_split(people, "is in a picture of its own")
    parts = [Labelled(vectors, people.labels, tuple(people.table.image)).some(rows[name]) for name in SPLITS]
    return emotion_scores(*parts, sae, seed=seed), people, said


def _by_split(people: Emotic, what: str) -> dict[str, np.ndarray]:
    """The rows of each split; InputError, in words, where one has none."""
    rows = {name: np.flatnonzero(people.table.split == name) for name in SPLITS}
    if empty := [name for name, some in rows.items() if not len(some)]:
        raise InputError(f"No one of {' and '.join(empty)} {what}; complete the copy: train, val and test are all needed.")
    return rows


def _readable(people: Emotic, vectors: Float[Tensor, "n d"], view: str) -> tuple[Emotic, Float[Tensor, "n_good d"]]:
    """Without the people whose pictures have no vector, who are counted."""
    good = vectors.isfinite().all(1)
    damaged = dict.fromkeys(str(people.places[view][i]) for i in (~good).nonzero()[:, 0].tolist())
    return replace(people.some(np.flatnonzero(good.numpy())), damaged=tuple(damaged)), vectors[good]


def _apart(people: Labelled, rows: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], str]:
    """The rows of splits without those whose picture is in a later one, and how many that took."""
    kept, left = {"test": rows["test"]}, {}
    for name in ("val", "train"):
        shared = {i for later in kept.values() if len(later) for i in people.some(rows[name]).same_as(people.some(later))}
        kept[name] = np.delete(rows[name], sorted(shared))
        left[name] = len(shared)
    told = ", ".join(f"{name} {count:,}" for name, count in left.items() if count)
    return kept, f"Rows left out because their picture is also in a later split: {told}." if told else ""


def embedded(
    tower: Tower, places: Sequence[Place], folder: str | Path, progress: bool = True, skip: bool = False
) -> Float[Tensor, "n d"]:
    """A tower's vectors of pictures on disk, each picture opened once, kept in files of `AT_ONCE`.

    InputError, with its row and file, where a picture cannot be read, or the tower's numbers for it are not finite; with `skip` its
    vector is NaN.

    A file's name is a hash of the tower (its name, and its vector of a drawn scene) and of what lies where (names, sizes, times):
    what has changed is done anew. Our own few lines, because a run must go on where it was cut off.
    """
    folder, unique = Path(folder), list(dict.fromkeys(places))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    sign = [tower.name, tower.embed([Scene()], progress=False).double().round(decimals=2).tolist()]
    rows = []
    for start in tqdm(range(0, len(unique), AT_ONCE), desc="pictures", unit_scale=AT_ONCE, disable=not progress):
        some = unique[start : start + AT_ONCE]
        key = hashlib.sha256(json.dumps([sign, [_stamp(place) for place in some]]).encode()).hexdigest()
        file = folder / f"{key[:24]}.safetensors"
        held = _held(file, len(some), tower.d)
        if held is None or not (skip or held.isfinite().all()):
            held = _vectors(tower, some, places, skip)
            with writing(folder), whole(file) as part:
                save_file({"vectors": held}, part)
        rows.append(held)
    at = {place: i for i, place in enumerate(unique)}
    return torch.cat(rows)[[at[place] for place in places]]


def _vectors(tower: Tower, some: Sequence[Place], places: Sequence[Place], skip: bool) -> Float[Tensor, "n d"]:
    """A vector of each picture, NaN where there is none."""
    opened = [_opened(place) for place in some]
    good = [i for i, found in enumerate(opened) if not isinstance(found, str)]
    vectors = torch.full((len(some), tower.d), torch.nan)
    if good:
        vectors[good] = tower.embed([opened[i] for i in good], progress=False)
    if not (skip or (finite := vectors.isfinite().all(1)).all()):
        first = int(finite.int().argmin())
        reason = opened[first] if isinstance(opened[first], str) else "The tower's numbers for it are not finite."
        where = f"The picture of person {places.index(some[first])} (from 0), {some[first]}, cannot be used"
        raise InputError(f"{where}: {reason} Mend it, or leave its people out with skip_missing=True (--skip-missing).")
    return vectors


def _opened(place: Place) -> Image.Image | str:
    """A picture, or why there is none: damaged files make Pillow's readers raise almost anything."""
    try:
        return place.open()
    except InputError as error:
        return str(error)
    except Exception as error:
        return f"It is damaged ({type(error).__name__}: {error})."


def _stamp(place: Place) -> list[Any]:
    there = place.file.stat()
    return [str(place.file), place.row, place.box, there.st_size, there.st_mtime_ns]


def _held(file: Path, n: int, d: int) -> Tensor | None:
    """Vectors that are there and whole."""
    try:
        held = load_file(file)["vectors"] if file.is_file() else None
    except (SafetensorError, KeyError):
        return None
    return held if held is not None and held.shape == (n, d) else None


def write_emotic(scores: EmotionScores, people: Emotic, said: str, folder: str | Path) -> str:
    """Write scores.csv, scores.json, table.md, features.csv and ap.png, and give the chief figures as a text."""
    summary = scores.summary().map(lambda value: _points(value) if isinstance(value, Interval) else "")
    notes = [people.summary, said, f"Left out, since a split has none: {', '.join(scores.left_out)}." * bool(scores.left_out)]
    notes += [f"The probe's C, chosen on val: {scores.strength:g}.", *_collapse(scores)]
    note, others = " ".join(filter(None, notes)), published()
    texts = {"scores.csv": scores.to_frame().to_csv(index=False), "scores.json": _json(scores, note)}
    tables = [summary.reset_index(), scores.to_frame().round(4), others]
    titles = ("mAP, % (difference in points, with 95% intervals)", "Average precision", "Published elsewhere, not ours")
    bodies = (note, "", NOT_COMPARABLE)
    pages = [f"## {title}\n\n{_markdown(table)}\n\n{body}" for title, table, body in zip(titles, tables, bodies, strict=True)]
    texts["table.md"] = "\n\n".join(page.strip() for page in pages) + "\n"
    for name, S in scores.directions.items():
        if name == SPARSE:
            texts["features.csv"] = pd.concat([S.top_features(e, 20) for e in S.emotions]).to_csv(index=False)
    _told(folder, texts, {"ap.png": scores.plot})
    listed = others[["method", "mAP, %", "published by"]].to_string(index=False)
    return f"{summary.to_string()}\n\n{note}\n\nPublished elsewhere, not ours:\n{listed}\n{NOT_COMPARABLE}"


def _points(interval: Interval) -> str:
    if interval.low == interval.high:
        return f"{100 * interval.mean:.2f}"
    return f"{100 * interval.mean:.2f} [{100 * interval.low:.2f}, {100 * interval.high:.2f}]"


def _collapse(scores: EmotionScores) -> list[str]:
    """How alike the emotions' directions are."""
    several = {name: S for name, S in scores.directions.items() if len(S.emotions) > 1}
    cosines = [f"{name} {S.mean_cosine(False):.2f} raw, {S.mean_cosine():.2f} centred" for name, S in several.items()]
    return [f"Mean cosine between directions: {'; '.join(cosines)}."] if cosines else []


def _json(scores: EmotionScores, note: str) -> str:
    maps = {method: [row["mAP"].mean, row["mAP"].low, row["mAP"].high] for method, row in scores.summary().iterrows()}
    return json.dumps({"mAP": maps, "emotions": scores.to_frame().to_dict("records"), "note": note}, indent=1) + "\n"


def _markdown(table: pd.DataFrame) -> str:
    """A table in Markdown; pandas' own needs tabulate, which nothing else here does."""
    rows = [list(table.columns), ["---"] * table.shape[1], *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)


def _told(folder: str | Path, texts: Mapping[str, str], figures: Mapping[str, Callable[[], Figure]]) -> None:
    """Write texts and figures, each whole."""
    with writing(folder):
        for name, text in texts.items():
            with whole(Path(folder) / name) as part:
                part.write_text(text, encoding="utf-8")
        for name, draw in figures.items():
            with whole(Path(folder) / name) as part:
                draw().savefig(part, dpi=150)


def _some(rows: Sequence[Row], n: int | None, seed: int) -> list[Row]:
    """`n` rows drawn by a seed, in their order; all where there are no more."""
    if n is not None and n < 1:
        raise InputError(f"n is {n}; expected 1 or more clips of each set.")
    drawn = np.random.default_rng(seed).permutation(len(rows))[:n]
    return [rows[i] for i in sorted(drawn)]


def _item(name: str, row: Row, frames: Path, seed: int, bar: tqdm) -> Item:
    picture = row.path if row.path.suffix.lower() in PICTURES else _kept(row, frames / name / f"{row.name}.jpg", seed)
    bar.update()
    text = " ".join(row.transcript.split())
    return Item(name, picture, SAID.format(text) if text else SILENT, str(row.gold))


def _kept(row: Row, file: Path, seed: int) -> Path:
    """The clip's frame, as a file that is written once."""
    if not file.is_file():
        picture = row.picture(seed)
        with writing(file.parent), whole(file) as part:
            file.parent.mkdir(parents=True, exist_ok=True)
            picture.save(part, quality=QUALITY, subsampling=0)
    return file
