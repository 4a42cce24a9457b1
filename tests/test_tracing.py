"""The tracing engine against plain hooks, on the tiny random models of every family."""

import copy
import gc
import sys
import weakref

import numpy as np
import oracle
import pytest
import tiny_families
import torch
import transformers
from tiny_models import picture

from emointerp.errors import InputError
from emointerp.models import load
from emointerp.tracing import (
    AddVector,
    ScaleAttention,
    ScaleNeurons,
    SetHead,
    SetNeurons,
    SetResidual,
    SweepInterrupted,
    block_attention,
    branches,
    collect,
    cosine,
    generate,
    load_edits,
    logit_difference,
    mean_ablation,
    patch,
    projection,
    resample_ablation,
    run,
    save_edits,
    sweep,
)

EVENT = "The phone rang twice while I was cooking."
CLOSE = 2e-5
families = pytest.mark.parametrize("family", tiny_families.NAMES)
attention = pytest.mark.parametrize("attn", ["sdpa", "eager"])


def vlm_of(family: str, attn: str = "sdpa"):
    return tiny_families.vlm(family, attn)


def prompt_of(vlm, seed: int = 0, text: str = EVENT):
    return vlm.prompt(picture(seed)[:48, :64], text)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def edit_lists(vlm, prompt) -> dict[str, list]:
    """One list of every kind of edit, at last, query, visual and answer positions."""
    a = vlm.anatomy
    heads = {f"head {h}": [SetHead(1, h, random(a.d_head, seed=h))] for h in range(a.n_heads)}
    return heads | {
        "steer": [AddVector(2, random(a.d_model), alpha=2.0)],
        "steer twice": [AddVector(0, random(a.d_model), 0.5), AddVector(0, random(a.d_model, seed=3), -1.0)],
        "residual at the last": [SetResidual(1, random(a.d_model))],
        "residual at the query": [SetResidual(0, random(len(prompt.query), a.d_model), "query")],
        "head at the picture": [SetHead(0, 2, random(len(prompt.visual), a.d_head), "visual")],
        "set neurons": [SetNeurons(1, [3, 5], random(2), ("query", "last"))],
        "scale neurons": [ScaleNeurons(2, range(20), 3.0, ("last", "answer")), ScaleNeurons(2, [7], 0.5)],
        "scale attention": [ScaleAttention(1, 4.0, ("last", "answer"), "visual", heads=[0, 3])],
        "block attention": [block_attention(i, ("query", "last", "answer"), "visual") for i in (1, 2)],
        "mixed": [AddVector(0, random(a.d_model), 0.3, "last"), SetHead(3, 1, random(a.d_head)), ScaleNeurons(3, [0], 2.0)],
    }


def test_layers_named_twice_are_collected_once():
    vlm = vlm_of("llava_clip")
    assert collect(vlm, prompt_of(vlm), layers=[2, 2, 0]).layers == (2, 0)
    assert torch.equal(collect(vlm, prompt_of(vlm), layers=2).residual[0], collect(vlm, prompt_of(vlm)).residual[2])


@families
def test_collecting_equals_hooks(family):
    vlm = vlm_of(family)
    prompt = prompt_of(vlm)
    kept, acts = oracle.caches(vlm, prompt), collect(vlm, prompt, ["residual", "heads", "neurons"])
    for layer in range(vlm.anatomy.n_layers):
        assert torch.equal(acts.residual[layer], kept["residual", layer])
        assert torch.equal(acts.heads[layer].transpose(0, 1).flatten(1), kept["heads", layer])
        assert torch.equal(acts.neurons[layer], kept["neurons", layer])
    assert torch.equal(acts.logits, oracle.logits(vlm, prompt))


@families
@attention
def test_every_edit_equals_hooks(family, attn):
    vlm = vlm_of(family, attn)
    prompt = prompt_of(vlm)
    plain = oracle.logits(vlm, prompt)
    for name, edits in edit_lists(vlm, prompt).items():
        expected = oracle.logits(vlm, prompt, edits)
        assert torch.equal(run(vlm, prompt, edits).logits, expected), name
        assert (expected - plain).abs().max() > 1e-3, f"{name} does nothing"
    assert torch.equal(run(vlm, prompt).logits, plain)


