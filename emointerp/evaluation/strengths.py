"""VEENA among its rivals: every method at the strength that the same rule chooses on the same tuning pairs, and the controls.

The rule is that of `veena.fit`: the largest exact rate beside contradicting events, as long as false emotions on neutral pictures
rise by at most two points and stories stay about as likely. A rival at the strength of its paper, on a model that paper never saw,
would be a straw man.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from emointerp.heads import HeadMap, amplification_map, head_map
from emointerp.heads.maps import LOOKING
from emointerp.lens import Words
from emointerp.loudness import as_loud, near_of, write_norms
from emointerp.measures import evenly
from emointerp.models import VLM, Prompt
from emointerp.pairs import Pair, check_disjoint, world_pairs
from emointerp.steering import steer, steering_vectors
from emointerp.tracing import Activations, Edit, generate
from emointerp.tracing.verbs import checked_layers
from emointerp.veena import Place, Veena
from emointerp.veena.switch import PROMPT, STEP

# strengths that are tried, the weakest first
BETAS, GAMMAS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0), (1.0, 1.25, 1.5)
ALPHAS = (0.25, 0.5, 1.0)
VAF = (1.15, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
PAI, VCD = (0.2, 0.5, 1.0, 2.0, 4.0), (0.1, 0.25, 0.5, 1.0)


def amplified(
    value: Veena, name: str = "VEENA", parts: str = "both", *, adaptive: bool | str = False, words: Words = None
) -> Method:
    """VEENA as a method; `parts` "vee" or "ena" for a half of it. `adaptive`: strengths follow the model's confidence.

    - "prompt" (or True): each prompt's own strength, the same for its whole answer (`veena.adaptive`). It costs an unedited forward
      of each prompt; and prompts are told in groups of one strength, up to eleven of them, which takes longest where batches would
      have been full.
    - "step": at each token anew, by how sure the model was at the token before (`veena.on(adaptive="step")`). It costs an unedited
      forward of each batch, whose rows stay together; at each token a lens at l_emo, and masks that are made anew.

    With the bundled model on one CPU thread 48 stories, 32 at a time, take 2.6 times as long as without edits by prompt, 1.7 times
    by step, and 1.03 times at a fixed strength.

    `words` are those of `veena.confidence`.
    """
    if adaptive not in (False, True, PROMPT, STEP):
        raise InputError(f"adaptive is {adaptive!r}; expected False, {PROMPT!r} (or True) or {STEP!r}.")
    settings = {
        "veena": asdict(value),
        "parts": parts,
        "adaptive": STEP if adaptive == STEP else bool(adaptive),
        "words": _listed(words),
    }
    if adaptive == STEP:
        return Method(name, _by_step(value, parts, words), settings)

    def edits_of(vlm: VLM, prompts: list[Prompt]) -> list[list[Edit]]:
        if adaptive:
            return veena.adaptive(vlm, prompts, value, parts, words=words)
        value.check(vlm)
        return [value.edits(parts)] * len(prompts)

    return per_prompt(name, edits_of, settings)


def _by_step(value: Veena, parts: str, words: Words) -> Callable[[VLM, Sequence[Item], Decoding], list[str]]:
    """Answers while VEENA is on."""

    def answers(vlm: VLM, items: Sequence[Item], decoding: Decoding) -> list[str]:
        with veena.on(vlm, value, parts, adaptive=STEP, words=words):
            return generate(vlm, [item.prompt(vlm) for item in items], **decoding.options())

    return answers


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
    vlm: VLM,
    l_emo: int,
    *,
    selection: Sequence[Pair] | None = None,
    tuning: Sequence[Pair] | None = None,
    direction: Sequence[Pair] | None = None,
    n: int = 72,
    betas: Sequence[float] = BETAS,
    gammas: Sequence[float] = GAMMAS,
    progress: bool = True,
) -> list[Method]:
    """VEENA, its halves and variants, rivals and controls, all fitted on pairs that no test sees: what stands in the full table.

    Heads come from `selection`, all strengths from `tuning`; by default `n` contradicting events each of the drawn world's splits
    of these names (`conflict_pairs`). S of the steering rows comes from `direction`; by default the drawn world's, or your
    `selection`. Where each selection pair brings a neutral event along, heads are those whose larger look at the picture does most
    beside its event (`veena.find_circuit(by="amplification")`), which should contradict the picture; else those whose patch carries
    the emotion over, and then there is no other row of heads by patching. Events that stand in both parts give a warning; emotional
    pictures that do, an InputError, as do pairs on which no head and no neuron passes its test.

    ENA and what has neurons in it use the smallest gamma above 1 where the fit chose 1, so that the table shows what it does.
    Emotions' own values differ from VEENA in how many heads they have, so in the dose. A fit a run: some minutes for the bundled
    model, no part of what is resumed. Of another model than that, name its own l_emo (`emotional_layer` finds it).
    """
    if not any(gamma > 1 for gamma in gammas):
        raise InputError(f"gammas are {list(gammas)}; expected one above 1 among them, for the rows of ENA.")
    checked_layers(vlm, l_emo)  # refuses, before any work, a layer that is none of the model's
    options: dict[str, Any] = {"progress": progress}
    if direction is None:
        direction = world_pairs("direction", 120) if selection is None else selection
    selection = conflict_pairs(vlm, n, seed=17, split="selection") if selection is None else selection
    tuning = conflict_pairs(vlm, n) if tuning is None else tuning
    _check_parts(selection, tuning)
    looks = _looks(vlm, selection, l_emo, options)
    circuit = _apart(veena.find_circuit(vlm, selection, l_emo, by=looks, **options), tuning)
    best = veena.fit(vlm, circuit, tuning, l_emo, betas=betas, gammas=gammas, **options).veena
    louder = replace(best, gamma=min(gamma for gamma in gammas if gamma > 1)) if best.gamma == 1 else best
    by_emotion = _by_emotion(vlm, looks, circuit, louder)
    directions = steering_vectors(vlm, direction, answer=veena.BEGUN, **options)
    patched = []
    if looks.direction == LOOKING:
        alone = _apart(veena.find_circuit(vlm, selection, l_emo, neurons=0, **options), tuning)
        patched = [veena.fit(vlm, alone, tuning, l_emo, betas=betas, gammas=(1,), **options).veena]
    return [
        *rivals(vlm, directions, l_emo, tuning),
        amplified(best),
        amplified(best, "VEE", "vee"),
        amplified(louder, "ENA", "ena"),
        amplified(louder, "VEENA, with neurons"),
        *(amplified(value, "VEENA, heads by patching") for value in patched),
        amplified(best, "VEENA, adaptive", adaptive=True),
        by_prediction(by_emotion),
        *(amplified(random_like(vlm, best, seed), f"random heads {seed}") for seed in range(3)),
        amplified(random_like(vlm, louder), "random neurons", "ena"),
        by_label(by_emotion, "another emotion's VEENA", 1),
        by_label(by_emotion, "gold emotion's VEENA"),
        oracle_steering(directions, l_emo),
    ]


def _check_parts(selection: Sequence[Pair], tuning: Sequence[Pair]) -> None:
    """Two pairs or more in each, and no emotional picture in both."""
    for name, pairs in (("selection", selection), ("tuning", tuning)):
        if len(pairs) < 2:
            raise InputError(f"{name} has {len(pairs)} pairs; two or more are needed, better a dozen of each emotion.")
    check_disjoint(selection, tuning)


def _looks(vlm: VLM, pairs: Sequence[Pair], l_emo: int, options: Mapping[str, Any]) -> HeadMap:
    """What each head's larger look does, where pairs bring neutral events along; else what its patch carries over."""
    if all(pair.neutral_event is not None for pair in pairs):
        return amplification_map(vlm, pairs, l_emo, **options)
    twins = [p if p.neutral_event is None else replace(p, event=p.neutral_event, neutral_event=None) for p in pairs]
    return head_map(vlm, twins, **options)


