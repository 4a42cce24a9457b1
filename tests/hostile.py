"""What people and files may bring that is not meant well: texts for the tests of escaping, and a pickle that leaves a trace."""

from html.parser import HTMLParser
from pathlib import Path

HACK = "window.hacked=1;alert(1)"
STRINGS = {
    "script": f"<script>{HACK}</script>",
    "attribute": f'"\'><img src=x onerror="{HACK}">',
    "one quote": f"' onmouseover='{HACK}' autofocus onfocus='{HACK}",
    "end of style": f"</style><svg onload={HACK}>",
    "end of script": f"</script><script>{HACK}</script>",
    "end of title": f"</title></option></select></textarea><img src=x onerror={HACK}>",
    "comment": f"<!--><script>{HACK}/* ]]>",
    "address": f"javascript:{HACK}",
    "templates": "{{7*7}} {% raw %} ${7*7} {0.__class__} %(x)s",
    "formula": r"$\frac{ costs $5 or $$ \mathdefault{",
    "entities": "&lt;script&gt; &#60;b&#62; &amp;amp;",
    "marks of ours": 'src="@0@" href="@1@"',
    "directions": "a\u202e\u2066b\u200b\u200dc\ufeff\u2028d",
    "lines": "one\ntwo\r\nthree\tfour",
    "control": "a\x00b\x1b[31mc\x7f",
    "half a pair": "caf\udce9.png",
    "long": "word" * 2500,
}
FETCHED = {"src", "srcset", "href", "xlink:href", "poster", "data", "background", "action", "formaction"}
PLAIN = "plain words"  # in their place, to see what is markup of ours


class Skeleton(HTMLParser):
    """A page's markup (elements with their attributes' names, ends, comments), apart from its text and its attributes' values."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.markup: list[tuple] = []
        self.values: list[tuple[str, str]] = []
        self.fetched: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.markup.append((tag, *(name for name, _ in attrs)))
        self.values += [(name, value or "") for name, value in attrs]
        self.fetched += [(tag, value or "") for name, value in attrs if name in FETCHED and tag != "a"]

    def handle_endtag(self, tag: str) -> None:
        self.markup.append((f"/{tag}",))

    def handle_comment(self, data: str) -> None:
        self.markup.append(("comment",))

    def handle_decl(self, decl: str) -> None:
        self.markup.append(("declaration", decl))

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def said(self) -> str:
        """Text and values."""
        return "\n".join([self.text, *(value for _, value in self.values)])

    def dangers(self) -> list[tuple[str, str]]:
        """Attributes that a browser would run."""
        return [
            (name, value[:80])
            for name, value in self.values
            if name.startswith("on") or name in ("src", "href", "action", "formaction") and "script:" in value.lower()[:40]
        ]


class Trace:
    """Whoever unpickles this makes an empty folder: a sign that a file's code was run."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        import os

        return os.mkdir, (str(self.folder),)
