"""Resource servers: clients with a secret, which ask about tokens, and to which nobody logs in."""

from __future__ import annotations

import hashlib
import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Callable

import pytest

from tests.conftest import CHEAP, Clock
from tests.service import dump, event_types, run_sql
from tokenctl import NewClient, Settings, TokenService
from tokenctl.core.client_secret import format_secret
from tokenctl.errors import ClientExists, ClientRefused, InvalidInput, WrongPassword

PASSWORD = "plum orbit kettle sandal"


@pytest.fixture
def api(service: TokenService) -> NewClient:
    """A resource server with its secret."""
    return service.clients.create("api", introspect=True)


def secret_of(client: NewClient) -> str:
    assert client.secret is not None
    return client.secret


class TestCreate:
    def test_gives_the_secret_once_and_stores_its_hash(
        self, service: TokenService, api: NewClient, settings: Settings, clock: Clock
    ) -> None:
        assert (api.id, api.created_at, api.not_before, api.may_introspect) == ("api", clock(), 0, True)
        secret = secret_of(api)
        assert re.fullmatch(r"tks1_[A-Za-z0-9_-]{43}", secret)
        raw = urlsafe_b64decode(secret[5:] + "=")
        [(stored,)] = run_sql(settings, "SELECT secret_hash FROM clients WHERE id = 'api'")
        assert stored == hashlib.sha256(raw).digest()
        assert secret[5:] not in "".join(dump(settings)) + repr(api) + repr(service.clients.list())
        assert raw.hex().upper() not in "".join(dump(settings)), "nor its bytes"

    def test_comes_from_the_entropy_of_the_service(self, settings: Settings) -> None:
        with TokenService(settings, entropy=lambda n: bytes([7]) * n) as service:
            assert service.clients.create("api", introspect=True).secret == format_secret(bytes([7]) * 32)

    def test_two_secrets_differ(self, service: TokenService, api: NewClient) -> None:
        assert service.clients.create("other", introspect=True).secret != api.secret

    def test_a_client_that_users_log_in_to_has_none(self, service: TokenService, settings: Settings) -> None:
        app = service.clients.create("app")
        assert (app.secret, app.may_introspect) == (None, False)
        assert run_sql(settings, "SELECT id FROM clients WHERE secret_hash IS NOT NULL") == []

    def test_says_which_may_introspect(self, service: TokenService, api: NewClient) -> None:
        service.clients.create("app")
        assert [(client.id, client.may_introspect) for client in service.clients.list()] == [
            ("api", True),
            ("app", False),
            ("default", False),
        ]
        assert service.clients.require("api").may_introspect

    def test_the_event_says_so_too(self, service: TokenService, api: NewClient, settings: Settings) -> None:
        service.clients.create("app")
        found = run_sql(settings, "SELECT client_id, data FROM events WHERE type = 'client.create'")
        assert [(client, json.loads(data)) for client, data in found] == [
            ("api", {"may_introspect": True}),
            ("app", {}),
        ]

    def test_a_second_one_of_that_name_takes_nothing_over(
        self, service: TokenService, api: NewClient, settings: Settings
    ) -> None:
        before = dump(settings)
        with pytest.raises(ClientExists):
            service.clients.create("api", introspect=True)
        assert dump(settings) == before
        assert service.clients.authenticate("api", secret_of(api))


