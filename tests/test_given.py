"""What callers bring in another form than expected: generators are read once, lone values are lists of one, the rest is refused.

Refusals are tried in a process without the type checks of the tests, which would come first: run as a program, this file calls
every line of `REFUSED` and prints what each raises.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch
from tiny_families import vlm as tiny
from tiny_models import picture

import emointerp as ei
from emointerp import evaluation, given
from emointerp.errors import InputError
from emointerp.given import index_of
from emointerp.models import to_image
from emointerp.pairs import Pair, as_pairs, check_number, check_sides, read_pairs, save_pairs, text_pairs, world_pairs
from emointerp.steering import Steering, differences, steer, steering_vectors
from emointerp.superposition import by_dimensions, embed, interference, thumbnails, train_toys
from emointerp.tracing import (
    AddVector,
    answer_log_probs,
    collect,
    first_tokens,
    logit_mass,
    mean_ablation,
    patch,
    perplexity,
    sweep,
)
from emointerp.veena import Veena, confidence, predicted, signs
from emointerp.world import face_scenes, sample

EVENT = "The phone rang twice while I was cooking."
VLM_FIRST = r"came; expected a model as the first argument: vlm = ei.load\(\)"
LIST = r"AddVector\(layer=1, .* stands where a list of edits is expected; write \[AddVector\(...\)\]\."
PROMPT = r"expected vlm.prompt\(image, text\), or a list of such"

# calls, and what they say
REFUSED = {
    # a bare edit, or what is none
    "ei.run(vlm, p, e)": LIST,
    "ei.collect(vlm, p, edits=e)": LIST,
    "ei.generate(vlm, p, e)": LIST,
    "ei.generate(vlm, p, 3)": r"^3 is no list of edits; expected values such as AddVector\(layer, vector\)",
    "ei.run(vlm, p, {'a': [e]})": r"'a' is no edit",
    "ei.sweep(vlm, p, {'a': e}, lambda x: x[:, 0])": LIST,
    "ei.sweep(vlm, p, [e], lambda x: x[:, 0])": LIST,
    "ei.sweep(vlm, p, 3, lambda x: x[:, 0])": r"^3 came; expected lists of edits by label",
    "ei.sweep(vlm, p, [[e]], 'mass')": r"^'mass' came; expected a metric: a function of logits",
    "ei.sweep(vlm, p, [[e]], max_new_tokens='5')": r"max_new_tokens is '5'; expected a whole number from 1 up",
    "ei.evaluation.edited('x', e)": LIST,
    "ei.save_edits(e, 'nowhere.json')": LIST,
    # the wrong kind of a main argument
    "ei.run(vlm, 'hi', [])": f"^'hi' is no list of prompts; {PROMPT}",
    "ei.run(vlm, ['hi'], [])": f"^'hi' is no prompt; {PROMPT}",
    "ei.collect(p, vlm)": f"^A Prompt {VLM_FIRST}",
    "ei.generate(None, p)": f"^None {VLM_FIRST}",
    "ei.sweep(p, vlm, [[e]], lambda x: x[:, 0])": f"^A Prompt {VLM_FIRST}",
    "vlm.generate('hello')": f"^'hello' is no list of prompts; {PROMPT}",
    "vlm.generate(None)": r"^None is no list of prompts",
    "vlm.prompt(image, 'The phone rang.', answer=3)": r"^3 came; expected a text: vlm.prompt\(image, text",
    "vlm.prompt(image, 'The phone rang.', instruction=3)": r"^3 came; expected a text",
    "ei.tell('yours.png', vlm)": f"^'yours.png' {VLM_FIRST}",
    "ei.see_or_guess('tiny')": f"^'tiny' {VLM_FIRST}",
    "ei.read_pairs(pandas.DataFrame())": r"^A DataFrame came; expected the path of a CSV table",
    "ei.pairs.folder_pairs(3, 'b', 'rain', 'x')": r"^3 came; expected the path of a folder of pictures",
    "ei.pairs.check(pairs[0])": r"stands where a list of pairs is expected; write \[Pair\(...\)\]",
    "steer(vlm, pairs, None)": r"^None came; expected S = steering_vectors\(vlm, pairs\)",
    "steer(vlm, pairs, {'S': [3]})": r"^3 is no direction; expected S = steering_vectors",
    "steer(vlm, pairs[0], S)": r"stands where a list of pairs is expected",
    "steer(vlm, ['a.png'], S)": r"^'a.png' is no pair; expected world_pairs\('test', 36\), or read_pairs\(table\)",
    "steer(pairs, vlm, S)": f"^A list {VLM_FIRST}",
    "ei.steering_vectors(pairs, vlm)": f"^A list {VLM_FIRST}",
    "ei.veena.on(vlm, None).__enter__()": r"^None came; expected a Veena",
    "ei.veena.on(p, ei.Veena([(0, 0)])).__enter__()": f"^A Prompt {VLM_FIRST}",
    "ei.veena.adaptive(vlm, [p], None)": r"^None came; expected a Veena",
    "ei.Veena(3)": r"^3 came; expected a list of \(layer, number\) for upstream, such as \[\(5, 2\)\]",
    "ei.Veena.from_circuit('c.json', 3)": r"^'c.json' came; expected a circuit: .* Circuit.load\(file\)",
    "ei.veena.confidence(vlm, 'hi', 3)": r"^'hi' is no list of prompts",
    "ei.superposition.embed(vlm, [3])": r"^3 is no scene; expected scenes of the drawn world",
    "S['joy']": r"^'joy' came; a direction is asked for by emotion and layer: S\['joy', 6\]",
    "mean_ablation(acts, 1)": r"stands where a list of donors is expected",
    "mean_ablation([acts], 1, neurons=3)": r"neurons is 3; expected a list of numbers",
    "ei.tracing.patch([acts], 1, positions=[2])": r"^A list came; expected what collect\(vlm, prompt, …\) gives for one prompt",
    "ei.tracing.perplexity(vlm, [p], ['I felt sad.'])": r"^A list came; expected one prompt: vlm.prompt\(image, text\)",
    "ei.tracing.perplexity(p, vlm, ['I felt sad.'])": f"^A Prompt {VLM_FIRST}",
    "ei.start_here.tell_all(vlm, ['a.png'])": r"^'a.png' is no pair of picture and event; expected a list of \(picture, event\)",
    # numbers that are none, or none that can be used
    "steer(vlm, pairs, S, layers='3')": r"Layer '3' is no whole number; this model has layers 0 to 7",
    "ei.collect(vlm, p, layers='3')": r"Layer '3' is no whole number",
    "ei.collect(vlm, p, layers=1.0)": r"Layer 1.0 is no whole number",
    "ei.collect(vlm, p, positions=1.5)": r"1.5 is no position; expected token indices or spans such as 'last'",
    "ei.see_or_guess(vlm, '12')": r"n is '12'; expected a whole number",
    "ei.see_or_guess(vlm, 12.0)": r"n is 12.0; expected a whole number",
    "ei.world_pairs('test', '6')": r"n is '6'; expected a whole number from 1 up",
    "ei.world_pairs('test', -6)": r"n is -6; expected a whole number from 1 up",
    "ei.world_pairs('test', 0)": r"n is 0; expected a whole number from 1 up",
    "ei.pairs.text_pairs('test', 0)": r"n is 0; expected a whole number from 1 up",
    "ei.world_pairs('test', 6, emotions='happy')": r"The drawn world has no 'happy'; it has anger, disgust",
    "vlm.generate(p, max_new_tokens='5')": r"max_new_tokens is '5'; expected a whole number from 1 up",
    "vlm.generate(p, max_new_tokens=0)": r"max_new_tokens is 0; expected a whole number from 1 up",
    "vlm.generate([p], batch=0)": r"batch is 0; expected a whole number from 1 up",
    "vlm.generate(p, temperature='hot')": r"The temperature is 'hot'; expected a finite number from 0 up \(0 is greedy\)",
    "vlm.generate(p, temperature=float('nan'))": r"The temperature is nan; expected a finite number from 0 up",
    "S.sharpened('2')": r"k is '2'; expected a finite number",
    "S.scaled('2')": r"The strength is '2'; expected a finite number",
    "S.scaled({'joy': 'x', 'fear': 1})": r"The strength of joy is 'x'",
    "S['joy', '3']": r"The layer is '3'; expected a whole number",
    "steer(vlm, pairs, S, alphas='2')": r"alphas is '2'; expected a finite number",
    "steer(vlm, pairs, S, alphas=[])": r"The alphas are an empty list",
    "steer(vlm, pairs, S, max_cost='3')": r"max_cost is '3'; expected a number above 0",
    "ei.AddVector(1, vector, '2')": r"AddVector: alpha is '2'; expected a finite number",
    "ei.AddVector(1, vector, torch.tensor([1.0, 2.0]))": r"AddVector: alpha is a Tensor; expected a finite number",
    "ei.AddVector(1, vector, torch.tensor(float('inf')))": r"AddVector: alpha is tensor\(inf\); expected a finite number",
    "ei.Veena.from_circuit(circuit, '3')": r"l_emo is '3'; expected a whole number from 0 up",
    "ei.Veena([(0, 0)], beta='8')": r"beta is '8'; expected a finite number above 0; 1 changes nothing",
    "train_toys(features='3', progress=False)": r"features is '3'; expected a whole number from 1 up",
    "train_toys(densities=[0.5, 'x'], progress=False)": r"densities is 'x'; expected a finite number",
    "train_toys(importance='x', progress=False)": r"importance is 'x'; expected a finite number",
    # texts
    "logit_mass(vlm, [])": r"The words are an empty list; give one or more",
    "logit_mass(vlm, [3])": r"Among the words is 3; expected a list of texts",
    "logit_mass('afraid', vlm)": f"^'afraid' {VLM_FIRST}",
    "steer(vlm, pairs, S, towards=[])": r"towards are an empty list; give one or more",
    "steer(vlm, pairs, S, towards=3)": r"Among the towards is 3",
    "ei.collect(vlm, p, 3)": r"Among the sites is 3",
    # VEENA, before any work: `circuit` is not even of this model
    "fit(vlm, circuit, pairs, 3, betas=[])": r"The betas are an empty list",
    "fit(vlm, circuit, pairs, 3, betas='8')": r"betas is '8'; expected a finite number above 0",
    "fit(vlm, circuit, pairs, 3, gammas=[0])": r"gammas is 0; expected a finite number above 0",
    "fit(vlm, circuit, pairs, '3')": r"l_emo is '3'; expected a whole number",
    "fit(vlm, circuit, pairs, 3, form='x')": r"form is 'x'; expected 'scores' or 'weights'",
    "fit(vlm, circuit, pairs, 3, max_cost='x')": r"max_cost is 'x'; expected a number from 0 up",
    "fit(vlm, circuit, pairs, 3, questions=['yes?'])": r"'yes\?' is no question; expected a list of \(picture, question, answer\)",
    "fit(vlm, circuit, pairs[0], 3)": r"stands where a list of pairs is expected",
    "fit(pairs, circuit, vlm, 3)": f"^A list {VLM_FIRST}",
    "find_circuit(vlm, pairs[0])": r"stands where a list of pairs is expected",
    "find_circuit(vlm, pairs, heads='6')": r"heads is '6'; expected a whole number from 0 up",
}


def outcomes() -> dict[str, list[str]]:
    """What each call raises: the class's name and the words."""
    import pandas

    from emointerp.circuit import Circuit, Head
    from emointerp.directions import Directions
    from emointerp.veena import find_circuit, fit

    vlm, image, vector = ei.load(), picture(), torch.ones(256)
    p, e, pairs = vlm.prompt(image, EVENT), ei.AddVector(1, torch.ones(vlm.anatomy.d_model)), world_pairs("test", 2)
    S, circuit = (
        Directions(("joy", "fear"), torch.randn(2, 8, vlm.anatomy.d_model), (1, 1)),
        Circuit("other", "abc", (Head(1, 2, 0.5),)),
    )
    acts = ei.collect(vlm, p, ["residual"], positions="last")
    names = {**globals(), **locals(), "fit": fit, "find_circuit": find_circuit, "pandas": pandas}
    found = {}
    for call in REFUSED:
        try:
            eval(call, names)
        except Exception as error:
            found[call] = [type(error).__name__, str(error)]
        else:
            found[call] = ["nothing", ""]
    return found


