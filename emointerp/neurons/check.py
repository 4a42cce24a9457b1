"""The function check of neurons: those that were found, silenced and restored together, as `heads.check` does with heads.

Each neuron's own test says that it does something alone. Whether the set does more than any other neurons of these layers that are
as loud is asked here: `p = (1 + #{T_r >= T}) / (R + 1)` among random sets that match in count, layers and length of the writes.
Mean-ablation and resample-ablation at the emotional picture, restoration at the neutral twin are those of `heads.check`; all sets
of a picture run as branches of one sweep.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from emointerp.directions import Directions
from emointerp.emotions.wheels import WheelsLike
from emointerp.errors import InputError
from emointerp.heads import HeadCheck, matched_sets
from emointerp.heads.check import MEAN, RESAMPLE, RESTORE, described_sets, donor_pool
from emointerp.heads.kept import kept_of
from emointerp.lens import Words
from emointerp.loudness import write_norms
from emointerp.measures import HITS, Measure, Measured, measure_of
from emointerp.models import VLM, Prompt
from emointerp.neurons.scores import Tokens, tokens_of, twins_of
from emointerp.pairs import Pair, asked_of
from emointerp.sources import Place, checked_places
from emointerp.tracing import Activations, Edit, SetNeurons, collect, mean_ablation, patch, resample_ablation
from emointerp.tracing.edits import FROM_LAST

Set = tuple[Place, ...]
Whole = dict[str, dict[int, SetNeurons]]  # by check and layer
BESIDE = ((MEAN, RESAMPLE), (RESTORE,))  # checks at the emotional picture, and at its twin


@dataclass(frozen=True, eq=False)
class NeuronCheck(HeadCheck):
    """What the tested set of neurons (`set` 0) and random ones (1, 2, …) do; all else as in `HeadCheck`.

    `table` has a row a pair, check and set: pair, emotion, check, set; `value`, the metric under it; `own`, without; `goal`, that
    of the twin's run. `sets` has a row a set: neurons, `overlap` (the share of its neurons that are tested ones) and `norm` (the
    length of its neurons' writes at the emotional pictures' tokens, mean over tokens, pairs and neurons).
    """


def check_neurons(
    vlm: VLM,
    pairs: Sequence[Pair],
    neurons: Iterable[Place],
    *,
    sets: int = 100,
    tokens: Tokens = None,
    metric: Measured = "log mass",
    directions: Directions | None = None,
    layer: int | None = None,
    donors: str = "neutral",
    near: int | None = None,
    apart: bool = False,
    words: Words = None,
    wheels: WheelsLike = None,
    answer: str = "I felt",
    max_new_tokens: int = 64,
    seed: int = 0,
    file: str | Path | None = None,
    progress: bool = True,
) -> NeuronCheck:
    """Silence and restore `neurons`, (layer, neuron)s, together on pairs that did not choose them, beside `sets` random sets.

    At the last token, or at `tokens`: one a pair (`Sources.tokens`), or a span such as "visual", over which ablations take their
    mean. `metric`, `directions`, `layer`, `words` and `wheels` as in `head_map`; `donors`, `apart`, `file` as in `check_heads`.
    `near`: a random neuron is one of the `near` of its layer that write about as much, the tested one counted. By default few, so
    that they are as loud: what makes ten times `sets` different sets, 4 or more, and without `apart` those tested in one layer.
    All runs' neurons of the tested layers at the tokens are in memory at once.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> found = ei.check_neurons(vlm, pairs, [(6, 7), (7, 9)], sets=3, progress=False)
    >>> found.effects().shape
    (4, 3)
    """
    pairs = asked_of(vlm, pairs)
    neurons = tuple(sorted(checked_places(vlm, neurons, "neuron")))
    _check_room(neurons, vlm.anatomy.d_mlp, sets, near, apart)
    measure = measure_of(vlm, pairs, metric, directions, layer, words, max_new_tokens, wheels)
    _check_story(measure, tokens)
    answer = answer if measure.metrics else ""
    both = twins_of(vlm, pairs, answer)
    where = tokens_of(tokens, both)
    acts = _collected(vlm, both, where, neurons)
    norms = write_norms(vlm, [one for one, _ in acts], "neurons")
    near = _near(neurons, vlm.anatomy.d_mlp, sets, apart) if near is None else near
    drawn = (neurons, *matched_sets(neurons, norms, sets, near, apart, seed))
    asked = {"layer": layer, "donors": donors, "answer": answer, "max_new_tokens": max_new_tokens, "seed": seed}
    asked |= {"positions": list(map(list, where)), "sets": [list(map(list, some)) for some in drawn]}
    kept = kept_of(file, measure, pairs, both, words, wheels, directions, asked)
    for i in tqdm(range(len(kept.rows), len(pairs)), desc="check", initial=len(kept.rows), total=len(pairs), disable=not progress):
        pool = [run for _, run in donor_pool(pairs, [*zip(both, acts, strict=True)], i, donors)]
        whole = _whole(acts[i][0], pool, drawn, where[i], measure, (seed, i))
        kept.add(_one_pair(both[i], whole, drawn, measure, pairs[i].emotion))
    frames = [
        pd.DataFrame(row).assign(pair=i, emotion=pair.emotion) for i, (pair, row) in enumerate(zip(pairs, kept.rows, strict=True))
    ]
    return NeuronCheck(pd.concat(frames, ignore_index=True), described_sets(drawn, norms, "neurons"), measure.name)


def _check_room(neurons: Set, n: int, sets: int, near: int | None, apart: bool) -> None:
    """Refuse what leaves no other sets to compare with."""
    if sets < 1:
        raise InputError(f"sets is {sets}; expected 1 or more random sets to compare with, 100 for a p as small as 0.01.")
    if near is not None and near < (1 if apart else 2):
        raise InputError(f"near is {near}; expected {1 if apart else 2} or more neurons of a layer to draw one from.")
    for layer, count in Counter(layer for layer, _ in neurons).items():
        if count * (1 + apart) > n or count == n:
            said = f"{count} of layer {layer}'s {n} neurons are tested, so too few others are left for random sets"
            raise InputError(f"{said}; test fewer{', or leave `apart` False' if apart and count < n else ''}.")


def _near(neurons: Set, n: int, sets: int, apart: bool) -> int:
    """Among how many of a layer's `n` a neuron is drawn. The tested ones are often alike, so they may be each other's nearest."""
    fullest = 0 if apart else max(Counter(layer for layer, _ in neurons).values())
    return min(n, fullest + max(4, math.ceil((10 * sets) ** (1 / len(neurons)))))


def _check_story(measure: Measure, tokens: Tokens) -> None:
    if measure.metrics is None and tokens is not None:
        raise InputError(f"For metric={HITS!r} neurons are set from the last token on; leave out tokens={tokens!r}.")


def _collected(vlm: VLM, both: Sequence[list[Prompt]], where: Sequence[tuple[int, ...]], neurons: Set) -> list[list[Activations]]:
    """The neurons of both runs of each pair, in the layers that the tested ones are of."""
    layers = sorted({layer for layer, _ in neurons})
    return [collect(vlm, prompts, ["neurons"], layers=layers, positions=some) for prompts, some in zip(both, where, strict=True)]


def _whole(
    plus: Activations,
    pool: Sequence[Activations],
    drawn: Sequence[Set],
    tokens: tuple[int, ...],
    measure: Measure,
    seed: tuple[int, int],
) -> Whole:
    """Each check's edits of all neurons that some set holds; the sets' own are parts of them (`_part`)."""
    chosen, lasts = int(np.random.default_rng(seed).integers(2**31)), measure.metrics is None
    whole: Whole = defaultdict(dict)
    for layer, some in _by_layer({place for one in drawn for place in one}).items():
        options: dict[str, Any] = {"neurons": some, "positions": FROM_LAST if lasts else tokens}
        whole[MEAN][layer] = mean_ablation(pool, layer, **options)
        whole[RESAMPLE][layer] = resample_ablation(pool, layer, seed=chosen, **options)
        restored = patch(plus, layer, neurons=some, positions=tokens)
        whole[RESTORE][layer] = replace(restored, value=restored.value[-1], positions=FROM_LAST) if lasts else restored
    return whole


def _by_layer(places: Iterable[Place]) -> dict[int, tuple[int, ...]]:
    layers: dict[int, list[int]] = defaultdict(list)
    for layer, n in sorted(places):
        layers[layer].append(n)
    return {layer: tuple(some) for layer, some in layers.items()}


def _part(whole: Mapping[int, SetNeurons], some: Set) -> list[Edit]:
    """Of edits of many neurons what concerns some: an edit a layer."""
    edits: list[Edit] = []
    for layer, mine in _by_layer(some).items():
        columns = np.searchsorted(whole[layer].neurons, mine).tolist()
        edits.append(replace(whole[layer], neurons=mine, value=whole[layer].value[..., columns]))
    return edits


def _one_pair(prompts: list[Prompt], whole: Whole, drawn: Sequence[Set], measure: Measure, emotion: str) -> dict[str, list]:
    """Columns of a pair's rows: two sweeps, ablations at the emotional picture and restoration at its twin."""
    runs = []
    for prompt, checks in zip(prompts, BESIDE, strict=True):
        lists = {(check, i): _part(whole[check], some) for check in checks for i, some in enumerate(drawn)}
        runs.append((*measure.under(prompt, lists, emotion), lists))
    goals = [own for own, *_ in runs][::-1]
    rows = [
        (*label, value, own, goal)
        for (own, values, lists), goal in zip(runs, goals, strict=True)
        for label, value in zip(lists, values.tolist(), strict=True)
    ]
    return dict(zip(("check", "set", "value", "own", "goal"), map(list, zip(*rows, strict=True)), strict=True))
