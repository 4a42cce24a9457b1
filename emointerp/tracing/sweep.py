"""The fourth verb: `sweep`, many interventions at once on a shared prefix."""

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor

from emointerp.errors import InputError
from emointerp.given import expected, texts, whole_number
from emointerp.models import VLM, Prompt
from emointerp.models.anatomy import Anatomy, part
from emointerp.models.prompts import as_prompts
from emointerp.models.vlm import check_model
from emointerp.tracing.branches import Branches, first_touched, prefix_of
from emointerp.tracing.edits import Edit, ScaleAttention, as_edits
from emointerp.tracing.metrics import Metric, as_metric
from emointerp.tracing.overflow import Overflow, finite, overflow
from emointerp.tracing.plan import check
from emointerp.tracing.remote import Forwards
from emointerp.tracing.verbs import Prompts, checked_layers, generate, generated, run

EditLists = Mapping[Hashable, Iterable[Edit]] | Iterable[Iterable[Edit]]
BUDGET = 2**30  # bytes that a forward of branches may take beside the weights and the prefix
TOKENS = 512  # tokens of one forward, beyond which more of them do not make it quicker
NAMED = 5  # interventions that an error names
LONG = 128  # tokens of a branch from which rows of a copied cache are as quick as a tree; below, a tree is


class SweepInterrupted(KeyboardInterrupt):
    """A sweep was stopped; `partial` holds what was finished, NaN or None elsewhere."""

    def __init__(self, partial: "Sweep"):
        super().__init__("The sweep was stopped; what was finished is in `.partial` of this error.")
        self.partial = partial


@dataclass(frozen=True, eq=False)
class Sweep:
    """Results of a sweep, an entry an intervention.

    `labels` names the interventions; `values` [prompt, intervention, …] are the metric's, `baseline` [prompt, …] the one without
    any edit. Where answers were generated, `texts[prompt][intervention]` and `baseline_texts[prompt]` hold them.
    """

    labels: pd.Index
    values: Tensor | None = field(default=None, repr=False)
    baseline: Tensor | None = field(default=None, repr=False)
    texts: tuple[tuple[str | None, ...], ...] | None = field(default=None, repr=False)
    baseline_texts: tuple[str | None, ...] | None = field(default=None, repr=False)

    def to_frame(self) -> pd.DataFrame:
        """A row a prompt and intervention: prompt, the label's columns, then value and baseline, or text and baseline_text."""
        n = len(self.texts) if self.values is None else len(self.values)
        frame = pd.concat([self.labels.to_frame(index=False)] * n, keys=range(n), names=["prompt"]).reset_index(level=0)
        frame = frame.reset_index(drop=True)
        if self.texts is not None:
            frame["text"] = [text for some in self.texts for text in some]
            frame["baseline_text"] = [text for text in self.baseline_texts for _ in self.labels]
        elif self.values.ndim == 2:
            frame["value"] = self.values.flatten().tolist()
            frame["baseline"] = self.baseline.repeat_interleave(len(self.labels)).tolist()
        else:
            raise InputError(f"The metric gave {list(self.values.shape[2:])} values each; use `.values`, a table needs one.")
        return frame

    def grid(self) -> pd.DataFrame:
        """Values less the baseline, mean over prompts: one row a first label, one column a second."""
        if self.values is None or self.values.ndim > 2 or self.labels.nlevels != 2:
            raise InputError("A grid needs one number for each intervention and labels of two parts, such as (layer, head).")
        effect = (self.values - self.baseline[:, None]).mean(0)
        return pd.Series(effect.tolist(), index=self.labels).unstack(sort=False)


