"""Reading the audit log. Events are written by the use cases, in the transaction of what they report."""

from __future__ import annotations

from collections.abc import Collection

from tokenctl.service.runtime import Runtime
from tokenctl.service.transactions import repeated
from tokenctl.storage import events
from tokenctl.storage.events import Event


class AuditLog:
    """Reached as `TokenService.audit`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    @repeated
    def tail(self, limit: int = 20, *, types: Collection[str] = ()) -> list[Event]:
        """The newest `limit` events, oldest first; of all types but `purge.batch`, or of those named."""
        with self._runtime.storage.read() as connection:
            return events.tail(connection, limit=limit, types=types)

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
