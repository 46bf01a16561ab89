"""The page of `serve --dev` in a real browser: by keyboard alone, in both colour schemes, at two widths, with
nobody to ask but its server; and what every part of it does.

Its pictures are kept in `tests/console/screenshots`; with TOKENCTL_UPDATE_DOCS=1 the README's is made anew.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

from tests import cli
from tests.console.conftest import LIFE, Desk, Tab
from tests.http.browser import Chromium, chromium
from tests.http.spawned import Spawned, serving
from tokenctl.http.dev import DEMO_PASSWORD, DEMO_USER

pytestmark = pytest.mark.browser

AXE = Path(__file__).parent / "node" / "node_modules" / "axe-core" / "axe.min.js"
SCREENSHOTS = Path(__file__).parent / "screenshots"
#: What twenty calls that went well leave.
TWENTY = "20 \N{MULTIPLICATION SIGN} 200"
README = Path(__file__).parents[2] / "README.md"
PICTURE = README.parent / "docs" / "page.png"

_AXE = "return axe.run(document, { resultTypes: ['violations'] });"
# Wider than the window is only what scrolls within itself.
_TOO_WIDE = """
const wide = document.documentElement.clientWidth;
if (document.documentElement.scrollWidth > wide) return [`${document.documentElement.scrollWidth} > ${wide}`];
return [...document.body.querySelectorAll("*")]
  .filter((each) => each.getBoundingClientRect().right > wide + 0.5
    && !each.closest(".wide, pre, .scroll, .for-readers, .skip"))
  .map((each) => each.outerHTML.slice(0, 120));
