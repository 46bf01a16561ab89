"""The sealer of a server: a thread that seals the audit log once a minute.

Owns when it does, and that it hinders nothing: neither the start nor the stop of the server, nor a server
whose database is away. How events are sealed, and at what pace, is the service's affair.
"""

from __future__ import annotations

import logging
from threading import Event, Thread
from typing import TYPE_CHECKING, Self

from tokenctl.errors import TokenctlError

if TYPE_CHECKING:
    from tokenctl import TokenService

#: Between two looks (s).
EVERY = 60.0
#: How long (s) the end of the server waits for the transaction in hand, which rolls back otherwise.
_PATIENCE = 5.0

_log = logging.getLogger("tokenctl.sealer")


class Sealer:
    """Seals for the length of a `with` block. Safe to stop before its end, and more than once."""

    def __init__(self, service: TokenService, *, every: float | None = None) -> None:
        """`every` in seconds; EVERY when it is not said."""
        self._service = service
        self._every = EVERY if every is None else every
        self._over = Event()
        # A daemon: a database that hangs must not keep the process alive.
        self._thread = Thread(target=self._run, name="sealer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(_PATIENCE)

    def stop(self) -> None:
        """Begin nothing more; returns at once."""
        self._over.set()

    def _run(self) -> None:
        while not self._over.wait(self._every):
            try:
                # Each time anew: the key may come, as the database may.
                if self._service.audit.can_seal:
                    self._service.audit.seal(self._over.is_set)
            except TokenctlError as error:
                _log.warning("the audit log was not sealed, and is tried again: %s", error.message)
            except Exception:  # noqa: BLE001 - the next minute is another one
                _log.exception("the audit log was not sealed, and is tried again")
