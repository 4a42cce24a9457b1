"""From edits to tensor writes: what each layer of one forward has to write where, for many interventions at once.

A `Layout` says where the tokens of several interventions stand in a forward of shape [batch, tokens]: each in a row of its own
(`Rows`), or all behind one another in one sequence (`Tree`, see `branches`). A `Plan` holds the writes of a forward, grouped so
that each layer does one indexing operation a site, however many interventions there are.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from emointerp.errors import InputError
from emointerp.models import Prompt
from emointerp.models.anatomy import Anatomy
from emointerp.tracing.edits import AddVector, Edit, ScaleAttention, SetHead, SetResidual, Write

Key = tuple[int, str, str, int]  # layer, site, how, round


@dataclass(frozen=True)
class Rows:
    """Interventions in rows of a batch; row i is padded by `pads[i]` tokens, and its first `start` tokens are in the cache."""

    pads: tuple[int, ...]
    start: int = 0

    def query(self, i: int, position: int) -> tuple[int, int]:
        """Batch row and token of a prompt position."""
        return i, position + self.pads[i] - self.start

    def key(self, i: int, position: int) -> int:
        """Column of a prompt position among the keys."""
        return position + self.pads[i]

    def now(self, i: int) -> tuple[int, int]:
        """Batch row and token of the answer's newest token, when it is the only one that is processed."""
        return i, 0


@dataclass(frozen=True)
class Tree:
    """Interventions as branches behind one another: `length` tokens each, from prompt position `start` on."""

    start: int
    length: int

    def query(self, i: int, position: int) -> tuple[int, int]:
        """Batch row and token of a prompt position."""
        return 0, i * self.length + position - self.start

    def key(self, i: int, position: int) -> int:
        """Column of a prompt position among the keys: the shared prefix, then each branch's own tokens."""
        return position if position < self.start else i * self.length + position

    def now(self, i: int) -> tuple[int, int]:
        """Batch row and token of the answer's newest token, when it is the only one that is processed."""
        return 0, i


Layout = Rows | Tree
EditLists = Sequence[Sequence[Edit]]


class Plan:
    """The writes of one forward of [batch, tokens]: for each key token rows [k], units [k] and values [k, width]; and attention.

    `attention[layer]` lists (batch rows, heads or None, query tokens, key columns, added score); `after[layer]` the same of what is
    added to the logarithm of the weights after the softmax. `made` keeps what has been made of them for single tokens.
    """

    def __init__(
        self,
        tokens: int,
        writes: dict[Key, tuple[Tensor, Tensor, Tensor]] | None = None,
        attention: dict[int, list[tuple]] | None = None,
        after: dict[int, list[tuple]] | None = None,
    ):
        self.tokens, self.writes, self.attention, self.after = tokens, writes or {}, attention or {}, after or {}
        self.made: dict[tuple[int, bool], Tensor] = {}

    @property
    def layers(self) -> set[int]:
        """Layers that are touched."""
        return {key[0] for key in self.writes} | self.attending

    @property
    def attending(self) -> set[int]:
        """Layers whose attention is scaled."""
        return set(self.attention) | set(self.after)

    @property
    def sites(self) -> set[tuple[int, str]]:
        """(layer, site) pairs that are written."""
        return {key[:2] for key in self.writes}

    def blocks(self, layer: int) -> bool:
        """Whether some attention of a layer is cut off."""
        return any(added == -math.inf for *_, added in self.attention.get(layer, ()))

    def apply(self, layer: int, site: str, hidden: Tensor, n_units: int) -> Tensor:
        """A copy of `hidden` [batch, tokens, units * width] with the site's writes done; itself where there are none."""
        mine = [key for key in self.writes if key[:2] == (layer, site)]
        if not mine:
            return hidden
        self.check_shape(hidden)
        flat = hidden.clone().view(hidden.shape[0] * hidden.shape[1], n_units, -1)
        for key in sorted(mine):
            rows, units, values = (t.to(hidden.device) for t in self.writes[key])
            _write(flat, key[2], rows, units, values.to(hidden.dtype))
        return flat.view(hidden.shape)

    def check_shape(self, hidden: Tensor) -> None:
        """Refuse a forward of another length than the one that was planned."""
        if hidden.shape[1] != self.tokens:
            raise InputError(
                f"Edits for a forward of {self.tokens} tokens met one of {hidden.shape[1]}; generate without options that change "
                "how tokens are fed (assisted or chunked decoding)."
            )

    def bias(self, layer: int, shape: tuple[int, int, int, int], like: Tensor, after: bool = False) -> Tensor:
        """Scores to add before the softmax, or to the logarithm of the weights `after` it, [batch, heads, queries, keys]."""
        listed = (self.after if after else self.attention).get(layer, ())
        if shape[2] > 1:
            return _bias(listed, shape, like)
        if (layer, after) not in self.made:  # the plan of an answer's tokens serves many steps, each with one key more
            self.made[layer, after] = _bias(listed, shape, like)
        made = self.made[layer, after]
        return pad(made, (0, shape[-1] - made.shape[-1]))


