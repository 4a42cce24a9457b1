"""The methods: each gives a number for every pixel of a picture, how much it matters for a target.

Captum does plain gradient, input x gradient and integrated gradients. Our own are SmoothGrad (one batch of noisy copies and one
backward pass of their sum is quicker than a loop, needs no global seed as Captum's does, and gives the same numbers), Grad-CAM
(Captum's takes a layer's second axis for its channels; in a transformer that is the patches) and attention rollout (Captum has
none).

Four maps tell of pixels: `gradient`, `smoothgrad` (never negative, mean over channels of a size), `input_x_gradient` and
`integrated_gradients` (signed, summed over channels). Two tell of tokens only, and are as coarse as these: `grad_cam`, `rollout`.
Two are controls: `random_map` tells nothing; `picture_alone` asks no model and marks what differs from the mean colour, as any edge
detector would (Adebayo et al. 2018 show how much that looks like an explanation).
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor

from emointerp.errors import InputError
from emointerp.models.towers import Tower
from emointerp.saliency.layers import NoMapError, attention_weights, patch_order
from emointerp.saliency.places import paint
from emointerp.saliency.targets import Target, TowerTarget

Map = Float[np.ndarray, "height width"]
Function = Callable[[Tensor], Tensor]


def gradient(target: Target, image: Image.Image) -> Map:
    """The plain gradient: mean over channels of `|df/dx|` (Simonyan et al. 2013); Captum's `Saliency`."""
    from captum.attr import Saliency

    found = Saliency(target).attribute(_leaf(target, image), abs=True)
    return target.onto(_array(found[0].mean(-3)), image.size)


def smoothgrad(
    target: Target,
    image: Image.Image,
    n: int = 25,
    sigma: float = 0.15,
    signed: bool = False,
    batch: int = 25,
    seed: int = 0,
) -> Map:
    """SmoothGrad: the mean over `n` noisy copies of the mean over channels of `|df/dx|`.

    Noise has the standard deviation `sigma` times that of the picture's own numbers. `signed` averages the gradients themselves and
    takes their size afterwards, as Smilkov et al. (2017) do; the default is the blog's.
    """
    found = smoothed_gradient(target, target.pixels([image]), n, sigma, signed, batch, seed)
    return target.onto(_array(found.abs().mean(-3)), image.size)


def smoothed_gradient(
    f: Function,
    x: Float[Tensor, "1 *view"],
    n: int = 25,
    sigma: float = 0.15,
    signed: bool = False,
    batch: int = 25,
    seed: int = 0,
) -> Float[Tensor, "*view"]:
    """`mean_i |df/dx (x + sigma std(x) eps_i)|`, or the mean without the bars where it is `signed`, for each number of x.

    `batch` copies a forward; the same seed gives the same noise on every device and whatever the batch.
    """
    _check_noise(n, sigma, batch)
    noise = torch.randn(n, *x.shape[1:], generator=torch.Generator().manual_seed(seed))
    scale, total = sigma * x.std(), torch.zeros_like(x[0])
    for eps in noise.split(batch):
        noisy = (x + scale * eps.to(x)).requires_grad_()
        (found,) = torch.autograd.grad(f(noisy).sum(), noisy)
        total += (found if signed else found.abs()).sum(0)
    return total / n


def input_x_gradient(target: Target, image: Image.Image) -> Map:
    """`x df/dx`, summed over channels; signed (Shrikumar et al. 2016); Captum's."""
    from captum.attr import InputXGradient

    found = InputXGradient(target).attribute(_leaf(target, image))
    return target.onto(_array(found[0].sum(-3)), image.size)


def integrated_gradients(target: Target, image: Image.Image, steps: int = 32, batch: int = 32) -> Map:
    """Gradients along the way from a blank of the picture's mean colour to the picture, times that way; signed, Captum's.

    The sum over all pixels is `f(picture) - f(blank)` (Sundararajan et al. 2017), as far as `steps` suffice and the model sees no
    more than the picture.
    """
    from captum.attr import IntegratedGradients

    x = _leaf(target, image)
    found = IntegratedGradients(target).attribute(x, _blank(x.detach()), n_steps=steps, internal_batch_size=batch)
    return target.onto(_array(found[0].sum(-3)), image.size)


