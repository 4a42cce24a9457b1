"""Docstrings are Markdown: autodoc reads them as reStructuredText, so each is handed to the MyST parser in its place."""

from collections.abc import Iterator
from typing import Any

from docutils import nodes
from docutils.utils import new_document
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

FENCE = "```"


class Docstring(SphinxDirective):
    """Content in Markdown, as the nodes that it is."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Parse with the site's own MyST settings."""
        parser, document = MystParser(), new_document(self.get_source_info()[0], self.state.document.settings)
        parser.set_application(self.env.app)
        parser.parse("\n".join(self.content), document)
        return document.children


def fenced(lines: list[str]) -> Iterator[str]:
    """The same lines, with examples (`>>> `) in a fence of their own.

    >>> list(fenced(["Adds.", "", ">>> 1 + 1", "2"]))
    ['Adds.', '', '```pycon', '>>> 1 + 1', '2', '```']
    """
    inside = False
    for line in lines:
        if line.startswith(">>>") and not inside:
            inside = True
            yield FENCE + "pycon"
        if inside and not line.strip():
            inside = False
            yield FENCE
        yield line
    if inside:
        yield FENCE


def wrapped(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Put a docstring's lines into the directive above."""
    if any(line.strip() for line in lines):
        lines[:] = [".. docstring::", "", *(f"   {line}" for line in fenced(lines)), ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Name the directive, and stand between autodoc and its parser."""
    app.add_directive("docstring", Docstring)
    app.connect("autodoc-process-docstring", wrapped, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
