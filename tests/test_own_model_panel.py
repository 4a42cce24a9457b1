"""The model picker: its figures against loaded models and published sizes, the line against what `load` does, and no fetching."""

import json
import socket
from xml.etree import ElementTree

import pytest
import tiny_families
import transformers

import emointerp as ei
from emointerp.errors import InputError, ModelError
from emointerp.models.budget import CONFIGS, GPUS
from emointerp.models.loading import BUNDLED
from emointerp.widgets import own_model
from emointerp.widgets.own_model import BITS, budget, compute, draw, line

SEVEN, THIRTEEN, QWEN = CONFIGS


@pytest.fixture
def sealed(monkeypatch):
    """No network, and no weights are opened."""

    def refused(*args, **options):
        raise AssertionError("the panel reached for the network or for weights")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", refused)


def rows(html: str) -> dict[str, list[str]]:
    """The table's cells by GPU."""
    tree = ElementTree.fromstring(f"<div>{html}</div>")
    return {row[0].text: [cell.text for cell in row[1:]] for row in tree.iter("tr") if row[0].text}


def test_the_panel_begins_with_the_bundled_model_and_needs_nothing_else(sealed):
    panel = own_model()
    assert "vlm = ei.load()</pre>" in panel.view.value and "needs no GPU" in panel.view.value
    assert list(panel.controls["model"].options) == [*BUNDLED, *CONFIGS] and not rows(panel.view.value)
    panel.controls["model"].value = SEVEN
    assert f'vlm = ei.load("{SEVEN}", device="cuda", dtype="bfloat16")</pre>' in panel.view.value.replace("&quot;", '"')
    assert "<b>7.06 billion parameters</b>: 14.1 GB of weights" in panel.view.value  # 2 bytes each, by hand
    assert rows(panel.view.value)["T4 16 GB"][0] == "does not fit"
    panel.controls["bits"].value = 4
    assert "bits=4)" in panel.view.value and "bitsandbytes" in panel.view.value
    assert rows(panel.view.value)["T4 16 GB"][0] != "does not fit"  # a quarter of 13 GB, and the embeddings


def test_numbers_of_the_table_are_those_of_the_budget(sealed):
    shown, frame = rows(compute(THIRTEEN)), ei.models.expect(THIRTEEN).to_frame()
    assert list(shown) == [name for fits in (True, False) for name in GPUS if frame.fits[name] == fits]
    a100 = frame.loc["A100 40 GB"]
    assert shown["A100 40 GB"] == [
        str(a100.batch), f"{a100.prompt:.2f} s", f"{a100.story:.2f} s", f"{a100.head_map:.2f} s", f"{a100.evaluation / 60:.1f} min"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["llava_clip", "gemma3"])
def test_a_folder_is_counted_by_its_configuration_alone(name, sealed, tmp_path):
    vlm = tiny_families.vlm(name)
    vlm.model.config.save_pretrained(tmp_path)  # no weights in it
    found = budget(str(tmp_path))
    assert sum(found.parameters.values()) == sum(p.numel() for p in vlm.model.parameters())
    panel = own_model()
    panel.controls["own"].value = f"  {tmp_path} "
    assert f'ei.load("{tmp_path}"' in panel.view.value.replace("&quot;", '"')
    panel.controls["model"].value = QWEN
    assert panel.controls["own"].value == "" and QWEN in panel.view.value
    assert own_model(f"{tmp_path}").view.value == compute(str(tmp_path)) and own_model(QWEN).controls["own"].value == ""


def test_the_bundled_model_is_counted_as_it_is_loaded(sealed):
    assert budget("tiny").weights == budget("tiny", 4).weights and "bits" not in compute("tiny", 4)


def test_bundled_weights_and_picture_are_those_of_the_loaded_model():
    vlm = ei.load()
    assert budget("tiny").weights == sum(p.nbytes for p in vlm.model.parameters())
    assert budget("tiny").visual == ei.models.expect(vlm).visual


def test_what_is_not_here_is_said_in_words_and_nothing_is_fetched(sealed):
    with pytest.raises(InputError, match="No model's configuration is found under 'owner/unheard-of': it is no folder"):
        budget("owner/unheard-of")
    panel = own_model()
    panel.controls["own"].value = "<script>alert(1)</script>"
    assert 'role="alert"' in panel.view.value and "<script" not in panel.view.value and panel.busy.value == ""
    panel.controls["own"].value = ""
    assert "ei.load()" in panel.view.value


def test_a_folder_of_another_kind_of_model_is_refused_in_words(sealed, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match="bert"):
        budget(str(tmp_path))
    panel = own_model()
    panel.controls["own"].value = str(tmp_path)
    assert 'role="alert"' in panel.view.value and "bert" in panel.view.value


def test_the_line_is_python_that_loads_what_was_named(monkeypatch):
    asked = []
    monkeypatch.setattr(ei, "load", lambda *args, **options: asked.append((args, options)))
    for name in ("tiny", SEVEN, 'a "quoted" \\ folder'):
        exec(line(name), {"ei": ei})
    exec(line(QWEN, 8), {"ei": ei})
    half = {"device": "cuda", "dtype": "bfloat16"}
    assert asked == [((), {}), ((SEVEN,), half), (('a "quoted" \\ folder',), half), ((QWEN,), half | {"bits": 8})]


def test_the_figure_says_what_fits_and_takes_names_as_they_are(tmp_path):
    panel = own_model()
    panel.controls["model"].value, panel.controls["bits"].value = SEVEN, BITS["16 bits"]
    figure = panel.figure()
    axis, budget_seven = figure.axes[0], ei.models.expect(SEVEN)
    assert axis.get_title() == f"{SEVEN}, 16 bits" and [t.get_text() for t in axis.get_yticklabels()] == list(GPUS)
    blue = [patch.get_facecolor() for patch in axis.patches]
    fits = budget_seven.to_frame().fits
    assert [color == blue[-1] for color in blue] == list(fits) and fits.iloc[-1]
    assert axis.lines[0].get_xdata()[0] == pytest.approx(budget_seven.peak() / 1e9)
    folder = tmp_path / "a $1 model$"
    tiny_families.vlm("llava_clip").model.config.save_pretrained(folder)
    draw(str(folder)).savefig(tmp_path / "dollars.png")  # no formula
