"""Step 9: cases. One event, two pictures: the stories of both, under VEENA, and where the universal visual heads look."""

from collections.abc import Sequence
from html import escape
from typing import Any

import pandas as pd
import torch
from matplotlib.colors import Normalize

from emointerp.emotions import exact_rate
from emointerp.heads.visual import attention_on
from emointerp.lens import draw_over
from emointerp.markup import data_uri, marked, thumbnail
from emointerp.models import to_image
from emointerp.pairs import Pair
from emointerp.plots import new_figure
from emointerp.reproduce.circuit_heads import universal
from emointerp.reproduce.kept import Result
from emointerp.reproduce.task import BEGUN, Task
from emointerp.start_here import Telling
from emointerp.tour.chapter import Chapter, figure_html, muted, scrolling
from emointerp.tracing import generate
from emointerp.veena import Veena

NAME, TITLE = "cases", "Cases"
NEEDS = ("vectors", "layers", "heads")
SIDES, PLAIN, WITH, PUSHED = ("emotional", "neutral"), "as it is", "VEENA", "pushed"


def measure(task: Task) -> Result:
    """Greedy stories of the first test pairs, one an emotion, and attention of the universal visual heads."""
    pairs = _shown(task)
    value = _value(task)
    stories = task.parts.once("stories", lambda: _stories(task, pairs, value))
    heads = universal(task.found["heads"])
    looks = {f"attention.{i}": _attention(task, pair, heads) for i, pair in enumerate(pairs) if heads}
    return Result({"stories": stories}, looks, {"heads": [list(at) for at in heads]})


def _shown(task: Task) -> list[Pair]:
    return task.known("test")[: task.sizes.cases]


def _value(task: Task) -> Veena | None:
    """VEENA as the step before asked it, if it did; this step does not wait for it."""
    known = task.found.get("veena")
    return None if known is None or known.left_out else Veena(**known.facts["veena"])


def _stories(task: Task, pairs: Sequence[Pair], value: Veena | None) -> pd.DataFrame:
    how = {"max_new_tokens": task.sizes.tokens, "batch": task.batch}
    rows = []
    for side, chosen in zip(SIDES, ("plus", "minus"), strict=True):
        prompts = [task.vlm.prompt(*getattr(pair, chosen)) for pair in pairs]
        for method, edits in ((PLAIN, []), *([] if value is None else [(WITH, value.edits())])):
            told = generate(task.vlm, prompts, edits, **how)
            rows += [(i, side, method, story) for i, story in enumerate(told)]
    alpha = task.found["layers"].facts["alpha"]
    for i, pair in enumerate(pairs):
        edits = task.directions.edits(pair.emotion, task.l_emo, alpha)
        rows.append(
            (i, "neutral", PUSHED, generate(task.vlm, task.vlm.prompt(*pair.minus), edits, max_new_tokens=task.sizes.tokens))
        )
    return pd.DataFrame(rows, columns=["pair", "side", "method", "story"])


def _attention(task: Task, pair: Pair, heads: Sequence[tuple[int, int]]) -> Any:
    on = attention_on(task.vlm, task.vlm.prompt(*pair.plus, answer=BEGUN))
    return torch.stack([torch.from_numpy(on[layer, head]).float() for layer, head in heads])


def chapter(task: Task, result: Result) -> Chapter:
    """The stories side by side, and the pictures under the heads' attention."""
    pairs, stories = _shown(task), result.tables["stories"]
    table = stories.set_index(["pair", "side", "method"]).story
    rows = "".join(_rows(i, pair, table) for i, pair in enumerate(pairs))
    titles = {PLAIN: "the story", WITH: "with VEENA", PUSHED: f"pushed by S after layer {task.l_emo}"}
    heads = "".join(f"<th>{name}</th>" for name in ("", "picture", *(titles[method] for method in _methods(table))))
    blocks = [("One event, two pictures", scrolling(f"<table><tr>{heads}</tr>{rows}</table>") + muted(_TOLD))]
    if places := [tuple(at) for at in result.facts["heads"]]:
        figure = _looks(task, pairs, result, places)
        blocks.append(("Where the universal visual heads look", figure_html(figure, "Pictures with attention drawn over them")))
    return Chapter(NAME, TITLE, (_summary(pairs, table),), tuple(blocks), {"stories": stories.to_dict("records")}, found={})


def _methods(table: pd.Series) -> list[str]:
    """Those that stories, by pair, side and method, were told with."""
    told = set(table.index.get_level_values(-1))
    return [method for method in (PLAIN, WITH, PUSHED) if method in told]


def _summary(pairs: Sequence[Pair], table: pd.Series) -> str:
    def right(side: str, method: str) -> int:
        return sum(exact_rate(table[i, side, method], pair.emotion) == 1 for i, pair in enumerate(pairs))

    told = f"Of {len(pairs)} emotional pictures {right('emotional', PLAIN)} stories name the pictured emotion and no other"
    there = WITH in _methods(table)
    told += f", with VEENA {right('emotional', WITH)}" if there else ""
    return (
        f"{told}; of their neutral twins {right('neutral', PLAIN)} name it, pushed by S {right('neutral', PUSHED)}. Cases show how "
        f"stories read; they prove nothing.{'' if there else ' VEENA is not among them: its step has no result here.'}"
    )


def _rows(i: int, pair: Pair, table: pd.Series) -> str:
    return "".join(_row(i, pair, side, table) for side in SIDES)


def _row(i: int, pair: Pair, side: str, table: pd.Series) -> str:
    picture, event = pair.plus if side == "emotional" else pair.minus
    about = f"shows <b>{escape(pair.emotion)}</b>" if side == "emotional" else "its neutral twin"
    image = to_image(picture)
    shown = f'<img class="thumb" src="{data_uri(thumbnail(image, 160))}" width="72" alt="the picture">'
    told = [table.get((i, side, method)) for method in _methods(table)]
    cells = [shown, f"{about}<br><small>beside “{escape(event)}”</small>"]
    cells += ["" if story is None else _story(Telling(image, event, story, pair.emotion), side) for story in told]
    return "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _story(told: Telling, side: str) -> str:
    text = marked(told.story, told.words) or "<i>nothing was said</i>"
    right = side == "emotional" and exact_rate(told.story, told.emotion or "") == 1
    return f'{text}<br><small class="muted">names {", ".join(told.named) or "no emotion"}{": <b>right</b>" * right}</small>'


def _looks(task: Task, pairs: Sequence[Pair], result: Result, heads: Sequence[tuple[int, int]]) -> Any:
    """A row a head, a column a pair, each on its own scale; drawn from what was kept."""
    figure, axes = new_figure(len(heads), len(pairs), width=1.9 * len(pairs), height=2.1 * len(heads), squeeze=False)
    for column, pair in enumerate(pairs):
        prompt, on = task.vlm.prompt(*pair.plus, answer=BEGUN), result.tensors[f"attention.{column}"]
        for axis, at, values in zip(axes[:, column], heads, on.numpy(), strict=True):
            axis.axis("off")
            draw_over(axis, prompt, task.vlm.boxes(prompt), values, Normalize(0, max(1e-6, float(values.max()))))
            axis.set_title(f"{at[0]}.{at[1]}: {values.sum():.0%}", fontsize=9)
    return figure


_TOLD = (
    "Greedy stories; emotion words in the colours of their emotions. The push uses the pair's own emotion: it is told what to say."
)
