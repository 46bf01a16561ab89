"""Issue, list and rotate; the other verbs have a module each."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tokenctl.cli import options, records, targets, times
from tokenctl.cli.confirm import read_token
from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Column, instant

# --- issue -----------------------------------------------------------------------------------

_ISSUED = [
    Column("id"),
    Column("refresh_token"),
    instant("expires_at"),
    Column("user_id"),
    Column("client"),
    Column("scope"),
    Column("access_token"),
    instant("access_expires_at"),
]


@command(
    app,
    "issue",
    example="tokenctl issue --user ada\ntokenctl issue --user ada --ttl 12h --json",
    settings=("access_ttl", "idle_ttl", "issuer", "audience"),
)
def issue(
    run: Run,
    *,
    user: Annotated[str, typer.Option("--user", metavar="NAME", help="Whose login it is.")],
    client: Annotated[
        str, typer.Option("--client", metavar="ID", help="The client of the login.")
    ] = "default",
    scope: Annotated[str, typer.Option("--scope", metavar="TEXT", help="Words, one space between.")] = "",
    ttl: Annotated[
        str | None,
        typer.Option(
            "--ttl", metavar="DURATION", help="The absolute lifetime; default: the setting refresh_ttl."
        ),
    ] = None,
) -> None:
    """Issue a refresh token: a new login. Its string is printed once, and stored nowhere."""
    run.out.expect(_ISSUED, "refresh_token")
    pair = run.service.issue(user, client_id=client, scope=scope, ttl=options.duration(ttl))
    _show_string(run, _pair_record(pair), _ISSUED)


def _pair_record(pair: Any) -> dict[str, Any]:
    return {
        "id": pair.token_id,
        "refresh_token": pair.refresh_token,
        "expires_at": pair.refresh_expires_at,
        "user_id": pair.user_id,
        "client": pair.client_id,
        "scope": pair.scope,
        "access_token": pair.access_token,
        "access_expires_at": pair.access_expires_at,
        "retried": pair.retried,
    }


def _show_string(run: Run, record: dict[str, Any], columns: list[Column]) -> None:
    """The string alone on stdout, what belongs to it on stderr; or all of it as data."""
    if run.out.format != "table" or run.out.fields:
        run.out.one(record, columns)
        return
    # The notes first: if the string cannot be written, the id of the login that it was for is known.
    run.out.note(f"{record['id']} expires {times.show_local(record['expires_at'])}")
    if record.get("retried"):
        run.out.note("its string was handed out before, and this is the same one: a retry in the grace")
    if exposed := record.get("access_exposure_until"):
        run.out.note(f"older access tokens of this login live until {times.show_local(exposed)}")
    run.out.secret(record["refresh_token"])


# --- list ------------------------------------------------------------------------------------


@command(
    app,
    "list",
    example="tokenctl list --user ada --state live\n"
    "tokenctl list --ip 203.0.113.0/24 --issued-after 6h\n"
    "tokenctl list --all --json | jq length",
)
def list_(
    run: Run,
    selected: options.Selected,
    *,
    limit: options.Limit = None,
) -> None:
    """List refresh tokens, the oldest login first."""
    selector = targets.selector(run, selected, destructive=False)
    now = run.service.now()
    rows = (records.token(row, now) for row in run.service.list(selector))

    def total() -> int:
        seen = run.service.preview(selector)
        return seen.tokens + seen.already_dead

    run.out.rows(rows, records.token_columns(now), total=total, limit=limit)


# --- rotate ----------------------------------------------------------------------------------

_ROTATED = [*_ISSUED, Column("retried")]
_REISSUED = [Column("id"), Column("refresh_token"), instant("expires_at"), instant("access_exposure_until")]


@command(
    app,
    "rotate",
    example="tokenctl rotate - < token.txt > next.txt\ntokenctl rotate rt_01a2070c17097d77944c7d0f55441a4a",
    settings=("grace", "foreign_retry", "access_ttl", "issuer", "audience"),
)
def rotate(
    run: Run,
    target: Annotated[str, targets.ONE],
    client: Annotated[
        str, typer.Option("--client", metavar="ID", help="Who presents the string.")
    ] = "default",
    scope: Annotated[
        str | None, typer.Option("--scope", metavar="TEXT", help="Narrow this access token to that.")
    ] = None,
    reason: options.Reason = None,
) -> None:
    """Rotate: a string on stdin to its successor, or a login named by id to a new string.

    The string is printed once. A spent string presented outside the grace revokes its login. Of a login
    named by id every older string stops working.
    """
    if target == "-":
        run.out.expect(_ROTATED, "refresh_token")
        pair = run.service.rotate(read_token(), client_id=client, scope=scope)
        _show_string(run, _pair_record(pair), _ROTATED)
        return
    run.out.expect(_REISSUED, "refresh_token")
    done = run.service.reissue(targets.one(target), reason=reason or "reissued")
    record = {
        "id": done.token_id,
        "refresh_token": done.refresh_token,
        "expires_at": done.refresh_expires_at,
        "access_exposure_until": done.access_exposure_until,
    }
    _show_string(run, record, _REISSUED)
