"""The body of a request: read within its limit, and validated against the endpoint's message.

Owns what is said of a wrong one: the field and what is wrong with it, and never anything that was sent.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import msgspec

from tokenctl.http.problems import BadRequest, InvalidFields, TooLarge, UnsupportedType

if TYPE_CHECKING:
    from starlette.types import Receive

    from tokenctl.http.call import Call
    from tokenctl.http.endpoint import Endpoint

#: Bytes of a body.
MAX_BODY = 8192
#: Of a body that is too large, so much is read before the answer: a client that still sends would not see it.
_MAX_DRAINED = 131_072
_MAX_FIELDS = 64
#: Bytes of a Content-Type.
_MAX_TYPE = 200
# No two `\s*` beside each other: they would try every way to share the same spaces.
_UTF_8 = rb"\s*(?:;\s*(?:charset=\"?utf-8\"?\s*)?)?"
_JSON = re.compile(rb"application/json" + _UTF_8, re.IGNORECASE)
_FORM = re.compile(rb"application/x-www-form-urlencoded" + _UTF_8, re.IGNORECASE)


async def read_message(endpoint: Endpoint, call: Call, receive: Receive) -> Any:
    """The request's message. Raises what says where it is wrong, and never repeats what was sent."""
    if endpoint.request is None:
        return None
    if endpoint.guarded:
        call.site.demand_own_page(call)
    body = await _read_body(call, receive)
    if endpoint.oauth:
        form = _read_form(call, body)
        try:
            return msgspec.convert(form, endpoint.request)
        except msgspec.ValidationError as error:
            raise _invalid(str(error)) from None
    if not body and endpoint.may_be_empty:
        body = b"{}"
    else:
        _demand_json(call)
    try:
        return endpoint.decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise BadRequest("the body is no JSON object in UTF-8") from None


# msgspec's messages: "Expected `str`, got `int` - at `$.password`", "Object missing required field `x`", …
_AT = re.compile(r" - at `\$\.?([^`]*)`$")
#: A name that may be shown; anything else that was sent may be a secret in the wrong place.
_NAME = re.compile(r"[a-z_]{1,40}")


def _invalid(message: str) -> InvalidFields:
    """Our words for msgspec's message: the field, and what is wrong with it."""
    at = _AT.search(message)
    place, said = (at.group(1), message[: at.start()]) if at else ("", message)
    if message.startswith("Object contains unknown field"):
        # That name is the caller's own, and may look like the end of a message.
        place, said = message.split("`")[1] or "…", "there is no such field here"
    elif said.startswith("Object missing required field"):
        place, said = said.split("`")[1], "it is missing"
    elif said.startswith("Expected `str` matching regex"):
        said = "it has characters that are not allowed here"
    elif "key in" in place:
        place = ""
    place = place if _NAME.fullmatch(place) else place and "…"
    said = said.replace("`", "")[:200]
    where = f"{place}: " if place else ""
    return InvalidFields(f"{where}{said}", fields=[{"field": place, "message": said}])


# --- reading -------------------------------------------------------------------------------


async def _read_body(call: Call, receive: Receive) -> bytes:
    """The whole body. Raises TooLarge above MAX_BODY, BadRequest when the client went away."""
    # First of all: whoever announces so much may wait for our answer before sending it.
    length = call.headers.get(b"content-length", b"")
    if length.isdigit() and int(length) > _MAX_DRAINED:
        raise _too_large()
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body", False):
        body: bytes = message.get("body", b"")  # by far the most: all of it came at once
        if len(body) <= MAX_BODY:
            return body
        raise _too_large()
    parts, size = [], 0
    while True:
        if message["type"] == "http.disconnect":
            raise BadRequest("the client went away before the body was complete")
        size += len(message.get("body", b""))
        if size <= MAX_BODY:
            parts.append(message.get("body", b""))
        elif size > _MAX_DRAINED:
            raise _too_large()
        if not message.get("more_body", False):
            break
        message = await receive()
    if size > MAX_BODY:
        raise _too_large()
    return b"".join(parts)


def _demand_json(call: Call) -> None:
    """Raises UnsupportedType for a body that does not say that it is JSON."""
    content_type = call.headers.get(b"content-type", b"")
    if content_type != b"application/json" and not _is(_JSON, content_type):
        raise UnsupportedType("the body must be JSON: Content-Type: application/json")


def _is(kind: re.Pattern[bytes], content_type: bytes) -> bool:
    return len(content_type) <= _MAX_TYPE and kind.fullmatch(content_type) is not None


def _read_form(call: Call, body: bytes) -> dict[str, Any]:
    """The parameters of a form, without the empty ones (RFC 6749 §3.1).

    Raises UnsupportedType, BadRequest for a repeated parameter (RFC 6749 §3.2).
    """
    if not _is(_FORM, call.headers.get(b"content-type", b"")):
        raise UnsupportedType("the body must be a form: Content-Type: application/x-www-form-urlencoded")
    try:
        pairs = parse_qsl(
            body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS
        )
    except ValueError:
        raise BadRequest("the form cannot be read: percent-encoded UTF-8, at most 64 parameters") from None
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BadRequest("a parameter is repeated")
    return {name: value for name, value in found.items() if value}


def _too_large() -> TooLarge:
    return TooLarge(f"the body is larger than {MAX_BODY} bytes, and nothing here needs as much")
