"""Faults are counted as they are tried: what a test says, what Hypothesis draws, else one a test; and only what passes survives."""

import ast
import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "benchmarks"))

import faults  # noqa: E402

MADE_UP = """
import pytest
from hypothesis import assume, given, settings, strategies as st

few = settings(max_examples=7, database=None, derandomize=True)

@few
@given(st.integers(0, 10**6))
def test_drawn(n):
    assume(n % 2 == 0)  # what is thrown away is not counted

def test_drawn_inside_again(tmp_path):
    for _ in range(2):
        few(given(st.text())(lambda text: None))()

@pytest.mark.parametrize("name", ["a/b::c", "test_kill"])
def test_one_each(name):
    pass

def test_kill_said(record_property):
    for kills in (2, 3):
        record_property("tried", kills)
    record_property("seconds", 40)

def test_kill_of_none(record_property):
    record_property("tried", 0)

def test_kill_that_fails(record_property):
    record_property("tried", 4)
    assert False

@pytest.fixture
def broken():
    raise OSError

def test_kill_without_its_folder(broken):
    pass

def test_kill_elsewhere():
    pytest.skip("not here")

@pytest.mark.skip
def test_kill_never():
    pass

def test_of_something_else():
    pass
"""
KINDS = {"inputs": "made_up::test_drawn", "cases": r"made_up::test_one_each", "kills": r"made_up::test_kill", "nothing": "other::"}


def test_what_is_tried_is_counted_by_kind_and_survives_where_tests_pass(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_made_up.py").write_text(MADE_UP)
    apart = ["-q", "--import-mode=importlib", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:xdist"]
    rows, code = faults.counted([str(tmp_path), *apart], KINDS)
    assert [tuple(row.values()) for row in rows] == [
        ("inputs", 21, 21, 2), ("cases", 2, 2, 2), ("kills", 10, 5, 4), ("nothing", 0, 0, 0)
    ]  # fmt: skip
    assert list(rows[0]) == ["what", "tried", "survived", "tests"] and code == pytest.ExitCode.TESTS_FAILED


def names(file: Path) -> list[str]:
    """The tests of a file, as `KINDS` looks for them."""
    tests = [node.name for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    return [f"{file.stem.removeprefix('test_')}::{name}" for name in tests if name.startswith("test_")]


@pytest.mark.parametrize("kind", faults.KINDS)
def test_every_kind_has_tests(kind):
    assert any(re.match(faults.KINDS[kind], name) for file in faults.FILES for name in names(file))
