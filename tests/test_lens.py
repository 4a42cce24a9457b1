"""The logit lens against the model itself, TransformerLens, scipy and plain sums."""

import itertools

import numpy as np
import oracle
import pytest
import scipy.stats
import tiny_families
import torch
from tiny_models import picture

from emointerp import lens, widgets
from emointerp.emotions import BASIC
from emointerp.errors import InputError
from emointerp.exercises import lens as exercise
from emointerp.lens import emergence, emotion_metrics, emotion_tokens, head_writes, logit_lens, value_vectors, words_of
from emointerp.models import bridge, load
from emointerp.pairs import Pair
from emointerp.tracing import collect
from emointerp.world import sample

EVENT = "The phone rang twice while I was cooking."
WORDS = {"up": ["uncle", "friend"], "down": ["morning", "church", "teacher"]}
families = pytest.mark.parametrize("family", tiny_families.NAMES)


def prompt_of(vlm, text: str = EVENT, **options):
    return vlm.prompt(picture()[:48, :64], text, **options)


@families
def test_after_the_last_layer_the_lens_is_the_model(family):
    vlm = tiny_families.vlm(family)
    prompt = prompt_of(vlm)
    read = logit_lens(vlm, prompt, WORDS, k=3)
    with torch.no_grad():
        p = vlm.model(**prompt.inputs).logits[0].softmax(-1)
    assert torch.equal(read.top_ids[-1, :, 0], p.argmax(-1))
    torch.testing.assert_close(read.top_p[-1], p.topk(3).values, atol=1e-5, rtol=1e-4)
    assert np.allclose(read.entropy[-1], scipy.stats.entropy(p.double().numpy(), axis=-1), atol=1e-4)
    table = emotion_tokens(vlm, WORDS)
    for i, label in enumerate(WORDS):
        expected = sum(p[:, j] for j in table.id[table.emotion == label])
        torch.testing.assert_close(read.mass[-1, :, i], expected, atol=1e-6, rtol=1e-4)


@families
def test_middle_layers_are_read_as_transformerlens_reads_them(family):
    vlm = tiny_families.vlm(family)
    prompt, twin = prompt_of(vlm), bridge(vlm)
    _, cache = twin.run_with_cache(prompt)
    read = logit_lens(vlm, prompt, WORDS, k=1)
    with torch.no_grad():
        for layer in range(vlm.anatomy.n_layers):
            p = twin.unembed(twin.ln_final(cache[f"blocks.{layer}.hook_resid_post"]))[0].softmax(-1)
            torch.testing.assert_close(read.top_p[layer, :, 0], p.max(-1).values, atol=1e-4, rtol=1e-3)


def test_small_tables_give_the_same(monkeypatch):
    vlm = tiny_families.vlm("llava_clip")
    whole = logit_lens(vlm, prompt_of(vlm), WORDS)
    monkeypatch.setattr(lens, "CHUNK", 1)
    parts = logit_lens(vlm, prompt_of(vlm), WORDS)
    torch.testing.assert_close(whole.mass, parts.mass)
    torch.testing.assert_close(whole.entropy, parts.entropy)


@families
def test_what_heads_write_adds_up(family):
    vlm = tiny_families.vlm(family)
    prompt = prompt_of(vlm)
    acts, kept = collect(vlm, prompt, ["heads"]), oracle.caches(vlm, prompt)
    if family == "gemma3":
        with pytest.raises(InputError, match="In Gemma models a norm follows the heads' sum"):
            head_writes(vlm, acts.heads)
        return
    written = head_writes(vlm, acts.heads)
    for layer in range(vlm.anatomy.n_layers):
        o_proj = vlm.model.get_submodule(f"{vlm.anatomy.layers}.{layer}.self_attn.o_proj")
        with torch.no_grad():
            torch.testing.assert_close(written[layer].sum(0), o_proj(kept["heads", layer]), atol=1e-5, rtol=1e-4)


def test_value_vectors_and_their_words():
    vlm = tiny_families.vlm("qwen2_vl")
    down = vlm.model.get_submodule(f"{vlm.anatomy.layers}.2.mlp.down_proj")
    one = torch.zeros(2, vlm.anatomy.d_mlp)
    one[0, 5] = one[1, 11] = 1
    with torch.no_grad():
        expected = down(one)
        assert torch.allclose(value_vectors(vlm, 2, [5, 11]), expected)
        language = vlm.model.get_submodule(vlm.anatomy.family.language)
        p = vlm.model.lm_head(language.norm(expected)).softmax(-1)
    frame = words_of(vlm, value_vectors(vlm, 2, [5, 11]), k=4, labels=["n5", "n11"])
    assert list(frame.index) == ["n5", "n11"]
    for row, name in enumerate(("n5", "n11")):
        top = p[row].topk(4)
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        assert list(frame.loc[name]) == [f"{vlm.tokenizer.decode([i])} ({q:.2f})" for i, q in pairs]


