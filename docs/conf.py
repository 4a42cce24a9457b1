"""The documentation site, from the notebooks and the docstrings, offline: `python -m sphinx -W -n -b html docs build/site`.

Notebooks come as they are stored, or as they were executed in the folder that EMOINTERP_EXECUTED names; nothing is executed here.
Pages that are made anew by each build (`_ext/`): the course, the reference, the cards and the changelog.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE / "_ext")]
os.environ["HF_HUB_OFFLINE"] = "1"

import emointerp  # noqa: E402 - from the checkout that these pages lie in

project = "emointerp"
author = "the emointerp authors"
project_copyright = "2026, the emointerp authors"
version = release = emointerp.__version__

extensions = [
    "sphinx.ext.autodoc", "myst_nb", "sphinx_copybutton",
    "markdown_docstrings", "house", "course_pages", "copied_pages", "name_links", "mathml",
]  # fmt: skip
exclude_patterns = [".gitignore", "_ext"]

# Offline: formulas are MathML, panels their stored HTML, fonts the reader's own; nothing is fetched by a page.
html_math_renderer = "mathml"
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_mime_priority_overrides = [("html", "application/vnd.jupyter.widget-view+json", None)]
nb_merge_streams = True

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath", "attrs_block", "attrs_inline"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
maximum_signature_line_length = 130
add_module_names = False
toc_object_entries_show_parents = "hide"

# Every reference must lead somewhere, except to types of other packages, as where these are documented is known on the network
# only, and to the types of a few private fields.
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r"(?!emointerp\b).*"), (r"py:class", r"emointerp\.(\w+\.)+_\w+")]

smartquotes_action = "q"  # quotes only: two dashes are how options are written

html_theme = "furo"
pygments_style, pygments_dark_style = "friendly", "github-dark"
html_title = "emointerp"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/face.svg"
html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # it fetches pages, which a browser forbids where the site lies on a disk
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5f8f", "color-brand-content": "#0b5f8f", "color-brand-visited": "#0b5f8f"},
    "dark_css_variables": {"color-brand-primary": "#74c0ec", "color-brand-content": "#74c0ec", "color-brand-visited": "#74c0ec"},
}
copybutton_selector = ":not(.output) > div.highlight pre"
copybutton_exclude = ".linenos, .gp, .go"
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
