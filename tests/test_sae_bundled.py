"""The bundled SAEs: they open, read what they say they read, and keep the figures of their card on pictures of the test split."""

import copy
import json
import re
from functools import cache
from multiprocessing import dummy

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize

from emointerp.models import WEIGHTS, load_tower
from emointerp.sae import SaeRecipe, load_sae, picture_codes
from emointerp.superposition import factor_table
from emointerp.training import sae as stage
from emointerp.training.vectors import PER_PICTURE, vectors
from emointerp.world import Scene, face_scenes

FOLDERS = {"tiny": "tiny-sae", "tiny-patches": "tiny-sae-patches"}
N = 200  # pictures of either split on which the card is measured again


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Pictures are drawn in threads here: to start a process takes longer than to draw what these tests need."""
    monkeypatch.setattr("emointerp.training.data.get_context", lambda kind: dummy)


@pytest.fixture(scope="module")
def tower():
    return load_tower("tiny")


@pytest.fixture(scope="module")
def drawn_once():
    """Scenes and their pixels are drawn once for all tests here that ask for the same."""
    with pytest.MonkeyPatch.context() as shared:
        shared.setattr(stage, "face_scenes", cache(face_scenes))
        shared.setattr(Scene, "pixels", cache(Scene.pixels))
        yield


@pytest.fixture(scope="module")
def found(tower, drawn_once):
    """What the card states, measured again on fewer pictures."""
    return {name: stage.measured(load_sae(name), tower, N, seed=31) for name in FOLDERS}


@pytest.mark.parametrize("name, reads", [("tiny", "pooled"), ("tiny-patches", "patches")])
def test_bundled_saes_are_tied_top_k_kept_in_half_and_read_in_full(name, reads):
    sae = load_sae(name)
    assert sae.tied and sae.encoder.dtype == torch.float32 and sae.d_in == 192
    assert 2048 <= sae.d_hidden <= 8192 and 16 <= sae.k <= 32
    told = {key: sae.about[key] for key in ("tower", "reads", "unit")}
    assert told == {"tower": "tiny", "reads": reads, "unit": True} and sae.about["recipe"]["k"] == sae.k
    with safe_open(WEIGHTS / FOLDERS[name] / "weights.safetensors", "pt") as f:
        assert {f.get_slice(key).get_dtype() for key in f.keys()} == {"F16"}


def test_codes_are_those_of_the_tower_written_out(tower):
    """On vectors of length 1, exactly the k largest scores, which are all positive here."""
    sae, scene = load_sae("tiny"), face_scenes("test", 1, seed=3)[0]
    pixels = torch.from_numpy(scene.pixels().copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        x = normalize(tower.model(pixel_values=pixels).pooler_output, dim=-1)
    scores = (x @ sae.encoder.T + sae.b_enc)[0]
    codes = picture_codes(sae, tower, [scene], progress=False)
    assert torch.allclose(codes.values[0], scores.sort(descending=True).values[: sae.k], atol=1e-4)
    assert (codes.values > 0).sum() == sae.k


@pytest.mark.parametrize("name", FOLDERS)
def test_figures_of_the_card_hold_on_other_pictures_of_the_test_split(name, found):
    kept, scores = found[name]
    held, chosen = scores.to_frame()["held out"], scores.to_frame()["auroc"]
    card = (WEIGHTS / "tiny-sae" / "README.md").read_text()
    column = 1 + list(FOLDERS).index(name)

    def stated(what):
        (row,) = [line for line in card.splitlines() if line.startswith(f"| {what}")]
        return float(re.split(r" *\| *", row)[1 + column])

    assert kept.explained_variance == pytest.approx(stated("explained variance"), abs=0.02)
    assert kept.l0 == pytest.approx(stated("L0"), abs=0.05) and kept.l0 <= load_sae(name).k
    assert held.mean() == pytest.approx(stated("best feature's AUROC"), abs=0.04)
    assert (held > stage.TOLD).mean() == pytest.approx(stated("factors with a feature") / stated("factors |"), abs=0.1)
    assert chosen.mean() > held.mean() > 0.7  # the best of thousands looks better where it was chosen


def test_a_factors_best_feature_is_scored_as_scikit_learn_scores_it(tower, found):
    table = found["tiny"][1].to_frame().set_index("factor")
    scenes = face_scenes("test", N, seed=31)
    code = picture_codes(load_sae("tiny"), tower, scenes, progress=False).feature(int(table.loc["subject: cat", "feature"]))
    expected = roc_auc_score(factor_table(scenes)["subject: cat"], code)
    assert table.loc["subject: cat", "held out"] == pytest.approx(expected)


def test_a_small_run_gives_the_same_weights_from_a_seed_and_the_folder_opens(tmp_path, tower):
    made = [vectors(tower.model, 24, tmp_path / run, seed=1) for run in ("one", "two")]
    assert made[0]["pooled"].shape == (24, 192) and made[0]["patches"].shape == (24 * PER_PICTURE, 192)
    recipe = SaeRecipe(d_hidden=64, k=4, steps=20, batch=16, tied=True)
    one, two = (
        stage.train(some["patches"], "patches", recipe, tmp_path / run) for some, run in zip(made, ("one", "two"), strict=True)
    )
    assert torch.equal(one.encoder, two.encoder) and torch.equal(one.b_dec, two.b_dec)
    opened = load_sae(tmp_path / "one" / "tiny-sae-patches")
    assert torch.equal(opened.encoder, one.encoder.half().float()) and opened.about["reads"] == "patches"


def test_vectors_on_disk_are_the_towers_and_go_on_where_they_were_cut_off(tmp_path, tower, monkeypatch):
    monkeypatch.setattr("emointerp.training.vectors._CHUNK", 4)
    whole = vectors(tower.model, 10, tmp_path / "whole")
    board = torch.from_numpy(np.load(tmp_path / "whole" / "pictures-10-0.npy")).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        pooled, patches = tower.pooled(board), tower.patches(board)
    assert torch.allclose(torch.from_numpy(whole["pooled"].copy()), pooled, atol=0.02 * float(pooled.norm(dim=1).mean()))
    kept = torch.from_numpy(whole["patches"].copy()).float().unflatten(0, (10, PER_PICTURE))
    nearest = torch.cdist(kept, patches).amin(-1)
    assert nearest.max() < 0.03 * patches.norm(dim=-1).mean()  # each is a patch of its own picture, up to bfloat16
    run = tmp_path / "cut"
    with monkeypatch.context() as cut:
        cut.setattr("emointerp.training.vectors._read", stops_at(2))
        with pytest.raises(KeyboardInterrupt):
            vectors(tower.model, 10, run)
    assert json.loads((run / "vectors-10-0.done.json").read_text())["done"] == 8
    again = vectors(tower.model, 10, run)
    assert all((again[reads] == whole[reads]).all() for reads in whole)


def test_vectors_of_another_tower_are_not_taken(tmp_path, tower):
    first = vectors(tower.model, 4, tmp_path)["pooled"].copy()
    other = copy.deepcopy(tower.model)
    other.head.probe.data += 1
    second = vectors(other, 4, tmp_path)["pooled"].copy()
    assert not np.allclose(first, second, atol=1e-2)
    assert np.array_equal(vectors(tower.model, 4, tmp_path)["pooled"], first)


def stops_at(call):
    """The reader of pictures, which a kill ends in its third call."""
    from emointerp.training.vectors import _read

    calls = iter(range(100))

    def read(*given):
        if next(calls) == call:
            raise KeyboardInterrupt
        return _read(*given)

    return read
