"""The command line: `tour` (the main job), `lab` (the course), `verify` (do tools agree), `evaluate` (what helps), and others."""

import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emointerp.errors import EmointerpError, InputError

if TYPE_CHECKING:
    from emointerp.evaluation import Method
    from emointerp.models import VLM
    from emointerp.reproduce.material import Material

BUNDLED, L_EMO = "tiny", 3  # the model that comes with the package, and its emotional layer (notebook 04 finds it)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How a vision-language model comes to an emotion word.",
)


def _version(asked: bool) -> bool:
    if asked:
        from emointerp import __version__

        print(__version__)
        raise typer.Exit
    return asked


@app.callback()
def _commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """How a vision-language model comes to an emotion word, and changes its mind."""


@app.command()
def tour(
    image: Annotated[list[Path] | None, typer.Option(help="A picture of yours; may be given several times.")] = None,
    event: Annotated[str | None, typer.Option(help="What happened, in a sentence.")] = None,
    model: Annotated[str, typer.Option(help="'tiny' (bundled), a local folder, or a hub id.")] = "tiny",
    out: Annotated[
        Path | None, typer.Option(help="Folder for index.html and results.json; by default a new emointerp-tour.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the report in a folder that exists.")] = False,
    size: Annotated[
        str, typer.Option(help="How much is measured: full, quick, or auto, which keeps a slow model to about 15 minutes.")
    ] = "auto",
    device: Annotated[str | None, typer.Option(help="For example cuda.")] = None,
    dtype: Annotated[str, typer.Option(help="For example bfloat16.")] = "auto",
) -> None:
    """Read pictures beside an event, measure how well the model reads, and write a report that opens offline."""
    from emointerp.tour import run

    page = run(images=image or (), event=event, model=model, out=out, force=force, size=size, device=device, dtype=dtype)
    print(f"Report: {page}")


@app.command()
def verify(
    model: Annotated[str, typer.Argument(help="'tiny' (bundled), a local folder, or a hub id.")] = "tiny",
    device: Annotated[str | None, typer.Option(help="For example cuda.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 shows most.")] = "auto",
) -> None:
    """Check that nnsight, sweeps, TransformerLens and plain hooks agree on a model."""
    from emointerp.models import load
    from emointerp.tracing import verify as verified

    found = verified(load(model, device=device, dtype=dtype))
    print(found)
    raise typer.Exit(0 if found.agrees else 1)


@app.command()
def lab(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Where your copies of the notebooks go; yours are never overwritten. By default emointerp-course, "
            "with --solutions emointerp-course-solutions."
        ),
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open JupyterLab; --no-browser only copies and says how.")] = True,
    solutions: Annotated[bool, typer.Option("--solutions", help="The teacher's copy: every exercise holds its solution.")] = False,
) -> None:
    """Copy the notebooks to a folder of yours and open JupyterLab on the first."""
    from emointerp.course import copy_notebooks, open_lab

    folder = folder or Path("emointerp-course-solutions" if solutions else "emointerp-course")
    first = copy_notebooks(folder, solutions)
    if browser:
        open_lab(first)
    else:
        print(f"Notebooks: {folder}. Open them with: jupyter lab {first}")


class Benchmark(StrEnum):
    """What `evaluate` can run."""

    world = "world"
    mer_unibench = "mer-unibench"
    emotic = "emotic"


