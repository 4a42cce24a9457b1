"""Methods of the harness against plain reimplementations: no cache, no batch, attention by hand, a forward for every token."""

import json
import math
import sys
from contextlib import contextmanager, nullcontext
from functools import partial

import numpy as np
import oracle
import pytest
import torch
from test_families import SHAPES, noise
from tiny_families import NAMES, vlm
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from emointerp.directions import Directions
from emointerp.errors import InputError
from emointerp.evaluation.baselines import Beside, contrasted, image_scores, noised, pai, vaf, vcd
from emointerp.evaluation.items import Item
from emointerp.evaluation.methods import LOOK, Decoding, edited, emotion_prompt, none, oracle_steering, per_prompt, steering
from emointerp.models.anatomy import part
from emointerp.tracing import AddVector

TEXTS = ("The phone rang twice while I was cooking.", "It rained.", "I found my old bicycle.", "A letter came.")
STEPS = 5
SHORT = Decoding(max_new_tokens=STEPS)
families = pytest.mark.parametrize("name", NAMES)


def items(n: int = 1) -> list[Item]:
    """Pictures of different forms, texts of different lengths."""
    sizes = list(SHAPES.values())[::-1]
    return [Item("test", noise(sizes[i], i), TEXTS[i], ("joy", "fear", "neutral", "joy")[i]) for i in range(n)]


@contextmanager
def recorded(model):
    """What `generate` chooses from, for each of its calls: scores [steps, batch, vocabulary] and token ids [batch, steps]."""
    kept, own = [], model.generate

    def generate(**options):
        out = own(**options, output_scores=True, return_dict_in_generate=True)
        scores = torch.stack(out.scores)
        kept.append((scores, out.sequences[:, -len(scores) :]))
        return out.sequences

    model.generate = generate
    try:
        yield kept
    finally:
        del model.generate


def told(in_hand, method, some=None, decoding=SHORT) -> tuple[list[str], torch.Tensor, list[int]]:
    """Answers; scores and tokens of the first one."""
    with recorded(in_hand.model) as kept:
        answers = method.answers(in_hand, some or items(), decoding)
    scores, ids = kept[0]
    return answers, scores[:, 0], ids[0].tolist()


# the oracle


@torch.no_grad()
def following(in_hand, inputs: dict, answer: list[int]) -> torch.Tensor:
    """Logits after a prompt's inputs and an answer's tokens, all read anew."""
    ids, longer = torch.tensor([answer], dtype=torch.long), dict(inputs)
    for key, value in inputs.items():
        if torch.is_tensor(value) and value.shape == inputs["input_ids"].shape:  # ids, mask, kinds of tokens
            more = ids if key == "input_ids" else torch.full_like(ids, key == "attention_mask")
            longer[key] = torch.cat([value, more], 1)
    return in_hand.model(**longer, use_cache=False).logits[0, -1]


@contextmanager
def by_hand(in_hand, prompt, layers, weigh):
    """Eager attention of some layers as plain sums; `weigh(scores, image columns, mask)` gives the weights of tokens from N on."""
    modules = part(in_hand.model, in_hand.anatomy.layers)
    home, touched = sys.modules[type(modules[0].self_attn).__module__], {modules[i].self_attn for i in layers}
    plain, columns = home.eager_attention_forward, list(prompt.visual)

    def forward(module, query, key, value, attention_mask, scaling, **options):
        if module not in touched:
            return plain(module, query, key, value, attention_mask, scaling=scaling, **options)
        out = torch.zeros(1, query.shape[2], query.shape[1], value.shape[-1])
        for head in range(query.shape[1]):
            theirs = head // (query.shape[1] // key.shape[1])
            scores, mask = query[0, head] @ key[0, theirs].T * scaling, attention_mask[0, 0]
            weights = (scores + mask).softmax(-1)
            for row in range(prompt.last, len(scores)):
                weights[row] = weigh(scores[row].clone(), columns, mask[row], head)
            out[0, :, head] = weights @ value[0, theirs]
        return out, None

    home.eager_attention_forward = forward
    try:
        yield
    finally:
        home.eager_attention_forward = plain


def raised(alpha: float, scores, columns, mask, head):
    """PAI: z + alpha |z|."""
    scores[columns] += alpha * scores[columns].abs()
    return (scores + mask).softmax(-1)


