"""Revoking: by id, by string, by selector; and looking at what that would hit before it is done.

Owns what counts as revoked, already dead, unknown or malformed. Large sets go in chunks, each its own
transaction, in order of id, so that rotations stay fast and a second run goes on where one stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

from tokenctl.core import ids
from tokenctl.core.context import NO_CONTEXT, Context
from tokenctl.core.names import clean_client_id
from tokenctl.core.refresh_token import RefreshToken
from tokenctl.core.selector import Selector
from tokenctl.core.token_string import looks_like, parse, parse_unverified
from tokenctl.errors import ClientNotFound, ForgedToken, InvalidInput, InvalidToken
from tokenctl.service.runtime import Runtime
from tokenctl.service.transactions import repeated
from tokenctl.storage import events, tokens, users
from tokenctl.storage.engine import Connection
from tokenctl.storage.events import Event

#: Asked between chunks; True ends the work there.
Stop = Callable[[], bool]
#: Told how many of the targets a chunk has dealt with.
Progress = Callable[[int], None]
_SMALLEST_ID = b""


def never() -> bool:
    """The `stop` of a caller who lets the work run to its end."""
    return False


def unseen(_done: int) -> None:
    """The `progress` of a caller who does not watch."""


@dataclass(frozen=True, slots=True)
class Order:
    """Why, by whom, and how a revocation is watched and stopped."""

    reason: str
    actor: str
    stop: Stop = never
    progress: Progress = unseen


@dataclass(frozen=True, slots=True, kw_only=True)
class Revocation:
    """What a revocation did. `users`: of the revoked ones.

    access_exposure_until (µs): until then access tokens of these logins may still be accepted by whoever
    checks only their signature; None when none lives any more.
    """

    revoked: int = 0
    already_dead: int = 0
    unknown: int = 0
    forged: int = 0
    malformed: int = 0
    users: int = 0
    access_exposure_until: int | None = None
    #: False when `stop` ended it before the whole set was done.
    complete: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What a revocation would hit: live and blocked tokens, and of how many users. Instants in µs."""

    tokens: int = 0
    users: int = 0
    already_dead: int = 0
    unknown: int = 0
    forged: int = 0
    malformed: int = 0
    last_used_at: int | None = None
    access_exposure_until: int | None = None
    #: Selects exactly what was looked at.
    selector: Selector = field(default_factory=Selector)


# --- by id or string -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Target:
    raw_id: bytes
    #: What the row must have for a whole string to count; None for a target named by its id.
    secret_hash: bytes | None

    def means(self, row: RefreshToken | None) -> RefreshToken | None:
        """The row when it is what was named; a superseded string names nothing any more."""
        if row is None or self.secret_hash not in (None, row.secret_hash):
            return None
        return row


def revoke(runtime: Runtime, targets: Iterable[str], order: Order) -> Revocation:
    """Revoke the logins named by ids or whole strings of any generation."""
    tally = _Tally(runtime)
    read = _read_targets(runtime, targets, tally)
    while chunk := list(islice(read, tokens.CHUNK)):
        if order.stop():
            return tally.result(complete=False)
        named, done = _revoke_targets(runtime, chunk, order)
        tally.committed(tally.new(chunk, named), done)
        order.progress(len(chunk))
    return tally.result()


@repeated
def _revoke_targets(
    runtime: Runtime, chunk: list[_Target], order: Order
) -> tuple[dict[bytes, RefreshToken], list[tokens.Revoked]]:
    """One transaction: the rows that the chunk names, as they were, and what was revoked of them."""
    with runtime.storage.write() as connection:
        now = runtime.clock()
        named = _named_rows(connection, chunk)
        alive = [row.id for row in named.values() if not row.is_dead(now)]
        return named, _revoke_ids(connection, alive, now, order)


def preview_targets(runtime: Runtime, targets: Iterable[str]) -> Preview:
    """What `revoke` would hit with these targets. Changes nothing."""
    tally = _Tally(runtime)
    read = _read_targets(runtime, targets, tally)
    found: dict[str, None] = {}
    while chunk := list(islice(read, tokens.CHUNK)):
        with runtime.storage.read() as connection:
            named = _named_rows(connection, chunk)
        found.update(dict.fromkeys(row.id for row in tally.new(chunk, named)))
    selector = Selector(token_ids=tuple(sorted(found)))
    seen = preview(runtime, selector) if found else Preview(selector=selector)
    return replace(seen, unknown=tally.unknown, forged=tally.forged, malformed=tally.malformed)


