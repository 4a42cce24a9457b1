"""The tree of features and the explorer: clusters and emotions that are known, what is refused, what the pages hold."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy.cluster.hierarchy import cophenet, fcluster
from scipy.spatial.distance import pdist, squareform
from scipy.stats import ttest_ind
from traitlets import TraitError

from emointerp.errors import InputError, OutputError
from emointerp.plots import COLORS
from emointerp.sae import SAE, Codes
from emointerp.sae.tree import GRAY, NONE, FeatureTree, emotion_colors, feature_tree, initials
from emointerp.widgets.explorer import FOLDER, Explorer, heat_bytes, page, payload, small_uri, top_pictures
from emointerp.widgets.tinted import RAMP
from emointerp.world import Scene

ROOT = Path(__file__).resolve().parents[1]
HOSTILE = "</script><script>alert(1)</script>\"'&<!-- 喜び \u2028"
LABELS = ["joy"] * 20 + ["fear"] * 20 + ["neutral"] * 20


def sae() -> SAE:
    """Features 0-2 write about the same, 3-5 another thing, 6-7 a third; 8 and 9 lie alone and never fire."""
    ways = torch.eye(5)[[0, 0, 0, 1, 1, 1, 2, 2, 3, 4]]
    noise = 0.1 * torch.randn(10, 5, generator=torch.Generator().manual_seed(0))
    return SAE(torch.randn(10, 5, generator=torch.Generator().manual_seed(1)), 4, ways + noise)


def dense() -> torch.Tensor:
    """0-2 fire on joy, the first most; 3-5 on fear; 6 on neutral; 7 alike everywhere."""
    noise = torch.rand(60, 10, generator=torch.Generator().manual_seed(2))
    active = 0.1 * noise
    active[:20, :3] += torch.tensor([3.0, 2.0, 1.0])
    active[20:40, 3:6] += torch.tensor([1.0, 2.0, 3.0])
    active[40:, 6] += 1
    active[:, 7] = 0.2 + noise[:, 7]
    return active * torch.tensor([1.0] * 8 + [0.0] * 2)


def codes_of(active: torch.Tensor, k: int = 10) -> Codes:
    return Codes(*active.topk(k), active.shape[-1])


def made(**options) -> FeatureTree:
    return feature_tree(codes_of(dense()), LABELS, **{"sae": sae(), "n": 8, "words": {0: "balloons, beach", 5: HOSTILE}} | options)


def test_features_that_write_alike_stand_together():
    tree = made()
    groups = fcluster(tree.linkage, 3, "maxclust")
    by_group = pd.Series(tree.leaves.feature.to_numpy()).groupby(groups).apply(lambda f: tuple(sorted(f)))
    assert set(by_group) == {(0, 1, 2), (3, 4, 5), (6, 7)}
    assert len(pd.unique(groups)) == 1 + np.count_nonzero(np.diff(groups))  # each group is one stretch of the circle


def test_the_linkage_is_average_linkage_of_cosine_distances():
    """Written out: the distance of two parts is the mean over their pairs of leaves."""
    tree = made()
    vectors = sae().features[tree.leaves.feature.tolist()].numpy()
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    between = 1 - unit @ unit.T
    parts = [[i] for i in range(len(tree))]
    for left, right, distance, count in tree.linkage:
        a, b = parts[int(left)], parts[int(right)]
        assert distance == pytest.approx(between[np.ix_(a, b)].mean(), abs=1e-6) and count == len(a) + len(b)
        parts.append(a + b)
    assert parts[-1] == list(range(8))  # leaves are numbered by their places around the circle


def test_activity_clusters_what_fires_together():
    tree = made(by="activity")
    active = dense().numpy().T[tree.leaves.feature.to_numpy()]
    heights = squareform(cophenet(tree.linkage))
    place = {feature: i for i, feature in enumerate(tree.leaves.feature)}
    assert heights[place[0], place[2]] < 0.05 < heights[place[0], place[3]]
    assert tree.linkage[0, 2] == pytest.approx(pdist(active, "cosine").min(), abs=1e-6)
    same = feature_tree(codes_of(dense()), LABELS, n=8, by="activity")
    assert np.array_equal(same.linkage, tree.linkage)  # which asks for no SAE


def test_each_feature_has_the_emotion_that_exceeds_the_mean_most():
    tree = made()
    leaves, active = tree.leaves.set_index("feature"), dense()
    assert leaves.emotion.to_dict() == {0: "joy", 1: "joy", 2: "joy", 3: "fear", 4: "fear", 5: "fear", 6: "neutral", 7: NONE}
    means = torch.stack([active[40:], active[:20], active[20:40]]).mean(1)  # neutral, joy, fear
    assert leaves.difference[0] == pytest.approx(float(means[1, 0] - means[:, 0].mean()), abs=1e-5)
    assert leaves.activation[0] == pytest.approx(float(means[1, 0]), abs=1e-5)
    assert leaves.activation[7] == pytest.approx(float(active[:, 7].mean()), abs=1e-5)
    assert tree.emotions == ("fear", "joy", "neutral")  # the order of the package's colours
    place = tree.leaves.index[tree.leaves.feature == 4][0]
    assert tree.means[place] == pytest.approx(means[[2, 1, 0], 4].numpy(), abs=1e-5)


def test_p_values_are_welchs_corrected_for_all_features_and_emotions():
    active, groups = dense().numpy(), {"fear": slice(20, 40), "joy": slice(0, 20), "neutral": slice(40, 60)}
    p = np.empty((8, 3))
    for e, rows in enumerate(groups.values()):
        others = np.delete(active, rows, axis=0)
        p[:, e] = ttest_ind(active[rows, :8], others[:, :8], equal_var=False, alternative="greater").pvalue
    ranks = p.ravel().argsort().argsort() + 1
    scaled = p.ravel() * 24 / ranks
    corrected = np.array([min(1, scaled[ranks >= rank].min()) for rank in ranks]).reshape(8, 3)
    leaves = made().leaves.set_index("feature")
    own = {name: e for e, name in enumerate(groups)}
    for feature, name in leaves.emotion.drop(7).items():
        assert leaves.p[feature] == pytest.approx(corrected[feature, own[name]], rel=1e-4)
    assert leaves.p[7] == pytest.approx(corrected[7, leaves_best(active[:, 7])], rel=1e-4) and leaves.p[7] > 0.05


def leaves_best(column: np.ndarray) -> int:
    """Which of fear, joy, neutral has the largest mean."""
    return int(np.argmax([column[20:40].mean(), column[:20].mean(), column[40:].mean()]))


def test_without_labels_no_feature_has_an_emotion():
    tree = feature_tree(codes_of(dense()), sae=sae(), n=3)
    assert set(tree.leaves.emotion) == {NONE} and tree.emotions == () and tree.means.shape == (3, 0)
    assert sorted(tree.leaves.feature) == sorted(dense().mean(0).topk(3).indices.tolist())
    assert tree.leaves.difference.isna().all() and payload(tree)["leaves"]["difference"] == [None] * 3


def test_the_codes_stay_as_they_are():
    codes = codes_of(dense())
    feature_tree(codes, LABELS, sae=sae(), n=8)
    assert torch.equal(codes.dense(), dense())


def test_which_features_are_shown():
    assert sorted(made(n=3).leaves.feature) == [0, 5, 6]  # the first of each emotion
    assert sorted(made(n=4, choose="activation").leaves.feature) == [0, 1, 4, 5]  # means over the pictures of their emotions
    assert sorted(made(choose=[7, 2, 2, 8]).leaves.feature) == [2, 7]  # 8 never fires
    assert len(made(n=99)) == 8


def test_a_picture_may_show_several_emotions():
    table = pd.DataFrame({"peace": [1] * 40 + [0] * 20, "joy": [1] * 20 + [0] * 40, "yearning": [0, 1] * 30})
    tree = feature_tree(codes_of(dense()), table, sae=sae())
    assert tree.emotions == ("joy", "peace", "yearning")
    assert tree.leaves.set_index("feature").emotion[[0, 5]].tolist() == ["joy", "peace"]
    assert tree.colors["joy"] == COLORS["joy"] and len(set(tree.colors.values())) == 4


def test_of_patches_the_strongest_counts():
    active = dense()
    patches = torch.stack([active * 0.5, active, active * 0.25], dim=1)
    whole, parts = made(), feature_tree(codes_of(patches), LABELS, sae=sae(), n=8, words={0: "balloons, beach", 5: HOSTILE})
    pd.testing.assert_frame_equal(whole.to_frame(), parts.to_frame())


def test_entries_that_did_not_fire_mean_nothing():
    values, indices = dense().topk(4)
    padded = Codes(torch.cat([values, torch.zeros(60, 3)], 1), torch.cat([indices, torch.zeros(60, 3, dtype=torch.long)], 1), 10)
    plain = feature_tree(Codes(values, indices, 10), LABELS, sae=sae())
    pd.testing.assert_frame_equal(plain.to_frame(), feature_tree(padded, LABELS, sae=sae()).to_frame())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"labels": LABELS[:-1]}, "59 labels came for the codes of 60 pictures"),
        ({"labels": ["joy"] * 59 + ["fear"]}, "1 of 60 pictures show 'fear'; a test needs two with it"),
        ({"labels": pd.DataFrame({"joy": [0.5] * 60})}, "a table of 0 and 1"),
        ({"labels": [NONE] * 30 + ["joy"] * 30}, "not 'none'"),
        ({"sae": None}, "give sae=, or take by='activity'"),
        ({"sae": SAE.random(5, 12, 4)}, "The SAE has 12 features and the codes are of one with 10"),
        ({"by": "colour"}, "by is 'colour'; expected 'decoder' or 'activity'"),
        ({"choose": "best"}, "choose is 'best'; expected 'emotion' or 'activation', or the features' numbers"),
        ({"choose": [1, 10]}, "There is no feature 10; this SAE has features 0 to 9"),
        ({"choose": [8, 9]}, "0 features are left .* of 8 that fire; a tree needs two"),
        ({"n": 1}, "1 features are left of n = 1"),
    ],
)
def test_a_tree_refuses_bad_input_in_words(options, words):
    options = {"sae": sae(), "labels": LABELS} | options
    with pytest.raises(InputError, match=words):
        feature_tree(codes_of(dense()), options.pop("labels"), **options)


def leaves_below(part: dict) -> list[int]:
    return [part["feature"]] if "feature" in part else sum(map(leaves_below, part["children"]), [])


def test_the_nested_tree_has_the_leaves_in_their_order():
    tree = made()
    assert leaves_below(tree.nested()) == tree.leaves.feature.tolist()
    assert tree.nested()["distance"] == tree.linkage[-1, 2]


def test_joins_lie_nearer_to_the_middle_the_larger_their_distance():
    tree = made()
    order = np.argsort(tree.linkage[:, 2])
    assert (np.diff(tree.radii[order]) <= 0).all() and tree.radii.min() == 0 and 0.9 < tree.radii.max() < 1


def test_a_branch_has_the_colour_that_more_than_half_of_its_leaves_have():
    tree = made()
    sent = payload(tree)
    names = [emotion["name"] for emotion in sent["emotions"]]
    below = [[name] for name in tree.leaves.emotion]
    for (left, right, *_), leading in zip(tree.linkage, sent["leading"], strict=True):
        below.append(below[int(left)] + below[int(right)])
        counts = pd.Series(below[-1]).value_counts()
        expected = counts.index[0] if counts.iloc[0] > len(below[-1]) / 2 and counts.index[0] != NONE else NONE
        assert names[leading] == expected
    assert names == ["fear", "joy", "neutral", NONE] and sent["emotions"][-1]["color"] == GRAY


def test_emotions_are_told_apart_without_colour():
    basic = ["anger", "disgust", "fear", "joy", "sadness", "surprise", "neutral"]
    assert list(initials(basic).values()) == ["A", "D", "F", "J", "Sa", "Su", ""]
    emotic = ["Doubt/Confusion", "Disapproval", "Disconnection", "Esteem", "Engagement", "Pain", "Pleasure", "Peace", "Dis"]
    assert len(set(initials(emotic).values())) == len(emotic)
    assert len(set(emotion_colors([f"e{i}" for i in range(26)]).values())) == 27


def test_the_figure_has_a_dot_for_each_leaf_and_escapes_nothing_as_mathematics():
    figure = made(words={0: "$x$ and $", 1: HOSTILE}).plot(width=5)
    axis = figure.axes[0]
    dots = next(c for c in axis.collections if len(c.get_offsets()) == 8)
    assert np.linalg.norm(dots.get_offsets(), axis=1) == pytest.approx(1)
    said = [text.get_text() for text in axis.texts]
    assert any("$x$ and $" in text and text.split()[0] in ("J", "$x$") for text in said)
    legend = [text.get_text() for text in axis.figure.legends[0].get_texts()]
    assert legend == ["F  fear (3)", "J  joy (3)", "neutral (1)", "no one emotion (1)"]
    figure.savefig(io.BytesIO())


def test_a_tree_of_a_thousand_features_may_be_as_deep_as_it_likes():
    """A chain, where every join adds one leaf: deeper than Python's recursion and JSON go."""
    n = 1000
    chain = np.array([[i, i - 1 + n - 1 if i > 1 else 0, i, i + 1] for i in range(1, n)], float)
    columns = {"feature": np.arange(n), "emotion": NONE, "activation": 1.0, "difference": np.nan, "p": np.nan, "words": ""}
    tree = FeatureTree(pd.DataFrame(columns), chain, np.empty((n, 0)), (), "decoder")
    sent = json.loads(json.dumps(payload(tree)))
    assert sent["leaves"]["feature"] == list(range(n)) and sent["linkage"] == chain.tolist()
    depth, part = 0, tree.nested()
    while "children" in part:
        depth, part = depth + 1, max(part["children"], key=lambda child: "children" in child)
    assert depth == n - 1
    tree.plot(width=5).savefig(io.BytesIO())


