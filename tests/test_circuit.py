"""The circuit as a value, its edits and its drawing; faithfulness, completeness, minimality and stability."""

import copy
import json
from dataclasses import replace

import numpy as np
import oracle
import pandas as pd
import pytest
import tiny_families
import torch
from scipy.stats import false_discovery_control
from tiny_models import picture

import emointerp
from emointerp.circuit import Circuit, Edge, Head, Neuron, collect_donors, revision, to_logits
from emointerp.directions import Directions
from emointerp.errors import InputError
from emointerp.faithfulness import completeness, faithfulness, minimality, stability, stability_of_halves
from emointerp.lens import emotion_tokens
from emointerp.models import VLM, load
from emointerp.pairs import Pair, twin_prompts, world_pairs
from emointerp.statistics import sign_flips
from emointerp.tracing import ScaleAttention, ScaleNeurons, SetHead, SetNeurons, collect, projection, run

WORDS = {"up": ["uncle", "friend"], "down": ["morning", "church", "teacher"]}
families = pytest.mark.parametrize("family", tiny_families.NAMES)
LAYERS, HEADS = tiny_families.LAYERS, tiny_families.HEADS
ALL = [(layer, head) for layer in range(LAYERS) for head in range(HEADS)]


def some_pairs(first: int = 0, n: int = 4) -> list[Pair]:
    """Pairs of noise pictures, named and told apart."""
    return [
        Pair(
            picture(2 * i)[:48, :64], picture(2 * i + 1)[:48, :64], f"I ate soup {i} times.", ("up", "down")[i % 2], "", f"pair {i}"
        )
        for i in range(first, first + n)
    ]


def small(vlm, heads=((1, 2, 0.5), (3, 0, 0.2, 0.01)), neurons=(), edges=(), **options) -> Circuit:
    return Circuit.of(vlm, heads, neurons, edges, pairs=some_pairs(), metric="log mass", **options)


def full(vlm) -> Circuit:
    return small(vlm, [(*at, 1.0) for at in ALL])


# the value


def rich() -> Circuit:
    heads = [Head(1, 2, 0.5, 0.01, "fear"), Head(3, 0, -0.2)]
    neurons = [Neuron(0, 7, 0.3, 0.02, "fear", "visual", "trigger"), Neuron(2, 11, 0.1, emotion="joy")]
    edges = [Edge("V", "L0N7", 0.3), Edge("L0N7", "L1H2", 0.2), Edge("V", "L3H0", -0.1), *to_logits(heads)]
    origin = Directions(("fear",), torch.ones(1, 4, 2), (3,), {"answer": "I felt", "splits": ["direction"]})
    pairs = [replace(pair, split="selection") for pair in some_pairs()]
    return Circuit.of(tiny_families.vlm("llava_clip"), heads, neurons, edges, pairs=pairs, metric="log mass", directions=origin)


def test_a_circuit_prints_compares_and_hashes():
    circuit = rich()
    text = str(circuit)
    assert f"(revision {circuit.revision[:12]}): 2 heads, 2 neurons, 5 edges" in text and repr(circuit) == text
    assert "found by log mass on selection, 4 pairs" in text
    assert "L1H2    head     score +0.500  p 0.0100  fear" in text and "L0N7    trigger  score +0.300  p 0.0200  fear" in text
    assert circuit == rich() and hash(circuit) == hash(rich()) and circuit != replace(circuit, metric="mass")
    assert circuit.edges[-1] == Edge("L3H0", "logits", -0.2)
    frame = circuit.to_frame()
    assert frame.name.tolist() == ["L1H2", "L3H0", "L0N7", "L2N11"] and frame.position.tolist() == [
        "last",
        "last",
        "visual",
        "last",
    ]
    assert circuit.events == tuple(f"I ate soup {i} times." for i in range(4)) and circuit.directions["answer"] == "I felt"