"""


class Page:
    """The page in a tab of its own."""

    def __init__(self, desk: Desk, path: str = "/") -> None:
        self.desk = desk
        self.driver = desk.chromium.driver
        self.driver.switch_to.new_window("tab")
        self.tab = Tab(desk.chromium, self.driver.current_window_handle)
        desk.tabs.append(self.tab)
        self.tab.open(desk.url + path)
        self.wait(lambda: self.status() != "unknown")

    def status(self) -> str:
        return str(self.find("body").get_dom_attribute("data-status"))

    def find(self, selector: str) -> WebElement:
        self.tab.show()
        return self.driver.find_element("css selector", selector)

    def all(self, selector: str) -> list[WebElement]:
        self.tab.show()
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return self.find(selector).text

    def press(self, selector: str) -> None:
        self.find(selector).click()

    def wait(self, look: Callable[[], Any]) -> Any:
        return self.desk.chromium.wait_for(look)

    def says(self, text: str) -> None:
        """It says that as a message of its own, in time."""
        self.wait(lambda: text in self.text("#notice") + self.text("#alert"))

    def fill(self, form: str, username: str, password: str) -> None:
        for name, value in (("username", username), ("password", password)):
            field = self.find(f"#{form} [name={name}]")
            field.clear()
            field.send_keys(value)

    def log_in(self) -> None:
        self.press("#log-in button")
        self.wait(lambda: self.status() == "in")
        self.wait(lambda: self.text("#user-name") == DEMO_USER)

    def call(self, count: int) -> str:
        """Press the button for so many calls; the line that they leave."""
        self.tab.run("document.querySelector('#calls').replaceChildren();")
        self.press(f"[data-call][data-count='{count}']")
        line: str = self.wait(lambda: [each.text for each in self.all("#calls li")])[0]
        return line

    def events(self) -> list[str]:
        """The types in the timeline, the newest first."""
        return [each.text for each in self.all("#events strong")]

    # --- how it is looked at ---

    def look(self, width: int, scheme: str) -> None:
        size = {"width": width, "height": 1050, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        self.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def picture(self) -> bytes:
        """All of it, as PNG."""
        shot = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        return base64.b64decode(shot["data"])

    def violations(self) -> list[str]:
        """What axe finds."""
        if not AXE.is_file():
            pytest.fail("there is no axe; npm ci --prefix tests/console/node")
        self.driver.execute_script(AXE.read_text(encoding="utf-8"))
        found: dict[str, Any] = self.driver.execute_script(_AXE)
        return [f"{each['id']}: {[node['html'] for node in each['nodes']]}" for each in found["violations"]]

    # --- the keyboard ---

    def keys(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> WebElement:
        self.tab.show()
        return self.driver.switch_to.active_element

    def tab_to(self, selector: str) -> None:
        """With the tabulator alone; wherever it comes by must show that it is there."""
        for _ in range(60):
            self.keys(Keys.TAB)
            at = self.focused()
            if at.tag_name != "body":
                assert at.value_of_css_property("outline-style") == "solid", at.get_attribute("outerHTML")
            if at.tag_name != "body" and self.tab.run(
                f"return document.activeElement.matches({selector!r});"
            ):
                return
        pytest.fail(f"the tabulator does not lead to {selector}")


@pytest.fixture
def page(token_desk: Desk) -> Page:
    """With refresh tokens in the body."""
    return Page(token_desk)


@pytest.fixture
def cookie_page(desk: Desk) -> Page:
    return Page(desk)


def strange_login(desk: Desk) -> str:
    """A login of the demo user from elsewhere; its refresh token."""
    reply = desk.server.post("/auth/login", {"username": DEMO_USER, "password": DEMO_PASSWORD})
    assert reply.status == 200, reply.body
    token: str = reply.json["refresh_token"]
    return token


# --- how it looks, and who can use it --------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_it_is_for_everybody_and_fits(page: Page, width: int, scheme: str) -> None:
    def check(name: str) -> None:
        SCREENSHOTS.mkdir(exist_ok=True)
        (SCREENSHOTS / f"{name}-{width}-{scheme}.png").write_bytes(page.picture())
        assert page.driver.execute_script(_TOO_WIDE) == []
        assert page.violations() == []

    page.look(width, scheme)
    page.fill("register", "x" * 254, "short")
    page.press("#register button")
    page.wait(lambda: page.text("#register-error"))
    check("logged-out")
    strange_login(page.desk)
    page.log_in()
    page.press("[data-fault=drop]")
    page.says("For the next refresh")
    page.press("[data-advance=access]")
    page.says("clock went ahead")
    assert TWENTY in page.call(20)
    check("logged-in")
    page.tab.run("for (const each of document.querySelectorAll('details')) each.open = true;")
    check("all-open")
    page.press("[data-fault=unavailable]")
    page.says("503")
    page.tab.run(f"page.pass({(LIFE + 1) * 1000});")
    page.press("[data-call][data-count='1']")
    page.says("No refresh is possible now")
    check("server-away")
    page.press("[data-fault=none]")
    page.says("All is well")
    page.press("#log-out-all")
    page.says("Logged out")
    check("ended")


def test_axe_would_find_something(page: Page) -> None:
    page.tab.run(
        "document.querySelector('#log-in label').replaceWith(document.querySelector('#log-in input'));"
    )
    assert any(each.startswith("label:") for each in page.violations())


def test_the_picture_in_the_readme(page: Page) -> None:
    strange_login(page.desk)
    page.look(1280, "light")
    page.log_in()
    page.press("[data-fault=drop]")
    page.says("For the next refresh")
    page.press("[data-advance=access]")
    page.says("clock went ahead")
    assert TWENTY in page.call(20)
    page.wait(lambda: "refreshed" in page.events())
    picture = page.driver.get_screenshot_as_png()
    SCREENSHOTS.mkdir(exist_ok=True)
    (SCREENSHOTS / "readme.png").write_bytes(picture)
    if os.environ.get("TOKENCTL_UPDATE_DOCS"):
        PICTURE.write_bytes(picture)
    # Its pixels depend on the fonts of a machine; that it is of a page of this size does not.
    assert PICTURE.read_bytes()[:24] == picture[:24]


def test_the_keyboard_is_enough(page: Page) -> None:
    page.tab_to(".skip")
    page.keys(Keys.ENTER)
    page.tab_to("#log-in [name=username]")
    page.tab_to("#log-in [name=password]")
    page.keys(Keys.ENTER)
    page.wait(lambda: page.status() == "in")
    assert page.focused().get_dom_attribute("id") == "tokens-heading"
    page.tab_to("summary")
    page.keys(Keys.ENTER)
    page.wait(lambda: page.text("#claims"))
    page.tab_to("[data-count='20']")
    page.keys(Keys.SPACE)
    page.wait(lambda: TWENTY in page.text("#calls"))
    assert page.focused().get_dom_attribute("data-count") == "20"
    strange_login(page.desk)
    page.tab_to("#reload-logins")
    page.keys(Keys.ENTER)
    page.wait(lambda: page.all("#logins button"))
    page.tab_to("#logins button")
    page.keys(Keys.ENTER)
    page.says("That login is over")
    assert page.focused().get_dom_attribute("id") == "logins-heading"
    page.tab_to("[data-advance=access]")
    page.keys(Keys.ENTER)
    page.says("clock went ahead")
    page.tab_to("#revoke-me")
    page.keys(Keys.ENTER)
    page.says("revoked at the server")
    page.tab_to(".scroll")
    page.tab_to("[data-copy]")
    page.find("#tokens-heading").send_keys("")  # back to the top
    page.tab_to("[data-count='1']")
    page.keys(Keys.ENTER)
    page.says("The server has ended this login")
    assert page.focused().get_dom_attribute("id") == "log-in-heading"


@pytest.mark.parametrize("mode", ["cookie_server", "token_server"])
def test_it_asks_nobody_else_and_keeps_its_policy(
    request: pytest.FixtureRequest, tmp_path: Path, mode: str
) -> None:
    server: Spawned = request.getfixturevalue(mode)
    with chromium(tmp_path) as browser:
        page = Page(Desk(browser, server), "/#demo")
        page.wait(lambda: page.text("#user-name") == DEMO_USER)
        assert "200" in page.call(1)
        asked = [url for url in browser.requested() if urlsplit(url).scheme not in {"data", "chrome"}]
        assert f"{page.desk.url}/dev/events" in asked
        assert [url for url in asked if not url.startswith(f"{page.desk.url}/")] == []
        # That nobody is logged in yet is an answer, of which Chromium tells the console by itself.
        told = [each for each in browser.complaints() if "/auth/refresh - Failed to load" not in each]
        assert told == []
    policy = server.get("/").headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert re.findall(r"https?:|\*|blob:|wss?:", policy) == []


# --- logging in and out ----------------------------------------------------------------------------


def test_registers_and_says_what_was_wrong(page: Page, request: pytest.FixtureRequest) -> None:
    page.fill("register", "ada of the page", "short")
    page.press("#register button")
    page.wait(lambda: "8" in page.text("#register-error"))
    wrong = page.find("#register [aria-invalid]")
    assert wrong.get_dom_attribute("name") == "password"
    assert page.focused() == wrong
    page.fill("register", "ada of the page", "seven otters knit at dawn")
    page.press("#register button")
    page.wait(lambda: page.text("#user-name") == "ada of the page")
    page.press("#log-out")
    page.says("Logged out")
    page.fill("register", "ada of the page", "seven otters knit at dawn")
    page.press("#register button")
    page.wait(lambda: "already" in page.text("#register-error"))
    page.fill("log-in", "ada of the page", "wrong")
    page.press("#log-in button")
    page.wait(lambda: page.text("#log-in-error"))
    assert page.status() == "out"
    page.fill("log-in", "ada of the page", "seven otters knit at dawn")
    page.press("#log-in button")
    page.wait(lambda: page.text("#user-name") == "ada of the page")


def test_logs_out_everywhere(page: Page) -> None:
    other = strange_login(page.desk)
    page.log_in()
    page.press("#log-out-all")
    page.says("Logged out")
    assert page.desk.server.post("/auth/refresh", {"refresh_token": other}).status == 401


def test_what_the_server_has_not_heard_of_is_said_again_as_it_was_meant(page: Page) -> None:
    other = strange_login(page.desk)
    page.log_in()
    page.desk.post("/dev/faults", {"kind": "unavailable", "path": "/auth/logout"})
    page.press("#log-out-all")
    page.wait(lambda: page.find("#unheard").is_displayed())
    page.press("#log-out-again")
    page.says("Logged out")
    assert page.desk.server.post("/auth/refresh", {"refresh_token": other}).status == 401


def test_one_command_leads_to_a_page_that_is_logged_in(browser: Chromium, tmp_path: Path) -> None:
    """`webbrowser` asks the program that BROWSER names to open the page."""
    readme = README.read_text(encoding="utf-8")
    line = readme.partition("<!-- page-command -->\n```sh\n")[2].partition("\n")[0]
    installed, _, command = line.rpartition("/")
    assert installed == "python3 -m venv .venv && .venv/bin/pip install -q . && .venv/bin"
    assert command == "tokenctl serve --dev --open"
    opened = tmp_path / "opened"
    program = tmp_path / "browser"
    program.write_text(f'#!/bin/sh\necho "$1" > {opened}.new && mv {opened}.new {opened}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with serving(tmp_path, "--dev", "--open", env={"BROWSER": str(program)}) as server:
        browser.wait_for(opened.exists)
        url = opened.read_text().strip()
        assert url == f"http://localhost:{server.port}/#demo"
        browser.driver.switch_to.new_window("tab")
        try:
            browser.open(url)
            browser.wait_for(lambda: browser.find("#user-name")[0].text == DEMO_USER)
            browser.find("#log-out")[0].click()
            browser.wait_for(lambda: browser.find("body")[0].get_dom_attribute("data-status") == "out")
            browser.driver.refresh()  # which is no second start
            browser.wait_for(lambda: browser.find("body")[0].get_dom_attribute("data-status") == "out")
        finally:
            browser.driver.close()
            browser.driver.switch_to.window(browser.driver.window_handles[0])


# --- the tokens ------------------------------------------------------------------------------------


def test_shows_both_tokens_as_they_run_out(page: Page) -> None:
    page.log_in()
    left = r"\d+ s left|1 min left"
    assert re.fullmatch(left, page.text("#access-left"))
    assert re.fullmatch(r"29 d 23 h left|30 d left", page.text("#refresh-left"))
    bar = page.find("#access-bar")
    value = float(str(bar.get_property("value")))
    page.wait(lambda: float(str(bar.get_property("value"))) < value)
    assert float(str(bar.get_property("max"))) == LIFE * 1000
    assert "memory of this page" in page.text("#kept")
    page.press("#tokens-heading")
    page.tab.run("document.querySelector('details').open = true;")
    rows = "[...document.querySelectorAll('#claims tr')]"
    texts = "[row.firstChild.firstChild.textContent, row.lastChild.textContent.split(' ')[0]]"
    claims = dict(page.tab.run(f"return {rows}.map((row) => {texts});"))
    assert claims["client_id"] == "default"
    assert claims["sid"].startswith("rt_")
    assert int(claims["exp"]) - int(claims["iat"]) == LIFE
    page.tab.run(f"page.pass({(LIFE + 1) * 1000});")
    page.wait(lambda: page.text("#access-left").startswith("expired"))
    assert "1 refresh" in page.call(1)
    page.wait(lambda: re.fullmatch(left, page.text("#access-left")))
    assert "1 time in" in page.text("[aria-labelledby=tokens-heading]")


def test_in_the_browsers_storage_it_survives_a_reload(token_desk: Desk) -> None:
    page = Page(token_desk)
    page.log_in()
    page.press("#kept a")
    page.wait(lambda: page.status() == "out")  # the one in memory is gone
    page.log_in()
    assert "any script of the page can read it" in page.text("#kept")
    page.driver.refresh()
    page.wait(lambda: page.text("#user-name") == DEMO_USER)


def test_the_cookie_survives_a_reload_and_other_tabs_have_it(cookie_page: Page) -> None:
    cookie_page.log_in()
    assert "no script of a page can read it" in cookie_page.text("#kept")
    assert not cookie_page.all("[data-copy=snippet-python]")
    cookie_page.driver.refresh()
    cookie_page.wait(lambda: cookie_page.text("#user-name") == DEMO_USER)
    other = Page(cookie_page.desk)
    other.wait(lambda: other.text("#user-name") == DEMO_USER)
    assert "adopted" in other.events()
    other.press("#log-out")
    other.says("Logged out")
    cookie_page.wait(lambda: cookie_page.status() == "out")


# --- calls and faults ------------------------------------------------------------------------------


def test_twenty_calls_with_an_expired_token_cause_one_refresh(page: Page) -> None:
    page.log_in()
    page.press("[data-advance=access]")
    page.says("clock went ahead")
    page.desk.mark()
    assert re.fullmatch(rf"GET /auth/me: {TWENTY} in \d+ ms, 1 refresh", page.call(20))
    assert len(page.desk.refreshes()) == 1


@pytest.mark.parametrize(("fault", "refreshes"), [("drop", 2), ("delay", 1)])
def test_no_fault_of_the_next_refresh_logs_out(page: Page, fault: str, refreshes: int) -> None:
    page.log_in()
    page.press(f"[data-fault={fault}]")
    page.says("For the next refresh")
    assert page.text("#fault") != "none"
    page.press("[data-advance=access]")
    page.says("clock went ahead")
    page.desk.mark()
    assert TWENTY in page.call(20)
    assert len(page.desk.refreshes()) == refreshes
    page.wait(lambda: page.text("#fault") == "none")
    assert page.status() == "in"
    if fault == "drop":
        assert "unavailable" in page.events()  # the page itself has noticed, and asked again
        page.wait(lambda: "presented again" in page.text("#events"))


def test_a_503_is_told_and_the_login_is_kept(page: Page) -> None:
    page.log_in()
    page.press("[data-fault=unavailable]")
    page.says("503")
    page.press("[data-advance=access]")
    page.says("clock went ahead")
    page.press("[data-call][data-count='1']")
    page.says("the login is kept")
    page.wait(lambda: "unavailable" in page.events())
    page.wait(lambda: "200" in page.text("#calls"))  # by itself, once the server answers again
    assert page.status() == "in"


def test_a_fault_can_be_taken_back(page: Page) -> None:
    page.press("[data-fault=drop]")
    page.says("For the next refresh")
    page.press("[data-fault=none]")
    page.says("All is well again")
    assert page.text("#fault") == "none"


def test_the_clock_goes_ahead_and_says_how_far(page: Page) -> None:
    page.press("[data-advance='3600']")
    page.says("ahead by 1 h")
    assert re.search(r"\(.* ahead\)", page.text("header"))


def test_the_end_of_the_refresh_token_ends_the_login(page: Page) -> None:
    page.log_in()
    page.press("[data-advance=refresh]")
    page.says("clock went ahead")
    page.press("[data-call][data-count='1']")
    page.says("The server has ended this login")


def test_revoke_me_is_noticed_by_the_next_call(page: Page) -> None:
    page.log_in()
    page.press("#revoke-me")
    page.says("revoked at the server")
    assert page.status() == "in"
    page.press("[data-call][data-count='20']")
    page.says("The server has ended this login")
    page.wait(lambda: {"ended", "token.revoke"} <= set(page.events()))


# --- the user's logins -----------------------------------------------------------------------------


def test_ends_one_login_and_all_others(page: Page) -> None:
    tokens = [strange_login(page.desk) for _ in range(3)]
    page.log_in()
    page.wait(lambda: len(page.all("#logins li")) >= 4)
    page.find("#logins button").click()  # the newest of the others
    page.says("That login is over")
    refused = [page.desk.server.post("/auth/refresh", {"refresh_token": each}).status for each in tokens]
    assert sorted(refused) == [200, 200, 401]
    page.press("#end-others")
    page.says("are over.")
    page.wait(lambda: len(page.all("#logins li")) == 1)
    assert page.find("#logins li").get_dom_attribute("data-current") == "true"
    assert "this one" in page.text("#logins")
    assert not page.find("#end-others").is_enabled()
    for each in tokens:
        assert page.desk.server.post("/auth/refresh", {"refresh_token": each}).status == 401
    assert "200" in page.call(1)


# --- the timeline ----------------------------------------------------------------------------------


def test_shows_what_operators_and_thieves_do(page: Page) -> None:
    page.wait(lambda: page.text("#stream") == "live")
    stolen = strange_login(page.desk)
    rotated = page.desk.server.post("/auth/refresh", {"refresh_token": stolen}).json["refresh_token"]
    page.desk.server.post("/auth/refresh", {"refresh_token": rotated})
    page.desk.server.post("/auth/refresh", {"refresh_token": stolen})
    page.wait(lambda: "token.reuse" in page.events())
    alarms = [each.text for each in page.all("#events li[data-alarm=true] strong")]
    assert alarms == ["token.reuse"]
    page.log_in()
    page.desk.tokenctl("revoke", "--user", DEMO_USER, "--yes", "--reason", "INC-7")
    page.wait(lambda: "INC-7" in page.text("#events"))


def test_catches_up_when_it_is_seen_again(page: Page) -> None:
    page.wait(lambda: page.text("#stream") == "live")
    hide = """
    Object.defineProperty(document, "hidden", { value: given, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
    """
    page.tab.run(hide, True)
    strange_login(page.desk)
    page.tab.run("await page.sleep(700);")
    assert "login.ok" not in page.events()
    page.tab.run(hide, False)
    page.wait(lambda: page.events().count("login.ok") == 1)


# --- the code to copy ------------------------------------------------------------------------------


def _snippet(page: Page, name: str) -> str:
    code = page.find(f"#snippet-{name}").get_property("textContent")
    assert isinstance(code, str)
    return code


@pytest.mark.parametrize("mode", ["token_desk", "desk"])
def test_the_code_for_a_page_runs_as_it_is(request: pytest.FixtureRequest, mode: str) -> None:
    page = Page(request.getfixturevalue(mode))
    code = _snippet(page, "page")
    page.tab.open(f"{page.desk.url}/healthz")
    load = "await import(URL.createObjectURL(new Blob([given], { type: 'text/javascript' })));"
    page.tab.run(load, code)
    assert page.tab.run("return page.said;") == [DEMO_USER]


def test_the_python_code_runs_as_it_is(page: Page, tmp_path: Path) -> None:
    assert _run_python(_snippet(page, "python"), tmp_path) == f"{DEMO_USER}\n"


def test_an_api_verifies_with_the_code_for_it(new_desk: Desk, tmp_path: Path) -> None:
    page = Page(new_desk)
    pair = new_desk.server.post("/auth/login", {"username": DEMO_USER, "password": DEMO_PASSWORD}).json
    code = _snippet(page, "api")
    printed = _run_python(f"{code}\nprint(verify({pair['access_token']!r})['sub'])", tmp_path)
    assert printed == f"{pair['user']['id']}\n"
    head, claims, signature = pair["access_token"].split(".")
    forged = f"{head}.{claims}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"
    expect = "except jwt.InvalidSignatureError: print('refused')"
    assert _run_python(f"{code}\ntry: verify({forged!r})\n{expect}", tmp_path) == "refused\n"


@pytest.mark.parametrize("mode", ["token_desk", "desk"])
def test_the_curl_command_runs_as_it_is(request: pytest.FixtureRequest, tmp_path: Path, mode: str) -> None:
    if shutil.which("curl") is None:
        pytest.fail("there is no curl")
    page = Page(request.getfixturevalue(mode))
    done = subprocess.run(
        ["sh", "-c", _snippet(page, "curl")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
        timeout=60,
    )
    answer = json.loads(done.stdout)
    assert answer["user"]["name"] == DEMO_USER
    assert ("refresh_token" in answer) == (mode == "token_desk")
    assert (tmp_path / "cookies").exists() == (mode == "desk")


def _run_python(code: str, directory: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True, text=True, cwd=directory, env=cli.environment(), check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_buttons_copy_what_they_stand_at(page: Page) -> None:
    permission = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": page.desk.url}
    page.driver.execute_cdp_cmd("Browser.grantPermissions", permission)
    page.press("[data-copy=snippet-page]")
    page.says("Copied")
    assert page.tab.run("return navigator.clipboard.readText();") == _snippet(page, "page")
    page.log_in()
    page.tab.run("document.querySelector('details').open = true;")
    page.press("#copy-token")
    page.says("copied")
    token = page.tab.run("return navigator.clipboard.readText();")
    assert page.desk.server.get("/auth/me", token).status == 200
