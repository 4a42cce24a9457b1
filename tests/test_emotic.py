"""EMOTIC's reader on small folders of drawn pictures in its three forms, and the command line that ranks them."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from emointerp import cli
from emointerp.errors import InputError, OutputError
from emointerp.evaluation import benchmarks
from emointerp.evaluation.benchmarks import embedded, run_emotic
from emointerp.evaluation.emotic import EMOTIONS, SPLITS, VAD, Place, published, read_emotic
from emointerp.models import load_tower
from emointerp.sae import SAE, save_sae
from emointerp.world import sample

WORDS = {
    "anger": ["Anger", "Annoyance"],
    "disgust": ["Aversion"],
    "fear": ["Fear", "Disquietment"],
    "joy": ["Happiness", "Pleasure"],
    "sadness": ["Sadness"],
    "surprise": ["Surprise", "Doubt/Confusion"],
    "neutral": ["Peace"],
}
FOLDERS = ("mscoco/images", "framesdb/images")
PLACES = {"train": ("train", 36), "val": ("selection", 24), "test": ("test", 24)}


@dataclass
class Person:
    box: list
    words: list
    vad: list


@dataclass
class Picture:
    name: str
    folder: str
    image: Image.Image
    people: list


def drawn(split, n, seed=0):
    """Pictures with one person (a whole-picture box that leaves it) or two (the left and the right half)."""
    pictures = []
    for i, example in enumerate(sample(split, n, seed)):
        words = WORDS[example.scene.emotion]
        one = [Person([-3.7, 5.2, 140.0, 127.9], words, [5.0, 6.0, 7.0])]
        two = [
            Person([0, 0, 60, 128], words[:1], [2.0, 3.5, 4.0]),
            Person([60, 0, 128, 128], [*words, "Engagement"], [8.0, 1.0, 10.0]),
        ]
        pictures.append(Picture(f"{split} {i}.png", FOLDERS[i % 2], example.scene.image(), two if i % 3 == 0 else one))
    return pictures


@pytest.fixture(scope="module")
def world():
    return {split: drawn(*place) for split, place in PLACES.items()}


# writing the three forms


def struct(rows):
    """A MATLAB struct array of dicts that have the same keys."""
    out = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for i, row in enumerate(rows):
        out[0, i] = tuple(row.values())
    return out


def cells(words):
    out = np.empty((1, len(words)), dtype=object)
    out[0, :] = words
    return out


def annotated(person, split):
    """A person as EMOTIC's structs have it: one annotator in train, several and their combination elsewhere."""
    numbers = struct([dict(zip(VAD, person.vad, strict=True))])
    if split == "train":
        return {"body_bbox": np.array([person.box]), "annotations_categories": struct([{"categories": cells(person.words)}])} | {
            "annotations_continuous": numbers
        }
    each = struct([{"categories": cells([word])} for word in (person.words or ["Pain"])] + [{"categories": cells(["Yearning"])}])
    told = {"body_bbox": np.array([person.box]), "annotations_categories": each, "combined_categories": cells(person.words)}
    return told | {"annotations_continuous": struct([dict.fromkeys(VAD, 1.0)] * 3), "combined_continuous": numbers}


def write_mat(root, world, below=""):
    structs = {}
    for split, pictures in world.items():
        rows = []
        for picture in pictures:
            place = root / "emotic" / picture.folder / picture.name
            place.parent.mkdir(parents=True, exist_ok=True)
            picture.image.save(place)
            size = struct([{"n_col": 128, "n_row": 128}])
            people = struct([annotated(person, split) for person in picture.people])
            rows.append({"filename": picture.name, "folder": picture.folder, "image_size": size, "original_database": "x"})
            rows[-1]["person"] = people
        structs[split] = struct(rows)
    (root / below).mkdir(parents=True, exist_ok=True)
    savemat(root / below / "Annotations.mat", structs)
    return root


def whole(box):
    return [int(min(max(value, 0), 128)) for value in box]


def everyone(pictures):
    return [(picture, person) for picture in pictures for person in picture.people]


