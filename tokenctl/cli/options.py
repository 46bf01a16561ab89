"""The tree of commands, the options that all of them share, and the `Run` that a command gets.

A shared option may stand before the command or after it; the inner one wins. The tree is built command by
command as it is walked: making every option of every command costs more than most commands themselves.
What the values mean is decided in `settings`, and how results look in `output`.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from tokenctl.cli import times
from tokenctl.cli.output import Format, Printer

if TYPE_CHECKING:
    from datetime import timedelta

    from tokenctl import TokenService
    from tokenctl.settings import Loaded, Settings

_META = "tokenctl.shared"
_Command = TypeVar("_Command", bound=Callable[..., int | None])

# --- options by name ---------------------------------------------------------------------------

SHARED: dict[str, Any] = {
    "database": Annotated[
        str | None,
        typer.Option("--database", metavar="PATH|URL", help="The database; default ./tokenctl.db."),
    ],
    "key_file": Annotated[
        str | None, typer.Option("--key-file", metavar="FILE", help="The file of the master key.")
    ],
    "output": Annotated[
        Format | None, typer.Option("--output", "-o", help="What stdout looks like.", show_choices=True)
    ],
    "json": Annotated[bool | None, typer.Option("--json", help="The same as -o json.")],
    "fields": Annotated[
        str | None, typer.Option("--fields", metavar="A,B", help="Print these fields, in this order.")
    ],
    "quiet": Annotated[bool | None, typer.Option("--quiet", "-q", help="No notes on stderr.")],
    "no_color": Annotated[bool | None, typer.Option("--no-color", help="No colour.")],
    "debug": Annotated[bool | None, typer.Option("--debug", help="A traceback with an error.")],
    "actor": Annotated[
        str | None,
        typer.Option("--actor", metavar="NAME", help="Who does this, for the audit log; or the OS user."),
    ],
}


def setting(name: str) -> Any:
    """The flag of a setting, for the commands that it fits; the words are those of `settings`."""
    from tokenctl.settings import SETTINGS, parse_duration, parse_optional_duration

    about = next(each for each in SETTINGS if each.name == name)
    if isinstance(about.default, bool):
        return Annotated[bool | None, typer.Option(f"{about.flag}/--no-{about.flag[2:]}", help=about.doc)]
    metavar = "DURATION" if about.parse in (parse_duration, parse_optional_duration) else "TEXT"
    return Annotated[str | None, typer.Option(about.flag, metavar=metavar, help=about.doc)]


class State(StrEnum):
    """What `--state` selects by."""

    LIVE = "live"
    BLOCKED = "blocked"
    IDLE = "idle"
    EXPIRED = "expired"
    REVOKED = "revoked"
    DEAD = "dead"


# For the signatures of commands; each wants `= None` (or `= False`) as its default.
Users = Annotated[
    list[str] | None, typer.Option("--user", metavar="NAME", help="Of this user; may be repeated.")
]
Clients = Annotated[
    list[str] | None, typer.Option("--client", metavar="ID", help="Of this client; may be repeated.")
]
States = Annotated[list[State] | None, typer.Option("--state", help="In this state; may be repeated.")]
Ips = Annotated[
    list[str] | None,
    typer.Option("--ip", metavar="ADDRESS|CIDR", help="Issued to or last used from there; may be repeated."),
]
UserAgents = Annotated[
    list[str] | None,
    typer.Option(
        "--user-agent",
        metavar="GLOB",
        help="Issued to or last used by such a user agent: * any text, ? any character; may be repeated.",
    ),
]
Devices = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        metavar="TEXT|HASH",
        help="Issued to or last used by this device: what it sends, or sha256:… of it; may be repeated.",
    ),
]
IssuedAfter = Annotated[
    str | None,
    typer.Option(
        "--issued-after", metavar="TIME", help="Issued then or later: 2h (ago), or 2026-01-31T12:00Z."
    ),
]
IssuedBefore = Annotated[
    str | None, typer.Option("--issued-before", metavar="TIME", help="Issued before then.")
]
Idle = Annotated[
    str | None, typer.Option("--idle", metavar="DURATION", help="Not used for so long: 30d, or longer.")
]
FromFile = Annotated[
    str | None,
    typer.Option(
        "--from-file", metavar="FILE|-", help="Named there: ids and strings, a line each; - is stdin."
    ),
]
Everything = Annotated[bool, typer.Option("--all", help="Everything there is.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask (up to 20 live tokens).")]
Confirm = Annotated[
    int | None,
    typer.Option("--confirm", metavar="N", min=0, help="Do not ask: this many users are affected."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and do nothing.")]
Max = Annotated[
    int | None, typer.Option("--max", metavar="N", min=0, help="Refuse when more than this are affected.")
]
PlanId = Annotated[
    str | None, typer.Option("--plan", metavar="ID", help="Exactly what that dry run has shown.")
]
Reason = Annotated[str | None, typer.Option("--reason", metavar="TEXT", help="Why, for the audit log.")]
Limit = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="N", min=0, max=2**31, help="Rows at most; 0 is all; default 50 on a terminal."
    ),
]


@dataclass(frozen=True, slots=True)
class Selected:
    """The options that select refresh tokens. A command's parameter of this type stands for all of them."""

    user: Users = None
    client: Clients = None
    state: States = None
    ip: Ips = None
    user_agent: UserAgents = None
    device: Devices = None
    issued_after: IssuedAfter = None
    issued_before: IssuedBefore = None
    idle: Idle = None
    from_file: FromFile = None
    everything: Everything = False

    def given(self) -> set[str]:
        """The names of those that there were."""
        return {each.name for each in fields(self) if getattr(self, each.name) not in (None, [], False)}


