"""Tabs of a real Chromium with the browser client in them, a real server, an API that takes its tokens."""

from __future__ import annotations

import http.client
import json
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import pytest

import tokenctl
from tests import cli
from tests.conftest import Clock
from tests.http.live import Live, running
from tests.http.spawned import Spawned, serving
from tokenctl import Settings
from tokenctl.http.dev import DEMO_PASSWORD, DEMO_USER

if TYPE_CHECKING:
    from tests.http.browser import Chromium

CONSOLE = Path(tokenctl.__file__).parent / "console"
PAGE = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
#: s; how long the access tokens of these servers live.
LIFE = 60

_RUN = """
const done = arguments[arguments.length - 1];
(async (given) => { %s })(arguments[0]).then(
  (value) => done({ value: value ?? null }),
  (error) => done({ error: `${error.name} ${error.code ?? ""}: ${error.message}\\n${error.stack}` }),
);
"""


class Tab:
    """One tab; scripts in it are bodies of async functions, to which `given` is known."""

    def __init__(self, chromium: Chromium, handle: str) -> None:
        self._driver = chromium.driver
        self._handle = handle

    def open(self, url: str, *preludes: str) -> None:
        """Load a page; each prelude runs before its scripts, and before those of whatever it loads next."""
        self.show()
        for source in (PAGE, *preludes):
            self._driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
        self._driver.get(url)

    def show(self) -> None:
        self._driver.switch_to.window(self._handle)

    def run(self, script: str, given: Any = None) -> Any:
        """What it returns; what it throws fails the test."""
        self.show()
        answer = self._driver.execute_async_script(_RUN % script, given)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def start(self, script: str) -> None:
        """Let it go on beside what follows; `finish` gives back what it returns."""
        self.run(f"window.started = (async () => {{ {script} }})(); window.started.catch(() => {{}});")

    def finish(self) -> Any:
        return self.run("return window.started;")

    def close(self) -> None:
        """As a user closes it: in the middle of whatever it does."""
        self.show()
        self._driver.close()
        self._driver.switch_to.window(self._driver.window_handles[0])

    # --- the client in it ---

    def create(self, options: str = "") -> None:
        """`auth`, in the page's own scope; options as in JavaScript, without the braces."""
        self.run(
            "const { createAuth } = window.module = await import(given + '/client/tokenctl.js');"
            "const onEvent = (event) => page.events.push(event);"
            f"window.auth = createAuth({{ baseUrl: given, onEvent, {options} }});",
            self.server,
        )

    server = ""

    def log_in(self) -> str:
        """As the demo user; the access token."""
        token: str = self.run(
            "await auth.login(given.user, given.password); return auth.getToken();",
            {"user": DEMO_USER, "password": DEMO_PASSWORD},
        )
        return token

    def events(self) -> list[str]:
        found: list[str] = self.run("return page.events.map((event) => event.type);")
        return found


@dataclass
class Desk:
    """A browser, a server and its tabs, for one test."""

    chromium: Chromium
    server: Spawned
    tabs: list[Tab] = field(default_factory=list)
    _refreshed: int = 0

    def tab(self, options: str = "", *preludes: str, url: str | None = None) -> Tab:
        """A new tab with a client in it."""
        driver = self.chromium.driver
        driver.switch_to.new_window("tab")
        tab = Tab(self.chromium, driver.current_window_handle)
        tab.server = self.url
        self.tabs.append(tab)
        tab.open(url or f"{self.url}/healthz", *preludes)
        tab.create(options)
        return tab

    @property
    def url(self) -> str:
        # Not the address that the server says: a cookie of 127.0.0.1 is not one of localhost.
        return f"http://localhost:{self.server.port}"

    def post(self, path: str, body: Any) -> None:
        reply = self.server.post(path, body)
        assert reply.status == 200, reply.body

    def tokenctl(self, *argv: str) -> str:
        """What an operator's command on the server's database prints; it has to succeed."""
        directory = self.server.stderr.parent
        [database] = directory.glob("*.db")
        done = cli.run(*argv, env={"TOKENCTL_DATABASE": str(database)})
        assert done.returncode == 0, done.stderr
        return done.stdout

    def fault(self, kind: str, count: int = 1, milliseconds: int = 0) -> None:
        """What happens to the next refreshes."""
        self.post("/dev/faults", {"kind": kind, "count": count, "milliseconds": milliseconds})

    def expire(self, *tabs: Tab) -> None:
        """Let so much time pass, here and in those tabs, that all access tokens end; count from there."""
        self.mark()
        self.post("/dev/clock", {"seconds": LIFE + 1})
        for tab in tabs:
            tab.run(f"page.pass({(LIFE + 1) * 1000});")

    def mark(self) -> None:
        """Count refreshes from here."""
        self._refreshed = 0
        self._refreshed = len(self.refreshes())

    def refreshes(self) -> list[str]:
        """The lines of the server's log about refreshes."""
        lines = self.server.stderr.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if re.search(r"route=/auth/refresh\b", line)][self._refreshed :]


@pytest.fixture
def live(settings: Settings, clock: Clock) -> Iterator[Live]:
    """A server in this process, on an empty database."""
    with running(settings, clock) as live:
        yield live


