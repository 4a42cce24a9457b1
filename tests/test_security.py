"""Files by other hands do no harm: nothing of theirs is run, nothing is written outside, and none takes the machine's memory.

What may be read and what may be written is told apart: a table of a user's own may name pictures anywhere (that is what a path is
for), but no name in it decides where something is written, and no archive is unpacked to disk.
"""

import ast
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hostile import Trace
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_models import picture, random_folder
from tqdm.auto import tqdm

import emointerp as ei
from emointerp.directions import Directions
from emointerp.emotions import read_pickled_npz
from emointerp.errors import EmointerpError, InputError, ModelError
from emointerp.evaluation import benchmarks, mer_unibench
from emointerp.evaluation.emotic import Place, read_emotic
from emointerp.evaluation.harness import Cell
from emointerp.files import whole
from emointerp.models import load_tower, to_image
from emointerp.models.familiarity import FILE, familiarity
from emointerp.pairs import Pair, read_pairs, save_pairs
from emointerp.resumable import resume
from emointerp.sae import load_sae

ROOT = Path(__file__).resolve().parents[1]

# what the package's own code may not do

MODULES = {"dill", "joblib", "shelve", "marshal", "cloudpickle", "socket", "requests", "httpx", "ftplib", "smtplib", "telnetlib"}
MODULES |= {"urllib.request", "http.client", "xmlrpc.client"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
CALLS = {
    "os.system", "os.popen", "yaml.load", "yaml.unsafe_load", "pd.read_pickle", "pandas.read_pickle", "pickle.load", "pickle.loads",
    "pickle.dump", "pickle.dumps", "shutil.unpack_archive", "tempfile.mktemp", "torch.hub.load", "torch.save",
}  # fmt: skip
METHODS = {"extractall", "to_pickle", "load_state_dict_from_url"}
FLAGS = {("trust_remote_code", True), ("allow_pickle", True), ("shell", True), ("weights_only", False)}
ALLOWED = {  # two unpicklers that find a few constructors and nothing else; and a server that the user asked for
    "emotions/pickled.py": {"pickle.Unpickler"},
    "models/remote.py": {"pickle.Unpickler", "httpx", "weights_only=False", "torch.load without weights_only=True"},
}


def dotted(node: ast.AST) -> str:
    """`a.b.c` as it is written."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def faults(source: str, allowed: frozenset[str] | set[str] = frozenset()) -> list[str]:
    """Where a source would unpickle, run a text, start a shell, unpack an archive or reach for the network."""
    return [f"line {node.lineno}: {said}" for node in ast.walk(ast.parse(source)) for said in _faults(node) if said not in allowed]


def _faults(node: ast.AST) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [name.name for name in names if name.name in MODULES or name.name.partition(".")[0] in MODULES]
        case ast.ImportFrom(module=str(module), names=names):
            within = {module, module.partition(".")[0], *(f"{module}.{name.name}" for name in names)}
            return [*sorted(within & MODULES), *["from pickle import"] * (module == "pickle")]
        case ast.Attribute(value=ast.Name(id="pickle"), attr=name):
            return [] if name == "UnpicklingError" else [f"pickle.{name}"]
        case ast.Call():
            return _call_faults(node)
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            return [f"{k.value}={v.value}" for k, v in pairs if _constants(k, v) and (k.value, v.value) in FLAGS]
    return []


def _constants(*nodes: ast.AST | None) -> bool:
    return all(isinstance(node, ast.Constant) and not isinstance(node.value, float) for node in nodes)


def _call_faults(call: ast.Call) -> list[str]:
    name, given = dotted(call.func), {k.arg: k.value for k in call.keywords}
    found = [name] if name in BUILTINS | CALLS or name.rpartition(".")[2] in METHODS else []
    found += [f"{arg}={value.value}" for arg, value in given.items() if _constants(value) and (arg, value.value) in FLAGS]
    if name == "torch.load" and not getattr(given.get("weights_only"), "value", False):
        found.append("torch.load without weights_only=True")
    if name in ("np.load", "numpy.load") and getattr(given.get("allow_pickle"), "value", False):
        found.append("np.load with allow_pickle")
    return found


BAD = """import dill
import joblib.memory
from urllib import request
from urllib.request import urlopen
from pickle import loads
pickle.loads(b)
pickle.Unpickler(f)
eval(text)
exec(text)
os.system("ls")
subprocess.run("ls", shell=True)
torch.load(file)
torch.load(file, weights_only=False)
np.load(file, allow_pickle=True)
yaml.load(text)
pd.read_pickle(file)
archive.extractall(folder)
AutoModel.from_pretrained(name, trust_remote_code=True)
options = {"trust_remote_code": True}
torch.save(model, file)"""


@pytest.mark.parametrize("line", BAD.splitlines())
def test_the_search_would_find_it(line):
    assert faults(line)


def test_the_package_unpickles_runs_and_fetches_nothing():
    files = {file.relative_to(ROOT / "emointerp").as_posix(): file for file in (ROOT / "emointerp").rglob("*.py")}
    found = {name: faults(file.read_text(encoding="utf-8"), ALLOWED.get(name, set())) for name, file in files.items()}
    assert len(files) > 100 and not {name: said for name, said in found.items() if said}


def test_the_notebooks_do_neither():
    for file in (ROOT / "notebooks").glob("*.ipynb"):
        cells = [cell["source"] for cell in json.loads(file.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
        lines = "\n".join("".join(cell) for cell in cells).splitlines()
        assert not faults(
            "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!"))),
        ), file.name


# files that would run something when they are opened

Make = Callable[[Path, Trace], object]  # writes a hostile file, and gives back what opens it


def pickled(name: str, held: Callable[[Trace], object] = lambda trace: trace, **options) -> Make:
    """A file as `torch.save` writes it."""

    def make(folder: Path, trace: Trace) -> Path:
        torch.save(held(trace), folder / name, **options)
        return folder / name

    return make


def raw(name: str) -> Make:
    """A plain pickle under a name that promises something else."""

    def make(folder: Path, trace: Trace) -> Path:
        (folder / name).write_bytes(pickle.dumps({"a": trace}))
        return folder / name

    return make


def array(name: str) -> Make:
    def make(folder: Path, trace: Trace) -> Path:
        np.save(folder / name, np.array([trace], dtype=object), allow_pickle=True)
        return folder / name

    return make


def archive(name: str) -> Make:
    def make(folder: Path, trace: Trace) -> Path:
        np.savez(folder / name, label=np.array({"a": trace}, dtype=object))
        return folder / name

    return make


def release(trace: Trace) -> dict:
    return {"model": {"up_proj.weight": torch.eye(4)}, "config": trace}


def model_with(name: str) -> Make:
    """A model's folder whose weights are a pickle."""

    def make(folder: Path, trace: Trace) -> Path:
        shutil.copytree(random_folder(), folder / "model")
        (folder / "model" / "model.safetensors").unlink()
        torch.save({"lm_head.weight": trace}, folder / "model" / name)
        if name != "pytorch_model.bin":
            index = {"metadata": {}, "weight_map": {"lm_head.weight": name}}
            (folder / "model" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        return folder / "model"

    return make


def model_beside(name: str) -> Make:
    """A whole model's folder with a pickle under the name of a file of ours."""

    def make(folder: Path, trace: Trace) -> Path:
        shutil.copytree(random_folder(), folder / "model")
        raw(name)(folder / "model", trace)
        return folder / "model"

    return make


def tower(folder: Path, trace: Trace) -> Path:
    config = transformers.SiglipVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    config.save_pretrained(folder)
    transformers.SiglipImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(folder)
    torch.save({"a": trace}, folder / "pytorch_model.bin")
    return folder


def checkpoint(file: Path) -> object:
    return resume(file, {}, torch.optim.SGD([torch.zeros(1)]), {})


def answered(file: Path) -> object:
    """A server's answer, as NDIF would send it."""
    from emointerp.models.remote import _tensors

    return _tensors(file.read_bytes())


def scripted(folder: Path, trace: Trace) -> Path:
    """A TorchScript archive: `torch.load` opens it as a program, past the unpickler that it was given."""
    torch.jit.script(torch.nn.ReLU()).save(folder / "a.pt")
    return folder / "a.pt"


def sae_folder(folder: Path, trace: Trace, settings: str, weights: str) -> Path:
    (folder / settings).write_text("{}")
    raw(weights)(folder, trace)
    return folder


PICKLES: dict[str, tuple[Make, Callable[[Path], object], str]] = {
    "an SAE's release": (pickled("a.pt", release), load_sae, "is refused: it asks to run"),
    "a release of before 2020": (
        pickled("a.pt", release, _use_new_zipfile_serialization=False),
        load_sae,
        "no whole file of torch.save",
    ),
    "a pickle called .pt": (raw("a.pt"), load_sae, "no whole file of torch.save"),
    "an SAE's weights": (lambda f, t: sae_folder(f, t, "sae.json", "weights.safetensors"), load_sae, "broken or cut off"),
    "SAELens' weights": (lambda f, t: sae_folder(f, t, "cfg.json", "sae_weights.safetensors"), load_sae, "broken or cut off"),
    "a model's weights": (model_with("pytorch_model.bin"), ei.load, "asks for more than tensors; it was not run"),
    "a part of a model's weights": (model_with("pytorch_model-1.bin"), ei.load, "asks for more than tensors; it was not run"),
    "a model's weights, called safetensors": (model_beside("model.safetensors"), ei.load, "its weights are damaged"),
    "a model's familiarity": (
        model_beside(FILE),
        lambda folder: familiarity(ei.load(folder), picture()),
        "is damaged or of something else",
    ),
    "a tower's weights": (tower, load_tower, "asks for more than tensors; it was not run"),
    "a checkpoint": (raw("a.safetensors"), checkpoint, "is no whole checkpoint"),
    "directions": (raw("a.safetensors"), Directions.load, "holds no directions"),
    "tensors of edits": (
        raw("a.json.safetensors"),
        lambda file: ei.load_edits(file.with_suffix("")),
        "holds no edits that can be read",
    ),
    "EMOTIC's arrays": (array("a.npy"), lambda file: Place(file).open(), "is no plain array"),
    "a server's answer": (pickled("a.pt"), answered, "The server's answer was not opened"),
    "a server's program": (scripted, answered, "The server's answer was not opened"),
    "labels of MER-UniBench": (archive("a.npz"), read_pickled_npz, "is refused: its pickle asks for"),
}


@pytest.mark.parametrize("which", PICKLES)
def test_a_pickle_is_refused_in_words_and_does_nothing(which, tmp_path):
    make, read, words = PICKLES[which]
    (tmp_path / "files").mkdir()
    file = make(tmp_path / "files", Trace(tmp_path / "was run"))
    with pytest.raises(EmointerpError, match=words):
        read(file)
    assert not (tmp_path / "was run").exists()


def test_the_trace_would_be_left(tmp_path):
    """The oracle of the test above: whoever unpickles these files runs them."""
    pickle.loads(raw("a.pt")(tmp_path, Trace(tmp_path / "was run")).read_bytes())
    assert (tmp_path / "was run").exists()


def test_classes_of_a_release_are_not_looked_for(tmp_path, monkeypatch):
    """A class by the name of the release's settings, in a module that can be imported: only the name is taken."""
    (tmp_path / "planted_release.py").write_text(
        f"import os\nclass TrainConfig:\n    def __setstate__(self, state): os.mkdir({str(tmp_path / 'was run')!r})\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    planted = __import__("planted_release")
    torch.save({"model": {}, "config": planted.TrainConfig()}, tmp_path / "a.pt")
    monkeypatch.delitem(sys.modules, "planted_release")
    with pytest.raises(InputError, match="lacks 'up_proj.weight'"):
        load_sae(tmp_path / "a.pt")
    assert not (tmp_path / "was run").exists() and "planted_release" not in sys.modules


MAPS = {
    "config.json": {"AutoConfig": "x.X", "AutoModelForImageTextToText": "x.X", "AutoModel": "x.X"},
    "processor_config.json": {"AutoProcessor": "x.X", "AutoImageProcessor": "x.X"},
    "tokenizer_config.json": {"AutoTokenizer": ["x.X", "x.X"], "AutoProcessor": "x.X"},
}


def planted_model(folder: Path) -> Path:
    """A whole model whose every configuration asks for code that lies beside it."""
    shutil.copytree(random_folder(), folder / "model")
    run = f"import os\nos.mkdir({str(folder / 'was run')!r})\nclass X: pass\n"
    (folder / "model" / "custom_generate").mkdir()
    for name in ("x.py", "modeling_x.py", "custom_generate/generate.py"):
        (folder / "model" / name).write_text(run)
    for name, wanted in MAPS.items():
        file = folder / "model" / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": wanted}))
    return folder / "model"


def test_code_beside_a_model_is_not_run(tmp_path):
    """transformers has classes of its own for it, and these are taken."""
    vlm = ei.load(planted_model(tmp_path))
    assert vlm.generate(vlm.prompt(picture(), "It rained."), max_new_tokens=2) is not None
    assert load_tower(tmp_path / "model").d == 32 and not (tmp_path / "was run").exists()


def test_a_model_of_code_alone_is_refused(tmp_path, record_property):
    file = planted_model(tmp_path) / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "x"}))
    for opens in (ei.load, load_tower):
        with pytest.raises(ModelError, match="Cannot open"):
            opens(tmp_path / "model")
        record_property("tried", 1)
    assert not (tmp_path / "was run").exists()


