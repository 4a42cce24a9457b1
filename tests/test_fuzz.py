"""Inputs that nobody thought of: whatever comes, a reader, a verb or a command gives a result or an error of ours, in words.

How many are tried, and how to try more by hand: `fuzzing`. What fell over once stands at the end as a test of its own.
"""

import copy
import dataclasses
import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny_families
import torch
from fuzzing import REFUSED, TIMES, TRIED, altered, another, arrays, in_words, texts, tried, values
from hypothesis import given, note
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from test_emotic import Person, Picture, write_arrays, write_columns, write_mat
from test_emotions import save_mapping
from test_mer_unibench import write
from tiny_models import picture

from emointerp import cli, emotions
from emointerp.circuit import Circuit, Edge, Head, Neuron
from emointerp.directions import Directions
from emointerp.errors import InputError, OutputError
from emointerp.evaluation.emotic import read_emotic
from emointerp.evaluation.mer_unibench import read
from emointerp.evaluation.tables import Evaluation
from emointerp.gallery import Gallery, index
from emointerp.models import load, load_tower, to_image
from emointerp.pairs import Pair, read_pairs, save_pairs
from emointerp.sae import SAE, load_sae, save_sae
from emointerp.tracing import (
    AddVector,
    ScaleAttention,
    ScaleNeurons,
    SetHead,
    SetNeurons,
    SetResidual,
    load_edits,
    run,
    save_edits,
)

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def told():
    yield
    for what in sorted(TRIED) if TIMES else ():
        print(f"\n{what}: {TRIED[what]} tried, {REFUSED[what]} refused in words", end="")


# files


def small(name: str) -> Image.Image:
    return Image.effect_noise((12, 9), 50).convert("RGB")


def emotic(write_form: Callable) -> Callable[[Path], Callable]:
    def make(folder: Path) -> Callable:
        people = [Person([0, 0, 6, 9], ["Anger"], [5.0, 6.0, 7.0]), Person([1, 2, 12, 8], ["Fear", "Peace"], [1.0, 2.0, 3.0])]
        world = {split: [Picture(f"{split}.png", "mscoco/images", picture(1)[:128], people)] for split in ("train", "val", "test")}
        world = {s: [dataclasses.replace(p, image=Image.fromarray(p.image)) for p in some] for s, some in world.items()}
        write_form(folder, world)
        return lambda: [read_emotic(folder).picture(i, "body") for i in range(2)]

    return make


def unibench(name: str) -> Callable[[Path], Callable]:
    def make(folder: Path) -> Callable:
        write(folder, name)
        return lambda: [list(row) for row in read(folder, name, skip_missing=True).items()]

    return make


def pairs_table(folder: Path) -> Callable:
    pair = Pair(small("a"), small("b"), "The phone rang twice while I was cooking.", "joy", "test", "one")
    save_pairs([pair, dataclasses.replace(pair, name="two", neutral_event="I, too, was there.", aligned=False)], folder)
    return lambda: read_pairs(folder)


def wheel_mapping(folder: Path) -> Callable:
    save_mapping(folder / "wheel_mapping.npz")
    return lambda: [wheel.cluster("happy") for wheel in emotions.read_mer_unibench_wheels(folder)]


def wheel_sheets(folder: Path) -> Callable:
    for n in range(1, 6):
        pd.DataFrame([["mad", "angry", "livid"]], columns=["level1", "level2", "level3"]).to_excel(folder / f"wheel{n}.xlsx")
    runs = {f"{kind}_run{n}": ["mad"] for n in range(1, 9) for kind in ("word", "synonym")}
    pd.DataFrame(runs).to_excel(folder / "synonym.xlsx")
    (folder / "format.csv").write_text('name,format\nmad,"madly, madder"\n')
    return lambda: emotions.read_mer_unibench_wheels(folder)


def sae(form: str) -> Callable[[Path], Callable]:
    def make(folder: Path) -> Callable:
        save_sae(SAE.random(4, 8, 2), folder, form)
        return lambda: load_sae(folder)(torch.ones(2, 4))

    return make


