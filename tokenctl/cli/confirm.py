"""What asks the operator, and what reads a secret from them: never from argv, and never without an end.

Who may be asked what is decided here; what is at stake is counted by the caller.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tokenctl.cli.output import printable
from tokenctl.errors import ConfirmationMissing, Declined, Interrupted, InvalidInput

ASK_UP_TO = 20
"""Live tokens that a plain yes may end; more, or everything, needs the number of users."""
_SECRET_BYTES = 8192


def confirm(
    what: str,
    *,
    tokens: int,
    users: int,
    everything: bool = False,
    yes: bool = False,
    number: int | None = None,
    look: str = "--dry-run",
) -> None:
    """Return when `what` ("revoke 23 tokens of 11 users") is confirmed.

    Raises Declined, or ConfirmationMissing where there is no terminal to ask on.
    """
    if not tokens:
        return
    if number is not None:
        # It is fine to tell the right number: the operator has to look again, not to guess.
        if number != users:
            raise Declined(
                f"--confirm {number} is not the number of affected users, which is {users} now: {what}",
                hint=f"{look} shows them",
                users=users,
                tokens=tokens,
            )
        return
    small = tokens <= ASK_UP_TO and not everything
    if small and yes:
        return
    flag = "--yes" if small else f"--confirm {users}"
    if not sys.stdin.isatty():
        raise ConfirmationMissing(
            f"this needs a confirmation, and there is no terminal to ask on: {what}",
            hint=f"look at it with {look}, then add {flag}",
            users=users,
            tokens=tokens,
            flag=flag.partition(" ")[0],
        )
    if small:
        agreed = _ask(f"{what}? [y/N] ").lower() in {"y", "yes"}
    else:
        agreed = _ask(f"{what}. Type the number of affected users to go on: ") == str(users)
    if not agreed:
        raise Declined(f"not confirmed, nothing was done: {what}")


def _ask(question: str) -> str:
    """One line from the terminal; the question goes to stderr, as stdout is data."""
    sys.stdout.flush()
    sys.stderr.write(printable(question))
    sys.stderr.flush()
    try:
        answer = sys.stdin.readline()
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        raise Interrupted("interrupted at the question, nothing was done", hint="the same command") from None
    if not answer.endswith("\n"):
        sys.stderr.write("\n")
    return answer.strip()


def read_secret(
    prompt: str,
    *,
    from_stdin: bool = False,
    from_file: Path | None = None,
    repeat: bool = False,
    flags: str = "--password-stdin or --password-file FILE",
) -> str:
    """A password: the first line of stdin or of a file, else a hidden prompt (twice with `repeat`)."""
    if from_file is not None:
        with open_file(from_file) as stream:
            return _secret_line(stream)
    if from_stdin:
        return _secret_line(sys.stdin.buffer)
    if not sys.stdin.isatty():
        raise ConfirmationMissing(
            "there is no terminal to ask for the password on", hint=f"add {flags}", flag=flags
        )
    secret = _hidden(f"{prompt}: ")
    if repeat and secret != _hidden(f"{prompt} again: "):
        raise InvalidInput("the two are not the same", hint="type it again, twice the same")
    return _checked(secret.encode("utf-8", "surrogateescape"))


def read_token() -> str:
    """A token string from stdin, for `-`; on a terminal from a hidden prompt. Its form is not judged here."""
    if sys.stdin.isatty():
        data = _hidden("Refresh token: ").encode("utf-8", "surrogateescape")
    else:
        data = sys.stdin.buffer.read(_SECRET_BYTES + 1)
    return _checked(data.strip())


def read_lines(stream: BinaryIO, limit: int = 4096) -> Iterator[bytes | None]:
    """Each line without its end; None for one of more than `limit` bytes, which is never held whole.

    Raises OSError, with the file's name.
    """
    while line := _part(stream, limit + 2):
        content = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(content) <= limit:
            yield content
            continue
        while line and not line.endswith(b"\n"):
            line = _part(stream, 65536)
        yield None


def _part(stream: BinaryIO, limit: int) -> bytes:
    try:
        return stream.readline(limit)
    except OSError as error:
        error.filename = stream.name
        raise


def open_file(path: Path | str) -> BinaryIO:
    """A file to read. Raises InvalidInput for one that cannot be."""
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise InvalidInput(f"{path}: {error.strerror}", hint="name a file that can be read") from None


def _secret_line(stream: BinaryIO) -> str:
    line = stream.readline(_SECRET_BYTES + 2)
    return _checked(line.removesuffix(b"\n").removesuffix(b"\r"))


def _checked(data: bytes) -> str:
    """The text of a secret. No message repeats any of it."""
    if not data:
        raise InvalidInput(
            "nothing was given where a secret was expected", hint="hand it over on stdin, one line"
        )
    if len(data) > _SECRET_BYTES:
        raise InvalidInput(
            f"this is too long for a secret: more than {_SECRET_BYTES:,} bytes",
            hint="the secret alone, on one line",
        )
    try:
        secret = data.decode()
    except UnicodeDecodeError:
        raise InvalidInput("this is no text in UTF-8", hint="save it as UTF-8 text") from None
    if "\0" in secret:
        raise InvalidInput("there is a NUL byte in this: it is no text", hint="save it as UTF-8 text")
    return secret


def _hidden(prompt: str) -> str:
    import getpass
    import warnings

    with warnings.catch_warnings():
        # Where it cannot switch the echo off, getpass warns and shows what is typed.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass(printable(prompt), stream=sys.stderr)
        except EOFError:
            raise Declined("nothing was typed") from None
        except getpass.GetPassWarning:
            raise ConfirmationMissing("this terminal cannot hide what is typed") from None
