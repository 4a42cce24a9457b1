"""The documentation site: it builds without a warning and opens offline, its links lead somewhere, its examples are true."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from test_packaging import MACHINE_PATH

import emointerp
from emointerp.errors import EmointerpError

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
ERRORS = DOCS / "errors"
FETCHED = {"src", "srcset", "poster", "data", "href"}  # attributes by which a page may fetch something
FETCHING_CSS = re.compile(r"@import|url\(\s*['\"]?(?:https?:)?//")
RAISED = re.compile(r"```python\n(.*?)```(?:\n\n```text\n(\w+Error: .*?)\n```)?", re.DOTALL)


class Page(HTMLParser):
    """The ids of a page, and what it points to: (tag, attribute, target)."""

    def __init__(self, html: str):
        super().__init__()
        self.ids: set[str] = set()
        self.targets: list[tuple[str, str, str]] = []
        self.unseen: list[str] = []  # pictures without words for those who cannot see them
        self.feed(html)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        self.ids |= {given[name] for name in ("id", "name") if given.get(name)}
        self.targets += [(tag, name, given[name]) for name in FETCHED & given.keys() if given[name]]
        if tag == "img" and "alt" not in given:
            self.unseen.append((given.get("src") or "")[:60])


@cache
def parsed(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def is_outside(target: str) -> bool:
    return bool(urlsplit(target).scheme or urlsplit(target).netloc)


def wrong_target(page: Path, tag: str, target: str) -> str | None:
    """What is wrong with what a page points to, if anything."""
    if target.startswith("data:"):
        return None
    if is_outside(target):
        return None if tag == "a" else f"<{tag}> fetches {target[:80]}"
    parts = urlsplit(target)
    there = page.parent / unquote(parts.path) if parts.path else page
    if not there.is_file():
        return f"<{tag}> leads to {target}, which is no file"
    if parts.fragment and there.suffix == ".html" and unquote(parts.fragment) not in parsed(there).ids:
        return f"<{tag}> leads to {target}, which is no place there"
    return None


def faults(site: Path) -> Iterator[str]:
    """Everything that is wrong with the files of a site."""
    for path in sorted(site.rglob("*")):
        name = str(path.relative_to(site))
        if path.suffix == ".html":
            found = (wrong_target(path, tag, target) for tag, _, target in parsed(path).targets)
            yield from (f"{name}: {fault}" for fault in dict.fromkeys(filter(None, found)))
            yield from (f"{name}: a picture has no alt: {src}" for src in parsed(path).unseen)
        if path.suffix in (".html", ".js", ".css", ".json"):
            text = path.read_text(encoding="utf-8")
            if match := MACHINE_PATH.search(text):
                yield f"{name}: a path of one machine, {text[match.start() : match.end() + 20]!r}"
            if path.suffix == ".css" and (match := FETCHING_CSS.search(text)):
                yield f"{name}: fetches {text[match.start() : match.start() + 60]!r}"


@contextmanager
def built() -> Iterator[Path]:
    """The site that EMOINTERP_SITE names, as CI builds it of executed notebooks; else one of the stored notebooks."""
    if "EMOINTERP_SITE" in os.environ:
        yield Path(os.environ["EMOINTERP_SITE"])
        return
    with tempfile.TemporaryDirectory(prefix="site") as place:
        build = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q", "-E", "-b", "html", "docs", place]
        done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr[-3000:]
        yield Path(place)


def test_site_builds_without_a_warning_and_everything_it_points_to_is_there():
    pytest.importorskip("myst_nb")
    if "EMOINTERP_EXECUTED" in os.environ and "EMOINTERP_SITE" not in os.environ:
        pytest.skip("notebooks are being executed for the site, which is built and checked afterwards: see .ci/run")
    with built() as site:
        assert len(list(site.glob("course/0*.html"))) == len(list((ROOT / "notebooks").glob("*.ipynb"))) == 9
        assert list(faults(site)) == []
        documented = (site / "genindex.html").read_text(encoding="utf-8")
        assert not [name for name in emointerp._FUNCTIONS if name not in documented]
        parsed.cache_clear()


def lay_out(place: Path, **pages: str) -> Path:
    for name, text in pages.items():
        (place / f"{name}.html").write_text(text)
    return place


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="gone.html">x</a>', "leads to gone.html, which is no file"),
        ('<a href="other.html#gone">x</a>', "leads to other.html#gone, which is no place there"),
        ('<a href="#gone">x</a>', "leads to #gone, which is no place there"),
        ('<script src="https://cdn.example.org/x.js"></script>', "<script> fetches https://cdn"),
        ('<script src="//cdn.example.org/x.js"></script>', "<script> fetches //cdn"),
        ('<link rel="stylesheet" href="https://fonts.example.org/x.css">', "<link> fetches https://fonts"),
        ('<img src="https://example.org/x.png" alt="">', "<img> fetches https://example"),
        ('<img src="data:image/png;base64,AA">', "a picture has no alt"),
        ("<p>/{}/somebody/x</p>".format("home"), "a path of one machine, '/{}/somebody/x".format("home")),
    ],
)
def test_a_fault_is_found(tmp_path, html, fault):
    (found,) = faults(lay_out(tmp_path, page=html, other='<p id="here">x</p>'))
    assert fault in found


def test_what_is_right_is_let_through(tmp_path):
    html = '<a href="other.html#here">x</a><a href="https://example.org">x</a><img src="data:image/png;base64,AA" alt="x">'
    assert list(faults(lay_out(tmp_path, page=html, other='<p id="here">x</p>'))) == []


def test_a_stylesheet_that_fetches_is_found(tmp_path):
    (tmp_path / "x.css").write_text('@font-face { src: url("https://example.org/x.woff") }')
    (found,) = faults(tmp_path)
    assert "fetches" in found


@pytest.fixture
def extension(monkeypatch):
    """A module of the site's own, by its name."""
    pytest.importorskip("myst_nb")
    monkeypatch.syspath_prepend(DOCS / "_ext")
    return __import__


