"""The benchmark report: its page and the README say what the results say, and a figure that drifts, or has no origin, is seen."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests" / "benchmarks"))

import provenance  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
import timing  # noqa: E402
import wording  # noqa: E402
from report import Quote  # noqa: E402

SCRIPT = """
import json, sys
from pathlib import Path
assert sys.argv[1] == "--json"
Path(sys.argv[2]).write_text(json.dumps({rows}))
"""


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The results in a folder of their own, where a test may change them."""
    folder = tmp_path / "results"
    folder.mkdir()
    for file in report.RESULTS.glob("*.json"):
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.setattr(report, "RESULTS", folder)
    monkeypatch.setattr(report, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(report, "ROOT", tmp_path)
    return folder


def changed(file: Path, row: int, **figures) -> None:
    result = json.loads(file.read_text())
    result["rows"][row] |= figures
    file.write_text(json.dumps(result))


def test_the_page_and_the_readme_say_what_the_results_say():
    assert list(report.problems()) == []
    assert "say why in report.md.jinja" not in report.PAGE.read_text()  # the first five of each list of the house


def test_every_result_says_where_it_comes_from():
    found = report.results()
    assert (
        {"sae", "smoothgrad", "panels", "gallery", "engine-bundled", "engine-wide", "tour", "fit"}
        <= found.keys()
        <= report.SECTIONS.keys()
    )
    for name, result in found.items():
        assert result["section"] == name and result["rows"] and result["versions"]["torch"] and result["machine"]["cores"] >= 1
        assert re.fullmatch(r"2\d{3}-\d\d-\d\d", result["measured"]) and re.fullmatch(r"[0-9a-f]{7,}\+?", result["commit"])
        assert result["command"].startswith("python tests/")


def test_a_result_that_changes_changes_the_page(kept):
    report.main([])
    assert list(report.problems()) == []
    changed(kept / "panels.json", 0, **{"median ms": 1234.0})
    assert [said for said in report.problems() if "page.md is not what the results give" in said]
    report.main([])
    assert list(report.problems()) == [] and "1,234 ms" in report.PAGE.read_text()


def test_a_readme_that_quotes_an_older_figure_is_told_the_new_one(kept):
    report.main([])
    changed(kept / "tour.json", 0, **{"processor s": 300.0})
    said = [one for one in report.problems() if "README" in one]
    assert said[0] == "README.md does not say 'It takes about five minutes on one core', which is what section `tour` gives."
    assert said[1].startswith("README.md gives a figure that no line of readme.jinja stands for: 'minutes' in ")


@pytest.mark.parametrize(
    "words", ["is 12.5 times as quick", "takes 40 ms", "in 93% of cases", "weighs 2.1 GiB", "is there in 0.3 s", "takes an hour"]
)
def test_a_figure_without_an_origin_is_seen(words):
    (said,) = report.wrong_quotes(f"It {words}.", [])
    assert "a figure that no line of readme.jinja stands for" in said
    assert not list(report.wrong_quotes(f"Intro. It\n{words}.", [Quote("a section", f"It {words}")]))


@pytest.mark.parametrize(
    "words",
    ["Python 3.11.5 to 3.13", "the 32 features of 2,048", "LLaVA-1.5-7B", "chapter 07 and 16 more", "```python\nx = 3 # 5 s\n```"],
)
def test_numbers_that_nobody_measured_are_let_through(words):
    assert not list(report.wrong_quotes(f"\n{words}\n", []))


def test_a_section_is_measured_alone_and_kept_with_its_origin(kept, monkeypatch):
    (kept.parent / "mark.py").write_text(SCRIPT.format(rows='[{"what": "a", "value": 3}]'))
    monkeypatch.setitem(report.SECTIONS, "endurance", "mark.py")
    before = {file.name: file.read_bytes() for file in kept.glob("*.json") if file.stem != "endurance"}
    report.main(["endurance"])
    made = json.loads((kept / "endurance.json").read_text())
    assert made["rows"] == [{"what": "a", "value": 3}] and made["command"] == "python mark.py"
    assert made["versions"] == provenance.versions() and made["machine"]["cores"] == provenance.machine()["cores"]
    assert {file.name: file.read_bytes() for file in kept.glob("*.json") if file.stem != "endurance"} == before
    page = report.PAGE.read_text()
    assert "\n| what | value |\n| --- | --- |\n| a | 3 |" in page.partition("## Endurance")[2] and "| `python mark.py` |" in page


def test_a_section_that_fails_leaves_the_result_that_was_there(kept, monkeypatch):
    (kept.parent / "mark.py").write_text("raise SystemExit(3)")
    monkeypatch.setitem(report.SECTIONS, "smoothgrad", "mark.py")
    before = (kept / "smoothgrad.json").read_bytes()
    with pytest.raises(subprocess.CalledProcessError):
        report.main(["smoothgrad"])
    assert (kept / "smoothgrad.json").read_bytes() == before


def size(layers: int, extrapolated: bool, **more) -> dict:
    row = {"model": "big", "language layers": layers, "tower layers": layers, "task": "load", "road": "ours", "timed": "1 of 1"}
    return row | {"seconds": 1.5 * layers, "peak GB": 2.0 * layers, "planned GB": None, "extrapolated": extrapolated} | more


def test_rows_of_another_machine_are_taken_with_what_they_say_of_it(kept, capsys):
    there = {"machine": {"cores": 16, "accelerator": "a large one"}, "versions": {"torch": "9.9"}, "rows": [size(32, False)]}
    file = kept.parent / "rows.json"
    file.write_text(json.dumps(there))
    run.main(["--take", "real-sizes", str(file)])
    page = report.PAGE.read_text()
    assert "\n| big | load | ours | 1 of 1 | 48\N{NO-BREAK SPACE}s | 64 |" in page.partition("## Models of real sizes")[2]
    assert "| 16 cores, a large one | torch 9.9 |" in page and "not measured yet:" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="There is no section 'real_sizes'; there are engine-bundled, "):
        run.main(["--take", "real_sizes", str(file)])


