"""Every error that tokenctl raises on purpose.

One root class; each class has a stable `code` (a public contract, like the JSON fields) and each
instance carries the facts. There is no HTTP status and no exit number here: the edges decide those.
A message says what happened and why; `hint` is what to do next.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AddressUnavailable",
    "Busy",
    "ClientExists",
    "ClientNotFound",
    "ClientRefused",
    "ClockApart",
    "ClockSuspect",
    "ConfigInvalid",
    "ConfirmationMissing",
    "ConnectionRefused",
    "Contended",
    "DatabaseAway",
    "DatabaseBehind",
    "DatabaseError",
    "DatabaseExists",
    "DatabaseFull",
    "DatabaseLocked",
    "DatabaseMissing",
    "DatabaseReadOnly",
    "Declined",
    "DemoFailed",
    "EmptySelector",
    "ForgedToken",
    "Interrupted",
    "InvalidAccessToken",
    "InvalidInput",
    "InvalidScope",
    "InvalidToken",
    "KeyMissing",
    "KeyUnusable",
    "KeyWrong",
    "NotADatabase",
    "NotFound",
    "NotMigrated",
    "OutcomeUnknown",
    "OverMax",
    "PasswordRefused",
    "PlanDrift",
    "PlanNotFound",
    "RowLocked",
    "StatementRefused",
    "Throttled",
    "TokenNotFound",
    "TokenRefused",
    "TokenctlError",
    "TransactionAborted",
    "UserDisabled",
    "UserExists",
    "UserNotFound",
    "WrongPassword",
]


class TokenctlError(Exception):
    """Root of all errors; `facts` are plain values that may be shown to an operator (never a secret)."""

    code: ClassVar[str] = "internal"
    hint: str = ""

    def __init__(self, message: str, *, hint: str = "", **facts: Any) -> None:
        super().__init__(message)
        self.message = message
        self.facts = facts
        if hint:
            self.hint = hint


# --- what the caller handed in ---------------------------------------------------------------


class InvalidInput(TokenctlError):
    """A value that was handed in has the wrong form; nothing was done."""

    code = "input.invalid"


class EmptySelector(TokenctlError):
    """A selector that names nothing: nothing ever means "everything" by accident."""

    code = "selector.empty"
    hint = "name what you mean, for example --user NAME, or --all"


class PasswordRefused(TokenctlError):
    """A new password that the policy does not accept (NIST SP 800-63B-4 §3.1.1)."""

    code = "password.refused"


# --- the refresh token -----------------------------------------------------------------------


class InvalidToken(TokenctlError):
    """A string that is no refresh token of ours. Found without a query."""

    code = "token.invalid"
    hint = "check that the whole string was copied"


class ForgedToken(InvalidToken):
    """A string of the right form and checksum whose MAC is not ours."""

    code = "token.forged"
    hint = "check --database: each has its own master key"


class TokenRefused(TokenctlError):
    """A genuine refresh token that must not be used; `reason` is one of `core.rotation.Reason`.

    To the bearer all refusals look alike; the reason is for the log, the audit and the operator.
    """

    code = "token.refused"
    hint = "tokenctl issue --user NAME makes a new login; or name the --database that this one is of"

    def __init__(self, reason: str, *, token_id: str | None = None, **facts: Any) -> None:
        said = (
            "a string that is not the current one was presented, so its login is revoked"
            if reason == "reuse"
            else reason
        )
        super().__init__(
            f"the refresh token is refused: {said.replace('_', ' ')}",
            reason=reason,
            token_id=token_id,
            **facts,
        )
        self.reason = reason
        self.token_id = token_id
        if token_id and reason != "not_found":
            self.hint = f"tokenctl inspect {token_id}"


class InvalidScope(TokenctlError):
    """A refresh asked for more scope than the login has (RFC 6749 §6: it may only narrow)."""

    code = "scope.invalid"


class InvalidAccessToken(TokenctlError):
    """A JWT that is no valid access token of ours (RFC 9068 §4)."""

    code = "access_token.invalid"
    hint = "get a new one with the refresh token, or log in again"


# --- what is not there, or there already -----------------------------------------------------


class NotFound(TokenctlError):
    """Root of "no such …"."""

    code = "not_found"


class UserNotFound(NotFound):
    code = "user.not_found"
    hint = "tokenctl user list"


class ClientNotFound(NotFound):
    code = "client.not_found"
    hint = "tokenctl client list"


class TokenNotFound(NotFound):
    code = "token.not_found"
    hint = "tokenctl list --all"


class PlanNotFound(NotFound):
    """No plan of that id is good: an hour after its dry run it is over."""

    code = "plan.not_found"
    hint = "look again with --dry-run, which makes a new plan"


class UserExists(TokenctlError):
    code = "user.exists"


class ClientExists(TokenctlError):
    code = "client.exists"


class UserDisabled(TokenctlError):
    """The user exists and may not log in now."""

    code = "user.disabled"


class WrongPassword(TokenctlError):
    """The password is not the user's, or there is no such user: the two look alike."""

    code = "password.wrong"


class ClientRefused(TokenctlError):
    """The client's secret is wrong, or there is no such client, or it has no secret: all look alike."""

    code = "client.refused"


