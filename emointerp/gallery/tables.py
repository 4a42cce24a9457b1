"""The tables of a gallery on disk: batches as they come, each a file written whole; then all of them, sorted, at one stroke.

    gallery/
        gallery.json              what it is made of, and the number of the finished tables
        tables-0001/              the finished ones
        parts-0002/00000000.parquet …   batches of those to come

DuckDB sorts, and puts on disk what does not fit its share of memory.
"""

import glob
import os
import shutil
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from emointerp.errors import InputError, OutputError
from emointerp.files import alone, writing
from emointerp.gallery.listing import Listed
from emointerp.gallery.settings import FILE, Settings

OFFLINE = {"autoinstall_known_extensions": "false"}  # DuckDB fetches nothing
IMAGES, FEATURES, COUNTS, FAILURES = "images.parquet", "features.parquet", "counts.parquet", "failures.parquet"
PACKED = {"ZSTD", "SNAPPY", "UNCOMPRESSED"}  # what DuckDB is given to unpack; ours are ZSTD
CODES_A_GROUP, ENTRIES_A_GROUP = 2048, 122_880  # rows of images and of features that are read together


def check_packing(files: Iterable[Path]) -> None:
    """InputError where a table is damaged, or packed with what we never use: DuckDB's Brotli is not safe (docs/security.md)."""
    for file in files:
        try:
            groups = pq.read_metadata(file)
            found = {
                groups.row_group(i).column(j).compression for i in range(groups.num_row_groups) for j in range(groups.num_columns)
            }
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"The gallery's tables are damaged ({file}: {error}); make it in a new folder.") from error
        if strange := found - PACKED:
            raise InputError(
                f"{file} is packed with {', '.join(sorted(strange)).lower()}, which no gallery of ours is, and was not read; make "
                "the gallery in a new folder."
            )


def tables(folder: Path, settings: Settings) -> Path:
    """Where the finished tables lie."""
    return folder / f"tables-{settings.generation:04d}"