def release(folder: Path) -> Callable:
    """The public release's form; its two classes are only there while it is written."""
    module = types.ModuleType("released")
    for name in ("TrainConfig", "SAEConfig"):
        setattr(module, name, type(name, (), {"__module__": "released"}))
    inner, outer = module.SAEConfig(), module.TrainConfig()
    inner.__dict__ |= {"d_emb": 4, "d_hidden": 8, "top_k": 2, "up_proj_bias": False}
    outer.model = inner
    weights = {"up_proj.weight": torch.randn(8, 4), "down_proj.weight": torch.randn(4, 8), "down_proj.bias": torch.zeros(4)}
    sys.modules["released"] = module
    try:
        torch.save({"model": weights, "config": outer}, folder / "big.pt")
    finally:
        del sys.modules["released"]
    return lambda: load_sae(folder / "big.pt")(torch.ones(2, 4))


def edits_file(folder: Path) -> Callable:
    edits = [AddVector(1, torch.randn(32), 2.0, ("last", -3)), SetNeurons(0, (1, 5), torch.randn(2)), ScaleAttention(2, 0.5)]
    save_edits(edits, folder / "edits.json")
    return lambda: [repr(edit) for edit in load_edits(folder / "edits.json")]


def circuit_file(folder: Path) -> Callable:
    parts = (Head(1, 2, 0.5, 0.01, "fear"), Head(0, 1, -0.25)), (Neuron(1, 7, 0.1),)
    Circuit("tiny", "abc", *parts, (Edge("V", "L1H2", 0.3),), "logit", ("test",), ("a",)).save(folder / "circuit.json")
    return lambda: (str(Circuit.load(folder / "circuit.json")), Circuit.load(folder / "circuit.json").to_frame())


def directions_file(folder: Path) -> Callable:
    Directions(("joy", "fear"), torch.randn(2, 3, 4), (3, 1), {"model": "tiny"}).save(folder / "S.safetensors")
    return lambda: Directions.load(folder / "S.safetensors")["pooled", 1]


def gallery(folder: Path) -> Callable:
    (folder / "pictures").mkdir()
    for i in range(3):
        Image.fromarray(picture(i)).save(folder / "pictures" / f"{i}.png")
    tower = load_tower("tiny")
    index(folder / "made", folder / "pictures", tower, SAE.random(tower.d, 32, 2), progress=False)
    (folder / "pictures").rename(folder / "moved")

    def ask() -> Any:
        found = Gallery.open(folder / "made")
        return found.top(3).to_frame(), found.nearest("1.png").to_frame(), found.counts(), found.failures(), len(found)

    return ask


def evaluation(folder: Path) -> Callable:
    from emointerp.evaluation.tables import ABOUT, COLUMNS, FORMAT, TABLE, VERSION

    row = dict.fromkeys(COLUMNS, 0.0) | {"method": "none", "set": "world", "answer": "I was glad.", "gold": "joy", "oracle": False}
    (folder / TABLE).write_text("".join(json.dumps(row | {"item": i, "seed": 0}) + "\n" for i in range(3)))
    about = {"format": FORMAT, "version": VERSION, "rows": 3, "about": {"model": {"name": "tiny"}}}
    (folder / ABOUT).write_text(json.dumps(about))
    return lambda: Evaluation.load(folder)


def image_file(ending: str) -> Callable[[Path], Callable]:
    def make(folder: Path) -> Callable:
        small("a").save(folder / f"a{ending}")
        return lambda: to_image(folder / f"a{ending}").size

    return make


