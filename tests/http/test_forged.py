"""Malformed and forged tokens in great number: refused without one query, without a 5xx, in flat memory.

TOKENCTL_FORGED says how many.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import os
import random
import resource
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import sqlalchemy as sa
import structlog
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm

from tests.conftest import Clock
from tests.http.live import Live, running
from tokenctl import Settings
from tokenctl.core import token_string
from tokenctl.core.access_token import AccessClaims, sign_access_token
from tokenctl.core.keys import SigningKey, generate_signing_key

COUNT = int(os.environ.get("TOKENCTL_FORGED", "20000"))
#: Requests that are on their way on one connection.
_AT_ONCE = 64
_SLACK = 24 << 20
_B64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@pytest.fixture
def live(settings: Settings, clock: Clock) -> Iterator[Live]:
    """A server that logs nothing: a million lines would be most of what this measures."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        with running(settings, clock) as live:
            yield live
    finally:
        structlog.reset_defaults()


# the strings


def forged_refresh_tokens(genuine: str, chance: random.Random) -> Iterator[str]:
    """Without end: each is wrong in one way."""
    form = len(token_string.PREFIX)
    while True:
        at = chance.randrange(form, len(genuine))
        other = chance.choice([letter for letter in _B64 if letter != genuine[at]])
        raw_id, secret, key = chance.randbytes(16), chance.randbytes(16), chance.randbytes(32)
        yield genuine[:at] + other + genuine[at + 1 :]  # one character
        yield genuine[:at]  # cut
        yield genuine[:at] + chance.choice("=+/. \n\x00é٣") + genuine[at + 1 :]  # no base64url
        yield genuine + chance.choice(_B64) * chance.randrange(1, 9)  # too long
        yield chance.choice([" ", "\n", "\ufeff", "Bearer "]) + genuine  # around it
        yield genuine + chance.choice([" ", "\n", "\x00"])
        yield genuine.swapcase()
        yield token_string.PREFIX + "".join(chance.choices(_B64, k=84))  # right form, wrong checksum
        yield token_string.mint(raw_id, chance.getrandbits(32), secret, key)  # wrong MAC only
        yield _retold(genuine, chance)  # our id and secret, another generation
        yield chance.randbytes(chance.randrange(1, 300)).decode("latin-1")
        yield chr(chance.choice([0x1F600, 0xFFFD, 0x202E, 0x0661])) * chance.randrange(1, 200)
        yield "a" * chance.randrange(1, 2000)


def _retold(genuine: str, chance: random.Random) -> str:
    """The string of a later generation, made by somebody who has no key but knows the checksum."""
    token = token_string.parse_unverified(genuine)
    return token_string.mint(token.raw_id, token.generation + 1, token.secret, chance.randbytes(32))


def forged_access_tokens(genuine: str, ours: SigningKey, chance: random.Random) -> Iterator[str]:
    """Without end: each is wrong in one way."""
    head, payload, signature = genuine.split(".")
    header, claims = _decoded(head), _decoded(payload)
    theirs = generate_signing_key()
    public = ECAlgorithm.from_jwk(json.dumps(ours.public_jwk)).public_bytes(  # type: ignore[union-attr] # it is a public one
        Encoding.PEM, PublicFormat.SubjectPublicKeyInfo
    )

    def by_hmac(secret: bytes) -> Callable[[bytes], bytes]:
        return lambda signed: hmac.digest(secret, signed, hashlib.sha256)

    def mine(signed: bytes) -> bytes:
        return chance.randbytes(64)

    while True:
        at = chance.randrange(len(genuine) - 2)
        other = chance.choice([letter for letter in _B64 if letter != genuine[at]])
        yield genuine[:at] + other + genuine[at + 1 :]
        yield genuine[:at] or "x"
        yield f"{head}.{payload}."
        yield f"{head}.{_encoded(claims | {'sub': 'usr_' + chance.randbytes(16).hex()})}.{signature}"
        yield f"{head}.{_encoded(claims | {'exp': claims['exp'] + 9})}.{signature}"
        yield _jws(header | {"alg": chance.choice(["none", "None", "NONE", ""])}, claims, lambda _: b"")
        yield _jws(header | {"alg": "HS256"}, claims, by_hmac(public))
        yield _jws(header | {"alg": "HS256"}, claims, by_hmac(json.dumps(ours.public_jwk).encode()))
        yield _jws(header | {"kid": chance.randbytes(32).hex()}, claims, mine)
        yield _jws(header | {"kid": chance.choice([None, 1, [], {}, "../key", "' OR 1=1"])}, claims, mine)
        yield _jws(header | {"jwk": theirs.public_jwk, "kid": theirs.kid}, claims, mine)
        yield _jws(header | {"jku": "https://evil.example/k"}, claims, mine)
        yield _jws(header | {"x5u": "https://evil.example/k"}, claims, mine)
        yield _jws(header | {"crit": ["exp"]}, claims, mine)
        yield _jws(header, claims, mine)
        yield _foreign(header["kid"], theirs, claims)
        yield "".join(chance.choices(_B64 + ".", k=chance.randrange(1, 900)))
        yield f"{head}.{head}.{head}.{head}.{head}"
        yield f"{_b64(b'[' * chance.randrange(1, 900))}.{payload}.{signature}"
        yield f"{_b64(chance.randbytes(60))}.{_b64(chance.randbytes(60))}.{_b64(chance.randbytes(64))}"


