"""Training: runs that are cut off continue to the same weights, and the recipes' pieces do what they say."""

import unicodedata

import numpy as np
import pytest
import torch
from tiny_models import picture, random_vlm  # noqa: F401

from emointerp.emotions import BASIC
from emointerp.errors import InputError
from emointerp.resumable import batch_indices, step_of
from emointerp.statistics import mean_interval
from emointerp.training import card, carry_over
from emointerp.training.data import augmented, example, pictures
from emointerp.training.dual_encoder import phrase_targets, phrases
from emointerp.training.llava import FIRST, TURNS, blanked, blind_conversation, conversation
from emointerp.training.loop import Recipe, fit
from emointerp.world.language import story_prompt


def regression(folder, steps, stop=None):
    """A small regression that may be cut off at a step, as a kill would."""
    torch.manual_seed(0)
    model = torch.nn.Linear(5, 1)
    target = torch.arange(5.0)

    def loss_of(step):
        if step == stop:
            raise KeyboardInterrupt
        x = torch.from_numpy(np.random.default_rng(step).standard_normal((8, 5))).float()
        return ((model(x)[:, 0] - x @ target) ** 2).mean()

    fit(model, loss_of, Recipe(steps=steps, batch=8, rate=0.05, warmup=5), folder, "line", every=10)
    return model


def test_a_cut_off_run_continues_to_the_same_weights(tmp_path):
    whole = regression(tmp_path / "whole", 60)
    with pytest.raises(KeyboardInterrupt):
        regression(tmp_path / "cut", 60, stop=37)
    assert step_of(tmp_path / "cut" / "line.safetensors") == 30
    resumed = regression(tmp_path / "cut", 60)
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)


def test_a_run_does_not_go_on_with_other_settings(tmp_path):
    regression(tmp_path, 10)
    with pytest.raises(InputError, match="was begun with .* and cannot go on with"):
        fit(torch.nn.Linear(5, 1), lambda step: None, Recipe(steps=20, batch=8, rate=0.1, warmup=5), tmp_path, "line")


def test_training_learns(tmp_path):
    assert torch.allclose(regression(tmp_path, 400).weight[0], torch.arange(5.0), atol=0.1)


def test_every_picture_is_seen_once_an_epoch():
    seen = np.concatenate([batch_indices(step, 8, 40, seed=1) for step in range(10)])
    assert sorted(seen[:40]) == list(range(40)) == sorted(seen[40:])
    assert list(seen[:40]) != list(seen[40:])


def test_pictures_on_disk_are_the_scenes_and_rendering_continues(tmp_path):
    board = pictures(7, tmp_path, processes=1)
    assert all((board[i] == example(i).scene.pixels()).all() for i in range(7))
    stamp = (tmp_path / "pictures-7-0.npy").stat().st_mtime_ns
    assert (pictures(7, tmp_path, processes=1) == board).all()
    assert (tmp_path / "pictures-7-0.npy").stat().st_mtime_ns == stamp


def test_augmentation_keeps_shape_and_range():
    pixels = np.stack([example(i).scene.pixels() for i in range(4)])
    x = augmented(pixels, np.random.default_rng(0))
    assert x.shape == (4, 3, 128, 128) and x.min() >= -1 and x.max() <= 1
    assert torch.equal(x, augmented(pixels, np.random.default_rng(0)))


def test_blank_pictures_are_flat_and_the_others_stay():
    pixels = augmented(np.stack([example(i).scene.pixels() for i in range(3)]), np.random.default_rng(0))
    out = blanked(pixels, np.array([False, True, False]), np.random.default_rng(1))
    assert torch.equal(out[[0, 2]], pixels[[0, 2]]) and out.shape == pixels.shape
    assert (out[1] == out[1, :, :1, :1]).all() and out[1].abs().max() <= 1


