"""Read npz files that hold pickled dicts without running what a pickle may ask for.

The public benchmark gives its labels and wheels as ``np.savez(..., name=dict)``, which ``np.load`` opens only with
``allow_pickle=True``, and that executes any code in the file. Here a pickle may build plain values (dict, list, str,
int, float and their like) and numpy scalars and arrays; whatever else it names is refused before it is called.
"""

import pickle
import zipfile
from io import BufferedIOBase
from pathlib import Path
from typing import Any

import numpy as np

from emointerp.errors import InputError

LARGEST = 2**28  # bytes that an archive may unpack to; the benchmark's hold a few megabytes

_RECONSTRUCT, _SCALAR = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
_ALLOWED = {("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED |= {(_module, "_reconstruct"): _RECONSTRUCT, (_module, "scalar"): _SCALAR}


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that finds numpy's own four constructors and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"its pickle asks for {module}.{name}, but only dict, list, str, int, float and numpy scalars and "
                "arrays are allowed"
            )
        return _ALLOWED[module, name]


def read_pickled_npz(path: str | Path) -> dict[str, Any]:
    """The entries of an npz file by name: plain arrays, and pickled dicts as dicts.

    Raises InputError where the file is missing, is no npz, unpacks to more than `LARGEST` bytes, or its pickles name anything but
    plain types.
    """
    path = Path(path)
    try:
        check_unpacked(path)
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy"): _read_entry(archive, name) for name in archive.namelist()}
    except FileNotFoundError as error:
        raise InputError(f"no file at {path}; give the path of an npz file") from error
    except InputError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} is refused: {error}. Do not open it with allow_pickle=True either") from error
    except Exception as error:  # a broken or hostile file can raise almost anything while it is parsed
        raise InputError(f"{path} cannot be read as npz ({error!r}); expected a file made by numpy.savez") from error


def check_unpacked(path: Path) -> None:
    """InputError where a zip archive, as npz and xlsx files are, would unpack to more than `LARGEST` bytes.

    What an archive says of itself is the most that `zipfile` gives.
    """
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > LARGEST:
        raise InputError(f"{path} unpacks to {unpacked / 1e6:,.0f} MB (limit {LARGEST / 1e6:,.0f}); it is not the benchmark's file")


def _read_entry(archive: zipfile.ZipFile, name: str) -> Any:
    with archive.open(name) as stream:
        if _read_dtype(stream).hasobject:
            value = _PlainUnpickler(stream).load()
            return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value
    with archive.open(name) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)


def _read_dtype(stream: BufferedIOBase) -> np.dtype:
    """The dtype in the header of an npy stream, which then stands at its data."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)[2]
