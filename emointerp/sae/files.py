"""SAEs on disk: our own form, those of SAELens and sparsify, and the public release over SigLIP.

| form | a folder of | encoder | decoder |
|---|---|---|---|
| ours | `sae.json`, `weights.safetensors` | `encoder` [d_hidden, d_in] | `decoder` [d_hidden, d_in], none if tied |
| SAELens | `cfg.json`, `sae_weights.safetensors` | `W_enc` [d_in, d_sae] | `W_dec` [d_sae, d_in] |
| sparsify | `cfg.json`, `sae.safetensors` | `encoder.weight` [latents, d_in] | `W_dec` [latents, d_in] |
| release | one `.pt` file | `up_proj.weight` [d_hidden, d_emb] | `down_proj.weight` [d_emb, d_hidden] |

SAELens may, and sparsify always does, take `b_dec` from the input before encoding; that is `b_enc - encoder b_dec` in ours, the
same sum in another order. SAELens' scores times the decoder's norms are rows of another length. Neither changes what it computes.

What an SAE reads (`about["reads"]`, `about["unit"]`) is in our form, and in what we write for SAELens and sparsify, under
"emointerp" in their settings, which those programs leave out when they write it again. Files by other hands
do not say it; the release is known to read SigLIP's pooled vectors at length 1.
"""

import json
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from emointerp.errors import InputError, OutputError
from emointerp.files import whole
from emointerp.models import WEIGHTS
from emointerp.sae.value import SAE

FORMAT, VERSION = "emointerp sae", 1
OURS = ("sae.json", "weights.safetensors")
SAELENS = ("cfg.json", "sae_weights.safetensors")
SPARSIFY = ("cfg.json", "sae.safetensors")
BUNDLED = {"tiny": "tiny-sae", "tiny-patches": "tiny-sae-patches"}  # over the bundled tower: pooled vectors, and patches
CONFIGS = ("TrainConfig", "SAEConfig")  # the release's two classes of settings, whatever module they were written from

Settings = Mapping[str, Any]
Tensors = Mapping[str, Tensor]


def load_sae(path: str | Path) -> SAE:
    """Read an SAE: "tiny" or "tiny-patches" (bundled), a folder in our form, SAELens' or sparsify's, or the release's `.pt` file.

    The release's encoder stays on disk, mapped into memory; its decoder is read and turned. Nothing in a file is run. InputError
    says what is missing, broken, not a top-k SAE, or asks for code.

    SAELens' and sparsify's files by other hands do not say whether they read pooled vectors or patches, nor at what length; taken
    are pooled vectors as they are. Otherwise say it: `replace(sae, about={**sae.about, "reads": "patches", "unit": True})`.

    >>> import emointerp as ei
    >>> ei.load_sae("tiny")
    SAE(192 -> 2048, top 32, tied, b_enc, b_dec)
    """
    path = WEIGHTS / BUNDLED[str(path)] if str(path) in BUNDLED else Path(path)
    if os.path.isfile(path):
        return _from_release(path)
    for names, read in {OURS: _from_ours, SAELENS: _from_saelens, SPARSIFY: _from_sparsify}.items():
        if all(os.path.isfile(path / name) for name in names):
            return _checked(path, read, _read_json(path / names[0]), _read_tensors(path / names[1]))
    forms = "; ".join(" and ".join(names) for names in (OURS, SAELENS, SPARSIFY))
    given = f"a .pt file, or a folder with one of these pairs: {forms}; bundled are {', '.join(map(repr, BUNDLED))}"
    raise InputError(f"There is no SAE at {path}; expected {given}.")


