"""The browser client as files: how large it is, where it comes from, and that it loads everywhere."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.console.conftest import CONSOLE, Api, Desk
from tests.http.live import Live

MODULE = CONSOLE / "tokenctl.js"
NODE = Path(__file__).parent / "node"
#: Of code, without empty lines and comments; and bytes as they go over the network.
MAX_LINES = 405
MAX_COMPRESSED = 7_300

_NO_CODE = re.compile(r"\s*(//.*|/\*.*|\*.*)?")


def test_the_module_stays_small() -> None:
    text = MODULE.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not _NO_CODE.fullmatch(line)]
    assert len(lines) <= MAX_LINES
    assert len(gzip.compress(text.encode(), 9)) <= MAX_COMPRESSED
    assert max(map(len, text.splitlines())) <= 120


def test_it_needs_nothing_and_says_nothing() -> None:
    text = MODULE.read_text(encoding="utf-8")
    assert re.findall(r"^\s*import\b|\bimport\(|\brequire\(", text, re.MULTILINE) == []
    assert re.findall(r"\bconsole\.|\bdocument\.(?:cookie|write)|\beval\(|\bdebugger\b", text) == []


def test_the_package_has_what_it_names() -> None:
    package = json.loads((CONSOLE / "package.json").read_text(encoding="utf-8"))
    named = {*package["exports"]["."].values(), package["types"], *(f"./{name}" for name in package["files"])}
    assert [name for name in named if not (CONSOLE / name).is_file()] == []
    assert package["type"] == "module"
    assert not {"dependencies", "scripts", "peerDependencies"} & set(package)


# --- from the server -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content_type"),
    [("tokenctl.js", "text/javascript; charset=utf-8"), ("tokenctl.d.ts", "text/plain; charset=utf-8")],
)
def test_the_server_has_it(live: Live, name: str, content_type: str) -> None:
    reply = live.get(f"/client/{name}")
    assert (reply.status, reply.headers["content-type"]) == (200, content_type)
    assert reply.body == (CONSOLE / name).read_bytes()
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-content-type-options"] == "nosniff"


def test_who_has_it_already_is_told_so(live: Live) -> None:
    tag = live.get("/client/tokenctl.js").headers["etag"]
    for known in (tag, f"W/{tag}", f'"other", {tag}'):
        reply = live.get("/client/tokenctl.js", if_none_match=known)
        assert (reply.status, reply.body, reply.headers["etag"]) == (304, b"", tag)
    assert live.get("/client/tokenctl.js", if_none_match='"other"').status == 200
    assert live.get("/client/tokenctl.d.ts", if_none_match=tag).status == 200


@pytest.mark.parametrize("name", ["package.json", "__init__.py", "..%2Fsettings.py", "tokenctl.mjs", "%00"])
def test_the_server_has_no_other_file(live: Live, name: str) -> None:
    reply = live.get(f"/client/{name}")
    assert (reply.status, reply.json["code"]) == (404, "route.not_found")


@pytest.mark.browser
def test_a_copy_in_another_page_works(token_desk: Desk, api: Api) -> None:
    tab = token_desk.tab(url=f"{api.url}/page.html")
    tab.run(
        "const { createAuth } = await import('/tokenctl.js');"
        "window.auth = createAuth({ baseUrl: given, mode: 'token', storage: 'local' });",
        token_desk.url,
    )
    tab.log_in()
    token_desk.expire(tab)
    assert tab.run("return (await auth.fetch(given)).status;", f"{token_desk.url}/auth/me") == 200
    assert len(token_desk.refreshes()) == 1


@pytest.mark.browser
def test_a_page_elsewhere_can_load_it_from_the_server_and_use_the_cookie(desk: Desk, api: Api) -> None:
    tab = desk.tab(url=f"{api.elsewhere}/page.html")  # another port of localhost is the same site
    tab.log_in()
    desk.expire(tab)
    assert tab.run("return (await auth.fetch(given)).status;", f"{desk.url}/auth/me") == 200
    assert len(desk.refreshes()) == 1


@pytest.mark.browser
def test_a_mode_that_is_not_the_server_s_is_told(desk: Desk, token_desk: Desk) -> None:
    script = "return auth.login(...given).then(() => null, (error) => [error.code, error.message]);"
    user = ["demo", "otters at dawn"]
    assert token_desk.tab().run(script, user)[0] == "mode.other"
    code, message = desk.tab('mode: "token"').run(script, user)
    assert code == "request.forbidden"
    assert "cookies" in message


@pytest.mark.browser
def test_what_a_page_gets_to_know(desk: Desk) -> None:
    tab = desk.tab()
    assert tab.run("return auth.state.status;") == "unknown"
    assert tab.run("return auth.resume();") is False
    assert tab.events() == ["absent"]
    wrong = "return auth.login('demo', 'wrong').catch((error) => [error.code, error.status, error.message]);"
    assert tab.run(wrong) == ["password.wrong", 401, "the user name or the password is wrong"]
    short = "return auth.register('somebody', 'x').catch((error) => error.code);"
    assert tab.run(short) == "password.refused"
    state = tab.run("return auth.register('somebody', 'seven otters knit at dawn');")
    assert (state["status"], state["user"]["name"]) == ("in", "somebody")
    assert 0 < state["accessExpiresIn"] <= 60_000 < state["refreshExpiresIn"]
    claims = tab.run("return module.claimsUnverified(await auth.getToken());")
    assert (claims["sid"], claims["sub"]) == (state["login"], state["user"]["id"])
    change = as_script("/auth/password", "seven otters knit at dawn", "nine herons paint by noon")
    assert tab.run(change) == 204
    tab.run("await auth.logout({ all: true });")
    assert tab.run("return [auth.state.status, await auth.resume()];") == ["out", False]


def as_script(path: str, old: str, new: str) -> str:
    """A change of password, as a page does it."""
    body = json.dumps({"current_password": old, "new_password": new})
    return (
        f"return (await auth.fetch('{path}', {{ method: 'POST', body: `{body}`,"
        " headers: { 'Content-Type': 'application/json' } })).status;"
    )


@pytest.mark.browser
def test_a_store_of_the_page_s_own_is_where_the_record_is(token_desk: Desk) -> None:
    store = (
        "storage: { read: async () => window.kept ?? null, write: async (kept) => { window.kept = kept; } }"
    )
    tab = token_desk.tab(f'mode: "token", {store}')
    assert tab.run("return auth.resume();") is False
    tab.log_in()
    token_desk.expire(tab)
    tab.run("await auth.getToken(); auth.dispose();")
    tab.create(f'mode: "token", {store}')  # as a new page does
    assert tab.run("return [await auth.resume(), auth.state.user.name];") == [True, "demo"]
    assert len(token_desk.refreshes()) == 1
    tab.run("await auth.logout();")
    assert tab.run("return window.kept;") is None


@pytest.mark.browser
def test_a_store_that_cannot_be_written_costs_nobody_the_login(token_desk: Desk) -> None:
    tab = token_desk.tab(
        'mode: "token", storage: "local"', "Storage.prototype.setItem = () => { throw 'full'; };"
    )
    tab.log_in()
    token_desk.expire(tab)
    assert tab.run("return (await auth.fetch('/auth/me')).status;") == 200
    assert tab.events() == ["login", "storage_failed", "refreshed"]


# --- from npm ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with the package in its node_modules, as npm packs it, and TypeScript."""
    if not (NODE / "node_modules").is_dir():
        pytest.fail(f"there is no {NODE}/node_modules; run: npm ci --prefix {NODE}")
    directory = tmp_path_factory.mktemp("project")
    _run("npm", "pack", str(CONSOLE), "--silent", cwd=directory)
    [archive] = directory.glob("*.tgz")
    package = directory / "node_modules" / "tokenctl-client"
    package.mkdir(parents=True)
    shutil.unpack_archive(archive, directory)
    for file in (directory / "package").iterdir():
        shutil.move(file, package)
    for name in ("import.mjs", "use.ts", "tsconfig.json"):
        shutil.copy(NODE / name, directory)
    return directory


