"""A finished gallery and what it is asked, through DuckDB: file names and numbers are parameters, never parts of a question."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, SupportsIndex

import duckdb
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from emointerp.errors import InputError
from emointerp.gallery.extraction import Reader, coded
from emointerp.gallery.found import Found
from emointerp.gallery.listing import Listed
from emointerp.gallery.settings import FILE, Settings
from emointerp.gallery.tables import COUNTS, FAILURES, FEATURES, IMAGES, OFFLINE, check_packing, tables
from emointerp.given import whole_number
from emointerp.models import Tower
from emointerp.sae import SAE

Direction = Mapping[int, float] | Float[Tensor, " d_hidden"] | Float[np.ndarray, " d_hidden"]

TOP = """SELECT path, value{patch} FROM (SELECT * FROM features WHERE feature = ? ORDER BY value DESC, image LIMIT ?)
    JOIN images USING (image) ORDER BY value DESC, image"""
ALONG = """WITH direction AS (SELECT unnest(?::INTEGER[]) AS feature, unnest(?::DOUBLE[]) AS weight),
    products AS (SELECT image, sum(value * weight) AS product FROM features JOIN direction USING (feature) GROUP BY image)
    SELECT path, coalesce(product / nullif(norm, 0), 0)::FLOAT AS value FROM images LEFT JOIN products USING (image)
    WHERE path IS DISTINCT FROM ? ORDER BY value DESC, image LIMIT ?"""
OF_IMAGE = """SELECT unnest(features) AS feature, unnest(values) AS value{patch} FROM read_parquet(?)
    WHERE image = (SELECT image FROM images WHERE path = ?)"""


@dataclass(frozen=True, eq=False)
class Gallery:
    """A gallery on disk, opened.

    >>> gallery = Gallery.open("gallery")                    # doctest: +SKIP
    >>> gallery.top(17, n=100).to_frame()                    # doctest: +SKIP
    >>> gallery.nearest("cats/tom.jpg").plot()               # doctest: +SKIP
    """

    folder: Path
    pictures: Path
    settings: Settings = field(repr=False)

    @classmethod
    def open(cls, folder: str | Path, pictures: str | Path | None = None) -> "Gallery":
        """The gallery in a folder; `pictures`: where they lie now, if they were moved. InputError where it was never finished."""
        folder = Path(folder)
        settings = Settings.read(folder)
        if settings is None:
            raise InputError(f"There is no gallery in {folder} (no {FILE}); emointerp index makes one.")
        if settings.generation == 0:
            raise InputError(f"The gallery in {folder} was begun and is not finished; run the same index again, and it goes on.")
        gallery = cls(folder, Path(pictures or settings.pictures), settings)
        if missing := [name for name in (IMAGES, FEATURES, COUNTS, FAILURES) if not gallery._file(name).is_file()]:
            raise InputError(f"The gallery in {folder} lacks {', '.join(missing)}; make it again in a new folder.")
        check_packing(gallery._file(name) for name in (IMAGES, FEATURES, COUNTS, FAILURES))
        return gallery

    def __len__(self) -> int:
        return self._ask("SELECT count(*) AS n FROM images")["n"].item()

    # what is asked

    def top(self, feature: SupportsIndex, n: SupportsIndex = 24) -> Found:
        """The pictures on which a feature fires most; with an SAE over patches, by their largest patch, and which that is."""
        if not 0 <= (feature := whole_number(feature, "The feature")) < self.d_hidden:
            raise InputError(f"There is no feature {feature}; this gallery's SAE has features 0 to {self.d_hidden - 1}.")
        return self._found(f"Feature {feature}", TOP.format(patch=self._patch("patch")), [feature, whole_number(n, "n", 1)])

    def along(self, direction: Direction, n: int | None = 24, title: str = "Along the direction") -> Found:
        """The pictures whose codes have the largest cosine to a direction in feature space; n None: all.

        `direction`: weights of features, of either sign ({feature: weight}), or one for each feature: an emotion's direction, or
        the code of a picture that is not in the gallery (`code`). A picture on which none of its features fires has 0.
        """
        return self._along(direction, n, title, None)

    def nearest(self, picture: str | Path, n: int | None = 24) -> Found:
        """The pictures whose codes have the largest cosine to that of a picture of the gallery, without itself."""
        features, path = self.features(picture), self._path(picture)
        return self._along(dict(zip(features["feature"], features["value"], strict=True)), n, f"Like {path}", path)

    def features(self, picture: str | Path) -> pd.DataFrame:
        """A picture's code: a row a feature that fires, the largest value first; and its patch, where the SAE reads patches."""
        path = self._path(picture)
        sql = OF_IMAGE.format(patch=self._patch("unnest(patches) AS patch"))
        return self._ask(sql, [self._parquet(IMAGES), path])

    def counts(self) -> pd.DataFrame:
        """A row a feature that fires anywhere: on how many `images`, and its `mean` and `largest` value there."""
        return self._ask("FROM read_parquet(?)", [self._parquet(COUNTS)])

    def images(self) -> pd.DataFrame:
        """A row a picture: its path, and the length of its code."""
        return self._ask("SELECT path, norm FROM images ORDER BY image")

    def failures(self) -> pd.DataFrame:
        """A row a file that could not be read: its path, and the reason."""
        return self._ask("FROM read_parquet(?)", [self._parquet(FAILURES)])

    def code(self, picture: Any, tower: Tower, sae: SAE) -> dict[int, float]:
        """The code of any picture, as the gallery would hold it: what `along` takes. InputError for another tower or SAE."""
        self.settings.check_same(Settings.of(Path(self.settings.pictures), tower, sae), self.folder)
        codes = Reader(self.pictures, tower, sae).codes(tower.pixels([picture]))
        (row,) = coded([Listed("", 0, 0)], [None], codes).to_pylist()
        return dict(zip(row["features"], row["values"], strict=True))

    @property
    def d_hidden(self) -> int:
        """How many features the SAE has."""
        return self.settings.sae["d_hidden"]

    # how

    @cached_property
    def _database(self) -> duckdb.DuckDBPyConnection:
        """A database in memory that holds the pictures' paths, and looks into the features' file."""
        database = duckdb.connect(":memory:", config=OFFLINE)
        database.execute("SET parquet_metadata_cache = true")
        database.execute("CREATE TABLE images AS SELECT image, path, norm FROM read_parquet(?)", [self._parquet(IMAGES)])
        database.read_parquet(self._parquet(FEATURES)).create_view("features")
        return database

    def _ask(self, sql: str, given: Sequence[Any] = ()) -> pd.DataFrame:
        try:
            return self._database.cursor().execute(sql, list(given)).df()
        except duckdb.IOException as error:
            raise InputError(f"The gallery in {self.folder} was changed or moved since it was opened; open it again.") from error
        except (duckdb.OutOfMemoryException, duckdb.InterruptException):
            raise
        except duckdb.Error as error:  # a damaged table makes DuckDB raise almost anything
            raise InputError(
                f"The tables of the gallery in {self.folder} are damaged ({error}); make it in a new folder."
            ) from error

    def _file(self, name: str) -> Path:
        return tables(self.folder, self.settings) / name

    def _parquet(self, name: str) -> str:
        """A table as DuckDB takes it: stars and brackets in a folder's name are no pattern."""
        return glob.escape(str(self._file(name)))

    def _found(self, title: str, sql: str, given: Sequence[Any]) -> Found:
        return Found(title, self._ask(sql, given), self.pictures)

    def _along(self, direction: Direction, n: int | None, title: str, without: str | None) -> Found:
        features, weights = _entries(direction, self.d_hidden)
        unit = weights / np.linalg.norm(weights)
        return self._found(
            title, ALONG, [features.tolist(), unit.tolist(), without, None if n is None else whole_number(n, "n", 1)]
        )

    def _patch(self, column: str) -> str:
        return f", {column}" if self.settings.by_patch else ""

    def _path(self, picture: str | Path) -> str:
        """A picture's path as the tables have it."""
        path = Path(picture)
        text = path.relative_to(self.pictures).as_posix() if path.is_relative_to(self.pictures) else path.as_posix()
        if not len(self._ask("SELECT 1 FROM images WHERE path = ?", [text])):
            raise InputError(
                f"{text!r} is not among the {len(self)} pictures of this gallery; expected a path below {self.pictures}, as "
                "images() lists them. For other pictures: gallery.along(gallery.code(picture, tower, sae))."
            )
        return text


def _entries(direction: Direction, d_hidden: int) -> tuple[np.ndarray, np.ndarray]:
    """A direction as the features that it has a weight for, and these weights."""
    if isinstance(direction, Mapping):
        features, weights = np.array(list(direction), int), np.array(list(direction.values()), float)
    else:
        dense = np.asarray(torch.as_tensor(direction).double().cpu())
        if dense.shape != (d_hidden,):
            raise InputError(
                f"The direction is {list(dense.shape)}; expected [{d_hidden}], a number for each feature of this gallery."
            )
        features = np.flatnonzero(dense)
        weights = dense[features]
    if len(features) and not 0 <= features.min() <= features.max() < d_hidden:
        raise InputError(f"The direction names features {features.min()} to {features.max()}; expected 0 to {d_hidden - 1}.")
    if not np.isfinite(weights).all() or not weights.any():
        raise InputError("The direction has no length, or numbers that are not finite; expected weights other than 0.")
    return features, weights
