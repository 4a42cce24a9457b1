"""Hundreds of verbs one after the other leave no more memory taken than a few; ten thousand: `tests/benchmarks/endurance.py`."""

import gc

import psutil
import pytest
import tiny_families
import torch
from tiny_models import picture

from emointerp.tracing import AddVector, collect, generate, run, sweep

VLM = tiny_families.vlm("llava_clip")


def edits(i: int) -> list[AddVector]:
    return [AddVector(i % 4, torch.randn(32, generator=torch.Generator().manual_seed(i)), 0.1)]


VERBS = {
    "sweep": (lambda p, i: sweep(VLM, p, [edits(i), edits(i + 1)], lambda logits: logits[:, 0], progress=False), 250),
    "sweep of answers": (lambda p, i: sweep(VLM, p, [edits(i)], max_new_tokens=2, progress=False), 60),
    "sweep of new prompts": (lambda p, i: sweep(VLM, prompt(i), [edits(i)], lambda logits: logits[:, 0], progress=False), 60),
    "run": (lambda p, i: run(VLM, p, edits(i)), 150),
    "collect": (lambda p, i: collect(VLM, p, ["residual", "heads"], edits(i)), 100),
    "collect with gradients": (lambda p, i: collect(VLM, p, wrt=lambda logits: logits[:, 0]), 60),
    "generate": (lambda p, i: generate(VLM, p, edits(i), max_new_tokens=2), 60),
}


def prompt(i: int = 0):
    return VLM.prompt(picture(i), f"The phone rang {i} times.")


def taken() -> tuple[int, int]:
    """Bytes of this process, and objects that the garbage collector knows."""
    gc.collect()
    return psutil.Process().memory_info().rss, len(gc.get_objects())


@pytest.mark.parametrize("verb", VERBS)
def test_many_of_a_verb_take_no_more_memory_than_a_few(verb):
    act, n = VERBS[verb]
    given = prompt()
    for i in range(12):
        act(given, i)
    bytes_before, objects_before = taken()
    for i in range(n):
        act(given, i)
    bytes_after, objects_after = taken()
    assert objects_after - objects_before < n  # what each leaves is at least one object
    assert bytes_after - bytes_before < 12e6
