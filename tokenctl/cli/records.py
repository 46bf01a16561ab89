"""How refresh tokens, users and events look: their fields as data, and as columns for a person.

The fields are a contract: they are only ever added to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tokenctl.cli import times
from tokenctl.cli.output import Column, instant

if TYPE_CHECKING:
    from tokenctl.core.refresh_token import RefreshToken
    from tokenctl.storage.events import Event
    from tokenctl.storage.users import User


def token(row: RefreshToken, now: int) -> dict[str, Any]:
    """A refresh token as a record; `now` (µs) decides the state."""
    return {
        "id": row.id,
        "user": row.user_name,
        "user_id": row.user_id,
        "client": row.client_id,
        "scope": row.scope,
        "state": str(row.state(now)),
        "generation": row.generation,
        "created_at": row.created_at,
        "rotated_at": row.rotated_at,
        "expires_at": row.expires_at,
        "idle_expires_at": row.idle_expires_at,
        "access_until": row.access_until,
        "revoked_at": row.revoked_at,
        "revoked_reason": row.revoked_reason,
        "revoked_by": row.revoked_by,
        "issued_ip": row.issued.ip_text,
        "issued_user_agent": row.issued.user_agent,
        "issued_device": row.issued.device and row.issued.device.hex(),
        "last_ip": row.last.ip_text,
        "last_user_agent": row.last.user_agent,
        "last_device": row.last.device and row.last.device.hex(),
    }


def token_columns(now: int) -> list[Column]:
    """The columns of refresh tokens; in a table ages are told from `now` (µs)."""

    def hidden(name: str) -> Column:
        return Column(name, table=False)

    def hidden_instant(name: str) -> Column:
        return instant(name)._replace(table=False)

    def age(at: int) -> str:
        return times.show_duration(now - at)

    return [
        Column("id"),
        Column("user", shrink=True),
        hidden("user_id"),
        Column("client", shrink=True),
        hidden("scope"),
        Column("last_ip", "ip"),
        Column("last_user_agent", "agent", shrink=True),
        instant("rotated_at", "idle")._replace(show=age, right=True),
        instant("expires_at", "expires")._replace(show=lambda at: times.show_ago(at, now), right=True),
        Column("state"),
        hidden("generation"),
        hidden_instant("created_at"),
        hidden_instant("idle_expires_at"),
        hidden_instant("access_until"),
        hidden_instant("revoked_at"),
        Column("revoked_reason", "reason", shrink=True),
        hidden("revoked_by"),
        hidden("issued_ip"),
        hidden("issued_user_agent"),
        hidden("issued_device"),
        hidden("last_device"),
    ]


def user(row: User, now: int) -> dict[str, Any]:
    """A user as a record; never its password hash."""
    return {
        "id": row.id,
        "name": row.name,
        "state": "disabled" if row.is_disabled(now) else "enabled",
        "created_at": row.created_at,
        "disabled_at": row.disabled_at,
        "disabled_until": row.disabled_until,
        "has_password": row.password_hash is not None,
    }


USER_COLUMNS = [
    Column("id"),
    Column("name", shrink=True),
    Column("state"),
    instant("created_at", "created"),
    instant("disabled_at")._replace(table=False),
    instant("disabled_until"),
    Column("has_password", "password"),
]


def event(row: Event) -> dict[str, Any]:
    """An audit event as a record."""
    return {
        "id": row.id,
        "at": row.at,
        "type": row.type,
        "actor": row.actor,
        "user": row.user_name,
        "user_id": row.user_id,
        "token_id": row.token_id,
        "client": row.client_id,
        "ip": row.ip_text,
        "reason": row.reason,
        "data": row.data,
    }


#: Instants inside an event's data.
_DATA_INSTANTS = frozenset({"active_at", "expires_at", "access_until", "rotated_at", "until", "previously"})


def _datum(key: str, value: Any, show: Callable[[int], str]) -> Any:
    return show(value) if key in _DATA_INSTANTS and isinstance(value, int) else value


def _data_in_utc(data: dict[str, Any]) -> dict[str, Any]:
    return {key: _datum(key, value, times.show_utc) for key, value in data.items()}


def facts(data: dict[str, Any]) -> str:
    """An event's data on one line, without what is not known; instants in local time."""
    known = ((key, _datum(key, value, times.show_local)) for key, value in data.items())
    return " ".join(f"{key}={value}" for key, value in known if value is not None)


EVENT_COLUMNS = [
    Column("id", "#", right=True, show=str),
    instant("at"),
    Column("type"),
    Column("actor", shrink=True),
    Column("user", shrink=True),
    Column("user_id", table=False),
    Column("token_id", "token"),
    Column("client", table=False),
    Column("ip"),
    Column("reason", shrink=True),
    Column("data", shrink=True, show=facts, data=_data_in_utc),
]


def event_as_data(row: Event) -> dict[str, Any]:
    """An audit event as JSON has it."""
    record = event(row)
    return {column.name: column.value(record) for column in EVENT_COLUMNS}
