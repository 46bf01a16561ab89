"""The use cases: one method, one transaction; the audit inside it, errors raised after the commit."""
