"""The routes under /oauth and /.well-known, row by row as the RFCs and security.md (8 to 17) have them.

All tests but those of other settings share one server. Each has a user of its own.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import jwt
import pytest

from tests.conftest import MASTER_KEY, START, Clock
from tests.http.live import Live, Reply, running, shared, somebody
from tests.service import dump
from tokenctl import Settings
from tokenctl.core.keys import format_master_key, generate_signing_key
from tokenctl.core.token_string import parse_unverified
from tokenctl.service.database import build_database

POSTS = ["/oauth/token", "/oauth/revoke", "/oauth/introspect"]
DEAD = b'{"active":false}'
METADATA = "/.well-known/oauth-authorization-server"
JWKS = "/.well-known/jwks.json"


@pytest.fixture(scope="module")
def live(new_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with shared(new_database, tmp_path_factory.mktemp("oauth")) as live:
        live.service.clients.create("app")
        yield live


@pytest.fixture(scope="module")
def secret(live: Live) -> str:
    """The secret of the client `api`, which may introspect."""
    made = live.service.clients.create("api", introspect=True)
    assert made.secret is not None
    return made.secret


@pytest.fixture
def pair(live: Live) -> dict[str, Any]:
    return live.log_in(somebody(), scope="read write")


def basic(client_id: str, secret: str) -> str:
    return "Basic " + b64encode(f"{client_id}:{secret}".encode()).decode()


def refresh(live: Live, string: str, **fields: str) -> Reply:
    return live.form("/oauth/token", {"grant_type": "refresh_token", "refresh_token": string, **fields})


def introspect(live: Live, secret: str, token: str, **fields: str) -> Reply:
    return live.form("/oauth/introspect", {"token": token, **fields}, authorization=basic("api", secret))


def demand_error(reply: Reply, status: int, error: str) -> None:
    """RFC 6749 §5.2, and that nobody keeps it."""
    assert (reply.status, reply.json["error"]) == (status, error)
    assert set(reply.json) == {"error", "error_description"}
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-request-id"]


# --- the token endpoint --------------------------------------------------------------------


def test_a_refresh_is_answered_as_rfc_6749_has_it(live: Live, pair: dict[str, Any]) -> None:
    reply = refresh(live, pair["refresh_token"])
    answer = reply.json
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"
    assert {name: type(value) for name, value in answer.items()} == {
        "access_token": str,
        "token_type": str,
        "expires_in": int,
        "refresh_token": str,
        "refresh_expires_in": int,
        "scope": str,
    }
    assert (answer["token_type"], answer["expires_in"], answer["scope"]) == ("Bearer", 600, "read write")
    assert live.get("/auth/me", answer["access_token"]).status == 200
    # A retry gets the same string, here and under /auth.
    assert refresh(live, pair["refresh_token"]).json["refresh_token"] == answer["refresh_token"]
    again = live.post("/auth/refresh", {"refresh_token": pair["refresh_token"]})
    assert again.json["refresh_token"] == answer["refresh_token"]


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
def test_only_post(live: Live, path: str, method: str) -> None:
    reply = live.send(method, path)
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert reply.headers["cache-control"] == "no-store"
    if method != "HEAD":
        demand_error(reply, 405, "invalid_request")


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        pytest.param([("refresh_token", "x")], "invalid_request", id="no grant type"),
        pytest.param([("grant_type", ""), ("refresh_token", "x")], "invalid_request", id="an empty one"),
        pytest.param([], "invalid_request", id="nothing"),
        pytest.param([("grant_type", "refresh_token")], "invalid_request", id="no token"),
        pytest.param(
            [("grant_type", "refresh_token"), ("refresh_token", "")], "invalid_request", id="an empty token"
        ),
        pytest.param(
            [("grant_type", "password"), ("username", "ada"), ("password", "x")],
            "unsupported_grant_type",
            id="password",
        ),
        pytest.param([("grant_type", "authorization_code")], "unsupported_grant_type", id="code"),
        pytest.param([("grant_type", "client_credentials")], "unsupported_grant_type", id="client"),
        pytest.param([("grant_type", "REFRESH_TOKEN")], "unsupported_grant_type", id="upper case"),
        pytest.param(
            [("grant_type", "refresh_token"), ("refresh_token", "x")], "invalid_grant", id="a wrong token"
        ),
    ],
)
def test_what_is_wrong_with_a_token_request(live: Live, fields: list[tuple[str, str]], error: str) -> None:
    reply = live.form("/oauth/token", fields)
    demand_error(reply, 400, error)
    assert "www-authenticate" not in reply.headers


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize("name", ["token", "refresh_token", "client_id", "unknown"])
def test_a_repeated_parameter_is_refused(live: Live, path: str, name: str) -> None:
    fields = [
        ("grant_type", "refresh_token"),
        ("token", "x"),
        ("refresh_token", "x"),
        (name, "y"),
        (name, "y"),
    ]
    demand_error(live.form(path, fields), 400, "invalid_request")


def test_an_unknown_parameter_is_ignored_and_an_empty_one_is_absent(live: Live, pair: dict[str, Any]) -> None:
    reply = refresh(
        live, pair["refresh_token"], resource="https://x.example", scope="", client_id="", client_secret=""
    )
    assert (reply.status, reply.json["scope"]) == (200, "read write")


def test_the_scope_only_narrows(live: Live, pair: dict[str, Any]) -> None:
    demand_error(refresh(live, pair["refresh_token"], scope="read admin"), 400, "invalid_scope")
    demand_error(refresh(live, pair["refresh_token"], scope='"'), 400, "invalid_scope")
    narrow = refresh(live, pair["refresh_token"], scope="write").json
    assert narrow["scope"] == "write"
    assert refresh(live, narrow["refresh_token"]).json["scope"] == "read write"


def test_all_refusals_look_alike(live: Live, pair: dict[str, Any]) -> None:
    spent, mine = pair["refresh_token"], live.log_in(somebody(), client_id="app")["refresh_token"]
    refresh(live, refresh(live, spent).json["refresh_token"])
    replies = [refresh(live, each) for each in ("x", "tkr1_" + "A" * 84, mine, spent, spent)]
    replies.append(refresh(live, mine, client_id="nobody"))
    for reply in replies:
        demand_error(reply, 400, "invalid_grant")
        assert reply.body == replies[0].body
    assert refresh(live, mine, client_id="app").status == 200


# --- who calls -----------------------------------------------------------------------------


@pytest.mark.parametrize("client_id", ["default", "app"])
def test_basic_with_an_empty_secret_is_a_public_client(live: Live, client_id: str) -> None:
    string = live.log_in(somebody(), client_id=client_id)["refresh_token"]
    fields = {"grant_type": "refresh_token", "refresh_token": string}
    reply = live.form("/oauth/token", fields, authorization=basic(client_id, ""))
    assert reply.status == 200
    # And the same client may be named in the body as well.
    fields = {**fields, "client_id": client_id}
    assert live.form("/oauth/token", fields, authorization=basic(client_id, "")).status == 200


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "header",
    [
        pytest.param(basic("api", "tks1_" + "A" * 43), id="wrong secret"),
        pytest.param(basic("api", "x"), id="no secret of ours"),
        pytest.param(basic("api", "\u00e9\U0001f9a6"), id="not ASCII"),
        pytest.param(basic("nobody", "tks1_" + "A" * 43), id="unknown client"),
        pytest.param(basic("app", "tks1_" + "A" * 43), id="client without a secret"),
        pytest.param(basic("", "tks1_" + "A" * 43), id="no name"),
        pytest.param(basic("a\0b", "x"), id="NUL"),
        pytest.param("Basic", id="nothing behind it"),
        pytest.param("Basic !!!", id="no base64"),
        pytest.param("Basic YXBp", id="no colon"),
        pytest.param("Basic /w==", id="no UTF-8"),
        pytest.param("Bearer x", id="another scheme"),
    ],
)
def test_wrong_client_credentials_are_challenged(live: Live, secret: str, path: str, header: str) -> None:
    fields = {"grant_type": "refresh_token", "refresh_token": "x", "token": "x"}
    reply = live.form(path, fields, authorization=header)
    demand_error(reply, 401, "invalid_client")
    assert reply.headers["www-authenticate"] == 'Basic realm="tokenctl", charset="UTF-8"'


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"client_secret": "x"}, id="a secret"),
        pytest.param({"client_id": "api", "client_secret": "x"}, id="both"),
        pytest.param({"client_id": "default"}, id="another name"),
    ],
)
@pytest.mark.parametrize("path", POSTS)
def test_credentials_in_the_header_and_in_the_body_are_one_too_many(
    live: Live, secret: str, path: str, fields: dict[str, str]
) -> None:
    fields = {"grant_type": "refresh_token", "refresh_token": "x", "token": "x", **fields}
    demand_error(live.form(path, fields, authorization=basic("api", secret)), 400, "invalid_request")


def test_basic_credentials_are_form_encoded(live: Live, pair: dict[str, Any]) -> None:
    made = live.service.clients.create("a+b%:c", introspect=True)
    assert made.secret is not None
    encoded = quote_plus("a+b%:c")
    assert encoded == "a%2Bb%25%3Ac"
    header = basic(encoded, quote_plus(made.secret))
    fields = {"token": pair["access_token"]}
    assert live.form("/oauth/introspect", fields, authorization=header).json["active"] is True


# --- revocation ----------------------------------------------------------------------------


def revoke(live: Live, token: str, **fields: str) -> None:
    reply = live.form("/oauth/revoke", {"token": token, **fields})
    assert (reply.status, reply.body) == (200, b"{}")
    assert reply.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
@pytest.mark.parametrize("hint", ["", "access_token", "refresh_token", "saml2"])
def test_revoking_ends_the_login_whatever_the_hint(
    live: Live, secret: str, pair: dict[str, Any], kind: str, hint: str
) -> None:
    revoke(live, pair[kind], token_type_hint=hint)
    assert introspect(live, secret, pair["access_token"]).body == DEAD
    assert introspect(live, secret, pair["refresh_token"]).body == DEAD
    assert live.get("/auth/me", pair["access_token"]).status == 401
    demand_error(refresh(live, pair["refresh_token"]), 400, "invalid_grant")
    row = live.service.inspect(parse_unverified(pair["refresh_token"]).token_id).token
    assert (row.revoked_reason, row.revoked_by) == ("revoked by the client", "client default")
    revoke(live, pair[kind])  # again, and all is well


@pytest.mark.parametrize("token", ["x", "tkr1_" + "A" * 84, "a.b.c", "\0", "\U0001f9a6", "x" * 8000])
def test_revoking_what_is_no_token_is_fine(live: Live, token: str) -> None:
    revoke(live, token)


@pytest.mark.parametrize("kind", ["access_token", "refresh_token"])
def test_another_client_s_token_stays_untouched(live: Live, secret: str, kind: str) -> None:
    pair = live.log_in(somebody(), client_id="app")
    row = parse_unverified(pair["refresh_token"]).token_id
    before = live.service.inspect(row).token
    revoke(live, pair[kind])
    revoke(live, pair[kind], client_id="nobody")
    revoke(live, pair[kind], client_id="api", client_secret=secret)
    assert live.service.inspect(row).token == before
    revoke(live, pair[kind], client_id="app")
    assert live.service.inspect(row).token.is_revoked


def test_a_revocation_without_a_token_is_malformed(live: Live) -> None:
    demand_error(live.form("/oauth/revoke", {"token": ""}), 400, "invalid_request")
    demand_error(live.form("/oauth/revoke", {}), 400, "invalid_request")


# --- introspection -------------------------------------------------------------------------


def test_an_active_access_token(live: Live, secret: str, pair: dict[str, Any]) -> None:
    claims = jwt.decode(pair["access_token"], options={"verify_signature": False})
    reply = introspect(live, secret, pair["access_token"])
    assert reply.json == {
        "active": True,
        "token_type": "Bearer",
        "client_id": "default",
        "username": pair["user"]["name"],
        "sub": pair["user"]["id"],
        "scope": "read write",
        "iss": live.service.settings.issuer,
        "aud": live.service.settings.issuer,
        "iat": claims["iat"],
        "exp": claims["exp"],
        "sid": claims["sid"],
    }
    assert reply.headers["cache-control"] == "no-store"


def test_an_active_refresh_token(live: Live, secret: str, pair: dict[str, Any]) -> None:
    now = live.clock() // 1_000_000
    assert introspect(live, secret, pair["refresh_token"]).json == {
        "active": True,
        "client_id": "default",
        "username": pair["user"]["name"],
        "sub": pair["user"]["id"],
        "scope": "read write",
        "iss": live.service.settings.issuer,
        "iat": now,
        "exp": now + 14 * 86_400,  # when it dies if nobody uses it
        "sid": parse_unverified(pair["refresh_token"]).token_id,
    }


@pytest.mark.parametrize("token", ["x", "a.b.c", "tkr1_" + "A" * 84, "\0", "\U0001f9a6"])
def test_what_is_no_token_is_exactly_inactive(live: Live, secret: str, token: str) -> None:
    reply = introspect(live, secret, token)
    assert (reply.status, reply.body) == (200, DEAD)
    assert reply.headers["content-type"] == "application/json"


def test_what_expired_is_exactly_inactive(live: Live, secret: str, pair: dict[str, Any]) -> None:
    live.clock.advance(timedelta(minutes=10))
    assert introspect(live, secret, pair["access_token"]).body == DEAD
    assert introspect(live, secret, pair["refresh_token"]).json["active"] is True
    live.clock.advance(timedelta(days=14))
    assert introspect(live, secret, pair["refresh_token"]).body == DEAD


def test_asking_about_a_spent_string_is_no_reuse(live: Live, secret: str, pair: dict[str, Any]) -> None:
    newest = pair["refresh_token"]
    for _ in range(2):
        newest = refresh(live, newest).json["refresh_token"]
    before = dump(live.service.settings)
    assert introspect(live, secret, pair["refresh_token"]).body == DEAD
    assert dump(live.service.settings) == before
    assert refresh(live, newest).status == 200


@pytest.mark.parametrize("header", [None, basic("default", ""), basic("api", "")])
def test_nobody_introspects_without_credentials(
    live: Live, secret: str, pair: dict[str, Any], header: str | None
) -> None:
    headers = {} if header is None else {"authorization": header}
    reply = live.form("/oauth/introspect", {"token": pair["access_token"]}, **headers)
    demand_error(reply, 401, "invalid_client")
    assert reply.headers["www-authenticate"] == 'Basic realm="tokenctl", charset="UTF-8"'


def test_an_access_token_is_no_credential_for_introspection(live: Live, pair: dict[str, Any]) -> None:
    headers = {"authorization": f"Bearer {pair['access_token']}"}
    reply = live.form("/oauth/introspect", {"token": pair["access_token"]}, **headers)
    demand_error(reply, 401, "invalid_client")


def test_the_secret_may_be_in_the_body(live: Live, secret: str, pair: dict[str, Any]) -> None:
    fields = {"token": pair["access_token"], "client_id": "api", "client_secret": secret}
    assert live.form("/oauth/introspect", fields).json["active"] is True
    fields["client_secret"] = secret[:-1]
    demand_error(live.form("/oauth/introspect", fields), 401, "invalid_client")


def test_introspection_without_a_token_is_malformed(live: Live, secret: str) -> None:
    demand_error(introspect(live, secret, ""), 400, "invalid_request")


# --- what everybody may read ---------------------------------------------------------------


def test_the_metadata_say_where_everything_is(live: Live) -> None:
    issuer = live.service.settings.issuer
    reply = live.get(METADATA)
    found = reply.json
    assert found["issuer"] == issuer
    assert reply.headers["cache-control"] == "public, max-age=300"
    assert found["grant_types_supported"] == ["refresh_token"]
    assert found["response_types_supported"] == []
    endpoints = {name: found[name] for name in found if name.endswith(("_endpoint", "_uri"))}
    assert endpoints == {
        "token_endpoint": f"{issuer}/oauth/token",
        "revocation_endpoint": f"{issuer}/oauth/revoke",
        "introspection_endpoint": f"{issuer}/oauth/introspect",
        "jwks_uri": f"{issuer}{JWKS}",
    }
    for url in endpoints.values():
        assert live.get(url.removeprefix(issuer)).status in (200, 405)
    methods = found["introspection_endpoint_auth_methods_supported"]
    assert methods == ["client_secret_basic", "client_secret_post"]


@pytest.mark.parametrize(
    ("issuer", "path"),
    [
        pytest.param("https://auth.example", METADATA, id="none"),
        pytest.param("https://auth.example/", METADATA, id="a slash"),
        pytest.param("https://auth.example/realm", METADATA + "/realm", id="a path"),
        pytest.param("https://auth.example/a/b/", METADATA + "/a/b", id="two segments and a slash"),
    ],
)
def test_the_issuer_is_the_same_everywhere_byte_for_byte(
    settings: Settings, clock: Clock, issuer: str, path: str
) -> None:
    with running(replace(settings, issuer=issuer), clock) as live:
        found = live.get(path).json
        token = live.log_in()["access_token"]
        assert live.get("/auth/me", token).status == 200
    claims = jwt.decode(token, options={"verify_signature": False})
    assert found["issuer"] == claims["iss"] == claims["aud"] == issuer
    assert found["token_endpoint"] == issuer.rstrip("/") + "/oauth/token"


def _keys(live: Live) -> dict[str, dict[str, Any]]:
    return {key["kid"]: key for key in live.get(JWKS).json["keys"]}


def _thumbprint(jwk: dict[str, str]) -> str:
    """RFC 7638 §3, written anew here."""
    names = {"EC": ["crv", "kty", "x", "y"], "RSA": ["e", "kty", "n"]}[jwk["kty"]]
    canonical = "{" + ",".join(f'"{name}":"{jwk[name]}"' for name in names) + "}"
    return urlsafe_b64encode(hashlib.sha256(canonical.encode()).digest()).decode().rstrip("=")


def test_the_public_keys_are_public_and_named_by_their_thumbprint(live: Live) -> None:
    reply = live.get(JWKS)
    assert reply.headers["cache-control"] == "public, max-age=300"
    assert reply.headers["content-type"] == "application/json"
    for jwk in reply.json["keys"]:
        assert set(jwk) == {"kty", "use", "alg", "kid", "crv", "x", "y"}
        assert (jwk["kty"], jwk["use"], jwk["alg"], jwk["crv"]) == ("EC", "sig", "ES256", "P-256")
        assert jwk["kid"] == _thumbprint(jwk)


def verified(live: Live, token: str, *, algorithm: str = "ES256") -> dict[str, Any]:
    """The claims, as somebody reads them who knows the address of the keys and nothing else."""
    header = jwt.get_unverified_header(token)
    assert header == {"typ": "at+jwt", "alg": algorithm, "kid": header["kid"]}
    issuer = live.service.settings.issuer
    # The clock of the test is not the one of PyJWT.
    claims: dict[str, Any] = jwt.decode(
        token,
        jwt.PyJWK(_keys(live)[header["kid"]]),
        algorithms=[algorithm],
        issuer=issuer,
        audience=issuer,
        options={"verify_exp": False, "verify_iat": False},
    )
    return claims


@pytest.mark.parametrize("scope", ["", "read write"])
def test_the_claims_are_those_of_rfc_9068(live: Live, scope: str) -> None:
    pair = live.log_in(somebody(), client_id="app", scope=scope)
    claims = verified(live, pair["access_token"])
    now = live.clock() // 1_000_000
    jti = claims.pop("jti")
    assert claims == {
        "iss": live.service.settings.issuer,
        "sub": pair["user"]["id"],
        "aud": live.service.settings.issuer,
        "exp": now + 600,
        "iat": now,
        "client_id": "app",
        "sid": parse_unverified(pair["refresh_token"]).token_id,
        **({"scope": scope} if scope else {}),
    }
    after = refresh(live, pair["refresh_token"], client_id="app").json["access_token"]
    assert verified(live, after)["jti"] != jti


def test_tokens_stay_verifiable_across_a_rotation_of_the_keys(live: Live) -> None:
    pair = live.log_in(somebody())
    old = jwt.get_unverified_header(pair["access_token"])["kid"]
    new = live.service.keys.rotate().kid
    assert set(_keys(live)) >= {old, new}  # published before it signs
    live.clock.advance(timedelta(minutes=9))
    before = refresh(live, pair["refresh_token"]).json
    live.clock.advance(timedelta(minutes=2))
    after = refresh(live, before["refresh_token"]).json
    kids = [jwt.get_unverified_header(each["access_token"])["kid"] for each in (before, after)]
    assert kids == [old, new]
    for each in (before, after):
        assert verified(live, each["access_token"])["sub"] == pair["user"]["id"]
        assert live.get("/auth/me", each["access_token"]).status == 200
    live.clock.advance(timedelta(days=2))
    assert old not in _keys(live)


def test_with_rs256_all_goes_as_well(tmp_path: Path) -> None:
    key = generate_signing_key("RS256")
    database = tmp_path / "tokens.db"
    build_database(str(database), MASTER_KEY, key, actor="test", clock=lambda: START)
    database.with_name("tokens.db.key").write_text(format_master_key(MASTER_KEY))
    settings = Settings(database=str(database), algorithm="RS256")
    with running(settings, Clock()) as live:
        pair = live.log_in()
        [jwk] = _keys(live).values()
        assert set(jwk) == {"kty", "use", "alg", "kid", "n", "e"}
        assert (jwk["kty"], jwk["alg"], jwk["kid"]) == ("RSA", "RS256", _thumbprint(jwk))
        assert len(jwk["n"]) == 512  # 3072 bits
        assert verified(live, pair["access_token"], algorithm="RS256")["sub"] == pair["user"]["id"]
        after = refresh(live, pair["refresh_token"]).json
        assert live.get("/auth/me", after["access_token"]).status == 200


# --- access tokens that are none (security.md 14) -------------------------------------------


def _segment(value: Any) -> str:
    return urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("header", "claims"),
    [
        pytest.param({}, {"aud": "https://other.example"}, id="another audience"),
        pytest.param({}, {"aud": None}, id="no audience"),
        pytest.param({}, {"iss": "https://other.example"}, id="another issuer"),
        pytest.param({}, {"exp": 1}, id="expired"),
        pytest.param({"typ": "JWT"}, {}, id="another type"),
        pytest.param({"crit": ["b64"]}, {}, id="crit"),
        pytest.param({"jku": "http://127.0.0.1:9/jwks"}, {}, id="jku"),
        pytest.param({"x5u": "http://127.0.0.1:9/x"}, {}, id="x5u"),
        pytest.param({"kid": "x"}, {}, id="another key"),
    ],
)
def test_a_token_that_our_key_signed_is_not_enough(
    live: Live, secret: str, pair: dict[str, Any], header: dict[str, Any], claims: dict[str, Any]
) -> None:
    key = live.service._runtime.signing_key
    good = jwt.decode(pair["access_token"], options={"verify_signature": False})
    payload = {name: value for name, value in {**good, **claims}.items() if value is not None}
    headers = {"typ": "at+jwt", "kid": key.kid}
    assert live.get("/auth/me", jwt.encode(good, key.private, "ES256", headers)).status == 200
    token = jwt.encode(payload, key.private, "ES256", {**headers, **header})
    assert live.get("/auth/me", token).status == 401
    assert introspect(live, secret, token).body == DEAD


@pytest.mark.parametrize("algorithm", ["none", "HS256"])
def test_no_other_algorithm_counts(live: Live, secret: str, pair: dict[str, Any], algorithm: str) -> None:
    key = live.service._runtime.signing_key
    payload = pair["access_token"].split(".")[1]
    signed = _segment({"typ": "at+jwt", "alg": algorithm, "kid": key.kid}) + "." + payload
    signature = ""
    if algorithm == "HS256":
        public = json.dumps(key.public_jwk).encode()
        signature = urlsafe_b64encode(hashlib.sha256(public + signed.encode()).digest()).decode()
    token = f"{signed}.{signature.rstrip('=')}"
    assert live.get("/auth/me", token).status == 401
    assert introspect(live, secret, token).body == DEAD
