"""What the database gives up for the sake of another transaction is begun again, as a whole.

A serialization failure, a deadlock, a connection that breaks before its commit: nothing was kept, so nothing
is done twice. SQLite, with its one writer, never gives up.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from tokenctl.errors import TransactionAborted

P = ParamSpec("P")
T = TypeVar("T")

#: For so long (s) a transaction is begun again.
_PATIENCE = 3.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.1


def repeated(transaction: Callable[P, T]) -> Callable[P, T]:
    """Decorates what is one transaction, and does nothing else that must not be done twice."""

    @wraps(transaction)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        deadline = time.monotonic() + _PATIENCE
        pause = _FIRST_PAUSE
        while True:
            try:
                return transaction(*args, **kwargs)
            except TransactionAborted:
                if time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(0, pause))  # noqa: S311 - so that two do not meet again
            pause = min(pause * 2, _LONGEST_PAUSE)

    return call
