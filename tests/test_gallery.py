"""The gallery: what it finds, against dense codes sorted in numpy; kills, changes and odd files on the way to it."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from matplotlib.patches import Rectangle
from PIL import Image

from emointerp import cli
from emointerp.errors import InputError, OutputError
from emointerp.gallery import Gallery, extraction, index, settings, tables
from emointerp.gallery.listing import listed
from emointerp.models import load_tower
from emointerp.sae import SAE, load_sae
from emointerp.sae.reading import picture_codes
from emointerp.world import sample

ODD = (
    "with space.png",
    'it\'s "quoted".png',
    "<script>alert(1).png",
    "two\nlines.png",
    "радость 喜.jpg",
    "$x^2$ 100%.png",
    "[a-z]*?.PNG",
)
TABLES = ("images.parquet", "features.parquet", "counts.parquet", "failures.parquet")


@pytest.fixture(scope="module")
def tower():
    return load_tower("tiny")


@pytest.fixture(scope="module")
def saes():
    return {"pooled": load_sae("tiny"), "patches": load_sae("tiny-patches")}


def fill(folder, n=20):
    """Pictures of the world under plain and odd names, two of them equal; a damaged one, an empty one, a text, a hidden one."""
    deep = folder / "deeper [1] 'x'"
    deep.mkdir(parents=True)
    names = [*ODD, *(f"deeper [1] 'x'/{i:02d}.png" for i in range(n - len(ODD)))]
    for name, example in zip(names, sample("test", n, seed=3), strict=True):
        example.scene.image().save(folder / name)
    shutil.copy(folder / "with space.png", folder / "with space, again.png")
    (folder / "broken.jpg").write_bytes((deep / "00.png").read_bytes()[:400])
    (folder / "empty.png").touch()
    (folder / "notes.txt").write_text("no picture")
    shutil.copy(folder / "with space.png", folder / ".hidden.png")
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return fill(tmp_path_factory.mktemp("collection") / "my 'pictures' *")


@pytest.fixture(scope="module", params=["pooled", "patches"])
def made(request, pictures, tower, saes, tmp_path_factory):
    """A gallery and the dense codes of its pictures in order of paths, of patches too."""
    folder = tmp_path_factory.mktemp("galleries") / "a *gallery* [1] 'x'"
    found = index(folder, pictures, tower, saes[request.param], batch=8, progress=False)
    paths = sorted(str(p.relative_to(pictures)) for p in pictures.rglob("*") if p.suffix.lower() in (".png", ".jpg"))
    paths = [p for p in paths if p not in ("broken.jpg", "empty.png", ".hidden.png")]
    codes = picture_codes(saes[request.param], tower, [pictures / p for p in paths], batch=8, progress=False)
    return found.gallery, paths, codes.dense().numpy()


@pytest.fixture
def gallery(made):
    return made[0]


@pytest.fixture
def paths(made):
    return made[1]


@pytest.fixture
def dense(made):
    """[picture, feature]: the largest over patches."""
    return made[2] if made[2].ndim == 2 else made[2].max(1)


def order(scores, paths):
    """Pictures by falling score, equal ones by path."""
    return sorted(range(len(paths)), key=lambda i: (-np.float32(scores[i]), paths[i]))


def cosines(dense, direction):
    return dense @ direction / np.linalg.norm(dense, axis=1) / np.linalg.norm(direction)


# what is found


def test_every_picture_is_there_with_its_code(gallery, paths, dense, made):
    assert gallery.images()["path"].tolist() == paths and len(gallery) == len(paths) == 21
    np.testing.assert_allclose(gallery.images()["norm"], np.linalg.norm(dense, axis=1), rtol=1e-5)
    for path, row, full in zip(paths, dense, made[2], strict=True):
        found = gallery.features(path)
        assert found["value"].is_monotonic_decreasing and found["value"].min() > 0
        rebuilt = np.zeros_like(row)
        rebuilt[found["feature"]] = found["value"]
        np.testing.assert_allclose(rebuilt, row, rtol=1e-4, atol=1e-5)
        if full.ndim == 2:
            best = full[found["patch"], found["feature"]]
            np.testing.assert_allclose(best, full.max(0)[found["feature"]], rtol=1e-4, atol=1e-5)


def test_the_top_pictures_of_every_feature(gallery, paths, dense):
    often = np.argsort(-(dense > 0).sum(0))[:12]
    for feature in [int(i) for i in often]:
        found = gallery.top(feature, n=5).to_frame()
        wanted = [i for i in order(dense[:, feature], paths) if dense[i, feature] > 0][:5]
        np.testing.assert_allclose(found["value"], dense[wanted, feature], rtol=1e-4, atol=1e-5)
        assert set(found["path"]) <= {paths[i] for i in np.flatnonzero(dense[:, feature])}
    assert gallery.top(int(often[0]), n=100).to_frame()["path"].nunique() == (dense[:, often[0]] > 0).sum()


def test_a_value_comes_with_its_patch(gallery, paths, made):
    if made[2].ndim == 2:
        assert list(gallery.top(0).table) == ["path", "value"]
        return
    feature = int((made[2].max(1) > 0).sum(0).argmax())
    for row in gallery.top(feature).to_frame().itertuples():
        assert made[2][paths.index(row.path), row.patch, feature] == pytest.approx(row.value, rel=1e-4)
        assert row.value == pytest.approx(made[2][paths.index(row.path), :, feature].max(), rel=1e-4)


def test_the_nearest_pictures_by_cosine(gallery, paths, dense):
    for path in ("two\nlines.png", "deeper [1] 'x'/04.png"):
        scores = cosines(dense, dense[paths.index(path)])
        found = gallery.nearest(path, n=None).to_frame()
        assert path not in set(found["path"]) and len(found) == len(paths) - 1
        np.testing.assert_allclose(found["value"], [scores[paths.index(p)] for p in found["path"]], rtol=1e-4, atol=1e-5)
        assert found["value"].is_monotonic_decreasing


def test_of_two_equal_pictures_each_finds_the_other(gallery, pictures):
    one, other = "with space.png", "with space, again.png"
    first = gallery.nearest(one, n=1).to_frame().iloc[0]
    assert first["path"] == other and first["value"] == pytest.approx(1, abs=1e-6)
    assert gallery.nearest(pictures / other, n=1).to_frame()["path"].item() == one


def test_pictures_along_a_direction(gallery, paths, dense):
    a, b = (int(i) for i in np.argsort(-(dense > 0).sum(0))[[1, 3]])
    direction = np.zeros(dense.shape[1])
    direction[[a, b]] = 2.0, -1.0
    scores = cosines(dense, direction)
    for given in ({a: 2.0, b: -1.0}, torch.from_numpy(direction), direction.astype(np.float32)):
        found = gallery.along(given, n=None).to_frame()
        assert len(found) == len(paths) and found["value"].is_monotonic_decreasing
        np.testing.assert_allclose(found["value"], [scores[paths.index(p)] for p in found["path"]], rtol=1e-4, atol=1e-6)
    assert min(scores) < 0
    ranked = gallery.along({a: 2.0, b: -1.0}, n=None).table["value"]
    assert (ranked == 0).sum() == ((dense[:, a] == 0) & (dense[:, b] == 0)).sum()


def test_a_new_picture_has_the_code_that_the_gallery_would_hold(gallery, paths, dense, pictures, tower, saes):
    sae = saes[gallery.settings.sae["reads"]]
    code = gallery.code(Image.open(pictures / paths[2]), tower, sae)
    assert code == pytest.approx({i: dense[2, i] for i in np.flatnonzero(dense[2])}, rel=1e-4, abs=1e-5)
    best = gallery.along(code, n=1).to_frame()
    assert best["path"].item() == paths[2] and best["value"].item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(InputError, match="holds a gallery by the tower 'tiny' and SAE"):
        gallery.code(pictures / paths[2], tower, SAE.random(tower.d, 64, 4))


def test_counts(gallery, dense):
    found = gallery.counts().set_index("feature")
    fired = np.flatnonzero((dense > 0).any(0))
    assert found.index.tolist() == fired.tolist()
    assert found["images"].tolist() == (dense > 0).sum(0)[fired].tolist()
    mean = [dense[dense[:, i] > 0, i].mean() for i in fired]
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["largest"], dense.max(0)[fired], rtol=1e-4, atol=1e-5)


def test_what_cannot_be_read_is_told_and_skipped(gallery):
    failures = gallery.failures().set_index("path")["reason"]
    assert sorted(failures.index) == ["broken.jpg", "empty.png"]
    assert "is damaged or cut off" in failures["broken.jpg"] and "is empty (0 bytes)" in failures["empty.png"]


def test_features_lie_sorted_so_that_one_is_read_without_the_others(gallery):
    entries = pq.read_table(tables.tables(gallery.folder, gallery.settings) / "features.parquet").to_pandas()
    again = entries.sort_values(["feature", "value", "image"], ascending=[True, False, True], ignore_index=True)
    pd.testing.assert_frame_equal(entries, again)


def test_a_feature_is_read_without_the_others(tmp_path, monkeypatch):
    """With small groups of rows, a feature's lie together by the file's own statistics."""
    monkeypatch.setattr(tables, "ENTRIES_A_GROUP", 2048)
    codes = extraction.Codes(torch.rand(3000, 8).sort(descending=True).values, torch.arange(8).repeat(3000, 1), 8)
    files = [extraction.Listed(f"{i}.png", 1, 1) for i in range(3000)]
    made_of = settings.Settings("nowhere", {"probe": []}, {"fingerprint": "", "d_hidden": 8, "reads": "pooled"}, {})
    with tables.Work.begun(tmp_path, made_of, "1GB") as work:
        assert list(work.keep([extraction.coded(files, [None] * 3000, codes)])) == [3000]
        work.finish({})
    metadata = pq.read_metadata(tmp_path / "tables-0001/features.parquet")
    ranges = [metadata.row_group(i).column(0).statistics for i in range(metadata.num_row_groups)]
    assert metadata.num_row_groups >= 8
    assert all(before.max <= after.min for before, after in zip(ranges, ranges[1:], strict=False))


# the sheet


def test_a_sheet_of_pictures(gallery, paths, tower):
    found = gallery.nearest("with space.png", n=10)
    figure = found.plot(columns=4, tower=tower)
    assert len(figure.axes) == 12 and sum(len(axis.images) for axis in figure.axes) == 10
    assert [axis.get_title() for axis in figure.axes[:10]] == [f"{v:.2f}" for v in found.to_frame()["value"]]
    figure.canvas.draw()


def test_the_sheet_frames_the_patch(made, tower):
    gallery = made[0]
    if not gallery.settings.by_patch:
        return
    found = gallery.top(int(gallery.counts().sort_values("images")["feature"].iloc[-1]), n=2)
    (frame,) = [p for p in found.plot(tower=tower).axes[0].patches if isinstance(p, Rectangle)]
    row, column = divmod(found.table["patch"][0], 8)
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (column * 16, row * 16, 16, 16)


def test_a_picture_that_has_gone_leaves_its_place_empty(gallery, tmp_path):
    moved = Gallery.open(gallery.folder, pictures=tmp_path)
    figure = moved.nearest("with space.png", n=3).plot()
    assert [t.get_text() for t in figure.axes[0].texts] == ["cannot\nbe read"]
    with pytest.raises(InputError, match="no picture was found, so there is none to draw"):
        dataclasses.replace(moved.nearest("with space.png"), table=pd.DataFrame(columns=["path", "value"])).plot()


# questions that cannot be answered


def test_numbers_of_numpy_are_numbers(gallery):
    """A feature comes out of a table; it was told that the gallery is damaged."""
    table = gallery.top(3, 4).table
    pd.testing.assert_frame_equal(gallery.top(np.int64(3), np.int64(4)).table, table)


def test_questions_that_cannot_be_answered(gallery):
    d = gallery.d_hidden
    for ask, words in {
        lambda: gallery.top(d): f"There is no feature {d}; this gallery's SAE has features 0 to {d - 1}",
        lambda: gallery.top(0, n=0): "n is 0; expected a whole number from 1 up",
        lambda: gallery.nearest("no.png"): "'no.png' is not among the 21 pictures of this gallery; expected a path below",
        lambda: gallery.nearest("' OR 1=1 --"): "is not among the 21 pictures",
        lambda: gallery.along({}): "The direction has no length",
        lambda: gallery.along({0: float("nan")}): "numbers that are not finite",
        lambda: gallery.along({d: 1.0}): f"names features {d} to {d}; expected 0 to {d - 1}",
        lambda: gallery.along(np.ones(5)): rf"The direction is \[5\]; expected \[{d}\]",
    }.items():
        with pytest.raises(InputError, match=words):
            ask()


def test_a_feature_that_never_fires_has_no_pictures(gallery, dense):
    silent = int(np.flatnonzero(~(dense > 0).any(0))[0])
    assert len(gallery.top(silent)) == 0


# on the way to it


def table_files(gallery):
    return [tables.tables(gallery.folder, gallery.settings) / name for name in TABLES]


def same(a, b):
    """Whether two galleries hold the same to the last bit, times of change aside."""
    for one, other in zip(table_files(a), table_files(b), strict=True):
        left, right = (pq.read_table(file).to_pandas().drop(columns="modified", errors="ignore") for file in (one, other))
        pd.testing.assert_frame_equal(left, right, check_exact=True)


@pytest.fixture
def collection(pictures, tmp_path):
    return Path(shutil.copytree(pictures, tmp_path / "collection"))


SLOWLY = """
import sys, time
from emointerp.gallery import extraction, index
read = extraction.Reader.__call__
def slowly(self, batch):
    time.sleep(0.1)
    return read(self, batch)