@app.command()
def evaluate(
    benchmark: Annotated[
        Benchmark, typer.Option(help="The drawn world, offline; or a copy of MER-UniBench or EMOTIC.")
    ] = Benchmark.world,
    data: Annotated[Path | None, typer.Option(help="Folder of your copy of MER-UniBench or EMOTIC.")] = None,
    model: Annotated[str, typer.Option(help="'tiny' (bundled), a local folder, or a hub id.")] = "tiny",
    out: Annotated[Path | None, typer.Option(help="Folder for answers and tables; a run that was stopped goes on there.")] = None,
    n: Annotated[int | None, typer.Option(help="Items of each set; by default 120 of the world, else all.")] = None,
    seeds: Annotated[list[int] | None, typer.Option(help="Of sampled answers, may be given several times; and of frames.")] = None,
    temperature: Annotated[float, typer.Option(help="0: greedy answers; above it sampled ones.")] = 0.0,
    method: Annotated[list[str] | None, typer.Option(help="A method; may be given several times. By default all.")] = None,
    wheels: Annotated[Path | None, typer.Option(help="Folder of MER-UniBench's wheel files; by default our own wheels.")] = None,
    veena: Annotated[bool, typer.Option("--veena", help="Fit VEENA and its rivals, and ask all of them and the controls.")] = False,
    pairs: Annotated[
        Path | None,
        typer.Option(help="With --veena: a table of pairs, or a folder with pairs.csv, to fit on; by default the drawn world's."),
    ] = None,
    l_emo: Annotated[
        int | None,
        typer.Option(
            help="With --veena: the layer that divides its heads; by default 3 for 'tiny', else found first, which takes long."
        ),
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out what lacks its video, transcript or picture.")
    ] = False,
    tower: Annotated[
        str | None,
        typer.Option(help="EMOTIC: whose vision tower, 'tiny' (bundled), a local folder, or a hub id of a VLM, SigLIP or CLIP."),
    ] = None,
    sae: Annotated[
        str | None,
        typer.Option(help="EMOTIC: an SAE of that tower, 'tiny' (bundled), a folder, the release's .pt file, or 'none'."),
    ] = None,
    view: Annotated[str | None, typer.Option(help="EMOTIC: 'context', the whole picture, or 'body', the person.")] = None,
    device: Annotated[str | None, typer.Option(help="For example cuda.")] = None,
    dtype: Annotated[str, typer.Option(help="For example bfloat16.")] = "auto",
) -> None:
    """Ask a model with and without each method, score the answers, and say what each gains and costs; --veena fits some first.

    With --pairs the fit is on pairs of yours, read and parted as `reproduce --pairs` does; without --data both sides of their test
    part are asked, and four sets of the drawn world.

    With --benchmark emotic: fit emotion directions on EMOTIC's train split, and rank the pictures of its test split.
    """
    world, seeds = benchmark is Benchmark.world, seeds or [0]
    if (data is None) != world:
        raise InputError(
            "--data goes with --benchmark mer-unibench, and is needed there (emotic too); the world brings its own items."
        )
    if len(seeds) > 1 and not world:
        raise InputError(f"A copy on disk takes one seed, which draws frames or rows; {len(seeds)} came.")
    if data and benchmark is Benchmark.emotic:
        others = {"--method": method, "--veena": veena, "--pairs": pairs, "--l-emo": l_emo is not None, "--wheels": wheels}
        others |= {"--temperature": temperature, "--model": model != "tiny", "--dtype": dtype != "auto"}
        if given := [name for name, there in others.items() if there]:
            raise InputError(f"EMOTIC is ranked, not answered, by a tower in float32: {', '.join(given)} cannot be; use --tower.")
        options = {"view": view or "context", "n": n, "seed": seeds[0], "skip_missing": skip_missing}
        return _emotic(tower or "tiny", sae, device, data, out or Path("emointerp-emotic"), options)
    if tower or sae or view:
        raise InputError("--tower, --sae and --view go with --benchmark emotic.")
    if veena and method:
        raise InputError("--veena fits its methods and asks all of them: give it without --method.")
    if given := [name for name, value in (("--l-emo", l_emo), ("--pairs", pairs)) if value is not None and not veena]:
        raise InputError(f"{given[0]} goes with --veena, whose {'heads it divides' if l_emo is not None else 'fit it is for'}.")
    from emointerp.emotions import read_mer_unibench_wheels
    from emointerp.evaluation.benchmarks import run_mer_unibench, run_world, standard, write_table, write_tables
    from emointerp.evaluation.mer_unibench import folders
    from emointerp.evaluation.tables import NONE
    from emointerp.models import load

    if data:
        folders(data)  # refuses, before a model is loaded, what holds no set
    material = None if pairs is None else _material(pairs)
    methods, folder = standard(method or ()), out or Path(f"emointerp-{benchmark.value}")
    vlm = load(model, device=device, dtype=dtype)
    if world:
        options = {"n": 120 if n is None else n, "seeds": seeds, "temperature": temperature} | _own(material)
        ask, write = partial(run_world, vlm, folder=folder, **options), write_tables
    else:
        options = {"wheels": read_mer_unibench_wheels(wheels) if wheels else None, "skip_missing": skip_missing}
        options |= {"n": n, "seed": seeds[0], "temperature": temperature}
        ask, write = partial(run_mer_unibench, vlm, data=data, folder=folder, **options), write_table
    if veena:
        ask(standard([NONE]))  # what is refused is refused before the fit
        methods = _fitted(vlm, material, l_emo, known=model == BUNDLED, oracles=world)
    print(f"{write(ask(methods), folder)}\n\nKept in: {folder}")


