"""The OpenAPI document: valid and complete, its examples fit, and Schemathesis finds nothing by it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31

from tests.conftest import Clock
from tests.http.conftest import OPENER, StartServer
from tests.http.live import PASSWORD, Live, Reply, running
from tokenctl import Settings
from tokenctl.http.app import ENDPOINTS, endpoints_of

CONFIG = Path(__file__).with_name("schemathesis.toml")
UNDOCUMENTED = {"/client/{file}", "/docs", "/docs/{file}", "/openapi.json"}


@pytest.fixture
def document(live: Live) -> dict[str, Any]:
    found: dict[str, Any] = live.get("/openapi.json").json
    return found


Operation = tuple[str, str, dict[str, Any]]


def operations(document: dict[str, Any]) -> Iterator[Operation]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def responses(document: dict[str, Any]) -> Iterator[tuple[str, int, dict[str, Any]]]:
    for method, path, operation in operations(document):
        for status, response in operation["responses"].items():
            yield f"{method} {path}", int(status), response


def api_secret(live: Live) -> str:
    secret = live.service.clients.create("api", introspect=True).secret
    assert secret is not None
    return secret


def complaints(document: dict[str, Any], schema: dict[str, Any], value: Any) -> list[str]:
    """What is wrong with a value, by a schema of the document."""
    whole = {**schema, "components": document["components"]}
    validator = jsonschema_rs.Draft202012Validator(whole)
    return [error.message for error in validator.iter_errors(value)]


# the document by itself


def test_the_document_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    validator = jsonschema_rs.Draft202012Validator(OPENAPI_31)
    assert [error.message for error in validator.iter_errors(document)] == []


def test_every_schema_is_a_json_schema(document: dict[str, Any]) -> None:
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.Draft202012Validator({**schema, "components": document["components"]})
        assert schema["description"]
        assert "\n" not in schema["description"]


def test_its_server_is_where_it_comes_from(document: dict[str, Any]) -> None:
    assert document["servers"] == [{"url": "/"}]


def test_every_route_but_the_documentation_is_in_it_and_no_other(
    document: dict[str, Any], live: Live
) -> None:
    served = {(each.method, each.path) for each in endpoints_of(live.site)}
    documented = {(method, path) for method, path, _ in operations(document)}
    assert documented < served
    assert {path for _, path in served - documented} == UNDOCUMENTED


def test_what_is_in_it_is_served(document: dict[str, Any], live: Live) -> None:
    for method, path, _ in operations(document):
        reply = live.send(method, path.replace("{id}", "rt_x"))
        assert reply.status not in (404, 405), path


def test_every_operation_has_a_name_of_its_own_a_summary_a_description_and_a_tag(
    document: dict[str, Any],
) -> None:
    found = [operation for _, _, operation in operations(document)]
    assert len({operation["operationId"] for operation in found}) == len(found)
    for operation in found:
        assert operation["summary"]
        assert not operation["summary"].endswith(".")
        assert operation["description"].endswith(".")
        assert operation["tags"]


def test_every_body_has_an_example_that_fits(document: dict[str, Any]) -> None:
    checked = 0
    for method, path, operation in operations(document):
        bodies = [operation["requestBody"]] if "requestBody" in operation else []
        bodies += [each for status, each in operation["responses"].items() if status in ("200", "201")]
        for body in bodies:
            for kind, media in body["content"].items():
                if kind.startswith("text/"):
                    continue
                assert complaints(document, media["schema"], media["example"]) == [], f"{method} {path}"
                checked += 1
    assert checked == 20


def test_the_example_of_every_request_is_one_that_the_server_can_read() -> None:
    for endpoint in ENDPOINTS:
        if endpoint.request is not None:
            assert endpoint.request_example is not None
            msgspec.convert(endpoint.request_example, endpoint.request)


def test_every_error_has_an_example_that_fits_and_says_the_same_as_its_status(
    document: dict[str, Any],
) -> None:
    for place, status, response in responses(document):
        if status < 400:
            continue
        [(kind, media)] = response["content"].items()
        assert media["examples"], place
        for code, example in media["examples"].items():
            assert complaints(document, media["schema"], example["value"]) == []
            if "/oauth/" in place:
                assert kind == "application/json"
                assert example["value"]["error"] == code
            else:
                assert kind == "application/problem+json"
                assert (example["value"]["status"], example["value"]["code"]) == (status, code)
                assert "Root of" not in example["value"]["detail"]


def test_the_headers_that_go_with_a_status_are_told(document: dict[str, Any]) -> None:
    for place, status, response in responses(document):
        told = set(response.get("headers", {}))
        assert ("WWW-Authenticate" in told) is (status == 401), place
        assert ("Retry-After" in told) is (status in (429, 503)), place


def test_whatever_takes_an_access_token_says_so(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    secured = {
        path: operation["security"] for _, path, operation in operations(document) if "security" in operation
    }
    assert {scheme for all_of in secured.values() for one in all_of for scheme in one} <= set(schemes)
    assert secured == {
        "/auth/me": [{"bearer": []}],
        "/auth/sessions": [{"bearer": []}],
        "/auth/sessions/{id}": [{"bearer": []}],
        "/auth/password": [{"bearer": []}],
        "/oauth/token": [{}, {"client": []}],
        "/oauth/revoke": [{}, {"client": []}],
        "/oauth/introspect": [{"client": []}],
    }


def test_a_form_has_no_null(document: dict[str, Any]) -> None:
    for name in ("TokenRequest", "RevocationRequest", "IntrospectionRequest"):
        schema = document["components"]["schemas"][name]
        assert {each["type"] for each in schema["properties"].values()} == {"string"}


def test_with_cookies_it_tells_of_the_cookie_and_the_header(settings: Settings, clock: Clock) -> None:
    with running(replace(settings, cookies=True), clock) as live:
        document = live.get("/openapi.json").json
    validator = jsonschema_rs.Draft202012Validator(OPENAPI_31)
    assert [error.message for error in validator.iter_errors(document)] == []
    assert document["components"]["securitySchemes"]["cookie"]["name"] == "__Host-tokenctl"
    refresh = document["paths"]["/auth/refresh"]["post"]
    assert refresh["security"] == [{"cookie": []}]
    assert not refresh["requestBody"]["required"]
    assert "refresh_token" not in document["components"]["schemas"]["RefreshByCookie"]["properties"]
    guarded = {
        path
        for _, path, operation in operations(document)
        if "X-Tokenctl" in {each["name"] for each in operation["parameters"]}
    }
    # The examples are without it, too, and there are as many of them.
    login = document["paths"]["/auth/login"]["post"]
    assert "password" in login["requestBody"]["content"]["application/json"]["example"]
    assert refresh["requestBody"]["content"]["application/json"]["example"] == {}
    for operation in (login, refresh):
        assert "refresh_token" not in operation["responses"]["200"]["content"]["application/json"]["example"]
    assert guarded == {f"/auth/{name}" for name in ("refresh", "login", "register", "logout", "password")}


def test_what_only_development_has_is_not_in_it(document: dict[str, Any]) -> None:
    assert not [path for path in document["paths"] if path.startswith("/dev")]


# the document against real answers


def test_real_answers_are_as_the_document_says(document: dict[str, Any], live: Live) -> None:
    """One good answer of each operation, and each kind of error that a caller can cause by itself."""
    secret = api_secret(live)
    pair = live.log_in()
    other = live.log_in()
    spare = live.log_in()
    access = pair["access_token"]
    credentials = {"client_id": "api", "client_secret": secret}
    body = {"username": "bea", "password": PASSWORD}
    junk = {"refresh_token": "junk"}
    known: set[str] = set()

    def check(method: str, path: str, reply: Reply) -> None:
        operation = document["paths"][path][method]
        response = operation["responses"].get(str(reply.status))
        assert response is not None, (
            f"{method} {path} answered {reply.status}, which it does not tell: {reply.body!r}"
        )
        known.add(f"{operation['operationId']} {reply.status}")
        if reply.status == 204:
            assert reply.body == b""
            assert "content-type" not in reply.headers
            return
        media = response["content"][reply.headers["content-type"]]
        if reply.headers["content-type"].startswith("text/"):
            return
        assert complaints(document, media["schema"], reply.json) == []
        if reply.status >= 400:
            code = reply.json.get("code") or reply.json["error"]
            assert code in media["examples"], f"{method} {path} {reply.status} {code}"
        for name in response.get("headers", ()):
            assert name.lower() in reply.headers

    for path in ("/healthz", "/readyz", "/metrics"):
        check("get", path, live.get(path))
    for path in ("/.well-known/jwks.json", "/.well-known/oauth-authorization-server"):
        check("get", path, live.get(path))
        check("get", path, live.get(f"{path}?token=x"))
    check("post", "/auth/register", live.post("/auth/register", body))
    check("post", "/auth/register", live.post("/auth/register", body))
    check("post", "/auth/register", live.post("/auth/register", {"username": "cleo", "password": "password"}))
    check("post", "/auth/register", live.post("/auth/register", body | {"client_id": "nobody"}))
    check("post", "/auth/login", live.post("/auth/login", body | {"password": "wrong"}))
    check("post", "/auth/login", live.post("/auth/login", body | {"client_id": "nobody"}))
    check("post", "/auth/login", live.post("/auth/login", body | {"scope": '"'}))
    check("post", "/auth/login", live.post("/auth/login", body | {"more": 1}))
    check("post", "/auth/login", live.send("POST", "/auth/login", b"{}", {"Content-Type": "text/plain"}))
    check("post", "/auth/login", live.post("/auth/login", {"username": "x" * 9000}))
    check("post", "/auth/login", live.post("/auth/login", body))
    check("get", "/auth/me", live.get("/auth/me", access))
    check("get", "/auth/me", live.get("/auth/me"))
    check("get", "/auth/me", live.get("/auth/me", "junk"))
    check("get", "/auth/sessions", live.get("/auth/sessions", access))
    login = live.get("/auth/me", other["access_token"]).json["session_id"]
    for given in (login, "rt_" + "0" * 32, "x"):
        check("delete", "/auth/sessions/{id}", live.delete(f"/auth/sessions/{given}", access))
    check("delete", "/auth/sessions/{id}", live.delete(f"/auth/sessions/{login}"))
    check("post", "/auth/refresh", live.post("/auth/refresh", {"refresh_token": pair["refresh_token"]}))
    check("post", "/auth/refresh", live.post("/auth/refresh", junk))
    check("post", "/auth/refresh", live.post("/auth/refresh", junk, tokenctl_device="a b"))
    check("post", "/oauth/token", live.form("/oauth/token", {"grant_type": "refresh_token", **junk}))
    check("post", "/oauth/token", live.form("/oauth/token", {"grant_type": "password"}))
    check("post", "/oauth/token", live.form("/oauth/token", {}))
    check("post", "/oauth/token", live.form("/oauth/token", {"grant_type": "x", "client_secret": "x"}))
    good = {"grant_type": "refresh_token", "refresh_token": spare["refresh_token"]}
    check("post", "/oauth/token", live.form("/oauth/token", good | {"scope": "more"}))
    check("post", "/oauth/token", live.form("/oauth/token", good))
    introspection = {"token": access, **credentials}
    check("post", "/oauth/introspect", live.form("/oauth/introspect", introspection))
    check("post", "/oauth/introspect", live.form("/oauth/introspect", introspection | {"token": "junk"}))
    check("post", "/oauth/introspect", live.form("/oauth/introspect", {"token": access}))
    check("post", "/oauth/introspect", live.form("/oauth/introspect", introspection | {"client_id": "x"}))
    check("post", "/oauth/revoke", live.form("/oauth/revoke", {"token": "junk"}))
    check("post", "/oauth/revoke", live.form("/oauth/revoke", {"token": "junk", "client_secret": "x"}))
    check("post", "/oauth/revoke", live.form("/oauth/revoke", {}))
    change = {"current_password": PASSWORD, "new_password": "nine herons paint by noon"}
    check("post", "/auth/password", live.post("/auth/password", change))
    check("post", "/auth/password", live.post("/auth/password", change | {"current_password": "x"}, access))
    check("post", "/auth/password", live.post("/auth/password", change | {"new_password": "x"}, access))
    check("post", "/auth/password", live.post("/auth/password", change, access))
    check("post", "/auth/logout", live.post("/auth/logout", junk))
    check("post", "/auth/logout", live.post("/auth/logout", {"refresh_token": pair["refresh_token"]}))

    good_ones = {each.split()[0] for each in known if each.split()[1].startswith("2")}
    assert good_ones == {operation["operationId"] for _, _, operation in operations(document)}


# Schemathesis


def test_schemathesis_finds_nothing(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server(env={"TOKENCTL_ACCOUNT_LIMIT": "none", "TOKENCTL_ADDRESS_LIMIT": "none"})
    server.tokenctl("create-user", "robin", "--password-stdin", input=PASSWORD_OF_ROBIN + "\n")
    made = json.loads(server.tokenctl("client", "create", "api", "--introspect", "--json"))
    said = schemathesis(server.url, tmp_path, secret=made["secret"])
    assert "16 selected / 16 total" in said
    statuses = [
        json.loads(line)["status"] for line in server.log.read_text().splitlines() if '"status"' in line
    ]
    assert len(statuses) > 500
    assert [status for status in statuses if status >= 500] == []


def test_schemathesis_finds_nothing_with_cookies(settings: Settings, clock: Clock, tmp_path: Path) -> None:
    settings = replace(settings, cookies=True, account_limit="none", address_limit="none")
    with running(settings, clock) as live:
        live.service.create_user("robin", PASSWORD_OF_ROBIN)
        said = schemathesis(
            live.site.settings.issuer,
            tmp_path,
            secret=api_secret(live),
            # The first refresh spends it: from then on it is a cookie like any other that is of no use.
            cookie=live.service.issue("robin").refresh_token,
            bearer=live.service.issue("robin").access_token,
            examples=4,
        )
    assert "16 selected / 16 total" in said


def test_schemathesis_finds_nothing_in_development(start_server: StartServer, tmp_path: Path) -> None:
    server = start_server("--dev", database=tmp_path / "dev.db")
    with OPENER.open(f"{server.url}/openapi.json") as answer:
        document = json.load(answer)
    ours = {path for path in document["paths"] if path.startswith("/dev")}
    assert ours == {"/dev/clock", "/dev/faults", "/dev/state"}
    said = schemathesis(server.url, tmp_path, "--include-path-regex", "^/dev/", examples=6)
    assert "3 selected / 19 total" in said


#: Not the one of the examples: Schemathesis would change it by the example of /auth/password.
PASSWORD_OF_ROBIN = "no example has this password"


def schemathesis(
    url: str,
    tmp_path: Path,
    *args: str,
    secret: str = "none",
    cookie: str = "none",
    bearer: str | None = None,
    examples: int = 10,
) -> str:
    """What a run says; it has to end without a failure."""
    given = {"SERVER_URL": url, "API_SECRET": secret, "PASSWORD": PASSWORD_OF_ROBIN}
    text = CONFIG.read_text(encoding="utf-8")
    if bearer:
        # With cookies a login needs a header, which Schemathesis's own way to log in does not send.
        text, count = re.subn(r"(?m)^\[auth\.dynamic\.openapi\.bearer\](\n.+)*", _WITH_COOKIES, text)
        assert count == 1
        given |= {"ACCESS_TOKEN": bearer, "REFRESH_TOKEN": cookie}
    config = tmp_path / "schemathesis.toml"
    config.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(config)),
            *("run", f"{url}/openapi.json", "--checks", "all", "--max-examples", str(examples), "--no-color"),
            *args,
        ],
        cwd=tmp_path,
        env={**os.environ, **given, "NO_PROXY": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


_WITH_COOKIES = """[auth.openapi.bearer]
bearer = "${ACCESS_TOKEN}"

[auth.openapi.cookie]
api_key = "${REFRESH_TOKEN}"
"""
