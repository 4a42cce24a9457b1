"""Models that run elsewhere: the same numbers by nnsight's rehearsal and by a server process of our own, and words where none come.

No test opens a socket: `connect` fails, and counts.
"""

import io
import json
import pickle
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path

import nnsight
import pytest
import torch
from nnsight.schema.response import ResponseModel, Status
from PIL import Image
from tiny_families import NAMES
from tiny_families import vlm as tiny

import emointerp as ei
from emointerp import lens
from emointerp.circuit import revision
from emointerp.errors import InputError, ModelError
from emointerp.models import VLM, bridge, loading, remote
from emointerp.neurons import written
from emointerp.sources import value_path
from emointerp.tracing import SITES, answer_log_probs, logit_mass, projection
from emointerp.tracing.remote import Forwards
from emointerp.veena import Veena, on

EVENT = "The phone rang twice while I was cooking."
LLAVA = "llava-hf/llava-1.5-7b-hf"
WEIGHTS = Path(loading.WEIGHTS) / "tiny"


@pytest.fixture(autouse=True)
def sockets(monkeypatch) -> list:
    """Sockets that were asked for; none is opened."""
    asked = []

    def connect(_self, address, *_):
        asked.append(address)
        raise OSError("There is no network here.")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: connect(None, where))
    return asked


@cache
def both(name: str) -> tuple[VLM, VLM]:
    """The same model here, and as if it ran elsewhere."""
    if name == "tiny":
        return ei.load(), ei.load(remote="local")
    copy = tiny.__wrapped__(name)  # of its own, as nnsight hangs itself on a model's modules
    return tiny(name), ei.load(copy.model, processor=copy.processor, remote="local")


def prompts_of(vlm: VLM) -> list:
    """Two prompts of different lengths."""
    pictures = [Image.effect_noise(size, 90).convert("RGB") for size in ((96, 64), (64, 96))]
    return [vlm.prompt(picture, text) for picture, text in zip(pictures, (EVENT, "It rained."), strict=True)]


def edits_of(vlm: VLM) -> list:
    """One of each kind."""
    g, a = torch.Generator().manual_seed(0), vlm.anatomy
    head, vector = torch.randn(a.d_head, generator=g), torch.randn(a.d_model, generator=g)
    return [
        ei.AddVector(2, vector), ei.SetHead(1, 0, head), ei.ScaleNeurons(1, [0, 5], 3.0), ei.ScaleAttention(1, 0.2),
        ei.SetResidual(0, 0.3 * vector, "visual"),
    ]  # fmt: skip


def assert_same(near: list, far: list) -> None:
    """To 1e-6 of the largest value."""
    assert len(near) == len(far) > 0
    for a, b in zip(near, far, strict=True):
        assert a.shape == b.shape and not b.requires_grad
        torch.testing.assert_close(b, a, rtol=0, atol=1e-6 * max(1.0, float(a.abs().max())))


def tensors(found: list, sites: tuple = SITES) -> list:
    """All tensors of activations, and of their gradients."""
    return [getattr(one, site) for acts in found for one in (acts, acts.gradients) if one is not None for site in sites]


@pytest.mark.parametrize("name", ["tiny", *NAMES])
def test_every_verb_gives_what_it_gives_here(name, sockets):
    near, far = both(name)
    prompts, edits = prompts_of(near), edits_of(near)
    assert far.remote == "local" and not near.remote and far.anatomy == near.anatomy
    fear, three = logit_mass(near, ["fear"]), SITES[:3]
    verbs = [
        lambda vlm: [out.logits for out in ei.run(vlm, prompts, edits)],
        lambda vlm: tensors(ei.collect(vlm, prompts, three, edits), three),
        lambda vlm: tensors(ei.collect(vlm, prompts, three, edits, positions="last", wrt=fear), three),
        lambda vlm: tensors([ei.collect(vlm, prompts[0], "heads", wrt=projection(edits[0].vector, 2))], ("heads",)),
        lambda vlm: answer_log_probs(vlm, prompts[0], ["I felt afraid.", "Joy"]),
    ]
    for verb in verbs:
        assert_same(verb(near), verb(far))
    texts = ei.generate(far, prompts, edits, max_new_tokens=5)
    assert texts == ei.generate(near, prompts, edits, max_new_tokens=5)
    assert ei.generate(far, prompts, max_new_tokens=5) == ei.generate(near, prompts, max_new_tokens=5)
    assert sockets == []


