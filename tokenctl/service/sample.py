"""The sample database: a dozen users, sixty logins in every state, and a night in which something happened.

Made by the service itself, with a scripted clock and scripted entropy, so that it is the same every time.
Its clock stands at `NOW`, so it does not age. Its keys stand here for everybody to read: what they
protect is worth nothing, and they are used for nothing else.

The night: from 01:12 UTC on, somebody in 203.0.113.0/24 used refresh tokens of five users. Three of the
users came back, and presented the strings that they still held: their logins were caught and revoked. The
others sleep, and their stolen logins live.
"""

from __future__ import annotations

import base64
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

from tokenctl.core.context import Context
from tokenctl.core.keys import load_signing_key
from tokenctl.core.passwords import PasswordHasher, PasswordPolicy
from tokenctl.errors import DatabaseExists, TokenRefused
from tokenctl.service.database import build_database
from tokenctl.service.runtime import SAMPLE_MASTER_KEY, micros
from tokenctl.service.tokens import TokenService
from tokenctl.settings import Settings
from tokenctl.storage.files import file_errors

#: Where the sample's clock stands (µs): 2026-03-14 03:10 UTC.
NOW = 1_773_457_800_000_000
#: The password of every user that has one.
PASSWORD = "correct horse battery staple"  # noqa: S105 - the sample keeps no secrets

_SIGNING_KEY = (
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQginOTdxXAynBucDL0JSGRR+zMkz3fJqm8yb24Ul5zvNShRANC"
    "AAR5Qie1e6Hzf3pH9LHLAHkn9WXe20g7l9qYu/vBno8Ms9aXpIjSDeJpMfHCGBS9AjpbKz8jmHK3CPoF6MKPMSIC"
)
_OLD_BCRYPT = "$2b$05$Zk3VaqVnH9NMc.05c15bI.G7RntYfMWdDpYgN.rtwJtZfr9XLhN7O"
_OLD_DJANGO = "pbkdf2_sha256$2000$NgaR650CZkVn$c3gsoJutSKuFDWlfewrK17Ykr5w7CUzrpUMdbauk7Js="

_OPERATOR = "nina"
_VICTIMS = frozenset({"ada", "bob", "carol", "erin", "grace"})
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)


@dataclass(frozen=True)
class _Place:
    """Where somebody logs in from."""

    ip: str
    user_agent: str
    device: str

    def context(self) -> Context:
        return Context.of(ip=self.ip, user_agent=self.user_agent, device=self.device)


_FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:148.0) Gecko/20100101 Firefox/148.0"
_SAFARI = "Mozilla/5.0 (iPhone; CPU iPhone OS 19_3 like Mac OS X) AppleWebKit/605.1.15 Safari/605.1"
_CHROME = "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 Chrome/146.0.0.0 Safari/537.36"
_APP = "AcmeMobile/4.2 (Android 16; Pixel 10)"
_CRON = "acme-batch/1.9"
_THIEF = "python-requests/2.32.5"


@dataclass(frozen=True)
class _Login:
    """A login, used `every` so often from `issued` until `idle_since` (both: time before NOW)."""

    name: str
    user: str
    place: _Place
    issued: timedelta
    idle_since: timedelta
    every: timedelta = _DAY
    client: str = "web"
    scope: str = "profile"


def _home(user: str, agent: str, host: int) -> _Place:
    net = "198.51.100" if host % 2 else "192.0.2"
    return _Place(f"{net}.{host}", agent, f"{user}-{host}")


_EVERYBODY = (
    "ada", "bob", "carol", "dave", "erin", "frank",
    "grace", "heidi", "ivan", "judy", "olga", "pat@example.com",
)  # fmt: skip


@dataclass(frozen=True)
class _Batch:
    """Logins of the same kind: how many, of whom (in turn), and when they were used (days before NOW)."""

    count: int
    user_agent: str
    client: str
    issued: float
    idle_since: float
    every: float
    first_user: int = 0

    def logins(self, start: int) -> Iterator[_Login]:
        for i in range(start, start + self.count):
            user = _EVERYBODY[(self.first_user + i - start) % len(_EVERYBODY)]
            # A little apart, so that no two look alike.
            shift = timedelta(hours=0.31 * (i % 7))
            yield _Login(
                name=f"{user}/{i}",
                user=user,
                place=_home(user, self.user_agent, 11 + i),
                issued=timedelta(days=self.issued) + shift,
                idle_since=timedelta(days=self.idle_since) + shift,
                every=timedelta(days=self.every),
                client=self.client,
            )


_BATCHES = (
    _Batch(12, _FIREFOX, "web", issued=9, idle_since=0.2, every=1),
    _Batch(9, _SAFARI, "mobile", issued=20, idle_since=0.1, every=2),
    _Batch(8, _CHROME, "web", issued=3, idle_since=0.15, every=0.5, first_user=4),
    _Batch(8, _CHROME, "web", issued=26, idle_since=16, every=3, first_user=5),  # idle
    _Batch(8, _APP, "mobile", issued=33, idle_since=4, every=3, first_user=1),  # expired
    _Batch(5, _CRON, "batch", issued=44, idle_since=26, every=3, first_user=7),  # dead for long
    _Batch(10, _APP, "mobile", issued=12, idle_since=5, every=2, first_user=2),  # to be revoked
)


def _logins() -> list[_Login]:
    """Sixty of them: 29 are used until tonight, the others end in one way or another."""
    made: list[_Login] = []
    for batch in _BATCHES:
        made += batch.logins(len(made))
    return made


