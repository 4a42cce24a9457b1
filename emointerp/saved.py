"""Results on disk: `found.save("folder")`, and `HeadMap.load("folder")` another day.

A result is tables, tensors, arrays and plain values. Tables become Parquet files, tensors and arrays one safetensors file, the rest
JSON; nothing is pickled, and a folder is read only by the class that wrote it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import numpy as np
import pandas as pd
import torch
from pyarrow import ArrowException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from emointerp.errors import InputError
from emointerp.files import whole, writing
from emointerp.statistics import Interval

FORMAT, VERSION = "emointerp result", 1
ABOUT, TENSORS = "result.json", "tensors.safetensors"
CODED = "columns in JSON"
_Result = TypeVar("_Result", bound="Saved")


class Saved:
    """Base of results: dataclasses of tables, tensors, arrays, plain values and other such results."""

    def save(self, folder: str | Path) -> Path:
        """Write the result into `folder`, which is made, and return it; a result that lay there is replaced.

        Raises OutputError where that cannot be written.
        """
        place, held = Path(folder), {field.name: getattr(self, field.name) for field in fields(self)}
        tables = {name: value for name, value in held.items() if isinstance(value, pd.DataFrame)}
        arrays = [name for name, value in held.items() if isinstance(value, np.ndarray)]
        tensors = {name: _tensor(value) for name, value in held.items() if isinstance(value, Tensor | np.ndarray)}
        others = {name: value for name, value in held.items() if isinstance(value, Saved)}
        values = {name: coded(value) for name, value in held.items() if name not in {*tables, *tensors, *others}}
        about = {"format": FORMAT, "version": VERSION, "kind": type(self).__name__}
        about |= {"tensors": list(tensors), "arrays": arrays, "values": values}
        with writing(place):
            place.mkdir(parents=True, exist_ok=True)
            (place / ABOUT).unlink(missing_ok=True)
            for name, table in tables.items():
                to_parquet(table, place / f"{name}.parquet")
            for name, other in others.items():
                other.save(place / name)
            if tensors:
                with whole(place / TENSORS) as part:
                    save_file(tensors, part)
            with whole(place / ABOUT) as part:  # last: a folder without it is no result
                part.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        return place

    @classmethod
    def load(cls: type[_Result], folder: str | Path) -> _Result:
        """Read what `save` wrote. InputError says what is missing, damaged or of another kind."""
        place = Path(folder)
        try:
            about = json.loads((place / ABOUT).read_text(encoding="utf-8"))
            if (about["format"], about["version"], about["kind"]) != (FORMAT, VERSION, cls.__name__):
                raise ValueError(f"it holds {about['kind']!r}, version {about['version']!r}, where {cls.__name__!r} was expected")
            held = {name: decoded(value) for name, value in about["values"].items()}
            held |= load_file(place / TENSORS) if about["tensors"] else {}
            held |= {name: held[name].numpy() for name in about["arrays"]}
            for name, kind in get_type_hints(cls).items():
                if kind is pd.DataFrame:
                    held[name] = from_parquet(place / f"{name}.parquet")
                elif isinstance(kind, type) and issubclass(kind, Saved):
                    held[name] = kind.load(place / name)
            return cls(**held)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError, ArrowException) as error:
            raise InputError(
                f"{folder} cannot be read as a {cls.__name__}: {error}. Expected is what {cls.__name__}.save wrote."
            ) from error


def _tensor(value: Tensor | np.ndarray) -> Tensor:
    """On the processor, in memory of its own, as safetensors wants it."""
    return torch.as_tensor(value).detach().cpu().contiguous().clone()


def to_parquet(table: pd.DataFrame, file: Path, index: bool | None = None) -> None:
    """Write a table whole or not at all; columns of other things than numbers and texts (intervals, tuples, both mixed) as JSON."""
    texts = {name: [json.dumps(coded(cell)) for cell in table[name]] for name in table if _is_mixed(table[name])}
    with whole(file) as part:
        plain = table.assign(**texts)
        plain.attrs = {CODED: list(texts)}
        plain.to_parquet(part, index=index)


def from_parquet(file: Path) -> pd.DataFrame:
    """A table as it was before `to_parquet`."""
    table = pd.read_parquet(file)
    names = table.attrs.pop(CODED, [])
    cells = {name: pd.Series([decoded(json.loads(cell)) for cell in table[name]], table.index, dtype=object) for name in names}
    return table.assign(**cells)


def _is_mixed(column: pd.Series) -> bool:
    return column.dtype == object and not all(isinstance(cell, str) for cell in column)


def coded(value: Any) -> Any:
    """As JSON holds it, so that `decoded` gives it back: tuples, mappings and intervals are marked.

    >>> decoded(coded((1, {"a": None}))) == (1, {"a": None})
    True
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Interval):
        return {"interval": asdict(value)}
    if isinstance(value, Mapping):
        return {"mapping": [[coded(key), coded(one)] for key, one in value.items()]}
    if isinstance(value, list | tuple):
        some = [coded(one) for one in value]
        return {"tuple": some} if isinstance(value, tuple) else some
    if value is None or isinstance(value, str | int | float):
        return value
    raise InputError(
        f"A {type(value).__name__} came, {value!r:.60}; a result that is saved holds tables, tensors, arrays, texts and numbers."
    )


def decoded(value: Any) -> Any:
    """What `coded` was given."""
    if isinstance(value, list):
        return [decoded(one) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "interval":
        return Interval(**held)
    return {decoded(key): decoded(one) for key, one in held} if kind == "mapping" else tuple(decoded(one) for one in held)
