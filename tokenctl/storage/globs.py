"""An operator's patterns, `*` for any text and `?` for one character, in the language of each database."""

from __future__ import annotations

import re

from sqlalchemy.engine import Connection
from sqlalchemy.sql import ColumnElement

#: The wildcards of a glob in the language of LIKE.
_LIKE = str.maketrans("*?", "%_")


def like_glob(connection: Connection, column: ColumnElement[str], glob: str) -> ColumnElement[bool]:
    """Whether all of a text matches; case counts, and all but `*` and `?` is itself."""
    if connection.dialect.name == "sqlite":
        # Its LIKE takes an a for an A. Its GLOB has our `*` and `?`, and sets in brackets besides.
        return column.bool_op("GLOB")(glob.replace("[", "[[]"))
    return column.like(re.sub("[!%_]", r"!\g<0>", glob).translate(_LIKE), escape="!")
