"""`python -m tokenctl` is `tokenctl`."""

from __future__ import annotations

import sys

from tokenctl.cli.main import main

sys.exit(main())
