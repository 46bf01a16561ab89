"""Health, metrics, and from local files the documentation and the browser client."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tokenctl.errors import DatabaseError
from tokenctl.http import messages
from tokenctl.http.endpoint import Answer, Endpoint
from tokenctl.http.problems import NoSuchRoute

if TYPE_CHECKING:
    from tokenctl.http.call import Call

_SWAGGER = Path(__file__).with_name("swagger")
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".png": b"image/png",
}
_CONSOLE = Path(__file__).parent.parent / "console"
_CLIENT_FILES = {"tokenctl.js": _TYPES[".js"], "tokenctl.d.ts": b"text/plain; charset=utf-8"}
# Swagger UI sets styles from its script; everything else comes from this server or not at all.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    b"connect-src 'self'; font-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def healthz(_call: Call, _: None) -> messages.Health:
    """Whether the process answers. Asks nothing of the database."""
    return messages.Health(status="ok")


async def readyz(call: Call, _: None) -> messages.Health:
    """Whether the database can be reached and has the schema of this release; else 503."""
    await call.site.database.run(call.site.service.ready)
    return messages.Health(status="ok")


async def metrics(call: Call, _: None) -> Answer:
    """Counters and histograms in the text format of Prometheus."""
    return Answer(call.site.metrics.render())


async def documentation(call: Call, _: None) -> Answer:
    """Swagger UI from files of this package."""
    name = call.path_params.get("file", "index.html")
    content = _file(name)
    return Answer(content, [(b"content-security-policy", _POLICY)], content_type=_TYPES[Path(name).suffix])


@lru_cache
def _file(name: str) -> bytes:
    # A name from a list, so that no path can lead out of the directory.
    for path in _SWAGGER.iterdir():
        if path.name == name and path.suffix in _TYPES:
            return path.read_bytes()
    raise NoSuchRoute("there is no such file of the documentation")


async def browser_client(call: Call, _: None) -> Answer:
    """The browser client, one ES module, and its types."""
    name = call.path_params["file"]
    content = _client_file(name)
    tag = b'"%s"' % hashlib.sha256(content).hexdigest()[:32].encode()
    headers = [(b"etag", tag)]
    # A proxy that compresses sends a weak one back (`W/"…"`), and a cache may send several.
    if tag in call.headers.get(b"if-none-match", b""):
        return Answer(None, headers, status=304)
    return Answer(content, headers, content_type=_CLIENT_FILES[name])


@lru_cache
def _client_file(name: str) -> bytes:
    if name not in _CLIENT_FILES:
        raise NoSuchRoute("there is no such file of the browser client: tokenctl.js is its module")
    return (_CONSOLE / name).read_bytes()


# Asked for anew each time: after an upgrade old and new files must not mix.
_CACHED = b"no-cache"

ENDPOINTS = (
    Endpoint(
        method="GET",
        path="/healthz",
        handler=healthz,
        summary="Alive?",
        tag="system",
        response=messages.Health,
        response_example={"status": "ok"},
    ),
    Endpoint(
        method="GET",
        path="/readyz",
        handler=readyz,
        summary="Ready to answer?",
        tag="system",
        response=messages.Health,
        errors=(DatabaseError,),
        response_example={"status": "ok"},
    ),
    Endpoint(
        method="GET",
        path="/metrics",
        handler=metrics,
        summary="Prometheus metrics",
        tag="system",
        content_type=b"text/plain; version=0.0.4; charset=utf-8",
    ),
    Endpoint(
        method="GET",
        path="/docs",
        handler=documentation,
        summary="Swagger UI",
        tag="system",
        cache=_CACHED,
        documented=False,
    ),
    Endpoint(
        method="GET",
        path="/docs/{file}",
        handler=documentation,
        summary="A file of Swagger UI",
        tag="system",
        cache=_CACHED,
        documented=False,
    ),
    Endpoint(
        method="GET",
        path="/client/{file}",
        handler=browser_client,
        summary="The browser client",
        tag="system",
        cache=_CACHED,
        documented=False,
    ),
)