def _material(pairs: Path) -> "Material":
    """Pairs of one's own in four parts."""
    from emointerp.reproduce.material import from_table

    return from_table(pairs)


def _own(material: "Material | None") -> dict[str, Any]:
    """What is asked beside pairs of one's own: both sides of their test part, and some sets of the drawn world."""
    from emointerp.evaluation import pair_items
    from emointerp.evaluation.items import CONFLICT, NEUTRALS, QUESTIONS, WORLD

    if material is None:
        return {}
    return {"own": pair_items(material.of("test")), "sets": (WORLD, CONFLICT, NEUTRALS, QUESTIONS)}


def _fitted(vlm: "VLM", material: "Material | None", l_emo: int | None, known: bool, oracles: bool) -> "list[Method]":
    """VEENA, its rivals and controls, fitted on pairs of one's own or of the drawn world.

    l_emo is that of the bundled model where it is `known`, else found. A benchmark's labels are of another form, so that a method
    that sees them is none there: without `oracles` these are left out.
    """
    from emointerp.evaluation import contest, emotional_layer

    parts = {}
    if material is not None:
        from emointerp.reproduce.sizes import FULL

        counts = ", ".join(f"{role} {n}" for role, n in material.counts.items())
        print("\n".join([f"Fitted on pairs of {material.source}: {counts}.", *material.said, *material.warned]))
        parts = {role: material.of(role, FULL.pairs[role]) for role in ("direction", "selection", "tuning")}
    if l_emo is None:
        l_emo = L_EMO if known else emotional_layer(vlm, parts.get("direction"), parts.get("selection"))
        print(f"l_emo is {l_emo}{'' if known else ', found on the selection pairs'}.")
    return [one for one in contest(vlm, l_emo, **parts) if oracles or not one.oracle]


def _emotic(tower: str, sae: str | None, device: str | None, data: Path, folder: Path, options: dict[str, Any]) -> None:
    """Rank EMOTIC's pictures; the bundled tower brings its SAE, another is ranked without one unless one is named."""
    from emointerp.evaluation.benchmarks import run_emotic, write_emotic
    from emointerp.evaluation.emotic import form_of
    from emointerp.models import load_tower
    from emointerp.sae import load_sae

    form_of(data)  # refuses, before a tower is loaded, what holds no copy
    sae = sae or ("tiny" if tower == "tiny" else "none")
    coder = None if sae == "none" else load_sae(sae)
    found = run_emotic(load_tower(tower, **({"device": device} if device else {})), coder, data, folder, **options)
    print(f"{write_emotic(*found, folder)}\n\nKept in: {folder}")


