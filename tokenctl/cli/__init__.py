"""The command line: every command parses, calls the service once, and calls the printer once."""
