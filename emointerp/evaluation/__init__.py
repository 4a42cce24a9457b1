"""Does it help, and what does it cost: methods, data sets and models in one harness, and readers of the benchmarks.

>>> from emointerp import evaluation as ev
>>> result = ev.evaluate(vlm, [ev.none(), mine], {"conflict": ev.world_items(vlm, "conflict")})          # doctest: +SKIP
>>> result.to_frame(), result.goal("mine"), result.plot()                                                # doctest: +SKIP

- **what is asked**: `Item`, `world_items` and the names in `SETS`; `mer_unibench` reads that benchmark, `read_emotic` EMOTIC, whose
  pictures are ranked by emotion (`benchmarks.run_emotic`).
- **how**: a `Method` is a name and a function from items to answers (`none`, `edited`, `emotion_prompt`, `steering`; and, as others
  have them, `pai`, `vaf`, `vcd`); `Decoding` says how they draw.
- **among rivals**: `amplified` makes VEENA a method, `rivals` the others at strengths `tuned` by the same rule on `conflict_pairs`,
  `random_like` and `by_label` the controls; `contest` is all of them, on the drawn world or pairs of your own (`emotional_layer`).
- **the harness**: `evaluate` gives an `Evaluation`; `benchmarks` has what `emointerp evaluate` runs.
"""

from emointerp.evaluation.baselines import pai, vaf, vcd
from emointerp.evaluation.emotic import Emotic, read_emotic
from emointerp.evaluation.harness import evaluate
from emointerp.evaluation.items import SETS, Item, conflict_pairs, pair_items, world_items
from emointerp.evaluation.methods import Decoding, Method, edited, emotion_prompt, none, oracle_steering, per_prompt, steering
from emointerp.evaluation.strengths import amplified, by_label, by_prediction, contest, emotional_layer, random_like, rivals, tuned
from emointerp.evaluation.tables import Evaluation

__all__ = [
    "SETS", "Decoding", "Emotic", "Evaluation", "Item", "Method", "amplified", "by_label", "by_prediction", "conflict_pairs",
    "contest", "edited", "emotion_prompt", "emotional_layer", "evaluate", "none", "oracle_steering", "pai", "pair_items",
    "per_prompt", "random_like", "read_emotic", "rivals", "steering", "tuned", "vaf", "vcd", "world_items",
]  # fmt: skip