extraction.Reader.__call__ = slowly
index(sys.argv[1], sys.argv[2], batch=2, progress=False)
"""


def test_a_killed_run_goes_on_and_equals_one_that_was_not(collection, tmp_path, monkeypatch):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    run = subprocess.Popen([sys.executable, "-c", SLOWLY, killed, collection])
    while len(parts := list(killed.glob("parts-0001/*.parquet"))) < 3:
        assert run.poll() is None
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    done = len(list(killed.glob("parts-0001/*.parquet")))
    assert len(parts) <= done < 11 and not list(killed.glob("tables-*"))
    with pytest.raises(InputError, match="was begun and is not finished; run the same index again"):
        Gallery.open(killed)
    read, batches = extraction.Reader.__call__, []
    monkeypatch.setattr(extraction.Reader, "__call__", lambda self, batch: (batches.append(len(batch)), read(self, batch))[1])
    continued = index(killed, collection, batch=2, progress=False)
    assert sum(batches) == 23 - 2 * done and continued.added == 21
    same(continued.gallery, index(whole, collection, batch=2, progress=False).gallery)
    assert sorted(p.name for p in killed.iterdir()) == ["gallery.json", "tables-0001"]


@pytest.mark.parametrize("stage", ["read_parquet", "write"])
def test_a_run_that_stops_while_it_sorts_leaves_the_tables_of_before(stage, collection, tmp_path, tower, saes, monkeypatch):
    before = index(tmp_path / "g", collection, tower, saes["pooled"], batch=8, progress=False).gallery
    sample("test", 1, seed=9)[0].scene.image().save(collection / "new.png")
    with monkeypatch.context() as patched:
        if stage == "write":
            patched.setattr(settings.Settings, "write", stop)
        else:
            patched.setattr(tables, "COUNTED", "SELECT error('stopped')")
        with pytest.raises((KeyboardInterrupt, duckdb.Error)):
            index(tmp_path / "g", collection, tower, saes["pooled"], batch=8, progress=False)
    assert Gallery.open(tmp_path / "g").settings.generation == 1
    assert len(before) == len(Gallery.open(tmp_path / "g")) == 21 and len(before.nearest("with space.png")) == 20
    after = index(tmp_path / "g", collection, tower, saes["pooled"], batch=8, progress=False)
    assert after.added == 1 and len(after.gallery) == 22
    assert sorted(p.name for p in (tmp_path / "g").glob("*-*")) == ["tables-0002"]


def stop(*_):
    raise KeyboardInterrupt


def test_new_changed_and_vanished_pictures(collection, tmp_path, tower, saes):
    given = {"tower": tower, "sae": saes["pooled"], "batch": 1, "progress": False}
    index(tmp_path / "g", collection, **given)
    new, changed = (e.scene.image() for e in sample("test", 2, seed=9))
    new.save(collection / "aa new.png")
    changed.save(collection / "with space.png")
    new.save(collection / "broken.jpg")
    (collection / "two\nlines.png").unlink()
    after = index(tmp_path / "g", collection, **given)
    assert after.added == 3 and after.vanished == ("two\nlines.png",)
    assert "1 are no longer there ('two\\nlines.png' …); --forget leaves them out" in str(after)
    assert "two\nlines.png" in set(after.gallery.images()["path"])
    assert after.gallery.nearest("aa new.png", n=1).table["path"].item() == "broken.jpg"
    assert after.gallery.nearest("with space.png", n=1).table["value"].item() < 0.99
    forgotten = index(tmp_path / "g", collection, **given, forget=True)
    assert forgotten.added == 0 and forgotten.vanished == ()
    same(forgotten.gallery, index(tmp_path / "afresh", collection, **given).gallery)


def test_where_nothing_is_new_nothing_is_written(collection, tmp_path, tower, saes):
    given = {"tower": tower, "sae": saes["pooled"], "batch": 4, "progress": False}
    first = index(tmp_path / "g", collection, **given)
    times = [file.stat().st_mtime_ns for file in table_files(first.gallery)]
    again = index(tmp_path / "g", collection, **given)
    assert again.added == 0 and [file.stat().st_mtime_ns for file in table_files(again.gallery)] == times
    (collection / "empty.png").unlink()
    fewer = index(tmp_path / "g", collection, **given)
    assert fewer.gallery.failures()["path"].tolist() == ["broken.jpg"] and fewer.gallery.settings.generation == 2


def test_a_gallery_that_was_replaced_says_so(collection, tmp_path, tower, saes):
    given = {"tower": tower, "sae": saes["pooled"], "progress": False}
    first = index(tmp_path / "g", collection, **given).gallery
    assert len(first) == 21
    (collection / "with space.png").unlink()
    index(tmp_path / "g", collection, **given, forget=True)
    with pytest.raises(InputError, match="was changed or moved since it was opened; open it again"):
        first.top(0)


def test_another_sae_tower_or_folder_is_refused(collection, pictures, tmp_path, tower, saes):
    index(tmp_path / "g", collection, tower, saes["pooled"], progress=False)
    held = {file: file.read_bytes() for file in (tmp_path / "g").rglob("*") if file.is_file()}
    other = SAE.random(tower.d, 64, 4)
    with pytest.raises(
        InputError, match=r"by the tower 'tiny' and SAE\(192 -> .*; the tower 'tiny' and SAE\(192 -> 64, top 4.* came"
    ):
        index(tmp_path / "g", collection, tower, other, progress=False)
    turned = dataclasses.replace(tower, name="other", _pooled=lambda pixels: tower.pooled(pixels).flip(1))
    with pytest.raises(InputError, match="by the tower 'tiny' and .*; the tower 'other' and .* came. Nothing was changed there"):
        index(tmp_path / "g", collection, turned, saes["pooled"], progress=False)
    with pytest.raises(InputError, match="holds a gallery of .*collection; .*my 'pictures' .* came"):
        index(tmp_path / "g", pictures, tower, saes["pooled"], progress=False)
    assert held == {file: file.read_bytes() for file in held}


def test_the_same_tower_in_another_precision_is_the_same(collection, tmp_path, tower, saes):
    index(tmp_path / "g", collection, tower, saes["pooled"], progress=False)
    half = dataclasses.replace(tower, _pooled=lambda pixels: tower.pooled(pixels).bfloat16().float())
    assert index(tmp_path / "g", collection, half, saes["pooled"], progress=False).added == 0


def test_an_sae_of_another_width_is_refused_before_anything_is_read(collection, tmp_path, tower):
    with pytest.raises(InputError, match="reads vectors of width 8, and those given of tiny are 192 wide"):
        index(tmp_path / "g", collection, tower, SAE.random(8, 64, 4), progress=False)
    assert not (tmp_path / "g").exists()


def test_a_table_that_was_packed_otherwise_is_not_given_to_duckdb(gallery, tmp_path):
    """A wrongly packed table can make a decoder of DuckDB's write past its memory."""
    copy = shutil.copytree(gallery.folder, tmp_path / "copy")
    file = next(copy.rglob("features.parquet"))
    pq.write_table(pq.read_table(file), file, compression="gzip")
    with pytest.raises(InputError, match="features.parquet is packed with gzip, which no gallery of ours is"):
        Gallery.open(copy)