# the widget


def picture(i: int) -> Image.Image:
    return Image.new("RGB", (200, 100), (20 * i, 90, 120))


def shots(feature: int) -> list:
    return [(picture(feature), np.eye(4), HOSTILE), (picture(1), None, "two")]


def explorer(find_pictures=shots, **traits) -> Explorer:
    return Explorer(made(), find_pictures, **traits)


def test_a_selected_feature_shows_its_pictures():
    shown = explorer()
    assert shown.pictures == [] and shown.selected == -1
    shown.selected = np.int64(5)
    first, second = shown.pictures
    image = Image.open(io.BytesIO(base64.b64decode(first["picture"].partition(",")[2])))
    assert image.size == (160, 80) and np.abs(np.asarray(image)[40, 80].astype(int) - (100, 90, 120)).max() < 8
    assert first["heat"]["rows"] == 4 and first["caption"] == HOSTILE and second["heat"] is None
    assert base64.b64decode(first["heat"]["bytes"]) == (255 * np.eye(4, dtype=np.uint8)).tobytes()
    shown.selected = -1
    assert shown.pictures == [] and not shown.busy


def test_pictures_of_a_feature_are_asked_for_once():
    asked = []
    shown = explorer(lambda feature: asked.append(feature) or [])
    for feature in (5, 0, 5, -1, 0):
        shown.selected = feature
    assert asked == [5, 0]