@families
@attention
def test_sweeps_equal_hooks(family, attn):
    vlm = vlm_of(family, attn)
    prompt = prompt_of(vlm)
    lists = edit_lists(vlm, prompt)
    found = sweep(vlm, prompt, lists, lambda logits: logits, progress=False)
    for i, (name, edits) in enumerate(lists.items()):
        assert (found.values[0, i] - oracle.logits(vlm, prompt, edits)).abs().max() < CLOSE, name
    assert (found.baseline[0] - oracle.logits(vlm, prompt)).abs().max() < CLOSE


@families
def test_generation_and_its_sweep_equal_hooks(family):
    vlm = vlm_of(family)
    prompt = prompt_of(vlm)
    lists = edit_lists(vlm, prompt)
    found = sweep(vlm, prompt, lists, max_new_tokens=6, progress=False)
    for i, (name, edits) in enumerate(lists.items()):
        expected = vlm.tokenizer.decode(oracle.tokens(vlm, prompt, edits), skip_special_tokens=True).strip()
        assert generate(vlm, prompt, edits, max_new_tokens=6) == expected, name
        assert found.texts[0][i] == expected, name
    assert found.baseline_texts[0] == vlm.generate(prompt, max_new_tokens=6)


# batches


@families
def test_a_padded_batch_equals_its_prompts_one_by_one(family):
    vlm = vlm_of(family)
    prompts = [prompt_of(vlm, 0), prompt_of(vlm, 1, "It rained."), prompt_of(vlm, 2, "I put the keys on the table and went out.")]
    edits = edit_lists(vlm, prompts[0])["mixed"] + edit_lists(vlm, prompts[0])["block attention"]
    together, acts = run(vlm, prompts, edits), collect(vlm, prompts, ["residual", "heads"], edits)
    for prompt, out, found in zip(prompts, together, acts, strict=True):
        assert (out.logits - oracle.logits(vlm, prompt, edits)).abs().max() < CLOSE
        alone = collect(vlm, prompt, ["residual", "heads"], edits)
        assert found.residual.shape == alone.residual.shape == (vlm.anatomy.n_layers, len(prompt), vlm.anatomy.d_model)
        torch.testing.assert_close(found.residual, alone.residual, atol=CLOSE, rtol=CLOSE)
        torch.testing.assert_close(found.heads, alone.heads, atol=CLOSE, rtol=CLOSE)
    answers = generate(vlm, prompts, edits, max_new_tokens=5)
    assert answers == [generate(vlm, prompt, edits, max_new_tokens=5) for prompt in prompts]


def test_a_sweep_over_prompts_and_over_labels_of_two_columns():
    vlm = vlm_of("qwen2_vl")
    prompts = [prompt_of(vlm, 0), prompt_of(vlm, 1, "It rained.")]
    cells = {(layer, head): [SetHead(layer, head, torch.zeros(vlm.anatomy.d_head))] for layer in range(2) for head in range(4)}
    token = logit_of(5)
    found = sweep(vlm, prompts, cells, token, names=["layer", "head"], progress=False)
    frame = found.to_frame()
    assert list(frame.columns) == ["prompt", "layer", "head", "value", "baseline"] and len(frame) == 16
    for row in frame.itertuples():
        expected = oracle.logits(vlm, prompts[row.prompt], cells[row.layer, row.head])[5]
        assert abs(row.value - expected) < CLOSE and abs(row.baseline - oracle.logits(vlm, prompts[row.prompt])[5]) < CLOSE
    grid = found.grid()
    assert grid.shape == (2, 4) and grid.index.name == "layer" and grid.columns.name == "head"
    effects = frame.value - frame.baseline
    assert abs(grid.loc[1, 2] - effects[(frame.layer == 1) & (frame["head"] == 2)].mean()) < 1e-6


def test_labels_of_different_kinds_stay_as_they_are():
    vlm = vlm_of("qwen2_vl")
    cell = {(1, 2): [SetHead(1, 2, torch.zeros(vlm.anatomy.d_head))], "none": [], (1, 2, "again"): []}
    found = sweep(vlm, prompt_of(vlm), cell, logit_of(5), progress=False)
    assert found.to_frame().intervention.tolist() == [(1, 2), "none", (1, 2, "again")]
    assert float(found.values[0, 1]) == pytest.approx(float(found.baseline[0]), abs=CLOSE)


def logit_of(token: int):
    return lambda logits: logits[:, token]


