"""What came out of a harness run: scores of every answer, methods beside "none", what they cost, and whether the goal is reached.

Each set has a figure of its own: exact rate where pictures show an emotion, false-emotion rate where they show none, the share of
right answers where the question is a plain one. Items are the unit of every interval and test; seeds are averaged within them.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure

from emointerp.emotions import NEUTRAL, Extractor, extract, same_answer, score
from emointerp.emotions.tokens import words_of
from emointerp.emotions.wheels import WheelsLike, as_wheels
from emointerp.errors import InputError, OutputError
from emointerp.evaluation.clips import once
from emointerp.evaluation.items import CONFLICT, NEUTRALS, QUESTIONS, Item
from emointerp.files import whole
from emointerp.plots import BLUE, INK, ORANGE, QUIET, ends, new_figure
from emointerp.statistics import Interval, holm, mean_interval, sign_flips, value_interval

NONE = "none"
EXACT, FALSE, RIGHT = "exact", "false_emotion", "right"
RATES = {EXACT: "exact rate", "hit": "hit rate", FALSE: "false emotions", RIGHT: "right"}
BESIDE = {"precision": "precision", "f": "F", "n_words": "emotion words"}  # of stories, beside the hit rate
SCORES = (EXACT, "hit", "precision", "f", FALSE, "n_words", RIGHT)
COSTS = ("words", "repeats", "perplexity", "seconds")
COLUMNS = ("model", "revision", "items", "method", "oracle", "set", "seed", "item", "gold", "suggested", "answer")
COLUMNS += (*SCORES, "words", "tokens", "repeats", "perplexity", "seconds")
FORMAT, VERSION = "emointerp evaluation", 1
TABLE, ABOUT = "table.jsonl", "about.json"
ORACLE = " (oracle)"
GAIN, FALL, RISE = 0.10, -0.01, 0.02  # what a cure has to gain, and how far other answers may fall and false emotions rise


def loops(text: str) -> bool:
    """Whether three words come again in the same order.

    >>> loops("the sun shone and the sun shone"), loops("the sun shone and the rain fell")
    (True, False)
    """
    words = text.split()
    grams = list(zip(words, words[1:], words[2:], strict=False))
    return len(set(grams)) < len(grams)


def check_golds(sets: Mapping[str, Sequence[Item]], wheels: WheelsLike = None) -> None:
    """InputError, with the set's name, for an emotion that no wheel knows."""
    for name, items in sets.items():
        golds = list(dict.fromkeys(item.gold for item in items if not _plain(item)))
        try:
            score([""] * len(golds), golds, wheels)
        except InputError as error:
            raise InputError(f"Set {name!r}: {error}") from None


