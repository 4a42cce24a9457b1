"""What the fuzz tests share: how many inputs, strange texts and values, files damaged at random, and the property itself.

In the suite every run tries the same inputs. By hand, `EMOINTERP_FUZZ=10 pytest tests/test_fuzz.py -s` tries ten times as many,
drawn anew each time, and says at the end how many came and how many of them were refused.
"""

import io
import json
import os
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from emointerp.errors import EmointerpError

TIMES = int(os.environ.get("EMOINTERP_FUZZ", "0"))
TRIED, REFUSED = Counter(), Counter()
MARKS = ("<image>", "<|image_pad|>", "<start_of_image>", "<image_soft_token>", "<s>", "</s>", "<pad>", "<|im_end|>")
ODD = (
    "\x00", "\n", "\r\n", "\t", "\u200b", "\u202e", "\ufeff", "\ud800", "é", "e\u0301", "🙂", "ا", "喜", '"', "'", ",", "|",
    "\\", "%s", "{}", "../", "/",
)  # fmt: skip
WORDS = "the phone rang while I felt sad not happy never afraid".split()


def tried(n: int) -> settings:
    """`n` inputs, always the same; by hand many times as many, always others."""
    return settings(
        deadline=None,
        derandomize=not TIMES,
        max_examples=n * max(1, TIMES),
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


def in_words(what: str, call: Callable[[], Any]) -> Any:
    """What a call gives; or None where it refuses, which it may only do by an error of ours that says something."""
    TRIED[what] += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return call()
    except EmointerpError as error:
        REFUSED[what] += 1
        assert len(str(error)) > 25, f"no sentence: {error!r}"
        return None


def texts(max_size: int = 60) -> st.SearchStrategy[str]:
    """Any text: letters of all scripts, marks of models, control characters, words, nothing."""
    pieces = st.one_of(st.text(max_size=8), st.sampled_from(ODD), st.sampled_from(MARKS), st.sampled_from(WORDS))
    return st.lists(pieces, max_size=max(1, max_size // 8)).map(" ".join) | st.text(max_size=max_size)


numbers = st.integers() | st.floats() | st.integers(-3, 3)
plain = st.none() | st.booleans() | numbers | texts(20)
values = st.recursive(
    plain, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(texts(10), inside, max_size=3), max_leaves=5
)


@st.composite
def altered(draw: Any, value: Any) -> Any:
    """A structure with one place of it replaced, taken out or doubled."""
    if isinstance(value, dict) and value and draw(st.integers(0, 5)):
        key = draw(st.sampled_from(sorted(value, key=str)))
        if not draw(st.integers(0, 4)):
            return {k: v for k, v in value.items() if k != key}
        return value | {key: draw(altered(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 5)):
        i = draw(st.integers(0, len(value) - 1))
        how = draw(st.integers(0, 5))
        return value[:i] + ([], [value[i]] * 2, [draw(altered(value[i]))])[min(how, 2)] + value[i + 1 :]
    return draw(values)


@st.composite
def damaged(draw: Any, data: bytes) -> bytes:
    """A file's bytes with some of them changed, gone, doubled or cut off."""
    if not draw(st.integers(0, 9)):
        return draw(st.binary(max_size=40))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(1, 64))
        some = (b"", draw(st.binary(min_size=1, max_size=8)), data[at : at + length] * 2)[draw(st.integers(0, 2))]
        data = data[:at] if not draw(st.integers(0, 5)) else data[:at] + some + data[at + length :]
    return data


@st.composite
def cells(draw: Any, text: str) -> str:
    """A CSV table with one cell, its separators and its head included, replaced."""
    lines = text.splitlines(keepends=True)
    i = draw(st.integers(0, len(lines) - 1))
    parts = lines[i].split(",")
    parts[draw(st.integers(0, len(parts) - 1))] = draw(texts(30) | numbers.map(str) | st.just("x" * 5000))
    return "".join(lines[:i]) + ",".join(parts) + "".join(lines[i + 1 :])


@st.composite
def arrays(draw: Any) -> np.ndarray:
    """Arrays of any common type and of up to four axes, some empty."""
    kind = draw(st.sampled_from("? i1 u1 i2 u2 >u2 i4 u4 i8 u8 f2 f4 >f4 f8 c8 U3 S3 M8[s] m8[s]".split()))
    usual = st.sampled_from([[3, 3], [4, 5, 3], [4, 5, 4], [2, 2, 1], [4000, 1], [1, 4000, 3]])
    shape = draw(st.lists(st.integers(0, 5), max_size=4) | usual)
    seed, top = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([1, 2, 255, 256, 65535, 1e6]))
    numbers = np.random.default_rng(seed).random(shape) * top
    if np.dtype(kind).kind == "f" and draw(st.booleans()):
        numbers = np.where(numbers > top / 2, draw(st.sampled_from([np.nan, np.inf, -np.inf, -1.0])), numbers)
    with np.errstate(all="ignore"):
        return numbers.astype("i8").astype(kind) if np.dtype(kind).kind in "mM" else numbers.astype(kind)


@st.composite
def another(draw: Any, file: Path) -> bytes:
    """A file's content, altered in its structure where it has one that we can write, else in its bytes."""
    data = file.read_bytes()
    if file.suffix in (".json", ".csv", ".npy", ".jsonl") and draw(st.integers(0, 2)):
        if file.suffix == ".json":
            return json.dumps(draw(altered(json.loads(data)))).encode()
        if file.suffix == ".jsonl":
            first, *rest = data.decode().splitlines()
            return "\n".join([json.dumps(draw(altered(json.loads(first)))), *rest]).encode()
        if file.suffix == ".csv":
            return draw(cells(data.decode("utf-8-sig"))).encode("utf-8", "surrogatepass")
        return _saved(draw(arrays()))
    return draw(damaged(data))


def _saved(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=False)
    return out.getvalue()
