"""Models in hand: spans, generation, refusals; and that training sees what inference sees."""

import importlib
import inspect
import json
import os
import shutil

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import mahalanobis
from tiny_models import picture, random_config, random_folder, random_model, random_vlm  # noqa: F401
from transformers import AutoModelForImageTextToText, AutoProcessor, SiglipVisionModel

import emointerp
from emointerp.errors import InputError, ModelError
from emointerp.models import WEIGHTS, embeddings, familiarity, load
from emointerp.models.familiarity import fit
from emointerp.models.prompts import checked_text
from emointerp.training.dual_encoder import config as dual_encoder_config
from emointerp.training.llava import collate, encode, image_features, language_loss, new_model
from emointerp.world.language import story_prompt

EVENT = "The phone rang twice while I was cooking."
TURNS = [("What is in the picture?", "A smiling robot."), ("In what style?", "Yes, in ink."), ("Is it wet?", "No.")]


def messages(turns: list[tuple[str, str]]) -> list[dict]:
    """The turns in the chat template's form, the picture before the first request."""
    out = []
    for request, answer in turns:
        seen = [] if out else [{"type": "image"}]
        out.append({"role": "user", "content": [*seen, {"type": "text", "text": request}]})
        out.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
    return out


@pytest.fixture(scope="module")
def prompts(random_vlm):  # noqa: F811
    texts = [EVENT, "It rained.", "I put the keys on the table near the door and went out for a walk."]
    return [random_vlm.prompt(picture(i), text) for i, text in enumerate(texts)]


# the same model in training and in use


def test_the_random_model_has_the_form_of_the_trained_one():
    sizes = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"}
    sizes |= {"head_dim", "initializer_range"}

    def form(model) -> dict:
        plain = model.config.to_dict()
        parts = {k: {j: v for j, v in plain[k].items() if j not in sizes} for k in ("text_config", "vision_config")}
        return plain | parts

    trained = new_model(SiglipVisionModel(dual_encoder_config().vision_config))
    assert form(trained) == form(random_model())
    assert trained.generation_config.to_dict() == random_model().generation_config.to_dict()


def test_the_chat_template(random_vlm):  # noqa: F811
    rendered = random_vlm.prompt(picture(), "It rained.", instruction="").rendered
    assert rendered == "USER: <image>\nIt rained. ASSISTANT:"
    dialogue = random_vlm.processor.apply_chat_template(messages(TURNS[:2]))
    assert dialogue == (
        "USER: <image>\nWhat is in the picture? ASSISTANT: A smiling robot.</s>USER: In what style? ASSISTANT: Yes, in ink.</s>"
    )


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example(text=story_prompt(EVENT))
@example(text="\n\n two  spaces\tand\r\nlines \n")
@example(text=" ASSISTANT: USER: ")
@example(text="été 東京 🙂🏽 \x00 ' 's 123")
def test_training_tokens_are_those_of_the_processor(random_vlm, text):  # noqa: F811
    rendered = f"USER: <image>\n{text} ASSISTANT:"
    inputs = random_vlm.processor(images=[picture()], text=[rendered], return_tensors="pt")
    ids, labels = encode(random_vlm.tokenizer, [(text, "Yes.")])
    asked = labels.count(-100)
    assert inputs["input_ids"][0].tolist() == ids[:asked]
    assert random_vlm.tokenizer.decode(ids[asked:]) == " Yes.</s>" and labels[asked:] == ids[asked:]


def test_training_tokens_begin_as_written_in_the_template(random_vlm):  # noqa: F811
    ids, _ = encode(random_vlm.tokenizer, [("It rained.", "Yes.")])
    tokenizer = random_vlm.tokenizer
    assert ids[0] == 1 and tokenizer.decode(ids[1 : ids.index(3)]) == "USER: "
    assert [i for i in ids if i == 3] == [3] * 64
    assert tokenizer.decode(ids[ids.index(3) + 64 :]) == "\nIt rained. ASSISTANT: Yes.</s>"