def test_what_goes_wrong_with_pictures_is_said():
    def broken(feature: int) -> list:
        raise KeyError("no index") if feature else InputError("The gallery is empty.")

    shown = explorer(broken, selected=0)
    assert shown.problem == "The gallery is empty." and shown.pictures == [] and not shown.busy
    shown.selected = 5
    assert shown.problem == "KeyError: 'no index'"
    shown.selected = -1
    assert shown.problem == ""
    assert "shape [3]" in explorer(lambda _: [(picture(1), np.ones(3), "")], selected=0).problem


@pytest.mark.parametrize(
    ("traits", "words"),
    [
        ({"selected": 9}, "`selected` is 9, which is none of the 8 features shown"),
        ({"selected": 0.5}, "`selected` is 0.5; expected a whole number"),
        ({"emotions": ["rage"]}, "`emotions` has 'rage'; this tree knows fear, joy, neutral, none"),
    ],
)
def test_a_widget_refuses_bad_input_in_words(traits, words):
    with pytest.raises(InputError, match=words):
        explorer(**traits)
    shown = explorer(selected=5)
    with pytest.raises(TraitError, match=words):
        for name, value in traits.items():
            setattr(shown, name, value)
    assert shown.selected == 5 and shown.emotions == []


def test_heat_is_its_absolute_value_as_a_share_of_its_largest():
    held = heat_bytes(torch.tensor([[-2.0, 1.0], [0.0, float("nan")]], requires_grad=True))
    assert list(base64.b64decode(held["bytes"])) == [255, 128, 0, 0]
    fine = heat_bytes(np.repeat(np.repeat([[1.0, 0.0], [0.5, 0.0]], 96, 0), 96, 1))
    grid = np.frombuffer(base64.b64decode(fine["bytes"]), np.uint8).reshape(fine["rows"], fine["columns"])
    assert grid.shape == (48, 48) and (grid[:24, :24] == 255).all() and (grid[:, 24:] == 0).all() and (grid[24:, :24] == 128).all()
    assert set(base64.b64decode(heat_bytes(np.zeros((2, 2)))["bytes"])) == {0}


