"""Pairs: what they hold, how they are read and written, and what `check` finds in pictures that were spoiled by hand."""

import io
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from emointerp.emotions import BASIC, NEUTRAL, Concept
from emointerp.errors import InputError, OutputError
from emointerp.models import to_image
from emointerp.pairs import Pair, check, folder_pairs, read_pairs, save_pairs, text_pairs, world_pairs
from emointerp.world import loaded_events, neutral_events, sample

EVENT = "The phone rang twice while I was cooking."
OTHER = "I sat in the bus for an hour, and we stopped twice."


def photo(seed=0, side=120):
    """Smooth coloured noise with grain: uint8 [side, side, 3], levels 40 to 200."""
    rng = np.random.default_rng(seed)
    smooth = gaussian_filter(rng.normal(size=(side, side, 3)), (3, 3, 0))
    smooth = 120 + 30 * smooth / smooth.std() + rng.normal(0, 2, (side, side, 1))
    return np.clip(smooth, 40, 200).astype(np.uint8)


def disk(side=120, radius=0.3):
    y, x = (np.indices((side, side)) + 0.5) / side
    return (y - 0.55) ** 2 + (x - 0.5) ** 2 < radius**2


def edited(picture, radius=0.3):
    """The picture with a disk (28% of it) from another one, as an expression would change a face."""
    side = len(picture)
    return np.where(disk(side, radius)[..., None], 255 - photo(9, side), picture).astype(np.uint8)


def jpeg(picture, quality):
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def levels(values):
    return np.clip(values, 0, 255).astype(np.uint8)


def look(emotional, neutral, event=EVENT, emotion="joy", **options):
    """The row of one pair."""
    return check([Pair(emotional, neutral, event, emotion, **options)], progress=False).table.iloc[0]


def problems(pairs, **options):
    return check(pairs, progress=False, **options).table.problems.tolist()


@pytest.fixture
def files(tmp_path):
    """Two pairs of PNG files."""
    for i in (1, 2):
        Image.fromarray(photo(i)).save(tmp_path / f"sad {i}.png")
        Image.fromarray(edited(photo(i))).save(tmp_path / f"calm {i}.png")
    return tmp_path


# pairs of the drawn world


def test_world_pairs_are_the_worlds_examples_and_their_twins():
    for twin, props in (("full", True), ("expression", False)):
        for pair, e in zip(world_pairs("tuning", 8, 3, twin), sample("tuning", 8, 3, emotions=BASIC), strict=True):
            assert pair.plus == (e.scene, e.event) and pair.minus == (e.scene.neutral(props=props), e.event)
            assert (pair.emotion, pair.split, pair.aligned) == (e.scene.emotion, "tuning", True)
    things = [pair.neutral.signifiers for pair in world_pairs("tuning", 30, twin="expression")]
    assert any(things) and not any(pair.neutral.signifiers for pair in world_pairs("tuning", 30))
    assert {pair.emotion for pair in world_pairs(n=4, emotions=("joy", "fear"))} == {"joy", "fear"}
    with pytest.raises(InputError, match="twin is 'half'; expected 'full' or 'expression'"):
        world_pairs(twin="half")


def test_text_pairs_differ_in_their_events_alone():
    pairs = text_pairs("test", 12, 4)
    for i, pair in enumerate(pairs):
        assert pair.emotion == BASIC[i % 6] and pair.event in loaded_events(pair.emotion, "test")
        assert pair.minus[1] in neutral_events("test") and pair.plus[0] == pair.minus[0]
        assert pair.emotional.emotion == NEUTRAL and not pair.emotional.signifiers
    assert pairs == text_pairs("test", 12, 4) != text_pairs("test", 12, 5)
    assert check(pairs, progress=False).passed


@pytest.mark.parametrize("twin", ["full", "expression"])
def test_the_worlds_twins_pass(twin):
    pairs = world_pairs("direction", 60, twin=twin)
    found = check(pairs, progress=False)
    assert found.passed, found.failing().problems.tolist()
    moods = np.array([not pair.emotional.has_face for pair in pairs])
    assert ((found.table.background == 0) == moods).all() and moods.sum() > 3
    assert (found.table.drift.isna() == moods).all() and found.table.drift.max() < 0.01
    assert found.summary == f"60 of 60 pairs pass. In {moods.sum()} the whole picture changes: no background to judge."