def write_arrays(root, world, order=EMOTIONS):
    root.mkdir(parents=True, exist_ok=True)
    for split, pictures in world.items():
        people = everyone(pictures)
        table = pd.DataFrame(
            {
                "Index": range(len(people)),
                "Folder": [picture.folder for picture, _ in people],
                "Filename": [picture.name for picture, _ in people],
                "Image Size": ["[128, 128]"] * len(people),
                "BBox": [str(whole(person.box)) for _, person in people],
                "Categorical_Labels": [str(person.words) for _, person in people],
                "Continuous_Labels": [str(person.vad) for _, person in people],
                "Gender": "Female",
                "Age": "Adult",
            }
        )
        table.to_csv(root / f"{split}.csv", index=False)
        arrays = {
            "context": [np.asarray(picture.image.resize((56, 56))) for picture, _ in people],
            "body": [np.asarray(picture.image.crop(whole(person.box)).resize((32, 32))) for picture, person in people],
            "cat": [[float(e in person.words) for e in order] for _, person in people],
            "cont": [person.vad for _, person in people],
        }
        for name, values in arrays.items():
            np.save(root / f"{split}_{name}_arr.npy", np.array(values))
    return root


def write_columns(root, world, order=EMOTIONS[::-1]):
    (root / "annots_arrs").mkdir(parents=True)
    (root / "img_arrs").mkdir()
    for split, pictures in world.items():
        rows = []
        for i, (picture, person) in enumerate(everyone(pictures)):
            names = {"Arr_name": f"img {split} {i}.npy", "Crop_name": f"crop_{split}_{i}.npy"}
            box = whole(person.box)
            np.save(root / "img_arrs" / names["Arr_name"], np.asarray(picture.image))
            np.save(root / "img_arrs" / names["Crop_name"], np.asarray(picture.image.crop(box)))
            row = {
                "Folder": picture.folder,
                "Filename": picture.name,
                "Width": 128,
                "Height": 128,
                "Age": "Adult",
                "Gender": "Male",
            }
            row |= dict(zip(("X_min", "Y_min", "X_max", "Y_max"), box, strict=True)) | names
            row |= {e: int(e in person.words) for e in order}
            rows.append(row | dict(zip((name.title() for name in VAD), person.vad, strict=True)))
        pd.DataFrame(rows).to_csv(root / "annots_arrs" / f"annot_arrs_{split}.csv")
    return root


WRITERS = {"mat": write_mat, "arrays": write_arrays, "columns": write_columns}


@pytest.fixture(scope="module")
def copies(world, tmp_path_factory):
    return {form: write(tmp_path_factory.mktemp(form) / "a copy", world) for form, write in WRITERS.items()}


# reading


def test_the_three_forms_give_the_same_frame(copies, world):
    read = {form: read_emotic(copy) for form, copy in copies.items()}
    assert {form: people.form for form, people in read.items()} == {form: form for form in WRITERS}
    expected = [
        {"split": split, "image": f"{picture.folder}/{picture.name}", "bbox": tuple(whole(person.box))}
        | {e: int(e in person.words) for e in EMOTIONS}
        | dict(zip(VAD, person.vad, strict=True))
        for split in SPLITS
        for picture, person in everyone(world[split])
    ]
    for people in read.values():
        pd.testing.assert_frame_equal(people.to_frame(), pd.DataFrame(expected))


def test_pictures_open_whole_and_cut_out(copies, world):
    picture, person = everyone(world["train"])[1]  # the right half of a picture of two
    mat, arrays, columns = (read_emotic(copies[form]) for form in WRITERS)
    for people in (mat, columns):
        assert np.array_equal(people.picture(1), picture.image)
        assert np.array_equal(people.picture(1, "body"), picture.image.crop((60, 0, 128, 128)))
    assert np.array_equal(arrays.picture(1), picture.image.resize((56, 56)))
    assert arrays.picture(1, "body").size == (32, 32)
    assert isinstance(np.load(copies["arrays"] / "train_context_arr.npy", mmap_mode="r"), np.memmap)
    with pytest.raises(InputError, match="view is 'face'; expected 'context' or 'body'"):
        mat.picture(0, "face")
    with pytest.raises(InputError, match="There is no row 9999; there are rows 0 to"):
        mat.picture(9999)


def test_the_summary_says_where_numbers_differ_from_published_ones(copies):
    people = read_emotic(copies["mat"])
    assert people.summary.startswith("112 people in 84 pictures (form 'mat'): train 48, val 32, test 32.")
    assert "Published work has train 23,266, val 3,315, test 7,203: figures are of another selection." in people.summary
    axis = people.plot().axes[0]
    assert {text.get_text() for text in axis.get_yticklabels()} == set(EMOTIONS)


