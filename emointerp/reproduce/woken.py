"""Step 7: neurons. What heads read, which neurons below wake them, which at the last token state a feeling, and their words."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from emointerp.heads.drawing import means
from emointerp.neurons import Neurons, state_neurons, trigger_neurons
from emointerp.reproduce.kept import Result
from emointerp.reproduce.reading import plain
from emointerp.reproduce.task import Task, each, heads_of, lines_left_out, named, rate
from emointerp.sources import Sources, source_tokens
from emointerp.tour.chapter import Chapter, figure_html, muted, share, table_html

NAME, TITLE = "neurons", "Neurons"
NEEDS = ("vectors", "layers", "heads")
TRACED, EACH, SHOWN = 3, 5, 12  # upstream heads that are traced; neurons of each; rows on the page


def measure(task: Task) -> Result:
    """Found on the selection part, patched exactly on the test part."""
    heads = task.found["heads"]
    selection, test = task.known("selection"), task.known("test")
    traced = heads_of(heads.tables["heads"][heads.tables["heads"].role == "upstream"].head(TRACED))
    S = None if "intention" in heads.facts["left out"] else task.directions  # where single writes cannot be told
    options: dict[str, Any] = {"held_out": test, "progress": False}
    made: dict[str, Callable[[], pd.DataFrame]] = {
        "sources": lambda: source_tokens(task.vlm, selection, traced, S, progress=False).table,
        "state": lambda: _table(state_neurons(task.vlm, selection, S, k=task.sizes.neurons, **options)),
        "trigger": lambda: _table(trigger_neurons(task.vlm, selection, traced, S, k=EACH, **options)),
    }
    tables, facts = each({name: partial(task.parts.once, name, make) for name, make in made.items()})
    return Result(tables, facts=facts | {"traced": [list(at) for at in traced]})


def _table(found: Neurons) -> pd.DataFrame:
    return found.table.assign(control=found.control)


def neurons_of(table: pd.DataFrame) -> Neurons:
    """What `measure` kept, as it was."""
    return Neurons(table.drop(columns="control"), float(table.control.iloc[0]))


def chapter(task: Task, result: Result) -> Chapter:
    """Source tokens, triggers, state neurons with their words."""
    t, blocks, summary, results = result.tables, [], [], {}
    traced = [tuple(at) for at in result.facts["traced"]]
    if "sources" in t:
        found = Sources(t["sources"])
        blocks.append(
            (f"What the upstream heads {named(traced)} read", figure_html(found.plot(), "Spans of source tokens, a row a head"))
        )
    here = {}
    for name, title in (("trigger", "What wakes them: trigger neurons"), ("state", "State neurons, at the last token")):
        if name in t:
            found = neurons_of(t[name])
            stands = (found.table.p_exact <= 0.05) & (means(found.table.exact) > 0)
            writes = rate(found.table.names != "")
            blocks.append((title, _shown(found) + figure_html(found.plot(SHOWN), "Effects of neurons with intervals")))
            summary.append(_line(name, len(found.table), int(stands.sum()), share(writes), found.control))
            results[name] = {
                "neurons": len(found.table),
                "stand": int(stands.sum()),
                "name an emotion": writes,
                "random": found.control,
            }
            here |= {"neurons": f"{len(found.table)}", "neuron words": f"{share(writes)}, random {found.control:.0%}"}
    if blocks:
        title, html = blocks[-1]
        blocks[-1] = (title, html + muted(_WORDS))
    summary += lines_left_out(result.facts)
    return Chapter(NAME, TITLE, tuple(summary), tuple(blocks), results, found=here if "state" in t else {})


def _line(kind: str, n: int, stand: int, writes: str, control: float) -> str:
    return (
        f"Of {n} {kind} neurons, found by attribution on the selection part, {stand} pass their test when they are patched exactly "
        f"on the test part; {writes} write words of an emotion, random neurons of the same layers {control:.0%}."
    )


def _shown(found: Neurons) -> str:
    rows = found.table.head(SHOWN)
    columns = {
        "layer.neuron": [f"{row.layer}.{row.neuron}" for row in rows.itertuples()],
        "wakes": [row.head for row in rows.itertuples()],
        "effect, patched": [f"{i.mean:.2g} [{i.low:.2g}, {i.high:.2g}]" for i in rows.exact],
        "p": [f"{p:.4f}" for p in rows.p_exact],
        "names": list(rows.names),
        "likeliest words of what it writes": [plain(words) for words in rows.words],
    }
    return table_html(pd.DataFrame({name: some for name, some in columns.items() if any(some)}))


_WORDS = (
    "Words: the value vector, in the sense that its sign has beside emotional pictures, read by the final norm and the "
    "unembedding. It names an emotion if the words of one have the largest mass and one is among the ten likeliest tokens."
)
