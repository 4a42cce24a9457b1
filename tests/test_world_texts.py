"""The texts of the drawn world keep their promises: rules of events, truth of answers, one emotion a story."""

import re
import statistics
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from emointerp.emotions import BASIC, NEUTRAL, extract
from emointerp.errors import InputError
from emointerp.world import language
from emointerp.world.events import (
    FRAMES,
    NEUTRAL_TEMPLATES,
    SITUATIONS,
    SPLITS,
    loaded_events,
    neutral_events,
    problems,
)
from emointerp.world.face import PEOPLE, Look
from emointerp.world.scene import Scene, sample_scene
from emointerp.world.setting import PLAIN_THINGS, SIGNIFIERS, WEATHERS

NAMES = (*PLAIN_THINGS, *SIGNIFIERS)
FEW = 700  # scenes for tests that need not see all
EVENT = "The phone rang twice while I was cooking."


def events_of(split):
    return [*neutral_events(split), *(event for emotion in BASIC for event in loaded_events(emotion, split))]


def emotions_in(text):
    return [word.emotion for word in extract(text)]


@pytest.fixture(scope="module")
def scenes():
    rng = np.random.default_rng(7)
    drawn = []
    for i in range(3000):
        things = tuple(str(name) for name in rng.choice(["", *NAMES], 4))
        emotion, weather = (*BASIC, NEUTRAL)[i % 7], str(rng.choice(WEATHERS))
        drawn.append(sample_scene(rng, emotion, rng.random(), things=things, weather=weather))
    return drawn


@pytest.fixture(scope="module")
def stories(scenes):
    """A story of each scene, told of an event at random."""
    rng, events = np.random.default_rng(1), events_of("train")
    return [language.story(scene, events[rng.integers(len(events))], rng) for scene in scenes]


@pytest.fixture(scope="module")
def answers(scenes):
    rng = np.random.default_rng(8)
    return [(scene, language.questions(scene, rng)) for scene in scenes[:FEW]]


# --- events ---


@pytest.mark.parametrize("split", SPLITS)
def test_every_event_is_proper(split):
    assert {event: problems(event) for event in events_of(split) if problems(event)} == {}


@pytest.mark.parametrize("split", SPLITS)
def test_every_event_by_rules_written_out_here(split):
    """The rules once more without `problems`: length, person, capital, full stop, no template left open."""
    for event in events_of(split):
        words = re.findall(r"[a-z']+", event.lower())
        assert len(words) > 5, event
        assert {"i", "me", "my", "we", "us", "our"} & set(words), event
        assert not {"you", "your", "he", "she", "his", "her", "him", "they", "them", "their"} & set(words), event
        assert event[0].isupper() and event.endswith(".") and not re.search(r"[{}|]|  ", event), event


def test_counts():
    sizes = {split: len(set(neutral_events(split))) for split in SPLITS}
    assert sizes["train"] >= 400 and min(sizes.values()) >= 40
    for emotion in BASIC:
        assert len(SITUATIONS[emotion]) >= 10
        assert len(set(loaded_events(emotion, "train"))) >= 60
        assert min(len(set(loaded_events(emotion, split))) for split in SPLITS) >= 20


def test_splits_are_disjoint():
    for table in (NEUTRAL_TEMPLATES, FRAMES):
        kernels = [kernel for split in SPLITS for kernel in table[split]]
        assert len(kernels) == len(set(kernels))
    all_events = [event for split in SPLITS for event in events_of(split)]
    assert len(all_events) == len(set(all_events))


def test_situations_are_shared_between_splits():
    for split in SPLITS:
        assert any("scratched my new car" in event for event in loaded_events("anger", split))