@pytest.mark.parametrize("hard", ["faint", "clutter", "noise", "style"])
def test_hard_twins_pass_too(hard):
    assert check([p for p in world_pairs("test", 18, hard=hard) if p.emotional.has_face], progress=False).passed


# twins


def test_background_and_drift_are_those_worked_out_by_hand():
    clean, twin = photo(), edited(photo())
    row = look(clean, twin)
    assert row.drift < 0.001 and row.problems == "" and row.same_size  # not quite 0: the disk's edge
    assert 1 - disk(radius=0.3 + 5 / 120).mean() < row.background <= 1 - disk().mean() + 0.01
    noisy = levels(twin.astype(float) + np.random.default_rng(0).normal(0, 6, twin.shape))
    change = np.abs(clean.astype(float) - noisy).max(-1) / 255
    assert look(clean, noisy).drift == pytest.approx(change[~disk(radius=0.36)].mean(), rel=0.02)


@pytest.mark.parametrize(
    ("spoil", "drift"),
    [
        (lambda a: levels(a + 8.0), 8 / 255),
        (lambda a: levels(a + 30.0), 30 / 255),
        (lambda a: levels(a - 50.0 * np.array([1, 0, 0])), 50 / 255),
        (lambda a: levels(a * 0.8), None),
        (lambda a: levels(a + np.random.default_rng(1).normal(0, 6, a.shape)), None),
        (lambda a: jpeg(a, 20), None),
        (lambda a: np.asarray(Image.fromarray(a[4:-4, 4:-4]).resize(a.shape[:2])), None),
    ],
    ids=["brighter", "much brighter", "less red", "darker", "noise", "JPEG", "zoom"],
)
def test_a_background_that_drifts_is_found(spoil, drift):
    row = look(photo(), spoil(edited(photo())))
    assert f"the background drifts by {row.drift:.3f} on average (limit 0.02)" == row.problems
    assert drift is None or row.drift == pytest.approx(drift, abs=1e-3)


@pytest.mark.parametrize(
    "pair",
    [
        (jpeg(photo(), 75), jpeg(edited(jpeg(photo(), 75)), 75)),
        (photo(), jpeg(edited(photo()), 95)),
        (photo(), levels(edited(photo()) + np.random.default_rng(1).normal(0, 2, (120, 120, 3)))),
        (photo(), edited(photo(), 0.38)),  # 45% of the picture
        (photo(), edited(photo(), 0.03)),
    ],
    ids=["saved twice as JPEG", "fine JPEG", "a little noise", "large change", "small change"],
)
def test_what_real_twins_do_is_no_drift(pair):
    row = look(*pair)
    assert row.problems == "" and row.drift < 0.02 and row.background > 0.5


@pytest.mark.parametrize(("right", "down", "side"), [(3, -2, 120), (-1, 0, 120), (0, 7, 120), (12, -8, 1100)])
def test_a_shift_is_found_in_pixels_of_the_picture(right, down, side):
    scene, cut = photo(side=side), slice(15, -15)
    row = look(np.roll(scene, (down, right), (0, 1))[cut, cut], edited(scene, 0.25)[cut, cut])
    assert row.problems == f"the emotional picture is shifted against its twin (right {right}, down {down} pixels)"


def test_where_all_changes_nothing_is_judged():
    found = check([Pair(photo(1), photo(2), EVENT, "joy"), Pair(photo(1), edited(photo(1)), EVENT, "joy")], progress=False)
    assert found.passed and found.table.background[0] == 0 and np.isnan(found.table.drift[0])
    assert found.summary == "2 of 2 pairs pass. In 1 the whole picture changes: no background to judge."


def test_pictures_of_one_colour_can_be_compared():
    white, dot = np.full((64, 64, 3), 255, np.uint8), np.full((64, 64, 3), 255, np.uint8)
    dot[20:30, 20:30] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert look(dot, white).problems == "" and look(dot, white).background > 0.9


