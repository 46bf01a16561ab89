"""Clients that others wrote and others use, unchanged, against the server as it ships."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests
from authlib.integrations.base_client.errors import OAuthError
from authlib.integrations.requests_client import OAuth2Session as AuthlibSession
from oauthlib.oauth2 import InvalidGrantError, WebApplicationClient
from requests_oauthlib import OAuth2Session

from tests.http.conftest import OPENER, Api, Server, log_in

NODE = Path(__file__).parent / "node"
CLAIMS = {"iss", "sub", "aud", "exp", "iat", "jti", "client_id", "scope", "sid"}
SCOPE = "profile orders"


@pytest.fixture
def pair(server: Server, ada: str) -> dict[str, Any]:
    """The token pair of a login to the client `default`."""
    return log_in(server, ada, scope=SCOPE)


@pytest.fixture
def metadata(server: Server) -> dict[str, Any]:
    """What the server says of itself after RFC 8414."""
    with OPENER.open(f"{server.url}/.well-known/oauth-authorization-server") as answer:
        found: dict[str, Any] = json.load(answer)
    return found


# requests-oauthlib


@pytest.fixture
def _over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """oauthlib's own switch for a server on loopback."""
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")


@pytest.mark.usefixtures("_over_http")
def test_requests_oauthlib_refreshes(metadata: dict[str, Any], pair: dict[str, Any]) -> None:
    session = OAuth2Session("default")
    token = session.refresh_token(
        metadata["token_endpoint"], refresh_token=pair["refresh_token"], client_id="default"
    )
    assert token["token_type"] == "Bearer"
    assert token["refresh_token"] != pair["refresh_token"]
    again = session.refresh_token(metadata["token_endpoint"], client_id="default")
    assert again["refresh_token"] != token["refresh_token"]