def test_interventions_that_differ_between_prompts():
    vlm = vlm_of("llava_clip")
    prompts = [prompt_of(vlm, 0), prompt_of(vlm, 1)]
    donors = collect(vlm, prompts[::-1], ["residual"])
    patch = lambda i: {"patched": [SetResidual(1, donors[i].at("residual", 1, prompts[i].last))]}  # noqa: E731
    found = sweep(vlm, prompts, patch, logit_of(3), progress=False)
    for i, prompt in enumerate(prompts):
        assert abs(found.values[i, 0] - oracle.logits(vlm, prompt, patch(i)["patched"])[3]) < CLOSE


# layouts, budget, prefixes


@families
@pytest.mark.parametrize("tree", [True, False])
def test_trees_and_rows_give_the_same(family, tree, monkeypatch):
    """Both layouts, from the last token, the query, the first image token; answers included."""
    monkeypatch.setattr(sys.modules["emointerp.tracing.sweep"], "LONG", 10_000 if tree else 0)
    vlm = vlm_of(family)
    prompt = prompt_of(vlm)
    lists = {k: v for k, v in edit_lists(vlm, prompt).items() if k in ("head 1", "set neurons", "head at the picture", "mixed")}
    lists["steer"] = [AddVector(1, random(vlm.anatomy.d_model), 1.0, ("all", "answer"))]
    found = sweep(vlm, prompt, lists, lambda logits: logits, progress=False)
    texts = sweep(vlm, prompt, lists, max_new_tokens=5, progress=False).texts[0]
    for i, (name, edits) in enumerate(lists.items()):
        assert (found.values[0, i] - oracle.logits(vlm, prompt, edits)).abs().max() < CLOSE, name
        assert texts[i] == vlm.tokenizer.decode(oracle.tokens(vlm, prompt, edits, n=5), skip_special_tokens=True).strip(), name


def test_a_small_budget_makes_more_forwards_and_the_same_numbers():
    vlm = vlm_of("llava_siglip")
    prompt, sizes = prompt_of(vlm), []
    cells = [[AddVector(1, random(vlm.anatomy.d_model, seed=i), 1.0, ("query", "last"))] for i in range(24)]

    def metric(logits):
        sizes.append(len(logits))
        return logits

    whole = sweep(vlm, prompt, cells, metric, progress=False)
    forwards = len(sizes)
    small = sweep(vlm, prompt, cells, metric, progress=False, budget=1)
    assert (whole.values - small.values).abs().max() < CLOSE
    assert sizes[forwards:] == [1] * 25 and forwards < 25


def test_a_prompt_is_read_once_for_several_sweeps(monkeypatch):
    vlm = vlm_of("llava_clip")
    prompt, read, reads = prompt_of(vlm, 9), branches._read, []
    monkeypatch.setattr(branches, "_read", lambda *given: reads.append(1) or read(*given))
    for _ in range(3):
        sweep(vlm, prompt, [[]], logit_of(0), progress=False)
    assert len(reads) == 1
    branches.forget(vlm)
    sweep(vlm, prompt, [[]], logit_of(0), progress=False)
    assert len(reads) == 2


def changed_weight(vlm, prompt):
    layer = vlm.model.get_submodule(f"{vlm.anatomy.layers}.0").mlp
    kept, layer.down_proj.weight = layer.down_proj.weight, torch.nn.Parameter(layer.down_proj.weight.detach() * 1.5)
    return lambda: setattr(layer.down_proj, "weight", kept)


def changed_hook(vlm, prompt):
    layer = vlm.model.get_submodule(f"{vlm.anatomy.layers}.0")
    return layer.register_forward_hook(lambda module, args, out: out * 1.5).remove


def changed_pixels(vlm, prompt):
    kept = prompt.inputs["pixel_values"]
    prompt.inputs["pixel_values"] = kept.flip(-1)
    return lambda: prompt.inputs.update(pixel_values=kept)


@pytest.mark.parametrize("change", [changed_weight, changed_hook, changed_pixels])
def test_a_prefix_does_not_go_stale(change):
    vlm = vlm_of("llava_clip")
    prompt = prompt_of(vlm, 8)
    before = sweep(vlm, prompt, [[]], logit_of(3), progress=False).values
    undo = change(vlm, prompt)
    try:
        after = sweep(vlm, prompt, [[]], logit_of(3), progress=False).values
        assert abs(after - oracle.logits(vlm, prompt)[3]) < CLOSE and abs(after - before) > 1e-3
    finally:
        undo()
    assert torch.equal(sweep(vlm, prompt, [[]], logit_of(3), progress=False).values, before)


