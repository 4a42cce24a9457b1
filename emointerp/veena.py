"""Chapter 07: VEENA. A circuit is known; can the model be mended there, without training it?

- VEE, visual emotion enhancement: `beta` times as much attention to the picture. Upstream heads (layer <= l_emo) from the query
  tokens Q, while the prompt is read; downstream heads (layer > l_emo) from the current token, while the answer is told.
- ENA, emotional neuron amplification: `m[l, n] <- gamma * m[l, n]` for state neurons, from the last prompt token on.
- VEENA is both (arXiv 2605.21980). No label is seen: heads and neurons are the union over emotions.

The current token of the answer's first step is the prompt's last token, so downstream heads and neurons act there already.

A `Veena` is a value; `edits()` makes it a list of edits as any other. `on` leaves it on, for everything that generates:

>>> value = Veena(upstream=[(2, 0)], downstream=[(5, 2), (5, 7)], neurons=[(6, 117)], beta=2.0, gamma=1.4)
>>> value.edits("vee")[1]
ScaleAttention(layer=5, factor=2.0, query=('last', 'answer'), key=('visual',), heads=(2, 7), renormalise=True)
>>> with on(vlm, value):                                                                      # doctest: +SKIP
...     vlm.generate(prompts)

One strength for all pictures is a guess. `adaptive` strength follows the model's own confidence (`confidence`), and `fit` chooses
circuit and strengths on two splits that the test never sees.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from emointerp.circuit import GENERAL, Circuit, head_name, neuron_name, revision
from emointerp.emotions import NEUTRAL, score
from emointerp.emotions.wheels import WheelsLike
from emointerp.errors import InputError
from emointerp.heads import head_map
from emointerp.lens import Words, emotion_tokens, lens_logits
from emointerp.models import VLM, Prompt
from emointerp.models.anatomy import part
from emointerp.models.prompts import visual_positions
from emointerp.neurons import state_neurons
from emointerp.pairs import Pair, check_disjoint
from emointerp.plots import band, new_figure
from emointerp.statistics import mean_interval
from emointerp.tracing import Edit, ScaleAttention, ScaleNeurons, collect, perplexity, sweep
from emointerp.tracing.edits import FROM_LAST
from emointerp.tracing.interleave import traced, writing
from emointerp.tracing.plan import Plan, Rows, plan_answer, plan_prompt
from emointerp.tracing.verbs import checked_layers

Place = tuple[int, int]  # layer, and head or neuron
Places = Sequence[Any]  # of such; whether they are is said in words (`_checked_places`)
FORMAT, VERSION = "emointerp veena", 1
PARTS, FORMS, SPANS = ("vee", "ena", "both"), ("scores", "weights"), ("query", "last")
PROMPT, STEP = "prompt", "step"
BEGUN = "I felt"  # how an answer begins, after which an emotion word is due


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
    beta: Real = 1.5
    beta_decode: Real | None = None
    gamma: Real = 1.4
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
            object.__setattr__(self, name, _checked_strength(name, value))
        spans = (self.prefill_at,) if isinstance(self.prefill_at, str) else tuple(self.prefill_at)
        object.__setattr__(self, "prefill_at", spans)
        if not (self.upstream or self.downstream or self.neurons):
            raise InputError("This VEENA is empty: it has no heads and no neurons. Give some, or a circuit that has.")
        if self.l_emo is not None and (not isinstance(self.l_emo, Integral) or self.l_emo < 0):
            raise InputError(f"l_emo is {self.l_emo!r}; expected the number of a layer, from 0 up, or None.")
        if self.form not in FORMS:
            raise InputError(f"form is {self.form!r}; expected {' or '.join(map(repr, FORMS))}.")
        if not spans or set(spans) - set(SPANS):
            raise InputError(f"prefill_at is {self.prefill_at!r}; expected some of {', '.join(SPANS)}.")
        if "last" in spans and (twice := set(self.upstream) & set(self.downstream)):
            raise InputError(f"{head_name(*min(twice))} would be scaled twice at the last token; keep it in one of the two lists.")

    @classmethod
    def of(cls, vlm: VLM, heads: Places = (), neurons: Places = (), *, l_emo: int, **options: Any) -> "Veena":
        """Of plain lists: heads up to `l_emo` are upstream, later ones downstream; `options` are the other fields."""
        heads, l_emo = _checked_places("heads", heads), checked_layers(vlm, l_emo)[0]
        value = cls(*_sides(heads, l_emo), neurons, l_emo=l_emo, model=vlm.name, revision=revision(vlm), **options)
        value._check_sizes(vlm)
        return value

    @classmethod
    def from_circuit(
        cls, circuit: Circuit, l_emo: int, *, parts: str = "both", emotions: Iterable[str] | None = None, **options: Any
    ) -> "Veena":
        """The circuit's heads and state neurons; `parts` as in `only`, `options` are the other fields (beta, gamma, …).

        All emotions' parts, or those of some `emotions` and the general ones: chosen by the label, that is an oracle.
        """
        known = {part.emotion for part in circuit.parts} - {GENERAL}
        wanted = known if emotions is None else set(emotions)
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
    listed = [tuple(at) if isinstance(at, Iterable) and not isinstance(at, str) else (at,) for at in given]
    for at in listed:
        if len(at) != 2 or not all(isinstance(n, Integral) and not isinstance(n, bool) and n >= 0 for n in at):
            raise InputError(f"{name} holds {at!r}; expected pairs of whole numbers from 0 up, such as (5, 2).")
    places = tuple((int(layer), int(number)) for layer, number in listed)
    if twice := sorted({at for at in places if places.count(at) > 1}):
        raise InputError(f"{name} names {', '.join(map(str, twice))} more than once.")
    return places


def _checked_strength(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value <= 0:
        raise InputError(f"{name} is {value!r}; expected a finite number above 0; 1 changes nothing.")
    return float(value)


def _sides(heads: Iterable[Place], l_emo: int) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    """Upstream and downstream heads."""
    heads = tuple(heads)
    return tuple(at for at in heads if at[0] <= l_emo), tuple(at for at in heads if at[0] > l_emo)


def _by_layer(places: Iterable[Place]) -> dict[int, list[int]]:
    groups: dict[int, list[int]] = defaultdict(list)
    for layer, number in sorted(places):
        groups[layer].append(number)
    return groups


def signs(vlm: VLM, prompts: Sequence[Prompt], value: Veena) -> pd.DataFrame:
    """The neurons' activations m at the last prompt token: layer, neuron, mean, and the share of prompts in which m is `positive`.

    ENA makes larger what a neuron writes, in the sense that the sign of m gives it: scaling helps where that sense is the wanted
    one, and does harm where m is negative beside a picture whose emotion the value vector names.
    """
    value.check(vlm)
    acts = [collect(vlm, prompt, ["neurons"], positions="last") for prompt in prompts]
    m = {at: np.array([float(one.neurons[at[0], 0, at[1]]) for one in acts]) for at in value.neurons}
    rows = [(*at, x.mean(), (x > 0).mean()) for at, x in m.items()]
    return pd.DataFrame(rows, columns=["layer", "neuron", "mean", "positive"])


# adaptive strength


def confidence(vlm: VLM, prompts: Sequence[Prompt], layer: int, answer: str = BEGUN, words: Words = None) -> pd.DataFrame:
    """What the unedited model makes of each prompt after a layer, and the `share` of the full strength that this asks for.

    A row a prompt, numbers from 0 to 1: `mass`, the lens's probability of all emotion words; `sure`, how far one emotion stands out
    among them, `1 - H(p) / log(number of emotions)`, with p their masses brought to a sum of 1; `share = mass * (1 - sure)`.

    So the strength grows with the mass and falls with the confidence: most is done where an emotion is due and undecided, nothing
    where one is decided, and little beside a neutral picture. Entropy alone would do the contrary there: no emotion stands out
    where there is none (bundled model, layer 3, tuning split, medians: `sure` 0.25 in conflict, 0.08 for neutral twins; `mass` 0.78
    and 0.13).

    It is read at the end of `answer`, which begins an answer: at the end of a question no emotion word is due (masses of 0.003),
    and how these are divided tells nothing. "": at the prompt's own last token, for prompts that have begun their answer.
    """
    if not prompts:
        raise InputError("There are no prompts; make one with vlm.prompt(image, text).")
    if _switches(vlm):
        raise InputError("Confidence is that of the model without edits; leave what is on first.")
    with _Sense.at(vlm, layer, answer, words) as sense:
        rows = [sense.read(vlm.model, vlm.placed(prompt.inputs)) for prompt in prompts]
    table = pd.DataFrame(torch.cat(rows).tolist(), columns=["mass", "sure"])
    return table.assign(share=table.mass * (1 - table.sure))


def adaptive(
    vlm: VLM, prompts: Sequence[Prompt], value: Veena, parts: str = "both", answer: str = BEGUN, words: Words = None
) -> list[list[Edit]]:
    """Edits for each prompt with strengths `beta ** share`, the shares those of `confidence` at `value.l_emo`, in tenths.

    The added score rises in a straight line from nothing to `log beta`. The cost is a forward of each prompt. No label is seen.
    """
    value.check(vlm)
    return [value.eased(s).edits(parts) for s in _tenths(confidence(vlm, prompts, _l_emo(value), answer, words).share.tolist())]


def _l_emo(value: Veena) -> int:
    if value.l_emo is None:
        raise InputError("Adaptive strength is read at l_emo; name it: Veena(…, l_emo=3) (`Steering.emotional_layer` finds it).")
    return value.l_emo


def _tenths(shares: Iterable[float]) -> list[float]:
    """Strengths in tenths of the way, so that prompts of equal strength can share a batch."""
    return [round(float(share), 1) for share in shares]


@dataclass(eq=False)
class _Sense:
    """Reads mass and sureness after a layer at the newest token of each row, by a hook on the layer."""

    vlm: VLM
    layer: int
    answer: str
    ids: list[list[int]]
    last: Tensor | None = None  # of the forward before, [row, d_model]

    @classmethod
    @contextmanager
    def at(cls, vlm: VLM, layer: int, answer: str, words: Words) -> Iterator["_Sense"]:
        """One whose hook is taken away at the end."""
        ids = [some.id.tolist() for _, some in emotion_tokens(vlm, words).groupby("emotion", sort=False)]
        if len(ids) < 2:
            raise InputError("Confidence is how one emotion stands out among others; give words of two or more.")
        sense = cls(vlm, checked_layers(vlm, layer)[0], answer, ids)
        handle = part(vlm.model, f"{vlm.anatomy.layers}.{sense.layer}").register_forward_hook(sense.keep)
        try:
            yield sense
        finally:
            handle.remove()

    def keep(self, _layer: Any, _args: tuple, out: Tensor) -> None:
        """The hook."""
        self.last = out[:, -1].detach()

    @torch.no_grad()
    def read(self, model: Callable, inputs: Mapping[str, Any]) -> Float[Tensor, "row 2"]:
        """Mass and sureness of prompts with a begun answer, by a forward of their own."""
        alone = {"past_key_values": None, "use_cache": False, "logits_to_keep": 1}
        model(**{**_begun(self.vlm, inputs, self.answer), **alone})
        return self.now()

    def now(self) -> Float[Tensor, "row 2"]:
        """Mass and sureness at the newest token of the forward before."""
        log_p = lens_logits(self.vlm, self.last).log_softmax(-1)
        mass = torch.stack([log_p[:, some].logsumexp(-1) for some in self.ids], -1)
        p = mass.softmax(-1)
        sure = 1 + torch.special.xlogy(p, p).sum(-1) / math.log(len(self.ids))
        return torch.stack([mass.exp().sum(-1), sure.clamp(0, 1)], -1).cpu()


def _begun(vlm: VLM, inputs: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """Inputs of the model with the beginning of an answer after each row's prompt."""
    ids, longer = inputs["input_ids"], dict(inputs)
    spaced = vlm.tokenizer.decode(ids[0, -1:])[-1:].isspace()
    added = vlm.tokenizer(answer if spaced else f" {answer}", add_special_tokens=False).input_ids if answer else []
    longer["input_ids"] = torch.cat([ids, torch.tensor(added, dtype=ids.dtype, device=ids.device).expand(len(ids), -1)], -1)
    for name, fill in (("attention_mask", 1), ("token_type_ids", 0), ("mm_token_type_ids", 0)):
        if inputs.get(name) is not None:
            longer[name] = pad(inputs[name], (0, len(added)), value=fill)
    if (at := inputs.get("position_ids")) is not None:
        longer["position_ids"] = torch.cat([at, at[..., -1:] + torch.arange(1, len(added) + 1, device=at.device)], -1)
    return longer


