"""`tokenctl user import`: the users of another system, from a file or a pipe."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import Annotated

import typer

from tokenctl.cli import options, targets
from tokenctl.cli.confirm import open_file, read_lines
from tokenctl.cli.interrupt import stoppable
from tokenctl.cli.options import Run, command
from tokenctl.cli.output import Column
from tokenctl.cli.users import users

_IMPORTED = [
    Column("imported"),
    Column("existing"),
    Column("refused"),
    Column("without_password"),
    Column("complete"),
    Column("dry_run"),
]
#: How many refusals are told on a terminal.
_SHOWN = 20


@command(
    users,
    "import",
    example="tokenctl user import users.csv --dry-run\n"
    "tokenctl user import users.jsonl --name-field email --hash-field encrypted_password\n"
    "zcat users.csv.gz | tokenctl user import - 2> refused.txt",
)
def import_(
    run: Run,
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="JSON lines, or CSV with a header; - is stdin.")
    ],
    *,
    name_field: Annotated[
        str, typer.Option("--name-field", metavar="FIELD", help="What the field of the names is called.")
    ] = "name",
    hash_field: Annotated[
        str | None,
        typer.Option(
            "--hash-field",
            metavar="FIELD",
            help="And that of the password hashes; default password_hash, if there is one.",
        ),
    ] = None,
    dry_run: options.DryRun = False,
) -> int:
    """Take over the users of another system, with the password hashes that they have there.

    Hashes of Argon2, bcrypt, scrypt, PBKDF2 and Django's PBKDF2 can be verified, and are replaced at the
    first login. Who has none can be issued tokens, and not log in. A field `disabled` may be true or false. A
    name that is there already is left as it is: the same command goes on after an interruption. Lines that
    cannot be used are told on stderr, and the rest is done: exit 3, or 4 where none could.
    """
    run.out.expect(_IMPORTED)
    from tokenctl.service import user_lines

    service = run.service
    if file != "-":
        opened = open_file(targets.one(file))
    elif sys.stdin.isatty():
        run.out.note("users, one a line; Ctrl-D ends")
    refusals = _Refusals(run)
    with nullcontext(sys.stdin.buffer) if file == "-" else opened as stream, stoppable() as stop:
        lines = stop.until(read_lines(stream, user_lines.LONGEST_LINE))
        with run.out.progress("importing") as advance:
            done = service.users.import_many(
                user_lines.read(lines, name_field=name_field, hash_field=hash_field),
                dry_run=dry_run,
                stop=stop,
                progress=advance,
                report=refusals,
            )
    refusals.tell()
    record = {column.name: getattr(done, column.name) for column in _IMPORTED}
    parts = [f"{'would import' if dry_run else 'imported'} {done.imported:,}"]
    parts += [
        f"{name.replace('_', ' ')} {record[name]:,}"
        for name in ("existing", "refused", "without_password")
        if record[name]
    ]
    if not done.complete:
        parts.append("stopped early, the same command goes on")
    run.out.summary(record, _IMPORTED, " · ".join(parts))
    return stop.exit_code or (0 if not done.refused else 3 if done.imported + done.existing else 4)


class _Refusals:
    """Tells each at once; on a terminal the first ones, and not before the bar is gone."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._held: list[str] = []
        self._more = 0

    def __call__(self, line: int, reason: str) -> None:
        told = f"line {line:,}: {reason}"
        if not sys.stderr.isatty():
            self._run.out.warn(told)
        elif len(self._held) < _SHOWN:
            self._held.append(told)
        else:
            self._more += 1

    def tell(self) -> None:
        """What was held back."""
        for told in self._held:
            self._run.out.warn(told)
        if self._more:
            self._run.out.note(f"and {self._more:,} more; 2> FILE has all of them")
