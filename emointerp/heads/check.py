"""The function check: heads that were found, silenced and restored together, against random sets of the same build.

A head that passes its own test may still do nothing that others would not do in its place, and k heads at once always do something.
So the set is measured as a set beside random ones with as many heads in the same layers, whose writes are about as long:
`p = (1 + #{T_r >= T}) / (R + 1)`.

- mean-ablation: at the emotional picture, each head gives its mean over other pictures' runs;
- resample-ablation: there, each gives what it gave in one other run, the same run for all of them;
- restoration: at the neutral twin, each gives what it gave at the emotional picture.

A model with few heads a layer has few such sets, and they overlap with the set that is tested: `sets` says how much.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from emointerp.directions import Directions
from emointerp.emotions.wheels import WheelsLike
from emointerp.errors import InputError
from emointerp.heads.kept import kept_of
from emointerp.heads.measures import checked_positions, patched_head
from emointerp.lens import Words
from emointerp.loudness import write_norms
from emointerp.measures import Measure, Measured, measure_of
from emointerp.models import VLM, Prompt
from emointerp.pairs import Pair, asked_of, check_aligned, twin_prompts
from emointerp.plots import GRAY, INK, ORANGE, new_figure
from emointerp.saved import Saved
from emointerp.statistics import against_random, ratio_interval
from emointerp.tracing import Activations, SetHead, collect, mean_ablation, resample_ablation

Head, Run = tuple[int, int], tuple[Prompt, Activations]
MEAN, RESAMPLE, RESTORE = "mean-ablation", "resample-ablation", "restoration"
CHECKS = (MEAN, RESAMPLE, RESTORE)
DONORS = ("neutral", "others")


@dataclass(frozen=True, eq=False)
class HeadCheck(Saved):
    """What the tested set (`set` 0) and random ones (1, 2, …) do.

    `table` has a row a pair, check and set: pair, emotion, check, set; `value`, the metric under it; `own`, without; `goal`, that
    of the twin's run. `sets` has a row a set: heads, `overlap` (the share of its heads that are tested ones) and `norm` (the length
    of its heads' writes at the last token, mean over pairs and heads).
    """

    table: pd.DataFrame
    sets: pd.DataFrame
    metric: str

    def effects(self) -> pd.DataFrame:
        """`(value - own) / (goal - own)`, means over pairs: a row a set, a column a check. 1: all of the way to the twin's run."""
        moved = self.table.assign(moved=self.table.value - self.table.own, gap=self.table.goal - self.table.own)
        mean = moved.groupby(["set", "check"])[["moved", "gap"]].mean()
        return (mean.moved / mean.gap).unstack("check")[list(CHECKS)]

    def to_frame(self) -> pd.DataFrame:
        """A row a check: the tested set's `effect` (`Interval` over pairs), and its rank `p` among the random sets.

        Of these: their mean effect (`random`) and its 95% quantile (`random_95`), their number, their mean overlap, and how long
        their writes are beside the tested set's (`norm`): where that is far below 1, longer writes may be all that p shows.
        """
        effects, rows = self.effects(), {}
        for check, some in self.table[self.table.set == 0].groupby("check", sort=False):
            random = effects[check].drop(0)
            row = {"effect": ratio_interval(some.value - some.own, some.goal - some.own), "random": random.mean()}
            row |= {"random_95": random.quantile(0.95), "sets": len(random)}
            row |= {"overlap": self.sets.overlap.drop(0).mean(), "norm": self.sets.norm.drop(0).mean() / self.sets.norm[0]}
            rows[check] = row | {"p": against_random(effects.loc[0, check], random)}
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("check")

    def plot(self) -> Figure:
        """The random sets' effects as a histogram a check, the tested set's as a line."""
        effects, frame = self.effects(), self.to_frame()
        figure, axes = new_figure(1, len(CHECKS), width=10, height=3)
        for axis, check in zip(axes, CHECKS, strict=True):
            axis.hist(effects[check].drop(0), bins=20, color=GRAY, label="random sets")
            axis.axvline(effects.loc[0, check], color=ORANGE, linewidth=2, label="tested set")
            axis.set(xlabel="share of the gap closed")
            axis.set_title(f"{check.capitalize()}, p = {frame.p[check]:.3f}", fontsize=10, color=INK)
        axes[0].set_ylabel("sets")
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        return figure