def test_splits_and_draws(copies):
    people = read_emotic(copies["columns"])
    test = people.split("test")
    assert len(test.table) == 32 and set(test.table.split) == {"test"}
    assert np.array_equal(test.picture(3), people.picture(48 + 32 + 3))
    some = people.drawn(10, seed=1)
    assert some.table.split.value_counts().to_dict() == dict.fromkeys(SPLITS, 10)
    assert not some.table.equals(people.drawn(10, seed=2).table) and some.table.equals(people.drawn(10, seed=1).table)
    with pytest.raises(InputError, match="n is 0; expected 1 or more people"):
        people.drawn(0)
    with pytest.raises(InputError, match="There is no split 'extra' here"):
        people.split("extra")
    assert len(read_emotic(copies["columns"], splits=["val"]).table) == 32


def test_people_who_lack_something_are_left_out_and_counted(tmp_path, world):
    pictures = [*world["val"][:4]]
    box, words, vad = [0, 0, 60, 60], ["Peace"], [1.0, 2.0, 3.0]
    lacking = [Person([50, 9, 50, 80], words, vad), Person(box, [], vad), Person(box, words, [1.0, np.nan, 3.0])]
    pictures.append(Picture("odd.png", FOLDERS[0], pictures[0].image, [*lacking, Person(box, words, vad)]))
    people = read_emotic(write_mat(tmp_path, {"val": pictures}, "Annotations"), splits=["val"])
    assert people.unusable == {"val": 3} and people.table.image.tolist().count("mscoco/images/odd.png") == 1
    assert "Left out for want of a box, an emotion or the three numbers: val 3." in people.summary


def test_where_nothing_is_combined_all_annotators_count(tmp_path, world):
    combined = annotated

    def uncombined(person, split):
        told = combined(person, split)
        return {name: told[name] for name in ("body_bbox", "annotations_categories", "annotations_continuous")}

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "annotated", uncombined)
        people = read_emotic(write_mat(tmp_path, {"test": world["test"][1:3]}), splits=["test"])
    assert people.table.Yearning.tolist() == [1, 1] and people.table[list(VAD)].to_numpy().tolist() == [[1, 1, 1]] * 2


# what does not fit


def test_columns_in_any_order_and_spelling_come_right(tmp_path, world, copies):
    mixed = np.random.default_rng(0).permutation(EMOTIONS).tolist()
    copy = write_columns(tmp_path / "mixed", world, mixed)
    for file in (copy / "annots_arrs").iterdir():
        file.write_text(file.read_text().replace("Doubt/Confusion", "doubt confusion"))
    assert read_emotic(copy).table.equals(read_emotic(copies["columns"]).table)
    assert read_emotic(write_arrays(tmp_path / "arrays", world, mixed)).table.equals(read_emotic(copies["arrays"]).table)


def test_unknown_and_missing_emotions_are_named(tmp_path, world):
    copy = write_columns(tmp_path / "columns", {"val": world["val"]})
    file = copy / "annots_arrs" / "annot_arrs_val.csv"
    text = file.read_text()
    file.write_text(text.replace("Happiness", "Joy"))
    with pytest.raises(InputError, match="lacks the emotions Happiness, and has columns that are none of EMOTIC's: Joy"):
        read_emotic(copy, splits=["val"])
    table = pd.read_csv(file).rename(columns={"Joy": "Happiness"})
    table.assign(Boredom=0).to_csv(file, index=False)
    with pytest.raises(InputError, match="lacks the emotions none, and has columns that are none of EMOTIC's: Boredom"):
        read_emotic(copy, splits=["val"])
    table.assign(Peace=2).to_csv(file, index=False)
    with pytest.raises(InputError, match="row 1: Peace is 2; expected 0 or 1"):
        read_emotic(copy, splits=["val"])
    table.drop(columns="X_max").to_csv(file, index=False)
    with pytest.raises(InputError, match="lacks the columns X_max; it has"):
        read_emotic(copy, splits=["val"])
    odd = [Picture("a.png", FOLDERS[0], world["val"][0].image, [Person([0, 0, 9, 9], ["Joy"], [1.0, 1.0, 1.0])])]
    for write in (write_mat, write_arrays):
        with pytest.raises(InputError, match="names the emotion 'Joy', which is none of EMOTIC's: Affection, Anger"):
            read_emotic(write(tmp_path / write.__name__, {"val": odd}), splits=["val"])