@dataclass(frozen=True)
class Work:
    """A gallery's folder with one writer in it: batches come in, finished tables go out."""

    folder: Path
    settings: Settings
    connection: duckdb.DuckDBPyConnection

    @classmethod
    @contextmanager
    def begun(cls, folder: Path, settings: Settings, memory: str) -> Iterator["Work"]:
        """The folder, made where there is none, without what a killed run left behind; refused where it holds something else."""
        _check_memory(memory)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        _check_folder(folder)  # before anything, the lock too, is put there
        with alone(folder), _database(folder, memory) as connection:
            held = Settings.read(folder)
            if held is None:
                settings.write(folder)
            else:
                held.check_same(settings, folder)
            work = cls(folder, replace(settings, generation=held.generation if held else 0), connection)
            work._clear()
            yield work

    @property
    def parts(self) -> Path:
        """Where batches wait."""
        return self.folder / f"parts-{self.settings.generation + 1:04d}"

    def _clear(self) -> None:
        """Remove tables and batches that are neither the finished ones nor those being made."""
        current = {self.parts, tables(self.folder, self.settings)}
        for path in [*self.folder.glob("tables-*"), *self.folder.glob("parts-*")]:
            if path not in current:
                shutil.rmtree(path, ignore_errors=True)

    def known(self) -> dict[str, Listed]:
        """The pictures of the finished tables."""
        file = tables(self.folder, self.settings) / IMAGES
        return _listed(pq.read_table(file, columns=KEYS)) if file.exists() else {}

    def waiting(self) -> dict[str, Listed]:
        """The files of the batches that wait, read or not; a batch that is damaged is thrown away, and read again."""
        found: dict[str, Listed] = {}
        for part in sorted(self.parts.glob("*.parquet")):
            try:
                found |= _listed(pq.read_table(part, columns=KEYS))
            except (pa.ArrowException, OSError) as error:
                warnings.warn(f"{part} is damaged ({error}); its pictures are read again.", stacklevel=4)
                part.unlink()
        return found

    def keep(self, batches: Iterable[pa.Table]) -> Iterator[int]:
        """Write batches as they come, each whole and then renamed; gives the length of each that is kept."""
        last = max((int(file.stem) for file in self.parts.glob("*.parquet")), default=-1)
        for number, table in enumerate(batches, last + 1):
            with writing(self.folder):
                self.parts.mkdir(exist_ok=True)
                part = self.parts / f"{number:08d}.part"
                pq.write_table(table, part, compression="zstd")
                os.replace(part, part.with_suffix(".parquet"))
            yield len(table)

    # tables

    def finish(self, failures: Mapping[str, str], gone: Collection[str] = ()) -> int:
        """Sort what waits into what is finished, without pictures that are `gone`; how many pictures are new or were changed.

        `failures` are files that never came into a batch. Where nothing is new, nothing is written. InputError where no picture
        is left; what was finished before then stays.
        """
        settings = self.settings
        with _sorting(self.folder):
            new = self._gather(failures, gone)
            if settings.generation == 0 or new or self._changed():
                settings = settings.next()
                self._sort(tables(self.folder, settings), settings.by_patch)
                settings.write(self.folder)  # from here on the new tables are the finished ones
        shutil.rmtree(self.parts, ignore_errors=True)
        replace(self, settings=settings)._clear()
        return new

    def _gather(self, failures: Mapping[str, str], gone: Collection[str]) -> int:
        """What there is of each path last, numbered in order of paths; and all failures. How many pictures come from batches."""
        ask, old = self.connection, tables(self.folder, self.settings)
        sources = ["SELECT * FROM parts"] if any(self.parts.glob("*.parquet")) else []
        check_packing([*self.parts.glob("*.parquet"), *old.glob(IMAGES)])
        if sources:
            ask.read_parquet(f"{glob.escape(str(self.parts))}/*.parquet", filename=True).create_view("parts", replace=True)
        if old.exists():
            ask.read_parquet(glob.escape(str(old / IMAGES))).create_view("old", replace=True)
            sources.append("SELECT * EXCLUDE (image), NULL::VARCHAR AS reason, '' AS filename FROM old")
        ask.execute(f"CREATE OR REPLACE TEMP VIEW held AS {' UNION ALL BY NAME '.join(sources) or EMPTY}")
        ask.register("gone", pa.table({"path": pa.array(gone, pa.string())}))
        ask.register("unlisted", _failed(failures))
        for statement in GATHERED:
            ask.execute(statement)
        ((n, new),) = ask.execute("SELECT count(*), count(*) FILTER (filename <> '') FROM chosen").fetchall()
        if not n:
            shutil.rmtree(self.parts, ignore_errors=True)  # so that the next run tries again
            failed = ask.execute("SELECT * FROM failed ORDER BY path").fetchall()
            first = f", the first, {failed[0][0]!r}, because: {failed[0][1]}" if failed else "."
            raise InputError(f"No picture of {self.settings.pictures} could be read: {len(failed)} failed{first}")
        return new

    def _changed(self) -> bool:
        """Whether pictures went, or other files failed, than the finished tables say."""
        old, ask = tables(self.folder, self.settings), self.connection
        ((n,),) = ask.execute("SELECT count(*) FROM chosen").fetchall()
        failed = ask.execute("SELECT * FROM failed ORDER BY path").fetchall()
        before = [tuple(row.values()) for row in pq.read_table(old / FAILURES).to_pylist()]
        return n != pq.read_metadata(old / IMAGES).num_rows or failed != before

    def _sort(self, out: Path, by_patch: bool) -> None:
        """Write all tables."""
        shutil.rmtree(out, ignore_errors=True)  # of a run that was killed while it sorted
        with writing(self.folder):
            out.mkdir()
        ask, patch = self.connection, ", unnest(patches) AS patch" if by_patch else ""
        ask.sql(IMAGES_SORTED).write_parquet(str(out / IMAGES), compression="zstd", row_group_size=CODES_A_GROUP)
        ask.read_parquet(glob.escape(str(out / IMAGES))).create_view("images", replace=True)
        entries = ask.sql(ENTRIES_SORTED.format(patch=patch))
        entries.write_parquet(str(out / FEATURES), compression="zstd", row_group_size=ENTRIES_A_GROUP)
        ask.read_parquet(glob.escape(str(out / FEATURES))).create_view("entries", replace=True)
        ask.sql(COUNTED).write_parquet(str(out / COUNTS), compression="zstd")
        ask.sql("SELECT * FROM failed ORDER BY path").write_parquet(str(out / FAILURES), compression="zstd")


