"""The house keeps to its own rules: most functions under 15 lines, nine in ten under 40, how that is counted; examples."""

import inspect
import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import house_numbers  # noqa: E402

import emointerp  # noqa: E402
from emointerp.errors import InputError  # noqa: E402

CODE = '''
def short():
    """One."""
    return 1


class A:
    def long(
        self,
    ):
        async def inner():
            pass

        return inner
'''
LOG = """
============================= slowest 25 durations =============================
12.50s call     tests/test_a.py::test_x[1-2]
4.00s setup    tests/test_b.py::test_y
3.00s call     tests/test_b.py::test_y
6.00s call     emointerp/plots.py::emointerp.plots

(22 durations < 0.005s hidden.)
"""


@pytest.mark.parametrize("folder", ["emointerp", "tests", "docs"])
def test_most_functions_are_under_15_lines_and_nine_in_ten_under_40(folder):
    found = house_numbers.functions(house_numbers.ROOT / folder)
    summary = house_numbers.summary(found)
    too_long = [f"{one.name}: {one.lines}" for one in found if one.lines >= house_numbers.LONG]
    assert summary["median"] < house_numbers.SHORT and summary["under 15"] > 0.5 and summary["under 40"] >= 0.9, too_long


def test_every_function_of_the_package_shows_an_example():
    """Its doctest is run with the others."""
    named = {name: getattr(emointerp, name) for name in emointerp.__all__}
    bare = [name for name, one in named.items() if inspect.isfunction(one) and ">>> " not in inspect.getdoc(one)]
    assert not bare and len(named) > 50


def test_a_function_is_counted_from_def_to_its_end(tmp_path):
    (tmp_path / "a.py").write_text(CODE)
    found = house_numbers.functions(tmp_path)
    assert [(one.name.rpartition(" ")[2], one.lines) for one in found] == [("long", 7), ("short", 3), ("inner", 2)]
    assert house_numbers.summary(found) == {"list": "functions", "functions": 3, "median": 3, "under 15": 1, "under 40": 1}


def test_the_slowest_tests_of_a_log(tmp_path):
    (tmp_path / "log").write_text(LOG)
    house_numbers.main(["--tests", str(tmp_path / "log"), "--json", str(tmp_path / "rows.json")])
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["what"], row["seconds"]) for row in rows] == [
        ("tests/test_a.py::test_x[1-2]", 12.5), ("tests/test_b.py::test_y", 7), ("emointerp/plots.py::emointerp.plots", 6),
    ]  # fmt: skip
    (tmp_path / "log").write_text("3 passed")
    with pytest.raises(InputError, match="No durations are listed there; run pytest with --durations=25"):
        house_numbers.main(["--tests", str(tmp_path / "log")])


def test_the_largest_files_are_of_our_own_code():
    files = house_numbers.files()
    assert files[0].lines >= files[9].lines > 100
    assert not [one.name for one in files if "node_modules" in one.name or "/static/" in one.name]
    assert {"js/explorer.js", "tests/test_house.py"} <= {one.name for one in files}
