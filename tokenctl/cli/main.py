"""The entry point and the only catcher: it runs a command, says what went wrong, and picks the exit code.

The tree of commands is built in `options`; what a command prints goes through `output`. Nothing here knows
what any command does, and nothing but typer and the standard library is imported here: the start is short.
"""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Sequence
from shlex import quote
from types import FrameType
from typing import Any

import typer

from tokenctl import errors

# Importing a module of commands registers them. Add yours here, and its commands to ORDER.
from tokenctl.cli import (
    auditing,
    completion,
    config,
    cutting,
    database,
    demo,
    evidence,
    help,
    importing,
    inspecting,
    purging,
    revoking,
    scanning,
    serve,
    stats,
    tokens,
    users,
)
from tokenctl.cli.options import app
from tokenctl.cli.output import printable

PROGRAM = "tokenctl"

# The commands as --help lists them: what is needed first, and most, comes first.
ORDER = (
    "init", "doctor", "create-user", "issue", "list", "inspect", "rotate", "revoke", "cutoff", "scan",
    "evidence", "stats", "purge", "serve", "demo", "user", "client", "keys", "audit", "db", "config",
    "completion", "help",
)  # fmt: skip
COMPLETE_VAR = "_TOKENCTL_COMPLETE"


class Terminated(KeyboardInterrupt):
    """SIGTERM. Like Ctrl-C no `Exception`: no `except Exception` on the way keeps it from ending the run."""


# Which error ends in which exit code: the first class of the error's MRO that stands here decides.
# 3 (partial) and 7 (a finding) are results, not errors: a command returns them.
EXIT: dict[type[BaseException], int] = {
    BaseException: 1,
    typer.TyperException: 2,
    errors.InvalidInput: 2,
    errors.EmptySelector: 2,
    errors.ConfigInvalid: 2,
    errors.PasswordRefused: 2,
    errors.InvalidScope: 2,
    errors.NotFound: 4,
    errors.InvalidToken: 4,
    errors.TokenRefused: 4,
    errors.InvalidAccessToken: 4,
    errors.Declined: 5,
    errors.ConfirmationMissing: 5,
    typer.Abort: 5,
    errors.OverMax: 6,
    errors.PlanDrift: 6,
    errors.DatabaseMissing: 10,
    errors.NotMigrated: 10,
    errors.NotADatabase: 10,
    errors.DatabaseAway: 10,
    errors.ConnectionRefused: 10,
    errors.DatabaseLocked: 11,
    errors.Interrupted: 130,
    KeyboardInterrupt: 130,
    Terminated: 143,
}


def exit_code(error: type[BaseException]) -> int:
    """The exit code of an error: that of the first class of its MRO that stands in EXIT."""
    return next(EXIT[kind] for kind in error.__mro__ if kind in EXIT)


# What a file system says to a write; only the writes of the output come here without a file's name.
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}

# Where JSON was asked for, in arguments joined by NUL: read from them bare, as they may be what is wrong.
_WANTS_JSON = re.compile(r"(?:^|\0)(?:--json|--output[=\0]jsonl?|-[qy]*o\0?jsonl?)(?:\0|$)")

# A refresh token string, a client's secret or a master key that somebody put into argv: not even its
# beginning, which some messages repeat, must reach a log through us.
_SECRET = re.compile(r"(tk[rms]1_)[A-Za-z0-9_-]+")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    args = list(sys.argv[1:] if argv is None else argv)
    _prepare_streams()
    previous = _catch_signals()
    try:
        code = _dispatch(args)
        sys.stdout.flush()
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - the only catcher
        code = _report(error, args)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    _last_flush()
    return code


def _dispatch(args: list[str]) -> int:
    """Without `standalone_mode`, and without `app()`: those answer a closed pipe and Ctrl-C by themselves."""
    app.arrange(ORDER)
    group = app.build()
    if instruction := os.environ.get(COMPLETE_VAR):
        return completion.answer(group, PROGRAM, COMPLETE_VAR, instruction)
    try:
        with group.make_context(PROGRAM, args.copy()) as context:
            result = group.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    return result if isinstance(result, int) else 0


# --- saying what went wrong --------------------------------------------------------------------