def test_faults_are_on_the_page_once_they_were_counted(kept):
    (kept / "faults.json").unlink(missing_ok=True)
    report.main([])
    assert "## Faults tried" not in report.PAGE.read_text()
    file = kept.parent / "rows.json"
    file.write_text(json.dumps([{"what": "a full disk", "tried": 1342, "survived": 1341, "tests": 24}]))
    run.main(["--take", "faults", str(file)])
    before, _, told = report.PAGE.read_text().partition("\n## Faults tried\n")
    assert "\n| what | tried | survived | tests |\n| --- | --- | --- | --- |\n| a full disk | 1,342 | 1,341 | 24 |\n" in told
    assert "## How long panels take" in before and "## A release, rehearsed" in told


def test_all_goes_on_with_what_is_missing_or_old(kept, monkeypatch):
    monkeypatch.setattr(report, "SECTIONS", dict.fromkeys(["old", "new", "missing", "missing-gpu"], "mark.py"))
    monkeypatch.setattr(report.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(provenance, "commit", lambda: "abc1234")
    for file in kept.glob("*.json"):
        file.unlink()
    for name, commit in {"old": "0000000", "new": "abc1234"}.items():
        (kept / f"{name}.json").write_text(json.dumps({"commit": commit}))
    assert report.wanted(["all"]) == ["old", "missing"] and report.wanted(["new"]) == ["new"]
    monkeypatch.setattr(report.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(provenance, "commit", lambda: "abc1234+")  # files differ from the commit: nothing was measured of these
    assert report.wanted(["all"]) == ["old", "new", "missing", "missing-gpu"]


def test_the_script_of_each_section_is_there():
    assert not [name for name, command in report.SECTIONS.items() if not (ROOT / command.split()[0]).exists()]


@pytest.mark.parametrize("name", [name for name, command in report.SECTIONS.items() if "run.py" in command])
def test_the_options_of_a_section_are_understood(name, monkeypatch):
    seen = {}
    monkeypatch.setattr(run, "_rows", lambda section, given: seen.update(vars(given)) or [])
    monkeypatch.setattr(run.panels, "main", lambda names, file: seen.update(panels=names))
    run.main(report.SECTIONS[name].split()[1:])
    assert seen


def test_check_is_an_exit_code(kept, capsys):
    report.main([])
    with pytest.raises(SystemExit) as ended:
        run.main(["--check"])
    assert ended.value.code == 0 and "say what the results say" in capsys.readouterr().out
    report.PAGE.write_text("# by hand")
    with pytest.raises(SystemExit) as ended:
        run.main(["--check"])
    assert ended.value.code == 1


def test_the_interval_of_a_ratio_of_medians():
    assert timing.ratio_bounds([3.0] * 5, [1.5] * 5) == (2, 2)
    rng = np.random.default_rng(0)
    above, below = rng.lognormal(1, 0.1, 200), rng.lognormal(0, 0.1, 200)
    low, high = timing.ratio_bounds(list(above), list(below))
    # The standard error of a log median of n normal values is 1.253 s / sqrt(n); of a ratio, times the root of 2.
    half = 1.96 * 1.253 * 0.1 / 200**0.5 * 2**0.5
    assert (high - low) / 2 / 2.718 == pytest.approx(half, rel=0.35) and low < 2.718 < high
    drifting = [float(k) for k in range(1, 26)]  # a machine that slows down for both: rounds are drawn together
    assert timing.ratio_bounds([2 * t for t in drifting], drifting) == (2, 2)


def test_of_a_model_with_few_layers_only_the_extrapolation_is_shown():
    rows = [size(2, False), size(4, False), size(32, True, **{"planned s": "1 - 2.5e+03"}), size(0, False, model="SAE")]
    assert wording.sizes(rows).replace(wording.SPACE, " ").splitlines()[2:] == [
        "| big | load | ours | 1 of 1 | 48 s | 1 to 2,500 s | 64 | yes |",
        "| SAE | load | ours | 1 of 1 | 0 ms | – | 0 | – |",
    ]


def test_any_rows_make_a_table():
    rows = [{"a": 65536, "b": None, "c": "x|y"}, {"a": 0.01234, "d": True, "c": None}]
    assert wording.listed(rows) == "| a | c | d |\n| --- | --- | --- |\n| 65,536 | x\\|y | – |\n| 0.0123 | – | True |"