if __name__ == "__main__":
    print(json.dumps(outcomes()))


@pytest.fixture(scope="module")
def raised() -> dict[str, list[str]]:
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, __file__], capture_output=True, text=True, check=True, env=env)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("call", REFUSED)
def test_what_cannot_be_meant_is_refused_in_words(call, raised):
    kind, words = raised[call]
    assert kind == "InputError" and re.search(REFUSED[call], words, re.DOTALL), f"{kind}: {words}"


# edits read once


@pytest.fixture(scope="module")
def vlm():
    return tiny("llava_clip")


@pytest.fixture(scope="module")
def prompts(vlm):
    return [vlm.prompt(picture(i)[:48, :64], EVENT) for i in range(2)]


def pushes(vlm) -> list:
    vector = torch.randn(vlm.anatomy.d_model, generator=torch.Generator().manual_seed(0))
    return [ei.AddVector(1, vector, 2.0), ei.ScaleNeurons(2, [0, 3], 3.0)]


@pytest.mark.parametrize("as_given", [iter, lambda edits: map(lambda edit: edit, edits), lambda edits: (edit for edit in edits)])
def test_edits_of_a_generator_are_done(vlm, prompts, as_given):
    edits = pushes(vlm)
    plain, pushed = (oracle.logits(vlm, prompts[0], some) for some in ((), edits))
    assert (plain - pushed).abs().max() > 1e-3
    assert torch.equal(ei.run(vlm, prompts[0], as_given(edits)).logits, pushed)
    assert torch.equal(ei.collect(vlm, prompts[0], edits=as_given(edits)).logits, pushed)
    ids = oracle.tokens(vlm, prompts[0], edits, n=5)
    assert oracle.tokens(vlm, prompts[0], n=5) != ids
    said = vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert ei.generate(vlm, prompts[0], as_given(edits), max_new_tokens=5) == said
    method = evaluation.edited("x", as_given(edits))
    item = evaluation.Item("x", picture(0)[:48, :64], EVENT, "joy")
    assert method.answers(vlm, [item], evaluation.Decoding(max_new_tokens=5)) == [said]


