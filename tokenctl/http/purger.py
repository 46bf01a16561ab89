"""The purger of a server: a thread that purges in the interval of `purge_every`.

Owns when it does, and that it hinders nothing: neither the start nor the stop of the server, nor a server
whose database is away. What is deleted, at what pace, and that one node does it at a time, is the service's
affair.
"""

from __future__ import annotations

import logging
import random
import time
from threading import Event, Thread
from typing import TYPE_CHECKING, Self

from tokenctl.errors import DatabaseLocked, TokenctlError

if TYPE_CHECKING:
    from datetime import timedelta

    from tokenctl import TokenService
    from tokenctl.http.metrics import Metrics

#: How long (s) the end of the server waits for the batch in hand, which rolls back otherwise.
_PATIENCE = 5.0

_log = logging.getLogger("tokenctl.purger")


class Purger:
    """Purges for the length of a `with` block. Safe to stop before its end, and more than once."""

    def __init__(self, service: TokenService, metrics: Metrics, *, every: timedelta | None) -> None:
        """Without `every` it never does anything."""
        self._service = service
        self._metrics = metrics
        self._every = every
        self._over = Event()
        # A daemon: a database that hangs must not keep the process alive.
        self._thread = Thread(target=self._run, name="purger", daemon=True)

    def __enter__(self) -> Self:
        if self._every is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        if self._thread.ident is not None:
            self._thread.join(_PATIENCE)

    def stop(self) -> None:
        """Begin no other batch; returns at once."""
        self._over.set()

    def _run(self) -> None:
        assert self._every is not None
        every = self._every.total_seconds()
        # Nodes that were started together come one after the other, and a server that is restarted more often
        # than the interval still gets its turn.
        wait = random.random() * every  # noqa: S311 - nobody gains by guessing it
        while not self._over.wait(wait):
            wait = every
            try:
                self._purge()
            except DatabaseLocked as error:  # another node is at it
                _log.debug("nothing was purged: %s", error.message)
                self._metrics.purged("locked")
            except TokenctlError as error:
                self._metrics.purged("failed")
                hint = f". Try: {error.hint}" if error.hint else ""
                _log.warning("the purge failed, and is tried again: %s%s", error.message, hint)
            except Exception:  # noqa: BLE001 - the next interval is another one
                self._metrics.purged("failed")
                _log.exception("the purge failed, and is tried again")

    def _purge(self) -> None:
        done = self._service.purge(stop=self._over.is_set)
        if done.complete:
            self._metrics.purged("done", rows=done.purged, at=time.time())
        else:
            self._metrics.purged("stopped", rows=done.purged)
        if done.purged:
            _log.info("purged %d in %.1f s", done.purged, done.seconds)
