"""`tokenctl evidence` as its users run it, and its page as a browser shows it."""

from __future__ import annotations

import json
import re
import resource
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.cli import environment, run_on_terminal
from tests.cli.warm import Warm
from tests.conftest import unpack
from tests.http.browser import Chromium, chromium
from tests.sample import SAMPLE
from tests.service import SECOND
from tokenctl.service.evidence_page import Act, Lane, PlanShare, Story, UserShare, page

#: In directories of the sample, of which each test has its own.
Tool = Callable[..., subprocess.CompletedProcess[str]]
MOMENT = 1_773_457_800 * SECOND  # 2026-03-14 03:10 UTC


@pytest.fixture(scope="module")
def warm() -> Iterator[Warm]:
    with Warm() as warm:
        yield warm


@pytest.fixture
def tool(warm: Warm, tmp_path: Path) -> Tool:
    """`tokenctl` where the database is the sample."""
    shutil.copy(SAMPLE, tmp_path / "tokenctl.db")

    def run(*argv: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = warm(*argv, cwd=tmp_path)
        assert "Traceback" not in done.stderr
        assert done.returncode == code, done.stderr
        return done

    return run


def revoke(tool: Tool) -> None:
    """The addresses of the sample's attack, by a plan."""
    planned = json.loads(tool("revoke", "--ip", "203.0.113.0/24", "--dry-run", "--json").stdout)
    tool("revoke", "--plan", planned["plan"], "--reason", "INC-7", "--confirm", str(planned["users"]))


def test_the_last_step_of_an_incident(tool: Tool, tmp_path: Path) -> None:
    revoke(tool)
    done = tool("evidence", "--reason", "INC-7", "-o", "INC-7.tgz")
    assert re.fullmatch(
        r"wrote INC-7\.tgz: 7 logins of 5 users, 22 events; sha256 [0-9a-f]{64}\n", done.stdout
    )
    unpack(tmp_path / "INC-7.tgz", tmp_path)
    place = tmp_path / "INC-7"
    subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=place, check=True)
    # As the README in it says.
    tool("audit", "verify", "--export", "INC-7/audit-export.jsonl")
    head = (place / "audit-head.txt").read_text().strip()
    tool("audit", "verify", "--head", head)
    readme = (place / "README.txt").read_text()
    assert set(re.findall(r"(?m)^([\w-]+(?:\.\w+)?)  +[A-Z]", readme)) == {
        each.name for each in place.iterdir() if each.name != "README.txt"
    }
    # Nothing else is left in the directory.
    assert {each.name for each in tmp_path.iterdir()} == {
        "INC-7", "INC-7.tgz", "tokenctl.db", "tokenctl.db.gate", "tokenctl.db.write",
    }  # fmt: skip


def test_a_second_bundle_replaces_nothing(tool: Tool, tmp_path: Path) -> None:
    revoke(tool)
    record = json.loads(tool("evidence", "--reason", "INC-7", "--output", "a.tgz", "--json").stdout)
    before = (tmp_path / "a.tgz").read_bytes()
    assert (record["file"], record["verified"], record["logins"]) == ("a.tgz", True, 7)
    again = tool("evidence", "--reason", "INC-7", "-o", "a.tgz", code=1)
    assert "a.tgz is there already, and stays as it is" in again.stderr
    assert "Try: name a new file with -o" in again.stderr
    assert (tmp_path / "a.tgz").read_bytes() == before


def test_what_is_wrong_is_said_before_anything_is_done(tool: Tool, tmp_path: Path) -> None:
    for argv, code, said in (
        (["-o", "x.tgz"], 2, "--reason"),
        (["--reason", "INC-7"], 2, "--output"),
        (["--reason", "INC-8", "-o", "x.tgz"], 4, "Try: tokenctl audit search --type token.revoke"),
        (["--reason", "reuse", "-o", "json"], 2, "json is a format"),
        (["--reason", "reuse", "-o", "-"], 2, "not to stdout"),
        (["--reason", "reuse", "-o", ""], 2, "--output is empty"),
        (["--reason", "reuse", "-o", "none/x.tgz"], 1, "Try: mkdir -p none"),
        (["--reason", "reuse", "-o", "x.tgz", "--fields", "nope"], 2, "no field 'nope' here"),
    ):
        done = tool("evidence", *argv, code=code)
        assert (done.stdout, said in done.stderr) == ("", True), done.stderr
    assert [each.name for each in tmp_path.glob("*.tgz")] == []


def test_a_log_that_does_not_hold_is_a_finding(tool: Tool, tmp_path: Path) -> None:
    tool("audit", "verify")
    with closing(sqlite3.connect(tmp_path / "tokenctl.db")) as connection, connection:
        connection.execute("UPDATE events SET actor = 'x' WHERE id = 5")
    done = tool("evidence", "--reason", "reuse", "-o", "x.tgz", code=7)
    assert done.stdout.startswith("wrote x.tgz")
    assert "warning: THE AUDIT LOG DOES NOT HOLD: 1 finding in" in done.stderr