def check_heads(
    vlm: VLM,
    pairs: Sequence[Pair],
    heads: Iterable[Head],
    *,
    sets: int = 100,
    metric: Measured = "log mass",
    directions: Directions | None = None,
    layer: int | None = None,
    donors: str = "neutral",
    positions: Any = "last",
    near: int | None = None,
    apart: bool = False,
    words: Words = None,
    wheels: WheelsLike = None,
    answer: str = "I felt",
    max_new_tokens: int = 64,
    seed: int = 0,
    file: str | Path | None = None,
    progress: bool = True,
) -> HeadCheck:
    """Silence and restore `heads`, (layer, head)s, together on pairs that did not choose them, beside `sets` random sets.

    `metric`, `directions`, `layer`, `words` and `wheels` as in `head_map`. `donors` of the ablations are the "neutral" pictures of
    the other pairs, or "others": emotional pictures of other emotions. `near` and `apart` as in `matched_sets`.

    With a `file` (JSON lines) each finished pair is kept, and a later call goes on from there; one with other settings is refused.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> found = ei.check_heads(vlm, pairs, [(5, 2), (6, 5)], sets=3, progress=False)
    >>> found.effects().shape, found.to_frame().index.tolist()
    ((4, 3), ['mean-ablation', 'resample-ablation', 'restoration'])
    """
    pairs = asked_of(vlm, pairs)
    heads, where = _checked_heads(vlm, heads), checked_positions(positions, metric)
    measure = measure_of(vlm, pairs, metric, directions, layer, words, max_new_tokens, wheels)
    answer = answer if measure.metrics else ""
    both = [twin_prompts(vlm, pair, answer) for pair in pairs]
    check_aligned(vlm, pairs, both)
    acts = [collect(vlm, prompts, ["heads", "residual"], positions=(*where, "last")) for prompts in both]
    norms = write_norms(vlm, [_at(p[0], one[0], "last") for p, one in zip(both, acts, strict=True)], "heads")
    drawn = (heads, *matched_sets(heads, norms, sets, near, apart, seed))
    asked = {"layer": layer, "donors": donors, "answer": answer, "max_new_tokens": max_new_tokens, "seed": seed}
    asked |= {"positions": list(where), "sets": [list(map(list, some)) for some in drawn]}
    kept = kept_of(file, measure, pairs, both, words, wheels, directions, asked)
    for i in tqdm(range(len(kept.rows), len(pairs)), desc="check", initial=len(kept.rows), total=len(pairs), disable=not progress):
        pool = donor_pool(pairs, [*zip(both, acts, strict=True)], i, donors)
        edits = _edits(both[i], acts[i], pool, where, drawn, measure, (seed, i))
        kept.add(_one_pair(both[i], acts[i], edits, drawn, measure, pairs[i].emotion))
    frames = [
        pd.DataFrame(row).assign(pair=i, emotion=pair.emotion) for i, (pair, row) in enumerate(zip(pairs, kept.rows, strict=True))
    ]
    return HeadCheck(pd.concat(frames, ignore_index=True), described_sets(drawn, norms, "heads"), measure.name)