def _bias(listed: Sequence[tuple], shape: tuple[int, int, int, int], like: Tensor) -> Tensor:
    """What is added at each of the listed places, 0 elsewhere."""
    bias = torch.zeros(shape, dtype=like.dtype, device=like.device)
    for row, heads, queries, keys, added in listed:
        chosen = torch.arange(shape[1]) if heads is None else torch.tensor(heads)
        where = (torch.tensor([row]), *(t.to(like.device) for t in _outer(chosen, torch.tensor(queries), torch.tensor(keys))))
        bias[where] += added
    return bias


def _outer(heads: Tensor, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return heads[:, None, None], queries[None, :, None], keys[None, None, :]


def _write(flat: Tensor, how: str, rows: Tensor, units: Tensor, values: Tensor) -> None:
    if how == "add":
        flat.index_put_((rows, units), values, accumulate=True)
    elif how == "set":
        flat[rows, units] = values
    else:
        flat[rows, units] = flat[rows, units] * values


def plan_prompt(edit_lists: EditLists, prompts: Sequence[Prompt], layout: Layout, tokens: int, device: torch.device) -> Plan:
    """Writes at prompt positions: intervention i edits prompt i (or the only one); `tokens` is the forward's length."""
    draft = _Draft(layout, tokens, device)
    for i, edits in enumerate(edit_lists):
        prompt = prompts[i if len(prompts) > 1 else 0]
        for edit in edits:
            if isinstance(edit, ScaleAttention):
                queries = prompt.positions(p for p in edit.query if p != "answer")
                draft.attend(i, edit, [layout.query(i, p) for p in queries], prompt)
            else:
                where = prompt.positions(p for p in edit.positions if p != "answer")
                draft.write(i, edit, [layout.query(i, p) for p in where])
    return draft.plan()


def plan_answer(
    edit_lists: EditLists, prompts: Sequence[Prompt], layout: Layout, alive: Sequence[int], device: torch.device
) -> Plan:
    """Writes at the answer's newest token of the interventions still `alive`, which stand in the forward in that order."""
    draft = _Draft(layout, len(alive) if isinstance(layout, Tree) else 1, device)
    for place, i in enumerate(alive):
        prompt = prompts[i if len(prompts) > 1 else 0]
        for edit in edit_lists[i]:
            if isinstance(edit, ScaleAttention):
                if "answer" in edit.query:
                    draft.attend(i, edit, [layout.now(place)], prompt)
            elif "answer" in edit.positions:
                draft.write(i, edit, [layout.now(place)])
    return draft.plan()


class _Draft:
    """Collects the writes of all interventions as lists, and joins each list once at the end."""

    def __init__(self, layout: Layout, tokens: int, device: torch.device):
        self.layout, self.tokens, self.device = layout, tokens, device
        self.parts: dict[Key, tuple[list[int], list[int], list[Tensor]]] = defaultdict(lambda: ([], [], []))
        self.attention: dict[int, list[tuple]] = defaultdict(list)
        self.after: dict[int, list[tuple]] = defaultdict(list)
        self.rounds: dict[tuple, int] = defaultdict(int)

    def write(self, i: int, edit: Write, places: list[tuple[int, int]]) -> None:
        if not places:
            return
        # two scalings at one place both count, so each has an indexing operation of its own
        round_ = self.rounds[i, edit.layer, edit.site] if edit.how == "scale" else 0
        self.rounds[i, edit.layer, edit.site] += edit.how == "scale"
        rows, units, values = self.parts[edit.layer, edit.site, edit.how, round_]
        here, own = [row * self.tokens + token for row, token in places], edit.units()
        if len(own) == 1:
            rows += here
            units += own * len(here)
        else:  # thousands of neurons at hundreds of tokens
            rows += np.repeat(here, len(own)).tolist()
            units += np.tile(own, len(here)).tolist()
        values.append(edit.written(len(here)).flatten(0, 1))

    def attend(self, i: int, edit: ScaleAttention, places: list[tuple[int, int]], prompt: Prompt) -> None:
        if not places:
            return
        added = math.log(edit.factor) if edit.factor > 0 else -math.inf
        keys = [self.layout.key(i, p) for p in prompt.positions(edit.key)]
        listed = self.attention if edit.renormalise else self.after
        listed[edit.layer].append((places[0][0], edit.heads, [token for _, token in places], keys, added))

    def plan(self) -> Plan:
        writes = {
            key: (
                torch.tensor(rows, device=self.device),
                torch.tensor(units, device=self.device),
                torch.cat([v.to(self.device) for v in values]),
            )
            for key, (rows, units, values) in self.parts.items()
        }
        return Plan(self.tokens, writes, dict(self.attention), dict(self.after))


def check(edits: Sequence[Edit], anatomy: Anatomy, prompt: Prompt) -> None:
    """Refuse edits that this model or this prompt has no place for, and edits that contradict each other."""
    for edit in edits:
        if not isinstance(edit, Edit):
            raise InputError(f"{edit!r} is no edit; expected values such as AddVector(layer, vector).")
        _check_layer(edit, anatomy)
        _check_units(edit, anatomy)
        _check_width(edit, anatomy)
    _check_contradictions(edits, prompt)


def _check_layer(edit: Edit, anatomy: Anatomy) -> None:
    if edit.layer >= anatomy.n_layers:
        raise InputError(f"{edit._name}: layer {edit.layer} is out of range; this model has layers 0 to {anatomy.n_layers - 1}.")


def _check_units(edit: Edit, anatomy: Anatomy) -> None:
    heads = edit.heads if isinstance(edit, ScaleAttention) else edit.units() if isinstance(edit, SetHead) else ()
    neurons = edit.units() if getattr(edit, "site", None) == "neurons" else ()
    for what, chosen, n in (("head", heads, anatomy.n_heads), ("neuron", neurons, anatomy.d_mlp)):
        if chosen and max(chosen) >= n:
            raise InputError(f"{edit._name}: {what} {max(chosen)} is out of range; a layer of this model has {what}s 0 to {n - 1}.")


def _check_width(edit: Edit, anatomy: Anatomy) -> None:
    what, width = {
        AddVector: ("vector", anatomy.d_model),
        SetResidual: ("value", anatomy.d_model),
        SetHead: ("value", anatomy.d_head),
    }.get(type(edit), ("", 0))
    if what and getattr(edit, what).shape[-1] != width:
        came = getattr(edit, what).shape[-1]
        raise InputError(f"{edit._name}: {what} has width {came}, but this model's {edit.site} have {width} there.")


def _check_contradictions(edits: Sequence[Edit], prompt: Prompt) -> None:
    """At one place either one value is set, or any number is added, or any number scales: else the order would matter."""
    by_site: dict[tuple[int, str], list[Write]] = defaultdict(list)
    for edit in edits:
        if isinstance(edit, Write):
            by_site[edit.layer, edit.site].append(edit)
    for some in by_site.values():
        for one, other in itertools.combinations(some, 2):
            if one is not other and (one.how != other.how or one.how == "set"):
                _check_apart(one, other, prompt)


def _check_apart(one: Write, other: Write, prompt: Prompt) -> None:
    units = set(one.units()) & set(other.units())
    shared = _where(one, prompt) & _where(other, prompt) if units else ()
    if shared:
        unit = "" if one.site == "residual" else f" {min(units)}"
        place = f"layer {one.layer}, {one.site}{unit}, position {min(shared, key=str)}"
        raise InputError(f"{one._name} and {other._name} contradict each other at {place}; keep one of them.")


def _where(edit: Write, prompt: Prompt) -> set[int | str]:
    return {*prompt.positions(p for p in edit.positions if p != "answer"), *(p for p in edit.positions if p == "answer")}
