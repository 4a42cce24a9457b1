"""Step 2: steering vectors `S[e, l]`, from pairs whose story names the emotion (hit rate above tau)."""

import pandas as pd

from emointerp.directions import Differences, Directions
from emointerp.emotions import score
from emointerp.reproduce.kept import Result
from emointerp.reproduce.task import BEGUN, Task, rate
from emointerp.start_here import tell_all
from emointerp.statistics import Interval
from emointerp.steering import differences
from emointerp.tour.chapter import Chapter, figure_html, listed, muted, points, share, table_html

NAME, TITLE = "vectors", "Steering vectors"
NEEDS = ("pairs",)
TAU = 0.5  # as another digest has it


def measure(task: Task) -> Result:
    """Differences of pairs and twins at the end of the begun answer, and what the stories of both sides name."""
    pairs = task.pairs("direction")
    found = differences(task.vlm, pairs, answer=BEGUN, batch=task.batch)
    twins = [t.story for t in tell_all(task.vlm, [p.minus for p in pairs], batch=task.batch)]
    stories = pd.concat([_scored(pairs, "emotional", found.stories), _scored(pairs, "neutral", twins)], ignore_index=True)
    directions = _directions(found)
    facts = {"emotions": list(directions.emotions), "n": list(directions.n), "tau": directions.about["tau"], "of": len(pairs)}
    tensors = {"vectors": directions.vectors, "differences": found.vectors}
    return Result({"stories": stories}, tensors, facts)


def _scored(pairs: list, side: str, stories: list | tuple) -> pd.DataFrame:
    scores = score(list(stories), [p.emotion for p in pairs])[["hit", "exact"]].astype(float)
    about = {"pair": range(len(pairs)), "emotion": [p.emotion for p in pairs], "side": side, "story": list(stories)}
    return pd.DataFrame(about).join(scores)


def _directions(found: Differences) -> Directions:
    """Of the emotions that have a valid pair; of all pairs (tau = -1), where fewer than two emotions have one."""
    kept = [i for i, hit in enumerate(found.hits) if hit > TAU]
    good = {found.emotions[i] for i in kept}
    if len(good) < 2:
        return found.directions(tau=-1)
    rows = [i for i, emotion in enumerate(found.emotions) if emotion in good]
    some = Differences(tuple(found.emotions[i] for i in rows), found.vectors[rows], found.hits[rows], about=found.about)
    return some.directions(TAU)


def chapter(task: Task, result: Result) -> Chapter:
    """Hit rates of both sides by emotion, what the filter left, and how alike the directions are."""
    stories, facts, S = result.tables["stories"], result.facts, task.directions
    hits = {side: rate(some.hit) for side, some in stories.groupby("side", sort=False)}
    more = rate(
        stories[stories.side == "emotional"].hit.to_numpy() - stories[stories.side == "neutral"].hit.to_numpy(), signed=True
    )
    rows = pd.DataFrame([_row(emotion, some, facts) for emotion, some in stories.groupby("emotion", sort=False)])
    layer = task.l_emo if "layers" in task.found and not task.found["layers"].left_out else S.n_layers // 2
    blocks = (
        ("What the stories name, and the filter", table_html(rows) + muted(_FILTER)),
        (f"How alike the directions are, after layer {layer}", figure_html(S.plot(layer), _ALT)),
    )
    summary = (
        f"Beside the emotional pictures {share(hits['emotional'])} of the stories name the pictured emotion (hit rate), beside the "
        f"neutral twins {share(hits['neutral'])}: {points(more)}.",
        _kept(facts),
    )
    results = {
        "hit rate": hits,
        "difference": more,
        "tau": facts["tau"],
        "pairs": dict(zip(facts["emotions"], facts["n"], strict=True)),
    }
    here: dict[str, str | Interval] = {"tau": f"{facts['tau']:g}" if facts["tau"] >= 0 else "no filter"}
    return Chapter(NAME, TITLE, summary, blocks, results, found=here)


def _row(emotion: str, some: pd.DataFrame, facts: dict) -> dict[str, str]:
    sides = {side: share(rate(rows.hit)) for side, rows in some.groupby("side", sort=False)}
    n = dict(zip(facts["emotions"], facts["n"], strict=True)).get(emotion, 0)
    return {
        "emotion": emotion,
        "hit rate, emotional": sides["emotional"],
        "hit rate, neutral twin": sides["neutral"],
        "pairs in S": f"{n} of {(some.side == 'emotional').sum()}",
    }


def _kept(facts: dict) -> str:
    n = sum(facts["n"])
    if facts["tau"] < 0:
        return (
            "Fewer than two emotions have a story that names them, so the filter would leave nothing to compare: the directions "
            "stand on all pairs, whatever their stories say, and may be no directions of feeling."
        )
    passed = f"{n} of {facts['of']} pairs pass the filter (hit rate above {facts['tau']:g})"
    return f"{passed}; S stands on {listed(facts['emotions'], 'and')}."


_FILTER = (
    f"S is the mean difference of the residual stream at the end of the begun answer “{BEGUN}” between a picture and its twin, "
    "over the pairs whose story names the emotion. The paper takes the last token of the question; there no word of feeling is due "
    "yet."
)
_ALT = "Tables of cosines: between the emotions' directions, the same centred, and between layers"