def test_top_pictures_are_those_on_which_a_feature_fires_most():
    images = [picture(i % 12) for i in range(60)]
    found = top_pictures(codes_of(dense(), 3), images, k=4, heat=lambda i, feature: np.full((2, 2), i + feature))(5)
    best = dense()[:, 5].argsort(descending=True)[:4].tolist()
    assert [shot[0] for shot in found] == [images[i] for i in best]
    assert [float(shot[1][0, 0]) for shot in found] == [i + 5 for i in best]
    assert [shot[2] for shot in found] == [f"{float(dense()[i, 5]):.2f}" for i in best]
    assert top_pictures(codes_of(dense()), images)(8) == []


def test_top_pictures_may_be_files_arrays_or_scenes(tmp_path):
    picture(3).save(tmp_path / "a.png")
    (best,) = top_pictures(codes_of(dense()), [tmp_path / "a.png"] * 60, k=1)(5)
    assert best[0] == picture(3)
    active = torch.eye(3)
    found = top_pictures(Codes(*active.topk(1), 3), [str(tmp_path / "a.png"), np.asarray(picture(4)), Scene()])
    assert [found(i)[0][0] for i in range(3)] == [picture(3), picture(4), Scene().image()]


def test_of_patch_codes_the_heat_map_is_the_features_own():
    patches = torch.rand(60, 4, 10, generator=torch.Generator().manual_seed(3))
    image, heat, caption = top_pictures(codes_of(patches), [picture(1)] * 60, k=1)(2)[0]
    best = patches[:, :, 2].amax(1).argmax()
    assert torch.equal(heat, patches[best, :, 2].reshape(2, 2)) and caption == f"{float(patches[..., 2].max()):.2f}"
    with pytest.raises(InputError, match="3 patches are no square"):
        top_pictures(codes_of(patches[:, :3]), [picture(1)] * 60)
    with pytest.raises(InputError, match="2 images came for the codes of 60 pictures"):
        top_pictures(codes_of(patches), [picture(1)] * 2)


