"""Edits: interventions as values.

An edit says what it touches (the residual stream, a head, neurons, attention), where (a layer and positions), and how. It knows
nothing of a model, so the same list means the same on every family and every backend; a slider only changes a number in one.

Positions are the spans of a prompt ("visual", "query", "last"), "all" of the prompt, "answer" (every token generated after it), or
token indices (negative ones count from the prompt's end); several may stand in a tuple.

>>> AddVector(layer=3, vector=torch.ones(4), alpha=2.0)
AddVector(layer=3, vector=<4, norm 2>, alpha=2.0, positions=('last', 'answer'))
>>> ScaleNeurons(layer=1, neurons=(5, 8), factor=1.5) == ScaleNeurons(1, [5, 8], 1.5)
True
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, SupportsFloat, SupportsIndex

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from emointerp.errors import InputError, OutputError
from emointerp.files import whole
from emointerp.given import index_of, listed, number

SPANS = ("visual", "query", "last", "all", "answer")
Positions = str | SupportsIndex | Iterable[str | SupportsIndex]
FROM_LAST = ("last", "answer")


@dataclass(frozen=True, eq=False, repr=False)
class Edit:
    """What all edits share: they print readably, compare by value, and refuse what cannot mean anything."""

    layer: SupportsIndex

    def __post_init__(self) -> None:
        self._set(layer=_whole(self, "layer", self.layer))
        if self.layer < 0:
            raise InputError(f"{self._name}: layer is {self.layer}; expected a number from 0 up.")

    @property
    def _name(self) -> str:
        return type(self).__name__

    def _values(self) -> list[tuple[str, Any]]:
        return [(f.name, getattr(self, f.name)) for f in fields(self)]

    def __repr__(self) -> str:
        return f"{self._name}({', '.join(f'{name}={_shown(value)}' for name, value in self._values())})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            _same(a, b) for (_, a), (_, b) in zip(self._values(), other._values(), strict=True)
        )

    def __hash__(self) -> int:
        return hash((self._name, *(value for _, value in self._values() if not torch.is_tensor(value))))

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, eq=False, repr=False)
class Write(Edit):
    """An edit that writes values at `positions` of a site: "residual", "heads" or "neurons", by "set", "add" or "scale"."""

    site: ClassVar[str]
    how: ClassVar[str]

    def units(self) -> tuple[int, ...]:
        """Heads or neurons that are written; the residual stream is one unit."""
        return (0,)

    def written(self, n: int) -> Tensor:
        """What is written at `n` positions: [n, units, width of a unit]."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, repr=False)
class AddVector(Write):
    """Add `alpha * vector` to the residual stream after a layer; `vector` [d_model]. Steering."""

    site, how = "residual", "add"
    vector: Tensor
    alpha: SupportsFloat = 1.0
    positions: Positions = FROM_LAST

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(vector=_tensor(self, "vector", self.vector, 1), positions=_positions(self, self.positions))
        self._set(alpha=number(self.alpha, f"{self._name}: alpha"))

    def written(self, n: int) -> Tensor:
        return (self.alpha * self.vector).expand(n, 1, -1)


@dataclass(frozen=True, eq=False, repr=False)
class SetResidual(Write):
    """Put `value` in the place of the residual stream after a layer; [d_model], or [positions, d_model]. Patching, ablation."""

    site, how = "residual", "set"
    value: Tensor
    positions: Positions = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(value=_tensor(self, "value", self.value, 1, 2), positions=_positions(self, self.positions))
        _check_fixed(self, self.value.ndim == 2)

    def written(self, n: int) -> Tensor:
        return _rows(self, self.value, n)[:, None]


@dataclass(frozen=True, eq=False, repr=False)
class SetHead(Write):
    """Put `value` in the place of a head's output before `o_proj`; [d_head], or [positions, d_head]. Head patching."""

    site, how = "heads", "set"
    head: SupportsIndex
    value: Tensor
    positions: Positions = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(head=_units(self, "head", (self.head,))[0])
        self._set(value=_tensor(self, "value", self.value, 1, 2), positions=_positions(self, self.positions))
        _check_fixed(self, self.value.ndim == 2)

    def units(self) -> tuple[int, ...]:
        return (self.head,)

    def written(self, n: int) -> Tensor:
        return _rows(self, self.value, n)[:, None]


@dataclass(frozen=True, eq=False, repr=False)
class SetNeurons(Write):
    """Put `value` in the place of neurons' activations (the input of `down_proj`); [neurons], or [positions, neurons]."""

    site, how = "neurons", "set"
    neurons: Sequence[SupportsIndex]
    value: Tensor
    positions: Positions = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(neurons=_units(self, "neurons", self.neurons), positions=_positions(self, self.positions))
        self._set(value=_tensor(self, "value", self.value, 1, 2))
        _check_fixed(self, self.value.ndim == 2)
        if self.value.shape[-1] != len(self.neurons):
            raise InputError(f"SetNeurons: {len(self.neurons)} neurons, but values for {self.value.shape[-1]}.")

    def units(self) -> tuple[int, ...]:
        return self.neurons

    def written(self, n: int) -> Tensor:
        return _rows(self, self.value, n)[..., None]


