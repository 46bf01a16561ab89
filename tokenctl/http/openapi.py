"""The OpenAPI 3.1 document, made from the table of endpoints: paths, schemas, examples and every error."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import msgspec

from tokenctl import errors
from tokenctl.http import messages, problems
from tokenctl.http.endpoint import Endpoint

_REFS = "#/components/schemas/{name}"
_PATH_ID = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^rt_[0-9a-f]{32}$"},
    "description": "The login's id.",
}
_DEVICE = {
    "name": "Tokenctl-Device",
    "in": "header",
    "required": False,
    "schema": {"type": "string", "minLength": 1, "maxLength": 128, "pattern": "^[!-~]+$"},
    "description": "An opaque fingerprint of the device; kept as a hash, and searched by operators.",
}
_RETRY_AFTER = {"schema": {"type": "integer"}, "description": "Seconds to wait before the next attempt."}
_WORDS = {
    200: "Done.",
    201: "Made.",
    204: "Done; there is nothing to say.",
}


def document(endpoints: Iterable[Endpoint], *, cookies: bool, cookie_name: str) -> dict[str, Any]:
    """The whole document, as JSON data."""
    shown = [endpoint for endpoint in endpoints if endpoint.documented]
    types = {messages.Problem, messages.OAuthError, *_types(shown)}
    _, components = msgspec.json.schema_components(
        sorted(types, key=lambda t: t.__name__), ref_template=_REFS
    )
    for schema in components.values():
        schema["description"] = _plain(schema.get("description", ""))
    paths: dict[str, dict[str, Any]] = defaultdict(dict)
    for endpoint in shown:
        if endpoint.oauth and endpoint.request is not None:
            _drop_null(components[endpoint.request.__name__])
        paths[endpoint.path][endpoint.method.lower()] = _operation(endpoint, cookies)
    schemes: dict[str, Any] = {
        "bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"},
        "client": {"type": "http", "scheme": "basic"},
    }
    if cookies:
        schemes["cookie"] = {"type": "apiKey", "in": "cookie", "name": cookie_name}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tokenctl",
            "version": version("tokenctl"),
            "description": (
                "Log in, refresh, log out. /auth speaks JSON and answers errors as problem details (RFC 9457)"
                " with a stable `code`; /oauth is what OAuth clients expect (RFC 6749, 7009, 7662). A 503 is "
                "never a refusal: keep the refresh token, wait for Retry-After, repeat."
            ),
        },
        # Where the document comes from, and not the issuer: a page may be reached by another name.
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": schemes},
    }


def _types(endpoints: Iterable[Endpoint]) -> set[type[msgspec.Struct]]:
    both = {kind for endpoint in endpoints for kind in (endpoint.request, endpoint.response)}
    return {kind for kind in both if kind is not None}


def _drop_null(form: dict[str, Any]) -> None:
    """A form has no null: what may be left out is text, and an empty one counts as left out."""
    for schema in form["properties"].values():
        for choice in schema.pop("anyOf", ()):
            if choice != {"type": "null"}:
                schema.update(choice)
        if schema.get("default", "") is None:
            del schema["default"]


def _operation(endpoint: Endpoint, cookies: bool) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": endpoint.handler.__name__,
        "summary": endpoint.summary,
        "description": _plain(inspect.getdoc(endpoint.handler) or ""),
        "tags": [endpoint.tag],
        "parameters": _parameters(endpoint, cookies),
        "responses": _responses(endpoint, cookies),
    }
    if endpoint.request is not None:
        media = "application/x-www-form-urlencoded" if endpoint.oauth else "application/json"
        operation["requestBody"] = {
            "required": endpoint.oauth or not endpoint.may_be_empty,
            "content": {media: _media(endpoint.request, endpoint.request_example)},
        }
    if endpoint.credentials is not None:
        operation["security"] = [{endpoint.credentials: []}]
    elif cookies and endpoint.request in (messages.RefreshByCookie, messages.LogoutByCookie):
        operation["security"] = [{"cookie": []}]
    elif endpoint.oauth:
        operation["security"] = [{}, {"client": []}]  # a client that has a secret may send it
    return operation


def _parameters(endpoint: Endpoint, cookies: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if "{id}" in endpoint.path:
        found.append(_PATH_ID)
    if endpoint.response in (messages.TokenPair, messages.TokenResponse):
        found.append(_DEVICE)
    if cookies and endpoint.guarded:
        found.append(
            {
                "name": "X-Tokenctl",
                "in": "header",
                "required": True,
                "schema": {"type": "string", "const": "1"},
            }
        )
    return found


def _responses(endpoint: Endpoint, cookies: bool) -> dict[str, Any]:
    good: dict[str, Any] = {"description": _WORDS[endpoint.status]}
    if endpoint.response is not None:
        example = endpoint.response_example
        if cookies and endpoint.response is messages.TokenPair and example is not None:
            example = {key: value for key, value in example.items() if key != "refresh_token"}
        good["content"] = {"application/json": _media(endpoint.response, example)}
    elif endpoint.status != 204:
        good["content"] = {endpoint.content_type.decode(): {"schema": {"type": "string"}}}
    by_status: dict[int, dict[str, type[errors.TokenctlError]]] = defaultdict(dict)
    for error in _errors(endpoint, cookies):
        entry = problems.status_of(error)
        status = (endpoint.oauth and entry.oauth_status) or entry.status
        by_status[status].setdefault(entry.oauth if endpoint.oauth else problems.wire_code(error), error)
    responses = {str(endpoint.status): good}
    for status, found in sorted(by_status.items()):
        responses[str(status)] = _error_response(status, found, oauth=endpoint.oauth)
    return responses


def _errors(endpoint: Endpoint, cookies: bool) -> list[type[errors.TokenctlError]]:
    """What the endpoint names, and what follows from how it is called."""
    found = [*endpoint.errors, problems.BadRequest]
    if endpoint.request is not None:
        found += [problems.TooLarge, problems.UnsupportedType, problems.InvalidFields]
    if cookies and endpoint.guarded:
        found.append(problems.Forbidden)
    if endpoint.tag in ("auth", "oauth", "discovery"):
        found.append(errors.DatabaseError)
    return found


def _error_response(
    status: int, found: dict[str, type[errors.TokenctlError]], *, oauth: bool
) -> dict[str, Any]:
    codes = ", ".join(f"`{code}`" for code in found)
    media = "application/json" if oauth else "application/problem+json"
    response: dict[str, Any] = {
        "description": f"{HTTPStatus(status).phrase}: {codes}.",
        "content": {
            media: {
                "schema": {"$ref": _REFS.format(name="OAuthError" if oauth else "Problem")},
                "examples": {code: {"value": _example(error, oauth)} for code, error in found.items()},
            }
        },
    }
    headers: dict[str, Any] = {}
    if status in (429, 503):
        headers["Retry-After"] = _RETRY_AFTER
    if status == 401:
        headers["WWW-Authenticate"] = {"schema": {"type": "string"}}
    if headers:
        response["headers"] = headers
    return response


def _example(error: type[errors.TokenctlError], oauth: bool) -> Any:
    """The body as `problems` makes it, for an error whose message is the first line of its docstring."""
    # Not `inspect.getdoc(error)`: that is the parent's for one that needs no words beside its name.
    said = (error.__doc__ or error.code.replace(".", " ").replace("_", " ")).partition("\n")[0]
    # Not `error(said)`: some take their facts by position.
    made = error.__new__(error)
    errors.TokenctlError.__init__(made, _plain(said))
    _, body = problems.oauth_error(made) if oauth else problems.problem(made, "9f86d081884c7d65")
    return msgspec.json.decode(body)


def _media(kind: type[msgspec.Struct], example: Any) -> dict[str, Any]:
    media: dict[str, Any] = {"schema": {"$ref": _REFS.format(name=kind.__name__)}}
    if example is not None:
        # In cookie mode some bodies have less than the example.
        media["example"] = {key: value for key, value in example.items() if key in kind.__struct_fields__}
    return media


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