def multiplied(factor: float, heads, scores, columns, mask, head):
    """VAF as published: factor * z."""
    scores[columns] *= factor if head in heads else 1
    return (scores + mask).softmax(-1)


def renormalised(factor: float, scores, columns, mask, head):
    """Weights scaled after the softmax and normalised again."""
    weights = (scores + mask).softmax(-1)
    weights[columns] *= factor
    return weights / weights.sum()


def greedy(in_hand, inputs: dict, around, rule=lambda logits, answer: logits) -> tuple[torch.Tensor, list[int]]:
    """Scores and tokens of a greedy answer: `rule(logits, answer so far)` of the logits under `around`."""
    scores, answer = [], []
    while len(answer) < STEPS and answer[-1:] != [2]:
        with around:
            logits = following(in_hand, inputs, answer)
        scores.append(rule(logits, answer))
        answer.append(int(scores[-1].argmax()))
    return torch.stack(scores), answer


class Again:
    """A context that can be entered again and again."""

    def __init__(self, make):
        self.make = make

    def __enter__(self):
        self.now = self.make()
        return self.now.__enter__()

    def __exit__(self, *error):
        return self.now.__exit__(*error)


def plausible(mixed: torch.Tensor, logits: torch.Tensor, beta: float) -> torch.Tensor:
    """Tokens below beta times the likeliest one's probability ruled out, in probabilities."""
    p = logits.double().softmax(-1)
    return torch.where(p < beta * p.max(), -math.inf, mixed)


def text_alone(in_hand, item) -> dict:
    content = [{"type": "text", "text": f"{item.text} {in_hand.instruction}"}]
    text = in_hand.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    ids = in_hand.tokenizer(text, add_special_tokens=False).input_ids
    ids = ids if ids[0] == 1 else [1, *ids]
    return {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}


# PAI


@families
@pytest.mark.parametrize("attn", ["sdpa", "eager"])
def test_pai_is_its_formula(name, attn):
    in_hand, eager, item = vlm(name, attn), vlm(name, "eager"), items()[0]
    prompt, alone = item.prompt(eager), text_alone(eager, item)
    hands = Again(lambda: by_hand(eager, prompt, range(1, 4), partial(raised, 0.7)))

    def rule(logits, answer):
        return plausible(1.8 * logits - 0.8 * following(eager, alone, answer), logits, 0.05)

    scores, answer = greedy(eager, prompt.inputs, hands, rule)
    answers, found, ids = told(in_hand, pai(alpha=0.7, gamma=1.8, first_layer=1, beta=0.05))
    assert ids == answer and answers == [eager.tokenizer.decode(answer, skip_special_tokens=True).strip()]
    torch.testing.assert_close(found, scores, atol=2e-4, rtol=1e-4)
    unguided, _ = greedy(eager, prompt.inputs, hands)
    plain = following(eager, prompt.inputs, [])
    assert (unguided[0] - plain).abs().max() > 1e-2  # the scores do something by themselves
    torch.testing.assert_close(told(in_hand, pai(0.7, 1, 1))[1], unguided, atol=2e-4, rtol=1e-4)


def test_pai_leaves_layers_below_the_first_alone():
    in_hand, item = vlm("llava_clip"), items()[0]
    inputs = item.prompt(in_hand).inputs
    layers = part(in_hand.model, in_hand.anatomy.layers)
    with torch.no_grad():
        before = in_hand.model(**inputs, output_hidden_states=True).hidden_states
        with image_scores(in_hand, inputs["input_ids"], [2, 3], lambda z: z.abs()) as scores:
            own = [layer.self_attn.config._attn_implementation for layer in layers]
            after = in_hand.model(**inputs, output_hidden_states=True).hidden_states
    assert own[:2] == ["sdpa"] * 2 and own[2] == own[3] == f"emointerp_image_scores_{id(scores)}"
    assert all(torch.equal(before[i], after[i]) for i in range(3))  # the embeddings, and layers 0 and 1
    assert torch.equal(before[3][:, :-1], after[3][:, :-1])  # earlier tokens are read as they were
    assert (before[3][:, -1] - after[3][:, -1]).abs().max() > 1e-3


