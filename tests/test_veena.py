"""VEENA as a value, as edits and left on: against attention written by hand, plain hooks, and forwards without a cache."""

import copy
import json
import math
import sys
from dataclasses import replace

import numpy as np
import oracle
import pandas as pd
import pytest
import tiny_families
import torch
from tiny_models import picture

from emointerp import veena
from emointerp.circuit import Circuit, Head, Neuron
from emointerp.emotions import BASIC, score, words_for
from emointerp.errors import InputError
from emointerp.evaluation import conflict_pairs
from emointerp.heads import amplification_map, head_map
from emointerp.lens import emotion_tokens
from emointerp.models import VLM, load
from emointerp.pairs import Pair, world_pairs
from emointerp.tracing import AddVector, ScaleAttention, ScaleNeurons, collect, generate, perplexity, run, sweep
from emointerp.veena import Veena, adaptive, confidence, find_circuit, fit, on, predicted, signs

EVENT = "The phone rang twice while I was cooking."
TEXTS = (EVENT, "It rained.", "I put the keys on the table and went out.")
CLOSE = 2e-5
BETA, GAMMA = 6.0, 3.0
WORDS = {"up": ["uncle", "friend"], "down": ["morning", "church", "teacher"]}
families = pytest.mark.parametrize("family", tiny_families.NAMES)
forms = pytest.mark.parametrize("form", veena.value.FORMS)


def vlm_of(family: str = "llava_clip", attn: str = "sdpa"):
    return tiny_families.vlm(family, attn)


def prompts_of(vlm, n: int = 3) -> list:
    return [vlm.prompt(picture(i)[:48, :64], TEXTS[i]) for i in range(n)]


def whole(**options) -> Veena:
    """Heads and neurons on both sides of l_emo = 1."""
    given = {"upstream": [(0, 1), (1, 0), (1, 3)], "downstream": [(2, 2), (3, 0), (3, 1)], "neurons": [(1, 4), (2, 7), (2, 40)]}
    return Veena(**given | {"beta": BETA, "gamma": GAMMA, "l_emo": 1} | options)


def vee(**options) -> Veena:
    return whole(neurons=(), **options)