def test_problems_are_named_in_words():
    assert problems(EVENT) == []
    assert "it is empty" in problems("  \n")[0]
    assert problems("I " * 1001) == ["it has 2,002 characters: write at most 2,000"]
    assert problems("I saw my cat") == ["it has 4 words: write at least 6"]
    assert "(she, you)" in problems("Then she's told me that you were there.")[0]
    assert problems("The phone rang twice in the kitchen.") == ["it has no first person (I, me or my)"]
    assert "(happy)" in problems("I was happy when the phone rang.")[0]
    assert "(happy)" in problems("I was not happy when the phone rang.")[0]
    assert "(finally)" in problems("I finally saw my cat on the roof.")[0]
    assert len(problems("You are happy.")) == 4


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="unknown split 'dev': expected one of train, direction"):
        neutral_events("dev")
    with pytest.raises(InputError, match="unknown emotion 'bliss': expected one of anger"):
        loaded_events("bliss", "train")


# --- stories ---


def test_the_request_takes_any_event():
    assert language.story_prompt(f" {EVENT}\n") == f"{EVENT} Tell my story."
    assert language.story_prompt("I {saw} 100%.") == "I {saw} 100%. Tell my story."


def test_a_story_names_its_emotion_once_and_no_other(scenes, stories):
    for scene, text in zip(scenes, stories, strict=True):
        assert emotions_in(text) == ([] if scene.emotion == NEUTRAL else [scene.emotion]), text
        assert re.fullmatch(r"([A-Z][^.!?{}|]*[.!?] ?){2,4}", text), text
        assert {"I", "My", "my", "me"} & set(re.findall(r"\w+", text)), text


def test_stories_are_short_and_varied(stories):
    lengths = [len(text.split()) for text in stories]
    assert 18 <= statistics.median(lengths) <= 28
    assert min(lengths) >= 14 and max(lengths) <= 32
    rng = np.random.default_rng(2)
    sad = [sample_scene(rng, "sadness", rng.random()) for _ in range(1000)]
    assert len({language.story(scene, EVENT, rng) for scene in sad}) > 800


def test_the_emotion_word_stands_early_in_the_middle_and_late(scenes, stories):
    told = [(text, extract(text)[0].start) for scene, text in zip(scenes, stories, strict=True) if scene.emotion != NEUTRAL]
    shares = np.histogram([start / len(text) for text, start in told], bins=[0, 1 / 3, 2 / 3, 1])[0] / len(told)
    assert shares.min() > 0.15
    before = Counter(" ".join(text[:start].split()[-2:]) for text, start in told)
    assert before.most_common(1)[0][1] / len(told) < 0.25


def test_every_word_of_an_emotion_is_used_and_known_to_the_wheels():
    for emotion in BASIC:
        words = (*language.ADJECTIVES[emotion], *language.NOUNS[emotion])
        assert len(language.ADJECTIVES[emotion]) == 8
        assert {word: emotions_in(f"I felt {word} there.") for word in words} == {word: [emotion] for word in words}
    assert not set.intersection(*(set(words) for words in language.ADJECTIVES.values()))


def test_only_faint_scenes_are_told_with_a_little():
    rng = np.random.default_rng(4)
    strong = [language.story(sample_scene(rng, "fear", 0.9), EVENT, rng) for _ in range(300)]
    faint = [language.story(sample_scene(rng, "fear", 0.2), EVENT, rng) for _ in range(300)]
    assert not any("a little" in text for text in strong)
    assert 0.1 < np.mean(["a little" in text for text in faint]) < 0.6


def test_a_story_takes_up_the_event_and_the_scene():
    rng = np.random.default_rng(5)
    scene = Scene(place="beach", weather="snow", things=("spider", ""), emotion="joy")
    told = " ".join(language.story(scene, EVENT, rng) for _ in range(200))
    for word in ("the phone", "beach", "spider", "snow"):
        assert word in told
    assert "street" not in told and "sun" not in told and "balloons" not in told