def test_training_tokens_of_a_dialogue_are_those_of_the_processor(random_vlm):  # noqa: F811
    rendered = random_vlm.processor.apply_chat_template(messages(TURNS))
    inputs = random_vlm.processor(images=[picture()], text=[rendered], return_tensors="pt")
    ids, labels = encode(random_vlm.tokenizer, TURNS)
    assert inputs["input_ids"][0].tolist() == ids
    learnt = [i for i, label in zip(ids, labels, strict=True) if label != -100]
    assert random_vlm.tokenizer.decode(learnt) == " A smiling robot.</s> Yes, in ink.</s> No.</s>"


def test_a_story_prompt_is_the_one_of_training():
    assert load().prompt(picture(), EVENT).text == story_prompt(EVENT)


def test_training_pixels_are_those_of_the_processor(random_vlm):  # noqa: F811
    prompt = random_vlm.prompt(picture(), EVENT)
    trained_on = torch.from_numpy(picture()).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert torch.allclose(prompt.inputs["pixel_values"], trained_on, atol=1e-6)


@torch.no_grad()
def test_the_loss_on_cached_features_is_the_loss_of_the_model(random_vlm):  # noqa: F811
    model, tokenizer = random_vlm.model, random_vlm.tokenizer
    ids, labels = collate([encode(tokenizer, TURNS[:n]) for n in (1, 3, 2)])
    pixels = torch.cat([random_vlm.prompt(picture(i), EVENT).inputs["pixel_values"] for i in range(3)])
    whole = model(input_ids=ids, attention_mask=(ids != 0).long(), pixel_values=pixels, labels=labels).loss
    cached = language_loss(model, image_features(model, pixels), ids, labels)
    assert abs(float(whole) - float(cached)) < 1e-5
    shuffled = language_loss(model, image_features(model, pixels.flip(0)), ids, labels)
    assert abs(float(whole) - float(shuffled)) > 1e-4  # the pictures do count


@torch.no_grad()
def test_the_auto_classes_open_the_folder(random_vlm, prompts):  # noqa: F811
    model = AutoModelForImageTextToText.from_pretrained(random_folder(), dtype="float32").eval()
    processor = AutoProcessor.from_pretrained(random_folder())
    inputs = processor(images=[prompts[0].image], text=[prompts[0].rendered], return_tensors="pt")
    assert torch.equal(inputs["input_ids"], prompts[0].input_ids)
    assert torch.equal(model(**inputs).logits, random_vlm.model(**prompts[0].inputs).logits)


@torch.no_grad()
def test_saving_in_half_precision_only_rounds_the_weights(random_vlm, prompts):  # noqa: F811
    rounded = random_model()
    for weights in rounded.parameters():
        weights.copy_(weights.half())
    assert torch.equal(rounded(**prompts[0].inputs).logits, random_vlm.model(**prompts[0].inputs).logits)
    assert emointerp.load(random_folder()).model.dtype == torch.float16


# prompts


def test_spans(random_vlm, prompts):  # noqa: F811
    for prompt in prompts:
        ids = prompt.input_ids[0].tolist()
        assert len(prompt.visual) == 64 and {ids[i] for i in prompt.visual} == {3}
        assert ids.count(3) == 64
        assert prompt.last == len(ids) - 1 and random_vlm.tokenizer.decode(ids[prompt.last]) == ":"
        assert [*prompt.visual, *prompt.query, prompt.last] == list(range(prompt.visual[0], len(ids)))
        assert random_vlm.tokenizer.decode([ids[i] for i in prompt.query]) == f"\n{prompt.text} ASSISTANT"