# which tokens count


def test_tokens_of_the_bundled_model():
    vlm = load()
    table = emotion_tokens(vlm)
    assert set(table.emotion) == set(BASIC)
    assert table.id.is_unique and not table.token.str.strip().isin(["for", "out", "down", "con"]).any()
    for row in table.itertuples():
        form = row.word if row.token.strip()[0].islower() else row.word.capitalize()
        assert form.startswith(row.token.strip()) and row.whole == (form == row.token.strip())
    assert {"happy", "sad", "angry", "afraid"} <= set(table.token.str.strip())


def test_words_of_several_tokens_are_stood_for_by_the_first():
    vlm = load()
    word = "frightening"
    ids = vlm.tokenizer(f" {word}", add_special_tokens=False).input_ids
    assert len(ids) > 1
    row = emotion_tokens(vlm, {"spell": [word]}).iloc[0]
    assert row.id == ids[0] and not row.whole


def test_words_that_cannot_be_told_apart_are_refused():
    vlm = load()
    with pytest.raises(InputError, match="No word of left, right begins with a token of its own"):
        emotion_tokens(vlm, {"left": ["sad"], "right": ["sad"]})


# many pictures


def test_emergence_is_the_lens_of_each_picture_beside_its_twin():
    vlm, examples = load(), sample("test", 6, emotions=BASIC)
    found = emergence(vlm, examples, batch=4, progress=False)
    assert len(found.table) == 6 * vlm.anatomy.n_layers
    for i in (0, 5):
        e = examples[i]
        rows = found.table[found.table.picture == i].set_index("layer")
        frame, twin = (logit_lens(vlm, vlm.prompt(s, e.event, answer="I felt")).to_frame() for s in (e.scene, e.scene.neutral()))
        assert rows.emotion.unique() == [e.scene.emotion]
        assert np.allclose(rows.pictured, frame[e.scene.emotion], atol=1e-5)
        assert np.allclose(rows.twin, twin[e.scene.emotion], atol=1e-5)
        assert np.allclose(rows.others, frame[list(BASIC)].sum(axis=1) - frame[e.scene.emotion], atol=1e-5)
        assert list(rows.leads) == list(frame[list(BASIC)].idxmax(axis=1) == e.scene.emotion)
    means = found.to_frame()
    last = vlm.anatomy.n_layers - 1
    assert means.pictured[last].mean == pytest.approx(found.table[found.table.layer == last].pictured.mean())
    drawn = {line.get_label(): line.get_ydata() for line in found.plot().axes[0].get_lines()}
    assert drawn["the pictured emotion"][-1] == pytest.approx(means.pictured[last].mean)


def test_emergence_takes_pairs_and_words_of_ones_own():
    """Labels are not emotions, the two sides are two pictures and two events, and batches cut between pairs."""
    vlm = tiny_families.vlm("qwen2_vl")
    pictures, event = [picture(i)[:48, :64] for i in range(6)], "My uncle cleaned the old boat again."
    pairs = [
        Pair(*pictures[2 * i : 2 * i + 2], EVENT, ("up", "down", "up")[i], neutral_event=(event, None)[i % 2]) for i in range(3)
    ]
    words = {label: iter(some) for label, some in WORDS.items()}  # what can be read once only
    found = emergence(vlm, pairs, "I saw", batch=2, progress=False, words=words).table
    for i, pair in enumerate(pairs):
        frame, twin = (logit_lens(vlm, vlm.prompt(*side, answer="I saw"), WORDS).to_frame() for side in (pair.plus, pair.minus))
        rows, other = found[found.picture == i], {"up": "down", "down": "up"}[pair.emotion]
        assert np.allclose(rows.pictured, frame[pair.emotion], atol=1e-5) and np.allclose(rows.others, frame[other], atol=1e-5)
        assert np.allclose(rows.twin, twin[pair.emotion], atol=1e-5)
        assert list(rows.leads) == list(frame[pair.emotion] > frame[other])
    with pytest.raises(InputError, match="Picture 1 shows 'down'; expected one of up. Give `words` for others"):
        emergence(vlm, pairs, progress=False, words={"up": ["uncle"]})


def test_emergence_needs_pictures_of_an_emotion():
    with pytest.raises(InputError, match="Picture 0 shows 'neutral'; expected one of anger"):
        emergence(load(), sample("test", 1, emotions=("neutral",)), progress=False)


# the result