# left on


@contextmanager
def on(
    vlm: VLM, value: Veena, parts: str = "both", adaptive: str | None = None, answer: str = BEGUN, words: Words = None
) -> Iterator[Veena]:
    """While this lasts, everything that the model generates is under `value`: `vlm.generate`, `ei.generate`, `vlm.model.generate`.

    In batches, greedy or sampled, and with beams but for "step", whose rows they reorder. Prompts are told by their token ids, so
    they have to come as ids, padded on the left, and with a key/value cache (transformers' default).

    `adaptive` None: fixed strengths. "prompt": each row's own, as the function `adaptive` has them. "step": in the answer, `sure`
    is that of the token before, under the edits that it had, and `mass` stays the prompt's (in a story it is high before a word of
    feeling only). Either costs an unedited forward of each batch of prompts; `answer` and `words` as in `confidence`.

    Afterwards, also after an error, no hook is left. Values that are on at once act together; an adaptive one is on alone. Not for
    sweeps and perplexities, which do not run the model as a whole: give a sweep `value.edits()`.
    """
    if adaptive not in (None, PROMPT, STEP):
        raise InputError(f"adaptive is {adaptive!r}; expected None, {PROMPT!r} or {STEP!r}.")
    value.check(vlm)
    if any(other.sense or adaptive for other in _switches(vlm)):
        raise InputError("An adaptive VEENA reads the model without edits, so nothing else can be on beside it; leave that first.")
    with ExitStack() as stack:
        sense = stack.enter_context(_Sense.at(vlm, _l_emo(value), answer, words)) if adaptive else None
        switch = _Switch(vlm, value.only(parts), sense, adaptive == STEP)
        stack.callback(switch.ended)
        for handle in switch.hooked():
            stack.callback(handle.remove)
        yield value


