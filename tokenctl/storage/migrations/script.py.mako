"""${message}.

On SQLite, a batch operation on a table that others refer to drops it on the way, and with
`foreign_keys = ON`, which no statement can change inside a transaction, that deletes their rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade() -> None:
    ${upgrades if upgrades else "pass"}