def test_sizes_must_be_equal_in_twins_only():
    a, b = photo(1), photo(2)[:100]
    row = look(a, b)
    assert row.problems == "the sizes differ: (120, 120) and (120, 100) pixels" and not row.same_size and np.isnan(row.drift)
    row = look(a, b, aligned=False)
    assert row.problems == "" and np.isnan(row.background)


def test_twins_must_differ():
    a = photo()
    assert look(a, a).problems == "the two sides are equal" == look(a, a, aligned=False).problems
    assert look(a, a, event=EVENT, neutral_event=OTHER).problems == ""
    assert look(a, levels(a + np.random.default_rng(0).normal(0, 1, a.shape))).problems == "the two pictures hardly differ"


# events, emotions, splits


def test_both_events_keep_the_rules():
    a, b = photo(), edited(photo())
    assert look(a, b, event="I ran.").problems == "event: it has 2 words: write at least 6"
    said = look(a, b, neutral_event="She told the old man that the bus was late.").problems
    assert "neutral event: it speaks of others or to a reader (she)" in said and "neutral event: it has no first person" in said
    assert look(a, b, event="I was so happy that the bus came early.").problems == (
        "event: it tells the feeling (happy): leave these words out"
    )


def test_emotions_must_be_known_to_the_wheels():
    pair = Pair(photo(), edited(photo()), EVENT, "night")
    assert problems([pair]) == ["the emotion 'night' is in none of the wheels plutchik, parrott, ekman, geneva, willcox"]
    light = Concept("light", ("day", "night"), {"day": ["sunny"], "night": ["dark"]})
    assert problems([pair], wheels=light) == [""]
    assert problems([replace(pair, emotion="joy")], wheels=light) == ["the emotion 'joy' is in none of the wheels light"]


def test_nothing_stands_in_two_splits(files):
    one = Pair(photo(1), edited(photo(1)), EVENT, "joy", "direction")
    two = Pair(photo(2), edited(photo(2)), OTHER, "joy", "test")
    assert problems([one, two, replace(one, split="direction")]) == ["", "", ""]
    assert problems([one, replace(two, event=EVENT)]) == ["the event is also in split test", "the event is also in split direction"]
    assert problems([one, replace(two, neutral_event=EVENT)])[1] == "the neutral event is also in split direction"
    again = replace(two, emotional=files / "sad 1.png")  # the same pixels, from a file
    assert problems([one, again])[0] == "the emotional picture is also in split test"
    assert problems([one, replace(two, neutral=one.neutral)])[0] == "the neutral picture is also in split test"
    swapped = replace(two, neutral=one.emotional, aligned=False, split="")
    assert problems([one, swapped]) == [
        "the emotional picture is also in split none",
        "the neutral picture is also in split direction",
    ]


def test_splits_of_the_world_share_no_face():
    pairs = [p for split in ("direction", "tuning", "test") for p in world_pairs(split, 24) if p.emotional.has_face]
    assert check(pairs, progress=False).passed


def test_pictures_that_cannot_be_read_are_rows(tmp_path):
    (tmp_path / "cut.jpg").write_bytes(b"no picture")
    found = check([Pair(tmp_path / "gone.png", tmp_path / "cut.jpg", EVENT, "joy"), *world_pairs(n=1)], progress=False)
    said = found.table.problems[0]
    assert f"emotional picture: No such picture: {tmp_path / 'gone.png'}" in said and "neutral picture: " in said
    assert "cut.jpg is not a picture that Pillow can read" in said and found.table.problems[1] == ""
    assert len(found.contact_sheet().axes) == 4


def test_no_pairs_are_no_check():
    with pytest.raises(InputError, match="There are no pairs to check"):
        check([])


# tables


def write(folder, *lines, name="pairs.csv", encoding="utf-8"):
    (folder / name).write_text("\n".join(lines) + "\n", encoding=encoding)
    return folder / name


