"""Cut-offs: every login created at or before an instant is refused, of everybody, of a client or of a user.

Owns which instants are accepted, and what a change means for the logins. A change is one row and its event,
in one transaction, however many logins there are; it holds on every node for whatever begins after its
commit. No login is revoked: a cut-off can be taken back. Of the three that concern a login the latest wins;
the judgement is `core.rotation`.

Instants are compared with a login's `created_at`, which is the clock of the node that issued it: where nodes'
clocks are apart, a login may fall on the other side by so much.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tokenctl.core import ids
from tokenctl.core.names import clean_client_id, clean_note
from tokenctl.errors import ClientNotFound, EmptySelector, InvalidInput, NotADatabase, UserNotFound
from tokenctl.service.revocation import exposure
from tokenctl.service.runtime import Runtime
from tokenctl.service.transactions import repeated
from tokenctl.storage import cutoffs, events, users
from tokenctl.storage.cutoffs import EVERYTHING, Scope
from tokenctl.storage.engine import Connection
from tokenctl.storage.events import Event

_PAGE = 1_000
_SMALLEST_ID = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOff:
    """One that stands: logins of `scope` created at or before `not_before` (µs) are refused."""

    scope: Scope
    not_before: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CutOffChange:
    """A change of one cut-off, from `previously` to `not_before` (µs); 0 is none."""

    scope: Scope
    previously: int
    not_before: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a change does to logins that nothing else holds back.

    blocked: live ones that are refused from then on; let_in: those that are live again; users: of either.
    access_exposure_until (µs): as in `Revocation`, of every login up to the cut-off; None when it moves back.
    """

    blocked: int = 0
    let_in: int = 0
    users: int = 0
    access_exposure_until: int | None = None


