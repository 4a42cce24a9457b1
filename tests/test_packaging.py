"""pyproject.toml, requirements.lock, environment.yml, wheel and source distribution agree; no path of one machine is tracked."""

import ast
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
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


def built(source: Path, target: str, folder: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder], cwd=source, check=True, capture_output=True
    )
    (made,) = folder.glob(f"emointerp-{emointerp.__version__}*" + {"wheel": ".whl", "sdist": ".tar.gz"}[target])
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    return built(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def inside(wheel) -> dict[str, bytes]:
    return contents(wheel)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory) -> Path:
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(built(ROOT, "sdist", folder)) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"emointerp-{emointerp.__version__}"


def test_wheel_carries_code_data_weights_and_notebooks(inside):
    shipped = {name for name in tracked_files() if name.startswith("emointerp/")}
    shipped |= {f"emointerp/{name}" for name in tracked_files() if name.startswith("notebooks/")}
    assert shipped <= inside.keys(), f"missing from the wheel: {sorted(shipped - inside.keys())}"
    assert not [name for name in inside if "/tests/" in name or name.startswith("tests/")]


@pytest.mark.parametrize(
    "name",
    [
        "py.typed", "plots.mplstyle", "models/weights/tiny/model.safetensors", "models/weights/tiny/chat_template.jinja",
        "models/weights/tiny-sae/weights.safetensors", "notebooks/00_start_here.ipynb", "notebooks/08_your_own_model.ipynb",
        "widgets/static/explorer/explorer.js", "widgets/static/explorer/LICENSE.d3", "tour/templates/page.html",
        "emotions/data/lexicon.json", "training/model_card.md",
    ],
)  # fmt: skip
def test_a_file_of_each_kind_travels_as_it_is(inside, name):
    here = ROOT / name if name.startswith("notebooks") else ROOT / "emointerp" / name
    assert inside[f"emointerp/{name}"] == here.read_bytes()


def test_a_wheel_made_of_the_source_distribution_is_the_one_made_of_the_tree(unpacked, inside, tmp_path):
    again = contents(built(unpacked, "wheel", tmp_path))
    assert again.keys() == inside.keys() and not [name for name in again if again[name] != inside[name]]


def test_the_source_distribution_carries_what_a_release_is_checked_with(unpacked):
    wanted = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "requirements.lock", "environment.yml", "PKG-INFO"}
    assert wanted <= {path.name for path in unpacked.iterdir()}
    assert (unpacked / "tests" / "conftest.py").exists() and (unpacked / "js" / "explorer.js").exists()
    for name in tracked_files():
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes(), name


def test_what_jupyter_and_python_leave_behind_does_not_travel(unpacked, inside, tmp_path):
    litter = [
        "notebooks/.ipynb_checkpoints/a.ipynb",
        "emointerp/.ipynb_checkpoints/a.py",
        "emointerp/__pycache__/a.pyc",
        "emointerp/a.pyc",
    ]
    for name in litter:
        (unpacked / name).parent.mkdir(exist_ok=True)
        (unpacked / name).write_text("1")
    try:
        assert contents(built(unpacked, "wheel", tmp_path)).keys() == inside.keys()
    finally:
        for name in litter:
            (unpacked / name).unlink()


def test_a_wheel_is_small_and_says_nothing_of_a_machine(wheel, inside):
    assert wheel.stat().st_size < 40e6  # PyPI takes 100 MB; the weights are half of that limit
    heavy = {name: len(held) for name, held in inside.items() if len(held) > 2e6}
    assert all(name.endswith(".safetensors") for name in heavy) and max(heavy.values()) < 20e6, heavy
    texts = {name: held.decode() for name, held in inside.items() if b"\0" not in held}
    assert not {name: match.group() for name, text in texts.items() if (match := MACHINE_PATH.search(text))}


def test_the_wheel_says_what_it_is(inside, project):
    folder = f"emointerp-{emointerp.__version__}.dist-info"
    told = Parser().parsestr(inside[f"{folder}/METADATA"].decode())
    assert (told["Name"], told["Version"], told["License-Expression"]) == ("emointerp", emointerp.__version__, "MIT")
    assert SpecifierSet(told["Requires-Python"]) == SpecifierSet(project["requires-python"])
    assert set(told.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    assert "emointerp = emointerp.cli:main" in inside[f"{folder}/entry_points.txt"].decode()
    assert told.get_payload().strip() == (ROOT / "README.md").read_text().strip()


def test_the_versions_of_python_are_those_that_are_required(project):
    named = {line.rpartition(" ")[2] for line in project["classifiers"] if re.search(r"Python :: 3\.\d+$", line)}
    admitted = {f"3.{minor}" for minor in range(30) if SpecifierSet(project["requires-python"]).contains(f"3.{minor}.30")}
    assert named == admitted == {"3.11", "3.12", "3.13"}


def test_the_changelog_begins_with_this_version():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    version = re.escape(emointerp.__version__)
    assert re.fullmatch(rf"\[Unreleased\] {version}|\[{version}\] - 2\d{{3}}-\d\d-\d\d", headings[0])


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