def test_an_instruction_follows_the_event(random_vlm):  # noqa: F811
    assert random_vlm.prompt(picture(), " It\n rained. ", "Say  more.").text == "It rained. Say  more."
    assert random_vlm.prompt(picture(), "It rained.", instruction="").text == "It rained."
    assert random_vlm.prompt(picture(), "It rained.").text == f"It rained. {random_vlm.instruction}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "The event is empty; give a sentence such as"),
        (" \n\t ", "The event is empty"),
        ("a" * 100_000, "The event has 100,000 characters; at most 2,000 are read. Shorten it"),
        ("An <image> of me.", "The text holds '<image>', which the model reads as a mark of its own"),
        ("The end.</s>", "The text holds '</s>'"),
    ],
)
def test_texts_that_are_refused(random_vlm, text, message):  # noqa: F811
    with pytest.raises(InputError, match=message):
        random_vlm.prompt(picture(), text)


@pytest.mark.parametrize("text", [None, 3, ["It rained."]])
def test_a_text_of_the_wrong_type(text):
    with pytest.raises(InputError, match=f"The event is a {type(text).__name__}; expected a sentence such as"):
        inspect.unwrap(checked_text)(text)  # past the type checks that only tests have


def test_a_text_of_just_the_longest_length(random_vlm):  # noqa: F811
    assert len(checked_text("a" * 2000)) == 2000


# generation


def test_greedy_answers_are_the_most_likely_tokens(random_vlm, prompts):  # noqa: F811
    inputs, ids = prompts[0].inputs, prompts[0].input_ids
    for _ in range(6):
        with torch.no_grad():
            here = inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            ids = torch.cat([ids, random_vlm.model(**here).logits[:, -1:].argmax(-1)], dim=1)
    by_hand = random_vlm.tokenizer.decode(ids[0, prompts[0].last + 1 :], skip_special_tokens=True).strip()
    assert by_hand == random_vlm.generate(prompts[0], max_new_tokens=6) != ""
    assert by_hand == random_vlm.generate(prompts[0], max_new_tokens=6)


def test_a_batch_answers_as_its_prompts_one_by_one(random_vlm, prompts):  # noqa: F811
    alone = [random_vlm.generate(p, max_new_tokens=8) for p in prompts]
    assert len({p.last for p in prompts}) == len(set(alone)) == 3  # three lengths, three answers
    assert random_vlm.generate(prompts, max_new_tokens=8) == alone
    assert random_vlm.generate(tuple(prompts), max_new_tokens=8, batch=2) == alone


@torch.no_grad()
def test_padding_on_the_left_does_not_move_the_logits(random_vlm, prompts):  # noqa: F811
    batch = random_vlm.batched(prompts)
    assert (batch["attention_mask"][:, -1] == 1).all() and (batch["attention_mask"][1, 0] == 0)
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    together = random_vlm.model(**batch, position_ids=positions).logits[:, -1]
    alone = torch.cat([random_vlm.model(**p.inputs).logits[:, -1] for p in prompts])
    assert torch.allclose(together, alone, atol=1e-4)


def test_no_prompts_no_answers(random_vlm):  # noqa: F811
    assert random_vlm.generate([]) == []


def test_samples_follow_their_seed_and_leave_the_global_state(random_vlm, prompts):  # noqa: F811
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (random_vlm.generate(prompts, temperature=1.0, seed=seed, max_new_tokens=8) for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), before)


def test_samples_come_from_the_whole_distribution(random_vlm, prompts):  # noqa: F811
    with torch.no_grad():
        order = random_vlm.model(**prompts[0].inputs).logits[0, -1].argsort(descending=True).tolist()
    drawn = random_vlm.generate([prompts[0]] * 40, temperature=50.0, seed=0, max_new_tokens=1)
    likely = {a.strip() for a in random_vlm.tokenizer.batch_decode([[i] for i in order[:50]])}
    assert sum(a in likely for a in drawn) < 20  # transformers' default keeps to the 50 likeliest tokens


def test_a_cold_sample_is_greedy(random_vlm, prompts):  # noqa: F811
    cold = random_vlm.generate(prompts, temperature=1e-4, seed=0, max_new_tokens=6)
    assert cold == random_vlm.generate(prompts, max_new_tokens=6)