READERS: dict[str, tuple[Callable[[Path], Callable], int]] = {  # how to make a good one, and how many to try
    "pairs.csv": (pairs_table, 60),
    "EMOTIC mat": (emotic(write_mat), 60),
    "EMOTIC arrays": (emotic(write_arrays), 60),
    "EMOTIC columns": (emotic(write_columns), 50),
    "MER2023": (unibench("MER2023"), 40),
    "MELD": (unibench("MELD"), 30),
    "CMU-MOSI": (unibench("CMU-MOSI"), 30),
    "OV-MERD+": (unibench("OV-MERD+"), 30),
    "wheel mapping": (wheel_mapping, 40),
    "wheel sheets": (wheel_sheets, 12),
    "SAE ours": (sae("emointerp"), 60),
    "SAE SAELens": (sae("saelens"), 60),
    "SAE sparsify": (sae("sparsify"), 60),
    "SAE release": (release, 60),
    "edits": (edits_file, 80),
    "circuit": (circuit_file, 80),
    "directions": (directions_file, 60),
    "gallery": (gallery, 40),
    "evaluation": (evaluation, 40),
    **{f"picture {ending}": (image_file(ending), 15) for ending in (".png", ".jpg", ".gif", ".webp", ".tiff", ".bmp")},
}


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_read_or_refused_in_words(name, tmp_path):
    make, n = READERS[name]
    ask = make(tmp_path)
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file() and not file.name.startswith("."))
    small_ones = [file for file in files if file.suffix not in (".png",)] or files
    assert ask() is not None, "whole, it is read"

    @tried(n)
    @given(st.data())
    def anything(data):
        file = data.draw(st.sampled_from(small_ones))
        before = file.read_bytes()
        content = data.draw(another(file))
        note(f"{file.name}: {content[:300]!r}")
        try:
            file.write_bytes(content)
            in_words(f"files: {name}", ask)
        finally:
            file.write_bytes(before)

    anything()


def boxed(value: Any) -> np.ndarray:
    """An array of no axes that holds a value, as numpy.savez makes of a dict."""
    box = np.empty((), object)
    box[()] = value
    return box


@pytest.mark.parametrize("name", ["wheel mapping", "MER2023", "CMU-MOSI"])
def test_plain_values_in_the_place_of_others_in_a_pickle(name, tmp_path):
    ask = READERS[name][0](tmp_path)
    (file,) = tmp_path.rglob("*.npz")
    held = {key: value.item() for key, value in np.load(file, allow_pickle=True).items()}

    @tried(60)
    @given(altered(held), st.booleans())
    def anything(changed, wrapped):
        changed = changed if isinstance(changed, dict) else {"test1_corpus": changed}
        named = {re.sub(r"\W", "", str(key)) or "file": value for key, value in changed.items()}
        np.savez(file, **{key: boxed([value]) if wrapped else boxed(value) for key, value in named.items() if key != "file"})
        in_words(f"pickled values: {name}", ask)

    anything()


@pytest.mark.parametrize("form", ["emointerp", "saelens", "sparsify"])
def test_tensors_in_the_place_of_others(form, tmp_path):
    save_sae(SAE.random(4, 8, 2), tmp_path, form)
    (file,) = tmp_path.glob("*.safetensors")
    held = load_file(file)
    dtypes = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)

    @tried(40)
    @given(st.sampled_from(sorted(held)), st.lists(st.integers(0, 9), max_size=3), st.sampled_from(dtypes), st.booleans())
    def anything(name, shape, dtype, numbers):
        tensor = torch.randn(shape).to(dtype) if numbers else held[name].to(dtype)
        save_file({**held, name: tensor.contiguous()}, file)
        in_words(f"tensors: {form}", lambda: load_sae(tmp_path)(torch.ones(2, 4)))

    anything()


FROM_PATH = (
    read_pairs, load_sae, load_edits, Circuit.load, Directions.load, Gallery.open, Evaluation.load, read_emotic, to_image,
    emotions.read_mer_unibench_wheels, lambda path: read(path, "MELD"),
)  # fmt: skip


@tried(60)
@given(texts(), st.booleans())
def test_a_path_may_be_any_text(path, is_long):
    path = path * 90 if is_long else path
    for ask in FROM_PATH:
        in_words("paths", lambda ask=ask: ask(path))


# what is good comes back


@tried(40)
@given(st.lists(st.tuples(texts(), texts(), texts()), min_size=1, max_size=3), st.booleans())
def test_pairs_come_back_as_they_were_saved(tmp_path_factory, told, aligned):
    folder = tmp_path_factory.mktemp("pairs")
    pairs = [Pair(small("a"), small("b"), event, emotion, name=name, aligned=aligned) for event, emotion, name in told]
    saved = in_words("pairs saved", lambda: save_pairs(pairs, folder))
    again = saved and in_words("pairs read", lambda: read_pairs(folder))
    for before, after in zip(pairs, again or (), strict=False):
        assert (after.event, after.emotion, after.aligned) == (before.event.strip(), before.emotion.strip(), aligned)
        assert to_image(after.emotional).tobytes() == before.emotional.tobytes()


