"""`load`: the bundled model by default, or any image-text-to-text model of a local folder or the hub's cache."""

import difflib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from emointerp.errors import ModelError
from emointerp.models.vlm import VLM

WEIGHTS = Path(__file__).parent / "weights"
BUNDLED = ("tiny",)
SIDECAR = "emointerp.json"  # beside the weights of a model that was trained with an instruction of its own
INSTRUCTION = (
    "Tell this moment as my story, in the first person and in two sentences, with what I felt. I am the one in the picture."
)
PROCESSOR_OPTIONS = ("revision", "token", "cache_dir", "local_files_only")
WELL_KNOWN = (
    "llava-hf/llava-1.5-7b-hf",
    "llava-hf/llava-1.5-13b-hf",
    "llava-hf/llava-v1.6-vicuna-13b-hf",
    "llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "Qwen/Qwen2-VL-7B-Instruct",
    "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen/Qwen3-VL-4B-Instruct",
    "Qwen/Qwen3-VL-8B-Instruct",
)


def load(name: str | Path = "tiny", *, device: str | None = None, dtype: str | torch.dtype = "auto", **options: Any) -> VLM:
    """A model in hand: `"tiny"` (bundled), a local folder, or a hub id. Remote code is never run.

    `dtype="auto"` is float32 for the bundled model and the checkpoint's own otherwise; `options` go to
    `from_pretrained`.

    >>> load().name
    'tiny'
    """
    if options.pop("trust_remote_code", False):
        raise ModelError("emointerp never runs a model's remote code; load such a model yourself.")
    try:
        folder = _folder(str(name))
        model, processor = _opened(folder, str(name), dtype, options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelError(_unknown(str(name), error)) from error
    model = model.to(device) if device else model
    return VLM(str(name), model.eval(), processor, _instruction(folder), str(folder) if folder else None)


def _folder(name: str) -> Path | None:
    if name in BUNDLED:
        return WEIGHTS / name
    return Path(name) if Path(name).is_dir() else None


def _instruction(folder: Path | None) -> str:
    kept = folder / SIDECAR if folder else None
    return json.loads(kept.read_text())["instruction"] if kept and kept.exists() else INSTRUCTION


def _opened(folder: Path | None, name: str, dtype: str | torch.dtype, options: dict) -> tuple:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    if folder is None and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise OSError("no such folder, and not an id of the form owner/name")
    place = str(folder or name)
    dtype = torch.float32 if dtype == "auto" and name in BUNDLED else dtype
    # said outright, because transformers asks at the keyboard otherwise
    options = {**options, "trust_remote_code": False}
    kept = {k: options[k] for k in (*PROCESSOR_OPTIONS, "trust_remote_code") if k in options}
    processor = AutoProcessor.from_pretrained(place, **kept)
    return AutoModelForImageTextToText.from_pretrained(place, dtype=dtype, **options), processor


def _unknown(name: str, error: Exception) -> str:
    near = difflib.get_close_matches(name, [*BUNDLED, *WELL_KNOWN], n=3, cutoff=0.3) or [*BUNDLED, WELL_KNOWN[0]]
    is_offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON")
    offline = " Downloads are switched off (HF_HUB_OFFLINE)." if is_offline else ""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
    known = f"Nearest known names: {', '.join(near)}; a local folder works too."
    return f"Cannot open the model {name!r}: {reason}.{offline} {known}"