def test_a_circuit_is_saved_and_comes_back(tmp_path):
    circuit, file = rich(), tmp_path / "circuit.json"
    circuit.save(file)
    assert Circuit.load(file) == circuit
    assert json.loads(file.read_text())["heads"][0] == {
        "layer": 1, "head": 2, "score": 0.5, "p": 0.01, "emotion": "fear", "position": "last",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=2), "not marked as 'emointerp circuit', version 1"),
        (lambda d: d.pop("heads"), r"holds no circuit \('heads'\)"),
        (lambda d: d.update(colour="red"), "colour"),
        (lambda d: d["heads"][0].pop("layer"), "layer"),
        (lambda d: d["heads"][0].update(layer=-1), "layer and number are whole numbers from 0 up"),
        (lambda d: d["neurons"][0].update(score=float("nan")), "the score is a finite number"),
        (lambda d: d["neurons"][0].update(position="sky"), "its position is 'sky'; expected visual, query, last"),
        (lambda d: d.update(heads=[], neurons=[], edges=[]), "The circuit is empty"),
        (lambda d: d["edges"].append({"source": "V", "target": "L9H9", "weight": 1.0}), "Edges name L9H9, which are no parts"),
        (lambda d: d["heads"].append(d["heads"][0]), "names L1H2 more than once"),
    ],
)
def test_files_that_hold_no_circuit(tmp_path, change, message):
    file = tmp_path / "circuit.json"
    rich().save(file)
    held = json.loads(file.read_text())
    change(held)
    file.write_text(json.dumps(held))
    with pytest.raises(InputError, match=f"circuit.json holds no circuit.*{message}|{message}"):
        Circuit.load(file)


def test_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match="There is no file .*nowhere.json; expected one that Circuit.save wrote"):
        Circuit.load(tmp_path / "nowhere.json")
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "broken.json").write_text("{")
    for name in ("list", "broken"):
        with pytest.raises(InputError, match=f"{name}.json holds no circuit"):
            Circuit.load(tmp_path / f"{name}.json")


def test_an_empty_circuit_and_parts_that_the_model_lacks_are_refused():
    vlm = tiny_families.vlm("llava_clip")
    with pytest.raises(InputError, match="The circuit is empty: it has no heads and no neurons"):
        small(vlm, [])
    with pytest.raises(InputError, match="There is no L4H0, L1H4, L0N48 in this model of 4 layers of 4 heads and 48 neurons"):
        small(vlm, [(4, 0, 1.0), (1, 4, 1.0)], [Neuron(0, 48, 1.0)])


def test_the_revision_is_that_of_the_weights():
    vlm = tiny_families.vlm("llava_clip")
    mine = revision(vlm)
    assert mine == revision(tiny_families.vlm("llava_clip", "eager")) != revision(tiny_families.vlm("llava_siglip"))
    half = copy.deepcopy(vlm.model).half()
    wide = copy.deepcopy(half).float()
    revisions = [revision(VLM(name, m, vlm.processor, "")) for name, m in (("half", half), ("wide", wide))]
    assert revisions[0] == revisions[1] != mine  # rounded once, then the same numbers
    changed = copy.deepcopy(vlm.model)
    with torch.no_grad():
        changed.model.language_model.layers[2].mlp.down_proj.weight += 1e-3
    other = emointerp.load(changed, processor=vlm.processor)
    circuit = small(vlm)
    circuit.check(vlm)
    with pytest.raises(InputError, match=rf"revision {mine[:12]}\), and the model is .* \(revision {revision(other)[:12]}\)"):
        circuit.check(other)
    with pytest.raises(InputError, match="other weights, other heads"):
        faithfulness(other, circuit, some_pairs(9), [], words=WORDS)


def test_pairs_that_were_selected_on_are_refused():
    vlm = tiny_families.vlm("llava_clip")
    circuit = small(vlm)
    circuit.check_apart(some_pairs(4))
    with pytest.raises(InputError, match="pairs pair 3, events I ate soup 3 times..* Test it on another split"):
        circuit.check_apart(some_pairs(3))
    with pytest.raises(InputError, match="selected on some of these pairs: pairs pair 0; pair 1; pair 2; pair 3, events"):
        minimality(vlm, circuit, some_pairs(), [], words=WORDS)
    split = Circuit.of(vlm, [(0, 0, 1.0)], pairs=world_pairs("selection", 6), metric="log mass")
    with pytest.raises(InputError, match="splits selection, pairs selection 0; selection 1; selection 2; selection 3 …, events"):
        split.check_apart(world_pairs("selection", 6))
    split.check_apart(world_pairs("test", 6))
    one_event = [replace(pair, event="I ate soup.") for pair in some_pairs(n=8)]
    Circuit.of(vlm, [(0, 0, 1.0)], pairs=one_event[:4], metric="log mass").check_apart(one_event[4:])


# as edits


def mean_head(vlm, prompts, layer: int, head: int) -> torch.Tensor:
    d = vlm.anatomy.d_head
    return torch.stack([oracle.caches(vlm, p)["heads", layer][-1, head * d : (head + 1) * d] for p in prompts]).mean(0)


