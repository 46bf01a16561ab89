"""TokenService: the public API for an embedding application, and all that the command line does.

Owns inspecting; issuing, rotation, revocation, purging and what a bearer may do have a module each and are
reached from here.
A call is one transaction (`revoke`, `revoke_matching` and `purge`: one for each chunk), writes its audit
events inside it, and raises after its commit. What few calls need is imported by them: each start of a
command would pay for it.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tokenctl.core import ids, token_string
from tokenctl.core.context import NO_CONTEXT, Context
from tokenctl.core.names import DEFAULT_CLIENT, clean_note, clean_scope, clean_user_name
from tokenctl.core.refresh_token import RefreshToken, State
from tokenctl.core.rotation import Judgement, Presented, judge
from tokenctl.core.selector import Selector
from tokenctl.core.token_string import PresentedToken
from tokenctl.errors import (
    InvalidInput,
    InvalidToken,
    TokenctlError,
    TokenNotFound,
)
from tokenctl.service import access, issuing, revocation, targets
from tokenctl.service.access import Access, Introspection
from tokenctl.service.audit import AuditLog
from tokenctl.service.cutoff import CutOffService
from tokenctl.service.issuing import Reissue
from tokenctl.service.keys import KeyService
from tokenctl.service.pair import TokenPair
from tokenctl.service.revocation import Preview, Progress, Revocation, Stop, never, unseen
from tokenctl.service.rotation import RotateRequest, rotate_many
from tokenctl.service.runtime import Clock, Entropy, Runtime
from tokenctl.service.targets import Look, Report, Target, Targets
from tokenctl.service.transactions import repeated
from tokenctl.service.users import ClientService, UserService
from tokenctl.settings import Settings, mask_password
from tokenctl.storage import events, segments, tokens
from tokenctl.storage.events import Event
from tokenctl.storage.users import User

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from tokenctl.core.passwords import PasswordPolicy
    from tokenctl.service.evidence import Evidence
    from tokenctl.service.plans import Planned
    from tokenctl.service.purge import Purge
    from tokenctl.service.statistics import Related, Statistics
    from tokenctl.storage.plans import Plan

_TIMELINE = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """What is known of a login. `presented` and `judgement` are set when it was named by a string.

    `events` are the newest 1,000 of it; `events_complete`, whether the database has no more. archived_before:
    set (µs) when those before that instant may have been archived with the audit log.
    """

    token: RefreshToken
    state: State
    now: int
    events: list[Event]
    events_complete: bool
    archived_before: int | None = None
    presented: PresentedToken | None = None
    judgement: Judgement | None = None


class TokenService:
    """One refresh-token authority on one database. Safe to share between threads; open it anew after a fork.

    >>> with TokenService(Settings(database="tokenctl.db")) as service:  # doctest: +SKIP
    ...     pair = service.issue("ada")
    ...     pair = service.rotate(pair.refresh_token)
    ...     service.revoke([pair.token_id], reason="laptop stolen")

    `clock` returns µs since the epoch and `entropy(n)` n random bytes; both are the system's by default.
    `actor` stands in the audit log where a call names nobody.
    `hashing`, a pool of threads: password hashes are computed there instead of in the caller's thread.
    It stays the caller's to shut down, and what it raises when it takes no more work comes through.
    `may_be_away`: a database server that does not answer yet is no error; until it does, calls raise
    DatabaseAway.
    The constructor raises DatabaseMissing, NotMigrated and DatabaseAway; what needs the master key raises
    KeyMissing, KeyUnusable or KeyWrong, and everything else works without it.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        clock: Clock | None = None,
        entropy: Entropy | None = None,
        passwords: PasswordPolicy | None = None,
        hashing: Executor | None = None,
        actor: str = "service",
        may_be_away: bool = False,
    ) -> None:
        self._runtime = Runtime.open(
            settings or Settings(), clock=clock, entropy=entropy, actor=actor, may_be_away=may_be_away
        )
        self.users = UserService(self._runtime, passwords, hashing)
        self.clients = ClientService(self._runtime)
        self.keys = KeyService(self._runtime)
        self.cutoffs = CutOffService(self._runtime)
        self.audit = AuditLog(self._runtime)

    def close(self) -> None:
        """Close the database."""
        self._runtime.storage.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def settings(self) -> Settings:
        return self._runtime.settings

    @property
    def database(self) -> str:
        """The database's path or address as it was given, without a password: for messages."""
        return mask_password(self.settings.database)

    @property
    def is_sample(self) -> bool:
        """Whether this is the sample database or a copy, whose key is public and whose clock is its own."""
        return self._runtime.is_sample

    @property
    def is_development(self) -> bool:
        """Whether this database was made by `serve --dev`, with a user whose password everybody knows."""
        return self._runtime.is_development

    def ready(self) -> None:
        """Whether this can serve, for a health check: the database answers, and its schema is this release's.

        Raises a kind of DatabaseError when it cannot, ClockApart when its clock is another one than ours.
        """
        self._runtime.storage.check_migrated()
        self._runtime.demand_same_time()

    def now(self) -> int:
        """The time that the rules are asked with, in µs."""
        return self._runtime.clock()

    # --- issuing -----------------------------------------------------------------------------

    def create_user(self, name: str, password: str | None = None, *, actor: str | None = None) -> User:
        """A new user. Raises InvalidInput, PasswordRefused, UserExists. More under `users`."""
        return self.users.create(name, password, actor=actor)

    def issue(
        self,
        user: str,
        *,
        client_id: str = DEFAULT_CLIENT,
        scope: str = "",
        ttl: timedelta | None = None,
        context: Context = NO_CONTEXT,
        verified_password_hash: str | None = None,
        actor: str | None = None,
    ) -> TokenPair:
        """A new login: a refresh token at generation 0, and an access token.

        `user` is a name or `usr_…`. `ttl` is the absolute lifetime (default: the setting refresh_ttl).
        After a password check hand over the hash that was verified, so that a login which began before a
        password change does not survive it.
        Raises UserNotFound, UserDisabled, ClientNotFound, WrongPassword, InvalidScope, InvalidInput.
        """
        return issuing.issue(
            self._runtime,
            user,
            client_id=client_id,
            scope=scope,
            ttl=ttl,
            context=context,
            verified_password_hash=verified_password_hash,
            actor=actor,
        )

    def register(
        self,
        name: str,
        password: str,
        *,
        client_id: str = DEFAULT_CLIENT,
        scope: str = "",
        context: Context = NO_CONTEXT,
    ) -> TokenPair:
        """A new user, made by itself, and its first login.

        Raises InvalidInput, PasswordRefused, UserExists, ClientNotFound, InvalidScope.
        """
        # What would refuse the login is refused before there is a user.
        scope = clean_scope(scope)
        issuing.demand_login_client(self.clients.require(client_id))
        user = self.users.create(name, password, actor=clean_user_name(name))
        return self.issue(
            user.id,
            client_id=client_id,
            scope=scope,
            context=context,
            verified_password_hash=user.password_hash,
            actor=user.name,
        )

    def login(
        self,
        name: str,
        password: str,
        *,
        client_id: str = DEFAULT_CLIENT,
        scope: str = "",
        context: Context = NO_CONTEXT,
    ) -> TokenPair:
        """`issue` for whoever knows the password; a login that began before a password change fails.

        Raises WrongPassword, and what `issue` raises.
        """
        # What does not depend on the password is refused before it: else the refusal would tell of it.
        scope = clean_scope(scope)
        issuing.demand_login_client(self.clients.require(client_id))
        user = self.users.authenticate(name, password, client_id=client_id, context=context)
        return self.issue(
            user.id,
            client_id=client_id,
            scope=scope,
            context=context,
            verified_password_hash=user.password_hash,
            actor=user.name,
        )

    # --- rotating ----------------------------------------------------------------------------

    def rotate(
        self,
        refresh_token: str,
        *,
        client_id: str = DEFAULT_CLIENT,
        context: Context = NO_CONTEXT,
        scope: str | None = None,
    ) -> TokenPair:
        """A new pair for a refresh token's string (RFC 6749 §6, RFC 9700 §4.14.2).

        Whoever presents the previous string within the grace gets the same successor again. A string that
        was spent before that revokes the login, which is committed although this raises.
        Raises InvalidToken (no query was made), TokenRefused, InvalidScope, DatabaseBehind, Contended.
        """
        return self.rotate_request(RotateRequest(refresh_token, client_id, context, scope))

    def rotate_request(self, request: RotateRequest) -> TokenPair:
        """`rotate` for what `rotate_many` takes."""
        [result] = self.rotate_many([request])
        if isinstance(result, TokenctlError):
            raise result
        return result

    def rotate_many(
        self, requests: Sequence[RotateRequest], *, wait: bool = True
    ) -> list[TokenPair | TokenctlError]:
        """`rotate` for each request, in one transaction: an answer for each, in order, errors as values.

        Two requests with one token are handled one after the other. A row that somebody else's transaction
        has locked holds up no other: it is waited for at the end, for 2 s in all, or without `wait` not at
        all; then its answer is RowLocked. Raises DatabaseError when nothing could be done for any of them.
        """
        return rotate_many(self._runtime, requests, wait=wait)

    def reissue(self, token_id: str, *, reason: str = "reissued", actor: str | None = None) -> Reissue:
        """A new string for a live login whose string is not at hand; every older one stops working.

        The absolute expiry stays. Raises TokenNotFound, TokenRefused, Contended.
        """
        return issuing.reissue(self._runtime, token_id, reason=reason, actor=actor)

    # --- looking -----------------------------------------------------------------------------

    @repeated
    def inspect(self, target: str, *, client_id: str | None = None) -> Inspection:
        """All that is known of a login, named by its id or by a string of any generation. Changes nothing.

        Of a string it tells the verdict if it were presented now, by `client_id` (default: its own client).
        Raises InvalidToken for what is neither, KeyMissing for a string without the key, TokenNotFound.
        """
        presented = None
        if token_string.looks_like(target):
            presented = token_string.parse(target, self._runtime.keys.mac)
        token_id = presented.token_id if presented else _named_id(target)
        with self._runtime.storage.read() as connection:
            row = tokens.get(connection, token_id)
            timeline = events.tail(connection, limit=_TIMELINE + 1, token_id=token_id)
            archived_before = segments.archived_before(connection)
        if row is None:
            raise TokenNotFound(f"there is no refresh token {token_id}; it may have been purged")
        now = self._runtime.clock()
        judgement = None
        if presented is not None:
            shown = Presented(presented.generation, presented.secret_hash, client_id or row.client_id)
            judgement = judge(row, shown, now, self._runtime.policy)
        if archived_before is not None and not _may_lack(timeline, row, archived_before):
            archived_before = None
        return Inspection(
            token=row,
            state=row.state(now),
            now=now,
            events=timeline[-_TIMELINE:],
            events_complete=len(timeline) <= _TIMELINE,
            archived_before=archived_before,
            presented=presented,
            judgement=judgement,
        )

    def related(self, token_id: str, *, limit: int = 20) -> Related:
        """The logins of any user that share an address or a device with this one, at issue or at last use.

        Live ones first, the most recently used first; at most `limit`, and how many there are. It reads the
        whole table once. Raises InvalidInput, TokenNotFound.
        """
        from tokenctl.service import statistics

        return statistics.related(self._runtime, token_id, limit=limit)

    def statistics(self, selector: Selector, *, top: int = 10, hours: int = 24) -> Statistics:
        """Counts over the selected logins, and over the events of so many hours (UTC), the running one last.

        Of clients, addresses and users the `top` ones. A selector applies to the logins as they are now, and
        of the events to those of the selected logins that are still there; one that does not restrict counts
        all events, also of logins that were purged or deleted.
        It reads both tables whole, a few times. Raises InvalidInput, EmptySelector, UserNotFound,
        ClientNotFound.
        """
        from tokenctl.service import statistics

        return statistics.statistics(self._runtime, selector, top=top, hours=hours)

    @repeated
    def look_up(self, token_ids: Collection[str]) -> dict[str, RefreshToken]:
        """The logins with these ids, by id, whichever there are; in reads of 1,000. Raises InvalidInput."""
        raw_ids = [ids.to_bytes(ids.parse_token_id(token_id)) for token_id in token_ids]
        found: dict[str, RefreshToken] = {}
        for start in range(0, len(raw_ids), tokens.CHUNK):
            with self._runtime.storage.read() as connection:
                rows = tokens.fetch(connection, raw_ids[start : start + tokens.CHUNK])
            found.update((row.id, row) for row in rows.values())
        return found

    def check_access(self, access_token: str) -> Access:
        """What a good access token allows: its signature and claims hold, and the login behind it is live.

        What fails by itself, as the forged and the expired do, is refused without a look at any login.
        Raises InvalidAccessToken; `reason` is in its facts when it was the login.
        """
        return access.check_access(self._runtime, access_token)

    def introspect(self, token: str) -> Introspection | None:
        """An active token of either kind (RFC 7662); None for all else, whatever it is. Changes nothing.

        An access token is active as in `check_access`. A refresh token is when its own client would get a
        pair for it now, in the grace for the previous string too; a spent one is inactive, and is no reuse.
        """
        return access.introspect(self._runtime, token)

    def sessions(self, user_id: str, *, limit: int = 200) -> list[RefreshToken]:
        """The live logins of the user with that `usr_…`, the most recently used first; at most `limit`.

        Raises InvalidInput.
        """
        return access.sessions(self._runtime, user_id, limit=limit)

    def list(self, selector: Selector) -> Iterator[RefreshToken]:
        """All refresh tokens that match, oldest login first, in constant memory.

        Raises EmptySelector, UserNotFound, ClientNotFound.
        """
        return revocation.select(self._runtime, selector)

    def preview(self, selector: Selector) -> Preview:
        """How many tokens match, and what `revoke_matching` would hit. Changes nothing."""
        return revocation.preview(self._runtime, selector)

    def read_targets(self, lines: Iterable[str | None]) -> Targets:
        """Ids and strings, one a line, read once, for `preview_targets`, `plan` and `revoke`; to be closed.

        None is a line without anything. Of a string only the hash of its secret is kept. Makes no query.
        Raises KeyUnusable or KeyWrong at the first string.
        """
        return targets.hold(self._runtime, lines)

    def look(self, named: Iterable[str] | Targets) -> Look:
        """What `revoke` would hit with these ids and strings, for `revoke_found`. Changes nothing."""
        return targets.look(self._runtime, self._chunks(named))

    def preview_targets(self, named: Iterable[str] | Targets | Look) -> Preview:
        """The counts of such a look."""
        found = named if isinstance(named, Look) else self.look(named)
        return found.preview(self._runtime)

    def named(self, named: Targets) -> Iterator[str]:
        """The ids of the logins that these ids and strings name, dead ones too."""
        return (ids.token_id(raw_id) for raw_id in targets.named(self._runtime, named.chunks()))

    def plan(self, what: Selector | Targets, *, actor: str | None = None) -> Planned:
        """Look at what would be revoked, and keep exactly that as a plan, good for an hour.

        Without a plan where that is nothing.
        Raises EmptySelector, UserNotFound, ClientNotFound, InvalidInput.
        """
        from tokenctl.service import plans

        who = self._runtime.who(actor)
        if isinstance(what, Selector):
            return plans.plan_matching(self._runtime, what, actor=who)
        return plans.plan_targets(self._runtime, what, actor=who)

    def get_plan(self, plan_id: str) -> Plan:
        """A plan by the id that its dry run has shown. Raises PlanNotFound."""
        from tokenctl.service import plans

        return plans.get(self._runtime, plan_id)

    def list_planned(self, planned: Planned) -> Iterator[RefreshToken]:
        """What a dry run shows, as it is now, oldest login first."""
        from tokenctl.service import plans

        return plans.rows(self._runtime, planned)

    def plan_drift(self, plan: Plan) -> Iterator[str]:
        """The ids of the logins that match now, are not dead, and are no members; in constant memory."""
        from tokenctl.service import plans

        return plans.drift(self._runtime, plan)

    def review_plan(self, plan: Plan) -> Planned:
        """What `revoke_plan` would hit now. Changes nothing."""
        from tokenctl.service import plans

        return plans.review(self._runtime, plan)

    def evidence(
        self,
        reason: str,
        path: Path,
        *,
        actor: str | None = None,
        export: bool = True,
        progress: Progress = unseen,
    ) -> Evidence:
        """A bundle for the file of an incident: all that was revoked with that reason, and how that was done.

        A new tar.gz at `path`, of mode 0600, whole or not at all. With the master key at hand the audit log
        is sealed and verified before; without it the bundle says so. `export`: with the sealed segments that
        the events stand in, which also have events of other logins. `progress` is called with the number of
        events or logins of each step. Raises InvalidInput, NotFound where nothing has that reason,
        DatabaseExists for a file that is there, and what a disk says.
        """
        from tokenctl.service.evidence import write

        who = self._runtime.who(actor)
        return write(self._runtime, reason, path, actor=who, export=export, progress=progress)

    # --- ending ------------------------------------------------------------------------------

    def end_session(self, user_id: str, token_id: str, *, actor: str, context: Context = NO_CONTEXT) -> bool:
        """Revoke one of the user's own logins; False when it was dead already.

        Raises TokenNotFound, alike for another user's login, an unknown and a malformed id; InvalidInput.
        """
        return access.end_session(self._runtime, user_id, token_id, actor=actor, context=context)

    def logout(
        self,
        refresh_token: str,
        *,
        client_id: str = DEFAULT_CLIENT,
        everywhere: bool = False,
        context: Context = NO_CONTEXT,
    ) -> Revocation:
        """End the login of a string of any generation; with `everywhere` every login of its user, at once.

        Of a dead login, or one that is purged, there is nothing to end: it is counted as such. It cannot end
        the others, though, and neither can one that was cut off: with `everywhere` they are refused.
        Raises InvalidToken (no query was made); TokenRefused for another client's string and a superseded
        one, which changes nothing.
        """
        return access.logout(
            self._runtime, refresh_token, client_id=client_id, everywhere=everywhere, context=context
        )

    def revoke_presented(
        self, token: str, *, client_id: str = DEFAULT_CLIENT, context: Context = NO_CONTEXT
    ) -> bool:
        """End the login behind a token of that client (RFC 7009); whether that revoked anything.

        `token` is a refresh token's string of any generation, or a good access token. False for all else:
        malformed, forged, unknown, superseded, another client's, dead.
        """
        return access.revoke_presented(self._runtime, token, client_id=client_id, context=context)

    def revoke(
        self,
        named: Iterable[str] | Targets,
        *,
        reason: str,
        actor: str | None = None,
        stop: Stop = never,
        progress: Progress = unseen,
        report: Report | None = None,
    ) -> Revocation:
        """Revoke logins named by ids or by strings of any generation, in chunks of 1,000; idempotent.

        Of a string the secret must be the login's; a superseded one counts as unknown. What is neither id
        nor string is counted as malformed. With `stop` returning True it ends after the chunk in hand;
        `progress` is called with the number of targets of each chunk that is done, `report` with each line
        (from 1), its `rt_…` if it names one, and the name of the count in which it ended up. Raises
        InvalidInput, and at the first string KeyUnusable or KeyWrong; `read_targets` raises them beforehand.
        """
        order = revocation.Order(clean_note(reason), self._runtime.who(actor), stop, progress)
        return targets.revoke(self._runtime, self._chunks(named), order, report)

    def revoke_found(
        self,
        found: Look,
        *,
        reason: str,
        actor: str | None = None,
        stop: Stop = never,
        progress: Progress = unseen,
    ) -> Revocation:
        """Revoke exactly what a look has found; `stop` and `progress` as in `revoke`. Raises InvalidInput."""
        order = revocation.Order(clean_note(reason), self._runtime.who(actor), stop, progress)
        return targets.revoke_found(self._runtime, found, order)

    def _chunks(self, named: Iterable[str] | Targets) -> Iterator[builtins.list[Target]]:
        return named.chunks() if isinstance(named, Targets) else targets.read(self._runtime, named)

    def revoke_plan(
        self,
        plan: Plan,
        *,
        reason: str,
        actor: str | None = None,
        stop: Stop = never,
        progress: Progress = unseen,
    ) -> Revocation:
        """Revoke the plan's members that are not dead, and nothing else; a second run goes on.

        `stop` and `progress` as in `revoke`. Whether there is drift is the caller's question. Raises
        InvalidInput.
        """
        from tokenctl.service import plans

        order = revocation.Order(clean_note(reason), self._runtime.who(actor), stop, progress, plan.id)
        return plans.revoke(self._runtime, plan, order)

    def revoke_matching(
        self,
        selector: Selector,
        *,
        reason: str,
        actor: str | None = None,
        stop: Stop = never,
        progress: Progress = unseen,
        seen: Preview | None = None,
    ) -> Revocation:
        """Revoke every login that matches and is not dead, in chunks of 1,000; a second run goes on.

        No more than a preview has `seen`, the oldest logins first. `stop` and `progress` as in `revoke`.
        Raises InvalidInput, EmptySelector, UserNotFound, ClientNotFound.
        """
        order = revocation.Order(clean_note(reason), self._runtime.who(actor), stop, progress)
        return revocation.revoke_matching(self._runtime, selector, order, seen=seen)

    @repeated
    def declare_restored(self, *, actor: str | None = None) -> int:
        """Say that the database was restored from a backup; the instant from which that holds (µs).

        From then on a string that is newer than its row is followed, once for each login; before, it gets
        DatabaseBehind, so that its bearer keeps it.
        """
        with self._runtime.storage.write() as connection:
            now = self._runtime.clock()
            tokens.declare_recovery(connection, now=now)
            events.add(connection, [Event(at=now, type="database.restored", actor=self._runtime.who(actor))])
        return now

    def purge(
        self,
        *,
        retention: timedelta | None = None,
        batch: int = 2_000,
        dry_run: bool = False,
        force: bool = False,
        max_runtime: timedelta | None = None,
        max_rows: int | None = None,
        vacuum: bool = False,
        lock_wait: timedelta = timedelta(0),
        stop: Stop = never,
        progress: Callable[[int, int], None] | None = None,
        actor: str | None = None,
    ) -> Purge:
        """Delete refresh tokens that have been dead for longer than `retention`; never a live one.

        Transactions of `batch` rows, with pauses while others write. One runner at a time: DatabaseLocked
        after `lock_wait`, with who is at work in its facts. Refuses with ClockSuspect when the clock has
        leapt by more than max(retention, 1 day) since the last purge, unless `force`. `progress` is called
        with (rows deleted, rows found at the start).

        Ends after the batch in hand when `stop` returns True or `max_runtime` is over, and after exactly
        `max_rows`. `vacuum`: unless it is over by then, also give up the space, which on SQLite takes as much
        again and keeps writers waiting; DatabaseFull leaves the file as it was, with the rows deleted.
        A runner whose connection to a server broke has lost its lock, and raises DatabaseAway.
        """
        from tokenctl.service.purge import purge

        if batch < 1:
            raise InvalidInput("a batch has at least 1 row", hint="for example 1000")
        if max_rows is not None and max_rows < 1:
            raise InvalidInput("a purge of no rows does nothing", hint="at least 1, or no limit at all")
        retention = self._runtime.settings.purge_retention if retention is None else retention
        if retention < timedelta(0):
            raise InvalidInput(
                "a retention cannot be negative: it would delete what still lives",
                hint="0 s for all that is dead, or longer, for example 7d",
            )
        return purge(
            self._runtime,
            retention=retention,
            batch=batch,
            dry_run=dry_run,
            force=force,
            max_runtime=max_runtime,
            max_rows=max_rows,
            vacuum=vacuum,
            lock_wait=lock_wait,
            stop=stop,
            progress=progress,
            actor=self._runtime.who(actor),
        )


def _may_lack(timeline: list[Event], row: RefreshToken, before: int) -> bool:
    """Whether it may have had events before that instant (µs): the first of all tells of its issue."""
    return row.created_at < before and not any(event.type == "token.issue" for event in timeline)


def _named_id(target: str) -> str:
    """The id; what is none is no token either, since both may come from the same place."""
    try:
        return ids.parse_token_id(target)
    except InvalidInput as error:
        raise InvalidToken(error.message, hint=error.hint) from None
