"""The bundled weights: their size, their form, and the figures that their card was measured at."""

import json

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from emointerp.emotions import BASIC
from emointerp.models import WEIGHTS
from emointerp.training import carry_over
from emointerp.world.splits import HARD_TESTS

TINY = WEIGHTS / "tiny"


@pytest.fixture(scope="module")
def figures():
    return json.loads((TINY / "card.json").read_text())


def test_weights_are_small_and_half_precision():
    from safetensors import safe_open

    assert sum(f.stat().st_size for f in WEIGHTS.rglob("*") if f.is_file()) <= 25e6
    with safe_open(TINY / "model.safetensors", "pt") as f:
        assert {f.get_slice(k).get_dtype() for k in f.keys()} == {"F16"}


def test_ordinary_transformers_opens_the_folder():
    assert type(AutoModelForImageTextToText.from_pretrained(TINY)).__name__ == "LlavaForConditionalGeneration"
    assert type(AutoProcessor.from_pretrained(TINY)).__name__ == "LlavaProcessor"


def test_card_holds_every_figure_with_its_interval(figures):
    assert set(figures["hard tests"]) == set(HARD_TESTS)
    assert set(figures["clear"]["hit rate per emotion"]) == set(BASIC)
    assert set(figures["carry-over"]["per emotion"]) == set(carry_over.FACES)
    rates = [figures["clear"]["hit rate"], figures["questions"]["right"], *figures["hard tests"].values()]
    assert all(rate["low"] <= rate["mean"] <= rate["high"] for rate in rates)
    assert figures["clear"]["hit rate"]["n"] == 360 and figures["carry-over"]["hit rate"]["n"] == sum(
        map(len, carry_over.FACES.values())
    )


def test_readme_of_the_weights_shows_the_figures(figures):
    text, rate = (TINY / "README.md").read_text(), figures["clear"]["hit rate"]
    assert f"| clear, hit rate | {rate['mean']:.2f} [{rate['low']:.2f}, {rate['high']:.2f}] (n = {rate['n']}) |" in text
    assert "python -m emointerp.training card" in text
