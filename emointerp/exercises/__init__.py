"""Checks of the course's exercises: each says what is wrong, not only that it is.

>>> from emointerp import exercises
>>> exercises.Verdict(False, "Not yet: the answer is still None.")
Not yet: the answer is still None.
"""

from emointerp.exercises import flow, heads, lens, own_model, sae, saliency, start_here, steering, superposition, veena
from emointerp.exercises.verdict import Verdict

__all__ = [
    "Verdict", "flow", "heads", "lens", "own_model", "sae", "saliency", "start_here", "steering", "superposition", "veena",
]  # fmt: skip
