"""Many interventions on one prompt as branches of one tree: what comes before the first edited token is computed once.

In causal attention the tokens before an edit do not feel it. So a prompt is read once (`Prefix`), and every intervention is a
branch: its tokens from the first edited one on, run behind the shared keys and values. Short branches stand behind one another in
one sequence, kept apart by a mask, and no branch has a cache of its own (a tree); long ones stand in rows of a batch, each with its
copy of the cache. Both are exact up to the rounding of floating-point sums in another order, for every family:

- Positions are given explicitly, the true ones (three axes in the Qwen families), so no state of the model is used.
- The mask is a float mask of the model's dtype. Gemma 3 gets two, for full and sliding attention, and its image tokens, which
  see each other in both directions, stay in one piece.
- A branch may start among the image tokens: the language model is called with the embeddings that it got, tiled; Qwen3-VL's
  deepstack features of the visual tokens are tiled with them.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from emointerp.models import VLM, Prompt
from emointerp.models.anatomy import part
from emointerp.tracing.edits import Edit, ScaleAttention
from emointerp.tracing.interleave import Visit, check_maskable, scaled_after, traced, visiting, writing
from emointerp.tracing.metrics import Metric
from emointerp.tracing.plan import Layout, Plan, Rows, Tree, plan_answer, plan_prompt

KEPT = 4  # prompts whose prefix stays in memory,
KEPT_BYTES = 2**30  # as long as their keys and values take no more than this
ENDED = 0.1  # share of a tree's keys that belong to branches that ended, from which they are dropped


@dataclass(frozen=True, eq=False)
class Prefix:
    """A prompt read once without edits.

    `embeds` [1, tokens, d_model] and `positions` [1, tokens] or [3, 1, tokens] are what the language model got; `keys_values` are
    those of each layer, [1, kv heads, tokens, d_head]; `blocks` [tokens] numbers images whose tokens see each other, else -1;
    `deepstack` holds Qwen3-VL's visual mask [1, tokens] and features, a list of [visual tokens, d_model].
    """

    prompt: Prompt
    embeds: Tensor
    positions: Tensor
    keys_values: list[tuple[Tensor, Tensor]]
    blocks: Tensor
    deepstack: tuple[Tensor, list[Tensor]] | None

    @property
    def bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(t.nbytes for pair in self.keys_values for t in pair)


def prefix_of(vlm: VLM, prompt: Prompt) -> Prefix:
    """The prefix of a prompt. The last few are kept, and read again once the model, its hooks or the prompt's inputs have changed.

    Changes through a weight's `.data`, which PyTorch does not count, are not seen: call `forget(vlm)` after them.
    """
    check_maskable(vlm)
    kept: OrderedDict[tuple, Prefix] = vlm.__dict__.setdefault("_prefixes", OrderedDict())
    state = _state(vlm)
    for key in [key for key in kept if key[0] != state]:
        del kept[key]
    key = (state, id(prompt), tuple((id(t), t._version) for t in prompt.inputs.values() if torch.is_tensor(t)))
    if key not in kept or kept[key].prompt is not prompt:
        kept[key] = _read(vlm, prompt)
    kept.move_to_end(key)
    while len(kept) > 1 and (len(kept) > KEPT or sum(prefix.bytes for prefix in kept.values()) > KEPT_BYTES):
        kept.popitem(last=False)
    return kept[key]


def forget(vlm: VLM) -> None:
    """Drop what is kept of prompts that were read."""
    vlm.__dict__.pop("_prefixes", None)


def _state(vlm: VLM) -> int:
    """A number that changes with the model's weights, buffers, hooks and attention."""
    seen: list[Any] = [part(vlm.model, vlm.anatomy.family.language).config._attn_implementation]
    for module in vlm.model.modules():
        tensors = (t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)
        seen += [(t.data_ptr(), t._version) for t in tensors]
        seen += [*module._forward_hooks, *module._forward_pre_hooks]
    return hash(tuple(seen))


