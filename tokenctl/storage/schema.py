"""The tables, once, for SQLite and PostgreSQL.

Owns names, types, constraints and indexes. Does not own how a database gets there (`migrations/`);
a test holds the two against each other.

Instants and durations are integer microseconds (UTC). Ids are 16 bytes (UUIDv7, so that the primary
key grows at its end). Nothing that a rotation changes is in an index, so that PostgreSQL can update in
place (HOT). expires_at has no index either: what is dead is an OR with the idle lifetime, which no index
serves, and one more index makes a purge several times slower. A cut-off of 0 means that there is none.

On SQLite the tables of a rotation have no rowid: the row lies in its primary key, one search instead of two.

What is PostgreSQL's alone (the fillfactor) stands in the migration: to name it here would import its
dialect at every start of the command line, a quarter of what the whole start may cost.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)

#: The revision that this release works on; a test holds it against the newest migration.
SCHEMA_VERSION = "0003"

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "ix": "ix_%(table_name)s_%(column_0_name)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

# STRICT tables of SQLite know INTEGER (64 bits there), TEXT and BLOB only.
Int64 = BigInteger().with_variant(Integer, "sqlite")
Id = LargeBinary(16)
# In the order of its code points on either database, whatever the language of a server.
Key = Text().with_variant(Text(collation="C"), "postgresql")

meta = Table(
    "meta",
    metadata,
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    sqlite_strict=True,
)

realm = Table(
    "realm",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("not_before", Int64, nullable=False),
    Column("recovered_at", Int64),
    CheckConstraint("id = 1", name="single_row"),
    CheckConstraint("not_before >= 0", name="not_before"),
    sqlite_strict=True,
)

clients = Table(
    "clients",
    metadata,
    Column("id", Key, primary_key=True),
    Column("created_at", Int64, nullable=False),
    Column("not_before", Int64, nullable=False),
    # Its CHECK is the column's own: a column that is added to a table of SQLite can bring no other.
    Column("secret_hash", LargeBinary(32), CheckConstraint("length(secret_hash) = 32", name="secret_hash")),
    CheckConstraint("length(id) BETWEEN 1 AND 128", name="id"),
    CheckConstraint("not_before >= 0", name="not_before"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

users = Table(
    "users",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("name_key", Key, nullable=False, unique=True),
    Column("password_hash", Text),
    Column("created_at", Int64, nullable=False),
    Column("disabled_at", Int64),
    Column("disabled_until", Int64),
    Column("not_before", Int64, nullable=False),
    CheckConstraint("length(id) = 16", name="id"),
    CheckConstraint("length(name) BETWEEN 1 AND 254", name="name"),
    CheckConstraint("disabled_until IS NULL OR disabled_at IS NOT NULL", name="disabled"),
    CheckConstraint("not_before >= 0", name="not_before"),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    Column("id", Id, primary_key=True),
    Column("user_id", Id, ForeignKey("users.id", ondelete="CASCADE"), nullable=False, index=True),
    Column("client_id", Key, ForeignKey("clients.id"), nullable=False),
    Column("scope", Text, nullable=False),
    Column("generation", Int64, nullable=False),
    Column("secret_hash", LargeBinary(32), nullable=False),
    Column("created_at", Int64, nullable=False),
    Column("rotated_at", Int64, nullable=False),
    Column("access_until", Int64, nullable=False),
    Column("expires_at", Int64, nullable=False),
    Column("idle_ttl", Int64),
    Column("revoked_at", Int64),
    Column("revoked_reason", Text),
    Column("revoked_by", Text),
    # The caller's context, at issue and at last use. An address is 16 bytes (IPv4 mapped, RFC 4291
    # §2.5.5.2), so that a range is one BETWEEN on either database.
    Column("issued_ip", LargeBinary(16)),
    Column("issued_user_agent", Text),
    Column("issued_device", LargeBinary(32)),
    Column("last_ip", LargeBinary(16)),
    Column("last_user_agent", Text),
    Column("last_device", LargeBinary(32)),
    # Set by the rotation's own statement, since RETURNING sees new values only.
    Column("context_changed", Integer, nullable=False),
    CheckConstraint("length(id) = 16", name="id"),
    CheckConstraint("generation BETWEEN 0 AND 4294967295", name="generation"),
    CheckConstraint("length(secret_hash) = 32", name="secret_hash"),
    CheckConstraint("expires_at > created_at", name="expires_at"),
    CheckConstraint("idle_ttl IS NULL OR idle_ttl > 0", name="idle_ttl"),
    CheckConstraint(
        "(revoked_at IS NULL) = (revoked_reason IS NULL) AND (revoked_by IS NULL OR revoked_at IS NOT NULL)",
        name="revoked",
    ),
    CheckConstraint("context_changed IN (0, 1)", name="context_changed"),
    CheckConstraint("coalesce(length(issued_ip), 16) = 16 AND coalesce(length(last_ip), 16) = 16", name="ip"),
    CheckConstraint(
        "coalesce(length(issued_device), 32) = 32 AND coalesce(length(last_device), 32) = 32", name="device"
    ),
    sqlite_strict=True,
    sqlite_with_rowid=False,
)

# Events outlive what they tell of, so they refer to nothing by foreign key.
events = Table(
    "events",
    metadata,
    Column("id", Int64, primary_key=True),
    Column("at", Int64, nullable=False),
    Column("type", Text, nullable=False),
    Column("actor", Text),
    Column("user_id", Id),
    # What happened to one login is asked for by `inspect`, and before a refusal is noted again.
    Column("token_id", Id, index=True),
    Column("client_id", Text),
    Column("ip", LargeBinary(16)),
    Column("reason", Text),
    Column("data", Text, nullable=False),  # a JSON object
    # The sealed segment that holds it; none until the sealer comes by.
    Column("segment", Int64, index=True),
    CheckConstraint("coalesce(length(ip), 16) = 16", name="ip"),
    sqlite_strict=True,
    # An id is never given twice, even when the newest events were deleted.
    sqlite_autoincrement=True,
)

segments = Table(
    "segments",
    metadata,
    Column("number", Int64, primary_key=True, autoincrement=False),
    Column("sealed_at", Int64, nullable=False),
    # How many events it holds, and for each its id (8 bytes, big-endian) and its MAC (16), in order of id.
    Column("events", Int64, nullable=False),
    Column("members", LargeBinary, nullable=False),
    Column("mac", LargeBinary(32), nullable=False),
    CheckConstraint("number > 0", name="number"),
    CheckConstraint("events > 0", name="events"),
    CheckConstraint("length(mac) = 32", name="mac"),
    sqlite_strict=True,
)

# What a dry run has shown, until somebody acts on it or an hour is over.
plans = Table(
    "plans",
    metadata,
    Column("id", Key, primary_key=True),
    Column("created_at", Int64, nullable=False),
    Column("expires_at", Int64, nullable=False),
    Column("actor", Text, nullable=False),
    # A JSON object: what was selected by; null where ids and strings were named.
    Column("selector", Text),
    Column("tokens", Int64, nullable=False),
    Column("users", Int64, nullable=False),
    sqlite_strict=True,
)
plan_members = Table(
    "plan_members",
    metadata,
    Column("plan_id", Key, ForeignKey("plans.id", ondelete="CASCADE"), primary_key=True),
    # The ids of refresh tokens, 16 bytes each and in order, cut up into rows of at most 1,000.
    Column("number", Int64, primary_key=True, autoincrement=False),
    Column("ids", LargeBinary, nullable=False),
    CheckConstraint("length(ids) BETWEEN 16 AND 16000", name="ids"),
    sqlite_strict=True,
)

signing_keys = Table(
    "signing_keys",
    metadata,
    Column("kid", Text, primary_key=True),
    Column("algorithm", Text, nullable=False),
    Column("public_jwk", Text, nullable=False),
    Column("wrapped_private_key", LargeBinary, nullable=False),
    Column("created_at", Int64, nullable=False),
    Column("retired_at", Int64),
    # The default is never used: it is there because SQLite adds no column that may not be null without one.
    Column("active_at", Int64, nullable=False, server_default=text("0")),
    CheckConstraint("algorithm IN ('ES256', 'RS256')", name="algorithm"),
    sqlite_strict=True,
)
