"""The signing keys of a database: which there are. Making and wrapping one is `core.keys`."""

from __future__ import annotations

from tokenctl.service.runtime import Runtime
from tokenctl.storage import keys
from tokenctl.storage.keys import StoredKey


class KeyService:
    """Reached as `TokenService.keys`."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def list(self) -> list[StoredKey]:
        """All signing keys, the newest first; the private halves stay wrapped. Needs no master key."""
        with self._runtime.storage.read() as connection:
            return keys.all_keys(connection)
