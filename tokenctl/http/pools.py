"""The threads that do what must not be done on the event loop, each with a bound on what waits.

Owns that a flood of logins cannot slow refreshes: password hashes are computed by one or two threads of the
lowest priority, and what waits for them is few; the rest is told to come back.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import ParamSpec, TypeVar

from tokenctl.errors import Busy

P = ParamSpec("P")
T = TypeVar("T")


class Pool:
    """Threads for blocking calls; `limit` calls at most wait or run, the next one raises Busy at once.

    A call that is not done after `patience` (s) raises Busy as well; it may still be done later.
    """

    def __init__(self, name: str, *, threads: int, limit: int, patience: float = 10) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._name = name
        self._limit = limit
        self._held = 0
        self._patience = patience

    @property
    def held(self) -> int:
        """How many calls wait or run."""
        return self._held

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result, computed on a thread of the pool."""
        if self._held >= self._limit:
            raise Busy(f"too many calls are waiting ({self._name})")
        self._held += 1
        future = self._executor.submit(function, *args, **kwargs)
        # Not when this coroutine ends: a caller who goes away does not stop the thread.
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._let_go))
        try:
            async with asyncio.timeout(self._patience):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise Busy(f"a call was not answered in time ({self._name})") from None

    def _let_go(self) -> None:
        self._held -= 1

    def close(self) -> None:
        """Finish what waits, and end the threads."""
        self._executor.shutdown()


#: How many passwords are hashed at once: not on all cores, one of them stays with the refreshes.
HASHING_THREADS = max(1, min(2, (os.cpu_count() or 1) - 1))


def hashing_executor() -> ThreadPoolExecutor:
    """The threads that hash passwords, and nothing else: they hold no lock that a refresh could wait for."""
    return ThreadPoolExecutor(HASHING_THREADS, thread_name_prefix="hashing", initializer=_lowest_priority)


def _lowest_priority() -> None:
    # On Linux a thread has a priority of its own; elsewhere this would slow the whole process.
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