@pytest.mark.parametrize("name", ["tiny", "qwen3_vl", "gemma3"])
def test_sweeps_give_what_they_give_here(name, monkeypatch):
    near, far = both(name)
    prompts, a = prompts_of(near), near.anatomy
    monkeypatch.setattr("emointerp.tracing.remote.TOKENS", 3 * len(prompts[0]))  # three rows a request
    lists = {
        (i, h): [ei.SetHead(i, h, torch.ones(a.d_head)), ei.ScaleAttention(i, 0.0, "last", "visual", [h])]
        for i in (0, 2)
        for h in (0, 1)
    }
    for metric in (logit_mass(near, ["fear", "joy"]), projection(torch.ones(a.d_model), 2)):
        here, there = (ei.sweep(vlm, prompts, lists, metric, progress=False) for vlm in (near, far))
        assert_same([here.values, here.baseline], [there.values, there.baseline])
    here, there = (ei.sweep(vlm, prompts, lists, max_new_tokens=4, progress=False) for vlm in (near, far))
    assert there.texts == here.texts and there.baseline_texts == here.baseline_texts


def test_a_sweep_asks_in_requests_of_whole_prompts(monkeypatch):
    _, far = both("tiny")
    rows, batch = [], Forwards.batch.fget
    monkeypatch.setattr(Forwards, "batch", property(lambda self: rows.append(len(self.edit_lists)) or batch(self)))
    prompt = far.prompt(Image.new("RGB", (96, 64)), EVENT)
    monkeypatch.setattr("emointerp.tracing.remote.TOKENS", 3 * len(prompt) + 2)
    lists = [[ei.ScaleNeurons(0, [i], 2.0)] for i in range(6)]
    ei.sweep(far, prompt, lists, lambda logits: logits[:, 0], progress=False)
    assert rows == [3, 3, 1]  # with the unedited one


def test_attention_weights_come_with_the_whole_model_in_eager_attention():
    near, far = both("tiny")
    prompts = prompts_of(near)
    assert_same(*(tensors(ei.collect(vlm, prompts, "attention"), ("attention",)) for vlm in (near, far)))
    assert far.structure.config._attn_implementation == "sdpa"


