"""Source tokens, neuron scores and what feeds them, against autograd by hand, plain hooks and closed forms."""

import numpy as np
import oracle
import pytest
import tiny_families
import torch
from scipy.stats import false_discovery_control
from tiny_models import picture

import emointerp
from emointerp.circuit import Head
from emointerp.directions import Directions
from emointerp.emotions import hit_rate
from emointerp.errors import InputError
from emointerp.lens import emotion_tokens
from emointerp.models import load
from emointerp.neurons import (
    NeuronScores,
    check_neurons,
    feeders,
    naming,
    neuron_scores,
    patched,
    state_neurons,
    trigger_neurons,
    written,
)
from emointerp.pairs import Pair, twin_prompts, world_pairs
from emointerp.sources import source_tokens, value_path
from emointerp.statistics import sign_flips
from emointerp.tracing import Metric, SetHead, SetNeurons, generate, projection

WORDS = {"up": ["uncle", "friend"], "down": ["morning", "church", "teacher"]}
families = pytest.mark.parametrize("family", tiny_families.NAMES)
ways = pytest.mark.parametrize("noising", [False, True], ids=["denoising", "noising"])
quiet = {"words": WORDS, "progress": False}
LAST = tiny_families.LAYERS - 1
HEAD = (2, 3)


def some_pairs() -> list[Pair]:
    """Two pairs of noise pictures; what they show does not matter to random models."""
    pictures = [picture(seed)[:48, :64] for seed in range(4)]
    events = ("The phone rang twice while I was cooking.", "My uncle cleaned the old boat again.")
    return [Pair(*pictures[:2], events[0], "up"), Pair(*pictures[2:], events[1], "down", name="boat")]


def log_mass(vlm, logits, emotion: str) -> torch.Tensor:
    table = emotion_tokens(vlm, WORDS)
    return logits.softmax(-1)[table.id[table.emotion == emotion].tolist()].sum().log()


def some_directions(width: int = tiny_families.WIDTH) -> Directions:
    generator = torch.Generator().manual_seed(3)
    vectors = torch.randn(2, tiny_families.LAYERS, width, generator=generator)
    return Directions(("up", "down"), vectors, (1, 1))


class ByHand:
    """A plain eager forward whose activations can be differentiated: z, m and attention of every layer, and the metric."""

    def __init__(self, family: str, prompt, emotion: str):
        self.vlm, self.z, self.m = tiny_families.vlm(family, "eager"), {}, {}
        weight, handles = self.vlm.model.get_input_embeddings().weight, []
        before, weight.requires_grad = weight.requires_grad, True
        for i in range(tiny_families.LAYERS):
            layer = self.vlm.model.get_submodule(f"{self.vlm.anatomy.layers}.{i}")
            handles.append(layer.self_attn.o_proj.register_forward_pre_hook(self._keep(self.z, i)))
            handles.append(layer.mlp.down_proj.register_forward_pre_hook(self._keep(self.m, i)))
        try:
            out = self.vlm.model(**prompt.inputs, use_cache=False, output_attentions=True)
        finally:
            weight.requires_grad = before
            for handle in handles:
                handle.remove()
        self.attention, self.metric = out.attentions, log_mass(self.vlm, out.logits[0, -1], emotion)

    @staticmethod
    def _keep(kept, i):
        def hook(module, args):
            kept[i] = args[0]

        return hook

    def slope(self, of, wrt):
        """Gradients [layer, …] of a number; zero where there is no way."""
        found = torch.autograd.grad(of, wrt, retain_graph=True, allow_unused=True)
        return torch.stack([torch.zeros_like(w) if g is None else g for g, w in zip(found, wrt, strict=True)])[:, 0]


def close(found, expected, rtol=2e-3):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=rtol, atol=2e-5 * np.abs(expected).max())


# source tokens


@families
def test_the_source_is_where_attention_times_its_gradient_is_largest(family):
    pairs, heads = some_pairs(), [(1, 0), HEAD, (LAST, 1)]
    found = source_tokens(tiny_families.vlm(family), pairs, heads, **quiet).table
    prompt = twin_prompts(tiny_families.vlm(family), pairs[1], "I felt")[0]
    hand = ByHand(family, prompt, "down")
    slopes = torch.autograd.grad(hand.metric, hand.attention)
    for layer, head in heads:
        a = hand.attention[layer][0, head, -1].detach()
        product = a * slopes[layer][0, head, -1]
        row = found.query(f"pair == 1 and layer == {layer} and head == {head}").iloc[0]
        t = int(product.abs().argmax())
        assert row.token == t and row.most_attended == (t == int(a.argmax()))
        close([row.attribution, row.attention], [product[t], a[t]])
        close([row.from_V, row.from_Q, row.from_L], [product[list(prompt.span(s))].sum() for s in ("visual", "query", "last")])
        kinds = {**dict.fromkeys(prompt.visual, "V"), **dict.fromkeys(prompt.query, "Q"), prompt.last: "L"}
        assert row.span == kinds.get(t, "other")


