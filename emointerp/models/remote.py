"""Models that run on another machine: nnsight's remote execution (NDIF), and its rehearsal on this one.

`load(id, remote=True)` fetches a model's configuration and processor, and builds its parts without weights. A verb then sends what
it asks for to NDIF, where the model is held, and gets numbers back. `remote="local"` does the same without a server: what would
travel is packed, unpacked with this package out of reach, and run on a model that is here.

What travels: a prompt's token ids and pixels, the tensors of edits, and the source of those functions of emointerp that read and
write inside a forward, with the path of their file. Metrics stay here. What comes back is read as tensors in plain containers, so
that a server cannot run code on this machine.
"""

import io
import pickle
from types import SimpleNamespace
from typing import Any

import torch
from nnsight import TransformersModel, ndif
from nnsight.intervention.backends.local import LocalSimulationBackend
from nnsight.intervention.backends.remote import RemoteBackend, RemoteError
from nnsight.schema.config import CONFIG
from nnsight.schema.response import ResponseModel

from emointerp.errors import ModelError
from emointerp.models.elsewhere import Elsewhere

TASK = "image-text-to-text"
PLAIN = {
    ("torch._utils", "_rebuild_tensor_v2"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),  # bytes in older pickles
    ("nnsight.schema.response", "Status"),
}

ndif.register("emointerp")  # its functions travel as source, because a server does not have the package


def rehearsed(name: str, model: torch.nn.Module, processor: Any) -> Elsewhere:
    """A model of this machine as if it ran on another."""
    served = TransformersModel(model, task=TASK, processor=processor)
    return Elsewhere(name, served, "local", lambda: LocalSimulationBackend(served))


def served(name: str, processor: Any, options: dict[str, Any]) -> Elsewhere:
    """A model of the hub that NDIF runs; its parts are built without weights."""
    model = TransformersModel(name, task=TASK, processor=processor, **options)
    key = model.to_model_key()  # asks the hub for the model's full name
    return Elsewhere(name, model, True, lambda: _Server(name, key, model._remoteable_get_env()))


def check_server(name: str) -> None:
    """A `ModelError` where there is no key, no network, or no such model at NDIF: before anything is fetched or waits."""
    if not CONFIG.API.APIKEY:
        raise ModelError(
            f"remote=True runs {name!r} at NDIF (https://ndif.us), which asks for a key of your own: set NDIF_API_KEY, or call "
            "nnsight.login() once. remote='local' rehearses without a server."
        )
    running = ndif.status(raw=True)
    if not running:
        raise ModelError(f"NDIF at {CONFIG.API.HOST} cannot be reached; look at the network, or load {name!r} without remote.")
    deployed = [one for one in running.get("deployments", {}).values() if one.get("deployment_level") != "COLD"]
    pictures = sorted({one["repo_id"] for one in deployed if one.get("task") == TASK and one.get("repo_id")})
    if name not in pictures:
        raise ModelError(
            f"NDIF does not run {name!r} now; models with pictures that it runs: {', '.join(pictures) or 'none'} "
            "(print(nnsight.status()) shows all)."
        )


class _Server(RemoteBackend):
    """A request to NDIF: its failures are ours, and its answer is read as tensors in plain containers and never unpickled."""

    def __init__(self, name: str, key: str, env: dict[str, Any]) -> None:
        super().__init__(key, env=env)
        self.name = name

    def __call__(self, tracer: Any = None) -> Any:
        from httpx import HTTPError
        from websocket import WebSocketException

        try:
            return super().__call__(tracer)
        except RemoteError as error:
            raise ModelError(f"The server that runs {self.name!r} could not do this: {error}") from error
        except (OSError, HTTPError, WebSocketException) as error:
            raise ModelError(f"{self.host} does not answer ({type(error).__name__}: {error}); try again later.") from error

    @staticmethod
    def parse(message: str | bytes) -> ResponseModel:
        """One update on a job."""
        return ResponseModel(**_tensors(message)) if isinstance(message, bytes) else RemoteBackend.parse(message)

    def finalize(self, content: bytes) -> dict[str, Any]:
        """The values that a job saved."""
        if self.compress:
            import zstandard

            content = zstandard.ZstdDecompressor().decompress(content)
        return _tensors(content)


class _Plain(pickle.Unpickler):
    """Unpickles tensors in plain containers. PyTorch's `weights_only` does not read the pickle protocol of nnsight's servers."""

    def find_class(self, module: str, name: str) -> Any:
        """What an answer may be made of; storages are PyTorch's own affair."""
        if (module, name) not in PLAIN:
            raise pickle.UnpicklingError(f"it holds {module}.{name}")
        return super().find_class(module, name)


def _tensors(content: bytes) -> dict[str, Any]:
    try:
        if not content.startswith(b"PK"):
            raise pickle.UnpicklingError("it is no archive of tensors")
        if "constants.pkl" in torch._C.PyTorchFileReader(io.BytesIO(content)).get_all_records():
            raise pickle.UnpicklingError("it is a program (TorchScript), which PyTorch would load as one")
        plain = SimpleNamespace(Unpickler=_Plain, __name__="plain")
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=False, pickle_module=plain)
    except pickle.UnpicklingError as error:
        raise ModelError(f"The server's answer was not opened, because {error}; expected tensors in plain containers.") from error