def test_edits_of_a_generator_are_done_in_every_prompt_and_batch(vlm, prompts):
    edits, pushed = pushes(vlm), [oracle.logits(vlm, p, pushes(vlm)) for p in prompts]
    for found, expected in zip(ei.run(vlm, iter(prompts), iter(edits)), pushed, strict=True):
        torch.testing.assert_close(found.logits, expected, atol=2e-5, rtol=0)
    for lists in ({"a": iter(edits)}, (iter(edits) for _ in range(1))):
        values = sweep(vlm, iter(prompts), lists, lambda logits: logits[:, 7], progress=False).values[:, 0]
        torch.testing.assert_close(values, torch.stack([p[7] for p in pushed]), atol=2e-5, rtol=0)
    texts = [vlm.tokenizer.decode(oracle.tokens(vlm, p, edits, n=4), skip_special_tokens=True).strip() for p in prompts]
    assert ei.generate(vlm, iter(prompts), iter(edits), max_new_tokens=4, batch=1) == texts
    assert [row[0] for row in sweep(vlm, prompts, {"a": iter(edits)}, max_new_tokens=4, progress=False).texts] == texts


def test_edits_of_a_generator_are_done_where_the_model_runs_elsewhere():
    near = tiny.__wrapped__("llava_clip")  # of its own, as nnsight hangs itself on a model's modules
    far = ei.load(near.model, processor=near.processor, remote="local")
    vlm, edits = tiny("llava_clip"), pushes(near)
    prompt = vlm.prompt(picture()[:48, :64], EVENT)
    pushed = oracle.logits(vlm, prompt, edits)
    assert (oracle.logits(vlm, prompt) - pushed).abs().max() > 1e-3
    torch.testing.assert_close(ei.run(far, prompt, iter(edits)).logits, pushed, atol=2e-5, rtol=0)
    values = sweep(far, [prompt], {"a": iter(edits)}, lambda logits: logits[:, 7], progress=False).values
    torch.testing.assert_close(values.flatten(), pushed[7:8], atol=2e-5, rtol=0)
    said = vlm.tokenizer.decode(oracle.tokens(vlm, prompt, edits, n=4), skip_special_tokens=True).strip()
    assert ei.generate(far, prompt, iter(edits), max_new_tokens=4) == said