# pages


class Elements(HTMLParser):
    """Elements of a page with their attributes, and the text inside each script."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.scripts, self._inside = [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag == "script"

    def handle_data(self, data):
        if self._inside:
            self.scripts.append(data)
            self._inside = False


def test_a_saved_page_holds_everything_and_asks_nothing_of_the_network(tmp_path):
    shown = explorer(title=HOSTILE, selected=5, search=HOSTILE, emotions=["joy"])
    file = shown.save(tmp_path / "<explorer> 'é'.html", progress=False)
    html = file.read_text(encoding="utf-8")
    found = Elements(html)
    assert [tag for tag, _ in found.tags].count("script") == 2 and len(found.scripts) == 2
    data = json.loads(found.scripts[0])
    traits = data["traits"]
    assert (traits["title"], traits["search"], traits["selected"], traits["emotions"]) == (HOSTILE, HOSTILE, 5, ["joy"])
    assert traits["tree"] == json.loads(json.dumps(shown.tree)) and HOSTILE in traits["tree"]["leaves"]["words"]
    assert traits["_ramp"] == [list(pair) for pair in RAMP]
    assert set(data["pictures"]) == {str(i) for i in range(8)} and data["pictures"]["5"][0]["caption"] == HOSTILE
    pictures = {i: [data["store"][shot["picture"]] for shot in some] for i, some in data["pictures"].items()}
    assert pictures["5"] == [small_uri(picture(5)), small_uri(picture(1))] and len(data["store"]) == 8  # each picture once
    assert base64.b64decode(re.search(r"base64,([^\"]+)\"", found.scripts[1])[1]).decode() == Explorer._esm
    fetched = [value for _, attrs in found.tags for name, value in attrs.items() if name in ("src", "href")]
    assert all(value.startswith("data:") for value in fetched)


def test_a_page_that_cannot_be_written_is_an_error_in_words(tmp_path):
    with pytest.raises(OutputError, match="cannot be written to .*nowhere"):
        explorer().save(tmp_path / "nowhere" / "a.html", progress=False)


def test_a_stand_in_lies_beside_the_live_widget():
    shown = explorer(title=HOSTILE, selected=5)
    data, _ = shown._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"]
    html = data["text/html"]
    found = Elements(html)
    assert html == shown.static_html() and not [tag for tag, _ in found.tags if tag == "script"]
    images = [attrs for tag, attrs in found.tags if tag == "img"]
    assert len(images) == 3 and images[1]["alt"] == HOSTILE and "8 features; fear: 3, joy: 3" in images[0]["alt"]
    under_heat, plain = images[1]["src"], images[2]["src"]
    assert plain == small_uri(picture(1)) and under_heat != small_uri(picture(5))


def test_the_bundle_is_built_from_the_sources_beside_it():
    """By the hash that the build wrote; where it fails, run `npm ci && npm run build` in `js/`."""
    sources = re.search(r"SOURCES = (\[.*?\])", (ROOT / "js" / "build.js").read_text())[1]
    joined = b"".join((ROOT / "js" / name).read_bytes() for name in json.loads(sources))
    assert hashlib.sha256(joined).hexdigest() in Explorer._esm.splitlines()[0]


def test_the_bundle_names_its_licences_and_fetches_nothing():
    licences = (FOLDER / "LICENSE.d3").read_text()
    locked = json.loads((ROOT / "js" / "package-lock.json").read_text())["packages"]
    for name in ("d3-hierarchy", "d3-selection", "d3-shape", "d3-transition", "d3-zoom"):
        assert f"{name} {locked[f'node_modules/{name}']['version']} (ISC)" in licences
    assert licences.count("Mike Bostock") >= 5
    addresses = set(re.findall(r"https?://[^\"'`\s)]+", Explorer._esm))
    assert all(address.startswith("http://www.w3.org/") for address in addresses)  # names of XML spaces
    assert not re.search(r"\bfetch\(|XMLHttpRequest|WebSocket|\bimport\s*\(|\beval\b", Explorer._esm)
    assert not re.search(r"https?://|@import|url\(", Explorer._css)
    for file in (ROOT / "js").glob("*.js"):
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|\.html\(|\beval\b", file.read_text()), file.name


def test_data_cannot_end_its_script():
    html = page({"a": HOSTILE}, HOSTILE)
    assert html.count("</script>") == 2 and json.loads(Elements(html).scripts[0]) == {"a": HOSTILE}