@dataclass(frozen=True, eq=False, repr=False)
class ScaleNeurons(Write):
    """Multiply neurons' activations (the input of `down_proj`) by `factor`. Neuron amplification."""

    site, how = "neurons", "scale"
    neurons: Sequence[SupportsIndex]
    factor: SupportsFloat
    positions: Positions = FROM_LAST

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(neurons=_units(self, "neurons", self.neurons), positions=_positions(self, self.positions))
        self._set(factor=number(self.factor, f"{self._name}: factor"))

    def units(self) -> tuple[int, ...]:
        return self.neurons

    def written(self, n: int) -> Tensor:
        return torch.full((n, len(self.neurons), 1), float(self.factor))


@dataclass(frozen=True, eq=False, repr=False)
class ScaleAttention(Edit):
    """Multiply attention from `query` to `key` positions by `factor` before it is normalised; 0 blocks it. `heads` None: all.

    `log factor` is added to the scores before the softmax, which equals scaling after it and normalising again. With
    `renormalise=False` the weights are scaled after the softmax and left as they are, so that they no longer sum to 1.
    """

    factor: SupportsFloat
    query: Positions = FROM_LAST
    key: Positions = "visual"
    heads: Sequence[SupportsIndex] | None = None
    renormalise: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.renormalise, bool):
            raise InputError(f"ScaleAttention: renormalise is {self.renormalise!r}; expected True or False.")
        self._set(query=_positions(self, self.query), key=_positions(self, self.key))
        if self.heads is not None:
            self._set(heads=_units(self, "heads", self.heads))
        self._set(factor=number(self.factor, f"{self._name}: factor"))
        if self.factor < 0:
            raise InputError(f"ScaleAttention: factor is {self.factor}; expected 0 (blocked) or more.")
        if "answer" in self.key:
            raise InputError("ScaleAttention: keys are tokens of the prompt; 'answer' is possible among the queries only.")


EDITS = {edit.__name__: edit for edit in (AddVector, SetResidual, SetHead, SetNeurons, ScaleNeurons, ScaleAttention)}


def block_attention(
    layer: SupportsIndex, query: Positions, key: Positions, heads: Sequence[SupportsIndex] | None = None
) -> ScaleAttention:
    """Attention from `query` to `key` positions knocked out in a layer.

    >>> import emointerp as ei
    >>> ei.block_attention(3, "last", "visual")
    ScaleAttention(layer=3, factor=0.0, query=('last',), key=('visual',), heads=None, renormalise=True)
    """
    return ScaleAttention(layer, 0.0, query, key, heads)


def as_edits(given: Iterable[Edit]) -> list[Edit]:
    """Edits as a list, read once: a generator is empty afterwards. An edit by itself, and what is none, are refused."""
    return listed(given, Edit, "edit", "values such as AddVector(layer, vector)")


def save_edits(edits: Iterable[Edit], file: str | Path) -> None:
    """Write edits to `file` as JSON, their tensors beside it as `file.safetensors`; OutputError where that cannot be done.

    >>> import emointerp as ei
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     ei.save_edits([ei.block_attention(3, "last", "visual")], f"{folder}/cut.json")
    ...     ei.load_edits(f"{folder}/cut.json")
    [ScaleAttention(layer=3, factor=0.0, query=('last',), key=('visual',), heads=None, renormalise=True)]
    """
    file, tensors, rows = Path(file), {}, []
    for i, edit in enumerate(as_edits(edits)):
        row: dict[str, Any] = {"edit": type(edit).__name__}
        for name, value in edit._values():
            if torch.is_tensor(value):
                tensors[f"{i}.{name}"] = value.cpu().clone().contiguous()  # a vector may serve in several edits
                value = {"tensor": f"{i}.{name}", "digest": _digest(value)}
            row[name] = value
        rows.append(row)
    try:
        if file.is_dir():
            raise IsADirectoryError("it is a folder")
        with whole(_tensors_of(file)) as part:
            save_file(tensors, part)
        with whole(file) as part:
            part.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError, SafetensorError) as error:
        raise OutputError(f"The edits cannot be written to {file}: {error}. Choose a place that can be written to.") from error


