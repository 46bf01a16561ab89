"""tokenctl: the refresh-token authority that you can operate.

These are the public names for an embedding application, and every error of `tokenctl.errors`. They are
imported when they are first used, so that `tokenctl --help` need not wait for a database layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenctl import errors as errors
from tokenctl.errors import *  # noqa: F403 - each error is public, and errors.py says which there are

if TYPE_CHECKING:
    from tokenctl.core.context import Context as Context
    from tokenctl.core.passwords import PasswordPolicy as PasswordPolicy
    from tokenctl.core.refresh_token import RefreshToken as RefreshToken
    from tokenctl.core.refresh_token import State as State
    from tokenctl.core.rotation import Reason as Reason
    from tokenctl.core.rotation import Verdict as Verdict
    from tokenctl.core.selector import Selector as Selector
    from tokenctl.core.selector import SelectState as SelectState
    from tokenctl.service.access import Access as Access
    from tokenctl.service.access import Introspection as Introspection
    from tokenctl.service.database import Initialised as Initialised
    from tokenctl.service.database import initialise as initialise
    from tokenctl.service.evidence import Evidence as Evidence
    from tokenctl.service.issuing import Reissue as Reissue
    from tokenctl.service.pair import TokenPair as TokenPair
    from tokenctl.service.purge import Purge as Purge
    from tokenctl.service.revocation import Preview as Preview
    from tokenctl.service.revocation import Revocation as Revocation
    from tokenctl.service.rotation import RotateRequest as RotateRequest
    from tokenctl.service.statistics import Related as Related
    from tokenctl.service.statistics import Statistics as Statistics
    from tokenctl.service.tokens import Inspection as Inspection
    from tokenctl.service.tokens import TokenService as TokenService
    from tokenctl.service.users import NewClient as NewClient
    from tokenctl.service.users import UserChange as UserChange
    from tokenctl.settings import Secret as Secret
    from tokenctl.settings import Settings as Settings
    from tokenctl.storage.events import Event as Event
    from tokenctl.storage.users import Client as Client
    from tokenctl.storage.users import User as User

_NAMES = {
    "tokenctl.core.context": "Context",
    "tokenctl.core.passwords": "PasswordPolicy",
    "tokenctl.core.refresh_token": "RefreshToken State",
    "tokenctl.core.rotation": "Reason Verdict",
    "tokenctl.core.selector": "SelectState Selector",
    "tokenctl.service.access": "Access Introspection",
    "tokenctl.service.database": "Initialised initialise",
    "tokenctl.service.evidence": "Evidence",
    "tokenctl.service.pair": "TokenPair",
    "tokenctl.service.purge": "Purge",
    "tokenctl.service.revocation": "Preview Revocation",
    "tokenctl.service.rotation": "RotateRequest",
    "tokenctl.service.issuing": "Reissue",
    "tokenctl.service.statistics": "Related Statistics",
    "tokenctl.service.tokens": "Inspection TokenService",
    "tokenctl.service.users": "NewClient UserChange",
    "tokenctl.settings": "Secret Settings",
    "tokenctl.storage.events": "Event",
    "tokenctl.storage.users": "Client User",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted([*_HOME, *errors.__all__])  # noqa: PLE0605 - a list of names, made of the two above


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tokenctl' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
