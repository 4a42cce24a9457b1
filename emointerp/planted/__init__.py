"""A LLaVA made by hand whose road from a picture to an emotion word is known, to try methods that look for circuits on.

Such methods are usually tried on models of which nobody knows the answer. Here every weight that matters was put in its place. All
others are random and as loud as the planted ones; they read all over the residual stream, and write mostly where the circuit does
not read, so that the answer stays known:

    picture     one patch of sixteen has one of six colours; in the neutral twin it is as gray as the others
       |        tower and projector                                                      at the patch's token: colour
    layer 1     twelve TRIGGER neurons, two an emotion: colour -> code                   at the patch's token: seen
       |
    layers 3, 4 six SPECIFIC heads, one an emotion: the last token looks for the code    at the last token:    held
       |   \\    DECOY (layer 4): the same for any emotion, into a place that nobody reads                      unread
       |    \\   BACKUP (layer 5): as fear's head, but it looks away where fear is held
       |
    layer 6     the GENERAL head: the last token looks at itself, whatever is held       at the last token:    ready
       |
    layer 7     twelve STATE neurons, two an emotion: code -> its words' unembedding      at the last token:    voice

The last token is " felt" (after "I felt"); what is said next is an emotion's word, or "nothing". A few words lead on by themselves,
so that the model tells a story too: "I felt furious." It is a LLaVA as any other to the rest of the package.

- `planted_vlm`, `planted_pairs`: the model, and pairs of pictures to ask it about. `truth`: what is where.
- `score`: a method's heads or neurons, as a set or a ranking, beside the truth. `compare`: methods, yours among them, side by side.

>>> vlm, pairs = planted_vlm(), planted_pairs("selection", 72)                                # doctest: +SKIP
>>> score(head_map(vlm, pairs).passed())                                                      # doctest: +SKIP
Score(precision=1.0, recall=1.0, average_precision=nan)
>>> compare(METHODS | {"mine": my_method}).plot()                                             # doctest: +SKIP
"""

from emointerp.planted.circuit import planted_pairs, truth
from emointerp.planted.methods import METHODS, Comparison, compare
from emointerp.planted.model import planted_vlm
from emointerp.planted.scoring import Score, score

__all__ = ["METHODS", "Comparison", "Score", "compare", "planted_pairs", "planted_vlm", "score", "truth"]