def _read_targets(runtime: Runtime, targets: Iterable[str], tally: _Tally) -> Iterator[_Target]:
    """Targets in the order given; the malformed and the forged ones end in the tally, without a query."""
    mac_key, asked = None, False
    for text in targets:
        try:
            if not looks_like(text):
                yield _Target(ids.to_bytes(ids.parse_token_id(text)), None)
                continue
            if not asked:  # once, and not for ids alone: they need no key
                mac_key, asked = (runtime.keys.mac if runtime.has_master_key else None), True
            # Without the master key the secret alone decides: it is 128 random bits, which nobody guesses.
            token = parse_unverified(text) if mac_key is None else parse(text, mac_key)
        except ForgedToken:
            tally.forged += 1
        except (InvalidInput, InvalidToken):
            tally.malformed += 1
        else:
            yield _Target(token.raw_id, token.secret_hash)


def _named_rows(connection: Connection, chunk: list[_Target]) -> dict[bytes, RefreshToken]:
    """The rows that the chunk names, by their raw ids."""
    rows = tokens.fetch(connection, {target.raw_id for target in chunk})
    return {
        target.raw_id: row for target in chunk if (row := target.means(rows.get(target.raw_id))) is not None
    }


def _revoke_ids(connection: Connection, token_ids: list[str], now: int, order: Order) -> list[tokens.Revoked]:
    if not token_ids:
        return []
    selector = Selector(token_ids=tuple(token_ids))
    return revoke_chunk(connection, selector, now=now, reason=order.reason, actor=order.actor)


class _Tally:
    """Counts over all chunks of one call. Only what is committed is counted as revoked."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._seen: set[bytes] = set()
        self._users: set[bytes] = set()
        self._exposure = 0
        self.revoked = 0
        self.already_dead = 0
        self.unknown = 0
        self.forged = 0
        self.malformed = 0
        self.repeated = 0

    def new(self, chunk: list[_Target], named: dict[bytes, RefreshToken]) -> list[RefreshToken]:
        """The rows that are named for the first time; counts the unknown, and what was named before."""
        new = []
        for target in chunk:
            if (row := target.means(named.get(target.raw_id))) is None:
                self.unknown += 1
            elif target.raw_id in self._seen:
                self.repeated += 1
            else:
                self._seen.add(target.raw_id)
                new.append(row)
        return new

    def committed(self, named: list[RefreshToken], done: list[tokens.Revoked]) -> None:
        self.revoked += len(done)
        self.already_dead += len(named) - len(done)
        self._users.update(row.user_id for row in done)
        self._exposure = max([self._exposure, *(row.access_until for row in named)])

    def result(self, *, complete: bool = True) -> Revocation:
        return Revocation(
            revoked=self.revoked,
            already_dead=self.already_dead + self.repeated,
            unknown=self.unknown,
            forged=self.forged,
            malformed=self.malformed,
            users=len(self._users),
            access_exposure_until=exposure(self._runtime, self._exposure),
            complete=complete,
        )


# --- by selector -----------------------------------------------------------------------------


def revoke_matching(runtime: Runtime, selector: Selector, order: Order) -> Revocation:
    """Revoke all that the selector matches and that is not dead, in chunks of CHUNK."""
    before = preview(runtime, selector)
    revoked, users_hit, latest, complete = 0, set[bytes](), before.access_exposure_until or 0, True
    for done in _revoke_chunks(runtime, before.selector, order):
        if done is None:
            complete = False
            break
        revoked += len(done)
        users_hit.update(row.user_id for row in done)
        latest = max([latest, *(row.access_until for row in done)])
        order.progress(len(done))
    return Revocation(
        revoked=revoked,
        already_dead=before.already_dead,
        users=len(users_hit),
        access_exposure_until=exposure(runtime, latest),
        complete=complete,
    )


def _revoke_chunks(
    runtime: Runtime, selector: Selector, order: Order
) -> Iterator[list[tokens.Revoked] | None]:
    """What each chunk's transaction revoked; None when it was told to stop before the end."""
    for part in _parts(selector):
        after = _SMALLEST_ID
        while True:
            if order.stop():
                yield None
                return
            if not (done := _revoke_next(runtime, part, order, after)):
                break
            yield done
            after = done[-1].raw_id


@repeated
def _revoke_next(runtime: Runtime, part: Selector, order: Order, after: bytes) -> list[tokens.Revoked]:
    with runtime.storage.write() as connection:
        now = runtime.clock()
        return revoke_chunk(connection, part, now=now, reason=order.reason, actor=order.actor, after=after)