def required_duration(text: str) -> timedelta:
    """A duration of the command line, such as 30d or 1h30m. Raises InvalidInput."""
    from tokenctl.settings import parse_duration

    return parse_duration(text)


def duration(text: str | None) -> timedelta | None:
    """The same, where the option may be absent."""
    return None if text is None else required_duration(text)


# --- what a command gets -----------------------------------------------------------------------


class Run:
    """One run of one command: its settings, its printer and who runs it, each made when first asked for."""

    def __init__(self, context: typer.Context, shared: Mapping[str, Any], flags: Mapping[str, str]) -> None:
        self.context = context
        self.debug = bool(shared.get("debug"))
        self.out = Printer(
            shared.get("output", "table"),
            fields=[each.strip() for each in shared["fields"].split(",")] if "fields" in shared else (),
            quiet=bool(shared.get("quiet")),
            color=not shared.get("no_color"),
        )
        self._actor = shared.get("actor")
        self._flags = {name: shared[name] for name in ("database", "key_file") if name in shared}
        self._flags.update(flags)
        self._closing = ExitStack()

    @cached_property
    def loaded(self) -> Loaded:
        """The settings, and where each came from."""
        from pathlib import Path

        from tokenctl.settings import load

        loaded = load(self._flags, environ=os.environ, cwd=Path.cwd())
        for warning in loaded.warnings:
            self.out.warn(warning)
        return loaded

    @property
    def settings(self) -> Settings:
        return self.loaded.settings

    @cached_property
    def service(self) -> TokenService:
        """The service on the database of the settings; closed when the command ends."""
        import gc

        # The collector would walk the heap again and again while it only grows, and once more at the end:
        # a quarter of what the start of a command may cost.
        gc.disable()
        try:
            from tokenctl import TokenService

            service = TokenService(self.settings, actor=self.actor)
        finally:
            gc.freeze()
            gc.enable()
        self._closing.callback(service.close)
        if service.is_sample:
            self.out.note(
                "this is the sample database: its clock stands at "
                f"{times.show_local(service.now())}, and its key is public"
            )
        return service

    def close(self) -> None:
        """Give back what the run opened."""
        self._closing.close()

    @cached_property
    def actor(self) -> str:
        """Who does this, for the audit log. The OS user is asked by number: $USER is anybody's to set."""
        return self._actor or os.environ.get("TOKENCTL_ACTOR") or _os_user()


