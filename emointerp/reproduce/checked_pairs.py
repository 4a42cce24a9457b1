"""Step 1: the pairs, looked at before anything is measured on them, and the parts that they are kept apart in."""

from emointerp.pairs import Check, check
from emointerp.reproduce.kept import Result
from emointerp.reproduce.task import Task
from emointerp.tour.chapter import Chapter, figure_html, muted, table_html

NAME, TITLE = "pairs", "Aligned pairs"
NEEDS: tuple[str, ...] = ()
SHOWN = 4  # pairs in the contact sheet


def measure(task: Task) -> Result:
    """`pairs.check` of all pairs."""
    found = check(task.material.pairs, progress=False)
    return Result({"check": found.table}, facts={"summary": found.summary})


def chapter(task: Task, result: Result) -> Chapter:
    """How many pairs of which emotion are in which part, and what is wrong with any."""
    table, counts = result.tables["check"], task.material.to_frame()
    failing = table[table.problems != ""]
    rows = counts.rename_axis(None, axis=1).reset_index(names="emotion").astype(str)
    blocks = [("How many, in which part", table_html(rows) + muted(_PARTS))]
    shown = Check(table.head(SHOWN), task.material.pairs[:SHOWN])
    blocks.append(("The first of them", figure_html(shown.contact_sheet(SHOWN), "Pairs: emotional, neutral, their difference")))
    if len(failing):
        blocks.append(("Pairs with a problem", table_html(failing[["name", "emotion", "problems"]].head(20))))
    said = (*task.material.said, *task.material.warned)
    summary = (f"{len(table)} pairs from {task.material.source}. {result.facts['summary']}", *said)
    results = {"summary": result.facts["summary"], "said": list(said), "parts": counts.to_dict("index")}
    return Chapter(NAME, TITLE, summary, tuple(blocks), results, found={"pairs": f"{len(table)}"})


_PARTS = (
    "Directions come from the first part, layers, heads and neurons from the second, strengths from the third; what is reported "
    "comes from the last. Pairs with a problem are used all the same: they are the reader's to mend."
)
