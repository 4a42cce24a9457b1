"""How likely given answers are under the unedited model: the cost of steering, in words that it would not have said."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from emointerp.errors import InputError
from emointerp.given import expected, texts
from emointerp.models import VLM, Prompt
from emointerp.models.vlm import check_model
from emointerp.tracing.branches import Branches, prefix_of
from emointerp.tracing.overflow import check_finite
from emointerp.tracing.remote import following

TOKENS = 512  # tokens of one forward, beyond which more of them do not make it quicker


def answer_log_probs(vlm: VLM, prompt: Prompt, answers: str | Iterable[str]) -> list[Tensor]:
    """Log-probability, in nats, of each token of each answer after a prompt; the end token is not counted.

    The prompt is read once; the answers run behind it as rows of a batch. Raises InputError for an empty answer.
    """
    check_model(vlm)
    expected(prompt, Prompt, "one prompt: vlm.prompt(image, text)")
    answers = texts(answers, "answers", some=False)
    ids = [torch.tensor(_tokens(vlm, prompt, answer), device=vlm.device) for answer in answers]
    chunk = max(1, TOKENS // max(map(len, ids), default=1))
    return [row for start in range(0, len(ids), chunk) for row in _some(vlm, prompt, ids[start : start + chunk])]


def perplexity(vlm: VLM, prompt: Prompt, answers: str | Iterable[str]) -> list[float]:
    """exp of the mean negative log-probability of each answer's tokens; NaN where an answer is empty. A text is one answer."""
    answers = texts(answers, "answers", some=False)
    said = [answer for answer in dict.fromkeys(answers) if answer.strip()]
    log_probs = dict(zip(said, answer_log_probs(vlm, prompt, said), strict=True))
    return [math.exp(-float(log_probs[a].mean())) if a in log_probs else math.nan for a in answers]


def _some(vlm: VLM, prompt: Prompt, ids: list[Tensor]) -> list[Tensor]:
    padded = pad_sequence(ids, batch_first=True)
    if vlm.remote:
        return [row[: len(own)].cpu() for row, own in zip(following(vlm, prompt, padded), ids, strict=True)]
    branches = Branches(vlm, prefix_of(vlm, prompt), [()] * len(ids), prompt.last, tree=False)
    log_p = branches.following(padded).to(padded.device).float().log_softmax(-1)
    found = [row[: len(own)].gather(-1, own[:, None])[:, 0].cpu() for row, own in zip(log_p, ids, strict=True)]
    check_finite(vlm, torch.cat(found), lambda: branches.following(padded))
    return found


def _tokens(vlm: VLM, prompt: Prompt, answer: str) -> list[int]:
    text = answer if prompt.rendered[-1].isspace() else f" {answer}"
    ids = vlm.tokenizer(text, add_special_tokens=False).input_ids
    if not answer.strip() or not ids:
        raise InputError(f"The answer {answer!r} is empty; there is nothing to score.")
    return ids