def test_conversations_begin_with_one_kind_and_go_on_with_different_short_questions():
    rng = np.random.default_rng(0)
    talks = [conversation(example(i), rng) for i in range(300)]
    stories = [turns for i, turns in enumerate(talks) if turns[0][0] == story_prompt(example(i).event)]
    assert len(stories) / 300 == pytest.approx(FIRST["story"], abs=0.08)
    for turns in talks:
        assert len(turns) == TURNS and len(set(turns)) == TURNS
        assert all(len(answer.split()) <= 15 for _, answer in turns[1:])
    (request, answer), *rest = blind_conversation(example(3), rng)
    assert not rest and request == story_prompt(example(3).event) and len(answer.split()) > 8


def test_carry_over_faces_are_in_the_ranges_and_their_names_state_the_emotion():
    words = {
        "joy": ("SMILING", "GRINNING", "JOY", "LAUGHING"),
        "sadness": ("FROWNING", "DISAPPOINTED", "CRYING", "PENSIVE"),
        "anger": ("ANGRY", "POUTING"),
        "fear": ("FEAR", "WORRIED"),
        "surprise": ("ASTONISHED", "HUSHED", "SHOCKED"),
        "disgust": ("NAUSEATED", "VOMITING"),
        "neutral": ("NEUTRAL", "EXPRESSIONLESS"),
    }
    ranges = {0x2639, 0x263A, *range(0x1F600, 0x1F650), *range(0x1F910, 0x1F930)}
    codes = [c for some in carry_over.FACES.values() for c in some]
    assert len(codes) == len(set(codes)) and set(codes) <= ranges
    for emotion, some in carry_over.FACES.items():
        assert all(any(w in unicodedata.name(chr(c)) for w in words[emotion]) for c in some)
    named = {c for c in ranges if any(w in unicodedata.name(chr(c)) for some in words.values() for w in some)}
    left_out = {unicodedata.name(chr(c)) for c in named - set(codes)}
    assert left_out == {
        "DISAPPOINTED BUT RELIEVED FACE",
        "PERSON FROWNING",
        "PERSON WITH POUTING FACE",
        "KISSING FACE WITH SMILING EYES",
    }


def test_carry_over_pictures_are_drawn_in_the_stated_colours():
    try:
        picture = carry_over.drawn(0x1F600, "dark on yellow", share=0.5)
    except carry_over.InputError as error:
        pytest.skip(str(error))
    pixels = np.asarray(picture)
    assert tuple(pixels[0, 0]) == (0xFF, 0xE0, 0x8A) and pixels.min(axis=(0, 1)).max() < 60
    inked = (pixels != pixels[0, 0]).any(-1)
    sides = [np.ptp(np.flatnonzero(inked.any(axis))) + 1 for axis in (0, 1)]
    assert max(sides) == pytest.approx(64, abs=2)


def test_a_recipe_reads_faces_only_where_there_is_one():
    examples = [example(i) for i in range(120)]
    said, moved, has_face = phrase_targets(examples)
    assert said.sum(1).min() >= 1 and set(said.unique().tolist()) == {0, 1}
    assert moved.mean(0).abs().max() < 1e-4
    assert has_face.tolist() == [e.scene.style != "mood" for e in examples]
    assert not any(word in phrase for e in examples for phrase in phrases(e.scene) for word in BASIC)


def test_loops_are_found():
    assert card.loops("I was there and I was there and") and not card.loops("I was there, and then I went home.")


def test_card_rounds_and_reads_well():
    figures = {"a": {"b": mean_interval([1, 0, 1, 1])}, "band": (0.3, 0.45)}
    plain = card.as_json(figures)
    assert plain["a"]["b"]["mean"] == 0.75 and plain["band"] == (0.3, 0.45)
    assert "| a, b | 0.75 [" in card.as_markdown(figures)


def test_a_hidden_event_has_no_say(random_vlm):  # noqa: F811
    """Two events of equally many tokens give the same story once no token can attend to them, and not before."""
    tokens = [random_vlm.tokenizer("\n" + e, add_special_tokens=False).input_ids for e in EVENTS]
    assert len(tokens[0]) == len(tokens[1])
    one, two = card.hidden_stories(random_vlm, [(picture(0), event) for event in EVENTS])
    assert one == two


EVENTS = ("I sat on the table.", "I sat at the table.")
