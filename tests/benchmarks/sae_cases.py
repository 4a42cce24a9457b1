"""The SAE beside the dense form of the blog post "Decoding Emotion in Vision-Language Models", with its sizes: d_in 1152, k 128.

The dense form is the post's own code: all scores through a ReLU, `topk`, `scatter_` into zeros, and a second product as large as
the first; its one matrix both reads and writes. SAELens has an environment of its own, where `tests/saelens_check.py` times it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from case import Case, Numbers, Peer, Section
from torch import Tensor
from torch.nn import functional as F

from emointerp.sae import SAE
from emointerp.sae.coding import sparse_decode, sparse_encode

DENSE = "dense form"


@dataclass(frozen=True)
class SaeSubject:
    """An SAE of random weights, and a batch of unit vectors."""

    d_hidden: int
    d_in: int = 1152
    k: int = 128
    batch: int = 64

    @property
    def name(self) -> str:
        """Its sizes."""
        return f"{self.d_in} -> {self.d_hidden}, top {self.k}"

    @cached_property
    def sae(self) -> SAE:
        """Tied, without biases, as the post has it."""
        return SAE.random(self.d_in, self.d_hidden, self.k, tied=True, biases=False)

    @cached_property
    def x(self) -> Tensor:
        """The batch."""
        return F.normalize(torch.randn(self.batch, self.d_in, generator=torch.Generator().manual_seed(1)), dim=1)


def dense_form(x: Tensor, encoder: Tensor, decoder: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The post's forward pass; also which features it kept."""
    z = F.relu(F.linear(x, encoder))
    values, indices = torch.topk(z, k=k, dim=-1)
    return F.linear(torch.zeros_like(z).scatter_(-1, indices, values), decoder.t()), indices


def _numbers(rebuilt: Tensor, indices: Tensor) -> Numbers:
    return {"vectors": rebuilt, "features": indices.sort(dim=-1).values}


@torch.no_grad()
def _coded_densely(subject: SaeSubject) -> Numbers:
    return _numbers(*dense_form(subject.x, subject.sae.encoder, subject.sae.encoder, subject.k))


def coding(subject: SaeSubject, candidates: int | None = None) -> Case:
    """Encoding and decoding, in float32 or by candidates that bfloat16 finds."""
    sae = subject.sae

    def ours() -> Numbers:
        codes = sae.encode(subject.x, candidates=candidates)
        return _numbers(sae.decode(codes), codes.indices)

    dense = partial(_coded_densely, subject)
    return Case(ours, {DENSE: Peer(dense, afresh=dense)})


def _loss(rebuilt: Tensor, x: Tensor) -> Tensor:
    """Summed in place of averaged, so that gradients are numbers of size 1 and their differences can be read."""
    return F.mse_loss(rebuilt, x, reduction="sum")


def _weights(subject: SaeSubject, tied: bool) -> tuple[Tensor, Tensor]:
    """Encoder and decoder with gradients of their own, over the subject's numbers: nothing is copied and nothing is changed."""
    encoder = subject.sae.encoder.detach().requires_grad_()
    return encoder, encoder if tied else subject.sae.encoder.detach().requires_grad_()


def _densely_trained(subject: SaeSubject, tied: bool) -> Callable[[], Numbers]:
    """A step of the post's loop, without the optimiser: gradients are forgotten, as `zero_grad` does, and made anew."""
    encoder, decoder = _weights(subject, tied)

    def step() -> Numbers:
        encoder.grad = decoder.grad = None
        loss = _loss(dense_form(subject.x, encoder, decoder, subject.k)[0], subject.x)
        loss.backward()
        return {"loss": loss.detach(), "encoder": encoder.grad, "decoder": decoder.grad}

    return step


def _sparsely_trained(subject: SaeSubject, tied: bool) -> Callable[[], Numbers]:
    """The same step with gradients that stay where they are and are set to zero."""
    encoder, decoder = _weights(subject, tied)

    def step() -> Numbers:
        for weights in {id(w): w for w in (encoder, decoder)}.values():
            weights.grad = torch.zeros_like(weights) if weights.grad is None else weights.grad.zero_()
        values, indices = sparse_encode(subject.x, encoder, None, subject.k, into=encoder.grad)
        loss = _loss(sparse_decode(values, indices, decoder, None, into=decoder.grad), subject.x)
        loss.backward()
        return {"loss": loss.detach(), "encoder": encoder.grad, "decoder": decoder.grad}

    return step


def training(subject: SaeSubject, tied: bool = True) -> Case:
    """Forward and backward pass of a training step; what an optimiser does then is the same for both."""
    peer = Peer(_densely_trained(subject, tied), afresh=_densely_trained(subject, tied))
    return Case(_sparsely_trained(subject, tied), {DENSE: peer}, afresh=_sparsely_trained(subject, tied))


SUBJECTS: dict[str, Callable[[], SaeSubject]] = {
    "sae-65536": partial(SaeSubject, 65_536),
    "sae-262144": partial(SaeSubject, 262_144),
}
CASES: dict[str, Callable[[SaeSubject], Case]] = {
    "sae-code": coding,
    "sae-code-candidates": partial(coding, candidates=256),
    "sae-train": training,
    "sae-train-untied": partial(training, tied=False),
}
SECTION = Section(SUBJECTS, CASES)
