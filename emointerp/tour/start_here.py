"""Chapter 00 of the tour: the pictures' stories beside those of their twins, and how well the model reads the test split."""

from html import escape
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from emointerp.emotions import BASIC
from emointerp.models import VLM
from emointerp.start_here import NAMED, TWIN, Reading, Scores, SeeOrGuess, read, scores, see_or_guess
from emointerp.statistics import Interval, mean_interval
from emointerp.tour.chapter import Chapter, Job, figure_html, muted, share, table_html
from emointerp.world import Scene, sample

TITLE = "See or guess"
MEASURES = {  # as `Scores.intervals` has them, and whether they are shares
    "hit rate": True,
    "exact rate": True,
    "precision": True,
    "emotion words a story": False,
    "false-emotion rate": True,
}
SHOWN, SAID, CAUSE = "What was it shown?", "What did it say?", "Picture or words?"
LISTED = 7  # pictures by name on the first screen


def bundled_pictures() -> tuple[tuple[str, Any], ...]:
    """One clear test scene for each emotion."""
    return tuple((f"scene of {e}", sample("test", 1, seed=6, emotions=(e,))[0].scene) for e in BASIC)


def chapter(vlm: VLM, job: Job) -> Chapter:
    """Read the pictures, then measure on the test split; what it found is each picture's `Telling`."""
    readings = [(name, read(vlm, picture, job.event)) for name, picture in tqdm(job.pictures, desc="pictures")]
    sizes = job.sizes.start_here
    measured, guessed = scores(vlm, sizes["test"], batch=job.batch), see_or_guess(vlm, sizes["conflict"], batch=job.batch)
    named = _named(guessed)
    blocks = [(name, _reading_block(reading)) for name, reading in readings]
    blocks.append(("How well it reads the test split", _measured_block(measured)))
    blocks.append(("Does it see, or guess?", _guessed_block(guessed, named)))
    results = {
        "pictures": [_reading_results(name, reading) for name, reading in readings],
        "test split": measured.intervals(),
        "see or guess": {"hit rate or false-emotion rate": guessed.intervals(), "sway": guessed.sway(), "named": named},
    }
    found = {name: reading.telling for name, reading in readings}
    plain = (
        (SHOWN, _shown(job)),
        (SAID, f"{_said(readings)} {_measured_line(measured)}"),
        (CAUSE, _cause(guessed, named)),
    )
    return Chapter("start_here", TITLE, _summary(readings, measured, guessed), tuple(blocks), results, found, plain)


def _named(guessed: SeeOrGuess) -> dict[str, dict[str, Interval]]:
    """`SeeOrGuess.to_frame`, each share with its interval."""
    groups = {condition: some.names for condition, some in guessed.table.groupby("condition")}
    return {c: {what: mean_interval(groups[c] == what) for what in NAMED} for c in guessed.to_frame().index}


# in plain words


def _shown(job: Job) -> str:
    drawn = "drawn " * all(isinstance(picture, Scene) for _, picture in job.pictures)
    count = f"{len(job.pictures)} {drawn}pictures, each" if len(job.pictures) > 1 else f"One {drawn}picture,"
    return f"{count} beside the sentence “{job.event}” It was asked to tell the moment as a story."


def _said(readings: list[tuple[str, Reading]]) -> str:
    """What the stories name: against what was drawn, where that is known; else picture by picture."""
    known = [reading.telling for _, reading in readings if reading.telling.emotion]
    right = [told for told in known if told.emotion in told.named]
    others = [(name, reading.telling) for name, reading in readings if not reading.telling.emotion]
    one = f"The story of the drawing {'names' if right else 'does not name'} its emotion."
    lines = [one if len(known) == 1 else f"{len(right)} of {len(known)} stories name the emotion that was drawn."] * bool(known)
    listed = "; ".join(f"{name}: {', '.join(told.named) or 'no emotion'}" for name, told in others[:LISTED])
    more = f"; and {len(others) - LISTED} more below" * (len(others) > LISTED)
    lines += [f"Named in the stories of {listed}{more}."] * bool(others)
    return " ".join([*lines, *_unsure(readings)])


def _unsure(readings: list[tuple[str, Reading]]) -> list[str]:
    """A warning of pictures unlike those of the training, where there are any."""
    far = [name for name, reading in readings if reading.familiarity and reading.familiarity.far]
    lie = "lies" if len(far) == 1 else "lie"
    said = f"Unsure: {', '.join(far)} {lie} far from the pictures this model was trained on; do not rely on its story there."
    return [said] * bool(far)


