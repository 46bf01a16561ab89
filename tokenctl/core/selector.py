"""What an operator can select refresh tokens by, as plain data.

OR within a field, AND across fields. A selector that names nothing is refused: nothing ever means
"everything" by accident. `storage.tokens` turns it into a WHERE clause.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from tokenctl.errors import EmptySelector


class SelectState(StrEnum):
    """States to select by. `expired` holds the idle ones too; `dead` is expired or revoked."""

    LIVE = "live"
    BLOCKED = "blocked"
    IDLE = "idle"
    EXPIRED = "expired"
    REVOKED = "revoked"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class Selector:
    """Each field is a tuple of alternatives; an empty one does not restrict.

    users: names or `usr_…`; clients: client ids; token_ids: `rt_…`; everything lifts the refusal.
    """

    users: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    states: tuple[SelectState, ...] = ()
    token_ids: tuple[str, ...] = ()
    everything: bool = False

    def require_some(self) -> Selector:
        """Itself; raises EmptySelector when it names nothing."""
        if not (self.everything or self.users or self.clients or self.states or self.token_ids):
            raise EmptySelector("nothing is selected")
        return self
