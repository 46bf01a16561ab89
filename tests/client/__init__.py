"""The Python client, against a server that runs."""
