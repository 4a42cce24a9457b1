"""The course as a reader has it: JupyterLab from `emointerp lab`, notebooks run by its menus, panels moved by keys and mouse.

Two notebooks are run here as in CI; all of them by `python -m pytest tests/test_browser.py --every-notebook`. Where Playwright or
a browser is missing, all of this is skipped.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright (it needs no browser of its own)")

import browser as tools  # noqa: E402 - it imports Playwright
from browser import Lab, LivePanel, chromium, lab, notebook, watched  # noqa: E402
from playwright.sync_api import Browser, expect  # noqa: E402

from emointerp import widgets  # noqa: E402
from emointerp.models import WEIGHTS  # noqa: E402
from emointerp.sae import Codes  # noqa: E402
from emointerp.sae.tree import feature_tree  # noqa: E402
from emointerp.superposition import train_toys  # noqa: E402

if tools.CHROMIUM is None:
    pytest.skip("no Chromium on PATH: apt-get install chromium", allow_module_level=True)

CI = ("02_sae_decomposition", "04_steering_vectors")


@pytest.fixture(scope="module")
def jupyter(tmp_path_factory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    with lab(folder / "course", folder / "home") as opened:
        yield opened


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


# what is done to each notebook's panel


def start_here(panel: LivePanel) -> None:
    event = "The letter lay on the table when I came home."
    panel.types("event", event)
    assert event in panel.text()
    panel.presses("intensity")
    panel.drags("intensity")


def superposition(panel: LivePanel) -> None:
    panel.presses("sparsity")
    panel.drags("sparsity", 0.6)


def sae(panel: LivePanel) -> None:
    """A click on a feature brings its name and its pictures."""
    leaf, pictures = panel.panel.locator(".leaf:not(.selected)").nth(3), panel.panel.locator(".emointerp-explorer .shots img")
    feature, before = leaf.get_attribute("data-feature"), pictures.evaluate_all("all => all.map((one) => one.src)")
    panel.clicks(panel.panel.locator(f".leaf[data-feature='{feature}'] .spot"))
    assert re.search(rf"\bfeature {feature}\b", panel.panel.locator(".emointerp-explorer .right").inner_text(), re.IGNORECASE)
    after = pictures.evaluate_all("all => all.map((one) => one.src)")
    assert after and before and after != before
    panel.presses("features")
    panel.drags("features")


def saliency(panel: LivePanel) -> None:
    panel.presses("sigma")
    panel.drags("copies")


def steering(panel: LivePanel) -> None:
    panel.presses("alpha")
    panel.drags("alpha")
    alpha = float(panel.control("alpha", ".widget-readout").inner_text())
    assert f"alpha {alpha:g} after layer" in panel.text()
    panel.presses("layer")


def lens(panel: LivePanel) -> None:
    """A click on a token, and on a patch, reads there."""
    panel.presses("layer")
    panel.drags("layer", 0.6)
    panel.clicks(panel.panel.locator(".emointerp-strip button.chip[aria-pressed=false]:not(.folded)").first)
    assert "Next after token 0," in panel.text()
    panel.clicks(panel.panel.locator(".emointerp-grid .box").nth(20))
    assert "Next after token 0," not in panel.text()


def heads(panel: LivePanel) -> None:
    """A click on a cell of the map shows that head."""
    cell = panel.panel.locator(".emointerp-grid").first.locator(".box[aria-selected=false]").nth(30)
    name = cell.get_attribute("aria-label").partition(":")[0]
    panel.clicks(cell)
    assert f"What {name} does" in panel.text()
    panel.presses("head")
    panel.drags("layer")


def veena(panel: LivePanel) -> None:
    panel.presses("gamma")
    panel.drags("beta")


def own_model(panel: LivePanel) -> None:
    panel.picks("model", "llava-hf/llava-1.5-7b-hf")
    assert 'ei.load("llava-hf/llava-1.5-7b-hf"' in panel.text()
    panel.types("own", str(WEIGHTS / "tiny"))
    assert f'ei.load("{WEIGHTS / "tiny"}"' in panel.text()


MOVES: dict[str, Callable[[LivePanel], None]] = {
    "00_start_here": start_here,
    "01_superposition": superposition,
    "02_sae_decomposition": sae,
    "03_saliency": saliency,
    "04_steering_vectors": steering,
    "05_logit_lens": lens,
    "06_head_patching": heads,
    "07_veena": veena,
    "08_your_own_model": own_model,
}


def pytest_generate_tests(metafunc) -> None:
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", MOVES if metafunc.config.getoption("--every-notebook") else CI)


def test_each_notebook_has_its_moves(jupyter):
    assert sorted(MOVES) == sorted(file.stem for file in jupyter.folder.glob("*.ipynb"))


def test_the_command_opens_jupyterlab_on_the_first_notebook(jupyter, browser):
    """By the file that JupyterLab hands to a person's browser."""
    (handed,) = jupyter.log.parent.glob("runtime/jpserver-file-to-run-*-open.html")
    address = re.search(r'href="([^"]+)"', handed.read_text())[1]
    with watched(browser, jupyter.url) as seen:
        seen.page.goto(address)
        expect(seen.page.locator(".jp-NotebookPanel .jp-Cell").first).to_be_visible(timeout=60_000)
        expect(seen.page.locator(".lm-TabBar-tab.jp-mod-current")).to_contain_text("00_start_here.ipynb")
        seen.calm()
    jupyter.end_kernels()


