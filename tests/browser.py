"""A JupyterLab that the command itself opened, and a headless Chromium that watches it: what the tests of the front ends stand on.

`emointerp lab` becomes JupyterLab, which reads its settings where the environment names them; so the tests give it a home of its
own (`settled`), in which no browser is opened and the port and the token are known. Nothing here sleeps for luck: every wait has a
condition and a limit, and what runs into it says how far things were and how JupyterLab's log ends. A lab that is left behind, as
the tests were killed, ends by itself some minutes later.
"""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import psutil
from playwright.sync_api import Browser, BrowserContext, Locator, Page, sync_playwright

import emointerp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
START, RUN, CHANGE = 90, 420, 60  # seconds: for JupyterLab, for a whole notebook, for a panel to show something else
LOCAL = "127.0.0.1"


def until(seen: Callable[[], Any], seconds: float, told: Callable[[], str], rest: Callable[[float], Any] = time.sleep) -> Any:
    """What `seen` returns once it is true; after `seconds` an error in the words of `told`. `rest` waits, in milliseconds."""
    end = time.monotonic() + seconds
    while not (found := seen()):
        if time.monotonic() > end:
            raise AssertionError(f"{told()} (after {seconds:.0f} seconds)")
        rest(200)
    return found


# JupyterLab


@dataclass(frozen=True)
class Lab:
    """A JupyterLab that runs: where it answers, the folder it serves, its token, and its log."""

    url: str
    folder: Path
    token: str
    log: Path = field(repr=False)

    def tail(self, lines: int = 25) -> str:
        """How the log ends."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def asked(self, path: str, method: str = "GET") -> Any:
        """The server's answer to a call of its API, or None where there is nothing to say."""
        request = Request(f"{self.url}/api/{path}", method=method, headers={"Authorization": f"token {self.token}"})
        with urlopen(request, timeout=20) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def page(self, notebook: str) -> str:
        """The address of a notebook, in a workspace of its own, so that no other notebook is opened again beside it."""
        return f"{self.url}/lab/workspaces/{Path(notebook).stem}/tree/{notebook}?reset&token={self.token}"

    def connected(self) -> bool:
        """Whether the page and a kernel that rests know of each other; the page says "idle" before that too."""
        kernels = [session["kernel"] for session in self.asked("sessions")]
        return any(kernel["connections"] and kernel["execution_state"] == "idle" for kernel in kernels)

    def end_kernels(self) -> None:
        """End all kernels: a notebook that was looked at needs its memory no more."""
        for session in self.asked("sessions"):
            self.asked(f"sessions/{session['id']}", "DELETE")


