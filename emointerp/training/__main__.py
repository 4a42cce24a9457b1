"""`python -m emointerp.training`: make the bundled weights again; every stage continues where it was cut off."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from transformers import PreTrainedTokenizerFast, SiglipVisionModel

from emointerp.errors import OutputError
from emointerp.models.loading import SIDECAR, WEIGHTS, load
from emointerp.sae import SaeRecipe
from emointerp.training.loop import Recipe

PICTURES = 120_000
TOWER = Recipe(steps=31_000, batch=32, rate=7e-4, warmup=400)
TEXT = Recipe(steps=600, batch=192, rate=1e-3, warmup=60)
LLAVA = Recipe(steps=6_000, batch=32, rate=1.5e-3, warmup=200)
GENTLY = {"revival": "auxiliary", "dead_after": 100_000, "tied": True, "batch": 512}
SAES = {
    "pooled": SaeRecipe(d_hidden=2048, k=32, steps=5_000, **GENTLY),
    "patches": SaeRecipe(d_hidden=4096, k=16, steps=5_000, **GENTLY),
}
FINISHED = {"tiny": "llava", "tiny-text": "text", "tiny-sae": "sae", "tiny-sae-patches": "sae"}  # and the stages that write them
app = typer.Typer(help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)
Folder = Annotated[Path, typer.Option(help="Where pictures, checkpoints and weights are kept.")]


def _tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    from emointerp.training.tokenizer import train_tokenizer
    from emointerp.world.language import vocabulary_sentences

    if not (folder / "tokenizer").exists():
        part = folder / ".part-tokenizer"  # several files, which appear together
        train_tokenizer(vocabulary_sentences()).save_pretrained(part)
        part.rename(folder / "tokenizer")
    return PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")


@app.command()
def tower(folder: Folder, seed: int = 0, steps: int = TOWER.steps, n: int = PICTURES) -> None:
    """Stage 1: the vision tower learns what captions say of pictures."""
    from emointerp.training.dual_encoder import train_tower

    train_tower(folder, n, replace(TOWER, seed=seed, steps=steps))


@app.command()
def text(folder: Folder, seed: int = 0, steps: int = TEXT.steps, n: int = PICTURES) -> None:
    """Stage 1, second step: the text encoder is tuned to the tower; writes FOLDER/siglip."""
    from emointerp.training.dual_encoder import train_text

    vision = SiglipVisionModel.from_pretrained(folder / "siglip-vision")
    train_text(folder, _tokenizer(folder), vision, n, replace(TEXT, seed=seed, steps=steps))


@app.command()
def llava(folder: Folder, seed: int = 0, steps: int = LLAVA.steps, n: int = PICTURES) -> None:
    """Stage 2: stories and answers; writes the finished model to FOLDER/tiny."""
    from emointerp.training.llava import new_processor, train_llava
    from emointerp.world.language import story_prompt

    vision, tokenizer = SiglipVisionModel.from_pretrained(folder / "siglip-vision"), _tokenizer(folder)
    model = train_llava(folder, tokenizer, vision, n, replace(LLAVA, seed=seed, steps=steps))
    model.to(torch.float16).save_pretrained(folder / "tiny")
    new_processor(tokenizer).save_pretrained(folder / "tiny")
    (folder / "tiny" / SIDECAR).write_text(json.dumps({"instruction": story_prompt("").strip()}) + "\n")


@app.command()
def familiarity(folder: Folder, seed: int = 0, n: int = 4_000) -> None:
    """Stage 4: statistics of the training pictures' embeddings, to tell the familiar from the strange."""
    from emointerp.models.familiarity import embeddings, fit
    from emointerp.training.data import examples
    from emointerp.world.splits import TRAIN_INTENSITY, sample

    vlm = load(folder / "tiny", dtype="float32")
    train = embeddings(vlm, [e.scene for e in examples(n, seed)])
    held_out = sample("tuning", 1_000, seed=21, intensity=TRAIN_INTENSITY)
    fit(train, embeddings(vlm, [e.scene for e in held_out]), folder / "tiny")


@app.command()
def sae(folder: Folder, seed: int = 0, n: int = PICTURES) -> None:
    """Stage 3: sparse autoencoders over the finished tower; writes FOLDER/tiny-sae and FOLDER/tiny-sae-patches."""
    from emointerp.training import sae as saes
    from emointerp.training.vectors import vectors

    made = vectors(SiglipVisionModel.from_pretrained(folder / "siglip-vision"), n, folder, seed)
    for reads, recipe in SAES.items():
        saes.train(made[reads], reads, replace(recipe, seed=seed), folder)


@app.command()
def card(
    model: str = "tiny", each: int = 60, out: Annotated[Path | None, typer.Option(help="Folder for card.json.")] = None
) -> None:
    """Measure the model card's figures on the test split and print them."""
    from emointerp.training import card as cards

    figures = cards.measured(load(model, dtype="float32"), each)
    print(cards.as_text(figures))
    if out is not None:
        cards.write(figures, out)


@app.command()
def sae_card(out: Annotated[Path | None, typer.Option(help="Folder for README.md.")] = None) -> None:
    """Measure the figures of the bundled autoencoders on the test split and print their card."""
    from emointerp.models import load_tower
    from emointerp.sae import load_sae
    from emointerp.training import sae as saes

    tower, bundled = load_tower("tiny"), {name: load_sae(name) for name in ("tiny", "tiny-patches")}
    text = saes.card({name: (sae, *saes.measured(sae, tower)) for name, sae in bundled.items()})
    print(text)
    if out is not None:
        (out / "README.md").write_text(text)


@app.command()
def install(folder: Folder) -> None:
    """Copy the finished weights into the package."""
    if missing := [name for name in FINISHED if not (folder / name).exists()]:
        stages = ", ".join(f"`{FINISHED[name]}`" for name in missing)
        raise OutputError(f"{folder} lacks {', '.join(missing)}; run {stages} first.")
    for name in FINISHED:
        shutil.copytree(folder / name, WEIGHTS / name, dirs_exist_ok=True)


if __name__ == "__main__":
    app()