class TestAuthenticate:
    def test_by_the_secret(self, service: TokenService, api: NewClient, settings: Settings) -> None:
        before = dump(settings)
        found = service.clients.authenticate("api", secret_of(api))
        assert found == service.clients.require("api")
        assert dump(settings) == before, "an introspection is no event"

    @pytest.mark.parametrize(
        ("client_id", "spoil"),
        [
            pytest.param("api", lambda secret: format_secret(bytes(32)), id="another secret"),
            pytest.param("API", lambda secret: secret, id="another case"),
            pytest.param("other", lambda secret: secret, id="another one's"),
            pytest.param("app", lambda secret: secret, id="a client without one"),
            pytest.param("default", lambda secret: "", id="the default, and none"),
            pytest.param("nobody", lambda secret: secret, id="unknown"),
            pytest.param("api", lambda secret: "", id="empty"),
            pytest.param("api", lambda secret: secret[:-1], id="too short"),
            pytest.param("api", lambda secret: secret + "\n", id="a newline more"),
            pytest.param("api", lambda secret: secret[5:], id="without its prefix"),
            pytest.param("api", lambda secret: "\ud800", id="half a surrogate"),
            pytest.param("api", lambda secret: "tks1_" + "\ud800" * 43, id="43 of them"),
            pytest.param("api", lambda secret: "\0", id="NUL"),
            pytest.param("api", lambda secret: "x" * 3_000_000, id="3 MB"),
            pytest.param("", lambda secret: secret, id="no client"),
            pytest.param("two words", lambda secret: secret, id="no such client can be"),
            pytest.param("\ud800", lambda secret: secret, id="a client of half a surrogate"),
            pytest.param("api\0", lambda secret: secret, id="a client with a NUL"),
            pytest.param("tks1_" + "A" * 43, lambda secret: secret, id="a secret for a client"),
        ],
    )
    def test_refuses_everything_else_alike(
        self, service: TokenService, api: NewClient, client_id: str, spoil: Callable[[str], str]
    ) -> None:
        service.clients.create("app")
        service.clients.create("other", introspect=True)
        with pytest.raises(ClientRefused) as caught:
            service.clients.authenticate(client_id, spoil(secret_of(api)))
        refusal = caught.value
        assert str(refusal) == "the client is not known, or its secret is wrong"
        assert (refusal.facts, refusal.hint) == ({}, "")

    def test_compares_in_constant_time(
        self, service: TokenService, api: NewClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compared = []

        def compare(a: bytes, b: bytes) -> bool:
            compared.append((a, b))
            return a == b

        monkeypatch.setattr("hmac.compare_digest", compare)
        assert service.clients.authenticate("api", secret_of(api))
        with pytest.raises(ClientRefused):
            service.clients.authenticate("api", format_secret(bytes(32)))
        assert [(len(a), len(b)) for a, b in compared] == [(32, 32)] * 2

    def test_not_once_the_client_is_deleted(self, service: TokenService, api: NewClient) -> None:
        service.clients.delete("api")
        with pytest.raises(ClientRefused):
            service.clients.authenticate("api", secret_of(api))


class TestNobodyLogsIn:
    def test_by_issue(self, service: TokenService, api: NewClient, settings: Settings) -> None:
        service.create_user("ada")
        before = dump(settings)
        with pytest.raises(InvalidInput, match="api is a resource server") as caught:
            service.issue("ada", client_id="api")
        assert caught.value.hint
        assert dump(settings) == before

    @pytest.mark.parametrize("password", [PASSWORD, "another kettle of sandals"])
    def test_by_password_and_the_refusal_tells_nothing_of_it(
        self, service: TokenService, api: NewClient, settings: Settings, password: str
    ) -> None:
        service.create_user("ada", PASSWORD)
        before = event_types(settings)
        with pytest.raises(InvalidInput, match="api is a resource server"):
            service.login("ada", password, client_id="api")
        assert event_types(settings) == before

    def test_by_registering_which_leaves_no_user(
        self, service: TokenService, api: NewClient, settings: Settings
    ) -> None:
        before = dump(settings)
        with pytest.raises(InvalidInput, match="api is a resource server"):
            service.register("ada", PASSWORD, client_id="api")
        assert dump(settings) == before

    def test_the_others_go_on(self, service: TokenService, api: NewClient) -> None:
        service.create_user("ada", PASSWORD)
        assert service.login("ada", PASSWORD)
        with pytest.raises(WrongPassword):
            service.login("ada", "another kettle of sandals")

    def test_when_the_client_became_one_during_the_login(
        self, service: TokenService, settings: Settings, clock: Clock
    ) -> None:
        """Deleted and made anew between the look before the password and the transaction."""
        service.create_user("ada", PASSWORD)
        service.clients.create("app")
        user = service.users.authenticate("ada", PASSWORD, client_id="app")
        with TokenService(settings, clock=clock, passwords=CHEAP) as other:
            other.clients.delete("app")
            other.clients.create("app", introspect=True)
        with pytest.raises(InvalidInput):
            service.issue("ada", client_id="app", verified_password_hash=user.password_hash)
