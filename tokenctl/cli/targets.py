"""How a command line names refresh tokens: ids, `-` for stdin, files, selectors."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, BinaryIO

import typer

from tokenctl.cli import options, times
from tokenctl.cli.confirm import open_file, read_lines, read_token
from tokenctl.cli.options import Run
from tokenctl.errors import EmptySelector, InvalidInput, TokenNotFound

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

    Raises EmptySelector when they name nothing, InvalidInput, TokenNotFound.
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
        token_ids=() if selected.from_file is None else _named_in(run, selected.from_file),
        everything=selected.everything,
    )
    return chosen.require_some().require_valid()


def _named_in(run: Run, file: str) -> tuple[str, ...]:
    """The ids of the logins that the lines of a file name."""
    with lines(run, [], file) as named, run.service.read_targets(named) as targets:
        found = tuple(dict.fromkeys(run.service.named(targets)))
        if not found:
            # Without any id the other selectors would mean all that they match.
            raise TokenNotFound(
                f"none of the {targets.count:,} lines names a login that is there",
                hint="check --database, and the lines with: tokenctl scan FILE" if targets.count else "",
            )
        run.out.note(f"{targets.count:,} lines name {len(found):,} logins that are there")
        return found


@contextmanager
def lines(
    run: Run, given: list[str], file: str | None, *, audit: str | None = None
) -> Iterator[Iterator[str | None]]:
    """The ids and strings that were named as arguments, then those on stdin for `-`; or those in a file.

    `audit` is an export of the audit log: it names what was revoked. A line each; None for one that names
    nothing. What is too long or no text stays in, to be counted as malformed. Raises InvalidInput, and at its
    end EmptySelector for what names nothing at all.
    """
    if any(each.startswith(_STRING_PREFIX) for each in given):
        run.out.warn("a whole token string in the arguments stays in the shell's history; next time give -")
    if audit is not None:
        with nullcontext(sys.stdin.buffer) if audit == "-" else open_file(audit) as stream:
            named = run.service.audit.revoked_in(stream)
            if named.doubt:
                run.out.warn(named.doubt)
            if named.others:
                told = ", ".join(f"{number:,} {type_}" for type_, number in sorted(named.others.items()))
                run.out.warn(f"no revocations, so not done again: {told}; look for them in the export")
            yield named
        return
    if file is not None and file != "-":
        with open_file(file) as stream:
            yield _demand_some(given, stream, file)
        return
    if file is None and "-" not in given:
        yield iter(given)
        return
    if sys.stdin.isatty():
        run.out.note("ids or strings, one a line; Ctrl-D ends")
    yield _demand_some([each for each in given if each != "-"], sys.stdin.buffer, "stdin")


def _demand_some(given: list[str], stream: BinaryIO, name: str) -> Iterator[str | None]:
    yield from given
    some = bool(given)
    for line in read_lines(stream):
        text = "(too long)" if line is None else line.decode("utf-8", "replace").strip()
        some = some or bool(text)
        yield text or None
    if not some:
        raise EmptySelector(
            f"{name} names no refresh token, so nothing was done", hint="ids or strings, a line each"
        )