def notebook(**output) -> dict:
    shown = {"cell_type": "code", "metadata": {}, "source": ["panel"], "outputs": [output]}
    asked = {"cell_type": "code", "metadata": {}, "source": ["answer = None\n", "\n", "exercise_two.told(\n", "answer)"]}
    solution = "<details><summary>Solution</summary>\n\n```python\nanswer = 1\n```\n</details>"
    folded = {"cell_type": "markdown", "metadata": {}, "source": solution}
    first = (
        "# 03 · Saliency: where is it?\n\n**After this notebook you can** see it.\n\n"
        "| level | to read | to run | before this |\n|---|---|---|---|\n| easy | 5 minutes | a minute | nothing |"
    )
    text = {"cell_type": "markdown", "metadata": {}, "source": first}
    return {"cells": [text, shown, asked, folded], "metadata": {"widgets": {"state": {"1": {}}}}}


def test_panels_stand_as_their_html_and_figures_have_their_words(extension):
    pages = extension("course_pages")
    view = "application/vnd.jupyter.widget-view+json"
    panel = pages.staged(notebook(data={view: {}, "text/html": "<b>still</b>"}), "03_x.ipynb")
    assert panel["cells"][1]["outputs"][0]["data"] == {"text/html": "<b>still</b>"} and "widgets" not in panel["metadata"]
    figure = pages.staged(notebook(data={"image/png": "AA"}, metadata={"image/png": {"alt": "two\nlines"}}), "03_x.ipynb")
    assert figure["cells"][1]["metadata"]["mystnb"]["image"]["alt"] == "two lines"
    assert "03_x.ipynb" in figure["cells"][0]["source"] and figure["cells"][0]["source"].startswith("# 03 · Saliency")


def test_the_overview_says_what_each_notebook_says_of_itself(extension):
    pages = extension("course_pages")
    page = pages.overview({"03_x.ipynb": notebook()})
    assert "| [03 Saliency](03_x.ipynb) | Where is it? | easy | 5 minutes | a minute | 1 |" in page
    assert "After it you can see it." in page
    book = notebook()
    book["cells"].pop()
    with pytest.raises(pages.ExtensionError, match="03_x.ipynb: The exercise told in cell 2 has no solutions"):
        pages.overview({"03_x.ipynb": book})