def _switches(vlm: VLM) -> list["_Switch"]:
    """What is on in a model now."""
    owners = (getattr(hook, "__self__", None) for hook in vlm.model._forward_pre_hooks.values())
    return [owner for owner in owners if isinstance(owner, _Switch)]


@dataclass(frozen=True, eq=False)
class _Asked:
    """The prompts that the model read last; `mass` of each row, and `step`, the plan of their answers' next token."""

    ids: Tensor
    prompts: list[Prompt]
    layout: Rows
    mass: Tensor | None
    step: Plan


@dataclass(eq=False)
class _Switch:
    """The hooks of `on`. Before each forward of the whole model they set those of its plan, where these are not set already."""

    vlm: VLM
    value: Veena
    sense: _Sense | None = None
    per_step: bool = False
    running: ExitStack = field(default_factory=ExitStack)  # the hooks of `plan`
    plan: Plan | None = None
    asked: _Asked | None = None
    inside: bool = False  # a forward of the whole model runs
    reading: bool = False  # the unedited one

    def hooked(self) -> Iterator[Any]:
        """Handles of the hooks, set one by one."""
        language = part(self.vlm.model, self.vlm.anatomy.family.language)
        yield self.vlm.model.register_forward_pre_hook(self.before, with_kwargs=True)
        yield self.vlm.model.register_forward_hook(self.after, always_call=True)
        yield language.register_forward_pre_hook(self.guard)

    def before(self, _model: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before a forward of the whole model."""
        if self.reading:
            return
        inputs = kwargs | ({"input_ids": args[0]} if args else {})
        if inputs.get("input_ids") is None:
            raise InputError("VEENA tells the picture's tokens by their ids; call the model with input_ids, not inputs_embeds.")
        cache = inputs.get("past_key_values")
        answering = cache is not None and cache.get_seq_length() > 0
        plan = self._step(inputs["input_ids"]) if answering else self._prompt(inputs)
        if plan is not self.plan:  # an answer's steps share one
            self.ended()
            self.running.enter_context(writing(self.vlm, plan))
            self.plan = plan
        self.inside = True

    def after(self, *_: Any) -> None:
        """After it, also if it failed."""
        self.inside = self.inside and self.reading

    def ended(self) -> None:
        """No plan is written any more."""
        self.inside, self.plan = False, None
        self.running.close()

    def guard(self, *_: Any) -> None:
        """Refuses forwards of the language model alone, of which half would be under VEENA and half not."""
        if not (self.inside or self.reading):
            raise InputError("Sweeps and perplexities cannot be had while VEENA is on; leave it, and give a sweep value.edits().")

    def _prompt(self, inputs: dict[str, Any]) -> Plan:
        ids = inputs["input_ids"]
        if self.asked is not None and _goes_on(ids, self.asked.ids):
            raise InputError("This forward takes the last prompts one token further without a cache; generate with use_cache=True.")
        pads = _pads(ids, inputs.get("attention_mask"))
        prompts = [_as_prompt(self.vlm, row[None, left:]) for row, left in zip(ids, pads, strict=True)]
        sensed, layout = self._sensed(inputs), Rows(pads)
        lists = self._lists(sensed, len(ids))
        step = plan_answer(lists, prompts, layout, range(len(ids)), self.vlm.device)
        self.asked = _Asked(ids, prompts, layout, None if sensed is None else sensed[:, 0], step)
        return plan_prompt(lists, prompts, layout, ids.shape[1], self.vlm.device)

    def _step(self, ids: Tensor) -> Plan:
        asked = self.asked
        if asked is None or ids.shape != (len(asked.prompts), 1):
            came = f"{list(ids.shape)} tokens came on a cache"
            raise InputError(f"{came}; under VEENA an answer goes on by one token a row, from prompts that were read under it.")
        if not self.per_step:
            return asked.step
        lists = self._lists(torch.stack([asked.mass, self.sense.now()[:, 1]], -1), len(ids))
        return plan_answer(lists, asked.prompts, asked.layout, range(len(ids)), self.vlm.device)

    def _sensed(self, inputs: dict[str, Any]) -> Tensor | None:
        """Mass and sureness of each row by an unedited forward, which a trace that runs does not count among its own."""
        if self.sense is None:
            return None
        self.ended()
        self.reading = True
        try:
            return self.sense.read(traced(self.vlm), inputs)
        finally:
            self.reading = False

    def _lists(self, sensed: Tensor | None, rows: int) -> list[list[Edit]]:
        """Each row's edits."""
        if sensed is None:
            return [self.value.edits()] * rows
        return [self.value.eased(share).edits() for share in _tenths((sensed[:, 0] * (1 - sensed[:, 1])).tolist())]


def _goes_on(ids: Tensor, before: Tensor) -> bool:
    """Whether these are the same rows with one more token each."""
    n, tokens = before.shape
    return ids.shape == (n, tokens + 1) and torch.equal(ids[:, :-1], before)


def _pads(ids: Tensor, mask: Tensor | None) -> tuple[int, ...]:
    """How many tokens each row is padded by, on the left."""
    if mask is None:
        return (0,) * len(ids)
    if mask.ndim != 2 or not (mask[:, -1] == 1).all() or (mask.diff(dim=-1) < 0).any():
        raise InputError("Under VEENA prompts are padded on the left; set the tokenizer's padding_side to 'left'.")
    return tuple((mask.shape[1] - mask.sum(-1)).tolist())


def _as_prompt(vlm: VLM, ids: Tensor) -> Prompt:
    """Token ids as a prompt: plans ask for its spans alone, so picture and text stay empty."""
    return Prompt(Image.new("L", (1, 1)), "", "", {"input_ids": ids}, visual_positions(ids, vlm.anatomy.image_token))


# fitted


@dataclass(frozen=True, eq=False)
class Fit:
    """What `fit` found: the `veena`, the `circuit` that it is made of, and what was tried.

    `table` has a row a beta and gamma: `exact`, `hit` and `gain` (in exact rate, beside no edit), all `Interval`s over the pairs;
    `false_emotions`, their rate on the neutral sides, and `more_false`, its rise; `cost`, the perplexity of the stories under
    the unedited model over that of the stories without edits, geometric mean; `allowed`, whether the limits are kept, and `chosen`.
    `stories` has a row a story.
    """

    veena: Veena
    circuit: Circuit = field(repr=False)
    table: pd.DataFrame
    stories: pd.DataFrame = field(repr=False)
    max_false: float

    def to_frame(self) -> pd.DataFrame:
        """The table."""
        return self.table

    def plot(self) -> Figure:
        """Exact rate and false emotions by beta, a line a gamma, with 95% intervals; a ring around what was chosen."""
        figure, axes = new_figure(1, 2, width=9, height=3.6)
        for i, (gamma, some) in enumerate(self.table.groupby("gamma")):
            color = _COLORS[i % len(_COLORS)]
            band(axes[0], some.beta, some.exact, color, f"γ = {gamma:g}")
            axes[1].plot(some.beta, some.false_emotions, "-o", color=color, markersize=4)
        best, own = self.table[self.table.chosen].iloc[0], self.table.false_emotions - self.table.more_false
        ring = {"marker": "o", "markersize": 12, "color": "#23262d", "markerfacecolor": "none", "linestyle": "none"}
        axes[0].plot(best.beta, best.exact.mean, **ring, label="chosen")
        axes[1].plot(best.beta, best.false_emotions, **ring)
        axes[1].axhline(own.iloc[0] + self.max_false, color="#6b7078", linestyle=":", linewidth=1)
        axes[1].annotate("limit", (1, own.iloc[0] + self.max_false), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                         fontsize=8, color="#6b7078")  # fmt: skip
        betas = self.table.beta.unique()
        for axis, title in zip(axes, ("Exact rate, emotional sides", "False emotions, neutral sides"), strict=True):
            axis.set(xlabel="β", ylim=(-0.03, 1.03), title=title, xscale="log")
            axis.set_xticks(betas, [f"{beta:g}" for beta in betas])
            axis.minorticks_off()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        return figure


def fit(
    vlm: VLM,
    selection: Sequence[Pair] | Circuit,
    tuning: Sequence[Pair],
    l_emo: int,
    *,
    betas: Sequence[float] = (1, 1.5, 2, 5, 10, 20),
    gammas: Sequence[float] = (1, 1.2, 1.5),
    max_false: float = 0.02,
    max_cost: float = 1.5,
    heads: int = 10,
    neurons: int = 30,
    words: Words = None,
    wheels: WheelsLike = None,
    answer: str = BEGUN,
    max_new_tokens: int = 64,
    progress: bool = True,
    **options: Any,
) -> Fit:
    """Find the circuit on `selection`, then choose beta and gamma on `tuning`: the largest exact rate within two limits.

    `selection` may be a circuit that was found before (`find_circuit`, which takes `heads`, `neurons`, `words` and `answer`). The
    tuning pairs should hold what is to be mended, such as an emotional picture beside an event that suggests another emotion, and
    give the neutral picture an event of its own (`Pair.neutral_event`), beside which naming an emotion is wrong.

    Limits: false emotions on the neutral sides rise by at most `max_false`; the stories' perplexity under the unedited model is at
    most `max_cost` times that of the stories without edits (geometric mean). No edit is always among what is tried; of equal exact
    rates the weakest is taken. `options` are fields of `Veena` (form, prefill_at, …). Greedy; test on a third split.
    """
    circuit = selection
    if not isinstance(selection, Circuit):
        check_disjoint(selection, tuning)
        circuit = find_circuit(vlm, selection, heads=heads, neurons=neurons, words=words, answer=answer, progress=progress)
    circuit.check(vlm)
    circuit.check_apart(tuning)
    values = {
        (float(beta), float(gamma)): Veena.from_circuit(circuit, l_emo, beta=beta, gamma=gamma, **options)
        for beta in sorted({1.0, *betas})
        for gamma in sorted({1.0, *gammas})
    }
    stories = _told(vlm, tuning, values, wheels, max_new_tokens, progress)
    table = _tried(stories, max_false, max_cost)
    best = table[table.chosen].iloc[0]
    return Fit(values[best.beta, best.gamma], circuit, table, stories, max_false)


def find_circuit(
    vlm: VLM,
    pairs: Sequence[Pair],
    *,
    heads: int = 10,
    neurons: int = 30,
    words: Words = None,
    answer: str = BEGUN,
    progress: bool = True,
) -> Circuit:
    """The `heads` best of those that pass their test (`HeadMap.passed`), and the state neurons that exact patching confirms.

    Neurons are scanned and patched (`neurons` of them) on the same pairs: halves of a few dozen would confirm none.
    """
    options: dict[str, Any] = {"words": words, "answer": answer, "progress": progress}
    found = head_map(vlm, pairs, **options)
    states = state_neurons(vlm, pairs, k=neurons, **options).parts()
    return Circuit.of(vlm, found.parts(heads), states, pairs=pairs, metric="log mass")


def _told(
    vlm: VLM,
    pairs: Sequence[Pair],
    values: dict[tuple[float, float], Veena],
    wheels: WheelsLike,
    max_new_tokens: int,
    progress: bool,
) -> pd.DataFrame:
    """A row a pair, side, beta and gamma: story, exact, hit, false_emotion; `cost`, its perplexity over the unedited story's."""
    sides = [(i, name, side, gold) for i, p in enumerate(pairs) for name, side, gold in _sides_of(p)]
    prompts = [vlm.prompt(*side) for _, _, side, _ in sides]
    lists = {key: value.edits() for key, value in values.items()}
    found = sweep(vlm, prompts, lists, max_new_tokens=max_new_tokens, names=["beta", "gamma"], progress=progress).to_frame()
    likely = {}
    for i, some in found.groupby("prompt"):
        texts = list(dict.fromkeys([some.baseline_text.iloc[0], *some.text]))
        own, *others = perplexity(vlm, prompts[i], texts)
        likely |= {(i, text): p / own for text, p in zip(texts, (own, *others), strict=True)}
    pair, side, _, gold = zip(*(sides[i] for i in found.prompt), strict=True)
    told = pd.DataFrame(
        {"pair": pair, "side": side, "emotion": gold, "beta": found.beta, "gamma": found.gamma, "story": found.text}
    )
    told["cost"] = [likely[key] for key in zip(found.prompt, found.text, strict=True)]
    return told.join(score(told.story, told.emotion, wheels)[["exact", "hit", "false_emotion"]])


def _sides_of(pair: Pair) -> list[tuple[str, tuple, str]]:
    return [("emotional", pair.plus, pair.emotion), ("neutral", pair.minus, NEUTRAL)]


def _tried(stories: pd.DataFrame, max_false: float, max_cost: float) -> pd.DataFrame:
    """`Fit.table`: the largest exact rate that keeps the limits is chosen, the weakest of equal ones."""
    emotional, neutral = (stories[stories.side == side].set_index("pair") for side in ("emotional", "neutral"))
    none = (emotional.beta == 1) & (emotional.gamma == 1)
    rows = []
    for (beta, gamma), some in emotional.groupby(["beta", "gamma"]):
        false = neutral.false_emotion[(neutral.beta == beta) & (neutral.gamma == gamma)].mean()
        row = {"beta": beta, "gamma": gamma, "exact": mean_interval(some.exact), "hit": mean_interval(some.hit)}
        row["gain"] = mean_interval(some.exact - emotional.exact[none], signed=True)
        rows.append(row | {"false_emotions": false, "cost": math.exp(np.log(some.cost).mean())})
    table = pd.DataFrame(rows)
    own = table.false_emotions[(table.beta == 1) & (table.gamma == 1)].iloc[0]
    table.insert(6, "more_false", table.false_emotions - own)
    table["allowed"] = (table.more_false <= max_false + 1e-9) & (table.cost <= max_cost)
    exact = table.exact.map(lambda i: i.mean).where(table.allowed, -1.0)
    order = pd.DataFrame({"exact": -exact.round(9), "strength": table.beta.map(math.log).abs() + table.gamma.map(math.log).abs()})
    table["chosen"] = table.index == order.sort_values(["exact", "strength"]).index[0]
    return table


_COLORS = ("#8A8F98", "#56B4E9", "#0072B2", "#D55E00", "#CC79A7")