def test_a_notebook_runs_and_its_panel_answers(name, jupyter, browser):
    """Top to bottom, then its panel under keys and mouse: nothing red, no error in the console, no request to elsewhere."""
    with notebook(browser, jupyter, f"{name}.ipynb") as opened:
        opened.run()
        MOVES[name](opened.panel())
        opened.seen.calm()


def test_the_watch_sees_what_leaves_and_what_fails(browser, tmp_path):
    """A page that asks outside, throws and complains is found out, each in words; nothing comes of its requests."""
    page = tmp_path / "page.html"
    page.write_text(
        "<!doctype html><link rel=icon href='data:,'><script>fetch('http://example.org/a').catch(() => document.title = 'refused');"
        "new WebSocket('ws://example.org/b'); console.error('broken'); setTimeout(() => { throw Error('thrown'); });</script>"
    )
    with watched(browser, page.as_uri()) as seen:
        seen.page.goto(page.as_uri())
        expect(seen.page).to_have_title("refused")
        assert sorted(set(seen.outside)) == ["http://example.org/a", "ws://example.org/b"]
        assert any("broken" in said for said in seen.complaints) and any("thrown" in said for said in seen.complaints)
        with pytest.raises(AssertionError, match="addresses outside"):
            seen.calm()


# pages without a kernel


def explorer_page(file: Path) -> Path:
    """Eight features of random codes, each with a picture that names it."""
    codes = Codes(*torch.rand(60, 12, generator=torch.Generator().manual_seed(0)).topk(10), 12)
    tree = feature_tree(codes, ["joy"] * 30 + ["fear"] * 30, by="activity", n=8)

    def pictures(feature: int) -> list:
        return [(Image.new("RGB", (32, 32), (20 * feature, 80, 120)), np.eye(4), f"picture of {feature}")]

    return widgets.Explorer(tree, pictures).save(file, progress=False)


def test_an_explorer_in_a_file_answers_to_clicks_and_keys(browser, tmp_path):
    page = explorer_page(tmp_path / "explorer.html")
    with watched(browser, page.as_uri()) as seen:
        seen.page.goto(page.as_uri())
        leaves, pictures = seen.page.locator(".leaf"), seen.page.locator(".shots img")
        expect(leaves).to_have_count(8)
        features = leaves.evaluate_all("all => all.map((one) => one.dataset.feature)")
        for i in (2, 5):
            leaves.nth(i).locator(".spot").click()
            expect(pictures).to_have_attribute("alt", f"picture of {features[i]}")
        seen.page.locator(".chart").focus()
        seen.page.keyboard.press("Home")
        seen.page.keyboard.press("Enter")
        expect(pictures).to_have_attribute("alt", f"picture of {features[0]}")
        seen.page.keyboard.press("Escape")
        expect(pictures).to_have_count(0)
        seen.calm()


def test_an_exported_panel_answers_to_its_slider(browser, tmp_path):
    densities = (1.0, 0.3, 0.05)
    panel = widgets.superposition(train_toys(densities=densities, seeds=2, steps=300, progress=False))
    page = panel.export(tmp_path / "panel.html", density=densities)
    with watched(browser, page.as_uri()) as seen:
        seen.page.goto(page.as_uri())
        view, slider = seen.page.locator("#view"), seen.page.get_by_label("sparsity")
        pictures = [view.locator("img").first.get_attribute("src")]
        for density, sparsity in ((0.3, "0.70"), (0.05, "0.95")):
            slider.press("ArrowRight")
            expect(view).to_contain_text(f"{density:.0%} of the samples")
            expect(slider).to_have_attribute("aria-valuetext", sparsity)
            pictures.append(view.locator("img").first.get_attribute("src"))
        assert len(set(pictures)) == 3 and all(source.startswith("data:image/") for source in pictures)
        seen.calm()


def test_what_runs_out_of_time_says_how_far_it_was():
    with pytest.raises(AssertionError, match=r"only 3 of 5 \(after 0 seconds\)"):
        tools.until(lambda: False, 0, lambda: "only 3 of 5")


def test_a_lab_that_cannot_start_says_why(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(AssertionError, match="(?s)lab .* ended with .*Cannot write the notebooks"),
        lab(tmp_path / "file", tmp_path / "home"),
    ):
        pytest.fail("it started")