def test_a_table_is_read(files):
    table = write(
        files,
        "Emotional, neutral ,event,emotion,split,neutral_event,aligned,notes",
        f"sad 1.png,calm 1.png,{EVENT},sadness,direction,,,mine",
        "",
        f'sad 2.png, calm 2.png,"{OTHER}",grief,test,{EVENT},No,',
        encoding="utf-8-sig",  # as spreadsheets write it
    )
    first, second = read_pairs(table)
    assert first == Pair(files / "sad 1.png", files / "calm 1.png", EVENT, "sadness", "direction", "sad 1.png")
    assert second.plus == (files / "sad 2.png", OTHER) and second.minus == (files / "calm 2.png", EVENT)
    assert (second.emotion, second.split, second.aligned) == ("grief", "test", False)
    assert read_pairs(files) == [first, second] == read_pairs(str(files))
    assert check(files, progress=False).table.equals(check([first, second], progress=False).table)


def test_all_that_is_wrong_with_a_table_is_said_at_once(files):
    (files / "broken.png").write_bytes((files / "sad 1.png").read_bytes()[:300] + b"x" * 300)
    table = write(
        files,
        "emotional,neutral,event",
        "gone 1.png,calm 1.png,I came",
        "gone 1.png,gone 2.png,",
        "broken.png,,I came, I saw",
    )
    with pytest.raises(InputError) as caught:
        read_pairs(table)
    assert str(caught.value).splitlines() == [
        f"{table} cannot be used:",
        "- it lacks the columns emotion; it has emotional, neutral, event",
        "- line 3 has no event",
        "- line 4 has no neutral",
        "- line 4 has more cells than there are columns: put a text with commas in quotes",
        f"- there is no picture {files / 'gone 1.png'}",
        f"- there is no picture {files / 'gone 2.png'}",
        f"- {files / 'broken.png'} is not a picture that can be read",
    ]


def test_what_is_no_table_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"No table of pairs at .*pairs\.csv; expected a CSV file with the columns emotional"):
        read_pairs(tmp_path)
    with pytest.raises(InputError, match="it has no rows"):
        read_pairs(write(tmp_path, "emotional,neutral,event,emotion"))
    with pytest.raises(InputError, match="it lacks the columns emotional, neutral, event, emotion; it has none"):
        read_pairs(write(tmp_path, ""))
    with pytest.raises(InputError, match="is no CSV table in UTF-8"):
        read_pairs(write(tmp_path, "emotional,neutral,event,é", encoding="latin-1"))


def test_saved_pairs_come_back(tmp_path):
    pairs = [
        *world_pairs(n=2),
        *text_pairs("test", 1),
        Pair(photo(1), photo(2)[:90], 'I said "no", twice,\nand we left at noon.', "../day/night", aligned=False),
    ]
    table = save_pairs(pairs, tmp_path / "new" / "folder")
    back = read_pairs(table.parent)
    assert table.name == "pairs.csv" and len(list(table.parent.iterdir())) == 9
    for old, new in zip(pairs, back, strict=True):
        assert (old.event, old.emotion, old.split, old.aligned) == (new.event, new.emotion, new.split, new.aligned)
        assert old.minus[1] == new.minus[1] and new.name == (old.name or new.emotional.name)
        for a, b in ((old.emotional, new.emotional), (old.neutral, new.neutral)):
            assert np.array_equal(np.asarray(to_image(a)), np.asarray(Image.open(b)))
    with pytest.raises(OutputError, match="holds pairs already; choose another folder, or delete its pairs.csv first"):
        save_pairs(pairs, table.parent)
    with pytest.raises(OutputError, match="Pairs cannot be written to"):
        save_pairs(pairs, table)
    plain = save_pairs(world_pairs(n=1), tmp_path / "plain")
    assert plain.read_text().splitlines()[0] == "emotional,neutral,event,emotion,split,name"


# folders


@pytest.fixture
def folders(tmp_path):
    """Pictures 10, 2 and 9 of day, as PNG; of night, as JPEG."""
    for folder, shift, end in (("day", 0, "png"), ("night", 50, "jpg")):
        (tmp_path / folder).mkdir()
        for i in (10, 2, 9):
            Image.fromarray(photo(i + shift, 40)).save(tmp_path / folder / f"place {i}.{end}")
        (tmp_path / folder / "notes.txt").write_text("not a picture")
        (tmp_path / folder / "._place 2.png").write_bytes(b"left by a file manager")
    return tmp_path / "day", tmp_path / "night"