def _os_user() -> str:
    try:
        import pwd

        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid:{os.getuid()}"  # a container's user without an entry
    except ImportError:
        return os.environ.get("USERNAME", "unknown")


# --- the tree ----------------------------------------------------------------------------------


class Entry(NamedTuple):
    """A command before it is built."""

    function: Callable[..., int | None]
    example: str
    settings: tuple[str, ...]

    @property
    def help(self) -> str:
        return inspect.getdoc(self.function) or ""

    def build(self, name: str) -> Any:
        function = self.function
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        selected = next((each for each in own if each.annotation is Selected), None)
        selectors = dict(inspect.signature(Selected, eval_str=True).parameters) if selected else {}
        if selected:
            place = own.index(selected)
            own[place : place + 1] = selectors.values()
        taken = {parameter.name for parameter in own}
        # A command's own parameter of that name replaces the shared one.
        shared = {key: option for key, option in SHARED.items() if key not in taken}

        def call(ctx: typer.Context, **values: Any) -> int | None:
            if ctx.args:
                # Typer's own message would print them: one may be a password.
                ctx.fail(f"{len(ctx.args)} argument(s) more than this command takes")
            given = _merge(ctx, {key: values.pop(key) for key in shared})
            flags = {key: values.pop(key) for key in self.settings}
            texts = {
                key: str(value).lower() if isinstance(value, bool) else value for key, value in flags.items()
            }
            run = Run(ctx, given, {key: text for key, text in texts.items() if text is not None})
            if selected:
                values[selected.name] = Selected(**{key: values.pop(key) for key in selectors})
            with closing(run):
                return function(run, **values)

        _sign(call, own, {key: setting(key) for key in self.settings} | shared)
        single = _typer()
        single.command(
            name,
            cls=Command,
            help=self.help,
            epilog=_example(self.example),
            context_settings={"allow_extra_args": True},
        )(call)
        built = typer.main.get_command(single)
        assert isinstance(built, Command)
        built.own = frozenset(taken)
        return built


class Menu:
    """A group of commands, or the whole program."""

    def __init__(self, help: str, *, example: str) -> None:  # noqa: A002 - it is the --help
        self.help = help
        self.example = example
        self.entries: dict[str, Entry | Menu] = {}

    def arrange(self, order: Sequence[str]) -> None:
        """List the commands in that order; what it does not name comes last."""
        named = {name: self.entries[name] for name in order}
        self.entries = named | self.entries

    def build(self, name: str | None = None) -> Any:
        """The `TyperGroup` (of a class of typer's vendored click, which has no public name)."""

        def call(ctx: typer.Context, **values: Any) -> None:
            if values.pop("version", False):
                from importlib.metadata import version

                typer.echo(f"tokenctl {version('tokenctl')}")
                raise typer.Exit
            shared = _merge(ctx, values)
            if ctx.invoked_subcommand is None:
                # A script that lost its command must not look successful; a person wants the list.
                if shared.get("output") not in {"json", "jsonl"}:
                    typer.echo(ctx.get_help() + "\n", err=True)
                ctx.fail("Missing command.")

        version = Annotated[bool, typer.Option("--version", help="Print the version and exit.")]
        _sign(call, [], SHARED | ({} if name else {"version": version}))
        group = _typer()
        group.callback(cls=Group, help=self.help, epilog=_example(self.example), invoke_without_command=True)(
            call
        )
        built = typer.main.get_command(group)
        assert isinstance(built, Group)
        built.menu = self
        built.commands = dict.fromkeys(self.entries, built)  # the keys are for "did you mean"
        return built


@contextmanager
def _parsing(context: typer.Context) -> Iterator[None]:
    """Typer's parser does not say whose option lacks its value: the error has to name that --help."""
    try:
        yield
        _demand_text(context)
    except typer.TyperException as error:
        if getattr(error, "ctx", None) is None:
            error.ctx = context  # type: ignore[attr-defined]
        raise