@families
def test_ablating_and_restoring_are_hooks(family):
    vlm = tiny_families.vlm(family)
    neurons = [Neuron(2, 7, 1.0), Neuron(2, 3, 1.0), Neuron(0, 5, 1.0, position="visual", kind="trigger")]
    circuit, (plus, minus) = small(vlm, neurons=neurons), twin_prompts(vlm, some_pairs()[0], "I felt")
    prompts = [twin_prompts(vlm, pair, "I felt")[0] for pair in some_pairs(4)]
    caches = [oracle.caches(vlm, p) for p in prompts]
    visual = torch.cat([c["neurons", 0][list(p.visual)][:, [5]] for c, p in zip(caches, prompts, strict=True)]).mean(0)
    expected = oracle.logits(vlm, plus, [
        SetHead(1, 2, mean_head(vlm, prompts, 1, 2)), SetHead(3, 0, mean_head(vlm, prompts, 3, 0)),
        SetNeurons(2, [3, 7], torch.stack([c["neurons", 2][-1, [3, 7]] for c in caches]).mean(0)),
        SetNeurons(0, [5], visual, "visual"),
    ])  # fmt: skip
    donors = collect_donors(vlm, prompts, ("last", "visual"))
    torch.testing.assert_close(run(vlm, plus, circuit.ablate(donors)).logits, expected, rtol=1e-4, atol=1e-4)

    of, d = oracle.caches(vlm, minus), vlm.anatomy.d_head
    expected = oracle.logits(vlm, plus, [
        SetHead(1, 2, of["heads", 1][-1, 2 * d : 3 * d]), SetHead(3, 0, of["heads", 3][-1, :d]),
        SetNeurons(2, [3, 7], of["neurons", 2][-1, [3, 7]]),
        SetNeurons(0, [5], of["neurons", 0][list(minus.visual)][:, [5]], "visual"),
    ])  # fmt: skip
    edits = circuit.restore(collect(vlm, minus, ["heads", "neurons"]), plus)
    torch.testing.assert_close(run(vlm, plus, edits).logits, expected, rtol=1e-4, atol=1e-4)


def test_scaling_is_a_list_of_edits():
    vlm = tiny_families.vlm("llava_clip")
    heads = [Head(1, 2, 1.0), Head(1, 0, 1.0), Head(2, 3, 1.0, position="query")]
    circuit = small(vlm, heads, [Neuron(3, 7, 1.0), Neuron(3, 4, 1.0), Neuron(0, 5, 1.0, position="visual")])
    onward = ("last", "answer")
    assert circuit.scale(1.5, 1.4) == [
        ScaleAttention(1, 1.5, onward, "visual", [0, 2]), ScaleAttention(2, 1.5, "query", "visual", [3]),
        ScaleNeurons(3, [4, 7], 1.4, onward), ScaleNeurons(0, [5], 1.4, "visual"),
    ]  # fmt: skip
    assert circuit.scale() == [] and len(circuit.scale(neurons=2)) == 2


def test_donors_must_fit_the_parts():
    vlm = tiny_families.vlm("llava_clip")
    prompts = [twin_prompts(vlm, pair, "I felt")[0] for pair in some_pairs()]
    donors = collect_donors(vlm, prompts)
    mixed = small(vlm, neurons=[Neuron(0, 5, 1.0, position="visual")])
    with pytest.raises(InputError, match="parts at last and visual; give donors by span: collect_donors"):
        mixed.ablate(donors["last"])
    with pytest.raises(InputError, match=r"no donors for visual; collect_donors\(vlm, prompts, \('last', 'visual'\)\)"):
        mixed.ablate(donors)
    assert small(vlm).ablate(donors["last"]) == small(vlm).ablate(donors)
    assert len(donors["last"]) == 4 and donors["last"][1].heads.shape[2] == 1


# the drawing