def test_what_a_sweep_keeps_is_the_metric_and_not_the_logits():
    """A metric that returns a view would keep every chunk's logits alive."""
    vlm = vlm_of("llava_clip")
    found = sweep(vlm, prompt_of(vlm), [[]] * 8, logit_of(3), progress=False)
    assert found.values.untyped_storage().nbytes() <= 4 * 9
    kept = []

    def first(logits):
        kept.append(weakref.ref(logits))
        return logits[:, 0]

    sweep(vlm, prompt_of(vlm), [[]] * 8, first, progress=False, budget=1)
    assert len(kept) == 9 and all(ref() is None for ref in kept)


def test_a_prefix_is_read_again_when_weights_change():
    vlm = vlm_of("llava_clip")
    prompt, cells = prompt_of(vlm, 7), [[SetHead(2, 0, torch.zeros(vlm.anatomy.d_head))]]
    sweep(vlm, prompt, cells, logit_of(3), progress=False)
    weights = vlm.model.get_submodule(f"{vlm.anatomy.layers}.0").mlp.down_proj.weight
    kept = weights.detach().clone()
    try:
        with torch.no_grad():
            weights.mul_(1.5)
        found = sweep(vlm, prompt, cells, logit_of(3), progress=False)
        assert abs(found.values[0, 0] - oracle.logits(vlm, prompt, cells[0])[3]) < CLOSE
    finally:
        with torch.no_grad():
            weights.copy_(kept)


@families
def test_metrics_of_the_residual_stream(family):
    vlm = vlm_of(family)
    prompt, direction = prompt_of(vlm), random(vlm.anatomy.d_model)
    edits = [AddVector(1, random(vlm.anatomy.d_model, seed=5))]
    h = collect(vlm, prompt, ["residual"], edits, layers=[2], positions="last").residual[0, 0]
    for metric, expected in (
        (projection(direction, 2), h @ direction / direction.norm()),
        (cosine(direction, 2), h @ direction / direction.norm() / h.norm()),
    ):
        found = sweep(vlm, prompt, [edits], metric, progress=False)
        assert abs(found.values[0, 0] - expected) < CLOSE


@families
@pytest.mark.parametrize("ended", [0, 1])
def test_branches_that_end_at_different_steps(family, ended, monkeypatch):
    """Three end tokens, so that branches end early, one by one; a repetition penalty; a processor that forbids a token."""
    monkeypatch.setattr("emointerp.tracing.branches.ENDED", ended)  # the keys of those that ended go at once, or never
    vlm = vlm_of(family)
    prompt, config = prompt_of(vlm), vlm.model.generation_config
    lists = [[AddVector(1, random(vlm.anatomy.d_model, seed=i), 2.0, ("last", "answer"))] for i in range(12)]
    plain = [oracle.tokens(vlm, prompt, edits, n=8) for edits in lists]
    ends = [plain[i][k] for i, k in ((0, 1), (3, 3), (7, 5))]
    banned = max((t for some in plain for t in some if t not in ends), key=lambda t: sum(some.count(t) for some in plain))

    def forbid(ids, scores):
        return scores.index_fill(1, torch.tensor([banned]), -torch.inf)

    kept = config.eos_token_id, config.repetition_penalty
    config.eos_token_id, config.repetition_penalty = ends, 1.3
    try:
        found = sweep(vlm, prompt, lists, max_new_tokens=8, logits_processor=[forbid], progress=False).texts[0]
        expected = [oracle.tokens(vlm, prompt, edits, n=8, logits_processor=[forbid]) for edits in lists]
    finally:
        config.eos_token_id, config.repetition_penalty = kept
    assert len({len(some) for some in expected}) > 1
    assert list(found) == [vlm.tokenizer.decode(some, skip_special_tokens=True).strip() for some in expected]


@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_sixteen_bits(attn):
    vlm = load(copy.deepcopy(vlm_of("qwen2_vl", attn).model).to(torch.bfloat16), processor=vlm_of("qwen2_vl").processor)
    prompt = prompt_of(vlm)
    lists = {k: v for k, v in edit_lists(vlm, prompt).items() if k in ("head 1", "steer", "scale attention", "set neurons")}
    found = sweep(vlm, prompt, lists, lambda logits: logits, progress=False)
    assert found.values.dtype == torch.float32
    for i, (name, edits) in enumerate(lists.items()):
        expected = oracle.logits(vlm, prompt, edits)
        assert (run(vlm, prompt, edits).logits - expected).abs().max() < 0.1, name
        assert (found.values[0, i] - expected.float()).abs().max() < 0.1, name


