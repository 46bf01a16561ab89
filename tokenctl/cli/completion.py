"""`tokenctl completion`: the script that a shell loads, and the answers that the script asks for.

Both are Typer's. It offers them only as options that edit the user's shell files (`--install-completion`),
hence the calls into `typer.completion`. What completes is the tree of options, so no database is opened.
"""

from __future__ import annotations

import contextlib
import io
import sys
from enum import StrEnum
from typing import Annotated, Any

import typer

from tokenctl.cli.options import Run, app, command


class Shell(StrEnum):
    """The shells that there is a script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@command(
    app,
    "completion",
    example="tokenctl completion bash > ~/.local/share/bash-completion/completions/tokenctl\n"
    "tokenctl completion zsh > ~/.zfunc/_tokenctl\n"
    "tokenctl completion fish > ~/.config/fish/completions/tokenctl.fish",
)
def completion(
    run: Run, shell: Annotated[Shell, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")]
) -> None:
    """Print the script that lets a shell complete commands and options."""
    from tokenctl.cli.main import COMPLETE_VAR, PROGRAM  # here, as main imports this module

    with contextlib.redirect_stdout(io.StringIO()) as script:
        answer(app.build(), PROGRAM, COMPLETE_VAR, f"source_{shell}")
    # zsh wants its #compdef on the first line.
    run.out.raw(script.getvalue().strip())


def answer(group: Any, program: str, variable: str, instruction: str) -> int:
    """Do what the script asked for by the environment variable; returns the exit code."""
    # Typer renders the help texts with rich where it is installed: an import at each press of the key, and
    # square brackets in them would vanish as markup.
    from typer.completion import get_completion_inspect_parameters, shell_complete

    sys.modules["rich"] = None  # type: ignore[assignment] # None keeps it from being imported
    get_completion_inspect_parameters()  # registers the shells with Typer
    return shell_complete(group, {}, program, variable, instruction)
