"""Models spread by transformers' `device_map`: accelerate's hooks move tensors between parts, or bring offloaded weights from disk.

There is one device here: what is shown is that hooks and offloaded weights change no number.
"""

from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_families import folder
from tiny_families import vlm as tiny

import emointerp as ei
from emointerp import lens
from emointerp.circuit import revision
from emointerp.errors import ModelError
from emointerp.models import VLM, loading
from emointerp.models.anatomy import part
from emointerp.neurons import written
from emointerp.tracing import SITES, answer_log_probs, logit_mass, projection

pytest.importorskip("accelerate")
EVENT = "The phone rang twice while I was cooking."
NAMES = ("tiny", "llava_clip", "qwen3_vl", "gemma3", "idefics3")


@cache
def here(name: str) -> VLM:
    """The model as one piece."""
    return ei.load() if name == "tiny" else tiny(name)


def spread(name: str, place: str, offload: Path) -> VLM:
    """The same on one device by hooks ("cpu"), or with every second layer and most of the rest on disk ("disk")."""
    source = loading.WEIGHTS / "tiny" if name == "tiny" else folder(name)
    near = here(name)
    if place == "cpu":
        return ei.load(source, dtype="float32", device_map={"": "cpu"}, processor=near.processor)
    language = near.anatomy.family.language
    parts = [*_children(near, ""), *_children(near, "model"), *_children(near, language)]
    parts = [path for path in parts if path not in ("model", language, near.anatomy.layers)]
    layers = {f"{near.anatomy.layers}.{i}": "disk" if i % 2 else "cpu" for i in range(near.anatomy.n_layers)}
    where = layers | {path: "cpu" if "vision" in path else "disk" for path in parts}  # transformers runs no SigLIP tower from disk
    return ei.load(source, dtype="float32", device_map=where, offload_folder=offload, processor=near.processor)


def _children(vlm: VLM, path: str) -> list[str]:
    children = (part(vlm.model, path) if path else vlm.model).named_children()
    return [f"{path}.{name}".lstrip(".") for name, _ in children]


def assert_same(near: list, far: list) -> None:
    """To 1e-6 of the largest value."""
    assert len(near) == len(far) > 0
    for a, b in zip(near, far, strict=True):
        torch.testing.assert_close(b.cpu(), a, rtol=0, atol=1e-6 * max(1.0, float(a.abs().max())))


@pytest.mark.parametrize("place", ["cpu", "disk"])
@pytest.mark.parametrize("name", NAMES)
def test_every_verb_gives_the_same_numbers(name, place, tmp_path):
    near, far = here(name), spread(name, place, tmp_path / "offload")
    offloaded = {path for path, weights in far.model.named_parameters() if weights.is_meta}
    assert bool(offloaded) == (place == "disk")
    a, pictures = near.anatomy, [Image.effect_noise(size, 90).convert("RGB") for size in ((96, 64), (64, 96))]
    prompts = [near.prompt(picture, text) for picture, text in zip(pictures, (EVENT, "It rained."), strict=True)]
    g = torch.Generator().manual_seed(0)
    vector, head = torch.randn(a.d_model, generator=g), torch.randn(a.d_head, generator=g)
    edits = [ei.AddVector(2, vector), ei.SetHead(1, 0, head), ei.ScaleNeurons(1, [0, 5], 3.0), ei.ScaleAttention(1, 0.2)]
    softly = [ei.ScaleAttention(1, 0.5, heads=[1], renormalise=False)]
    fear, along = logit_mass(near, ["fear"]), projection(vector, 2)
    lists = {(i, h): [ei.SetHead(i, h, head)] for i in (0, 1) for h in (0, 1)}

    def numbers(vlm: VLM) -> list:
        acts = ei.collect(vlm, prompts, SITES, edits) + ei.collect(vlm, prompts, SITES[:3], wrt=fear)
        acts += [one.gradients for one in acts if one.gradients is not None]
        found = [getattr(one, site) for one in acts for site in SITES if getattr(one, site) is not None]
        found += [out.logits for some in (edits, softly) for out in ei.run(vlm, prompts, some)]
        found += [ei.sweep(vlm, prompts, lists, metric, progress=False).values for metric in (fear, along)]
        return found + answer_log_probs(vlm, prompts[0], ["I felt afraid.", "Joy"])

    def texts(vlm: VLM) -> list:
        sweep = ei.sweep(vlm, prompts, lists, max_new_tokens=4, progress=False)
        return [*ei.generate(vlm, prompts, edits, max_new_tokens=5), *vlm.generate(prompts, max_new_tokens=5), *sweep.texts[0]]

    assert_same(numbers(near), numbers(far))
    assert texts(far) == texts(near)
    assert offloaded <= {path for path, weights in far.model.named_parameters() if weights.is_meta}  # nothing stays in memory


@pytest.mark.parametrize("name", ["tiny", "gemma3"])
def test_weights_that_are_read_outside_a_forward_are_brought(name, tmp_path):
    near, far = here(name), spread(name, "disk", tmp_path / "offload")
    vectors = torch.randn(3, near.anatomy.d_model, generator=torch.Generator().manual_seed(0))
    assert_same([lens.lens_logits(near, vectors)], [lens.lens_logits(far, vectors)])
    assert_same([written(near, i, [0, 7]) for i in (0, 1)], [written(far, i, [0, 7]) for i in (0, 1)])
    if name == "tiny":
        heads = ei.collect(near, near.prompt(Image.new("RGB", (96, 64)), EVENT), "heads", positions="last").heads
        assert_same([lens.head_writes(near, heads)], [lens.head_writes(far, heads)])
    assert revision(far) == revision(near)
    assert far.device == torch.device("cpu")  # where its inputs go, though its first weights are on disk


def test_verify_holds_of_a_model_that_is_spread(tmp_path):
    found = ei.verify(spread("llava_clip", "cpu", tmp_path))
    assert found.agrees, str(found)


def test_without_accelerate_a_device_map_says_what_to_install(monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"device_map='auto' needs accelerate: pip install accelerate"):
        ei.load("tiny", device_map="auto")
