"""The audit log: reading and searching it, and the ways to its seal.

Events are written by the use cases, in the transaction of what they report. Sealing is `sealing`, verifying
`verifying`, files are `exporting` and `archiving`; they are imported when they are asked for, as few commands
need them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenctl.core import ids
from tokenctl.core.names import MAX_NOTE, clean_client_id, holds_secret
from tokenctl.core.selector import MAX_ALTERNATIVES, address_ranges
from tokenctl.errors import InvalidInput, UserNotFound
from tokenctl.service.runtime import Runtime
from tokenctl.service.transactions import repeated
from tokenctl.storage import events, users
from tokenctl.storage.events import Event, Search

if TYPE_CHECKING:
    from tokenctl.core.audit_chain import Head
    from tokenctl.service.archiving import Archive
    from tokenctl.service.exporting import RevokedLogins, Source
    from tokenctl.service.revocation import Progress, Stop
    from tokenctl.service.sealing import Sealed
    from tokenctl.service.verifying import Verification

_PAGE = 500


class AuditLog:
    """Reached as `TokenService.audit`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    # --- reading ---

    @repeated
    def tail(self, limit: int = 20, *, types: Collection[str] = ()) -> list[Event]:
        """The newest `limit` events, oldest first; of all types but `purge.batch`, or of those named.

        `types` are as in `search`. Raises InvalidInput.
        """
        wanted = _clean_patterns("type", types)
        with self._runtime.storage.read() as connection:
            return events.tail(connection, limit=limit, types=wanted)

    @repeated
    def after(self, event_id: int, *, limit: int = 500) -> list[Event]:
        """The next events of all types behind the one with that id, in order, for who follows the log.

        Begin with `newest_id`, or with 0 for all. Where several transactions write at once, an event may
        be committed after one with a larger id, and is then passed over: for watching, not for a ledger.
        """
        with self._runtime.storage.read() as connection:
            return events.after(connection, event_id, limit=limit)

    @repeated
    def newest_id(self) -> int:
        """The id of the newest event; 0 when there is none."""
        with self._runtime.storage.read() as connection:
            return events.newest_id(connection)

    def search(
        self,
        *,
        user: Collection[str] = (),
        token_id: Collection[str] = (),
        types: Collection[str] = (),
        reason: Collection[str] = (),
        actor: Collection[str] = (),
        ip: Collection[str] = (),
        client: Collection[str] = (),
        since: int | None = None,
        until: int | None = None,
    ) -> Iterator[Event]:
        """The events that match, oldest first, in constant memory: OR within a field, AND across fields.

        `user`: names, or `usr_…`, also of users that are gone. `types`, `reason` and `actor` are the whole
        text, in which `*` stands for any text and `?` for one character; case counts. `ip`: addresses or
        networks. [since, until) in µs. A purge's single batches come only when a type is named.
        Raises InvalidInput, UserNotFound.
        """
        _demand_period(since, until)
        for given in (user, token_id, ip, client):
            _demand_few(given)
        wanted = Search(
            types=_clean_patterns("type", types),
            actors=_clean_patterns("actor", actor),
            reasons=_clean_patterns("reason", reason),
            user_ids=tuple(self._user_id(each) for each in user),
            token_ids=tuple(ids.parse_token_id(each) for each in token_id),
            client_ids=tuple(clean_client_id(each) for each in client),
            ips=tuple(each for text in ip for each in address_ranges(text)),
            since=since,
            until=until,
        )
        return self._pages(wanted)

    def _pages(self, wanted: Search) -> Iterator[Event]:
        after = 0
        while page := self._page(wanted, after):
            yield from page
            if len(page) < _PAGE:
                return
            after = page[-1].id or 0

    @repeated
    def _page(self, wanted: Search, after: int) -> list[Event]:
        with self._runtime.storage.read() as connection:
            return events.search(connection, wanted, after=after, limit=_PAGE)

    @repeated
    def _user_id(self, text: str) -> str:
        """The id of a user; one that is an id already may be of a user who is gone."""
        if text.lower().startswith(ids.USER_PREFIX):
            return ids.parse_user_id(text)
        with self._runtime.storage.read() as connection:
            found = users.find(connection, text)
        if found is None:
            raise UserNotFound(
                "there is no user of that name",
                hint="tokenctl user list; the deleted ones: tokenctl audit search --type user.delete",
            )
        return found.id

    # --- the seal ---

    @property
    def can_seal(self) -> bool:
        """Whether the master key is at hand. Raises KeyUnusable or KeyWrong for one that is no good."""
        return self._runtime.has_master_key

    def seal(self, stop: Stop | None = None) -> Sealed:
        """Put what is not sealed yet into new segments, of at most 200 events and a transaction each.

        That is, up to the newest event when it begins. With `stop` returning True it ends after the segment
        in hand. Any number of sealers may be at work: what another one has in hand is left to that one.
        Raises KeyMissing, KeyUnusable, KeyWrong.
        """
        from tokenctl.service.revocation import never
        from tokenctl.service.sealing import seal

        return seal(self._runtime, stop or never)

    def verify(self, head: str | None = None, *, progress: Progress | None = None) -> Verification:
        """Look whether every sealed event is what was sealed; in constant memory.

        Seals before, unless the database cannot be written to; `unsealed` tells what is left. With a `head`
        that was kept, whether the chain still leads through it: without one nobody can tell that its end was
        cut off. `progress` is called with the number of events of each step.
        What was archived is not looked at: it begins behind it, and `archived` tells how far that goes.
        Raises KeyMissing, KeyUnusable, KeyWrong; InvalidInput for what is no head, or a head in the archive.
        """
        from tokenctl.service.revocation import unseen
        from tokenctl.service.verifying import verify

        return verify(self._runtime, head=_parse_head(head), progress=progress or unseen)

    def head(self) -> Head | None:
        """The newest segment; its text is for keeping elsewhere. Seals before, where the key is at hand.

        None when nothing is sealed. Raises KeyUnusable, KeyWrong.
        """
        if self.can_seal:
            self.seal()
        return self._head()

    @repeated
    def _head(self) -> Head | None:
        from tokenctl.storage import segments

        with self._runtime.storage.read() as connection:
            return segments.head(connection)

    @repeated
    def unsealed(self) -> int:
        """How many events are in no segment."""
        from tokenctl.storage import segments

        with self._runtime.storage.read() as connection:
            return segments.count_unsealed(connection)

    # --- files ---

    def export(self, since: int | None = None, until: int | None = None) -> Iterator[dict[str, Any]]:
        """The log as lines to be encoded as JSON, in constant memory, to be verified by `verify_export`.

        Whole segments: from the first to the last that has an event of [since, until) (µs). Seals before,
        where the key is at hand. The events that are not sealed even so come behind all others.
        Raises KeyUnusable, KeyWrong, InvalidInput, and Contended when it is archived meanwhile.
        """
        from tokenctl.service.exporting import export

        _demand_period(since, until)
        if self.can_seal:
            self.seal()
        return export(self._runtime, since=since, until=until)

    def write_export(self, path: Path, since: int | None = None, until: int | None = None) -> int:
        """`export` into a new file of mode 0600, whole or not at all; how many lines.

        Raises InvalidInput when there is such a file, and kinds of DatabaseError for what a disk says.
        """
        from tokenctl.service.exporting import write_export

        return write_export(self.export(since, until), path)

    def verify_export(
        self, source: Source, head: str | None = None, *, progress: Progress | None = None
    ) -> Verification:
        """Whether an export of this log is what was exported; of the database only the key is asked.

        `source` is a binary stream, which may be packed by gzip, or the lines of one.
        Raises KeyMissing, KeyUnusable, KeyWrong; InvalidInput for what does not begin like an export.
        """
        from tokenctl.service.exporting import verify_export
        from tokenctl.service.revocation import unseen
        from tokenctl.service.verifying import Findings

        findings = Findings(_parse_head(head), progress or unseen)
        return verify_export(self._runtime.keys.audit, source, findings)

    def archive(
        self,
        place: Path,
        *,
        older_than: timedelta,
        dry_run: bool = False,
        stop: Stop | None = None,
        progress: Progress | None = None,
        actor: str | None = None,
    ) -> Archive:
        """Move the oldest segments, those with no event or seal of the last `older_than`, into a new file.

        The file is `place`, or in that directory one whose name has the numbers of the segments; mode 0600.
        It is verified before anything is deleted, and nothing is when it does not hold: `Archive.holds`. The
        newest segment stays, and what the next purge judges the clock by. With `stop` returning True it ends
        after the segment in hand; that run, or one that was killed, is gone on with by the next.
        `progress` is called with the number of events of each step, which come twice: verified, deleted.
        Raises KeyMissing, KeyUnusable, KeyWrong, DatabaseLocked; InvalidInput for an age below 7 days and for
        a file that is there and is another; kinds of DatabaseError for what a disk says.
        """
        from tokenctl.service.archiving import archive
        from tokenctl.service.revocation import never, unseen

        return archive(
            self._runtime,
            place,
            older_than=older_than,
            dry_run=dry_run,
            stop=stop or never,
            progress=progress or unseen,
            actor=self._runtime.who(actor),
        )

    def revoked_in(self, source: Source) -> RevokedLogins:
        """The `rt_…` of each login that an export says was revoked, in its order; also for a reuse.

        `source` as for `verify_export`; it is read to its end, and verified where the key is at hand, before
        the first of them comes. Without the key, or when it was exported without, `doubt` of what is returned
        says so. Raises InvalidInput for what is no export or was changed; KeyUnusable, KeyWrong.
        """
        from tokenctl.service.exporting import revoked_in

        return revoked_in(self._runtime.keys.audit if self.can_seal else None, source)


