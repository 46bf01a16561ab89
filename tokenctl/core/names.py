"""The forms of what users, clients and scopes are called.

A refusal never repeats the text: it is shown to whoever sent that over HTTP, and may go into a log.
"""

from __future__ import annotations

import re
import unicodedata

from tokenctl.errors import InvalidInput, InvalidScope

MAX_USER_NAME = 254
MAX_NOTE = 256
DEFAULT_CLIENT = "default"

# RFC 6749 appendix A.1 allows any printable ASCII; a space would not survive a list on a terminal.
_CLIENT_ID = re.compile(r"[\x21-\x7e]{1,128}", re.ASCII)
# RFC 6749 §3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E )
_SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}", re.ASCII)
_MAX_SCOPE = 1024
_SECRET = re.compile(r"tk[rms]1_[A-Za-z0-9_-]{8}", re.ASCII)


def clean_user_name(text: str) -> str:
    """The name as it is stored and shown: NFC, 1 to 254 printable characters, no space at either end.

    Raises InvalidInput.
    """
    refuse_secret(text)
    name = unicodedata.normalize("NFC", text)
    if not 1 <= len(name) <= MAX_USER_NAME:
        raise InvalidInput(
            f"a user's name has 1 to {MAX_USER_NAME} characters; this one has {len(name)}",
            hint="use a short name, or an e-mail address",
        )
    if not name.isprintable() or name != name.strip():
        raise InvalidInput(
            "a user's name has only characters that are printed, and no space at an end",
            hint="use letters, digits, or an e-mail address",
        )
    if user_name_key(name).startswith("usr_"):
        raise InvalidInput(
            "a user's name cannot begin with usr_, which marks a user's id", hint="use another name"
        )
    return name


def user_name_key(name: str) -> str:
    """What names are compared by: without case, NFC."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def clean_client_id(text: str) -> str:
    """A client's id: 1 to 128 printable ASCII characters without a space. Raises InvalidInput."""
    refuse_secret(text)
    if not _CLIENT_ID.fullmatch(text):
        raise InvalidInput("this is not a client's id", hint="1 to 128 printable ASCII characters, no space")
    return text


def clean_note(text: str) -> str:
    """A reason or an actor for the audit log: 1 to 256 printable characters. Raises InvalidInput."""
    refuse_secret(text)
    if not 1 <= len(text) <= MAX_NOTE or not text.isprintable():
        raise InvalidInput(
            f"a reason or an actor is one line of 1 to {MAX_NOTE} printable characters",
            hint="name the incident, for example INC-7",
        )
    return text


def clean_scope(text: str) -> str:
    """Scope tokens with one space between them, in the order given, each once (RFC 6749 §3.3).

    Raises InvalidScope.
    """
    tokens = dict.fromkeys(text.split(" ") if text else ())
    if (
        len(text) > _MAX_SCOPE
        or holds_secret(text)
        or not all(_SCOPE_TOKEN.fullmatch(token) for token in tokens)
    ):
        raise InvalidScope(
            "the scope is malformed: words of printable ASCII without quotes, one space between them",
            hint="for example: profile orders:read",
        )
    return " ".join(tokens)


def holds_secret(text: str) -> bool:
    """Whether there is a piece of a token string, a client's secret or a master key in it."""
    return _SECRET.search(text) is not None


def refuse_secret(text: str) -> None:
    """What is stored and shown in clear must not hold a secret that somebody put into the wrong place."""
    if holds_secret(text):
        raise InvalidInput(
            "there is a token string, a client's secret or a master key where a name or a reason belongs; "
            "it was not stored",
            hint="revoke that token, or replace that client: it has been seen",
        )


def narrow_scope(requested: str, granted: str) -> str:
    """The requested scope, when the login has all of it (RFC 6749 §6). Raises InvalidScope."""
    wanted = clean_scope(requested)
    if not set(wanted.split()) <= set(granted.split()):
        raise InvalidScope(
            "a refresh may only narrow the scope of the login, not widen it",
            hint=f"leave the scope out, or ask for some of: {granted or '(nothing)'}",
        )
    return wanted