@families
def test_the_value_path_is_what_v_proj_gives_the_heads_group(family):
    vlm, pair, directions = tiny_families.vlm(family), some_pairs()[1], some_directions()
    prompt = twin_prompts(vlm, pair, "I felt")[0]
    if family == "gemma3":
        with pytest.raises(InputError, match="In Gemma models a norm follows .* leave the directions out"):
            value_path(vlm, prompt, *HEAD, directions["up", 2])
        return
    layer, a = vlm.model.get_submodule(f"{vlm.anatomy.layers}.2"), vlm.anatomy
    kept = {}
    handle = layer.self_attn.v_proj.register_forward_hook(lambda module, args, out: kept.update(v=out[0].detach()))
    hand = ByHand(family, prompt, "down")  # whose eager twin has the same weights, in other modules
    try:
        oracle.logits(vlm, prompt)
    finally:
        handle.remove()
    v = kept["v"].view(len(prompt), a.n_kv_heads, a.d_head)
    for head in range(a.n_heads):
        mine = v[:, head // 2]
        z = hand.z[2][0, -1, head * a.d_head : (head + 1) * a.d_head]
        close((hand.attention[2][0, head, -1] @ mine).detach(), z.detach())  # so these are the values that the head mixes
        out = mine @ layer.self_attn.o_proj.weight[:, head * a.d_head : (head + 1) * a.d_head].T
        s = directions["down", 2]
        close(value_path(vlm, prompt, 2, head, s), (out @ (s / s.norm())).detach())


def test_the_check_needs_no_gradient_and_chance_is_attention():
    vlm, pairs, directions = tiny_families.vlm("qwen2_vl"), some_pairs(), some_directions()
    found = source_tokens(vlm, pairs, [HEAD, (1, 1)], directions, **quiet)
    for i, pair in enumerate(pairs):
        prompt = twin_prompts(vlm, pair, "I felt")[0]
        a = ByHand("qwen2_vl", prompt, pair.emotion).attention[2][0, 3, -1].detach()
        along = a * value_path(vlm, prompt, *HEAD, directions[pair.emotion, 2])
        row = found.table.query(f"pair == {i} and layer == 2").iloc[0]
        assert row.check == int(along.argmax()) and row.agrees == (row.check == row.token)
    frame, mine = found.to_frame(), found.table.query("layer == 2")
    assert frame.agrees[HEAD].mean == mine.agrees.mean() and frame.attention[HEAD].mean == pytest.approx(mine.attention.mean())
    assert frame.V[HEAD].mean == (mine.span == "V").mean() and found.tokens(*HEAD) == mine.token.tolist()
    edges = {(e.source, e.target): e.weight for e in found.edges([Head(*HEAD, 0.5)])}
    sizes = mine[["from_V", "from_Q", "from_L"]].abs().mean()
    assert edges["V", "L2H3"] == pytest.approx(0.5 * sizes.from_V / sizes.sum()) and sum(edges.values()) == pytest.approx(0.5)
    bars = found.plot().axes[0].containers
    assert [c[0].get_width() for c in bars] == [(mine.span == s).mean() for s in ("V", "Q", "L", "other")]
    with pytest.raises(InputError, match=r"no source tokens of head \(0, 0\); there are those of \(2, 3\), \(1, 1\)"):
        found.tokens(0, 0)


def test_patches_of_the_drawn_world_are_held_against_its_masks():
    vlm, pairs = load(), world_pairs("test", 4, seed=2)
    table = source_tokens(vlm, pairs, [(6, h) for h in range(8)], progress=False).table
    seen = table[(table.span == "V") & table.face.notna()]
    assert len(seen) > 4
    for row in seen.itertuples():
        prompt = vlm.prompt(*pairs[row.pair].plus, answer="I felt")
        y, x = divmod(prompt.visual.index(row.token), 8)  # 8 x 8 patches of 16 pixels
        for name, mask in pairs[row.pair].emotional.masks().items():
            if name in ("face", "expression"):
                assert getattr(row, name) == pytest.approx(mask[16 * y : 16 * y + 16, 16 * x : 16 * x + 16].mean())
                assert getattr(row, f"{name}_area") == pytest.approx(mask.mean())
    assert table.face[table.span != "V"].isna().all()


# scores


def differences(family: str, prompts, at: int | list[int]) -> np.ndarray:
    """m+ - m- [layer, neuron] at a token, or [layer, token, neuron] at some, by hooks."""
    vlm = tiny_families.vlm(family)
    plus, minus = (oracle.caches(vlm, prompt) for prompt in prompts)
    return np.stack([(plus["neurons", i][at] - minus["neurons", i][at]).numpy() for i in range(tiny_families.LAYERS)])


@families
def test_scores_are_differences_times_mean_gradients(family):
    vlm, pairs = tiny_families.vlm(family), some_pairs()
    found = neuron_scores(vlm, pairs, **quiet)
    prompts = twin_prompts(vlm, pairs[1], "I felt")
    hands = [ByHand(family, prompt, "down") for prompt in prompts]
    slope = sum(hand.slope(hand.metric, [hand.m[i] for i in range(LAST + 1)])[:, -1] for hand in hands) / 2
    close(found.scores[1], differences(family, prompts, -1) * slope.numpy())
    of_plus = oracle.caches(vlm, prompts[0])
    close(found.activations[1], np.stack([of_plus["neurons", i][-1] for i in range(LAST + 1)]))
    assert found.tokens == tuple((twin_prompts(vlm, pair, "I felt")[0].last,) for pair in pairs)
    mean = found.scores.mean(0)
    assert [mean[at] for at in found.top(5)] == sorted(mean.flatten().tolist(), reverse=True)[:5]


@pytest.mark.parametrize(("slope", "run"), [("donor", 0), ("receiver", 1)])
@pytest.mark.parametrize("head", [None, HEAD])
def test_the_slope_of_one_run_is_the_gradient_there(head, slope, run):
    """ "receiver" is the neutral twin's, of which methods' `(m+ - m-) * dM/dm` is made; "both" is the mean of the two."""
    family, tokens = "qwen2_vl", "query" if head else "last"
    vlm, pairs = tiny_families.vlm(family), some_pairs()
    found = neuron_scores(vlm, pairs, head, tokens, slope=slope, **quiet)
    prompts, layers = twin_prompts(vlm, pairs[1], "I felt"), head[0] if head else LAST + 1
    hand, at = ByHand(family, prompts[run], "down"), list(prompts[0].span(tokens))
    m = [hand.m[i] for i in range(layers)]
    gradient = (through(hand, head, m) if head else hand.slope(hand.metric, m))[:, at]
    close(found.scores[1], (differences(family, prompts, at)[:layers] * gradient.numpy()).sum(1), rtol=1e-2)
    both = [neuron_scores(vlm, pairs, head, tokens, slope=name, **quiet).scores for name in ("donor", "receiver", "both")]
    close(both[2], (both[0] + both[1]) / 2, rtol=1e-2)


def through(hand: ByHand, head: tuple[int, int], m: list) -> torch.Tensor:
    """dM/dz of a head at the last token, taken as a constant, and the gradient of its product with z: what goes by no other way."""
    z, d = hand.z[head[0]], hand.vlm.anatomy.d_head
    mine = slice(head[1] * d, (head[1] + 1) * d)
    g = torch.autograd.grad(hand.metric, z, retain_graph=True)[0][0, -1, mine]
    return hand.slope((z[0, -1, mine] * g).sum(), m)


@families
def test_through_a_head_is_the_gradient_of_its_output_alone(family):
    vlm, pairs, layer = tiny_families.vlm(family), some_pairs(), HEAD[0]
    found = neuron_scores(vlm, pairs, HEAD, **quiet)
    tokens = source_tokens(vlm, pairs, [HEAD], **quiet).tokens(*HEAD)
    prompts = twin_prompts(vlm, pairs[1], "I felt")
    hands = [ByHand(family, prompt, "down") for prompt in prompts]
    slope = sum(through(hand, HEAD, [hand.m[i] for i in range(layer)])[:, tokens[1]] for hand in hands) / 2
    assert found.tokens == tuple((t,) for t in tokens) and found.scores.shape == (2, layer, tiny_families.MLP)
    close(found.scores[1], differences(family, prompts, tokens[1])[:layer] * slope.numpy(), rtol=1e-2)


@families
def test_at_all_tokens_of_the_picture_scores_add_up_and_patches_are_made_at_once(family):
    vlm, pairs = tiny_families.vlm(family), some_pairs()
    found = neuron_scores(vlm, pairs, HEAD, "visual", **quiet)
    prompts, layer = twin_prompts(vlm, pairs[1], "I felt"), HEAD[0]
    hands, v = [ByHand(family, prompt, "down") for prompt in prompts], list(prompts[0].visual)
    slope = sum(through(hand, HEAD, [hand.m[i] for i in range(layer)])[:, v] for hand in hands) / 2
    moved = differences(family, prompts, v)[:layer]
    close(found.scores[1], (moved * slope.numpy()).sum(1), rtol=2e-2)
    exact = patched(vlm, pairs, [(0, 5)], tokens="visual", **quiet)[1, 0]
    edit = SetNeurons(0, [5], oracle.caches(vlm, prompts[0])["neurons", 0][v][:, [5]], "visual")
    values = [float(log_mass(vlm, oracle.logits(vlm, prompts[1], some).double(), "down")) for some in ((edit,), ())]
    assert exact == pytest.approx(values[0] - values[1], abs=3e-4)


@families
@ways
def test_patching_is_a_forward_with_the_other_runs_value(family, noising):
    vlm, pairs, neurons = tiny_families.vlm(family), some_pairs(), [(0, 5), (1, 40)]
    free = patched(vlm, pairs, neurons, noising=noising, **quiet)
    through = patched(vlm, pairs, neurons, HEAD, [12, 13], noising=noising, **quiet)
    plus, minus = twin_prompts(vlm, pairs[1], "I felt")
    receiver, donor, sign = (plus, minus, -1) if noising else (minus, plus, 1)
    given, own, d = oracle.caches(vlm, donor), oracle.caches(vlm, receiver), vlm.anatomy.d_head

    def value(*edits):
        return sign * float(log_mass(vlm, oracle.logits(vlm, receiver, edits).double(), "down"))

    held = SetHead(2, 3, own["heads", 2][-1, 3 * d : 4 * d], "last")
    for k, (layer, n) in enumerate(neurons):
        at_last, at_13 = (SetNeurons(layer, [n], given["neurons", layer][t, [n]], t) for t in (-1, 13))
        assert free[1, k] == pytest.approx(value(at_last) - value(), abs=2e-4)
        assert through[1, k] == pytest.approx(value(at_13) - value(at_13, held), abs=3e-4)


@pytest.mark.parametrize("family", [name for name in tiny_families.NAMES if name != "gemma3"])
def test_of_a_neuron_that_writes_straight_into_the_metric_all_is_known(family):
    """The metric is a projection after the neuron's own layer: attribution = patching = (m+ - m-) <v_n, S_hat>."""
    vlm, pairs, layer = tiny_families.vlm(family), some_pairs(), 2
    directions = some_directions()
    s = directions["up", layer]
    options = {"metric": projection(s, layer), "progress": False}
    found = neuron_scores(vlm, pairs, directions=directions, **options)
    v = vlm.model.get_submodule(f"{vlm.anatomy.layers}.{layer}").mlp.down_proj.weight.detach().T
    unit = (s / s.norm()).numpy()
    expected = differences(family, twin_prompts(vlm, pairs[1], "I felt"), -1)[layer] * (v.numpy() @ unit)
    close(found.scores[1, layer], expected)
    assert not found.scores[:, layer + 1 :].any()
    close(patched(vlm, pairs, [(layer, n) for n in range(6)], **options)[1], expected[:6], rtol=1e-2)
    down = (directions["down", layer] / directions["down", layer].norm()).numpy()
    aligned = [(found.activations[0, layer] * (v.numpy() @ unit)), found.activations[1, layer] * (v.numpy() @ down)]
    close(found.aligned[layer], np.mean(aligned, 0))


def test_frames_and_figures_of_scores():
    found = neuron_scores(tiny_families.vlm("llava_clip"), some_pairs(), **quiet)
    frame = found.to_frame(7, flips=200)
    assert [tuple(at) for at in frame[["layer", "neuron"]].to_numpy()] == found.top(7)
    first = found.scores[:, *found.top(1)[0]]
    assert frame.score[0].mean == pytest.approx(first.mean()) and frame.score[0].n == 2
    assert frame.activation[0] == pytest.approx(found.activations[:, *found.top(1)[0]].mean()) and frame.aligned.isna().all()
    lines = found.plot().axes[0].get_lines()
    assert len(lines) == tiny_families.LAYERS and lines[1].get_ydata()[0] == pytest.approx(found.scores.mean(0)[1].max())


def test_a_planted_neuron_is_found_among_many_and_chance_is_not():
    """Over many columns the correction leaves noise alone: of 200 null neurons few pass, the planted one does."""
    rng = np.random.default_rng(0)
    scores = rng.normal(0, 1, (40, 2, 100)).astype(np.float32)
    scores[:, 1, 33] += 2
    found = NeuronScores(scores, np.ones_like(scores), ("joy",) * 40, ((9,),) * 40)
    frame = found.to_frame(200)
    assert found.top(1) == [(1, 33)] and frame.p[0] < 0.03 and (frame.p[1:] < 0.05).sum() <= 2


# what feeds a neuron


@families
def test_feeders_are_heads_whose_change_reaches_the_neuron(family):
    vlm, pairs, neuron = tiny_families.vlm(family), some_pairs(), (2, 11)
    prompts, d = twin_prompts(vlm, pairs[1], "I felt"), vlm.anatomy.d_head
    plus, minus = (oracle.caches(vlm, prompt) for prompt in prompts)
    for tokens in (None, [14, 15]) if family == "llava_clip" else (None,):
        found, t = feeders(vlm, pairs, neuron, tokens, **quiet), -1 if tokens is None else 15
        slopes = []
        for hand in (ByHand(family, prompt, "down") for prompt in prompts):
            m = hand.m[2]
            g = torch.autograd.grad(hand.metric, m, retain_graph=True)[0][0, t, 11]
            slopes.append(hand.slope(m[0, t, 11] * g, [hand.z[i] for i in range(3)])[:, t])
        moved = torch.stack([plus["heads", i][t] - minus["heads", i][t] for i in range(3)])
        close(found.scores[1], (moved * sum(slopes) / 2).view(3, -1, d).sum(-1), rtol=2e-2)
        if family == "llava_clip":
            one = feeders(vlm, pairs, neuron, tokens, slope="receiver", **quiet).scores[1]
            close(one, (moved * slopes[1]).view(3, -1, d).sum(-1), rtol=2e-2)
    frame, mean = found.to_frame(flips=100), found.scores.mean(0)
    assert frame.score.iloc[0].mean == pytest.approx(mean.max()) and len(frame) == mean.size
    assert [(e.source, e.target) for e in found.edges([(1, 2), (3, 0)])] == [("L1H2", "L2N11")]
    assert found.edges([(1, 2)])[0].weight == pytest.approx(mean[1, 2])
    close(found.plot().axes[0].images[0].get_array(), mean)


# trigger and state neurons


def test_neurons_are_not_tested_on_the_pictures_that_chose_them():
    pairs = some_pairs()
    for find in (state_neurons, lambda vlm, pairs, **how: trigger_neurons(vlm, pairs, [HEAD], **how)):
        with pytest.raises(InputError, match="1 emotional pictures stand in both sets; take pairs of different splits"):
            find(tiny_families.vlm("llava_clip"), pairs, held_out=pairs[:1], **quiet)


def test_a_vector_names_the_emotion_whose_token_it_is():
    vlm = tiny_families.vlm("llava_clip")
    table, rows = emotion_tokens(vlm, WORDS), vlm.model.lm_head.weight.detach()
    up, down = (int(table.id[table.emotion == e].iloc[0]) for e in ("up", "down"))
    none = next(i for i in range(5, 300) if naming(vlm, rows[[i]], WORDS).names[0] == "")
    frame = naming(vlm, rows[[up, down, none]], WORDS)
    assert frame.names.tolist() == ["up", "down", ""] and frame["words"][0].startswith(vlm.tokenizer.decode([up]))
    p = vlm.model.lm_head(vlm.model.model.language_model.norm(rows[up])).softmax(-1).detach()
    assert frame.mass[0] == pytest.approx(float(p[table.id[table.emotion == "up"].tolist()].sum()), rel=1e-4)


def test_what_a_neuron_writes_in_gemma_goes_through_the_norm_behind_it():
    vlm = tiny_families.vlm("gemma3")
    layer = vlm.model.get_submodule(f"{vlm.anatomy.layers}.1")
    m = torch.zeros(1, tiny_families.MLP)
    m[0, 7] = 3.0
    with torch.no_grad():
        expected = layer.post_feedforward_layernorm(layer.mlp.down_proj(m))[0]
    assert torch.cosine_similarity(written(vlm, 1, [7])[0], expected, 0) == pytest.approx(1, abs=1e-4)


@families
def test_state_and_trigger_neurons_run_on_every_family(family):
    vlm, pairs = tiny_families.vlm(family), some_pairs()
    directions = None if family == "gemma3" else some_directions()
    states = state_neurons(vlm, pairs, directions, k=4, flips=50, **quiet)
    triggers = trigger_neurons(vlm, pairs, [HEAD, (LAST, 1)], directions, k=2, flips=50, **quiet)
    assert len(states.table) == 4 and set(states.table.kind) <= {"state", "unnamed"} and (triggers.table.kind == "trigger").all()
    assert triggers.table["head"].tolist() == ["L2H3"] * 2 + [f"L{LAST}H1"] * 2
    row = triggers.table.iloc[0]
    tokens = source_tokens(vlm, pairs, [HEAD], **quiet).tokens(*HEAD)
    exact = patched(vlm, pairs, [(int(row.layer), int(row.neuron))], HEAD, tokens, **quiet)
    assert row.exact.mean == pytest.approx(exact.mean(), abs=1e-5) and (triggers.table.layer < LAST).all()
    assert states.table.aligned.isna().all() == (family == "gemma3") and 0 <= states.control <= 1


def test_tables_become_parts_edges_and_figures():
    vlm, pairs = tiny_families.vlm("llava_clip"), some_pairs()
    found = trigger_neurons(vlm, pairs, [HEAD, (LAST, 1)], k=3, flips=50, held_out=world_like(4)[2:], **quiet)
    table = found.table
    good = table[table.exact.map(lambda i: i.mean > 0)]
    parts, edges = found.parts(1.0), {(e.source, e.target): e.weight for e in found.edges(1.0)}
    assert {part.name for part in parts} == {f"L{r.layer}N{r.neuron}" for r in good.itertuples()}
    for row in good.itertuples():
        assert edges[f"L{row.layer}N{row.neuron}", row.head] == pytest.approx(row.exact.mean)
        score = next(p.score for p in parts if (p.layer, p.neuron) == (row.layer, row.neuron))
        assert score >= row.exact.mean
    assert found.parts(0.0) == [] and found.stands(0.0).empty
    filled = [
        line for line in found.plot().axes[0].get_lines() if line.get_markerfacecolor() != "white" and line.get_marker() == "o"
    ]
    assert [float(line.get_xdata()[0]) for line in filled] == pytest.approx([i.mean for i in table.exact])


def test_state_neurons_along_the_text():
    """`at="query"` scans and patches all tokens between the picture and the last one."""
    vlm, pairs = tiny_families.vlm("llava_clip"), some_pairs()
    found = state_neurons(vlm, pairs, at="query", k=3, flips=50, **quiet)
    scores = neuron_scores(vlm, pairs, sources="query", **quiet)
    prompts = twin_prompts(vlm, pairs[1], "I felt")
    assert scores.tokens[1] == tuple(range(prompts[0].visual[-1] + 1, prompts[0].last)) and len(scores.tokens[1]) > 5
    hands, q = [ByHand("llava_clip", prompt, "down") for prompt in prompts], list(scores.tokens[1])
    slope = sum(hand.slope(hand.metric, [hand.m[i] for i in range(LAST + 1)])[:, q] for hand in hands) / 2
    close(scores.scores[1], (differences("llava_clip", prompts, q) * slope.numpy()).sum(1), rtol=1e-2)
    assert list(zip(found.table.layer, found.table.neuron, strict=True)) == scores.top(3)
    layer, n = scores.top(1)[0]
    edit = SetNeurons(layer, [n], oracle.caches(vlm, prompts[0])["neurons", layer][q][:, [n]], "query")
    values = [float(log_mass(vlm, oracle.logits(vlm, prompts[1], some).double(), "down")) for some in ((edit,), ())]
    exact = patched(vlm, pairs, [(layer, n)], tokens="query", **quiet)
    assert exact[1, 0] == pytest.approx(values[0] - values[1], abs=3e-4)
    assert found.table.exact[0].mean == pytest.approx(exact.mean(), abs=1e-5)
    assert (found.table.span == "Q").all() and (state_neurons(vlm, pairs, k=3, flips=50, **quiet).table.span == "L").all()
    assert {part.position for part in found.parts(1.0)} <= {"query"}


def test_p_values_are_corrected_over_all_that_are_listed_and_words_follow_the_sign():
    vlm, pairs = tiny_families.vlm("llava_clip"), world_like(12)
    found = state_neurons(vlm, pairs, k=6, flips=300, **quiet)
    exact = patched(vlm, pairs, list(zip(found.table.layer, found.table.neuron, strict=True)), **quiet)
    up = np.array([pair.emotion == "up" for pair in pairs])
    smallest = np.min([sign_flips(some, 300, "greater").p for some in (exact, exact[up], exact[~up])], axis=0)
    expected = false_discovery_control(np.minimum(1, 3 * smallest))
    assert found.table.p_exact.tolist() == pytest.approx(expected.tolist())
    row = found.table.iloc[0]
    v = vlm.model.get_submodule(f"{vlm.anatomy.layers}.{row.layer}").mlp.down_proj.weight.detach()[:, row.neuron]
    logits = vlm.model.lm_head(vlm.model.model.language_model.norm(np.sign(row.activation) * v))
    assert row["words"].startswith(vlm.tokenizer.decode([int(logits.argmax())]))
    means = {e: exact[[p.emotion == e for p in pairs], 0].mean() for e in ("up", "down")}
    assert row.moves == max(means, key=means.get) and row["share"] == pytest.approx(
        max(means.values()) / sum(max(0, m) for m in means.values()), rel=1e-4
    )


def world_like(n: int) -> list[Pair]:
    return [Pair(picture(2 * i)[:48, :64], picture(2 * i + 1)[:48, :64], "I ate soup.", ("up", "down")[i % 2]) for i in range(n)]


# the function check


@pytest.mark.parametrize("family", ["llava_clip", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("donors", ["neutral", "others"])
def test_the_check_is_ablation_and_restoration_by_plain_hooks(family, donors):
    vlm, pairs, tested = tiny_families.vlm(family), world_like(4), [(2, 31), (1, 0), (2, 7)]
    found = check_neurons(vlm, pairs, tested, sets=5, donors=donors, **quiet)
    prompts = [twin_prompts(vlm, pair, "I felt") for pair in pairs]
    kept = [[oracle.caches(vlm, prompt) for prompt in both] for both in prompts]
    pool = [kept[j][1] for j in range(1, 4)] if donors == "neutral" else [kept[j][0] for j in (1, 3)]
    mine = found.table[found.table.pair == 0].set_index(["check", "set"])
    for i in (0, 2):
        some = found.sets.neurons[i]

        def value(prompt, given, some=some):
            edits = [SetNeurons(layer, [n], given["neurons", layer][-1:, n]) for layer, n in some]
            return float(log_mass(vlm, oracle.logits(vlm, prompt, edits), "up"))

        mean = {key: torch.stack([run[key][-1:] for run in pool]).mean(0) for key in pool[0] if key[0] == "neurons"}
        assert mine.value["mean-ablation", i] == pytest.approx(value(prompts[0][0], mean), abs=1e-5)
        assert mine.value["restoration", i] == pytest.approx(value(prompts[0][1], kept[0][0]), abs=1e-5)
        possible = [value(prompts[0][0], run) for run in pool]  # of one donor all neurons, not of each another
        assert np.abs(np.array(possible) - mine.value["resample-ablation", i]).min() < 1e-5
    ends = [float(log_mass(vlm, oracle.logits(vlm, prompt), "up")) for prompt in prompts[0]]
    assert mine.loc["restoration", ["goal", "own"]].iloc[0].tolist() == pytest.approx(ends, abs=1e-5)
    assert found.sets.neurons[0] == ((1, 0), (2, 7), (2, 31)) and len(found.sets) == 6
    assert all(sorted(layer for layer, _ in some) == [1, 2, 2] and len(set(some)) == 3 for some in found.sets.neurons)


@pytest.mark.parametrize("tokens", ["visual", [12, 13, 14]], ids=["a span", "one a pair"])
def test_the_check_at_other_tokens_takes_each_pairs_own(tokens):
    vlm, pairs = tiny_families.vlm("llava_clip"), world_like(3)
    found = check_neurons(vlm, pairs, [(1, 2)], sets=2, tokens=tokens, **quiet)
    prompts = [twin_prompts(vlm, pair, "I felt") for pair in pairs]
    at = [list(p[0].visual) if tokens == "visual" else [t] for p, t in zip(prompts, (12, 13, 14), strict=True)]
    values = [oracle.caches(vlm, both[1])["neurons", 1][some, 2] for both, some in zip(prompts, at, strict=True)]
    mean = torch.cat(values[1:]).mean()[None]
    own = oracle.caches(vlm, prompts[0][0])["neurons", 1][at[0]][:, [2]]
    mine = found.table.query("pair == 0 and set == 0").set_index("check").value
    for name, prompt, given in (("mean-ablation", prompts[0][0], mean), ("restoration", prompts[0][1], own)):
        expected = log_mass(vlm, oracle.logits(vlm, prompt, [SetNeurons(1, [2], given, tuple(at[0]))]), "up")
        assert mine[name] == pytest.approx(float(expected), abs=1e-5)


def test_random_sets_are_as_loud_and_the_table_says_how_loud():
    vlm, pairs, tested = tiny_families.vlm("llava_clip"), some_pairs(), ((1, 4), (2, 9), (2, 30))
    found = check_neurons(vlm, pairs, tested, sets=40, near=6, **quiet)
    seen = [oracle.caches(vlm, twin_prompts(vlm, pair, "I felt")[0]) for pair in pairs]
    layers = [layer.mlp.down_proj.weight.detach().norm(dim=0) for layer in vlm.model.model.language_model.layers]
    loud = {i: torch.stack([run["neurons", i][-1].abs() for run in seen]).mean(0) * layers[i] for i in (1, 2)}
    for some, norm in zip(found.sets.neurons, found.sets.norm, strict=True):
        assert norm == pytest.approx(np.mean([float(loud[layer][n]) for layer, n in some]), rel=1e-4)
        assert tuple(layer for layer, _ in some) == (1, 2, 2)
    nearest = (loud[1] - loud[1][4]).abs().argsort()[:6].tolist()
    assert {some[0][1] for some in found.sets.neurons} == set(nearest)
    alone = check_neurons(vlm, pairs, [(1, 4)], sets=60, **quiet)  # there are 47 others; all of them are drawn
    assert {some[0][1] for some in alone.sets.neurons} == set(range(48)) and alone.to_frame().sets.tolist() == [47] * 3
    frame, table = found.to_frame(), found.table[found.table.check == "restoration"]
    moved = table.assign(moved=table.value - table.own, gap=table.goal - table.own).groupby("set")[["moved", "gap"]].mean()
    shares = (moved.moved / moved.gap).to_numpy()
    assert frame.effect["restoration"].mean == pytest.approx(shares[0]) and (frame.sets == 40).all()
    assert frame.p["restoration"] == (1 + (shares[1:] >= shares[0]).sum()) / 41
    assert frame.norm["restoration"] == pytest.approx(found.sets.norm[1:].mean() / found.sets.norm[0])
    assert found.plot().axes[2].get_lines()[0].get_xdata()[0] == pytest.approx(shares[0])


def test_a_check_is_kept_and_goes_on_with_the_same_settings_only(tmp_path):
    vlm, pairs, file = tiny_families.vlm("llava_clip"), world_like(4), tmp_path / "check.jsonl"
    options = {"neurons": [(2, 3), (1, 0)], "sets": 3, "file": file, **quiet}
    whole = emointerp.check_neurons(vlm, pairs, **options)
    lines = file.read_text().splitlines(keepends=True)
    assert len(lines) == 5
    file.write_text("".join(lines[:3]) + lines[3][:20])  # as an interruption may leave it
    assert check_neurons(vlm, pairs, **options).table.equals(whole.table)
    for other, said in (
        ({"seed": 1}, "seed was 0, now 1"),
        ({"tokens": "visual"}, "positions was"),
        ({"neurons": [(2, 4)]}, "sets"),
    ):
        with pytest.raises(InputError, match=f"begun with other settings: .*{said}"):
            check_neurons(vlm, pairs, **options | other)


def test_the_check_of_a_story():
    vlm, pairs = load(), world_pairs("test", 2, seed=3)
    options = {"sets": 1, "metric": "hit rate", "max_new_tokens": 8, "progress": False}
    found = check_neurons(vlm, pairs, [(6, 5), (6, 40)], **options)
    (plus, minus), other = twin_prompts(vlm, pairs[0]), twin_prompts(vlm, pairs[1])[1]
    mine = found.table.query("pair == 0 and set == 0").set_index("check").value
    for check, prompt, donor in (("mean-ablation", plus, other), ("restoration", minus, plus)):
        value = oracle.caches(vlm, donor)["neurons", 6][-1, [5, 40]]
        told = generate(vlm, prompt, [SetNeurons(6, [5, 40], value, ("last", "answer"))], max_new_tokens=8)
        assert mine[check] == hit_rate(told, pairs[0].emotion)
    with pytest.raises(InputError, match="metric='hit rate' neurons are set from the last token on; leave out tokens='visual'"):
        check_neurons(vlm, pairs, [(6, 5)], tokens="visual", **options)


# what is refused


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vlm, pairs: source_tokens(vlm, pairs[:1], [HEAD], **quiet), "1 pairs came; two or more"),
        (lambda vlm, pairs: source_tokens(vlm, pairs, [], **quiet), r"There are no heads; expected \(layer, head\) pairs"),
        (lambda vlm, pairs: source_tokens(vlm, pairs, [(2, 4)], **quiet), r"no head \(2, 4\); .* has heads 0 to 3"),
        (lambda vlm, pairs: source_tokens(vlm, pairs, [(9, 0)], **quiet), "Layer 9 is out of range"),
        (lambda vlm, pairs: neuron_scores(vlm, pairs, (0, 1), **quiet), "L0H1 is in the first layer; no neurons lie below it"),
        (lambda vlm, pairs: trigger_neurons(vlm, pairs, [(0, 1)], **quiet), "All heads are in the first layer"),
        (lambda vlm, pairs: trigger_neurons(vlm, pairs, [HEAD], at="sky", **quiet), "at is 'sky'; expected 'source' or 'visual'"),
        (lambda vlm, pairs: state_neurons(vlm, pairs, at="visual", **quiet), "at is 'visual'; expected 'last' or 'query'"),
        (lambda vlm, pairs: neuron_scores(vlm, pairs, slope="mean", **quiet), "slope is 'mean'; expected 'both', 'donor', 'rec"),
        (lambda vlm, pairs: neuron_scores(vlm, pairs, HEAD, "sky", **quiet), "sources is 'sky'; expected Sources, or one of 'vis"),
        (lambda vlm, pairs: check_neurons(vlm, pairs, [], **quiet), r"There are no neurons; expected \(layer, neuron\) pairs"),
        (lambda vlm, pairs: check_neurons(vlm, pairs, [(0, 48)], **quiet), r"no neuron \(0, 48\); .* has neurons 0 to 47"),
        (lambda vlm, pairs: check_neurons(vlm, pairs, [(0, 4)], sets=0, **quiet), "sets is 0; expected 1 or more random sets"),
        (lambda vlm, pairs: check_neurons(vlm, pairs, [(0, 4)], near=1, **quiet), "near is 1; expected 2 or more neurons of a lay"),
        (lambda vlm, pairs: check_neurons(vlm, pairs, [(2, n) for n in range(30)], apart=True, **quiet),
         "30 of layer 2's 48 neurons are tested, so too few others are left .* test fewer, or leave `apart` False"),
        (lambda vlm, pairs: check_neurons(vlm, pairs, [(2, n) for n in range(48)], **quiet), "48 of layer 2's 48 neurons are t"),
        (lambda vlm, pairs: check_neurons(vlm, pairs, [(0, 4)], tokens="sky", **quiet), "sky"),
        (lambda vlm, pairs: check_neurons(vlm, pairs, [(0, 4)], tokens=[3], **quiet), "1 source tokens for 2 pairs; find them"),
        (lambda vlm, pairs: check_neurons(vlm, pairs, [(0, 4)], donors="all", **quiet), "donors is 'all'; expected 'neutral' or"),
        (lambda vlm, pairs: patched(vlm, pairs, [(0, 48)], **quiet), r"no neuron \(0, 48\); .* has neurons 0 to 47"),
        (lambda vlm, pairs: patched(vlm, pairs, [(0, 4)], None, [3], **quiet), "1 source tokens for 2 pairs; find them"),
        (lambda vlm, pairs: feeders(vlm, pairs, (0, 4), [3, 999], **quiet), "Position 999 is outside this prompt"),
        (lambda vlm, pairs: neuron_scores(vlm, pairs, metric="hit rate", **quiet), "metric is 'hit rate'; expected 'log mass'"),
        (lambda vlm, pairs: state_neurons(vlm, pairs, words={"up": ["uncle"]}), "Pairs show down; there are words of up"),
        (lambda vlm, pairs: neuron_scores(vlm, pairs, directions=some_directions(), metric=Metric(lambda x: x[:, :2])),
         r"gives \[2\] values a forward; a gradient needs one"),
    ],
)  # fmt: skip
def test_requests_that_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call(tiny_families.vlm("llava_clip"), some_pairs())


