"""The benchmarks themselves, on tiny models with few repetitions: the table is made and all roads agree. Nothing here is timed."""

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import random_vlm  # noqa: F401 - a fixture

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import case  # noqa: E402
import cases  # noqa: E402
import gallery  # noqa: E402
import run  # noqa: E402
import sae_cases  # noqa: E402
import timing  # noqa: E402
from case import difference  # noqa: E402
from cases import CASES  # noqa: E402
from subjects import Subject  # noqa: E402

COLUMNS = [
    "name", "model", "ours s", "peer", "peer s", "ratio", "ratio low", "ratio high", "rounds", "difference", "cells timed",
    "peak MiB", "peer MiB", "budget MiB",
]  # fmt: skip
SMALL = sae_cases.SaeSubject(d_hidden=512, d_in=32, k=8, batch=6)


@pytest.fixture
def tiny(random_vlm, monkeypatch):  # noqa: F811
    subject = Subject("tiny", random_vlm, answers=6, tokens=4, many=40, sampled=2, alphas=4, story=6)
    models = replace(cases.SECTION, subjects={"tiny": lambda: subject})
    monkeypatch.setattr(run, "SECTIONS", (models, replace(sae_cases.SECTION, subjects={"sae-512": lambda: SMALL})))
    monkeypatch.setattr(case, "in_turns", partial(case.in_turns, least=1))
    return subject


def test_the_table_is_made_and_all_roads_agree(tiny, tmp_path, capsys):
    run.main(["--seconds", "0", "--json", str(tmp_path / "rows.json")])
    rows, table = json.loads((tmp_path / "rows.json").read_text()), capsys.readouterr().out
    assert all(list(row) == COLUMNS for row in rows)
    assert len(table.splitlines()) == len(rows) + 1 and all(word in table for word in COLUMNS)
    assert {(row["model"], row["name"]) for row in rows} == {
        *(("tiny", name) for name in CASES), *(("32 -> 512, top 8", name) for name in sae_cases.CASES)
    }  # fmt: skip
    assert max(row["difference"] for row in rows) < 1e-4
    for row in rows:
        assert row["ratio"] == pytest.approx(row["peer s"] / row["ours s"])
        assert row["rounds"] >= 1 and 0 < row["ratio low"] <= row["ratio high"]
    peers = {row["name"]: {r["peer"] for r in rows if r["name"] == row["name"]} for row in rows}
    assert peers["head-map"] == {"floor", "hooks", "TransformerLens", "nnsight"}
    cells = {row["peer"]: row["cells timed"] for row in rows if row["name"] == "head-map"}
    assert cells["floor"] == "12 of 12" and cells["hooks"] == "2 of 12"
    assert {(r["peer"], r["cells timed"]) for r in rows if r["name"] == "alpha-layer"} == {("hooks", "12 of 12")}
    assert peers["panel"] == {"plain generate", "hooks"} and peers["generate-veena"] == {"plain generate"}


def test_a_sample_of_steered_stories_has_as_many_of_each_strength_and_layer(tiny):
    (loop,) = cases.alpha_layer(replace(tiny, pairs=2)).peers.values()
    pairs, layers, alphas = zip(*loop.run.args[1], strict=True)
    assert loop.timed == 12 and [alphas.count(a) for a in (0.25, 0.5, 0.75, 1.0)] == [3] * 4
    assert [layers.count(i) for i in range(3)] == [4] * 3 and [pairs.count(i) for i in range(2)] == [6] * 2


def test_the_panel_meets_no_strength_twice(tiny):
    case = cases.panel(tiny)
    roads = {name: peer.run for name, peer in case.peers.items()}
    for _ in range(3):  # the hooks keep step with the panel
        assert difference(case.ours(), roads["hooks"]()) == 0
    assert difference(case.ours(), roads["plain generate"]()) == 0


def test_pairs_are_asked_for_on_the_command_line(tiny, tmp_path):
    run.main(["--only", "alpha-layer", "--pairs", "2", "--seconds", "0", "--json", str(tmp_path / "rows.json")])
    assert json.loads((tmp_path / "rows.json").read_text())[0]["cells timed"] == "12 of 24"


