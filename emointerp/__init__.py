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
        gallery,
        heads,
        lens,
        models,
        neurons,
        pairs,
        planted,
        plots,
        probes,
        sae,
        saliency,
        sources,
        start_here,
        statistics,
        steering,
        superposition,
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
    from emointerp.gallery import Gallery
    from emointerp.heads import attribution_map, check_heads, head_map, specificity
    from emointerp.lens import logit_lens
    from emointerp.models import activation_cache, bridge, load, load_tower
    from emointerp.neurons import check_neurons, neuron_scores, state_neurons, trigger_neurons
    from emointerp.pairs import Pair, read_pairs, world_pairs
    from emointerp.probes import unmodified_pass
    from emointerp.sae import SAE, load_sae, picture_codes, save_sae, train_sae
    from emointerp.saliency import saliency_map
    from emointerp.start_here import see_or_guess, tell
    from emointerp.statistics import flat
    from emointerp.steering import semantic_projection, steer, steering_vectors
    from emointerp.superposition import train_toys
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
    "gallery": "Gallery",
    "heads": "attribution_map check_heads head_map specificity",
    "lens": "logit_lens",
    "models": "activation_cache bridge load load_tower",
    "neurons": "check_neurons neuron_scores state_neurons trigger_neurons",
    "pairs": "Pair read_pairs world_pairs",
    "probes": "unmodified_pass",
    "sae": "SAE load_sae picture_codes save_sae train_sae",
    "saliency": "saliency_map",
    "start_here": "see_or_guess tell",
    "statistics": "flat",
    "steering": "semantic_projection steer steering_vectors",
    "superposition": "train_toys",
    "tracing": "AddVector Metric ScaleAttention ScaleNeurons SetHead SetNeurons SetResidual block_attention collect generate "
    "load_edits mean_ablation patch resample_ablation run save_edits sweep verify",
    "veena": "Veena",
}
_FUNCTIONS = {name: f"{__name__}.{room}" for room, names in _FACES.items() for name in names.split()}

__all__ = [
    "AddVector", "Circuit", "Directions", "Gallery", "Metric", "Pair", "SAE", "ScaleAttention", "ScaleNeurons", "SetHead",
    "SetNeurons", "SetResidual", "Veena", "__version__", "activation_cache", "attribution_map", "block_attention", "bridge",
    "check_heads", "check_neurons", "circuit", "collect", "directions", "emotions", "evaluation", "exercises", "faithfulness",
    "flat", "flow", "gallery", "generate", "head_map", "heads", "information_flow", "knockouts", "lens", "load", "load_edits",
    "load_sae", "load_tower", "logit_lens", "mean_ablation", "models", "neuron_scores", "neurons", "pairs", "patch", "patching",
    "picture_codes", "planted", "plots", "probes", "read_pairs", "resample_ablation", "run", "sae", "saliency", "saliency_map",
    "save_edits", "save_sae", "see_or_guess", "semantic_projection", "sources", "specificity", "start_here", "state_neurons",
    "statistics", "steer", "steering", "steering_vectors", "superposition", "sweep", "tell", "tour", "tracing", "train_sae",
    "train_toys", "training", "trigger_neurons", "unmodified_pass", "veena", "verify", "widgets", "world", "world_pairs",
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