def sweep(
    vlm: VLM,
    prompts: Prompts,
    edit_lists: EditLists | Callable[[int], EditLists],
    metric: Metric | Callable[[Tensor], Tensor] | None = None,
    *,
    max_new_tokens: int | None = None,
    logits_processor: Iterable[Callable] = (),
    names: str | Iterable[str] | None = None,
    budget: int = BUDGET,
    progress: bool = True,
) -> Sweep:
    """The metric, or the greedy answer of `max_new_tokens`, under each of many interventions on each prompt.

    `edit_lists` maps labels (a tuple makes several columns, called `names`) to lists of edits; a plain sequence is numbered. Where
    interventions differ between prompts, give a function of the prompt's number. The unedited run is always measured beside them.
    All that is given as a generator is read once, into lists.

    Exact: each intervention gives what a forward of its own would, up to the rounding of floating-point sums; in float32 about
    1e-5 of a logit. Answers are those of a greedy `generate`; in half precision near-ties may choose another token. Of the model's
    generation config only the end tokens and the repetition penalty are read. A `logits_processor` gets the branches that go on,
    so one that remembers rows does not fit.

    As many interventions share a forward as `budget` bytes allow by an estimate, beside weights, prefix and its copy; at least one.
    Ctrl-C raises `SweepInterrupted`, which holds what is done. Where a forward's numbers are not finite, ModelError names those of
    its interventions that overflow; the ones after it were not run.

    A model that runs elsewhere (`remote`) shares no prefix: each intervention is a row of a batch of whole prompts, some 8,192
    tokens a request, and answers are those of its own greedy `generate`.

    >>> import emointerp as ei
    >>> vlm, pair = ei.load(), ei.world_pairs("test", 1)[0]
    >>> looks = {(layer, beta): [ei.ScaleAttention(layer, beta, query="last")] for layer in range(8) for beta in (2, 8)}
    >>> angry = ei.tracing.logit_mass(vlm, ["angry", "furious"])
    >>> found = ei.sweep(vlm, vlm.prompt(*pair.plus, answer="I felt"), looks, angry, names=("layer", "beta"), progress=False)
    >>> found.values.shape, found.to_frame().columns.tolist()
    (torch.Size([1, 16]), ['prompt', 'layer', 'beta', 'value', 'baseline'])
    """
    if (metric is None) == (max_new_tokens is None):
        raise InputError("Give a sweep either a metric or max_new_tokens, which makes it generate answers.")
    check_model(vlm)
    prompts, logits_processor = as_prompts(prompts), list(logits_processor)
    if max_new_tokens is not None:
        whole_number(max_new_tokens, "max_new_tokens", 1)
    one = None if callable(edit_lists) else _labelled(edit_lists)
    lists = [one or _labelled(edit_lists(i)) for i in range(len(prompts))]
    for prompt, (_, some) in zip(prompts, lists, strict=True):
        for edits in some:
            check(edits, vlm.anatomy, prompt)
    labels = _labels([labels for labels, _ in lists], names)
    answers = _Requested if vlm.remote else _Answers
    measure = answers(vlm, max_new_tokens, logits_processor) if metric is None else _Values(as_metric(metric))
    if metric is not None and measure.metric.layer is not None:
        checked_layers(vlm, measure.metric.layer)
    found: list[list[Any]] = [[None] * (len(labels) + 1) for _ in prompts]
    total = len(prompts) * (len(labels) + 1)
    try:
        with tqdm(total=total, desc="sweep", disable=not progress) as bar:
            for n, (row, prompt, (_, edits)) in enumerate(zip(found, prompts, lists, strict=True)):
                for some, forward in _forwards(vlm, prompt, [(), *edits], measure, budget):
                    with _naming([None, *lists[0][0]], some, f"On prompt {n}, " if len(prompts) > 1 else "With "):
                        values = measure.of(forward)
                    for i, value in zip(some, values, strict=True):
                        row[i] = value
                    bar.update(len(some))
    except KeyboardInterrupt:
        raise SweepInterrupted(_result(labels, found, metric is None)) from None
    return _result(labels, found, metric is None)


def _forwards(
    vlm: VLM, prompt: Prompt, lists: list, measure: Any, budget: int
) -> Iterator[tuple[Sequence[int], Branches | Forwards]]:
    """Which edit lists share a forward, and that forward."""
    if vlm.remote:
        chunk = Forwards.chunk(prompt)
        for first in range(0, len(lists), chunk):
            yield range(first, min(first + chunk, len(lists))), Forwards(vlm, prompt, lists[first : first + chunk])
        return
    starts: dict[int, list[int]] = defaultdict(list)
    for i, edits in enumerate(lists):
        starts[first_touched(vlm, prompt, edits)].append(i)
    prefix = prefix_of(vlm, prompt)
    for start, mine in starts.items():
        per_head = any(isinstance(e, ScaleAttention) for i in mine for e in lists[i])
        size = _Size(vlm, len(prompt) - start, start, per_head, measure.max_new_tokens)
        chunk = size.chunk(len(mine), budget)
        for first in range(0, len(mine), chunk):
            some = mine[first : first + chunk]
            yield some, Branches(vlm, prefix, [lists[i] for i in some], start, size.tree)


