"""`load`: the bundled model by default, a model of a local folder or the hub's cache, or one already in memory."""

import difflib
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from emointerp.errors import InputError, ModelError
from emointerp.models.anatomy import family_of
from emointerp.models.checks import checked
from emointerp.models.processors import completed, open_processor
from emointerp.models.vlm import VLM

WEIGHTS = Path(__file__).parent / "weights"
BUNDLED = ("tiny",)
SIDECAR = "emointerp.json"  # beside the weights of a model that was trained with an instruction of its own
INSTRUCTION = (
    "Tell this moment as my story, in the first person and in two sentences, with what I felt. I am the one in the picture."
)
HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
WELL_KNOWN = (
    "llava-hf/llava-1.5-7b-hf",
    "llava-hf/llava-1.5-13b-hf",
    "llava-hf/llava-v1.6-vicuna-13b-hf",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "Qwen/Qwen2-VL-7B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen/Qwen3-VL-4B-Instruct",
    "Qwen/Qwen3-VL-8B-Instruct",
    "HuggingFaceTB/SmolVLM-256M-Instruct",
    "HuggingFaceTB/SmolVLM-500M-Instruct",
    "HuggingFaceM4/Idefics3-8B-Llama3",
    "google/gemma-3-4b-it",
)


def load(
    name: str | Path | torch.nn.Module = "tiny",
    *,
    processor: Any = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    bits: int | None = None,
    **options: Any,
) -> VLM:
    """A model in hand: `"tiny"` (bundled), a local folder, a hub id, or a model in memory with its `processor`.

    `dtype="auto"` is float32 for the bundled model and the checkpoint's own otherwise. `bits` (4 or 8) quantises the weights
    with bitsandbytes. Other `options` (`device_map`, `attn_implementation`, `revision`, `quantization_config`, ...) go to
    transformers' `from_pretrained`. Remote code is never run. A model in memory stays as it is, but for `device`.
    The model's parts and a prompt with a picture are checked at once; `ModelError` says what does not fit.

    >>> load().name
    'tiny'
    """
    if options.pop("trust_remote_code", False):
        raise ModelError("emointerp never runs a model's remote code; load such a model yourself.")
    if isinstance(name, torch.nn.Module):
        if bits or options or dtype != "auto":
            given = ", ".join([*options, *(["bits"] if bits else []), *(["dtype"] if dtype != "auto" else [])])
            raise InputError(f"{given}: only for models that are loaded by name; a model in memory is taken as it is.")
        return _in_memory(name, processor, device)
    return _by_name(str(name), processor, device, dtype, options | _quantised(bits, options))


def _in_memory(model: torch.nn.Module, processor: Any, device: str | torch.device | None) -> VLM:
    """A model that somebody else made."""
    if not hasattr(model, "config"):
        raise ModelError(f"A {type(model).__name__} is no transformers model; give one that has a `config`, or a name.")
    family_of(model.config)
    if processor is None:
        raise ModelError(f"A model in memory needs its processor: load(model, processor=...); {type(model).__name__} came alone.")
    origin = getattr(model, "name_or_path", "") or model.config.model_type
    return _in_hand(origin, model, processor, device, Path(origin) if Path(origin).is_dir() else None)


def _by_name(
    name: str, processor: Any, device: str | torch.device | None, dtype: str | torch.dtype, options: dict[str, Any]
) -> VLM:
    """The bundled model, or one of a folder or the hub."""
    folder = WEIGHTS / name if name in BUNDLED else Path(name) if _is_folder(name) else None
    dtype = torch.float32 if dtype == "auto" and name in BUNDLED else dtype
    options = options | _placed(device, options)
    try:
        model, processor = _opened(folder, name, processor, dtype, options)
    except SafetensorError as error:
        raise ModelError(
            f"Cannot open the model {name!r}: its weights are damaged or cut off ({_reason(error)}). Copy or download them again."
        ) from error
    except (OSError, ValueError, ImportError, RuntimeError, AssertionError) as error:
        raise ModelError(_unknown(name, error)) from error
    return _in_hand(name, model, processor, None if "quantization_config" in options else device, folder)


def _in_hand(name: str, model: Any, processor: Any, device: str | torch.device | None, folder: Path | None) -> VLM:
    """Model and processor under one roof, checked."""
    try:
        model = model.to(device) if device else model
    except (RuntimeError, AssertionError, ValueError) as error:  # no such device, or quantised weights that cannot move
        raise ModelError(f"Cannot move the model to device {str(device)!r}: {_reason(error)}.") from error
    processor = completed(processor, model.config)
    return checked(VLM(name, model.eval(), processor, _instruction(folder), str(folder) if folder else None))


def _is_folder(name: str) -> bool:
    try:
        return Path(name).is_dir()
    except OSError:  # a name longer than any path may be
        return False


def _instruction(folder: Path | None) -> str:
    kept = folder / SIDECAR if folder else None
    return json.loads(kept.read_text())["instruction"] if kept and kept.exists() else INSTRUCTION


def _opened(folder: Path | None, name: str, processor: Any, dtype: str | torch.dtype, options: dict[str, Any]) -> tuple:
    """Configuration, processor, weights: what is quick to open and likely to be wrong comes first."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    if folder is None and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise OSError("no such folder, and not an id of the form owner/name")
    if folder and not (folder / "config.json").exists():
        raise OSError(f"the folder holds {_contents(folder)} and no model (no config.json)")
    place = str(folder or name)
    # said outright, because transformers asks at the keyboard otherwise
    options = {**options, "trust_remote_code": False}
    kept = {k: options[k] for k in (*HUB_OPTIONS, "trust_remote_code") if k in options}
    family_of(AutoConfig.from_pretrained(place, **kept))
    processor = processor or open_processor(place, **kept)
    return AutoModelForImageTextToText.from_pretrained(place, dtype=dtype, **options), processor


def _contents(folder: Path) -> str:
    return "a tokenizer" if any(folder.glob("tokenizer*")) else "other files" if any(folder.iterdir()) else "no files"


def _quantised(bits: int | None, options: dict[str, Any]) -> dict[str, Any]:
    """Options of transformers for weights in 4 or 8 bits."""
    if bits is None:
        return {}
    if bits not in (4, 8) or "quantization_config" in options:
        raise InputError(f"bits={bits!r}: give 4 or 8, or a quantization_config of your own, not both.")
    if find_spec("bitsandbytes") is None or find_spec("accelerate") is None:
        raise ModelError(f"Loading in {bits} bits needs bitsandbytes: pip install bitsandbytes accelerate")
    from transformers import BitsAndBytesConfig

    return {"quantization_config": BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8)}


def _placed(device: str | torch.device | None, options: dict[str, Any]) -> dict[str, Any]:
    """Options of transformers for the device of quantised weights, which go there while they are loaded and not later."""
    if device and "device_map" in options:
        raise InputError(f"device={str(device)!r} and device_map={options['device_map']!r}: give one of them.")
    return {"device_map": {"": str(device)}} if device and "quantization_config" in options else {}


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")


def _unknown(name: str, error: Exception) -> str:
    near = difflib.get_close_matches(name, [*BUNDLED, *WELL_KNOWN], n=3, cutoff=0.3) or [*BUNDLED, WELL_KNOWN[0]]
    is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    offline = " Downloads are switched off (HF_HUB_OFFLINE)." if is_offline else ""
    known = f"Nearest known names: {', '.join(near)}; a local folder works too."
    return f"Cannot open the model {name!r}: {_reason(error)}.{offline} {known}"
