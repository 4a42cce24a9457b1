"""What `collect` gives: the activations of one prompt, labelled by layer and position."""

from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor

from emointerp.errors import InputError

SITES = ("residual", "heads", "neurons", "attention")


@dataclass(frozen=True, eq=False)
class Activations:
    """Activations of one prompt; a site that was not asked for is None. `layers` and `positions` label the first and token axes.

    - `residual`: the residual stream after each layer.
    - `heads`: each head's output z before `o_proj`.
    - `neurons`: the MLP's activations, the input of `down_proj`.
    - `attention`: attention weights of `positions` over all tokens of the prompt.
    - `logits`: of the last token.
    - `gradients`: the same sites' gradients of a metric, where one was asked for.
    """

    layers: tuple[int, ...]
    positions: tuple[int, ...]
    logits: Float[Tensor, " vocabulary"] = field(repr=False)
    residual: Float[Tensor, "layer token d_model"] | None = field(default=None, repr=False)
    heads: Float[Tensor, "layer head token d_head"] | None = field(default=None, repr=False)
    neurons: Float[Tensor, "layer token d_mlp"] | None = field(default=None, repr=False)
    attention: Float[Tensor, "layer head token key"] | None = field(default=None, repr=False)
    gradients: "Activations | None" = field(default=None, repr=False)

    def at(self, site: str, layer: int, position: int) -> Tensor:
        """A site's activation at a layer and a token index of the prompt: [d_model], [head, d_head], [d_mlp] or [head, key]."""
        values = getattr(self, site) if site in SITES else None
        if values is None:
            raise InputError(f"{site!r} was not collected here; ask for it: collect(vlm, prompt, [{site!r}]).")
        if layer not in self.layers or position not in self.positions:
            held = f"layers {_range(self.layers)}, positions {_range(self.positions)}"
            raise InputError(f"Layer {layer}, position {position} was not collected here; there are {held}.")
        return values[self.layers.index(layer)].select(-2, self.positions.index(position))


def _range(labels: tuple[int, ...]) -> str:
    return f"{labels[0]} to {labels[-1]}" if labels == tuple(range(labels[0], labels[-1] + 1)) else ", ".join(map(str, labels))
