"""VEENA among its rivals: every method at the strength that the same rule chooses on the same tuning pairs, and the controls.

The rule is that of `veena.fit`: the largest exact rate beside contradicting events, as long as false emotions on neutral pictures
rise by at most two points and stories stay about as likely. A rival at the strength of its paper, on a model that paper never saw,
would be a straw man.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from emointerp import veena
from emointerp.directions import Directions
from emointerp.emotions import NEUTRAL
from emointerp.errors import InputError
from emointerp.evaluation.baselines import pai, vaf, vcd
from emointerp.evaluation.harness import evaluate
from emointerp.evaluation.items import CONFLICT, NEUTRALS, Item
from emointerp.evaluation.methods import Method, edited, emotion_prompt, none, per_prompt, steering
from emointerp.evaluation.tables import NONE
from emointerp.lens import Words
from emointerp.models import VLM
from emointerp.pairs import Pair
from emointerp.veena import Place, Veena

VAF, PAI, VCD, ALPHAS = (1.15, 2.0, 4.0, 8.0), (0.2, 0.5, 1.0, 2.0), (0.25, 0.5, 1.0), (0.25, 0.5, 1.0)  # strengths tried


def amplified(value: Veena, name: str = "VEENA", parts: str = "both", *, adaptive: bool = False, words: Words = None) -> Method:
    """VEENA as a method; `parts` "vee" or "ena" for a half of it. `adaptive`: strengths follow the model's confidence by prompt.

    `words` are those of `veena.confidence`.
    """
    if not adaptive:
        return edited(name, value.edits(parts))
    settings = {"veena": str(value), "parts": parts, "adaptive": "prompt"}
    return per_prompt(name, lambda vlm, prompts: veena.adaptive(vlm, prompts, value, parts, words=words), settings)


def tuned(
    vlm: VLM, name: str, candidates: Iterable[Method], tuning: Sequence[Pair], max_false: float = 0.02, max_cost: float = 1.5
) -> Method:
    """The candidate that `veena.fit`'s rule chooses, under a `name`; the first of equals, and where none keeps the limits."""
    tried = [replace(method, name=f"{name} {i}") for i, method in enumerate(candidates)]
    if not tried:
        raise InputError(f"There are no candidates for {name!r}; give the method at one strength or more.")
    sets = {
        CONFLICT: [Item(CONFLICT, *pair.plus, pair.emotion) for pair in tuning],
        NEUTRALS: [Item(NEUTRALS, *pair.minus, NEUTRAL) for pair in tuning],
    }
    table = evaluate(vlm, [none(), *tried], sets, progress=False).table
    exact, false = (
        table[table.set == s].groupby("method")[c].mean() for s, c in ((CONFLICT, "exact"), (NEUTRALS, "false_emotion"))
    )
    likely = table[table.set == CONFLICT].groupby("method").perplexity.median()
    allowed = [m for m in tried if false[m.name] - false[NONE] <= max_false + 1e-9 and likely[m.name] <= max_cost * likely[NONE]]
    return replace(max(allowed or tried[:1], key=lambda method: exact[method.name]), name=name)


def rivals(vlm: VLM, directions: Directions, l_emo: int, tuning: Sequence[Pair]) -> list[Method]:
    """No intervention, the emotion prompt, and the pooled S, VAF, PAI and VCD, each at its best on the tuning pairs."""
    grids = {
        "steering": [steering(directions, l_emo, alpha) for alpha in ALPHAS],
        "VAF": [vaf(factor) for factor in VAF],
        "PAI": [pai(alpha) for alpha in PAI],
        "VCD": [vcd(alpha) for alpha in VCD],
    }
    return [none(), emotion_prompt(), *(tuned(vlm, name, methods, tuning) for name, methods in grids.items())]


def random_like(vlm: VLM, value: Veena, seed: int = 0) -> Veena:
    """A control: the same strengths on as many random heads and neurons of the same layers, none of which are in `value`."""
    rng, a = np.random.default_rng(seed), vlm.anatomy
    heads = _others(value.upstream + value.downstream, a.n_heads, rng)
    upstream = [at for at in heads if at[0] in {layer for layer, _ in value.upstream}]
    downstream = [at for at in heads if at not in upstream]
    return replace(value, upstream=upstream, downstream=downstream, neurons=_others(value.neurons, a.d_mlp, rng))


def _others(places: Sequence[Place], n: int, rng: np.random.Generator) -> list[Place]:
    """As many others of each layer; fewer where the layer has fewer left."""
    found = []
    for layer in sorted({layer for layer, _ in places}):
        mine = {i for at, i in places if at == layer}
        left = [i for i in range(n) if i not in mine]
        found += [(layer, int(i)) for i in rng.choice(left, min(len(mine), len(left)), replace=False)]
    return found