def _foreign(kid: str, theirs: SigningKey, claims: dict[str, Any]) -> str:
    """Well signed by somebody else's key, under the name of ours."""
    from dataclasses import replace

    said = AccessClaims(
        issuer=claims["iss"],
        user_id=claims["sub"],
        audience=claims["aud"],
        expires_at=claims["exp"] * 1_000_000,
        issued_at=claims["iat"] * 1_000_000,
        jti=claims["jti"],
        client_id=claims["client_id"],
        scope=claims.get("scope", ""),
        token_id=claims["sid"],
    )
    return sign_access_token(said, replace(theirs, kid=kid))


def _jws(header: dict[str, Any], claims: dict[str, Any], sign: Callable[[bytes], bytes]) -> str:
    signed = f"{_encoded(header)}.{_encoded(claims)}"
    return f"{signed}.{_b64(sign(signed.encode()))}"


def _encoded(data: dict[str, Any]) -> str:
    return _b64(json.dumps(data).encode())


def _decoded(part: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


def _b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


# the way to the server


@dataclass
class Pipeline:
    """One connection that stays open, with many requests on their way."""

    port: int
    answers: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        self._read = self._socket.makefile("rb")

    def close(self) -> None:
        self._read.close()
        self._socket.close()

    def send(self, requests: Sequence[bytes], path: str) -> None:
        """Count the answers by path, status and code."""
        self._socket.sendall(b"".join(requests))
        for _ in requests:
            status, body = self._answer()
            said = json.loads(body)
            self.answers[f"{path} {status} {said.get('code') or said['error']}"] += 1

    def _answer(self) -> tuple[int, bytes]:
        status = int(self._read.readline().split()[1])
        length = 0
        while (line := self._read.readline()) != b"\r\n":
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return status, self._read.read(length)


def _post(path: str, kind: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def refresh(token: str) -> bytes:
    return _post("/auth/refresh", "application/json", json.dumps({"refresh_token": token}).encode())


def logout(token: str) -> bytes:
    return _post("/auth/logout", "application/json", json.dumps({"refresh_token": token}).encode())


def grant(token: str) -> bytes:
    form = urlencode({"grant_type": "refresh_token", "refresh_token": token})
    return _post("/oauth/token", "application/x-www-form-urlencoded", form.encode())


def me(token: str) -> bytes:
    return f"GET /auth/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode("latin-1")


# the tests

GRANT = b"grant_type=refresh_token&refresh_token="


@pytest.mark.timeout(300 + COUNT // 200)
def test_forged_tokens_are_refused_without_a_query_in_flat_memory(live: Live) -> None:
    pair = live.log_in()
    assert live.get("/auth/me", pair["access_token"]).status == 200
    chance = random.Random(1)
    strings = forged_refresh_tokens(pair["refresh_token"], chance)
    ours = live.service._runtime.key_ring.signing_key()
    jwts = forged_access_tokens(pair["access_token"], ours, chance)
    kinds: list[tuple[str, Callable[[str], bytes], Iterator[str]]] = [
        ("/auth/refresh", refresh, strings),
        ("/oauth/token", grant, strings),
        ("/auth/logout", logout, strings),
        ("/auth/me", me, jwts),
    ]
    queries: list[str] = []

    @sa.event.listens_for(live.service._runtime.storage.engine, "before_cursor_execute")
    def note(_conn: object, _cursor: object, statement: str, *_: object) -> None:
        queries.append(statement)

    resident: list[int] = []
    rounds = max(10, COUNT // (_AT_ONCE * len(kinds)))
    pipelines = [Pipeline(live.port) for _ in kinds]
    for i in range(rounds):
        for pipeline, (path, made, tokens) in zip(pipelines, kinds, strict=True):
            pipeline.send([made(token) for token in islice(tokens, _AT_ONCE)], path)
        live.log.clear()  # the test's own memory of what the server logged
        if i in (rounds // 4, rounds - 1):
            resident.append(_resident())
    for pipeline in pipelines:
        pipeline.close()

    answers = sum((pipeline.answers for pipeline in pipelines), Counter[str]())
    assert set(answers) == {
        "/auth/refresh 401 invalid_grant",
        "/oauth/token 400 invalid_grant",
        "/auth/logout 401 invalid_grant",
        "/auth/me 401 invalid_token",
    }
    assert set(answers.values()) == {rounds * _AT_ONCE}
    assert queries == []
    assert resident[1] - resident[0] < _SLACK
    # The genuine ones are as good as before.
    assert live.get("/auth/me", pair["access_token"]).status == 200
    assert live.post("/auth/refresh", {"refresh_token": pair["refresh_token"]}).status == 200
    assert queries


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"null", id="null"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'{"refresh_token":null}', id="null as the token"),
        pytest.param(b'{"refresh_token":1}', id="a number"),
        pytest.param(b'{"refresh_token":"\\ud800"}', id="half a surrogate pair"),
        pytest.param(b'{"refresh_token":"\xff"}', id="no UTF-8"),
        pytest.param(b'{"refresh_token":"a"', id="no end"),
        pytest.param(b"[" * 8000, id="deep"),
        pytest.param(b'{"a":' * 1500, id="deep objects"),
        pytest.param(b'{"refresh_token":"a","refresh_token":"b"}', id="twice"),
        pytest.param(b"1" * 8000, id="a great number"),
        pytest.param(b"\x00" * 100, id="zeros"),
        pytest.param(b"x" * 100_000, id="too large"),
    ],
)
def test_a_malformed_body_is_the_callers_fault(live: Live, body: bytes) -> None:
    for path in ("/auth/refresh", "/auth/logout", "/auth/login", "/auth/register", "/auth/nothing"):
        reply = live.send("POST", path, body, {"Content-Type": "application/json"})
        assert 400 <= reply.status < 500, reply.body
        assert reply.json["code"]


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"=", id="no name"),
        pytest.param(b"&" * 200, id="separators"),
        pytest.param(b"%", id="half an escape"),
        pytest.param(GRANT + b"%ff", id="no UTF-8 in an escape"),
        pytest.param(GRANT + b"\xff", id="no ASCII"),
        pytest.param(GRANT + b"x&" + b"&".join(b"a%d=1" % i for i in range(500)), id="500 parameters"),
        pytest.param(GRANT + b"x&refresh_token=x", id="a parameter twice"),
        pytest.param(GRANT + b"x&a=1&a=1", id="an unknown parameter twice"),
        pytest.param(GRANT, id="no refresh token"),
    ],
)
def test_a_malformed_form_is_the_callers_fault(live: Live, form: bytes) -> None:
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    reply = live.send("POST", "/oauth/token", form, kind)
    assert (reply.status, reply.json["error"]) == (400, "invalid_request")
    assert set(reply.json) == {"error", "error_description"}


@pytest.mark.parametrize("value", ["\x00", "é", '"<', "\u202e", "a" * 8000, "' OR 1=1", "%00"])
@pytest.mark.parametrize("name", ["refresh_token", "scope", "client_id", "client_secret", "grant_type"])
def test_an_odd_value_in_a_form_is_the_callers_fault(live: Live, name: str, value: str) -> None:
    reply = live.form("/oauth/token", {"grant_type": "refresh_token", "refresh_token": "x", name: value})
    assert reply.status in (400, 401), reply.body
    assert value not in reply.body.decode()


def _resident() -> int:
    """Bytes of this process's memory that are not swapped out; the server is in it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()
