"""The settings: what can be set, what is allowed, and where each value came from.

Owns the frozen `Settings`, the table of their names (environment, TOML key, help), durations as people
write them, and the one loader over flags, environment and files. Does not own the command line's options,
and opens neither the database nor the key file: those are only named here.

Every command imports this module, so it stays cheap: the standard library and our errors, and even of
those the rarer ones only when they are needed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tokenctl.errors import ConfigInvalid, InvalidInput

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

FILE_NAME = "tokenctl.toml"
ENV_PREFIX = "TOKENCTL_"

# --- durations ---------------------------------------------------------------------------------

_UNITS = {
    "w": timedelta(weeks=1),
    "d": timedelta(days=1),
    "h": timedelta(hours=1),
    "m": timedelta(minutes=1),
    "s": timedelta(seconds=1),
    "ms": timedelta(milliseconds=1),
}
# Each unit once, the largest first. [0-9], because \d and int() take other scripts' digits; used with
# fullmatch, because `$` matches before a newline; twelve digits, because timedelta overflows.
_DURATION = re.compile("".join(rf"(?:([0-9]{{1,12}}){unit})?" for unit in _UNITS))
_LONGEST = timedelta(days=36_500)


def parse_duration(text: str) -> timedelta:
    """The duration that a person wrote: `30d`, `1h30m`, `500ms`; units w d h m s ms, the largest first.

    Zero (`0s`) is a duration; at most 36500d. Raises InvalidInput, for a bare number too.
    """
    # Twenty characters tell a person what they wrote, and of a pasted token string hold no secret.
    shown = repr(text[:20])
    if re.fullmatch("[0-9]+", text):
        raise InvalidInput(f"{shown} has no unit", hint="write the unit, for example 90s, 10m, 2h or 30d")
    match = _DURATION.fullmatch(text)
    if not text or not match:
        raise InvalidInput(
            f"{shown} is not a duration",
            hint="write numbers with units (w d h m s ms), the largest first: 30d, 1h30m, 500ms",
        )
    total = timedelta()
    for digits, unit in zip(match.groups(default="0"), _UNITS.values(), strict=True):
        # Compared as numbers first: twelve digits of weeks do not fit a timedelta.
        if int(digits) > _LONGEST // unit:
            raise InvalidInput(f"{shown} is too long", hint=f"at most {format_duration(_LONGEST)}")
        total += int(digits) * unit
    if total > _LONGEST:
        raise InvalidInput(f"{shown} is too long", hint=f"at most {format_duration(_LONGEST)}")
    return total


def format_duration(duration: timedelta) -> str:
    """The short form that `parse_duration` reads: `30d`, `1h30m`, `0s`; below a millisecond is cut off.

    Days are the largest unit (30d, not 4w2d). A negative duration gets a `-`, which is for display only.
    """
    rest = abs(duration)
    parts = []
    for unit in ("d", "h", "m", "s", "ms"):
        count, rest = divmod(rest, _UNITS[unit])
        if count:
            parts.append(f"{count}{unit}")
    if not parts:
        return "0s"
    return ("-" if duration < timedelta() else "") + "".join(parts)


def parse_optional_duration(text: str) -> timedelta | None:
    """The same, where there may be none: `none` or `off`."""
    return None if text in {"none", "off"} else parse_duration(text)


def _parse_number(text: str) -> int:
    # Not int(): that takes underscores, spaces and other scripts' digits.
    if re.fullmatch("[0-9]{1,9}", text):
        return int(text)
    raise InvalidInput(f"{text[:20]!r} is not a whole number", hint="write digits only")


def _parse_switch(text: str) -> bool:
    if text in {"true", "yes", "on", "1"}:
        return True
    if text in {"false", "no", "off", "0"}:
        return False
    raise InvalidInput(f"{text[:20]!r} is neither true nor false", hint="write true or false")


def _parse_list(text: str) -> tuple[str, ...]:
    return tuple(part for each in text.split(",") if (part := each.strip()))


# --- secrets -----------------------------------------------------------------------------------


class Secret:
    """A text that shows as `***` wherever it is printed, logged or formatted; `reveal()` gives it back."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "***"

    def reveal(self) -> str:
        """The text itself; never for a message, a log or an audit event."""
        return self._value


def mask_password(database: str) -> str:
    """A database path or URL with its password, if it has one, as `***`; rather too much than too little.

    The last @ ends the password: people do not escape the @ and / inside it.
    """
    masked = re.sub(r"^([^:/]+://[^:@]*):.*@", r"\1:***@", database, flags=re.DOTALL)
    return re.sub(r"(pass[^=&\s]*\s*=)[^&]*", r"\1***", masked, flags=re.IGNORECASE)