def _apart(circuit: Circuit, tuning: Sequence[Pair]) -> Circuit:
    """The circuit; without its events where the tuning pairs share some, and a warning."""
    shared = sorted(set(circuit.events) & {pair.event for pair in tuning})
    if not shared:
        return circuit
    said = f"{len(shared)} events stand in selection and in tuning pairs ({shared[0]!r}, …)"
    warnings.warn(f"{said}: strengths are chosen beside what heads were found beside.", stacklevel=3)
    return replace(circuit, events=())


def emotional_layer(
    vlm: VLM,
    direction: Sequence[Pair] | None = None,
    selection: Sequence[Pair] | None = None,
    *,
    most: int = 24,
    max_layers: int = 12,
    max_new_tokens: int = 64,
    progress: bool = True,
) -> int:
    """l_emo, for a model of which it is not known: S of the `direction` pairs is added to the neutral sides of `selection` pairs.

    By default pairs of the drawn world. At most `most` selection pairs, in their order, of emotions that have a direction; at most
    `max_layers` layers, evenly spaced, at each of `ALPHAS` and 2 times S. The last layer is left out: only the unembedding reads a
    push there. `Steering.emotional_layer` of clean stories, or of hits where none is clean; InputError where no push gains at all.
    """
    direction = world_pairs("direction", 120) if direction is None else direction
    selection = world_pairs("selection", most) if selection is None else selection
    directions = steering_vectors(vlm, direction, answer=veena.BEGUN, progress=progress)
    known = [pair for pair in selection if pair.emotion in directions.emotions][:most]
    layers = evenly(max(1, vlm.anatomy.n_layers - 1), max_layers)
    how = {"layers": layers, "alphas": (*ALPHAS, 2.0), "max_new_tokens": max_new_tokens, "progress": progress}
    found = steer(vlm, known, directions, **how)
    for measure in ("clean", "hit"):
        if found.effect(measure).plain.map(lambda gain: gain.mean).max() > 0:
            return found.emotional_layer(measure)
    raise InputError(
        f"No push after layers {', '.join(map(str, layers))} makes stories of {len(known)} neutral pictures name the emotion, so "
        "l_emo is not found; name it (l_emo=…, --l-emo), such as half of the layers."
    )


