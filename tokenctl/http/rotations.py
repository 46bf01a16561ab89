"""Group commit: while one batch of rotations commits, the next one fills.

One thread owns the writing. It takes whatever has come in, hands it to `rotate_many` in one transaction, and
answers the callers after the commit, all of a batch with one wake-up of the event loop. Which entry gets
which answer is the service's business: a bad one never fails its neighbours there. A row that somebody else
has locked is waited for on another thread; and when the database does not answer at all, the callers are told
so within a bound, whatever becomes of the batch: to present the same string again is always safe.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread

from tokenctl import RotateRequest, TokenctlError, TokenPair
from tokenctl.errors import Busy, RowLocked
from tokenctl.http.pools import Pool

#: Entries of one transaction: more gains nothing, and makes the first of them wait.
MAX_BATCH = 128
#: Entries that wait. At some thousand rotations a second this is well below a second of work.
MAX_WAITING = 2048

#: When the last batch had more than _FEW entries, their like are on the way: the next one waits this long (s)
#: for them, as PostgreSQL does with commit_delay and commit_siblings. It costs less than it saves: fewer
#: transactions, and a thread that does not fight the event loop for the interpreter meanwhile.
_GATHER = 0.5e-3
_FEW = 4

#: How long (s) callers wait for a batch at most, give or take the interval at which that is looked at.
MAX_WAIT = 4.0
_LOOK = 1.0

_log = logging.getLogger("tokenctl.rotations")
_Result = TokenPair | TokenctlError
_Entry = tuple[RotateRequest, "asyncio.Future[_Result]"]


class Rotations:
    """The queue in front of `rotate_many`; start it on the event loop that calls `rotate`."""

    def __init__(
        self,
        rotate_many: Callable[[Sequence[RotateRequest]], list[_Result]],
        rotate_locked: Callable[[RotateRequest], TokenPair],
        *,
        observe_batch: Callable[[int], object],
        limit: int = MAX_WAITING,
    ) -> None:
        """`rotate_many` answers RowLocked at once, and `rotate_locked` waits for that row."""
        self._rotate_many = rotate_many
        self._rotate_locked = rotate_locked
        self._locked_rows = Pool("locked rows", threads=4, limit=64)
        self._observe_batch = observe_batch
        self._limit = limit
        self._queue: SimpleQueue[_Entry | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._last_batch = 0
        #: What the thread works on, and since when (the loop's time).
        self._batch: list[_Entry] = []
        self._since = 0.0
        self._stuck = False
        self._look = self._loop.call_later(_LOOK, self._watch)
        self._thread = Thread(target=self._write, name="rotations", daemon=True)
        self._thread.start()

    async def rotate(self, request: RotateRequest) -> TokenPair:
        """The pair, once committed. Raises Busy at once when too many wait, and what `rotate` raises."""
        if self._stuck:
            raise Busy("the database does not answer")
        if self._queue.qsize() >= self._limit:
            raise Busy("too many refreshes are waiting")
        future: asyncio.Future[_Result] = self._loop.create_future()
        self._queue.put((request, future))
        result = await future
        if isinstance(result, RowLocked):
            return await self._locked_rows.run(self._rotate_locked, request)
        if isinstance(result, TokenctlError):
            raise result
        return result

    async def close(self) -> None:
        """Finish what waits, and end the thread."""
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._look.cancel()
        self._locked_rows.close()

    def _watch(self) -> None:
        """Answer for a batch that the database holds up for too long, and for all that wait behind it."""
        self._look = self._loop.call_later(_LOOK, self._watch)
        batch = self._batch
        # Set anew each time: the thread may be done, and clear it, between our look and this line.
        self._stuck = bool(batch) and self._loop.time() - self._since >= MAX_WAIT
        if not self._stuck:
            return
        waiting = []
        with suppress(Empty):
            while (entry := self._queue.get_nowait()) is not None:
                waiting.append(entry)
            self._queue.put(None)
        every = batch + waiting
        _answer(every, [Busy("the database does not answer")] * len(every))

    # --- on the thread ---

    def _write(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._observe_batch(len(batch))
            self._since, self._batch = self._loop.time(), batch
            try:
                results = self._rotate_many([request for request, _ in batch])
            except TokenctlError as error:
                results = [error] * len(batch)
            except Exception as error:  # noqa: BLE001 - a bug costs this batch its answers, not the server its thread
                _log.exception("a batch of rotations failed")
                results = [_internal(error)] * len(batch)
            self._batch, self._stuck = [], False
            self._loop.call_soon_threadsafe(_answer, batch, results)

    def _next_batch(self) -> list[_Entry] | None:
        """What waits, at most MAX_BATCH; None when it is time to end."""
        first = self._queue.get()
        if first is None:
            return None
        if self._last_batch > _FEW:
            time.sleep(_GATHER)
        batch = [first]
        while len(batch) < MAX_BATCH:
            try:
                entry = self._queue.get_nowait()
            except Empty:
                break
            if entry is None:
                self._queue.put(None)
                break
            batch.append(entry)
        self._last_batch = len(batch)
        return batch


def _internal(error: Exception) -> TokenctlError:
    return TokenctlError(f"{type(error).__name__} in a batch of rotations")


def _answer(batch: list[_Entry], results: list[_Result]) -> None:
    for (_, future), result in zip(batch, results, strict=True):
        if not future.done():  # its caller may be gone
            future.set_result(result)