class CutOffService:
    """Reached as `TokenService.cutoffs`. Each call names everything, one client, or one user.

    A user is named by its name, without case, or by its `usr_…`. All raise EmptySelector when nothing is
    named, InvalidInput when more than one, UserNotFound, ClientNotFound.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    # --- reading ---

    def list(self) -> Iterator[CutOff]:
        """All that stand: everybody's, the clients', then the users', in constant memory."""
        for found, at in self._of_all_and_clients():
            yield CutOff(scope=found, not_before=at)
        after = _SMALLEST_ID
        while page := self._of_users(after):
            for found, at in page:
                yield CutOff(scope=found, not_before=at)
            after = ids.to_bytes(page[-1][0].user_id or "")

    @repeated
    def plan(
        self,
        *,
        everything: bool = False,
        client: str | None = None,
        user: str | None = None,
        at: int | None = None,
        force: bool = False,
    ) -> CutOffChange:
        """What `set` would change now, or why it would refuse. Changes nothing."""
        with self._runtime.storage.read() as connection:
            scope = _scope(connection, everything, client, user)
            return self._setting(scope, _standing(connection, scope), at, force=force)

    @repeated
    def plan_clear(
        self, *, everything: bool = False, client: str | None = None, user: str | None = None
    ) -> CutOffChange:
        """What `clear` would change now. Changes nothing."""
        with self._runtime.storage.read() as connection:
            scope = _scope(connection, everything, client, user)
            return CutOffChange(scope=scope, previously=_standing(connection, scope), not_before=0)

    @repeated
    def reach(self, change: CutOffChange) -> Reach:
        """How many logins a change concerns, asked before it or after. Reads every login of the scope."""
        after, until = sorted((change.previously, change.not_before))
        if not until:
            return Reach()
        with self._runtime.storage.read() as connection:
            found = cutoffs.count(
                connection, change.scope, after=after, until=until, now=self._runtime.clock()
            )
        if change.not_before < change.previously:
            return Reach(let_in=found.logins, users=found.users)
        return Reach(
            blocked=found.logins,
            users=found.users,
            access_exposure_until=exposure(self._runtime, found.access_until or 0),
        )

    # --- changing ---

    @repeated
    def set(
        self,
        *,
        everything: bool = False,
        client: str | None = None,
        user: str | None = None,
        at: int | None = None,
        reason: str,
        force: bool = False,
        actor: str | None = None,
    ) -> CutOffChange:
        """Refuse every login created at or before `at` (µs; default: now). No login is revoked.

        Raises InvalidInput for an instant ahead, and for an earlier one than stands unless `force`: that
        would let logins in again.
        """
        reason = clean_note(reason)
        with self._runtime.storage.write() as connection:
            scope = _scope(connection, everything, client, user)
            # The clock is asked under the lock: of two that are set at once neither is earlier by that.
            change = self._setting(scope, _standing(connection, scope, lock=True), at, force=force)
            cutoffs.put(connection, scope, change.not_before)
            self._note(connection, "cutoff.set", change, reason, actor, until=change.not_before)
        return change

    @repeated
    def clear(
        self,
        *,
        everything: bool = False,
        client: str | None = None,
        user: str | None = None,
        reason: str = "cut-off cleared",
        actor: str | None = None,
    ) -> CutOffChange:
        """Let in again what only this cut-off held back. Where none stands nothing is done, nor noted."""
        reason = clean_note(reason)
        with self._runtime.storage.write() as connection:
            scope = _scope(connection, everything, client, user)
            standing = _standing(connection, scope, lock=True)
            change = CutOffChange(scope=scope, previously=standing, not_before=0)
            if standing:
                cutoffs.put(connection, scope, 0)
                self._note(connection, "cutoff.clear", change, reason, actor, until=standing)
        return change

    # --- shared ---

    @repeated
    def _of_all_and_clients(self) -> Sequence[tuple[Scope, int]]:
        with self._runtime.storage.read() as connection:
            return cutoffs.of_all_and_clients(connection)

    @repeated
    def _of_users(self, after: bytes) -> Sequence[tuple[Scope, int]]:
        with self._runtime.storage.read() as connection:
            return [*cutoffs.of_users(connection, after=after, limit=_PAGE)]

    def _setting(self, scope: Scope, standing: int, at: int | None, *, force: bool) -> CutOffChange:
        now = self._runtime.clock()
        if at is None:
            at = now
        if at > now:
            raise InvalidInput(
                "this instant is still ahead, and until then every new login would be refused as well",
                hint="leave the instant out for now; disable a user who must not log in again",
            )
        if at <= 0:
            raise InvalidInput(
                "a cut-off at the beginning of 1970 cuts off nothing", hint="tokenctl cutoff clear"
            )
        if at < standing and not force:
            raise InvalidInput(
                "a later cut-off stands, and an earlier one in its place would let logins in again",
                hint="tokenctl cutoff show; set it with --force if that is meant, or clear it first",
                standing=standing,
            )
        return CutOffChange(scope=scope, previously=standing, not_before=at)

    def _note(
        self,
        connection: Connection,
        type_: str,
        change: CutOffChange,
        reason: str,
        actor: str | None,
        *,
        until: int,
    ) -> None:
        """`until` is the cut-off that was set or cleared."""
        scope = change.scope
        facts: dict[str, str | int] = {"scope": scope.kind, "until": until}
        if scope.user_name is not None:
            facts["name"] = scope.user_name
        if change.not_before and change.previously:
            facts["previously"] = change.previously
        event = Event(
            at=self._runtime.clock(),
            type=type_,
            actor=self._runtime.who(actor),
            user_id=scope.user_id,
            client_id=scope.client_id,
            reason=reason,
            data=facts,
        )
        events.add(connection, [event])


def _scope(connection: Connection, everything: bool, client: str | None, user: str | None) -> Scope:
    named = [everything, client is not None, user is not None].count(True)
    if not named:
        raise EmptySelector("no cut-off is named", hint="--all, --client ID or --user NAME")
    if named > 1:
        raise InvalidInput(
            "a cut-off is of everything, of one client or of one user", hint="set each by itself"
        )
    if user is not None:
        found = users.require(connection, user)
        return Scope(kind="user", user_id=found.id, user_name=found.name)
    if client is not None:
        return Scope(kind="client", client_id=clean_client_id(client))
    return EVERYTHING


def _standing(connection: Connection, scope: Scope, *, lock: bool = False) -> int:
    """The instant that stands (µs); 0 when none does."""
    at = cutoffs.get(connection, scope, lock=lock)
    if at is not None:
        return at
    if scope.client_id is not None:
        raise ClientNotFound(f"there is no client {scope.client_id}")
    if scope.user_id is not None:  # deleted since it was found
        raise UserNotFound(f"there is no user {scope.user_name}")
    raise NotADatabase("the database has lost the row of the cut-offs", hint="tokenctl db check")