def test_what_pai_reads_beside_the_prompt():
    in_hand = vlm("llava_clip")
    texts = []
    tokenizer, own = in_hand.tokenizer, type(in_hand.tokenizer).__call__

    def spy(self, text, **options):
        texts.append(text)
        return own(self, text, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(tokenizer), "__call__", spy)
        pai().answers(in_hand, items(), SHORT)
    assert texts[-1] == [f"USER: {TEXTS[0]} {in_hand.instruction} ASSISTANT:"]


@families
def test_no_picture_is_in_the_text_alone(name):
    in_hand = vlm(name)
    for item in items(2):
        ids = text_alone(in_hand, item)["input_ids"][0].tolist()
        assert in_hand.anatomy.image_token not in ids and ids.count(1) == 1


# VAF


@families
def test_vaf_multiplies_weights_or_scores(name):
    in_hand, eager, item = vlm(name), vlm(name, "eager"), items()[0]
    prompt = item.prompt(eager)
    hands = Again(lambda: by_hand(eager, prompt, [1, 2], partial(renormalised, 3.0)))
    scores, answer = greedy(eager, prompt.inputs, hands)
    assert vaf(3.0).answers(in_hand, [item], SHORT) == [eager.tokenizer.decode(answer, skip_special_tokens=True).strip()]
    assert (scores[0] - following(eager, prompt.inputs, [])).abs().max() > 1e-2
    hands = Again(lambda: by_hand(eager, prompt, [0, 3], partial(multiplied, 2.5, (0, 3))))
    scores, answer = greedy(eager, prompt.inputs, hands)
    _, found, ids = told(in_hand, vaf(2.5, layers=[0, 3], heads=[0, 3], form="scores"))
    assert ids == answer
    torch.testing.assert_close(found, scores, atol=2e-4, rtol=1e-4)


# VCD


def kept_share(step: int) -> float:
    """What is left of the picture's variance, a step at a time."""
    share = 1.0
    for t in range(step + 1):
        share *= 1 - (1e-5 + (5e-3 - 1e-5) / (1 + math.exp(6 - 12 * t / 999)))
    return share


@pytest.mark.parametrize("step", [0, 500, 999])
def test_noise_is_a_step_of_forward_diffusion(step):
    x = torch.full((400, 500), 2.0)
    y = noised(x, step, torch.Generator().manual_seed(3))
    eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    share = kept_share(step)
    torch.testing.assert_close(y, math.sqrt(share) * x + math.sqrt(1 - share) * eps, atol=1e-5, rtol=1e-5)
    assert float(y.mean()) == pytest.approx(2 * share**0.5, abs=0.01) and float(y.var()) == pytest.approx(1 - share, abs=0.01)


def test_the_share_that_is_left():
    assert [kept_share(t) for t in (0, 500, 999)] == pytest.approx([1, 0.745, 0.082], abs=1e-3)


@families
def test_vcd_is_its_formula(name):
    in_hand, item = vlm(name), items()[0]
    prompt = item.prompt(in_hand)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        post = Beside.__post_init__
        patch.setattr(Beside, "__post_init__", lambda self: (seen.append(self.inputs["pixel_values"]), post(self))[1])
        answers, found, ids = told(in_hand, vcd(alpha=1.5, beta=0.05, noise=700))
    own = prompt.inputs["pixel_values"]
    assert seen[0].shape == own.shape
    rest = (seen[0] - math.sqrt(kept_share(700)) * own) / math.sqrt(1 - kept_share(700))
    assert float(rest.mean()) == pytest.approx(0, abs=0.1) and float(rest.std()) == pytest.approx(1, abs=0.1)
    other = prompt.inputs | {"pixel_values": seen[0]}

    def rule(logits, answer):
        return plausible(2.5 * logits - 1.5 * following(in_hand, other, answer), logits, 0.05)

    scores, answer = greedy(in_hand, prompt.inputs, nullcontext(), rule)
    assert ids == answer and answers == [in_hand.tokenizer.decode(answer, skip_special_tokens=True).strip()]
    torch.testing.assert_close(found, scores, atol=2e-4, rtol=1e-4)
    assert (following(in_hand, prompt.inputs, []) - following(in_hand, other, [])).abs().max() > 1e-3