def test_frames_and_words():
    vlm = tiny_families.vlm("llava_clip")
    prompt = prompt_of(vlm, answer="I felt")
    assert prompt.rendered.endswith("ASSISTANT: I felt")
    read = logit_lens(vlm, prompt, WORDS)
    frame = read.to_frame(["last", 3])
    assert (
        list(frame.columns) == ["layer", "position", "token", "top", "p", "entropy", "up", "down"]
        and len(frame) == 2 * read.n_layers
    )
    row = frame[(frame.layer == 1) & (frame.position == 3)].iloc[0]
    assert row.up == pytest.approx(float(read.mass[1, 3, 0])) and row.top == vlm.tokenizer.decode([int(read.top_ids[1, 3, 0])])
    assert read.words(prompt.last, 2).shape == (read.n_layers, 2)
    assert np.allclose(read.values("emotion mass", 2), read.values("up", 2) + read.values("down", 2))


@families
def test_the_picture_shows_each_token_that_has_a_place(family):
    vlm = tiny_families.vlm(family)
    prompt = prompt_of(vlm)
    read = logit_lens(vlm, prompt, WORDS)
    figure = read.plot_picture("entropy", layers=[0, 3])
    first, second = figure.axes[:2]
    known = ~np.isnan(vlm.boxes(prompt)).any(1)
    shown = second.collections[0]
    assert len(shown.get_paths()) == known.sum() > 0
    assert np.allclose(np.sort(shown.get_array()), np.sort(read.entropy[3].numpy()[list(prompt.visual)][known]))
    areas = [np.ptp(path.vertices[:, 0]) * np.ptp(path.vertices[:, 1]) for path in shown.get_paths()]
    assert all(a >= b - 1e-6 for a, b in itertools.pairwise(areas))
    assert first.get_title() == "layer 0" and shown.norm.vmax >= shown.get_array().max()


def test_lines_and_tables_draw_the_numbers():
    vlm = tiny_families.vlm("llava_clip")
    prompt = prompt_of(vlm)
    read = logit_lens(vlm, prompt, WORDS)
    lines = {line.get_label(): line.get_ydata() for line in read.plot().axes[0].get_lines()}
    assert np.allclose(lines["down"], read.mass[:, prompt.last, 1])
    table = read.plot_words([2, 5]).axes[0]
    assert np.allclose(table.images[0].get_array(), read.top_p[:, [2, 5], 0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda vlm, read: read.values("anger", 0),
            "'anger' cannot be shown; expected 'entropy', 'emotion mass' or one of up, down",
        ),
        (lambda vlm, read: value_vectors(vlm, 4, [0]), "Layer 4 is out of range; this model has layers 0 to 3"),
        (lambda vlm, read: value_vectors(vlm, 0, [48]), r"Neurons \[48\]: a layer of this model has neurons 0 to 47"),
        (lambda vlm, read: head_writes(vlm, torch.zeros(2, 4, 1, 8)), "Heads of 2 layers came; collect all 4"),
    ],
)
def test_requests_that_are_refused(call, message):
    vlm = tiny_families.vlm("llava_clip")
    read = logit_lens(vlm, prompt_of(vlm), WORDS)
    with pytest.raises(InputError, match=message):
        call(vlm, read)


# the panel and the exercises


@pytest.fixture(scope="module")
def panel():
    return widgets.lens(load(), {"joy": sample("test", 1, emotions=("joy",))[0].scene, "wide": picture()[:64]})


def test_moving_the_layer_changes_colours_and_the_table(panel):
    lens, visual = panel.lens, list(panel.lens.prompt.visual)
    highest = max(lens.values("emotion mass", i)[visual].max() for i in range(8))
    for layer in (7, 2):
        panel.controls["layer"].value = layer
        assert np.allclose(panel.grid.values, lens.values("emotion mass", layer)[visual] / highest, atol=1e-6)
        assert f'<tr class="chosen"><td>layer {layer}</td>' in panel.view.value
    panel.controls["show"].value = "entropy"
    assert panel.grid.title == "entropy, layer 2" and 0 <= min(panel.grid.values) < max(panel.grid.values) <= 1
    panel.controls["show"].value = "emotion mass"


def test_the_panel_shows_labels_of_ones_own():
    vlm, words = tiny_families.vlm("llava_clip"), {label: iter(some) for label, some in WORDS.items()}
    panel = widgets.lens(vlm, {"one": picture(0)[:48, :64], "two": picture(1)[:48, :64]}, EVENT, words=words)
    assert panel.controls["show"].options == ("emotion mass", "up", "down", "entropy")
    panel.controls["picture"].value, panel.controls["show"].value, panel.controls["layer"].value = "two", "down", 1
    read = logit_lens(vlm, vlm.prompt(picture(1)[:48, :64], EVENT, answer="I felt"), WORDS)
    mass = read.mass[..., 1]
    visual = list(read.prompt.visual)
    assert np.allclose(panel.grid.values, mass[1, visual] / mass[:, visual].max(), atol=1e-5)