def _run(*argv: str, cwd: Path) -> str:
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.node
def test_the_package_holds_the_module_and_its_types(installed: Path) -> None:
    there = {file.name for file in (installed / "node_modules" / "tokenctl-client").iterdir()}
    assert there == {"package.json", "tokenctl.js", "tokenctl.d.ts"}


@pytest.mark.node
def test_it_loads_where_there_is_no_page(installed: Path) -> None:
    assert (
        _run("node", "import.mjs", cwd=installed) == "AuthError,claimsUnverified,createAuth\nout logged_out\n"
    )


@pytest.mark.node
def test_the_types_are_what_a_page_needs(installed: Path) -> None:
    _run("node", str(NODE / "node_modules/typescript/bin/tsc"), "--project", "tsconfig.json", cwd=installed)


@pytest.mark.browser
def test_the_page_of_the_documentation_works(desk: Desk, api: Api) -> None:
    """At an origin of its own, as a developer's has one."""
    text = (Path(__file__).parents[2] / "docs" / "browser.md").read_text(encoding="utf-8")
    code = text.partition('<script type="module">')[2].partition("</script>")[0]
    assert "http://localhost:8460/client/tokenctl.js" in code
    tab = desk.tab()
    load = "await import(URL.createObjectURL(new Blob([given], { type: 'text/javascript' })));"
    for _ in range(2):  # the second time it is logged in already, by the cookie
        tab.open(f"{api.elsewhere}/page.html")
        tab.run(load, code.replace("http://localhost:8460", desk.url))
        assert tab.run("return page.said;") == ["demo"]
    asked = [call["path"] for call in tab.run("return page.calls;")]
    assert "/auth/login" not in asked
