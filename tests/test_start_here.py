"""Chapter 00, its panel and its exercises."""

import io
import re
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from emointerp.emotions import BASIC, hit_rate, named
from emointerp.errors import InputError
from emointerp.exercises import start_here as exercise
from emointerp.markup import marked
from emointerp.models import load
from emointerp.start_here import CONDITIONS, NAMED, TWIN, Telling, read, scores, see_or_guess, tell, tell_all
from emointerp.world import loaded_events, sample
from emointerp.world.scene import with_intensity

GRAY = Image.new("RGB", (128, 128), "#8a8f98")


@pytest.fixture(scope="module")
def vlm():
    return load()


@pytest.fixture(scope="module")
def guess(vlm):
    return see_or_guess(vlm, 60, progress=False)


def test_a_telling_is_what_generate_says(vlm):
    """Against the plain road: processor, generate, decode."""
    scene, event = sample("test", 1, emotions=("joy",))[0].scene, "I put the keys on the table."
    text = f"USER: <image>\n{event} {vlm.instruction} ASSISTANT:"
    inputs = vlm.processor(images=scene.image(), text=text, return_tensors="pt")
    tokens = vlm.model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    telling = tell(vlm, scene, event)
    assert telling.story == vlm.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    assert telling.emotion == "joy"


def test_batches_do_not_change_stories(vlm):
    examples = sample("test", 9)
    told = [(e.scene, e.event) for e in examples]
    assert [t.story for t in tell_all(vlm, told, progress=False, batch=4)] == [tell(vlm, *pair).story for pair in told]


def test_words_are_marked_and_everything_else_escaped():
    html = Telling(GRAY, "<i>event</i>", "I was <b>furious</b> & sad.", "anger")._repr_html_()
    assert "&lt;i&gt;event&lt;/i&gt;" in html and "<b>furious" not in html
    assert re.findall(r"<mark[^>]*>(\w+)</mark>", html) == ["furious", "sad"]


def test_a_reading_has_a_twin_for_scenes_only(vlm):
    scene = sample("test", 1, emotions=("anger",))[0].scene
    assert read(vlm, scene).twin.emotion == "neutral"
    assert read(vlm, scene.image()).twin is None


def test_conditions_hold_what_they_say(guess):
    """The same pictures in each condition; events agree, contradict or are silent as named."""
    table = guess.table
    assert set(table.condition) == set(CONDITIONS)
    assert table.groupby("condition").size().eq(60).all()
    for condition in CONDITIONS[1:]:
        assert list(table[table.condition == condition].emotion) == list(table[table.condition == CONDITIONS[0]].emotion)
    agree, conflict = (table[table.condition == c] for c in ("agreeing event", "conflicting event"))
    seeds = [list(table[table.condition == c].scene) for c in CONDITIONS]
    assert all(s == seeds[0] for s in seeds)
    assert (agree.event_emotion == agree.emotion).all() and (conflict.event_emotion != conflict.emotion).all()
    assert table[table.condition == "neutral event"].event_emotion.isna().all()
    assert list(table[table.condition == "gray picture"].event) == list(conflict.event)


def test_what_stories_name_is_counted_right(guess):
    """Recounted from the raw stories by hand."""
    rows = guess.table[guess.table.condition == "conflicting event"]
    follows = np.mean([r.event_emotion in named(r.story) and r.emotion not in named(r.story) for r in rows.itertuples()])
    sees = np.mean([r.emotion in named(r.story) for r in rows.itertuples()])
    shares = guess.to_frame().loc["conflicting event"]
    assert shares["the event's emotion"] == pytest.approx(follows)
    assert shares["the picture's emotion"] == pytest.approx(sees)
    assert guess.to_frame().sum(axis=1).to_numpy() == pytest.approx(np.ones(len(CONDITIONS)))
    assert list(guess.to_frame().columns) == list(NAMED)


def test_an_emotion_told_of_a_twin_is_a_false_one(guess):
    twins = guess.table[guess.table.condition == "neutral twin"]
    assert guess.to_frame().loc["neutral twin", "the picture's emotion"] == 0
    assert guess.intervals()["neutral twin"].mean == pytest.approx(np.mean([bool(named(s)) for s in twins.story]))


def test_sway_is_paired(guess):
    by = {c: guess.table[guess.table.condition == c].set_index("scene").hit for c in CONDITIONS}
    assert guess.sway().mean == pytest.approx((by["neutral event"] - by["conflicting event"]).mean())


def test_scores_are_means_over_the_right_rows(vlm):
    measured = scores(vlm, 35, progress=False)
    emotional = measured.table[measured.table.emotion.isin(BASIC)]
    by_hand = np.mean([hit_rate(r.story, r.emotion) for r in emotional.itertuples()])
    assert measured.intervals()["hit rate"].mean == pytest.approx(by_hand)
    assert measured.intervals()["hit rate"].n == 30 and measured.intervals()["false-emotion rate"].n == 5


