"""What stands in a `VLM` in the place of a model that runs on another machine."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from emointerp.errors import ModelError

WORKS = "run, collect (also wrt=metric), generate, sweep, answer_log_probs and what stands on them"
HERE = ("logits_processor", "stopping_criteria", "streamer", "assistant_model", "prefix_allowed_tokens_fn", "custom_generate")


class Elsewhere:
    """A model whose weights are on another machine: its parts and configuration, and traces that run there.

    `served` is nnsight's view of it, a `TransformersModel`; `backend()` takes one request there. Anything that a model of this
    machine would have beside that is a `ModelError` that says so, never a number made of no weights.
    """

    def __init__(self, name: str, served: Any, remote: bool | str, backend: Callable[[], Any]) -> None:
        self.name, self.served, self.remote, self.backend = name, served, remote, backend

    @property
    def structure(self) -> torch.nn.Module:
        """The model's parts, to ask what is where."""
        return self.served._module

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.structure.config

    @property
    def dtype(self) -> torch.dtype:
        """The checkpoint's own; a server may hold it in another."""
        return self.structure.dtype

    def trace(self, **options: Any) -> Any:
        """nnsight's context of one request: a forward, or the function `fn` of `served`."""
        return self.served.trace(**options, backend=self.backend())

    def generation(self, **options: Any) -> Any:
        """nnsight's context of one request that generates; options that run between tokens on this machine are refused."""
        mine = [name for name in HERE if options.get(name)]
        if mine:
            raise ModelError(
                f"{', '.join(mine)}: runs on this machine between the tokens of an answer, and {self.name!r} generates elsewhere "
                f"(remote={self.remote!r}). Leave it out, or load the model without remote."
            )
        return self.trace(fn=self.served.generate, **options)

    def generate(self, *, seed: int | None = None, **options: Any) -> Tensor:
        """Token ids of transformers' own `generate`, prompt and answer; `seed` is that of the machine that generates."""
        with self.generation(**options) as tracer:
            if seed is not None:
                torch.manual_seed(seed)
            tokens = tracer.result.save()
        return tokens

    def __call__(self, *_: Any, **__: Any) -> None:
        raise ModelError(self.missing("A forward of the model itself"))

    def __getattr__(self, what: str) -> Any:
        if what.startswith(("__", "_repr", "_ipython")):  # what Python and notebooks look for
            raise AttributeError(what)
        raise ModelError(self.missing(f"`vlm.model.{what}`"))

    def missing(self, what: str) -> str:
        """The words for what cannot be done with a model that is elsewhere."""
        return (
            f"{what} needs the weights on this machine, but {self.name!r} runs elsewhere (remote={self.remote!r}). "
            f"What runs there: {WORKS}. For this, load the model without remote, or a smaller one of its family."
        )
