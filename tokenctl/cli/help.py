"""`tokenctl help`: the help of a command, and the exit codes."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from tokenctl import errors
from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Column

EXIT_CODES = {
    0: "done, also when there was nothing to do or nobody read the output",
    1: "failed",
    2: "usage: a wrong option or value, or a selector that names nothing",
    3: "partial: done, but some of what was named is unknown",
    4: "not found or not valid: all of what was named is unknown",
    5: "declined, or a confirmation is missing",
    6: "the live matches are no longer those of the plan, or more than --max",
    7: "there is a finding",
    10: "there is no database, it cannot be reached, or it is not of this release",
    11: "locked: another run or another program has what this needs",
    130: "interrupted by SIGINT (Ctrl-C)",
    143: "interrupted by SIGTERM",
}


def _topics(ctx: typer.Context, args: list[str], incomplete: str) -> list[str]:  # noqa: ARG001 - typer's signature
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
    from tokenctl.cli.main import exit_code  # here, as main imports this module

    of_code: dict[int, list[str]] = {code: [] for code in EXIT_CODES}
    for name in errors.__all__:
        kind = getattr(errors, name)
        if kind is not errors.TokenctlError:
            of_code[exit_code(kind)].append(kind.code)
    of_code[1] += ["internal", "io.failed"]
    of_code[2].append("usage")
    of_code[143].append(errors.Interrupted.code)
    return [
        {"code": code, "meaning": meaning, "errors": sorted(set(of_code[code]))}
        for code, meaning in EXIT_CODES.items()
    ]