def test_the_drawing_has_layers_upwards_and_a_column_a_span():
    circuit = rich()
    figure = circuit.plot()
    axis = figure.axes[0]
    spots = {t.get_text(): t.xy for t in axis.texts if hasattr(t, "xy")}
    assert (spots["2"][1], spots["0"][1], spots["7"][1], spots["11"][1]) == (1, 3, 0.5, 2.5)  # neurons after their layer's heads
    names = {t.get_text(): t.get_position() for t in axis.texts if t.get_text() in ("V", "Q", "L", "logits")}
    assert names["V"][0] < names["Q"][0] < names["L"][0] == names["logits"][0] and names["logits"][1] > 3.5
    assert spots["7"][0] == pytest.approx(names["V"][0]) and spots["2"][0] < names["L"][0] < spots["11"][0]
    lines = [line for line in axis.get_lines() if len(line.get_xdata()) == 2]
    assert len(lines) == 5 and [line.get_linestyle() for line in lines] == ["-", "-", "--", "-", "--"]
    assert [line.get_linewidth() for line in lines] == pytest.approx([3.5, 3.5, 1.5, 3.5, 1.7])  # beside 0.3, 0.2 and 0.5
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        "head, its number", "trigger neuron, its number", "state neuron, its number", "fear", "general", "joy",
    ]  # fmt: skip


# the measures


def donors_of(vlm, n: int = 4):
    return [twin_prompts(vlm, pair, "I felt")[0] for pair in some_pairs(20, n)]


def log_mass(vlm, logits, emotion: str) -> float:
    table = emotion_tokens(vlm, WORDS)
    return float(logits.double().softmax(-1)[table.id[table.emotion == emotion].tolist()].sum().log())


@families
def test_faithfulness_is_a_forward_with_all_else_ablated(family):
    vlm, held_out = tiny_families.vlm(family), some_pairs(4)
    prompts = donors_of(vlm, 2)
    donors = collect_donors(vlm, prompts)
    found = faithfulness(vlm, small(vlm), held_out, donors, draws=3, words=WORDS)
    means = {at: SetHead(*at, mean_head(vlm, prompts, *at)) for at in ALL}
    plus = twin_prompts(vlm, held_out[1], "I felt")[0]
    kept = {"model": ALL, "circuit": [(1, 2), (3, 0)], "empty": []}
    for name, some in kept.items():
        logits = oracle.logits(vlm, plus, [means[at] for at in ALL if at not in some])
        assert found.table[name][1] == pytest.approx(log_mass(vlm, logits, "down"), abs=3e-4)
    t = found.table
    assert found.share().mean == pytest.approx((t.circuit - t["empty"]).mean() / (t.model - t["empty"]).mean())
    assert len(found.random) == 3 and found.p in (0.25, 0.5, 0.75, 1.0) and 0 <= found.overlap <= 1 and 1 <= found.distinct <= 3
    assert list(found.to_frame().index) == ["model", "circuit", "empty"] and found.to_frame().share["model"].mean == 1


def test_the_whole_model_is_faithful_complete_and_leaves_random_sets_no_choice():
    vlm, held_out = tiny_families.vlm("qwen2_vl"), some_pairs(4)
    donors = collect_donors(vlm, donors_of(vlm))["last"]
    found = faithfulness(vlm, full(vlm), held_out, donors, draws=5, words=WORDS)
    assert (found.share().mean, found.share().low, found.share().high) == (1, 1, 1)
    assert found.random == [1] * 5 and found.p == 1 and (found.overlap, found.distinct) == (1, 1)
    whole = completeness(vlm, full(vlm), held_out, donors, subsets=3, words=WORDS)
    assert whole.incompleteness == pytest.approx(0, abs=1e-5) and len(whole.to_frame()) == 16 + 3 + 1


def test_neurons_count_as_parts_where_they_are_asked_for():
    vlm, held_out = tiny_families.vlm("llava_clip"), some_pairs(4)
    prompts = donors_of(vlm, 2)
    circuit = small(vlm, neurons=[Neuron(2, 7, 1.0), Neuron(0, 5, 1.0, position="visual")])
    found = faithfulness(vlm, circuit, held_out, collect_donors(vlm, prompts), draws=2, neurons=True, words=WORDS)
    caches, n = [oracle.caches(vlm, p) for p in prompts], tiny_families.MLP
    out = [SetHead(*at, mean_head(vlm, prompts, *at)) for at in ALL if at not in [(1, 2), (3, 0)]]
    for layer in range(LAYERS):
        rest = [i for i in range(n) if (layer, i) != (2, 7)]
        out.append(SetNeurons(layer, rest, torch.stack([c["neurons", layer][-1, rest] for c in caches]).mean(0)))
    plus = twin_prompts(vlm, held_out[0], "I felt")[0]
    assert found.table.circuit[0] == pytest.approx(log_mass(vlm, oracle.logits(vlm, plus, out), "up"), abs=3e-4)
    only = small(vlm, [], [Neuron(0, 5, 1.0, position="visual")])
    with pytest.raises(InputError, match="The circuit has no head at last, where everything else is ablated"):
        faithfulness(vlm, only, held_out, collect_donors(vlm, prompts), words=WORDS)