def test_a_model_whose_layers_all_slide():
    """LLaVA over Mistral, with a window shorter than the prompt: its configuration names no layer types."""
    text = transformers.MistralConfig(
        vocab_size=len(vlm_of("llava_clip").tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=12, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = copy.deepcopy(vlm_of("llava_clip").model.config)
    config.text_config = text
    torch.manual_seed(0)
    model = tiny_families.widened(transformers.AutoModelForImageTextToText.from_config(config)).eval()
    vlm = load(model, processor=vlm_of("llava_clip").processor)
    prompt = prompt_of(vlm)
    assert vlm.anatomy.window == 12 < len(prompt)
    lists = edit_lists(vlm, prompt) | {"mixed": [AddVector(0, random(32), 0.3, "last")]}
    found = sweep(vlm, prompt, lists, lambda logits: logits, progress=False)
    for i, (name, edits) in enumerate(lists.items()):
        assert (found.values[0, i] - oracle.logits(vlm, prompt, edits)).abs().max() < CLOSE, name


# gradients and attention


@families
def test_gradients_equal_autograd_by_hand(family):
    """A small step along each gradient changes the metric as the gradient says; and the last layer's is autograd's own."""
    vlm = vlm_of(family, "eager")
    prompt = prompt_of(vlm)
    acts = collect(vlm, prompt, ["residual", "heads", "neurons"], wrt=logit_of(3))
    plain = oracle.logits(vlm, prompt).double()[3]
    for layer in (0, vlm.anatomy.n_layers - 1):
        slope = acts.gradients.at("residual", layer, prompt.last)
        step = 1e-2 * slope / slope.norm()
        moved = oracle.logits(vlm, prompt, [AddVector(layer, step, 1.0, "last")]).double()[3]
        assert (moved - plain) / 1e-2 == pytest.approx(slope.norm().item(), rel=0.05, abs=2e-3)
        head, wanted = acts.at("heads", layer, prompt.last), acts.gradients.at("heads", layer, prompt.last)
        changed = head[1] + 1e-2 * wanted[1] / wanted[1].norm()
        moved = oracle.logits(vlm, prompt, [SetHead(layer, 1, changed)]).double()[3]
        assert (moved - plain) / 1e-2 == pytest.approx(wanted[1].norm().item(), rel=0.05, abs=2e-3)
    assert torch.equal(acts.residual, collect(vlm, prompt).residual)


@families
def test_attention_weights(family):
    vlm = vlm_of(family, "sdpa")
    prompt = prompt_of(vlm)
    acts = collect(
        vlm, prompt, ["attention", "heads"], [block_attention(2, "last", "visual", heads=[1])], positions=["query", "last"]
    )
    weights = acts.attention
    assert weights.shape == (vlm.anatomy.n_layers, vlm.anatomy.n_heads, len(prompt.query) + 1, len(prompt))
    assert torch.allclose(weights.sum(-1), torch.ones(weights.shape[:-1]), atol=1e-5)
    to_picture = weights[:, :, -1, list(prompt.visual)].sum(-1)
    assert to_picture[2, 1] == 0 and (to_picture[2, 0] > 0 or vlm.anatomy.window)
    whole = collect(vlm, prompt, ["attention"]).attention
    with torch.no_grad():
        eager = vlm_of(family, "eager").model(**prompt.inputs, output_attentions=True).attentions
    torch.testing.assert_close(whole, torch.cat(eager), atol=CLOSE, rtol=1e-4)
    config = vlm.model.get_submodule(vlm.anatomy.family.language).config
    assert config._attn_implementation == "sdpa"
    assert torch.equal(oracle.logits(vlm, prompt), oracle.logits(vlm_of(family), prompt))


# patching and ablation


@families
def test_patching_everything_gives_the_donor(family):
    """All tokens' residual stream after a layer, taken from another picture, gives that picture's logits."""
    vlm = vlm_of(family)
    prompt, other = prompt_of(vlm, 0), prompt_of(vlm, 1)
    donor = collect(vlm, other, ["residual", "heads", "neurons"])
    edit = patch(donor, 2, positions=range(len(prompt)))
    if family != "qwen3_vl":  # whose visual features of deeper layers come in between the first layers
        torch.testing.assert_close(run(vlm, prompt, [edit]).logits, donor.logits, atol=CLOSE, rtol=CLOSE)
    some = [prompt.visual[0], prompt.last]
    for edit in (patch(donor, 1, head=2, positions=some), patch(donor, 1, neurons=[3, 9], positions=some)):
        assert torch.equal(run(vlm, prompt, [edit]).logits, oracle.logits(vlm, prompt, [edit]))
    assert torch.equal(patch(donor, 1, head=2, positions=some).value, donor.heads[1, 2, some])


def test_ablations_take_the_mean_or_one_of_the_donors():
    vlm = vlm_of("llava_clip")
    donors = collect(vlm, [prompt_of(vlm, i) for i in range(3)], ["residual", "heads", "neurons"], positions="last")
    rows = torch.stack([d.heads[1, 3, 0] for d in donors])
    assert torch.allclose(mean_ablation(donors, 1, head=3).value, rows.mean(0))
    assert torch.allclose(mean_ablation(donors, 0, neurons=[4]).value, torch.stack([d.neurons[0, 0, [4]] for d in donors]).mean(0))
    drawn = {seed: resample_ablation(donors, 1, head=3, seed=seed).value for seed in range(12)}
    assert all((rows == value).all(1).any() for value in drawn.values())
    assert len({tuple(value.tolist()) for value in drawn.values()}) == 3
    assert resample_ablation(donors, 1, seed=4) == resample_ablation(donors, 1, seed=4)


# the model stays as it was


@families
def test_the_model_is_bit_equal_afterwards(family):
    vlm = vlm_of(family)
    prompt = prompt_of(vlm)
    before, weights = oracle.logits(vlm, prompt), {k: v.clone() for k, v in vlm.model.state_dict().items()}
    for edits in edit_lists(vlm, prompt).values():
        run(vlm, prompt, edits)
    sweep(vlm, prompt, edit_lists(vlm, prompt), max_new_tokens=2, progress=False)
    collect(vlm, prompt, ["attention"], wrt=logit_of(0))
    assert torch.equal(oracle.logits(vlm, prompt), before)
    after = vlm.model.state_dict()
    assert list(after) == list(weights) and all(torch.equal(after[k], v) for k, v in weights.items())
    assert all(p.grad is None for p in vlm.model.parameters())


def test_an_error_or_ctrl_c_in_the_middle_leaves_nothing_behind():
    vlm = vlm_of("llava_clip")
    prompt = prompt_of(vlm)
    before, calls = oracle.logits(vlm, prompt), []

    def stopped(logits):
        calls.append(len(logits))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return logits[:, 0]

    starts = ["last"] * 3 + ["visual"] * 2
    lists = [[AddVector(0, random(vlm.anatomy.d_model), 1.0, where)] for where in starts]
    with pytest.raises(SweepInterrupted, match=r"what was finished is in `\.partial`") as caught:
        sweep(vlm, prompt, lists, stopped, progress=False)
    partial = caught.value.partial
    assert partial.values[0, :3].isfinite().all() and partial.values[0, 3:].isnan().all()
    assert torch.equal(oracle.logits(vlm, prompt), before)


def test_a_model_is_freed_with_its_vlm():
    vlm = load(copy.deepcopy(vlm_of("llava_clip").model), processor=vlm_of("llava_clip").processor)
    gone = weakref.ref(vlm.model)
    sweep(vlm, prompt_of(vlm), [[]], logit_of(0), progress=False)
    del vlm
    gc.collect()
    assert gone() is None


# edits as values


def test_edits_print_compare_and_travel(tmp_path):
    vlm = vlm_of("llava_clip")
    edits = [edit for some in edit_lists(vlm, prompt_of(vlm)).values() for edit in some]
    save_edits(edits, tmp_path / "edits.json")
    again = load_edits(tmp_path / "edits.json")
    assert again == edits and [repr(e) for e in again] == [repr(e) for e in edits]
    shared = random(4)
    save_edits([AddVector(0, shared, 0.5), AddVector(1, shared, 2)], tmp_path / "alpha_0.5")
    save_edits([AddVector(0, -shared)], tmp_path / "alpha_0.7")
    assert torch.equal(load_edits(tmp_path / "alpha_0.5")[1].vector, shared)
    kept = AddVector(np.int64(0), shared, np.float32(2), (np.int64(3), "last"))
    shared.mul_(0)
    assert kept.vector.abs().sum() > 0 and type(kept.layer) is int and kept.positions == (3, "last")
    assert edits[0] != edits[1] and hash(again[0]) == hash(edits[0])
    assert repr(SetHead(1, 2, torch.tensor([3.0, 4.0]))) == "SetHead(layer=1, head=2, value=<2, norm 5>, positions=('last',))"
    assert AddVector(1, torch.ones(3)) != AddVector(1, torch.ones(3), alpha=2) != "AddVector"


def test_no_edits_and_edits_of_no_effect_are_bit_equal():
    vlm = vlm_of("qwen3_vl")
    prompt = prompt_of(vlm)
    plain = run(vlm, prompt).logits
    assert torch.equal(run(vlm, prompt, [AddVector(1, random(vlm.anatomy.d_model), alpha=0.0)]).logits, plain)
    assert torch.equal(run(vlm, prompt, [ScaleNeurons(1, [0, 1], 1.0)]).logits, plain)


def test_two_adds_and_two_scalings_at_one_place_both_count():
    vlm = vlm_of("llava_clip")
    prompt, v = prompt_of(vlm), random(vlm.anatomy.d_model)
    twice, once = [AddVector(1, v), AddVector(1, v, 2.0)], [AddVector(1, v, 3.0)]
    assert torch.allclose(run(vlm, prompt, twice).logits, run(vlm, prompt, once).logits, atol=1e-5)
    twice, once = [ScaleNeurons(1, [4], 2.0), ScaleNeurons(1, [4, 5], 3.0)], [ScaleNeurons(1, [4], 6.0), ScaleNeurons(1, [5], 3.0)]
    assert torch.allclose(run(vlm, prompt, twice).logits, run(vlm, prompt, once).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: AddVector(-1, torch.ones(3)), "AddVector: layer is -1; expected a number from 0 up"),
        (lambda a: AddVector(4, torch.ones(a.d_model)), "layer 4 is out of range; this model has layers 0 to 3"),
        (lambda a: SetHead(0, 4, torch.ones(a.d_head)), "SetHead: head 4 is out of range; a layer of this model has heads 0 to 3"),
        (lambda a: ScaleNeurons(0, [48], 2.0), "neuron 48 is out of range; a layer of this model has neurons 0 to 47"),
        (lambda a: ScaleAttention(0, 2.0, heads=[9]), "ScaleAttention: head 9 is out of range"),
        (lambda a: AddVector(0, torch.ones(7)), "AddVector: vector has width 7, but this model's residual have 32"),
        (lambda a: SetHead(0, 1, torch.ones(7)), "SetHead: value has width 7"),
        (lambda a: AddVector(0, torch.ones(a.d_model, dtype=torch.int64)), "vector has dtype torch.int64; expected floating-point"),
        (lambda a: AddVector(0, torch.ones(a.d_model, device="meta")), "lies on the meta device"),
        (lambda a: AddVector(0, torch.full((a.d_model,), torch.nan)), "vector holds NaN or infinity"),
        (lambda a: AddVector(0, torch.ones(2, a.d_model)), r"vector has shape \[2, 32\]; expected a vector"),
        (lambda a: AddVector(0, torch.ones(a.d_model), float("nan")), "alpha is nan; expected a finite number"),
        (
            lambda a: AddVector(0, torch.ones(a.d_model), 1.0, "end"),
            "'end' is no position; expected a token index or one of visual",
        ),
        (lambda a: AddVector(0, torch.ones(a.d_model), 1.0, 4000), "Position 4000 is outside this prompt of"),
        (lambda a: AddVector(0, torch.ones(a.d_model), 1.0, ()), "no positions are given"),
        (lambda a: SetResidual(0, torch.ones(3, a.d_model), "query"), "values for 3 positions, but"),
        (lambda a: SetResidual(0, torch.ones(1, a.d_model), ("last", "answer")), "cannot go with 'answer'"),
        (lambda a: SetNeurons(0, [1, 2], torch.ones(3)), "2 neurons, but values for 3"),
        (lambda a: ScaleNeurons(0, [1, 1], 2.0), "expected different numbers"),
        (lambda a: block_attention(1, "last", "all"), "leaves a token nothing to attend to; leave it at least its own position"),
        (lambda a: ScaleAttention(0, -1.0), "factor is -1.0; expected 0"),
        (lambda a: ScaleAttention(0, 1.0, "last", "answer"), "keys are tokens of the prompt"),
    ],
)
def test_edits_that_are_refused(make, message):
    vlm = vlm_of("llava_clip")
    with pytest.raises(InputError, match=message):
        run(vlm, prompt_of(vlm), [make(vlm.anatomy)])


