"""`load(id, remote=True)` against a server of its own, tests/remote_server.py, in another process that does not have this package.

nnsight's client runs as it is, down to its websocket and HTTP calls, which are led to the server; no socket is opened. Every verb's
numbers are compared with those of the model here. Not under pytest, whose type checks hide the source of functions, which is what
travels. Run: python tests/remote_client.py FOLDER
"""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
os.environ["NDIF_API_KEY"] = "none"

import httpx  # noqa: E402
import huggingface_hub  # noqa: E402
import nnsight  # noqa: E402
import torch  # noqa: E402
import websocket  # noqa: E402
import zstandard  # noqa: E402
from nnsight.schema.response import ResponseModel, Status  # noqa: E402
from PIL import Image  # noqa: E402
from remote_server import read, write  # noqa: E402

import emointerp as ei  # noqa: E402
from emointerp.circuit import revision  # noqa: E402
from emointerp.errors import ModelError  # noqa: E402
from emointerp.lens import lens_logits  # noqa: E402
from emointerp.models import VLM, loading  # noqa: E402
from emointerp.tracing import SITES, answer_log_probs, logit_mass, projection  # noqa: E402

ID = "somebody/a-model"


def refused(*_: Any, **__: Any) -> None:
    """What every socket does here."""
    raise AssertionError("A socket was opened.")


class Line:
    """The websocket and the HTTP client of a request, as far as nnsight uses them."""

    server: subprocess.Popen
    sent: list[bytes] = []

    def __init__(self, *_: Any, **__: Any) -> None:
        self.greeted = False

    def __enter__(self) -> "Line":
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def close(self) -> None:
        """Nothing to do."""

    def post(self, _url: str, data: dict, files: dict, headers: dict) -> Any:
        """Send a request on."""
        blob = files["blob"][1]
        self.sent.append(blob)
        write(self.server.stdin, data["data"].encode())
        write(self.server.stdin, blob)
        received = ResponseModel(id="1", status=Status.RECEIVED).model_dump_json()
        return SimpleNamespace(raise_for_status=lambda: None, text=received)

    def recv(self) -> bytes | str:
        """The session first, then the answer."""
        if not self.greeted:
            self.greeted = True
            return json.dumps({"session_id": "1"})
        message = read(self.server.stdout)
        return message.decode() if message.startswith(b"{") else message


def connected(folder: str) -> tuple[VLM, VLM]:
    """The same model here and there."""
    socket.socket.connect = refused
    command = [sys.executable, str(Path(__file__).parent / "remote_server.py"), folder]
    Line.server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    websocket.create_connection, httpx.Client = Line, Line
    nnsight.CONFIG.APP.REMOTE_LOGGING = False
    nnsight.ndif.status = lambda raw: {"deployments": {"1": {"repo_id": ID, "task": "image-text-to-text"}}}
    huggingface_hub.HfApi.model_info = lambda self, name: SimpleNamespace(id=name)
    Path("somebody").mkdir()
    Path(ID).symlink_to(folder)  # a folder where transformers looks first, which stands for the hub
    loading._is_folder = lambda name: name != ID and Path(name).is_dir()
    return ei.load(folder, dtype="float32"), ei.load(ID, remote=True)


def differences(near: VLM, far: VLM) -> dict[str, float]:
    """The largest difference of each verb's numbers; 1 for texts that differ."""
    pictures = [Image.effect_noise(size, 90).convert("RGB") for size in ((96, 64), (64, 96))]
    prompts = [near.prompt(p, text) for p, text in zip(pictures, ("The phone rang twice.", "It rained all day."), strict=True)]
    a, g = near.anatomy, torch.Generator().manual_seed(0)
    vector, value = torch.randn(a.d_model, generator=g), torch.randn(a.d_head, generator=g)
    edits = [ei.AddVector(2, vector), ei.SetHead(1, 0, value), ei.ScaleNeurons(1, [0, 5], 3.0), ei.ScaleAttention(1, 0.2)]
    lists = {(layer, head): [ei.SetHead(layer, head, value)] for layer in range(2) for head in range(2)}
    mass, along = logit_mass(near, ["fear", "joy"]), projection(vector, 2)

    def acts(vlm: VLM, **options: Any) -> list[torch.Tensor]:
        found = ei.collect(vlm, prompts, SITES, edits, positions=["visual", "last"], **options)
        return [getattr(one, site) for some in found for one in (some, some.gradients) if one is not None for site in SITES]

    verbs = {
        "run": lambda vlm: [out.logits for out in ei.run(vlm, prompts, edits)],
        "collect": acts,
        "gradients": lambda vlm: acts(vlm, wrt=mass),
        "gradients at a layer": lambda vlm: acts(vlm, wrt=along),
        "generate": lambda vlm: [ei.generate(vlm, prompts, max_new_tokens=6)],
        "generate with edits": lambda vlm: [ei.generate(vlm, prompts, edits, max_new_tokens=6)],
        "sampled": lambda vlm: [ei.generate(vlm, prompts, edits, max_new_tokens=6, temperature=1.0, seed=3)],
        "sweep": lambda vlm: [ei.sweep(vlm, prompts, lists, mass, progress=False).values],
        "sweep at a layer": lambda vlm: [ei.sweep(vlm, prompts, lists, along, progress=False).values],
        "sweep of answers": lambda vlm: [ei.sweep(vlm, prompts, lists, max_new_tokens=4, progress=False).texts],
        "answer_log_probs": lambda vlm: answer_log_probs(vlm, prompts[0], ["I felt afraid.", "Joy"]),
    }
    verbs["weights"] = lambda vlm: [lens_logits(vlm, vector[None])]
    verbs["revision"] = lambda vlm: [revision(vlm)]
    return {name: max(map(apart, verb(near), verb(far))) for name, verb in verbs.items()}


def apart(near: Any, far: Any) -> float:
    """The largest difference, as a share of the largest value where that is above 1."""
    if not torch.is_tensor(near):
        return float(near != far)
    return float((near - far).abs().max() / near.abs().max().clamp(min=1))


def main(folder: str) -> None:
    """Print what was found as JSON."""
    near, far = connected(folder)
    found: dict[str, Any] = {"differences": differences(near, far), "requests": len(Line.sent)}
    plain = [zstandard.ZstdDecompressor().decompress(blob) for blob in Line.sent]
    found |= {"largest": max(map(len, Line.sent)), "weights": any(not p.is_meta for p in far.structure.parameters())}
    found["bytecode"] = any(b"CodeType" in blob for blob in plain)  # another Python could not read it
    try:  # an error over there, which the checks of this side do not see
        far.model.generate(**far.prompt(Image.new("RGB", (96, 64)), "It rained.").inputs, max_new_tokens=2, num_beams=-1)
    except ModelError as error:
        found["error"] = str(error)
    Line.server.stdin.close()
    Line.server.wait()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
