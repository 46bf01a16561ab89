"""Our pages in a real browser that can reach nobody but the server."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.remote.webelement import WebElement

from tests.http.browser import Chromium
from tests.http.conftest import OPENER, Server, StartServer, log_in

pytestmark = pytest.mark.browser

_METHODS = {"get", "put", "post", "delete", "patch", "head", "options", "trace"}


def _operations(server: Server) -> set[tuple[str, str]]:
    with OPENER.open(f"{server.url}/openapi.json") as answer:
        paths = json.load(answer)["paths"]
    return {(method.upper(), path) for path, item in paths.items() for method in _METHODS & set(item)}


def _shown(chromium: Chromium) -> dict[tuple[str, str], WebElement]:
    blocks = {}
    for block in chromium.find(".opblock"):
        method = block.find_element("css selector", ".opblock-summary-method").text
        path = block.find_element("css selector", ".opblock-summary-path").get_attribute("data-path")
        blocks[method, str(path)] = block
    return blocks


def _execute(chromium: Chromium, method: str, path: str) -> str:
    """Press "Execute" of an operation; the status that the page shows."""
    block = chromium.wait_for(lambda: _shown(chromium).get((method, path)))
    assert block
    block.find_element("css selector", ".opblock-summary-control").click()
    chromium.wait_for(lambda: block.find_elements("css selector", "button.execute"))[0].click()
    answer = ".live-responses-table .response-col_status:not(.col_header)"
    [status] = chromium.wait_for(lambda: block.find_elements("css selector", answer))
    return status.text.split("\n")[0]


def _foreign(chromium: Chromium, server: Server) -> list[str]:
    """What went elsewhere; the pictures within the style sheet are data: URLs, which ask nobody."""
    urls = [url for url in chromium.requested() if urlsplit(url).scheme not in {"data", "chrome"}]
    assert f"{server.url}/docs/swagger-ui-bundle.js" in urls  # otherwise the account is no account
    return [url for url in urls if not url.startswith(f"{server.url}/")]


def test_docs_show_every_operation_without_another_host(server: Server, chromium: Chromium) -> None:
    chromium.open(f"{server.url}/docs")
    chromium.wait_for(lambda: set(_shown(chromium)) == _operations(server))
    assert len(_operations(server)) > 10
    assert chromium.complaints() == []
    assert _foreign(chromium, server) == []


@pytest.mark.parametrize("args", [(), ("--dev",)])
def test_docs_can_send_a_request(
    args: tuple[str, ...], start_server: StartServer, tmp_path: Path, chromium: Chromium
) -> None:
    server = start_server(*args, database=tmp_path / "dev.db" if args else None)
    chromium.open(f"{server.url}/docs")
    status = _execute(chromium, "GET", "/healthz")
    assert chromium.complaints() == []
    assert status == "200"
    assert _foreign(chromium, server) == []


def test_docs_send_an_access_token_and_keep_nothing(server: Server, ada: str, chromium: Chromium) -> None:
    token = log_in(server, ada)["access_token"]
    chromium.open(f"{server.url}/docs")
    chromium.wait_for(lambda: chromium.find("button.authorize"))[0].click()
    [bearer, *_] = chromium.wait_for(lambda: chromium.find(".auth-container input[type=text]"))
    bearer.send_keys(token)
    chromium.find(".auth-container button.authorize")[0].click()
    chromium.find(".auth-container button.btn-done")[0].click()
    status = _execute(chromium, "GET", "/auth/me")
    assert chromium.complaints() == []
    assert status == "200"
    kept = "return JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie])"
    assert token not in chromium.driver.execute_script(kept)


def test_docs_ignore_a_document_named_in_the_address(server: Server, chromium: Chromium) -> None:
    chromium.open(
        f"{server.url}/docs?url=http://127.0.0.1:9/evil.json&configUrl=http://127.0.0.1:9/evil.yaml"
    )
    chromium.wait_for(lambda: _shown(chromium))
    assert _foreign(chromium, server) == []


# The tests above are worth what the instrument is worth.


def test_the_policy_is_in_force_and_a_violation_is_seen(server: Server, chromium: Chromium) -> None:
    chromium.open(f"{server.url}/docs")
    chromium.wait_for(lambda: _shown(chromium))
    before = chromium.complaints()
    chromium.driver.execute_async_script(
        "fetch('http://elsewhere.example/').catch(() => {}).then(arguments[0])"
    )
    assert before == []
    assert "connect-src forbids http://elsewhere.example/" in chromium.complaints()


def test_the_network_is_closed_and_an_attempt_is_seen(chromium: Chromium) -> None:
    with pytest.raises(WebDriverException, match="ERR_NAME_NOT_RESOLVED"):
        chromium.open("http://elsewhere.example/")
    with pytest.raises(WebDriverException, match="ERR_NAME_NOT_RESOLVED"):
        chromium.open("http://127.0.0.2/")
    assert {"http://elsewhere.example/", "http://127.0.0.2/"} <= set(chromium.requested())
