"""Panel of chapter 02: features around a circle; search them, zoom in, click one and see its pictures.

The tree is computed before (`emointerp.sae.tree`); the widget only shows it. Its JavaScript lies in `js/` of the repository, and
bundled with the parts of d3 that it needs in `static/explorer/`; nothing is asked of the network. `save` writes the same view as
one HTML file, with the pictures of every feature inside.
"""

import base64
import io
import json
from collections.abc import Callable, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
from jaxtyping import Float
from PIL import Image
from tqdm.auto import tqdm
from traitlets import Bool, Dict, List, Unicode, observe, validate

from emointerp.errors import EmointerpError, InputError, OutputError
from emointerp.markup import data_uri, thumbnail
from emointerp.models import to_image
from emointerp.sae.tree import NONE, FeatureTree, initials
from emointerp.sae.value import Codes
from emointerp.widgets.tinted import RAMP, STATIC, BadTrait, Index

FOLDER = STATIC / "explorer"
SIDE = 160  # pixels of a thumbnail
FINEST = 48  # rows and columns of a heat map; the browser smooths it

Shot = tuple[Image.Image, Any, str]  # a picture, its heat map or None, a caption


class Explorer(anywidget.AnyWidget):
    """A tree of features as a radial dendrogram. A click, Enter or Python's `selected` shows a feature's pictures.

    `find_pictures(feature)` gives them: a list of (picture, heat map or None, caption), as `top_pictures` does. A heat map is a
    grid of any size, laid over the whole picture; what it shows is its absolute value, as a share of its largest. It is asked
    once for each feature.

    `selected` is a feature's number, -1 for none; `search` words or the beginning of a number; `emotions` those to be shown,
    all where it is empty. They go both ways between Python and the page. `problem` says what went wrong with the pictures.
    """

    _esm = (FOLDER / "explorer.js").read_text(encoding="utf-8")
    _css = (FOLDER / "explorer.css").read_text(encoding="utf-8")
    _ramp = List([list(pair) for pair in RAMP]).tag(sync=True)

    tree = Dict().tag(sync=True)
    title = Unicode().tag(sync=True)
    selected = Index(-1, help="number of the selected feature, -1 for none").tag(sync=True)
    search = Unicode().tag(sync=True)
    emotions = List(Unicode()).tag(sync=True)
    pictures = List(Dict()).tag(sync=True)
    busy = Bool(False).tag(sync=True)
    problem = Unicode().tag(sync=True)

    def __init__(self, tree: FeatureTree, find_pictures: Callable[[int], Sequence[Shot]] | None = None, **traits: Any):
        self._features, self._found = tree, lru_cache(maxsize=256)(lambda i: _shots(find_pictures(i)) if find_pictures else [])
        super().__init__(tree=payload(tree), **traits)

    @validate("selected")
    def _one_of_the_features(self, proposal: Any) -> int:
        if proposal.value != -1 and proposal.value not in self._features.leaves.feature.to_numpy():
            raise BadTrait(
                f"`selected` is {proposal.value}, which is none of the {len(self._features)} features shown; expected one of "
                "their numbers, or -1 for none."
            )
        return proposal.value

    @validate("emotions")
    def _known_emotions(self, proposal: Any) -> list:
        known = [*self._features.emotions, NONE]
        if unknown := [name for name in proposal.value if name not in known]:
            raise BadTrait(f"`emotions` has {unknown[0]!r}; this tree knows {', '.join(known)}.")
        return proposal.value

    @observe("selected")
    def _show_pictures(self, _: Any) -> None:
        """The pictures of the feature, or in words what is wrong with them."""
        self.busy = True
        try:
            self.pictures, self.problem = (self._found(self.selected) if self.selected >= 0 else []), ""
        except EmointerpError as error:
            self.pictures, self.problem = [], str(error)
        except Exception as error:  # a kernel would swallow it inside a callback, and the panel would look frozen
            self.pictures, self.problem = [], f"{type(error).__name__}: {error}"
        finally:
            self.busy = False

    def save(self, file: str | Path, progress: bool = True) -> Path:
        """Write the view as one HTML file that works offline, with the pictures of every feature inside."""
        features = tqdm(self._features.leaves.feature.tolist(), desc="pictures", disable=not progress)
        shots = {feature: self._found(feature) for feature in features}
        store = {uri: f"p{i}" for i, uri in enumerate(dict.fromkeys(s["picture"] for some in shots.values() for s in some))}
        data = {
            "traits": {name: getattr(self, name) for name in ("tree", "title", "selected", "search", "emotions", "_ramp")},
            "pictures": {i: [shot | {"picture": store[shot["picture"]]} for shot in some] for i, some in shots.items()},
            "store": {key: uri for uri, key in store.items()},
        }
        file = Path(file)
        try:
            file.write_text(page(data, self.title or "Emotion explorer"), encoding="utf-8", errors="replace")
        except OSError as error:
            raise OutputError(f"The page cannot be written to {file}: {error}. Choose a file in a folder that exists.") from None
        return file

    def static_html(self) -> str:
        """The tree as a figure and the pictures of the selected feature, for pages where widgets are dead."""
        shots = "".join(map(_static_shot, self.pictures))
        said = _about(self._features, self.selected) if self.selected >= 0 else ""
        return (
            f'<div style="max-width:760px"><h3>{escape(self.title)}</h3>'
            f'<img src="{_drawn(self._features)}" style="width:100%" alt="{escape(_summary(self._features))}"/>'
            f'<p>{said}</p><div style="display:flex;flex-wrap:wrap;gap:8px">{shots}</div></div>'
        )

    def _repr_mimebundle_(self, **options: Any) -> tuple[dict, dict] | None:
        """The live widget, and beside it what it shows now, for pages where widgets are dead (GitHub, slides)."""
        bundle = super()._repr_mimebundle_(**options)
        return bundle and ({**bundle[0], "text/html": self.static_html()}, bundle[1])