def _parse_head(text: str | None) -> Head | None:
    from tokenctl.core.audit_chain import Head

    return None if text is None else Head.parse(text)


def _demand_period(since: int | None, until: int | None) -> None:
    if since is not None and until is not None and since >= until:
        raise InvalidInput(
            "since is not before until, so no event can be in between",
            hint="exchange them: of two ages the longer is the earlier, 6h before 2h",
        )


def _demand_few(given: Collection[str]) -> None:
    if len(given) > MAX_ALTERNATIVES:
        raise InvalidInput(
            f"{len(given):,} alternatives are more than one search takes, which is {MAX_ALTERNATIVES}",
            hint="several runs with some each; a pattern such as 'INC-*' instead of many texts",
        )


def _clean_patterns(what: str, given: Collection[str]) -> tuple[str, ...]:
    _demand_few(given)
    return tuple(_clean_pattern(what, each) for each in given)


def _clean_pattern(what: str, text: str) -> str:
    """A pattern for a whole text, each run of `*` made one. Raises InvalidInput."""
    pattern = re.sub(r"\*+", "*", text)
    if holds_secret(pattern):
        raise InvalidInput(
            f"there is a token string, a client's secret or a master key where a {what} belongs",
            hint="tokenctl inspect - tells what happened to a token's login",
        )
    if not pattern or not pattern.isprintable() or len(pattern.replace("*", "")) > MAX_NOTE:
        raise InvalidInput(
            f"no {what} in the audit log is like that: it has 1 to {MAX_NOTE} printable characters",
            hint="the whole text, or a pattern such as 'INC-*'",
        )
    return pattern
