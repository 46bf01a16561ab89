"""The command `tokenctl serve`: what it refuses to start on, how it ends, what it logs and counts, and how it
lives with an operator who works on the same database meanwhile.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prometheus_client.parser import text_string_to_metric_families

from tests.cli import environment
from tests.cli.warm import Warm
from tests.conftest import eventually
from tests.http.conftest import free_port
from tests.http.live import PASSWORD, Live
from tests.http.spawned import ISSUER, Spawned, exchange, serving, spawn
from tests.sample import SAMPLE
from tokenctl import Settings, initialise

ON = ("--database", "tokens.db", "--issuer", ISSUER)


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


Refusal = Callable[..., str]


@pytest.fixture
def refusal(warm: Warm, settings: Settings, tmp_path: Path) -> Refusal:
    """Runs `tokenctl serve` with options that it must refuse; gives the exit code and what stderr says."""

    def refused(*args: str, env: dict[str, str] | None = None) -> str:
        port = free_port()
        done: CompletedProcess[str] = warm("serve", "--port", str(port), *args, env=env, cwd=tmp_path)
        assert done.stdout == ""
        assert "Traceback" not in done.stderr
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        return f"{done.returncode} {done.stderr}"

    return refused


# where it listens


def test_a_plain_text_address_beyond_this_machine_is_refused(refusal: Refusal) -> None:
    for host in ("0.0.0.0", "::"):
        said = refusal(*ON, "--host", host)
        assert said.startswith("2 error[config.invalid]: ")
        assert "in the clear" in said
        assert "--behind-proxy" in said


def test_it_is_accepted_behind_a_proxy(settings: Settings, tmp_path: Path) -> None:
    with serving(tmp_path, *ON, "--host", "0.0.0.0", "--behind-proxy") as server:
        assert server.url == f"http://0.0.0.0:{server.port}"
        assert server.get("/healthz").status == 200


@pytest.mark.parametrize(
    ("issuer", "why"),
    [
        pytest.param((), "no address of this server", id="none"),
        pytest.param(("--issuer", "auth.example"), "no address of this server", id="no scheme"),
        pytest.param(("--issuer", "ftp://auth.example"), "no address of this server", id="ftp"),
        pytest.param(("--issuer", "https://auth.example?a=b"), "no address of this server", id="a query"),
        pytest.param(("--issuer", "https://auth.example#a"), "no address of this server", id="a fragment"),
        pytest.param(("--issuer", "http://auth.example"), "plain http", id="plain http"),
        pytest.param(("--issuer", "https://[x"), "no address of this server", id="half a bracket"),
        pytest.param(("--issuer", "https://a.example:99999999"), "no address of this server", id="a port"),
        pytest.param(("--issuer", "https://a.example:http"), "no address of this server", id="a word"),
        pytest.param(("--issuer", "https://:8460"), "no address of this server", id="no host"),
    ],
)
def test_without_an_issuer_that_clients_can_reach_it_refuses(
    refusal: Refusal, issuer: tuple[str, ...], why: str
) -> None:
    said = refusal("--database", "tokens.db", *issuer)
    assert said.startswith("2 error[config.invalid]: ")
    assert why in said
    assert "--issuer https://auth.example" in said


def test_a_port_in_use_is_said(refusal: Refusal) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal(*ON, "--port", str(port))
    assert said.startswith("1 error[serve.address]: ")
    assert f"127.0.0.1 port {port}: Address already in use" in said
    assert "--port" in said


def test_it_prints_one_object_with_the_port_that_it_got(settings: Settings, tmp_path: Path) -> None:
    with serving(tmp_path, *ON) as server:
        said = server.stdout.read_text()
        assert said.count("\n") == 1
        assert json.loads(said) == {
            "url": f"http://127.0.0.1:{server.port}",
            "issuer": ISSUER,
            "database": "tokens.db",
            "dev": False,
        }
        assert server.port not in (0, 8460)
        assert server.get("/readyz").status == 200


# TLS


def certificate(directory: Path) -> tuple[Path, Path]:
    """A self-signed one for 127.0.0.1, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = directory / "cert.pem", directory / "key.pem"
    cert_file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return cert_file, key_file