parts = st.tuples(st.integers(0, 40), st.integers(0, 4000), st.floats(allow_nan=False, allow_infinity=False), texts(20))


@tried(60)
@given(st.lists(parts, min_size=1, max_size=5, unique_by=lambda part: part[:2]), texts(), texts())
def test_a_circuit_comes_back_as_it_was_saved(tmp_path_factory, some, model, metric):
    file = tmp_path_factory.mktemp("circuits") / "c.json"
    heads = [Head(layer, head, score, None, emotion) for layer, head, score, emotion in some]
    circuit = Circuit(model, "abc", heads, (Neuron(1, 2, 0.5, 0.25, position="visual", kind="trigger"),), metric=metric)
    if in_words("circuits saved", lambda: circuit.save(file) or True):
        assert Circuit.load(file) == circuit
        assert str(Circuit.load(file)) == str(circuit)


FORMS = st.sampled_from(["emointerp", "saelens", "sparsify"])


@tried(30)
@given(st.integers(1, 9), st.integers(1, 20), st.integers(1, 20), st.booleans(), st.booleans(), FORMS)
def test_an_sae_comes_back_as_it_was_saved(tmp_path_factory, d_in, d_hidden, k, tied, biases, form):
    folder = tmp_path_factory.mktemp("saes")
    sae = SAE.random(d_in, d_hidden, min(k, d_hidden), tied, biases)
    again = load_sae(save_sae(sae, folder, form))
    x = torch.randn(3, d_in, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again.encode(x).indices, sae.encode(x).indices)
    torch.testing.assert_close(again(x), sae(x))


# words


@tried(250)
@given(texts(200))
def test_the_extractor_finds_words_where_they_stand(text):
    found = emotions.extract(text)
    TRIED["texts"] += 1
    assert all(text[word.start : word.end] == word.text for word in found)
    assert all(a.end <= b.start for a, b in zip(found, found[1:], strict=False))
    assert 0 <= emotions.hit_rate(text, "joy") <= 1
    assert emotions.sentiment_sign(text) in (-1, 0, 1)
    assert emotions.emotion_words(text) == sum(word.emotion is not None for word in found)


@tried(80)
@given(texts(30), texts(80))
def test_any_word_may_be_asked_for(word, text):
    assert all(wheel.cluster(word) in (None, *wheel.tree) for wheel in emotions.wheels())
    rate = in_words("emotions", lambda: emotions.hit_rate(text, word))
    assert rate is None or 0 <= rate <= 1
    in_words("emotions", lambda: emotions.words_for(word))
    in_words("emotions", lambda: emotions.f_s([text.split()], [[word, "joy"]]))
    in_words("emotions", lambda: emotions.wheels([word]))


@tried(60)
@given(st.dictionaries(texts(12), st.lists(texts(16), max_size=3), max_size=3), texts(60))
def test_a_concept_of_any_words(words, text):
    concept = in_words("concepts", lambda: emotions.Concept("mine", tuple(words), words))
    if concept is not None:
        for label, entries in concept.words.items():
            assert all(concept.wheel.cluster(entry) == label for entry in entries)
        emotions.extract(text, concept)


# edits

VLM = tiny_families.vlm("llava_clip")
spans = st.sampled_from(["visual", "query", "last", "all", "answer", "nowhere", ""])
positions = st.one_of(spans, st.integers(-300, 300), st.lists(spans | st.integers(-60, 60), max_size=3))
whole = st.integers(-2, 6) | st.integers()
widths = st.sampled_from([0, 1, 8, 32, 48])
dtypes = st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    shape = draw(st.lists(widths, min_size=1, max_size=2))
    numbers = torch.randn(shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99)))) * draw(
        st.sampled_from([1, 1e3, 1e9])
    )
    return numbers.to(draw(dtypes))