def test_a_damaged_batch_is_read_again(collection, tmp_path, tower, saes, monkeypatch):
    given = {"tower": tower, "sae": saes["pooled"], "batch": 4, "progress": False}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(tables.Work, "finish", stop)
        index(tmp_path / "g", collection, **given)
    part = tmp_path / "g/parts-0001/00000002.parquet"
    part.write_bytes(part.read_bytes()[:500])
    with pytest.warns(UserWarning, match="00000002.parquet is damaged .*its pictures are read again"):
        found = index(tmp_path / "g", collection, **given)
    same(found.gallery, index(tmp_path / "whole", collection, **given).gallery)


def test_a_picture_whose_numbers_are_not_finite_is_skipped(collection, tmp_path, tower, saes):
    dark = dataclasses.replace(
        tower, _pooled=lambda x: torch.where((x.mean((1, 2, 3)) < -0.99)[:, None], torch.nan, tower.pooled(x))
    )
    Image.new("RGB", (32, 32)).save(collection / "black.png")
    found = index(tmp_path / "g", collection, dark, saes["pooled"], progress=False)
    assert found.gallery.failures().set_index("path")["reason"]["black.png"] == "The tower's numbers for it are not finite."
    assert len(found.gallery) == 21


def test_whatever_a_picture_raises_only_that_one_is_skipped(collection, tmp_path, tower, saes):
    def pixels(picture):
        if picture.size == (7, 7):
            raise RuntimeError("out of luck")
        return tower._pixels(picture)

    Image.new("RGB", (7, 7)).save(collection / "small.png")
    found = index(tmp_path / "g", collection, dataclasses.replace(tower, _pixels=pixels), saes["pooled"], progress=False)
    reason = found.gallery.failures().set_index("path")["reason"]["small.png"]
    assert reason == "It is damaged or of an unknown kind (RuntimeError: out of luck)." and len(found.gallery) == 21