def test_vcd_draws_noise_from_its_seed_and_the_picture():
    in_hand, some = vlm("llava_clip"), items(2)
    first = [told(in_hand, vcd(seed=seed, beta=0), [item])[1][0] for item in some for seed in (0, 0, 1)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2]) and not torch.equal(first[3], first[5])


def test_contrast_worked_by_hand():
    logits, others = torch.tensor([[1.0, 0.0, -1.0]]), torch.tensor([[0.0, 2.0, 0.0]])
    assert contrasted(logits, others, 1.0, 0.0).tolist() == [[2, -2, -2]]
    assert contrasted(logits, others, 1.0, 0.2).tolist() == [[2, -2, -math.inf]]  # e^-2 < 0.2 < e^-1
    assert contrasted(logits, others, 0.5, 1.0).tolist() == [[1.5, -math.inf, -math.inf]]


# batches, sampling, ends


STRONG = {
    "PAI": pai(alpha=0.7, gamma=2.0, first_layer=1),
    "VAF": vaf(2.5, form="scores"),
    "VCD": vcd(alpha=2.0, beta=0.01),
}


@families
@pytest.mark.parametrize("method", STRONG.values(), ids=STRONG)
def test_a_batch_answers_as_its_items_one_by_one(name, method):
    in_hand, some = vlm(name), items(4)
    alone = [told(in_hand, method, [item]) for item in some]
    with recorded(in_hand.model) as kept:
        assert method.answers(in_hand, some, SHORT) == [answers[0] for answers, _, _ in alone]
    for i, (_, scores, _) in enumerate(alone):
        torch.testing.assert_close(kept[0][0][: len(scores), i], scores, atol=5e-4, rtol=1e-3)
    assert method.answers(in_hand, some, Decoding(STEPS, batch=3)) == [answers[0] for answers, _, _ in alone]


@pytest.mark.parametrize("name", ["llava_clip", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("method", STRONG.values(), ids=STRONG)
def test_rows_that_end_early_leave_the_others_alone(name, method, monkeypatch):
    in_hand, some = vlm(name), items(4)
    tokens = [told(in_hand, method, [item], Decoding(8))[2] for item in some]
    when = {t: [own.index(t) if t in own else 8 for own in tokens] for own in tokens for t in own}
    end, first = next((t, min(found)) for t, found in when.items() if min(found) + 1 < max(found))
    monkeypatch.setattr(in_hand.model.generation_config, "eos_token_id", end)
    with recorded(in_hand.model) as kept:
        method.answers(in_hand, some, Decoding(8))
    ids = kept[0][1]
    assert ids.shape[1] > first + 1  # others go on
    for row, own in zip(ids.tolist(), tokens, strict=True):
        n = min(own.index(end) + 1 if end in own else len(own), len(row))
        assert row == own[:n] + [0] * (len(row) - n)


@families
@pytest.mark.parametrize(
    "method", [pai(0, 1), pai(0, 1, beta=0), vaf(1), vaf(1, form="scores"), vcd(0), vcd(0, beta=0), edited("empty", [])]
)
def test_settings_that_change_nothing_answer_as_the_model(name, method):
    in_hand, some = vlm(name), items(2)
    assert method.answers(in_hand, some, SHORT) == none().answers(in_hand, some, SHORT)


def test_guidance_alone_is_guidance():
    in_hand, item = vlm("qwen2_vl"), items()[0]
    alone, inputs = text_alone(in_hand, item), item.prompt(in_hand).inputs
    scores, _ = greedy(in_hand, inputs, nullcontext(), lambda z, answer: 3 * z - 2 * following(in_hand, alone, answer))
    torch.testing.assert_close(told(in_hand, pai(0, 3, beta=0))[1], scores, atol=2e-4, rtol=1e-4)


def test_sampled_answers():
    in_hand, some = vlm("llava_clip"), items(2)
    drawn = Decoding(max_new_tokens=8, temperature=1.5, seed=3)
    plain = none().answers(in_hand, some, drawn)
    assert plain != none().answers(in_hand, some, Decoding(8))
    assert vcd(0, beta=0).answers(in_hand, some, drawn) == pai(0, 1).answers(in_hand, some, drawn) == plain
    assert vcd(0, beta=1).answers(in_hand, some, drawn) == none().answers(in_hand, some, Decoding(8))  # one token is left
    method = vcd(alpha=2, beta=0)
    assert method.answers(in_hand, some, drawn) == method.answers(in_hand, some, drawn)
    torch.testing.assert_close(told(in_hand, method, some, drawn)[1][0] * 1.5, told(in_hand, method, some)[1][0])


# nothing is left behind


def traces(in_hand) -> tuple:
    registry = (dict(ALL_ATTENTION_FUNCTIONS), dict(ALL_ATTENTION_FUNCTIONS._local_mapping))
    modules = list(in_hand.model.modules())
    configs = [id(m.config) for m in modules if hasattr(m, "config")]
    return registry, configs, sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules), set(vars(in_hand.model))


@pytest.mark.parametrize("name", ["llava_clip", "qwen2_vl", "gemma3"])
@pytest.mark.parametrize("method", STRONG.values(), ids=STRONG)
def test_nothing_is_left_behind(name, method, monkeypatch):
    in_hand = vlm(name)
    inputs = items()[0].prompt(in_hand).inputs
    state, random, logits = traces(in_hand), torch.get_rng_state(), following(in_hand, inputs, [])
    method.answers(in_hand, items(2), SHORT)
    assert traces(in_hand) == state and torch.equal(following(in_hand, inputs, []), logits)

    def broken(*_):
        raise KeyboardInterrupt

    hook = part(in_hand.model, in_hand.anatomy.layers)[3].register_forward_hook(broken)
    with pytest.raises(KeyboardInterrupt):
        method.answers(in_hand, items(2), SHORT)
    hook.remove()
    assert traces(in_hand) == state and torch.equal(following(in_hand, inputs, []), logits)
    assert torch.equal(torch.get_rng_state(), random)


# prompts and edits


def directions() -> Directions:
    vectors = torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(5))
    return Directions(("joy", "fear"), 3 * vectors, (3, 1))


