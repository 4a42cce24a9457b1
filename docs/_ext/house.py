"""The reference: a page a room, made of docstrings, in the order of the import layers that pyproject.toml states.

A page has the room's face (what its `__all__` names) first, then what else its modules hold.
"""

import importlib
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import written
from commands import page as command_page
from markdown_docstrings import fenced
from sphinx.application import Sphinx

FACTORY = re.compile(r"<[a-z][^<>]*>")
MARKS = re.compile(r"[()|:]")
SHOWN = 160  # characters of a constant's value
CLI = "cli"  # whose page is that of its commands


def layers(root: Path) -> list[list[str]]:
    """Rooms from the ground up, those of one layer together."""
    project = tomllib.loads((root / "pyproject.toml").read_text())
    (contract,) = project["tool"]["importlinter"]["contracts"]
    return [MARKS.sub(" ", layer).split() for layer in reversed(contract["layers"])]


def modules(room: ModuleType) -> list[ModuleType]:
    """Modules inside a room, of families too; a room that is one file has none."""
    if not hasattr(room, "__path__"):
        return []
    names = sorted(info.name for info in pkgutil.walk_packages(room.__path__, f"{room.__name__}."))
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


def defined(module: ModuleType) -> list[str]:
    """Public functions and classes that a module defines itself."""
    own = (n for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__ and callable(v))
    return [name for name in own if not name.startswith("_")]


def constants(room: ModuleType) -> list[str]:
    """Names of a face that are neither functions, classes nor modules."""
    values = ((name, getattr(room, name)) for name in getattr(room, "__all__", ()))
    return [n for n, v in values if not isinstance(v, ModuleType) and not inspect.isclass(v) and not inspect.isroutine(v)]


def value_of(value: Any) -> str | None:
    """A constant as it is written, if that is short and says nothing of this machine."""
    said = repr(value)
    return said if len(said) <= SHOWN and " object at " not in said and not isinstance(value, Path) else None


def constant(room: ModuleType, name: str) -> Iterator[str]:
    """A constant's entry; what it is for stands where it is used."""
    value = getattr(room, name)
    yield f".. py:data:: {room.__name__}.{name}"
    if (said := value_of(value)) is not None:
        yield f"   :value: {said}"
    yield ""


def heading(text: str, line: str) -> list[str]:
    """A title in reStructuredText."""
    return [text, line * len(text), ""]


def docstring(module: ModuleType) -> list[str]:
    """A module's own docstring, as the directive that reads Markdown."""
    return [".. docstring::", "", *(f"   {line}" for line in fenced(inspect.getdoc(module).splitlines())), ""]


def entry(where: str, name: str, value: Any) -> list[str]:
    """The directive for a class or a function."""
    kind = ("exception" if issubclass(value, Exception) else "class") if inspect.isclass(value) else "function"
    return [f".. auto{kind}:: {where}.{name}", *(["   :members:"] if kind != "function" else []), ""]


def face(room: ModuleType) -> list[str]:
    """What a room offers, sorted as its `__all__` is."""
    names = getattr(room, "__all__", None) or defined(room)
    values = [(name, getattr(room, name)) for name in names]
    return [
        line for name, value in values if inspect.isclass(value) or callable(value) for line in entry(room.__name__, name, value)
    ]


def inner(room: ModuleType, module: ModuleType) -> list[str]:
    """A module inside a room: why it exists, and what the face does not show of it."""
    name, shown = module.__name__.removeprefix(f"{room.__name__}."), set(getattr(room, "__all__", ()))
    lines = heading(name, "^")
    if name not in shown:
        lines += [f".. py:module:: {module.__name__}", ""]
    lines += [f".. py:currentmodule:: {module.__name__}", "", *docstring(module)]
    rest = [n for n in defined(module) if n not in shown]
    return lines + [line for n in rest for line in entry(module.__name__, n, getattr(module, n))]


def page(room: ModuleType) -> str:
    """A room's page."""
    lines = [*heading(room.__name__, "="), f".. py:module:: {room.__name__}", "", *docstring(room), *face(room)]
    for name in constants(room):
        lines += constant(room, name)
    inside = [module for module in modules(room) if module.__doc__]
    if inside:
        lines += heading("Further inside", "-")
    return "\n".join(lines + [line for module in inside for line in inner(room, module)])


def summary(room: ModuleType) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(inspect.getdoc(room).split("\n\n")[0].split())
    return re.split(r"(?<=[.?!])\s", paragraph)[0].replace("|", "\\|")


def index(storeys: list[list[ModuleType]]) -> str:
    """The table of rooms, and the names that `import emointerp as ei` gives at once."""
    import emointerp

    rows = [
        f"| [`{_short(room)}`]({_short(room)}.{'md' if _short(room) == CLI else 'rst'}) | {summary(room)} |"
        for storey in storeys
        for room in storey
    ]
    faces = [f"| {room} | {', '.join(f'`ei.{name}`' for name in names.split())} |" for room, names in emointerp._FACES.items()]
    pages = "\n".join(f"{_short(room)} <{_short(room)}>" for storey in storeys for room in storey)
    return TEMPLATE.format(rows="\n".join(rows), faces="\n".join(faces), pages=pages)


TEMPLATE = """# Reference

Every public name, from its docstring. Shapes stand in the types: `Float[Tensor, "layer token d_model"]` is a tensor of floats with
three axes, and under the tests every call is held against them.

## Rooms, from the ground up

A room may import those above it in this table, never those below; `lint-imports` checks it.

| room | holds |
|---|---|
{rows}

## At the top

`import emointerp as ei` loads nothing heavy. These names then stand at its top, beside the rooms themselves (`ei.sae`), and each
imports what it needs when it is first used.

| from | |
|---|---|
{faces}

```{{toctree}}
:hidden:

{pages}
```
"""


def _short(room: ModuleType) -> str:
    return room.__name__.removeprefix("emointerp.")


def write(app: Sphinx) -> None:
    """Make the pages, before Sphinx looks for sources."""
    storeys = [[importlib.import_module(f"emointerp.{name}") for name in layer] for layer in layers(app.srcdir.parent)]
    rooms = {f"{_short(room)}.rst": page(room) for storey in storeys for room in storey if _short(room) != CLI}
    written.keep(Path(app.srcdir) / "api", {"index.md": index(storeys), f"{CLI}.md": command_page(), **rooms})


def readable(app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None) -> Any:
    """A signature whose defaults are Python: of a dataclass' factory the repr is not, and Sphinx then gives up on all of it."""
    return signature and FACTORY.sub("...", signature), returns


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the pages of every build."""
    app.connect("builder-inited", write)
    app.connect("autodoc-process-signature", readable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