def test_a_picture_of_too_many_pixels_is_skipped(collection, tmp_path, tower, saes, monkeypatch):
    Image.new("1", (4000, 4000)).save(collection / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    found = index(tmp_path / "g", collection, tower, saes["pooled"], progress=False)
    assert "unpacks to too many pixels" in found.gallery.failures().set_index("path")["reason"]["huge.png"]


# folders


@pytest.mark.parametrize(
    "given, words", [("nowhere", "nowhere is not there"), ("file", "file is no folder"), ("bare", "There is no")]
)
def test_folders_without_pictures(given, words, tmp_path, tower, saes):
    (tmp_path / "file").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/notes.txt").touch()
    with pytest.raises(InputError, match=words):
        index(tmp_path / "g", tmp_path / given, tower, saes["pooled"], progress=False)
    assert not (tmp_path / "g").exists()


def test_a_folder_where_nothing_can_be_read(tmp_path, tower, saes):
    (tmp_path / "p").mkdir()
    (tmp_path / "p/a.png").write_text("no")
    for _ in range(2):
        with pytest.raises(InputError, match=r"No picture of .*p could be read: 1 failed, the first, 'a.png', because: .*Pillow"):
            index(tmp_path / "g", tmp_path / "p", tower, saes["pooled"], progress=False)
    Image.new("RGB", (8, 8)).save(tmp_path / "p/a.png")
    assert index(tmp_path / "g", tmp_path / "p", tower, saes["pooled"], progress=False).added == 1


def test_links_loops_pipes_and_names(tmp_path, monkeypatch):
    top, elsewhere = tmp_path / "top", tmp_path / "elsewhere"
    (top / "sub").mkdir(parents=True)
    (top / "closed").mkdir()
    elsewhere.mkdir()
    for file in (top / "a.png", top / "sub/b.JPG", elsewhere / "c.webp", top / ".hidden.png", top / "sub/notes.txt"):
        file.write_text("x")
    os.symlink(top, top / "sub/loop")
    os.symlink(elsewhere, top / "link")
    os.symlink(elsewhere, top / "twice")
    os.symlink(top / "self.png", top / "self.png")
    os.symlink(tmp_path / "nothing", top / "nothing.png")
    os.mkfifo(top / "pipe.png")
    (top / os.fsdecode(b"caf\xe9.png")).write_text("x")
    look = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: denied(path) if Path(path).name == "closed" else look(path))
    found = listed(top, skip=top / "gallery")
    assert [file.path for file in found.pictures] == ["a.png", "link/c.webp", "sub/b.JPG"]
    assert found.failures == {
        "caf\\udce9.png": "Its name is not UTF-8; rename it.",
        "closed": "The folder may not be read: Permission denied.",
        "nothing.png": "It cannot be looked at: No such file or directory.",
        "pipe.png": "It is no ordinary file (a pipe, a socket or a device).",
        "self.png": "It cannot be looked at: Too many levels of symbolic links.",
    }
    assert [file.path for file in listed(top, skip=top / "sub").pictures] == ["a.png", "link/c.webp"]