def test_neurons_positions_and_donors_of_a_generator(vlm, prompts):
    acts = ei.collect(vlm, iter(prompts), ["neurons", "residual"])
    edit = patch(acts[0], 1, neurons=iter([3, 5]), positions=iter([1, 2]))
    assert edit.positions == (1, 2) and torch.equal(edit.value, acts[0].neurons[1, 1:3][:, [3, 5]])
    mean = mean_ablation(iter(acts), 1, neurons=iter([3, 5]))
    expected = torch.cat([one.neurons[1][:, [3, 5]] for one in acts]).mean(0)
    torch.testing.assert_close(mean.value, expected)
    assert patch(acts[0], 1, positions=2).positions == (2,)


# other lists


def test_pairs_alphas_layers_and_directions_of_a_generator(vlm):
    emotions = ("joy", "fear", "joy", "fear")
    pairs = [Pair(picture(i), picture(10 + i), EVENT, e) for i, e in enumerate(emotions)]
    S = steering_vectors(vlm, iter(pairs), tau=-1, progress=False)
    for layer in (0, 3):
        ends = [[oracle.caches(vlm, vlm.prompt(*side))["residual", layer][-1] for side in (p.plus, p.minus)] for p in pairs]
        joy = sum(ends[i][0] - ends[i][1] for i in (0, 2)) / 2
        torch.testing.assert_close(S["joy", layer], joy, atol=1e-4, rtol=0)
    options = {"max_new_tokens": 3, "progress": False}
    table = steer(
        vlm, iter(pairs[:2]), {"S": iter([S])}, layers=iter([1, 2]), alphas=iter([0, 2]), positions=iter(["last"]), **options
    )
    assert len(table.table) == 2 * 2 * 2 and set(table.table.alpha) == {0.0, 2.0}
    for row in table.table.itertuples():
        edits = [ei.AddVector(row.layer, S[row.emotion, row.layer], row.alpha, "last")]
        ids = oracle.tokens(vlm, vlm.prompt(*pairs[row.pair].minus), edits, n=3)
        assert row.story == vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()
    lone = steer(vlm, pairs[:1], S, layers=1, alphas=1, towards="joy", **options).table
    assert lone[["layer", "alpha", "towards"]].to_numpy().tolist() == [[1, 1.0, "joy"]]
    tensor = steer(vlm, pairs[:1], S, layers=torch.tensor([1]), alphas=torch.tensor([0.5, 1.0]), **options).table
    assert tensor.alpha.tolist() == [0.5, 1.0]


