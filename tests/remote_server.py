"""A server for tests/remote_client.py, as NDIF is one: a process with nnsight and transformers, and without this package.

Requests come on stdin and answers go to stdout, each behind its length. Run: python tests/remote_server.py FOLDER
"""

import contextlib
import io
import struct
import sys
import uuid
from collections.abc import Sequence
from typing import Any

import torch
import zstandard
from nnsight import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing import tracer as tracing
from transformers import AutoModelForImageTextToText, AutoProcessor

ABSENT = ("emointerp", "jaxtyping", "beartype", "tests", "tiny_families")


class Absent:
    """Imports that fail here."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def saved(model: TransformersModel, blob: bytes) -> dict[str, Any]:
    """Run a request on the model; what it saved."""
    tracer = RequestModel.deserialize(blob, model._remoteable_persistent_objects(), compress=True)
    tracing.inc()
    try:
        tracer.execute(tracer.info.code)
        return {k: v for k, v in tracer.info.frame.f_locals.items() if id(v) in tracing._saves()}
    finally:
        tracing.dec()


def answer(model: TransformersModel, env: dict, blob: bytes) -> ResponseModel:
    """The last update on a request."""
    try:
        model._remoteable_set_env(env)
        kept = io.BytesIO()
        torch.save(saved(model, blob), kept, pickle_protocol=4)
        data = zstandard.ZstdCompressor().compress(kept.getvalue())
        return ResponseModel(id=str(uuid.uuid4()), status=Status.COMPLETED, data=data)
    except Exception as error:
        return ResponseModel(id="0", status=Status.ERROR, description=f"{type(error).__name__}: {error}")


def read(stream: Any) -> bytes | None:
    """One message, or None at the end."""
    head = stream.read(8)
    return stream.read(struct.unpack("<q", head)[0]) if head else None


def write(stream: Any, message: bytes) -> None:
    """Send a message."""
    stream.write(struct.pack("<q", len(message)) + message)
    stream.flush()


def main(arguments: Sequence[str]) -> None:
    """Answer until the client goes."""
    inbox, outbox = sys.stdin.buffer, sys.stdout.buffer
    sys.meta_path.insert(0, Absent())
    with contextlib.redirect_stdout(sys.stderr):
        weights = AutoModelForImageTextToText.from_pretrained(arguments[0], dtype=torch.float32)
        model = TransformersModel(weights, task="image-text-to-text", processor=AutoProcessor.from_pretrained(arguments[0]))
    while (metadata := read(inbox)) is not None:
        request, blob = RequestModel.model_validate_json(metadata), read(inbox)
        with contextlib.redirect_stdout(sys.stderr):
            response = answer(model, request.env, blob)
        is_done = response.status == Status.COMPLETED
        write(outbox, response.pickle() if is_done else response.model_dump_json().encode())


if __name__ == "__main__":
    main(sys.argv[1:])
