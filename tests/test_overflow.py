"""Sixteen bits: all verbs agree with float32 within their grain, and numbers that leave their range are refused, with the layer."""

import copy
import sys
from functools import cache

import pytest
import tiny_families
import torch
from tiny_models import picture

import emointerp
from emointerp import cli
from emointerp.errors import ModelError
from emointerp.models import VLM
from emointerp.models.anatomy import part
from emointerp.pairs import world_pairs
from emointerp.steering import steering_vectors
from emointerp.tracing import (
    AddVector,
    ScaleNeurons,
    SetHead,
    collect,
    cosine,
    generate,
    perplexity,
    run,
    sweep,
)

SWEEP = sys.modules["emointerp.tracing.sweep"]  # the package gives its function by that name
EVENT = "The phone rang while I was cooking."
HALVES = {torch.float16: 0.03, torch.bfloat16: 0.15}  # how far from float32 these wide random models are, as a share of the length


@cache
def narrowed(name: str, dtype: torch.dtype) -> VLM:
    whole = tiny_families.vlm(name)
    return emointerp.load(copy.deepcopy(whole.model).to(dtype), processor=whole.processor)


def damaged(dtype: torch.dtype, where: str = "mlp.down_proj", layer: int = 1, value: float = 3e4) -> VLM:
    """A model whose residual stream passes 65,504 after a layer: in float16 it overflows, in bfloat16 it does not."""
    vlm = emointerp.load(copy.deepcopy(tiny_families.vlm("llava_clip").model), processor=tiny_families.vlm("llava_clip").processor)
    with torch.no_grad():
        part(vlm.model, f"{vlm.anatomy.layers}.{layer}").get_submodule(where).weight.fill_(value)
    vlm.model.to(dtype)
    return vlm


def asked(vlm: VLM):
    return vlm.prompt(picture(3), EVENT)


VERBS = {
    "run": lambda vlm, p: run(vlm, p),
    "run of several": lambda vlm, p: run(vlm, [p, vlm.prompt(picture(4), "I left.")]),
    "collect": lambda vlm, p: collect(vlm, p),
    "collect with gradients": lambda vlm, p: collect(vlm, p, ["neurons"], wrt=lambda logits: logits[:, 3]),
    "collect early layers at the picture": lambda vlm, p: collect(vlm, p, layers=[0, 1], positions="visual"),
    "generate": lambda vlm, p: generate(vlm, p, max_new_tokens=3),
    "generate with edits": lambda vlm, p: generate(vlm, p, [ScaleNeurons(0, [1], 2.0)], max_new_tokens=3),
    "generate, sampled": lambda vlm, p: generate(vlm, p, temperature=1.0, seed=0, max_new_tokens=3),
    "sweep": lambda vlm, p: sweep(vlm, p, [[ScaleNeurons(3, [1], 2.0)]], lambda logits: logits[:, 0], progress=False),
    "sweep of a layer": lambda vlm, p: sweep(
        vlm, p, [[ScaleNeurons(0, [1], 2.0)]], cosine(torch.ones(vlm.anatomy.d_model), 2), progress=False
    ),
    "sweep of answers": lambda vlm, p: sweep(vlm, p, [[ScaleNeurons(3, [1], 2.0)]], max_new_tokens=3, progress=False),
}


@pytest.mark.parametrize("verb", VERBS)
def test_an_overflow_is_refused_with_its_layer_and_the_remedy(verb):
    vlm = damaged(torch.float16)
    said = "not finite in float16: from the output of layer 1 on.*dtype='bfloat16'"
    with pytest.raises(ModelError, match=said):
        VERBS[verb](vlm, asked(vlm))
    wide = damaged(torch.bfloat16)
    assert VERBS[verb](wide, asked(wide)) is not None


def test_what_overflows_later_is_no_fault_of_an_earlier_layer():
    vlm = damaged(torch.float16, layer=2)
    with pytest.raises(ModelError, match="from the output of layer 2 on"):
        run(vlm, asked(vlm))


def test_a_picture_that_overflows_is_told_before_the_first_layer():
    vlm = narrowed("llava_clip", torch.float16)
    vlm = emointerp.load(copy.deepcopy(vlm.model), processor=vlm.processor)
    with torch.no_grad():
        vlm.model.model.multi_modal_projector.linear_2.weight.fill_(3e4)
    with pytest.raises(ModelError, match="from the embeddings of picture and text on, before layer 0"):
        run(vlm, asked(vlm))


def test_an_edit_that_pushes_too_far_is_told_so(record_property):
    vlm = narrowed("llava_clip", torch.float16)
    push = [AddVector(2, torch.full((vlm.anatomy.d_model,), 10.0), 1e5)]
    for verb in (lambda: run(vlm, asked(vlm), push), lambda: sweep(vlm, asked(vlm), [push], lambda x: x[:, 0], progress=False)):
        with pytest.raises(ModelError, match="from the output of layer 2 on.*make their values smaller"):
            verb()
        record_property("tried", 1)


def test_an_answer_that_overflows_after_some_tokens_is_refused():
    vlm = narrowed("llava_clip", torch.float16)
    push = [AddVector(2, torch.full((vlm.anatomy.d_model,), 10.0), 1e5, "answer")]
    with pytest.raises(ModelError, match="from the output of layer 2 on"):
        generate(vlm, asked(vlm), push, max_new_tokens=3)
    with pytest.raises(ModelError, match="from the output of layer 2 on"):
        sweep(vlm, asked(vlm), [push], max_new_tokens=3, progress=False)


