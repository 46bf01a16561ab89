"""Where the tokens of a login are kept: in memory, in a file that processes share, or where you want.

Owns that a change is all or nothing, and that only one refreshes at a time. Knows nothing of HTTP.
"""

from __future__ import annotations

import json
import math
import os
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from tokenctl.client.core import Login, Moment, same
from tokenctl.client.errors import StoreUnusable

_VERSION = 1
#: Between looks at a lock that another process has (s): flock cannot wait for a bounded time.
_POLL = 0.01
#: Holding the lock of a change takes as long as writing a small file; longer means that something is wrong.
_SWAP_WITHIN = 5.0


class Store(Protocol):
    """What keeps one login. Implement these three to keep it somewhere else.

    All of them are called from threads of the client, never from an event loop, and may block. Raise
    StoreUnusable for what the user has to mend.
    """

    def load(self) -> Login | None:
        """The tokens that are stored now, by whomever."""
        ...

    def swap(self, expected: Login | None, new: Login | None) -> bool:
        """Store `new` (None: nothing) if `expected` is what is stored now, in one step; else return False.

        What was answered with True must survive a crash.
        """
        ...

    def turn(self, seconds: float) -> AbstractContextManager[bool]:
        """Let one at a time into the block, among all that share the store.

        Waits so long at most, and then goes on with False: the server forgives two that refresh at once.
        The end of a process must free its turn.
        """
        ...


class MemoryStore:
    """Tokens that end with the process."""

    def __init__(self) -> None:
        self._login: Login | None = None
        self._change = threading.Lock()
        self._turn = threading.Lock()

    def load(self) -> Login | None:
        return self._login

    def swap(self, expected: Login | None, new: Login | None) -> bool:
        with self._change:
            if not same(self._login, expected):
                return False
            self._login = new
            return True

    @contextmanager
    def turn(self, seconds: float) -> Iterator[bool]:
        taken = self._turn.acquire(timeout=seconds)
        try:
            yield taken
        finally:
            if taken:
                self._turn.release()


class FileStore:
    """Tokens in a file of mode 0600, which any number of processes of one user on one machine share.

    A new file takes the place of the old one in one step, after it has reached the disk. Beside it stand two
    lock files, `<path>.turn` and `<path>.lock`; they are kept, since unlinking one races with whoever opens
    it. The end of a process frees its locks, whatever ended it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Another name of the same file must mean the same locks.
        self.path = Path(path).expanduser().resolve()

    def __repr__(self) -> str:
        return f"FileStore({str(self.path)!r})"

    def load(self) -> Login | None:
        with self._explained("read"):
            try:
                fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None
            with os.fdopen(fd, "rb") as file:
                self._demand_private(os.fstat(fd))
                text = file.read()
        try:
            return _decoded(json.loads(text))
        except (ValueError, TypeError, KeyError, AttributeError):
            # Not its content, and not as the cause: tokens are in there.
            raise StoreUnusable(
                f"{self.path} holds no tokens of this version", hint=f"log in again: rm {self.path}"
            ) from None

    def swap(self, expected: Login | None, new: Login | None) -> bool:
        with self._locked("lock", _SWAP_WITHIN) as taken:
            if not taken:
                raise StoreUnusable(
                    f"another process has been changing {self.path} for {_SWAP_WITHIN:g} s",
                    hint=f"find out which: fuser {self._beside('lock')}",
                )
            if not same(self.load(), expected):
                return False
            with self._explained("write"):
                self._replace(new)
            return True

    def turn(self, seconds: float) -> AbstractContextManager[bool]:
        return self._locked("turn", seconds)

    def _replace(self, login: Login | None) -> None:
        if login is None:
            with suppress(FileNotFoundError):
                self.path.unlink()
        else:
            # Only the holder of the lock writes it, so what a crash left behind is written over.
            new = self._beside("new")
            with suppress(FileNotFoundError):
                new.unlink()
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                json.dump(_encoded(login), file, indent=1)
                file.flush()
                os.fsync(fd)
            new.replace(self.path)
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    @contextmanager
    def _locked(self, name: str, seconds: float) -> Iterator[bool]:
        import fcntl

        with self._explained("lock"):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self._beside(name), flags, 0o600)
        try:
            with self._explained("lock"):
                taken = _flock(fd, seconds)
            yield taken
        finally:
            # Not only closed: a child that was forked meanwhile has the descriptor, too, and would hold on.
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def _beside(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{name}")

    def _demand_private(self, found: os.stat_result) -> None:
        if stat.S_IMODE(found.st_mode) & 0o077:
            raise StoreUnusable(
                f"{self.path} can be read by others", hint=f"log in again, after: rm {self.path}"
            )

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnusable(
                f"cannot {what} {self.path}: {error.strerror}",
                hint=f"check the directory: ls -ld {self.path.parent}",
            ) from error


def _flock(fd: int, seconds: float) -> bool:
    """Lock, or give up after so long and at least one try."""
    import fcntl

    deadline = time.monotonic() + seconds
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(_POLL, left))


# --- the form of the file ------------------------------------------------------------------


def _encoded(login: Login) -> dict[str, Any]:
    return {
        "version": _VERSION,
        "base_url": login.base_url,
        "client_id": login.client_id,
        "user_id": login.user_id,
        "scope": login.scope,
        "access_token": login.access_token,
        "expires_in": login.expires_in,
        "asked_at": {
            "running": login.asked_at.running,
            "boot": login.asked_at.boot,
            "wall": login.asked_at.wall,
        },
        "refresh_token": login.refresh_token,
    }


def _decoded(found: Any) -> Login:
    """Raises ValueError, TypeError, KeyError or AttributeError for anything else than what we wrote."""
    if found["version"] != _VERSION:
        raise ValueError
    at = found["asked_at"]
    return Login(
        access_token=_text(found["access_token"]),
        refresh_token=_text(found["refresh_token"]),
        expires_in=_number(found["expires_in"]),
        asked_at=Moment(
            running=_number(at["running"]),
            wall=_number(at["wall"]),
            boot=None if at["boot"] is None else _text(at["boot"]),
        ),
        base_url=_text(found["base_url"]),
        client_id=_text(found["client_id"]),
        scope=found["scope"] if found["scope"] == "" else _text(found["scope"]),
        user_id=None if found["user_id"] is None else _text(found["user_id"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError
    return float(value)
