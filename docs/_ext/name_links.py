"""Names of the package that stand in code, in pages, notebooks and docstrings, lead to their place in the reference.

A name in a docstring is looked up as Python would, in its class and its module; elsewhere among the names at the package's top.
`emointerp.something` or `ei.something` that is documented nowhere is a warning, so that no page keeps a name that is gone.
"""

import re
import sys
from collections.abc import Iterator

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

import emointerp

NAME = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(?:\(.*\))?", re.DOTALL)
FILE = re.compile(r"\.(py|md|json|css|html|mplstyle)$")
PREFIX = re.compile(r"^(ei|emointerp)\.")
logger = logging.getLogger(__name__)


def full_names(said: str, scopes: list[str]) -> Iterator[str]:
    """What a name may stand for, the nearest first."""
    short = PREFIX.sub("", said)
    first = short.partition(".")[0]
    if first in emointerp._FUNCTIONS and (short != said or not scopes):
        yield f"{emointerp._FUNCTIONS[first]}.{short}"
    if short != said:
        yield f"emointerp.{short}"
        return
    for scope in scopes:
        yield f"{scope}.{said}"
        value = getattr(sys.modules.get(scope), first, None)  # what a module imported
        if hasattr(value, "__qualname__"):
            yield f"{value.__module__}.{value.__qualname__}{short.removeprefix(first)}"


def is_ours(said: str) -> bool:
    """Whether a name says of itself that it is the package's."""
    return bool(PREFIX.match(said)) and not FILE.search(said)


def scopes(node: nodes.Node, docname: str) -> list[str]:
    """The classes (for what is called) and modules whose docstrings a node stands in, inmost first, and the room of its page."""
    found, here, called = [], node.parent, "(" in node.astext()
    while here is not None:
        if isinstance(here, addnodes.desc) and here.get("domain") == "py":
            signature = here[0]
            module, name = signature["module"], signature["fullname"]
            whole, owner = f"{module}.{name}", getattr(sys.modules.get(module), name.partition(".")[0], None)
            found += [*([whole, whole.rpartition(".")[0]] if called else []), module, getattr(owner, "__module__", module)]
        here = here.parent
    room = [f"emointerp.{docname.removeprefix('api/')}"] if docname.startswith("api/") else []
    return [*found, *room]


class NameLinks(SphinxPostTransform):
    """Inline code that names something documented becomes a link to it."""

    default_priority = 400

    def run(self, **kwargs: object) -> None:
        """Go through the code of a page, leaving links and titles alone."""
        for literal in list(self.document.findall(nodes.literal)):
            name = NAME.fullmatch(literal.astext())
            if name and not isinstance(literal.parent, nodes.reference | nodes.title | addnodes.pending_xref):
                self._link(literal, name[1])

    def _link(self, literal: nodes.literal, said: str) -> None:
        objects = self.env.get_domain("py").objects
        here = scopes(literal, self.env.docname) if self.env.docname.startswith("api/") else []
        for name in full_names(said, here):
            if name in objects and (objects[name].objtype != "module" or PREFIX.match(said)):
                entry = objects[name]
                link = make_refnode(self.app.builder, self.env.docname, entry.docname, entry.node_id, literal.deepcopy(), name)
                return literal.replace_self(link)
        if is_ours(said):
            logger.warning("%s is documented nowhere", said, location=literal, type="name_links")


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the transform."""
    app.add_post_transform(NameLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