def _measured_line(measured: Scores) -> str:
    rates = measured.intervals()
    told, false = rates["hit rate"], rates["false-emotion rate"]
    return (
        f"In the test split {share(told)} of the stories of {told.n} drawings name the drawn emotion; of {false.n} stories of "
        f"drawings without feeling {share(false)} name one all the same."
    )


def _cause(guessed: SeeOrGuess, named: dict[str, dict[str, Interval]]) -> str:
    rates, follows = guessed.intervals(), named["conflicting event"][NAMED[1]]
    seen, torn, twin = (rates[condition] for condition in ("neutral event", "conflicting event", "neutral twin"))
    sees, swayed = seen.low > twin.high, guessed.sway().low > 0
    verdicts = {(True, True): "Both", (True, False): "The picture", (False, True): "The words"}
    blind = "" if sees else ": this model does not read the drawn faces, so what follows says little of how it sees"
    return (
        f"{verdicts.get((sees, swayed), 'Neither is shown')}{blind}. The drawn emotion is named in {share(seen)} of the stories; "
        f"in {share(torn)} where the sentence suggests another, and {share(follows)} then follow the sentence. With the face at "
        f"rest {share(twin)} name any."
    )


# in words


def _summary(readings: list[tuple[str, Reading]], measured: Scores, guessed: SeeOrGuess) -> tuple[str, ...]:
    rates, conflict, (low, high) = measured.intervals(), guessed.intervals(), guessed.intensities
    lines = [
        f"Beside a neutral event the story names the pictured emotion in {share(rates['hit rate'])} of clear test pictures, "
        f"and names an emotion for {share(rates['false-emotion rate'])} of neutral ones.",
        f"On faces at {low:.0%} to {high:.0%} of their strength: {share(conflict['neutral event'])} with a neutral event, and "
        f"{share(conflict['conflicting event'])} when the event suggests another feeling. "
        f"The cost of the contradicting words, picture by picture: {share(guessed.sway())}.",
    ]
    lines += _unsure(readings)
    if any(reading.familiarity is None for _, reading in readings):
        lines.append("How familiar the pictures are to this model is not known: it carries no statistics of its training pictures.")
    return tuple(lines)


def _reading_block(reading: Reading) -> str:
    html = reading.telling._repr_html_()
    if reading.familiarity is not None:
        html += f'<p class="muted">This picture is {escape(str(reading.familiarity))}.</p>'
    return html + ("" if reading.twin is None else f"<p>{TWIN}</p>" + reading.twin._repr_html_())


def _reading_results(name: str, reading: Reading) -> dict:
    telling, twin, known = reading.telling, reading.twin, reading.familiarity
    return {
        "picture": name,
        "emotion": telling.emotion,
        "story": telling.story,
        "emotion words": [word.text for word in telling.words],
        "names": list(telling.named),
        "twin's story": twin.story if twin else None,
        "twin names": list(twin.named) if twin else None,
        "distance from training pictures": known.distance if known else None,
        "times the typical distance": known.distance / known.typical if known else None,
        "percentile": known.percentile if known else None,
    }


def _measured_block(measured: Scores) -> str:
    rates = measured.intervals()
    rows = {name: share(rates[name]) if shares else str(rates[name]).partition(" (")[0] for name, shares in MEASURES.items()}
    counts = [rates[name].n for name in MEASURES]
    table = pd.DataFrame({"measure": [*rows], "mean [95% interval]": [*rows.values()], "stories": [*map(str, counts)]})
    said = (
        "Hit: the story names the drawn emotion. Exact: that one and no other. Precision: the share of the named emotions that are "
        "right. False emotion: a story of a neutral picture that names one."
    )
    alt = f"Bars: share of stories that name what the picture shows, by emotion; over all six {share(rates['hit rate'])}."
    return figure_html(measured.plot(), alt) + table_html(table) + muted(said)


def _guessed_block(guessed: SeeOrGuess, named: dict[str, dict[str, Interval]]) -> str:
    low, high = guessed.intensities
    rows = [{"condition": c} | {f"names {what}": share(one) for what, one in some.items()} for c, some in named.items()]
    said = (
        f"The same {len(guessed.table) // 5} test pictures (expressions at {low:.0%} to {high:.0%} of their strength) beside a "
        "neutral event, beside one that suggests their emotion, and beside one that suggests another; then their neutral twins, "
        "and a plain gray picture with the contradicting event. A gray picture shows "
        "nothing: what its stories name comes from the words, or from the model's habit."
    )
    alt = "Bars: what stories name in five conditions, the picture's emotion, the event's, another or none, as in the table."
    return figure_html(guessed.plot(), alt) + table_html(pd.DataFrame(rows)) + muted(said)
