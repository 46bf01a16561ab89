"""How a command line names refresh tokens: ids, `-` for stdin, selectors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import typer

from tokenctl.cli import options, times
from tokenctl.cli.confirm import read_lines, read_token
from tokenctl.cli.options import Run
from tokenctl.errors import EmptySelector, InvalidInput

if TYPE_CHECKING:
    from tokenctl.core.selector import Selector

_STRING_PREFIX = "tkr1_"
ONE = typer.Argument(metavar="ID|-", help="An id, rt_…; or - for a token string on stdin.")


def one(target: str) -> str:
    """An id, or the string that stdin has for `-`. A whole string in argv is refused."""
    if target == "-":
        return read_token()
    if target.startswith(_STRING_PREFIX):
        raise InvalidInput(
            "a whole token string was given as an argument, where shell history and `ps` show it",
            hint="give - and the string on stdin, and revoke this one: it has been seen",
        )
    return target


def selector(run: Run, selected: options.Selected, *, destructive: bool) -> Selector:
    """The selector that the flags make; `destructive` refuses a time without a zone.

    Raises EmptySelector when they name nothing, InvalidInput.
    """
    from datetime import timedelta

    from tokenctl import Selector, SelectState

    given = {"issued_after": selected.issued_after, "issued_before": selected.issued_before}
    texts = {name: text for name, text in given.items() if text is not None}
    # What names no time needs no database to be refused.
    now = run.service.now() if texts else 0
    instants = {
        name: times.parse_instant(text, now=now, destructive=destructive) for name, text in texts.items()
    }
    idle = options.duration(selected.idle)
    chosen = Selector(
        users=tuple(selected.user or ()),
        clients=tuple(selected.client or ()),
        states=tuple(SelectState(each.value) for each in selected.state or ()),
        ips=tuple(selected.ip or ()),
        user_agents=tuple(selected.user_agent or ()),
        devices=tuple(selected.device or ()),
        issued_after=instants.get("issued_after"),
        issued_before=instants.get("issued_before"),
        idle=None if idle is None else idle // timedelta(microseconds=1),
        everything=selected.everything,
    )
    return chosen.require_some().require_valid()


def several(run: Run, given: list[str]) -> list[str]:
    """The ids and strings that were named, those on stdin too."""
    if any(each.startswith(_STRING_PREFIX) for each in given):
        run.out.warn("a whole token string in the arguments stays in the shell's history; next time give -")
    if "-" not in given:
        return given
    if sys.stdin.isatty():
        run.out.note("ids or strings, one a line; Ctrl-D ends")
    read = list(_stdin_lines(sys.stdin.buffer))
    targets = [each for each in given if each != "-"] + read
    if not targets:
        raise EmptySelector(
            "stdin names no refresh token, so nothing was done", hint="ids or strings, a line each"
        )
    return targets


def _stdin_lines(stream: Any) -> Iterator[str]:
    """A target a line; what is too long or no text stays in, to be counted as malformed."""
    for line in read_lines(stream):
        text = "(too long)" if line is None else line.decode("utf-8", "replace").strip()
        if text:
            yield text