def test_contradictions_are_refused():
    vlm = vlm_of("llava_clip")
    a, prompt = vlm.anatomy, prompt_of(vlm)
    both = [SetHead(1, 2, torch.ones(a.d_head)), SetHead(1, 2, torch.zeros(a.d_head), ("query", "last"))]
    with pytest.raises(InputError, match=r"SetHead and SetHead contradict each other at layer 1, heads 2, position \d+; keep one"):
        run(vlm, prompt, both)
    with pytest.raises(InputError, match="SetResidual and AddVector contradict each other at layer 1, residual, position"):
        sweep(vlm, prompt, [[SetResidual(1, torch.ones(a.d_model)), AddVector(1, torch.ones(a.d_model))]], logit_of(0))
    run(
        vlm, prompt, [SetHead(1, 2, torch.ones(a.d_head)), SetHead(1, 3, torch.ones(a.d_head)), AddVector(1, torch.ones(a.d_model))]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vlm, p: collect(vlm, p, ["resid"]), "'resid' is nothing to collect; expected some of residual, heads"),
        (lambda vlm, p: collect(vlm, p, layers=[]), "No layers are named; this model has layers 0 to 3"),
        (lambda vlm, p: collect(vlm, p, positions=[]), "No positions are named"),
        (lambda vlm, p: sweep(vlm, p, [[]], projection(torch.ones(32), 9)), "Layer 9 is out of range"),
        (lambda vlm, p: sweep(vlm, p, [[]], max_new_tokens=1, progress=False).grid(), "A grid needs one number"),
        (lambda vlm, p: logit_difference(vlm, "uncle", "uncle"), "begin with the same token"),
        (lambda vlm, p: collect(vlm, p, layers=[9]), "Layer 9 is out of range; this model has layers 0 to 3"),
        (lambda vlm, p: collect(vlm, p, positions="vision"), "A prompt has no span 'vision'"),
        (lambda vlm, p: collect(vlm, p, wrt=lambda logits: logits), "a gradient needs one"),
        (lambda vlm, p: collect(vlm, p).at("heads", 0, 0), "'heads' was not collected here; ask for it"),
        (lambda vlm, p: patch(collect(vlm, p), 0, head=1, neurons=[2], positions=[0]), "A head and neurons came together"),
        (
            lambda vlm, p: patch(collect(vlm, p, ["heads"]), 0, head=9, positions=[0]),
            "Head 9 is out of range; the donor has heads 0 to 3",
        ),
        (
            lambda vlm, p: patch(collect(vlm, p), 0, positions=[4000]),
            "Layer 0, position 4000 was not collected here; there are layers 0 to 3, positions 0 to",
        ),
        (lambda vlm, p: mean_ablation([], 0), "There are no donors"),
        (lambda vlm, p: run(vlm, []), "There are no prompts"),
        (lambda vlm, p: sweep(vlm, p, [[]]), "either a metric or max_new_tokens"),
        (lambda vlm, p: sweep(vlm, p, [], logit_of(0)), "There are no interventions"),
        (lambda vlm, p: sweep(vlm, [p, p], lambda i: {i: []}, logit_of(0)), "other labels for one prompt than for another"),
        (lambda vlm, p: sweep(vlm, p, [[]], lambda logits: logits.sum()), r"gave shape \[\] for 2 forwards"),
        (lambda vlm, p: generate(vlm, p, [AddVector(0, torch.ones(32))], num_beams=2), "Edits go with one answer a prompt"),
    ],
)
def test_requests_that_are_refused(call, message):
    vlm = vlm_of("llava_clip")
    with pytest.raises(InputError, match=message):
        call(vlm, prompt_of(vlm))


@pytest.mark.parametrize("made", [projection, cosine])
@pytest.mark.parametrize("direction", [torch.zeros(32), torch.full((32,), torch.nan)])
def test_a_direction_that_points_nowhere_measures_nothing(made, direction):
    """Its metric was nan of all runs, or 0."""
    with pytest.raises(InputError, match="The direction has length .*; expected one that points somewhere"):
        made(direction, 1)