heads = st.lists(st.integers(-1, 5), max_size=3)
factor = st.floats() | st.integers() | st.just(10**400) | st.sampled_from([0, 0.5, 2, -1])
EDIT_KINDS = {
    AddVector: (tensors(), factor, positions),
    SetResidual: (tensors(), positions),
    SetHead: (whole, tensors(), positions),
    SetNeurons: (st.lists(st.integers(-1, 60), max_size=4), tensors(), positions),
    ScaleNeurons: (st.lists(st.integers(-1, 60), max_size=4), factor, positions),
    ScaleAttention: (factor, positions, positions, st.none() | heads, st.booleans()),
}


@st.composite
def good_edits(draw: Any) -> Any:
    """Edits that some model could take; None for those that were refused."""
    kind = draw(st.sampled_from(list(EDIT_KINDS)))
    layer, parts = draw(whole), [draw(part) for part in EDIT_KINDS[kind]]
    note(f"{kind.__name__}({layer}, {parts})")
    return in_words("edits made", lambda: kind(layer, *parts))


@pytest.fixture(scope="module")
def prompt():
    return VLM.prompt(picture(2), "The phone rang.")


@tried(250)
@given(st.lists(good_edits(), max_size=4))
def test_edits_print_compare_and_come_back(tmp_path_factory, some):
    edits, file = [edit for edit in some if edit is not None], tmp_path_factory.mktemp("edits") / "e.json"
    for edit in edits:
        assert (
            repr(edit).startswith(type(edit).__name__) and edit == copy.deepcopy(edit) and hash(edit) == hash(copy.deepcopy(edit))
        )
        assert edit != dataclasses.replace(edit, layer=edit.layer + 1)
    save_edits(edits, file)
    again = load_edits(file)
    assert again == edits and [repr(edit) for edit in again] == [repr(edit) for edit in edits]


@tried(150)
@given(some=st.lists(good_edits(), min_size=1, max_size=3))
def test_edits_run_or_are_refused_in_words(some, prompt):
    edits = [edit for edit in some if edit is not None]
    found = in_words("edits run", lambda: run(VLM, prompt, edits))
    assert found is None or bool(found.logits.isfinite().all())


# prompts

MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "La", "RGBa", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "I;16B", "RGBX")
sizes = st.tuples(st.integers(0, 60), st.integers(0, 60)) | st.sampled_from([(1, 1), (4000, 1), (1, 4000), (300, 2), (37, 500)])


@st.composite
def pictures(draw: Any) -> Any:
    """Pictures of any mode and size, arrays of any type, tensors, and what is no picture."""
    kind = draw(st.integers(0, 9))
    if kind < 6:
        mode, size = draw(st.sampled_from(MODES)), draw(sizes)
        note(f"{mode} {size}")
        image = Image.new(mode, size, draw(st.sampled_from([0, 1])) if len(Image.new(mode, (1, 1)).getbands()) == 1 else None)
        image.info |= draw(st.sampled_from([{}, {"transparency": 0}, {"transparency": b"\x00"}, {"exif": b"Exif\x00\x00II"}]))
        return image
    if kind < 9:
        return draw(arrays())
    return draw(st.sampled_from([torch.rand(3, 4, 3), torch.rand(4, 4).bfloat16(), torch.rand(4, 4).requires_grad_()]) | values)


@tried(250)
@given(pictures())
def test_any_picture_is_read_or_refused(image):
    note(repr(image)[:200])
    found = in_words("pictures", lambda: to_image(image))
    assert found is None or (found.mode == "RGB" and min(found.size) > 0)


@pytest.mark.parametrize("family", ["llava_clip", "llava_next", "qwen2_vl", "idefics3", "gemma3"])
def test_any_prompt_is_made_or_refused(family):
    vlm = tiny_families.vlm(family)

    @tried(40)
    @given(pictures(), texts(400), st.none() | texts(), texts(20))
    def anything(image, text, instruction, answer):
        note(repr(image)[:100])
        made = in_words(f"prompts: {family}", lambda: vlm.prompt(image, text, instruction, answer))
        if made is not None:
            assert made.visual and made.query and made.last == len(made) - 1
            assert vlm.boxes(made).shape == (len(made.visual), 4)

    anything()


