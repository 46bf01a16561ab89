"""`tokenctl help`: the help of a command, and the exit codes."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Column
from tokenctl.errors import TokenctlError

EXIT_CODES = {
    0: "done, also when there was nothing to do or nobody read the output",
    1: "failed",
    2: "usage: a wrong option or value, or a selector that names nothing",
    3: "partial: done, but some of what was named is unknown",
    4: "not found or not valid: all of what was named is unknown",
    5: "declined, or a confirmation is missing",
    6: "the live matches are no longer those of the plan, or more than --max",
    7: "there is a finding",
    10: "there is no database, or it is not of this release",
    11: "locked by another run",
    130: "interrupted by SIGINT (Ctrl-C)",
    143: "interrupted by SIGTERM",
}


def _topics(ctx: typer.Context, args: list[str], incomplete: str) -> list[str]:  # noqa: ARG001
    return [name for name in (*app.entries, "exit-codes") if name.startswith(incomplete)]


@command(app, "help", example="tokenctl help revoke\ntokenctl help exit-codes")
def help_(
    run: Run,
    topic: Annotated[
        list[str] | None, typer.Argument(help="A command, or exit-codes.", autocompletion=_topics)
    ] = None,
) -> None:
    """Show the help of a command, or the exit codes."""
    if topic == ["exit-codes"]:
        columns = (Column("code", right=True), Column("meaning"), Column("errors"))
        run.out.rows(_exit_codes(), columns, limit=0)
        return
    context: Any = run.context.find_root()
    for name in topic or []:
        group = context.command
        found = group.get_command(context, name) if isinstance(group, TyperGroup) else None
        if found is None:
            run.context.fail(f"No such command {name!r}.")
        context = found.make_context(name, [], parent=context, resilient_parsing=True)
    run.out.raw(context.get_help())


def _exit_codes() -> list[dict[str, Any]]:
    from tokenctl.cli.main import EXIT  # here, as main imports this module

    return [
        {
            "code": code,
            "meaning": meaning,
            "errors": [
                kind.code for kind, its in EXIT.items() if its == code and issubclass(kind, TokenctlError)
            ],
        }
        for code, meaning in EXIT_CODES.items()
    ]