def _by_emotion(vlm: VLM, found: HeadMap, circuit: Circuit, value: Veena) -> dict[str, Veena]:
    """Each emotion's own VEENA at the strengths of `value`: the heads that do most for it, and its state neurons."""
    values = {}
    for emotion in found.pairs().emotion.unique():
        heads = [(head.layer, head.head) for head in found.of(emotion).parts()]
        neurons = [(part.layer, part.neuron) for part in circuit.neurons if part.emotion == emotion]
        if heads or neurons:
            values[emotion] = Veena.of(vlm, heads, neurons, l_emo=value.l_emo, beta=value.beta, gamma=value.gamma)
    return values


def random_like(
    vlm: VLM,
    value: Veena,
    seed: int = 0,
    like: Mapping[str, Sequence[Activations]] | None = None,
    near: int | None = None,
) -> Veena:
    """A control: the same strengths on as many random heads and neurons of the same layers, none of which are in `value`.

    One draw; give several seeds. A layer that has too few others gives those that it has, with a warning: the dose is smaller then.

    `like`: runs of some prompts, `collect_donors(vlm, prompts, ("query", "last"))`. Then each part is drawn among the `near` others
    of its layer whose writes there are nearest in length (by default half of the layer, at most 8): of upstream heads at
    `prefill_at`, of all else at the last token. Without it any other of the layer; a seed's draws differ between the two.
    """
    rng, a, norms = np.random.default_rng(seed), vlm.anatomy, _norms(vlm, value, like)
    taken = value.upstream + value.downstream
    upstream = _others(value.upstream, taken, a.n_heads, rng, norms.get("upstream"), near)
    downstream = _others(value.downstream, (*taken, *upstream), a.n_heads, rng, norms.get("downstream"), near)
    neurons = _others(value.neurons, value.neurons, a.d_mlp, rng, norms.get("neurons"), near)
    drawn = {"upstream": upstream, "downstream": downstream, "neurons": neurons}
    if short := sum(len(getattr(value, name)) - len(some) for name, some in drawn.items()):
        warnings.warn(f"The control has {short} parts fewer than what it controls: their layers have no others left.", stacklevel=2)
    return replace(value, **drawn)


def _norms(vlm: VLM, value: Veena, like: Mapping[str, Sequence[Activations]] | None) -> dict[str, np.ndarray]:
    """How long heads and neurons write where each kind of part of `value` acts; nothing without runs."""
    if like is None:
        return {}
    acts = {name: value.prefill_at if name == "upstream" else ("last",) for name in value.lists if getattr(value, name)}
    wanted = tuple(dict.fromkeys(span for spans in acts.values() for span in spans))
    if missing := [span for span in wanted if span not in like]:
        raise InputError(f"`like` has no runs at {missing[0]!r}; give collect_donors(vlm, prompts, {wanted}).")
    sites = {name: "neurons" if name == "neurons" else "heads" for name in acts}
    return {name: np.mean([write_norms(vlm, like[at], sites[name]) for at in spans], 0) for name, spans in acts.items()}


def _others(
    places: Sequence[Place],
    taken: Sequence[Place],
    n: int,
    rng: np.random.Generator,
    norms: np.ndarray | None = None,
    near: int | None = None,
) -> list[Place]:
    """As many of each layer, none of them taken; fewer where the layer has fewer left. With norms [layer, unit], as loud ones."""
    found = []
    for layer, count in sorted(Counter(layer for layer, _ in places).items()):
        left = [i for i in range(n) if (layer, i) not in taken]
        if norms is None:
            found += [(layer, int(i)) for i in rng.choice(left, min(count, len(left)), replace=False)]
        else:
            mine = [i for at, i in places if at == layer]
            found += [(layer, i) for i in as_loud(mine, left, norms[layer], near_of(n) if near is None else near, rng)]
    return found
