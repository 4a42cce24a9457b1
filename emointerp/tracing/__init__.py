"""Interventions as values, and four verbs that act on a model.

An *edit* says what it touches, where and how (`AddVector`, `SetResidual`, `SetHead`, `SetNeurons`, `ScaleNeurons`,
`ScaleAttention`); `patch`, `mean_ablation` and `resample_ablation` make edits of other prompts' activations. A list of edits is an
intervention, and four verbs take one:

- `collect(vlm, prompt, ["residual", "heads"])`: activations, with their gradients if a metric is named;
- `run(vlm, prompt, edits)`: one forward;
- `generate(vlm, prompt, edits)`: an answer;
- `sweep(vlm, prompt, {label: edits, …}, metric)`: many interventions at once, exactly, as branches of one tree.

All run on the untouched Hugging Face model through nnsight.
"""

from emointerp.tracing.ablation import mean_ablation, patch, resample_ablation
from emointerp.tracing.activations import SITES, Activations
from emointerp.tracing.edits import (
    AddVector,
    Edit,
    ScaleAttention,
    ScaleNeurons,
    SetHead,
    SetNeurons,
    SetResidual,
    block_attention,
    load_edits,
    save_edits,
)
from emointerp.tracing.likelihood import answer_log_probs, perplexity
from emointerp.tracing.metrics import Metric, cosine, first_tokens, logit_difference, logit_mass, projection
from emointerp.tracing.sweep import Sweep, SweepInterrupted, sweep
from emointerp.tracing.verbs import Output, collect, generate, run
from emointerp.tracing.verify import Verification, verify

__all__ = [
    "Activations", "AddVector", "Edit", "Metric", "Output", "SITES", "ScaleAttention", "ScaleNeurons", "SetHead", "SetNeurons",
    "SetResidual", "Sweep", "SweepInterrupted", "Verification", "answer_log_probs", "block_attention", "collect", "cosine",
    "first_tokens", "generate", "load_edits", "logit_difference", "logit_mass", "mean_ablation", "patch", "perplexity",
    "projection", "resample_ablation", "run", "save_edits", "sweep", "verify",
]  # fmt: skip