@pytest.mark.parametrize("option", [{"weights_only": False}, {"trust_remote_code": True}])
def test_nobody_can_ask_for_it_by_an_option(option):
    with pytest.raises(ModelError, match="never runs a model's remote code|unpickles nothing but tensors"):
        ei.load(random_folder(), **option)


def test_a_chat_template_is_a_template_and_no_program(tmp_path):
    shutil.copytree(random_folder(), tmp_path / "model")
    run = "{{ cycler.__init__.__globals__['os'].mkdir('" + str(tmp_path / "was run") + "') }}"
    (tmp_path / "model" / "chat_template.jinja").write_text(run)
    with pytest.raises(ModelError, match="makes no prompt of a picture and a text"):
        ei.load(tmp_path / "model")
    assert not (tmp_path / "was run").exists()


def test_nobody_is_asked_to_convert_weights():
    """transformers would ask a server to, where a repository of the hub has no safetensors."""
    from transformers.utils import is_env_variable_true

    ei.load(random_folder())
    assert is_env_variable_true("DISABLE_SAFETENSORS_CONVERSION")


# names in tables: they may say what is read, and never where something is written

NAMES = (
    "../../etc/passwd", "/etc/passwd", "..\\..\\windows\\win.ini", "C:\\Windows\\win.ini", "\\\\server\\share\\a.png", "-rf", "~",
    "~root/a.png", "file:///etc/passwd", "http://127.0.0.1/a.png", "a\0b.png", "con", "x" * 5000, ".", "..", "*", "$(touch a)",
    "`id`", "|ls", "a\u202egnp.png",
)  # fmt: skip
named = pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:12]))


