"""A clean end for work in chunks: a signal lets the chunk in hand finish, and the counts be told."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

_T = TypeVar("_T")


class Stop:
    """True once SIGINT or SIGTERM asked us to stop."""

    signal_number = 0
    _is_waiting = False

    def __call__(self) -> bool:
        return self.signal_number != 0

    @property
    def exit_code(self) -> int:
        """0, or what a shell expects of a program that a signal ended."""
        return 128 + self.signal_number if self.signal_number else 0

    def note(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler."""
        self.signal_number = number
        if self._is_waiting:
            raise KeyboardInterrupt

    def until(self, source: Iterable[_T]) -> Iterator[_T]:
        """All of these, or those before the signal: it also ends the wait for one that is long in coming."""
        each = iter(source)
        while True:
            self._is_waiting = True
            try:
                if self():
                    return
                found = next(each)
            except (StopIteration, KeyboardInterrupt):
                return
            finally:
                self._is_waiting = False
            yield found


@contextmanager
def stoppable() -> Iterator[Stop]:
    """For the length of the block the signals only set the `Stop`."""
    stop = Stop()
    before = {number: signal.signal(number, stop.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
