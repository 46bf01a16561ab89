"""One request as a handler sees it: who calls, from where, with what credentials.

Does not know what any route does.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

from tokenctl import Context
from tokenctl.errors import ClientRefused, InvalidInput
from tokenctl.http.problems import CredentialsMissing

if TYPE_CHECKING:
    from starlette.types import Scope

    from tokenctl.http.site import Site

#: Bytes of a user agent or a device that are looked at; fewer are kept.
_MAX_CONTEXT = 1024
# What an address can look like: a proxy may say anything.
_IP = re.compile(r"[0-9A-Fa-f:.]{2,45}")


class Call:
    """One request; what handlers set here is for the log."""

    def __init__(self, scope: Scope, site: Site, request_id: str) -> None:
        self.scope = scope
        self.site = site
        self.request_id = request_id
        #: Header fields by lower-case name; of a repeated one the last.
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        #: The template of the route, such as /auth/sessions/{id}; the path itself may hold anything.
        self.route: str | None = None
        self.code: str | None = None
        self.reason: str | None = None
        self.user_id: str | None = None
        self.token_id: str | None = None
        self.client_id: str | None = None
        #: Of a failure that is ours: for the log, never for the caller.
        self.detail: str | None = None

    @property
    def path_params(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.scope["path_params"]
        return found

    @property
    def ip(self) -> str | None:
        """The caller's address; with a trusted proxy in front what that one says."""
        client = self.scope.get("client")
        return client[0] if client and _IP.fullmatch(client[0]) else None

    @property
    def context(self) -> Context:
        """Address, user agent and device, cleaned. Raises InvalidInput for a device of a wrong form."""
        headers = self.headers
        # What is cut off would be in the keys of a cache, and 4,096 long headers would fill the memory.
        device = headers.get(b"tokenctl-device")
        agent = headers.get(b"user-agent", b"")[:_MAX_CONTEXT]
        return _context(self.ip, agent, device and device[:_MAX_CONTEXT])

    def bearer(self) -> str:
        """The access token of RFC 6750 §2.1. Raises CredentialsMissing."""
        kind, _, token = self.headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() != b"bearer" or not token:
            raise CredentialsMissing("this needs an access token: Authorization: Bearer …")
        return token.strip().decode("latin-1")

    def basic(self) -> tuple[str, str] | None:
        """Client id and secret of `Authorization: Basic`, each form-encoded (RFC 6749 §2.3.1); None: absent.

        Raises ClientRefused.
        """
        kind, _, encoded = self.headers.get(b"authorization", b"").partition(b" ")
        if not kind:
            return None
        if kind.lower() != b"basic":
            raise ClientRefused("a client authenticates by Basic")
        try:
            text = b64decode(encoded.strip(), validate=True).decode()
        except (binascii.Error, ValueError):
            raise ClientRefused("the Basic credentials cannot be decoded") from None
        client_id, colon, secret = text.partition(":")
        if not colon:
            raise ClientRefused("the Basic credentials have no colon")
        return unquote_plus(client_id), unquote_plus(secret)


@lru_cache(maxsize=4096)
def _context(ip: str | None, user_agent: bytes, device: bytes | None) -> Context:
    # Latin-1 never fails, and what is no text to us is still what the client sent.
    named = None if device is None else device.decode("latin-1")
    agent = user_agent.decode("latin-1")
    try:
        return Context.of(ip=ip, user_agent=agent, device=named)
    except InvalidInput:
        # A proxy may say "unknown"; the device is the caller's own and is refused.
        return Context.of(user_agent=agent, device=named)