def test_prompts_and_answers_of_a_generator(vlm, prompts):
    plain = [vlm.tokenizer.decode(oracle.tokens(vlm, p, n=4), skip_special_tokens=True).strip() for p in prompts]
    assert vlm.generate(iter(prompts), max_new_tokens=4) == plain
    both = ["I felt sad.", "The day"]
    for found, answer in zip(answer_log_probs(vlm, prompts[0], iter(both)), both, strict=True):
        ids = torch.tensor(vlm.tokenizer(f" {answer}", add_special_tokens=False).input_ids)
        assert len(found) == len(ids)
    assert perplexity(vlm, prompts[0], both[0]) == perplexity(vlm, prompts[0], both)[:1], "a text is one answer"


def test_a_text_is_one_word(vlm, prompts):
    ids = vlm.tokenizer(" afraid", add_special_tokens=False).input_ids[:1]
    assert first_tokens(vlm, "afraid") == ids
    metric, p = logit_mass(vlm, "afraid"), oracle.logits(vlm, prompts[0]).softmax(-1)
    assert float(metric(p.log()[None])) == pytest.approx(float(p[ids[0]].log()), abs=1e-5)
    assert metric.name == "log p(afraid)" and logit_mass(vlm, iter(["sad", "afraid"])).name == "log p(sad, …)"
    assert {e.scene.emotion for e in sample("test", 4, emotions="joy")} == {"joy"}
    assert [p.emotion for p in world_pairs("test", 4, emotions=(e for e in ("joy", "fear")))] == ["joy", "fear", "joy", "fear"]