def test_figures_draw(vlm, guess, tmp_path):
    for name, figure in {"guess": guess.plot(), "scores": scores(vlm, 14, progress=False).plot()}.items():
        figure.savefig(tmp_path / f"{name}.png")
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_too_few_pictures_are_refused(vlm):
    with pytest.raises(InputError, match="at least 6 pictures"):
        see_or_guess(vlm, 3)


def test_panel_answers_to_its_controls(vlm):
    from emointerp.widgets import start_here

    panel = start_here(vlm)
    first = panel.view.value
    assert TWIN in first and "This picture is" in first
    panel.controls["picture"].value = "sadness"
    assert panel.view.value != first and "the picture shows <b>sadness</b>" in panel.view.value
    panel.controls["intensity"].value = 0.3
    telling = tell(vlm, with_intensity(sample("test", 1, seed=6, emotions=("sadness",))[0].scene, 0.3))
    assert marked(telling.story, telling.words) in panel.view.value.split(TWIN)[0]


def test_panel_says_what_is_wrong_and_lives_on(vlm):
    from emointerp.widgets import start_here

    panel = start_here(vlm)
    panel.controls["event"].value = " "
    assert 'role="alert"' in panel.view.value and "The event is empty" in panel.view.value
    panel.controls["event"].value = "<script>alert(1)</script> I saw it."
    assert "<script" not in panel.view.value
    panel.controls["own"].value = (upload("<b>.txt", b"abc"),)
    assert "&lt;b&gt;.txt is not a picture" in panel.view.value
    assert panel.busy.value == ""


def upload(name, content):
    """What the browser sends for a chosen file."""
    return {"name": name, "type": "", "size": len(content), "content": content, "last_modified": datetime.now(UTC)}


def test_panel_reads_an_own_picture_until_another_is_chosen(vlm):
    from emointerp.widgets import start_here

    panel, buffer = start_here(vlm), io.BytesIO()
    GRAY.save(buffer, "png")
    panel.controls["own"].value = (upload("gray.png", buffer.getvalue()),)
    telling = tell(vlm, GRAY)
    assert TWIN not in panel.view.value and marked(telling.story, telling.words) in panel.view.value
    with pytest.raises(InputError, match="own is filled and takes the place of intensity"):
        panel.export("unwritten.html", intensity=[0, 1])
    panel.controls["picture"].value = "fear"
    assert panel.controls["own"].value == () and "the picture shows <b>fear</b>" in panel.view.value


def test_exercise_swayed(guess):
    frame = guess.to_frame()
    truth = frame.loc["conflicting event", "the event's emotion"]
    assert "still None" in repr(exercise.swayed(None, guess))
    assert not exercise.swayed(100 * truth + 1, guess) and "not a percentage" in repr(exercise.swayed(100 * truth + 2, guess))
    misses = 1 - frame.loc["conflicting event", "the picture's emotion"]
    if abs(misses - truth) > 0.01:
        assert "every story that misses the picture" in repr(exercise.swayed(misses, guess))
    assert exercise.swayed(float(truth), guess)


def test_exercise_persuasive(vlm):
    assert "still None" in repr(exercise.persuasive(None, vlm, GRAY, "fear"))
    assert "write at least 6" in repr(exercise.persuasive("I ran.", vlm, GRAY, "fear"))
    assert "it tells the feeling (afraid)" in repr(exercise.persuasive("I was afraid of the dog in the street.", vlm, GRAY, "fear"))
    solution = next(e for e in loaded_events("fear", "test") if "fear" in tell(vlm, GRAY, e).named)
    assert exercise.persuasive(solution, vlm, GRAY, "fear")


def test_exercise_faintest(vlm):
    scene, event = sample("test", 1, seed=8, emotions=("joy",))[0].scene, "I put the keys on the table."
    levels = [k / 20 for k in range(1, 21)]
    missed = [
        k
        for k, t in zip(levels, tell_all(vlm, [(with_intensity(scene, k), event) for k in levels]), strict=True)
        if "joy" not in t.named
    ]
    solution = round(max(missed, default=0) + 0.05, 2)
    assert exercise.faintest(solution, vlm, scene, event)
    assert "fainter" in repr(exercise.faintest(round(solution + 0.05, 2), vlm, scene, event))
    assert "too faint" in repr(exercise.faintest(round(solution - 0.05, 2), vlm, scene, event))
    assert "lies between 0 and 1" in repr(exercise.faintest(3, vlm, scene, event))
