"""VEENA among its rivals: every method at the strength that the same rule chooses on the same tuning pairs, and the controls.

The rule is that of `veena.fit`: the largest exact rate beside contradicting events, as long as false emotions on neutral pictures
rise by at most two points and stories stay about as likely. A rival at the strength of its paper, on a model that paper never saw,
would be a straw man.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from emointerp import veena
from emointerp.circuit import Circuit
from emointerp.directions import Directions
from emointerp.emotions import NEUTRAL
from emointerp.errors import InputError
from emointerp.evaluation.baselines import pai, vaf, vcd
from emointerp.evaluation.harness import evaluate
from emointerp.evaluation.items import CONFLICT, NEUTRALS, Item, conflict_pairs
from emointerp.evaluation.methods import Decoding, Method, emotion_prompt, grouped, none, oracle_steering, per_prompt, steering
from emointerp.evaluation.tables import NONE
from emointerp.heads import HeadMap, amplification_map
from emointerp.lens import Words
from emointerp.models import VLM, Prompt
from emointerp.pairs import Pair, world_pairs
from emointerp.steering import steering_vectors
from emointerp.tracing import Edit
from emointerp.veena import Place, Veena

# strengths that are tried, the weakest first
BETAS, GAMMAS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0), (1.0, 1.25, 1.5)
ALPHAS = (0.25, 0.5, 1.0)
VAF = (1.15, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
PAI, VCD = (0.2, 0.5, 1.0, 2.0, 4.0), (0.1, 0.25, 0.5, 1.0)


def amplified(value: Veena, name: str = "VEENA", parts: str = "both", *, adaptive: bool = False, words: Words = None) -> Method:
    """VEENA as a method; `parts` "vee" or "ena" for a half of it. `adaptive`: strengths follow the model's confidence by prompt.

    `words` are those of `veena.confidence`.
    """

    def edits_of(vlm: VLM, prompts: list[Prompt]) -> list[list[Edit]]:
        if adaptive:
            return veena.adaptive(vlm, prompts, value, parts, words=words)
        value.check(vlm)
        return [value.edits(parts)] * len(prompts)

    settings = {"veena": asdict(value), "parts": parts, "adaptive": adaptive, "words": _listed(words)}
    return per_prompt(name, edits_of, settings)


def _listed(words: Words) -> dict[str, list[str]] | None:
    return {emotion: list(some) for emotion, some in words.items()} if words else None


def by_prediction(values: Mapping[str, Veena], name: str = "VEENA, own prediction", words: Words = None) -> Method:
    """Each prompt under the VEENA of the emotion that the model itself, unedited, is about to name (`veena.predicted`).

    `values` by emotion; a prompt whose emotion has none is left alone. Where the model is about to be wrong, so is the choice.
    """

    def edits_of(vlm: VLM, prompts: list[Prompt]) -> list[list[Edit]]:
        lists = _lists(vlm, values)
        return [lists.get(emotion, []) for emotion in veena.predicted(vlm, prompts, words=words)]

    return per_prompt(name, edits_of, {emotion: asdict(value) for emotion, value in values.items()} | {"words": _listed(words)})


def by_label(values: Mapping[str, Veena], name: str, shift: int = 0) -> Method:
    """Each item under the VEENA of its gold emotion, or of the one `shift` places after it: it sees the label, so it is an oracle.

    With a shift it is a control, another emotion's heads and neurons. Items whose gold is no emotion of `values` are left alone.
    """
    emotions = list(values)

    def answers(vlm: VLM, items: Sequence[Item], decoding: Decoding) -> list[str]:
        lists = _lists(vlm, values)
        shifted = {emotion: lists[emotions[(i + shift) % len(emotions)]] for i, emotion in enumerate(emotions)}
        return grouped(vlm, [item.prompt(vlm) for item in items], [shifted.get(item.gold, []) for item in items], decoding)

    return Method(name, answers, {"shift": shift} | {emotion: asdict(value) for emotion, value in values.items()}, oracle=True)


def _lists(vlm: VLM, values: Mapping[str, Veena]) -> dict[str, list[Edit]]:
    for value in values.values():
        value.check(vlm)
    return {emotion: value.edits() for emotion, value in values.items()}


def tuned(
    vlm: VLM, grids: Mapping[str, Iterable[Method]], tuning: Sequence[Pair], max_false: float = 0.02, max_cost: float = 1.5
) -> list[Method]:
    """Of each grid's candidates the one that `veena.fit`'s rule chooses, under the grid's name; the first of equals.

    All are asked in one go, beside one run of no intervention. A warning says so where the last of a grid is chosen, as a stronger
    one might be better still. Where none keeps the limits and beats no intervention, the method is none at all, and its settings
    say so.
    """
    tried = {name: [replace(m, name=f"{name} {i}") for i, m in enumerate(some)] for name, some in grids.items()}
    if empty := [name for name, some in tried.items() if not some]:
        raise InputError(f"There are no candidates for {empty[0]!r}; give the method at one strength or more.")
    sets = {
        CONFLICT: [Item(CONFLICT, *pair.plus, pair.emotion) for pair in tuning],
        NEUTRALS: [Item(NEUTRALS, *pair.minus, NEUTRAL) for pair in tuning],
    }
    frame = evaluate(vlm, [none(), *(m for some in tried.values() for m in some)], sets, progress=False).to_frame()
    gain, rise = (frame.loc[which].difference.drop(NONE).map(lambda i: i.mean) for which in sets)
    cost = np.sqrt(frame.loc[CONFLICT].perplexity * frame.loc[NEUTRALS].perplexity).drop(NONE)  # geometric mean of both
    gain = gain[(rise <= max_false + 1e-9) & (cost <= max_cost) & (gain > 0)]
    return [_best(name, some, gain) for name, some in tried.items()]


def _best(name: str, tried: Sequence[Method], gain: pd.Series) -> Method:
    """The candidate that gains most, of those that are left in `gain`."""
    left = gain[gain.index.isin([method.name for method in tried])]
    if left.empty:
        return replace(none(), name=name, settings={"strength": "none: no candidate gained within the limits"})
    best = left.idxmax()
    if len(tried) > 1 and best == tried[-1].name:
        warnings.warn(f"{name}: the last of {len(tried)} candidates was chosen; a stronger one might do better.", stacklevel=3)
    return replace(next(method for method in tried if method.name == best), name=name)


def rivals(vlm: VLM, directions: Directions, l_emo: int, tuning: Sequence[Pair]) -> list[Method]:
    """No intervention, the emotion prompt, and the pooled S, VAF, PAI and VCD, each at its best on the tuning pairs."""
    grids = {
        "steering": [steering(directions, l_emo, alpha) for alpha in ALPHAS],
        "VAF": [vaf(factor) for factor in VAF],
        "PAI": [pai(alpha) for alpha in PAI],
        "VCD": [vcd(alpha) for alpha in VCD],
    }
    return [none(), emotion_prompt(), *tuned(vlm, grids, tuning)]


def contest(
    vlm: VLM, l_emo: int, *, n: int = 72, betas: Sequence[float] = BETAS, gammas: Sequence[float] = GAMMAS, progress: bool = True
) -> list[Method]:
    """VEENA, its halves and variants, rivals and controls, all fitted on the drawn world: what stands in the full table.

    Heads come from `n` contradicting events of the selection split (`veena.find_circuit(by="amplification")`), all strengths from
    `n` of the tuning split. ENA and what has neurons in it use the smallest gamma above 1 where the fit chose 1, so that the table
    shows what it does. Emotions' own values differ from VEENA in how many heads they have, so in the dose. A fit a run: some
    minutes for the bundled model, no part of what is resumed.
    """
    if not any(gamma > 1 for gamma in gammas):
        raise InputError(f"gammas are {list(gammas)}; expected one above 1 among them, for the rows of ENA.")
    options: dict[str, Any] = {"progress": progress}
    found = conflict_pairs(vlm, n, seed=17, split="selection")
    looks = amplification_map(vlm, found, l_emo, **options)
    circuit = veena.find_circuit(vlm, found, l_emo, by=looks, **options)
    tuning = conflict_pairs(vlm, n)
    best = veena.fit(vlm, circuit, tuning, l_emo, betas=betas, gammas=gammas, **options).veena
    patched = veena.fit(vlm, found, tuning, l_emo, betas=betas, gammas=(1,), neurons=0, **options).veena  # heads alone
    louder = replace(best, gamma=min(gamma for gamma in gammas if gamma > 1)) if best.gamma == 1 else best
    by_emotion = _by_emotion(vlm, looks, circuit, louder)
    directions = steering_vectors(vlm, world_pairs("direction", 120), answer=veena.BEGUN, **options)
    return [
        *rivals(vlm, directions, l_emo, tuning),
        amplified(best),
        amplified(best, "VEE", "vee"),
        amplified(louder, "ENA", "ena"),
        amplified(louder, "VEENA, with neurons"),
        amplified(patched, "VEENA, heads by patching"),
        amplified(best, "VEENA, adaptive", adaptive=True),
        by_prediction(by_emotion),
        *(amplified(random_like(vlm, best, seed), f"random heads {seed}") for seed in range(3)),
        amplified(random_like(vlm, louder), "random neurons", "ena"),
        by_label(by_emotion, "another emotion's VEENA", 1),
        by_label(by_emotion, "gold emotion's VEENA"),
        oracle_steering(directions, l_emo),
    ]


def _by_emotion(vlm: VLM, found: HeadMap, circuit: Circuit, value: Veena) -> dict[str, Veena]:
    """Each emotion's own VEENA at the strengths of `value`: the heads that do most for it, and its state neurons."""
    values = {}
    for emotion in found.pairs().emotion.unique():
        heads = [(head.layer, head.head) for head in found.of(emotion).parts()]
        neurons = [(part.layer, part.neuron) for part in circuit.neurons if part.emotion == emotion]
        if heads or neurons:
            values[emotion] = Veena.of(vlm, heads, neurons, l_emo=value.l_emo, beta=value.beta, gamma=value.gamma)
    return values


