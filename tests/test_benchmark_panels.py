"""The benchmark of panels, on one that computes next to nothing: what counts as a change, and the table. No time is asserted."""

import json
import sys
from pathlib import Path

import ipywidgets
import pytest

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import panels  # noqa: E402
import run  # noqa: E402

from emointerp.errors import InputError  # noqa: E402
from emointerp.widgets.panel import Panel  # noqa: E402


def small() -> Panel:
    controls = {"a": ipywidgets.IntSlider(0, 0, 9), "b": ipywidgets.IntSlider(0, 0, 9)}

    def compute(a: int, b: int) -> str:
        if a + b == 18:
            raise InputError("too much")
        return f"{a} and {b}"

    return Panel(controls, compute, ipywidgets.VBox())


def test_controls_that_are_set_together_are_one_change():
    panel, seen = small(), []
    panel.view.observe(lambda change: seen.append(change["new"]), names="value")
    first, last = panels.milliseconds(panel, {"a": 3, "b": 4})
    assert 0 < first <= last
    assert seen == ["3 and 4"] and panel._compute.cache_info().misses == 2


def test_what_was_asked_before_or_goes_wrong_is_not_timed():
    panel = small()
    panels.milliseconds(panel, {"a": 3})
    with pytest.raises(ValueError, match="'a': 0.* was asked for before"):
        panels.milliseconds(panel, {"a": 0})
    with pytest.raises(ValueError, match="brought a problem: .*too much"):
        panels.milliseconds(panel, {"a": 9, "b": 9})


def test_all_combinations_but_the_present_one():
    found = panels.every(small(), a=range(4), b=range(5))
    assert len(found) == len({tuple(one.values()) for one in found}) == panels.CHANGES
    assert {"a": 0, "b": 0} not in panels.every(small(), a=range(3), b=range(2)) and len(found[0]) == 2
    assert len(panels.every(small(), a=range(3), b=range(2))) == 5


def test_a_row_has_the_median_and_the_tail():
    row = panels.row("it", "a", range(1, 102), goal=100)
    assert row == {"panel": "it", "change": "a", "changes": 101, "median ms": 51, "90% ms": 91, "slowest ms": 101, "goal ms": 100}


def test_the_table_is_made_by_the_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(panels, "bundled", lambda: None)
    monkeypatch.setitem(panels.PANELS, "lens", lambda _: (small(), [panels.Kind("b", panels.changes(b=range(1, 8)))]))
    run.main(["--panels", "lens", "--json", str(tmp_path / "rows.json")])
    table = capsys.readouterr().out
    (row,) = json.loads((tmp_path / "rows.json").read_text())
    assert (row["panel"], row["change"], row["changes"], row["goal ms"]) == ("lens", "b", 7, panels.GOAL)
    assert all(word in table for word in ("median ms", "90% ms", "goal ms"))
    with pytest.raises(SystemExit):
        run.main(["--panels", "lense"])
