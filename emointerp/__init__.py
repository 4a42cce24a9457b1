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
        emotions,
        exercises,
        lens,
        models,
        plots,
        start_here,
        statistics,
        tour,
        tracing,
        training,
        widgets,
        world,
    )
    from emointerp.lens import logit_lens
    from emointerp.models import activation_cache, bridge, load
    from emointerp.start_here import see_or_guess, tell
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

__version__ = "0.1.0"

_FACES = {
    "lens": "logit_lens",
    "models": "activation_cache bridge load",
    "start_here": "see_or_guess tell",
    "tracing": "AddVector Metric ScaleAttention ScaleNeurons SetHead SetNeurons SetResidual block_attention collect generate "
    "load_edits mean_ablation patch resample_ablation run save_edits sweep verify",
}
_FUNCTIONS = {name: f"{__name__}.{room}" for room, names in _FACES.items() for name in names.split()}

__all__ = [
    "AddVector", "Metric", "ScaleAttention", "ScaleNeurons", "SetHead", "SetNeurons", "SetResidual", "__version__",
    "activation_cache", "block_attention", "bridge", "collect", "emotions", "exercises", "generate", "lens", "load", "load_edits",
    "logit_lens", "mean_ablation", "models", "patch", "plots", "resample_ablation", "run", "save_edits", "see_or_guess",
    "start_here", "statistics", "sweep", "tell", "tour", "tracing", "training", "verify", "widgets", "world",
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