# --- what a value must be: each check answers "must be …", or nothing when the value is fine ----


def _duration(
    low: timedelta, high: timedelta, step: timedelta = timedelta(milliseconds=1)
) -> Callable[[Any], str]:
    def check(value: object) -> str:
        if not isinstance(value, timedelta):
            return "must be a timedelta"
        if not low <= value <= high:
            return f"must be from {format_duration(low)} to {format_duration(high)}"
        if value % step:
            return f"must be a multiple of {format_duration(step)}"
        return ""

    return check


def _one_of(*choices: str) -> Callable[[Any], str]:
    return lambda value: "" if value in choices else f"must be {' or '.join(choices)}"


def _claim(value: object) -> str:
    # It is compared byte for byte (RFC 8414 §3.3, RFC 9068 §4); outside ASCII one name has several spellings.
    if isinstance(value, str) and value.isascii() and value.isprintable() and value and " " not in value:
        return ""
    return "must be printable ASCII without spaces, and not empty"


def _path(value: object) -> str:
    if isinstance(value, str) and "tkm1_" in value:
        return "must name a file, and holds a master key itself; a key belongs into the file"
    if isinstance(value, str) and value and not re.search(r"[\x00-\x1f\x7f]", value):
        return ""
    return "must be a text without control characters, and not empty"


def _secret(value: object) -> str:
    return "" if isinstance(value, Secret) and value.reveal() else "must be a Secret that is not empty"


def _or_none(check: Callable[[Any], str]) -> Callable[[Any], str]:
    return lambda value: "" if value is None else check(value)


def _number(low: int, high: int) -> Callable[[Any], str]:
    def check(value: object) -> str:
        # type(): True is an int, too.
        return "" if type(value) is int and low <= value <= high else f"must be from {low} to {high}"

    return check


def _switch(value: object) -> str:
    return "" if isinstance(value, bool) else "must be true or false"


def _each(check: Callable[[Any], str]) -> Callable[[Any], str]:
    def check_all(value: object) -> str:
        if not isinstance(value, tuple):
            return "must be a tuple"
        return next((f"{complaint}; {each!r} is not" for each in value if (complaint := check(each))), "")

    return check_all


def _origin(value: object) -> str:
    # As a browser sends it (RFC 6454 §6.2): compared byte for byte, so a trailing slash would never match.
    if isinstance(value, str) and re.fullmatch(r"https?://[a-z0-9.-]+(:[0-9]{1,5})?", value):
        return ""
    return "must be origins such as https://app.example, in lower case and without a path"


def _network(value: object) -> str:
    from ipaddress import ip_network

    try:
        ip_network(value if isinstance(value, str) else "")
    except ValueError:
        return "must be addresses or networks such as 10.0.0.0/8"
    return ""


def _rate(value: object) -> str:
    if value == "none" or (
        isinstance(value, str) and re.fullmatch("[1-9][0-9]{0,8}/(second|minute|hour)", value)
    ):
        return ""
    return "must be a number per time such as 10/minute, or none"


# --- the settings ------------------------------------------------------------------------------


def _about(
    doc: str, check: Callable[[Any], str], parse: Callable[[str], Any] = str, *, secret: bool = False
) -> dict[str, Any]:
    return {"doc": doc, "check": check, "parse": parse, "secret": secret}


_TICK, _SECOND, _DAY = timedelta(milliseconds=1), timedelta(seconds=1), timedelta(days=1)


