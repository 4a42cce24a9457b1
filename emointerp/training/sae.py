"""Stage 3: sparse autoencoders over the finished tower, one on its pooled vectors and one on its patches; and their card.

Tied, top-k, on vectors of length 1, as the public release reads SigLIP's.
"""

from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import normalize

from emointerp.models import Tower
from emointerp.sae import SAE, FactorScores, Quality, SaeRecipe, best_features, picture_codes, quality, save_sae, train_sae
from emointerp.sae.meaning import by_picture, varying, yes_or_no
from emointerp.sae.reading import inputs
from emointerp.superposition import factor_table
from emointerp.world import face_scenes

NAMES = {"pooled": "tiny-sae", "patches": "tiny-sae-patches"}
TOLD = 0.9  # AUROC from which a feature counts as telling a factor


def train(rows: np.ndarray, reads: str, recipe: SaeRecipe, folder: Path) -> SAE:
    """Train, or continue, the SAE on "pooled" vectors or on "patches"; it goes to `folder/NAMES[reads]` in float16."""
    about = {"tower": "tiny", "reads": reads, "unit": True}
    data = normalize(torch.from_numpy(np.array(rows)).float(), dim=-1)
    sae = train_sae(data, recipe, folder, NAMES[reads], every=500, about=about)
    save_sae(sae.to(torch.float16), folder / NAMES[reads])
    return sae


@torch.no_grad()
def measured(sae: SAE, tower: Tower, n: int = 1000, seed: int = 30) -> tuple[Quality, FactorScores]:
    """What the SAE keeps of `n` pictures of the test split, and the best feature of each factor.

    Features are chosen on as many pictures of the selection split, and `held out` is read on the test split. In neither do things
    and weather go with an emotion. A patch SAE's feature fires on a picture as much as on its strongest patch.
    """
    chosen_on, test = (face_scenes(split, n, seed) for split in ("selection", "test"))
    vectors = torch.cat([inputs(sae, tower, tower.pixels(test[i : i + 64])) for i in range(0, n, 64)])
    codes = [by_picture(some)[0] for some in (picture_codes(sae, tower, chosen_on, progress=False), sae.encode(vectors))]
    drawn = [factor_table(scenes) for scenes in (chosen_on, test)]
    factors = [yes_or_no(table, like=drawn[0]) for table in drawn]
    both = varying(factors[1])
    return quality(sae, vectors.flatten(0, -2)), best_features(codes[0], factors[0][both], (codes[1], factors[1]))


def card(found: dict[str, tuple[SAE, Quality, FactorScores]]) -> str:
    """The card of the bundled SAEs, from the names that `load_sae` knows them by and what was measured of each."""
    names = list(found)
    rows = [_figures(*found[name]) for name in names]
    lines = [f"| | {' | '.join(f'`{name}`' for name in names)} |", "|---" * (1 + len(names)) + "|"]
    lines += [f"| {what} | {' | '.join(row[what] for row in rows)} |" for what in rows[0]]
    told = {name: scores.to_frame().set_index("factor") for name, (_, _, scores) in found.items()}
    best = [f"| factor | {' | '.join(f'`{name}`: feature, AUROC' for name in names)} |", "|---" * (1 + len(names)) + "|"]
    for factor in told[names[0]].sort_values("held out", ascending=False).index:
        cells = [f"{int(told[name].loc[factor, 'feature'])}, {told[name].loc[factor, 'held out']:.2f}" for name in names]
        best.append(f"| {factor} | {' | '.join(cells)} |")
    text = (Path(__file__).parent / "sae_card.md").read_text()
    return text.replace("{figures}", "\n".join(lines)).replace("{factors}", "\n".join(best))


def _figures(sae: SAE, kept: Quality, scores: FactorScores) -> dict[str, str]:
    table = scores.to_frame()
    return {
        "features, at once": f"{sae.d_hidden}, {sae.k}",
        "trained on": f"{sae.about['vectors']:,} vectors, {sae.about['recipe']['steps']:,} steps of {sae.about['recipe']['batch']}",
        "explained variance": f"{kept.explained_variance:.3f}",
        "L0, the mean number that fires": f"{kept.l0:.2f}",
        "dead: share of features that never fire": f"{kept.dead:.3f} (on {kept.n:,} vectors)",
        "factors": f"{len(table)}",
        "best feature's AUROC, mean over factors": f"{table['held out'].mean():.3f}",
        "the same where the features were chosen": f"{table['auroc'].mean():.3f}",
        f"factors with a feature above {TOLD}": f"{(table['held out'] > TOLD).sum()}",
    }
