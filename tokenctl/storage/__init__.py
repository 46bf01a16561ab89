"""The only place that knows SQLAlchemy, SQL and the database's files. Rules live in `core`."""
