"""Running the application: the socket, uvicorn, the signals, and what systemd is told.

Owns what an address may be (nothing in plain text beyond this machine, unless a proxy is said to be in front;
with `--dev` nothing beyond this machine at all) and the order of start and stop. Returns when the server has
stopped: what was in flight is answered, what was acknowledged is committed, the database is closed.
"""

from __future__ import annotations

import gc
import os
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urlsplit

import uvicorn

from tokenctl.errors import AddressUnavailable, ConfigInvalid
from tokenctl.http.protocol import Protocol

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from tokenctl import Settings

#: How long a stop waits for what is in flight (s).
GRACEFUL_STOP = 30
#: Longer than the usual proxy keeps an idle connection, so that the proxy is the one that closes it (s).
_KEEP_ALIVE = 75


class _Server(uvicorn.Server):
    """uvicorn's, which tells others when it begins and when it stops."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], stopping: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._ready = ready
        self._stopping = stopping
        self._failure: Exception | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        super().run(sockets)
        if self._failure is not None:
            raise self._failure

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is loaded by now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        # A request leaves no cycles: looking for some every 700 objects found none, and cost a twentieth.
        gc.set_threshold(20_000, 50, 100)
        try:
            self._ready()
        except Exception as error:  # noqa: BLE001 - raised again by `run`, when all has been closed in order
            self._failure, self.should_exit = error, True
        else:
            notify("READY=1")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        notify("STOPPING=1")
        self._stopping()
        await super().shutdown(sockets)


def listen(settings: Settings, *, dev: bool = False) -> tuple[socket.socket, str]:
    """The bound socket, and its address as seen from here. Raises ConfigInvalid, AddressUnavailable."""
    _demand_safe_address(settings)
    if dev and not _is_loopback(settings.host):
        raise ConfigInvalid(
            f"{settings.host} is not only this machine, and with --dev everybody knows a password and may "
            "move the clock",
            hint="leave out --host, or serve without --dev",
        )
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        bound = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise AddressUnavailable(
            f"cannot listen on {settings.host} port {settings.port}: {error.strerror or error}",
            hint="choose another one with --host and --port",
        ) from None
    host = f"[{settings.host}]" if family == socket.AF_INET6 else settings.host
    return bound, f"{'https' if settings.tls_cert else 'http'}://{host}:{bound.getsockname()[1]}"


def demand_issuer(settings: Settings, *, dev: bool = False) -> None:
    """Raises ConfigInvalid unless the issuer is an address that a client may find us at (RFC 8414 §2).

    With `dev` any that can be read will do.
    """
    hint = "--issuer https://auth.example, the address that clients use"
    parts = _split(settings.issuer)
    if parts is not None and dev:
        return
    if (
        parts is None
        or parts.scheme not in ("https", "http")
        or not parts.hostname
        or parts.query
        or parts.fragment
    ):
        raise ConfigInvalid(
            f"the issuer {settings.issuer} is no address of this server: every access token would name it",
            hint=hint,
        )
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        raise ConfigInvalid(
            f"the issuer {settings.issuer} is plain http, which carries every token in the clear", hint=hint
        )


def _split(issuer: str) -> SplitResult | None:
    """The parts of a URL; None when it has none, or its port cannot be one."""
    try:
        parts = urlsplit(issuer)
        _ = parts.port  # read only here, and it raises
    except ValueError:
        return None
    return parts


def make_server(
    app: ASGIApp,
    settings: Settings,
    *,
    ready: Callable[[], None],
    stopping: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """uvicorn, set up; `ready` is called on its event loop when it answers, `stopping` before it waits for
    what is in flight.
    """
    config = uvicorn.Config(
        app,
        http=Protocol,
        loop="auto",
        ws="none",
        interface="asgi3",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=GRACEFUL_STOP,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        **_tls(settings),
    )
    return _Server(config, ready, stopping)


def run(server: uvicorn.Server, bound: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT; a second one ends it at once."""
    # uvicorn raises the signal again once all is closed, for whoever would still have to act on it.
    with suppress(KeyboardInterrupt):
        server.run([bound])


def notify(state: str) -> None:
    """Tell systemd, when it started us (sd_notify(3))."""
    if not (address := os.environ.get("NOTIFY_SOCKET")):
        return
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)


def _tls(settings: Settings) -> dict[str, Any]:
    if settings.tls_cert is None:
        return {}
    return {"ssl_certfile": settings.tls_cert, "ssl_keyfile": settings.tls_key}


def _demand_safe_address(settings: Settings) -> None:
    files: Sequence[str | None] = (settings.tls_cert, settings.tls_key)
    if None in files and any(files):
        raise ConfigInvalid("tls_cert and tls_key go together", hint="give both, or neither")
    for file in files:
        if file is not None and not os.access(file, os.R_OK):
            raise ConfigInvalid(f"{Path(file)} cannot be read", hint="check its path and its mode")
    if settings.tls_cert is not None:
        _demand_certificate(settings.tls_cert, settings.tls_key)
    if settings.tls_cert is None and not settings.behind_proxy and not _is_loopback(settings.host):
        raise ConfigInvalid(
            f"{settings.host} is not only this machine, and without TLS every token would cross the network "
            "in the clear",
            hint="--tls-cert and --tls-key, or --behind-proxy when a proxy in front speaks TLS",
        )


def _demand_certificate(cert: str, key: str | None) -> None:
    """Raises ConfigInvalid unless the two fit; here, where it can be said which settings are meant."""
    try:
        # An empty passphrase: else OpenSSL would ask for one on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (OSError, ValueError):
        raise ConfigInvalid(
            f"{cert} and {key} are no certificate chain and its key",
            hint="PEM files, the server's own certificate first; the key without a passphrase",
        ) from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