def matched_sets(
    heads: Iterable[Head],
    norms: Float[np.ndarray, "layer head"],
    n: int = 100,
    near: int | None = None,
    apart: bool = False,
    seed: int = 0,
) -> tuple[tuple[Head, ...], ...]:
    """Up to `n` different random sets like `heads`: for each head one of its layer, among the `near` whose norms are nearest.

    `near` counts the head itself; by default half of the layer's heads. With `apart`, the sets hold none of `heads`, which matches
    worse where those have the longest writes. Fewer than `n` sets come back where there are no more.

    >>> matched_sets([(0, 1)], np.array([[1.0, 1.1, 1.2, 9.0]]), near=3)
    (((0, 0),), ((0, 2),))
    """
    target = tuple(sorted(heads))
    near = max(2, norms.shape[1] // 2) if near is None else near
    rng, found = np.random.default_rng(seed), {}
    for _ in range(100 * n):
        some = _draw(target, norms, near, apart, rng)
        if some != target:
            found[some] = None
        if len(found) == n:
            break
    if not found:
        raise InputError(f"There is no other set like {list(target)} among the {near} nearest heads; raise `near`.")
    return tuple(found)


def _draw(target: tuple[Head, ...], norms: np.ndarray, near: int, apart: bool, rng: np.random.Generator) -> tuple[Head, ...]:
    taken: set[Head] = set()
    for layer, head in rng.permutation(target).tolist():
        order = np.argsort(np.abs(norms[layer] - norms[layer, head]), kind="stable").tolist()
        free = [(layer, h) for h in order if (layer, h) not in taken and not (apart and (layer, h) in target)]
        if not free:
            raise InputError(f"Layer {layer} has too few heads besides the tested ones; leave `apart` False.")
        taken.add(free[rng.integers(min(near, len(free)))])
    return tuple(sorted(taken))


def _checked_heads(vlm: VLM, heads: Iterable[Head]) -> tuple[Head, ...]:
    given = [(int(layer), int(head)) for layer, head in heads]
    if not given or len(set(given)) < len(given):
        raise InputError(f"Heads are {given}; expected different (layer, head)s, one or more, such as head_map(…).top(6).index.")
    a = vlm.anatomy
    if wrong := [head for head in given if not (0 <= head[0] < a.n_layers and 0 <= head[1] < a.n_heads)]:
        raise InputError(f"Heads {wrong} are out of range; this model has {a.n_layers} layers of {a.n_heads} heads.")
    return tuple(sorted(given))


def donor_pool(pairs: Sequence[Pair], runs: Sequence[tuple[list[Prompt], list[Activations]]], i: int, donors: str) -> list[Run]:
    """The runs that a pair's ablations come from."""
    if donors not in DONORS:
        raise InputError(f"donors is {donors!r}; expected {' or '.join(map(repr, DONORS))}.")
    if donors == "neutral":
        return [(prompts[1], acts[1]) for j, (prompts, acts) in enumerate(runs) if j != i]
    found = [(p[0], acts[0]) for pair, (p, acts) in zip(pairs, runs, strict=True) if pair.emotion != pairs[i].emotion]
    if not found:
        raise InputError(f"All pairs show {pairs[i].emotion}; there are no other emotions' pictures to take donors from.")
    return found


def _edits(
    prompts: list[Prompt],
    acts: list[Activations],
    pool: list[Run],
    where: tuple,
    drawn: Sequence[tuple[Head, ...]],
    measure: Measure,
    seed: tuple[int, int],
) -> dict[str, dict[Head, list[SetHead]]]:
    """Each check's edits of each head that some set holds; what is ablated at a span comes from the donors' same span."""
    lasts, at = measure.metrics is None, prompts[1].positions(where)
    chosen, spans = int(np.random.default_rng(seed).integers(2**31)), {p: [_at(*run, p) for run in pool] for p in where}
    edits: dict[str, dict[Head, list[SetHead]]] = {check: {} for check in CHECKS}
    for layer, head in sorted({head for some in drawn for head in some}):
        for span, donors in spans.items():
            options = {"head": head, "positions": (span, "answer") if lasts else span}
            edits[MEAN].setdefault((layer, head), []).append(mean_ablation(donors, layer, **options))
            edits[RESAMPLE].setdefault((layer, head), []).append(resample_ablation(donors, layer, seed=chosen, **options))
        edits[RESTORE][layer, head] = [patched_head(acts[0], layer, head, at, lasts)]
    return edits


def _at(prompt: Prompt, acts: Activations, span: str | int) -> Activations:
    """The heads at one span only."""
    positions = prompt.positions((span,))
    rows = [acts.positions.index(p) for p in positions]
    return replace(acts, positions=positions, heads=acts.heads[:, :, rows], residual=None)


def _one_pair(
    prompts: list[Prompt],
    acts: list[Activations],
    edits: Mapping[str, Mapping[Head, list[SetHead]]],
    drawn: Sequence[tuple[Head, ...]],
    measure: Measure,
    emotion: str,
) -> dict[str, list]:
    """Columns of a pair's rows: two sweeps, ablations at the emotional picture and restoration at its twin."""
    columns: dict[str, list] = {name: [] for name in ("check", "set", "value", "own", "goal")}
    goals = [measure.own(prompt, one, emotion) for prompt, one in zip(prompts, acts, strict=True)][::-1]
    for prompt, goal, checks in zip(prompts, goals, ((MEAN, RESAMPLE), (RESTORE,)), strict=True):
        lists = {
            (check, i): [edit for head in some for edit in edits[check][head]] for check in checks for i, some in enumerate(drawn)
        }
        own, values = measure.under(prompt, lists, emotion)
        for (check, i), value in zip(lists, values.tolist(), strict=True):
            for name, cell in zip(columns, (check, i, value, own, goal), strict=True):
                columns[name].append(cell)
    return columns


def described_sets(drawn: Sequence[tuple[Head, ...]], norms: np.ndarray, parts: str) -> pd.DataFrame:
    """A row a set: its `parts`, the share of them that are tested ones (the first set's), and how long their writes are."""
    tested = set(drawn[0])
    rows = [(some, len(tested & set(some)) / len(some), float(np.mean([norms[place] for place in some]))) for some in drawn]
    return pd.DataFrame(rows, columns=[parts, "overlap", "norm"]).rename_axis("set")
