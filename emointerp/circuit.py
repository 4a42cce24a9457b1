"""A circuit as a value: heads, neurons, and what reads what.

A list of heads with large effects is not yet an explanation. A `Circuit` says what was found, in which model and on which pairs; it
prints, compares, saves as JSON, draws itself, and becomes edits. It refuses another model than the one that it was found in, and
pairs that it was selected on. Whether it is a circuit at all is asked in `faithfulness`.
"""

import hashlib
import json
import math
import os
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import pandas as pd
from matplotlib.figure import Figure
from torch.nn import Module

from emointerp.directions import Directions
from emointerp.errors import InputError, ModelError, OutputError
from emointerp.files import whole
from emointerp.models import VLM, Prompt, to_image
from emointerp.models.anatomy import Anatomy
from emointerp.pairs import Pair, fingerprint
from emointerp.plots import COLORS, GRAY, INK, QUIET, new_figure
from emointerp.tracing import Activations, Edit, ScaleAttention, ScaleNeurons, collect, mean_ablation, patch
from emointerp.tracing.weights import asked, named_weights

FORMAT, VERSION = "emointerp circuit", 1
GENERAL, LOGITS = "general", "logits"
COLUMNS = {"visual": "V", "query": "Q", "last": "L"}
SAMPLED = 2**16  # values of each weight tensor that go into the revision
Donors = Mapping[str, Sequence[Activations]] | Sequence[Activations]
Key = tuple[str, int, str, int]  # span, layer, "head" or "neuron", number


def head_name(layer: int, head: int) -> str:
    """A head's name in circuits.

    >>> head_name(3, 5)
    'L3H5'
    """
    return f"L{layer}H{head}"


def neuron_name(layer: int, neuron: int) -> str:
    """A neuron's name in circuits."""
    return f"L{layer}N{neuron}"


@dataclass(frozen=True)
class Head:
    """A head of a circuit. `score`: its effect, a share of the metric's gap; `p`: corrected; `position`: its span."""

    layer: int
    head: int
    score: float
    p: float | None = None
    emotion: str = GENERAL
    position: str = "last"
    kind: ClassVar[str] = "head"

    def __post_init__(self) -> None:
        _check_part(self, self.head)

    @property
    def name(self) -> str:
        """Such as "L3H5"."""
        return head_name(self.layer, self.head)

    @property
    def key(self) -> Key:
        """Where it is: span, layer, "head", number."""
        return self.position, self.layer, "head", self.head


@dataclass(frozen=True)
class Neuron:
    """A neuron of a circuit; `kind` is "trigger" (upstream, at a source token) or "state" (at the last token).

    `score`: its effect in the metric's own unit, nats for log mass.
    """

    layer: int
    neuron: int
    score: float
    p: float | None = None
    emotion: str = GENERAL
    position: str = "last"
    kind: str = "state"

    def __post_init__(self) -> None:
        _check_part(self, self.neuron)

    @property
    def name(self) -> str:
        """Such as "L3N117"."""
        return neuron_name(self.layer, self.neuron)

    @property
    def key(self) -> Key:
        """Where it is: span, layer, "neuron", number."""
        return self.position, self.layer, "neuron", self.neuron


Part = Head | Neuron


@dataclass(frozen=True)
class Edge:
    """What `target` gets from `source`, by their names (or "V", "Q", "L", "logits"), in units of the circuit's metric."""

    source: str
    target: str
    weight: float


def _check_part(part: Part, number: Any) -> None:
    said = f"{type(part).__name__}(layer={part.layer!r}, {number!r}, score={part.score!r}, p={part.p!r})"
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (part.layer, number)):
        raise InputError(f"{said}: layer and number are whole numbers from 0 up.")
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in (part.score, part.p or 0.0)):
        raise InputError(f"{said}: the score is a finite number, and so is p, or None.")
    if part.position not in COLUMNS:
        raise InputError(f"{said}: its position is {part.position!r}; expected {', '.join(COLUMNS)}.")


def to_logits(parts: Iterable[Part]) -> list[Edge]:
    """An edge from each part to the logits, as wide as its score."""
    return [Edge(part.name, LOGITS, part.score) for part in parts]


