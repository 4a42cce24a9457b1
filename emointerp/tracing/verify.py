"""`verify`: do nnsight, the branches of a sweep, TransformerLens and plain PyTorch hooks agree on your model?

The same activations are read, and the same three patches are made, along four roads that share no code. Where they agree, what
one of them shows can be trusted; where one differs, the table says which, and by how much.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from emointerp.errors import ModelError
from emointerp.models import VLM, Prompt, bridge
from emointerp.models.anatomy import part
from emointerp.tracing.edits import Edit, ScaleNeurons, SetHead, SetResidual
from emointerp.tracing.sweep import sweep
from emointerp.tracing.verbs import collect, run

EVENT = "The phone rang twice while I was cooking."
# the largest difference that rounding explains, as a share of the largest value
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10, torch.float16: 5e-3, torch.bfloat16: 3e-2}
SITES = {"residual": "hook_resid_post", "heads": "attn.hook_z", "neurons": "mlp.hook_post"}


@dataclass(frozen=True, eq=False)
class Verification:
    """How far each road is from plain hooks.

    `table` has a row a measurement and a column a road: the largest absolute difference; NaN where a road does not know the
    model, infinite where it gave no number. `scale` is the largest value measured; `effect` how much a patch moved the logits.
    """

    table: pd.DataFrame
    tolerance: float
    note: str = ""

    @property
    def agrees(self) -> bool:
        """Whether every difference is within rounding, and every patch large enough for that to say something."""
        return not self.off() and not self.undecided()

    def _bound(self) -> pd.Series:
        return self.tolerance * self.table["scale"].clip(lower=1.0)

    def off(self) -> list[str]:
        """Roads that differ, and where."""
        roads = self.table.drop(columns=["scale", "effect"])
        off = roads.gt(self._bound(), axis=0) | roads.isin([math.inf])
        return [f"{road} ({what})" for road in roads for what in roads.index[off[road]]]

    def undecided(self) -> list[str]:
        """Patches whose whole effect is within rounding: agreement there would prove nothing."""
        return list(self.table.index[self.table["effect"] <= 4 * self._bound()])

    def __str__(self) -> str:
        shown = self.table.to_string(float_format=lambda v: "0" if v == 0 else f"{v:.1e}", na_rep="-")
        bound = f"Differences up to {self.tolerance:g} of the largest value are rounding."
        said = [f"These do NOT agree with plain hooks: {', '.join(self.off())}."] if self.off() else []
        if self.undecided():
            said.append(f"Cannot tell for {', '.join(self.undecided())}: the effect is within rounding. Load the model in float32.")
        return "\n".join(filter(None, [shown, bound, *(said or ["All roads agree."]), self.note]))


def verify(vlm: VLM, prompt: Prompt | None = None) -> Verification:
    """Read and patch a model by nnsight, by a sweep's branches, by TransformerLens and by plain hooks, and compare.

    Without a prompt, a grey picture and a plain sentence are used. The language layers' activations are compared at the last
    token; three patches (a head, the residual stream at the picture, neurons) by their logits.

    >>> import emointerp as ei
    >>> ei.verify(ei.load()).agrees
    True
    """
    prompt = prompt or vlm.prompt(Image.new("RGB", (256, 192), "#8a8f98"), EVENT)
    edits, twin, note = _patches(vlm), *_twin(vlm)
    rows, plain = _readings(vlm, prompt, twin), _forward(vlm, prompt)
    for name, edit in edits.items():
        expected = _by_hooks(vlm, prompt, edit)
        logits = {"nnsight": run(vlm, prompt, [edit]).logits}
        logits["branches"] = sweep(vlm, prompt, [[edit]], lambda logits: logits, progress=False).values[0, 0]
        if twin is not None:
            logits["TransformerLens"] = _by_twin(vlm, twin, prompt, edit)
        rows[name] = _row(expected, logits) | {"effect": float((expected - plain).abs().max())}
    roads = ["nnsight", "branches", "TransformerLens", "scale", "effect"]
    return Verification(pd.DataFrame(rows).T.reindex(columns=roads), TOLERANCE.get(vlm.model.dtype, 3e-2), note)


def _twin(vlm: VLM) -> tuple[Any, str]:
    try:
        return bridge(vlm), ""
    except ModelError as error:
        return None, str(error)


def _row(expected: Tensor, found: dict[str, Tensor]) -> dict[str, float]:
    differences = {road: float((value.float().cpu() - expected.float().cpu()).abs().max()) for road, value in found.items()}
    differences = {road: math.inf if math.isnan(largest) else largest for road, largest in differences.items()}
    return differences | {"scale": float(expected.float().abs().max())}


def _patches(vlm: VLM) -> dict[str, Edit]:
    """At the last token a head set to ten and half of a layer's neurons tripled; at the picture a constant residual stream."""
    a = vlm.anatomy
    middle = a.n_layers // 2
    return {
        "patched head": SetHead(middle, a.n_heads - 1, torch.full((a.d_head,), 10.0)),
        "patched picture": SetResidual(0, torch.full((a.d_model,), 0.1), "visual"),
        "scaled neurons": ScaleNeurons(middle, range(a.d_mlp // 2), 3.0, "last"),
    }


@torch.no_grad()
def _readings(vlm: VLM, prompt: Prompt, twin: Any) -> dict[str, dict[str, float]]:
    """Rows of the sites and of the plain logits, at the last token of every layer."""
    expected, acts = _hooked_cache(vlm, prompt), collect(vlm, prompt, list(SITES), positions="last")
    found = {site: {"nnsight": getattr(acts, site)} for site in SITES}  # one token: heads flatten in their order
    found["logits"] = {"nnsight": acts.logits}
    if twin is not None:
        logits, cache = twin.run_with_cache(prompt)
        found["logits"]["TransformerLens"] = logits[0, -1]
        for site, hook in SITES.items():
            layers = [cache[f"blocks.{i}.{hook}"][0, -1].flatten() for i in range(vlm.anatomy.n_layers)]
            found[site]["TransformerLens"] = torch.stack(layers)
    shaped = {what: {road: v.reshape(expected[what].shape) for road, v in roads.items()} for what, roads in found.items()}
    return {what: _row(expected[what], roads) for what, roads in shaped.items()}


def _modules(vlm: VLM, layer: int) -> dict[str, tuple[torch.nn.Module, bool]]:
    """The module of each site, and whether the site is what goes into it."""
    here = part(vlm.model, f"{vlm.anatomy.layers}.{layer}")
    return {"residual": (here, False), "heads": (here.self_attn.o_proj, True), "neurons": (here.mlp.down_proj, True)}


def _hook(module: torch.nn.Module, is_input: bool, function: Callable[[Tensor], Tensor | None]) -> Any:
    """A plain PyTorch hook that reads, or replaces, what goes into a module or comes out of it."""
    if not is_input:
        return module.register_forward_hook(lambda _module, _args, out: function(out))

    def before(_module: torch.nn.Module, args: tuple) -> tuple | None:
        value = function(args[0])
        return None if value is None else (value, *args[1:])

    return module.register_forward_pre_hook(before)


@torch.no_grad()
def _forward(vlm: VLM, prompt: Prompt) -> Tensor:
    return vlm.model(**vlm.placed(prompt.inputs), use_cache=False, logits_to_keep=1).logits[0, -1]


def _hooked_cache(vlm: VLM, prompt: Prompt) -> dict[str, Tensor]:
    kept: dict[str, list[Tensor]] = {site: [] for site in SITES}
    handles = []
    for layer in range(vlm.anatomy.n_layers):
        for site, (module, is_input) in _modules(vlm, layer).items():
            handles.append(_hook(module, is_input, lambda x, site=site: kept[site].append(x[0, -1].to("cpu", copy=True))))
    try:
        logits = _forward(vlm, prompt)
    finally:
        for handle in handles:
            handle.remove()
    return {"logits": logits} | {site: torch.stack(values) for site, values in kept.items()}


def _changed(vlm: VLM, prompt: Prompt, edit: Edit, value: Tensor) -> Tensor:
    """What the edit makes of its site, [1, token, width], written out plainly."""
    value = value.clone()
    if isinstance(edit, SetHead):
        value[0, -1, edit.head * vlm.anatomy.d_head : (edit.head + 1) * vlm.anatomy.d_head] = edit.value.to(value)
    elif isinstance(edit, SetResidual):
        value[0, list(prompt.visual)] = edit.value.to(value)
    else:
        value[0, -1, : len(edit.neurons)] *= edit.factor
    return value


def _by_hooks(vlm: VLM, prompt: Prompt, edit: Edit) -> Tensor:
    module, is_input = _modules(vlm, edit.layer)[edit.site]
    handle = _hook(module, is_input, lambda x: _changed(vlm, prompt, edit, x))
    try:
        return _forward(vlm, prompt)
    finally:
        handle.remove()


@torch.no_grad()
def _by_twin(vlm: VLM, twin: Any, prompt: Prompt, edit: Edit) -> Tensor:
    """The same through TransformerLens, whose heads have an axis of their own."""
    name = f"blocks.{edit.layer}.{SITES[edit.site]}"

    def hook(value: Tensor, hook: Any) -> Tensor:
        return _changed(vlm, prompt, edit, value.flatten(2)).view(value.shape)

    return twin.run_with_hooks(prompt, fwd_hooks=[(name, hook)])[0, -1]