@app.command()
def plan(
    model: Annotated[
        str, typer.Argument(help="'tiny' (bundled), a well-known id, a local folder, or an id that the hub's cache holds.")
    ] = "tiny",
    gpu: Annotated[
        str | None,
        typer.Option(help="A card (T4, A100 80 GB), a size of memory (24GB), or cpu; by default this machine's own."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Say before a model is fetched what fits on a machine and how long it takes; computed, not measured."""
    import json

    from emointerp.models import planned

    found = planned(model, gpu)
    print(json.dumps(found.to_dict(), indent=1) if as_json else found)


class Engine(StrEnum):
    """What `index` reads pictures with."""

    local = "local"
    ray = "ray"


@app.command()
def index(
    folder: Annotated[Path, typer.Argument(help="Your pictures; folders in it are looked through too.")],
    out: Annotated[Path, typer.Option(help="Folder for the gallery; a run that was stopped goes on there.")] = Path(
        "emointerp-gallery"
    ),
    tower: Annotated[
        str, typer.Option(help="Whose vision tower: 'tiny' (bundled), a local folder, or a hub id of a VLM, SigLIP or CLIP.")
    ] = "tiny",
    sae: Annotated[
        str, typer.Option(help="An SAE of that tower: 'tiny' (bundled), a folder or the public release's .pt file.")
    ] = "tiny",
    batch: Annotated[int, typer.Option(help="Pictures that are read at a time.")] = 64,
    engine: Annotated[Engine, typer.Option(help="ray: on all machines of a Ray cluster.")] = Engine.local,
    device: Annotated[str | None, typer.Option(help="For example cuda.")] = None,
    forget: Annotated[bool, typer.Option("--forget", help="Leave out pictures that are no longer in the folder.")] = False,
) -> None:
    """Read a collection of pictures into a gallery, which finds them by feature, by likeness and by emotion."""
    from emointerp.gallery import index as indexed

    print(indexed(out, folder, tower, sae, batch=batch, engine=engine.value, device=device, forget=forget))


class Paper(StrEnum):
    """What `reproduce` knows."""

    veena = "veena"


@app.command()
def reproduce(
    paper: Annotated[Paper, typer.Argument(help="VEENA: arXiv 2605.21980.")],
    model: Annotated[str, typer.Option(help="'tiny' (bundled), a local folder, or a hub id.")] = "tiny",
    pairs: Annotated[
        Path | None, typer.Option(help="A table of pairs, or a folder with pairs.csv; by default pairs of the drawn world.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of your copy of MER-UniBench; by default the drawn world's sets.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for page and steps; a run that was stopped goes on there.")] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="A step, with what it stands on; may be given several times. By default all.")
    ] = None,
    size: Annotated[str, typer.Option(help="How much is measured: full or quick.")] = "full",
    plan: Annotated[
        bool, typer.Option("--plan", help="Only say what would be done with these pairs and steps, and how long it takes, about.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Do again what no longer stands in a folder of another model, pairs or size.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="For example cuda.")] = None,
    dtype: Annotated[str, typer.Option(help="For example bfloat16.")] = "auto",
) -> None:
    """Do all of a paper's analyses, step by step, and write a page with what a digest of it reports beside what was found."""
    from emointerp import reproduce

    out = out or Path(f"emointerp-{paper.value}")
    if plan:
        print(reproduce.plan_text(model, pairs, data, out, size=size, only=only or ()))
    else:
        page = reproduce.run(model, pairs, data, out, size=size, only=only or (), force=force, device=device, dtype=dtype)
        print(f"Page: {page}")


def main() -> None:
    """Run a command; errors of ours become one line and their exit code, Ctrl-C becomes 130."""
    try:
        code = app(standalone_mode=False)
        sys.exit(_said("Stopped.", 130) if code == 130 else code or 0)  # typer turns Ctrl-C into the code 130
    except EmointerpError as error:
        sys.exit(_said(str(error), error.exit_code))
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(_said("Stopped.", 130))
    except Exception as error:
        if hasattr(error, "show") and hasattr(error, "exit_code"):  # click's own errors of usage
            error.show()
            sys.exit(error.exit_code)
        raise


def _said(message: str, code: int) -> int:
    """Print a message without what a terminal would obey, and give the exit code back."""
    message = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in message)
    print(f"emointerp: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
