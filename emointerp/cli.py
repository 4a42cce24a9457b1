"""The command line: `emointerp tour` (the main job), `emointerp lab` (the course), `emointerp verify` (do the tools agree)."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from emointerp.errors import EmointerpError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="How a vision-language model comes to an emotion word.",
)


@app.callback()
def _commands() -> None:
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
) -> None:
    """Read pictures beside an event, measure how well the model reads, and write a report that opens offline."""
    from emointerp.tour import run

    page = run(images=image or (), event=event, model=model, out=out, force=force)
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
    folder: Annotated[Path, typer.Argument(help="Where your copies of the notebooks go; yours are never overwritten.")] = Path(
        "emointerp-course"
    ),
    browser: Annotated[bool, typer.Option(help="Open JupyterLab; --no-browser only copies and says how.")] = True,
) -> None:
    """Copy the notebooks to a folder of yours and open JupyterLab on the first."""
    from emointerp.course import copy_notebooks, open_lab

    first = copy_notebooks(folder)
    if browser:
        open_lab(first)
    else:
        print(f"Notebooks: {folder}. Open them with: jupyter lab {first}")


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
    print(f"emointerp: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
