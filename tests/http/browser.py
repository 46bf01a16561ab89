"""Debian's Chromium, headless, cut off from every host but loopback; what it asked for and complained of."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

_Found = TypeVar("_Found")

# Chromium tells the console of a violation only in words, and of some not at all.
_WATCH_POLICY = """
window.policyViolations = [];
document.addEventListener("securitypolicyviolation", (event) => {
  window.policyViolations.push(`${event.effectiveDirective} forbids ${event.blockedURI || "inline"}`);
});
"""

_FLAGS = [
    "--headless=new",
    # No name leads anywhere, and no other address either: a page that asks somebody else fails and shows it.
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1 , EXCLUDE localhost",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-dev-shm-usage",  # containers have 64 MB of it
    "--window-size=1280,1600",
]


class Chromium:
    """A browser with a new profile, and its own account of what the pages did."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self._log: Callable[[str], list[dict[str, Any]]] = driver.get_log
        self._requested: list[str] = []
        self._console: list[str] = []
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": _WATCH_POLICY})

    def open(self, url: str) -> None:
        self.driver.get(url)

    def find(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements("css selector", selector)

    def wait_for(self, look: Callable[[], _Found], within: float = 20) -> _Found:
        """What `look` returns, as soon as it is true; a page that is redrawn meanwhile is looked at again."""
        wait = WebDriverWait(self.driver, within, 0.05, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda _: look())

    def requested(self) -> list[str]:
        """Every URL that a page asked for since the start, failed or not, in order."""
        for entry in self._log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._requested.append(message["params"]["request"]["url"])
        return list(self._requested)

    def complaints(self) -> list[str]:
        """What the console said as a warning or worse since the start, and the present page's violations."""
        for entry in self._log("browser"):
            if entry["level"] in {"WARNING", "SEVERE"}:
                self._console.append(f"{entry['level']}: {entry['message']}")
        violations: list[str] = self.driver.execute_script("return window.policyViolations ?? []")
        return [*self._console, *violations]


@contextmanager
def chromium(home: Path) -> Iterator[Chromium]:
    """Start it, with `home` for all that it writes."""
    # Given both paths, Selenium looks for nothing, and downloads nothing.
    service = Service(_program("chromedriver"), env={**os.environ, "HOME": str(home)})
    driver = webdriver.Chrome(_options(home), service)
    try:
        yield Chromium(driver)
    finally:
        driver.quit()


def _options(home: Path) -> webdriver.ChromeOptions:
    options = webdriver.ChromeOptions()
    options.binary_location = _program("chromium")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    for flag in (*_FLAGS, f"--user-data-dir={home / 'profile'}"):
        options.add_argument(flag)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox refuses root
    return options


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"there is no {name}; install chromium and chromium-driver, or run the tests without -m")
    return found
