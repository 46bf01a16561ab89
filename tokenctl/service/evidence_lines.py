"""The lines of an evidence bundle: a login before and after, an event; plain values for JSON.

Owns their fields: those of `list --json`, and those of an exported event. Never a secret, nor the hash of
one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from tokenctl.core.refresh_token import RefreshToken
from tokenctl.service.instants import show_utc
from tokenctl.storage.events import Event
from tokenctl.storage.evidence import SlicedEvent

Line = dict[str, Any]

_SELECTOR_INSTANTS = ("issued_after", "issued_before")


def shown(instant: int | None) -> str | None:
    """As `show_utc`, where there may be none."""
    return None if instant is None else show_utc(instant)


def encoded(line: Line) -> bytes:
    """A line of a file: plain ASCII, so that no control and no bidi mark is in it as it is."""
    return json.dumps(line).encode("ascii") + b"\n"


def printable(text: str) -> str:
    r"""The text with what is no visible character as `\u202e`: controls, bidi marks."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def after(row: RefreshToken, now: int) -> Line:
    """A login as it is."""
    return {
        "id": row.id,
        "user": row.user_name,
        "user_id": row.user_id,
        "client": row.client_id,
        "scope": row.scope,
        "state": str(row.state(now)),
        "generation": row.generation,
        "created_at": show_utc(row.created_at),
        "rotated_at": show_utc(row.rotated_at),
        "expires_at": show_utc(row.expires_at),
        "idle_expires_at": shown(row.idle_expires_at),
        "access_until": show_utc(row.access_until),
        "revoked_at": shown(row.revoked_at),
        "revoked_reason": row.revoked_reason,
        "revoked_by": row.revoked_by,
        "issued_ip": row.issued.ip_text,
        "issued_user_agent": row.issued.user_agent,
        "issued_device": row.issued.device and row.issued.device.hex(),
        "last_ip": row.last.ip_text,
        "last_user_agent": row.last.user_agent,
        "last_device": row.last.device and row.last.device.hex(),
        "purged": False,
    }


def before(row: RefreshToken, revoked_at: int) -> Line:
    """The login as it was just before it was revoked: nothing but a revocation changes a row after that.

    Its state follows from the user and the cut-offs as they are now, as far as they are older than that.
    """
    disabled_at = row.user_disabled_at
    then = replace(
        row,
        revoked_at=None,
        revoked_reason=None,
        revoked_by=None,
        user_disabled_at=None if disabled_at is None or disabled_at >= revoked_at else disabled_at,
        not_before=row.not_before if row.not_before < revoked_at else 0,
    )
    return after(then, revoked_at)


def purged(token_id: str, told: Iterable[Event], user_name: str | None) -> Line:
    """A login whose row is gone: what its events tell, in order; what they do not tell is left out."""
    line: Line = {"id": token_id}
    if user_name is not None:
        line["user"] = user_name
    for event in told:
        for key, value in (("user_id", event.user_id), ("client", event.client_id)):
            if value is not None:
                line[key] = value
        if event.type == "token.issue":
            line["created_at"] = show_utc(event.at)
            line |= _instant(event, "expires_at")
        if event.type == "token.revoke":
            line |= _instant(event, "access_until")
            line |= {"revoked_at": show_utc(event.at), "revoked_reason": event.reason}
            line["revoked_by"] = event.actor
    return line | {"purged": True}


def _instant(event: Event, key: str) -> Line:
    value = event.data.get(key)
    return {key: show_utc(value)} if isinstance(value, int) else {}


def event(sliced: SlicedEvent) -> Line:
    """An event as an exported log has it, without its MAC and with the segment that it is sealed in."""
    told, segment = sliced
    return {
        "event": told.id,
        "at": show_utc(told.at),
        "type": told.type,
        "actor": told.actor,
        "user_id": told.user_id,
        "token_id": told.token_id,
        "client": told.client_id,
        "ip": told.ip_text,
        "reason": told.reason,
        "data": told.data,
        "segment": segment,
    }


def selector(said: Any) -> Any:
    """What a plan was selected by, with its instants as text."""
    if not isinstance(said, dict):
        return said
    return {
        key: show_utc(value) if key in _SELECTOR_INSTANTS and isinstance(value, int) else value
        for key, value in said.items()
    }