@pytest.mark.usefixtures("_over_http")
def test_requests_oauthlib_refreshes_by_itself(
    server: Server, metadata: dict[str, Any], pair: dict[str, Any]
) -> None:
    kept: list[dict[str, Any]] = []
    session = OAuth2Session(
        "default",
        token={**pair, "expires_in": -1},
        auto_refresh_url=metadata["token_endpoint"],
        auto_refresh_kwargs={"client_id": "default"},
        token_updater=kept.append,
    )
    answers = [session.get(f"{server.url}/auth/me") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert len(kept) == 1
    assert kept[0]["refresh_token"] != pair["refresh_token"]


@pytest.mark.usefixtures("_over_http")
def test_requests_oauthlib_revokes_and_understands_the_refusal(
    metadata: dict[str, Any], pair: dict[str, Any]
) -> None:
    client = WebApplicationClient("default")
    session = OAuth2Session(client=client)
    url, headers, body = client.prepare_token_revocation_request(
        metadata["revocation_endpoint"], pair["refresh_token"], "refresh_token", client_id="default"
    )
    assert requests.post(url, body, headers=headers, timeout=30).status_code == 200
    with pytest.raises(InvalidGrantError) as refused:
        session.refresh_token(
            metadata["token_endpoint"], refresh_token=pair["refresh_token"], client_id="default"
        )
    assert refused.value.status_code == 400


# Authlib


def _authlib(metadata: dict[str, Any], **options: Any) -> Any:
    """A public client's session; `Any`, because the stubs leave some of its methods untyped."""
    return AuthlibSession(
        "default",
        token_endpoint=metadata["token_endpoint"],
        token_endpoint_auth_method="none",
        revocation_endpoint_auth_method="none",
        **options,
    )


def test_authlib_refreshes(metadata: dict[str, Any], pair: dict[str, Any]) -> None:
    session = _authlib(metadata)
    token = session.refresh_token(metadata["token_endpoint"], refresh_token=pair["refresh_token"])
    assert token["refresh_token"] != pair["refresh_token"]
    assert not token.is_expired()


def test_authlib_refreshes_by_itself(server: Server, metadata: dict[str, Any], pair: dict[str, Any]) -> None:
    kept: list[dict[str, Any]] = []
    session = _authlib(
        metadata,
        token={**pair, "expires_at": 1},
        update_token=lambda token, **_: kept.append(token),
    )
    answers = [session.get(f"{server.url}/auth/me") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert len(kept) == 1
    assert kept[0]["refresh_token"] != pair["refresh_token"]


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
def test_authlib_introspects_and_revokes(
    metadata: dict[str, Any], pair: dict[str, Any], api: Api, method: str
) -> None:
    asking = AuthlibSession(api.id, api.secret, token_endpoint_auth_method=method)

    def introspect(name: str) -> dict[str, Any]:
        answer = asking.introspect_token(metadata["introspection_endpoint"], pair[name], name)
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    access, refresh = introspect("access_token"), introspect("refresh_token")
    assert access["active"] is refresh["active"] is True
    assert access["sub"] == refresh["sub"] == pair["user"]["id"]
    assert access["client_id"] == refresh["client_id"] == "default"
    assert access["scope"] == refresh["scope"] == SCOPE

    session = _authlib(metadata)
    revoked = session.revoke_token(metadata["revocation_endpoint"], pair["refresh_token"], "refresh_token")
    assert revoked.status_code == 200
    assert introspect("access_token") == introspect("refresh_token") == {"active": False}
    with pytest.raises(OAuthError) as refused:
        session.refresh_token(metadata["token_endpoint"], refresh_token=pair["refresh_token"])
    assert refused.value.error == "invalid_grant"


# PyJWT


def test_pyjwt_verifies_the_access_token(
    server: Server, metadata: dict[str, Any], pair: dict[str, Any]
) -> None:
    token = pair["access_token"]
    key = jwt.PyJWKClient(metadata["jwks_uri"]).get_signing_key_from_jwt(token)
    claims = jwt.decode(
        token,
        key,
        algorithms=["ES256"],
        audience=server.url,
        issuer=metadata["issuer"],
        options={"require": sorted(CLAIMS)},
    )
    assert jwt.get_unverified_header(token)["typ"] == "at+jwt"
    assert claims["sub"] == pair["user"]["id"]
    assert claims["scope"] == SCOPE


# Node


@pytest.fixture
def task(server: Server, metadata: dict[str, Any], pair: dict[str, Any], api: Api) -> dict[str, Any]:
    """What a script of tests/http/node gets to do."""
    return {
        "issuer": server.url,
        "jwks_uri": metadata["jwks_uri"],
        "client_id": "default",
        "refresh_token": pair["refresh_token"],
        "access_token": pair["access_token"],
        "api": {"id": api.id, "secret": api.secret},
    }


def _run_node(script: str, task: dict[str, Any]) -> Any:
    node = shutil.which("node")
    if node is None or not (NODE / "node_modules").is_dir():
        pytest.fail("Node's clients are not there; install Node.js, then: npm ci --prefix tests/http/node")
    done = subprocess.run(
        [node, script],
        cwd=NODE,
        input=json.dumps(task),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.node
def test_openid_client(server: Server, task: dict[str, Any], metadata: dict[str, Any]) -> None:
    done = _run_node("openid-client.mjs", task)
    assert done["metadata"] == metadata
    assert done["metadata"]["issuer"] == server.url
    assert done["token_type"] == "bearer"  # the library's spelling of every case
    assert 0 < done["expires_in"] <= 600
    assert done["rotated"] is True
    assert done["same_when_retried"] is True
    active = done["active"]
    assert active["basic"] == active["post"]
    assert [active[name]["active"] for name in ("basic", "refresh")] == [True, True]
    assert active["basic"]["sub"] == active["refresh"]["sub"]
    assert active["basic"]["token_type"] == "Bearer"
    assert done["revoked"] == {"access": {"active": False}, "refresh": {"active": False}}
    assert done["refused"] == {"name": "ResponseBodyError", "error": "invalid_grant", "status": 400}
    assert done["wrong_secret"] == {"name": "WWWAuthenticateChallengeError", "status": 401, "scheme": "basic"}


@pytest.mark.node
def test_oauth4webapi(server: Server, task: dict[str, Any], pair: dict[str, Any]) -> None:
    done = _run_node("oauth4webapi.mjs", task)
    assert done["issuer"] == server.url
    assert set(done["claims"]) >= CLAIMS
    assert done["claims"]["sub"] == pair["user"]["id"]
    assert [done["active"][name]["active"] for name in ("basic", "post")] == [True, True]
    assert done["revoked"] == {"active": False}
    assert done["refused"] == {"name": "ResponseBodyError", "error": "invalid_grant", "status": 400}


@pytest.mark.node
@pytest.mark.parametrize("script", ["jose.mjs", "jwks-rsa.mjs"])
def test_node_verifies_the_access_token(script: str, task: dict[str, Any], pair: dict[str, Any]) -> None:
    done = _run_node(script, task)
    assert set(done["payload"]) >= CLAIMS
    assert done["payload"]["sub"] == pair["user"]["id"]
    assert done["header"]["typ"] == "at+jwt"
    assert done["header"]["alg"] == "ES256"