def held(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(file): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def table(folder: Path, emotional: str) -> Path:
    import csv

    Image.fromarray(picture()).save(folder / "rest.png")
    with (folder / "pairs.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(
            [["emotional", "neutral", "event", "emotion"], [emotional, "rest.png", "It rained on me.", "joy"]]
        )
    return folder / "pairs.csv"


@named
def test_a_table_of_pairs_says_what_it_cannot_read(name, tmp_path):
    file, before = table(tmp_path, name), held(tmp_path)
    with pytest.raises(InputError, match="cannot be used:\n- .*(there is no picture|is not a picture that can be read)") as raised:
        read_pairs(file)
    assert held(tmp_path) == before and "root:" not in str(raised.value)


def test_a_table_of_ones_own_may_name_pictures_anywhere(tmp_path):
    (tmp_path / "pairs").mkdir()
    Image.fromarray(picture(1)).save(tmp_path / "smile.png")
    (tmp_path / "pairs" / "link.png").symlink_to(tmp_path / "smile.png")
    for name in (str(tmp_path / "smile.png"), "../smile.png", "link.png"):
        (pair,) = read_pairs(table(tmp_path / "pairs", name))
        assert np.array_equal(np.asarray(to_image(pair.emotional)), picture(1))


@named
def test_no_name_of_a_pair_decides_where_it_is_written(name, tmp_path):
    (tmp_path / "out").mkdir()
    pair = Pair(picture(0), picture(1), "It rained on me.", name[:200], name, name)
    save_pairs([pair], tmp_path / "out" / "pairs")
    files = [Path(file) for file in held(tmp_path)]
    assert len(files) == 3 and {file.parent for file in files} == {tmp_path / "out" / "pairs"}
    assert all(file.name == "pairs.csv" or file.name.startswith("000_") for file in files)


@named
def test_emotic_writes_nothing_where_its_table_points(name, tmp_path):
    import pandas as pd
    from test_emotic import drawn, write_columns

    root = write_columns(tmp_path / "copy", {"test": drawn("test", 2)})
    file = root / "annots_arrs" / "annot_arrs_test.csv"
    pd.read_csv(file, dtype=str).assign(Arr_name=name, Filename=name).to_csv(file, index=False)
    before = held(tmp_path)
    with pytest.raises(InputError, match="picture files are not there|/etc/passwd is damaged|/etc/passwd is not a picture"):
        read_emotic(root, splits=("test",)).picture(0)
    assert held(tmp_path) == before


def test_clips_are_those_that_lie_in_the_folder_of_videos(tmp_path, record_property):
    """Labels may name what they like: a row is a file that a listing gave, so its name has no folder in it."""
    from test_mer_unibench import write

    data = {name: {"emo": "happy"} for name in (*NAMES, "-rf", "<b>")}
    own = write(tmp_path / "data", "MER2023", clips=["<b>"], test1_corpus=data, train_corpus={})
    (own / "video" / "-rf").mkdir()
    Image.fromarray(picture()).save(own / "video" / "-rf" / "0.png")
    (tmp_path / "secret.png").symlink_to(own / "video" / "<b>.png")
    with pytest.warns(UserWarning, match="They are left out"):
        rows = mer_unibench.read(own, "MER2023", skip_missing=True).rows
    assert sorted(row.name for row in rows) == ["-rf", "<b>"]
    before = held(tmp_path / "data")
    for row in rows:
        benchmarks._item("MER2023", row, tmp_path / "out" / "frames", 0, tqdm(disable=True))
    assert held(tmp_path / "data") == before
    assert [file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.jpg")] == [
        "frames/MER2023/-rf.jpg"
    ]
    record_property("tried", len(data))


@given(st.text(max_size=300), st.text(max_size=300))
def test_the_file_of_a_cell_is_a_name(method, name):
    file = Cell(method, name, 0).file
    assert Path(file).name == file and "\\" not in file and not file.startswith(".") and len(file.encode()) < 255


def test_a_link_in_the_folder_of_results_is_not_written_through(tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    (tmp_path / "out").mkdir()
    for name in ("told.txt", f".part-{os.getpid()}-told.txt"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "mine.txt")
    with whole(tmp_path / "out" / "told.txt") as part:
        part.write_text("new")
    assert (tmp_path / "mine.txt").read_text() == "keep me" and (tmp_path / "out" / "told.txt").read_text() == "new"


@pytest.mark.parametrize("name", ["a.mp4", "a.avi"])
@pytest.mark.parametrize("text", ["#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile '{}'\n"])
def test_a_video_that_is_a_playlist_fetches_nothing(name, text, tmp_path):
    pytest.importorskip("av")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        (tmp_path / name).write_text(text.format(f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"))
        with pytest.raises(InputError, match=f"The video .*{name} (cannot be read|has no frames)"):
            mer_unibench.frame(tmp_path / name)
        with pytest.raises(TimeoutError):
            server.accept()


# bombs: what unpacks to more than the machine has, or never ends


def png(width: int, height: int, depth: int, colour: int) -> bytes:
    """A picture of zeros, all of it."""
    bits = depth * {0: 1, 2: 3, 6: 4}[colour]
    packer = zlib.compressobj(1)
    rows = b"\0" * (1 + (width * bits + 7) // 8) * 100
    data = b"".join(packer.compress(rows) for _ in range(height // 100)) + packer.flush()
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0), b"IDAT" + data, b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks)


def gif(frames: int, side: int = 1) -> bytes:
    one = b"\x21\xf9\x04\x00\x01\x00\x00\x00" + b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + b"\0\0\0\xff\xff\xff" + one * frames + b"\x3b"


def bmp(side: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)


def cut_jpeg(file: Path) -> None:
    Image.fromarray(picture()).save(file, quality=95)
    os.truncate(file, file.stat().st_size // 2)


def zipped(file: Path, name: str, size: int = 300_000_000) -> None:
    """An archive of zeros: a thousandth of what it unpacks to."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open(name, "w") as stream:
        for _ in range(size // 1_000_000):
            stream.write(b"\0" * 1_000_000)


LARGE, UNKNOWN = "unpacks to too many pixels", "is not a picture that Pillow can read"
BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "bomb.png": (lambda file: file.write_bytes(png(30_000, 30_000, 1, 0)), LARGE),
    "bomb.gif": (lambda file: file.write_bytes(gif(1, 65_535)), LARGE),
    "bomb.bmp": (lambda file: file.write_bytes(bmp(30_000)), LARGE),
    "bomb.ppm": (lambda file: file.write_bytes(b"P6 30000 30000 255\n"), LARGE),
    "large.png": (lambda file: file.write_bytes(png(9_400, 9_400, 8, 6)), "(9400, 9400)"),
    "frames.gif": (lambda file: file.write_bytes(gif(10_000)), "(1, 1)"),
    "drawing.svg": (lambda file: file.write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>"), UNKNOWN),
    "text.png": (lambda file: file.write_text("no picture"), UNKNOWN),
    "program.png": (lambda file: file.write_text(POSTSCRIPT), UNKNOWN),
    "empty.png": (lambda file: file.write_bytes(b""), "is empty (0 bytes)"),
    "cut.jpg": (cut_jpeg, "is damaged or cut off"),
    "pipe.png": (os.mkfifo, "is empty (0 bytes)"),
    "loop.png": (lambda file: file.symlink_to(file), "is damaged or cut off"),
    "endless.png": (lambda file: file.symlink_to("/dev/zero"), "is empty (0 bytes)"),
    "folder.png": (Path.mkdir, "is a folder, not a picture"),
    "bomb.npz": (lambda file: zipped(file, "label.npy"), "unpacks to 300 MB (limit 268)"),
    "wheel1.xlsx": (lambda file: zipped(file, "xl/worksheets/sheet1.xml"), "unpacks to 300 MB (limit 268)"),
}
POSTSCRIPT = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
READING = """
import json, resource, sys
from pathlib import Path
from emointerp.emotions import read_mer_unibench_wheels, read_pickled_npz
from emointerp.models.images import to_image, uploaded

def size(picture):
    return str(picture.size)

readers = {".npz": read_pickled_npz, ".xlsx": lambda file: read_mer_unibench_wheels(file.parent)}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
start, told = peak(), {}
for file in map(Path, sys.argv[1:]):
    reads = [readers.get(file.suffix, lambda file: size(to_image(file)))]
    if file.is_file() and file.suffix not in readers and file.name != "large.png":
        reads.append(lambda file: size(uploaded(file.name, file.read_bytes())))
    for read in reads:
        try:
            told.setdefault(file.name, []).append(read(file))
        except Exception as error:
            told.setdefault(file.name, []).append(f"{type(error).__name__}: {error}")
print(json.dumps([told, peak() - start]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is counted and endless files are made as Linux has them")
def test_no_picture_and_no_archive_takes_the_memory_or_never_ends(tmp_path, record_property):
    for name, (make, _) in BOMBS.items():
        make(tmp_path / name)
    for name in ("wheel2.xlsx", "wheel3.xlsx", "wheel4.xlsx", "wheel5.xlsx", "synonym.xlsx"):
        (tmp_path / name).symlink_to(tmp_path / "wheel1.xlsx")
    (tmp_path / "format.csv").write_text("name,format\n")
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch '{tmp_path / 'was run'}'\n")
    (tmp_path / "gs").chmod(0o755)
    files = [str(tmp_path / name) for name in BOMBS]
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run([sys.executable, "-c", READING, *files], env=environment, capture_output=True, text=True, timeout=120)
    told, gigabytes = json.loads(done.stdout)
    for name, (_, words) in BOMBS.items():
        assert told[name] and all(words in said for said in told[name]), (name, told[name])
        assert words.startswith("(") or all(said.startswith("InputError") and name in said for said in told[name])
    print(f"{gigabytes:.2f} GB more than before")
    assert gigabytes < 1 and not (tmp_path / "was run").exists()
    record_property("tried", len(told))