def random_like(vlm: VLM, value: Veena, seed: int = 0) -> Veena:
    """A control: the same strengths on as many random heads and neurons of the same layers, none of which are in `value`.

    One draw; give several seeds. A layer that has too few others gives those that it has, with a warning: the dose is smaller then.
    """
    rng, a = np.random.default_rng(seed), vlm.anatomy
    taken = value.upstream + value.downstream
    upstream = _others(value.upstream, taken, a.n_heads, rng)
    downstream = _others(value.downstream, (*taken, *upstream), a.n_heads, rng)
    drawn = {"upstream": upstream, "downstream": downstream, "neurons": _others(value.neurons, value.neurons, a.d_mlp, rng)}
    if short := sum(len(getattr(value, name)) - len(some) for name, some in drawn.items()):
        warnings.warn(f"The control has {short} parts fewer than what it controls: their layers have no others left.", stacklevel=2)
    return replace(value, **drawn)


def _others(places: Sequence[Place], taken: Sequence[Place], n: int, rng: np.random.Generator) -> list[Place]:
    """As many of each layer, none of them taken; fewer where the layer has fewer left."""
    found = []
    for layer, count in sorted(Counter(layer for layer, _ in places).items()):
        left = [i for i in range(n) if (layer, i) not in taken]
        found += [(layer, int(i)) for i in rng.choice(left, min(count, len(left)), replace=False)]
    return found
