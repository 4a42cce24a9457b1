"""`verify` says that the roads agree, and says so no longer when one of them is bent."""

import copy
import re

import pytest
import tiny_families
import torch

from emointerp import cli
from emointerp.errors import ModelError
from emointerp.models import load
from emointerp.tracing import verify
from emointerp.tracing.plan import Plan


@pytest.mark.parametrize("family", tiny_families.NAMES)
def test_the_roads_agree_on_every_family(family):
    vlm = tiny_families.vlm(family)
    before = {k: v.clone() for k, v in vlm.model.state_dict().items()}
    found = verify(vlm)
    assert found.agrees and "All roads agree." in str(found), str(found)
    assert list(found.table.index) == [
        "residual",
        "heads",
        "neurons",
        "logits",
        "patched head",
        "patched picture",
        "scaled neurons",
    ]
    assert (found.table.nnsight == 0).all()
    assert found.table.branches[4:].between(0, 2e-5).all()
    assert found.table.TransformerLens.notna().all() and (found.table.scale > 0.1).all()
    assert all(torch.equal(v, before[k]) for k, v in vlm.model.state_dict().items())


def test_a_road_that_differs_is_named(monkeypatch):
    vlm = tiny_families.vlm("llava_clip")
    right = Plan.apply
    monkeypatch.setattr(
        Plan, "apply", lambda self, layer, site, hidden, n: right(self, layer, site, hidden, n) + 0.01 * (site == "heads")
    )
    found = verify(vlm)
    assert not found.agrees
    assert re.search(r"do NOT agree with plain hooks: nnsight \(patched head\), branches \(patched head\)\.", str(found))


def test_a_weight_that_is_no_number_is_no_agreement():
    vlm = load(copy.deepcopy(tiny_families.vlm("llava_clip").model), processor=tiny_families.vlm("llava_clip").processor)
    with torch.no_grad():
        vlm.model.get_submodule(f"{vlm.anatomy.layers}.1.mlp.down_proj").weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match="not finite in float32: from the output of layer 1 on"):
        verify(vlm)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_find_an_edit_that_is_not_done(dtype, monkeypatch):
    vlm = load(copy.deepcopy(tiny_families.vlm("llava_clip").model).to(dtype), processor=tiny_families.vlm("llava_clip").processor)
    assert verify(vlm).agrees or verify(vlm).undecided()
    right = Plan.apply
    monkeypatch.setattr(Plan, "apply", lambda self, layer, site, x, n: x if site == "heads" else right(self, layer, site, x, n))
    assert not verify(vlm).agrees


def test_the_command(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["emointerp", "verify", str(tiny_families.folder("qwen2_vl")), "--dtype", "float32"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 0 and "All roads agree." in capsys.readouterr().out