def test_an_emotion_prompt_stands_before_the_instruction():
    in_hand, story = vlm("qwen2_vl"), items()[0]
    question = Item("questions", story.picture, "What colour is the hat?", "red", "")
    asked = in_hand.prompt(story.picture, story.text, instruction=f"{LOOK} {in_hand.instruction}")
    assert asked.text == f"{TEXTS[0]} {LOOK} {in_hand.instruction}"
    expected = [in_hand.generate(asked, max_new_tokens=STEPS), in_hand.ask(question.picture, question.text, max_new_tokens=STEPS)]
    assert emotion_prompt().answers(in_hand, [story, question], SHORT) == expected
    assert emotion_prompt(" Look! ").settings == {"text": "Look!"}


@families
def test_steering_adds_the_pooled_direction(name):
    in_hand, some = vlm(name), items(2)
    S = directions()
    pooled = 0.75 * S.vectors[0, 2] + 0.25 * S.vectors[1, 2]  # three pairs of joy, one of fear
    expected = []
    for item in some:
        ids = oracle.tokens(in_hand, item.prompt(in_hand), [AddVector(2, pooled, 1.5)], STEPS)
        expected.append(in_hand.tokenizer.decode(ids, skip_special_tokens=True).strip())
    assert steering(S, 2, 1.5).answers(in_hand, some, SHORT) == expected
    assert steering(pooled, 2, 1.5).answers(in_hand, some, SHORT) == expected != none().answers(in_hand, some, SHORT)


def test_the_gold_emotion_is_seen_by_an_oracle_only():
    in_hand, some, S = vlm("llava_clip"), items(4), directions()
    method = oracle_steering(S, 1, 2.0)
    assert method.oracle and not any(m.oracle for m in (none(), steering(S, 1), emotion_prompt(), *STRONG.values()))
    vectors = [S["joy", 1], S["fear", 1], None, S["joy", 1]]  # a neutral item is left alone
    lists = [[] if v is None else [AddVector(1, v, 2.0)] for v in vectors]
    ids = [oracle.tokens(in_hand, item.prompt(in_hand), edits, STEPS) for item, edits in zip(some, lists, strict=True)]
    expected = [in_hand.tokenizer.decode(one, skip_special_tokens=True).strip() for one in ids]
    assert method.answers(in_hand, some, SHORT) == expected and len(set(expected)) > 2


