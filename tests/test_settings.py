"""The settings: durations, what is refused, precedence one source at a time, and that no secret shows."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenctl.errors import ConfigInvalid, InvalidInput
from tokenctl.settings import (
    SETTINGS,
    Loaded,
    Secret,
    Settings,
    describe,
    format_duration,
    load,
    mask_password,
    parse_duration,
)

CANARY = "canary-7f3a9b"


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    path = tmp_path / "cwd"
    path.mkdir()
    return path


@pytest.fixture
def config_dirs(tmp_path: Path) -> list[Path]:
    """The user's configuration directory, then the machine's."""
    paths = [tmp_path / "user", tmp_path / "etc"]
    for path in paths:
        path.mkdir()
    return paths


def read(
    cwd: Path,
    *,
    flags: Mapping[str, str | None] | None = None,
    environ: Mapping[str, str] | None = None,
    dirs: list[Path] | None = None,
) -> Loaded:
    return load(flags or {}, environ=environ or {}, cwd=cwd, config_dirs=dirs or [])


def refused(cwd: Path, **sources: Any) -> str:
    """What the operator reads: message and hint of the error that `read` must raise."""
    with pytest.raises(ConfigInvalid) as caught:
        read(cwd, **sources)
    assert caught.value.code == "config.invalid"
    # `tokenctl config` would stop at the same error.
    assert caught.value.hint != ConfigInvalid.hint
    return f"{caught.value.message}. {caught.value.hint}"


# --- durations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500ms", timedelta(milliseconds=500)),
        ("90s", timedelta(seconds=90)),
        ("10m", timedelta(minutes=10)),
        ("2h", timedelta(hours=2)),
        ("30d", timedelta(days=30)),
        ("2w", timedelta(days=14)),
        ("1h30m", timedelta(minutes=90)),
        ("1m500ms", timedelta(seconds=60.5)),
        ("1w2d3h4m5s6ms", timedelta(9, 5, 0, 6, 4, 3)),
        ("0s", timedelta()),
        ("007s", timedelta(seconds=7)),
        ("36500d", timedelta(days=36500)),
    ],
)
def test_a_duration_is_read(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("s", id="unit alone"),
        pytest.param("30", id="bare number"),
        pytest.param("1h30", id="bare number at the end"),
        pytest.param("30s\n", id="newline at the end"),
        pytest.param(" 30s", id="space before"),
        pytest.param("1h 30m", id="space inside"),
        pytest.param("-30s", id="negative"),
        pytest.param("+30s", id="plus"),
        pytest.param("1_000s", id="underscore"),
        pytest.param("1.5h", id="fraction"),
        pytest.param("\N{ARABIC-INDIC DIGIT THREE}s", id="Arabic digit"),
        pytest.param("\N{FULLWIDTH DIGIT THREE}s", id="full-width digit"),
        pytest.param("²s", id="superscript"),
        pytest.param("30D", id="capital unit"),
        pytest.param("30\N{LATIN SMALL LETTER LONG S}", id="long s"),
        pytest.param("30y", id="unknown unit"),
        pytest.param("30m1h", id="wrong order"),
        pytest.param("1h1h", id="unit twice"),
        pytest.param("36501d", id="just over a hundred years"),
        pytest.param("36500d1ms", id="over in the sum"),
        pytest.param("999999999999w", id="more than a timedelta holds"),
        pytest.param("9" * 10_000 + "s", id="ten thousand digits"),
        pytest.param("none", id="a word"),
    ],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_duration(text)
    assert caught.value.hint
    assert len(caught.value.message) < 80


def test_a_bare_number_is_told_about_units() -> None:
    with pytest.raises(InvalidInput, match="no unit") as caught:
        parse_duration("30")
    assert "30d" in caught.value.hint


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        (timedelta(), "0s"),
        (timedelta(milliseconds=1500), "1s500ms"),
        (timedelta(minutes=90), "1h30m"),
        (timedelta(days=30), "30d"),
        (timedelta(days=-1, hours=-1), "-1d1h"),
        (timedelta(microseconds=999), "0s"),
    ],
)
def test_a_duration_is_written_short(duration: timedelta, expected: str) -> None:
    assert format_duration(duration) == expected


@given(st.integers(0, 36_500 * 86_400_000))
def test_written_and_read_again_a_duration_is_the_same(milliseconds: int) -> None:
    duration = timedelta(milliseconds=milliseconds)
    assert parse_duration(format_duration(duration)) == duration


@given(st.text(alphabet="0123456789wdhms_ .-\n\N{ARABIC-INDIC DIGIT THREE}", max_size=30))
def test_no_text_makes_the_parser_fail_in_another_way(text: str) -> None:
    with contextlib.suppress(InvalidInput):
        assert timedelta() <= parse_duration(text) <= timedelta(days=36_500)


# --- what is allowed -------------------------------------------------------------------------------


def test_the_defaults_are_the_documented_ones() -> None:
    assert {setting.name: setting.show(Settings()) for setting in SETTINGS} == {
        "database": "tokenctl.db",
        "key_file": None,
        "master_key": None,
        "access_ttl": "10m",
        "refresh_ttl": "30d",
        "idle_ttl": "14d",
        "grace": "30s",
        "foreign_retry": "event",
        "issuer": "tokenctl",
        "audience": None,
        "algorithm": "ES256",
        "purge_retention": "7d",
        "purge_every": None,
        "host": "127.0.0.1",
        "port": "8460",
        "tls_cert": None,
        "tls_key": None,
        "behind_proxy": "false",
        "trusted_proxies": None,
        "cookies": "false",
        "cors_origins": None,
        "registration": "open",
        "password_min_length": "15",
        "account_limit": "10/minute",
        "address_limit": "60/minute",
    }


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"grace": timedelta()}, id="no grace"),
        pytest.param({"idle_ttl": None}, id="no idle limit"),
        pytest.param({"purge_retention": timedelta()}, id="no retention"),
        pytest.param({"refresh_ttl": timedelta(days=7)}, id="idle limit longer than the lifetime"),
        pytest.param({"refresh_ttl": timedelta(minutes=10)}, id="refresh as long as access"),
        pytest.param({"refresh_ttl": timedelta(days=3650)}, id="longest refresh"),
        pytest.param({"access_ttl": timedelta(days=1)}, id="longest access"),
        pytest.param({"issuer": "https://login.example.org/a?b=c"}, id="issuer is a URL"),
        pytest.param({"database": "a file with spaces äö.db"}, id="any path"),
    ],
)
def test_what_is_allowed(values: dict[str, Any]) -> None:
    Settings(**values)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        pytest.param({"access_ttl": timedelta()}, ["access_ttl"], id="no access"),
        pytest.param({"access_ttl": timedelta(seconds=90.5)}, ["access_ttl"], id="access in half seconds"),
        pytest.param({"access_ttl": timedelta(days=1, seconds=1)}, ["access_ttl"], id="access over a day"),
        pytest.param({"access_ttl": 600}, ["access_ttl"], id="a number is no timedelta"),
        pytest.param({"access_ttl": None}, ["access_ttl"], id="access is not optional"),
        pytest.param(
            {"access_ttl": timedelta(seconds=30)}, ["access_ttl", "grace"], id="access equals grace"
        ),
        pytest.param({"grace": timedelta(hours=1)}, ["access_ttl", "grace"], id="grace over access"),
        pytest.param({"grace": timedelta(seconds=-1)}, ["grace"], id="negative grace"),
        pytest.param({"grace": timedelta(microseconds=1)}, ["grace"], id="finer than a millisecond"),
        pytest.param({"refresh_ttl": timedelta()}, ["refresh_ttl"], id="no refresh"),
        pytest.param({"refresh_ttl": timedelta(days=3651)}, ["refresh_ttl"], id="refresh over ten years"),
        pytest.param(
            {"refresh_ttl": timedelta(minutes=9)}, ["refresh_ttl", "access_ttl"], id="refresh under access"
        ),
        pytest.param({"idle_ttl": timedelta()}, ["idle_ttl"], id="idle is zero"),
        pytest.param(
            {"idle_ttl": timedelta(minutes=10)}, ["idle_ttl", "access_ttl"], id="idle equals access"
        ),
        pytest.param({"purge_retention": timedelta(days=-1)}, ["purge_retention"], id="negative retention"),
        pytest.param({"purge_every": timedelta()}, ["purge_every"], id="purging without a pause"),
        pytest.param({"foreign_retry": "ignore"}, ["foreign_retry"], id="unknown choice"),
        pytest.param({"algorithm": "none"}, ["algorithm"], id="algorithm none"),
        pytest.param({"algorithm": "es256"}, ["algorithm"], id="algorithm in small letters"),
        pytest.param({"issuer": ""}, ["issuer"], id="empty issuer"),
        pytest.param({"issuer": "to kenctl"}, ["issuer"], id="issuer with a space"),
        pytest.param({"issuer": "tokenctl\n"}, ["issuer"], id="issuer with a newline"),
        pytest.param({"issuer": "tokenctl\u200b"}, ["issuer"], id="issuer with an invisible character"),
        pytest.param({"audience": ""}, ["audience"], id="empty audience"),
        pytest.param({"database": ""}, ["database"], id="empty database"),
        pytest.param({"database": "a\0b"}, ["database"], id="NUL in a path"),
        pytest.param({"key_file": ""}, ["key_file"], id="empty key file"),
        pytest.param({"key_file": Path("key")}, ["key_file"], id="a Path is no text"),
        pytest.param({"master_key": Secret("")}, ["master_key"], id="empty key"),
        pytest.param({"master_key": CANARY}, ["master_key"], id="a bare key"),
    ],
)
def test_what_is_refused_names_the_settings(values: dict[str, Any], names: list[str]) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        Settings(**values)
    assert caught.value.facts == {"settings": names}
    assert caught.value.message.startswith(names[0])
    assert CANARY not in str(caught.value)


def test_the_audience_is_the_issuer_unless_it_is_set() -> None:
    assert Settings(issuer="a").effective_audience == "a"
    assert Settings(issuer="a", audience="b").effective_audience == "b"


def test_settings_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().grace = timedelta()  # type: ignore[misc] # the mistake is the test


def test_a_setting_with_a_typing_error_is_refused() -> None:
    with pytest.raises(TypeError):
        Settings(acces_ttl=timedelta(minutes=1))  # type: ignore[call-arg] # the mistake is the test


# --- where a value comes from ----------------------------------------------------------------------


def test_nothing_set_is_the_defaults(cwd: Path) -> None:
    loaded = read(cwd)
    assert loaded.settings == Settings()
    assert set(loaded.sources.values()) == {"default"}
    assert loaded.warnings == []


def test_precedence_one_source_at_a_time(cwd: Path, config_dirs: list[Path]) -> None:
    """All five say something; the first one is taken away again and again."""
    user, machine = config_dirs
    flags: dict[str, str | None] = {"grace": "1s"}
    environ = {"TOKENCTL_GRACE": "2s"}
    for directory, value in ((cwd, "3s"), (user, "4s"), (machine, "5s")):
        (directory / "tokenctl.toml").write_text(f'grace = "{value}"')

    def seen() -> tuple[str, str]:
        loaded = read(cwd, flags=flags, environ=environ, dirs=config_dirs)
        return format_duration(loaded.settings.grace), loaded.sources["grace"]

    assert seen() == ("1s", "flag --grace")
    flags["grace"] = None
    assert seen() == ("2s", "environment TOKENCTL_GRACE")
    environ["TOKENCTL_GRACE"] = ""
    assert seen() == ("3s", "./tokenctl.toml")
    (cwd / "tokenctl.toml").unlink()
    assert seen() == ("4s", str(user / "tokenctl.toml"))
    (user / "tokenctl.toml").unlink()
    assert seen() == ("5s", str(machine / "tokenctl.toml"))
    (machine / "tokenctl.toml").unlink()
    assert seen() == ("30s", "default")


def test_each_value_has_its_own_source(cwd: Path) -> None:
    (cwd / "tokenctl.toml").write_text('issuer = "file"\naudience = "file"')
    loaded = read(cwd, flags={"database": "x.db"}, environ={"TOKENCTL_AUDIENCE": "env"})
    assert (loaded.settings.database, loaded.settings.issuer) == ("x.db", "file")
    assert loaded.settings.audience == "env"
    chosen = {name: source for name, source in loaded.sources.items() if source != "default"}
    assert chosen == {
        "database": "flag --database",
        "issuer": "./tokenctl.toml",
        "audience": "environment TOKENCTL_AUDIENCE",
    }


EXAMPLES = {
    "database": "other.db",
    "key_file": "/keys/master",
    "access_ttl": "5m",
    "refresh_ttl": "60d",
    "idle_ttl": "7d",
    "grace": "10s",
    "foreign_retry": "reuse",
    "issuer": "https://example.org",
    "audience": "api",
    "algorithm": "RS256",
    "purge_retention": "1d",
    "purge_every": "1d",
    "host": "192.0.2.1",
    "port": "443",
    "tls_cert": "/tls/chain.pem",
    "tls_key": "/tls/key.pem",
    "behind_proxy": "true",
    "trusted_proxies": "10.0.0.0/8,192.0.2.7",
    "cookies": "true",
    "cors_origins": "https://app.example,http://localhost:5173",
    "registration": "closed",
    "password_min_length": "8",
    "account_limit": "5/minute",
    "address_limit": "none",
}
#: Nothing is a value of these.
LISTS = {"trusted_proxies", "cors_origins"}


def test_there_is_an_example_of_every_open_setting() -> None:
    assert list(EXAMPLES) == [setting.name for setting in SETTINGS if not setting.secret]


@pytest.mark.parametrize(("name", "text"), EXAMPLES.items())
@pytest.mark.parametrize("way", ["flag", "environment", "file"])
def test_every_setting_every_way(cwd: Path, name: str, text: str, way: str) -> None:
    if way == "file":
        (cwd / "tokenctl.toml").write_text(f'{name} = "{text}"')
    loaded = read(
        cwd,
        flags={name: text} if way == "flag" else {},
        environ={f"TOKENCTL_{name.upper()}": text} if way == "environment" else {},
    )
    row = next(row for row in describe(loaded) if row["name"] == name)
    assert row["value"] == text
    assert row["source"] != "default"


@pytest.mark.parametrize("word", ["none", "off"])
def test_the_idle_limit_can_be_switched_off(cwd: Path, word: str) -> None:
    loaded = read(cwd, environ={"TOKENCTL_IDLE_TTL": word})
    assert loaded.settings.idle_ttl is None
    assert {row["name"]: row["value"] for row in describe(loaded)}["idle_ttl"] == "none"


def test_the_standard_directories(cwd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platformdirs.user_config_path", lambda name, *, appauthor: tmp_path / name)
    (tmp_path / "tokenctl").mkdir()
    (tmp_path / "tokenctl" / "tokenctl.toml").write_text('issuer = "user"')
    assert load({}, environ={}, cwd=cwd).settings.issuer == "user"


@pytest.mark.parametrize("name", ["master_key", "graec", "TOKENCTL_GRACE"])
def test_a_flag_that_is_no_setting_is_a_bug_of_the_caller(cwd: Path, name: str) -> None:
    with pytest.raises(ValueError, match=name):
        read(cwd, flags={name: None})


# --- relative paths --------------------------------------------------------------------------------


def test_a_relative_path_from_flag_or_environment_stays(cwd: Path) -> None:
    loaded = read(cwd, flags={"database": "a/b.db"}, environ={"TOKENCTL_KEY_FILE": "key"})
    assert (loaded.settings.database, loaded.settings.key_file) == ("a/b.db", "key")


def test_a_relative_path_in_the_file_of_the_current_directory(cwd: Path) -> None:
    (cwd / "tokenctl.toml").write_text('database = "b.db"\nkey_file = "key"')
    settings = read(cwd).settings
    assert (settings.database, settings.key_file) == ("b.db", str(cwd / "key"))


@pytest.mark.parametrize("index", [0, 1])
def test_a_relative_path_in_another_file_is_beside_it(cwd: Path, config_dirs: list[Path], index: int) -> None:
    directory = config_dirs[index]
    (directory / "tokenctl.toml").write_text('database = "b.db"\nkey_file = "key"')
    settings = read(cwd, dirs=config_dirs).settings
    assert (settings.database, settings.key_file) == (str(directory / "b.db"), str(directory / "key"))


@pytest.mark.parametrize("database", ["postgresql://db/tokens", "sqlite:///b.db", "/var/lib/b.db"])
def test_a_url_or_an_absolute_path_in_another_file_stays(
    cwd: Path, config_dirs: list[Path], database: str
) -> None:
    (config_dirs[0] / "tokenctl.toml").write_text(f'database = "{database}"')
    assert read(cwd, dirs=config_dirs).settings.database == database


# --- what goes wrong in a value ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("grace", "30"),
        ("grace", "none"),
        ("access_ttl", "0s"),
        ("refresh_ttl", "3651d"),
        ("idle_ttl", "None"),
        ("foreign_retry", "never"),
        ("algorithm", "HS256"),
        ("issuer", "a b"),
        ("database", "a\nb"),
    ],
)
def test_a_bad_value_names_setting_and_source(cwd: Path, name: str, text: str) -> None:
    assert f"{name} from flag --{name.replace('_', '-')}" in refused(cwd, flags={name: text})
    env = f"TOKENCTL_{name.upper()}"
    assert f"{name} from environment {env}" in refused(cwd, environ={env: text})
    (cwd / "tokenctl.toml").write_text(f'{name} = "{text}"'.replace("\n", "\\n"))
    assert f"{name} from ./tokenctl.toml" in refused(cwd)


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - LISTS))
def test_an_empty_flag_is_not_the_same_as_no_flag(cwd: Path, name: str) -> None:
    assert f"{name} from flag" in refused(cwd, flags={name: ""})


@pytest.mark.parametrize("name", sorted(LISTS))
def test_an_empty_flag_is_an_empty_list(cwd: Path, name: str) -> None:
    loaded = read(cwd, flags={name: ""}, environ={f"TOKENCTL_{name.upper()}": EXAMPLES[name]})
    assert getattr(loaded.settings, name) == ()


def test_two_settings_that_do_not_fit_name_both_sources(cwd: Path) -> None:
    message = refused(cwd, flags={"grace": "20m"})
    assert message.endswith("the default: access_ttl 10m, grace 30s")
    assert "access_ttl (10m) must be longer than grace (20m)" in message
    assert "(access_ttl from default, grace from flag --grace)" in message


def test_a_variable_with_a_typing_error_is_a_warning(cwd: Path) -> None:
    loaded = read(
        cwd,
        environ={"TOKENCTL_DATABSE": CANARY, "TOKENCTL_COMPLETELY_OTHER": "1", "OTHER": "1"},
    )
    assert loaded.warnings == ["TOKENCTL_DATABSE is not a setting; did you mean TOKENCTL_DATABASE?"]


# --- what goes wrong in a file ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b'grace "30s"', ["valid TOML", "line 1"], id="no equals sign"),
        pytest.param(b'\n[a\nb = "c"', ["valid TOML", "line 2"], id="broken table"),
        pytest.param(b'grace = "1s"\ngrace = "2s"', ["valid TOML"], id="a key twice"),
        pytest.param(b"\x00\x01\x02", ["valid TOML"], id="binary junk"),
        pytest.param(b"SQLite format 3\x00\xff\xfe", ["not UTF-8"], id="a database"),
        pytest.param('issuer = "ä"'.encode("latin-1"), ["not UTF-8"], id="Latin-1"),
        pytest.param('issuer = "a"'.encode("utf-16"), ["not UTF-8"], id="UTF-16"),
        pytest.param(b"grace = " + b"[" * 100_000, ["TOML"], id="deeply nested"),
        pytest.param(b"grace = " + b"9" * 10_000, ["TOML"], id="a number of ten thousand digits"),
        pytest.param(b'graec = "30s"', ["'graec'", "did you mean grace?"], id="unknown key"),
        pytest.param(b'access-ttl = "30s"', ["'access-ttl'", "did you mean access_ttl?"], id="a dash"),
        pytest.param(b'zzz = "30s"', ["'zzz' in ./tokenctl.toml is not a setting."], id="like nothing"),
        pytest.param(b'[tokenctl]\ngrace = "30s"', ["'tokenctl'", "not a setting"], id="a table"),
        pytest.param(b"grace = true", ["grace in", "not a boolean", 'grace = "30s"'], id="boolean"),
        pytest.param(b"grace = 30", ["grace in", "not a number", 'grace = "30s"'], id="integer"),
        pytest.param(b"grace = 0.5", ["grace in", "not a number"], id="float"),
        pytest.param(b"grace = 00:00:30", ["grace in", "not a date or a time"], id="time"),
        pytest.param(b"refresh_ttl = 2030-01-01", ["refresh_ttl in", "not a date or a time"], id="date"),
        pytest.param(b'audience = ["a"]', ["audience in", "not an array"], id="array"),
        pytest.param(b'issuer.name = "a"', ["issuer in", "not a table"], id="dotted key"),
        pytest.param(b"key_file = 1", ["key_file in", "not a number"], id="key file is a number"),
        pytest.param(b'key_file = ""', ["key_file", "not empty"], id="key file is empty"),
        pytest.param(b'database = ""', ["database", "not empty"], id="database is empty"),
        pytest.param(f'master_key = "{CANARY}"'.encode(), ["master_key in", "key_file"], id="the key itself"),
    ],
)
def test_a_bad_file_is_one_clear_error(
    cwd: Path, config_dirs: list[Path], content: bytes, expected: list[str]
) -> None:
    def check(path: Path, shown: str) -> None:
        path.write_bytes(content)
        message = refused(cwd, dirs=config_dirs)
        for part in expected:
            assert part.replace("./tokenctl.toml", shown) in message
        assert shown in message
        assert CANARY not in message
        path.unlink()

    check(cwd / "tokenctl.toml", "./tokenctl.toml")
    check(config_dirs[1] / "tokenctl.toml", str(config_dirs[1] / "tokenctl.toml"))


def test_a_file_that_is_overridden_is_still_checked(cwd: Path) -> None:
    (cwd / "tokenctl.toml").write_text("grace = 30")
    assert "grace in ./tokenctl.toml" in refused(cwd, flags={"grace": "1s"})


def test_an_empty_file_and_a_byte_order_mark_are_fine(cwd: Path, config_dirs: list[Path]) -> None:
    (cwd / "tokenctl.toml").touch()
    (config_dirs[0] / "tokenctl.toml").write_text('issuer = "a"', encoding="utf-8-sig")
    assert read(cwd, dirs=config_dirs).settings.issuer == "a"


def test_a_directory_in_the_place_of_the_file(cwd: Path) -> None:
    (cwd / "tokenctl.toml").mkdir()
    assert "./tokenctl.toml cannot be read: Is a directory" in refused(cwd)


def test_a_link_to_itself(cwd: Path) -> None:
    (cwd / "tokenctl.toml").symlink_to("tokenctl.toml")
    assert "./tokenctl.toml cannot be read" in refused(cwd)


def test_a_file_that_may_not_be_read(cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", deny)
    assert "./tokenctl.toml cannot be read: Permission denied" in refused(cwd)


def test_a_configuration_directory_that_is_not_there_or_is_a_file(cwd: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert read(cwd, dirs=[tmp_path / "absent", tmp_path / "file"]).settings == Settings()


# --- secrets ----------------------------------------------------------------------------------------


def test_a_secret_shows_only_when_it_is_asked_for() -> None:
    secret = Secret(CANARY)
    assert (repr(secret), str(secret), f"{secret}", f"{secret!r}", "%s" % secret) == ("***",) * 5  # noqa: UP031 - one more way
    assert secret.reveal() == CANARY
    assert not hasattr(secret, "__dict__")


def test_the_master_key_comes_from_the_environment_with_a_warning(cwd: Path) -> None:
    loaded = read(cwd, environ={"TOKENCTL_MASTER_KEY": CANARY})
    assert loaded.settings.master_key is not None
    assert loaded.settings.master_key.reveal() == CANARY
    assert loaded.sources["master_key"] == "environment TOKENCTL_MASTER_KEY"
    (warning,) = loaded.warnings
    assert "TOKENCTL_KEY_FILE" in warning
    for shown in (repr(loaded), str(loaded.settings), repr(describe(loaded)), warning):
        assert CANARY not in shown
    assert {row["name"]: row["value"] for row in describe(loaded)}["master_key"] == "***"
    assert CANARY not in repr(dataclasses.asdict(loaded.settings))


def test_an_error_beside_the_master_key_does_not_show_it(cwd: Path) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        read(cwd, environ={"TOKENCTL_MASTER_KEY": CANARY, "TOKENCTL_GRACE": "20m"})
    assert CANARY not in repr(caught.value) + repr(caught.value.facts) + caught.value.hint
    assert caught.value.__suppress_context__


def test_an_unquoted_key_in_a_file_is_not_repeated(cwd: Path) -> None:
    (cwd / "tokenctl.toml").write_text(f"master_key = {CANARY}")
    assert CANARY not in refused(cwd)


def test_a_token_string_in_the_wrong_place_is_not_repeated(cwd: Path) -> None:
    # The secret starts at the 33rd character (5 of prefix, 28 for the 21 bytes before it).
    assert CANARY not in refused(cwd, flags={"grace": "tkr1_" + "A" * 28 + CANARY})


@pytest.mark.parametrize(
    ("database", "shown"),
    [
        ("tokenctl.db", "tokenctl.db"),
        ("a@b:c.db", "a@b:c.db"),
        ("sqlite:////var/lib/a.db", "sqlite:////var/lib/a.db"),
        ("postgresql://db.example.org:5432/a", "postgresql://db.example.org:5432/a"),
        ("postgresql://ada@db/a?sslmode=verify-full", "postgresql://ada@db/a?sslmode=verify-full"),
        (f"postgresql://ada:{CANARY}@db/a", "postgresql://ada:***@db/a"),
        (f"postgresql+psycopg://ada:x@/:{CANARY}@db/a", "postgresql+psycopg://ada:***@db/a"),
        (f"postgresql://:{CANARY}@db", "postgresql://:***@db"),
        (f"postgresql://db/a?user=b&password={CANARY}&x=y", "postgresql://db/a?user=b&password=***&x=y"),
        (f"postgresql://db/a?sslPassword={CANARY}", "postgresql://db/a?sslPassword=***"),
        (f"host=db password = '{CANARY} {CANARY}'", "host=db password =***"),
    ],
)
def test_a_password_in_the_database_url_is_masked(cwd: Path, database: str, shown: str) -> None:
    assert mask_password(database) == shown
    loaded = read(cwd, environ={"TOKENCTL_DATABASE": database})
    assert loaded.settings.database == database
    assert {row["name"]: row["value"] for row in describe(loaded)}["database"] == shown
    assert CANARY not in repr(loaded)


def test_a_refused_database_url_is_not_repeated(cwd: Path) -> None:
    assert CANARY not in refused(cwd, environ={"TOKENCTL_DATABASE": f"postgresql://a:{CANARY}@db\n"})


# --- the table --------------------------------------------------------------------------------------


def test_every_setting_describes_itself(cwd: Path) -> None:
    rows = describe(read(cwd))
    assert [row["name"] for row in rows] == [field.name for field in dataclasses.fields(Settings)]
    for setting, row in zip(SETTINGS, rows, strict=True):
        assert row["env"] == setting.env == f"TOKENCTL_{setting.name.upper()}"
        assert setting.doc.endswith(".")


def test_importing_the_settings_is_cheap() -> None:
    heavy = {"tomllib", "platformdirs", "difflib", "msgspec", "pydantic", "sqlalchemy", "typer", "jwt"}
    program = f"import sys, tokenctl.settings; sys.exit(repr({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


class TestKeyAndKeyFile:
    """Two forms of one setting: which of them is meant must be clear."""

    ENVIRON: ClassVar = {"TOKENCTL_MASTER_KEY": "tkm1_" + "A" * 43}

    def test_a_flag_wins(self, tmp_path: Path) -> None:
        loaded = load({"key_file": "k"}, environ=self.ENVIRON, cwd=tmp_path, config_dirs=[])
        assert (loaded.settings.key_file, loaded.settings.master_key) == ("k", None)

    def test_both_in_the_environment_are_an_error(self, tmp_path: Path) -> None:
        environ = self.ENVIRON | {"TOKENCTL_KEY_FILE": "k"}
        with pytest.raises(ConfigInvalid, match="both set") as caught:
            load({}, environ=environ, cwd=tmp_path, config_dirs=[])
        assert "AAAA" not in str(caught.value)