@dataclass(frozen=True)
class _Size:
    """How branches of `length` tokens behind a prefix of `start` are laid out, and how many fit into one forward.

    In a tree, attention passes over the tokens of all branches: in a layer 4 d_model operations for each token passed over, against
    2 (4 d_model² + 3 d_model d_mlp) for the weights. One that grew by `new` tokens a branch would end at three times 4 d_model +
    3 d_mlp tokens; but most answers end sooner, and their keys go, so that attention costs about as much as the weights.
    """

    vlm: VLM
    length: int
    start: int
    per_head: bool  # a mask for each head
    new: int = 0

    @property
    def tree(self) -> bool:
        """Short branches make a tree; from `LONG` tokens on, their masked attention costs more than copies of the cache."""
        return self.length < LONG

    def chunk(self, n: int, budget: int) -> int:
        """Branches a forward: as many as are quick and the budget allows, at least one; about the same number in each."""
        a: Anatomy = self.vlm.anatomy
        most = TOKENS // self.length
        if self.tree and self.new:
            most = min(most, 3 * (4 * a.d_model + 3 * a.d_mlp) // (self.length + self.new))
        while most > 1 and self.bytes(most) > budget:
            most = most * 3 // 4
        return math.ceil(n / math.ceil(n / max(1, most)))

    def bytes(self, branches: int) -> int:
        """Estimated peak of a forward: activations, masks and scores, keys and values, logits; and what makes the masks.

        A cache grows by being copied, a layer after the other, so a layer's counts twice. The copy of a prompt's own keys that all
        branches of a tree share is left out as the prefix is: were it counted, a long prompt would leave room for one branch.
        """
        a: Anatomy = self.vlm.anatomy
        tokens, own = branches * self.length, self.length + self.new
        keys, rows = (self.start + branches * own, 1) if self.tree else (self.start + own, branches)
        eager = part(self.vlm.model, a.family.language).config._attn_implementation == "eager"
        masks = (1 + a.n_heads * (3 * eager + 2 * self.per_head)) * tokens * keys
        activations = tokens * (8 * a.d_model + 4 * a.d_mlp + 4 * a.n_heads * a.d_head)
        added = branches * own if self.tree else keys * rows
        cache = 2 * a.n_kv_heads * a.d_head * (a.n_layers * added + keys * rows)
        logits = 3 * branches * a.vocabulary
        return (masks + activations + cache + logits) * self.vlm.model.dtype.itemsize + 16 * tokens * keys


@dataclass(frozen=True)
class _Values:
    """Measures branches by a metric."""

    metric: Metric
    max_new_tokens: ClassVar[int] = 0

    def of(self, forward: Branches | Forwards) -> list[Tensor]:
        """The metric of each branch, on the CPU; copied, because a view such as `logits[:, 0]` would keep all logits."""
        last = forward.last(self.metric)
        if not finite(last):
            raise _overflow(forward, self._broken, run)
        return list(self.metric(last).to("cpu", copy=True))

    def _broken(self, rows: Branches | Forwards) -> list[int]:
        return _not_finite(rows.last(self.metric))


@dataclass(frozen=True)
class _Answers:
    """Measures branches by the answers that they generate."""

    vlm: VLM
    max_new_tokens: int
    processors: Sequence[Callable]

    def of(self, branches: Branches) -> list[str]:
        """Answers as `VLM.generate` gives them."""
        processors = self._processors()

        def chosen(ids: Tensor, logits: Tensor, alive: Sequence[int]) -> Tensor:
            if not finite(logits):
                raise _overflow(branches, self._broken, partial(generate, max_new_tokens=self.max_new_tokens))
            return processors(ids, logits.float()).argmax(-1)

        tokens = branches.answers(self.max_new_tokens, chosen)
        return [text.strip() for text in self.vlm.tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    def _processors(self) -> LogitsProcessorList:
        penalty = self.vlm.model.generation_config.repetition_penalty
        own = [RepetitionPenaltyLogitsProcessor(penalty)] if penalty and penalty != 1 else []
        return LogitsProcessorList([*own, *self.processors])

    def _broken(self, rows: Branches) -> set[int]:
        processors, found = self._processors(), set()

        def chosen(ids: Tensor, logits: Tensor, alive: Sequence[int]) -> Tensor:
            found.update(alive[i] for i in _not_finite(logits))
            return processors(ids, logits.nan_to_num().float()).argmax(-1)

        rows.answers(self.max_new_tokens, chosen)
        return found


@dataclass(frozen=True)
class _Requested(_Answers):
    """Measures rows by the answers that a model generates on another machine."""

    def of(self, forwards: Forwards) -> list[str]:
        """Answers as `VLM.generate` gives them."""
        options = {"max_new_tokens": self.max_new_tokens, "do_sample": False, "logits_processor": list(self.processors)}
        tokens = generated(forwards.batch, **options)[:, len(forwards.prompt) :]
        return [text.strip() for text in self.vlm.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def _not_finite(values: Tensor) -> list[int]:
    return [i for i, row in enumerate(values) if not finite(row)]


def _overflow(forward: Branches | Forwards, broken: Callable[[Any], Collection[int]], verb: Callable) -> Overflow:
    """The error for a forward whose numbers are not finite, with the interventions that overflow by themselves.

    Only the first of these is done once more by a verb of its own, to see in which layer it begins.
    """
    found = sorted(first + i for first, rows in _apart(forward) for i in broken(rows))
    error = overflow(forward.vlm, lambda: [verb(forward.vlm, forward.prompt, forward.edit_lists[i]) for i in found[:1]])
    error.rows = tuple(found)
    return error


def _apart(forward: Branches | Forwards) -> Iterator[tuple[int, Branches | Forwards]]:
    """Interventions anew as rows of a batch: in a tree the NaN of one, 0 times infinity, passes to all. With the first's number."""
    if isinstance(forward, Forwards):
        yield 0, forward
        return
    prefix, lists, start = forward.prefix, forward.edit_lists, forward.start
    some = max(1, min(BUDGET // prefix.bytes, TOKENS // forward.length))
    for first in range(0, len(lists), some):
        yield first, Branches(forward.vlm, prefix, lists[first : first + some], start, tree=False)


@contextmanager
def _naming(labels: Sequence[Hashable], some: Sequence[int], where: str) -> Iterator[None]:
    """Tell an overflow with the labels of its interventions, unless the run without any edit, number 0, has it too."""
    try:
        yield
    except Overflow as error:
        broken = [some[row] for row in error.rows]
        if 0 in broken or not broken:
            raise
        named = ", ".join(repr(labels[i]) for i in broken[:NAMED]) + f" and {len(broken) - NAMED} more" * (len(broken) > NAMED)
        raise Overflow(f"{where}intervention{'s' * (len(broken) > 1)} {named}: {error}") from None


def _labelled(edit_lists: EditLists) -> tuple[list[Hashable], list[list[Edit]]]:
    if isinstance(edit_lists, Mapping):
        return list(edit_lists), [as_edits(edits) for edits in edit_lists.values()]
    lists = [as_edits(edits) for edits in expected(edit_lists, Iterable, "lists of edits by label: {'a': [AddVector(…)]}")]
    return list(range(len(lists))), lists


def _labels(given: list[list[Hashable]], names: str | Iterable[str] | None) -> pd.Index:
    names = None if names is None else texts(names, "names")
    if not given:
        raise InputError("There are no prompts to sweep over; make one with vlm.prompt(image, text).")
    if any(labels != given[0] for labels in given):
        raise InputError("The interventions have other labels for one prompt than for another; give all prompts the same.")
    if not given[0]:
        raise InputError("There are no interventions to sweep over.")
    sizes = {len(label) if isinstance(label, tuple) else None for label in given[0]}
    if len(sizes) == 1 and None not in sizes:
        return pd.MultiIndex.from_tuples(given[0], names=names or [f"label_{i}" for i in range(len(given[0][0]))])
    return pd.Index(given[0], name=names[0] if names else "intervention", tupleize_cols=False)


def _result(labels: pd.Index, found: list[list[Any]], is_text: bool) -> Sweep:
    if is_text:
        return Sweep(labels, texts=tuple(tuple(row[1:]) for row in found), baseline_texts=tuple(row[0] for row in found))
    shape = next((v.shape for row in found for v in row if v is not None), torch.Size())
    table = [torch.stack([torch.full(shape, torch.nan) if v is None else v for v in row]) for row in found]
    values = torch.stack(table)
    return Sweep(labels, values=values[:, 1:], baseline=values[:, 0])