def _demand_text(context: Any) -> None:
    """An unset variable of a script comes as an empty text: it must not stand for a default."""
    for each in context.command.params:
        given = context.params.get(each.name)
        if (given == "" and each.default != "") or (isinstance(given, list | tuple) and "" in given):
            name = each.make_metavar(context) if each.param_type_name == "argument" else each.opts[0]
            context.fail(f"{name} is empty: give it a value, or leave it out")


class Command(TyperCommand):
    """A command whose --help shows the shared options after its own."""

    own: frozenset[str]

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _parsing(ctx):
            return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        _format_options(self.get_params(ctx), ctx, formatter, SHARED.keys() - self.own)


class Group(TyperGroup):
    """A group that builds a command when it is asked for it; its list of commands needs none built."""

    menu: Menu

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        with _parsing(ctx):
            return super().parse_args(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002 - typer's signature
        entry = self.menu.entries.get(cmd_name)
        return entry and entry.build(cmd_name)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        _format_options(self.get_params(ctx), ctx, formatter, SHARED.keys())

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - typer's signature
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, entry.help.partition("\n")[0]) for name, entry in self.menu.entries.items()]
            )


app = Menu(
    "The refresh-token authority that you can operate: every login, listed, explained and revocable.",
    example="tokenctl init && tokenctl doctor",
)


def group(parent: Menu, name: str, help: str, *, example: str) -> Menu:  # noqa: A002 - it is the --help
    """A noun with several verbs: `users = group(app, "user", "Users and …", example="…")`."""
    menu = Menu(help, example=example)
    parent.entries[name] = menu
    return menu


def command(
    parent: Menu, name: str, *, example: str, settings: Iterable[str] = ()
) -> Callable[[_Command], _Command]:
    """Register a function as a command: its first parameter is the `Run`, its docstring the --help.

    It returns nothing, or an exit code. `settings` names the settings that are flags of this command.
    The function stays as it is: a second decorator gives it a second name.
    """

    def register(function: _Command) -> _Command:
        assert function.__doc__, f"{name} needs a docstring: its --help"
        parent.entries[name] = Entry(function, example, tuple(settings))
        return function

    return register


def _typer() -> typer.Typer:
    return typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)


def _sign(call: Callable[..., Any], own: Iterable[inspect.Parameter], extra: Mapping[str, Any]) -> None:
    """Give `call` the signature that Typer reads: the context, a command's own parameters, then `extra`."""
    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("ctx", kind, annotation=typer.Context),
        *(parameter.replace(kind=kind) for parameter in own),
        *(inspect.Parameter(name, kind, default=None, annotation=option) for name, option in extra.items()),
    ]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined] # any callable has one
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}


def _merge(ctx: typer.Context, values: Mapping[str, Any]) -> dict[str, Any]:
    """The shared options so far, with those of this level on top."""
    level = {name: value for name, value in values.items() if value is not None}
    if level.pop("json", False):
        level["output"] = "json"
    merged: dict[str, Any] = {**ctx.meta.get(_META, {}), **level}
    ctx.meta[_META] = merged
    return merged


def _example(text: str) -> str:
    r"""The end of a --help; `\b` keeps Typer from re-wrapping the lines."""
    return "\b\nExample:\n" + "\n".join(f"  {line}" for line in text.splitlines())


def _format_options(parameters: Iterable[Any], ctx: Any, formatter: Any, shared: Set[str]) -> None:
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "Shared options": []}
    for parameter in parameters:
        record = parameter.get_help_record(ctx)
        if record is not None:
            kind = "Shared options" if parameter.name in shared else "Options"
            sections["Arguments" if parameter.param_type_name == "argument" else kind].append(record)
    for title, records in sections.items():
        if records:
            with formatter.section(title):
                formatter.write_dl(records)
