"""`python -m tokenctl` is `tokenctl`, and the way in of both."""

from __future__ import annotations

import signal
import sys


def run() -> int:
    """Run the command line; returns its exit code."""
    # While modules are imported nothing is begun that had to end well: a Ctrl-C ends it at once.
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    from tokenctl.cli.main import main

    signal.signal(signal.SIGINT, before)
    return main()


if __name__ == "__main__":
    sys.exit(run())