class AddressUnavailable(TokenctlError):
    """The server cannot listen where it was told to."""

    code = "serve.address"


class DemoFailed(TokenctlError):
    """The demo could not be played to its end: one of its processes ended, or did not answer."""

    code = "demo.failed"
    hint = "repeat the command; on a busy machine with less: tokenctl demo --tabs 2 --burst 5"


# --- too much at once ------------------------------------------------------------------------


class Throttled(TokenctlError):
    """Too many attempts; `retry_after` (s) is in the facts."""

    code = "throttled"


class Busy(TokenctlError):
    """More work at hand than is taken on; nothing was done."""

    code = "busy"
    hint = "repeat the call in a moment"


# --- keys and configuration ------------------------------------------------------------------


class ConfigInvalid(TokenctlError):
    """A setting that cannot be used; names the setting and where its value came from."""

    code = "config.invalid"
    hint = "tokenctl config"


class KeyMissing(TokenctlError):
    """Something needs the master key, and there is none at hand."""

    code = "key.missing"


class KeyUnusable(TokenctlError):
    """There is a master key, but its file or its form is wrong."""

    code = "key.unusable"


class KeyWrong(TokenctlError):
    """The master key is not the one of this database."""

    code = "key.wrong"


# --- the database ----------------------------------------------------------------------------


class DatabaseError(TokenctlError):
    """Root of what goes wrong between us and the database."""

    code = "db.failed"


class StatementRefused(DatabaseError):
    """The database refused one statement (a constraint, a value out of range); it is not away."""

    code = "db.refused"
    hint = "change the value: text is UTF-8 without NUL, and a number is below 2^63"


class DatabaseMissing(DatabaseError):
    code = "db.missing"
    hint = "tokenctl init, or name another one with --database"


class NotMigrated(DatabaseError):
    """The schema in the database is not the one of this release."""

    code = "db.not_migrated"
    hint = "tokenctl db upgrade"


class DatabaseExists(DatabaseError):
    """There is something at the place where a new database was to be made."""

    code = "db.exists"
    hint = "look at what is there, or name another place"


class NotADatabase(DatabaseError):
    """The file is no database of ours, or is damaged."""

    code = "db.not_a_database"
    hint = "name another --database"


class DatabaseLocked(DatabaseError):
    """Somebody else holds the lock that this needs."""

    code = "db.locked"
    hint = "wait for the other one to end, then repeat the command"


class RowLocked(DatabaseLocked):
    """Somebody else's transaction has had the row for too long."""

    code = "db.row_locked"
    hint = "repeat the call in a moment; in pg_stat_activity stands who has it"


class DatabaseAway(DatabaseError):
    """The database server does not answer; nothing of the transaction was kept."""

    code = "db.away"
    hint = "is it running, and is the address right? repeat the call when it is"


class ConnectionRefused(DatabaseError):
    """The database server is there and does not let us in: no patience will help."""

    code = "db.connection_refused"


class OutcomeUnknown(DatabaseAway):
    """The connection broke during a commit: it was kept as a whole, or not at all."""

    code = "db.outcome_unknown"
    hint = "look what was kept, and repeat the call if it was not"


class TransactionAborted(DatabaseError):
    """The database gave the transaction up for the sake of another one; nothing of it was kept."""

    code = "db.aborted"
    hint = "repeat the call"


class ClockApart(DatabaseError):
    """This machine's clock and the database's are too far apart to judge what is reuse."""

    code = "db.clock_apart"
    hint = "synchronise both clocks (NTP)"


class DatabaseReadOnly(DatabaseError):
    code = "db.read_only"
    hint = "check the owner and the mode of the file and of its directory"


class DatabaseFull(DatabaseError):
    """No space; nothing of the transaction was kept."""

    code = "db.full"
    hint = "free some space on the file system of the database, then repeat the command"


class DatabaseBehind(DatabaseError):
    """A token is newer than the database: it was restored from a backup, and nobody said so."""

    code = "db.behind"
    hint = "if the database was restored from a backup: tokenctl db restored"


class Contended(DatabaseError):
    """A row changed under us three times in a row: try again."""

    code = "db.contended"
    hint = "repeat the call"


# --- safety of an operation ------------------------------------------------------------------


class ClockSuspect(TokenctlError):
    """The clock is so far ahead of the newest write that deleting by age would be a gamble."""

    code = "clock.suspect"


class ConfirmationMissing(TokenctlError):
    """An operation that destroys was not confirmed, and there is nobody to ask."""

    code = "confirm.missing"
    hint = "answer with a flag or on stdin: --help names what the command takes"


class Declined(TokenctlError):
    """The operator was asked and did not confirm; nothing was done."""

    code = "confirm.declined"
    hint = "repeat the command if it is meant"


class PlanDrift(TokenctlError):
    """More would be hit now than the plan has shown; nothing was done."""

    code = "plan.drift"
    hint = "look again: the same selectors with --dry-run"


class OverMax(TokenctlError):
    """The selection is larger than the limit that the operator set; nothing was done."""

    code = "selector.over_max"


class Interrupted(TokenctlError):
    """A signal asked us to stop; what was committed stays, the batch in hand was rolled back."""

    code = "interrupted"
    hint = "run the same command again: what this one has committed stays done"
