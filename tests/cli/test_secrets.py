"""Known secrets are put in at every door, and looked for behind every other one.

Passwords, whole token strings, the 16 bytes inside them, clients' secrets and the master key: none may reach
a stream that was not asked to show it, an audit event, or a byte of the database (ASVS 16.2.5).
"""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli import run_on_terminal
from tests.cli.warm import Warm
from tests.sample import SAMPLE, sample_strings
from tokenctl.core.keys import derive_keys, parse_master_key, unwrap_signing_key
from tokenctl.core.token_string import parse_unverified
from tokenctl.service.runtime import SAMPLE_MASTER_KEY
from tokenctl.service.sample import PASSWORD as SAMPLE_PASSWORD

PASSWORDS = [
    "mauve kettle under nine ladders",
    "ochre Lantern beyond 7 canals",
    "wrong but secret umbrella 55",
]
TOO_SHORT = "Zq7!canary"


def spellings(secret: bytes) -> Iterator[bytes]:
    """How bytes may stand somewhere: raw, as hex, as base64 at each of three offsets."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for offset in range(3):
        # Without the characters that depend on what stands around it.
        inside = base64.b64encode(b"\0" * offset + secret)[(offset * 4 + 2) // 3 :]
        inside = inside.rstrip(b"=")[:-1]
        yield inside
        yield inside.translate(bytes.maketrans(b"+/", b"-_"))


def secret_of(string: str) -> bytes:
    return parse_unverified(string).secret


def client_bytes(secret: str) -> bytes:
    return base64.urlsafe_b64decode(secret.removeprefix("tks1_") + "=")


@dataclass
class Walk:
    """What was run, and what must not show."""

    warm: Warm
    place: Path
    shown: list[tuple[str, str]] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)

    def __call__(
        self,
        *argv: str,
        input: str = "",  # noqa: A002 - the word of subprocess
        new_string: bool = False,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; with `new_string` its stdout is the one place that shows a string."""
        done = self.warm(*argv, input=input, env=env, cwd=self.place)
        name = " ".join(argv[:2])
        self.shown.append((f"stderr of {name}", done.stderr))
        if new_string:
            self.strings.append(
                json.loads(done.stdout)["refresh_token"] if "--json" in argv else done.stdout.strip()
            )
        else:
            self.shown.append((f"stdout of {name}", done.stdout))
        return done


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """Every kind of command once, those that fail too, while the write-ahead log is kept open."""
    place = tmp_path_factory.mktemp("walk")
    with Warm() as warm:
        walk = Walk(warm, place)
        walk("init")
        with closing(sqlite3.connect(place / "tokenctl.db")) as keeper:
            keeper.execute("SELECT count(*) FROM events").fetchone()
            _users(walk)
            _tokens(walk)
            _clients(walk)
            _keys(walk)
            # Now, as the last one to close it empties it.
            (place / "wal").write_bytes((place / "tokenctl.db-wal").read_bytes())
            yield walk


def _users(walk: Walk) -> None:
    file = walk.place / "password.txt"
    file.write_text(PASSWORDS[1] + "\n")
    assert walk("create-user", "ada", "--password-stdin", input=PASSWORDS[0]).returncode == 0
    assert walk("create-user", "bob", "--password-file", "password.txt", "--json").returncode == 0
    assert walk("create-user", "ada", "--password-stdin", "--debug", input=PASSWORDS[2]).returncode == 1
    assert walk("create-user", "eve", "--password-stdin", "--debug", input=TOO_SHORT).returncode == 2
    assert walk("create-user", "eve", PASSWORDS[2], "--debug").returncode == 2
    assert walk("user", "passwd", "nobody", "--password-stdin", "--debug", input=PASSWORDS[2]).returncode == 4
    assert walk("user", "passwd", "ada", "--password-stdin", "--yes", input=PASSWORDS[1]).returncode == 0
    for argv in (["list"], ["show", "ada"], ["disable", "bob", "--for", "1h"], ["enable", "bob"]):
        assert walk("user", *argv, "--json").returncode == 0
    file.unlink()