def _report(error: BaseException, args: Sequence[str]) -> int:
    if isinstance(error, BrokenPipeError) and _reader_gone():
        return 0
    code = exit_code(type(error))
    name, message, hint, facts = _describe(error)
    if _wants_json(args):
        import json

        body = {"code": name, "message": message, "hint": hint, "facts": facts}
        text = json.dumps({"error": body}, default=str)
    else:
        text = f"error[{name}]: {message}"
        if hint:
            text += ("" if text.endswith((".", "?", "!")) else ".") + f" Try: {hint}"
        text = printable(text)
    if "--debug" in args and name != "usage":
        import traceback

        trace = "".join(traceback.format_exception(error)).splitlines()
        text = "\n".join([*map(printable, trace), text])
    try:
        sys.stderr.write(_SECRET.sub(r"\1…", text) + "\n")
        sys.stderr.flush()
    except OSError:
        pass  # stderr is gone: the exit code is all that is left to say
    return code


def _describe(error: BaseException) -> tuple[str, str, str, dict[str, Any]]:
    """The error's code, message, hint and facts."""
    if isinstance(error, errors.TokenctlError):
        return error.code, error.message, error.hint, error.facts
    if isinstance(error, typer.TyperException):
        context = getattr(error, "ctx", None)
        # A list of choices comes on several lines; `int range` is Typer's word, and nobody else's.
        message = " ".join(error.format_message().split()).replace("a valid int range", "a whole number")
        return "usage", message, f"{context.command_path if context else PROGRAM} --help", {}
    if isinstance(error, typer.Abort):  # a prompt of Typer's own, with nobody to answer it
        kind = errors.ConfirmationMissing
        return kind.code, "there is no terminal to ask on", kind.hint, {}
    if isinstance(error, KeyboardInterrupt):
        signal_name = "SIGTERM" if isinstance(error, Terminated) else "SIGINT"
        return errors.Interrupted.code, f"stopped by {signal_name}", errors.Interrupted.hint, {}
    if isinstance(error, OSError):
        where = error.filename or ("writing the output" if error.errno in _DISK else "")
        message = f"{where}: {error.strerror or error}".removeprefix(": ")
        return "io.failed", message, _hint_of_io(error), {"errno": error.errno}
    message = f"{type(error).__name__}: {error}".removesuffix(": ")
    hint = "the same command with --debug, and report what it prints: this is a bug"
    if isinstance(error, MemoryError):
        hint = "the same command with less at a time, or on a machine with more memory"
    return "internal", message, hint, {}


def _hint_of_io(error: OSError) -> str:
    if error.errno == errno.EIO and error.filename:
        return f"copy {quote(str(error.filename))} to another disk, if it can be; then repeat the command"
    if error.errno in _DISK:
        return "free some space, or use another file system; then repeat the command"
    if error.filename:
        return f"ls -ld {quote(str(error.filename))} shows its owner and its mode; then repeat the command"
    return "look whether what reads the output still runs, then repeat the command"


def _wants_json(args: Sequence[str]) -> bool:
    options = args[: args.index("--")] if "--" in args else args
    return _WANTS_JSON.search("\0".join(options)) is not None


# --- streams and signals -----------------------------------------------------------------------


def _prepare_streams() -> None:
    """No closed standard stream, and no character that a stream cannot write."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Taking the free descriptor keeps a database file from becoming number 1 or 2.
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115 - open to the end
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _catch_signals() -> dict[int, Any]:
    """Make SIGTERM unwind the stack, so that every `with` on it rolls back. Returns the handlers before.

    A terminal that goes away means the same, unless somebody has said that it does not, as `nohup` does.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    previous: dict[int, Any] = {signal.SIGTERM: signal.signal(signal.SIGTERM, _terminate)}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        previous[signal.SIGHUP] = signal.signal(signal.SIGHUP, _hang_up)
    return previous


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not tear the rollback
    raise Terminated


def _hang_up(_signal: int, _frame: FrameType | None) -> None:
    signal.raise_signal(signal.SIGTERM)  # to whoever takes it now


def _reader_gone() -> bool:
    """Whether it is our own output that nobody reads: a broken pipe to anything else is a failure."""
    if not hasattr(select, "poll"):
        return True
    poll = select.poll()
    for stream in (sys.stdout, sys.stderr):
        poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _last_flush() -> None:
    """Nothing is left for the interpreter to write on its way out: it would say so, and exit 120."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
