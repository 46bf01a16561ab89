"""The rotation of a batch: one transaction, one answer for each entry.

Owns the order of things: check the string (a forgery ends there, without a query), one UPDATE, judge
what it left, carry out the verdicts, commit, sign. Which verdict it is, `core.rotation` decides.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenctl.core import ids, token_string
from tokenctl.core.context import NO_CONTEXT, Context
from tokenctl.core.names import DEFAULT_CLIENT, clean_client_id, clean_scope, narrow_scope
from tokenctl.core.refresh_token import RefreshToken
from tokenctl.core.rotation import Judgement, Presented, Reason, Verdict, judge
from tokenctl.core.token_string import PresentedToken
from tokenctl.errors import (
    Contended,
    DatabaseBehind,
    DatabaseError,
    InvalidInput,
    InvalidScope,
    InvalidToken,
    OutcomeUnknown,
    RowLocked,
    StatementRefused,
    TokenctlError,
    TokenRefused,
    TransactionAborted,
)
from tokenctl.service.pair import TokenPair, make_pair
from tokenctl.service.runtime import Runtime
from tokenctl.service.transactions import repeated
from tokenctl.storage import events, swap, tokens
from tokenctl.storage.engine import Connection
from tokenctl.storage.events import Event

if TYPE_CHECKING:  # cryptography costs start-up
    from tokenctl.core.keys import SigningKey

#: How often an entry is tried when its row changes between UPDATE and judgement.
_ATTEMPTS = 3
_GRANTING = frozenset({Verdict.ROTATE, Verdict.RETRY, Verdict.RECOVER})
#: How long (s) a batch waits for a row that somebody else has locked, and how long those entries wait by
#: themselves. One lock that is held for seconds must not hold up a whole batch.
_BATCH_LOCK_WAIT = 0.05
_LOCK_WAIT = 2.0
#: A commit of unknown outcome is repeated only where the grace (µs) is longer than all of that can take.
_SAFE_GRACE = 10_000_000
#: A database that stood still (µs) must not commit a rotation of then: the grace of its string would be over
#: before its caller could ask again.
_STALE = 5_000_000
#: What a client in a loop can cause is noted once in this time (µs): it fills no disk.
_NOTE_INTERVAL = 60_000_000


@dataclass(frozen=True, slots=True)
class RotateRequest:
    """One refresh: the string as presented, by which client, from where, for how much of the scope."""

    refresh_token: str = field(repr=False)
    client_id: str = DEFAULT_CLIENT
    context: Context = NO_CONTEXT
    #: Narrows the scope of this access token only (RFC 6749 §6); None keeps the whole.
    scope: str | None = None


@dataclass(slots=True)
class _Entry:
    """A request whose string is genuine, on its way to an outcome."""

    request: RotateRequest
    token: PresentedToken
    #: The narrower scope that was asked for, cleaned; None for the whole.
    scope: str | None
    outcome: _Granted | TokenctlError | None = None
    #: More scope was asked for than the login has: such an entry is judged, and never swapped.
    too_wide: InvalidScope | None = None


@dataclass(frozen=True, slots=True)
class _Granted:
    """What is signed and answered once the transaction is committed. Instants in µs."""

    user_id: str
    scope: str
    now: int
    access_until: int
    expires_at: int
    retried: bool = False


def rotate_many(
    runtime: Runtime, requests: Sequence[RotateRequest], *, wait: bool = True
) -> list[TokenPair | TokenctlError]:
    """An answer for each request, in order: a pair, or the error to raise for it.

    Without `wait` an entry whose row somebody else has locked is answered with RowLocked at once.
    """
    read = [_read(runtime, request) for request in requests]
    entries = [entry for entry in read if isinstance(entry, _Entry)]
    # A missing key must be found before anything is committed; junk alone needs none.
    key = runtime.signing_key if entries else None
    try:
        if len(entries) > 1 or not wait:
            _transact_around_locks(runtime, entries, wait=wait)
        else:
            _transact(runtime, entries, lock_wait=_LOCK_WAIT)
    except StatementRefused as error:
        _transact_singly(runtime, entries, error)
    except RowLocked as error:  # more than a row is locked, and nothing was kept
        for entry in entries:
            entry.outcome = error
    return [_answer(runtime, entry, key) for entry in read]


def _transact_around_locks(runtime: Runtime, entries: list[_Entry], *, wait: bool) -> None:
    """The batch; and if it would have to wait for a row, all but the locked ones, and then each of those."""
    try:
        _transact(runtime, entries, lock_wait=_BATCH_LOCK_WAIT)
    except RowLocked:  # it has waited for one of them, and does not know for which
        _transact(runtime, entries, lock_wait=_BATCH_LOCK_WAIT, skip_locked=True)
    if not wait:
        return
    deadline = time.monotonic() + _LOCK_WAIT
    for entry in entries:
        if isinstance(entry.outcome, RowLocked):
            left = max(_BATCH_LOCK_WAIT, deadline - time.monotonic())
            try:
                _transact(runtime, [entry], lock_wait=left)
            except (RowLocked, StatementRefused) as error:
                entry.outcome = error


def _read(runtime: Runtime, request: RotateRequest) -> _Entry | TokenctlError:
    """The entry, or the error that needs no database: one caller's nonsense must not fail the others."""
    try:
        token = token_string.parse(request.refresh_token, runtime.keys.mac)
        scope = None if request.scope is None else clean_scope(str(request.scope))
        clean_client_id(str(request.client_id))
    except (InvalidToken, InvalidScope) as error:
        return error
    except InvalidInput:  # no such client can be
        return TokenRefused(Reason.WRONG_CLIENT, token_id=token.token_id)
    return _Entry(request, token, scope)


