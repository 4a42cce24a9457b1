"""The readers of MER-UniBench on small files of exactly its formats, and its scores on examples worked by hand."""

import re
import sys
import warnings
from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import bootstrap, permutation_test
from sklearn.metrics import f1_score

from emointerp.emotions import extract, f_s, hit_rate, read_mer_unibench_wheels, wheels
from emointerp.errors import InputError
from emointerp.evaluation.mer_unibench import (
    SETS,
    benchmark_table,
    compared_table,
    folders,
    frame,
    layout_of,
    read,
    score_clips,
    score_set,
)

# rows in test, metric, label file, video folder, transcripts, text column; typed off the benchmark's code a second time
NINE = {
    "MER2023": (411, "hit rate", "label-6way.npz", "video", "transcription-engchi-polish.csv", "english"),
    "MER2024": (1169, "hit rate", "label-6way.npz", "video", "transcription_merge.csv", "chinese"),
    "MELD": (2610, "hit rate", "label.npz", "subvideo", "transcription-engchi-polish.csv", "english"),
    "IEMOCAP-4": (1241, "hit rate", "label_4way.npz", "subvideo-tgt", "transcription-engchi-polish.csv", "english"),
    "CMU-MOSI": (686, "WAF", "label.npz", "subvideo", "transcription-engchi-polish.csv", "english"),
    "CMU-MOSEI": (4659, "WAF", "label.npz", "subvideo_new", "transcription-engchi-polish.csv", "english"),
    "CH-SIMS": (457, "WAF", "label.npz", "video", "transcription-engchi-polish.csv", "english"),
    "CH-SIMS v2": (1034, "WAF", "label.npz", "video_new", "transcription-engchi-polish.csv", "english"),
    "OV-MERD+": (532, "F_s", "ovlabel.csv", "video", "subtitle_eng.csv", "sentence"),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*test rows; the benchmark has:UserWarning")
SESSION_5, SESSION_1 = "Ses05F_impro01_F000", "Ses01M_script02_M003"
CORPORA = {
    "MER2023": {"train_corpus": {"t": {"emo": "sad"}}, "test1_corpus": {"a": {"emo": "happy"}, "b": {"emo": "Worried"}}},
    "MER2024": {"train_corpus": {"t": {"emo": "sad"}}, "test1_corpus": {"a": {"emo": "angry"}, "b": {"emo": "neutral"}}},
    "MELD": {"train_corpus": {"t": {"emo": 3}}, "test_corpus": {"a": {"emo": np.int64(4)}, "b": {"emo": "joy", "val": -10}}},
    "IEMOCAP-4": {"whole_corpus": {SESSION_5: {"emo": 3}, SESSION_1: {"emo": 0}}},
    "CMU-MOSI": {"train_corpus": {}, "test_corpus": {"a": {"emo": 0, "val": np.float32(1.5)}, "b": {"emo": 0, "val": -2}}},
    "CMU-MOSEI": {"test_corpus": {"a": {"emo": 0, "val": 0.0}, "b": {"emo": 0, "val": 0.25}}},
    "CH-SIMS": {"test_corpus": {"a": {"emo": 0, "val": -0.4}, "b": {"emo": 0, "val": 1.0}}},
    "CH-SIMS v2": {"test_corpus": {"a": {"emo": 0, "val": -1.0}, "b": {"emo": 0, "val": 0.2}}},
}
GOLDS = {
    "MER2023": {"a": "happy", "b": "worried"},
    "MER2024": {"a": "angry", "b": "neutral"},
    "MELD": {"a": "disgust", "b": "joy"},
    "IEMOCAP-4": {SESSION_5: "anger"},
    "CMU-MOSI": {"a": 1.5, "b": -2.0},
    "CMU-MOSEI": {"a": 0.0, "b": 0.25},
    "CH-SIMS": {"a": -0.4, "b": 1.0},
    "CH-SIMS v2": {"a": -1.0, "b": 0.2},
    "OV-MERD+": {"a": ("happy", "proud"), "b": ("neutral",)},
}
OPEN_LABELS = "name,openset\na,\"['Happy', 'proud']\"\nnot in test,\"['sad']\"\nb,[]\n"


def write(root, name, clips=None, ending=".png", **corpora):
    """A copy of one set: one label file, transcripts, and a small picture for every clip of every corpus."""
    rows, metric, labels, videos, transcripts, column = NINE[name]
    own = root / SETS[name].folder
    (own / videos).mkdir(parents=True)
    data = CORPORA.get(name, {}) | corpora
    if labels.endswith(".npz"):
        np.savez_compressed(own / labels, **data)
    else:
        (own / labels).write_text(OPEN_LABELS, encoding="utf-8")
    in_corpora = [clip for corpus in data.values() for clip in corpus] if data else ["a", "b"]
    clips = in_corpora if clips is None else clips
    texts = pd.DataFrame({"name": in_corpora, column: ["None of them, \u201cfine\u201d", *[""] * (len(in_corpora) - 1)]})
    texts.to_csv(own / transcripts, index=False, encoding="utf-8-sig")
    for i, clip in enumerate(clips):
        Image.new("RGB", (8, 6), (10 * i, 0, 0)).save(own / videos / f"{clip}{ending}")
    return own


# the nine sets


def test_the_nine_sets_are_those_of_the_benchmark():
    found = {n: (s.expected, s.metric, s.label_file, s.videos, s.transcripts, s.text) for n, s in SETS.items()}
    assert found == NINE and list(found) == list(NINE)
    assert {n: (s.corpus, s.label) for n, s in SETS.items() if s.metric != "WAF"} == {
        "MER2023": ("test1_corpus", "emo"),
        "MER2024": ("test1_corpus", "emo"),
        "MELD": ("test_corpus", "emo"),
        "IEMOCAP-4": ("whole_corpus", "emo"),
        "OV-MERD+": ("", "openset"),
    }
    assert {(s.corpus, s.label) for s in SETS.values() if s.metric == "WAF"} == {("test_corpus", "val")}
    with pytest.raises(AttributeError):
        SETS["MELD"].expected = 3


@pytest.mark.parametrize(
    ("said", "name"), [("meld", "MELD"), ("IEMOCAPFour", "IEMOCAP-4"), ("sims v2", "CH-SIMS v2"), ("cmu_mosi", "CMU-MOSI")]
)
def test_sets_are_found_under_either_name(said, name):
    assert layout_of(said) is SETS[name]


def test_an_unknown_set_is_named_with_the_nearest():
    with pytest.raises(InputError, match=r"'MER20233' is no set of MER-UniBench; expected one of .* Did you mean MER2023\?"):
        layout_of("MER20233")


@pytest.mark.parametrize("name", NINE)
def test_each_set_is_read_from_its_own_files(tmp_path, name):
    own = write(tmp_path, name)
    found = read(tmp_path, name)
    assert {row.name: row.gold for row in found.rows} == GOLDS[name]
    assert all(type(row.gold) is type(gold) for row, gold in zip(found.rows, GOLDS[name].values(), strict=True))
    assert found.rows == read(own, name).rows, "the set's own folder will do as well as the one above it"
    texts = {row.name: row.transcript for row in found.rows}
    assert set(texts.values()) <= {"", "None of them, \u201cfine\u201d"}, "a blank is no NaN, and None is a word"
    assert found.rows[0].path == own / NINE[name][3] / f"{found.rows[0].name}.png"
    assert (found.missing, found.extra, found.golds) == ((), (), list(GOLDS[name].values()))
    assert found.to_frame().columns.tolist() == ["name", "gold", "transcript", "path"] and len(found.to_frame()) == len(found)
    assert found.summary == f"{name}: {len(GOLDS[name])} rows; the benchmark has {NINE[name][0]}"


def test_indices_mean_the_names_in_the_benchmarks_order(tmp_path):
    order = "anger joy sadness neutral disgust fear surprise".split()
    write(tmp_path, "MELD", test_corpus={f"c{i}": {"emo": i} for i in range(7)})
    assert read(tmp_path, "MELD").golds == order
    clips = {f"Ses05_{i}": {"emo": i} for i in range(4)} | {f"Ses0{s}_0": {"emo": 1} for s in range(1, 5)}
    write(tmp_path, "IEMOCAP-4", whole_corpus=clips)
    assert read(tmp_path, "IEMOCAP-4").golds == ["happy", "sad", "neutral", "anger"], "session 5 only"


def test_open_vocabulary_lists_and_the_rows_named_in_the_subtitles(tmp_path):
    own = write(tmp_path, "OV-MERD+", clips=["a", "b", "c"])
    lists = {"a": '"[\'a bit sad\', ""Angry""]"', "b": '"glad, proud"', "c": "happy", "d": "\"['sad']\""}
    (own / "ovlabel.csv").write_text("name,openset\n" + "".join(f"{n},{words}\n" for n, words in lists.items()))
    (own / "subtitle_eng.csv").write_text("name,sentence\nc,One.\na,\nb,Two.\n")
    found = read(own, "OV-MERD+")
    assert [(r.name, r.gold, r.transcript) for r in found.rows] == [
        ("c", ("happy",), "One."),
        ("a", ("a bit sad", "angry"), ""),
        ("b", ("glad", "proud"), "Two."),
    ]


def test_sets_under_a_folder(tmp_path):
    write(tmp_path, "CH-SIMS"), write(tmp_path, "MELD")
    assert list(folders(tmp_path)) == ["MELD", "CH-SIMS"]
    (tmp_path / "meld-process").rename(tmp_path / "MELD")
    assert folders(tmp_path)["MELD"] == tmp_path / "MELD" and len(read(tmp_path, "MELD")) == 2
    with pytest.raises(InputError, match="holds no set of MER-UniBench; expected .* mer2023-dataset-process, .*ovmerdplus-process"):
        folders(tmp_path / "MELD")


def test_a_copy_with_other_folder_names(tmp_path):
    own = write(tmp_path, "MELD")
    (own / "subvideo").rename(own / "clips")
    assert len(read(own, replace(SETS["MELD"], videos="clips"))) == 2


# what may be wrong with a copy


def test_missing_files_are_all_named(tmp_path):
    own = tmp_path / "meld-process"
    own.mkdir()
    with pytest.raises(InputError, match="lacks label.npz, transcription-engchi-polish.csv, subvideo/; MELD needs them"):
        read(tmp_path, "MELD")
    with pytest.raises(InputError, match="either here or in a folder iemocap-process below it"):
        read(tmp_path, "IEMOCAP-4")
    with pytest.raises(InputError, match="There is no folder .*nowhere; give the folder of MELD, or the one above it"):
        read(tmp_path / "nowhere", "MELD")


def test_missing_videos_are_named_or_left_out(tmp_path):
    clips = {f"c{i:02}": {"emo": "happy"} for i in range(20)}
    own = write(tmp_path, "MER2023", clips=["c03", "c07"], test1_corpus=clips, train_corpus={})
    pattern = r"18 of 20 clips have no video in video/ \(NAME.mp4, .*\): c00, c01, c02, c04, .* c13 and 6 more. Complete the copy"
    with pytest.raises(InputError, match=pattern):
        read(own, "MER2023")
    with pytest.warns(UserWarning, match="18 of 20 clips have no video .* They are left out"):
        found = read(own, "MER2023", skip_missing=True)
    assert [row.name for row in found.rows] == ["c03", "c07"] and len(found.missing) == 18
    assert found.summary == "MER2023: 2 rows, 18 left out; the benchmark has 411"
    for path in (own / "video").iterdir():
        path.unlink()
    with pytest.raises(InputError, match="20 of 20 clips have no video"):
        read(own, "MER2023", skip_missing=True)


def test_a_clip_without_a_transcript_is_named(tmp_path):
    own = write(tmp_path, "CH-SIMS")
    (own / "transcription-engchi-polish.csv").write_text("name,english\nb,Fine.\n")
    with pytest.raises(InputError, match="1 of 2 clips have no transcript in transcription-engchi-polish.csv: a"):
        read(own, "CH-SIMS")
    with pytest.warns(UserWarning, match="no transcript"):
        assert read(own, "CH-SIMS", skip_missing=True).missing == ("a",)


def test_extra_videos_are_named_and_those_of_other_splits_are_not(tmp_path):
    own = write(tmp_path, "MER2023")
    assert (own / "video" / "t.png").exists(), "a video of the training rows"
    for name in ("who", "x.y"):
        Image.new("RGB", (4, 4)).save(own / "video" / f"{name}.png")
    (own / "video" / ".DS_Store").write_text("")
    (own / "video" / "notes.txt").write_text("")
    with pytest.warns(UserWarning, match="MER2023: 2 files in video/ belong to no label and are not used: who, x.y"):
        assert read(own, "MER2023").extra == ("who", "x.y")


def test_another_number_of_rows_is_a_warning_with_both_numbers(tmp_path):
    own = write(tmp_path, "CMU-MOSI")
    with pytest.warns(UserWarning, match="has 2 test rows; the benchmark has 686. Scores are of another selection"):
        read(own, "CMU-MOSI")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(own, replace(SETS["CMU-MOSI"], expected=2))


BAD = {
    ("CMU-MOSI", float("nan")): r"1 of 2 labels in .*label.npz cannot be used: x: 'nan'. Expected a finite number",
    ("CMU-MOSI", np.float32("inf")): "x: 'inf'. Expected a finite number",
    ("CMU-MOSI", "1.0"): "x: '1.0'. Expected a finite number",
    ("CMU-MOSI", True): "x: 'True'. Expected a finite number",
    ("MELD", float("nan")): "x: 'nan'. Expected an index from 0 to 6 or a name, in the order anger, joy",
    ("MELD", 7): "x: '7'. Expected an index from 0 to 6",
    ("MELD", -1): "x: '-1'. Expected an index from 0 to 6",
    ("MELD", 1.5): "x: '1.5'. Expected an index from 0 to 6",
    ("MELD", "worried"): "x: 'worried'. Expected an index from 0 to 6 or a name",
    ("IEMOCAP-4", 4): "x: '4'. Expected an index from 0 to 3 or a name, in the order happy, sad, neutral, anger",
    ("MER2023", float("nan")): "x: 'nan'. Expected the name of an emotion",
    ("MER2023", 3): "x: '3'. Expected the name of an emotion",
    ("MER2023", " "): "x: ' '. Expected the name of an emotion",
    ("MER2023", "hapy"): r"MER2023: 1 labels are outside the wheels plutchik, .*: x: 'hapy'. Mend label-6way.npz, or give wheels",
}


@pytest.mark.parametrize(("name", "label"), BAD)
def test_labels_that_cannot_be_used_are_named(tmp_path, name, label):
    layout = SETS[name]
    x = "Ses05x" if layout.session else "x"
    good = next(iter(GOLDS[name].values()))
    corpus = {x: {layout.label: label}, "Ses05y": {layout.label: good}}
    own = write(tmp_path, name, **{layout.corpus: corpus})
    with pytest.raises(InputError, match=BAD[name, label].replace("x: ", f"{x}: ")):
        read(own, name)


def test_a_row_without_the_label_and_an_open_label_that_is_blank(tmp_path):
    own = write(tmp_path, "CH-SIMS", test_corpus={"a": {"emo": 1}, "b": 3})
    with pytest.raises(InputError, match="2 of 2 labels .* a: 'None', b: 'None'. Expected a finite number"):
        read(own, "CH-SIMS")
    own = write(tmp_path, "OV-MERD+", clips=["a", "b", "c"])
    (own / "ovlabel.csv").write_text("name,openset\na,\nb,nan\n")
    (own / "subtitle_eng.csv").write_text("name,sentence\na,One.\nb,Two.\nc,Three.\n")
    with pytest.raises(InputError, match=r"3 of 3 labels .*: a: '', b: 'nan', c: 'None'. Expected a list of words for each name"):
        read(own, "OV-MERD+")


def test_other_wheels_know_other_labels(tmp_path):
    own = write(tmp_path, "MER2023")
    assert read(own, "MER2023", wheels(["ekman"])).golds == ["happy", "worried"]
    (surprised,) = wheels(["willcox"])
    own = write(tmp_path / "two", "MELD", test_corpus={"a": {"emo": 6}, "b": {"emo": 3}})
    with pytest.raises(InputError, match="1 labels are outside the wheels willcox: a: 'surprise'"):
        read(own, "MELD", surprised)


def test_label_files_of_another_form(tmp_path):
    own = write(tmp_path, "MELD")
    np.savez(own / "label.npz", train_corpus={"a": {"emo": 1}}, other=np.eye(2))
    with pytest.raises(InputError, match=r"holds train_corpus; expected the dict test_corpus, name -> \{'emo': label, ...\}"):
        read(own, "MELD")
    np.savez(own / "label.npz", test_corpus={})
    with pytest.raises(InputError, match="label.npz has no test rows of MELD; the benchmark has 2610"):
        read(own, "MELD")
    (own / "label.npz").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match="label.npz cannot be read as npz"):
        read(own, "MELD")


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


