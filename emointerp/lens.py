"""Chapter 05: the logit lens. What would the model say next, if it stopped after this layer?

Every layer's residual stream is read with the model's own last step, the final norm and the unembedding:
`p[l] = softmax(W_U . LN_f(h[l]))` (nostalgebraist 2020; for visual tokens Neo et al. 2025). So one sees the layer at which an
emotion word becomes likely at the last token, and what each piece of the picture already says. Any vector of the residual stream
can be read the same way: what a head writes, a neuron's value vector, a steering vector.

Emotion mass is the summed probability of the emotion words' tokens. A word of several tokens is stood for by its first one; first
tokens that words of several emotions share, that are common words themselves ("for" of "forlorn") or have fewer than three letters
count for nobody (`emotion_tokens`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from matplotlib.collections import PatchCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from torch import Tensor
from tqdm.auto import tqdm

from emointerp.emotions import BASIC, words_for
from emointerp.errors import InputError
from emointerp.given import texts
from emointerp.models import VLM, Prompt
from emointerp.models.anatomy import part
from emointerp.pairs import Pair, check_number, twin_prompts
from emointerp.plots import BLUE, COLORS, GRAY, INK, YELLOW, band, new_figure
from emointerp.saved import Saved
from emointerp.statistics import mean_interval
from emointerp.tracing import Metric, collect
from emointerp.tracing.metrics import as_metric, first_token
from emointerp.tracing.weights import part_here
from emointerp.world import Example

Words = Mapping[str, Iterable[str]] | None
ENTROPY, MASS = "entropy", "emotion mass"
NAMED = {"log mass": "log p", "mass": "p", "log odds": "log odds"}
MASSES = tuple(NAMED)  # what `metrics_of` knows by name
CHUNK = 2**26  # numbers of one table of logits, 256 MB in float32
FEWEST_LETTERS = 3


def emotion_tokens(vlm: VLM, words: Mapping[str, Iterable[str]] | None = None) -> pd.DataFrame:
    """The tokens that count as emotion words: columns emotion, word, token, id, whole.

    `words` maps emotions (or labels of a concept of yours) to words; the lexicon's by default. `whole` is False where the token is
    only the first of a longer word. Left out are tokens that words of several emotions begin with, first tokens that are common
    words themselves (scikit-learn's list), and those of fewer than three letters: they would count what is no feeling.

    >>> import emointerp as ei
    >>> ei.lens.emotion_tokens(ei.load()).head(2)
      emotion   word   token    id  whole
    0   anger  anger   anger  1931   True
    1   anger  angry   angry  1501   True
    """
    listed = {e: words_for(e) for e in BASIC} if words is None else words
    rows = [
        (emotion, word, *first_token(vlm, form))
        for emotion, some in listed.items()
        for word in texts(some, f"words of {emotion}")
        for form in (f" {word}", f" {word.capitalize()}")
    ]
    table = pd.DataFrame(rows, columns=["emotion", "word", "id", "whole"])
    table.insert(2, "token", [vlm.tokenizer.decode([i]) for i in table.id])
    shared, text = table.groupby("id").emotion.transform("nunique") > 1, table.token.str.strip()
    common = ~table.whole & text.str.lower().isin(ENGLISH_STOP_WORDS)
    table = table[~shared & ~common & (text.str.len() >= FEWEST_LETTERS)]
    missing = [emotion for emotion in listed if emotion not in set(table.emotion)]
    if missing:
        raise InputError(f"No word of {', '.join(missing)} begins with a token of its own in this model; give other words.")
    return table.drop_duplicates(["emotion", "id"]).reset_index(drop=True)


def emotion_metrics(vlm: VLM, words: Words = None, kind: str = "log mass") -> dict[str, Metric]:
    """For each emotion the mass m of its words at the last token (`emotion_tokens`), their summed probability.

    "mass" is m, "log mass" its logarithm, "log odds" `log m - log(1 - m)`, both in nats. Where the answer is nearly sure, the log
    mass can hardly fall, so that what is taken away seems to matter less than what is put in; the log odds know no such ceiling.

    >>> import emointerp as ei
    >>> vlm, pair = ei.load(), ei.world_pairs("test", 1)[0]
    >>> angry = ei.lens.emotion_metrics(vlm)["anger"]
    >>> angry(ei.run(vlm, vlm.prompt(*pair.plus, answer="I felt")).logits[None]).shape
    torch.Size([1])
    """
    if kind not in MASSES:
        raise InputError(f"kind is {kind!r}; expected {', '.join(map(repr, MASSES))}.")

    def metric(emotion: str, ids: list[int]) -> Metric:
        def mass(logits: Tensor) -> Tensor:
            found = logits.log_softmax(-1)
            own = found[:, ids].logsumexp(-1)
            if kind == "log odds":
                return own - found.index_fill(-1, torch.tensor(ids, device=found.device), -torch.inf).logsumexp(-1)
            return own if kind == "log mass" else own.exp()

        return Metric(mass, name=f"{NAMED[kind]}({emotion})")

    return {emotion: metric(emotion, some.id.tolist()) for emotion, some in emotion_tokens(vlm, words).groupby("emotion")}


def metrics_of(vlm: VLM, pairs: Sequence[Pair], metric: Any, words: Words = None) -> dict[str, Metric]:
    """A metric for each emotion of the pairs: "log mass", "mass" or "log odds" of its words, or one `Metric` for all."""
    check_number(pairs)
    wanted = list(dict.fromkeys(pair.emotion for pair in pairs))
    if not isinstance(metric, str):
        return dict.fromkeys(wanted, as_metric(metric))
    if metric not in MASSES:
        raise InputError(f"metric is {metric!r}; expected {', '.join(map(repr, MASSES))}, or a Metric, which has a gradient.")
    known = emotion_metrics(vlm, words, metric)
    if strange := [emotion for emotion in wanted if emotion not in known]:
        raise InputError(f"Pairs show {', '.join(strange)}; there are words of {', '.join(known)}. Give `words` for the others.")
    return {emotion: known[emotion] for emotion in wanted}


@torch.no_grad()
def lens_logits(vlm: VLM, vectors: Float[Tensor, "... d_model"]) -> Float[Tensor, "... vocabulary"]:
    """Vectors of the residual stream read by the final norm and the unembedding."""
    norm, unembedding = part_here(vlm, vlm.anatomy.norm), part_here(vlm, vlm.anatomy.family.unembedding)
    weight = unembedding.weight
    return unembedding(norm(vectors.to(weight.device, weight.dtype))).float()


def words_of(vlm: VLM, vectors: Float[Tensor, "vector d_model"], k: int = 8, labels: Sequence[Any] | None = None) -> pd.DataFrame:
    """The words that vectors of the residual stream stand for: a row a vector, "token (probability)" a column, the likeliest first.

    For steering vectors, neurons' value vectors (`value_vectors`), what heads write (`head_writes`).
    """
    return _said(vlm, *lens_logits(vlm, vectors).softmax(-1).topk(k), labels=labels)


def value_vectors(vlm: VLM, layer: int, neurons: Sequence[int]) -> Float[Tensor, "neuron d_model"]:
    """What each neuron of a layer's MLP writes into the residual stream when it is 1: columns of `down_proj`.

    >>> import emointerp as ei
    >>> ei.lens.value_vectors(ei.load(), 6, [7, 9]).shape
    torch.Size([2, 192])
    """
    weight = _weight(vlm, f"{vlm.anatomy.layers}.{_checked_layer(vlm, layer)}.mlp.down_proj")
    if max(neurons) >= vlm.anatomy.d_mlp or min(neurons) < 0:
        raise InputError(f"Neurons {list(neurons)}: a layer of this model has neurons 0 to {vlm.anatomy.d_mlp - 1}.")
    return weight[:, list(neurons)].T.to(vlm.device)  # the layers may lie on several devices


def head_writes(vlm: VLM, heads: Float[Tensor, "layer head token d_head"]) -> Float[Tensor, "layer head token d_model"]:
    """What each head writes into the residual stream, `z[l, h] @ W_O[h]`; `heads` as `collect` gives them for all layers.

    >>> import emointerp as ei
    >>> vlm, pair = ei.load(), ei.world_pairs("test", 1)[0]
    >>> acts = ei.collect(vlm, vlm.prompt(*pair.plus), ["heads"], positions="last")
    >>> ei.lens.head_writes(vlm, acts.heads).shape
    torch.Size([8, 8, 1, 192])
    """
    if hasattr(part(vlm.structure, f"{vlm.anatomy.layers}.0"), "pre_feedforward_layernorm"):
        raise InputError("In Gemma models a norm follows the heads' sum, so a single head's write cannot be told apart.")
    if len(heads) != vlm.anatomy.n_layers:
        raise InputError(f"Heads of {len(heads)} layers came; collect all {vlm.anatomy.n_layers}.")
    written = []
    for layer, z in enumerate(heads):
        weight = _weight(vlm, f"{vlm.anatomy.layers}.{layer}.self_attn.o_proj").to(z.device)
        written.append(torch.einsum("htd,mhd->htm", z, weight.unflatten(1, (vlm.anatomy.n_heads, -1))))
    return torch.stack(written)


@dataclass(frozen=True, eq=False)
class LogitLens:
    """What each layer would say next at each token of a prompt.

    `entropy` in nats; `mass` per emotion; `top_ids` and `top_p` the likeliest tokens. Axes: layer, token, then emotion or rank.
    """

    vlm: VLM = field(repr=False)
    prompt: Prompt
    emotions: tuple[str, ...]
    entropy: Float[Tensor, "layer token"] = field(repr=False)
    mass: Float[Tensor, "layer token emotion"] = field(repr=False)
    top_ids: Int[Tensor, "layer token rank"] = field(repr=False)
    top_p: Float[Tensor, "layer token rank"] = field(repr=False)

    @property
    def n_layers(self) -> int:
        """Number of language layers."""
        return len(self.entropy)

    def to_frame(self, positions: Any = "last") -> pd.DataFrame:
        """A row a layer and position: position, token, top (likeliest next token), p, entropy, and the mass of each emotion."""
        rows = []
        for position in self.prompt.positions((positions,) if isinstance(positions, str | int) else positions):
            for layer in range(self.n_layers):
                here = (layer, position)
                row = {
                    "layer": layer,
                    "position": position,
                    "token": self.token(position),
                    "top": self._text(self.top_ids[here][0]),
                }
                row |= {"p": float(self.top_p[here][0]), ENTROPY: float(self.entropy[here])}
                rows.append(row | dict(zip(self.emotions, self.mass[here].tolist(), strict=True)))
        return pd.DataFrame(rows)

    def token(self, position: int) -> str:
        """The prompt's token at a position."""
        return self._text(self.prompt.input_ids[0, position])

    def words(self, position: int, k: int = 5) -> pd.DataFrame:
        """The k likeliest next tokens after each layer at a position: a row a layer, "token (probability)" a column."""
        return _said(self.vlm, self.top_p[:, position, :k], self.top_ids[:, position, :k]).rename_axis("layer")

    def values(self, show: str, layer: int) -> Float[np.ndarray, " token"]:
        """What a picture shows of each token after a layer: "entropy", "emotion mass", or the mass of one emotion."""
        if show == ENTROPY:
            return self.entropy[layer].numpy()
        if show == MASS:
            return self.mass[layer].sum(-1).numpy()
        if show not in self.emotions:
            raise InputError(f"{show!r} cannot be shown; expected {ENTROPY!r}, {MASS!r} or one of {', '.join(self.emotions)}.")
        return self.mass[layer, :, self.emotions.index(show)].numpy()

    def values_at_last(self, show: str) -> Float[np.ndarray, " layer"]:
        """The same at the last token, a number a layer."""
        return np.array([self.values(show, layer)[self.prompt.last] for layer in range(self.n_layers)])

    def plot(self) -> Figure:
        """Mass of each emotion at the last token, layer by layer; below, the likeliest word of each layer."""
        figure, axis = new_figure(width=8, height=3.6)
        last = self.mass[:, self.prompt.last]
        for i, emotion in enumerate(self.emotions):
            axis.plot(last[:, i].numpy(), color=COLORS.get(emotion, f"C{i}"), marker="o", markersize=4, label=emotion)
        words = [_visible(self._text(i)) for i in self.top_ids[:, self.prompt.last, 0]]
        crowded = self.n_layers * max(len(word) for word in words) > 72  # then words stand slanted, beside their layer
        slanted = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if crowded else {}
        labels = [f"{word} {layer}" if crowded else f"{layer}\n{word}" for layer, word in enumerate(words)]
        axis.set_xticks(range(self.n_layers), labels, fontsize=9, **slanted)
        axis.set(ylim=(0, 1), ylabel="probability", xlabel="layer, and its likeliest next token")
        axis.set_title(f"What comes after “{_visible(self._text(self.prompt.input_ids[0, -1]))}”, read layer by layer")
        figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=9)
        return figure

    def plot_words(self, positions: Any = None) -> Figure:
        """The lens as a table: the likeliest next token at some positions (by default the last eight), layer by layer."""
        chosen = self.prompt.positions(range(-8, 0) if positions is None else positions)
        p, ids = self.top_p[:, list(chosen), 0].numpy(), self.top_ids[:, list(chosen), 0]
        figure, axis = new_figure(width=1.0 + 0.95 * len(chosen), height=0.8 + 0.34 * self.n_layers)
        image = axis.imshow(p, cmap="Blues", vmin=0, vmax=1, aspect="auto", origin="lower")
        for layer in range(self.n_layers):
            for column in range(len(chosen)):
                word, color = _visible(self._text(ids[layer, column])), "white" if p[layer, column] > 0.6 else INK
                axis.text(column, layer, word, ha="center", va="center", fontsize=8, color=color)
        axis.set_xticks(range(len(chosen)), [_visible(self.token(t)) for t in chosen])
        axis.set(ylabel="layer", xlabel="token of the prompt", yticks=range(self.n_layers))
        axis.set_title("Likeliest next token after each layer")
        figure.colorbar(image, label="probability")
        return figure

    def plot_picture(self, show: str = MASS, layers: Sequence[int] | None = None) -> Figure:
        """The picture's tokens coloured by entropy, emotion mass or one emotion's mass, a picture a layer, on one scale."""
        chosen = list(range(self.n_layers) if layers is None else layers)
        values = [self.values(show, layer)[list(self.prompt.visual)] for layer in chosen]
        scale = Normalize(min(v.min() for v in values) if show == ENTROPY else 0, max(1e-6, *(v.max() for v in values)))
        columns = min(4, len(chosen))
        rows = -(-len(chosen) // columns)
        figure, axes = new_figure(rows, columns, width=2.1 * columns, height=2.2 * rows + 0.5, squeeze=False)
        for axis in axes.flat:
            axis.axis("off")
        for axis, layer, value in zip(axes.flat, chosen, values, strict=False):
            drawn = draw_over(axis, self.prompt, self.vlm.boxes(self.prompt), value, scale)
            axis.set_title(f"layer {layer}", fontsize=9)
        figure.colorbar(drawn, ax=axes, shrink=0.7, label=f"{show} (nats)" if show == ENTROPY else show)
        return figure

    def _text(self, token: Any) -> str:
        return self.vlm.tokenizer.decode([int(token)])


def logit_lens(vlm: VLM, prompt: Prompt, words: Mapping[str, Iterable[str]] | None = None, k: int = 8) -> LogitLens:
    """Read every layer's residual stream at every token of a prompt.

    `words` maps emotions, or the labels of a concept of yours, to words (`emotion_tokens`). Begin the answer in the prompt to look
    at the place where the word is due: `vlm.prompt(image, event, answer="I felt")`.

    >>> import emointerp as ei
    >>> vlm, pair = ei.load(), ei.world_pairs("test", 1)[0]
    >>> lens = ei.logit_lens(vlm, vlm.prompt(*pair.plus, answer="I felt"))
    >>> lens.entropy.shape, lens.mass.shape
    (torch.Size([8, 103]), torch.Size([8, 103, 6]))
    """
    ids, residual = _ids(vlm, words), collect(vlm, prompt, ["residual"]).residual
    read = [
        _read(vlm, part_, list(ids.values()), k) for h in residual for part_ in h.split(max(1, CHUNK // vlm.anatomy.vocabulary))
    ]
    entropy, mass, top_p, top_ids = (torch.cat(parts).unflatten(0, residual.shape[:2]) for parts in zip(*read, strict=True))
    return LogitLens(vlm, prompt, tuple(ids), entropy, mass, top_ids, top_p)


@dataclass(frozen=True, eq=False)
class Emergence(Saved):
    """Over many pictures: how likely the words of the pictured emotion (or label) are at the last token, after each layer.

    `table` has a row a picture and layer: picture, emotion, layer; `pictured` (mass of the pictured emotion's words), `others` (of
    the other emotions' words), `twin` (of the pictured emotion's words beside the neutral twin: the control), and `leads` (whether
    it outweighs each other emotion).
    """

    table: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """Means over pictures with their 95% bootstrap intervals: a row a layer, an `Interval` a column."""
        columns = ["pictured", "others", "twin", "leads"]
        return self.table.groupby("layer")[columns].agg(lambda values: mean_interval(values.astype(float)))

    def plot(self) -> Figure:
        """Mean mass by layer with 95% intervals."""
        figure, axis = new_figure(width=7, height=3.4)
        frame = self.to_frame()
        shown = {
            "pictured": ("the pictured emotion", BLUE),
            "others": ("the others together", YELLOW),
            "twin": ("the same emotion, neutral twin", GRAY),
        }
        for column, (label, color) in shown.items():
            band(axis, frame.index, frame[column], color, label)
        axis.set(ylim=(0, 1), xlabel="layer", ylabel="probability", title="When the word becomes likely")
        axis.legend(fontsize=9, loc="upper left")
        return figure


def emergence(
    vlm: VLM,
    examples: Sequence[Example | Pair],
    answer: str = "I felt",
    batch: int = 32,
    progress: bool = True,
    words: Words = None,
) -> Emergence:
    """Read the last token of many pictures' prompts, whose answers begin with `answer`, beside their neutral twins.

    `examples` are scenes of one of the six emotions, each with its event: `sample("test", 60, emotions=BASIC)`; or pairs of yours.
    `words` as in `emotion_tokens`: for pairs of a concept of yours, those of its labels.
    """
    frames, ids = [], _ids(vlm, words)
    for start in tqdm(range(0, len(examples), batch), desc="lens", disable=not progress):
        some = [_as_pair(e) for e in examples[start : start + batch]]
        prompts = zip(*(twin_prompts(vlm, pair, answer) for pair in some), strict=True)
        seen, twins = (_last_mass(vlm, list(side), ids) for side in prompts)
        frames += [_emerged(start + i, pair.emotion, seen[i], twins[i]) for i, pair in enumerate(some)]
    return Emergence(pd.concat(frames, ignore_index=True))


def _as_pair(given: Example | Pair) -> Pair:
    """A scene beside its neutral twin, or a pair as it came."""
    return given if isinstance(given, Pair) else Pair(given.scene, given.scene.neutral(), given.event, given.scene.emotion)


def _ids(vlm: VLM, words: Words) -> dict[str, Tensor]:
    """The tokens that count for each emotion."""
    return {emotion: torch.tensor(some.id.tolist()) for emotion, some in emotion_tokens(vlm, words).groupby("emotion", sort=False)}


def _last_mass(vlm: VLM, prompts: list[Prompt], ids: Mapping[str, Tensor]) -> list[pd.DataFrame]:
    """Mass of each emotion at the last token: a row a layer, for each prompt."""
    acts = collect(vlm, prompts, ["residual"], positions="last")
    return [pd.DataFrame(_read(vlm, a.residual[:, 0], list(ids.values()), 1)[1], columns=list(ids)) for a in acts]


def _emerged(picture: int, emotion: str, seen: pd.DataFrame, twin: pd.DataFrame) -> pd.DataFrame:
    if emotion not in seen:
        raise InputError(f"Picture {picture} shows {emotion!r}; expected one of {', '.join(seen)}. Give `words` for others.")
    others = seen.drop(columns=emotion)
    columns = {
        "pictured": seen[emotion],
        "others": others.sum(axis=1),
        "twin": twin[emotion],
        "leads": seen[emotion] > others.max(axis=1),
    }
    return pd.DataFrame({"picture": picture, "emotion": emotion, "layer": seen.index, **columns})


def _read(vlm: VLM, vectors: Tensor, ids: list[Tensor], k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Entropy, emotion mass and the likeliest tokens of some vectors, on the CPU."""
    log_p = lens_logits(vlm, vectors).log_softmax(-1)
    p = log_p.exp()
    top = p.topk(min(k, p.shape[-1]))
    mass = torch.stack([p[:, some.to(p.device)].sum(-1) for some in ids], -1)
    return tuple(t.cpu() for t in (-(p * log_p).nansum(-1), mass, top.values, top.indices))


def draw_over(axis: Any, prompt: Prompt, boxes: np.ndarray, values: np.ndarray, scale: Normalize) -> PatchCollection:
    """The picture in grey, with a colour over the box of each visual token that has one; the smaller box lies on top."""
    axis.imshow(prompt.image.convert("L"), cmap="gray", vmin=0, vmax=255)
    known = np.flatnonzero(~np.isnan(boxes).any(1))
    known = known[np.argsort(-((boxes[known, 2] - boxes[known, 0]) * (boxes[known, 3] - boxes[known, 1])), kind="stable")]
    shapes = [Rectangle((left, top), right - left, bottom - top) for left, top, right, bottom in boxes[known] - 0.5]
    drawn = PatchCollection(shapes, cmap="viridis", norm=scale, alpha=0.65, linewidth=0)
    drawn.set_array(np.asarray(values)[known])
    return axis.add_collection(drawn)


def _said(vlm: VLM, p: Tensor, ids: Tensor, labels: Sequence[Any] | None = None) -> pd.DataFrame:
    """Tokens and their probabilities, [row, rank], as words in a table."""
    rows = [
        [f"{vlm.tokenizer.decode([i])} ({q:.2f})" for i, q in zip(*row, strict=True)]
        for row in zip(ids.tolist(), p.tolist(), strict=True)
    ]
    return pd.DataFrame(rows, columns=range(1, ids.shape[1] + 1), index=labels)


def _visible(text: str) -> str:
    """A token as it can be read in a figure: blanks at its ends and line breaks as marks; a lone dollar is no formula."""
    return text.strip().replace("$", r"\$").replace("\n", "⏎") or repr(text)[1:-1].replace(" ", "␣")


def _weight(vlm: VLM, path: str) -> Tensor:
    weight = part_here(vlm, path).weight.detach()
    if not weight.is_floating_point() or weight.ndim != 2:
        raise InputError("Quantised weights cannot be read as vectors; load the model without `bits`.")
    return weight


def _checked_layer(vlm: VLM, layer: int) -> int:
    if not 0 <= layer < vlm.anatomy.n_layers:
        raise InputError(f"Layer {layer} is out of range; this model has layers 0 to {vlm.anatomy.n_layers - 1}.")
    return layer