@dataclass
class _Story:
    """The service on the new database, and what the bearers hold."""

    service: TokenService
    clock: _Clock
    strings: dict[str, str] = field(default_factory=dict)
    copied: dict[str, str] = field(default_factory=dict)
    ids: dict[str, str] = field(default_factory=dict)
    acts: list[tuple[int, int, Callable[[], object]]] = field(default_factory=list)

    def at(self, before: timedelta, act: Callable[[], object]) -> None:
        """Plan an act for that long before NOW."""
        self.acts.append((NOW - micros(before), len(self.acts), act))

    def play(self) -> None:
        for instant, _, act in sorted(self.acts, key=lambda planned: planned[:2]):
            self.clock.now = instant
            act()
        self.clock.now = NOW

    def log_in(self, login: _Login) -> None:
        pair = self.service.issue(
            login.user,
            client_id=login.client,
            scope=login.scope,
            context=login.place.context(),
            actor=login.user,
        )
        self.ids[login.name] = pair.token_id
        self.strings[login.name] = pair.refresh_token

    def use(self, login: _Login, place: _Place) -> None:
        pair = self.service.rotate(self.strings[login.name], client_id=login.client, context=place.context())
        self.strings[login.name] = pair.refresh_token

    def copy(self, login: _Login) -> None:
        """A thief copies the string that the owner holds."""
        self.copied[login.name] = self.strings[login.name]

    def come_back(self, login: _Login) -> None:
        """The owner presents the string that a thief has used up since: it is refused, as it should be."""
        with suppress(TokenRefused):
            self.service.rotate(
                self.copied[login.name], client_id=login.client, context=login.place.context()
            )

    def revoke(self, login: _Login, reason: str, actor: str) -> None:
        self.service.revoke([self.ids[login.name]], reason=reason, actor=actor)


class _Clock:
    """Stands where it is put."""

    def __init__(self) -> None:
        self.now = NOW - micros(60 * _DAY)

    def __call__(self) -> int:
        return self.now


def build_sample(path: Path) -> dict[str, str]:
    """Make the sample at `path`; returns the current string of each login by its id.

    Raises DatabaseExists when there is something already.
    """
    if path.exists():
        raise DatabaseExists(f"{path} is there already, and stays as it is", hint="name another path")
    clock, entropy = _Clock(), random.Random("tokenctl sample").randbytes  # noqa: S311 - the same every time
    with (
        file_errors(path),
        tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.") as directory,
    ):
        building = Path(directory) / path.name
        build_database(
            str(building),
            SAMPLE_MASTER_KEY,
            load_signing_key(base64.b64decode(_SIGNING_KEY), "ES256"),
            actor=_OPERATOR,
            clock=clock,
            entropy=entropy,
            sample_clock=NOW,
        )
        settings = Settings(database=str(building))
        with TokenService(settings, clock=clock, entropy=entropy, actor=_OPERATOR) as service:
            story = _Story(service, clock)
            _people(story)
            logins = _logins()
            for login in logins:
                _ordinary_life(story, login)
            _ends(story, logins)
            _night(story, logins)
            story.play()
        os.link(building, path)
    return {story.ids[name]: story.strings[name] for name in story.ids}


def _people(story: _Story) -> None:
    """Twelve users; two bring the password hash of an older system, and one has no password."""
    hasher = PasswordHasher(PasswordPolicy(memory_kib=64, iterations=1))
    old: dict[str, str | None] = {"frank": _OLD_BCRYPT, "heidi": _OLD_DJANGO, "pat@example.com": None}
    for i, name in enumerate(_EVERYBODY):
        salt = f"sample salt {i:04}".encode()
        password_hash = old[name] if name in old else hasher.hash(PASSWORD, salt=salt)
        create = partial(story.service.users.create, name, password_hash=password_hash)
        story.at(50 * _DAY - i * _HOUR, create)
    for i, client in enumerate(("web", "mobile", "batch")):
        story.at(51 * _DAY - i * _HOUR, partial(story.service.clients.create, client))


def _ordinary_life(story: _Story, login: _Login) -> None:
    story.at(login.issued, partial(story.log_in, login))
    before = login.issued - login.every
    while before >= login.idle_since:
        story.at(before, partial(story.use, login, login.place))
        before -= login.every


def _ends(story: _Story, logins: list[_Login]) -> None:
    """The last ten logins are revoked, for the reasons that there are in a year."""
    reasons = ("logout", "laptop stolen", "logout", "phone lost", "logout", "left the company", "INC-6")
    for i, login in enumerate(logins[-10:]):
        reason = reasons[i % len(reasons)]
        actor = login.user if reason == "logout" else _OPERATOR
        story.at(4 * _DAY - i * 3 * _HOUR, partial(story.revoke, login, reason, actor))
    disable = partial(story.service.users.disable, "judy", duration=_DAY, reason="called in sick")
    story.at(2 * _HOUR, disable)


def _night(story: _Story, logins: list[_Login]) -> None:
    """One address range uses ten logins of five users; three of the owners come back in time."""
    stolen = [login for login in logins[:29] if login.user in _VICTIMS][:10]
    for i, login in enumerate(stolen):
        thief = _Place(f"203.0.113.{7 + 9 * (i % 4)}", _THIEF, f"vm-{i % 4}")
        first = timedelta(minutes=118 - 4 * i)
        # What the owner holds, and what the thief presents first, are the same string.
        story.at(first + timedelta(seconds=1), partial(story.copy, login))
        story.at(first, partial(story.use, login, thief))
        story.at(first - timedelta(minutes=35), partial(story.use, login, thief))
    for i, login in enumerate(stolen[:3]):
        story.at(timedelta(minutes=21 - 5 * i), partial(story.come_back, login))
