"""Results written to a folder and read again: equal to the last digit, or refused in words."""

import re
from dataclasses import dataclass, fields
from importlib import import_module
from types import UnionType
from typing import Any, get_args, get_type_hints

import numpy as np
import pandas as pd
import pytest
import tiny_families
import torch
from tiny_models import picture
from torch import Tensor

from emointerp.errors import InputError, OutputError
from emointerp.flow import knockouts, patching
from emointerp.heads import head_map
from emointerp.pairs import Pair
from emointerp.sae.emotion import EmotionDirections
from emointerp.saved import ABOUT, Saved, coded, decoded
from emointerp.statistics import Interval
from emointerp.superposition import train_toys

EVENT = "The phone rang twice while I was cooking."


@dataclass(frozen=True, eq=False)
class Inner(Saved):
    """A result within a result."""

    means: Tensor
    draws: np.ndarray
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Found(Saved):
    """A result with all that results hold."""

    table: pd.DataFrame
    inner: Inner
    metric: str
    level: float
    settings: Any = None


def made() -> Found:
    index = pd.MultiIndex.from_tuples([(0, "a"), (0, "b"), (3, "a")], names=["layer", "span"])
    table = pd.DataFrame(
        {
            "share": [0.1 + 0.2, np.nan, 1e-300],
            "stage": ["early", 0, None],
            "said": ["é <b>", "", "x"],
            "named": [("joy", "fear"), (), ("a",)],
            "effect": [Interval(0.1, 0.0, 1 / 3, 4), Interval(0.2, 0.1, 0.3, 4), None],
        },
        index=index,
    )
    settings = {"layers": (1, 2), 3: [None, True, float("inf")], "at": np.int64(4)}
    return Found(table, Inner(torch.randn(2, 3).T, np.arange(6.0)[::2], ("joy", "fear")), "log mass", 0.1 + 0.2, settings)


def test_a_result_comes_back_as_it_was(tmp_path):
    found = made()
    assert found.save(tmp_path / "new" / "map") == tmp_path / "new" / "map"
    back = Found.load(tmp_path / "new" / "map")
    pd.testing.assert_frame_equal(back.table, found.table, check_exact=True)
    assert back.table.effect.iloc[0] == Interval(0.1, 0.0, 1 / 3, 4) and back.table.named.iloc[0] == ("joy", "fear")
    assert torch.equal(back.inner.means, found.inner.means) and back.inner.names == ("joy", "fear")
    assert isinstance(back.inner.draws, np.ndarray) and back.inner.draws.tolist() == [0, 2, 4]
    assert (back.metric, back.level, back.settings) == ("log mass", 0.1 + 0.2, found.settings)


def test_a_second_result_takes_the_first_ones_place(tmp_path):
    made().save(tmp_path)
    later = Found(made().table.head(1), Inner(torch.zeros(1), np.zeros(0), ()), "mass", 1.0)
    later.save(tmp_path)
    back = Found.load(tmp_path)
    assert len(back.table) == 1 and back.metric == "mass" and back.inner.names == () and back.settings is None


@pytest.mark.parametrize("file", ["result.json", "table.parquet", "inner/tensors.safetensors", "inner/result.json"])
def test_what_is_missing_or_damaged_is_said(file, tmp_path):
    made().save(tmp_path)
    for spoil in (lambda f: f.write_bytes(f.read_bytes()[:20]), lambda f: f.write_bytes(b"\x80\x04."), lambda f: f.unlink()):
        spoil(tmp_path / file)
        with pytest.raises(InputError, match="cannot be read as a (Found|Inner): .*Expected is what (Found|Inner).save wrote"):
            Found.load(tmp_path)


def test_another_kind_is_refused(tmp_path):
    made().save(tmp_path)
    with pytest.raises(InputError, match="cannot be read as a Inner: it holds 'Found', version 1, where 'Inner' was expected"):
        Inner.load(tmp_path)
    (tmp_path / ABOUT).write_text(
        '{"format": "emointerp result", "version": 2, "kind": "Found", "tensors": [], "arrays": [], "values": {}}'
    )
    with pytest.raises(InputError, match="version 2"):
        Found.load(tmp_path)


def test_a_value_that_is_no_result_and_a_place_that_is_no_folder_are_refused(tmp_path):
    with pytest.raises(InputError, match="A object came"):
        Found(made().table, made().inner, "mass", 1.0, settings=object()).save(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write in .*file"):
        made().save(tmp_path / "file")


def test_codes_are_read_back():
    for value in [(), [], {}, {"interval": 1}, ({"tuple": (1,)},), {(1, 2): "x"}, -0.0, 2**70, "interval"]:
        back = decoded(coded(value))
        assert back == value and type(back) is type(value)


def results() -> list[type[Saved]]:
    """Every class of the package whose results are saved."""
    for module in (
        "faithfulness",
        "flow",
        "heads",
        "neurons",
        "probes",
        "sae.signifiers",
        "sae.tree",
        "saliency",
        "start_here",
        "steering",
    ):
        import_module(f"emointerp.{module}")
    import_module("emointerp.superposition.tower")

    def below(kind: type) -> list[type]:
        return [one for sub in kind.__subclasses__() for one in (sub, *below(sub))]

    return [kind for kind in below(Saved) if kind.__module__.startswith("emointerp.")]


@pytest.mark.parametrize("kind", results(), ids=lambda kind: kind.__name__)
def test_each_result_holds_only_what_can_be_saved(kind):
    hints = get_type_hints(kind)
    assert set(hints) == {field.name for field in fields(kind)}
    for hint in hints.values():
        for part in get_args(hint) if isinstance(hint, UnionType) else (hint,):
            plain = re.fullmatch(r"(tuple|Mapping|NoneType|int|float|str|bool|Place|SupportsIndex|[\[\], .])*", _said(part))
            array = issubclass(getattr(part, "array_type", type(None)), Tensor | np.ndarray)
            assert plain or array or part in (pd.DataFrame, EmotionDirections), (kind, part)


def _said(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else re.sub(r"(\w+\.)+", "", str(hint))


@pytest.fixture(scope="module")
def found() -> list[Saved]:
    """Results of four chapters, of a tiny random model."""
    vlm = tiny_families.vlm("llava_clip")
    pairs = [Pair(picture(i)[:48, :64], picture(i + 5)[:48, :64], EVENT, e, f"pair {i}") for i, e in enumerate(("up", "down"))]
    words = {"up": ["uncle", "friend"], "down": ["morning", "church", "teacher"]}
    quiet = {"words": words, "progress": False}
    return [
        head_map(vlm, pairs, **quiet),
        patching(vlm, pairs, **quiet),
        knockouts(vlm, pairs, **quiet),
        train_toys(3, 2, (0.5, 1.0), steps=5, seeds=2),
    ]


def test_results_of_the_chapters_come_back_as_they_were(found, tmp_path):
    for i, one in enumerate(found):
        back = type(one).load(one.save(tmp_path / str(i)))
        for field in fields(one):
            a, b = getattr(one, field.name), getattr(back, field.name)
            if isinstance(a, pd.DataFrame):
                pd.testing.assert_frame_equal(a, b, check_exact=True)
            else:
                assert type(a) is type(b) and (torch.equal(a, b) if isinstance(a, Tensor) else a == b)
        assert one.to_frame().equals(back.to_frame()) or repr(one.to_frame()) == repr(back.to_frame())
