"""What the browser client promises, each promise by its number: in a real Chromium, against a real server."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import eventually
from tests.console.conftest import LIFE, Api, Desk, Tab, as_json
from tokenctl.http.dev import DEMO_PASSWORD, DEMO_USER

pytestmark = pytest.mark.browser

BURST = """
const got = await Promise.allSettled(Array.from({ length: 20 }, () => auth.fetch("/auth/me")));
return got.map((each) => each.value?.status ?? String(each.reason));
"""
LOCAL = 'mode: "token", storage: "local"'
COOKIE_LOCAL = 'storage: "local"'
#: Answers to a refresh come when the test says `answer(status)`, and not from the server.
GATE = """
page.instead = (input) => {
  if (!String(input.url ?? input).endsWith("/auth/refresh")) return null;
  return new Promise((done) => {
    window.answer = (status, headers) => done(new Response("{}", { status, headers }));
  });
};
"""
FULL = "Storage.prototype.setItem = () => { throw 'full'; };"
NO_LOCKS = "delete Navigator.prototype.locks;"
NO_CHANNEL = "delete window.BroadcastChannel;"
NO_STORAGE_EVENT = """
const add = window.addEventListener;
window.addEventListener = (name, ...rest) => { if (name !== "storage") add.call(window, name, ...rest); };
"""
#: What other tabs say waits for `page.news`; `page.begun` is called with the lock. Timers are made longer.
SLOW_NEWS = """
window.BroadcastChannel = class extends BroadcastChannel {
  set onmessage(hear) { super.onmessage = async (event) => { await page.news; hear(event); }; }
};
const ask = navigator.locks.request.bind(navigator.locks), start = setTimeout;
navigator.locks.request = (key, how, work) => ask(key, how, (lock) => {
  if (page.begun) start(page.begun);
  return work(lock);
});
window.setTimeout = (work, ms) => start(work, ms && ms + 500);
"""


def _desk(request: pytest.FixtureRequest, options: str) -> Desk:
    """The server that these options are for."""
    desk: Desk = request.getfixturevalue("token_desk" if "token" in options else "desk")
    return desk


def _three(desk: Desk, options: str, *preludes: str) -> list[Tab]:
    """Three tabs that share a login whose access token is over."""
    first = desk.tab(options, *preludes)
    first.log_in()
    tabs = [first, *(desk.tab(options, *preludes) for _ in range(2))]
    for tab in tabs[1:]:
        assert tab.run("return auth.resume();")
    desk.expire(*tabs)
    return tabs


# --- 1, 2, 3: one refresh ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", ["", COOKIE_LOCAL, LOCAL, 'mode: "token"'], ids=["cookie", "cookie local", "local", "memory"]
)
def test_01_calls_at_once_cause_one_refresh(request: pytest.FixtureRequest, options: str) -> None:
    desk = _desk(request, options)
    tab = desk.tab(options)
    tab.log_in()
    desk.expire(tab)
    assert tab.run(BURST) == [200] * 20
    assert len(desk.refreshes()) == 1
    assert tab.events() == ["login", "refreshed"]


@pytest.mark.parametrize("options", ["", LOCAL], ids=["channel", "store"])
def test_02_who_waited_for_the_lock_adopts(request: pytest.FixtureRequest, options: str) -> None:
    desk = _desk(request, options)
    one, two, _ = _three(desk, options)
    desk.fault("delay", milliseconds=1000)
    one.start("return auth.getToken();")
    two.start("return auth.getToken();")  # it finds the lock taken
    assert one.finish() == two.finish()
    assert two.run("return page.count('/auth/refresh');") == 0
    assert len(desk.refreshes()) == 1


def test_02_news_may_come_after_the_lock(desk: Desk) -> None:
    """A browser may give the lock to the next tab before it has brought there what the last one said."""
    one, two = desk.tab(), desk.tab("", SLOW_NEWS)
    one.log_in()
    two.run("await auth.getToken();")
    two.run("page.news = new Promise((bring) => { page.begun = bring; });")
    desk.expire(one, two)
    token = one.run("return auth.getToken();")
    assert two.run("return auth.getToken();") == token
    assert len(desk.refreshes()) == 1


@pytest.mark.parametrize(
    ("options", "preludes"),
    [("", ()), (COOKIE_LOCAL, (NO_CHANNEL,)), (LOCAL, ()), (LOCAL, (NO_CHANNEL,))],
    ids=["channel", "cookie and storage event", "channel and store", "storage event"],
)
@pytest.mark.parametrize("delay", [0, 500])
def test_03_three_tabs_refresh_once(
    request: pytest.FixtureRequest, options: str, preludes: tuple[str, ...], delay: int
) -> None:
    desk = _desk(request, options)
    tabs = _three(desk, options, *preludes)
    if delay:
        desk.fault("delay", milliseconds=delay)
    for tab in tabs:
        tab.start(BURST)
    assert [tab.finish() for tab in tabs] == [[200] * 20] * 3
    assert len(desk.refreshes()) == 1
    assert sorted(tab.events()[-1] for tab in tabs) == ["adopted", "adopted", "refreshed"]


@pytest.mark.parametrize("options", ["", LOCAL], ids=["cookie", "local"])
def test_03_a_lost_answer_logs_nobody_out(request: pytest.FixtureRequest, options: str) -> None:
    desk = _desk(request, options)
    tabs = _three(desk, options)
    desk.fault("drop")
    for tab in tabs:
        tab.start(BURST)
    assert [tab.finish() for tab in tabs] == [[200] * 20] * 3
    first, *again = desk.refreshes()
    assert "status=200" in first
    # One as a rule. A tab whom the browser brings the news late asks as well, and gets the same.
    assert 1 <= len(again) <= len(tabs)
    assert all("reason=retried" in each for each in again)
    events = [tab.events() for tab in tabs]
    assert any("unavailable" in told for told in events)  # it was the client that asked again
    assert all("ended" not in told for told in events)


def test_03_a_login_elsewhere_is_not_taken_for_a_refresh(desk: Desk) -> None:
    one, two = desk.tab("", NO_CHANNEL), desk.tab("", NO_CHANNEL)
    one.log_in()
    user = two.run("return (await auth.register('heron', 'nine herons paint by noon')).user.id;")
    desk.expire(one)
    one.run("await auth.getToken();")  # by the cookie, which is that of the other login now
    assert one.run("return auth.state.user.id;") == user
    assert one.events() == ["login", "adopted"]


def test_03_a_slow_refresh_does_not_bring_back_who_was_logged_in_before(desk: Desk) -> None:
    tab = desk.tab("", NO_LOCKS)  # as when the wait for the lock is over
    tab.log_in()
    former = tab.run("return auth.state.login;")
    desk.expire(tab)
    desk.fault("delay", milliseconds=6000)
    tab.start("return auth.getToken();")
    tab.run("while (page.count('/auth/refresh') < 1) await page.sleep(10);")
    user = tab.run("return (await auth.register('crane', 'nine cranes paint by noon')).user.id;")
    tab.finish()
    tab.run("while (page.count('/auth/logout') < 1) await page.sleep(10);")
    eventually(lambda: "state         revoked" in desk.tokenctl("inspect", former))
    assert tab.run("return auth.state.user.id;") == user
    desk.expire(tab)
    # The answer that came late has replaced the cookie: nobody is logged in, least of all the former user.
    assert tab.run("return auth.getToken().catch((error) => error.code);") == "logged_out"


def test_03_tabs_whose_store_is_full_share_what_is_in_memory(token_desk: Desk) -> None:
    one, two = token_desk.tab(LOCAL, FULL), token_desk.tab(LOCAL, FULL)
    one.log_in()
    two.run("while (auth.state.status !== 'in') await page.sleep(10);")
    token_desk.expire(one, two)
    assert [tab.run(BURST) for tab in (two, one)] == [[200] * 20] * 2
    assert len(token_desk.refreshes()) == 1
    assert "ended" not in one.events() + two.events()


def test_03_a_store_that_cannot_be_read_costs_no_new_token(token_desk: Desk) -> None:
    tab = token_desk.tab()
    tab.run("auth.dispose(); addEventListener('unhandledrejection', () => { window.lost = true; });")
    tab.create(
        """mode: "token", storage: {
          read: async () => { if (window.broken) throw new Error("away"); return window.kept ?? null; },
          write: async (kept) => { window.kept = kept; },
          subscribe: (changed) => { window.changed = changed; return () => {}; },
        }"""
    )
    tab.log_in()
    token_desk.expire(tab)
    token_desk.fault("delay", milliseconds=500)
    tab.start("return auth.getToken();")
    tab.run("while (page.count('/auth/refresh') < 1) await page.sleep(10); window.broken = true;")
    token = tab.finish()
    assert tab.run("return window.kept.access;") == token
    assert tab.run("window.changed(); await page.sleep(50); return window.lost;") is None


# --- 4, 5, 6, 7: the lock ------------------------------------------------------------------------


def test_04_no_callback_is_under_the_lock(desk: Desk) -> None:
    tab = desk.tab()
    tab.run(
        """
        window.free = [];
        auth.subscribe(async () => {
          const { held } = await navigator.locks.query();
          window.free.push(held.length === 0);
          await new Promise(() => {});
        });
        """
    )
    tab.log_in()
    desk.expire(tab)
    assert tab.run("await auth.getToken(); await page.sleep(100); return window.free;") == [True, True]


def test_04_a_lock_that_is_not_given_back_is_waited_for_5_s(desk: Desk) -> None:
    tab, other = desk.tab(), desk.tab()
    tab.log_in()
    desk.expire(tab)
    other.run(
        "const { held } = await navigator.locks.query(); const name = `tokenctl ${given} default`;"
        "const never = new Promise(() => {});"
        "await new Promise((got) => navigator.locks.request(name, () => { got(); return never; }));",
        desk.url,
    )
    tab.start(
        "const before = performance.now(); const token = await auth.getToken();"
        "return [typeof token, performance.now() - before >= 4_900];"
    )
    assert tab.finish() == ["string", True]


@pytest.mark.parametrize("preludes", [(), (NO_LOCKS, NO_CHANNEL)], ids=["locks", "no locks"])
def test_05_a_callback_may_wait_for_a_token(desk: Desk, preludes: tuple[str, ...]) -> None:
    tab = desk.tab("", *preludes)
    tab.run(
        """
        window.calls = [];
        auth.subscribe((event) => { window.calls.push(auth.getToken()); });
        auth.subscribe((event) => { window.calls.push(auth.fetch("/auth/me")); });
        auth.subscribe(() => { throw new Error("the page's own mistake"); });
        """
    )
    tab.log_in()
    tab.run(
        "await Promise.all(window.calls);"
    )  # else the clock overtakes a call, and a 401 refreshes as well
    desk.expire(tab)
    tab.run("await auth.getToken();")
    assert tab.run("return (await Promise.all(window.calls)).length;") == 4


def test_05_dispose_removes_every_timer_and_listener(desk: Desk) -> None:
    tab = desk.tab()
    counts = "return [page.timers.size, page.listeners, page.channels];"
    assert tab.run(counts) == [0, 4, 1]
    tab.log_in()
    assert tab.run(counts) == [1, 4, 1]
    desk.expire(tab)
    desk.fault("unavailable", count=100)
    tab.start("return auth.getToken({ signal: new AbortController().signal });")
    tab.run("while (page.count('/auth/refresh') < 2) await page.sleep(10);")
    assert tab.run(f"auth.dispose(); auth.dispose(); await page.sleep(100); {counts}") == [0, 0, 0]
    refused = "return window.started.catch((error) => error.code);"
    assert tab.run(refused) == "disposed"
    assert tab.run("return auth.fetch('/auth/me').catch((error) => error.code);") == "disposed"


def test_05_a_callback_hears_events_in_their_order(desk: Desk) -> None:
    tab = desk.tab()
    tab.run(
        """
        window.heard = [];
        auth.subscribe(({ type }) => { if (type === "login") window.out = auth.logout(); });
        auth.subscribe(({ type }) => { window.heard.push(type); });
        await auth.login(given.user, given.password);
        await window.out;
        """,
        {"user": DEMO_USER, "password": DEMO_PASSWORD},
    )
    assert tab.run("return window.heard;") == ["login", "ended"]


def test_05_dispose_during_a_refresh_leaves_no_timer(desk: Desk) -> None:
    tab = desk.tab()
    tab.log_in()
    desk.expire(tab)
    tab.run(GATE)
    tab.start("return auth.getToken().catch((error) => error.code);")
    tab.run("while (!window.answer) await page.sleep(10);")
    assert tab.run("auth.dispose(); answer(503); await page.sleep(50); return page.timers.size;") == 0
    assert tab.finish() == "disposed"


def test_05_dispose_removes_the_listener_of_the_store(token_desk: Desk) -> None:
    tab = token_desk.tab(LOCAL)
    counts = "return [page.timers.size, page.listeners, page.channels];"
    assert tab.run(counts) == [0, 5, 1]
    assert tab.run(f"auth.dispose(); {counts}") == [0, 0, 0]


@pytest.mark.parametrize("options", ["", LOCAL], ids=["cookie", "local"])
def test_06_closing_the_tab_that_refreshes_logs_nobody_out(
    request: pytest.FixtureRequest, options: str
) -> None:
    desk = _desk(request, options)
    one, two, three = _three(desk, options)
    desk.fault("delay", milliseconds=2000)
    one.start("return auth.getToken();")
    one.run("while (page.count('/auth/refresh') < 1) await page.sleep(10);")
    two.start(BURST)
    three.start(BURST)
    one.close()
    assert [two.finish(), three.finish()] == [[200] * 20] * 2
    assert "status=401" not in "".join(desk.refreshes())
    # What the closed tab left behind at the server has come to its end: the login still goes on.
    desk.expire(two)
    assert two.run(BURST) == [200] * 20


@pytest.mark.parametrize("preludes", [(NO_LOCKS,), (NO_CHANNEL,), (NO_LOCKS, NO_CHANNEL)])
@pytest.mark.parametrize("options", ["", LOCAL], ids=["cookie", "local"])
def test_07_without_locks_or_channel(
    request: pytest.FixtureRequest, options: str, preludes: tuple[str, ...]
) -> None:
    desk = _desk(request, options)
    tabs = _three(desk, options, *preludes)
    for _ in range(2):
        for tab in tabs:
            tab.start(BURST)
        assert [tab.finish() for tab in tabs] == [[200] * 20] * 3
        desk.expire(*tabs)
    assert all("ended" not in tab.events() for tab in tabs)


# --- 8, 9: time ----------------------------------------------------------------------------------


def test_08_the_refresh_is_planned_ahead_with_jitter(desk: Desk) -> None:
    tab = desk.tab()
    waits = []
    for _ in range(5):
        tab.log_in()
        waits += tab.run("return [...page.timers.values()];")
    lead = min(60, 0.2 * LIFE) * 1000
    assert len(waits) == 5
    assert all(LIFE * 1000 - lead - 100 <= wait <= LIFE * 1000 - 0.8 * lead for wait in waits)
    assert max(waits) - min(waits) > 100  # of 2,400 that the jitter may be


def test_08_a_token_near_its_end_is_used_and_renewed_beside(desk: Desk) -> None:
    tab = desk.tab()
    token = tab.log_in()
    desk.mark()
    near = f"""
        page.pass({LIFE * 850});
        const token = await auth.getToken();
        for (let i = 0; i < 1000 && !page.count("/auth/refresh"); i += 1) await page.sleep(10);
        return [token, page.count("/auth/refresh")];
    """
    assert tab.run(near) == [token, 1]
    tab.run("while (!page.events.some((event) => event.type === 'refreshed')) await page.sleep(10);")
    assert tab.run("return auth.getToken();") != token
    assert len(desk.refreshes()) == 1


def test_08_a_stored_token_that_is_over_is_not_given_out(token_desk: Desk) -> None:
    tab = token_desk.tab(LOCAL)
    token = tab.log_in()
    tab.run("auth.dispose();")
    token_desk.expire(tab)
    tab.create(LOCAL)
    assert tab.run("return auth.getToken();") != token
    assert tab.run("return auth.state.accessExpiresIn > 0;")
    assert len(token_desk.refreshes()) == 1


def test_08_a_stored_token_of_long_ago_is_not_taken_for_new(token_desk: Desk) -> None:
    """By a tab that was frozen, and has heard nothing of it."""
    one, two = token_desk.tab(LOCAL), token_desk.tab(LOCAL, NO_CHANNEL, NO_STORAGE_EVENT)
    one.log_in()
    assert two.run("return auth.resume();")
    token_desk.expire(one)
    one.run("await auth.getToken(); auth.dispose();")
    token_desk.expire()
    two.run(f"page.pass({2 * (LIFE + 1) * 1000}); page.calls.length = 0; await auth.fetch('/auth/me');")
    calls = two.run("return page.calls.map((call) => [call.path, call.status]);")
    assert calls == [["/auth/refresh", 200], ["/auth/me", 200]]


def test_08_nobody_has_to_call(desk: Desk) -> None:
    tab = desk.tab()
    tab.log_in()
    desk.mark()
    tab.run(f"page.pass({LIFE * 850}); dispatchEvent(new Event('focus'));")
    tab.run("while (!page.events.some((event) => event.type === 'refreshed')) await page.sleep(10);")
    assert len(desk.refreshes()) == 1


def test_08_waking_refreshes_before_the_first_request(desk: Desk) -> None:
    tab = desk.tab()
    tab.log_in()
    desk.post("/dev/clock", {"seconds": 7200})
    # Asleep: the monotonic clock of this platform stood still, and no timer came.
    tab.run("page.wall += 7_200_000; page.calls.length = 0;")
    assert tab.run("return (await auth.fetch('/auth/me')).status;") == 200
    paths = tab.run("return page.calls.map((call) => [call.path, call.status]);")
    assert paths == [["/auth/refresh", 200], ["/auth/me", 200]]


def test_09_the_life_is_counted_on_the_monotonic_clock(desk: Desk) -> None:
    tab = desk.tab()
    tab.log_in()
    desk.post("/dev/clock", {"seconds": LIFE + 1})
    script = f"""
        page.calls.length = 0;
        page.wall -= 3_600_000; // somebody sets it back
        page.steady += {(LIFE + 1) * 1000};
        await auth.fetch("/auth/me");
        return page.calls.map((call) => [call.path, call.status]);
    """
    assert tab.run(script) == [["/auth/refresh", 200], ["/auth/me", 200]]


@pytest.mark.parametrize("skew", [-3_600_000, 3_600_000])
@pytest.mark.parametrize("options", ["", LOCAL], ids=["cookie", "local"])
def test_09_a_skewed_clock_causes_no_loop(request: pytest.FixtureRequest, options: str, skew: int) -> None:
    desk = _desk(request, options)
    tab = desk.tab(options, f"page.wall = {skew};")
    tab.log_in()
    desk.mark()
    for _ in range(3):
        assert tab.run(BURST) == [200] * 20
    assert desk.refreshes() == []
    tab.run(f"page.wall = {-skew};")  # somebody sets the clock, by two hours
    for _ in range(3):
        assert tab.run(BURST) == [200] * 20
    assert len(desk.refreshes()) <= 1


def test_09_tabs_that_disagree_on_the_time_do_not_refresh_in_turn(token_desk: Desk) -> None:
    early, late = (token_desk.tab(LOCAL, f"page.wall = {skew};") for skew in (-3_600_000, 3_600_000))
    early.log_in()
    late.run("await auth.resume(); await page.sleep(200);")
    token_desk.mark()
    for _ in range(3):
        assert [tab.run(BURST) for tab in (early, late)] == [[200] * 20] * 2
    assert len(token_desk.refreshes()) <= 1


# --- 10, 11, 12, 13: what an answer means --------------------------------------------------------


def _with_api(desk: Desk, api: Api, options: str = 'mode: "token"') -> Tab:
    tab = desk.tab(f"{options}, allowedOrigins: ['{api.url}']")
    tab.log_in()
    desk.mark()
    return tab


def _call(tab: Tab, url: str, init: str = "{}") -> Any:
    return tab.run(
        f"const got = await auth.fetch(given, {init}); return [got.status, await got.text()];", url
    )


def test_10_a_401_causes_one_refresh_and_one_retry(token_desk: Desk, api: Api) -> None:
    tab = _with_api(token_desk, api)
    api.refused.add(tab.run("return auth.getToken();"))
    assert _call(tab, f"{api.url}/ok") == [200, ""]
    assert len(api.tokens("/ok")) == 2
    assert len(token_desk.refreshes()) == 1


def test_10_a_second_401_surfaces(token_desk: Desk, api: Api) -> None:
    tab = _with_api(token_desk, api)
    assert _call(tab, f"{api.url}/401") == [401, ""]
    assert len(set(api.tokens("/401"))) == 2
    assert len(token_desk.refreshes()) == 1


def test_10_a_403_never_refreshes(token_desk: Desk, api: Api) -> None:
    tab = _with_api(token_desk, api)
    assert _call(tab, f"{api.url}/403") == [403, ""]
    assert token_desk.refreshes() == []


@pytest.mark.parametrize("path", ["/auth/refresh", "/auth/login", "/auth/logout"])
def test_10_its_own_calls_are_not_intercepted(token_desk: Desk, path: str) -> None:
    tab = token_desk.tab('mode: "token"')
    tab.log_in()
    token_desk.mark()
    init = "{ method: 'POST', headers: { 'Content-Type': 'application/json' }, body: given }"
    body = as_json({"refresh_token": "x"} if path != "/auth/login" else {"username": "x", "password": "y"})
    assert tab.run(f"return (await auth.fetch('{path}', {init})).status;", body) == 401
    assert tab.run("return page.calls.at(-1).bearer;") is False
    assert tab.run("return auth.state.status;") == "in"
    assert len(token_desk.refreshes()) == (path == "/auth/refresh")


def test_11_a_401_for_an_older_token_is_retried_without_a_refresh(token_desk: Desk, api: Api) -> None:
    tab = _with_api(token_desk, api)
    old = tab.run("return auth.getToken();")
    tab.start(f"return (await auth.fetch('{api.url}/gate')).status;")
    tab.run("while (page.count('/gate') < 1) await page.sleep(10);")
    tab.run(f"page.pass({LIFE * 1000}); await auth.getToken();")
    api.refused.add(old)
    api.gate.set()
    assert tab.finish() == 200
    assert api.tokens("/gate")[0] == old
    assert len(api.tokens("/gate")) == 2
    assert len(token_desk.refreshes()) == 1


@pytest.mark.parametrize(
    "instead",
    [
        pytest.param((429, {"Retry-After": "1"}, b"{}"), id="429"),
        pytest.param((502, {"Content-Type": "text/html"}, b"<h1>Bad Gateway</h1>"), id="502"),
        pytest.param((403, {}, b'{"code": "request.forbidden"}'), id="403"),
        pytest.param((401, {}, b'{"code": "invalid_token"}'), id="another 401"),
        pytest.param((200, {"Content-Type": "text/html"}, b"<h1>Welcome to our network</h1>"), id="portal"),
        pytest.param((200, {}, b"{}"), id="empty"),
    ],
)
def test_12_no_other_answer_logs_out(
    token_desk: Desk, api: Api, instead: tuple[int, dict[str, str], bytes]
) -> None:
    tab = token_desk.tab(url=f"{token_desk.url}/healthz")
    tab.server = api.url  # which passes on what is under /auth, or does not
    tab.run("auth.dispose();")
    # The module comes from the server itself, so only the address of /auth is another one.
    tab.run(
        "window.auth = window.module.createAuth({ baseUrl: given, mode: 'token', patience: 0 });", api.url
    )
    tab.log_in()
    tab.run(f"page.pass({(LIFE + 1) * 1000});")
    api.instead = instead
    codes = "const fail = (error) => error.code;"
    for _ in range(5):
        assert tab.run(f"{codes} return auth.getToken().catch(fail);") == "unavailable"
    assert tab.run("return page.count('/auth/refresh');") == 1
    assert tab.run("return auth.state.status;") == "in"
    api.instead = None
    tab.run("page.pass(40_000);")  # longer than any cool-down
    assert tab.run("return typeof await auth.getToken();") == "string"


def test_12_retry_after_is_honoured_and_calls_wait(desk: Desk) -> None:
    tab = desk.tab()
    tab.log_in()
    desk.expire(tab)
    desk.fault("unavailable", count=2)
    tab.run("page.calls.length = 0; window.at = []; auth.subscribe(() => window.at.push(performance.now()));")
    assert tab.run(BURST) == [200] * 20
    assert tab.run("return page.count('/auth/refresh');") == 3
    # Unavailable twice, for 1 s each as the server said, then refreshed.
    first, second, third = tab.run("return window.at;")
    assert min(second - first, third - second) >= 1000
    assert tab.events() == ["login", "unavailable", "unavailable", "refreshed"]


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        pytest.param({"Retry-After": "31536000"}, 3_600_000, 4_320_000, id="a year"),
        pytest.param(
            {"Retry-After": "Wed, 21 Oct 2026 07:28:30 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"},
            *(30_000, 36_000),
            id="a date of the server's clock",
        ),
    ],
)
def test_12_no_clock_and_no_mistake_makes_a_cool_down_endless(
    desk: Desk, headers: dict[str, str], least: int, most: int
) -> None:
    tab = desk.tab("patience: 0")
    tab.log_in()
    desk.expire(tab)
    tab.run(GATE)
    tab.start("return auth.getToken().catch((error) => error.cause && page.events.at(-1).retryAfter);")
    tab.run(f"while (!window.answer) await page.sleep(10); answer(503, {as_json(headers)});")
    assert least <= tab.finish() <= most


def test_12_an_answer_without_a_life_is_none(desk: Desk) -> None:
    tab = desk.tab("patience: 0")
    token = tab.log_in()
    desk.expire(tab)
    answer = as_json(as_json({"access_token": token, "user": {"id": "usr_1"}}))
    tab.run(
        "page.instead = (input) => String(input.url ?? input).endsWith('/auth/refresh')"
        f" ? Promise.resolve(new Response({answer})) : null;"
    )
    assert tab.run("return auth.getToken().catch((error) => error.code);") == "unavailable"
    assert tab.run("await page.sleep(300); return page.count('/auth/refresh');") == 1


def test_12_a_cool_down_is_that_of_every_tab(desk: Desk) -> None:
    tabs = _three(desk, "patience: 0")
    desk.fault("unavailable", count=100)
    fail = "return auth.getToken().catch((error) => error.code);"
    for tab in tabs:
        tab.start(fail)
    assert [tab.finish() for tab in tabs] == ["unavailable"] * 3
    assert sum(tab.run("return page.count('/auth/refresh');") for tab in tabs) == 1
    assert [tab.run("return auth.state.status;") for tab in tabs] == ["in"] * 3


def test_12_who_waits_takes_what_another_tab_has_got(desk: Desk) -> None:
    one, two = desk.tab("patience: 600_000"), desk.tab()
    one.log_in()
    desk.expire(one)
    one.run(GATE)
    one.start("return auth.getToken();")
    one.run("while (!window.answer) await page.sleep(10); answer(503, { 'Retry-After': '300' });")
    one.run("while (!page.events.some((event) => event.type === 'unavailable')) await page.sleep(10);")
    assert two.log_in() == one.finish()


@pytest.mark.parametrize("options", ["", LOCAL], ids=["cookie", "local"])
def test_13_invalid_grant_ends_the_login_once(request: pytest.FixtureRequest, options: str) -> None:
    desk = _desk(request, options)
    tabs = _three(desk, options)
    login = tabs[0].run("return auth.state.login;")
    tabs[0].run("await auth.getToken();")
    desk.tokenctl("revoke", login, "--yes", "--reason", "a test")
    desk.expire(*tabs)
    for tab in tabs:
        tab.start("return auth.getToken().catch((error) => error.code);")
    assert [tab.finish() for tab in tabs] == ["logged_out"] * 3
    ended = [tab.run("return page.events.filter((event) => event.type === 'ended');") for tab in tabs]
    assert [len(each) for each in ended] == [1, 1, 1]
    assert sorted(each[0]["here"] for each in ended) == [False, False, True]
    assert len(desk.refreshes()) == 1
    assert [tab.run("return auth.resume();") for tab in tabs] == [False] * 3
    assert len(desk.refreshes()) == 1


# --- 14: logging out -----------------------------------------------------------------------------


@pytest.mark.parametrize("preludes", [(), (NO_LOCKS,)], ids=["locks", "no locks"])
@pytest.mark.parametrize("options", ["", LOCAL, 'mode: "token"'], ids=["cookie", "local", "memory"])
def test_14_a_logout_during_a_refresh_wins(
    request: pytest.FixtureRequest, options: str, preludes: tuple[str, ...]
) -> None:
    desk = _desk(request, options)
    tab = desk.tab(options, *preludes)
    tab.log_in()
    login = tab.run("return auth.state.login;")
    desk.expire(tab)
    desk.fault("delay", milliseconds=1000)
    tab.start("return auth.getToken().catch((error) => error.code);")
    tab.run("while (page.count('/auth/refresh') < 1) await page.sleep(10);")
    tab.run("await auth.logout();")
    assert tab.run("return auth.state.status;") == "out"
    assert tab.finish() == "logged_out"
    assert tab.run("return [auth.state.status, localStorage.length];") == ["out", 0]
    assert tab.events() == ["login", "ended"]
    assert "state         revoked" in desk.tokenctl("inspect", login)
    assert desk.chromium.driver.get_cookies() == []


def test_14_what_a_refresh_brings_after_a_logout_is_revoked(token_desk: Desk) -> None:
    tab = token_desk.tab('mode: "token"')
    tab.log_in()
    login = tab.run("return auth.state.login;")
    token_desk.expire(tab)
    token_desk.fault("delay", milliseconds=2000)
    tab.start("return auth.getToken().catch((error) => error.code);")
    tab.run("while (page.count('/auth/refresh') < 1) await page.sleep(10); await page.sleep(200);")
    token_desk.post("/dev/faults", {"kind": "unavailable", "path": "/auth/logout"})
    assert tab.run("return auth.logout().catch((error) => error.status);") == 503  # the server has not heard
    assert tab.finish() == "logged_out"
    assert tab.run("return page.calls.slice(-1)[0].path;") == "/auth/logout"
    assert "state         revoked" in token_desk.tokenctl("inspect", login)


def test_14_a_logout_ends_the_login_in_every_tab(desk: Desk) -> None:
    one, two, _ = _three(desk, "")
    one.run("await auth.logout();")
    two.run("while (auth.state.status === 'in') await page.sleep(10);")
    assert two.run("return page.events.at(-1);") == {"type": "ended", "reason": "logout", "here": False}


def test_14_a_page_that_does_nothing_but_log_out_ends_it_in_every_tab(desk: Desk) -> None:
    one = desk.tab()
    one.log_in()
    two = desk.tab()
    two.run("await auth.logout();")
    one.run("for (let i = 0; i < 500 && auth.state.status === 'in'; i += 1) await page.sleep(10);")
    assert one.run("return page.events.at(-1);") == {"type": "ended", "reason": "logout", "here": False}


@pytest.mark.parametrize("preludes", [(), (NO_LOCKS,)], ids=["locks", "no locks"])
def test_14_a_logout_wins_over_a_page_that_looks(desk: Desk, preludes: tuple[str, ...]) -> None:
    tab = desk.tab("", *preludes)
    tab.log_in()
    login = tab.run("const { login } = auth.state; auth.dispose(); return login;")
    tab.create()
    desk.fault("delay", milliseconds=1000)
    tab.start("return auth.resume();")
    tab.run("while (page.count('/auth/refresh') < 1) await page.sleep(10);")
    tab.run("await auth.logout();")
    assert tab.finish() is False
    assert tab.run("return auth.state.status;") == "out"
    assert "state         revoked" in desk.tokenctl("inspect", login)
    assert desk.chromium.driver.get_cookies() == []


def test_14_a_login_that_is_over_ends_no_others_and_says_so(token_desk: Desk) -> None:
    tab = token_desk.tab('mode: "token"')
    tab.log_in()
    token_desk.tokenctl("revoke", tab.run("return auth.state.login;"), "--yes", "--reason", "a test")
    code = "catch((error) => error.code);"
    assert tab.run(f"return auth.logout({{ all: true }}).{code}") == "invalid_grant"
    assert tab.run("return auth.state.status;") == "out"
    assert tab.run(f"return auth.logout().{code}") is None


def test_14_a_refresh_that_fails_after_a_logout_is_no_news(desk: Desk) -> None:
    tab = desk.tab()
    tab.log_in()
    desk.expire(tab)
    tab.run(GATE)
    tab.start("return auth.getToken().catch((error) => error.code);")
    tab.run("while (!window.answer) await page.sleep(10);")
    tab.run("const out = auth.logout(); answer(503); await out;")
    assert tab.finish() == "logged_out"
    assert tab.events() == ["login", "ended"]


@pytest.mark.parametrize("options", ["", LOCAL], ids=["cookie", "local"])
def test_14_a_logout_wins_over_a_login_that_goes_on(request: pytest.FixtureRequest, options: str) -> None:
    desk = _desk(request, options)
    tab = desk.tab(options)
    desk.post("/dev/faults", {"kind": "delay", "milliseconds": 1000, "path": "/auth/login"})
    user = as_json([DEMO_USER, DEMO_PASSWORD])
    tab.start(f"return auth.login(...{user}).catch((error) => error.code);")
    tab.run("while (page.count('/auth/login') < 1) await page.sleep(10);")
    tab.run("await auth.logout();")
    assert tab.finish() == "logged_out"
    assert tab.run("return [auth.state.status, localStorage.length];") == ["out", 0]
    assert desk.chromium.driver.get_cookies() == []


@pytest.mark.parametrize("options", ["", LOCAL], ids=["cookie", "local"])
def test_14_logins_of_two_tabs_at_once_leave_one(request: pytest.FixtureRequest, options: str) -> None:
    desk = _desk(request, options)
    one, two = desk.tab(options, NO_LOCKS), desk.tab(options, NO_LOCKS)
    desk.post("/dev/faults", {"kind": "delay", "milliseconds": 1000, "path": "/auth/login"})
    one.start(f"return auth.login(...{as_json([DEMO_USER, DEMO_PASSWORD])});")
    one.run("while (page.count('/auth/login') < 1) await page.sleep(10);")
    two.log_in()
    one.run("while (!page.events.some((event) => event.type === 'adopted')) await page.sleep(10);")
    login = one.finish()["login"]
    two.run("while (auth.state.login !== given) await page.sleep(10);", login)
    desk.expire(one, two)
    assert [tab.run(BURST) for tab in (one, two)] == [[200] * 20] * 2


# --- 15, 16: what is sent where ------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        "auth.fetch(given, { method: 'POST', body: 'otters' })",
        "auth.fetch(given, { method: 'POST', body: new Blob(['otters']) })",
        "auth.fetch(new URL(given), { method: 'POST', body: new TextEncoder().encode('otters') })",
        "auth.fetch(new Request(given, { method: 'POST', body: 'otters' }))",
    ],
)
def test_15_a_body_is_sent_again_as_it_was(token_desk: Desk, api: Api, call: str) -> None:
    tab = _with_api(token_desk, api)
    api.refused.add(tab.run("return auth.getToken();"))
    assert tab.run(f"return (await {call}).text();", f"{api.url}/ok") == "otters"
    assert [body for _, path, bearer, body in api.asked if path == "/ok" and bearer] == [b"otters"] * 2


def test_15_a_request_can_have_an_empty_body(token_desk: Desk, api: Api) -> None:
    tab = _with_api(token_desk, api)
    api.refused.add(tab.run("return auth.getToken();"))
    call = "return (await auth.fetch(new Request(given, { method: 'POST', body: '' }))).status;"
    assert tab.run(call, f"{api.url}/ok") == 200


def test_15_a_stream_is_sent_once_and_the_error_says_so(token_desk: Desk, api: Api) -> None:
    tab = _with_api(token_desk, api)
    # Chromium sends a stream over HTTP/2 only; of the network, this alone is not real here.
    tab.run(
        "page.instead = (input) => input.method === 'POST'"
        " ? input.body.cancel().then(() => new Response('', { status: 401 })) : null;"
    )
    old = tab.run("return auth.getToken();")
    error = tab.run(
        "const body = new Blob(['otters']).stream();"
        "return auth.fetch(given, { method: 'POST', body, duplex: 'half' })"
        ".catch((error) => [error.code, error.status]);",
        f"{api.url}/ok",
    )
    assert error == ["body.streamed", 401]
    assert tab.run("return page.count('/ok');") == 1
    tab.run("while (!page.events.some((event) => event.type === 'refreshed')) await page.sleep(10);")
    assert tab.run("return auth.getToken();") != old


def test_16_only_allowed_origins_get_a_token(token_desk: Desk, api: Api) -> None:
    tab = _with_api(token_desk, api)
    assert _call(tab, f"{api.elsewhere}/ok") == [401, ""]
    assert _call(tab, f"{api.url}/ok") == [200, ""]
    bearers = [(host, bearer is not None) for host, path, bearer, _ in api.asked if path == "/ok"]
    assert bearers == [(f"localhost:{api.port}", False), (f"127.0.0.1:{api.port}", True)]
    assert token_desk.refreshes() == []


def test_16_what_is_called_like_a_path_of_ours_is_not_it(token_desk: Desk) -> None:
    tab = token_desk.tab('mode: "token"')
    tab.log_in()
    assert tab.run("return (await auth.fetch('/auth/login-history')).status;") == 404
    assert tab.run("return page.calls.at(-1).bearer;")
    tab.run("await auth.fetch('/auth/login?again', { method: 'POST' });")
    assert not tab.run("return page.calls.at(-1).bearer;")


def test_16_the_origin_is_that_of_the_call(token_desk: Desk, api: Api) -> None:
    tab = _with_api(token_desk, api)
    base = "const base = document.createElement('base'); base.href = given; document.head.append(base);"
    assert tab.run(f"{base} return (await auth.fetch('ok')).status;", f"{api.elsewhere}/") == 401
    assert api.tokens("/ok") == [None]


def test_16_a_referrer_that_is_withheld_stays_so(token_desk: Desk, api: Api) -> None:
    tab = _with_api(token_desk, api)
    tab.run("page.instead = (input, init) => { window.sent = new Request(input, init); return null; };")
    _call(tab, f"{api.url}/ok", "{ referrer: '', referrerPolicy: 'origin' }")
    assert tab.run("return [window.sent.referrer, window.sent.referrerPolicy];") == ["", "origin"]


def test_16_a_redirect_to_another_origin_loses_the_token(token_desk: Desk, api: Api) -> None:
    tab = _with_api(token_desk, api)
    assert _call(tab, f"{api.url}/redirect?to={api.elsewhere}/ok") == [401, ""]
    assert api.tokens("/ok") == [None]
    assert token_desk.refreshes() == []


def test_16_a_redirect_within_the_allowed_origins_keeps_it(token_desk: Desk, api: Api) -> None:
    tab = _with_api(token_desk, api)
    assert _call(tab, f"{api.url}/redirect?to=/ok") == [200, ""]
    assert api.tokens("/ok")[-1] is not None


def test_16_a_redirected_post_is_a_clear_error(token_desk: Desk, api: Api) -> None:
    tab = _with_api(token_desk, api)
    code = tab.run(
        "return auth.fetch(given, { method: 'POST', body: 'x' }).catch((error) => error.code);",
        f"{api.url}/redirect?to={api.elsewhere}/ok",
    )
    assert code == "redirect.refused"
    assert api.tokens("/ok") == []


# --- 17, 20 --------------------------------------------------------------------------------------


def test_17_no_token_is_logged_or_kept_where_a_script_can_read_it(desk: Desk) -> None:
    tab = desk.tab()
    token = tab.log_in()
    desk.expire(tab)
    desk.fault("unavailable")
    fresh = tab.run(
        "console.log(auth, JSON.stringify(auth), JSON.stringify(auth.state)); return auth.getToken();"
    )
    told = tab.run("return JSON.stringify([page.said, page.events, auth, auth.state, String(auth)]);")
    kept = tab.run("return JSON.stringify([{ ...localStorage }, { ...sessionStorage }, document.cookie]);")
    assert kept == '[{},{},""]'
    for secret in (token, fresh):
        for part in secret.split("."):
            assert part not in told
    assert "tkr1_" not in told
    [cookie] = desk.chromium.driver.get_cookies()
    assert cookie["httpOnly"] is True


def test_17_errors_have_no_token(token_desk: Desk) -> None:
    tab = token_desk.tab('mode: "token", patience: 0')
    token = tab.log_in()
    token_desk.expire(tab)
    token_desk.fault("unavailable", count=3)
    told = tab.run(
        "const error = await auth.getToken().catch((error) => error);"
        "return [error.code, error.message, error.stack, JSON.stringify([error, error.cause, page.events])];"
    )
    assert told[0] == "unavailable"
    assert "tkr1_" not in "".join(told)
    assert not any(part in "".join(told) for part in token.split("."))


def test_17_local_storage_only_when_asked_for(token_desk: Desk) -> None:
    tab = token_desk.tab('mode: "token"')
    tab.log_in()
    assert tab.run("return localStorage.length;") == 0
    other = token_desk.tab(LOCAL)
    other.log_in()
    assert other.run("return localStorage.length;") == 1


def test_17_a_store_that_is_damaged_is_not_quoted(token_desk: Desk) -> None:
    tab = token_desk.tab(LOCAL)
    tab.run("localStorage.setItem(`tokenctl ${given} default`, 'tkr1_otters');", token_desk.url)
    assert tab.run("return auth.resume().catch((error) => error.message);") is False
    assert tab.events() == ["absent"]


def test_20_one_who_gives_up_does_not_stop_the_others(desk: Desk) -> None:
    tab = desk.tab()
    tab.log_in()
    desk.expire(tab)
    desk.fault("delay", milliseconds=500)
    got = tab.run(
        """
        const impatient = new AbortController();
        const calls = [
          auth.getToken({ signal: impatient.signal }),
          auth.fetch("/auth/me", { signal: impatient.signal }),
          auth.fetch(new Request("/auth/me", { signal: impatient.signal })),
          auth.getToken({ signal: AbortSignal.abort() }),
          auth.fetch("/auth/me"),
        ];
        impatient.abort();
        const done = await Promise.allSettled(calls);
        return done.map((each) => each.reason?.name ?? each.value.status);
        """
    )
    assert got == ["AbortError"] * 4 + [200]
    assert len(desk.refreshes()) == 1