def payload(tree: FeatureTree) -> dict[str, Any]:
    """A tree as plain lists, which JSON can hold however deep it is. Emotions are numbers; the last of them is "none"."""
    names, letters = [*tree.emotions, NONE], initials(tree.emotions)
    number = {name: i for i, name in enumerate(names)}
    shares = np.column_stack([tree.shares, np.full(len(tree) - 1, 0.5)])  # more than half, or none
    leaves = tree.leaves
    return {
        "by": tree.by,
        "linkage": tree.linkage.tolist(),
        "radii": tree.radii.round(4).tolist(),
        "leading": [int(i) if share > 0.5 else number[NONE] for i, share in zip(shares.argmax(1), shares.max(1), strict=True)],
        "emotions": [
            {
                "name": name,
                "said": "no one emotion" if name == NONE else name,
                "initial": letters.get(name, ""),
                "color": tree.colors[name],
                "none": name == NONE,
            }
            for name in names
        ],
        "leaves": {
            "feature": leaves.feature.tolist(),
            "emotion": [number[name] for name in leaves.emotion],
            "words": leaves.words.tolist(),
            "means": tree.means.astype(float).round(5).tolist(),
        }
        | {name: [None if np.isnan(x) else float(x) for x in leaves[name]] for name in ("activation", "difference", "p")},
    }


def page(data: dict[str, Any], title: str) -> str:
    """One HTML file of the view: script, style and data lie inside; no text of the data can end its element."""
    script = base64.b64encode(Explorer._esm.encode()).decode()
    held = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>{Explorer._css}</style>