def test_gemma_has_no_alignment_and_twins_must_match():
    with pytest.raises(InputError, match="In Gemma models a norm follows"):
        neuron_scores(tiny_families.vlm("gemma3"), some_pairs(), directions=some_directions(), **quiet)
    wide = [Pair(picture(1)[:32, :96], picture(2)[:64, :96], "I ate soup.", "up", name="pier"), some_pairs()[1]]
    with pytest.raises(InputError, match=r"differ in their tokens: pier"):
        neuron_scores(tiny_families.vlm("qwen2_vl"), wide, **quiet)


def test_source_tokens_are_those_of_these_pairs_and_heads_that_the_metric_sees():
    vlm, pairs = tiny_families.vlm("llava_clip"), some_pairs()
    found = source_tokens(vlm, pairs, [(2, 1)], words=WORDS, progress=False)
    for other in (pairs[::-1], [*pairs, *pairs], [pairs[0], pairs[0]]):
        with pytest.raises(InputError, match="source tokens are of 2 pairs, and other pairs came .*, or in another order"):
            neuron_scores(vlm, other, (2, 1), found, words=WORDS, progress=False)
    early = projection(torch.ones(vlm.anatomy.d_model), 1)
    for ask in (lambda: source_tokens(vlm, pairs, [(2, 1)], metric=early), lambda: neuron_scores(vlm, pairs, (2, 1), metric=early)):
        with pytest.raises(InputError, match="is read after layer 1, before L2H1 writes; take heads up to that layer"):
            ask()
