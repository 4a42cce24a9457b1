"""The command line's page: every command with its options, as the command line itself has them."""

from collections.abc import Iterator
from typing import Any

import typer

from emointerp.cli import app


def page() -> str:
    """All commands, in Markdown."""
    group = typer.main.get_command(app)
    lines = ["# The command line", "", "What `emointerp COMMAND --help` says.", ""]
    for name, command in group.commands.items():
        lines += [f"## emointerp {name}", "", command.help or "", "", *table(command.params)]
    return "\n".join(lines)


def table(parameters: list[Any]) -> Iterator[str]:
    """A row an argument or option: how it is written, its default, what it is for."""
    yield from ("| option | default | |", "|---|---|---|")
    for parameter in parameters:
        names = " ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts) if name.startswith("-"))
        default = (
            "" if parameter.default in (None, False, "", ()) else f"`{getattr(parameter.default, 'value', parameter.default)}`"
        )
        said = (parameter.help or "").replace("|", "\\|")
        yield f"| {names or f'`{parameter.name.upper()}`'} | {default} | {said} |"
    yield ""
