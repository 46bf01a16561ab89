"""Health, metrics, and from local files the documentation and the browser client."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenctl.errors import DatabaseError
from tokenctl.http import messages
from tokenctl.http.endpoint import Answer, Endpoint
from tokenctl.http.files import Files

if TYPE_CHECKING:
    from tokenctl.http.call import Call

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


_SWAGGER = Files(Path(__file__).with_name("swagger"), policy=_POLICY)
_CLIENT = Files(Path(__file__).parent.parent / "console")

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
    _SWAGGER.endpoint("/docs", "Swagger UI"),
    _SWAGGER.endpoint("/docs/{file}", "A file of Swagger UI"),
    _CLIENT.endpoint("/client/{file}", "The browser client"),
)