def _plain(item: Item) -> bool:
    """Whether an item is a plain question, whose gold is its answer and no emotion."""
    return item.instruction == ""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Scored answers. `table` has a row an answer:

    - where it comes from: `model`, its `revision`, `items` (a hash of what the set asks), `method`, `oracle` (the method saw the
      gold), `set`, `seed`, `item`; and what was to be said: `gold`, `suggested` by the text;
    - `answer` and its scores: `hit`, `exact`, `precision`, `f`, `false_emotion`, `n_words` (emotion words) of stories, and `right`
      of plain questions, where the answer is the gold one but for case and full stop; missing where they do not apply;
    - costs: `words`, `tokens`, `repeats` (three words come again), `perplexity` under the unedited model, `seconds` a token.

    `about` says what the run was made of: model, methods and their settings, hashes of the sets, decoding, seeds, versions, and by
    which wheels and extractor the answers were scored ("scoring").
    """

    table: pd.DataFrame
    about: Mapping[str, Any]

    def __repr__(self) -> str:
        size = f"{len(self.methods)} methods on {len(self.sets)} sets, {len(self.table)} answers"
        return f"Evaluation of {self.about['model']['name']!r}: {size}"

    @classmethod
    def of(
        cls,
        answers: pd.DataFrame,
        sets: Mapping[str, Sequence[Item]],
        about: Mapping[str, Any],
        wheels: WheelsLike = None,
        extractor: Extractor = extract,
    ) -> "Evaluation":
        """Score the answers of a `Run` by the words that `extractor` finds in them."""
        items = [sets[name][i] for name, i in zip(answers.set, answers.item, strict=True)]
        known = {key: [getattr(item, key) for item in items] for key in ("gold", "suggested")}
        known |= {"model": about["model"]["name"], "revision": about["model"]["revision"][:12]}
        known |= {"items": answers.set.map(lambda name: about["sets"][name]["items"][:12])}
        known |= {"oracle": answers.method.map(lambda name: about["methods"][name]["oracle"])}
        known |= {"words": [len(words_of(a)) for a in answers.answer], "repeats": [float(loops(a)) for a in answers.answer]}
        table = answers.assign(**known).join(_scores(answers.answer, items, wheels, once(extractor)))
        return cls(table[list(COLUMNS)], dict(about) | {"scoring": scoring(wheels, extractor)})

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in their order."""
        return list(dict.fromkeys(self.table.method))

    @property
    def sets(self) -> list[str]:
        """Names of the sets, in their order."""
        return list(dict.fromkeys(self.table.set))

    def figure_of(self, name: str) -> str:
        """The set's own figure: "exact", "false_emotion" (all pictures neutral) or "right" (all questions plain)."""
        rows = self._rows(name)
        return RIGHT if rows.right.notna().all() else FALSE if (rows.gold == NEUTRAL).all() else EXACT

    def values(self, name: str, method: str, column: str | None = None) -> Float[np.ndarray, " item"]:
        """A column (default: the set's own figure) of each item under a method, mean over seeds."""
        rows = self._rows(name, method)
        return rows.groupby("item")[column or self.figure_of(name)].mean().to_numpy(float)

    def difference(self, name: str, method: str, other: str = NONE) -> Float[np.ndarray, " item"]:
        """The set's own figure under a method less that under another, of each item."""
        return self.values(name, method) - self.values(name, other)

    def to_frame(self) -> pd.DataFrame:
        """A row a set and method; `Interval`s are 95% bootstrap intervals over items.

        - `oracle`, `n` (items); `exact`, `hit`, `false_emotion` (neutral pictures), `right` (plain questions): means; beside the
          hit rate, which an answer that names everything wins, `precision`, `f` and `n_words`, emotion words a story;
        - `figure`, the set's own of these, and its paired `difference` to "none", with `p` of a two-sided sign-flip test over items
          and `p_holm`, corrected over the methods of the set;
        - costs as ratios to "none", of the same items: `time` (seconds a token, a median, since other work disturbs it) and
          `perplexity` (a geometric mean); `words` an answer, and the share that `repeats` three words.
        """
        return self._frame.copy()

    @cached_property
    def _frame(self) -> pd.DataFrame:
        return pd.concat([self._of_set(name) for name in self.sets]).rename_axis(["set", "method"])

    def _of_set(self, name: str) -> pd.DataFrame:
        rows = {(name, method): self._row(name, method) for method in self.methods}
        frame = pd.DataFrame.from_dict(rows, orient="index")
        others = frame.p.notna()
        return frame.assign(p_holm=pd.Series(holm(frame.p[others]), frame.index[others])).reindex(columns=_FRAME)

    def _row(self, name: str, method: str) -> dict[str, Any]:
        rows, figure = self._rows(name, method), self.figure_of(name)
        shown = {EXACT: [EXACT, "hit", *BESIDE], FALSE: [FALSE, "n_words"]}.get(figure, [figure])
        row = {"oracle": bool(rows.oracle.iloc[0]), "n": rows.item.nunique(), "figure": figure}
        row |= {column: _interval(column, self.values(name, method, column)) for column in shown}
        row |= {column: float(rows[column].mean()) for column in ("words", "repeats")}
        row |= {"time": _median(self._ratios(name, method, "seconds"))}
        row |= {"perplexity": _geometric(self._ratios(name, method, "perplexity"))}
        if method == NONE:
            return row | {"p": math.nan}
        difference = self.difference(name, method)
        return row | {"difference": mean_interval(difference, signed=True), "p": _p(difference)}

    def _ratios(self, name: str, method: str, column: str) -> np.ndarray:
        """Each item's cost over that under "none", where both are known."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = self.values(name, method, column) / self.values(name, NONE, column)
        return ratios[np.isfinite(ratios)]

    def _rows(self, name: str, method: str | None = None) -> pd.DataFrame:
        for what, asked, known in (("set", name, self.sets), ("method", method, [None, *self.methods])):
            if asked not in known:
                raise InputError(f"There is no {what} {asked!r} here; there are {', '.join(map(repr, filter(None, known)))}.")
        rows = self.table[self.table.set == name]
        return rows if method is None else rows[rows.method == method]

    def goal(self, method: str, baselines: Sequence[str] | None = None) -> pd.DataFrame:
        """Does a method reach what a cure should? A row a wish, `met`: "yes", "no", or "not measured" where the set was not asked.

        In exact rate on the conflict set at least 10 points above "none", and above every baseline (default: all other methods that
        are no oracle); plain questions right at most 1 point less often, false emotions on neutral pictures at most 2 points more.
        `difference` is paired, with its interval and `p`; `met` goes by its mean. `time` is the baseline's, as a ratio to "none":
        one that costs less may be above without harm.
        """
        oracles = set(self.table.method[self.table.oracle])
        others = [m for m in self.methods if m not in {NONE, method} | oracles] if baselines is None else list(baselines)
        wishes = [(f"{CONFLICT}: exact rate, at least {100 * GAIN:.0f} points over {NONE}", CONFLICT, NONE, lambda d: d >= GAIN)]
        wishes += [(f"{CONFLICT}: exact rate, above {other}", CONFLICT, other, lambda d: d > 0) for other in others]
        wishes += [
            (f"{QUESTIONS}: right, at most {-100 * FALL:.0f} point down", QUESTIONS, NONE, lambda d: d >= FALL),
            (f"{NEUTRALS}: false emotions, at most {100 * RISE:.0f} points up", NEUTRALS, NONE, lambda d: d <= RISE),
        ]
        rows = [{"wish": wish} | self._met(name, method, other, enough) for wish, name, other, enough in wishes]
        return pd.DataFrame(rows).set_index("wish")

    def _met(self, name: str, method: str, other: str, enough: Any) -> dict[str, Any]:
        if name not in self.sets:
            return {"met": "not measured", "difference": math.nan, "p": math.nan, "time": math.nan}
        difference = self.difference(name, method, other)
        met = "yes" if enough(round(float(difference.mean()), 9)) else "no"  # 0.1 as a mean may be 0.09999999999999999
        return {
            "met": met, "difference": mean_interval(difference, signed=True), "p": _p(difference),
            "time": _median(self._ratios(name, other, "seconds")),
        }  # fmt: skip

    # figures

    def plot(self, name: str = CONFLICT) -> Figure:
        """What each method gains on a set, beside its costs: time and perplexity as ratios, and side effects where measured."""
        methods = [m for m in self.methods if m != NONE]
        if not methods:
            raise InputError(f"There is no method but {NONE!r}, so nothing gained anything.")
        self._rows(name)
        rows = self._frame.loc[name].loc[methods]
        costs = {"time": "Time a token", "perplexity": "Perplexity"}
        costs = {column: title for column, title in costs.items() if rows[column].notna().any()}
        asked = [kind for kind in (QUESTIONS, NEUTRALS) if kind in self.sets]
        columns = 1 + len(costs) + bool(asked)
        figure, axes = new_figure(1, columns, width=max(5, 3.5 * columns - 2), height=1.7 + 0.3 * len(methods), squeeze=False)
        axes = axes[0]
        y, labels = np.arange(len(methods)), [self._marked(m) for m in methods]
        _dots(axes[0], y, rows.difference, BLUE)
        axes[0].set(title=f"Gain, {RATES[self.figure_of(name)]}", xlabel=f"points over {NONE}, on: {name}")
        for axis, (column, title) in zip(axes[1:], costs.items(), strict=False):
            axis.plot(rows[column], y, "o", color=ORANGE)
            axis.axvline(1, color=QUIET, linewidth=0.8)
            axis.set(title=title, xlabel=f"times that of {NONE}", xlim=_around_one(rows[column]))
        if asked:
            self._side_effects(axes[-1], y, methods)
        for axis in axes:
            axis.set_yticks(y, labels if axis is axes[0] else [])
            axis.tick_params(axis="y", left=False)
            axis.set_ylim(len(y) - 0.4, -0.6)
            axis.grid(axis="y", color="#e3e5e8", linewidth=0.6)
            axis.set_axisbelow(True)
        return figure

    def _side_effects(self, axis: Any, y: np.ndarray, methods: Sequence[str]) -> None:
        """Change of right answers and of false emotions."""
        kinds = {QUESTIONS: ("right answers", BLUE, -0.13), NEUTRALS: ("false emotions", ORANGE, 0.13)}
        for name, (label, color, shift) in kinds.items():
            if name in self.sets:
                _dots(axis, y + shift, self._frame.loc[name].loc[methods, "difference"], color, label)
        axis.set(title="Side effects", xlabel=f"points more than {NONE}")
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=2, frameon=False)

    def plot_sets(self) -> Figure:
        """Exact rate of every method on every set of stories; on neutral pictures this is the share told without an emotion."""
        names = [name for name in self.sets if self.figure_of(name) != RIGHT]
        if not names:
            raise InputError("There are only plain questions here; no set has an exact rate.")
        means = np.array([[self.values(name, m, EXACT).mean() for name in names] for m in self.methods])
        figure, axis = new_figure(width=2.8 + 0.62 * len(names), height=2.3 + 0.3 * len(self.methods))
        axis.imshow(means, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for (i, j), value in np.ndenumerate(means):
            axis.text(j, i, f"{100 * value:.0f}", ha="center", va="center", fontsize=8, color="white" if value > 0.6 else INK)
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)
        axis.set_yticks(range(len(means)), [self._marked(m) for m in self.methods])
        axis.set_title(f"Exact rate, %{self._precision(names)}")
        return figure

    def _precision(self, names: Sequence[str]) -> str:
        """How wide the intervals are, for a picture that does not show them."""
        found = [mean_interval(self.values(name, m, EXACT)) for name in names for m in self.methods]
        return f" (95% intervals: ±{50 * np.median([i.high - i.low for i in found]):.0f} points, by the median)"

    def _marked(self, method: str) -> str:
        return method + ORACLE * bool(self.table.oracle[self.table.method == method].any())

    # for papers and pages

    def shown(self, sets: Iterable[str] | None = None) -> pd.DataFrame:
        """`to_frame` as texts, rates in percent and differences in points, with intervals in brackets; oracles are marked.

        Precision, F and emotion words a story are means, whose intervals `to_frame` has; a rate that no set has is left out.
        """
        for name in (names := self.sets if sets is None else list(sets)):
            self._rows(name)
        rows = [
            {"set": name, "method": self._marked(method), "n": str(row.n)}
            | {label: _percent(row[column]) for column, label in RATES.items()}
            | {label: _mean(row[column], column) for column, label in BESIDE.items()}
            | {"difference to none": _percent(row.difference, "+"), "p (Holm)": _number(row.p_holm, ".4f")}
            | {"time ratio": _number(row.time, ".2f"), "perplexity ratio": _number(row.perplexity, ".2f")}
            | {"words": _number(row.words, ".1f"), "repeats, %": _number(100 * row.repeats, ".1f")}
            for (name, method), row in self._frame.iterrows()
            if name in names
        ]
        frame = pd.DataFrame(rows)
        labels = [label for label in (*RATES.values(), *BESIDE.values()) if label in frame]
        return frame.drop(columns=[label for label in labels if (frame[label] == "").all()])

    @property
    def note(self) -> str:
        """What stands below a table: model, hashes, how answers were drawn, how to read the figures."""
        model, drawn = self.about["model"], self.about["decoding"]
        items = hashlib.sha256("".join(self.about["sets"][name]["items"] for name in self.sets).encode()).hexdigest()
        seeds = f"sampled at temperature {drawn['temperature']:g}, {len(self.about['seeds'])} seeds"
        how = seeds if drawn["temperature"] else "greedy"
        return (
            f"Model {model['name']}, revision {model['revision'][:12]}; items {items[:12]}; {how}, at most "
            f"{drawn['max_new_tokens']} tokens{_by(self.about)}. Rates in percent, differences in points, with 95% bootstrap "
            "intervals over items; p of sign flips, corrected after Holm over the methods of a set; costs as ratios to "
            f"{NONE}. Methods marked{ORACLE} saw the gold emotion."
        )

    def to_markdown(self, sets: Iterable[str] | None = None) -> str:
        """The table in Markdown, and the note. Our own lines, since pandas' need tabulate, which nothing else here does."""
        frame = self.shown(sets)
        rows = [list(frame.columns), ["---"] * len(frame.columns), *frame.to_numpy().tolist()]
        lines = ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
        return "\n".join([*lines, "", self.note]) + "\n"

    def to_latex(self, sets: Iterable[str] | None = None) -> str:
        r"""The table in LaTeX (`\usepackage{booktabs}`), everything escaped; the note as a comment above it."""
        comment = "% " + " ".join(self.note.split())
        return f"{comment}\n{self.shown(sets).to_latex(index=False, escape=True)}"

    # on disk

    def save(self, folder: str | Path) -> None:
        """Write the table as JSON lines, and beside it what the run was made of."""
        about = {"format": FORMAT, "version": VERSION, "rows": len(self.table), "about": dict(self.about)}
        texts = {TABLE: self.table.to_json(orient="records", lines=True, double_precision=15), ABOUT: json.dumps(about, indent=1)}
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            for name, text in texts.items():
                with whole(Path(folder) / name) as part:
                    part.write_text(text.rstrip("\n") + "\n", encoding="utf-8")
        except OSError as error:
            raise OutputError(f"Cannot write the evaluation to {folder}: {error.strerror}. Give another folder.") from error

    @classmethod
    def load(cls, folder: str | Path) -> "Evaluation":
        """Read what `save` wrote; InputError says what is missing or damaged."""
        files = [Path(folder) / name for name in (TABLE, ABOUT)]
        if missing := [file.name for file in files if not os.path.isfile(file)]:
            said = f"{folder} lacks {' and '.join(missing)}, which Evaluation.save writes and evaluate at its end"
            raise InputError(f"{said}. A run that was stopped goes on with the same evaluate(..., folder=...).")
        try:
            rows = [json.loads(line) for line in files[0].read_text(encoding="utf-8").splitlines()]
            held = json.loads(files[1].read_text(encoding="utf-8"))
            if (held["format"], held["version"], held["rows"]) != (FORMAT, VERSION, len(rows)):
                raise ValueError(f"{held['rows']} rows of {held['format']!r}, version {held['version']}, and {len(rows)} came")
            table = pd.DataFrame(rows, columns=list(COLUMNS))
            return cls(table.astype(dict.fromkeys([*SCORES, *COSTS], float)), held["about"])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{folder} holds no whole evaluation ({error}); run evaluate on this folder again.") from None