def revoke_chunk(
    connection: Connection,
    selector: Selector,
    *,
    now: int,
    reason: str,
    actor: str | None,
    after: bytes = _SMALLEST_ID,
    keep: str | None = None,
    context: Context = NO_CONTEXT,
) -> list[tokens.Revoked]:
    """Revoke one chunk of a resolved selector but `keep`, with its events, in the caller's transaction.

    `context` is that of a bearer who asked for it.
    """
    done = tokens.revoke_chunk(
        connection, selector, now=now, reason=reason, actor=actor, after=after, keep=keep
    )
    whence = {} if context.user_agent is None else {"user_agent": context.user_agent}
    events.add(
        connection,
        (
            Event(
                at=now,
                type="token.revoke",
                actor=actor,
                user_id=ids.user_id(row.user_id),
                token_id=ids.token_id(row.raw_id),
                client_id=row.client_id,
                ip=context.ip,
                reason=reason,
                data={"access_until": row.access_until, **whence},
            )
            for row in done
        ),
    )
    return done


def revoke_all_of_user(
    connection: Connection,
    user_id: str,
    *,
    now: int,
    reason: str,
    actor: str | None,
    keep: str | None = None,
    context: Context = NO_CONTEXT,
) -> list[tokens.Revoked]:
    """All logins of one user but `keep`, in the caller's transaction: what ends them is not without it."""
    selector = Selector(users=(user_id,))
    every: list[tokens.Revoked] = []
    after = _SMALLEST_ID
    while done := revoke_chunk(
        connection, selector, now=now, reason=reason, actor=actor, after=after, keep=keep, context=context
    ):
        every += done
        after = done[-1].raw_id
    return every


def preview(runtime: Runtime, selector: Selector) -> Preview:
    """What `revoke_matching` would hit. Changes nothing."""
    selector = resolve(runtime, selector)
    now = runtime.clock()
    total, alive, last_used_at, access_until = 0, 0, 0, 0
    users_hit: set[bytes] = set()
    users_counted = 0
    several = len(selector.token_ids) > tokens.CHUNK
    for part in _parts(selector):
        with runtime.storage.read() as connection:
            count = tokens.count(connection, part, now=now)
            if several:  # a user may have tokens in several parts
                users_hit.update(tokens.users_of(connection, part, now=now))
        total += count.tokens
        alive += count.alive
        users_counted = len(users_hit) if several else count.users
        last_used_at = max(last_used_at, count.last_used_at or 0)
        access_until = max(access_until, count.access_until or 0)
    return Preview(
        tokens=alive,
        users=users_counted,
        already_dead=total - alive,
        last_used_at=last_used_at or None,
        access_exposure_until=exposure(runtime, access_until),
        selector=selector,
    )


def select(runtime: Runtime, selector: Selector) -> Iterator[RefreshToken]:
    """All rows of the selection, oldest login first, in constant memory; each page is one read."""
    return _pages(runtime, resolve(runtime, selector))  # resolved now, not when the first row is asked for


def _pages(runtime: Runtime, selector: Selector) -> Iterator[RefreshToken]:
    for part in _parts(selector):
        after: str | None = None
        while True:
            with runtime.storage.read() as connection:
                rows = tokens.page(connection, part, now=runtime.clock(), after=after)
            yield from rows
            if len(rows) < tokens.CHUNK:
                break
            after = rows[-1].id


@repeated
def resolve(runtime: Runtime, selector: Selector) -> Selector:
    """The selector with its users as ids, and each id once, in its one form.

    Raises EmptySelector, InvalidInput, UserNotFound, ClientNotFound.
    """
    selector.require_some().require_valid()
    token_ids = tuple(sorted({ids.parse_token_id(token) for token in selector.token_ids}))
    with runtime.storage.read() as connection:
        found = tuple(users.require(connection, user).id for user in selector.users)
        for client in selector.clients:
            if users.get_client(connection, clean_client_id(client)) is None:
                raise ClientNotFound(f"there is no client {client}")
    return replace(selector, users=found, token_ids=token_ids)


def exposure(runtime: Runtime, access_until: int) -> int | None:
    """The instant itself, or None when it is over."""
    return access_until if access_until > runtime.clock() else None


def _parts(selector: Selector) -> Iterator[Selector]:
    """The resolved selector, cut up where it names more ids than one statement takes; in order of id."""
    if len(selector.token_ids) <= tokens.CHUNK:
        yield selector
        return
    for i in range(0, len(selector.token_ids), tokens.CHUNK):
        yield replace(selector, token_ids=selector.token_ids[i : i + tokens.CHUNK])
