"""A sparse autoencoder and its codes, as values: plain tensors that nothing changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from emointerp.errors import InputError
from emointerp.sae.coding import Rough, sparse_decode, sparse_encode


@dataclass(frozen=True, eq=False)
class Codes:
    """Sparse codes: the k largest activations, in falling order, and the features they belong to.

    Where fewer than k features fire, the last values are 0 and their features mean nothing.
    """

    values: Float[Tensor, "*batch k"] = field(repr=False)
    indices: Int[Tensor, "*batch k"] = field(repr=False)
    d_hidden: int

    def __repr__(self) -> str:
        return f"Codes({' x '.join(map(str, self.values.shape[:-1])) or 1} x {self.values.shape[-1]} of {self.d_hidden} features)"

    def flat(self) -> "Codes":
        """All leading axes (pictures, patches) as one: [n, k]."""
        return replace(self, values=self.values.reshape(-1, self.k), indices=self.indices.reshape(-1, self.k))

    @property
    def k(self) -> int:
        """How many features may fire at once."""
        return self.values.shape[-1]

    def dense(self) -> Float[Tensor, "*batch d_hidden"]:
        """A number for every feature; small collections only."""
        return self.values.new_zeros(*self.values.shape[:-1], self.d_hidden).scatter(-1, self.indices, self.values)

    def feature(self, i: int) -> Float[Tensor, "*batch"]:
        """One feature's activation everywhere."""
        if not 0 <= i < self.d_hidden:
            raise InputError(f"There is no feature {i}; this SAE has features 0 to {self.d_hidden - 1}.")
        return (self.values * (self.indices == i)).sum(-1)

    def mean(self) -> Float[Tensor, " d_hidden"]:
        """The mean code over all inputs: an emotion's direction in feature space, where the inputs show the emotion."""
        flat = self.flat()
        total = self.values.new_zeros(self.d_hidden).index_add(0, flat.indices.flatten(), flat.values.flatten())
        return total / len(flat.values)

    def fired(self) -> Int[Tensor, " d_hidden"]:
        """On how many inputs each feature fires."""
        return torch.bincount(self.indices[self.values > 0], minlength=self.d_hidden)