@tried(30)
@given(texts(60))
def test_a_mark_of_the_model_in_a_text_never_becomes_a_token_of_its_own(text):
    made = in_words("marks", lambda: VLM.prompt(picture(1), text))
    if made is not None:
        assert len(made.visual) == 16
        assert (made.input_ids == VLM.anatomy.image_token).sum() == 16


# the command line

OPTION_VALUES = st.one_of(
    texts(20), st.integers(-3, 9).map(str), st.floats().map(str), st.sampled_from(["tiny", "none", "auto", "", "-", "cuda"])
)
FLAGS = {
    "tour": "--image --event --model --out --force --size --device --dtype",
    "verify": "--device --dtype",
    "lab": "--no-browser --solutions",
    "evaluate": "--benchmark --data --out --n --seeds --temperature --method --wheels --veena --l-emo --tower --sae --view --dtype",
    "index": "--out --tower --sae --batch --engine --device --forget",
    "nonsense": "--help",
}
SWITCHES = ("--force", "--no-browser", "--solutions", "--veena", "--skip-missing", "--forget", "--help")


@st.composite
def commands(draw: Any) -> list[str]:
    name = draw(st.sampled_from(list(FLAGS)))
    words = [name] + draw(st.lists(OPTION_VALUES, max_size=1 + (name == "index")))
    for flag in draw(st.lists(st.sampled_from(FLAGS[name].split()), max_size=4)):
        words += [flag] if flag in SWITCHES else [flag, draw(OPTION_VALUES)]
    return [word.replace("\x00", "") for word in words]


@pytest.fixture
def bodies(monkeypatch):
    """The commands with all their checks, and without the minutes of work after them."""
    from emointerp.evaluation import benchmarks
    from emointerp.tour import report

    def world(vlm, methods, folder, *, n=120, **options):
        return benchmarks.evaluate(vlm, methods, {"world": benchmarks.world_items(vlm, "world", n)[:1]}, folder=folder, **options)

    monkeypatch.setattr(report, "CHAPTERS", ())
    monkeypatch.setattr(benchmarks, "run_world", world)
    monkeypatch.setattr(benchmarks, "write_tables", lambda result, folder: "table")
    monkeypatch.setattr("emointerp.course.open_lab", lambda notebook: None)
    monkeypatch.setattr("emointerp.evaluation.contest", lambda vlm, l_emo: [])


def test_every_command_ends_in_an_exit_code_and_a_sentence(bodies, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)

    @tried(60)
    @given(commands())
    def anything(words):
        monkeypatch.setattr("sys.argv", ["emointerp", *words])
        capsys.readouterr()
        TRIED["commands"] += 1
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        said = capsys.readouterr()
        code = stopped.value.code
        assert isinstance(code, int) and 0 <= code <= 4
        assert code == 0 or len((said.err + said.out).strip()) > 25
        assert "Traceback" not in said.err
        REFUSED["commands"] += code != 0

    anything()


# what fell over once


@pytest.fixture
def refused(record_property):
    def check(words: str, call: Callable[[], Any], error: type = InputError) -> None:
        with pytest.raises(error, match=words):
            call()
        record_property("tried", 1)

    return check


def test_pictures_that_fell_over(refused):
    refused("0 x 7 pixels shows nothing", lambda: to_image(Image.new("RGB", (0, 7))))
    refused("cannot be turned into RGB .*La", lambda: to_image(Image.new("La", (2, 2))))
    mask = Image.new("1", (2, 2))
    mask.info["transparency"] = b"\x00"
    refused("cannot be turned into RGB .TypeError", lambda: to_image(mask))
    refused("cannot be turned into RGB", lambda: to_image(torch.rand(4, 4).bfloat16()))
    vlm, line = tiny_families.vlm("qwen2_vl"), Image.new("RGB", (4000, 1))
    refused("4000 x 1 pixels beside this text: absolute aspect ratio", lambda: vlm.prompt(line, "I."))


def test_texts_that_fell_over(tmp_path, refused):
    for name in ("instruction", "answer"):
        refused("holds bytes that are no text", lambda name=name: VLM.prompt(picture(1), "The phone rang.", **{name: "\ud800"}))
    pair = Pair(small("a"), small("b"), "The phone rang.", "joy", name="\ud800")
    refused("cannot be written", lambda: save_pairs([pair], tmp_path), OutputError)