def test_folders_of_the_same_names_hold_twins(folders):
    day, night = folders
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pairs = folder_pairs(day, str(night), "day", EVENT, "test")
    assert [(p.emotional.name, p.neutral.name) for p in pairs] == [(f"place {i}.png", f"place {i}.jpg") for i in (10, 2, 9)]
    first = pairs[0]
    assert first == Pair(day / "place 10.png", night / "place 10.jpg", EVENT, "day", "test", "place 10.png")


def test_other_folders_are_paired_in_order(folders):
    day, night = folders
    (night / "place 2.jpg").rename(night / "street.jpg")
    (day / "place 9.png").unlink()
    said = r"The file names differ \(without a partner: .*place 2\.png, .*place 9\.jpg, .*street\.jpg\), "
    said += r"so pictures are paired in order, as no twins\. Left over in the larger folder: 1\."
    with pytest.warns(UserWarning, match=said):
        pairs = folder_pairs(day, night, "day", EVENT)
    assert [(p.emotional.name, p.neutral.name) for p in pairs] == [
        ("place 10.png", "place 10.jpg"),
        ("place 2.png", "place 9.jpg"),
    ]
    assert not any(p.aligned for p in pairs)


def test_folders_that_cannot_be_paired_are_named_together(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError) as caught:
        folder_pairs(tmp_path / "gone", tmp_path / "empty", "day", EVENT)
    assert str(caught.value).splitlines()[:2] == ["These folders cannot be paired:", f"- there is no folder {tmp_path / 'gone'}"]
    assert f"- {tmp_path / 'empty'} holds no pictures (.png, .jpg, " in str(caught.value)
    for name in ("bad.png", "worse.webp"):
        (folders[0] / name).write_bytes(b"no picture")
    with pytest.raises(InputError, match=r"bad\.png is not a picture that can be read\n.*worse\.webp is not a picture"):
        folder_pairs(*folders, "day", EVENT)


# the result


def drawn(figure):
    """Pictures and texts of each row of a contact sheet."""
    rows = [figure.axes[i : i + 4] for i in range(0, len(figure.axes), 4)]
    return [([axis.images[0].get_array() for axis in row if axis.images], row[3].texts[0].get_text()) for row in rows]


def test_the_contact_sheet_shows_what_fails():
    good = world_pairs(n=3)
    bright = levels(edited(photo()) + 30.0)
    bad = [Pair(photo(), bright, EVENT, "joy", "test", "b$d $x"), Pair(photo(1), photo(1)[:80], OTHER, "joy")]
    found = check([*good, *bad], progress=False)
    assert not found.passed and list(found.failing().index) == [3, 4] and found.summary == "3 of 5 pairs pass."
    figure = found.contact_sheet()
    (pictures, words), (lone, other) = drawn(figure)
    assert np.array_equal(pictures[0], photo()) and np.array_equal(pictures[1], bright)
    assert np.allclose(pictures[2], np.abs(photo() / 255 - bright / 255).max(-1), atol=1e-6)
    assert words.startswith("b$d $x, joy, split test") and "→ the background drifts by 0.118 on average" in words
    assert len(lone) == 2 and "the sizes differ" in other
    assert figure._repr_png_()[0].startswith(b"\x89PNG")
    assert found.contact_sheet(most=1).texts[0].get_text() == "3 of 5 pairs pass. Shown: 1 of 2."
    html = check([replace(bad[0], name="<b>", emotion="hungry")], progress=False)._repr_html_()
    assert "0 of 1 pairs pass." in html and "&lt;b&gt;" in html
    assert "drifts by 0.118" in html and "in none of the wheels plutchik, parrott, ekman, geneva, willcox<" in html


def test_the_contact_sheet_of_good_pairs_shows_the_first():
    found = check(world_pairs(n=6), progress=False)
    rows = drawn(found.contact_sheet(most=2))
    assert len(rows) == 2 and np.array_equal(rows[0][0][0], world_pairs(n=1)[0].emotional.pixels())
    assert f"background {found.table.background[0]:.0%} of the picture, drift" in rows[0][1]
    assert "<table" not in found._repr_html_()
    mood = next(p for p in world_pairs() if not p.emotional.has_face)
    assert "the whole picture changes: no background to judge" in drawn(check([mood], progress=False).contact_sheet())[0][1]