def save_sae(sae: SAE, folder: str | Path, form: str = "emointerp") -> Path:
    """Write an SAE into a folder as "emointerp", "saelens" or "sparsify"; other programs get a tied decoder written out.

    OutputError where that cannot be done, and where the folder holds one in another form, which would be read in its place.

    >>> import emointerp as ei
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     ei.load_sae(ei.save_sae(ei.SAE.random(8, 32, 4), folder, "saelens"))
    SAE(8 -> 32, top 4, untied, b_enc, b_dec)
    """
    forms: dict[str, Callable[[SAE], tuple[tuple[str, str], Settings, Tensors]]]
    forms = {"emointerp": _as_ours, "saelens": _as_saelens, "sparsify": _as_sparsify}
    if form not in forms:
        raise InputError(f"form is {form!r}; expected {', '.join(map(repr, forms))}.")
    (settings_file, tensor_file), settings, tensors = forms[form](sae)
    folder = Path(folder)
    others = {OURS[1], SAELENS[1], SPARSIFY[1]} - {tensor_file}
    if held := sorted(name for name in others if os.path.isfile(folder / name)):
        raise OutputError(f"{folder} holds an SAE in another form ({held[0]}); give another folder, or take that away.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole(folder / tensor_file) as part:
            save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, part)
        with whole(folder / settings_file) as part:
            part.write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
    except (OSError, ValueError, SafetensorError) as error:
        raise OutputError(f"The SAE cannot be written to {folder}: {error}. Choose a folder that can be written to.") from None
    return folder


# our own form


def _as_ours(sae: SAE) -> tuple[tuple[str, str], Settings, Tensors]:
    held = {name: getattr(sae, name) for name in ("encoder", "decoder", "b_enc", "b_dec")}
    settings = {"format": FORMAT, "version": VERSION, "k": sae.k, "d_in": sae.d_in, "d_hidden": sae.d_hidden}
    return OURS, settings | {"about": dict(sae.about)}, {name: tensor for name, tensor in held.items() if tensor is not None}


def _from_ours(settings: Settings, tensors: Tensors) -> SAE:
    if (settings["format"], settings["version"]) != (FORMAT, VERSION):
        raise InputError(f"it is marked as {settings['format']!r}, version {settings['version']}; expected {FORMAT!r}, {VERSION}")
    optional = {name: _float(tensors[name]) for name in ("decoder", "b_enc", "b_dec") if name in tensors}
    return SAE(_float(tensors["encoder"]), settings["k"], about=settings["about"], **optional)


# SAELens


def _as_saelens(sae: SAE) -> tuple[tuple[str, str], Settings, Tensors]:
    settings = {
        "architecture": "topk", "d_in": sae.d_in, "d_sae": sae.d_hidden, "k": sae.k, "dtype": str(sae.encoder.dtype)[6:],
        "device": "cpu", "apply_b_dec_to_input": False, "normalize_activations": "none", "reshape_activations": "none",
        "rescale_acts_by_decoder_norm": False, "metadata": {"emointerp": dict(sae.about)},
    }  # fmt: skip
    b_enc, b_dec = _biases(sae)
    return SAELENS, settings, {"W_enc": sae.encoder.T, "W_dec": sae.features, "b_enc": b_enc, "b_dec": b_dec}


def _from_saelens(settings: Settings, tensors: Tensors) -> SAE:
    _refuse(settings, {"architecture": "topk", "normalize_activations": "none", "reshape_activations": "none"})
    encoder, decoder = _float(tensors["W_enc"]).T.contiguous(), _float(tensors["W_dec"])
    b_enc, b_dec = _float(tensors["b_enc"]), _float(tensors["b_dec"])
    if settings.get("apply_b_dec_to_input", True):
        b_enc = b_enc - encoder @ b_dec
    if settings.get("rescale_acts_by_decoder_norm", False):
        norms = decoder.norm(dim=1)
        encoder, b_enc, decoder = encoder * norms[:, None], b_enc * norms, decoder / norms.clamp(min=1e-30)[:, None]
    said = dict(settings.get("metadata") or {}).get("emointerp", {})
    return SAE(encoder, settings["k"], decoder, b_enc, b_dec, {**said, "form": "SAELens", "settings": dict(settings)})


# sparsify