def denied(path):
    raise PermissionError(13, "Permission denied", str(path))


def test_folders_that_hold_something_else(collection, tmp_path, tower, saes):
    (tmp_path / "g").mkdir()
    (tmp_path / "g/thesis.tex").touch()
    with pytest.raises(InputError, match="g holds 'thesis.tex' but no gallery.json: it is no gallery"):
        index(tmp_path / "g", collection, tower, saes["pooled"], progress=False)
    assert [file.name for file in (tmp_path / "g").iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="There is no gallery in .*; emointerp index makes one"):
        Gallery.open(tmp_path / "g")
    for text in ("{", "[]", json.dumps({"format": "emointerp gallery", "version": 9})):
        (tmp_path / "g/gallery.json").write_text(text)
        with pytest.raises(InputError, match="gallery.json is damaged or of something else"):
            Gallery.open(tmp_path / "g")
    with pytest.raises(
        OutputError, match="Cannot write in .*thesis.tex/g: Not a directory. Free space there, or give another folder"
    ):
        index(tmp_path / "g/thesis.tex/g", collection, tower, saes["pooled"], progress=False)


def test_tables_that_are_missing_are_named(collection, tmp_path, tower, saes):
    made = index(tmp_path / "g", collection, tower, saes["pooled"], progress=False).gallery
    table_files(made)[2].unlink()
    with pytest.raises(InputError, match="lacks counts.parquet; make it again"):
        Gallery.open(tmp_path / "g")