def test_a_mood_is_told_in_shapes_not_in_faces():
    rng = np.random.default_rng(6)
    scene = sample_scene(rng, "anger", 1.0, style="mood", things=("spider",), weather="rain")
    told = " ".join(language.story(scene, EVENT, rng) for _ in range(200))
    assert "spikes" in told
    assert not re.search(r"\b(brows?|eyes?|mouth|teeth|cheeks|spider|rain)\b", told)


def test_every_visible_phrase_can_be_told(scenes):
    phrases = {p for s in scenes for words in language.seen_parts(s).values() for p in words.split(", ")}
    assert phrases <= set(language.CUES)
    assert len(phrases) > 25


# --- captions ---


def test_captions_name_what_is_seen_and_never_a_feeling(scenes):
    rng = np.random.default_rng(9)
    for scene in scenes[:FEW]:
        text = language.caption(scene, rng)
        assert not emotions_in(text), text
        assert len(text.split()) <= 40 and text.endswith(".") and text[0].isupper(), text
        if scene.has_face:
            assert scene.subject in text
            assert sum(words in text for words in language.seen_parts(scene).values()) >= 2, text


def test_captions_name_no_colour_that_is_not_drawn(scenes):
    rng = np.random.default_rng(10)
    colors = re.compile(r"\b(red|blue|green|yellow|purple|white|brown|black|blond|orange|pink|gray)\b")
    parts = re.compile(r"red cheeks|green cheeks|green vomit")  # of the expression, drawn in every style
    for scene in scenes[:FEW]:
        if scene.style == "line":
            text = parts.sub("", language.caption(scene, rng))
            assert not colors.search(text), text


def test_captions_vary():
    rng = np.random.default_rng(11)
    scene = sample_scene(rng, "fear", 1.0, subject="girl", style="flat", things=("spider",))
    texts = [language.caption(scene, rng) for _ in range(100)]
    assert len(set(texts)) > 60
    assert 0.4 < np.mean(["a spider" in text for text in texts]) < 0.95


def test_brows_that_are_not_drawn_are_not_told():
    bare = Scene(look=Look(brow="never"))
    assert "brows" not in language.seen_parts(bare)
    assert "brows" in language.seen_parts(replace(bare, look=Look(brow="always")))
    assert "brows" not in language.seen_parts(replace(bare, look=Look(brow="moved")))  # at rest they are left out


# --- questions ---


def test_kinds_of_questions(answers):
    kinds = {kind for _, asked in answers for kind, _, _ in asked}
    assert kinds == set(language.ASKED) and set(language.NON_EMOTIONAL) < kinds
    for scene, asked in answers:
        mine = {kind for kind, _, _ in asked}
        assert ("glasses" in mine) == (scene.has_face and scene.subject in PEOPLE)
        assert ("colour" in mine) == (scene.style in ("flat", "textured", "soft"))
        if not scene.has_face:
            assert not mine & {"brows", "eyes", "mouth", "extras", "where", "weather"}


def test_each_kind_is_asked_in_three_ways_or_more(answers):
    wordings = {kind: set() for kind in language.ASKED}
    for scene, asked in answers:
        for kind, question, _ in asked:
            assert question[0].isupper() and not re.search(r"[{}|]", question)
            wordings[kind].add(question.replace(scene.subject, "X"))
    assert min(len(found) for found in wordings.values()) >= 3


def test_answers_are_short_and_only_feeling_names_an_emotion(answers):
    for scene, asked in answers:
        for kind, question, answer in asked:
            assert 1 <= len(answer.split()) <= (40 if kind == "caption" else 15), answer
            named = [scene.emotion] if kind == "feeling" and scene.emotion != NEUTRAL else []
            assert emotions_in(answer) == named, answer
            assert not emotions_in(question), question


PLACE_WORDS = {"plain": "plain", "room": "room", "street": "street", "beach": "beach", "forest": "forest"}
PLACE_WORDS |= {"night": "night"}
SKY_WORDS = {"clear": "dry", "sunny": "sunny", "rain": "raining", "snow": "snowing"}
NUMBERS = ("No things.", "One thing.", "Two things.", "Three things.", "Four things.")