def test_edits_of_each_prompt():
    in_hand, some = vlm("gemma3"), items(4)
    own = [[AddVector(1, torch.full((32,), x), 1.0)] if x else [] for x in (0.5, 0.0, -0.5, 0.5)]
    asked = []

    def edits_of(model, prompts):
        asked.append([prompt.text for prompt in prompts])
        return own

    method = per_prompt("mine", edits_of, {"strength": "own"})
    assert (method.name, method.settings, method.oracle) == ("mine", {"strength": "own"}, False)
    with recorded(in_hand.model) as kept:
        answers = method.answers(in_hand, some, SHORT)
    assert len(asked) == 1 and asked[0] == [item.prompt(in_hand).text for item in some]
    assert sorted(len(ids) for _, ids in kept) == [1, 1, 2]  # equal edits go together
    for item, edits, answer in zip(some, own, answers, strict=True):
        ids = oracle.tokens(in_hand, item.prompt(in_hand), edits, STEPS)
        assert answer == in_hand.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_settings_are_plain_values_that_tell_methods_apart():
    S = directions()
    methods = [*STRONG.values(), pai(), vaf(), vaf(2, [1], np.arange(2)), vcd(), vcd(seed=1), emotion_prompt(), none()]
    methods += [steering(S, 1), steering(S, 2), steering(S, 1, 2.0), oracle_steering(S, 1), oracle_steering(S, 1, 2.0)]
    told = {json.dumps([method.name, dict(method.settings)]) for method in methods}
    assert len(told) == len(methods)
    assert pai().settings == {"alpha": 0.2, "gamma": 1.1, "first_layer": 2, "beta": 0.1}
    assert vcd().settings == {"alpha": 1.0, "beta": 0.1, "noise": 500, "seed": 0}


# refusals, by their words


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: pai(alpha=-1), "PAI: alpha is -1; expected a number from 0 up."),
        (lambda: pai(gamma=0.5), "PAI: gamma is 0.5; expected a number from 1 up."),
        (lambda: pai(beta=2), "PAI: beta is 2; expected a number from 0 to 1."),
        (lambda: vcd(alpha=math.nan), "VCD: alpha is nan; expected a number from 0 up."),
        (lambda: vcd(noise=1000), "VCD: noise is 1000; expected a number from 0 to 999."),
        (lambda: vaf(-2), "VAF: factor is -2; expected a number from 0 up."),
        (lambda: vaf(2, form="logits"), "VAF: form is 'logits'; expected one of weights, scores."),
        (lambda: emotion_prompt("  "), "The emotion prompt is empty; give a sentence such as 'Look closely"),
        (lambda: steering(directions(), 9), "Layer 9 is out of range; these directions have layers 0 to 3."),
    ],
)
def test_settings_that_cannot_be(make, message):
    with pytest.raises(InputError, match=message.replace(".", r"\.")):
        make()


@pytest.mark.parametrize(
    "method, message",
    [
        (pai(first_layer=9), "Layer 9 is out of range; this model has layers 0 to 3"),
        (vaf(layers=[1, 4]), "Layer 4 is out of range; this model has layers 0 to 3"),
        (vaf(layers=[]), "No layers are named; this model has layers 0 to 3"),
        (vaf(heads=[4]), "ScaleAttention: head 4 is out of range; a layer of this model has heads 0 to 3"),
        (vaf(heads=[4], form="scores"), "ScaleAttention: head 4 is out of range; a layer of this model has heads 0 to 3"),
        (per_prompt("x", lambda vlm, prompts: [[]]), r"2 prompts, but edits for 1; give a list of edits for each, \[\] for none"),
    ],
)
def test_settings_that_this_model_has_no_place_for(method, message):
    with pytest.raises(InputError, match=message):
        method.answers(vlm("llava_clip"), items(2), SHORT)


def test_attention_that_takes_no_mask_is_refused(monkeypatch):
    in_hand = vlm("llava_clip")
    config = part(in_hand.model, in_hand.anatomy.family.language).config
    monkeypatch.setattr(config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(InputError, match="Under attn_implementation='flash_attention_2' attention takes no mask of ours"):
        pai().answers(in_hand, items(), SHORT)