@pytest.fixture(scope="module")
def additive():
    """A model whose MLPs write nothing, read after its first layer: there heads add up, each <(z - mean z) W_O, S_hat>."""
    model = copy.deepcopy(tiny_families.vlm("llava_clip").model)
    for layer in model.model.language_model.layers:
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    vlm = emointerp.load(model, processor=tiny_families.vlm("llava_clip").processor)
    s = torch.randn(tiny_families.WIDTH, generator=torch.Generator().manual_seed(1))
    prompts, held_out, d = donors_of(vlm), some_pairs(4), vlm.anatomy.d_head
    weight = model.model.language_model.layers[0].self_attn.o_proj.weight.detach()
    parts = []
    for pair in held_out:
        z = oracle.caches(vlm, twin_prompts(vlm, pair, "I felt")[0])["heads", 0][-1]
        moved = [z[h * d : (h + 1) * d] - mean_head(vlm, prompts, 0, h) for h in range(HEADS)]
        parts.append([float(weight[:, h * d : (h + 1) * d] @ m @ s / s.norm()) for h, m in enumerate(moved)])
    options = {"donors": collect_donors(vlm, prompts), "metric": projection(s, 0)}
    return vlm, held_out, np.array(parts), options


def test_where_heads_add_up_all_three_measures_are_known(additive):
    vlm, held_out, parts, options = additive
    circuit, gap = small(vlm, [(0, 1, 1.0), (0, 2, 1.0), (3, 3, 1.0)]), parts.sum(1)
    share = faithfulness(vlm, circuit, held_out, draws=0, **options).share()
    assert share.mean == pytest.approx(parts[:, [1, 2]].sum() / gap.sum(), abs=1e-4)

    small_parts = minimality(vlm, circuit, held_out, **options)
    frame = small_parts.to_frame()
    expected = np.r_[parts[:, [1, 2]].mean(0), 0] / gap.mean()  # a head behind the place that is read adds nothing
    assert [i.mean for i in frame.contribution] == pytest.approx(expected, abs=1e-4) and list(frame.index) == [
        "L0H1",
        "L0H2",
        "L3H3",
    ]
    falls = small_parts.table.pivot(index="pair", columns="part", values="fall")
    assert frame.p.tolist() == pytest.approx(false_discovery_control(sign_flips(falls).p).tolist())

    whole = completeness(vlm, circuit, held_out, subsets=2, **options)
    frame = whole.to_frame()
    assert [i.mean for i in frame.difference] == pytest.approx([-parts[:, [0, 3]].sum() / gap.sum()] * len(frame), abs=1e-4)
    assert frame.model["L0H1"].mean == pytest.approx(1 - parts[:, 1].sum() / gap.sum(), abs=1e-4)
    assert frame.circuit["L0H1"].mean == pytest.approx(parts[:, 2].sum() / gap.sum(), abs=1e-4)
    assert frame.circuit["all"].mean == pytest.approx(0, abs=1e-4)
    assert whole.incompleteness == pytest.approx(abs(parts[:, [0, 3]].sum() / gap.sum()), abs=1e-4)


def test_random_sets_have_as_many_parts_in_each_layer(additive):
    vlm, held_out, parts, options = additive
    found = faithfulness(vlm, small(vlm, [(0, 1, 1.0), (2, 2, 1.0)]), held_out, draws=40, **options)
    shares = parts.sum(0) / parts.sum()  # of a random set, its one head of the first layer counts
    assert all(np.abs(shares - share).min() < 1e-3 for share in found.random)
    assert found.p == pytest.approx((1 + sum(share >= shares[1] - 1e-5 for share in found.random)) / 41)
    assert 8 < found.distinct <= 16 and 0.1 < found.overlap < 0.4


