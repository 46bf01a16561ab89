"""Putting a server together: service, site, application, and in development what belongs to that."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.routing import Route

from tokenctl import TokenService
from tokenctl.errors import ConfigInvalid, DatabaseAway
from tokenctl.http import dev as development
from tokenctl.http import logs
from tokenctl.http.app import make_app
from tokenctl.http.pools import hashing_executor
from tokenctl.http.server import make_server, run
from tokenctl.http.site import Site

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from uvicorn import Server

    from tokenctl import Settings
    from tokenctl.http.logs import WriteLine


_log = logging.getLogger("tokenctl.start")


def serve(
    settings: Settings, bound: socket.socket, *, dev: bool, actor: str, ready: Callable[[], None]
) -> None:
    """Serve on a bound socket until a signal ends it; `ready` is called when it answers.

    Raises ConfigInvalid, and what opening the database and its key raises.
    """
    write_line = logs.configure(for_people=dev)
    make = _for_development if dev else _for_real_use
    run(make(settings, actor, write_line, ready), bound)


def _for_real_use(settings: Settings, actor: str, write_line: WriteLine, ready: Callable[[], None]) -> Server:
    hashing = hashing_executor()
    service = TokenService(settings, hashing=hashing, actor=actor, may_be_away=True)
    try:
        try:
            _demand_real_use(service)
            service.keys.current()  # a missing key is found now, and not by the first login
        except DatabaseAway as error:  # it may come: until then /readyz and all that needs it say 503
            _log.warning("%s: starting without it", error.message)
        return make_server(make_app(Site(service, hashing, write_line)), settings, ready=ready)
    except BaseException:
        service.close()
        raise


def _for_development(
    settings: Settings, actor: str, write_line: WriteLine, ready: Callable[[], None]
) -> Server:
    hashing = hashing_executor()
    service, clock = development.open_service(settings, hashing, actor=actor)
    site = Site(service, hashing, write_line, dev=True)
    controls = development.Controls(clock)
    stream = development.EventStream(site)
    routes = [Route("/dev/events", stream, methods=["GET"])]
    app = make_app(site, controls.endpoints(), routes, controls.around)
    return make_server(app, settings, ready=ready, stopping=stream.close)


def _demand_real_use(service: TokenService) -> None:
    name = service.settings.database
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
