"""`tokenctl serve`: the HTTP endpoint. What it serves is `tokenctl.http`; here is only how it is started."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Column
from tokenctl.errors import InvalidInput

if TYPE_CHECKING:
    from tokenctl.settings import Loaded, Settings

_COLUMNS = [Column(name) for name in ("url", "issuer", "database", "dev")]
_DEV_DATABASE = "tokenctl-dev.db"


@command(
    app,
    "serve",
    example="tokenctl serve --dev --open\ntokenctl serve --issuer https://auth.example --behind-proxy",
    settings=(
        "host", "port", "issuer", "audience", "access_ttl", "grace", "cookies", "cors_origins",
        "registration", "behind_proxy", "trusted_proxies", "tls_cert", "tls_key", "purge_every",
    ),
)  # fmt: skip
def serve(
    run: Run,
    dev: Annotated[
        bool,
        typer.Option(
            "--dev", help="For a developer: database, key and demo user on the spot, short lifetimes."
        ),
    ] = False,
    open_page: Annotated[
        bool,
        typer.Option("--open", help="With --dev: open its page in a browser, logged in as the demo user."),
    ] = False,
) -> None:
    """Serve the HTTP endpoint: log in, refresh, log out, OAuth, API documentation.

    One JSON object a line on stderr for each request. SIGTERM finishes what is in flight. With --dev also a
    page that shows the client at work, a clock to advance and faults on demand; never use that with real
    users.
    """
    if open_page and not dev:
        raise InvalidInput("only --dev has a page to open", hint="tokenctl serve --dev --open")
    run.out.expect(_COLUMNS)
    from tokenctl.http import start
    from tokenctl.http.server import demand_issuer, listen
    from tokenctl.settings import mask_password

    settings = run.settings
    demand_issuer(settings, dev=dev)
    bound, url = listen(settings, dev=dev)
    with bound:
        if dev:
            settings = _for_development(run.loaded, url)

        def ready() -> None:
            name = mask_password(settings.database)
            record = {"url": url, "issuer": settings.issuer, "database": name, "dev": dev}
            run.out.one(record, _COLUMNS, card=_card(record))
            run.out.flush()
            if open_page:
                page = f"{_by_name(url)}/#demo"
                Thread(target=_open, args=(run, page), name="browser", daemon=True).start()

        start.serve(settings, bound, dev=dev, actor=run.actor, ready=ready)


def _open(run: Run, page: str) -> None:
    # A browser in the terminal ends only with its user: it must not be waited for by who serves it.
    import webbrowser

    if not webbrowser.open(page):
        run.out.warn(f"there is no browser here to open; the page is {page}")


def _for_development(loaded: Loaded, url: str) -> Settings:
    """The settings with defaults for a developer; whatever was set stays."""
    easy: dict[str, Any] = {
        "database": _DEV_DATABASE,
        "issuer": _by_name(url),
        "access_ttl": timedelta(seconds=60),
        "password_min_length": 8,
    }
    untouched = {name: value for name, value in easy.items() if loaded.sources[name] == "default"}
    return replace(loaded.settings, **untouched)


def _by_name(url: str) -> str:
    """As developers write it: to a browser localhost and 127.0.0.1 are two sites."""
    return url.replace("127.0.0.1", "localhost")


def _card(record: dict[str, Any]) -> list[tuple[str, str]]:
    card = [
        ("serving", record["url"]),
        *([("page", f"{_by_name(record['url'])}/")] if record["dev"] else []),
        ("documentation", f"{record['url']}/docs"),
        ("database", record["database"]),
    ]
    if record["dev"]:
        from tokenctl.http.dev import DEMO_PASSWORD, DEMO_USER

        card.append(("log in with", f"{DEMO_USER} / {DEMO_PASSWORD}"))
    return card