_FRAME = [
    "oracle",
    "n",
    EXACT,
    "hit",
    *BESIDE,
    FALSE,
    RIGHT,
    "figure",
    "difference",
    "p",
    "p_holm",
    "time",
    "perplexity",
    "words",
    "repeats",
]


def scoring(wheels: WheelsLike = None, extractor: Extractor = extract) -> dict[str, Any]:
    """By which wheels and which extractor answers are scored, in words.

    >>> scoring()["extractor"]
    'emointerp.emotions.extraction.extract'
    """
    maker = extractor if hasattr(extractor, "__qualname__") else type(extractor)
    return {"wheels": [wheel.name for wheel in as_wheels(wheels)], "extractor": f"{maker.__module__}.{maker.__qualname__}"}


def _by(about: Mapping[str, Any]) -> str:
    """Who found the words, where it was not the package's own extractor."""
    by = about.get("scoring", scoring())["extractor"]
    return "" if by == scoring()["extractor"] else f"; words found by {by}"


def _scores(answers: pd.Series, items: Sequence[Item], wheels: WheelsLike, extractor: Extractor) -> pd.DataFrame:
    """Scores of each answer; stories against their emotion, plain questions against their answer."""
    table = pd.DataFrame(math.nan, index=answers.index, columns=list(SCORES))
    asked = np.array([_plain(item) for item in items])
    golds = [item.gold for item in items]
    stories = answers.index[~asked]
    if len(stories):
        found = score(list(answers[stories]), [golds[i] for i in stories], wheels, extractor).set_index(stories)
        columns = [column for column in SCORES if column != RIGHT]
        table.loc[stories, columns] = found[columns].astype(float)
    table.loc[asked, RIGHT] = [float(same_answer(answers[i], golds[i])) for i in answers.index[asked]]
    return table


