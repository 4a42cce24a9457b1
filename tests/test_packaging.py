"""pyproject.toml, requirements.lock, environment.yml and the wheel agree; no path of one machine is tracked."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import emointerp

ROOT = Path(__file__).resolve().parents[1]
CONDA_NAMES = {"pytorch": "torch", "python-duckdb": "duckdb"}  # conda-forge's name: PyPI's name; all others are the same
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|work|tmp)/\w")


def requirements(lines: list[str]) -> dict[str, SpecifierSet]:
    parsed = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name): r.specifier for r in parsed}


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def ranges(project) -> dict[str, SpecifierSet]:
    """Every direct requirement, the extras included; that `test` names another extra of ours is none."""
    lines = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    return requirements([line for line in lines if not line.startswith("emointerp[")])


@pytest.fixture(scope="module")
def lock() -> dict[str, SpecifierSet]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    return requirements([line for line in lines if line and not line.startswith("#")])


@pytest.fixture(scope="module")
def conda() -> tuple[dict[str, SpecifierSet], list[str]]:
    """Requirements of environment.yml under their PyPI names, and the lines of its pip section."""
    entries = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    pip_lines = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    from_conda = requirements([entry for entry in entries if isinstance(entry, str)])
    return {CONDA_NAMES.get(name, name): spec for name, spec in from_conda.items()}, pip_lines


def tracked_files() -> list[str]:
    listing = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, text=True)
    if listing.returncode != 0:
        pytest.skip("not a git checkout, so there is no list of tracked files")
    return [name for name in listing.stdout.split("\0") if (ROOT / name).is_file()]


def test_lock_pins_each_requirement_to_one_version_inside_its_range(ranges, lock):
    for name, specifier in ranges.items():
        pinned = str(lock[name])
        assert re.fullmatch(r"==[\w.]+", pinned), f"{name}{pinned} is not one exact version"
        assert specifier.contains(pinned.removeprefix("==")), f"{name}{pinned} lies outside {specifier}"


def test_lock_asks_for_the_plain_torch_and_no_cuda_package(lock):
    assert str(lock["torch"]) == "==2.13.0"
    assert not [name for name in lock if name.startswith(("nvidia", "cuda", "triton"))]


def test_lock_is_what_runs_here(lock):
    """Tested versions are the locked ones; `.ci/run` installs them, so a difference there is a broken lock."""
    import torch
    import transformers

    assert lock["torch"].contains(torch.__version__) and lock["transformers"].contains(transformers.__version__)


def test_conda_environment_has_the_names_and_ranges_of_the_project(project, conda):
    from_conda, pip_lines = conda
    assert "-e ." in pip_lines
    from_pip = requirements([line for line in pip_lines if line != "-e ."])
    assert from_conda.pop("python") == SpecifierSet(project["requires-python"])
    assert from_conda.pop("pip") == SpecifierSet()
    assert not from_conda.keys() & from_pip.keys()
    assert from_conda | from_pip == requirements(project["dependencies"])


def test_conda_environment_admits_the_locked_versions(conda, lock):
    for name, specifier in conda[0].items():
        if name not in ("python", "pip"):
            assert specifier.contains(str(lock[name]).removeprefix("==")), name


def imported_distributions(folder: Path) -> set[str]:
    """Distributions that the Python files under `folder` import, wherever in the file."""
    modules = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules.add(node.module.partition(".")[0])
    owners = packages_distributions()
    return {canonicalize_name(owners[m][0]) for m in modules - sys.stdlib_module_names - {"emointerp"} if m in owners}


def test_what_the_package_imports_is_declared(project):
    extras = [line for name in ("mer", "ray", "video") for line in project["optional-dependencies"][name]]
    assert imported_distributions(ROOT / "emointerp") <= requirements(project["dependencies"] + extras).keys()


def test_what_the_tests_import_is_declared(ranges):
    assert imported_distributions(ROOT / "tests") <= ranges.keys()


def test_wheel_carries_code_data_weights_and_notebooks(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob(f"emointerp-{emointerp.__version__}-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    shipped = {name for name in tracked_files() if name.startswith("emointerp/")}
    shipped |= {f"emointerp/{name}" for name in tracked_files() if name.startswith("notebooks/")}
    assert shipped <= inside, f"missing from the wheel: {sorted(shipped - inside)}"
    assert not [name for name in inside if "/tests/" in name or name.startswith("tests/")]


def test_no_tracked_file_holds_a_path_of_one_machine():
    found = {}
    for name in tracked_files():
        content = (ROOT / name).read_bytes()
        if b"\0" not in content and (match := MACHINE_PATH.search(content.decode(errors="replace"))):
            found[name] = match.group()
    assert not found


@pytest.mark.parametrize("folder", ["home", "root", "Users", "work", "tmp"])
@pytest.mark.parametrize("text", ['"/{}/data"', "file:///{}/x", "(/{}/ipykernel_1/2.py"])
def test_machine_paths_are_recognised(text, folder):
    assert MACHINE_PATH.search(text.format(folder))


@pytest.mark.parametrize("text", ["tests/{}/x", "https://example.org/{}/x", "./{}/x", "/{}"])
def test_other_paths_are_let_through(text):
    assert not MACHINE_PATH.search(text.format("home"))


def test_the_example_of_the_readme_runs(tmp_path, monkeypatch):
    from emointerp.world import sample

    example = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    monkeypatch.chdir(tmp_path)
    sample("test", 1)[0].scene.image().save("yours.png")
    names: dict = {}
    exec(example, names)
    assert names["grid"].shape == (8, 8) and names["grid"].abs().max().max() > 0.1 and names["text"]