def test_no_space(tool: Tool, tmp_path: Path) -> None:
    revoke(tool)
    tool("audit", "verify")
    before = {each.name for each in tmp_path.iterdir()}
    done = subprocess.run(
        [sys.executable, "-m", "tokenctl", "evidence", "--reason", "INC-7", "-o", "INC-7.tgz"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000)),
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "INC-7.tgz cannot be made: File too large" in done.stderr
    assert "Try: " in done.stderr
    assert {each.name for each in tmp_path.iterdir()} == before


def test_something_is_seen_on_a_terminal(tool: Tool, tmp_path: Path) -> None:
    code, shown = run_on_terminal("evidence", "--reason", "reuse", "-o", "x.tgz", cwd=tmp_path)
    assert code == 0
    assert "collecting …" in shown


# --- the page --------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with chromium(tmp_path_factory.mktemp("chromium")) as browser:
        yield browser


def _lane(number: int, user: str) -> Lane:
    begin = MOMENT - (20 - number % 20) * 86_400 * SECOND
    return Lane(
        token_id=f"rt_{number:032x}",
        user_name=user,
        client_id="web",
        created_at=begin,
        revoked_at=MOMENT + number * SECOND,
        events=5,
        dots=[begin, begin + 3_600 * SECOND, MOMENT - 5_000 * SECOND],
        reuse=[MOMENT - 60 * SECOND] * (number % 3 == 0),
        last_ip="2001:db8::ffff:7",
        last_user_agent="Mozilla/5.0 " + "long" * 40,
    )


def _story() -> Story:
    names = ["ada", "<img src=x onerror=alert(1)>", "אבג\u202eabc", "a" * 254, "漢字" * 100]
    return Story(
        reason="INC-7 </h1><script>alert(1)</script>",
        made_at=MOMENT + 600 * SECOND,
        made_by="nina",
        version="1",
        database="postgresql://db.example/tokens",
        logins=3_000,
        users=1_200,
        reuse=20,
        refused_since=2,
        alive=0,
        events=20_000,
        issued_from=MOMENT - 20 * 86_400 * SECOND,
        revoked_from=MOMENT,
        revoked_until=MOMENT + 60 * SECOND,
        actors=["nina", "olaf"],
        access_until=MOMENT + 600 * SECOND,
        lanes=[_lane(number, names[number % 5]) for number in range(60)],
        shares=[UserShare(user_name=names[i % 5], user_id=f"usr_{i:032x}", logins=3) for i in range(200)],
        plans=[
            PlanShare(
                plan_id="7f3a", made_at=MOMENT, made_by="nina", tokens=3_000, revoked=3_000, acted_by=["olaf"]
            )
        ],
        verified=None,
        seal="The audit log was not verified: the master key is not here.",
        head=f"12-{'a' * 64}",
        has_export=True,
        other_acts=[Act(MOMENT, "cutoff.set", "nina")],
    )


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
def test_the_page_in_a_browser(browser: Chromium, tmp_path: Path, scheme: str, width: int) -> None:
    file = tmp_path / "summary.html"
    file.write_text(page(_story()), encoding="utf-8")
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.open(file.as_uri())

    # Its style is allowed by its policy and nothing else is asked for; nothing hostile became an element.
    assert browser.complaints() == []
    urls = [url for url in browser.requested() if not url.startswith(("chrome:", "data:"))]
    assert urls == [file.as_uri()]
    assert browser.find("script, img, link, iframe") == []
    [heading] = browser.find("h1")
    assert heading.text == "INC-7 </h1><script>alert(1)</script>"
    ground = browser.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")

    # Pictures and tables scroll by themselves: the page is never wider than the window.
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.driver.execute_script(wide) == 0
    pictures = browser.find("figure > div > svg[role=img]")
    assert len(pictures) == 2  # all of it, and the last day
    assert [picture.accessible_name for picture in pictures] != ["", ""]
    lanes = "return arguments[0].querySelectorAll('.user').length"
    assert browser.driver.execute_script(lanes, pictures[0]) == 60
    assert all(each.get_attribute("tabindex") == "0" for each in browser.find(".scroll"))
    # A label does not run into its neighbour, however long the name.
    clipped = """
        return [...arguments[0].querySelectorAll("svg")].every((each) => {
            const style = getComputedStyle(each);
            return style.overflow == "hidden" && style.width == "auto" && each.width.baseVal.value == 132;
        })"""
    assert browser.driver.execute_script(clipped, pictures[0])


@pytest.mark.browser
def test_the_page_on_paper(browser: Chromium, tmp_path: Path) -> None:
    file = tmp_path / "summary.html"
    file.write_text(page(_story()), encoding="utf-8")
    media = {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    # A4 between its margins, in CSS pixels.
    size = {"width": 688, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.open(file.as_uri())
    ground = browser.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb(255, 255, 255)"
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    assert browser.driver.execute_script(wide) <= 0
