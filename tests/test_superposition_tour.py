"""The tour's chapter on superposition: its sentences hold the numbers that were measured, on any family's tower."""

import json
import re

import numpy as np
import pytest
import tiny_families

from emointerp.models import load
from emointerp.superposition import embed, read_factors
from emointerp.tour import Sizes, superposition
from emointerp.tour.chapter import Job, number
from emointerp.tour.page import plain
from emointerp.tour.report import _json
from emointerp.world import face_scenes


def job(direction, test):
    """Of so many scenes."""
    return Job((), "", sizes=Sizes(superposition={"direction": direction, "test": test}))


def test_the_bundled_tower_reads_more_than_its_controls_and_says_so():
    vlm = load()
    made = superposition.chapter(vlm, job(160, 80))
    readable = {name: counted["factors"] for name, counted in made.results["readable"].items()}
    truth = read_factors(*(embed(vlm, face_scenes(split, n), progress=False) for split, n in (("direction", 160), ("test", 80))))
    assert readable["tower"] == len(truth.readable) > 15
    assert max(count for name, count in readable.items() if name != "tower") < readable["tower"] / 3
    first, control, apart = made.summary
    assert first.startswith(f"{len(truth.readable)} of {len(truth.table)} drawn factors") and "192 numbers" in first
    said = [int(number) for number in re.findall(r"(\d+) (?:from|where)", control)]
    assert said == [readable[name] for name in list(readable)[1:]]
    assert control.endswith("So training made them readable.")
    frame = made.results["interference"]["tower"]
    assert f"cosine of {frame['factors']['interval'].mean:.2f} [" in apart
    assert f"({number(frame[superposition.MATCHED]['interval'])}; p = " in apart
    assert made.plain[0][1].startswith(f"{len(truth.readable)} of {len(truth.table)} things that vary in the drawings can be read")
    assert sum(block.count("data:image/png;base64,") for _, block in made.blocks) == 2
    kept = json.loads(_json(plain(made.results)))
    assert kept["correlations"][truth.to_frame().factor[0]]["mean"] == pytest.approx(truth.to_frame().r[0].mean, abs=1e-3)
    assert kept["interference"]["tower"]["factors"]["p_less"] is None


@pytest.mark.parametrize("family", ["qwen2_vl", "llava_next", "idefics3"])
def test_a_tower_that_tells_little_is_said_to(family, monkeypatch):
    monkeypatch.setattr(superposition, "interference", lambda *given: pytest.fail("nothing to measure"))
    everything = superposition.read_factors
    monkeypatch.setattr(superposition, "read_factors", lambda fit, test: everything(fit.exchanged(1), test))
    made = superposition.chapter(tiny_families.vlm(family), job(40, 30))
    assert made.results["interference"] == {} and len(made.blocks) == 1
    assert made.summary[1].endswith("So these scenes do not show that training made anything readable.")
    assert made.summary[2].startswith("Fewer than two factors are readable")


@pytest.mark.parametrize(
    ("p_less", "p_more", "words"), [(0.01, 1, "less than"), (1, 0.01, "more than"), (0.03, 0.98, "no surely other than that of")]
)
def test_verdicts_are_two_sided(p_less, p_more, words):
    assert superposition._verdict(superposition.pd.Series({"p_less": p_less, "p_more": p_more})) == words
    assert np.isclose(superposition._p(superposition.pd.Series({"p_less": p_less, "p_more": p_more})), 2 * min(p_less, p_more))