def test_a_hostile_pickle_is_refused_and_does_nothing(tmp_path):
    target = tmp_path / "written by the pickle"
    own = write(tmp_path, "MELD", test_corpus={"a": {"emo": Malicious(target)}}, train_corpus={})
    with pytest.raises(InputError, match=r"label.npz is refused: its pickle asks for \w+.open"):
        read(own, "MELD")
    assert not target.exists()


def test_transcripts_of_another_form(tmp_path):
    own = write(tmp_path, "MER2024")
    table = own / "transcription_merge.csv"
    table.write_text("name,english\na,x\n")
    with pytest.raises(InputError, match="transcription_merge.csv lacks the columns chinese; it has name, english"):
        read(own, "MER2024")
    table.write_bytes("name,chinese\na,\u4f60\u597d\n".encode("gb18030"))
    with pytest.raises(InputError, match="transcription_merge.csv is no CSV table in UTF-8"):
        read(own, "MER2024")
    table.write_text("")
    with pytest.raises(InputError, match="transcription_merge.csv is no CSV table"):
        read(own, "MER2024")


# one frame


def video(path, levels, codec="mpeg4", size=32):
    """A tiny video: one flat grey frame for each level."""
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for level in levels:
            picture = av.VideoFrame.from_ndarray(np.full((size, size, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def grey(image):
    return round(np.asarray(image).mean())


LEVELS = range(20, 240, 20)  # 11 frames


@pytest.mark.parametrize(
    ("ending", "codec"),
    [(".mp4", "mpeg4"), (".avi", "mpeg4"), (".mp4", "libx264"), (".webm", "libvpx-vp9"), (".mkv", "libx264"),
     (".mpg", "mpeg2video"), (".avi", "msmpeg4v2"), (".wmv", "wmv2")],
)  # fmt: skip
def test_every_frame_is_equally_likely(tmp_path, ending, codec):
    path = video(tmp_path / f"clip{ending}", LEVELS, codec)
    seen = Counter(min(LEVELS, key=lambda level: abs(level - grey(frame(path, seed)))) for seed in range(220))
    assert set(seen) == set(LEVELS)
    # 220 draws of 11: chi squared has 10 degrees of freedom, and exceeds 29.6 once in a thousand times
    assert sum((n - 20) ** 2 / 20 for n in seen.values()) < 29.6


def test_the_frame_depends_on_seed_and_name_and_on_nothing_else(tmp_path):
    one, two = (video(tmp_path / f"{name}.mp4", LEVELS) for name in ("one", "two"))
    first = [grey(frame(one, seed)) for seed in range(12)]
    np.random.seed(3)
    assert [grey(frame(one, seed)) for seed in reversed(range(12))] == first[::-1], "not on the order, nor on global state"
    assert [grey(frame(two, seed)) for seed in range(12)] != first
    assert [grey(frame(two, seed, "one")) for seed in range(12)] == first
    assert (frame(one).mode, frame(one).size) == ("RGB", (32, 32))


def test_items_come_one_by_one(tmp_path):
    own = write(tmp_path, "CMU-MOSI", clips=[])
    video(own / "subvideo" / "a.mp4", [200] * 3)
    (own / "subvideo" / "b.mp4").write_bytes(b"no video")
    found = read(own, "CMU-MOSI")
    items = found.items(seed=1)
    picture, text, gold = next(items)
    assert abs(grey(picture) - 200) < 4 and gold == 1.5 and text == "None of them, \u201cfine\u201d"
    with pytest.raises(InputError, match="The video .*b.mp4 cannot be read .*; copy it again, or leave this clip out"):
        next(items)
    assert grey(found.rows[0].picture(seed=1)) == grey(picture)


def test_videos_that_cannot_be_read(tmp_path):
    pytest.importorskip("av")
    whole = video(tmp_path / "whole.mp4", LEVELS)
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:300])
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("cut", "empty"):
        with pytest.raises(InputError, match=f"The video .*{name}.mp4 cannot be read"):
            frame(tmp_path / f"{name}.mp4")
    with pytest.raises(InputError, match="There is no video .*gone.mp4"):
        frame(tmp_path / "gone.mp4")


@pytest.mark.parametrize(("name", "codec", "said"), [
    ("odd.mkv", "ffv1", "odd.mkv is packed with 'ffv1'; expected one of h264, .* -c:v libx264 odd.mp4, or put pictures"),
    ("odd.nut", "mpeg4", "odd.nut cannot be read"),
    ("playlist.mp4", None, "playlist.mp4 cannot be read"),
])  # fmt: skip
def test_rare_decoders_and_playlists_are_not_run(tmp_path, name, codec, said):
    if codec:
        path = video(tmp_path / name, LEVELS, codec)
    else:
        path, other = tmp_path / name, video(tmp_path / "other.mp4", LEVELS)
        path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{other}\n#EXT-X-ENDLIST\n")
    with pytest.raises(InputError, match=said):
        frame(path)


def test_sound_without_pictures_has_no_frames(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    with pytest.raises(InputError, match="sound.mp4 has no frames"):
        frame(path)


def test_without_pyav_the_error_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "av", None)
    pattern = r"Reading a frame of clip.mp4 needs PyAV; run: pip install 'emointerp\[video\]'. Or put pictures .* folder clip/"
    with pytest.raises(InputError, match=pattern):
        frame(tmp_path / "clip.mp4")


def test_extracted_frames_stand_in_for_videos(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    own = write(tmp_path, "CH-SIMS", clips=["b"], ending=".jpg")
    frames = own / "video" / "a"
    frames.mkdir()
    (frames / "notes.txt").write_text("")
    with pytest.raises(InputError, match="holds no frames"):
        frame(frames)
    for level in LEVELS:
        Image.new("L", (8, 8), level).save(frames / f"{level:03}.png")
    a, b = read(own, "CH-SIMS").rows
    assert (a.path, b.path) == (frames, own / "video" / "b.jpg")
    assert {grey(a.picture(seed)) for seed in range(120)} == set(LEVELS)
    assert a.picture(7).mode == "RGB" and b.picture().size == (8, 6)


def test_a_video_goes_before_frames_and_frames_before_a_picture(tmp_path):
    own = write(tmp_path, "IEMOCAP-4", clips=[SESSION_1])
    places = own / "subvideo-tgt"
    for name in (f"{SESSION_5}.jpg", f"{SESSION_5}/", f"{SESSION_5}.mp4", f"{SESSION_5}.avi"):
        (places / name).mkdir() if name.endswith("/") else (places / name).write_bytes(b"")
        assert read(own, "IEMOCAP-4").rows[0].path.name == name.rstrip("/")


# scores


def test_hit_rate_sets_by_hand():
    answers = ["I was glad.", "Glad, then angry.", "A usual day.", "I was disgusted.", "I was furious."]
    gold = ["happy", "angry", "happy", "anger", "neutral"]
    # 1, 1, 0, and disgust is anger in one wheel of five (Parrott's); the neutral row is skipped
    score = score_set("MER2023", answers, gold)
    assert score.percent == pytest.approx(100 * (1 + 1 + 0 + 0.2) / 4)
    assert (score["set"], score.metric, score.n, score.skipped) == ("MER2023", "hit rate", 4, 1)
    # counted, the neutral row is no hit, because an emotion is named
    counted = score_set("MER2023", answers, gold, neutral=True)
    assert counted.percent == pytest.approx(100 * 2.2 / 5) and counted.skipped == 0
    assert score_set("MELD", ["A usual day."], ["Neutral"], neutral=True).percent == 100


def test_sentiment_sets_by_hand_and_by_scikit_learn():
    answers = ["I was glad.", "I was sad.", "A usual day.", "I was sad.", "I was glad."]
    gold = [1.5, 0.25, -2.0, -0.1, 0.0]
    # gold 0 drops out; truth + + - -, said + - - -: F(+) = 2/3 with 1 of 1 right and 1 of 2 found, F(-) = 4/5; both have support 2
    score = score_set("CMU-MOSEI", answers, gold)
    assert score.percent == pytest.approx(100 * (2 / 3 + 4 / 5) / 2)
    assert score.percent == pytest.approx(100 * f1_score([1, 1, 0, 0], [1, 0, 0, 0], average="weighted"))
    assert (score.metric, score.n, score.skipped) == ("WAF", 4, 1)


def test_open_vocabulary_by_hand():
    answers = ["Glad, but angry.", "I wasn't sad. I was over the moon.", "A usual day.", "I was glad."]
    gold = [("happy",), ("joyful", "surprised"), ("sad",), ("neutral",)]
    # {joy, anger} of {joy}: P 1/2, R 1. {joy} of {joy, surprise}: P 1, R 1/2. Nothing of {sadness}: 0, 0. Neutral: skipped.
    p, r = (1 / 2 + 1 + 0) / 3, (1 + 1 / 2 + 0) / 3
    score = score_set("OV-MERD+", answers, gold, wheels(["plutchik", "ekman"]))
    assert score.percent == pytest.approx(100 * 2 * p * r / (p + r))
    assert (score.metric, score.n, score.skipped) == ("F_s", 3, 1)


def test_scores_with_the_benchmarks_own_wheels(tmp_path):
    pytest.importorskip("openpyxl")
    sheet = [("happy", "playful", "cheeky"), ("mad", "hateful", "furious"), ("scared", "anxious", "worried")]
    for n in range(1, 6):
        rows = [("tense", "scared", "worried") if n == 1 and row[0] == "scared" else row for row in sheet]
        pd.DataFrame(rows, columns=["level1", "level2", "level3"]).to_excel(tmp_path / f"wheel{n}.xlsx", index=False)
    words = ["happy", "furious", "worried", "tense", "cheeky"]
    runs = {f"{kind}_run{n}": words if kind == "word" else [None] * 5 for n in range(1, 9) for kind in ("word", "synonym")}
    pd.DataFrame(runs).to_excel(tmp_path / "synonym.xlsx", index=False)
    (tmp_path / "format.csv").write_text('name,format\nhappy,"happily, happier"\nfurious,\nworried,\ntense,\ncheeky,cheekily\n')
    read_wheels = read_mer_unibench_wheels(tmp_path)
    # "tense" is in the cluster of "worried" in the first wheel only
    score = score_set("MER2024", ["They left happily.", "It felt tense."], ["happy", "worried"], read_wheels)
    assert score.percent == pytest.approx(100 * (1 + 1 / 5) / 2)
    score = score_set("OV-MERD+", ["Furious, they left cheekily."], [("happy",)], read_wheels)
    assert score.percent == pytest.approx(100 * 2 / 3)  # {happy, mad} of {happy}


def test_another_extractor_takes_the_place_of_ours():
    def last_word(text, wheels):
        return [text.split()[-1]]

    answers, gold = ["sad sad happy", "happy sad"], [("happy",), ("happy",)]
    assert score_set("OV-MERD+", answers, gold, wheels(["ekman"]), last_word).percent == pytest.approx(50)
    assert score_set("MER2023", answers, ["happy", "happy"], extractor=last_word).percent == 50


def test_answers_and_labels_that_do_not_fit():
    with pytest.raises(InputError, match="MELD: 2 answers came with 1 gold labels; give one for each"):
        score_set("MELD", ["x", "y"], ["joy"])
    with pytest.raises(InputError, match="answers must be a list of texts, one a row; got the text 'happy'"):
        score_set("MELD", "happy", ["joy"])
    with pytest.raises(InputError, match="unknown emotion 'hapy': it is in none of the wheels"):
        score_set("MELD", ["x"], ["hapy"])
    with pytest.raises(InputError, match="Every gold label is neutral .* neutral=True counts these"):
        score_set("MELD", ["x"], ["neutral"])
    for name, gold, expected in [
        ("CH-SIMS", -1.0, "a number"),
        ("MELD", "joy", "a word"),
        ("OV-MERD+", ("sad",), "a tuple of words"),
    ]:
        with pytest.raises(
            InputError, match=f"{name}: 1 gold labels cannot be used: row 1: nan. Expected {expected} each".replace("+", r"\+")
        ):
            score_set(name, ["x", "y"], [gold, float("nan")])
    with pytest.raises(InputError, match="row 0: 'sad'. Expected a tuple of words each"):
        score_set("OV-MERD+", ["x"], ["sad"])


def test_the_mean_over_nine_sets():
    gold = {"hit rate": ["happy", "sad"], "WAF": [1.0, -1.0], "F_s": [("happy",), ("sad",)]}
    right, wrong = ["I was glad.", "I was sad."], ["I was sad.", "I was glad."]
    answers = {name: right if name in ("MELD", "CH-SIMS", "OV-MERD+") else wrong for name in SETS}
    scores = [score_set(name, answers[name], gold[SETS[name].metric]) for name in reversed(SETS)]
    table = benchmark_table(scores)
    assert table.columns.tolist()[:5] == ["set", "metric", "percent", "n", "skipped"]
    assert table["set"].tolist() == [*SETS, "mean of nine sets"]
    assert table.percent.tolist()[:-1] == [100.0 if name in ("MELD", "CH-SIMS", "OV-MERD+") else 0.0 for name in SETS]
    assert table.percent.iloc[-1] == pytest.approx(300 / 9) and table.n.iloc[-1] == 18
    few = benchmark_table(scores[:2])
    assert few["set"].tolist() == ["CH-SIMS v2", "OV-MERD+", "mean of 2 of 9 sets"] and few.percent.iloc[-1] == 50
    with pytest.raises(InputError, match="takes one score a set, .*; got OV-MERD\\+, OV-MERD\\+"):
        benchmark_table([scores[0], scores[0]])
    with pytest.raises(InputError, match="got none"):
        benchmark_table([])


# intervals, differences and harms

WORDS = {"happy": "I was glad.", "sad": "I was sad.", "angry": "I was angry.", "": "It was a usual day."}
BOTH = "I was glad and sad."


def drawn_answers(name, n, seed):
    """Golds of a set, and two methods' answers of single words, both or none, the second more often right."""
    rng = np.random.default_rng(seed)
    kind = SETS[name].metric
    if kind == "WAF":
        gold = [float(v) for v in rng.choice([1.5, -2.0, -0.5, 0.0], n)]
        right = ["I was glad." if g > 0 else "I was sad." for g in gold]
    else:
        words = [str(w) for w in rng.choice(["happy", "sad", "angry", "neutral"], n)]
        right = [WORDS.get(w, WORDS[""]) for w in words]
        gold = words if kind == "hit rate" else [(w,) if w == "neutral" else (w, "surprised") for w in words]
    others = [*WORDS.values(), BOTH]
    methods = [[r if rng.random() < p else others[rng.integers(5)] for r in right] for p in (0.3, 0.6)]
    return gold, *methods


def waf(gold, said):
    kept = [(g > 0, "glad" in s and s != BOTH) for g, s in zip(gold, said, strict=True) if g]
    return 100 * f1_score(*zip(*kept, strict=True), average="weighted")


def compared(name, gold, none, mine):
    scores = [[score_clips(name, said, gold)] for said in (none, mine)]
    table = compared_table({"none": [scores[0]], "mine": [scores[1]]})
    return table[table["set"] == name].set_index("method")


def test_the_hit_rates_interval_and_p_are_scipys_and_the_closed_form():
    gold, none, mine = drawn_answers("MER2023", 80, 0)
    table = compared("MER2023", gold, none, mine)
    counted = [i for i, g in enumerate(gold) if g != "neutral"]
    hits = {name: 100 * np.array([hit_rate(said[i], gold[i]) for i in counted]) for name, said in (("none", none), ("mine", mine))}
    for method, values in [*hits.items(), ("gain", hits["mine"] - hits["none"])]:
        seen = bootstrap((values,), np.mean, n_resamples=9999, method="percentile", rng=1).confidence_interval
        columns = ["difference", "difference_low", "difference_high"] if method == "gain" else ["percent", "low", "high"]
        row = table.loc["mine" if method == "gain" else method, columns]
        assert row.tolist() == pytest.approx([values.mean(), *seen], abs=1.8)  # one clip of 60 is 1.7
    p = permutation_test((hits["mine"], hits["none"]), lambda a, b: (a - b).mean(), permutation_type="samples", rng=1).pvalue
    assert table.p["mine"] == pytest.approx(p, abs=0.005) and np.isnan(table.p["none"])
    five = compared("MER2023", ["happy"] * 5, [WORDS[""]] * 5, [WORDS["happy"]] * 5)
    assert five.p["mine"] == pytest.approx(2 / 2**5, abs=0.01)  # all signs alike, both ways


def test_wafs_interval_is_that_of_scikit_learn_on_resampled_rows_and_its_p_that_of_exchanged_answers():
    gold, none, mine = drawn_answers("CMU-MOSI", 60, 1)
    row = compared("CMU-MOSI", gold, none, mine).loc["mine"]
    kept = [i for i, g in enumerate(gold) if g]
    rng = np.random.default_rng(5)
    both = np.array([
        [waf([gold[i] for i in some], [said[i] for i in some]) for said in (none, mine)]
        for some in rng.choice(kept, (600, len(kept)))
    ])  # fmt: skip
    assert row.percent == waf(gold, mine) and row.difference == pytest.approx(waf(gold, mine) - waf(gold, none))
    assert [row.low, row.high] == pytest.approx(np.quantile(both[:, 1], [0.025, 0.975]), abs=2.5)
    gains = np.quantile(both[:, 1] - both[:, 0], [0.025, 0.975])
    assert [row.difference_low, row.difference_high] == pytest.approx(gains, abs=3)
    some = kept[:8]  # few enough for all 2**8 exchanges
    g, a, b = ([of[i] for i in some] for of in (gold, none, mine))
    sides = list(product(*([(x, y), (y, x)] for x, y in zip(a, b, strict=True))))
    null = [abs(waf(g, [y for _, y in one]) - waf(g, [x for x, _ in one])) for one in sides]
    seen = abs(waf(g, b) - waf(g, a))
    assert compared("CMU-MOSI", g, a, b).p["mine"] == pytest.approx(np.mean(np.array(null) >= seen - 1e-9), abs=0.02)


def test_f_s_is_computed_anew_in_each_resample():
    gold, none, mine = drawn_answers("OV-MERD+", 40, 2)
    row = compared("OV-MERD+", gold, none, mine).loc["mine"]
    kept = [i for i, g in enumerate(gold) if g != ("neutral",)]
    words = [[w.lemma for w in extract(said)] for said in mine]
    rng = np.random.default_rng(6)
    drawn = [100 * f_s([words[i] for i in some], [gold[i] for i in some]).f for some in rng.choice(kept, (160, len(kept)))]
    whole = f_s(words, gold)
    assert [row.percent, row.precision, row.f] == pytest.approx([100 * whole.f, 100 * whole.precision, 100 * whole.f])
    assert [row.low, row.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=4)


def test_what_stands_beside_the_score_by_hand():
    gold = ["happy", "sad", "angry", "neutral", "Neutral"]
    row = score_set("MER2023", [BOTH, "I was sad, so sad.", WORDS[""], WORDS[""], "I was glad."], gold)
    # glad and sad of happy: precision 1/2, F 2/3; two words twice; the third names nothing, one of two neutral ones a feeling
    assert [row.precision, row.f, row.n_words] == pytest.approx([100 * (0.5 + 1 + 0) / 3, 100 * (2 / 3 + 1 + 0) / 3, 4 / 3])
    assert (row.neutral, row.false_emotion, row.n, row.skipped) == (2, 50, 3, 2)
    assert row.clips[["clip", "counted", "n_words", "false_emotion"]].values.tolist()[-1] == ["4", False, 1, 1]
    glad = score_set("CMU-MOSI", ["I was glad."] * 4, [1.0, 2.0, -1.0, 0.0])
    # all told positive: precision 2/3 of the positive and 0 of the negative, with supports 2 and 1
    assert glad.precision == pytest.approx(100 * (2 * 2 / 3 + 0) / 3) and glad.f == glad.percent and glad.neutral == 0
    assert np.isnan(glad.false_emotion) and np.isnan(glad.false_low)
    assert score_set("OV-MERD+", ["I was glad.", "I was glad."], [("happy",), ("neutral",)]).false_emotion == 100


def test_the_rule_of_three_where_all_clips_are_alike():
    score = score_set("MELD", ["I was glad."] * 30, ["joy"] * 30)
    assert [score.percent, score.low, score.high] == pytest.approx([100, 90, 100])
    alike = compared("MELD", ["joy"] * 30, ["I was glad."] * 30, ["I was glad."] * 30).loc["mine"]
    assert [alike.difference, alike.difference_low, alike.difference_high, alike.p] == pytest.approx([0, -10, 10, 1])


def test_the_means_interval_is_drawn_within_sets():
    """The variance of a mean of independent means: the root of the sum of their variances, over their number."""
    runs, errors = {"none": [[]], "mine": [[]]}, []
    for i, (name, n) in enumerate({"MER2023": 150, "MER2024": 90, "MELD": 60}.items()):
        gold, *said = drawn_answers(name, n, 10 + i)
        for run, answers in zip(runs.values(), said, strict=True):
            run[0].append(score_clips(name, answers, gold))
        hits = run[0][-1].clips.score[run[0][-1].clips.counted] - runs["none"][0][-1].clips.score[run[0][-1].clips.counted]
        errors.append(100 * hits.std(ddof=0) / np.sqrt(len(hits)))
    row = compared_table(runs).iloc[-1]
    assert row["set"] == "mean of 3 of 9 sets" and np.isnan(row.p_holm) and row.p < 0.01
    width = 2 * 1.96 * np.sqrt((np.array(errors) ** 2).sum()) / 3
    assert row.difference_high - row.difference_low == pytest.approx(width, rel=0.08)
    table = compared_table(runs).iloc[4:7]
    order = np.argsort(table.p.to_numpy())
    stepped = np.maximum.accumulate(table.p.to_numpy()[order] * [3, 2, 1])
    assert table.p_holm.to_numpy()[order] == pytest.approx(np.minimum(1, stepped))  # Holm over the method's sets


def test_seeds_are_averaged_within_clips():
    """Two seeds that asked the same of every clip are no more clips; seeds may have asked different ones."""
    gold, none, mine = drawn_answers("MER2023", 40, 3)
    one, two = (score_clips("MER2023", said, gold) for said in (none, mine))
    single, doubled = (compared_table({"none": [[one]] * k, "mine": [[two]] * k}) for k in (1, 2))
    pd.testing.assert_frame_equal(single, doubled)
    halves = ((0, 24), (16, 40))
    parts = [
        [[score_clips("MER2023", said[a:b], gold[a:b], clips=map(str, range(a, b)))] for a, b in halves] for said in (none, mine)
    ]
    apart = compared_table(dict(zip(("none", "mine"), parts, strict=True)))
    assert apart.percent[2] == pytest.approx(np.mean([run[0].percent for run in parts[1]]))
    assert apart.n[0] == single.n[0] and apart.difference_low[2] < apart.difference[2] < apart.difference_high[2]


def test_what_cannot_be_compared_is_refused():
    gold, none, mine = drawn_answers("MER2023", 12, 4)
    one, few = score_clips("MER2023", none, gold), score_clips("MER2023", mine[:8], gold[:8])
    with pytest.raises(InputError, match="MER2023: the methods were asked about different clips"):
        compared_table({"none": [[one]], "mine": [[few]]})
    with pytest.raises(InputError, match="Among the methods mine is no 'none', which all are compared with"):
        compared_table({"mine": [[one]]})
    with pytest.raises(InputError, match="Every method needs scores of the same sets"):
        compared_table({"none": [[one]], "mine": [[score_clips("MELD", ["x"], ["joy"])]]})
    with pytest.raises(InputError, match="1 answers are no texts: row 1: None. Give a str each"):
        score_set("MELD", iter(["x", None]), ["joy", "joy"])  # what comes of an iterator is not looked at before


def test_an_extractor_is_asked_once_an_answer():
    asked = []

    def last_word(text, wheels):
        return [asked.append(text) or text.split()[-1]]

    for name, gold in (("MER2023", "happy"), ("CMU-MOSI", 1.0), ("OV-MERD+", ("happy",))):
        assert score_clips(name, ["sad happy", "so sad"], [gold] * 2, extractor=last_word).clips.n_words.tolist() == [1, 1]
    assert asked == ["sad happy", "so sad"] * 3


def test_messages_list_a_dozen_names_and_count_the_others(tmp_path):
    corpus = {f"clip{i:04}": {"val": "?"} for i in range(1034)}
    own = write(tmp_path, "CH-SIMS v2", clips=["a"], test_corpus=corpus)
    with pytest.raises(InputError, match="1034 of 1034 labels .* and 1022 more. Expected") as caught:
        read(own, "CH-SIMS v2")
    assert len(re.findall("clip", str(caught.value))) == 12