def test_sampling_there_has_a_seed():
    near, far = both("tiny")
    options = {"max_new_tokens": 6, "temperature": 1.0}
    prompt, state = prompts_of(near)[0], torch.get_rng_state()
    texts = [ei.generate(far, prompt, edits_of(near), seed=seed, **options) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert far.generate(prompt, seed=1, **options) == near.generate(prompt, seed=1, **options)
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_a_chapter_reads_are_fetched_once(monkeypatch):
    near, far = both("tiny")
    vector = edits_of(near)[0].vector[None]
    assert_same(*([lens.lens_logits(vlm, vector), written(vlm, 1, [0, 7])] for vlm in (near, far)))
    acts = ei.collect(near, prompts_of(near)[0], "heads", positions="last")
    assert_same(*([lens.head_writes(vlm, acts.heads)] for vlm in (near, far)))
    assert revision(far) == revision(near)
    monkeypatch.setattr(far.model, "backend", None)  # no more requests
    lens.lens_logits(far, vector), written(far, 1, [3]), revision(far)


def test_chapters_that_stand_on_verbs_work_there():
    near, far = both("tiny")
    prompt = prompts_of(near)[0]
    here, there = (lens.logit_lens(vlm, prompt) for vlm in (near, far))
    assert_same([here.entropy, here.mass], [there.entropy, there.mass])
    along = edits_of(near)[0].vector
    assert_same(*([value_path(vlm, prompt, 2, 1, along)] for vlm in (near, far)))


@pytest.mark.parametrize(
    ("what", "words"),
    [
        (lambda far, p: far.model(**p.inputs), r"A forward of the model itself needs the weights on this machine, but 'tiny' runs"),
        (lambda far, p: far.model.parameters(), r"`vlm.model.parameters` needs the weights .* load the model without remote"),
        (lambda far, p: bridge(far), r"A TransformerLens twin needs the weights on this machine"),
        (lambda far, p: ei.verify(far), r"needs the weights on this machine"),
        (lambda far, p: on(far, Veena(neurons=[(0, 1)])).__enter__(), r"needs the weights on this machine"),
        (lambda far, p: ei.run(far, p, [ei.ScaleAttention(0, 0.5, renormalise=False)]), r"False needs .* use renormalise=True"),
        (lambda far, p: ei.generate(far, p, logits_processor=[abs]), r"logits_processor: runs on this machine between the tokens"),
        (
            lambda far, p: ei.sweep(far, p, [[]], max_new_tokens=2, logits_processor=[abs], progress=False),
            r"logits_processor: runs on this machine",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_done_there_says_so(what, words):
    _, far = both("tiny")
    with pytest.raises(ModelError, match=words):
        what(far, far.prompt(Image.new("RGB", (96, 64)), EVENT))


def test_edits_are_checked_before_anything_is_sent(monkeypatch):
    _, far = both("tiny")
    monkeypatch.setattr(far.model, "backend", None)
    with pytest.raises(InputError, match="layer 99 is out of range"):
        ei.run(far, far.prompt(Image.new("RGB", (96, 64)), EVENT), [ei.ScaleNeurons(99, [0], 2.0)])


# loading


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("tiny", {"remote": True}, r"'tiny' is on this machine; NDIF runs models of the hub. remote='local' rehearses"),
        (str(WEIGHTS), {"remote": True}, r"is on this machine"),
        (LLAVA, {"remote": "yes"}, r"remote is 'yes'; expected False .*, True .*, or 'local'"),
        (LLAVA, {"remote": True, "device": "cuda", "bits": 4}, r"device, bits: is decided where the model runs"),
        (LLAVA, {"remote": True, "dtype": "float16"}, r"dtype: is decided where the model runs"),
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_there_says_so(name, options, words, sockets):
    with pytest.raises(InputError, match=words):
        ei.load(name, **options)
    assert sockets == []


def test_without_a_key_nothing_is_asked(monkeypatch, sockets):
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", None)
    with pytest.raises(ModelError, match=r"at NDIF .*, which asks for a key of your own: set NDIF_API_KEY"):
        ei.load(LLAVA, remote=True)
    assert sockets == []


def test_without_network_the_load_says_so(monkeypatch, sockets):
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "a key")
    with pytest.raises(ModelError, match=r"NDIF at https://api.ndif.us cannot be reached; look at the network"):
        ei.load(LLAVA, remote=True)
    assert {address[0] for address in sockets} == {"api.ndif.us"}


def test_a_model_that_is_not_there_is_named_beside_those_that_are(monkeypatch):
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "a key")
    held = {
        "1": {"repo_id": "a/b", "task": "image-text-to-text"},
        "3": {"repo_id": "c/cold", "task": "image-text-to-text", "deployment_level": "COLD"},
        "2": {"repo_id": LLAVA, "task": "text-generation"},
    }
    monkeypatch.setattr(nnsight.ndif, "status", lambda raw: {"deployments": held})
    with pytest.raises(ModelError, match=r"does not run 'llava-hf/llava-1.5-7b-hf' now; models with pictures that it runs: a/b "):
        ei.load(LLAVA, remote=True)


# the way to a server and back


def test_a_server_without_this_package_gives_what_the_model_gives_here(tmp_path):
    command = [sys.executable, str(Path(__file__).parent / "remote_client.py"), str(WEIGHTS)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found["differences"]) == 13 and max(found["differences"].values()) < 1e-6, found
    assert not found["weights"] and not found["bytecode"]
    assert found["largest"] < 400_000  # bytes: the model has megabytes
    assert "The server that runs 'somebody/a-model' could not do this: RuntimeError" in found["error"]


class Evil:
    def __reduce__(self):
        return print, ("This ran.",)


@pytest.mark.parametrize("answer", ["archive", "pickle"])
def test_an_answer_that_is_more_than_tensors_is_not_opened(answer, capsys):
    content = io.BytesIO()
    torch.save({"logits": Evil()}, content) if answer == "archive" else pickle.dump({"logits": Evil()}, content)
    server = remote._Server("a/b", "key", {})
    server.compress = False
    with pytest.raises(ModelError, match=r"The server's answer was not opened, because"):
        server.finalize(content.getvalue())
    assert "This ran." not in capsys.readouterr().out


def test_an_answer_of_tensors_is_opened_in_every_dtype():
    given = {"a": [{(0, "heads"): torch.ones(2, dtype=dtype)} for dtype in (torch.float16, torch.bfloat16, torch.int64)]}
    content = io.BytesIO()
    torch.save(given, content)
    response = ResponseModel(id="1", status=Status.COMPLETED, data=content.getvalue())
    server = remote._Server("a/b", "key", {})
    server.compress = False
    opened = server.finalize(server.parse(response.pickle()).data)
    for one, other in zip(given["a"], opened["a"], strict=True):
        assert torch.equal(one[0, "heads"], other[0, "heads"]) and one[0, "heads"].dtype == other[0, "heads"].dtype


def test_a_server_that_goes_away_is_told(monkeypatch, sockets):
    _, far = both("tiny")
    monkeypatch.setattr(nnsight.CONFIG.APP, "REMOTE_LOGGING", False)
    monkeypatch.setattr(far.model, "backend", lambda: remote._Server("a/b", "key", {}))
    with pytest.raises(ModelError, match=r"https://api.ndif.us does not answer .* try again later"):
        ei.run(far, far.prompt(Image.new("RGB", (96, 64)), EVENT))
    assert sockets