def test_two_processes_do_not_write_in_one_gallery(collection, tmp_path, tower, saes):
    hold = (
        "import sys, pathlib; from emointerp.files import alone\n"
        "with alone(pathlib.Path(sys.argv[1])): print(1, flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", hold, tmp_path / "g"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline()
    with pytest.raises(OutputError, match="Another run is at work in .*g; wait until it is done"):
        index(tmp_path / "g", collection, tower, saes["pooled"], progress=False)
    other.communicate()
    assert index(tmp_path / "g", collection, tower, saes["pooled"], progress=False).added == 21


def test_a_disk_that_fails_is_not_taken_for_another_process(tmp_path):
    made_of = settings.Settings("nowhere", {"probe": []}, {"fingerprint": "", "d_hidden": 8, "reads": "pooled"}, {})
    (tmp_path / ".lock").mkdir()  # which cannot be opened for writing
    with pytest.raises(OutputError, match="Cannot write in .*Is a directory"), tables.Work.begun(tmp_path, made_of, "1GB"):
        pass


@pytest.mark.parametrize(
    "given, words",
    [
        ({"engine": "spark"}, "engine is 'spark'; expected 'local' or 'ray'"),
        ({"batch": 0}, "batch is 0; expected 1 or more"),
        ({"memory": "much"}, "memory is 'much'; expected an amount like '2GB'"),
    ],
)
def test_settings_that_cannot_be(given, words, collection, tmp_path, tower, saes):
    with pytest.raises(InputError, match=words):
        index(tmp_path / "g", collection, tower, saes["pooled"], progress=False, **given)
    assert not (tmp_path / "g").exists()


# the command line, and Ray


def run_cli(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["emointerp", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return stopped.value.code


def test_the_command_line(collection, tmp_path, monkeypatch, capsys):
    assert run_cli(monkeypatch, "index", collection, "--out", tmp_path / "g", "--batch", "8") == 0
    said = capsys.readouterr().out
    assert f"21 pictures in {tmp_path / 'g'}, 21 of them new." in said and "'empty.png': " in said
    assert f"In Python: ei.Gallery.open('{tmp_path / 'g'}'), then .top(feature)" in said
    assert len(Gallery.open(tmp_path / "g").top(0)) <= 21
    assert run_cli(monkeypatch, "index", tmp_path / "nowhere", "--out", tmp_path / "g") == 2
    assert "nowhere is not there; give a folder of pictures" in capsys.readouterr().err


def test_ray_gives_the_same_tables(collection, tmp_path, monkeypatch):
    """One test with Ray, whose start and stop take most of its time."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        far = index(tmp_path / "ray", collection, batch=4, engine="ray", progress=False)
        assert ray.is_initialized()  # it was there before
    finally:
        ray.shutdown()
    assert far.added == 21
    same(far.gallery, index(tmp_path / "local", collection, batch=4, progress=False).gallery)


def test_where_nothing_is_left_to_read_no_ray_is_asked(pictures, monkeypatch):
    monkeypatch.setattr(extraction, "_ray", stop)
    assert list(extraction.with_ray([], pictures, "tiny", "tiny", None)) == []
    with pytest.raises(KeyboardInterrupt):
        list(extraction.with_ray([[extraction.Listed("a.png", 1, 1)]], pictures, "tiny", "tiny", None))


def test_only_cuda_takes_a_gpu_of_ray():
    given = ("cuda", "cuda:1", "cpu", "mps", None)
    assert [extraction.resource(device) for device in given] == ["GPU", "GPU", "CPU", "CPU", "CPU"]


def test_without_ray_the_engine_says_what_to_install(collection, tmp_path, tower, saes, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"needs Ray Data; run: pip install 'emointerp\[ray\]'. Or take the engine 'local'"):
        index(tmp_path / "g", collection, tower, saes["pooled"], progress=False, engine="ray")
