"""Reading the audit log. Events are written by the use cases, in the transaction of what they report."""

from __future__ import annotations

from collections.abc import Collection

from tokenctl.service.runtime import Runtime
from tokenctl.storage import events
from tokenctl.storage.events import Event


class AuditLog:
    """Reached as `TokenService.audit`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def tail(self, limit: int = 20, *, types: Collection[str] = ()) -> list[Event]:
        """The newest `limit` events, oldest first; of all types but `purge.batch`, or of those named."""
        with self._runtime.storage.read() as connection:
            return events.tail(connection, limit=limit, types=types)
