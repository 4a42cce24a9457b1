"""Step 4: what layers would say. The lens of S itself, and of the residual stream at the last token and at the picture's tokens."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from emointerp.lens import LogitLens, logit_lens
from emointerp.models import VLM
from emointerp.pairs import Pair
from emointerp.plots import BLUE, GRAY, band, new_figure
from emointerp.reproduce.kept import Result
from emointerp.reproduce.sizes import stages
from emointerp.reproduce.task import BEGUN, Task, each, rate, why_not
from emointerp.statistics import Interval
from emointerp.steering import Projection, semantic_projection
from emointerp.tour.chapter import Chapter, figure_html, muted, number, share, table_html

NAME, TITLE = "lens", "Logit lens"
NEEDS = ("vectors", "layers")
COLUMNS = {
    "last": "probability of its words",
    "mass": "probability of emotion words",
    "entropy": "entropy, nats",
}
TITLES = {"last": "Pictured emotion, at the last token", "mass": "At the picture's tokens", "entropy": "At the picture's tokens"}
SIDES = {"emotional": BLUE, "neutral": GRAY}


def measure(task: Task) -> Result:
    """`logit_lens` of both sides of test pairs, and `semantic_projection` of S."""
    pairs = task.known("test", task.sizes.flow)
    read = task.parts.table("lens", pairs, lambda some: _read(task.vlm, some))
    said, facts = each({"said": lambda: semantic_projection(task.vlm, task.directions).table})
    return Result({"read": read} | said, facts=facts)


def _read(vlm: VLM, pairs: Sequence[Pair]) -> pd.DataFrame:
    rows = []
    for i, pair in enumerate(pairs):
        for side, given in zip(SIDES, (pair.plus, pair.minus), strict=True):
            lens = logit_lens(vlm, vlm.prompt(*given, answer=BEGUN), k=1)
            rows += [{"pair": i, "emotion": pair.emotion, "side": side} | row for row in _by_layer(lens, pair.emotion)]
    return pd.DataFrame(rows)


def _by_layer(lens: LogitLens, emotion: str) -> list[dict[str, float]]:
    """Of each layer: the mass of an emotion's words at the last token; entropy and all emotions' mass, means over the picture."""
    visual, last = list(lens.prompt.visual), lens.prompt.last
    own = lens.mass[:, last, lens.emotions.index(emotion)]
    mass, entropy = (x[:, visual].mean(1) for x in (lens.mass.sum(-1), lens.entropy))
    return [{"layer": i, "last": float(own[i]), "mass": float(mass[i]), "entropy": float(entropy[i])} for i in range(lens.n_layers)]


def chapter(task: Task, result: Result) -> Chapter:
    """When the word becomes likely, what the picture's tokens say, and what S says."""
    read, n = result.tables["read"], task.vlm.anatomy.n_layers
    ends = {side: rate(some["last"]) for side, some in read[read.layer == n - 1].groupby("side", sort=False)}
    places = {name: _stage(read, run) for name, run in stages(n).items()}
    rows = pd.DataFrame([{"stage": name} | {c: number(i, 3) for c, i in some.items()} for name, some in places.items()])
    blocks = [
        ("Emotional pictures beside their twins, layer by layer", figure_html(_drawn(read), _ALT)),
        ("The picture's tokens, in three stages", table_html(rows) + muted(_TOKENS)),
    ]
    if "said" in result.tables:
        said = Projection(result.tables["said"])
        blocks.append(("What the directions say by themselves", figure_html(said.plot(), "Lines: mass of own words, by layer")))
        blocks.append((f"The likeliest words of S after layer {task.l_emo}", _words(said.table, task.l_emo)))
    summary = (
        f"After the last layer the words of the pictured emotion have {share(ends['emotional'])} of the probability, beside the "
        f"neutral twin {share(ends['neutral'])}.",
        *([] if "said" in result.tables else [f"What S says was not read. {why_not(result.facts, 'said')}"]),
    )
    results = {"last layer": ends, "stages": places}
    return Chapter(NAME, TITLE, summary, tuple(blocks), results, found={})


def _stage(read: pd.DataFrame, layers: Sequence[int]) -> dict[str, Interval]:
    """Means over a stage's layers at the picture's tokens, emotional and neutral, with intervals over pairs."""
    found = {}
    for column, what in (("entropy", "entropy"), ("mass", "emotion words")):
        for side in SIDES:
            some = read[(read.side == side) & read.layer.isin(layers)]
            found[f"{what}, {side}"] = rate(some.groupby("pair")[column].mean())
    return found


def _drawn(read: pd.DataFrame) -> Any:
    figure, axes = new_figure(1, len(COLUMNS), width=11, height=3.2)
    for axis, (column, label) in zip(axes, COLUMNS.items(), strict=True):
        for side, color in SIDES.items():
            means = read[read.side == side].groupby("layer")[column].agg(rate)
            band(axis, means.index, means, color, "emotional picture" if side == "emotional" else "neutral twin")
        axis.set(xlabel="layer", ylabel=label)
        axis.set_title(TITLES[column], fontsize=10)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
    return figure


def _words(said: pd.DataFrame, layer: int) -> str:
    rows = said[said.layer == layer][["emotion", "words", "mass"]]
    shown = rows.assign(words=rows.words.map(plain), mass=rows.mass.map("{:.2f}".format))
    return table_html(shown.rename(columns={"mass": "mass of its own words"}))


def plain(text: str) -> str:
    """Tokens come from a model; a word with a bracket must not count as an interval either (`table_html`)."""
    return text.replace("[", "(").replace("]", ")")


_ALT = (
    "Lines by layer with intervals, emotional pictures and neutral twins: words at the last token, words and entropy at the picture"
)
_TOKENS = (
    "The final norm and the unembedding read each token of the picture after each layer. Entropy is that of the whole vocabulary; "
    "emotion words are counted by their first tokens, all emotions together. Means over tokens and the stage's layers."
)