def test_a_negative_temperature(random_vlm, prompts):  # noqa: F811
    with pytest.raises(InputError, match=r"temperature is -0.5; expected a finite number from 0 up \(0 is greedy\)"):
        random_vlm.generate(prompts, temperature=-0.5)


def test_ask_is_a_prompt_without_instruction(random_vlm):  # noqa: F811
    plain = random_vlm.prompt(picture(), "What is this?", instruction="")
    assert random_vlm.ask(picture(), "What is this?", max_new_tokens=5) == random_vlm.generate(plain, max_new_tokens=5)


# opening models


def test_an_unknown_name_offers_the_nearest():
    with pytest.raises(ModelError, match="Cannot open the model 'tinny': .*Nearest known names: tiny"):
        emointerp.load("tinny")
    with pytest.raises(ModelError, match=r"switched off .*Nearest known names: llava-hf/llava-1.5-7b-hf"):
        emointerp.load("llava-hf/llava-1.5-7b")


@pytest.mark.parametrize("path", ["/nowhere/at/all", "./nowhere", "~/nowhere", "no/such/folder", "x" * 5000])
def test_a_path_that_does_not_exist(path):
    with pytest.raises(ModelError, match="Cannot open the model .*a local folder works too"):
        emointerp.load(path)


def test_remote_code_is_refused():
    with pytest.raises(ModelError, match="never runs a model's remote code"):
        emointerp.load("tiny", trust_remote_code=True)


