"""From picture files to their codes, a batch at a time: here, or on many machines through Ray Data.

What a batch holds is fixed beforehand, so that a picture stands beside the same others whoever reads it and whenever: sums in
another order differ in their last bits.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from emointerp.errors import EmointerpError, InputError
from emointerp.gallery.listing import Listed
from emointerp.gallery.settings import PROBE
from emointerp.models import Tower, load_tower
from emointerp.sae import SAE, Codes, load_sae
from emointerp.sae.reading import inputs

THREADS = 4  # pictures unpacked at a time; a large one takes hundreds of megabytes
SCHEMA = pa.schema(
    {
        "path": pa.string(),
        "size": pa.int64(),
        "modified": pa.int64(),
        "reason": pa.string(),  # why there is no code
        "norm": pa.float32(),  # the length of the code
        "features": pa.list_(pa.int32()),
        "values": pa.list_(pa.float32()),  # in falling order, all above 0
        "patches": pa.list_(pa.int32()),  # where the value was reached; none where the SAE reads whole pictures
    }
)


class Reader:
    """Tower and SAE in hand: a batch of files in, a table of their codes out. InputError where their widths differ, both named."""

    def __init__(self, folder: Path, tower: str | Tower, sae: str | SAE, device: str | None = None) -> None:
        self.folder = folder
        self.tower = load_tower(tower, device=device) if isinstance(tower, str) else tower
        sae = load_sae(sae) if isinstance(sae, str) else sae
        self.sae = sae.to(device) if device else sae
        self.codes(self.tower.pixels([PROBE]))  # an InputError here, before anything is read, where the two do not go together

    def __call__(self, batch: Sequence[Listed]) -> pa.Table:
        """A row a file, with its code, or with the reason why it has none: no file stops a run."""
        with ThreadPoolExecutor(THREADS) as threads:
            read = list(threads.map(self._pixels, batch))
        good = [i for i, pixels in enumerate(read) if not isinstance(pixels, str)]
        reasons = [pixels if isinstance(pixels, str) else None for pixels in read]
        if not good:
            return coded(batch, reasons, None)
        codes = self.codes(torch.cat([read[i] for i in good]))
        whole = codes.values.flatten(1).isfinite().all(1).tolist()
        for i in (i for i, finite in zip(good, whole, strict=True) if not finite):
            reasons[i] = "The tower's numbers for it are not finite."
        return coded(batch, reasons, Codes(codes.values[whole], codes.indices[whole], codes.d_hidden))

    @torch.no_grad()
    def codes(self, pixels: Tensor) -> Codes:
        """Codes of pixels, on the CPU."""
        codes = self.sae.encode(inputs(self.sae, self.tower, pixels).to(self.sae.encoder.device))
        return Codes(codes.values.float().cpu(), codes.indices.cpu(), codes.d_hidden)

    def _pixels(self, file: Listed) -> Tensor | str:
        try:
            return self.tower.pixels([self.folder / file.path])
        except EmointerpError as error:
            return str(error)
        except Exception as error:  # damaged files make Pillow's readers raise almost anything
            return f"It is damaged or of an unknown kind ({type(error).__name__}: {error})."


def coded(files: Sequence[Listed], reasons: Sequence[str | None], codes: Codes | None) -> pa.Table:
    """Files as rows of `SCHEMA`; `codes` are those of the files without a reason, in order, [n, k] or [n, patch, k]."""
    held = pa.array([reason is None for reason in reasons])
    columns = {name: [getattr(file, name) for file in files] for name in ("path", "size", "modified")} | {"reason": reasons}
    lists = {name: pa.nulls(len(files), SCHEMA.field(name).type) for name in ("norm", "features", "values", "patches")}
    if codes is not None and len(codes.values):
        at = pa.array(np.where(held, np.cumsum(held) - 1, 0), mask=~np.asarray(held))
        lists |= {name: column.take(at) for name, column in _lists(codes).items()}
    return pa.table(columns | lists, schema=SCHEMA)


def _lists(codes: Codes) -> dict[str, pa.Array]:
    """The codes of pictures as lists of those features that fire: of each its largest value, and on which patch that is."""
    n, by_patch = len(codes.values), codes.values.ndim == 3
    values, features = (t.reshape(n, -1).numpy() for t in (codes.values, codes.indices))
    picture, column = np.nonzero(values > 0)
    value, feature, patch = values[picture, column], features[picture, column], column // codes.k
    order = np.lexsort((patch, -value, feature, picture))
    order = order[_firsts(picture[order], feature[order])]
    order = order[np.lexsort((feature[order], -value[order], picture[order]))]
    ends = pa.array(np.searchsorted(picture[order], np.arange(n + 1)).astype(np.int32))
    squares = np.bincount(picture[order], value[order].astype(float) ** 2, minlength=n)
    lists = {"norm": pa.array(np.sqrt(squares).astype(np.float32))}
    lists["features"] = pa.ListArray.from_arrays(ends, feature[order].astype(np.int32))
    lists["values"] = pa.ListArray.from_arrays(ends, value[order].astype(np.float32))
    if by_patch:
        lists["patches"] = pa.ListArray.from_arrays(ends, patch[order].astype(np.int32))
    return lists


def _firsts(*keys: np.ndarray) -> np.ndarray:
    """Where rows of sorted keys differ from the row before."""
    changes = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return np.concatenate([np.ones(min(1, len(keys[0])), bool), changes])


# on many machines


class _Worker(Reader):
    """A reader as Ray Data calls it: files and tables travel as plain columns and bytes."""

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        files = [Listed(*file) for file in zip(row["path"], row["size"], row["modified"], strict=True)]
        table, sink = super().__call__(files), pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, SCHEMA) as stream:
            stream.write_table(table)
        return {"table": sink.getvalue().to_pybytes()}


def with_ray(
    batches: Iterable[Sequence[Listed]], folder: Path, tower: str | Tower, sae: str | SAE, device: str | None
) -> Iterator[pa.Table]:
    """The tables of batches as Ray Data's actors finish them, in any order; each actor loads tower and SAE once.

    A Ray that runs is used (`ray.init` before, or RAY_ADDRESS), else one is started on this machine for as long as it takes; none
    where there is nothing to read. All machines must see the pictures, and towers and SAEs named by a path, under the same paths.
    """
    rows = [{name: [getattr(f, name) for f in batch] for name in ("path", "size", "modified")} for batch in batches]
    if not rows:
        return
    ray = _ray()
    kind = resource(device)
    with _session(ray):
        most = max(1, int(ray.cluster_resources().get(kind, 1)))
        found = ray.data.from_items(rows).map(
            _Worker,
            fn_constructor_args=(folder, tower, sae, device),
            compute=ray.data.ActorPoolStrategy(size=min(most, len(rows))),  # a pool that may grow stays at one for long
            **{"GPU": {"num_gpus": 1}, "CPU": {"num_cpus": 1}}[kind],
        )
        for row in found.iter_rows():
            yield pa.ipc.open_stream(row["table"]).read_all()


def resource(device: str | None) -> str:
    """Which of Ray's resources an actor takes one of.

    >>> resource("cuda:0"), resource("cpu"), resource(None)
    ('GPU', 'CPU', 'CPU')
    """
    return "GPU" if device and device.startswith("cuda") else "CPU"


def _ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported: nothing is sent unless the user asked for it
    try:
        import ray
        import ray.data
    except ImportError as error:
        message = "The engine 'ray' needs Ray Data; run: pip install 'emointerp[ray]'. Or take the engine 'local'."
        raise InputError(message) from error
    return ray


@contextmanager
def _session(ray: ModuleType) -> Iterator[None]:
    """A Ray to work with, without its progress bars; one that was started here is stopped here."""
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    context = ray.data.DataContext.get_current()
    shown, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield
    finally:
        context.enable_progress_bars = shown
        if started:
            ray.shutdown()