def hooks_of(vlm) -> int:
    """How many hooks the model has, in all of its modules; nnsight's own are there from the first trace on."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs")
    return sum(len(getattr(module, kind)) for module in vlm.model.modules() for kind in kinds)


# attention by hand


def by_hand(vlm, made: Veena, prompt, renormalise: bool, kept: dict | None = None):
    """Eager attention with the softmax's weights scaled by loops: upstream rows of Q, downstream rows from the last token on."""
    layers = vlm.model.get_submodule(vlm.anatomy.layers)
    of = {id(layer.self_attn): i for i, layer in enumerate(layers)}
    module_of = sys.modules[type(layers[0].self_attn).__module__]
    plain = module_of.eager_attention_forward
    n = len(prompt)

    def attend(module, query, key, value, attention_mask=None, scaling=None, **kwargs):
        if id(module) not in of:  # the vision tower's
            return plain(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        i, groups = of[id(module)], query.shape[1] // key.shape[1]
        key, values = (t.repeat_interleave(groups, 1) for t in (key, value))
        scores = query @ key.transpose(2, 3) * scaling + (0 if attention_mask is None else attention_mask)
        weights = scores.softmax(-1)
        rows, columns = weights.shape[-2:]
        first, gone = (0 if rows > 1 else n), max(0, (n if rows > 1 else n + 1) - columns)
        for layer, head in (*made.upstream, *made.downstream):
            for t in range(rows):
                at = first + t
                acts = at in prompt.query if (layer, head) in made.upstream else at >= prompt.last
                if layer == i and acts:
                    for p in prompt.visual:
                        if p >= gone:
                            weights[:, head, t, p - gone] *= made.beta
        if renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        if kept is not None:
            kept[i] = weights
        return (weights @ values).transpose(1, 2).contiguous(), weights

    return module_of, attend


@forms
@families
def test_attention_is_scaled_as_by_hand(family, form, monkeypatch):
    vlm = vlm_of(family, "eager")
    prompt, value, kept = prompts_of(vlm, 1)[0], vee(form=form), {}
    acts = collect(vlm, prompt, ["attention"], value.edits())
    found = run(vlm_of(family), prompt, value.edits()).logits
    plain = oracle.logits(vlm, prompt)
    module, attend = by_hand(vlm, value, prompt, form == "scores", kept)
    monkeypatch.setattr(module, "eager_attention_forward", attend)
    expected = oracle.logits(vlm, prompt)
    assert (acts.attention[0] - kept[0][0]).abs().max() < 1e-6  # the first edited layer, so its inputs are the same to the bit
    for layer in range(4):
        assert (acts.attention[layer] - kept[layer][0]).abs().max() < CLOSE
    assert (found - expected).abs().max() < 1e-4 and (found - plain).abs().max() > 1e-3


@forms
@pytest.mark.parametrize("family", ["llava_siglip", "qwen3_vl", "gemma3"])
def test_answers_are_told_as_by_hand(family, form, monkeypatch):
    """Greedy, with the cache, left on, by edits, and as branches of a sweep; sdpa against eager attention by hand."""
    vlm, eager = vlm_of(family), vlm_of(family, "eager")
    prompt, value = prompts_of(vlm, 1)[0], vee(form=form, beta=20.0)
    with on(vlm, value):
        told = vlm.generate(prompt, max_new_tokens=6)
    found = sweep(vlm, prompt, {"a": value.edits(), "b": vee(beta=2.0).edits()}, max_new_tokens=6, progress=False)
    assert generate(vlm, prompt, value.edits(), max_new_tokens=6) == told == found.texts[0][0]
    module, attend = by_hand(eager, value, prompt, form == "scores")
    monkeypatch.setattr(module, "eager_attention_forward", attend)
    assert told == eager.generate(prompt, max_new_tokens=6)


def test_weights_after_the_softmax_sum_to_more_than_one_and_may_be_cut():
    vlm = vlm_of("llava_clip", "eager")
    prompt = prompts_of(vlm, 1)[0]
    plain = collect(vlm, prompt, ["attention"]).attention[2, 1, prompt.last]
    for factor in (2.0, 0.0):
        edit = ScaleAttention(2, factor, "last", "visual", [1], renormalise=False)
        scaled = collect(vlm, prompt, ["attention"], [edit]).attention[2, 1, prompt.last]
        looked = plain[list(prompt.visual)].sum()
        assert scaled.sum() == pytest.approx(float(1 + (factor - 1) * looked), abs=1e-6) and looked > 0.01
    twice = [ScaleAttention(2, f, "last", "visual", [1], renormalise=False) for f in (2.0, 3.0)]
    assert torch.allclose(
        collect(vlm, prompt, ["attention"], twice).attention[2, 1, prompt.last, prompt.visual[0]], 6 * plain[prompt.visual[0]]
    )


@torch.no_grad()
def steps(vlm, prompt, tokens: list[int]) -> list[dict[int, torch.Tensor]]:
    """Attention weights of each layer in the prompt's forward and in those of some given tokens on its cache, by plain hooks."""
    found, cache = [], None
    layers = vlm.model.get_submodule(vlm.anatomy.layers)
    inputs = vlm.placed(prompt.inputs)
    for step in range(len(tokens) + 1):
        kept: dict[int, torch.Tensor] = {}
        hooks = [
            layer.self_attn.register_forward_hook(lambda _m, _a, out, i=i, kept=kept: kept.update({i: out[1][0]}))
            for i, layer in enumerate(layers)
        ]
        if step:
            inputs = {"input_ids": torch.tensor([[tokens[step - 1]]]), "past_key_values": cache}
        cache = vlm.model(**inputs, use_cache=True).past_key_values
        for hook in hooks:
            hook.remove()
        found.append(kept)
    return found


def test_upstream_heads_act_while_the_prompt_is_read_and_downstream_heads_while_the_answer_is_told():
    vlm = vlm_of("llava_clip", "eager")
    prompt, tokens = prompts_of(vlm, 1)[0], [7, 9]
    plain = steps(vlm, prompt, tokens)
    query, visual = list(prompt.query), list(prompt.visual)

    with on(vlm, Veena(upstream=[(1, 2)], beta=BETA)):
        read, *answer = steps(vlm, prompt, tokens)
    changed = (read[1] != plain[0][1]).any(-1)
    assert changed[2, query].all() and changed.sum() == len(query)  # no other head, and no other row: not V, not L
    assert all(torch.equal(after[1], before[1]) for after, before in zip(answer, plain[1:], strict=True))

    with on(vlm, Veena(downstream=[(2, 0)], beta=1.0, beta_decode=BETA)):
        read, *answer = steps(vlm, prompt, tokens)
    changed = (read[2] != plain[0][2]).any(-1)
    assert changed[0, prompt.last] and changed.sum() == 1
    for after, before in zip(answer, plain[1:], strict=True):
        expected = before[2].clone()
        expected[0, 0, visual] *= BETA
        expected[0] /= expected[0].sum()
        assert (after[2] - expected).abs().max() < 1e-6 and torch.equal(after[2][1:], before[2][1:])


def test_upstream_heads_may_act_at_the_last_token_too():
    vlm = vlm_of("llava_clip", "eager")
    prompt = prompts_of(vlm, 1)[0]
    plain, both = (
        collect(vlm, prompt, ["attention"], Veena(upstream=[(1, 2)], beta=b, prefill_at=("query", "last")).edits()).attention[1]
        for b in (1, 2)
    )
    rows = (plain != both).any(-1).nonzero().tolist()
    assert rows == [[2, t] for t in (*prompt.query, prompt.last)]


# neurons


@families
def test_neurons_are_scaled_from_the_last_prompt_token_on(family):
    vlm = vlm_of(family)
    prompt, value = prompts_of(vlm, 1)[0], whole(upstream=(), downstream=())
    hooked = [ScaleNeurons(1, [4], GAMMA), ScaleNeurons(2, [7, 40], GAMMA)]
    assert value.edits() == hooked
    expected = vlm.tokenizer.decode(oracle.tokens(vlm, prompt, hooked, n=6), skip_special_tokens=True).strip()
    with on(vlm, value):
        assert vlm.generate(prompt, max_new_tokens=6) == expected
        with torch.no_grad():
            logits = vlm.model(**vlm.placed(prompt.inputs), use_cache=False, logits_to_keep=1).logits[0, -1]
    assert torch.equal(logits, oracle.logits(vlm, prompt, hooked))


def test_signs_of_neurons():
    vlm = vlm_of()
    prompts, value = prompts_of(vlm), whole()
    m = np.array([[oracle.caches(vlm, p)["neurons", layer][p.last, n] for layer, n in value.neurons] for p in prompts])
    frame = signs(vlm, prompts, value)
    assert frame[["layer", "neuron"]].to_numpy().tolist() == [[1, 4], [2, 7], [2, 40]]
    assert np.allclose(frame["mean"], m.mean(0)) and np.allclose(frame.positive, (m > 0).mean(0))


# left on


@families
def test_left_on_equals_plain_hooks_one_by_one_and_in_batches(family):
    vlm = vlm_of(family)
    prompts, value = prompts_of(vlm), whole()
    expected = [vlm.tokenizer.decode(oracle.tokens(vlm, p, value.edits(), n=5), skip_special_tokens=True).strip() for p in prompts]
    plain = vlm.generate(prompts, max_new_tokens=5)
    with on(vlm, value):
        alone = [vlm.generate(p, max_new_tokens=5) for p in prompts]
        assert alone == expected != plain
        assert vlm.generate(prompts, max_new_tokens=5) == expected
        assert generate(vlm, prompts, max_new_tokens=5) == expected
    assert vlm.generate(prompts, max_new_tokens=5) == plain


def test_sampled_answers_and_beams():
    vlm = vlm_of("qwen2_vl")
    prompts, value, sampled = prompts_of(vlm), whole(), {"temperature": 1.0, "seed": 3, "max_new_tokens": 8}
    with oracle.hooked(vlm, value.edits(), prompts[0]):
        expected = vlm.generate(prompts[0], **sampled)
    with on(vlm, value):
        assert vlm.generate(prompts[0], **sampled) == expected
        together = vlm.generate(prompts, **sampled)
        beams = vlm.generate(prompts[0], num_beams=3, max_new_tokens=6)
    assert together == generate(vlm, prompts, value.edits(), **sampled)
    repeated = copy.copy(prompts[0])
    with oracle.hooked(vlm, value.edits(), repeated, row=slice(None)):
        assert beams == vlm.generate(prompts[0], num_beams=3, max_new_tokens=6)


def test_other_edits_go_with_it():
    vlm = vlm_of()
    prompts, value = prompts_of(vlm), whole()
    push = [AddVector(1, torch.ones(vlm.anatomy.d_model), 0.7)]
    both = [*push, *value.edits()]
    expected = [vlm.tokenizer.decode(oracle.tokens(vlm, p, both, n=5), skip_special_tokens=True).strip() for p in prompts]
    logits = oracle.logits(vlm, prompts[0], both)
    with on(vlm, value):
        assert generate(vlm, prompts, push, max_new_tokens=5) == expected != vlm.generate(prompts, max_new_tokens=5)
        assert torch.equal(run(vlm, prompts[0], push).logits, logits)


@pytest.mark.parametrize("family", ["llava_clip", "llava_siglip"])
def test_with_the_cache_as_without(family):
    """A full forward a step, with what was said so far behind the prompt, and plain hooks at explicit positions."""
    vlm = vlm_of(family)
    prompt, value, said = prompts_of(vlm, 1)[0], whole(), []
    for _ in range(6):
        ids = torch.cat([prompt.input_ids, torch.tensor([said], dtype=torch.long)], 1)
        longer = replace(prompt, inputs=prompt.inputs | {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        telling = tuple(range(prompt.last, ids.shape[1]))
        edits = [
            replace(e, query=prompt.query if e.query == ("query",) else telling)
            if isinstance(e, ScaleAttention)
            else replace(e, positions=telling)
            for e in value.edits()
        ]
        said.append(int(oracle.logits(vlm, longer, edits).argmax()))
    with on(vlm, value), torch.no_grad():
        told = vlm.model.generate(**vlm.placed(prompt.inputs), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    assert told[0, len(prompt) :].tolist()[:6] == said


# gone without a trace


@pytest.mark.parametrize("adapted", [None, "prompt", "step"])
def test_nothing_is_left_behind(adapted, monkeypatch):
    set_shares(monkeypatch, lambda last: [(1.0, 0.0)] * len(last))
    vlm = vlm_of("gemma3")
    prompts = prompts_of(vlm)
    run(vlm, prompts[0])  # nnsight sets hooks of its own, once
    before, own, plain = hooks_of(vlm), set(vars(vlm)), oracle.logits(vlm, prompts[0])
    configs = [module.config for module in vlm.model.modules() if hasattr(module, "config")]
    for form in veena.value.FORMS:
        with on(vlm, whole(form=form), adaptive=adapted, words=WORDS):
            vlm.generate(prompts, max_new_tokens=3)
            assert hooks_of(vlm) > before and not torch.equal(oracle.logits(vlm, prompts[0]), plain)
        assert hooks_of(vlm) == before and torch.equal(oracle.logits(vlm, prompts[0]), plain)
        assert all(a is b for a, b in zip(configs, (m.config for m in vlm.model.modules() if hasattr(m, "config")), strict=True))
    assert set(vars(vlm)) == own


def test_errors_leave_nothing_behind():
    vlm = vlm_of()
    prompt, value = prompts_of(vlm, 1)[0], whole(form="weights")
    run(vlm, prompt)
    before, plain = hooks_of(vlm), oracle.logits(vlm, prompt)

    def fails(*_):
        raise RuntimeError("out of memory, say")

    with pytest.raises(KeyError), on(vlm, value):
        vlm.generate(prompt, max_new_tokens=3)
        raise KeyError
    assert hooks_of(vlm) == before
    broken = vlm.model.get_submodule(f"{vlm.anatomy.layers}.2").mlp.register_forward_hook(fails)
    with on(vlm, value):
        with pytest.raises(RuntimeError, match="say"):
            vlm.generate(prompt, max_new_tokens=3)
        broken.remove()
        answer = vlm.generate(prompt, max_new_tokens=3)
    assert answer == generate(vlm, prompt, value.edits(), max_new_tokens=3)
    assert hooks_of(vlm) == before and torch.equal(oracle.logits(vlm, prompt), plain)


def test_values_within_one_another_act_together():
    vlm = vlm_of()
    prompt, outer, inner = prompts_of(vlm, 1)[0], vee(), whole(upstream=(), downstream=[(3, 1)], form="weights")
    asked = {"max_new_tokens": 5}
    plain = hooks_of(vlm)
    with on(vlm, outer):
        first = vlm.generate(prompt, **asked)
        with on(vlm, inner):
            both = vlm.generate(prompt, **asked)
        assert vlm.generate(prompt, **asked) == first
    assert hooks_of(vlm) == plain
    assert first == generate(vlm, prompt, outer.edits(), **asked)
    assert both == generate(vlm, prompt, [*outer.edits(), *inner.edits()], **asked) != first
    with on(vlm, outer), on(vlm, outer):
        squared = vlm.generate(prompt, **asked)
    assert squared == generate(vlm, prompt, vee(beta=BETA**2).edits(), **asked)


@families
def test_strengths_of_one_change_not_a_bit(family):
    vlm = vlm_of(family)
    prompt, value = prompts_of(vlm, 1)[0], whole(beta=1, gamma=1)
    plain = oracle.logits(vlm, prompt)
    assert value.edits() == [] and torch.equal(run(vlm, prompt, value.edits()).logits, plain)
    with on(vlm, value):
        assert torch.equal(oracle.logits(vlm, prompt), plain)


# what cannot be done while it is on


def test_what_does_not_go_with_it():
    vlm = vlm_of()
    prompts, value = prompts_of(vlm), whole()
    inputs = vlm.placed(prompts[0].inputs)
    with on(vlm, value), torch.no_grad():
        for asked in (
            lambda: sweep(vlm, prompts[0], [value.edits()], lambda logits: logits[:, 0], progress=False),
            lambda: perplexity(vlm, prompts[0], ["I ate soup."]),
        ):
            with pytest.raises(InputError, match=r"cannot be had while VEENA is on; leave it, and give a sweep value.edits\(\)"):
                asked()
        with pytest.raises(InputError, match="one token further without a cache; generate with use_cache=True"):
            vlm.model.generate(**inputs, max_new_tokens=3, use_cache=False)
        with pytest.raises(InputError, match="call the model with input_ids, not inputs_embeds"):
            vlm.model(inputs_embeds=torch.zeros(1, 3, vlm.anatomy.d_model))
        cache = vlm.model(**inputs).past_key_values
        with pytest.raises(InputError, match=r"\[1, 2\] tokens came on a cache; under VEENA an answer goes on by one token a row"):
            vlm.model(input_ids=torch.tensor([[5, 6]]), past_key_values=cache)
        turned = {k: v.flip(-1) for k, v in vlm.placed(vlm.batched(prompts)).items() if k in ("input_ids", "attention_mask")}
        with pytest.raises(InputError, match="padded on the left"):
            vlm.model(**turned)
    with torch.no_grad():
        cache = vlm.model(**inputs).past_key_values
        with on(vlm, value), pytest.raises(InputError, match="from prompts that were read under it"):
            vlm.model(input_ids=torch.tensor([[5]]), past_key_values=cache)
    with (
        pytest.raises(InputError, match="adaptive is 'always'; expected None, 'prompt' or 'step'"),
        on(vlm, value, adaptive="always"),
    ):
        pass
    with pytest.raises(InputError, match="nothing else can be on beside it"), on(vlm, value), on(vlm, value, adaptive="prompt"):
        pass
    with pytest.raises(InputError, match="Confidence is that of the model without edits"), on(vlm, value):
        confidence(vlm, prompts, 1, words=WORDS)


# adaptive strength


@torch.no_grad()
def sensed_by_hand(vlm, residual: torch.Tensor) -> tuple[float, float]:
    """Mass and sureness of one vector, word by word."""
    language = vlm.model.get_submodule(vlm.anatomy.family.language)
    p = vlm.model.get_output_embeddings()(language.norm(residual)).softmax(-1)
    table = emotion_tokens(vlm, WORDS)
    masses = np.array([sum(float(p[i]) for i in table.id[table.emotion == e]) for e in WORDS])
    shares = masses / masses.sum()
    return masses.sum(), 1 + sum(q * math.log(q) for q in shares) / math.log(2)


@families
def test_confidence_is_read_at_the_end_of_a_begun_answer(family):
    vlm = vlm_of(family)
    prompts = prompts_of(vlm)
    table = confidence(vlm, prompts, 1, words=WORDS)
    own = confidence(vlm, prompts[:1], 1, answer="", words=WORDS)
    assert table.shape == (3, 3) and list(table) == ["mass", "sure", "share"]
    for i, prompt in enumerate(prompts):
        begun = vlm.prompt(prompt.image, TEXTS[i], answer="I felt")
        mass, sure = sensed_by_hand(vlm, oracle.caches(vlm, begun)["residual", 1][-1])
        assert table.mass[i] == pytest.approx(mass, rel=1e-3) and table.sure[i] == pytest.approx(sure, abs=1e-4)
        assert table.share[i] == pytest.approx(mass * (1 - sure), rel=1e-2, abs=1e-6)
    assert own.mass[0] == pytest.approx(sensed_by_hand(vlm, oracle.caches(vlm, prompts[0])["residual", 1][-1])[0], rel=1e-3)


@families
def test_the_prediction_is_the_emotion_of_the_largest_mass_of_plain_logits(family):
    vlm = vlm_of(family)
    prompts, table = prompts_of(vlm), emotion_tokens(vlm, WORDS)
    begun = [vlm.prompt(prompt.image, TEXTS[i], answer="I felt") for i, prompt in enumerate(prompts)]
    probabilities = [oracle.logits(vlm, prompt).double().softmax(-1) for prompt in begun]
    masses = [{e: float(p[some.id.tolist()].sum()) for e, some in table.groupby("emotion")} for p in probabilities]
    assert predicted(vlm, prompts, words=WORDS) == [max(mass, key=mass.get) for mass in masses]
    with on(vlm, whole()), pytest.raises(InputError, match="leave what is on first"):
        predicted(vlm, prompts, words=WORDS)


def set_shares(monkeypatch, by_row):
    """Shares of one's own in the place of those that are read, [row, 2] of mass and sureness."""
    monkeypatch.setattr(
        veena.strength.Sense, "now", lambda self: torch.tensor(by_row(self.last), dtype=torch.float32).reshape(-1, 2)
    )


def test_strengths_follow_the_share_and_stay_between_one_and_full(monkeypatch):
    vlm = vlm_of()
    prompts, value, given = prompts_of(vlm), whole(), iter([(1.0, 0.0), (0.0, 0.3), (0.8, 0.5)])
    set_shares(monkeypatch, lambda last: [next(given)])
    full, none, some = adaptive(vlm, prompts, value, words=WORDS)
    assert full == value.edits() and none == []
    assert some == whole(beta=BETA**0.4, gamma=GAMMA**0.4).edits()
    assert math.log(some[0].factor) == pytest.approx(0.4 * math.log(BETA))
    given = iter([(1.0, 0.0)] * 3)
    set_shares(monkeypatch, lambda last: [next(given)])
    assert adaptive(vlm, prompts, value, "ena", words=WORDS)[0] == value.edits("ena") == whole(beta=1).edits()


@families
def test_adaptive_left_on_equals_the_edits_of_each_prompt(family, monkeypatch):
    """In a padded batch each row has its own strength, read by one unedited forward with the begun answer behind it."""
    vlm = vlm_of(family)
    prompts, value, own = prompts_of(vlm), whole(), veena.strength.Sense.now
    table = confidence(vlm, prompts, 1, words=WORDS)
    larger = torch.tensor([1 / table.mass.max(), 1.0], dtype=torch.float32)  # these words are rare, so their masses are small
    monkeypatch.setattr(veena.strength.Sense, "now", lambda self: own(self) * larger)
    lists = adaptive(vlm, prompts, value, words=WORDS)
    with on(vlm, value, adaptive="prompt", words=WORDS):
        together = vlm.generate(prompts, max_new_tokens=4)
        masses = veena.strength.left_on(vlm)[0].asked.mass / larger[0]
    assert np.allclose(masses, table.mass, rtol=1e-3)
    assert together == [generate(vlm, p, edits, max_new_tokens=4) for p, edits in zip(prompts, lists, strict=True)]
    assert all(lists) and lists[0][0].factor > 1.05


def test_rows_of_different_strength(monkeypatch):
    vlm = vlm_of("qwen3_vl")
    prompts, value = prompts_of(vlm), whole()
    set_shares(monkeypatch, lambda last: [(1.0, 0.0), (0.0, 0.0), (0.5, 0.0)])
    with on(vlm, value, adaptive="prompt", words=WORDS):
        told = vlm.generate(prompts, max_new_tokens=5)
        pushed = generate(vlm, prompts, [AddVector(1, torch.ones(vlm.anatomy.d_model), 0.5)], max_new_tokens=5)
    lists = [value.edits(), [], value.eased(0.5).edits()]
    assert told == [generate(vlm, p, edits, max_new_tokens=5) for p, edits in zip(prompts, lists, strict=True)]
    push = AddVector(1, torch.ones(vlm.anatomy.d_model), 0.5)
    assert pushed == [generate(vlm, p, [push, *edits], max_new_tokens=5) for p, edits in zip(prompts, lists, strict=True)]


@torch.no_grad()
def test_strength_of_each_step_is_read_at_the_step_before(monkeypatch):
    """Step by step with plain hooks: the share is a function of the residual stream at l_emo of the token before."""
    vlm = vlm_of()
    prompt, value = prompts_of(vlm, 1)[0], whole()

    def sense(last: torch.Tensor) -> list[tuple[float, float]]:
        return [(0.9, float(torch.sigmoid(10 * row.mean()))) for row in last]

    def share(row: torch.Tensor) -> float:
        return round(0.9 * (1 - sense(row[None])[0][1]), 1)

    set_shares(monkeypatch, sense)
    with on(vlm, value, adaptive="step", words=WORDS):
        told = vlm.model.generate(**vlm.placed(prompt.inputs), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    begun = vlm.prompt(prompt.image, EVENT, answer="I felt")
    now, said, cache, used = share(oracle.caches(vlm, begun)["residual", 1][-1]), [], None, []
    for step in range(6):
        edits, kept = value.eased(now).edits(), []
        layer = vlm.model.get_submodule(f"{vlm.anatomy.layers}.1")
        keep = layer.register_forward_hook(lambda _m, _a, out, kept=kept: kept.append(out[0, -1]))
        with Later(vlm, edits, prompt) if step else oracle.hooked(vlm, edits, prompt):
            inputs = {"input_ids": torch.tensor([said[-1:]]), "past_key_values": cache} if step else vlm.placed(prompt.inputs)
            out = vlm.model(**inputs, use_cache=True)
        keep.remove()
        cache, used = out.past_key_values, [*used, now]
        said.append(int(out.logits[0, -1].argmax()))
        now = share(kept[0])
    assert told[0, len(prompt) :].tolist() == said and len(set(used[1:])) > 1


class Later:
    """Plain hooks for the forward of one token on a cache: what edits do at "answer", by a mask and products."""

    def __init__(self, vlm, edits, prompt):
        self.vlm, self.edits, self.prompt = vlm, edits, prompt

    def __enter__(self):
        layers = self.vlm.model.get_submodule(self.vlm.anatomy.layers)
        self.handles = []
        for edit in self.edits:
            layer = layers[edit.layer]
            if "answer" not in (edit.query if isinstance(edit, ScaleAttention) else edit.positions):
                continue
            if isinstance(edit, ScaleAttention):
                self.handles.append(layer.self_attn.register_forward_pre_hook(self.mask(edit), with_kwargs=True))
            else:
                self.handles.append(layer.mlp.down_proj.register_forward_pre_hook(self.product(edit)))

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()

    def mask(self, edit):
        def hook(_module, args, kwargs):
            keys = kwargs["past_key_values"].get_seq_length(edit.layer) + 1
            mask = torch.zeros(1, self.vlm.anatomy.n_heads, 1, keys)
            for head in edit.heads:
                for p in self.prompt.visual:
                    mask[0, head, 0, p] = math.log(edit.factor)
            return args, kwargs | {"attention_mask": mask}

        return hook

    def product(self, edit):
        def hook(_module, args):
            x = args[0].clone()
            for neuron in edit.neurons:
                x[..., neuron] *= edit.factor
            return (x,)

        return hook


def test_adaptive_needs_a_layer_and_two_emotions():
    vlm = vlm_of()
    prompts = prompts_of(vlm, 1)
    with pytest.raises(InputError, match=r"read at l_emo; name it: Veena\(…, l_emo=3\)"):
        adaptive(vlm, prompts, whole(l_emo=None))
    with pytest.raises(InputError, match="give words of two or more"):
        confidence(vlm, prompts, 1, words={"up": ["uncle"]})
    with pytest.raises(InputError, match="There are no prompts"):
        confidence(vlm, [], 1)
    with pytest.raises(InputError, match="Layer 9 is out of range"):
        confidence(vlm, prompts, 9, words=WORDS)


# the value


def a_circuit(vlm) -> Circuit:
    heads = [Head(0, 1, 0.4, emotion="fear"), Head(1, 0, 0.3), Head(2, 2, 0.2, emotion="joy"), Head(3, 3, 0.1, position="query")]
    neurons = [Neuron(1, 4, 0.3, emotion="joy"), Neuron(0, 9, 0.2, position="visual", kind="trigger"), Neuron(3, 1, 0.1)]
    pairs = [Pair(picture(i), picture(i + 50), f"I ate soup {i} times.", "joy", "selection", f"pair {i}") for i in range(2)]
    return Circuit.of(vlm, heads, neurons, pairs=pairs, metric="log mass")


def test_of_a_circuit():
    vlm = vlm_of()
    circuit = a_circuit(vlm)
    value = Veena.from_circuit(circuit, 1, beta=2.0, gamma=1.3)
    assert value.upstream == ((0, 1), (1, 0)) and value.downstream == ((2, 2), (3, 3)) and value.neurons == ((1, 4), (3, 1))
    assert (value.model, value.revision, value.l_emo) == (circuit.model, circuit.revision, 1)
    assert Veena.from_circuit(circuit, 0, parts="vee", gamma=2.0).edits() == [
        ScaleAttention(0, 1.5, "query", "visual", [1]),
        ScaleAttention(1, 1.5, ("last", "answer"), "visual", [0]),
        ScaleAttention(2, 1.5, ("last", "answer"), "visual", [2]),
        ScaleAttention(3, 1.5, ("last", "answer"), "visual", [3]),
    ]
    fear = Veena.from_circuit(circuit, 1, emotions=["fear"])
    assert (fear.upstream, fear.downstream, fear.neurons) == (((0, 1), (1, 0)), ((3, 3),), ((3, 1),))
    with pytest.raises(InputError, match="No part of the circuit serves rage; there are fear, joy"):
        Veena.from_circuit(circuit, 1, emotions=["rage"])
    assert Veena.of(vlm, [(2, 2), (0, 1), (1, 0), (3, 3)], [(1, 4), (3, 1)], l_emo=1, beta=2.0, gamma=1.3) == replace(
        value, downstream=((2, 2), (3, 3)), upstream=((0, 1), (1, 0))
    )


def test_parts_and_strengths():
    value = whole(beta_decode=2.0)
    assert value.edits("both") == value.edits() == [*value.edits("vee"), *value.edits("ena")]
    assert value.only("vee") == replace(value, gamma=1.0) and value.only("vee").edits() == value.edits("vee")
    assert {(e.factor, e.query) for e in value.edits("vee")} == {(BETA, ("query",)), (2.0, ("last", "answer"))}
    assert all(isinstance(e, ScaleNeurons) and e.positions == ("last", "answer") for e in value.edits("ena"))
    assert value.edits("vee")[1] == ScaleAttention(1, BETA, "query", "visual", [0, 3])
    assert whole().beta_decode == BETA
    eased = value.eased(0.5)
    assert (eased.beta, eased.beta_decode, eased.gamma) == pytest.approx((BETA**0.5, 2**0.5, GAMMA**0.5))
    assert all(not e.renormalise for e in whole(form="weights").edits("vee"))
    with pytest.raises(InputError, match="parts is 'all'; expected 'vee', 'ena', 'both'"):
        value.edits("all")


def test_it_prints_compares_and_makes_a_table():
    value = whole(model="tiny", revision="abc", form="weights")
    assert (
        str(value)
        == repr(value)
        == (
            "VEENA of 'tiny' (revision abc), scaled after the softmax\n"
            "  upstream   x 6     at query        L0H1 L1H0 L1H3\n"
            "  downstream x 6     at last answer  L2H2 L3H0 L3H1\n"
            "  neurons    x 3     at last answer  L1N4 L2N7 L2N40"
        )
    )
    assert value == whole(model="tiny", revision="abc", form="weights") and hash(value) == hash(replace(value))
    assert value != replace(value, beta=2.0)
    assert value.to_frame().iloc[3].tolist() == ["L2H2", "downstream", 2, 6.0, "last answer"]


def test_it_is_saved_and_comes_back(tmp_path):
    value, file = whole(beta_decode=1.25, prefill_at=["query", "last"]), tmp_path / "veena.json"
    value.save(file)
    assert Veena.load(file) == value and json.loads(file.read_text())["upstream"] == [[0, 1], [1, 0], [1, 3]]
    for change, message in (
        ({"version": 9}, "not marked as 'emointerp veena', version 1"),
        ({"colour": "red"}, "colour"),
        ({"beta": 0}, "beta is 0; expected a finite number above 0"),
        ({"neurons": [[1]]}, r"neurons holds \(1,\)"),
    ):
        file.write_text(json.dumps(json.loads((tmp_path / "veena.json").read_text()) | change))
        with pytest.raises(InputError, match=message):
            Veena.load(file)
        value.save(file)
    file.write_text("[")
    with pytest.raises(InputError, match="holds no VEENA"):
        Veena.load(file)
    with pytest.raises(InputError, match="There is no file"):
        Veena.load(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"upstream": [], "downstream": [], "neurons": []}, "it has no heads and no neurons"),
        ({"beta": 0}, "beta is 0; expected a finite number above 0; 1 changes nothing"),
        ({"beta": -2.0}, "beta is -2.0"),
        ({"beta": math.nan}, "beta is nan"),
        ({"beta_decode": math.inf}, "beta_decode is inf"),
        ({"gamma": True}, "gamma is True"),
        ({"upstream": [(0, 1), (0, 1)]}, r"upstream names \(0, 1\) more than once"),
        ({"neurons": [5]}, r"neurons holds \(5,\); expected pairs of whole numbers from 0 up"),
        ({"downstream": [(2, -1)]}, r"downstream holds \(2, -1\)"),
        ({"downstream": [(2, 0.5)]}, r"downstream holds \(2, 0.5\)"),
        ({"form": "logits"}, "form is 'logits'; expected 'scores' or 'weights'"),
        ({"prefill_at": ("visual",)}, "expected some of query, last"),
        ({"prefill_at": ()}, "expected some of query, last"),
        ({"upstream": [(2, 2)], "prefill_at": ("query", "last")}, "L2H2 would be scaled twice at the last token"),
        ({"l_emo": -1}, "l_emo is -1; expected a whole number from 0 up"),
    ],
)
def test_values_that_mean_nothing(given, message):
    with pytest.raises(InputError, match=message):
        whole(**given)


def test_heads_of_another_model():
    vlm = vlm_of()
    prompt = prompts_of(vlm, 1)[0]
    for value, missing in ((whole(downstream=[(9, 0)]), "L9H0"), (whole(neurons=[(0, 900)]), "L0N900")):
        with (
            pytest.raises(InputError, match=f"There is no {missing} in this model of 4 layers of 4 heads and 48 neurons"),
            on(vlm, value),
        ):
            pass
    with pytest.raises(InputError, match="There is no L0H7"):
        Veena.of(vlm, [(0, 7)], l_emo=1)
    foreign = Veena.of(vlm_of("llava_siglip"), [(0, 1)], l_emo=1)
    for asked in (lambda: adaptive(vlm, [prompt], foreign), lambda: signs(vlm, [prompt], foreign), lambda: foreign.check(vlm)):
        with pytest.raises(InputError, match=r"made for 'llava' \(revision .*\), and the model is .*: other weights, other heads"):
            asked()


# fitted


def tuning_pairs(n: int = 4) -> list[Pair]:
    emotions = ("joy", "fear", "anger", "sadness")
    return [
        Pair(
            picture(i)[:48, :64],
            picture(i + 60)[:48, :64],
            f"I sat {i} hours.",
            emotions[i],
            "tuning",
            f"t {i}",
            f"I ran {i} miles.",
        )
        for i in range(n)
    ]


def test_what_is_tried_is_what_the_answers_say():
    vlm = vlm_of()
    circuit, pairs = a_circuit(vlm), tuning_pairs()
    found = fit(vlm, circuit, pairs, 1, betas=[4.0], gammas=[1.0, 3.0], max_new_tokens=5, max_cost=100, progress=False)
    assert found.table[["beta", "gamma"]].to_numpy().tolist() == [[1, 1], [1, 3], [4, 1], [4, 3]]
    assert len(found.stories) == 2 * 4 * 4 and found.circuit is circuit and found.to_frame() is found.table
    edits = Veena.from_circuit(circuit, 1, beta=4.0, gamma=3.0).edits()
    for side in ("plus", "minus"):
        prompts = [vlm.prompt(*getattr(pair, side)) for pair in pairs]
        name, gold = {"plus": ("emotional", [p.emotion for p in pairs]), "minus": ("neutral", "neutral")}[side]
        some = found.stories[(found.stories.side == name) & (found.stories.beta == 4) & (found.stories.gamma == 3)]
        told = [vlm.tokenizer.decode(oracle.tokens(vlm, p, edits, n=5), skip_special_tokens=True).strip() for p in prompts]
        assert some.story.tolist() == told and some.exact.tolist() == score(told, gold).exact.tolist()
        for prompt, row in zip(prompts, some.itertuples(), strict=True):
            own = vlm.generate(prompt, max_new_tokens=5)
            assert row.cost == pytest.approx(np.divide(*perplexity(vlm, prompt, [row.story, own])), rel=1e-4, nan_ok=True)
    assert found.plot().axes[0].get_xlabel() == "β"


def stories(**rows) -> pd.DataFrame:
    """`name=(beta, gamma, exact rates, false emotions, cost)`, two pairs each."""
    table = []
    for beta, gamma, exact, false, cost in rows.values():
        for pair in range(2):
            row = {"pair": pair, "beta": beta, "gamma": gamma, "hit": exact[pair], "exact": exact[pair], "cost": cost[pair]}
            table += [row | {"side": "emotional", "false_emotion": 1}, row | {"side": "neutral", "false_emotion": false[pair]}]
    return pd.DataFrame(table)


def test_the_best_within_the_limits_is_chosen():
    """By hand: the best tells false emotions, the next costs too much, of the equal two the weaker is taken."""
    none = (1.0, 1.0, (0, 0), (0, 0), (1.0, 1.0))
    tried = {"false": (9.0, 1.0, (1, 1), (1, 0), (1.0, 1.0)), "dear": (5.0, 1.0, (1, 1), (0, 0), (4.0, 1.0))}
    tried |= {"good": (3.0, 1.0, (1, 0), (0, 0), (1.2, 1.0)), "weak": (2.0, 1.0, (0, 1), (0, 0), (1.0, 1.0))}
    table = veena.fitting._tried(stories(none=none, **tried), 0.02, 1.5).set_index("beta")
    assert table.allowed.to_dict() == {1.0: True, 2.0: True, 3.0: True, 5.0: False, 9.0: False}
    assert table.chosen.idxmax() == 2.0 and table.chosen.sum() == 1
    assert table.cost[5.0] == pytest.approx(2.0) and table.more_false[9.0] == 0.5 and table.gain[9.0].mean == 1.0
    assert veena.fitting._tried(stories(none=none, **tried), 0.5, 1.5).set_index("beta").chosen.idxmax() == 9.0
    harm = {"harm": (2.0, 1.0, (0, 0), (0, 0), (1.0, 1.0))}
    assert veena.fitting._tried(stories(none=none, **harm), 0.02, 1.5).set_index("beta").chosen.idxmax() == 1.0


def test_plain_questions_may_not_be_spoilt():
    """By hand: of the equal two, and of the best, only what leaves the questions as right as they were is allowed."""
    tried = {"none": (1.0, 1.0, (0, 0), (0, 0), (1.0, 1.0)), "best": (4.0, 1.0, (1, 1), (0, 0), (1.0, 1.0))}
    tried["good"] = (2.0, 1.0, (1, 0), (0, 0), (1.0, 1.0))
    right = pd.Series({(1.0, 1.0): 0.9, (2.0, 1.0): 0.895, (4.0, 1.0): 0.85})
    table = veena.fitting._tried(stories(**tried), 0.02, 1.5, right).set_index("beta")
    assert table.allowed.to_dict() == {1.0: True, 2.0: True, 4.0: False} and table.chosen.idxmax() == 2.0
    assert table.more_wrong[4.0] == pytest.approx(0.05) and table.right[2.0] == 0.895
    assert veena.fitting._tried(stories(**tried), 0.02, 1.5, right, 0.06).set_index("beta").chosen.idxmax() == 4.0


def test_questions_are_asked_under_every_strength():
    vlm = vlm_of()
    circuit, edits = a_circuit(vlm), []
    images = [picture(i)[:48, :64] for i in range(3)]
    asked = [vlm.prompt(image, "Who came?", instruction="") for image in images]
    edits = Veena.from_circuit(circuit, 1, beta=4.0).edits("vee")
    own = [vlm.tokenizer.decode(oracle.tokens(vlm, p, n=5), skip_special_tokens=True).strip() for p in asked]
    told = [vlm.tokenizer.decode(oracle.tokens(vlm, p, edits, n=5), skip_special_tokens=True).strip() for p in asked]
    questions = [(image, "Who came?", answer.upper() + ".") for image, answer in zip(images, own, strict=True)]
    limits = {"max_new_tokens": 5, "max_cost": 100, "progress": False}
    found = fit(vlm, circuit, tuning_pairs(), 1, betas=[4.0], gammas=[1.0], questions=questions, **limits)
    assert found.table.right.tolist() == [1.0, np.mean([a == b for a, b in zip(own, told, strict=True)])]


def test_a_fit_tells_so_many_stories_at_a_time(monkeypatch):
    vlm, lengths, whole = vlm_of(), [], VLM.batched
    monkeypatch.setattr(VLM, "batched", lambda self, prompts: lengths.append(len(prompts)) or whole(self, prompts))
    questions = [(picture(i)[:48, :64], "Who came?", "Nobody") for i in range(3)]
    how = {"betas": [4.0], "gammas": [1.0], "questions": questions, "max_new_tokens": 3, "max_cost": 100, "progress": False}
    fit(vlm, a_circuit(vlm), tuning_pairs(), 1, batch=2, **how)
    assert lengths == [2] * 8 + [2] * 2  # two strengths, of eight sides and of three questions, the last of which is alone


def test_a_fit_keeps_its_splits_apart():
    vlm = vlm_of()
    circuit, pairs = a_circuit(vlm), tuning_pairs()
    with pytest.raises(InputError, match="The circuit was selected on some of these pairs: splits selection"):
        fit(vlm, circuit, [replace(pairs[0], split="selection")], 1, progress=False)
    with pytest.raises(InputError, match="2 emotional pictures stand in both sets"):
        fit(vlm, pairs[:3], pairs[1:3], 1, progress=False)
    with pytest.raises(InputError, match="found in"):
        fit(vlm_of("llava_siglip"), circuit, pairs, 1, progress=False)


def test_on_the_bundled_model_the_circuit_is_found():
    """The model's known heads are among those found on selection pairs, and every state neuron names an emotion."""
    vlm = load()
    circuit = find_circuit(vlm, world_pairs("selection", 24), heads=6, neurons=20, progress=False)
    known = {(5, 2), (6, 5), (5, 7), (2, 0), (3, 2), (4, 4)}
    assert len(known & {(h.layer, h.head) for h in circuit.heads}) >= 4 and len(circuit.heads) == 6
    assert circuit.neurons and {n.kind for n in circuit.neurons} == {"state"} and circuit.splits == ("selection",)
    value = Veena.from_circuit(circuit, 3)
    assert {at[0] for at in value.upstream} <= {0, 1, 2, 3} and {at[0] for at in value.downstream} <= {4, 5, 6, 7}


def test_a_map_of_other_questions_is_refused():
    """Of the same pictures, with other events, another begun answer, other words, another metric, the other direction."""
    vlm = load()
    pairs = conflict_pairs(vlm, 6, seed=17, split="selection")[:2]
    calm = [replace(pair, event=pair.neutral_event, neutral_event=None) for pair in pairs]
    quiet, words = {"progress": False}, {emotion: words_for(emotion)[:9] for emotion in BASIC}
    few = {"layers": [5]} | quiet
    torn = head_map(vlm, [replace(pair, neutral_event=None) for pair in pairs], **few)  # both beside what contradicts the picture
    others = [torn, head_map(vlm, calm, answer="I was", **few), head_map(vlm, calm, words=words, **few)]
    for other in others:
        with pytest.raises(InputError, match="This map is of other questions: of the pair .* it has log masses without a patch of"):
            find_circuit(vlm, pairs, 3, by=other, neurons=0, **quiet)
    with pytest.raises(InputError, match="This map is of 'mass', denoising; expected 'log mass', denoising"):
        find_circuit(vlm, pairs, by=head_map(vlm, calm, metric="mass", **few), **quiet)
    with pytest.raises(InputError, match="This map is of 'log mass', noising; expected 'log mass', denoising"):
        find_circuit(vlm, pairs, by=head_map(vlm, calm, direction="noising", **few), **quiet)
    for right, *how in ((others[1], None, "I was"), (others[2], words, "I felt")):
        assert veena.fitting._checked_map(vlm, right, pairs, calm, *how) is right


def test_heads_are_found_by_what_amplification_does():
    """On the bundled model: the head that gives most back, where heads look from, and what is refused."""
    vlm, pairs = load(), conflict_pairs(load(), 24, seed=17, split="selection")
    circuit = find_circuit(vlm, pairs, 3, by="amplification", heads=8, neurons=10, progress=False)
    best = circuit.heads[0]
    assert (best.layer, best.head, best.position) == (5, 2, "last") and best.score > 0.2
    assert {h.position for h in circuit.heads if h.layer <= 3} == {"query"} and any(h.layer == 0 for h in circuit.heads)
    assert circuit.neurons and circuit.splits == ("selection",)
    assert len(Veena.from_circuit(circuit, 3).upstream) == sum(h.layer <= 3 for h in circuit.heads)
    looks = amplification_map(vlm, pairs, 3, progress=False)
    same = find_circuit(vlm, pairs, 3, by=looks, heads=8, neurons=0, progress=False)
    assert same.heads == circuit.heads and same.neurons == () and same.pairs == circuit.pairs
    for other in (pairs[:-1], pairs[::-1]):
        with pytest.raises(InputError, match=r"This map is of other pairs \(24 of them, and 2[34] came\)"):
            find_circuit(vlm, other, 3, by=looks, progress=False)
    with pytest.raises(InputError, match="This map is of other questions: of the pair selection 0"):
        find_circuit(vlm, [replace(pair, event=pair.neutral_event) for pair in pairs], 3, by=looks, progress=False)
    with pytest.raises(InputError, match="name l_emo"):
        find_circuit(vlm, pairs, by=looks, progress=False)
    with pytest.raises(InputError, match="This map is one of attribution, a guess; expected a head_map"):
        find_circuit(vlm, pairs, 3, by=replace(looks, kind="attribution"), progress=False)
    patched = find_circuit(vlm, pairs, heads=4, neurons=10, progress=False)
    assert {(h.layer, h.head) for h in patched.heads} & {(5, 2), (6, 5), (5, 7)} and patched.neurons == circuit.neurons
    with pytest.raises(InputError, match="by is 'luck'; expected 'patching' or 'amplification'"):
        find_circuit(vlm, pairs, by="luck")
    with pytest.raises(InputError, match="name l_emo"):
        find_circuit(vlm, pairs[:2], by="amplification", neurons=2, progress=False)
