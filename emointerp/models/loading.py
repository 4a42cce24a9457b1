"""`load`: the bundled model by default, a model of a local folder or the hub's cache, or one already in memory."""

import difflib
import json
import os
import pickle
from dataclasses import replace
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
DTYPES = ("float32", "bfloat16", "float16", "float64")
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
    remote: bool | str = False,
    **options: Any,
) -> VLM:
    """A model in hand: `"tiny"` (bundled), a local folder, a hub id, or a model in memory with its `processor`.

    `dtype="auto"` is float32 for the bundled model and the checkpoint's own otherwise. `bits` (4 or 8) quantises the weights
    with bitsandbytes. Other `options` (`device_map`, `attn_implementation`, `revision`, `quantization_config`, ...) go to
    transformers' `from_pretrained`. Remote code is never run. A model in memory stays as it is, but for `device`.
    `remote=True`: the model runs at NDIF (nnsight's servers, with a key of your own), and no weights are loaded here;
    `remote="local"` rehearses that on a model that is here.
    The model's parts and a prompt with a picture are checked at once; `ModelError` says what does not fit.

    >>> load().name
    'tiny'
    """
    if options.pop("trust_remote_code", False):
        raise ModelError("emointerp never runs a model's remote code; load such a model yourself.")
    if not options.pop("weights_only", True):
        raise ModelError("emointerp unpickles nothing but tensors; load such weights yourself, and give the model.")
    if isinstance(dtype, str) and dtype not in ("auto", *DTYPES):
        raise InputError(f"dtype is {dtype!r}; expected auto, {', '.join(DTYPES)}.")
    if remote:
        return _elsewhere(name, remote, processor, device, dtype, bits, options)
    if isinstance(name, torch.nn.Module):
        if bits or options or dtype != "auto":
            given = ", ".join([*options, *(["bits"] if bits else []), *(["dtype"] if dtype != "auto" else [])])
            raise InputError(f"{given}: only for models that are loaded by name; a model in memory is taken as it is.")
        return _in_memory(name, processor, device)
    return _by_name(str(name), processor, device, dtype, options | _quantised(bits, options))


def _elsewhere(
    name: str | Path | torch.nn.Module,
    remote: bool | str,
    processor: Any,
    device: str | torch.device | None,
    dtype: str | torch.dtype,
    bits: int | None,
    options: dict[str, Any],
) -> VLM:
    """A model that runs on another machine, or is treated as if it did."""
    if remote == "local":
        vlm = load(name, processor=processor, device=device, dtype=dtype, bits=bits, **options)
        from emointerp.models.remote import rehearsed

        return replace(vlm, model=rehearsed(vlm.name, vlm.model, vlm.processor), remote="local")
    if remote is not True:
        raise InputError(f"remote is {remote!r}; expected False (here), True (at NDIF), or 'local' (a rehearsal here).")
    _check_servable(name, {"device": device, "bits": bits, "dtype": None if dtype == "auto" else dtype} | options)
    try:
        return _served(str(name), processor, options)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise ModelError(_unknown(str(name), error)) from error


def _check_servable(name: Any, given: dict[str, Any]) -> None:
    """Only models of the hub are at NDIF, and how they lie in memory is decided there."""
    if isinstance(name, torch.nn.Module) or str(name) in BUNDLED or _is_folder(str(name)):
        shown = type(name).__name__ if isinstance(name, torch.nn.Module) else repr(str(name))
        raise InputError(f"remote=True: {shown} is on this machine; NDIF runs models of the hub. remote='local' rehearses with it.")
    extra = [what for what, value in given.items() if value is not None and what not in (*HUB_OPTIONS, "attn_implementation")]
    if extra:
        raise InputError(f"{', '.join(extra)}: is decided where the model runs; leave it out with remote=True.")


def _served(name: str, processor: Any, options: dict[str, Any]) -> VLM:
    """A model at NDIF: what may fail quickly comes first."""
    from transformers import AutoConfig

    from emointerp.models.remote import check_server, served

    check_server(name)
    kept = {k: options[k] for k in HUB_OPTIONS if k in options} | {"trust_remote_code": False}
    config = AutoConfig.from_pretrained(name, **kept)
    family_of(config)
    processor = completed(processor or open_processor(name, **kept), config)
    return checked(VLM(name, served(name, processor, options), processor, INSTRUCTION, remote=True))


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
    except pickle.UnpicklingError as error:
        raise ModelError(unpicklable("model", name)) from error
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
    if not kept or not kept.exists():
        return INSTRUCTION
    try:
        return str(json.loads(kept.read_text(encoding="utf-8"))["instruction"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{kept} holds no instruction ({error}). Copy the model again, or take this file away.") from None


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
    return AutoModelForImageTextToText.from_pretrained(place, dtype=dtype, **opening(options)), processor


def opening(options: dict[str, Any]) -> dict[str, Any]:
    """Options of `from_pretrained` for weights that others made: none of their code is run, nothing but tensors is unpickled, and
    where a repository of the hub has no safetensors, nobody is asked to make them (transformers would do so by itself).
    """
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")  # read whenever weights are opened
    return options | {"trust_remote_code": False, "weights_only": True}


def unpicklable(what: str, name: str) -> str:
    """The words for weights that are a pickle of more than tensors, or no whole one."""
    return (
        f"Cannot open the {what} {name!r}: its weights are a pickle that is damaged or asks for more than tensors; it was not run. "
        "Take a copy with safetensors."
    )


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
    """Options of transformers for the device of quantised weights, which go there while they are loaded and not later.

    What says itself where weights go is checked.
    """
    if device and "device_map" in options:
        raise InputError(f"device={str(device)!r} and device_map={options['device_map']!r}: give one of them.")
    if options.get("device_map") is not None and find_spec("accelerate") is None:
        raise ModelError(f"device_map={options['device_map']!r} needs accelerate: pip install accelerate")
    return {"device_map": {"": str(device)}} if device and "quantization_config" in options else {}


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")


def _unknown(name: str, error: Exception) -> str:
    near = difflib.get_close_matches(name, [*BUNDLED, *WELL_KNOWN], n=3, cutoff=0.3) or [*BUNDLED, WELL_KNOWN[0]]
    is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    offline = " Downloads are switched off (HF_HUB_OFFLINE)." if is_offline else ""
    known = f"Nearest known names: {', '.join(near)}; a local folder works too."
    return f"Cannot open the model {name!r}: {_reason(error)}.{offline} {known}"
