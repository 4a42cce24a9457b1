"""Panel of chapter 08: choose a model, see what it will take, and copy the line that loads it.

Nothing is fetched or loaded here: sizes come from configurations, of known models or of those that this machine holds.
"""

import json
from html import escape

import ipywidgets as widgets
import pandas as pd

from emointerp.models import BUNDLED, Budget
from emointerp.models.budget import CONFIGS, GPUS, USABLE, named
from emointerp.plots import BLUE, ORANGE, PALE, ShownFigure, new_figure
from emointerp.widgets.panel import Panel, arranged

BITS = {"16 bits": 16, "8 bits": 8, "4 bits": 4}
SMALL = 1e8  # bytes of weights, below which a model's time is Python's and no GPU need be named
TIMES = {"prompt": "read a prompt", "story": "tell a story", "head_map": "map of heads, a pair", "evaluation": "1,000 answers"}


def budget(model: str, bits: int = 16) -> Budget:
    """What a model takes, by its name (`models.budget.named`); nothing is fetched, and an InputError says what is not known."""
    return named(model, None if bits == 16 else bits)


def line(model: str, bits: int = 16) -> str:
    """The line that loads a model.

    >>> line("Qwen/Qwen2-VL-7B-Instruct", 4)
    'vlm = ei.load("Qwen/Qwen2-VL-7B-Instruct", device="cuda", dtype="bfloat16", bits=4)'
    """
    if model in BUNDLED:
        return "vlm = ei.load()"
    packed = "" if bits == 16 else f", bits={bits}"
    return f'vlm = ei.load({json.dumps(model, ensure_ascii=False)}, device="cuda", dtype="bfloat16"{packed})'


def compute(model: str, bits: int = 16) -> str:
    """What a model takes, on which GPUs it fits, and the line that loads it, as HTML."""
    found = budget(model, bits)
    parts = [
        f"<pre>{escape(line(model, bits))}</pre>",
        f"<p><b>{_count(found)} parameters</b>: {_bytes(found.weights)} of weights, and <b>{_bytes(found.peak())}</b> at work on "
        f"one prompt of {found.tokens} tokens, {found.visual} of them the picture's.</p>",
    ]
    if bits != 16 and model not in BUNDLED:
        parts.append("<p>Weights in fewer bits need <code>pip install bitsandbytes accelerate</code>.</p>")
    if found.weights < SMALL:
        parts.append("<p>So small a model needs no GPU; what it takes in time is mostly Python's.</p>")
    else:
        parts.append(_table(found.to_frame()))
    said = "Computed from the configuration and not measured; times assume 40% of each GPU's peak. Nothing was fetched or loaded."
    parts.append(f"<p><small>{said}</small></p>")
    return "".join(parts)


def _table(frame: pd.DataFrame) -> str:
    """A row a GPU."""
    heads = ("", "answers at once", *TIMES.values())
    rows = [(name, f"{row.batch}", *(_time(row[column]) for column in TIMES)) for name, row in frame.iterrows() if row.fits]
    rows += [(name, "does not fit", *[""] * len(TIMES)) for name, row in frame.iterrows() if not row.fits]
    head = "".join(f'<th scope="col">{words}</th>' for words in heads)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>' for name, *cells in rows
    )
    return f'<div class="scroll"><table class="plain"><tr>{head}</tr>{body}</table></div>'


def draw(model: str, bits: int = 16) -> ShownFigure:
    """What the model takes at work, beside what each GPU has to give."""
    found, names = budget(model, bits), list(GPUS)
    room = [USABLE * gpu.memory / 1e9 for gpu in GPUS.values()]
    need = found.peak() / 1e9
    figure, axis = new_figure(width=6.5, height=2.6)
    axis.barh(names, room, color=[BLUE if need <= some else PALE for some in room], height=0.6)
    axis.axvline(need, color=ORANGE, linewidth=1.5)
    axis.annotate(f" {_bytes(found.peak())}", (need, -0.75), color=ORANGE, fontsize=9, va="center")
    axis.set(xlabel="GB that can be used; blue: it fits", ylim=(len(names) - 0.4, -1.1))
    axis.set_title(f"{model}, {'32' if model in BUNDLED else bits} bits", parse_math=False)
    return figure


def own_model(model: str = BUNDLED[0]) -> Panel:
    """A panel to choose a model with: the bundled one, those whose sizes are known, or a folder (or a cached id) of one's own.

    It begins with `model`. A name that is typed takes the place of the chosen one until another is chosen.
    """
    names = [*BUNDLED, *CONFIGS]
    chosen, own = (model, "") if model in names else (names[0], model)
    controls: dict[str, widgets.Widget] = {
        "model": widgets.Dropdown(options=names, value=chosen, description="model"),
        "bits": widgets.Dropdown(options=BITS, value=16, description="weights"),
        "own": widgets.Text(own, placeholder="a folder, or an id in the hub's cache", description="own", continuous_update=False),
    }
    controls["model"].observe(lambda _: setattr(controls["own"], "value", ""), names="value")

    def show(model: str, bits: int, own: str) -> str:
        return compute(own.strip() or model, bits)

    def figure(model: str, bits: int, own: str) -> ShownFigure:
        return draw(own.strip() or model, bits)

    return Panel(controls, show, arranged(controls, wide=("own",)), draw=figure, overrides={"own": ("model",)})


def _count(found: Budget) -> str:
    n = sum(found.parameters.values())
    return f"{n / 1e9:.3g} billion" if n >= 1e9 else f"{n / 1e6:.3g} million"


def _bytes(n: float) -> str:
    """
    >>> _bytes(14.13e9), _bytes(9.6e6)
    ('14.1 GB', '9.6 MB')
    """
    return f"{n / 1e9:.3g} GB" if n >= 1e9 else f"{n / 1e6:.3g} MB"


def _time(seconds: float) -> str:
    """
    >>> _time(0.074), _time(82.9), _time(224.5)
    ('0.07 s', '83 s', '3.7 min')
    """
    return f"{seconds / 60:.1f} min" if seconds >= 100 else f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2f} s"
