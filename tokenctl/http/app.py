"""The ASGI application: the table of endpoints, made into routes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router

from tokenctl.http import auth, oauth, openapi, system
from tokenctl.http.endpoint import Answer, Endpoint, PathApp
from tokenctl.http.site import LOCAL_ORIGIN

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from tokenctl.http.call import Call
    from tokenctl.http.site import Site

#: In the order in which they are looked at: the busiest first.
ENDPOINTS = (*auth.ENDPOINTS, *oauth.ENDPOINTS, *system.ENDPOINTS)


def make_app(
    site: Site,
    extra: Sequence[Endpoint] = (),
    routes: Sequence[Route] = (),
    around: Callable[[ASGIApp], ASGIApp] | None = None,
) -> ASGIApp:
    """The application for one site; `extra` and `routes` are what only some servers have.

    `around` wraps all of them, and is itself inside of CORS: whatever it answers a page may read.
    """
    endpoints = list(endpoints_of(site, extra))
    paths = {
        path: PathApp(site, path, list(group))
        for path, group in groupby(endpoints, key=lambda endpoint: endpoint.path)
    }
    router = Router(
        [Route(path, app) for path, app in paths.items()] + [*routes, *_other_methods(site, routes)],
        redirect_slashes=False,
        default=PathApp(site, None, []),
        lifespan=lambda _: _lifespan(site),
    )
    app: ASGIApp = _Straight(paths, router)
    if around is not None:
        app = around(app)
    if not site.settings.cors_origins and not site.dev:
        return app
    return CORSMiddleware(
        app,
        allow_origins=site.settings.cors_origins,
        allow_origin_regex=LOCAL_ORIGIN.pattern if site.dev else None,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("Authorization", "Content-Type", "X-Tokenctl", "Tokenctl-Device"),
        allow_credentials=True,
        expose_headers=("Retry-After", "WWW-Authenticate", "X-Request-Id"),
    )


def _other_methods(site: Site, routes: Sequence[Route]) -> Iterable[Route]:
    """What answers the methods that these routes do not take: Starlette would do so in plain text."""
    for each in routes:
        yield Route(each.path, PathApp(site, each.path, [], elsewhere=sorted(each.methods or ())))


class _Straight:
    """The router, with a short cut for paths without parameters: going through all routes costs a tenth."""

    def __init__(self, paths: Mapping[str, PathApp], router: Router) -> None:
        self._paths = {path: app for path, app in paths.items() if "{" not in path}
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._paths.get(scope.get("path", "")) if scope["type"] == "http" else None
        if app is None:
            await self._router(scope, receive, send)
        else:
            scope["path_params"] = {}
            await app(scope, receive, send)


def endpoints_of(site: Site, extra: Sequence[Endpoint] = ()) -> Iterable[Endpoint]:
    """The table as this site serves it: in cookie mode some bodies have no refresh token."""
    table = [*ENDPOINTS, *extra]
    if site.settings.cookies:
        table = [replace(each, request=each.request_by_cookie or each.request) for each in table]
    path = oauth.metadata_path(site.settings.issuer)
    table += [
        replace(each, path=path, documented=False)
        for each in table
        if each.handler is oauth.metadata and each.path != path
    ]
    document = _document(site, table)

    async def openapi_json(_call: Call, _: None) -> Answer:
        return Answer(document)

    yield from table
    yield Endpoint(
        method="GET",
        path="/openapi.json",
        handler=openapi_json,
        summary="This document",
        tag="system",
        documented=False,
    )


def _document(site: Site, table: Sequence[Endpoint]) -> bytes:
    made: dict[str, Any] = openapi.document(
        table, cookies=site.settings.cookies, cookie_name=site.cookie_name
    )
    return msgspec.json.format(msgspec.json.encode(made), indent=2)


@asynccontextmanager
async def _lifespan(site: Site) -> AsyncIterator[None]:
    await site.start()
    try:
        yield
    finally:
        await site.stop()