@pytest.mark.parametrize("form", ["mat", "columns"])
def test_missing_pictures_are_named_or_skipped(tmp_path, world, form):
    copy = WRITERS[form](tmp_path, {"val": world["val"][:6]})
    gone = sorted(path for path in tmp_path.rglob("*") if path.suffix in (".png", ".npy") and "crop" not in path.name)[:2]
    for path in gone:
        path.unlink()
    with pytest.raises(InputError, match=r"2 of \d+ picture files are not there: .*" + gone[0].name + ".*--skip-missing"):
        read_emotic(copy, splits=["val"])
    people = read_emotic(copy, splits=["val"], skip_missing=True)
    assert [path.split("/")[-1] for path in people.missing] == [path.name for path in gone]
    assert "want of their files: the people of 2" in people.summary and 4 <= len(people.table) < 8
    people.picture(0).load()


def test_broken_files_say_so(tmp_path, world):
    copy = write_arrays(tmp_path / "arrays", {"val": world["val"]})
    whole_array = np.load(copy / "val_cat_arr.npy")
    np.save(copy / "val_cat_arr.npy", whole_array[:-1])
    with pytest.raises(InputError, match="do not fit together: val.csv 32, val_context_arr.npy 32, .*val_cat_arr.npy 31"):
        read_emotic(copy, splits=["val"])
    np.save(copy / "val_cat_arr.npy", whole_array[::-1])
    with pytest.raises(InputError, match="val_cat_arr.npy tells of other people than the table from row 1 on"):
        read_emotic(copy, splits=["val"])
    np.save(copy / "val_cat_arr.npy", np.array([{"a": 1}] * 32, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match="val_cat_arr.npy is no plain array that can be read"):
        read_emotic(copy, splits=["val"])
    (copy / "val_cat_arr.npy").unlink()
    with pytest.raises(InputError, match="There is no .*val_cat_arr.npy"):
        read_emotic(copy, "arrays", ["val"])
    np.save(copy / "val_cat_arr.npy", whole_array)
    table = pd.read_csv(copy / "val.csv")
    table.assign(BBox="somewhere").to_csv(copy / "val.csv", index=False)
    with pytest.raises(InputError, match="val.csv, row 1 is not as expected"):
        read_emotic(copy, splits=["val"])
    (tmp_path / "Annotations.mat").write_bytes(b"MATLAB 5.0, but not really" * 9)
    with pytest.raises(InputError, match="Annotations.mat is no MATLAB file that scipy can read"):
        read_emotic(tmp_path, "mat")
    savemat(tmp_path / "Annotations.mat", {"val": struct([{"filename": "a.png"}])})
    with pytest.raises(InputError, match=r"val\(1\) lacks or garbles 'folder'"):
        read_emotic(tmp_path, splits=["val"])
    with pytest.raises(InputError, match="lacks the structs train, test"):
        read_emotic(tmp_path)


def test_folders_that_hold_no_copy(tmp_path):
    with pytest.raises(InputError, match="holds no copy of EMOTIC; expected Annotations.mat with the pictures; or train.csv"):
        read_emotic(tmp_path)
    with pytest.raises(InputError, match="There is no folder"):
        read_emotic(tmp_path / "nowhere")
    with pytest.raises(InputError, match="form is 'zip'; expected 'mat', 'arrays', 'columns'"):
        read_emotic(tmp_path, "zip")
    with pytest.raises(InputError, match="no split 'extra' of EMOTIC; there are train, val, test"):
        read_emotic(tmp_path, "mat", ["extra"])


# vectors on disk


@pytest.fixture(scope="module")
def tower():
    return load_tower("tiny")


def test_a_killed_run_goes_on_and_equals_a_whole_one(copies, tower, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "AT_ONCE", 10)
    places = read_emotic(copies["mat"]).places["context"]
    expected = embedded(tower, places, tmp_path / "whole", progress=False)
    plain = tower.embed([place.open() for place in places], progress=False)
    assert torch.allclose(expected, plain, atol=1e-4) and expected.shape == (112, 192)
    opened, done = [], Place.open

    def opening(place):
        opened.append(place)
        if len(opened) == 25:
            raise KeyboardInterrupt
        return done(place)

    monkeypatch.setattr(Place, "open", opening)
    with pytest.raises(KeyboardInterrupt):
        embedded(tower, places, tmp_path / "cut", progress=False)
    assert len(list((tmp_path / "cut").glob("*.safetensors"))) == 2
    monkeypatch.setattr(Place, "open", lambda place: opened.append(place) or done(place))
    opened.clear()
    assert torch.equal(embedded(tower, places, tmp_path / "cut", progress=False), expected)
    assert len(opened) == len(set(places)) - 20  # those of two people once, and none of the two whole files again
    files = sorted((tmp_path / "cut").glob("*.safetensors"))
    files[0].write_bytes(files[0].read_bytes()[:-9])  # a broken file is made anew
    assert torch.equal(embedded(tower, places, tmp_path / "cut", progress=False), expected)


def test_another_tower_or_another_picture_is_never_taken_for_the_same(tower, tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, example in zip(files, sample("test", 2), strict=True):
        example.scene.image().save(file)
    places = [Place(file) for file in files]
    first = embedded(tower, places, tmp_path / "v", progress=False)
    Image.new("RGB", (40, 40), "red").save(files[0])
    second = embedded(tower, places, tmp_path / "v", progress=False)
    assert not torch.equal(first[0], second[0]) and torch.allclose(first[1], second[1], atol=1e-5)
    doubled = replace(tower, _pooled=lambda x: 2 * tower._pooled(x))
    assert torch.allclose(embedded(doubled, places, tmp_path / "v", progress=False), 2 * second, atol=1e-3)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write in .*file"):
        embedded(tower, places, tmp_path / "file", progress=False)


def test_a_picture_counts_in_one_split_only(tower, tmp_path, world):
    again = [*world["train"], Picture("copy.png", FOLDERS[0], world["test"][1].image, world["test"][1].people)]
    again.append(Picture(world["val"][2].name, FOLDERS[0], world["train"][0].image, world["val"][2].people))
    fresh = Image.new("RGB", (128, 128), "green")
    again.append(Picture(world["val"][4].name, FOLDERS[1], fresh, world["val"][4].people))  # the same name in another folder
    copy = write_mat(tmp_path, world | {"train": again})
    scores, people, said = run_emotic(tower, None, copy, tmp_path / "out", progress=False)
    assert said == "Rows left out because their picture is also in a later split: train 2."
    assert scores.pictures == 32 and people.table.split.value_counts().to_dict() == {"train": 49, "val": 32, "test": 32}
    assert {f"{FOLDERS[1]}/{world['val'][4].name}", f"{FOLDERS[0]}/{world['val'][4].name}"} <= set(people.table.image)
    assert people.picture(48).getpixel((0, 0)) == (0, 128, 0)  # places go with rows


def test_a_split_without_people_is_named(tower, tmp_path, world):
    nobody = [replace_people(world["val"][1], [])]
    copy = write_mat(tmp_path / "a", world | {"val": nobody})
    with pytest.raises(InputError, match="No one of val has an emotion, a box, the three numbers and a picture"):
        run_emotic(tower, None, copy, tmp_path / "out", progress=False)
    copy = write_mat(tmp_path / "b", {"train": world["train"][:6], "val": world["test"][:6], "test": world["test"][:6]})
    with pytest.raises(InputError, match="No one of val is in a picture of its own"):
        run_emotic(tower, None, copy, tmp_path / "out", progress=False)


def replace_people(picture, words):
    return replace(picture, people=[replace(person, words=words) for person in picture.people])


def test_a_damaged_picture_is_named_or_skipped(tower, tmp_path, world):
    copy = write_mat(tmp_path, world)
    bad = copy / "emotic" / FOLDERS[1] / "train 1.png"
    bad.write_bytes(bad.read_bytes()[:300])
    words = r"The picture of person 2 \(from 0\), .*train 1.png, cannot be used: .*damaged.*--skip-missing"
    for _ in range(2):  # what a run that skips has kept does not hide it
        with pytest.raises(InputError, match=words):
            run_emotic(tower, None, copy, tmp_path / "out", progress=False)
        scores, people, _ = run_emotic(tower, None, copy, tmp_path / "out", skip_missing=True, progress=False)
    assert people.damaged == (str(bad),) and people.table.split.tolist().count("train") == 47
    assert f"Left out because they cannot be read: the people of 1 ({bad})." in people.summary
    assert np.isfinite(scores.table.ap).all()


def test_of_an_array_the_row_is_named(tower, tmp_path):
    np.save(tmp_path / "a.npy", np.full((3, 8, 8, 3), np.nan))
    with pytest.raises(InputError, match="person 0 .*a.npy, row 2, cannot be used: The array holds NaN"):
        embedded(tower, [Place(tmp_path / "a.npy", row=2)], tmp_path / "v", progress=False)


# the command line


def evaluate(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["emointerp", "evaluate", "--benchmark", "emotic", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    out, err = capsys.readouterr()
    return end.value.code, out, err


@pytest.fixture(scope="module")
def coder(tmp_path_factory):
    about = {"tower": "tiny", "reads": "pooled", "unit": True}
    sae = SAE.random(192, 512, 16)
    return save_sae(SAE(sae.encoder, 16, sae.decoder, about=about), tmp_path_factory.mktemp("sae"))


@pytest.mark.parametrize("form", WRITERS)
def test_the_command_line_ranks_each_form(form, copies, coder, monkeypatch, capsys, tmp_path):
    code, said, err = evaluate(monkeypatch, capsys, "--data", copies[form], "--sae", coder, "--out", tmp_path)
    assert code == 0, err
    assert "SAE, centred" in said and "linear probe" in said and f"form '{form}'" in said and "Kept in: " in said
    assert "Mean cosine between directions: SAE 0." in said
    assert "Published elsewhere, not ours:" in said and "none was measured here" in said and "EmotiCon, depth" in said
    told = json.loads((tmp_path / "scores.json").read_text())
    table = pd.read_csv(tmp_path / "scores.csv")
    assert set(table.columns) == {"emotion", "method", "ap", "low", "high", "prevalence", "n"}
    assert told["mAP"]["SAE, centred"][0] == pytest.approx(table[table.method == "SAE, centred"].ap.mean())
    assert "Left out, since a split has none: Affection, " in told["note"] and set(table.emotion) == {
        "Anger", "Annoyance", "Aversion", "Disquietment", "Doubt/Confusion", "Engagement", "Fear", "Happiness", "Peace", "Pleasure",
        "Sadness", "Surprise",
    }  # fmt: skip
    assert (tmp_path / "ap.png").is_file() and len(pd.read_csv(tmp_path / "features.csv")) == 20 * 12
    page = (tmp_path / "table.md").read_text()
    assert "## Published elsewhere, not ours" in page and page.count("| --- |") >= 3


def test_the_command_line_on_people_without_an_sae(copies, monkeypatch, capsys, tmp_path):
    arguments = ["--data", copies["mat"], "--tower", "tiny", "--sae", "none", "--view", "body", "--n", 20, "--out", tmp_path]
    code, said, err = evaluate(monkeypatch, capsys, *arguments)
    assert code == 0, err
    assert "SAE, centred" not in said and "60 people" in said and not (tmp_path / "features.csv").exists()


BAD = {
    "no data": ([], "is needed there (emotic too)"),
    "no copy": (["--data", "."], "holds no copy of EMOTIC"),
    "not asked for": (["--benchmark", "world", "--sae", "tiny"], "--tower, --sae and --view go with --benchmark emotic"),
    "methods": (["--data", ".", "--method", "vaf"], "EMOTIC is ranked, not answered, by a tower in float32: --method cannot be"),
    "model": (["--data", ".", "--model", "a", "--dtype", "bfloat16"], "--model, --dtype cannot be; use --tower"),
    "l-emo": (["--data", ".", "--l-emo", "0"], "--l-emo cannot be"),
    "view": (["--data", "COPY", "--sae", "none", "--view", "face"], "view is 'face'"),
    "wrong SAE": (["--data", "COPY", "--sae", "WRONG"], "reads vectors of width 5, and those given of tiny are 192 wide"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_one_line_and_an_exit_code(case, copies, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    wrong = save_sae(SAE.random(5, 8, 2), tmp_path / "wrong")
    arguments, words = BAD[case]
    code, _, err = evaluate(monkeypatch, capsys, *({"COPY": copies["mat"], "WRONG": wrong}.get(a, a) for a in arguments))
    said = [line for line in err.splitlines() if line and "Loading weights" not in line]
    assert code == 2 and len(said) == 1 and words in said[0]
    assert not list((tmp_path / "empty").iterdir())


def test_published_figures_are_marked_as_such():
    table = published()
    assert table["mAP, %"].tolist() == [20.84, 24.11, 27.38, 28.42, 32.03, 32.91, 35.48, 38.52]
    assert table.columns.tolist() == ["method", "mAP, %", "published by", "what it is"]
