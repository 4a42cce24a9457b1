"""What is amplified, and how strongly, as a value that makes edits: VEE, ENA, and both."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, SupportsFloat

import numpy as np
import pandas as pd

from emointerp.circuit import GENERAL, Circuit, head_name, neuron_name, revision
from emointerp.errors import InputError
from emointerp.given import expected, number, texts, whole_number
from emointerp.models import VLM, Prompt
from emointerp.models.prompts import as_prompts
from emointerp.models.vlm import check_model
from emointerp.tracing import Edit, ScaleAttention, ScaleNeurons, collect
from emointerp.tracing.edits import FROM_LAST
from emointerp.tracing.verbs import checked_layers

Place = tuple[int, int]  # layer, and head or neuron
Places = Sequence[Any]  # of such; whether they are is said in words (`_checked_places`)
FORMAT, VERSION = "emointerp veena", 1
GIVE = "a Veena: Veena(upstream=[(5, 2)]), or fit(…).veena"
PARTS, FORMS, SPANS = ("vee", "ena", "both"), ("scores", "weights"), ("query", "last")


@dataclass(frozen=True, repr=False)
class Veena:
    """Which heads and neurons are amplified, and how strongly; places are (layer, head) or (layer, neuron).

    - `upstream`: attention from the prompt's `prefill_at` to the picture times `beta`. `prefill_at` is the query; with "last", the
      last token too.
    - `downstream`: attention from the last prompt token and those of the answer to the picture times `beta_decode` (None: `beta`).
    - `neurons`: activations times `gamma`, from the last prompt token on.
    - `form`: "scores" adds `log beta` before the softmax, which equals scaling after it and normalising again; "weights" scales
      after the softmax and leaves it so.

    `l_emo` divides upstream from downstream, and is where `adaptive` reads. `model` and `revision` say where the parts were found;
    where they are empty, only sizes are checked.
    """

    upstream: Places = ()
    downstream: Places = ()
    neurons: Places = ()
    beta: SupportsFloat = 1.5
    beta_decode: SupportsFloat | None = None
    gamma: SupportsFloat = 1.4
    form: str = "scores"
    prefill_at: Sequence[str] = ("query",)
    l_emo: int | None = None
    model: str = ""
    revision: str = ""
    lists: ClassVar[tuple[str, ...]] = ("upstream", "downstream", "neurons")

    def __post_init__(self) -> None:
        for name in self.lists:
            object.__setattr__(self, name, _checked_places(name, getattr(self, name)))
        decode = self.beta if self.beta_decode is None else self.beta_decode
        for name, value in (("beta", self.beta), ("beta_decode", decode), ("gamma", self.gamma)):
            object.__setattr__(self, name, checked_strength(name, value))
        spans = tuple(texts(self.prefill_at, "spans of prefill_at", some=False))
        object.__setattr__(self, "prefill_at", spans)
        if not (self.upstream or self.downstream or self.neurons):
            raise InputError("This VEENA is empty: it has no heads and no neurons. Give some, or a circuit that has.")
        if self.l_emo is not None:
            object.__setattr__(self, "l_emo", checked_layer(self.l_emo))
        if self.form not in FORMS:
            raise InputError(f"form is {self.form!r}; expected {' or '.join(map(repr, FORMS))}.")
        if not spans or set(spans) - set(SPANS):
            raise InputError(f"prefill_at is {self.prefill_at!r}; expected some of {', '.join(SPANS)}.")
        if "last" in spans and (twice := set(self.upstream) & set(self.downstream)):
            raise InputError(f"{head_name(*min(twice))} would be scaled twice at the last token; keep it in one of the two lists.")

    @classmethod
    def of(cls, vlm: VLM, heads: Places = (), neurons: Places = (), *, l_emo: int, **options: Any) -> "Veena":
        """Of plain lists: heads up to `l_emo` are upstream, later ones downstream; `options` are the other fields."""
        check_model(vlm)
        heads, l_emo = _checked_places("heads", heads), checked_layers(vlm, l_emo)[0]
        value = cls(*_sides(heads, l_emo), neurons, l_emo=l_emo, model=vlm.name, revision=revision(vlm), **options)
        value._check_sizes(vlm)
        return value

    @classmethod
    def from_circuit(
        cls, circuit: Circuit, l_emo: int, *, parts: str = "both", emotions: str | Iterable[str] | None = None, **options: Any
    ) -> "Veena":
        """The circuit's heads and state neurons; `parts` as in `only`, `options` are the other fields (beta, gamma, …).

        All emotions' parts, or those of some `emotions` and the general ones: chosen by the label, that is an oracle.
        """
        expected(circuit, Circuit, "a circuit: find_circuit(vlm, pairs), or Circuit.load(file)")
        l_emo, known = checked_layer(l_emo), {part.emotion for part in circuit.parts} - {GENERAL}
        wanted = known if emotions is None else set(texts(emotions, "emotions", some=False))
        if strange := wanted - known:
            raise InputError(f"No part of the circuit serves {', '.join(sorted(strange))}; there are {', '.join(sorted(known))}.")
        mine = [part for part in circuit.parts if part.emotion in {*wanted, GENERAL}]
        heads = [(part.layer, part.head) for part in mine if part.kind == "head"]
        neurons = [(part.layer, part.neuron) for part in mine if part.kind == "state"]
        origin = {"l_emo": l_emo, "model": circuit.model, "revision": circuit.revision}
        return cls(*_sides(heads, l_emo), neurons, **origin, **options).only(parts)

    # as edits

    def edits(self, parts: str = "both") -> list[Edit]:
        """The edits, those that change nothing (a strength of 1) left out."""
        value, found = self.only(parts), []
        attention = ((self.upstream, value.beta, self.prefill_at), (self.downstream, value.beta_decode, FROM_LAST))
        for heads, factor, where in attention:
            rows = _by_layer(heads).items() if factor != 1 else ()
            found += [ScaleAttention(layer, factor, where, "visual", some, self.form == "scores") for layer, some in rows]
        rows = _by_layer(self.neurons).items() if value.gamma != 1 else ()
        return found + [ScaleNeurons(layer, some, value.gamma) for layer, some in rows]

    def only(self, parts: str) -> "Veena":
        """The same with the strengths of the other part at 1: "vee", "ena", or "both", which leaves all as it is."""
        if parts not in PARTS:
            raise InputError(f"parts is {parts!r}; expected {', '.join(map(repr, PARTS))}.")
        off = {"vee": {"gamma": 1.0}, "ena": {"beta": 1.0, "beta_decode": 1.0}}.get(parts, {})
        return replace(self, **off)

    def eased(self, share: float) -> "Veena":
        """Every strength to the power of `share`, so `share` times the added score `log beta`: 1 leaves it, 0 makes it nothing."""
        return replace(self, **{name: getattr(self, name) ** share for name in ("beta", "beta_decode", "gamma")})

    def check(self, vlm: VLM) -> None:
        """InputError if the parts were found in another model, or if this one has no place for them."""
        check_model(vlm)
        if self.revision and (here := revision(vlm)) != self.revision:
            found = f"This VEENA was made for {self.model!r} (revision {self.revision[:12]})"
            raise InputError(f"{found}, and the model is {vlm.name!r} (revision {here[:12]}): other weights, other heads.")
        self._check_sizes(vlm)

    def _check_sizes(self, vlm: VLM) -> None:
        a = vlm.anatomy
        outside = [head_name(*at) for at in self.upstream + self.downstream if at[0] >= a.n_layers or at[1] >= a.n_heads]
        outside += [neuron_name(*at) for at in self.neurons if at[0] >= a.n_layers or at[1] >= a.d_mlp]
        if outside:
            held = f"{a.n_layers} layers of {a.n_heads} heads and {a.d_mlp} neurons"
            raise InputError(f"There is no {', '.join(outside)} in this model of {held}; they count from 0.")

    # to look at and to keep

    def to_frame(self) -> pd.DataFrame:
        """A row a part: name, role, layer, factor, and the tokens where it acts (`at`)."""
        roles = {"upstream": (self.beta, self.prefill_at), "downstream": (self.beta_decode, FROM_LAST)}
        roles["neurons"] = (self.gamma, FROM_LAST)
        rows = [
            ((neuron_name if role == "neurons" else head_name)(*at), role, at[0], factor, " ".join(where))
            for role, (factor, where) in roles.items()
            for at in getattr(self, role)
        ]
        return pd.DataFrame(rows, columns=["name", "role", "layer", "factor", "at"])

    def __str__(self) -> str:
        origin = f" of {self.model!r} (revision {self.revision[:12]})" if self.model else ""
        lines = [f"VEENA{origin}, scaled {'before' if self.form == 'scores' else 'after'} the softmax"]
        for (role, factor, where), some in self.to_frame().groupby(["role", "factor", "at"], sort=False):
            lines.append(f"  {role:<10} x {factor:<5.3g} at {where:<11}  {' '.join(some.name)}")
        return "\n".join(lines)

    __repr__ = __str__

    def save(self, file: str | Path) -> None:
        """Write JSON."""
        Path(file).write_text(json.dumps({"format": FORMAT, "version": VERSION} | asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, file: str | Path) -> "Veena":
        """Read what `save` wrote; InputError says what is wrong with the file."""
        if not Path(file).is_file():
            raise InputError(f"There is no file {file}; expected one that Veena.save wrote.")
        try:
            held = json.loads(Path(file).read_text())
            if not isinstance(held, dict) or (held.pop("format", None), held.pop("version", None)) != (FORMAT, VERSION):
                raise ValueError(f"not marked as {FORMAT!r}, version {VERSION}")
            return cls(**held)
        except (ValueError, TypeError) as error:
            raise InputError(f"{file} holds no VEENA ({error}); expected a file that Veena.save wrote.") from None


def _checked_places(name: str, given: Places) -> tuple[Place, ...]:
    expected(given, Iterable, f"a list of (layer, number) for {name}, such as [(5, 2)]")
    listed = [tuple(at) if isinstance(at, Iterable) and not isinstance(at, str) else (at,) for at in given]
    for at in listed:
        if len(at) != 2 or not all(isinstance(n, Integral) and not isinstance(n, bool) and n >= 0 for n in at):
            raise InputError(f"{name} holds {at!r}; expected pairs of whole numbers from 0 up, such as (5, 2).")
    places = tuple((int(layer), int(number)) for layer, number in listed)
    if twice := sorted({at for at in places if places.count(at) > 1}):
        raise InputError(f"{name} names {', '.join(map(str, twice))} more than once.")
    return places


def checked_strength(name: str, value: Any) -> float:
    """A finite number above 0."""
    return number(value, name, above=0, why="; 1 changes nothing")


def checked_layer(l_emo: Any) -> int:
    """The number of a layer, from 0 up."""
    return whole_number(l_emo, "l_emo", 0)


def _sides(heads: Iterable[Place], l_emo: int) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    """Upstream and downstream heads."""
    heads = tuple(heads)
    return tuple(at for at in heads if at[0] <= l_emo), tuple(at for at in heads if at[0] > l_emo)


def _by_layer(places: Iterable[Place]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for layer, unit in sorted(places):
        groups[layer].append(unit)
    return groups


def signs(vlm: VLM, prompts: Prompt | Iterable[Prompt], value: Veena) -> pd.DataFrame:
    """The neurons' activations m at the last prompt token: layer, neuron, mean, and the share of prompts in which m is `positive`.

    ENA makes larger what a neuron writes, in the sense that the sign of m gives it: scaling helps where that sense is the wanted
    one, and does harm where m is negative beside a picture whose emotion the value vector names.
    """
    expected(value, Veena, GIVE).check(vlm)
    acts = [collect(vlm, prompt, ["neurons"], positions="last") for prompt in as_prompts(prompts)]
    m = {at: np.array([float(one.neurons[at[0], 0, at[1]]) for one in acts]) for at in value.neurons}
    rows = [(*at, x.mean(), (x > 0).mean()) for at, x in m.items()]
    return pd.DataFrame(rows, columns=["layer", "neuron", "mean", "positive"])
