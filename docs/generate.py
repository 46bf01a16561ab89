"""Writes the pages that follow from the code: cli.md from each --help, configuration.md from the settings.

    python docs/generate.py

A test fails when they are out of step (tests/test_docs.py).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def cli_page() -> str:
    """Every command with its --help."""
    from tokenctl.cli.main import ORDER
    from tokenctl.cli.options import Menu, app

    app.arrange(ORDER)
    parts = [
        "# Command line reference\n\n"
        "Made by `python docs/generate.py` from the program; `tokenctl help COMMAND` prints the same.\n\n"
        f"```text\n{_help()}\n```\n"
    ]
    for name, entry in app.entries.items():
        parts.append(_section(name))
        if isinstance(entry, Menu):
            parts += [_section(name, verb) for verb in entry.entries]
    parts.append(f"\n## Exit codes\n\n```text\n{_run('help', 'exit-codes')}\n```\n")
    return "".join(parts)


def configuration_page() -> str:
    """Every setting: its names, its default, what it does."""
    import tokenctl.cli.main  # noqa: F401 - registers the commands
    from tokenctl.cli.options import SHARED, Entry, app
    from tokenctl.settings import SETTINGS, Settings

    entries = [entry for entry in app.entries.values() if isinstance(entry, Entry)]
    flags = set(SHARED).union(*(entry.settings for entry in entries))
    defaults = Settings()
    rows = ""
    for each in SETTINGS:
        flag = f"`{each.flag}`" if each.name in flags else ""
        default = f"`{each.show(defaults)}`" if each.show(defaults) else ""
        rows += f"| `{each.name}` | `{each.env}` | {flag} | {default} | {each.doc} |\n"
    return (
        "# Configuration\n\n"
        "Made by `python docs/generate.py` from the program itself.\n\n"
        "A flag wins over the environment, that over `./tokenctl.toml`, that over\n"
        "`tokenctl/tokenctl.toml` in the user's configuration directory, that over\n"
        "`/etc/tokenctl.toml`. `tokenctl config` shows each value and where it came from.\n\n"
        "In a file every value is a quoted string, and a path is relative to the file. Durations are\n"
        "written `90s`, `10m`, `2h`, `30d`, `1h30m`. A flag stands on the commands that it fits;\n"
        "`--database` and `--key-file` fit all of them.\n\n"
        "| key in tokenctl.toml | environment | flag | default | what |\n|---|---|---|---|---|\n" + rows
    )


PAGES = {"cli.md": cli_page, "configuration.md": configuration_page}


def _section(*command: str) -> str:
    return f"\n## tokenctl {' '.join(command)}\n\n```text\n{_help(*command)}\n```\n"


def _help(*command: str) -> str:
    return _run(*command, "--help")


def _run(*arguments: str) -> str:
    """What the real program prints, 100 columns wide."""
    done = subprocess.run(
        [sys.executable, "-m", "tokenctl", *arguments],
        env=os.environ | {"COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