def revision(vlm: VLM) -> str:
    """A sha256 of the model's weights: name, shape and some 65,536 to 131,000 evenly spaced values of each tensor, as float32.

    Training changes it; the same weights in float16 and float32 have one. Half a second for the bundled model; of a 7B model it
    reads about 0.5% of the weights in a second or two. It is kept until a weight is replaced or changed in place (changes through
    `.data` go unnoticed); a change of single numbers in a large matrix may go unseen.
    """
    if vlm.remote:
        if vlm.model not in _REVISIONS:  # one request a model in hand
            _REVISIONS[vlm.model] = (), asked(vlm, _hashed)
        return _REVISIONS[vlm.model][1]
    state = tuple((id(p), p.dtype, -1 if p.is_inference() else p._version) for p in vlm.model.parameters())
    if _REVISIONS.get(vlm.model, (None, ""))[0] != state:
        _REVISIONS[vlm.model] = state, _hashed(vlm.model)
    return _REVISIONS[vlm.model][1]


_REVISIONS: MutableMapping[Any, tuple[tuple, str]] = WeakKeyDictionary()


def _hashed(model: Module) -> str:
    digest = hashlib.sha256()
    for name, weights in named_weights(model):
        if weights.is_meta:
            raise ModelError(f"{name} holds no numbers (meta device); load the whole model into memory.")
        values = weights.detach().flatten()[:: max(1, weights.numel() // SAMPLED)].float().cpu()
        digest.update(f"{name} {tuple(weights.shape)}".encode() + values.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True, repr=False)
class Circuit:
    """What was found in a model, and on what.

    `revision` is the model's (`revision(vlm)`); `metric` names what the scores measure; `splits`, `pairs` and `events` are those
    that the parts were selected on, so that the same are refused for testing; `directions` says where S came from.

    >>> circuit = Circuit("tiny", "abc", (Head(3, 5, 0.4, 0.01, "fear"),), edges=(Edge("V", "L3H5", 0.3),))
    >>> print(circuit)
    Circuit of 'tiny' (revision abc): 1 heads, 0 neurons, 1 edges
      L3H5    head     score +0.400  p 0.0100  fear
    """

    model: str
    revision: str
    heads: Sequence[Head] = ()
    neurons: Sequence[Neuron] = ()
    edges: Sequence[Edge] = ()
    metric: str = ""
    splits: Sequence[str] = ()
    pairs: Sequence[str] = ()
    events: Sequence[str] = ()
    directions: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("heads", "neurons", "edges", "splits", "pairs", "events"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.parts:
            raise InputError("The circuit is empty: it has no heads and no neurons. Give one or more.")
        names = [part.name for part in self.parts]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"The circuit names {', '.join(twice)} more than once; each part has one place.")
        if strange := {e for edge in self.edges for e in (edge.source, edge.target)} - {*names, *COLUMNS.values(), LOGITS}:
            raise InputError(f"Edges name {', '.join(sorted(strange))}, which are no parts of this circuit.")

    @classmethod
    def of(
        cls,
        vlm: VLM,
        heads: Iterable[Head | Sequence] = (),
        neurons: Iterable[Neuron] = (),
        edges: Iterable[Edge] = (),
        *,
        pairs: Sequence[Pair],
        metric: str,
        directions: Directions | None = None,
    ) -> "Circuit":
        """The circuit found in a model on `pairs`; heads may come as (layer, head, score) or (layer, head, score, p)."""
        heads = tuple(head if isinstance(head, Head) else Head(*head) for head in heads)
        seen = [tuple(sorted({f(pair) for pair in pairs} - {""})) for f in (_split, _name, _event)]
        origin = {} if directions is None else dict(directions.about)
        circuit = cls(vlm.name, revision(vlm), heads, tuple(neurons), tuple(edges), metric, *seen, origin)
        circuit._check_sizes(vlm.anatomy)
        return circuit

    @property
    def parts(self) -> tuple[Part, ...]:
        """Heads, then neurons."""
        return (*self.heads, *self.neurons)

    def __str__(self) -> str:
        size = f"{len(self.heads)} heads, {len(self.neurons)} neurons, {len(self.edges)} edges"
        lines = [f"Circuit of {self.model!r} (revision {self.revision[:12]}): {size}"]
        if self.metric:
            lines.append(f"  found by {self.metric} on {', '.join(self.splits) or 'pairs of no split'}, {len(self.pairs)} pairs")
        for part in self.parts:
            p = "" if part.p is None else f"p {part.p:.4f}"
            lines.append(f"  {part.name:<7} {part.kind:<8} score {part.score:+.3f}  {p:<8}  {part.emotion}".rstrip())
        return "\n".join(lines)

    __repr__ = __str__

    def to_frame(self) -> pd.DataFrame:
        """A row a part: name, kind, layer, score, p, emotion, position."""
        columns = ["name", "kind", "layer", "score", "p", "emotion", "position"]
        return pd.DataFrame([[getattr(part, column) for column in columns] for part in self.parts], columns=columns)

    def save(self, file: str | Path) -> None:
        """Write JSON; OutputError where that cannot be done."""
        text = json.dumps({"format": FORMAT, "version": VERSION} | asdict(self), indent=1) + "\n"
        try:
            with whole(Path(file)) as part:
                part.write_text(text, encoding="utf-8")
        except (OSError, ValueError) as error:
            raise OutputError(
                f"The circuit cannot be written to {file}: {error}. Choose a place that can be written to."
            ) from error

    @classmethod
    def load(cls, file: str | Path) -> "Circuit":
        """Read what `save` wrote; InputError says what is wrong with the file."""
        if not os.path.isfile(file):
            raise InputError(f"There is no file {file}; expected one that Circuit.save wrote.")
        try:
            held = json.loads(Path(file).read_text(encoding="utf-8"))
            if not isinstance(held, dict) or (held.pop("format", None), held.pop("version", None)) != (FORMAT, VERSION):
                raise ValueError(f"not marked as {FORMAT!r}, version {VERSION}")
            kinds = {"heads": Head, "neurons": Neuron, "edges": Edge}
            return cls(**held | {name: [kind(**row) for row in held[name]] for name, kind in kinds.items()})
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(f"{file} holds no circuit ({error}); expected a file that Circuit.save wrote.") from None

    def check(self, vlm: VLM) -> None:
        """InputError if this circuit was found in another model."""
        if (here := revision(vlm)) != self.revision:
            found = f"This circuit was found in {self.model!r} (revision {self.revision[:12]})"
            raise InputError(f"{found}, and the model is {vlm.name!r} (revision {here[:12]}): other weights, other heads.")
        self._check_sizes(vlm.anatomy)

    def _check_sizes(self, anatomy: Anatomy) -> None:
        outside = [
            part.name
            for part in self.parts
            if part.layer >= anatomy.n_layers or part.key[3] >= (anatomy.n_heads if part.kind == "head" else anatomy.d_mlp)
        ]
        if outside:
            held = f"{anatomy.n_layers} layers of {anatomy.n_heads} heads and {anatomy.d_mlp} neurons"
            raise InputError(f"There is no {', '.join(outside)} in this model of {held}; they count from 0.")

    def check_apart(self, pairs: Sequence[Pair]) -> None:
        """InputError if pairs overlap with those that the circuit was selected on: by split, name or event.

        Where the selection knew one event only (`folder_pairs`), events tell nothing and are not compared.
        """
        kinds = [("splits", self.splits, _split), ("pairs", self.pairs, _name)]
        kinds += [("events", self.events, _event)] if len(self.events) > 1 else []
        both = {what: sorted({f(pair) for pair in pairs} & set(had)) for what, had, f in kinds}
        said = [f"{what} {'; '.join(some[:4])}{' …' * (len(some) > 4)}" for what, some in both.items() if some]
        if said:
            raise InputError(f"The circuit was selected on some of these pairs: {', '.join(said)}. Test it on another split.")

    # as edits

    def ablate(self, donors: Donors) -> list[Edit]:
        """Mean-ablation of all parts; `donors` by span as `collect_donors` gives them, or a list where there is one span only."""
        return Ablation(self._by_span(donors)).edits({part.key for part in self.parts})

    def restore(self, donor: Activations, prompt: Prompt) -> list[Edit]:
        """All parts set to a donor's activations, which hold the same places of an aligned prompt."""
        edits = [patch(donor, h.layer, head=h.head, positions=prompt.span(h.position)) for h in self.heads]
        grouped = _grouped(neuron.key for neuron in self.neurons).items()
        return edits + [patch(donor, layer, neurons=some, positions=prompt.span(span)) for (span, layer), some in grouped]

    def scale(self, heads: float = 1.0, neurons: float = 1.0) -> list[Edit]:
        """Attention of the heads to the picture times `heads`, activations of the neurons times `neurons`.

        What is at the last token goes on through the answer.
        """
        edits: list[Edit] = []
        for (span, layer), some in _grouped(h.key for h in self.heads).items():
            edits += [ScaleAttention(layer, heads, _onward(span), "visual", some)] if heads != 1 else []
        for (span, layer), some in _grouped(n.key for n in self.neurons).items():
            edits += [ScaleNeurons(layer, some, neurons, _onward(span))] if neurons != 1 else []
        return edits

    def _by_span(self, donors: Donors) -> Mapping[str, Sequence[Activations]]:
        spans = sorted({part.position for part in self.parts})
        if not isinstance(donors, Mapping):
            if len(spans) > 1:
                raise InputError(f"This circuit has parts at {' and '.join(spans)}; give donors by span: collect_donors.")
            donors = {spans[0]: donors}
        if missing := [span for span in spans if span not in donors]:
            raise InputError(
                f"There are no donors for {', '.join(missing)}; collect_donors(vlm, prompts, {tuple(spans)}) gives some."
            )
        return donors

    def plot(self) -> Figure:
        """Layers from bottom to top, columns V, Q and L. Circles are heads, squares state neurons, triangles trigger neurons.

        Edges are as wide as their weights beside the widest from the same kind of node, since heads' scores are shares of a gap and
        neurons' are not; negative ones are dashed.
        """
        spots, top = self._spots()
        figure, axis = new_figure(width=9.5, height=1.8 + 0.62 * (top + 2))
        kinds, widest = {part.name: part.kind for part in self.parts}, defaultdict(float)
        for edge in self.edges:
            widest[kinds.get(edge.source)] = max(widest[kinds.get(edge.source)], abs(edge.weight))
        for edge in self.edges:
            (x0, y0), (x1, y1) = spots[edge.source], spots[edge.target]
            share = abs(edge.weight) / (widest[kinds.get(edge.source)] or 1.0)
            style = {"linestyle": "-" if edge.weight >= 0 else "--", "linewidth": 0.5 + 3 * share, "alpha": 0.1 + 0.65 * share}
            axis.plot([x0, x1], [y0, y1], color=GRAY, zorder=1, solid_capstyle="round", **style)
        for part in self.parts:
            _draw_part(axis, part, *spots[part.name])
        for name in (*COLUMNS.values(), LOGITS):
            axis.text(*spots[name], name, ha="center", va="center", fontweight="bold", bbox=_BOX, zorder=4)
        axis.set(ylim=(-1.6, top + 1.9), ylabel="layer", yticks=range(top + 1), xticks=[], title=f"Circuit of {self.model}")
        axis.spines["bottom"].set_visible(False)
        figure.legend(handles=_legend(self.parts), loc="outside right upper", fontsize=9, frameon=False)
        return figure

    def _spots(self) -> tuple[dict[str, tuple[float, float]], int]:
        """Where each node stands in the drawing, and the highest layer; in each column heads stand left of neurons."""
        rows = defaultdict(list)
        for part in sorted(self.parts, key=lambda part: part.key):
            rows[part.position, part.key[2], part.layer].append(part.name)
        spots, left = {}, 0.0
        for span, column in COLUMNS.items():
            start = left
            for kind in ("head", "neuron"):
                mine = {layer: some for (at, what, layer), some in rows.items() if (at, what) == (span, kind)}
                wide = 0.62 * max(map(len, mine.values()), default=0) + 0.5 * bool(mine)
                for layer, some in mine.items():
                    first = left + wide / 2 - 0.31 * (len(some) - 1)
                    spots |= {name: (first + 0.62 * i, layer + 0.5 * (kind == "neuron")) for i, name in enumerate(some)}
                left += wide
            spots[column] = ((start + left) / 2, -1.1)
            left += 0.8
        top = max(part.layer for part in self.parts)
        return spots | {LOGITS: (spots["L"][0], top + 1.4)}, top


_BOX = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": QUIET}
_MARKERS = {"head": "o", "state": "s", "trigger": "^"}
_LABELS = {"head": "head, its number", "state": "state neuron, its number", "trigger": "trigger neuron, its number"}
_split, _event = (lambda p: p.split), (lambda p: p.event)


def _name(pair: Pair) -> str:
    """What a pair is known by: its name, or, where it has none, hashes of its emotional picture and its event."""
    return pair.name or f"{fingerprint(to_image(pair.emotional))[:16]} {zlib.crc32(pair.event.encode()):08x}"


def _color(emotion: str) -> str:
    return COLORS.get(emotion, "#3c4048")


def _draw_part(axis: Any, part: Part, x: float, y: float) -> None:
    large = part.kind == "head"
    axis.plot(x, y, _MARKERS.get(part.kind, "D"), color=_color(part.emotion), markersize=15 if large else 9, zorder=2)
    where = {"xytext": (0, 0) if large else (0, -8.5), "textcoords": "offset points", "ha": "center", "zorder": 3}
    axis.annotate(part.key[3], (x, y), fontsize=8 if large else 6, color="white" if large else INK, va="center", **where)


def _legend(parts: Sequence[Part]) -> list[Any]:
    from matplotlib.lines import Line2D

    style = {"linestyle": "", "markersize": 8}
    kinds = [
        Line2D([], [], marker=_MARKERS.get(k, "D"), color=QUIET, label=_LABELS.get(k, k), **style)
        for k in {p.kind: 0 for p in parts}
    ]
    emotions = {part.emotion: 0 for part in parts}
    return kinds + [Line2D([], [], marker="o", color=_color(e), label=e, **style) for e in emotions]


def _onward(span: str) -> tuple[str, ...]:
    return ("last", "answer") if span == "last" else (span,)


def _grouped(keys: Iterable[Key]) -> dict[tuple[str, int], list[int]]:
    """Numbers by span and layer."""
    groups = defaultdict(list)
    for span, layer, _, number in sorted(keys):
        groups[span, layer].append(number)
    return groups


# ablation


def collect_donors(vlm: VLM, prompts: Sequence[Prompt], spans: Sequence[str] = ("last",)) -> dict[str, list[Activations]]:
    """Heads and neurons of prompts at each span, whose means take the place of what is ablated.

    Give prompts of all emotions alike: then their mean knows nothing of which one a picture shows.

    >>> import emointerp as ei
    >>> vlm, pairs = ei.load(), ei.world_pairs("test", 2)
    >>> donors = ei.circuit.collect_donors(vlm, [vlm.prompt(*pair.plus, answer="I felt") for pair in pairs])
    >>> {span: [acts.heads.shape for acts in some] for span, some in donors.items()}
    {'last': [torch.Size([8, 8, 1, 24]), torch.Size([8, 8, 1, 24])]}
    """
    starts = range(0, len(prompts), 8)
    return {
        span: [a for i in starts for a in collect(vlm, prompts[i : i + 8], ["heads", "neurons"], positions=span)] for span in spans
    }


@dataclass(frozen=True, eq=False)
class Ablation:
    """Edits that mean-ablate heads and neurons, by span; each head's is made once, since many sets share it."""

    donors: Mapping[str, Sequence[Activations]]
    heads: dict[Key, Edit] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if wrong := [n for acts in self.donors.get("last", ()) if (n := len(acts.positions)) != 1]:
            raise InputError(
                f"Donors for the last token hold {wrong[0]} positions; collect them there: collect_donors(vlm, prompts), or "
                "collect(…, positions='last')."
            )

    def edits(self, keys: Iterable[Key]) -> list[Edit]:
        """Edits that ablate all `keys`."""
        keys = set(keys)
        heads = [self._head(key) for key in sorted(keys) if key[2] == "head"]
        neurons = _grouped(key for key in keys if key[2] == "neuron").items()
        return heads + [mean_ablation(self.donors[span], layer, neurons=n, positions=span) for (span, layer), n in neurons]

    def _head(self, key: Key) -> Edit:
        if key not in self.heads:
            span, layer, _, head = key
            self.heads[key] = mean_ablation(self.donors[span], layer, head=head, positions=span)
        return self.heads[key]
