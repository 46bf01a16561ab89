"""Putting a server together: service, site, application, and in development what belongs to that."""

from __future__ import annotations

import logging
from threading import Event, Thread
from typing import TYPE_CHECKING

from starlette.routing import Route

from tokenctl import TokenService
from tokenctl.errors import ConfigInvalid, DatabaseAway, TokenctlError
from tokenctl.http import dev as development
from tokenctl.http import logs
from tokenctl.http.app import make_app
from tokenctl.http.pools import hashing_executor
from tokenctl.http.purger import Purger
from tokenctl.http.sealer import Sealer
from tokenctl.http.server import make_server, run
from tokenctl.http.site import Site

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from starlette.types import ASGIApp
    from uvicorn import Server

    from tokenctl import Settings
    from tokenctl.http.logs import WriteLine


#: Between two looks whether a database that was away at the start has come (s).
_LOOK = 0.5

_log = logging.getLogger("tokenctl.start")


def serve(
    settings: Settings, bound: socket.socket, *, dev: bool, actor: str, ready: Callable[[], None]
) -> None:
    """Serve on a bound socket until a signal ends it; `ready` is called when it answers.

    Raises ConfigInvalid, and what opening the database and its key raises.
    """
    write_line = logs.configure(for_people=dev)
    begin = _serve_for_development if dev else _serve_for_real_use
    begin(settings, bound, actor, write_line, ready)


def _serve_for_real_use(
    settings: Settings, bound: socket.socket, actor: str, write_line: WriteLine, ready: Callable[[], None]
) -> None:
    hashing, go = hashing_executor(), run
    # The site closes it, too; where there is none yet, nobody else does.
    with TokenService(settings, hashing=hashing, actor=actor, may_be_away=True) as service:
        try:
            _demand_real_use(service)
            service.keys.current()  # a missing key is found now, and not by the first login
        except DatabaseAway as error:  # it may come: until then /readyz and all that needs it say 503
            _log.warning("%s: starting without it", error.message)
            go = _LateLook(service).run
        site = Site(service, hashing, write_line)
        _serve(make_app(site), site, bound, ready, go=go)


def _serve_for_development(
    settings: Settings, bound: socket.socket, actor: str, write_line: WriteLine, ready: Callable[[], None]
) -> None:
    hashing = hashing_executor()
    service, clock = development.open_service(settings, hashing, actor=actor)
    with service:
        if service.is_sample:
            _log.warning("this is the sample database, and its key is public")
        site = Site(service, hashing, write_line, dev=True)
        controls = development.Controls(clock, settings)
        stream = development.EventStream(site)
        routes = [Route("/dev/events", stream, methods=["GET"])]
        app = make_app(site, controls.endpoints(), routes, controls.around)
        _serve(app, site, bound, ready, stopping=stream.close)


def _serve(
    app: ASGIApp,
    site: Site,
    bound: socket.socket,
    ready: Callable[[], None],
    *,
    stopping: Callable[[], None] = lambda: None,
    go: Callable[[Server, socket.socket], None] = run,
) -> None:
    """Serve with what goes on beside it, until `go` returns; `stopping` is called when it begins to end."""
    sealer = Sealer(site.service)
    purger = Purger(site.service, site.metrics, every=site.settings.purge_every)

    def stop() -> None:
        for each in (stopping, sealer.stop, purger.stop):
            each()

    server = make_server(app, site.settings, ready=ready, stopping=stop)
    with sealer, purger:
        go(server, bound)


class _LateLook:
    """The look at a database that was away at the start: it ends a server that had better not begun."""

    def __init__(self, service: TokenService) -> None:
        self._service = service
        self._over = Event()
        self._refusal: ConfigInvalid | None = None

    def run(self, server: Server, bound: socket.socket) -> None:
        """Serve; raises ConfigInvalid when the database has come, and is not for real use."""
        thread = Thread(target=self._look, args=(server,), name="late look", daemon=True)
        thread.start()
        try:
            run(server, bound)
        finally:
            self._over.set()
        if self._refusal is not None:
            raise self._refusal

    def _look(self, server: Server) -> None:
        while not self._over.wait(_LOOK):
            try:
                _demand_real_use(self._service)
            except ConfigInvalid as error:
                self._refusal = error
                server.should_exit = True
            except TokenctlError:  # still away, or without our tables yet: each request finds that by itself
                continue
            return


def _demand_real_use(service: TokenService) -> None:
    name = service.database
    if service.is_sample:
        raise ConfigInvalid(
            f"{name} is the sample database: its key is public, so that anybody could make its tokens",
            hint="tokenctl init --database own.db, or serve --dev",
        )
    if service.is_development:
        raise ConfigInvalid(
            f"{name} was made by --dev: it has a user whose password everybody knows",
            hint="tokenctl init --database own.db, or serve --dev",
        )
