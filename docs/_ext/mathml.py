"""Formulas as MathML, which browsers draw by themselves: no script, no font and nothing from the network.

Sphinx knows MathJax, whose files come from a CDN or weigh several megabytes, and pictures, which need a TeX installation. docutils
has the converter; here it is only named as a renderer.
"""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

SIZES = re.compile(r"\\[bB]igg?[lrm]?(?![A-Za-z])")  # of brackets; unknown to docutils, and browsers stretch them by themselves


def mathml(formula: str, **options: bool) -> str:
    """A formula of LaTeX as MathML."""
    return tex2mathml(SIZES.sub("", formula), **options)


def inline(self: Any, node: nodes.Element) -> None:
    """A formula in a line of text."""
    self.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def block(self: Any, node: nodes.Element) -> None:
    """A formula by itself."""
    self.body.append(f'<div class="formula">{mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Make the renderer known by its name."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