def _tokens(walk: Walk) -> None:
    walk("issue", "--user", "ada", new_string=True)
    walk("issue", "--user", "bob", "--json", "--debug", new_string=True)
    walk("issue", "--user", "bob", "-q", new_string=True)
    first, second, third = walk.strings
    walk("rotate", "-", input=first, new_string=True)
    walk("rotate", "-", "--debug", input=first, new_string=True)
    token = parse_unverified(second).token_id
    walk("rotate", token, new_string=True)
    assert walk("rotate", "-", "--debug", input=second).returncode == 4  # superseded
    assert walk("rotate", "-", "--client", "web", "--json", input=third).returncode == 4
    assert walk("rotate", "-", "--scope", "more", "--debug", input=third).returncode == 2
    assert walk("rotate", "-", "--debug", input=third[:-1]).returncode == 4
    for target in (third, third[:-3] + "AAA", f"{third}{third}"):
        walk("inspect", "-", "--json", input=target)
        walk("inspect", "-", "--debug", input=target)
        walk("inspect", target, "--debug")
        walk("rotate", target, "--debug")
        walk("list", "--user", target, "--debug")
        walk("revoke", target, "--dry-run")
    walk("rotate", "-", "-q", input=third, new_string=True)
    fourth = walk.strings[-1]
    walk("rotate", "-", "-q", input=fourth, new_string=True)
    assert walk("rotate", "-", "--debug", input=third).returncode == 4  # reuse
    assert walk("revoke", "-", "--yes", "--debug", input="\n".join(walk.strings)).returncode in {0, 3}
    assert walk("revoke", first, "--yes", "--json").returncode == 0
    for argv in (["list", "--all"], ["list", "--all", "--json"], ["audit", "tail", "-n", "100"], ["purge"]):
        assert walk(*argv).returncode == 0
    assert walk("inspect", parse_unverified(third).token_id, "--json").returncode == 0


def _clients(walk: Walk) -> None:
    """Their secrets come out at one door each, which is not looked at."""
    plain = walk.warm("client", "create", "api", "--introspect", cwd=walk.place)
    data = walk.warm("client", "create", "api2", "--introspect", "--json", "--debug", cwd=walk.place)
    walk.shown += [("stderr of client create", done.stderr) for done in (plain, data)]
    walk.clients += [plain.stdout.strip(), json.loads(data.stdout)["secret"]]
    for argv in (["client", "list"], ["client", "list", "--json"], ["audit", "tail", "-o", "jsonl"]):
        assert walk(*argv).returncode == 0
    for secret in walk.clients:
        assert walk("client", "create", secret, "--debug").returncode == 2
        assert walk("client", "create", "api3", secret, "--debug").returncode == 2
        walk("create-user", secret, "--no-password", "--debug")
        walk("issue", "--user", "ada", "--client", secret, "--debug")
        walk("issue", "--user", "ada", "--scope", secret, "--debug")
        walk("inspect", secret, "--debug")
        walk("revoke", "-", "--yes", "--reason", secret, "--debug", input=walk.strings[0])
    assert walk("issue", "--user", "ada", "--client", "api", "--debug").returncode == 2


def _keys(walk: Walk) -> None:
    key = master_text(walk)
    for value in (key, key[:-1], key[:-2] + "zz"):
        walk("issue", "--user", "nobody", "--debug", TOKENCTL_MASTER_KEY=value)
        walk("doctor", TOKENCTL_MASTER_KEY=value)
        walk("config", TOKENCTL_MASTER_KEY=value)
        walk("config", value, "--debug")
        walk("doctor", "--key-file", value)
    (walk.place / "cut.key").write_text(key[:-1])
    walk("issue", "--user", "ada", "--key-file", "cut.key", "--debug")
    (walk.place / "cut.key").unlink()
    (walk.place / "tokenctl.toml").write_text(f'master_key = "{key}"\n')
    assert walk("config", "--debug").returncode == 2
    (walk.place / "tokenctl.toml").unlink()
    url = f"postgresql://tokenctl:{PASSWORDS[2]}@localhost/x"
    assert walk("list", "--all", "--database", url, "--debug").returncode == 2
    assert walk("config", "--database", url).returncode == 0
    assert walk("keys", "rotate", "--json", "--debug").returncode == 0
    assert walk("keys", "rotate", "--at-once", "--yes", "--debug").returncode == 0
    for argv in (["keys", "list", "--json"], ["doctor"], ["db", "check"], ["db", "upgrade"], ["init"]):
        walk(*argv)


def master_text(walk: Walk) -> str:
    return (walk.place / "tokenctl.db.key").read_text().strip()


@pytest.fixture(scope="module")
def canaries(walk: Walk) -> list[tuple[str, bytes]]:
    """What is looked for, and how it is called."""
    found = [(f"password {text[:5]}…", text.encode()) for text in [*PASSWORDS, TOO_SHORT]]
    # All but its last characters: some of the cases give a key that lacks them.
    found.append(("the master key's text", master_text(walk)[5:-3].encode()))
    found += [("the master key", spelt) for spelt in spellings(parse_master_key(master_text(walk)))]
    for secret in walk.clients:
        found += [("a client's secret", secret[5:-3].encode())]
        found += [("a client's secret", spelt) for spelt in spellings(client_bytes(secret))]
    for string in dict.fromkeys(walk.strings):
        found.append(("a string's end, with its MAC", string[-30:-4].encode()))
        found += [("a string's secret", spelt) for spelt in spellings(secret_of(string))]
    return found


