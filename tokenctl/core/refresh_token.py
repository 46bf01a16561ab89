"""The refresh token as a row: one login on one device, and what its state is at a given time.

Owns the meaning of live, blocked, idle, expired and revoked. What a presented string leads to is
`rotation.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from tokenctl.core.context import Context


class State(StrEnum):
    """What an operator is told; first match wins, from the bottom up."""

    LIVE = "live"
    BLOCKED = "blocked"  # by a disabled user or a cut-off, both of which can be taken back
    IDLE = "idle"
    EXPIRED = "expired"
    REVOKED = "revoked"


@dataclass(frozen=True, slots=True, kw_only=True)
class RefreshToken:
    """A row of refresh_tokens with what is judged beside it: the user's disabling and the cut-offs.

    Instants and `idle_ttl` in microseconds (UTC).
    """

    id: str
    user_id: str
    user_name: str
    client_id: str
    scope: str
    generation: int
    secret_hash: bytes = field(repr=False)
    created_at: int
    rotated_at: int
    access_until: int
    expires_at: int
    idle_ttl: int | None
    revoked_at: int | None
    revoked_reason: str | None
    revoked_by: str | None
    issued: Context
    last: Context
    user_disabled_at: int | None
    user_disabled_until: int | None
    #: The latest of the cut-offs of realm, client and user; 0 when there is none.
    not_before: int
    recovered_at: int | None

    @property
    def is_revoked(self) -> bool:
        return self.revoked_at is not None

    def is_expired(self, now: int) -> bool:
        """Past its absolute lifetime, which no use extends."""
        return now >= self.expires_at

    @property
    def idle_expires_at(self) -> int | None:
        """When it dies if nobody uses it; None when it has no idle lifetime."""
        return None if self.idle_ttl is None else self.rotated_at + self.idle_ttl

    def is_idle(self, now: int) -> bool:
        """Unused for longer than its idle lifetime; a retry counts as no use."""
        return self.idle_expires_at is not None and now >= self.idle_expires_at

    def is_cut_off(self) -> bool:
        """Created at or before a cut-off."""
        return self.created_at <= self.not_before

    def is_user_disabled(self, now: int) -> bool:
        if self.user_disabled_at is None:
            return False
        return self.user_disabled_until is None or now < self.user_disabled_until

    def is_dead(self, now: int) -> bool:
        """Nothing can bring it back."""
        return self.is_revoked or self.is_expired(now) or self.is_idle(now)

    def is_valid(self, now: int) -> bool:
        """Its current string would be accepted."""
        return self.state(now) is State.LIVE

    def state(self, now: int) -> State:
        if self.is_revoked:
            return State.REVOKED
        if self.is_expired(now):
            return State.EXPIRED
        if self.is_idle(now):
            return State.IDLE
        if self.is_cut_off() or self.is_user_disabled(now):
            return State.BLOCKED
        return State.LIVE