def test_remote_code_in_a_folder_is_neither_run_nor_asked_about(tmp_path):
    marker = tmp_path / "was_run"
    shutil.copytree(random_folder(), tmp_path / "model")
    (tmp_path / "model" / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass OwnConfig: pass\n")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="Cannot open the model"):
        emointerp.load(tmp_path / "model")
    assert not marker.exists()


def test_damaged_weights(tmp_path):
    shutil.copytree(random_folder(), tmp_path / "model")
    os.truncate(tmp_path / "model" / "model.safetensors", 1000)
    with pytest.raises(ModelError, match="Cannot open the model"):
        emointerp.load(tmp_path / "model")


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(ModelError, match="Cannot open the model"):
        emointerp.load(tmp_path)


# familiarity


@pytest.fixture
def fitted(random_vlm, tmp_path):  # noqa: F811
    rng = np.random.default_rng(0)
    width = 2 * random_vlm.model.config.vision_config.hidden_size  # a mean and a deviation each
    train = rng.normal(size=(500, width)) @ rng.normal(size=(width, width)) + 3
    held_out = train[:50] + rng.normal(size=(50, width))
    shutil.copytree(random_folder(), tmp_path / "model")
    fit(train, held_out, tmp_path / "model", shrinkage=0.1)
    return emointerp.load(tmp_path / "model", dtype="float32"), train, held_out


def test_familiarity_is_the_mahalanobis_distance(fitted):
    vlm, train, held_out = fitted
    covariance = np.cov(train, rowvar=False)
    spherical = np.eye(len(covariance)) * np.diag(covariance).mean()
    inverse = np.linalg.inv(0.9 * covariance + 0.1 * spherical)
    apart = [mahalanobis(row, train.mean(0), inverse) for row in held_out]
    distance = mahalanobis(embeddings(vlm, [picture()])[0], train.mean(0), inverse)
    found = familiarity(vlm, picture())
    assert found.distance == pytest.approx(distance, rel=1e-3)
    assert found.typical == pytest.approx(np.median(apart), rel=1e-3)
    assert found.percentile == pytest.approx(100 * np.mean(np.array(apart) < distance))


def test_the_percentile_rises_with_the_distance(fitted, monkeypatch):
    vlm, train, held_out = fitted
    found = []
    for step in np.linspace(0, 3, 13):  # away from the mean along one held-out row
        row = train.mean(0) + step * (held_out[0] - train.mean(0))
        module = importlib.import_module("emointerp.models.familiarity")  # the package's name for it is the function
        monkeypatch.setattr(module, "embeddings", lambda *_, row=row: row[None])
        found.append(familiarity(vlm, picture()))
    distances, percentiles = [f.distance for f in found], [f.percentile for f in found]
    assert distances == sorted(distances) and distances[0] == pytest.approx(0, abs=1e-3)
    assert percentiles == sorted(percentiles) and (percentiles[0], percentiles[-1]) == (0, 100)
    assert str(found[-1]).startswith("far from the training pictures") and found[-1].far
    assert str(found[0]).startswith("like the training pictures: 0.0 times the median distance")


def test_a_model_without_statistics_has_no_familiarity(random_vlm):  # noqa: F811
    assert familiarity(random_vlm, picture()) is None


@torch.no_grad()
def test_embeddings_are_those_of_the_middle_of_the_tower(random_vlm):  # noqa: F811
    """Against a plain hook on the layer that ends the first half."""
    tower, seen = random_vlm.model.model.vision_tower, []
    layers = tower.encoder.layers if hasattr(tower, "encoder") else tower.vision_model.encoder.layers
    handle = layers[(len(layers) + 1) // 2 - 1].register_forward_hook(
        lambda *a: seen.append(a[2][0] if isinstance(a[2], tuple) else a[2])
    )
    found = embeddings(random_vlm, [picture(i) for i in range(3)], batch=3)
    handle.remove()
    by_hand = torch.cat([seen[0].mean(1), seen[0].std(1)], 1).numpy()
    assert np.allclose(found, by_hand, atol=1e-5)


# the bundled model


def test_the_bundled_model_opens_by_default():
    vlm = emointerp.load()
    assert vlm.name == "tiny" and vlm.model.dtype == torch.float32 and vlm.instruction == "Tell my story."
    assert vlm.prompt(picture(), EVENT).text == story_prompt(EVENT)


@torch.no_grad()
def test_the_auto_classes_open_the_bundled_model():
    vlm = emointerp.load()
    prompt = vlm.prompt(picture(), EVENT)
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS / "tiny", dtype="float32").eval()
    inputs = AutoProcessor.from_pretrained(WEIGHTS / "tiny")(images=[prompt.image], text=[prompt.rendered], return_tensors="pt")
    assert torch.equal(inputs["input_ids"], prompt.input_ids)
    assert torch.equal(model(**inputs).logits, vlm.model(**prompt.inputs).logits)


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@example(text=story_prompt(EVENT))
def test_the_bundled_tokens_are_those_of_training(text):
    processor = AutoProcessor.from_pretrained(WEIGHTS / "tiny")
    rendered = f"USER: <image>\n{text} ASSISTANT:"
    inputs = processor(images=[picture()], text=[rendered], return_tensors="pt")
    ids, labels = encode(processor.tokenizer, [(text, "Yes.")])
    assert inputs["input_ids"][0].tolist() == ids[: labels.count(-100)]


def test_the_bundled_model_has_the_form_of_the_trained_one():
    config = emointerp.load().model.config
    expected = new_model(SiglipVisionModel(dual_encoder_config().vision_config)).config
    assert config.text_config.to_diff_dict() | {"dtype": None} == expected.text_config.to_diff_dict() | {"dtype": None}
    assert random_config().image_token_id == config.image_token_id == 3


def test_the_bundled_model_tells_a_story_in_sentences():
    vlm = emointerp.load()
    prompts = [vlm.prompt(picture(i), EVENT) for i in range(3)]
    alone = [vlm.generate(p) for p in prompts]
    assert vlm.generate(prompts) == alone
    assert all(answer.endswith((".", "!", "?")) for answer in alone)


def test_the_bundled_model_knows_noise_for_far():
    found = familiarity(emointerp.load(), picture())
    assert found is not None and found.far