def test_a_notebook_that_does_not_say_what_it_is_about_is_refused(extension):
    pages = extension("course_pages")
    book = notebook()
    book["cells"][0]["source"] = "# Something else"
    with pytest.raises(pages.ExtensionError, match="03_x.ipynb: the first cell has to hold"):
        pages.overview({"03_x.ipynb": book})


def test_formulas_need_no_script(extension):
    formula = extension("mathml").mathml(r"\mathrm{softmax}\big(W_U h_l\big)")
    assert formula.startswith("<math") and "<mi>W</mi>" in formula and "big" not in formula


def test_names_are_looked_up_at_the_top_and_where_they_stand(extension):
    links = extension("name_links")
    assert next(links.full_names("ei.logit_lens", [])) == "emointerp.lens.logit_lens"
    assert list(links.full_names("emointerp.sae.SAE", ["emointerp.lens"])) == ["emointerp.sae.SAE"]
    assert "emointerp.lens.emergence" in links.full_names("emergence", ["emointerp.lens"])
    assert "emointerp.statistics.Interval.mean" in links.full_names("Interval.mean", [emointerp.start_here.__name__])


def test_a_name_of_ours_has_to_be_documented(extension):
    links = extension("name_links")
    assert links.is_ours("ei.gone") and links.is_ours("emointerp.gone.too")
    assert not any(map(links.is_ours, ("numpy.sum", "emointerp", "either.or", "emointerp.mplstyle", "ei.md")))


def test_pages_that_a_build_makes_are_left_alone_where_nothing_changed(extension, tmp_path):
    written = extension("written")
    written.keep(tmp_path, {"a.md": "a", "b.md": "b"})
    before = (tmp_path / "a.md").stat().st_mtime_ns
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / ".ipynb_checkpoints" / "a-checkpoint.ipynb").write_text("{}")
    written.keep(tmp_path, {"a.md": "a"})
    assert [path.name for path in tmp_path.iterdir()] == ["a.md"] and (tmp_path / "a.md").stat().st_mtime_ns == before


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def examples(page: Path) -> list[tuple[str, str]]:
    """Code and the message beside it (or ""), up to the last that has one."""
    found = RAISED.findall(page.read_text(encoding="utf-8"))
    return found[: max((i for i, (_, message) in enumerate(found) if message), default=-1) + 1]


@pytest.mark.parametrize("page", [page for page in sorted(ERRORS.glob("*.md")) if examples(page)], ids=lambda page: page.stem)
def test_messages_on_the_pages_of_errors_are_those_that_are_raised(page, tmp_path, monkeypatch):
    """Examples of a page run one after the other; "…" stands for anything."""
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for code, message in examples(page):
        if not message:
            exec(code, names)
            continue
        with pytest.raises(EmointerpError) as raised:
            exec(code, names)
        pattern = ".*".join(map(re.escape, " ".join(message.split()).split("…")))
        assert re.fullmatch(pattern, " ".join(said(raised.value).split())), said(raised.value)


def test_the_pages_of_errors_name_every_error_and_its_exit_code():
    page = (ERRORS / "index.md").read_text()
    for kind in (EmointerpError, *EmointerpError.__subclasses__()):
        row = next(line for line in page.splitlines() if line.startswith(f"| [{kind.__name__}]"))
        assert row.split("|")[3].strip() == str(kind.exit_code)


def test_the_methods_page_has_every_notebook_and_every_panel():
    page, chapters = (DOCS / "methods.md").read_text(), {path.stem for path in (ROOT / "emointerp" / "widgets").glob("*.py")}
    panels = [name for name in emointerp.widgets.__all__ if name in chapters]
    assert len(panels) >= 9 and not [name for name in panels if f"<emointerp.widgets.{name}>" not in page]
    assert not [path.name for path in (ROOT / "notebooks").glob("*.ipynb") if f"(course/{path.name})" not in page]


def test_links_and_pictures_of_the_readme_are_there():
    targets = re.findall(r"\]\(([^)#\s]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    inside = [target for target in targets if not is_outside(target)]
    assert len(inside) > 10 and not [target for target in inside if not (ROOT / target).exists()]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["version"] == emointerp.__version__
    assert f"version = {{{emointerp.__version__}}}" in (DOCS / "cite.md").read_text()