@pytest.mark.parametrize(
    ("where", "named"),
    [("last", r"interventions \(0, 99999.0\), \(1, 99999.0\), \(2, 99999.0\)"), ("visual", r"intervention \(0, 99999.0\)")],
    ids=["a tree of short branches", "a forward for each long one"],
)
def test_a_sweep_names_the_interventions_of_a_forward_that_overflowed(where, named):
    vlm = narrowed("llava_clip", torch.float16)
    direction = torch.full((vlm.anatomy.d_model,), 10.0)
    pushes = {(layer, size): [AddVector(layer, direction, size, where)] for layer in range(3) for size in (0.1, 99999.0)}
    with pytest.raises(ModelError, match=f"^With {named}: .*from the output of layer 0 on"):
        sweep(vlm, asked(vlm), pushes, lambda logits: logits[:, 0], progress=False, budget=0 if where == "visual" else 2**30)


def test_a_sweep_of_answers_names_the_prompt_and_the_intervention_that_overflowed():
    vlm = narrowed("llava_clip", torch.float16)
    direction = torch.full((vlm.anatomy.d_model,), 10.0)
    prompts = [asked(vlm), vlm.prompt(picture(4), "I left.")]
    late = {layer: [AddVector(layer, direction, 1e5, "answer")] for layer in range(3)}
    mild = {3: [AddVector(1, direction, 0.1)]}
    with pytest.raises(ModelError, match="^On prompt 1, intervention 2: .*from the output of layer 2 on"):
        sweep(vlm, prompts, lambda i: mild | ({2: late[2]} if i else {2: []}), max_new_tokens=3, progress=False)


def test_of_an_overflowing_sweep_one_intervention_is_done_once_more(monkeypatch):
    vlm = narrowed("llava_clip", torch.float16)
    pushes = [[AddVector(1, torch.full((vlm.anatomy.d_model,), 10.0), size)] for size in (0.1, 0.2, 1e5, 2e5)]
    done = []
    monkeypatch.setattr(SWEEP, "run", lambda *given: done.append(given[2]) or run(*given))
    with pytest.raises(ModelError, match="With interventions 2, 3: .*from the output of layer 1 on"):
        sweep(vlm, asked(vlm), pushes, lambda logits: logits[:, 0], progress=False)
    assert done == [pushes[2]]


def test_steering_vectors_are_not_made_of_what_overflowed():
    vlm = damaged(torch.float16)
    with pytest.raises(ModelError, match="float16"):
        steering_vectors(vlm, world_pairs("direction", 6), tau=-1)


def test_damaged_weights_are_told_in_float32_too():
    vlm = damaged(torch.float32, value=float("nan"))
    with pytest.raises(
        ModelError, match="not finite in float32: from the output of layer 1 on. Look for NaN or damage in its weights"
    ):
        run(vlm, asked(vlm))


def test_a_look_leaves_no_hook_behind():
    vlm = damaged(torch.float16)
    with pytest.raises(ModelError):
        run(vlm, asked(vlm))
    assert not any(module._forward_pre_hooks for module in vlm.model.modules() if "Decoder" in type(module).__name__)


def test_the_command_line_says_it_too(monkeypatch, capsys, tmp_path):
    vlm = damaged(torch.float16)
    vlm.model.save_pretrained(tmp_path)
    vlm.processor.save_pretrained(tmp_path)
    monkeypatch.setattr("sys.argv", ["emointerp", "verify", str(tmp_path), "--dtype", "float16"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == ModelError.exit_code and "from the output of layer 1 on" in capsys.readouterr().err


# agreement


def apart(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The length of the difference, as a share of the length."""
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", tiny_families.NAMES)
def test_all_verbs_in_sixteen_bits_agree_with_float32(name, dtype):
    share, half, whole = HALVES[dtype], narrowed(name, dtype), tiny_families.vlm(name)
    a = whole.anatomy
    edits = [SetHead(1, 2, torch.full((a.d_head,), 2.0)), AddVector(2, torch.linspace(-1, 1, a.d_model), 2.0)]
    with torch.no_grad():
        plain = half.model(**half.placed(asked(half).inputs)).logits[0, -1]
    found, expected = ([run(v, asked(v), some).logits for some in ((), edits)] for v in (half, whole))
    assert torch.equal(found[0], plain) and apart(expected[1], expected[0]) > 2 * share
    swept = sweep(half, asked(half), [edits], lambda logits: logits, progress=False)
    for one, other in zip([*found, swept.baseline[0], swept.values[0, 0]], [*expected, *expected], strict=True):
        assert apart(one, other) < share
    sites = ["residual", "heads", "neurons", "attention"]
    acts, exact = (collect(v, asked(v), sites, edits, wrt=lambda logits: logits[:, 7]) for v in (half, whole))
    for site in sites:
        assert apart(getattr(acts, site), getattr(exact, site)) < share
        assert getattr(acts, site).dtype == dtype
    assert apart(acts.gradients.residual, exact.gradients.residual) < share
    said = [perplexity(v, asked(v), ["The answer is short."])[0] for v in (half, whole)]
    assert said[0] == pytest.approx(said[1], rel=share)
    told = generate(half, asked(half), edits, max_new_tokens=4)
    again = sweep(half, asked(half), [edits], max_new_tokens=4, progress=False).texts[0][0]
    assert again == told or dtype == torch.bfloat16  # whose near-ties may choose another token