def _transact_singly(runtime: Runtime, entries: list[_Entry], error: DatabaseError) -> None:
    """What the database refuses of one entry must not take the others with it.

    When it goes away meanwhile, those that are committed keep their answers, and the rest get that error.
    """
    if len(entries) == 1:
        entries[0].outcome = error
        return
    for entry in entries:
        entry.outcome = error
        if isinstance(error, StatementRefused):
            try:
                _transact(runtime, [entry], lock_wait=_LOCK_WAIT)
            except (StatementRefused, RowLocked) as refused:
                entry.outcome = refused
            except DatabaseError as away:
                entry.outcome = error = away


def _answer(
    runtime: Runtime, entry: _Entry | TokenctlError, key: SigningKey | None
) -> TokenPair | TokenctlError:
    if isinstance(entry, TokenctlError):
        return entry
    granted = entry.outcome
    assert granted is not None, "every entry leaves its transaction with an outcome"
    if isinstance(granted, TokenctlError):
        return granted
    assert key is not None, "it was found before the transaction"
    return make_pair(
        runtime,
        key=key,
        refresh_token=token_string.successor(entry.token, runtime.keys.mac),
        token_id=entry.token.token_id,
        user_id=granted.user_id,
        client_id=entry.request.client_id,
        scope=granted.scope,
        now=granted.now,
        access_until=granted.access_until,
        expires_at=granted.expires_at,
        retried=granted.retried,
    )


# --- inside the transaction ------------------------------------------------------------------


def _transact(
    runtime: Runtime, entries: list[_Entry], *, lock_wait: float, skip_locked: bool = False
) -> None:
    """Give each entry its outcome, committed. A commit of unknown outcome is simply repeated.

    If it was kept, the same string gets the same successor now, as any retry within the grace does.
    """
    began = time.monotonic()
    try:
        _transact_once(runtime, entries, lock_wait=lock_wait, skip_locked=skip_locked)
    except OutcomeUnknown:
        if runtime.policy.grace < _SAFE_GRACE:
            raise
        _transact_once(runtime, entries, lock_wait=lock_wait, skip_locked=skip_locked)
    if (time.monotonic() - began) * 1_000_000 > _STALE:
        with suppress(DatabaseError):  # what was committed is answered, whatever becomes of this
            _begin_grace_anew(runtime, entries)


@repeated
def _begin_grace_anew(runtime: Runtime, entries: list[_Entry]) -> None:
    """The grace of a rotation whose commit was held up begins when it could be seen, and not before.

    So long a commit waits for a standby that is lost, for example; its caller has given up and comes again.
    """
    with runtime.storage.write() as connection:
        now = runtime.clock()
        for entry in entries:
            if isinstance(entry.outcome, _Granted) and not entry.outcome.retried:
                swap.postpone(connection, entry.token, rotated_at=entry.outcome.now, now=now)