def test_clicking_a_patch_or_a_token_reads_it(panel):
    panel.grid.selected = 10
    token = panel.lens.prompt.visual[10]
    assert panel.controls["token"].value == token == panel.strip.selected
    assert f"Next after token {token}" in panel.view.value
    assert panel.lens.words(token, 1).iloc[3, 0].split(" (")[0] in panel.view.value
    panel.strip.selected = panel.lens.prompt.last
    assert panel.grid.selected == -1 and f"Next after token {panel.lens.prompt.last}" in panel.view.value


def test_another_picture_brings_its_own_boxes(panel):
    panel.controls["picture"].value = "wide"
    assert panel.grid.size == [128, 64] and max(box[3] for box in panel.grid.boxes) == 64
    assert len(panel.strip.tokens) == len(panel.lens.prompt) and 'role="alert"' not in panel.view.value
    assert "<svg" in panel._repr_mimebundle_()["text/html"]
    panel.controls["picture"].value = "joy"


def test_a_picture_that_cannot_be_read_is_said_in_the_panel(tmp_path):
    pictures = {"joy": sample("test", 1, emotions=("joy",))[0].scene, "gone": tmp_path / "gone.png"}
    panel = widgets.lens(load(), pictures)
    panel.controls["picture"].value = "gone"
    assert 'role="alert"' in panel.view.value and "No such picture" in panel.view.value
    panel.controls["layer"].value = 3
    panel.controls["picture"].value = "joy"
    assert 'role="alert"' not in panel.view.value and len(panel.grid.values) == 64


def test_exercises_say_what_is_wrong():
    vlm, scene = load(), sample("test", 3, seed=8, emotions=("joy", "fear", "anger"))[1].scene
    prompt = vlm.prompt(scene, EVENT, answer="I felt")
    read = logit_lens(vlm, prompt)
    frame = read.to_frame()
    layer = int(frame.layer[frame.fear > 0.5].min())
    assert exercise.first_layer(layer, read, "fear")
    for answer, said in (
        (None, "still None"),
        ("4", "is a str"),
        (layer - 1, "too early"),
        (7, "an earlier layer"),
        (99, "layers 0 to 7"),
    ):
        assert said in exercise.first_layer(answer, read, "fear").message
    left, top, right, bottom = vlm.boxes(prompt).T
    inside = scene.masks()["face"][((top + bottom) / 2).astype(int), ((left + right) / 2).astype(int)]
    mass = read.values("emotion mass", 7)[list(prompt.visual)]
    ratio = mass[inside].mean() / mass[~inside].mean()
    assert exercise.over_the_face(ratio, read, scene)
    for answer, said in (
        (None, "still None"),
        (1 / ratio, "other way round"),
        (mass[inside].sum() / mass[~inside].sum(), "Take means"),
        ("x", "is a str"),
    ):
        assert said in exercise.over_the_face(answer, read, scene).message
    logits = oracle.logits(vlm, prompt)
    a, b = (vlm.tokenizer(f" {w}", add_special_tokens=False).input_ids[0] for w in ("afraid", "happy"))
    difference = float(logits[a] - logits[b])
    assert exercise.times_likelier(np.exp(difference), vlm, prompt, "afraid", "happy")
    for answer, said in ((None, "still None"), (difference, "A logit is the logarithm"), (np.exp(-difference), "other word over")):
        assert said in exercise.times_likelier(answer, vlm, prompt, "afraid", "happy").message


@pytest.mark.parametrize("kind", ["log mass", "mass", "log odds"])
def test_emotion_metrics_are_of_the_summed_probability(kind):
    """Against the softmax in double precision, with a mass that is nearly all there is."""
    vlm = tiny_families.vlm("llava_clip")
    ids = emotion_tokens(vlm, WORDS).groupby("emotion").id.apply(list)
    logits = torch.randn(3, vlm.anatomy.vocabulary, generator=torch.Generator().manual_seed(0))
    logits[2, ids["up"]] += 30
    mass = logits.double().softmax(-1)[:, ids["up"]].sum(-1)
    rest = logits.double().softmax(-1)[:, [i for i in range(logits.shape[1]) if i not in ids["up"]]].sum(-1)
    expected = {"log mass": mass.log(), "mass": mass, "log odds": mass.log() - rest.log()}[kind]
    assert torch.allclose(emotion_metrics(vlm, WORDS, kind)["up"](logits).double(), expected, atol=1e-4)


def test_an_unknown_kind_of_mass_is_refused():
    with pytest.raises(InputError, match="kind is 'odds'; expected 'log mass', 'mass', 'log odds'"):
        emotion_metrics(tiny_families.vlm("llava_clip"), WORDS, "odds")