@dataclass(frozen=True, eq=False, repr=False)
class SAE:
    """A top-k sparse autoencoder: `z = relu(encoder x + b_enc)`, exactly the k largest kept, `x_hat = decoder^T z + b_dec`.

    `encoder[i]` is what feature i looks for and `decoder[i]` what it writes. Without a decoder the SAE is tied: the encoder does
    both. `about` says where it comes from (tower, recipe, …) and travels with the file.

    >>> sae = SAE.random(d_in=8, d_hidden=32, k=4)
    >>> sae
    SAE(8 -> 32, top 4, untied, b_enc, b_dec)
    >>> sae.encode(torch.ones(5, 8))
    Codes(5 x 4 of 32 features)
    >>> sae(torch.ones(5, 8)).shape
    torch.Size([5, 8])
    """

    encoder: Tensor  # [d_hidden, d_in]; shapes are checked below, in words, because files bring them
    k: int
    decoder: Tensor | None = None  # [d_hidden, d_in]
    b_enc: Tensor | None = None  # [d_hidden]
    b_dec: Tensor | None = None  # [d_in]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.encoder.ndim != 2:
            raise InputError(f"The encoder is {list(self.encoder.shape)}; expected [d_hidden, d_in], a row a feature.")
        if not isinstance(self.k, int) or isinstance(self.k, bool) or not 1 <= self.k <= self.d_hidden:
            raise InputError(f"k is {self.k!r}; expected 1 to {self.d_hidden}, the number of features.")
        shapes = {"decoder": [self.d_hidden, self.d_in], "b_enc": [self.d_hidden], "b_dec": [self.d_in]}
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            if tensor is not None and list(tensor.shape) != shape:
                raise InputError(
                    f"{name} is {list(tensor.shape)}; with an encoder of {self.d_hidden} x {self.d_in} it must be {shape}."
                )

    @classmethod
    def random(cls, d_in: int, d_hidden: int, k: int, tied: bool = False, biases: bool = True, seed: int = 0) -> "SAE":
        """Unit features in random directions, the decoder a copy of the encoder: where training starts."""
        rows = normalize(torch.randn(d_hidden, d_in, generator=torch.Generator().manual_seed(seed)), dim=1)
        zeros = (torch.zeros(d_hidden), torch.zeros(d_in)) if biases else (None, None)
        return cls(rows, k, None if tied else rows.clone(), *zeros)

    @property
    def d_in(self) -> int:
        """Width of what it reads and writes."""
        return self.encoder.shape[1]

    @property
    def d_hidden(self) -> int:
        """Number of features."""
        return self.encoder.shape[0]

    @property
    def tied(self) -> bool:
        """Whether one matrix both reads and writes."""
        return self.decoder is None

    @property
    def features(self) -> Float[Tensor, "d_hidden d_in"]:
        """What each feature writes, one a row."""
        return self.encoder if self.decoder is None else self.decoder

    def encode(
        self, x: Float[Tensor, "*batch d"], *, chunk: int | None = None, candidates: int | None = None, batch: int = 1024
    ) -> Codes:
        """The codes of vectors; differentiable in `x`.

        `batch` vectors are done at a time. `chunk` features are scored at a time (8192 is a good number), which takes little
        memory. `candidates` (2 k to 3 k) asks for scores in bfloat16 first, of which the best are scored again in full;
        rows where a bound on what bfloat16 rounds away leaves the selection in doubt are done in full (`coding.Rough`). It pays
        where d_hidden is large and the processor multiplies bfloat16; it keeps a second copy of the encoder, of half its size. All
        give the same codes, up to scores that float32 cannot tell apart. The bound is for sums in float32, as processors make them;
        CUDA may add partial sums in bfloat16 unless `torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction` is False.
        """
        self.check(x.shape[-1])
        rough = None if candidates is None else self._rough
        parts = x.reshape(-1, self.d_in).to(self.encoder).split(batch)
        coded = [sparse_encode(part, self.encoder, self.b_enc, self.k, chunk, rough, candidates or 0) for part in parts]
        values, indices = (torch.cat(some).reshape(*x.shape[:-1], self.k) for some in zip(*coded, strict=True))
        return Codes(values, indices, self.d_hidden)

    def decode(self, codes: Codes) -> Float[Tensor, "*batch d_in"]:
        """The vectors that codes stand for."""
        if codes.d_hidden != self.d_hidden:
            raise InputError(f"These codes are of an SAE with {codes.d_hidden} features; this one has {self.d_hidden}.")
        flat = codes.flat()
        x = sparse_decode(flat.values, flat.indices, self.features, self.b_dec)
        return x.reshape(*codes.values.shape[:-1], self.d_in)

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d_in"]:
        """`x` as the k features that fire tell it."""
        return self.decode(self.encode(x))

    def check(self, width: int, tower: str = "") -> None:
        """InputError, both named, if vectors of a tower have another width than this SAE reads."""
        if width != self.d_in:
            mine = f"This SAE{_named(self.about.get('tower'))} reads vectors of width {self.d_in}"
            raise InputError(f"{mine}, and those given{_named(tower)} are {width} wide; take an SAE of the same tower.")

    def to(self, *args: Any, **kwargs: Any) -> "SAE":
        """The same on another device or in another dtype, as `Tensor.to`."""
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{n: t.to(*args, **kwargs) for n, t in tensors.items() if isinstance(t, Tensor)})

    def __repr__(self) -> str:
        biases = "".join(f", {name}" for name in ("b_enc", "b_dec") if getattr(self, name) is not None)
        return f"SAE({self.d_in} -> {self.d_hidden}, top {self.k}, {'tied' if self.tied else 'untied'}{biases})"

    @cached_property
    def _rough(self) -> Rough:
        return Rough.of(self.encoder, self.b_enc)


def _named(tower: str | None) -> str:
    return f" of {tower}" if tower else ""