@contextmanager
def lab(folder: Path, home: Path) -> Iterator[Lab]:
    """`emointerp lab FOLDER` with its own home, ended with all that it started."""
    home.mkdir(parents=True)
    port, token, log = _free_port(), secrets.token_hex(16), home / "lab.log"
    command = [sys.executable, "-m", "emointerp.cli", "lab", str(folder)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            cwd=home,
            env=settled(home, port, token),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    opened = Lab(f"http://{LOCAL}:{port}", folder, token, log)
    try:
        until(
            lambda: process.poll() is not None or _answers(opened),
            START,
            lambda: f"JupyterLab is not there:\n{opened.tail()}",
            _rest,
        )
        assert process.poll() is None, f"`{' '.join(command[1:])}` ended with {process.returncode}:\n{opened.tail()}"
        yield opened
    finally:
        _end(process)


def settled(home: Path, port: int, token: str) -> dict[str, str]:
    """An environment in which JupyterLab keeps to `home`, opens no browser, and ends by itself some minutes after all is quiet."""
    server = {"ip": LOCAL, "port": port, "port_retries": 0, "allow_root": True, "open_browser": False}
    config = {
        "ServerApp": server | {"shutdown_no_activity_timeout": 300},
        "LabApp": {"open_browser": False},
        "IdentityProvider": {"token": token},
        "MappingKernelManager": {"cull_idle_timeout": 300, "cull_interval": 60},
    }
    _write(home / "config" / "jupyter_server_config.json", config)
    # JupyterLab asks its user once whether it may fetch news; this is the answer
    _write(home / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings", {"fetchNews": "false"})
    folders = {"CONFIG_DIR": "config", "DATA_DIR": "data", "RUNTIME_DIR": "runtime"}
    paths = {f"JUPYTER_{name}": str(home / to) for name, to in folders.items()}
    paths |= {"JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces")}
    source = os.pathsep.join(filter(None, [str(Path(emointerp.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]))
    unset = {"MPLBACKEND"}  # the tests draw without a screen; a notebook has its own
    return {k: v for k, v in os.environ.items() if k not in unset} | paths | {
        "HOME": str(home), "IPYTHONDIR": str(home / "ipython"), "BROWSER": "true", "PYTHONPATH": source
    }  # fmt: skip


def _write(file: Path, data: dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(data))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind((LOCAL, 0))
        return one.getsockname()[1]


def _answers(lab: Lab) -> bool:
    try:
        return bool(lab.asked("status"))
    except (URLError, OSError):
        return False


def _rest(milliseconds: float) -> None:
    time.sleep(milliseconds / 1000)


def _end(process: subprocess.Popen) -> None:
    """End JupyterLab and what it started; kernels have process groups of their own, so they are counted before."""
    try:
        started = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        started = []
    process.terminate()
    try:
        process.wait(15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(15)
    _, left = psutil.wait_procs(started, timeout=5)
    for one in left:
        with suppress(psutil.NoSuchProcess):  # it ended just now
            one.kill()


# the browser


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless Chromium, which finds no address but this machine's."""
    walls = ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost", "--no-sandbox", "--disable-gpu"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=walls)
        try:
            yield browser
        finally:
            browser.close()


@dataclass(frozen=True)
class Watched:
    """A page and what it did: the addresses that it asked for outside of where it may, and its complaints."""

    page: Page
    outside: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def calm(self) -> None:
        """Raise unless the page asked nobody outside, wrote no error to its console, and none was left uncaught."""
        assert not self.outside, f"The page asked for {len(self.outside)} addresses outside: {self.outside[:5]}"
        assert not self.complaints, "The page complains:\n" + "\n".join(self.complaints[:8])


@contextmanager
def watched(browser: Browser, home: str) -> Iterator[Watched]:
    """A new page that may ask for what begins with `home` (http://… or file://…); other requests are noted, and refused."""
    context = browser.new_context(viewport={"width": 1500, "height": 1100})
    try:
        context.set_default_timeout(30_000)
        seen = Watched(context.new_page())
        _watch(context, seen, home)
        yield seen
    finally:
        context.close()


def _watch(context: BrowserContext, seen: Watched, home: str) -> None:
    inside = (home, home.replace("http", "ws", 1), "data:", "blob:")
    refused = re.compile(rf"^(?!{'|'.join(map(re.escape, inside))})")

    def note(url: str) -> None:
        if not url.startswith(inside):
            seen.outside.append(url)

    context.on("request", lambda request: note(request.url))
    context.on("page", lambda page: seen.outside.append(f"a page of its own: {page.url}"))
    seen.page.on("websocket", lambda socket: note(socket.url))
    context.route(refused, lambda route: route.abort())
    seen.page.on("pageerror", lambda error: seen.complaints.append(f"uncaught: {error}"))
    seen.page.on("console", lambda said: seen.complaints.append(_said(said)) if said.type == "error" else None)


def _said(message: Any) -> str:
    return f"console: {message.text} ({message.location.get('url', '')}:{message.location.get('lineNumber', '')})"


# a notebook in it

_STATE = """() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const text = (node) => node.textContent.trim().slice(0, 400);
  return {
    prompts: all(".jp-NotebookPanel .jp-CodeCell .jp-InputArea-prompt").map(text),
    status: all(".jp-NotebookPanel .jp-Notebook-ExecutionIndicator")[0]?.dataset.status,
    red: all(
      "[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr'], " +
      ".jp-OutputArea [role=alert], .jupyter-widgets-error-widget, .jp-Dialog"
    ).map(text),
  };
}"""


@dataclass(frozen=True)
class OpenNotebook:
    """A notebook in JupyterLab, used through menus, keys and the mouse."""

    lab: Lab
    seen: Watched

    @property
    def page(self) -> Page:
        """The browser's page."""
        return self.seen.page

    def state(self) -> dict[str, Any]:
        """Prompts of the code cells ("[3]:"), the kernel's status, and what stands in red, or asks for an answer."""
        return self.page.evaluate(_STATE)

    def choose(self, menu: str, item: str) -> None:
        """Choose from the menus at the top."""
        self.page.locator(f".lm-MenuBar-itemLabel:text-is('{menu}')").click()
        self.page.locator(f".lm-Menu-itemLabel:text-is('{item}')").click()

    def run(self, seconds: float = RUN) -> None:
        """Run all cells; ends when all have a number and the kernel rests, raises as soon as something stands in red."""
        self.choose("Edit", "Clear Outputs of All Cells")
        self.wait(lambda now: set(now["prompts"]) == {"[ ]:"}, CHANGE, "the outputs of the copy were not cleared")
        self.choose("Run", "Run All Cells")
        try:
            self.wait(_begun, 10, "no cell has begun")
        except AssertionError:
            self.choose("Run", "Run All Cells")  # JupyterLab drops cells without a word while it connects to a kernel
        self.wait(_finished, seconds, "the notebook did not come to its end")
        state = self.state()
        assert not state["red"], f"Red in the notebook: {state['red']}\n{self.lab.tail()}"
        assert state["prompts"] == [f"[{i + 1}]:" for i in range(len(state["prompts"]))], state["prompts"]

    def wait(self, fine: Callable[[dict[str, Any]], bool], seconds: float, what: str) -> None:
        """Wait for a state of the notebook."""
        until(lambda: fine(self.state()), seconds, lambda: f"{what}: {self.state()}\n{self.lab.tail()}", self.page.wait_for_timeout)

    def panel(self, index: int = 0) -> "LivePanel":
        """One of the panels in the notebook, in their order."""
        found = self.page.locator(".jp-NotebookPanel .jupyter-widgets.emointerp-panel")
        until(lambda: found.count() > index, CHANGE, lambda: f"There are {found.count()} panels", self.page.wait_for_timeout)
        found.nth(index).scroll_into_view_if_needed()
        return LivePanel(self, found.nth(index))


def _begun(now: dict[str, Any]) -> bool:
    return any(prompt != "[ ]:" for prompt in now["prompts"])


def _finished(now: dict[str, Any]) -> bool:
    done = all(re.fullmatch(r"\[\d+\]:", prompt) for prompt in now["prompts"]) and now["status"] == "idle"
    return done or bool(now["red"])


@contextmanager
def notebook(browser: Browser, lab: Lab, name: str) -> Iterator[OpenNotebook]:
    """A notebook of the lab, opened, its kernel at rest; the kernel ends with it."""
    with watched(browser, lab.url) as seen:
        opened = OpenNotebook(lab, seen)
        cells = json.loads((lab.folder / name).read_text())["cells"]
        count = sum(cell["cell_type"] == "code" for cell in cells)
        try:
            seen.page.goto(lab.page(name))
            ready = f"{name} with its {count} code cells and a kernel is not there"
            opened.wait(lambda now: len(now["prompts"]) == count and now["status"] == "idle" and lab.connected(), START, ready)
            yield opened
        except Exception:
            seen.page.screenshot(path=lab.log.with_name(f"{Path(name).stem}.png"))  # pytest keeps the folder, and names it
            raise
        finally:
            lab.end_kernels()


# a panel in it

# All that a panel shows, its controls left out: their own read-outs change with every key.
_SHOWN = """(panel) => [...panel.querySelectorAll(
  ".emointerp-view, .emointerp-grid, .emointerp-strip, .emointerp-explorer"
)].map((node) => node.innerHTML).join("\\n")"""


@dataclass(frozen=True)
class LivePanel:
    """A panel as a person has it: controls by the names beside them, and what it shows."""

    notebook: OpenNotebook
    panel: Locator

    def shown(self) -> str:
        """What the panel shows, as HTML."""
        return self.panel.evaluate(_SHOWN)

    def text(self) -> str:
        """The words of its view."""
        return self.panel.locator(".emointerp-view").inner_text()

    def control(self, name: str, kind: str) -> Locator:
        """A control by the word beside it; `kind` is the part of it that is touched."""
        return self.panel.locator(f":has(> .widget-label:text-is('{name}')) {kind}").first

    @contextmanager
    def changing(self, what: str) -> Iterator[None]:
        """What is done inside must change what the panel shows, and leave no error behind."""
        self._settle(what)
        before = self.shown()
        yield
        page = self.notebook.page
        until(lambda: self.shown() != before, CHANGE, lambda: f"{what} changed nothing in the panel", page.wait_for_timeout)
        self._settle(what)
        assert self.shown() != before, f"{what} changed the panel for a moment only"
        assert not (red := self.notebook.state()["red"]), f"After {what}: {red}"

    def _settle(self, what: str) -> None:
        """Wait until the kernel rests and the panel, no longer busy, shows the same twice."""
        held: list[str] = []

        def still() -> bool:
            held.append(self.shown())
            busy = "emointerp-busy" in self.panel.get_attribute("class")
            return not busy and self.notebook.state()["status"] == "idle" and held[-2:] == [held[-1]] * 2

        until(still, CHANGE, lambda: f"The panel does not come to rest ({what})", self.notebook.page.wait_for_timeout)

    def presses(self, name: str, times: int = 1) -> None:
        """Move a slider by the arrow keys, towards the side that has room."""
        handle = self.control(name, ".noUi-handle")
        handle.scroll_into_view_if_needed()
        with self.changing(f"pressing an arrow key on the slider {name!r}"):
            handle.focus()
            for _ in range(times):
                self.notebook.page.keyboard.press("ArrowLeft" if _at(handle) > 0.5 else "ArrowRight")

    def drags(self, name: str, share: float = 0.3) -> None:
        """Drag a slider by a share of its length, towards the side that has room."""
        handle, track = self.control(name, ".noUi-handle"), self.control(name, ".noUi-base")
        handle.scroll_into_view_if_needed()
        box, length, mouse = handle.bounding_box(), track.bounding_box()["width"], self.notebook.page.mouse
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        with self.changing(f"dragging the slider {name!r}"):
            mouse.move(x, y)
            mouse.down()
            mouse.move(x + (-share if _at(handle) > 0.5 else share) * length, y, steps=6)
            mouse.up()

    def types(self, name: str, text: str) -> None:
        """Type into a field and press Enter."""
        entry = self.control(name, "input")
        with self.changing(f"typing {text!r} into {name!r}"):
            entry.click()
            entry.fill("")
            entry.press_sequentially(text)
            entry.press("Enter")

    def picks(self, name: str, option: str) -> None:
        """Pick from a list."""
        with self.changing(f"picking {option!r} from {name!r}"):
            self.control(name, "select").select_option(label=option)

    def clicks(self, target: Locator) -> None:
        """Click on a part of the panel with the mouse."""
        target.scroll_into_view_if_needed()
        with self.changing(f"a click on {target}"):
            target.click()


def _at(handle: Locator) -> float:
    """Where a slider's handle stands, from 0 to 1."""
    low, now, high = (float(handle.get_attribute(f"aria-value{name}")) for name in ("min", "now", "max"))
    return (now - low) / max(high - low, 1e-9)
