"""The map of amplification: what it does to the answer when one head looks `beta` times as much at the picture.

Patching asks what a head carries. That it carries much does not say that a larger look would help: a head with all of its attention
on the picture cannot look more, and one that looks away may hold the key. VEE is made of larger looks, so this is the map to choose
its heads by. It needs pairs in which the picture is under-used: beside an event that contradicts it.
"""

from collections.abc import Sequence

import pandas as pd
from tqdm.auto import tqdm

from emointerp.errors import InputError
from emointerp.heads.maps import LOOKING, PLACE, HeadMap
from emointerp.lens import Words
from emointerp.measures import HITS, RESTORATION, Measured, measure_of
from emointerp.models import VLM, Prompt
from emointerp.pairs import Pair, asked_of, fingerprint
from emointerp.tracing import ScaleAttention
from emointerp.tracing.verbs import checked_layers


def amplification_map(
    vlm: VLM,
    pairs: Sequence[Pair],
    l_emo: int,
    beta: float = 8.0,
    metric: Measured = "log mass",
    *,
    words: Words = None,
    answer: str = "I felt",
    progress: bool = True,
) -> HeadMap:
    """Each head's attention to the picture times `beta`, one head at a time, beside the event that contradicts the picture.

    Heads of layers up to `l_emo` look from the query tokens, later ones from the last prompt token on, as in VEE (`veena.Veena`).
    Pairs bring their neutral event along (`Pair.neutral_event`, `evaluation.conflict_pairs`): `donor` is the same picture beside
    it, so an effect of 1 gives back all that the contradicting event took from the picture's emotion. One sweep a pair.
    """
    pairs = asked_of(vlm, pairs)
    if lacking := [pair.name or str(i) for i, pair in enumerate(pairs) if pair.neutral_event is None]:
        said = f"{len(lacking)} pairs have none (the first: {lacking[0]})"
        raise InputError(f"An amplification map compares an event with a neutral one, and {said}; give Pair(neutral_event=…).")
    if metric in (HITS, RESTORATION):
        raise InputError(
            f"metric is {metric!r}; an amplification map reads a begun answer: 'log mass', 'mass', 'log odds' or a Metric."
        )
    measure, first_late = measure_of(vlm, pairs, metric, words=words), checked_layers(vlm, l_emo)[0] + 1
    cells = [(layer, head) for layer in range(measure.last_layer + 1) for head in range(vlm.anatomy.n_heads)]
    frames = []
    for i, pair in enumerate(tqdm(pairs, desc="amplification", disable=not progress)):
        asked, calm = (vlm.prompt(pair.emotional, event, answer=answer) for event in (pair.event, pair.neutral_event))
        query, current = _spans(vlm, pair, asked)
        lists = {
            (layer, head): [ScaleAttention(layer, beta, current if layer >= first_late else query, "visual", [head])]
            for layer, head in cells
        }
        receiver, found = measure.under(asked, lists, pair.emotion)
        donor, _ = measure.under(calm, {"none": []}, pair.emotion)
        about = {"pair": i, "emotion": pair.emotion, "picture": fingerprint(asked.image), "receiver": receiver, "donor": donor}
        frames.append(pd.DataFrame(cells, columns=PLACE).assign(**about, value=found))
    return HeadMap(pd.concat(frames, ignore_index=True), measure.name, LOOKING, "amplifying", vlm.anatomy.n_layers)


def _spans(vlm: VLM, pair: Pair, begun: Prompt) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The query tokens of the question, and its last token with those of the answer that has begun."""
    question = vlm.prompt(pair.emotional, pair.event)
    return question.positions(["query"]), tuple(range(question.last, len(begun)))