@pytest.fixture(scope="module")
def cookie_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawned]:
    """`serve --dev --cookies`: the refresh token in the cookie."""
    with serving(tmp_path_factory.mktemp("cookies"), "--dev", "--cookies") as server:
        yield server


@pytest.fixture(scope="module")
def token_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawned]:
    """`serve --dev`: the refresh token in the body."""
    with serving(tmp_path_factory.mktemp("tokens"), "--dev") as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One for all tests of a module; `desk` and `token_desk` leave nothing behind in it."""
    from tests.http import browser

    with browser.chromium(tmp_path_factory.mktemp("chromium")) as chromium:
        chromium.driver.set_script_timeout(60)
        yield chromium


@pytest.fixture
def desk(browser: Chromium, cookie_server: Spawned) -> Iterator[Desk]:
    yield from _desk(browser, cookie_server)


@pytest.fixture
def token_desk(browser: Chromium, token_server: Spawned) -> Iterator[Desk]:
    yield from _desk(browser, token_server)


@pytest.fixture
def new_desk(browser: Chromium, tmp_path: Path) -> Iterator[Desk]:
    """With a server of the test's own, whose clock nobody has moved."""
    with serving(tmp_path, "--dev") as server:
        yield from _desk(browser, server)


def _desk(browser: Chromium, server: Spawned) -> Iterator[Desk]:
    driver = browser.driver
    first = driver.window_handles[0]
    desk = Desk(browser, server)
    yield desk
    for handle in driver.window_handles:
        if handle != first:
            driver.switch_to.window(handle)
            driver.close()
    driver.switch_to.window(first)
    driver.execute_cdp_cmd("Network.clearBrowserCookies", {})
    origin = {"origin": desk.url, "storageTypes": "all"}
    driver.execute_cdp_cmd("Storage.clearDataForOrigin", origin)
    desk.fault("none")


# --- an API of somebody else's -----------------------------------------------------------------


@dataclass
class Api:
    """It answers at two origins, `url` and `elsewhere`; what is asked of it is kept in `asked`."""

    port: int
    #: (host, path, authorization, body)
    asked: list[tuple[str, str, str | None, bytes]] = field(default_factory=list)
    #: Access tokens that it answers with 401.
    refused: set[str] = field(default_factory=set)
    #: Until it is set, /gate waits; from then on it answers as others do.
    gate: threading.Event = field(default_factory=threading.Event)
    #: The server behind /auth, and what stands in front of its answers to a refresh: (status, headers, body).
    behind: Spawned | None = None
    instead: tuple[int, dict[str, str], bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def elsewhere(self) -> str:
        return f"http://localhost:{self.port}"

    def tokens(self, path: str) -> list[str | None]:
        """What a path was sent as an access token, in order."""
        return [
            bearer and bearer.removeprefix("Bearer ") for _, asked, bearer, _ in self.asked if asked == path
        ]


class _Handler(BaseHTTPRequestHandler):
    api: Api
    protocol_version = "HTTP/1.1"

    def do_OPTIONS(self) -> None:
        self._answer(204)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        bearer = self.headers.get("Authorization")
        self.api.asked.append((self.headers["Host"], url.path, bearer, body))
        if url.path == "/gate":
            self.api.gate.wait(30)
        if url.path in ("/tokenctl.js", "/page.html"):
            script = url.path.endswith(".js")
            content = (
                (CONSOLE / "tokenctl.js").read_bytes() if script else b"<!doctype html><title>page</title>"
            )
            self._answer(200, {"Content-Type": "text/javascript" if script else "text/html"}, content)
        elif url.path.startswith("/auth/"):
            self._pass_on(body)
        elif url.path == "/redirect":
            self._answer(302, {"Location": parse_qs(url.query)["to"][0]})
        elif url.path in ("/401", "/403"):
            self._answer(int(url.path[1:]))
        elif bearer is None or bearer.removeprefix("Bearer ") in self.api.refused:
            self._answer(401)
        else:
            self._answer(200, {}, body)

    do_POST = do_GET  # noqa: N815 - the name that the base class looks for

    def _pass_on(self, body: bytes) -> None:
        if self.api.instead is not None and self.path == "/auth/refresh":
            return self._answer(*self.api.instead)
        assert self.api.behind is not None
        with closing(http.client.HTTPConnection("127.0.0.1", self.api.behind.port, timeout=30)) as connection:
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            self._answer(reply.status, {"Content-Type": "application/json"}, reply.read())
        return None

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Access-Control-Allow-Origin", self.headers.get("Origin") or "*")
        self.send_header("Access-Control-Allow-Headers", "authorization, content-type")
        self.send_header("Access-Control-Expose-Headers", "retry-after")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of its parameter
        """Nothing: `asked` has it."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A browser that hangs up is no failure."""


@pytest.fixture
def api(token_server: Spawned) -> Iterator[Api]:
    api = Api(0, behind=token_server)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    api.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield api
    api.gate.set()
    server.shutdown()
    server.server_close()
    thread.join()


def as_json(value: Any) -> str:
    """For a script."""
    return json.dumps(value)