def found_in(data: bytes, canaries: list[tuple[str, bytes]]) -> set[str]:
    return {name for name, secret in canaries if secret in data}


def test_the_walk_has_its_canaries(walk: Walk, canaries: list[tuple[str, bytes]]) -> None:
    """The search finds what is there: else it would prove nothing."""
    assert len(set(walk.strings)) == 7  # a retry gives the same once more
    assert found_in(walk.strings[0].encode(), canaries) == {
        "a string's secret",
        "a string's end, with its MAC",
    }
    assert found_in(master_text(walk).encode(), canaries) == {"the master key's text", "the master key"}
    assert len(set(walk.clients)) == 2
    for secret in walk.clients:
        assert found_in(secret.encode(), canaries) == {"a client's secret"}
    for spelt in spellings(b"sixteen bytes!!!"):
        assert len(spelt) >= 16
    wrapped = base64.b64encode(b"xy" + b"sixteen bytes!!!" + b"z")
    assert any(spelt in wrapped for spelt in spellings(b"sixteen bytes!!!"))


def test_no_secret_is_shown(walk: Walk, canaries: list[tuple[str, bytes]]) -> None:
    assert {where: found for where, text in walk.shown if (found := found_in(text.encode(), canaries))} == {}
    assert not [
        where
        for where, text in walk.shown
        if "tkr1_" in text.replace("tkr1_…", "").replace("be tkr1_ and", "")
        or "tks1_" in text.replace("tks1_…", "")
    ]


def test_no_secret_is_stored(walk: Walk, canaries: list[tuple[str, bytes]]) -> None:
    files = [path for path in walk.place.iterdir() if path.suffix != ".key"]
    assert {"tokenctl.db", "wal"} <= {path.name for path in files}
    assert (walk.place / "wal").stat().st_size > 4096
    assert {path.name: found for path in files if (found := found_in(path.read_bytes(), canaries))} == {}


def test_no_secret_is_in_an_event(walk: Walk, canaries: list[tuple[str, bytes]]) -> None:
    with closing(sqlite3.connect(walk.place / "tokenctl.db")) as connection:
        rows = connection.execute("SELECT type, quote(actor), quote(reason), data FROM events").fetchall()
    assert {
        "client.create",
        "key.rotate",
        "token.issue",
        "token.reuse",
        "token.refuse",
        "token.revoke",
        "user.password",
    } <= {row[0] for row in rows}
    assert found_in(repr(rows).encode(), canaries) == set()


def test_a_password_that_is_typed_is_not_echoed(tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path / "tokenctl.db")
    code, shown = run_on_terminal("create-user", "zoe", typed=f"{PASSWORDS[0]}\n" * 2, cwd=tmp_path)
    assert code == 0, shown
    assert "mauve" not in shown
    string = next(iter(sample_strings().values()))
    code, shown = run_on_terminal("inspect", "-", typed=f"{string}\n", cwd=tmp_path)
    assert (code, string[5:25] in shown) == (0, False), shown


def test_the_sample_holds_no_secret() -> None:
    """Its master key is public, but what it teaches is how a database looks."""
    strings = sample_strings()
    data = (SAMPLE).read_bytes()
    with closing(sqlite3.connect(SAMPLE)) as connection:
        [(kid, algorithm, wrapped)] = connection.execute(
            "SELECT kid, algorithm, wrapped_private_key FROM signing_keys"
        )
    key = unwrap_signing_key(kid, algorithm, wrapped, derive_keys(SAMPLE_MASTER_KEY).wrap)
    scalar = key.private.private_numbers().private_value.to_bytes(32, "big")  # type: ignore[union-attr] # it is an EC key
    secrets = [("the signing key", spelt) for spelt in spellings(scalar)]
    secrets += [("the master key", spelt) for spelt in spellings(SAMPLE_MASTER_KEY)]
    secrets += [
        ("a string's secret", spelt) for text in strings.values() for spelt in spellings(secret_of(text))
    ]
    secrets += [("a string", b"tkr1_"), ("a PEM", b"-----BEGIN"), ("the password", SAMPLE_PASSWORD.encode())]
    assert found_in(data, secrets) == set()
    assert len(strings) == 60