KEYS = ["path", "size", "modified"]
EMPTY = "SELECT NULL::VARCHAR AS path, NULL::VARCHAR AS filename, NULL::VARCHAR AS reason WHERE false"
GATHERED = (
    """CREATE OR REPLACE TEMP TABLE latest AS
    SELECT path, arg_max(reason IS NULL, filename) AS read, max(filename) AS filename FROM held GROUP BY path""",
    "DELETE FROM latest WHERE path IN (SELECT path FROM gone)",
    """CREATE OR REPLACE TEMP TABLE chosen AS
    SELECT (row_number() OVER (ORDER BY path) - 1)::INTEGER AS image, path, filename FROM latest WHERE read""",
    """CREATE OR REPLACE TEMP TABLE failed AS
    SELECT path, reason FROM held JOIN latest USING (path, filename) WHERE NOT read UNION ALL SELECT path, reason FROM unlisted""",
)
IMAGES_SORTED = """SELECT image, path, size, modified, norm, features, values, patches
    FROM held JOIN chosen USING (path, filename) ORDER BY image"""
ENTRIES_SORTED = """SELECT unnest(features) AS feature, unnest(values) AS value, image{patch} FROM images
    ORDER BY feature, value DESC, image"""
COUNTED = """SELECT feature, count(*) AS images, avg(value)::FLOAT AS mean, max(value) AS largest FROM entries
    GROUP BY feature ORDER BY feature"""


def _listed(table: pa.Table) -> dict[str, Listed]:
    return {path: Listed(path, *rest) for path, *rest in zip(*(table[name].to_pylist() for name in KEYS), strict=True)}


def _failed(failures: Mapping[str, str]) -> pa.Table:
    return pa.table({"path": pa.array(failures.keys(), pa.string()), "reason": pa.array(failures.values(), pa.string())})


def _check_folder(folder: Path) -> None:
    """InputError where a folder holds something, and no gallery."""
    others = sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))
    if others and Settings.read(folder) is None:
        raise InputError(f"{folder} holds {others[0]!r} but no {FILE}: it is no gallery. Give a new folder, or an empty one.")


def _check_memory(memory: str) -> None:
    try:
        duckdb.connect(config=OFFLINE | {"memory_limit": memory}).close()
    except (duckdb.InvalidInputException, duckdb.ParserException) as error:
        raise InputError(f"memory is {memory!r}; expected an amount like '2GB'. ({error})") from None


@contextmanager
def _database(folder: Path, memory: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """DuckDB in memory, with what does not fit in a hidden folder."""
    temporary = folder / ".sorting"
    connection = duckdb.connect(":memory:", config=OFFLINE | {"memory_limit": memory, "temp_directory": str(temporary)})
    try:
        yield connection
    finally:
        connection.close()
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _sorting(folder: Path) -> Iterator[None]:
    """DuckDB's errors on the way to tables, in words; the batches are kept, and the next run sorts them."""
    try:
        yield
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise OutputError(
            f"The tables of {folder} could not be sorted: {error}. What was read is kept; free space or memory, and run it again."
        ) from error
