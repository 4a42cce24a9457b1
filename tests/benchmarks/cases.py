"""The benchmarks of models and their interventions: what is timed against what.

A case is our road and its peers, all giving the same numbers under the same names. Where a peer loops over cells and would take
minutes, it does a sample of them, and its seconds are scaled to all.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import peers
import torch
from case import Case, Numbers, Peer, Section
from subjects import SUBJECTS, Subject

from emointerp.tracing import Edit, SetHead, SetResidual, collect, generate, run, sweep
from emointerp.veena import Veena, on
from emointerp.widgets import steering

BUDGET = 256 * 2**20


def forward(subject: Subject) -> Case:
    """One forward without edits."""
    return Case(
        lambda: {"logits": run(subject.vlm, subject.prompt).logits},
        {
            "plain forward": Peer(partial(peers.plain_forward, subject)),
            "TransformerLens": Peer(partial(peers.lens_forward, subject)),
            "nnsight": Peer(partial(peers.nnsight_forward, subject)),
        },
    )


def collecting(subject: Subject) -> Case:
    """Residual stream and head outputs of all layers and tokens."""

    def ours() -> Numbers:
        acts = collect(subject.vlm, subject.prompt, ["residual", "heads"])
        return {"logits": acts.logits, "residual": acts.residual, "heads": acts.heads}

    return Case(
        ours,
        {
            "plain forward": Peer(partial(peers.plain_forward, subject)),
            "hooks": Peer(partial(peers.hooks_collect, subject)),
            "TransformerLens": Peer(partial(peers.lens_collect, subject)),
            "nnsight": Peer(partial(peers.nnsight_collect, subject)),
        },
    )


def _head_cells(subject: Subject) -> dict[Any, Edit]:
    a, last = subject.vlm.anatomy, subject.prompt.last
    values = subject.donor.heads[:, :, last]
    return {(layer, head): SetHead(layer, head, values[layer, head]) for layer in range(a.n_layers) for head in range(a.n_heads)}


def one_patch(subject: Subject) -> Case:
    """One head patched at the last token."""
    cells = dict([list(_head_cells(subject).items())[subject.vlm.anatomy.n_heads]])
    ((cell, edit),) = cells.items()
    return Case(
        lambda: {cell: run(subject.vlm, subject.prompt, [edit]).logits},
        {
            "hooks": Peer(partial(peers.hooks_loop, subject, cells)),
            "TransformerLens": Peer(partial(peers.lens_loop, subject, cells)),
            "nnsight": Peer(partial(peers.nnsight_loop, subject, cells)),
        },
    )


def _swept(subject: Subject, cells: dict[Any, Edit], **options: Any) -> Numbers:
    """A sweep of one edit a cell. The prompt is a new one to the package, so that reading it is timed too."""
    lists = {cell: [edit] for cell, edit in cells.items()}
    found = sweep(subject.vlm, replace(subject.prompt), lists, progress=False, **options)
    if found.texts is not None:
        return dict(zip(cells, found.texts[0], strict=True))
    return dict(zip(cells, found.values[0], strict=True)) | {"baseline": found.baseline[0]}


def _logits(logits: torch.Tensor) -> torch.Tensor:
    return logits


def _loops(subject: Subject, cells: dict[Any, Edit]) -> dict[str, Peer]:
    some = peers.sample(cells, subject.sampled)
    return {
        "hooks": Peer(partial(peers.hooks_loop, subject, some), len(some)),
        "TransformerLens": Peer(partial(peers.lens_loop, subject, some), len(some)),
        "nnsight": Peer(partial(peers.nnsight_loop, subject, some), len(some)),
    }


def head_map(subject: Subject) -> Case:
    """Every head of every layer patched at the last token, one at a time; TransformerLens by its own function for it."""
    cells = _head_cells(subject)
    some = peers.sample(cells, subject.sampled)
    lens = Peer(partial(peers.lens_head_map, subject, some), len(some))
    others = {"floor": Peer(partial(peers.floor, subject, len(cells)), len(cells)), **_loops(subject, cells)}
    return Case(partial(_swept, subject, cells, metric=_logits), others | {"TransformerLens": lens}, len(cells))


def _span_patches(subject: Subject, span: str) -> Case:
    positions = list(subject.prompt.span(span))
    cells = {i: SetResidual(i, subject.donor.residual[i, positions], span) for i in range(subject.vlm.anatomy.n_layers)}
    return Case(partial(_swept, subject, cells, metric=_logits), _loops(subject, cells), len(cells))


def _edited_answers(subject: Subject, alpha: float) -> tuple[Edit, Callable[[], Numbers], dict[str, Any]]:
    edit = subject.steering(0, subject.vlm.anatomy.n_layers // 2, alpha)
    options = {"max_new_tokens": subject.tokens, "min_new_tokens": subject.tokens}
    return edit, lambda: {0: generate(subject.vlm, subject.prompt, [edit], **options)}, options


def generation(subject: Subject) -> Case:
    """An answer with an edit at every step, one that adds nothing, so that plain generation must give the same text."""
    _, ours, options = _edited_answers(subject, 0.0)
    return Case(ours, {"plain generate": Peer(lambda: {0: subject.plain.generate(subject.prompt, **options)})})


def steered_generation(subject: Subject) -> Case:
    """An answer steered at every step."""
    edit, ours, options = _edited_answers(subject, 1.0)
    return Case(ours, {"hooks": Peer(partial(peers.hooks_answers, subject, {0: edit}, **options))})


def veena_generation(subject: Subject) -> Case:
    """An answer under VEENA left on, so weak that plain generation gives the same text; a head of each layer, and some neurons."""
    a = subject.vlm.anatomy
    heads, neurons = [(layer, layer % a.n_heads) for layer in range(a.n_layers)], [(a.n_layers - 1, n) for n in range(20)]
    value = Veena.of(subject.vlm, heads, neurons, l_emo=(a.n_layers - 1) // 2, beta=1 + 1e-6, gamma=1 + 1e-6)
    options = {"max_new_tokens": subject.tokens, "min_new_tokens": subject.tokens}

    def ours() -> Numbers:
        with on(subject.vlm, value):
            return {0: subject.vlm.generate(subject.prompt, **options)}

    return Case(ours, {"plain generate": Peer(lambda: {0: subject.plain.generate(subject.prompt, **options)})})


def generation_sweep(subject: Subject) -> Case:
    """Many steered answers, against as many calls of `generate`."""
    layers = subject.vlm.anatomy.n_layers
    cells = {i: subject.steering(i, i % layers, 0.25 + 1.5 * i / subject.answers) for i in range(subject.answers)}
    some, options = peers.sample(cells, subject.sampled), {"max_new_tokens": subject.tokens}

    def loop() -> Numbers:
        return {cell: generate(subject.vlm, subject.prompt, [edit], **options) for cell, edit in some.items()}

    others = {
        "loop of generate": Peer(loop, len(some)),
        "hooks": Peer(partial(peers.hooks_answers, subject, some, **options), len(some)),
    }
    return Case(partial(_swept, subject, cells, **options), others, len(cells))


def many_interventions(subject: Subject) -> Case:
    """Thousands of interventions in a given budget of memory, on a prompt that was read before."""
    layers = subject.vlm.anatomy.n_layers
    cells = {i: subject.steering(i, i % layers, 1.0) for i in range(subject.many)}
    some, lists = peers.sample(cells, subject.sampled), [[edit] for edit in cells.values()]

    def ours() -> Numbers:
        values = sweep(subject.vlm, subject.prompt, lists, lambda logits: logits[:, :8], budget=BUDGET, progress=False).values[0]
        return dict(zip(cells, values, strict=True))

    def loop() -> Numbers:
        return {cell: logits[:8] for cell, logits in peers.hooks_loop(subject, some).items()}

    return Case(ours, {"hooks": Peer(loop, len(some))}, len(cells), BUDGET)


def alpha_layer(subject: Subject) -> Case:
    """Stories of neutral pictures under every strength after every layer, against a loop of hooked `generate`.

    A story's length hangs on its strength and layer, so the loop does a sample that has as many of each.
    """
    layers, alphas = subject.vlm.anatomy.n_layers, [0.25 * (i + 1) for i in range(subject.alphas)]
    prompts = [subject.vlm.prompt(*pair.minus) for pair in subject.steered]
    labels = [(layer, alpha) for layer in range(layers) for alpha in alphas]
    options: dict[str, Any] = {"max_new_tokens": subject.story}

    def edits(pair: int, layer: int, alpha: float) -> list[Edit]:
        return subject.directions.edits(subject.steered[pair].emotion, layer, alpha)

    def ours() -> Numbers:
        fresh, lists = [replace(p) for p in prompts], [{label: edits(i, *label) for label in labels} for i in range(subject.pairs)]
        found = sweep(subject.vlm, fresh, lists.__getitem__, progress=False, **options)
        return {(i, *label): text for i, row in enumerate(found.texts) for label, text in zip(labels, row, strict=True)}

    n = 6 * subject.sampled
    cells = [((i + i * subject.pairs // n) % subject.pairs, i * layers // n, alphas[i % len(alphas)]) for i in range(n)]
    some = {cell: (prompts[cell[0]], edits(*cell)[0]) for cell in cells}
    loop = Peer(partial(peers.hooks_stories, subject, some, **options), len(some))
    return Case(ours, {"hooks": loop}, len(labels) * subject.pairs)


def panel(subject: Subject) -> Case:
    """From a strength that was never asked before to its story on the steering panel, against `generate`.

    Hooks tell the same stories, and a plain `generate` the one without a push. The strengths go up to half the slider: at stronger
    ones a model stammers up to the limit of its tokens, and all roads take as many times as long.
    """
    picture, event = subject.steered[0].minus
    emotion, layer, prompt = subject.directions.emotions[0], subject.vlm.anatomy.n_layers // 2, subject.vlm.prompt(picture, event)
    shown = steering(subject.vlm, subject.directions, {"neutral": picture}, event, layer=layer, alpha=0)
    alphas = [k * 7 % 60 * 0.025 for k in range(1, 60)]  # 7 and 60 share no factor: each strength comes once
    mine, theirs = iter(alphas), iter(alphas)

    def ours() -> Numbers:
        shown.controls["alpha"].value = next(mine)
        before, pushed = shown.stories
        return {"story": pushed.text, "unpushed": before.text}

    def hooks() -> Numbers:
        (edit,) = subject.directions.edits(emotion, layer, next(theirs))
        return peers.hooks_stories(subject, {"story": (prompt, edit)})

    return Case(ours, {"plain generate": Peer(lambda: {"unpushed": subject.plain.generate(prompt)}), "hooks": Peer(hooks)})


CASES: dict[str, Callable[[Subject], Case]] = {
    "forward": forward,
    "collect": collecting,
    "one-patch": one_patch,
    "head-map": head_map,
    "patch-query": partial(_span_patches, span="query"),
    "patch-visual": partial(_span_patches, span="visual"),
    "generate": generation,
    "generate-steered": steered_generation,
    "generate-veena": veena_generation,
    "generate-sweep": generation_sweep,
    "many": many_interventions,
    "alpha-layer": alpha_layer,
    "panel": panel,
}
SECTION = Section(SUBJECTS, CASES)