def test_paths_that_fell_over(refused):
    for ask in FROM_PATH:
        refused("", lambda ask=ask: ask("x" * 5000))
    refused("holds no edits", lambda: load_edits(""))
    refused("cannot be written", lambda: save_edits([], ""), OutputError)


def test_edits_that_fell_over(refused):
    refused("alpha is 1000.*expected a finite number", lambda: AddVector(1, torch.ones(3), 10**400))


def test_saved_edits_that_fell_over(tmp_path, refused):
    file = tmp_path / "e.json"
    refused("holds no edits that can be read", lambda: load_edits(file))
    save_edits([AddVector(1, torch.ones(3))], file)
    rows = json.loads(file.read_text())
    for changed in (5, [5], [{}], [{"edit": "AddVector"}], [{**rows[0], "more": 1}], [{**rows[0], "vector": {"tensor": "9"}}]):
        file.write_text(json.dumps(changed))
        refused("holds no edits that can be read", lambda: load_edits(file))
    file.write_text(json.dumps(rows))
    before = file.read_text()
    save_edits([AddVector(1, torch.zeros(3))], file)
    file.write_text(before)
    refused("vector is not the tensor that was saved with it", lambda: load_edits(file))


def test_saes_that_fell_over(tmp_path, refused):
    save_sae(SAE.random(4, 8, 2), tmp_path)
    settings, held = json.loads((tmp_path / "sae.json").read_text()), load_file(tmp_path / "weights.safetensors")
    (tmp_path / "sae.json").write_text(json.dumps(settings | {"k": 2.5}))
    refused("holds no SAE that can be used", lambda: load_sae(tmp_path))
    (tmp_path / "sae.json").write_text(json.dumps(settings))
    save_file({**held, "decoder": held["decoder"].double()}, tmp_path / "weights.safetensors")
    torch.testing.assert_close(load_sae(tmp_path)(torch.ones(1, 4)), SAE.random(4, 8, 2)(torch.ones(1, 4)))


def test_galleries_that_fell_over(tmp_path, refused):
    ask = gallery(tmp_path)
    file = tmp_path / "made/gallery.json"
    held = json.loads(file.read_text())
    for changed in ({"generation": "1"}, {"sae": {}}, {"tower": []}, {"pictures": 3}):
        file.write_text(json.dumps(held | changed))
        refused("is damaged or of something else", ask)
    file.write_text(json.dumps(held))
    for name in ("features", "images"):
        table = tmp_path / f"made/tables-0001/{name}.parquet"
        data = table.read_bytes()
        table.write_bytes(data[: len(data) // 2])
        refused("are damaged|was changed or moved", ask)
        table.write_bytes(data)


def test_tables_of_emotic_that_fell_over(tmp_path, refused):
    ask = emotic(write_arrays)(tmp_path)
    table = pd.read_csv(tmp_path / "train.csv", dtype=str)
    for words in ("5", "[5]", "(" * 300):
        changed = table.assign(Categorical_Labels=words)
        changed.to_csv(tmp_path / "train.csv", index=False)
        refused("is not as expected", ask)
    table.to_csv(tmp_path / "train.csv", index=False)
    for array in (np.array(3.0), np.array(["a", "b"])):
        np.save(tmp_path / "train_cat_arr.npy", array)
        refused("do not fit together|holds no numbers", ask)
    (tmp_path / "train_cat_arr.npy").write_bytes(b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((((\n")
    refused("is no plain array", ask)


def test_sheets_that_are_not_utf8(tmp_path, refused):
    ask = wheel_sheets(tmp_path)
    (tmp_path / "format.csv").write_bytes(b"name,format\nm\xffd,x\n")
    refused("is no CSV table in UTF-8", ask)


@pytest.mark.parametrize("dtype", ["", "int8", "float", "\ud800"])
def test_a_dtype_that_is_none(dtype, refused):
    refused("expected auto, float32, bfloat16, float16", lambda: load(dtype=dtype))