def load_edits(file: str | Path) -> list[Edit]:
    """Read what `save_edits` wrote; InputError says what is missing or wrong, also where JSON and tensors are of two saves.

    >>> import emointerp as ei
    >>> import torch
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     ei.save_edits([ei.AddVector(3, torch.ones(192), alpha=0.5)], f"{folder}/push.json")
    ...     [(edit.layer, edit.alpha) for edit in ei.load_edits(f"{folder}/push.json")]
    [(3, 0.5)]
    """
    file = Path(file)
    try:
        tensors = load_file(_tensors_of(file))
        return [_loaded(row, tensors) for row in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        expected = f"expected a file that save_edits wrote, with its tensors in {_tensors_of(file).name}"
        raise InputError(f"{file} holds no edits that can be read ({type(error).__name__}: {error}); {expected}.") from None


def _loaded(row: dict[str, Any], tensors: Mapping[str, Tensor]) -> Edit:
    kind, values = row["edit"], {}
    if kind not in EDITS:
        raise InputError(f"it holds an edit {kind!r}; known are {', '.join(EDITS)}")
    for name, value in row.items():
        if isinstance(value, dict):
            value, digest = tensors[value["tensor"]], value.get("digest")
            if digest not in (None, _digest(value)):
                raise InputError(f"{kind}'s {name} is not the tensor that was saved with it")
        values[name] = value
    return EDITS[kind](**{name: value for name, value in values.items() if name != "edit"})


def _digest(tensor: Tensor) -> str:
    """Tells tensors apart by their numbers."""
    return hashlib.blake2b(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes(), digest_size=8).hexdigest()


def _tensors_of(file: Path) -> Path:
    return Path(f"{file}.safetensors")


def _shown(value: Any) -> str:
    if not torch.is_tensor(value):
        return repr(value)
    return f"<{' x '.join(map(str, value.shape))}, norm {float(value.float().norm()):.4g}>"


def _same(a: Any, b: Any) -> bool:
    if torch.is_tensor(a) and torch.is_tensor(b):
        return a.dtype == b.dtype and torch.equal(a.cpu(), b.cpu())
    return a == b


def _positions(edit: Edit, given: Positions) -> tuple[str | int, ...]:
    listed = (given,) if isinstance(given, str) or not isinstance(given, Iterable) else tuple(given)
    listed = tuple(p if isinstance(p, str) and p in SPANS else _position(edit, p) for p in listed)
    if not listed:
        raise InputError(f"{edit._name}: no positions are given; expected token indices or spans such as 'last'.")
    return listed


def _position(edit: Edit, given: Any) -> int:
    if (index := index_of(given)) is None:
        raise InputError(f"{edit._name}: {given!r} is no position; expected a token index or one of {', '.join(SPANS)}.")
    return index


def _whole(edit: Edit, what: str, given: Any) -> int:
    if (index := index_of(given)) is None:
        raise InputError(f"{edit._name}: {what} is {given!r}; expected a whole number.")
    return index


def _units(edit: Edit, what: str, given: Sequence[int]) -> tuple[int, ...]:
    listed = tuple(_whole(edit, what, i) for i in given) if isinstance(given, Iterable) else ()
    if not listed or min(listed) < 0 or len(set(listed)) < len(listed):
        raise InputError(f"{edit._name}: {what} is {given!r}; expected different numbers from 0 up.")
    return listed


def _tensor(edit: Edit, what: str, given: Any, *dimensions: int) -> Tensor:
    if not torch.is_tensor(given):
        try:
            given = torch.as_tensor(given, dtype=torch.float32)
        except (ValueError, TypeError, RuntimeError, OverflowError) as error:
            raise InputError(f"{edit._name}: {what} is a {type(given).__name__}, not numbers ({error}).") from None
    if given.device.type == "meta":
        raise InputError(f"{edit._name}: {what} lies on the meta device, so it holds no numbers; load the weights first.")
    if not given.is_floating_point():
        raise InputError(f"{edit._name}: {what} has dtype {given.dtype}; expected floating-point numbers.")
    if given.ndim not in dimensions:
        expected = " or ".join(("a number", "a vector", "a matrix")[d] for d in dimensions)
        raise InputError(f"{edit._name}: {what} has shape {list(given.shape)}; expected {expected}.")
    if not torch.isfinite(given).all():
        raise InputError(f"{edit._name}: {what} holds NaN or infinity; look at where it was computed.")
    return given.detach().clone()  # an edit keeps its value, whatever becomes of the tensor that it was made from


def _check_fixed(edit: Edit, per_position: bool) -> None:
    """A value per position needs positions that are known before anything is generated."""
    if per_position and "answer" in edit.positions:
        raise InputError(f"{edit._name}: one value a position cannot go with 'answer', whose length is not known; give one value.")


def _rows(edit: Edit, value: Tensor, n: int) -> Tensor:
    """[n, width]: the value of each position, or the same at all."""
    if value.ndim == 1:
        return value.expand(n, -1)
    if len(value) != n:
        raise InputError(f"{edit._name}: values for {len(value)} positions, but {edit.positions} are {n} in this prompt.")
    return value