def _interval(column: str, values: np.ndarray) -> Interval:
    """A rate's mean and interval; of a number of words, whose zeros no rule of three bounds; NaN where nothing was scored so."""
    if np.isnan(values).any():  # F in what was saved before there was one
        return Interval(math.nan, math.nan, math.nan, len(values))
    return value_interval(values) if column == "n_words" else mean_interval(values)


def _median(ratios: np.ndarray) -> float:
    return float(np.median(ratios)) if ratios.size else math.nan


def _geometric(ratios: np.ndarray) -> float:
    """Geometric mean: a ratio of 2 and one of 1/2 cancel out."""
    return float(np.exp(np.log(ratios).mean())) if ratios.size else math.nan


def _p(difference: np.ndarray) -> float:
    """Two-sided p-value of a mean paired difference; NaN for a single pair."""
    return float(sign_flips(difference).p[0]) if len(difference) > 1 else math.nan


def _dots(axis: Any, y: np.ndarray, intervals: Iterable[Interval], color: str, label: str = "") -> None:
    """Means with their intervals, in points."""
    mean, low, high = 100 * ends(intervals)
    spread = np.maximum(0, (mean - low, high - mean))
    axis.errorbar(mean, y, xerr=spread, fmt="o", color=color, markersize=5, elinewidth=1.5, label=label or None)
    axis.axvline(0, color=QUIET, linewidth=0.8)


def _around_one(ratios: pd.Series) -> tuple[float, float]:
    """Limits of an axis that does not make much of small differences."""
    low, high = (ratios.min(), ratios.max()) if ratios.notna().any() else (1.0, 1.0)
    return min(0.9, low - 0.1), max(1.6, 1.05 * high)


def _percent(interval: Any, sign: str = "") -> str:
    """An interval in percent; "" where there is none."""
    if not isinstance(interval, Interval):
        return ""
    mean, low, high = (f"{100 * value:{sign}.1f}" for value in (interval.mean, interval.low, interval.high))
    return f"{mean} [{low}, {high}]"


def _mean(interval: Any, column: str) -> str:
    """The mean alone: a rate in percent, words as they are; "" where there is none."""
    if not isinstance(interval, Interval):
        return ""
    return _number(interval.mean, ".2f") if column == "n_words" else _number(100 * interval.mean, ".1f")


def _number(value: float, form: str) -> str:
    return "" if math.isnan(value) else f"{value:{form}}"