@torch.no_grad()
def _read(vlm: VLM, prompt: Prompt) -> Prefix:
    cache, kwargs = DynamicCache(), {}
    language = part(vlm.model, vlm.anatomy.family.language)
    keep = language.register_forward_pre_hook(lambda _module, _args, given: kwargs.update(given), with_kwargs=True)
    try:  # nothing is edited here, so a plain hook does, which is quicker than a trace
        vlm.model(**vlm.placed(prompt.inputs), past_key_values=cache, use_cache=True, logits_to_keep=1)
    finally:
        keep.remove()
    embeds = kwargs["inputs_embeds"]
    positions = kwargs.get("position_ids")
    if positions is None:
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
    if positions.ndim == 3:
        positions = positions[-3:]  # a fourth axis would only serve to make a mask
    deepstack = (kwargs["visual_pos_masks"], kwargs["deepstack_visual_embeds"]) if kwargs.get("deepstack_visual_embeds") else None
    keys_values = [(layer.keys, layer.values) for layer in cache.layers]
    return Prefix(prompt, embeds, positions, keys_values, _blocks(vlm, prompt), deepstack)


def _blocks(vlm: VLM, prompt: Prompt) -> Tensor:
    blocks = torch.full((len(prompt),), -1)
    if vlm.anatomy.family.image_blocks:
        where = torch.tensor(prompt.visual)
        blocks[where] = torch.cat([torch.zeros(1, dtype=torch.long), (where.diff() > 1).long()]).cumsum(0)
    return blocks


def first_touched(vlm: VLM, prompt: Prompt, edits: Sequence[Edit]) -> int:
    """The first prompt token that an edit changes: where its branch starts. At the latest the last token."""
    where = [prompt.last]
    for edit in edits:
        listed = edit.query if isinstance(edit, ScaleAttention) else edit.positions
        where += prompt.positions(p for p in listed if p != "answer")
    start = min(where)
    if vlm.anatomy.family.image_blocks and start in prompt.visual:
        while start - 1 in prompt.visual:
            start -= 1
    return start


