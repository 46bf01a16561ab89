"""Commands that only the tests have, on the real tree and run by the real entry point.

`python -m tests.cli.probe ARGV…`
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from tokenctl import errors
from tokenctl.cli import confirm as ask
from tokenctl.cli.main import main
from tokenctl.cli.options import Confirm, Limit, Run, States, Users, Yes, app, command, group
from tokenctl.cli.output import Column, instant

COLUMNS = (
    Column("id"),
    Column("n", right=True),
    Column("agent", shrink=True),
    instant("at"),
    Column("more", table=False),
)
things = group(app, "thing", "Things.", example="tokenctl thing list")


@command(things, "list", example="tokenctl thing list")
def rows(run: Run, count: int = 3, agent: str = "curl", limit: Limit = None) -> None:
    """List things."""
    run.out.rows(
        ({"id": f"rt_{n}", "n": n, "agent": agent, "at": 0, "more": None} for n in range(count)),
        COLUMNS,
        total=lambda: count,
        limit=limit,
    )


@command(things, "options", example="tokenctl thing options", settings=("grace", "access_ttl"))
def options(run: Run, user: Users = None, state: States = None) -> None:
    """Show what arrived."""
    run.out.note("a note")
    for name, value in {
        "grace": run.settings.grace,
        "database": run.settings.database,
        "actor": run.actor,
        "user": user,
        "state": state,
    }.items():
        run.out.raw(f"{name}={value}")


@command(app, "boom", example="tokenctl boom KeyError")
def boom(run: Run, kind: str, message: Annotated[list[str] | None, typer.Argument()] = None) -> int | None:
    """Raise."""
    secret = "local variable"  # noqa: F841 - must not be in a traceback
    text = " ".join(message or [])
    if kind.isdigit():
        return int(kind)
    if kind == "Recursion":
        return boom(run, kind, message)
    if kind == "Pipe":
        with subprocess.Popen(["true"], stdin=subprocess.PIPE) as child:
            child.wait()
            assert child.stdin is not None
            child.stdin.write(b"x")
            child.stdin.flush()
    if kind == "TokenRefused":
        raise errors.TokenRefused("reuse_detected", token_id="rt_1")
    found = getattr(errors, kind, None) or {"KeyError": KeyError, "MemoryError": MemoryError}.get(kind)
    if found is None:
        typer.confirm("really", abort=True, err=True)
        return None
    raise found(text)


@command(app, "kill", example="tokenctl kill 3 2")
def kill(
    run: Run, tokens: int, users: int, everything: bool = False, yes: Yes = False, number: Confirm = None
) -> None:
    """Confirm."""
    what = f"revoke {tokens} tokens of {users} users"
    ask.confirm(what, tokens=tokens, users=users, everything=everything, yes=yes, number=number)
    run.out.raw("killed")


@command(app, "bundle", example="tokenctl bundle -o x.tgz")
def bundle(run: Run, output: Annotated[Path, typer.Option("--output", "-o")]) -> None:
    """Have an -o of its own."""
    run.out.raw(str(output))


@command(app, "password", example="tokenctl password")
def password(
    run: Run, stdin: bool = False, file: Annotated[Path | None, typer.Option("--file")] = None
) -> None:
    """Read a password."""
    run.out.raw(repr(ask.read_secret("Password", from_stdin=stdin, from_file=file, repeat=True)))


@command(app, "token", example="tokenctl token < file")
def token(run: Run) -> None:
    """Read a token."""
    run.out.raw(repr(ask.read_token()))


@command(app, "hang", example="tokenctl hang")
def hang(run: Run, seconds: float = 30) -> None:
    """Wait, with something to roll back."""
    with run.out.progress("hanging", 10) as advance:
        try:
            sys.stderr.write("ready\n")
            sys.stderr.flush()
            for _ in range(10):
                time.sleep(seconds / 10)
                advance(1)
        except Exception:  # noqa: BLE001 - shows that a stop is none
            sys.stderr.write("swallowed\n")
        finally:
            sys.stderr.write("rolled back\n")


if __name__ == "__main__":
    sys.exit(main())
