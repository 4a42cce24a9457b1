"""Chapter 07: VEENA. A circuit is known; can the model be mended there, without training it?

- VEE, visual emotion enhancement: `beta` times as much attention to the picture. Upstream heads (layer <= l_emo) from the query
  tokens Q, while the prompt is read; downstream heads (layer > l_emo) from the current token, while the answer is told.
- ENA, emotional neuron amplification: `m[l, n] <- gamma * m[l, n]` for state neurons, from the last prompt token on.
- VEENA is both (arXiv 2605.21980). No label is seen: heads and neurons are the union over emotions.

The current token of the answer's first step is the prompt's last token, so downstream heads and neurons act there already.

A `Veena` is a value; `edits()` makes it a list of edits as any other. `on` leaves it on, for everything that generates:

>>> value = Veena(upstream=[(2, 0)], downstream=[(5, 2), (5, 7)], neurons=[(6, 117)], beta=2.0, gamma=1.4)
>>> value.edits("vee")[1]
ScaleAttention(layer=5, factor=2.0, query=('last', 'answer'), key=('visual',), heads=(2, 7), renormalise=True)
>>> with on(vlm, value):                                                                      # doctest: +SKIP
...     vlm.generate(prompts)

Heads that carry the emotion need not be those whose larger look at the picture helps: `find_circuit` knows a rule for either.
One strength for all pictures is a guess. `adaptive` strength follows the model's own confidence (`confidence`), and `fit` chooses
circuit and strengths on two splits that the test never sees.
"""

from emointerp.veena.fitting import AMPLIFICATION, PATCHING, Fit, find_circuit, fit
from emointerp.veena.strength import BEGUN, adaptive, confidence, predicted
from emointerp.veena.switch import on
from emointerp.veena.value import Place, Veena, signs

__all__ = [
    "AMPLIFICATION", "BEGUN", "PATCHING", "Fit", "Place", "Veena", "adaptive", "confidence", "find_circuit", "fit", "on",
    "predicted", "signs",
]  # fmt: skip