@dataclass(eq=False)
class Branches:
    """Interventions on one prompt, all from token `start` on, as a tree or as rows of a batch."""

    vlm: VLM
    prefix: Prefix
    edit_lists: Sequence[Sequence[Edit]]
    start: int
    tree: bool
    cache: DynamicCache = field(init=False)
    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        n, self.length = len(self.edit_lists), len(self.prompt) - self.start
        self.layout = Tree(self.start, self.length) if self.tree else Rows((0,) * n, self.start)
        copies = 1 if self.tree else n
        self.cache = DynamicCache(
            [(k[:, :, : self.start].expand(copies, -1, -1, -1), v[:, :, : self.start].expand(copies, -1, -1, -1))
             for k, v in self.prefix.keys_values]
        )  # fmt: skip
        self._seen = _Seen(self.prefix, self.start, n, self.tree)

    @property
    def prompt(self) -> Prompt:
        """The prompt that all branches share."""
        return self.prefix.prompt

    def last(self, metric: Metric) -> Tensor:
        """What the metric reads of each branch's last token: logits [branches, vocabulary], or the residual stream at its layer."""
        plan, kept = self._plan(), []
        ends = self._ends()
        if metric.layer is None:
            return self._logits(self._run(visiting(self.vlm), plan, self._inputs())[ends])
        visit = visiting(self.vlm, {"residual": [metric.layer]}, lambda site, layer, value: kept.append(value.flatten(0, 1)[ends]))
        self._run(visit, plan, self._inputs(), until=metric.layer)
        return kept[0]

    def answers(self, max_new_tokens: int, choose: Callable[..., Tensor]) -> list[list[int]]:
        """Greedy answers: `choose(token ids so far [branches, n], logits, their branches)` gives each branch's next token."""
        ids = self.prompt.input_ids.to(self.vlm.device).expand(len(self.edit_lists), -1)
        logits = self._logits(self._run(visiting(self.vlm), self._plan(), self._inputs())[self._ends()])
        alive, ends = list(range(len(self.edit_lists))), _end_tokens(self.vlm)
        found: list[list[int]] = [[] for _ in alive]
        plan = None
        for step in range(max_new_tokens):
            chosen = choose(ids, logits.to(ids.device), alive)
            for i, token in zip(alive, chosen.tolist(), strict=True):
                found[i].append(token)
            going = [k for k, token in enumerate(chosen.tolist()) if token not in ends]
            if not going or step + 1 == max_new_tokens:
                break
            if len(going) < len(alive) or plan is None:
                alive = [alive[k] for k in going]
                plan = plan_answer(self.edit_lists, [self.prompt], self.layout, alive, self.vlm.device)
                self._drop(going, alive, bool(plan.attending))
            ids = torch.cat([ids, chosen[:, None]], 1)[going]
            logits = self._logits(self._run(visiting(self.vlm), plan, self._next_inputs(ids[:, -1], alive, step)))
        return found

    @torch.no_grad()
    def following(self, answers: Tensor) -> Tensor:
        """Logits that each token of given answers [branches, tokens] comes out of: [branches, tokens, vocabulary].

        For branches without edits that start at the last prompt token, as rows.
        """
        before = self.vlm.model.get_input_embeddings()(answers[:, :-1])
        embeds = torch.cat([self._laid(self.prefix.embeds[:, self.start :]), before], 1)
        last = self.prefix.positions[..., self.start :]
        after = last.max() + torch.arange(1, answers.shape[1], device=last.device)
        positions = self._laid(torch.cat([last, after.expand(*last.shape[:-1], -1)], -1), -2)
        inputs = {"inputs_embeds": embeds, "position_ids": positions}
        inputs["attention_mask"] = self._masks(self._seen.own(answers.shape[1]))
        language = part(self.vlm.model, self.vlm.anatomy.family.language)
        return self._logits(language(**inputs, past_key_values=self.cache, use_cache=True).last_hidden_state)

    def _plan(self) -> Plan:
        tokens = self.length * len(self.edit_lists) if self.tree else self.length
        return plan_prompt(self.edit_lists, [self.prompt], self.layout, tokens, self.vlm.device)

    def _ends(self) -> Tensor:
        """Rows of the branches' last tokens among all tokens of the forward."""
        return torch.arange(1, len(self.edit_lists) + 1) * self.length - 1

    def _logits(self, hidden: Tensor) -> Tensor:
        with torch.no_grad():
            return part(self.vlm.model, self.vlm.anatomy.family.unembedding)(hidden)

    @torch.no_grad()
    def _run(self, visit: Visit, plan: Plan, inputs: dict[str, Any], until: int | None = None) -> Tensor | None:
        """The language model on the branches' tokens; its last hidden state [tokens of all branches, d_model], or None if it
        has to go only `until` a layer."""
        if until is None and not visit.wanted:  # nothing to collect, so plain hooks do, which are quicker than a trace
            with writing(self.vlm, plan):
                language = part(self.vlm.model, self.vlm.anatomy.family.language)
                return language(**inputs, past_key_values=self.cache, use_cache=True).last_hidden_state.flatten(0, 1)
        model, hidden = traced(self.vlm), None
        language = part(model, self.vlm.anatomy.family.language)
        with scaled_after(self.vlm, plan):
            with language.trace(**inputs, past_key_values=self.cache, use_cache=True) as tracer:
                visit(model, plan)
                if until is not None:
                    tracer.stop()
                hidden = language.output.last_hidden_state.save()
        return hidden if hidden is None else hidden.flatten(0, 1)

    def _inputs(self) -> dict[str, Any]:
        """What the language model gets for the branches' own tokens of the prompt."""
        n, prefix = len(self.edit_lists), self.prefix
        embeds, positions = prefix.embeds[:, self.start :], prefix.positions[..., self.start :]
        inputs = {"inputs_embeds": self._laid(embeds), "position_ids": self._laid(positions, -2)}
        if prefix.deepstack is not None:
            visual, features = prefix.deepstack
            mine, before = visual[:, self.start :], int(visual[:, : self.start].sum())
            inputs["visual_pos_masks"] = self._laid(mine)
            inputs["deepstack_visual_embeds"] = [f[before:].repeat(n, 1) for f in features]
        return inputs | {"attention_mask": self._masks(self._seen.own(self.length))}

    def _next_inputs(self, tokens: Tensor, alive: Sequence[int], step: int) -> dict[str, Any]:
        """What the language model gets for one more token of each branch that is still alive."""
        embeds = self.vlm.model.get_input_embeddings()(tokens)
        position = self.prefix.positions.max() + 1 + step
        shape = (1, len(alive)) if self.tree else (len(alive), 1)
        positions = position.expand(*self.prefix.positions.shape[:-2], *shape)
        mask = self._seen.next(alive)
        return {"inputs_embeds": embeds.view(*shape, -1), "position_ids": positions, "attention_mask": self._masks(mask)}

    def _laid(self, value: Tensor, batch: int = 0) -> Tensor:
        """A tensor of one branch, [1, tokens, …] with the batch axis at `batch`, laid out for all branches."""
        n = len(self.edit_lists)
        repeats = [1] * value.ndim
        repeats[batch + self.tree] = n
        return value.repeat(repeats)

    def _masks(self, see: tuple[Tensor, Tensor]) -> Any:
        """Float masks [1, 1, queries, keys] from what full attention and a sliding window may see."""
        causal, distance = see
        whole = self._float(causal)
        anatomy = self.vlm.anatomy
        if anatomy.window is None:
            return whole
        near = self._float(causal & (distance < anatomy.window))
        return {"full_attention": whole, "sliding_attention": near} if anatomy.mixed_windows else near

    def _float(self, see: Tensor) -> Tensor:
        dtype, device = self.prefix.embeds.dtype, self.vlm.device
        return torch.zeros(see.shape, dtype=dtype).masked_fill_(~see, -torch.inf)[None, None].to(device)

    def _drop(self, going: Sequence[int], alive: Sequence[int], counted: bool) -> None:
        """Branches that ended leave a batch. In a tree their keys go once they are many, unless edits count keys."""
        if not self.tree:
            self.cache.batch_select_indices(torch.tensor(going))
        elif not counted and (kept := self._seen.drop(alive)) is not None:
            for layer in self.cache.layers:
                layer.keys, layer.values = (t[:, :, kept.to(t.device)] for t in (layer.keys, layer.values))


