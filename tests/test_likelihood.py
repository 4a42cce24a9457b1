"""Likelihood of given answers against whole forwards, one by one."""

import math

import pytest
import torch
from tiny_families import NAMES, vlm
from tiny_models import picture

from emointerp.errors import InputError
from emointerp.tracing import answer_log_probs, perplexity

ANSWERS = ("I felt glad.", "I stood there and was afraid of the dark.", "Yes")


@torch.no_grad()
def whole_forward(model, prompt, answer: str) -> torch.Tensor:
    """Log-probabilities of an answer's tokens from one forward over prompt and answer."""
    text = answer if prompt.rendered[-1].isspace() else f" {answer}"
    ids = model.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    inputs = dict(model.placed(prompt.inputs))
    for key, value in inputs.items():
        if key in ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids"):
            more = ids if key == "input_ids" else torch.full_like(ids, int(key == "attention_mask"))
            inputs[key] = torch.cat([value, more], 1)
    log_p = model.model(**inputs, use_cache=False).logits[0, prompt.last : -1].float().log_softmax(-1)
    return log_p.gather(-1, ids[0, :, None])[:, 0]


@pytest.mark.parametrize("name", NAMES)
def test_answers_score_as_in_whole_forwards(name):
    model = vlm(name)
    prompt = model.prompt(picture(), "The phone rang twice.")
    for answer, found in zip(ANSWERS, answer_log_probs(model, prompt, ANSWERS), strict=True):
        torch.testing.assert_close(found, whole_forward(model, prompt, answer), atol=3e-5, rtol=0)


def test_a_long_answer_in_a_sliding_window():
    model = vlm("gemma3")
    prompt = model.prompt(picture(), "The phone rang.")
    answer = "I went home and sat down. " * 12
    assert len(model.tokenizer(answer).input_ids) > len(prompt)
    torch.testing.assert_close(
        answer_log_probs(model, prompt, [answer])[0], whole_forward(model, prompt, answer), atol=5e-5, rtol=0
    )


def test_perplexity_of_a_uniform_model_is_the_size_of_its_vocabulary_and_empty_answers_have_none():
    model = vlm("llava_clip")
    prompt = model.prompt(picture(), "The phone rang twice.")
    weight = model.model.lm_head.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.zero_()
        found = perplexity(model, prompt, ["I felt glad.", " ", "I felt glad."])
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert found[0] == found[2] == pytest.approx(model.anatomy.vocabulary, rel=1e-5)
    assert math.isnan(found[1])
    with pytest.raises(InputError, match="The answer ' ' is empty; there is nothing to score"):
        answer_log_probs(model, prompt, [" "])