@repeated
def _transact_once(runtime: Runtime, entries: list[_Entry], *, lock_wait: float, skip_locked: bool) -> None:
    if not entries:
        return
    for entry in entries:
        entry.outcome = entry.too_wide = None
    with runtime.storage.write(lock_wait=lock_wait) as connection:
        began = runtime.clock()
        batch = _Batch(runtime, connection)
        if skip_locked:
            entries = batch.without_locked(entries)
        for wave in _waves(entries):
            batch.run(wave)
        events.add(connection, batch.events)
        if runtime.clock() - began > _STALE:
            raise TransactionAborted("the database took so long that what was judged is out of date")


def _waves(entries: list[_Entry]) -> Iterator[list[_Entry]]:
    """Two entries for one row are handled in order, as if one after the other: no id twice in a wave."""
    while entries:
        wave: dict[bytes, _Entry] = {}
        rest: list[_Entry] = []
        for entry in entries:
            if entry.token.raw_id in wave or len(wave) == swap.MAX_BATCH:
                rest.append(entry)
            else:
                wave[entry.token.raw_id] = entry
        yield list(wave.values())
        entries = rest


class _Batch:
    """One transaction: rotates, judges what is left, and collects the events of it."""

    def __init__(self, runtime: Runtime, connection: Connection) -> None:
        self._runtime = runtime
        self._connection = connection
        self.events: list[Event] = []
        self._noted: set[tuple[str, str, str]] = set()

    def without_locked(self, entries: list[_Entry]) -> list[_Entry]:
        """The entries whose rows are ours now; the others are answered with RowLocked."""
        free = swap.lock_free(self._connection, [entry.token.raw_id for entry in entries])
        for entry in entries:
            if entry.token.raw_id not in free:
                entry.outcome = RowLocked(f"somebody else's transaction has {entry.token.token_id}")
        return [entry for entry in entries if entry.outcome is None]

    def run(self, wave: list[_Entry]) -> None:
        """Give each entry its outcome; no id may appear twice."""
        self._mark_wider_scopes([entry for entry in wave if entry.scope is not None])
        for _ in range(_ATTEMPTS):
            wave = [entry for entry in wave if entry.outcome is None]
            if not wave:
                return
            self._swap([entry for entry in wave if entry.too_wide is None])
            self._judge([entry for entry in wave if entry.outcome is None])
        for entry in wave:
            if entry.outcome is None:
                entry.outcome = Contended(
                    f"{entry.token.token_id} changed {_ATTEMPTS} times during one refresh"
                )

    def _mark_wider_scopes(self, asking: list[_Entry]) -> None:
        """Before anything changes. A scope never changes, so what is found here holds until the end."""
        rows = self._rows(asking)
        for entry in asking:
            if (row := rows.get(entry.token.raw_id)) is not None:
                try:
                    narrow_scope(entry.scope or "", row.scope)
                except InvalidScope as error:
                    entry.too_wide = error

    def _swap(self, wave: list[_Entry]) -> None:
        if not wave:
            return
        now = self._runtime.clock()
        access_until = now + self._runtime.access_ttl
        swaps = [swap.Swap(entry.token, entry.request.client_id, entry.request.context) for entry in wave]
        done = swap.rotate(self._connection, swaps, now=now, access_until=access_until)
        for entry in wave:
            if (swapped := done.get(entry.token.raw_id)) is None:
                continue
            user_id = ids.user_id(swapped.user_id)
            entry.outcome = _Granted(
                user_id=user_id,
                scope=swapped.scope if entry.scope is None else entry.scope,
                now=now,
                access_until=min(access_until, swapped.expires_at),
                expires_at=swapped.expires_at,
            )
            if swapped.context_changed:
                self._note(entry, user_id, now, "token.rotate", reason="context_changed")

    def _judge(self, left: list[_Entry]) -> None:
        rows = self._rows(left)
        # Taken after the UPDATE that missed: an older one would make honest racers look like thieves.
        now = self._runtime.clock()
        for entry in left:
            row = rows.get(entry.token.raw_id)
            judgement = judge(row, _presented(entry), now, self._runtime.policy)
            if row is None:
                entry.outcome = TokenRefused(judgement.reason or "", token_id=entry.token.token_id)
            else:
                self._carry_out(entry, row, judgement, now)

    def _carry_out(self, entry: _Entry, row: RefreshToken, judgement: Judgement, now: int) -> None:
        """Sets the outcome, or leaves it open when the row is no longer what was judged."""
        if entry.too_wide is not None and judgement.verdict in _GRANTING:
            entry.outcome = entry.too_wide
            return
        match judgement.verdict:
            case Verdict.ROTATE:
                pass  # it is current again: the UPDATE is repeated
            case Verdict.RETRY:
                # The row keeps the latest expiry of any access token; the first answer's is the rotation's.
                until = min(row.access_until, row.rotated_at + self._runtime.access_ttl)
                self._grant(entry, row, now, until, retried=True)
                if judgement.foreign:
                    self._note_once(entry, row, now, "token.retry", "another_device")
            case Verdict.RECOVER:
                self._follow(entry, row, now)
            case Verdict.REUSE:
                self._revoke(entry, row, now, foreign=judgement.foreign)
            case Verdict.BEHIND:
                entry.outcome = DatabaseBehind(
                    f"{row.id} was presented with generation {entry.token.generation}, and the database has "
                    f"{row.generation}: the database is older than the token",
                    token_id=row.id,
                )
                facts: dict[str, str | int] = {
                    "critical": True,
                    "current_generation": row.generation,
                    "try": DatabaseBehind.hint,
                }
                self._note_once(entry, row, now, "database.behind", "not_declared", **facts)
            case Verdict.REFUSE:
                assert judgement.reason is not None, "a refusal has a reason"
                entry.outcome = TokenRefused(judgement.reason, token_id=row.id)
                critical = {"critical": True} if judgement.reason is Reason.CLOCK_SKEW else {}
                self._note_once(entry, row, now, "token.refuse", judgement.reason, **critical)

    def _follow(self, entry: _Entry, row: RefreshToken, now: int) -> None:
        access_until = now + self._runtime.access_ttl
        if swap.follow(
            self._connection,
            row,
            generation=entry.token.generation + 1,
            now=now,
            access_until=access_until,
            context=entry.request.context,
        ):
            self._grant(entry, row, now, access_until)
            self._note(entry, row.user_id, now, "token.recover", reason="restored_database")

    def _revoke(self, entry: _Entry, row: RefreshToken, now: int, *, foreign: bool) -> None:
        if swap.revoke_as_judged(self._connection, row, reason=Reason.REUSE, now=now):
            entry.outcome = TokenRefused(Reason.REUSE, token_id=row.id)
            self._note(
                entry,
                row.user_id,
                now,
                "token.reuse",
                reason="retry_from_another_device" if foreign else "spent_string",
                current_generation=row.generation,
                rotated_at=row.rotated_at,
                access_until=row.access_until,
            )

    def _grant(
        self, entry: _Entry, row: RefreshToken, now: int, access_until: int, *, retried: bool = False
    ) -> None:
        entry.outcome = _Granted(
            user_id=row.user_id,
            scope=row.scope if entry.scope is None else entry.scope,
            now=now,
            access_until=min(access_until, row.expires_at),
            expires_at=row.expires_at,
            retried=retried,
        )

    def _note_once(
        self, entry: _Entry, row: RefreshToken, now: int, type_: str, reason: str, **facts: str | int
    ) -> None:
        """What a client in a loop can cause is noted once in an interval for each login and reason."""
        if (row.id, type_, reason) in self._noted:
            return
        self._noted.add((row.id, type_, reason))
        if not events.exists_between(
            self._connection,
            token_id=row.id,
            type_=type_,
            reason=reason,
            since=now - _NOTE_INTERVAL,
            until=now,
        ):
            self._note(entry, row.user_id, now, type_, reason=reason, **facts)

    def _note(
        self, entry: _Entry, user_id: str, now: int, type_: str, *, reason: str, **facts: str | int
    ) -> None:
        """An event of this entry. A generation is no secret: it opens nothing."""
        context = entry.request.context
        data = {"generation": entry.token.generation, "user_agent": context.user_agent, **facts}
        self.events.append(
            Event(
                at=now,
                type=type_,
                user_id=user_id,
                token_id=entry.token.token_id,
                client_id=entry.request.client_id,
                ip=context.ip,
                reason=reason,
                data=data,
            )
        )

    def _rows(self, entries: list[_Entry]) -> dict[bytes, RefreshToken]:
        if not entries:
            return {}
        return tokens.fetch(self._connection, [entry.token.raw_id for entry in entries])


def _presented(entry: _Entry) -> Presented:
    return Presented(
        generation=entry.token.generation,
        secret_hash=entry.token.secret_hash,
        client_id=entry.request.client_id,
        device=entry.request.context.device,
    )