def test_toy_models_of_lone_numbers_and_generators():
    options = {"features": 3, "hidden": 2, "steps": 20, "seeds": 2, "progress": False}
    assert train_toys(densities=0.5, **options).densities == (0.5,)
    listed, given_ = train_toys(densities=[1.0, 0.5], **options), train_toys(densities=(d for d in (1.0, 0.5)), **options)
    assert given_.densities == (1.0, 0.5) and torch.equal(given_.W, listed.W)
    weights = train_toys(densities=torch.tensor([0.5]), importance=iter([1, 0.5, 0.25]), **options).importance
    assert weights.tolist() == [1, 0.5, 0.25] == train_toys(densities=0.5, importance=0.5, **options).importance.tolist()


def test_scenes_of_a_generator_and_lone_dimensions():
    scenes = face_scenes("test", 40)
    found = thumbnails(iter(scenes), 4)
    assert found.vectors.shape == (40, 48) and len(found.factors) == 40
    assert by_dimensions(found, found, dimensions=4, draws=1).dimensions.tolist() == [4]
    with pytest.raises(InputError, match="1 factors came; interference needs two"):
        interference(found, found.factors.columns[0])
    vlm = ei.load()
    assert embed(vlm, iter(scenes[:2]), progress=False).vectors.shape[0] == 2


def test_confidence_and_signs_of_prompts_of_a_generator(vlm, prompts):
    words = {"up": ["uncle", "friend"], "down": ["morning", "church", "teacher"]}
    assert len(confidence(vlm, iter(prompts), 1, words=words)) == 2 == len(predicted(vlm, iter(prompts), words=words))
    assert len(confidence(vlm, prompts[0], 1, words=words)) == 1
    m = torch.stack([oracle.caches(vlm, p)["neurons", 1][-1, 4] for p in prompts]).mean()
    assert signs(vlm, iter(prompts), Veena(neurons=[(1, 4)]))["mean"][0] == pytest.approx(float(m), rel=1e-4)


# numbers


def test_numbers_of_every_library_are_read():
    vector = torch.ones(4)
    halves = (0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor(0.5, dtype=torch.bfloat16))
    assert [ei.AddVector(3, vector, a).alpha for a in halves] == [0.5] * 5
    assert [ei.AddVector(3, vector, a).alpha for a in torch.linspace(0, 1, 3)] == [0.0, 0.5, 1.0]
    assert all(type(ei.AddVector(3, vector, a).alpha) is float for a in halves)
    assert [given.whole_number(n, "n") for n in (3, np.int64(3), torch.tensor(3))] == [3] * 3
    assert given.numbers(torch.tensor([0.5, 1.0])) == [0.5, 1.0] and given.numbers(torch.tensor(2.0)) == [2.0]
    assert given.number(float("inf"), "limit", least=0, endless=True) == float("inf")
    for strange in (True, "1", None, 1j, [1.0], torch.ones(2), float("nan"), float("inf"), 10**400):
        with pytest.raises(InputError, match="alpha is .*; expected a finite number"):
            given.number(strange, "alpha")
    for strange in (True, 1.0, "1", None, np.ones(2)):
        with pytest.raises(InputError, match="n is .*; expected a whole number"):
            given.whole_number(strange, "n")


# sampling


def test_do_sample_samples_at_one(vlm, prompts):
    greedy = vlm.generate(prompts[0], max_new_tokens=8)
    torch.manual_seed(5)
    options = {"do_sample": True, "temperature": 1.0, "top_k": 50, "top_p": 1.0, "max_new_tokens": 8}
    drawn = vlm.model.generate(**vlm.placed(prompts[0].inputs), **options)[0, len(prompts[0]) :]
    said = vlm.tokenizer.decode(drawn, skip_special_tokens=True).strip()
    assert vlm.generate(prompts[0], do_sample=True, top_k=50, seed=5, max_new_tokens=8) == said != greedy
    assert (
        vlm.generate(prompts[0], do_sample=False, max_new_tokens=8)
        == greedy
        == vlm.generate(prompts[0], temperature=0, max_new_tokens=8)
    )
    for options in ({"do_sample": True, "temperature": 0.0}, {"do_sample": False, "temperature": 1.0}):
        with pytest.raises(InputError, match="do_sample is .* and the temperature [01]; give the temperature alone"):
            vlm.generate(prompts[0], **options)


# pictures