def test_with_a_certificate_it_speaks_tls_everywhere(settings: Settings, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    tls = ("--tls-cert", str(cert), "--tls-key", str(key))
    with serving(tmp_path, *ON, "--host", "0.0.0.0", *tls) as server:
        assert server.url == f"https://0.0.0.0:{server.port}"
        handler = urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=str(cert)))
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), handler)
        with opener.open(f"https://127.0.0.1:{server.port}/readyz", timeout=30) as answer:
            assert answer.status == 200
        with pytest.raises((OSError, http.client.HTTPException)):
            server.get("/readyz")  # in plain text


def test_half_of_a_pair_of_tls_files_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    for half in (("--tls-cert", str(cert)), ("--tls-key", str(key))):
        said = refusal(*ON, *half)
        assert said.startswith("2 error[config.invalid]: ")
        assert "go together" in said


def test_tls_files_that_are_not_there_or_no_pem_are_refused(refusal: Refusal, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    missing = refusal(*ON, "--tls-cert", "nothing.pem", "--tls-key", str(key))
    assert missing.startswith("2 error[config.invalid]: ")
    assert "nothing.pem" in missing
    swapped = refusal(*ON, "--tls-cert", str(key), "--tls-key", str(cert))
    assert swapped.startswith("2 error[config.invalid]: ")
    assert "no certificate chain" in swapped


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(refusal: Refusal, tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"a passphrase"),
        )
    )
    said = refusal(*ON, "--tls-cert", str(cert), "--tls-key", str(key))
    assert said.startswith("2 error[config.invalid]: ")
    assert "without a passphrase" in said


# which database


def test_the_sample_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path / "sample.db")
    said = refusal("--database", "sample.db", "--issuer", ISSUER)
    assert said.startswith("2 error[config.invalid]: ")
    assert "its key is public" in said
    assert "--dev" in said


def test_a_database_of_development_is_refused(refusal: Refusal, tmp_path: Path) -> None:
    initialise(Settings(database=str(tmp_path / "dev.db")), actor="test", development=True)
    said = refusal("--database", "dev.db", "--issuer", ISSUER)
    assert said.startswith("2 error[config.invalid]: ")
    assert "made by --dev" in said


def test_without_development_there_is_no_page_to_open(refusal: Refusal) -> None:
    said = refusal(*ON, "--open")
    assert said.startswith("2 error[input.invalid]: ")
    assert "tokenctl serve --dev --open" in said


def test_without_a_browser_it_says_where_the_page_is(tmp_path: Path) -> None:
    with serving(tmp_path, "--dev", "--open", env={"PATH": str(tmp_path), "BROWSER": ""}) as server:
        eventually(lambda: "there is no browser here" in server.stderr.read_text())
        assert f"http://localhost:{server.port}/#demo" in server.stderr.read_text()
        assert server.get("/healthz").status == 200


def test_development_refuses_a_database_for_real_use(refusal: Refusal) -> None:
    said = refusal("--database", "tokens.db", "--dev")
    assert said.startswith("2 error[config.invalid]: ")
    assert "was not made by --dev" in said


def test_a_missing_database_is_said(refusal: Refusal) -> None:
    said = refusal("--database", "nothing.db", "--issuer", ISSUER)
    assert said.startswith("10 error[db.missing]: ")


def test_a_missing_or_wrong_key_is_said_at_the_start(refusal: Refusal, tmp_path: Path) -> None:
    key = tmp_path / "tokens.db.key"
    text = key.read_text()
    key.write_text("A" * 43 + "\n")
    assert refusal(*ON).startswith("1 error[key.")
    key.unlink()
    assert refusal(*ON).startswith("1 error[key.missing]: ")
    key.write_text(text)


