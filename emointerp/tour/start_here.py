"""Chapter 00 of the tour: the pictures' stories beside those of their twins, and how well the model reads the test split."""

from html import escape
from typing import Any

from tqdm.auto import tqdm

from emointerp.emotions import BASIC
from emointerp.models import VLM
from emointerp.start_here import TWIN, Reading, Scores, SeeOrGuess, read, scores, see_or_guess
from emointerp.statistics import Interval
from emointerp.tour.chapter import Chapter, Job, figure_html, share
from emointerp.world import sample

TEST_PICTURES, CONFLICT_PICTURES = 140, 90


def bundled_pictures() -> tuple[tuple[str, Any], ...]:
    """One clear test scene for each emotion."""
    return tuple((f"a drawn scene: {e}", sample("test", 1, seed=6, emotions=(e,))[0].scene) for e in BASIC)


def chapter(vlm: VLM, job: Job) -> Chapter:
    """Read the pictures, then measure on the test split; what it found is each picture's `Telling`."""
    readings = [(name, read(vlm, picture, job.event)) for name, picture in tqdm(job.pictures, desc="pictures")]
    measured, guessed = scores(vlm, TEST_PICTURES), see_or_guess(vlm, CONFLICT_PICTURES)
    blocks = [(name, _reading_block(reading)) for name, reading in readings]
    blocks += [
        (
            "How well it reads the test split",
            figure_html(measured.plot(), "Hit rate per emotion") + _table(measured.intervals()),
        )
    ]
    blocks += [
        (
            "Does it see, or guess?",
            figure_html(guessed.plot(), "What stories name under each condition") + _explained(guessed),
        )
    ]
    results = {
        "pictures": [_reading_results(name, reading) for name, reading in readings],
        "test split": measured.intervals(),
        "see or guess": {
            "hit rate or false-emotion rate": guessed.intervals(),
            "named": guessed.to_frame().to_dict("index"),
        },
    }
    found = {name: reading.telling for name, reading in readings}
    return Chapter("start_here", "See or guess", _summary(readings, measured, guessed), tuple(blocks), results, found)


def _summary(readings: list[tuple[str, Reading]], measured: Scores, guessed: SeeOrGuess) -> tuple[str, ...]:
    rates, conflict, (low, high) = measured.intervals(), guessed.intervals(), guessed.intensities
    lines = [
        f"Beside a neutral event the story names the pictured emotion in {share(rates['hit rate'])} of clear test pictures, "
        f"and names an emotion for {share(rates['false-emotion rate'])} of neutral ones.",
        f"On faces at {low:.0%} to {high:.0%} of their strength: {share(conflict['neutral event'])} with a neutral event, and "
        f"{share(conflict['conflicting event'])} when the event suggests another feeling. "
        f"The cost of the contradicting words, picture by picture: {share(guessed.sway())}.",
    ]
    far = [name for name, reading in readings if reading.familiarity and reading.familiarity.far]
    if far:
        lines.append(
            f"Unsure: {', '.join(far)} lies far from the pictures this model was trained on; do not rely on its story there."
        )
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


def _table(intervals: dict[str, Interval]) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{escape(str(value))}</td></tr>" for name, value in intervals.items())
    return f"<table><tr><th>measure</th><th>mean [95% interval]</th></tr>{rows}</table>"


def _explained(guessed: SeeOrGuess) -> str:
    low, high = guessed.intensities
    return (
        f"<p>The same {len(guessed.table) // 5} test pictures (expressions at {low:.0%} to {high:.0%} of their strength) beside a "
        "neutral event, beside one that suggests their emotion, and beside one that suggests another; then their neutral twins, "
        "and a plain gray picture with the contradicting event. A gray picture shows "
        "nothing: what its stories name comes from the words, or from the model's habit.</p>"
    )
