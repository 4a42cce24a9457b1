"""One command for all of a paper's analyses and tables: `emointerp reproduce veena --model … --pairs … --data … --out …`.

Nine steps in the order of the VEENA paper (arXiv 2605.21980), each a module with a `NAME`, a `TITLE`, what it `NEEDS`,
`measure(task) -> Result` and `chapter(task, result)`; they call the methods of the other rooms and hold none of their own. What a
step found is kept on disk under a stamp of what it stands on, so a run that is stopped goes on where it was (`kept`). It ends in a
page like the tour's, with the figures that digests of the paper report beside those measured here, marked unverified (`claims`).

>>> from emointerp import reproduce
>>> reproduce.run("tiny", out="veena", size="quick")                                              # doctest: +SKIP
"""

from emointerp.reproduce.runner import STEPS, plan, plan_text, run
from emointerp.reproduce.sizes import FULL, QUICK, Sizes

__all__ = ["FULL", "QUICK", "STEPS", "Sizes", "plan", "plan_text", "run"]
