"""`import emointerp` stays light, and its lazy face leads where it says."""

import subprocess
import sys

import pytest

import emointerp

HEAVY = ("torch", "transformers", "matplotlib", "seaborn", "pandas", "nnsight", "transformer_lens")
PROBE = f"""
import sys, time
start = time.perf_counter()
import emointerp
print(f"import emointerp: {{time.perf_counter() - start:.3f}} s", file=sys.stderr)
dir(emointerp)
print(" ".join(name for name in {HEAVY!r} if name in sys.modules))
"""


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(done.stderr)
    return done.stdout.strip()


def test_import_brings_no_heavy_library():
    assert run_python(PROBE) == ""


def test_emotions_bring_no_torch():
    assert run_python("import sys, emointerp; emointerp.emotions; print('torch' in sys.modules)") == "False"


def test_submodules_are_loaded_on_first_use_and_kept():
    before, after = "print('emointerp.emotions' in sys.modules)", "print('emotions' in vars(ei))"
    assert run_python(f"import sys, emointerp as ei; {before}; ei.emotions; {after}").split() == ["False", "True"]


def test_load_is_the_function_of_models():
    from emointerp.models import load

    assert emointerp.load is load


def test_an_unknown_name_is_an_attribute_error_that_names_it():
    with pytest.raises(AttributeError, match="module 'emointerp' has no attribute 'lode'"):
        emointerp.lode  # noqa: B018


def test_every_name_of_the_face_resolves_and_is_completed():
    assert set(emointerp.__all__) <= set(dir(emointerp))
    for name in emointerp.__all__:
        assert getattr(emointerp, name) is not None
