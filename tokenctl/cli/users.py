"""The commands on users and clients."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenctl.cli import options, records, times
from tokenctl.cli.confirm import confirm, read_secret
from tokenctl.cli.options import Run, app, command, group
from tokenctl.cli.output import Column, amount, instant
from tokenctl.errors import InvalidInput

if TYPE_CHECKING:
    from tokenctl.service.users import UserChange

users = group(
    app,
    "user",
    "Users: create, list, show, disable, enable, delete, passwd, import.",
    example="tokenctl user list",
)
clients = group(
    app, "client", "Clients, the applications that users log in to.", example="tokenctl client list"
)

_NAME = typer.Argument(metavar="NAME", help="The user's name, or its usr_… id.")
_PASSWORD_STDIN = typer.Option("--password-stdin", help="Read the password from stdin, one line.")
_PASSWORD_FILE = typer.Option("--password-file", metavar="FILE", help="Read it from a file, its first line.")

_CHANGED = [
    Column("id"),
    Column("name"),
    Column("state"),
    instant("disabled_until"),
    Column("revoked"),
    instant("access_exposure_until"),
]


@command(app, "create-user", example="tokenctl create-user ada --password-stdin < password.txt")
@command(users, "create", example="tokenctl user create ada --no-password")
def create(
    run: Run,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="1 to 254 characters; an e-mail address will do.")
    ],
    password_stdin: Annotated[bool, _PASSWORD_STDIN] = False,
    password_file: Annotated[Path | None, _PASSWORD_FILE] = None,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="Nobody can log in by password; tokens can be issued.")
    ] = False,
) -> None:
    """Create a user. Names are compared without case."""
    run.out.expect(records.USER_COLUMNS)
    if password_stdin + no_password + (password_file is not None) > 1:
        raise InvalidInput("there is more than one way for the password", hint="give one of the three")
    service = run.service  # before a prompt: a missing database should not cost a password
    password = None if no_password else _new_password(password_stdin, password_file)
    user = service.create_user(name, password)
    run.out.summary(
        records.user(user, service.now()), records.USER_COLUMNS, f"created {user.name} ({user.id})"
    )


def _new_password(from_stdin: bool, from_file: Path | None) -> str:
    return read_secret(
        "New password",
        from_stdin=from_stdin,
        from_file=from_file,
        repeat=True,
        flags="--password-stdin, --password-file FILE or --no-password",
    )


@command(users, "list", example="tokenctl user list --json")
def list_(run: Run, limit: options.Limit = None) -> None:
    """List all users, by name."""
    now = run.service.now()
    rows = (records.user(user, now) for user in run.service.users.list())
    run.out.rows(rows, records.USER_COLUMNS, total=run.service.users.count, limit=limit)


@command(users, "show", example="tokenctl user show ada")
def show(run: Run, name: Annotated[str, _NAME]) -> None:
    """Show one user, and how many refresh tokens it has."""
    from tokenctl import Selector, SelectState

    user = run.service.users.get(name)
    seen = run.service.preview(Selector(users=(user.id,)))
    live = run.service.preview(Selector(users=(user.id,), states=(SelectState.LIVE,))).tokens
    record = records.user(user, run.service.now()) | {
        "live_tokens": live,
        "blocked_tokens": seen.tokens - live,
        "dead_tokens": seen.already_dead,
        "last_used_at": seen.last_used_at,
    }
    columns = [
        *(column._replace(table=True) for column in records.USER_COLUMNS),
        Column("live_tokens"),
        Column("blocked_tokens"),
        Column("dead_tokens"),
        instant("last_used_at"),
    ]
    run.out.one(record, columns)


@command(users, "disable", example="tokenctl user disable ada --yes\ntokenctl user disable ada --for 24h")
def disable(
    run: Run,
    name: Annotated[str, _NAME],
    *,
    for_: Annotated[
        str | None,
        typer.Option("--for", metavar="DURATION", help="Only for so long: nothing is revoked."),
    ] = None,
    reason: options.Reason = None,
    yes: options.Yes = False,
    number: options.Confirm = None,
) -> None:
    """Keep a user out, and revoke every login; with --for only block them for a time."""
    run.out.expect(_CHANGED)
    duration = options.duration(for_)
    if duration is None:
        _confirm(run, name, "disable", yes=yes, number=number)
    done = run.service.users.disable(name, duration=duration, reason=reason or "user disabled")
    _show_change(run, done, "disabled")


@command(users, "enable", example="tokenctl user enable ada")
def enable(run: Run, name: Annotated[str, _NAME]) -> None:
    """Let a user in again. Logins that were revoked stay revoked."""
    run.out.expect(_CHANGED)
    _show_change(run, run.service.users.enable(name), "enabled")


@command(users, "delete", example="tokenctl user delete ada --yes --reason GDPR-12")
def delete(
    run: Run,
    name: Annotated[str, _NAME],
    *,
    reason: options.Reason = None,
    yes: options.Yes = False,
    number: options.Confirm = None,
) -> None:
    """Delete a user and all its refresh tokens. The audit log keeps what happened."""
    run.out.expect(_CHANGED)
    _confirm(run, name, "delete", yes=yes, number=number, always=True)
    done = run.service.users.delete(name, reason=reason or "user deleted")
    _show_change(run, done, "deleted")


@command(users, "passwd", example="tokenctl user passwd ada --password-stdin --yes < password.txt")
def passwd(
    run: Run,
    name: Annotated[str, _NAME],
    *,
    password_stdin: Annotated[bool, _PASSWORD_STDIN] = False,
    password_file: Annotated[Path | None, _PASSWORD_FILE] = None,
    reason: options.Reason = None,
    yes: options.Yes = False,
    number: options.Confirm = None,
) -> None:
    """Set a user's password, and revoke every login that the old one made."""
    run.out.expect(_CHANGED)
    _confirm(run, name, "set the password of", yes=yes, number=number)
    password = _new_password(password_stdin, password_file)
    done = run.service.users.set_password(name, password, reason=reason or "password changed")
    _show_change(run, done, "set the password of")