def _as_sparsify(sae: SAE) -> tuple[tuple[str, str], Settings, Tensors]:
    settings = {
        "activation": "topk", "expansion_factor": max(1, sae.d_hidden // sae.d_in), "normalize_decoder": False,
        "num_latents": sae.d_hidden, "k": sae.k, "multi_topk": False, "skip_connection": False, "transcode": False,
        "d_in": sae.d_in, "emointerp": dict(sae.about),
    }  # fmt: skip
    b_enc, b_dec = _biases(sae)
    tensors = {"encoder.weight": sae.encoder, "encoder.bias": b_enc + sae.encoder @ b_dec, "W_dec": sae.features, "b_dec": b_dec}
    return SPARSIFY, settings, tensors


def _from_sparsify(settings: Settings, tensors: Tensors) -> SAE:
    _refuse(settings, {"activation": "topk", "skip_connection": False, "transcode": False, "signed": False, "embed_skip": False})
    encoder, b_dec = _float(tensors["encoder.weight"]), _float(tensors["b_dec"])
    b_enc = _float(tensors["encoder.bias"]) - encoder @ b_dec
    about = {**settings.get("emointerp", {}), "form": "sparsify", "settings": dict(settings)}
    return SAE(encoder, settings["k"], _float(tensors["W_dec"]), b_enc, b_dec, about)


# the public release


def _from_release(file: Path) -> SAE:
    held = _unpickled(file)
    if not isinstance(held, Mapping) or not isinstance(held.get("model"), Mapping) or "config" not in held:
        raise InputError(f"{file} lacks 'model' and 'config'; expected the public release's form, a dict of weights and settings.")
    config = getattr(held["config"], "model", held["config"])
    settings = {name: value for name, value in getattr(config, "__dict__", {}).items() if isinstance(value, int | float | str)}
    return _checked(file, _of_release, settings, held["model"])


def _of_release(settings: Settings, tensors: Tensors) -> SAE:
    encoder, decoder = _float(tensors["up_proj.weight"]), _float(tensors["down_proj.weight"]).T.contiguous()
    b_enc = _float(tensors["up_proj.bias"]) if settings.get("up_proj_bias") else None
    about = {"form": "release", "reads": "pooled", "unit": True, "settings": dict(settings)}
    return SAE(encoder, settings["top_k"], decoder, b_enc, _float(tensors["down_proj.bias"]), about)


def _unpickled(file: Path) -> Any:
    """A torch file by `weights_only`, with empty classes in place of the release's two, so that none of their code is needed."""
    try:
        asked = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except (ValueError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"{file} is no whole file of torch.save ({error}); expected the public release's .pt.") from None
    if code := sorted(name for name in asked if name.rpartition(".")[2] not in CONFIGS):
        raise InputError(f"{file} is refused: it asks to run {', '.join(code)}. An SAE is tensors and settings; it needs no code.")
    stubs = [type(name.rpartition(".")[2], (), {"__module__": name.rpartition(".")[0]}) for name in asked]
    try:
        with torch.serialization.safe_globals(stubs):
            return torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"{file} cannot be read as weights ({str(error).splitlines()[0]}).") from None


# what they share


def _checked(path: Path, read: Callable[[Settings, Tensors], SAE], settings: Settings, tensors: Tensors) -> SAE:
    """What `read` makes of settings and tensors, in one dtype; what is wrong with them is said with the path."""
    try:
        sae = read(settings, tensors)
        return sae.to(sae.encoder.dtype)
    except KeyError as error:
        raise InputError(f"{path} lacks {error}; it has {', '.join(sorted([*settings, *tensors]))}.") from None
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:  # files by other hands may hold anything
        raise InputError(f"{path} holds no SAE that can be used: {error}") from None


def _refuse(settings: Settings, expected: Settings) -> None:
    for name, value in expected.items():
        if settings.get(name, value) != value:
            raise InputError(f"{name} is {settings[name]!r}; only {value!r} is a plain top-k SAE.")


def _read_json(file: Path) -> Settings:
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} is no JSON: {error}.") from None
    if not isinstance(held, dict):
        raise InputError(f"{file} holds a {type(held).__name__}; expected an object of settings.")
    return held


def _read_tensors(file: Path) -> Tensors:
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}
    except SafetensorError as error:
        raise InputError(f"{file} is broken or cut off ({error}); fetch or write it again.") from None


def _float(tensor: Tensor) -> Tensor:
    """In float32, which leaves a mapped float32 tensor on disk; float64 stays."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def _biases(sae: SAE) -> tuple[Tensor, Tensor]:
    """Both biases, zeros where the SAE has none."""
    zeros = (sae.encoder.new_zeros(sae.d_hidden), sae.encoder.new_zeros(sae.d_in))
    return tuple(z if b is None else b for b, z in zip((sae.b_enc, sae.b_dec), zeros, strict=True))