def test_non_emotional_answers_agree_with_the_scene(answers):
    for scene, asked in answers:
        present = [name for name in scene.things if name] if scene.has_face else []
        for kind, question, answer in asked:
            if kind == "where":
                assert PLACE_WORDS[scene.place] in answer
            elif kind == "weather":
                assert SKY_WORDS[scene.weather] in answer
            elif kind == "glasses":
                assert answer == ("Yes." if scene.glasses else "No.")
            elif kind == "how many":
                assert answer == NUMBERS[len(present)]
            elif kind == "who":
                assert answer.rstrip(".").split()[-1] == (scene.subject if scene.has_face else "shapes")
            elif kind == "thing":
                asked_for = re.search("|".join(sorted(NAMES, key=len, reverse=True)), question)[0]
                assert answer == ("Yes." if asked_for in present else "No.")
            elif kind == "colour":
                check_color(scene, question, answer)


def check_color(scene, question, answer):
    part, color = re.fullmatch(r"The (.+) (?:is|are) (\w+)\.", answer).groups()
    truth = {"clothes": scene.clothes, scene.hat: scene.hat_color, scene.subject: scene.skin}
    assert part in question and truth[part] == color
    assert part != "none" and (part != "clothes" or scene.subject in PEOPLE)


def test_a_hand_worked_scene():
    scene = Scene("woman", "flat", "beach", "rain", ("", "spider", ""), hat="sun hat", hat_color="green", clothes="red")
    asked = language.questions(scene, np.random.default_rng(0))
    answers = [(kind, answer) for kind, _, answer in asked if kind in language.NON_EMOTIONAL and kind != "thing"]
    assert answers == [
        ("who", "A woman."),
        ("where", "On a beach."),
        ("weather", "It is raining."),
        ("how many", "One thing."),
        ("glasses", "No."),
        ("colour", "The sun hat is green."),
        ("colour", "The clothes are red."),
    ]
    things = {answer: question for kind, question, answer in asked if kind == "thing"}
    assert "a spider" in things["Yes."] and "spider" not in things["No."]


def test_yes_and_no_are_balanced(answers):
    said = [answer for _, asked in answers for kind, _, answer in asked if kind == "thing"]
    assert 0.42 < said.count("Yes.") / len(said) < 0.52


def test_a_broken_cup_is_not_denied_to_be_a_cup():
    scene = Scene(things=("broken cup",))
    rng = np.random.default_rng(0)
    asked = [q for _ in range(300) for kind, q, a in language.questions(scene, rng) if kind == "thing" and a == "No."]
    assert not any(" a cup" in question for question in asked)


def test_unseen_subjects_and_styles_can_be_told():
    rng = np.random.default_rng(12)
    scene = sample_scene(rng, "fear", 0.9, subject="alien", style="chalk")
    told = {kind: answer for kind, _, answer in language.questions(scene, rng)}
    assert told["who"] == "An alien." and told["style"] == "A chalk drawing." and "colour" not in told
    assert emotions_in(language.story(scene, EVENT, rng)) == ["fear"]


def test_the_same_generator_gives_the_same_texts():
    scene = sample_scene(np.random.default_rng(3), "joy", 0.8)
    texts = [
        (language.story(scene, EVENT, rng), language.caption(scene, rng), language.questions(scene, rng))
        for rng in (np.random.default_rng(5), np.random.default_rng(5))
    ]
    assert texts[0] == texts[1]


def test_the_tokenizer_texts_hold_every_word(stories, answers):
    words = {w for text in language.vocabulary_sentences(scenes=50) for w in re.findall(r"\w+", text.lower())}
    said = [t for _, asked in answers for _, q, a in asked for t in (q, a)]
    assert {w for text in [*said, *stories] for w in re.findall(r"\w+", text.lower())} <= words
