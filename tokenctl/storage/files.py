"""Files: whether one is there, and making a new one whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tokenctl.errors import DatabaseError, DatabaseFull, DatabaseReadOnly

#: So long no init takes (s): what is older was left by one that was killed.
_LEFT_BEHIND = 3600


def is_there(path: Path) -> bool:
    """Whether there is anything at `path`. Raises DatabaseReadOnly where this user may not even look."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise DatabaseReadOnly(f"{path} cannot be looked at: {error.strerror}") from None
    return True


def create(path: Path, build: Callable[[Path], None], *, leaves: tuple[str, ...] = ()) -> None:
    """A file of mode 0600 that `build` fills under another name, linked into place when it is finished.

    `leaves`: what the names end with that it may leave beside itself. Raises FileExistsError.
    """
    building = beside(path)
    with file_errors(path):
        try:
            os.close(os.open(building, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            build(building)
            os.link(building, path)
            sync_directory(path.parent)
        finally:
            for suffix in ("", *leaves):
                building.with_name(building.name + suffix).unlink(missing_ok=True)


def write_new_file(path: Path, content: bytes) -> None:
    """A new file of mode 0600 that is on disk, whole, before it has its name. Raises FileExistsError."""

    def write(building: Path) -> None:
        with building.open("r+b") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    create(path, write)


def beside(path: Path) -> Path:
    """A name that nobody has: what a killed init left must hinder no later one, whatever its pid."""
    return path.with_name(f"{path.name}.new-{secrets.token_hex(8)}")


def sweep(path: Path) -> None:
    """Remove what an init left that was killed an hour ago or longer."""
    ours = re.compile(re.escape(path.name) + r"(\.key)?\.new-[0-9a-f]{16}(-wal|-shm|-journal)?")
    with suppress(OSError):
        for left in path.parent.iterdir():
            if ours.fullmatch(left.name) and time.time() - left.lstat().st_mtime > _LEFT_BEHIND:
                left.unlink()


def sync_directory(directory: Path) -> None:
    """A new name is on disk only when its directory is."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def file_errors(path: Path) -> Iterator[None]:
    """What a file system says to a new file at `path`, as our error; FileExistsError passes."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        if not path.parent.is_dir():
            raise DatabaseError(
                f"{path} cannot be made: there is no directory {path.parent}", hint=f"mkdir -p {path.parent}"
            ) from None
        kind = DatabaseFull if error.errno in (28, 122) else DatabaseReadOnly
        raise kind(f"{path} cannot be made: {error.strerror}") from None
