"""tokenctl: the refresh-token authority that you can operate.

These are the public names for an embedding application. They are imported when they are first used, so
that `tokenctl --help` need not wait for a database layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenctl.core.context import Context as Context
    from tokenctl.core.passwords import PasswordPolicy as PasswordPolicy
    from tokenctl.core.refresh_token import RefreshToken as RefreshToken
    from tokenctl.core.refresh_token import State as State
    from tokenctl.core.rotation import Reason as Reason
    from tokenctl.core.rotation import Verdict as Verdict
    from tokenctl.core.selector import Selector as Selector
    from tokenctl.core.selector import SelectState as SelectState
    from tokenctl.errors import TokenctlError as TokenctlError
    from tokenctl.service.database import initialise as initialise
    from tokenctl.service.pair import TokenPair as TokenPair
    from tokenctl.service.rotation import RotateRequest as RotateRequest
    from tokenctl.service.tokens import TokenService as TokenService
    from tokenctl.settings import Settings as Settings

_HOME = {
    "Context": "tokenctl.core.context",
    "PasswordPolicy": "tokenctl.core.passwords",
    "Reason": "tokenctl.core.rotation",
    "RefreshToken": "tokenctl.core.refresh_token",
    "RotateRequest": "tokenctl.service.rotation",
    "SelectState": "tokenctl.core.selector",
    "Selector": "tokenctl.core.selector",
    "Settings": "tokenctl.settings",
    "State": "tokenctl.core.refresh_token",
    "TokenPair": "tokenctl.service.pair",
    "TokenService": "tokenctl.service.tokens",
    "TokenctlError": "tokenctl.errors",
    "Verdict": "tokenctl.core.rotation",
    "initialise": "tokenctl.service.database",
}

__all__ = sorted(_HOME)  # noqa: PLE0605 - the names are the keys above, listed once


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tokenctl' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