class _Seen:
    """Which key each query may see: token numbers and branch numbers of all keys so far (-1: the prefix, seen by all)."""

    def __init__(self, prefix: Prefix, start: int, branches: int, tree: bool):
        self.blocks, self.start, self.branches, self.tree = prefix.blocks, start, branches if tree else 1, tree
        self.position = torch.arange(start)
        self.branch, self.end = torch.full((start,), -1), len(prefix.prompt)
        self.pieces = bool((self.blocks >= 0).any())

    def own(self, length: int) -> tuple[Tensor, Tensor]:
        """For the branches' own tokens of the prompt: what may be seen, and how far back it lies; [queries, keys] each."""
        self.end = self.start + length
        position = torch.arange(self.start, self.end).repeat(self.branches)
        return self._add(position, torch.arange(self.branches).repeat_interleave(length))

    def next(self, alive: Sequence[int]) -> tuple[Tensor, Tensor]:
        """For one more token of each branch that is alive."""
        branch = torch.tensor(alive) if self.tree else torch.zeros(1, dtype=torch.long)
        self.end += 1
        return self._add(torch.full((len(branch),), self.end - 1), branch)

    def drop(self, alive: Sequence[int]) -> Tensor | None:
        """Forget the keys of branches that ended, if their share is `ENDED` or more; which keys are kept, or None: all."""
        kept = ((self.branch < 0) | torch.isin(self.branch, torch.tensor(alive))).nonzero()[:, 0]
        if len(kept) > (1 - ENDED) * len(self.branch):
            return None
        self.position, self.branch = self.position[kept], self.branch[kept]
        return kept

    def _add(self, position: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        self.position, self.branch = torch.cat([self.position, position]), torch.cat([self.branch, branch])
        distance = position[:, None] - self.position
        mine = (self.branch < 0) | (branch[:, None] == self.branch)
        return ((distance >= 0) | self._same_image(position)) & mine, distance

    def _same_image(self, position: Tensor) -> Tensor:
        if not self.pieces:
            return torch.tensor(False)
        blocks = torch.cat([self.blocks, torch.full((self.end,), -1)])
        queries, keys = (blocks[p] for p in (position, self.position))
        return (queries[:, None] == keys) & (queries[:, None] >= 0)


def _end_tokens(vlm: VLM) -> set[int]:
    ends = vlm.model.generation_config.eos_token_id
    return set(ends) if isinstance(ends, list | tuple) else {ends}