# signals and systemd


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_well(settings: Settings, tmp_path: Path, signum: int) -> None:
    server = spawn(tmp_path, *ON)
    assert server.get("/healthz").status == 200
    assert server.stop(signum) == 0
    assert [line["event"] for line in server.log] == ["request"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_it_ends_when_it_cannot_say_where_it_is(settings: Settings, tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tokenctl", "serve", "--port", "0", *ON],
            cwd=tmp_path,
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error[io.failed]: writing the output: No space left on device")


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_of_start_and_stop(settings: Settings, tmp_path: Path, abstract: bool) -> None:
    name = f"\0tokenctl-test-{tmp_path.name}-{free_port()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(name)
        heard.settimeout(30)
        server = spawn(tmp_path, *ON, env={"NOTIFY_SOCKET": name.replace("\0", "@")})
        assert heard.recv(100) == b"READY=1"
        assert server.get("/readyz").status == 200
        assert server.stop() == 0
        assert heard.recv(100) == b"STOPPING=1"


# the log


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, new_database: Path) -> Path:
    directory = tmp_path_factory.mktemp("serve")
    for file in new_database.iterdir():
        shutil.copy(file, directory)
    return directory


@pytest.fixture(scope="module")
def shared(place: Path) -> Iterator[Spawned]:
    """One server for all tests that leave it as it is, but for more users and logins."""
    none = {"TOKENCTL_ACCOUNT_LIMIT": "none", "TOKENCTL_ADDRESS_LIMIT": "none"}
    with serving(place, *ON, env=none) as server:
        yield server


def registered(server: Spawned, name: str) -> dict[str, Any]:
    reply = server.post("/auth/register", {"username": name, "password": PASSWORD})
    assert reply.status == 201, reply.body
    pair: dict[str, Any] = reply.json
    return pair


def wait_for_log(server: Spawned, lines: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + 10
    while server.stderr.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline, server.stderr.read_text()
        time.sleep(0.01)
    return server.log


def test_each_request_is_one_json_line_with_what_an_operator_looks_for(shared: Spawned) -> None:
    time.sleep(0.1)  # the lines of the test before
    before = len(shared.log)
    pair = registered(shared, "lea")
    token = "rt_" + "0" * 32
    answers = [
        shared.post("/auth/refresh", {"refresh_token": pair["refresh_token"]}),
        shared.post("/auth/refresh", {"refresh_token": "junk"}),
        shared.send("DELETE", f"/auth/sessions/{token}", None, {"Authorization": "Bearer x"}),
        shared.get("/nothing/of/the/kind"),
        shared.send("PUT", "/healthz"),
    ]
    # A line is written when its answer is on its way.
    lines = wait_for_log(shared, before + 1 + len(answers))[before:]
    assert [(line["method"], line["route"], line["status"]) for line in lines] == [
        ("POST", "/auth/register", 201),
        ("POST", "/auth/refresh", 200),
        ("POST", "/auth/refresh", 401),
        ("DELETE", "/auth/sessions/{id}", 401),
        ("GET", "none", 404),
        ("PUT", "/healthz", 405),
    ]
    for line in lines:
        assert line["ms"] >= 0
        assert line["ip"] == "127.0.0.1"
        assert datetime.fromisoformat(line["time"]).tzinfo is UTC
    assert [line["request_id"] for line in lines[1:]] == [each.headers["x-request-id"] for each in answers]
    assert lines[1]["user_id"] == pair["user"]["id"]
    assert lines[1]["token_id"].startswith("rt_")
    assert lines[2]["code"] == "token.invalid"


class Canaries:
    """Secrets that are put in at every door; `found` says which of them show in a text."""

    def __init__(self) -> None:
        self._kept: dict[str, str] = {}

    def add(self, name: str, secret: str) -> str:
        self._kept[name] = secret
        return secret

    def found(self, text: str) -> list[str]:
        # A part is as bad as the whole.
        return [name for name, secret in self._kept.items() if secret[-16:] in text or secret[5:25] in text]


def test_no_secret_reaches_the_log_or_the_metrics(shared: Spawned, warm: Warm, place: Path) -> None:
    canaries = Canaries()
    password = canaries.add("password", "mauve kettle under nine ladders")
    wrong = canaries.add("wrong password", "ochre Lantern beyond 7 canals")
    made = warm("client", "create", "rs", "--introspect", "--json", "--database", "tokens.db", cwd=place)
    secret = canaries.add("client secret", json.loads(made.stdout)["secret"])
    pair = shared.post("/auth/register", {"username": "mia", "password": password}).json
    access = canaries.add("access token", pair["access_token"])
    first = canaries.add("refresh token", pair["refresh_token"])
    second = canaries.add(
        "its successor", shared.post("/auth/refresh", {"refresh_token": first}).json["refresh_token"]
    )
    device = canaries.add("device", "device-fingerprint-0123456789abcdef")
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    basic = base64.b64encode(f"rs:{secret}".encode()).decode()
    canaries.add("basic credentials", basic)

    said = [
        shared.post("/auth/login", {"username": "mia", "password": wrong}),
        shared.post("/auth/login", {"username": wrong, "password": password}),
        shared.post("/auth/login", {"username": "mia", wrong: password}),
        shared.post("/auth/login", {"username": "mia", "password": [wrong]}),
        shared.post("/auth/login", {"username": "mia", "password": password, first: 1}),
        shared.post("/auth/refresh", first),
        shared.post("/auth/refresh", {"refresh_token": first[:-1]}),
        shared.post("/auth/refresh", {"refresh_token": [first]}),
        shared.get(f"/auth/me?access_token={access}"),
        shared.get(f"/auth/me?x={first}"),
        shared.get(f"/{first}/{access}"),
        shared.get(f"/auth/sessions/{access}", access),
        shared.send("DELETE", f"/auth/sessions/{first}", None, {"Authorization": f"Bearer {access}"}),
        shared.get("/auth/me", access[:-3]),
        shared.get("/auth/me", first),
        shared.send("GET", "/auth/me", None, {"Cookie": f"__Host-tokenctl={second}"}),
        shared.send(
            "POST", "/oauth/introspect", {"token": first}, form | {"Authorization": f"Basic {basic}"}
        ),
        shared.send("POST", "/oauth/token", {secret: secret}, form),
        shared.send(
            "POST", "/auth/login", {"username": "mia", "password": password}, {"Tokenctl-Device": device}
        ),
        shared.send(first[:40], "/auth/refresh"),
        shared.post("/auth/password", {"current_password": wrong, "new_password": password}, access),
        shared.post("/auth/refresh", {"refresh_token": second}),
        shared.post("/auth/refresh", {"refresh_token": first}),  # reuse
        shared.post("/auth/logout", {"refresh_token": second}),
    ]
    assert Counter(reply.status // 100 for reply in said).keys() == {2, 4}
    for reply in said:
        if reply.status >= 400:
            assert canaries.found(reply.body.decode() + str(reply.headers)) == []
    assert canaries.found(shared.get("/metrics").body.decode()) == []
    assert canaries.found(shared.stdout.read_text()) == []
    assert canaries.found(shared.stderr.read_text()) == []
    assert shared.log  # every line is JSON


def test_a_request_that_is_no_http_leaves_no_trace_of_its_words(shared: Spawned) -> None:
    for words in (b"GET /auth/me?access_token=canary-0123456789\r\n\r\n", b"canary-0123456789\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", shared.port), timeout=30) as connection:
            connection.sendall(words)
            assert b"400 Bad Request" in connection.recv(4096)
    assert "canary" not in shared.stderr.read_text()
    assert shared.log


BREAKS = """
from tokenctl import TokenService
def broken(*_, **__):
    raise RuntimeError("at tkr1_AQGiB3zFznRrrxfAtv5X5VUAAAAAhV6Ku9f7sSoPp8S_UTpfAuU1V8S1jUUh")
TokenService.ready = TokenService.rotate_many = broken
"""


def test_a_bug_is_a_500_without_its_words_and_a_traceback_in_the_log(
    settings: Settings, tmp_path: Path
) -> None:
    with serving(tmp_path, *ON, prelude=BREAKS) as server:
        for reply in (server.get("/readyz"), server.post("/auth/refresh", {"refresh_token": "x"})):
            assert reply.status == 500
            assert reply.headers["content-type"] == "application/problem+json"
            assert reply.json["code"] == "internal"
            assert reply.json["detail"] == "internal error"
            assert b"RuntimeError" not in reply.body
        assert server.get("/healthz").status == 200
        told = [line for line in server.log if "exception" in line]
        ready = server.log[0]
    assert [line["event"] for line in told] == ["a request failed", "a batch of rotations failed"]
    for line in told:
        assert line["level"] == "error"
        assert "Traceback" in line["exception"]
        assert "RuntimeError: at tkr1_…" in line["exception"]
    assert ready["request_id"]


# metrics


def metrics(text: bytes) -> dict[str, float]:
    """Every sample that is not zero, as `name{label,label}`."""
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            labels = ",".join(sample.labels[name] for name in sorted(sample.labels))
            if sample.value:
                found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_metrics_count_what_happens(live: Live) -> None:
    pair = live.log_in()  # one failure, then a login
    first = pair["refresh_token"]
    second = live.post("/auth/refresh", {"refresh_token": first}).json["refresh_token"]
    live.post("/auth/refresh", {"refresh_token": first})  # a retry
    third = live.post("/auth/refresh", {"refresh_token": second}).json["refresh_token"]
    live.post("/auth/refresh", {"refresh_token": first})  # reuse
    live.post("/auth/refresh", {"refresh_token": third})  # revoked
    live.post("/auth/refresh", {"refresh_token": "junk"})
    live.post("/auth/logout", {"refresh_token": live.log_in()["refresh_token"]})
    reply = live.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = metrics(reply.body)
    assert found["tokenctl_rotations_total{rotated}"] == 2
    assert found["tokenctl_rotations_total{retried}"] == 1
    assert found["tokenctl_rotations_total{refused}"] == 3
    assert found["tokenctl_refusals_total{reuse}"] == 1
    assert found["tokenctl_refusals_total{revoked}"] == 1
    assert found["tokenctl_refusals_total{invalid}"] == 1
    assert found["tokenctl_logins_total{ok}"] == 2
    assert found["tokenctl_logins_total{failed}"] == 1
    assert found["tokenctl_revocations_total{}"] == 1
    assert found["tokenctl_rotation_batch_size_count{}"] == 6
    assert found["tokenctl_rotation_batch_size_sum{}"] == 6
    assert found["tokenctl_request_seconds_count{/auth/refresh,200}"] == 3
    assert found["tokenctl_request_seconds_count{/auth/refresh,401}"] == 3
    assert found["process_resident_memory_bytes{}"] > 0


def test_metrics_name_no_path_that_somebody_made_up(live: Live) -> None:
    for i in range(50):
        live.get(f"/made-up-{i}")
        live.send(f"MADEUP{i}", "/healthz")
    text = live.get("/metrics").body.decode()
    assert "made-up" not in text.lower()
    assert "MADEUP" not in text


# beside an operator


def test_it_is_not_ready_while_the_database_is_away(settings: Settings, tmp_path: Path) -> None:
    with serving(tmp_path, *ON) as server:
        assert server.get("/readyz").status == 200
        Path(settings.database).rename(tmp_path / "away.db")
        away = server.get("/readyz")
        assert away.status == 503
        assert away.json["code"] == "unavailable"
        assert away.headers["retry-after"]
        assert str(tmp_path) not in away.body.decode()
        assert server.get("/healthz").status == 200
        (tmp_path / "away.db").rename(settings.database)
        assert server.get("/readyz").status == 200


def test_what_the_operator_revokes_and_disables_is_so_at_the_next_request(
    shared: Spawned, warm: Warm, place: Path
) -> None:
    def operator(*argv: str) -> None:
        done = warm(*argv, "--database", "tokens.db", cwd=place)
        assert done.returncode == 0, done.stderr

    pair = registered(shared, "nora")
    operator("revoke", "--user", "nora", "--yes", "--reason", "INC-7")
    assert shared.get("/auth/me", pair["access_token"]).status == 401
    assert shared.post("/auth/refresh", {"refresh_token": pair["refresh_token"]}).status == 401

    login = {"username": "nora", "password": PASSWORD}
    pair = shared.post("/auth/login", login).json
    assert shared.get("/auth/me", pair["access_token"]).status == 200
    operator("user", "disable", "nora", "--yes")
    assert shared.post("/auth/refresh", {"refresh_token": pair["refresh_token"]}).status == 401
    disabled = shared.post("/auth/login", login)
    wrong = shared.post("/auth/login", login | {"password": "wrong"})
    assert (disabled.status, wrong.status) == (401, 401)
    hidden = {"request_id"}
    assert {key: value for key, value in disabled.json.items() if key not in hidden} == {
        key: value for key, value in wrong.json.items() if key not in hidden
    }
    operator("user", "enable", "nora")
    assert shared.post("/auth/login", login).status == 200


def test_a_new_signing_key_is_taken_up_without_a_restart(shared: Spawned, warm: Warm, place: Path) -> None:
    pair = registered(shared, "olga")
    old = jwt.get_unverified_header(pair["access_token"])["kid"]
    done = warm("keys", "rotate", "--at-once", "--yes", "--json", "--database", "tokens.db", cwd=place)
    assert done.returncode == 0, done.stderr
    new = json.loads(done.stdout)["kid"]
    deadline = time.monotonic() + 10
    while new not in (kids := kids_of(shared)):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert kids == {new}
    fresh = shared.post("/auth/refresh", {"refresh_token": pair["refresh_token"]}).json
    assert jwt.get_unverified_header(fresh["access_token"])["kid"] == new
    assert shared.get("/auth/me", fresh["access_token"]).status == 200
    assert old != new
    assert shared.get("/auth/me", pair["access_token"]).status == 401  # that is what --at-once is for


def kids_of(server: Spawned) -> set[str]:
    return {key["kid"] for key in server.get("/.well-known/jwks.json").json["keys"]}


# many callers

#: So that a test need not wait for ten seconds.
HURRY = "from tokenctl.http import protocol; protocol._REQUEST_WITHIN = protocol._READ_WITHIN = 1.5"


def test_idle_and_slow_connections_stop_nobody(shared: Spawned) -> None:
    string = registered(shared, "pia")["refresh_token"]
    with ExitStack() as stack:
        for i in range(300):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", shared.port)))
            if i % 3 == 1:  # half a head
                connection.sendall(b"POST /auth/refresh HTTP/1.1\r\nHost: x\r\n")
            elif i % 3 == 2:  # half a body
                connection.sendall(
                    b"POST /auth/refresh HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                    b"Content-Length: 100\r\n\r\n{"
                )
        for _ in range(5):  # who asks for much and reads nothing
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", shared.port))
            connection.sendall(b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
        for _ in range(20):
            reply = shared.post("/auth/refresh", {"refresh_token": string})
            assert reply.status == 200
            string = reply.json["refresh_token"]
    assert shared.get("/readyz").status == 200


def test_a_head_without_end_is_cut_off(shared: Spawned) -> None:
    with socket.create_connection(("127.0.0.1", shared.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            connection.sendall(b"".join(b"X-%d: %s\r\n" % (i, b"x" * 1000) for i in range(10_000)))
    assert shared.get("/healthz").status == 200


def test_a_request_that_never_ends_is_cut_off_and_holds_up_no_stop(
    settings: Settings, tmp_path: Path
) -> None:
    server = spawn(tmp_path, *ON, prelude=HURRY)
    with ExitStack() as stack:
        heads = [b"", b"\r\n", b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"]
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30))
            for _ in heads
        ]
        for connection, head in zip(connections, heads, strict=True):
            connection.sendall(b"POST /auth/refresh HTTP/1.1\r\nHost: x\r\n" + head)
        assert server.get("/healthz").status == 200
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 8  # and not the 30 s of GRACEFUL_STOP
    assert [line["level"] for line in server.log] == ["info"] * len(server.log)


def test_a_connection_that_asks_for_nothing_is_closed(settings: Settings, tmp_path: Path) -> None:
    with serving(tmp_path, *ON, prelude=HURRY) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=8) as connection:
            assert connection.recv(1) == b""
        # Between two requests there is more time.
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=8)) as client:
            assert exchange(client, "GET", "/healthz").status == 200
            own = client.sock
            time.sleep(2.5)
            assert exchange(client, "GET", "/healthz").status == 200
            assert client.sock is own


BUNDLE = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"


@contextmanager
def deaf(server: Spawned, asks: bytes, count: int = 1) -> Iterator[list[socket.socket]]:
    """Connections that ask for more than the kernel keeps, and read nothing."""
    with ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(10)
            connection.connect(("127.0.0.1", server.port))
            connection.sendall(asks)
            connections.append(connection)
        yield connections


def until_cut_off(connection: socket.socket) -> int:
    """How many bytes come before the end; that has to come."""
    size = 0
    try:
        while part := connection.recv(1 << 20):
            size += len(part)
    except ConnectionResetError:
        pass
    return size


@pytest.mark.parametrize(
    "asks",
    [
        pytest.param(BUNDLE * 8, id="many"),
        pytest.param(
            BUNDLE * 3 + BUNDLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"), id="and ends"
        ),
    ],
)
def test_who_does_not_read_is_cut_off(settings: Settings, tmp_path: Path, asks: bytes) -> None:
    with serving(tmp_path, *ON, prelude=HURRY) as server:
        whole = len(server.get("/docs/swagger-ui-bundle.js").body)
        with deaf(server, asks, 20) as connections:
            time.sleep(3.5)
            assert open_connections(server) == 0
            for connection in connections:
                assert until_cut_off(connection) < asks.count(b"GET") * whole
        assert server.get("/healthz").status == 200
    assert [line["level"] for line in server.log] == ["info"] * len(server.log)


def test_who_reads_slowly_is_not_cut_off(settings: Settings, tmp_path: Path) -> None:
    with serving(tmp_path, *ON, prelude=HURRY) as server:
        whole = len(server.get("/docs/swagger-ui-bundle.js").body)
        with deaf(server, BUNDLE * 8) as [connection]:
            size, started = 0, time.monotonic()
            while size < 8 * whole:
                size += len(connection.recv(1 << 18))
                # As slow as it takes to be at it for some looks.
                time.sleep(max(0.0, started + size / whole * 0.7 - time.monotonic()))
            assert time.monotonic() - started > 4


def test_who_does_not_read_holds_up_no_stop(settings: Settings, tmp_path: Path) -> None:
    server = spawn(tmp_path, *ON, prelude=HURRY)
    with deaf(server, BUNDLE * 8, 20), deaf(server, BUNDLE, 1):
        time.sleep(0.3)
        started = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - started < 8  # and not the 30 s of GRACEFUL_STOP
    assert [line["level"] for line in server.log] == ["info"] * len(server.log)


def open_connections(server: Spawned) -> int:
    """How many connections the process of the server has."""
    rows = [line.split() for line in Path(f"/proc/{server.process.pid}/net/tcp").read_text().splitlines()[1:]]
    sockets = {row[9] for row in rows if row[1].endswith(f":{server.port:04X}") and row[3] != "0A"}
    files = Path(f"/proc/{server.process.pid}/fd").iterdir()
    held = {str(file.readlink()) for file in files if file.is_symlink()}
    return len([inode for inode in sockets if f"socket:[{inode}]" in held])


def test_a_flood_of_logins_stops_no_refresh(settings: Settings, tmp_path: Path) -> None:
    with serving(tmp_path, *ON) as server, ThreadPoolExecutor(64) as pool:
        string = registered(server, "rita")["refresh_token"]

        def wrong(i: int) -> int:
            body = {"username": f"rita{i % 40}", "password": "wrong"}
            return server.post("/auth/login", body).status

        flood = [pool.submit(wrong, i) for i in range(200)]
        while not all(each.done() for each in flood):
            reply = server.post("/auth/refresh", {"refresh_token": string})
            assert reply.status == 200, reply.body
            string = reply.json["refresh_token"]
        found = Counter(each.result() for each in flood)
    assert set(found) <= {401, 429, 503}
    assert found[401] >= 1
    assert found[429] + found[503] >= 1
    assert found.total() == 200