def grad_cam(target: Target, image: Image.Image) -> Map:
    """Grad-CAM (Selvaraju et al. 2017) over tokens: `relu(sum_d mean_t(df/dA_td) A_td)`, a number a token t.

    The "convolution" A is the patches after the tower's last layer but one (after the last, a tower that pools its class token has
    no gradient on patches), Qwen's before they are merged; of an answer it is the visual tokens as they enter the language model.
    NoMapError where the order of a tower's patches is not known.
    """
    tokens, visual, value = target.tokens(target.pixels([image]))
    (slope,) = torch.autograd.grad(value.sum(), tokens)
    cam = (visual(slope).mean(1, keepdim=True) * visual(tokens)).sum(-1).relu()
    return paint(_array(cam[0]), target.boxes(image.size), image.size)


def rollout(target: Target, image: Image.Image) -> Map:
    """Attention rollout (Abnar and Zuidema 2020): how much of each patch reaches the tower's vector, if attention were all.

    The product over layers of `(A + I) / 2`, A the mean over heads, weighed by where the vector is taken from: the pooling head's
    attention (SigLIP has no class token), the class token, or all patches alike. It hangs on the picture and not on the target.
    NoMapError for an answer, and where the order of a tower's patches is not known.
    """
    if not isinstance(target, TowerTarget):
        raise NoMapError("Rollout tells of a tower, not of an answer; take a target of the tower (`toward`, `feature`).")
    paths = rolled_out(target.tower, target.pixels([image]))
    return paint(_array(paths[0]), target.boxes(image.size), image.size)


@torch.no_grad()
def rolled_out(tower: Tower, pixels: Float[Tensor, "n channel height width"]) -> Float[Tensor, "n patch"]:
    """The share of a tower's vector that rollout traces to each patch that its layers hold, in rows; the class token left out."""
    attention, taken = attention_weights(tower, pixels.to(next(tower.model.parameters()).dtype))
    tokens, patches = attention[0].shape[-1], patch_order(tower)
    itself = torch.eye(tokens, device=attention[0].device)
    paths = itself.expand(len(pixels), -1, -1)
    for weights in attention:
        paths = (weights / 2 + itself / 2) @ paths
    if taken is None:  # from the class token, which is no patch and comes first, or from all
        has_class = isinstance(patches, slice) and tokens > tower.n_patches
        taken = itself[None, :1] if has_class else paths.new_full((1, 1, tokens), 1 / tokens)
    return (taken @ paths)[:, 0, patches]


def random_map(target: Target, image: Image.Image, seed: int = 0, blur: float = 1 / 16) -> Map:
    """The control: noise, smoothed over `blur` of the picture's longer side so that it has blobs as maps have, squared.

    Smoothed around the edges, so that no place has more than its share.
    """
    noise = np.random.default_rng(seed).standard_normal(image.size[::-1])
    return gaussian_filter(noise, blur * max(image.size), mode="wrap") ** 2


def picture_alone(target: Target, image: Image.Image) -> Map:
    """The control for methods that multiply by the picture: how far each pixel is from the mean colour, whatever the model."""
    x = target.pixels([image])
    return target.onto(_array((x - _blank(x))[0].abs().mean(-3)), image.size)


METHODS: dict[str, Callable[..., Map]] = {
    "smoothgrad": smoothgrad,
    "gradient": gradient,
    "input x gradient": input_x_gradient,
    "integrated gradients": integrated_gradients,
    "grad-cam": grad_cam,
    "rollout": rollout,
    "picture alone": picture_alone,
    "random": random_map,
}


def method_named(name: str) -> Callable[..., Map]:
    """A method by its name in `METHODS`."""
    if name not in METHODS:
        raise InputError(f"There is no method {name!r}; expected one of {', '.join(METHODS)}.")
    return METHODS[name]


def _blank(x: Tensor) -> Tensor:
    """A picture of the mean colour."""
    return x.mean((-2, -1), keepdim=True).expand_as(x).contiguous()


def _leaf(target: Target, image: Image.Image) -> Tensor:
    return target.pixels([image]).requires_grad_()


def _array(values: Tensor) -> np.ndarray:
    return values.detach().float().cpu().numpy()


def _check_noise(n: int, sigma: float, batch: int) -> None:
    if not isinstance(n, int | np.integer) or n < 1:
        raise InputError(f"n is {n!r}; expected a whole number of noisy copies, 1 or more.")
    if not 0 <= sigma < float("inf"):
        raise InputError(f"sigma is {sigma}; expected 0 or more, in standard deviations of the picture's own numbers.")
    if batch < 1:
        raise InputError(f"batch is {batch}; expected 1 or more copies a forward.")
