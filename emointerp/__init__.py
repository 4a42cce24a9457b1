"""The face of the package: names that import what stands behind them only when they are first used.

``import emointerp`` loads neither torch nor transformers nor matplotlib (PEP 562), so that the command line answers
at once and a notebook pays only for what it touches.

>>> import emointerp as ei
>>> ei.emotions.__name__
'emointerp.emotions'
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from emointerp import (
        circuit,
        directions,
        emotions,
        evaluation,
        exercises,
        faithfulness,
        flow,
        heads,
        lens,
        models,
        neurons,
        pairs,
        plots,
        probes,
        sources,
        start_here,
        statistics,
        steering,
        tour,
        tracing,
        training,
        veena,
        widgets,
        world,
    )
    from emointerp.circuit import Circuit
    from emointerp.directions import Directions
    from emointerp.flow import information_flow, knockouts, patching
    from emointerp.heads import attribution_map, check_heads, head_map, specificity
    from emointerp.lens import logit_lens
    from emointerp.models import activation_cache, bridge, load
    from emointerp.neurons import neuron_scores, state_neurons, trigger_neurons
    from emointerp.pairs import Pair, read_pairs, world_pairs
    from emointerp.probes import unmodified_pass
    from emointerp.start_here import see_or_guess, tell
    from emointerp.steering import semantic_projection, steer, steering_vectors
    from emointerp.tracing import (
        AddVector,
        Metric,
        ScaleAttention,
        ScaleNeurons,
        SetHead,
        SetNeurons,
        SetResidual,
        block_attention,
        collect,
        generate,
        load_edits,
        mean_ablation,
        patch,
        resample_ablation,
        run,
        save_edits,
        sweep,
        verify,
    )
    from emointerp.veena import Veena

__version__ = "0.1.0"

_FACES = {
    "circuit": "Circuit",
    "directions": "Directions",
    "flow": "information_flow knockouts patching",
    "heads": "attribution_map check_heads head_map specificity",
    "lens": "logit_lens",
    "models": "activation_cache bridge load",
    "neurons": "neuron_scores state_neurons trigger_neurons",
    "pairs": "Pair read_pairs world_pairs",
    "probes": "unmodified_pass",
    "start_here": "see_or_guess tell",
    "steering": "semantic_projection steer steering_vectors",
    "tracing": "AddVector Metric ScaleAttention ScaleNeurons SetHead SetNeurons SetResidual block_attention collect generate "
    "load_edits mean_ablation patch resample_ablation run save_edits sweep verify",
    "veena": "Veena",
}
_FUNCTIONS = {name: f"{__name__}.{room}" for room, names in _FACES.items() for name in names.split()}

__all__ = [
    "AddVector", "Circuit", "Directions", "Metric", "Pair", "ScaleAttention", "ScaleNeurons", "SetHead", "SetNeurons",
    "SetResidual", "Veena", "__version__", "activation_cache", "attribution_map", "block_attention", "bridge", "check_heads",
    "circuit", "collect", "directions", "emotions", "evaluation", "exercises", "faithfulness", "flow", "generate", "head_map",
    "heads", "information_flow", "knockouts", "lens", "load", "load_edits", "logit_lens", "mean_ablation", "models",
    "neuron_scores", "neurons", "pairs", "patch", "patching", "plots", "probes", "read_pairs", "resample_ablation", "run",
    "save_edits", "see_or_guess", "semantic_projection", "sources", "specificity", "start_here", "state_neurons",
    "statistics", "steer", "steering", "steering_vectors", "sweep", "tell", "tour", "tracing", "training", "trigger_neurons",
    "unmodified_pass", "veena", "verify", "widgets", "world", "world_pairs",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """Import the submodule or function called ``name`` and keep it, so that this runs once a name."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _FUNCTIONS:
        value = getattr(importlib.import_module(_FUNCTIONS[name]), name)
    else:
        value = importlib.import_module(f"{__name__}.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Names to complete on, whether or not they are loaded yet."""
    return sorted({*globals(), *__all__})
