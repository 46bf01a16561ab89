"""What happens to a presented refresh token: the whole judgement, in this one file.

The common case never comes here: one UPDATE (`storage.tokens.rotate`) accepts the current string and
advances the generation. When that UPDATE finds no row, the row is read and judged by `judge`, a pure
function. The two must agree: the UPDATE hits exactly when `judge` says ROTATE, and a property test
holds them together.

What `judge` gets as `now` must be taken *after* the failed UPDATE. A `now` from before it is older than
the rotation that won the race, and would make honest racers look like thieves.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from enum import StrEnum

from tokenctl.core.refresh_token import RefreshToken
from tokenctl.core.token_string import LAST_GENERATION

#: How far ahead of our own clock the row's last rotation may lie (µs): two nodes never agree exactly.
CLOCK_TOLERANCE = 5_000_000


class Verdict(StrEnum):
    ROTATE = "rotate"  # it is the current string: advance the generation
    RETRY = "retry"  # its successor was handed out just now: hand out the same one again
    RECOVER = "recover"  # the database was restored, declared so, and the token is newer: follow the token
    REUSE = "reuse"  # somebody holds a spent string: revoke the login
    BEHIND = "behind"  # the token is newer than the database, and no recovery was declared: change nothing
    REFUSE = "refuse"


class Reason(StrEnum):
    """Why a token is refused: for log and audit; on the wire all of them look alike."""

    NOT_FOUND = "not_found"
    WRONG_CLIENT = "wrong_client"
    REVOKED = "revoked"
    EXPIRED = "expired"
    IDLE = "idle"
    CUT_OFF = "cut_off"
    USER_DISABLED = "user_disabled"
    SUPERSEDED = "superseded"
    CLOCK_SKEW = "clock_skew"
    REUSE = "reuse"


@dataclass(frozen=True, slots=True)
class Policy:
    """grace: µs in which the previous string gets the same successor again; 0 switches that off."""

    grace: int
    #: Whether a retry from another device than the row's is reuse, rather than only an event.
    foreign_retry_is_reuse: bool = False


@dataclass(frozen=True, slots=True)
class Presented:
    """What came in with the request; `device` is None when the caller did not say."""

    generation: int
    secret_hash: bytes
    client_id: str
    device: bytes | None = None


@dataclass(frozen=True, slots=True)
class Judgement:
    verdict: Verdict
    reason: Reason | None = None
    #: A retry that came from another device than the row's last use.
    foreign: bool = False


ROTATE = Judgement(Verdict.ROTATE)


def judge(row: RefreshToken | None, presented: Presented, now: int, policy: Policy) -> Judgement:
    """The verdict on a presented string; the first rule that matches wins. `now` in µs."""
    if row is None:
        return _refuse(Reason.NOT_FOUND)
    if row.client_id != presented.client_id:
        return _refuse(Reason.WRONG_CLIENT)
    if (reason := _dead_or_blocked(row, presented, now)) is not None:
        return _refuse(reason)
    if not hmac.compare_digest(row.secret_hash, presented.secret_hash):
        # An operator re-issued this login by id. The bearer of the old string is no proven thief.
        return _refuse(Reason.SUPERSEDED)
    if presented.generation == row.generation:
        return ROTATE
    if presented.generation > row.generation:
        return _newer_than_row(row)
    return _older_than_row(row, presented, now, policy)


def _dead_or_blocked(row: RefreshToken, presented: Presented, now: int) -> Reason | None:
    if row.is_revoked:
        return Reason.REVOKED
    # The last generation has no successor, so it is as good as expired.
    if row.is_expired(now) or LAST_GENERATION in (row.generation, presented.generation):
        return Reason.EXPIRED
    if row.is_idle(now):
        return Reason.IDLE
    if row.is_cut_off():
        return Reason.CUT_OFF
    if row.is_user_disabled(now):
        return Reason.USER_DISABLED
    return None


def _older_than_row(row: RefreshToken, presented: Presented, now: int, policy: Policy) -> Judgement:
    if presented.generation == row.generation - 1:
        age = now - row.rotated_at
        if policy.grace > 0 and -CLOCK_TOLERANCE <= age <= policy.grace:
            foreign = presented.device is not None and presented.device != row.last.device
            if foreign and policy.foreign_retry_is_reuse:
                return Judgement(Verdict.REUSE, Reason.REUSE, foreign=True)
            return Judgement(Verdict.RETRY, foreign=foreign)
        if age < -CLOCK_TOLERANCE:
            # A clock is wrong, and whose is unknown: revoking on that would log out honest users.
            return _refuse(Reason.CLOCK_SKEW)
    return Judgement(Verdict.REUSE, Reason.REUSE)


def _newer_than_row(row: RefreshToken) -> Judgement:
    if row.recovered_at is None:
        return Judgement(Verdict.BEHIND)
    if row.rotated_at <= row.recovered_at:
        return Judgement(Verdict.RECOVER)
    # The login went on from the restored row, so two holders exist.
    return Judgement(Verdict.REUSE, Reason.REUSE)


def _refuse(reason: Reason) -> Judgement:
    return Judgement(Verdict.REFUSE, reason)
