"""Checks of the course's exercises: each says what is wrong, not only that it is.

An exercise of a notebook is a code cell: lines that prepare it where it needs any, a stub (`answer = None`), a blank line, and the
check, `exercise.NAME(answer, …)`. The folded text cell after it holds the solution in one block of Python, which takes the stub's
place in the teacher's copy (`emointerp lab --solutions`). A check answers an open stub with what to do, and a usual slip with its
name; `tests/wrong_answers.py` lists slips for every exercise of the course.

>>> from emointerp import exercises
>>> exercises.Verdict(False, "Not yet: the answer is still None.")
Not yet: the answer is still None.
"""

from emointerp.exercises import flow, heads, lens, own_model, sae, saliency, start_here, steering, superposition, veena
from emointerp.exercises.verdict import Verdict

__all__ = [
    "Verdict", "flow", "heads", "lens", "own_model", "sae", "saliency", "start_here", "steering", "superposition", "veena",
]  # fmt: skip
