"""How a database gets from one schema version to the next, for SQLite and PostgreSQL alike.

Run by `storage.migrate`; nothing else imports this. There is no way down: restore a backup.
"""
