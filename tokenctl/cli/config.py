"""`tokenctl config`: each setting, and where its value came from."""

from __future__ import annotations

from tokenctl.cli.options import Run, app, command
from tokenctl.cli.output import Column

COLUMNS = (Column("name", "setting"), Column("value"), Column("source", "from"), Column("env", "environment"))


@command(app, "config", example="tokenctl config\ntokenctl config --json --fields name,value,source")
def config(run: Run) -> None:
    """Show each setting and where its value came from.

    A flag wins over the environment, that over ./tokenctl.toml, that over the user's configuration
    directory, that over /etc/tokenctl.toml. Secrets are masked.
    """
    from tokenctl.settings import describe

    run.out.rows(describe(run.loaded), COLUMNS, limit=0)