</head>
<body>
<noscript>This page draws its figure with JavaScript, which is switched off here.</noscript>
<script type="application/json" id="data">{held}</script>
<script type="module">
import {{ page }} from "data:text/javascript;base64,{script}";
page(document.body, JSON.parse(document.getElementById("data").textContent));
</script>
</body>
</html>
"""


def top_pictures(
    codes: Codes, images: Sequence[Any], k: int = 6, heat: Callable[[int, int], Any] | None = None
) -> Callable[[int], list[Shot]]:
    """What an `Explorer` asks: the `k` pictures on which a feature fires most, with its activation there.

    `codes` are of the pictures [n k], or of their patches [n patch k], row by row in a square, which are the heat maps then. Of
    whole pictures `heat(i, feature)` gives the map of picture i, if there is one. `images`: anything that
    `emointerp.models.to_image` takes.
    """
    if len(images) != len(codes.values):
        raise InputError(f"{len(images)} images came for the codes of {len(codes.values)} pictures; expected one for each.")
    by_patch = codes.values.ndim == 3
    side = round(codes.values.shape[1] ** 0.5) if by_patch else 0
    if by_patch and side**2 != codes.values.shape[1]:
        raise InputError(f"{codes.values.shape[1]} patches are no square; give codes of whole pictures, and `heat`.")

    def found(feature: int) -> list[Shot]:
        each = codes.feature(feature)
        activation = (each.amax(1) if by_patch else each).detach().cpu()
        best = [i for i in activation.argsort(descending=True, stable=True)[:k].tolist() if activation[i] > 0]
        maps = {i: each[i].reshape(side, side) if by_patch else heat(i, feature) if heat else None for i in best}
        return [(to_image(images[i]), maps[i], f"{float(activation[i]):.2f}") for i in best]

    return found


def _shots(found: Sequence[Shot]) -> list[dict[str, Any]]:
    """Pictures as the page takes them."""
    return [{"picture": small_uri(image), "heat": heat_bytes(heat), "caption": str(caption)} for image, heat, caption in found]


def small_uri(image: Image.Image) -> str:
    """A thumbnail as a WebP data URI: a page holds hundreds, and of photographs PNGs are ten times as large."""
    buffer = io.BytesIO()
    thumbnail(image.convert("RGB"), SIDE).save(buffer, format="webp", quality=82)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def heat_bytes(heat: Any) -> dict[str, Any] | None:
    """A heat map as rows, columns and a byte a cell, 255 where it is largest; finer ones than `FINEST` are averaged.

    >>> heat_bytes([[0.0, 0.5], [1.0, float("nan")]])
    {'rows': 2, 'columns': 2, 'bytes': 'AID/AA=='}
    """
    if heat is None:
        return None
    grid = np.abs(np.asarray(heat.detach().cpu() if hasattr(heat, "detach") else heat, dtype=np.float32))
    if grid.ndim != 2 or not grid.size:
        raise InputError(f"A heat map of shape {list(grid.shape)} came; expected a grid [rows, columns], or None.")
    grid = np.nan_to_num(grid, posinf=0.0)
    if max(grid.shape) > FINEST:
        size = [min(side, FINEST) for side in grid.shape[::-1]]
        grid = np.asarray(Image.fromarray(grid).resize(size, Image.Resampling.BOX))
    scaled = np.round(255 * grid / max(float(grid.max()), 1e-12)).astype(np.uint8)
    return {"rows": len(grid), "columns": grid.shape[1], "bytes": base64.b64encode(scaled.tobytes()).decode()}


# the stand-in


@lru_cache(maxsize=4)
def _drawn(tree: FeatureTree) -> str:
    return data_uri(tree.plot(width=7.5))


def _summary(tree: FeatureTree) -> str:
    counts = tree.leaves.emotion.value_counts()
    return f"Radial dendrogram of {len(tree)} features; " + ", ".join(f"{name}: {count}" for name, count in counts.items())


def _about(tree: FeatureTree, feature: int) -> str:
    row = tree.leaves[tree.leaves.feature == feature].iloc[0]
    words = f": {row.words}" if row.words else ""
    return f"<b>Feature {feature}{escape(words)}</b>; {escape(row.emotion)}, mean activation {row.activation:.2g}"


def _static_shot(shot: dict[str, Any]) -> str:
    """A picture with its heat map over it, as far as a page without a script goes: one image."""
    caption, picture = escape(shot["caption"]), small_uri(warmed(shot)) if shot["heat"] else shot["picture"]
    return (
        f'<figure style="margin:0;width:120px"><img src="{picture}" style="width:100%" alt="{caption}"/>'
        f'<figcaption style="font-size:12px;opacity:.75">{caption}</figcaption></figure>'
    )


def warmed(shot: dict[str, Any]) -> Image.Image:
    """A picture with its heat map over it, where there is one."""
    image = Image.open(io.BytesIO(base64.b64decode(shot["picture"].partition(",")[2]))).convert("RGB")
    if not shot["heat"]:
        return image
    values = np.frombuffer(base64.b64decode(shot["heat"]["bytes"]), np.uint8).reshape(shot["heat"]["rows"], -1)
    fine = np.asarray(Image.fromarray(values).resize(image.size, Image.Resampling.BILINEAR), np.float32) / 255
    return Image.fromarray(_tinted(np.asarray(image, np.float32), fine))


def _tinted(pixels: Float[np.ndarray, "height width 3"], share: Float[np.ndarray, "height width"]) -> np.ndarray:
    """Pixels under a colour of the ramp, the more opaque the larger the share; as the script paints it."""
    ramp = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color, _ in RAMP])
    opacity = (225 / 255 * share**1.5)[..., None]
    colors = ramp[np.round(share * (len(ramp) - 1)).astype(int)]
    return np.round(pixels * (1 - opacity) + colors * opacity).astype(np.uint8)