@pytest.mark.parametrize(
    ("array", "came"),
    [
        (np.array([[-1.0, 0.0, 1.0]]), "from -1 to 1"),
        (np.array([[-2.1, 0.0, 2.6]], np.float32), "from -2.1 to 2.6"),
        (np.array([[-3, 0, 255]]), "from -3 to 255"),
        (np.array([[0, 70_000]]), "from 0 to 70000"),
    ],
)
def test_pictures_beyond_their_range_are_refused(array, came):
    with pytest.raises(InputError, match=rf"numbers {came}; expected numbers from 0 to 1.*normalised: bring it back, x \* std"):
        to_image(array)


# pairs whose two sides are one


def test_pairs_of_equal_sides_are_refused(tmp_path, vlm):
    scene, other = world_pairs("test", 1)[0].emotional, world_pairs("test", 1)[0].emotional
    image = to_image(scene)
    for one, two in ((image, image), ("a.png", Path("a.png")), (scene, other)):
        with pytest.raises(InputError, match=r"1 of 2 pairs \(0\) have the same picture and event on both sides"):
            check_number([Pair(one, two, EVENT, "joy"), *world_pairs("test", 1)])
    check_sides(
        [*text_pairs("test", 2), Pair("a.png", "b.png", EVENT, "joy"), Pair(image, image, EVENT, "joy", neutral_event="It rained.")]
    )
    same = [Pair(picture(1), picture(1), EVENT, "joy"), *[Pair(image, image, EVENT, e) for e in ("fear", "joy")]]
    for ask in (ei.head_map, differences):
        with pytest.raises(InputError, match=r"2 of 3 pairs \(1, 2\) have the same picture and event on both sides"):
            ask(vlm, same, progress=False)


def test_pairs_of_a_generator_are_saved_and_checked(tmp_path):
    pairs = [Pair(picture(i), picture(i + 1), EVENT, "joy") for i in range(2)]
    save_pairs(iter(pairs), tmp_path)
    assert len(read_pairs(tmp_path)) == 2 == len(as_pairs(iter(pairs)))
    assert len(ei.pairs.check(iter(pairs), progress=False).table) == 2


# a circuit of nothing


def test_too_few_pairs_for_a_circuit_are_named(vlm):
    from emointerp.veena import find_circuit

    words = {"joy": ["uncle", "friend"], "fear": ["morning", "church", "teacher"]}
    pairs = [Pair(picture(i), picture(10 + i), EVENT, e) for i, e in enumerate(("joy", "fear", "joy"))]
    with pytest.raises(InputError, match=r"with 3 pairs no head passes its test; give more pairs, a dozen an emotion or more"):
        find_circuit(vlm, iter(pairs), neurons=0, words=words, progress=False)


# what a matrix pools


def test_the_matrix_says_over_what_it_is_a_mean(vlm):
    pairs = [Pair(picture(i), picture(10 + i), EVENT, e) for i, e in enumerate(("joy", "fear"))]
    S = steering_vectors(vlm, pairs, tau=-1, progress=False)
    found = steer(vlm, pairs, S, layers=[1, 2], alphas=[0, 1], max_new_tokens=2, progress=False)
    titles = [found.plot_matrix(**one).axes[0].get_title() for one in ({}, {"layer": 1}, {"layer": 1, "alpha": 1})]
    pushed = "Neutral pictures, pushed"
    assert titles == [f"{pushed}\nmean over 2 layers, 2 strengths", f"{pushed}\nmean over 2 strengths", pushed]
    assert "all of them" in Steering.matrix.__doc__


def test_a_mask_of_torch_is_no_list_of_places():
    """`operator.index(torch.tensor(True))` is 1: a mask of tokens was read as the first two."""
    assert index_of(torch.tensor(True)) is None and index_of(torch.tensor(3)) == 3
    vlm = tiny("llava_clip")
    prompt = vlm.prompt(picture(0), "The phone rang.")
    mask = torch.zeros(len(prompt), dtype=torch.bool)
    mask[list(prompt.visual)] = True
    with pytest.raises(InputError, match="expected"):
        collect(vlm, prompt, positions=mask)
    with pytest.raises(InputError, match="expected"):
        AddVector(1, torch.ones(8), positions=mask)