@dataclass(frozen=True, kw_only=True, repr=False)
class Settings:
    """All settings, checked. An application that embeds tokenctl makes one; the command line uses `load`.

    Raises ConfigInvalid, which names the setting.
    """

    database: str = field(
        default="tokenctl.db",
        metadata=_about("The database: the path of an SQLite file, or a URL.", _path),
    )
    key_file: str | None = field(
        default=None,
        metadata=_about("The file that holds the master key.", _or_none(_path)),
    )
    master_key: Secret | None = field(
        default=None,
        metadata=_about("The master key itself; prefer a key file.", _or_none(_secret), Secret, secret=True),
    )
    access_ttl: timedelta = field(
        default=timedelta(minutes=10),
        # Whole seconds, because the claims of a JWT are (RFC 7519 §2 allows fractions, readers do not).
        metadata=_about("How long an access token lives.", _duration(_SECOND, _DAY, _SECOND), parse_duration),
    )
    refresh_ttl: timedelta = field(
        default=timedelta(days=30),
        metadata=_about(
            "How long a login lives, however often it is used.",
            _duration(_TICK, 3650 * _DAY),
            parse_duration,
        ),
    )
    idle_ttl: timedelta | None = field(
        default=timedelta(days=14),
        metadata=_about(
            "How long a login lives without being used; `none` switches this limit off.",
            _or_none(_duration(_TICK, 3650 * _DAY)),
            parse_optional_duration,
        ),
    )
    grace: timedelta = field(
        default=timedelta(seconds=30),
        metadata=_about(
            "How long a retry of the previous string gets the same answer; `0s` switches retries off.",
            _duration(timedelta(), _DAY),
            parse_duration,
        ),
    )
    foreign_retry: Literal["event", "reuse"] = field(
        default="event",
        metadata=_about(
            "What a retry from another device is: an `event` in the audit log, or `reuse`, which revokes.",
            _one_of("event", "reuse"),
        ),
    )
    issuer: str = field(
        default="tokenctl",
        metadata=_about("The issuer (`iss`) of the access tokens.", _claim),
    )
    audience: str | None = field(
        default=None,
        metadata=_about("The audience (`aud`) of the access tokens; not set: the issuer.", _or_none(_claim)),
    )
    algorithm: Literal["ES256", "RS256"] = field(
        default="ES256",
        metadata=_about("The algorithm of new signing keys: `ES256` or `RS256`.", _one_of("ES256", "RS256")),
    )
    purge_retention: timedelta = field(
        default=timedelta(days=7),
        metadata=_about(
            "How long a dead login is kept as evidence before a purge deletes it.",
            _duration(timedelta(), 3650 * _DAY),
            parse_duration,
        ),
    )
    purge_every: timedelta | None = field(
        default=None,
        metadata=_about(
            "How often `serve` purges by itself; not set, or `none`: never.",
            _or_none(_duration(_SECOND, 365 * _DAY)),
            parse_optional_duration,
        ),
    )

    host: str = field(
        default="127.0.0.1",
        metadata=_about("The address that `serve` listens on.", _path),
    )
    port: int = field(
        default=8460,
        metadata=_about(
            "The port that `serve` listens on; 0 takes a free one.", _number(0, 65535), _parse_number
        ),
    )
    tls_cert: str | None = field(
        default=None,
        metadata=_about("The certificate chain (PEM) with which `serve` speaks TLS.", _or_none(_path)),
    )
    tls_key: str | None = field(
        default=None,
        metadata=_about("The private key (PEM) of that certificate.", _or_none(_path)),
    )
    behind_proxy: bool = field(
        default=False,
        metadata=_about(
            "A proxy in front of `serve` speaks TLS: a plain-text address other than loopback is allowed.",
            _switch,
            _parse_switch,
        ),
    )
    trusted_proxies: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "The proxies, with commas between, whose X-Forwarded-For and X-Forwarded-Proto count.",
            _each(_network),
            _parse_list,
        ),
    )
    cookies: bool = field(
        default=False,
        metadata=_about(
            "Keep the refresh token of /auth in an HttpOnly cookie, and out of every body.",
            _switch,
            _parse_switch,
        ),
    )
    cors_origins: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "The origins, with commas between, whose pages may call `serve`.", _each(_origin), _parse_list
        ),
    )
    registration: Literal["open", "closed"] = field(
        default="open",
        metadata=_about(
            "Whether anybody may register: `open`, or `closed`, where only an operator makes users.",
            _one_of("open", "closed"),
        ),
    )
    password_min_length: int = field(
        default=15,
        metadata=_about("The least length of a new password.", _number(8, 64), _parse_number),
    )
    account_limit: str = field(
        default="10/minute",
        metadata=_about(
            "Failed logins of one account before `serve` makes it wait; `none` switches the limit off.", _rate
        ),
    )
    address_limit: str = field(
        default="60/minute",
        metadata=_about(
            "Registrations, failed logins and failed client credentials from one address (IPv6: /64) before "
            "`serve` makes it wait; `none` switches the limit off.",
            _rate,
        ),
    )

    def __post_init__(self) -> None:
        for setting in SETTINGS:
            if complaint := setting.check(getattr(self, setting.name)):
                raise _invalid(f"{setting.name} {complaint}", [setting.name])
        if self.access_ttl <= self.grace:
            # A retry gets an access token that ends when the first caller's does (access_until).
            raise self._conflict("access_ttl", "must be longer than", "grace")
        if self.refresh_ttl < self.access_ttl:
            raise self._conflict("refresh_ttl", "must not be shorter than", "access_ttl")
        if self.idle_ttl is not None and self.idle_ttl <= self.access_ttl:
            # A client that refreshes when its access token ends would always come too late.
            raise self._conflict("idle_ttl", "must be longer than", "access_ttl")

    def __repr__(self) -> str:
        shown = ", ".join(f"{setting.name}={setting.show(self)!r}" for setting in SETTINGS)
        return f"Settings({shown})"

    @property
    def effective_audience(self) -> str:
        """What stands in `aud`."""
        return self.audience or self.issuer

    def _conflict(self, name: str, relation: str, other: str) -> ConfigInvalid:
        left, right = (format_duration(getattr(self, each)) for each in (name, other))
        return _invalid(f"{name} ({left}) {relation} {other} ({right})", [name, other])


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What there is to know about one setting; `config`, the help and the docs are made from these."""

    name: str
    default: Any
    doc: str
    check: Callable[[Any], str]
    parse: Callable[[str], Any]
    secret: bool

    @property
    def env(self) -> str:
        """The environment variable; the key in a file is `name`."""
        return ENV_PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """What the flag is called where a command has one."""
        return "--" + self.name.replace("_", "-")

    def show(self, settings: Settings) -> str | None:
        """The value as it would be written in the environment, secrets masked; None when it is not set."""
        value = getattr(settings, self.name)
        if isinstance(value, timedelta):
            return format_duration(value)
        if value is None:
            # None where there is a default was asked for: the limit is switched off.
            return None if self.default is None else "none"
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, tuple):
            return ",".join(value) or None
        return mask_password(str(value)) if self.name == "database" else str(value)


SETTINGS = tuple(Setting(name=each.name, default=each.default, **each.metadata) for each in fields(Settings))
# A secret is not for argv, which every user of the machine can read, nor for a file that people copy.
_OPEN = {setting.name: setting for setting in SETTINGS if not setting.secret}


# --- loading -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """The settings, where each came from (by name), and what the operator should be told on stderr.

    A source is `flag --grace`, `environment TOKENCTL_GRACE`, `./tokenctl.toml`, the path of another file,
    or `default`.
    """

    settings: Settings
    sources: dict[str, str]
    warnings: list[str]


def load(
    flags: Mapping[str, str | None],
    *,
    environ: Mapping[str, str],
    cwd: Path,
    config_dirs: Sequence[Path] | None = None,
) -> Loaded:
    """The settings from, in this order: flags, environment, ./tokenctl.toml, the configuration directories.

    `flags` maps names of settings to what the command line said (None: the flag was not given).
    `config_dirs` are, unless given, the user's configuration directory and /etc. An empty variable counts
    as not set. A relative path is relative to the current directory, but in a file: `key_file`, `tls_cert`
    and `tls_key` are relative to the file's directory, and so is a `database` path outside ./tokenctl.toml
    (where the two are one).

    Raises ConfigInvalid, which names the setting and the source; ValueError for a flag that is no setting.
    """
    found: dict[str, tuple[str, str]] = {}
    for name, text in flags.items():
        if name not in _OPEN:
            raise ValueError(f"{name} cannot be set by a flag")
        if text is not None:
            found[name] = text, f"flag {_OPEN[name].flag}"
    for setting in SETTINGS:
        if text := environ.get(setting.env):
            found.setdefault(setting.name, (text, f"environment {setting.env}"))
    _choose_key(found)
    for name, text in _read_file(cwd / FILE_NAME, f"./{FILE_NAME}").items():
        found.setdefault(name, (text, f"./{FILE_NAME}"))
    for directory in _config_dirs() if config_dirs is None else config_dirs:
        path = directory / FILE_NAME
        texts = _read_file(path, str(path))
        if texts.get("database") and "://" not in texts["database"]:
            texts["database"] = str(directory / texts["database"])
        for name, text in texts.items():
            found.setdefault(name, (text, str(path)))

    sources = {setting.name: found.get(setting.name, ("", "default"))[1] for setting in SETTINGS}
    values: dict[str, Any] = {}
    try:
        for setting in SETTINGS:
            if setting.name in found:
                values[setting.name] = _parse(setting, found[setting.name][0])
        settings = Settings(**values)
    except ConfigInvalid as error:
        names = error.facts["settings"]
        origin = ", ".join(f"{name} from {sources[name]}" for name in names)
        raise ConfigInvalid(f"{error.message} ({origin})", hint=error.hint, settings=names) from None
    return Loaded(settings=settings, sources=sources, warnings=_warnings(environ))


def _choose_key(found: dict[str, tuple[str, str]]) -> None:
    """A key file and a key are two forms of one setting: the stronger source wins, equals are an error."""
    if not {"key_file", "master_key"} <= found.keys():
        return
    if found["key_file"][1].startswith("flag"):
        del found["master_key"]
        return
    raise _invalid(
        "TOKENCTL_KEY_FILE and TOKENCTL_MASTER_KEY are both set, and which is meant is not clear",
        ["key_file", "master_key"],
        "unset one of them",
    )


def describe(loaded: Loaded) -> list[dict[str, str | None]]:
    """A row `{"name","value","source","env"}` for each setting; secrets masked, value None: not set."""
    return [
        {
            "name": setting.name,
            "value": setting.show(loaded.settings),
            "source": loaded.sources[setting.name],
            "env": setting.env,
        }
        for setting in SETTINGS
    ]


def _config_dirs() -> list[Path]:
    import platformdirs

    return [platformdirs.user_config_path("tokenctl", appauthor=False), Path("/etc")]


def _read_file(path: Path, shown: str) -> dict[str, str]:
    """The texts by name of a file, none when it is not there; `shown` is what messages call it."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        # Never passed over: without its file a command would go to another database than was meant.
        raise ConfigInvalid(
            f"{shown} cannot be read: {error.strerror}",
            hint="make it a file that this user may read, or move it away",
        ) from None

    import tomllib

    try:
        table = tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigInvalid(f"{shown} is not UTF-8 text", hint="save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(
            f"{shown} is not valid TOML: {error}", hint='a line reads: grace = "30s"'
        ) from None
    except (ValueError, RecursionError):  # a number of 5,000 digits; arrays nested a thousand deep
        raise ConfigInvalid(f"{shown} cannot be read as TOML", hint='a line reads: grace = "30s"') from None

    for name, value in table.items():
        _check_entry(shown, name, value)
    for name in ("key_file", "tls_cert", "tls_key"):
        if table.get(name):
            table[name] = str(path.parent / table[name])
    return table