def test_only_what_is_named_runs(tiny, tmp_path, capsys):
    run.main(["--only", "forward", "generate", "--seconds", "0", "--json", str(tmp_path / "rows.json")])
    capsys.readouterr()
    assert {row["name"] for row in json.loads((tmp_path / "rows.json").read_text())} == {"forward", "generate"}
    with pytest.raises(SystemExit):
        run.main(["--only", "head_map"])
    assert "invalid choice: 'head_map' (choose from " in (message := capsys.readouterr().err)
    assert all(name in message for name in (*CASES, *sae_cases.CASES))
    run.main(["--only", "forward", "--model", "sae-512"])
    assert "none of these cases is measured on such a model" in capsys.readouterr().out


@pytest.mark.parametrize("name", sae_cases.CASES)
def test_the_sae_and_the_dense_form_agree_on_features_and_gradients(name):
    made = sae_cases.CASES[name](SMALL)
    (peer,) = made.peers.values()
    ours, theirs = made.ours(), peer.run()
    expected = {"vectors", "features"} if "code" in name else {"loss", "encoder", "decoder"}
    assert ours.keys() == theirs.keys() == expected
    assert difference(ours, theirs) < 1e-5 and min(float(t.abs().max()) for t in theirs.values()) > 0.1
    assert difference(made.ours(), theirs) < 1e-5  # a second step begins from zero again


@pytest.mark.parametrize("name", gallery.SECTION.cases)
def test_a_gallery_finds_what_a_scan_finds(name):
    made = gallery.SECTION.cases[name](gallery.GallerySubject(images=1200))
    found = made.ours()
    assert difference(found, made.peers["scan"].run()) < 1e-6 and found["values"].min() > 0


def test_a_peak_counts_what_a_road_keeps_from_run_to_run(monkeypatch):
    weighed = []
    monkeypatch.setattr(case, "in_turns", lambda runs, **rounds: dict.fromkeys(runs, [1.0]))
    monkeypatch.setattr(case, "peak_mib", lambda road: weighed.append(road()["x"]) or float(len(weighed)))
    peers = {"a": case.Peer(lambda: {"x": 1}, afresh=lambda: {"x": 2}), "b": case.Peer(lambda: {"x": 1})}
    rows = case.measured("it", SMALL, case.Case(lambda: {"x": 1}, peers, afresh=lambda: {"x": 3}))
    assert weighed == [3, 2] and [(row["peer"], row["peak MiB"], row["peer MiB"]) for row in rows] == [("a", 1, 2), ("b", 1, None)]


def test_a_wrong_answer_shows():
    ours = {0: torch.tensor([1.0, 2.0]), 1: torch.tensor([3.0, 4.0]), "baseline": torch.zeros(2)}
    assert difference(ours, {1: torch.tensor([3.0, 4.5])}) == 0.5
    assert difference({0: "I was glad.", 1: "no"}, {0: "I was glad."}) == 0
    assert difference({0: "I was glad."}, {0: "I was sad."}) == 1
    with pytest.raises(ValueError, match=r"Nothing to compare: ours holds \[0\], the peer \[1\]"):
        difference({0: "a"}, {1: "a"})


def test_runs_take_turns_and_the_median_counts(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(timing, "perf_counter", lambda: now[0])

    def taking(name, seconds):
        def one():
            order.append(name)
            now[0] += seconds.pop(0)

        return one

    found = timing.alternating({"a": taking("a", [9.0, 1.0, 2.0]), "b": taking("b", [4.0, 4.0, 40.0])}, least=3, seconds=5)
    assert order == list("ababab") and found == {"a": 2.0, "b": 4.0}


def test_a_sample_of_cells_scales_the_interval_too(monkeypatch):
    monkeypatch.setattr(case, "in_turns", lambda runs, **rounds: {"ours": [1.0, 2.0, 3.0], "loop": [2.0, 4.0, 6.0]})
    peers = {"loop": case.Peer(lambda: {"x": 1}, timed=5)}
    (row,) = case.measured("it", SMALL, case.Case(lambda: {"x": 1}, peers, cells=50))
    assert (row["ours s"], row["peer s"], row["rounds"], row["cells timed"]) == (2, 40, 3, "5 of 50")
    assert row["ratio"] == row["ratio low"] == row["ratio high"] == 20


def test_the_peak_of_memory():
    peak = timing.peak_mib(lambda: np.ones(64 * 2**20 // 8).sum())
    if peak is None:
        pytest.skip("this system does not tell a process its peak of memory")
    assert 60 < peak < 80
    assert timing.peak_mib(lambda: None) < 8