def test_figures_of_the_measures_draw_their_numbers(additive):
    vlm, held_out, _, options = additive
    circuit = small(vlm, [(0, 1, 1.0), (0, 2, 1.0)])
    found = faithfulness(vlm, circuit, held_out, draws=5, **options)
    lines = found.plot().axes[0].get_lines()
    assert lines[0].get_xdata()[0] == pytest.approx(found.share().mean)
    small_parts = minimality(vlm, circuit, held_out, **options)
    bars = small_parts.plot().axes[0].containers
    widths = [bar.get_width() for container in bars for bar in container if hasattr(bar, "get_width")]
    assert widths[::-1] == pytest.approx([i.mean for i in small_parts.to_frame().contribution])
    whole = completeness(vlm, circuit, held_out, subsets=2, **options)
    dots = whole.plot().axes[0].collections[0].get_offsets()
    assert dots[:, 1].tolist() == pytest.approx([i.mean for i in whole.to_frame().circuit])
    assert np.isnan(faithfulness(vlm, circuit, held_out, draws=0, **options).p)


# stability


def test_halves_of_a_frame_are_those_of_its_numbers():
    """A frame with numbers for columns was cut into columns, not into pairs."""
    scores = np.random.default_rng(2).normal(size=(8, 8)) + np.arange(8)
    assert stability_of_halves(pd.DataFrame(scores), k=3).rank == stability_of_halves(scores, k=3).rank


def test_runs_that_agree_and_runs_that_do_not():
    rng = np.random.default_rng(0)
    truth = np.zeros(64)
    truth[:5] = [5, 4, 3, 2, 1]
    same = stability(np.stack([truth, 2 * truth, truth + 1]), k=5)
    assert same.rank == pytest.approx((1, 1, 1)) and same.overlap == (1, 1, 1) and same.chance == 5 / 64
    noise = stability(rng.normal(size=(30, 64)), k=8)
    assert abs(np.mean(noise.rank)) < 0.05 and np.mean(noise.overlap) == pytest.approx(noise.chance, abs=0.03)
    assert stability(np.array([[1.0, 2, 3, 4], [4.0, 3, 2, 1]]), k=2).rank == pytest.approx((-1,))
    assert stability(np.array([[1.0, 2, 3, 4], [4.0, 3, 2, 1]]), k=2).overlap == (0,)


def test_halves_of_the_pairs():
    rng = np.random.default_rng(0)
    truth = np.r_[3, 2, 1, np.zeros(37)]
    found = stability_of_halves(truth + rng.normal(0, 0.5, (40, 40)), k=3)
    assert np.mean(found.overlap) > 0.95 and len(found.rank) == 100
    null = stability_of_halves(rng.normal(0, 1, (40, 40)), k=4)
    assert np.mean(null.overlap) < 0.3 and "overlap of the top 4" in str(null) and "by chance 0.10" in str(null)
    assert isinstance(null.to_frame(), pd.DataFrame) and (null.to_frame().low <= null.to_frame()["mean"]).all()
    with pytest.raises(InputError, match="0 comparisons of 2 top units; expected two runs or more"):
        stability(np.ones((1, 4)), k=2)
    with pytest.raises(InputError, match="and k of 1 to the number of units"):
        stability_of_halves(np.ones((4, 3)), k=5)


# the bundled model


def test_the_bundled_models_revision_is_quick_to_read_and_known_again():
    vlm = load()
    assert revision(vlm) == revision(load()) and len(revision(vlm)) == 64


def test_the_revision_is_kept_until_a_weight_changes():
    vlm = tiny_families.vlm("llava_clip")
    fresh = replace(vlm, model=copy.deepcopy(vlm.model))
    before = revision(fresh)
    assert before == revision(vlm) == revision(fresh)
    with torch.no_grad():
        fresh.model.lm_head.weight.mul_(2)
    assert revision(fresh) != before == revision(vlm)


def test_donors_of_the_last_token_are_taken_there_alone():
    """`collect` takes all positions where nothing is said; their mean was put in the last token's place."""
    vlm = tiny_families.vlm("llava_clip")
    everywhere = collect(vlm, donors_of(vlm), ["heads", "neurons"])
    for ask in (small(vlm).ablate, lambda donors: faithfulness(vlm, small(vlm), some_pairs(4), donors, words=WORDS)):
        with pytest.raises(InputError, match=r"Donors for the last token hold \d+ positions; collect them there: collect_donors"):
            ask(everywhere)


def test_pairs_without_a_name_are_known_by_their_pictures():
    vlm = tiny_families.vlm("llava_clip")
    mine = [replace(pair, name="", split="", event="It rained.") for pair in some_pairs(n=6)]
    found = Circuit.of(vlm, [(0, 0, 1.0)], pairs=mine[:3], metric="log mass")
    found.check_apart(mine[3:])
    with pytest.raises(InputError, match="was selected on some of these pairs: pairs "):
        found.check_apart(mine[2:])