def _confirm(run: Run, name: str, verb: str, *, yes: bool, number: int | None, always: bool = False) -> None:
    """Ask when logins would end; with `always` even when there is none."""
    from tokenctl import Selector

    user = run.service.users.get(name)
    seen = run.service.preview(Selector(users=(user.id,)))
    what = f"{verb} {user.name}, which ends {amount(seen.tokens, 'refresh token')}"
    tokens = max(seen.tokens, int(always))
    confirm(what, tokens=tokens, users=1, yes=yes, number=number, look=f"tokenctl user show {user.name}")


def _show_change(run: Run, done: UserChange, verb: str) -> None:
    user = records.user(done.user, run.service.now())
    record: dict[str, Any] = {
        **{key: user[key] for key in ("id", "name")},
        "state": "deleted" if verb == "deleted" else user["state"],
        "disabled_until": None if verb == "deleted" else user["disabled_until"],
        "revoked": done.revoked,
        "access_exposure_until": done.access_exposure_until,
    }
    parts = [f"{verb} {done.user.name}"]
    if verb == "disabled" and done.user.disabled_until is not None:
        parts[0] += f" until {times.show_local(done.user.disabled_until)}, and revoked nothing"
    if done.revoked:
        parts.append(f"revoked {done.revoked:,}")
    if done.access_exposure_until is not None:
        parts.append(f"access tokens live until {times.show_local(done.access_exposure_until)}")
    run.out.summary(record, _CHANGED, " · ".join(parts))


# --- clients ---------------------------------------------------------------------------------

_CLIENT = [Column("id"), instant("created_at", "created"), Column("may_introspect")]
_CLIENT_WITH_SECRET = [Column("id"), Column("secret"), *_CLIENT[1:]]
_CLIENT_ID = typer.Argument(metavar="ID", help="The client's id.")


def _client_record(client: Any) -> dict[str, Any]:
    return {
        "id": client.id,
        "created_at": client.created_at or None,
        "may_introspect": client.may_introspect,
    }


@command(
    clients, "create", example="tokenctl client create web\ntokenctl client create orders-api --introspect"
)
def create_client(
    run: Run,
    client: Annotated[str, _CLIENT_ID],
    *,
    introspect: Annotated[
        bool, typer.Option("--introspect", help="A resource server: it may ask about tokens.")
    ] = False,
) -> None:
    """Create a client that users log in to; or a resource server, to which nobody does.

    The secret of a resource server is printed once, and stored nowhere.
    """
    if not introspect:
        run.out.expect(_CLIENT)
        made = run.service.clients.create(client)
        run.out.summary(_client_record(made), _CLIENT, f"created the client {made.id}")
        return
    run.out.expect(_CLIENT_WITH_SECRET, "secret")
    made = run.service.clients.create(client, introspect=True)
    record = _client_record(made) | {"secret": made.secret}
    if run.out.format != "table" or run.out.fields:
        run.out.one(record, _CLIENT_WITH_SECRET)
        return
    run.out.note(f"created the client {made.id}; this is its secret")
    run.out.secret(record["secret"])


@command(clients, "list", example="tokenctl client list")
def list_clients(run: Run) -> None:
    """List all clients. `default` stands for logins that name none."""
    run.out.rows((_client_record(client) for client in run.service.clients.list()), _CLIENT, limit=0)


@command(clients, "delete", example="tokenctl client delete web")
def delete_client(run: Run, client: Annotated[str, _CLIENT_ID]) -> None:
    """Delete a client that has no refresh tokens."""
    columns = [Column("id")]
    run.out.expect(columns)
    run.service.clients.delete(client)
    run.out.summary({"id": client}, columns, f"deleted the client {client}")