def _check_entry(shown: str, name: str, value: object) -> None:
    """Raises ConfigInvalid unless the entry is a setting that may stand in a file, as text."""
    if name == "master_key":
        raise ConfigInvalid(
            f"master_key in {shown}: the key itself may not stand in a configuration file",
            hint='put it into a file of its own with mode 0600, and name that: key_file = "…"',
            settings=[name],
        )
    if name not in _OPEN:
        raise ConfigInvalid(
            f"{name[:60]!r} in {shown} is not a setting{_did_you_mean(name, _OPEN)}",
            hint="tokenctl config, without this line, lists the settings",
        )
    if not isinstance(value, str):
        kind = {bool: "a boolean", int: "a number", float: "a number", list: "an array", dict: "a table"}
        example = _OPEN[name].show(Settings()) or "…"
        raise ConfigInvalid(
            f"{name} in {shown} must be a text in quotes, not {kind.get(type(value), 'a date or a time')}",
            hint=f'for example: {name} = "{example}"',
            settings=[name],
        )


def _parse(setting: Setting, text: str) -> object:
    try:
        return setting.parse(text)
    except InvalidInput as error:
        raise _invalid(f"{setting.name}: {error.message}", [setting.name], error.hint) from None


def _invalid(message: str, names: list[str], hint: str = "") -> ConfigInvalid:
    defaults = Settings()
    known = ", ".join(
        f"{each.name} {each.show(defaults) or 'not set'}" for each in SETTINGS if each.name in names
    )
    return ConfigInvalid(
        message, hint=hint or f"change it or leave it out; the default: {known}", settings=names
    )


def _warnings(environ: Mapping[str, str]) -> list[str]:
    known = {setting.env for setting in SETTINGS}
    warnings = [
        f"{name} is not a setting{guess}"
        for name in environ
        if name.startswith(ENV_PREFIX) and name not in known
        # Only a near miss: other variables of this prefix are not ours to judge.
        if (guess := _did_you_mean(name, known))
    ]
    if environ.get("TOKENCTL_MASTER_KEY"):
        warnings.append(
            "the master key is in the environment, which child processes and crash reports can read:"
            " a file of mode 0600, named by TOKENCTL_KEY_FILE, is safer"
        )
    return warnings


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    import difflib

    # The prefix is no likeness.
    bare = {each.removeprefix(ENV_PREFIX): each for each in known}
    near = difflib.get_close_matches(name[:60].removeprefix(ENV_PREFIX), bare, n=1, cutoff=0.75)
    return f"; did you mean {bare[near[0]]}?" if near else ""
