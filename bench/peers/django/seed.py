"""Makes a Django peer's tables and its chains, a user each, and writes their strings to a file, a line each.

    BENCH_PEER=... BENCH_DATABASE_URL=... python -m bench.peers.django.seed --chains N --strings PATH

The strings come from the peer's own package, by `chain` in the module that has its routes.
"""
# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

import django


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--chains", type=int, required=True)
    parser.add_argument("--strings", type=Path, required=True)
    given = parser.parse_args()
    os.environ["DJANGO_SETTINGS_MODULE"] = "bench.peers.django.settings"
    django.setup()

    # None of these may be imported before the settings are there.
    from django.conf import settings
    from django.contrib.auth.hashers import make_password
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import transaction

    call_command("migrate", verbosity=0, interactive=False)
    peer = importlib.import_module(settings.ROOT_URLCONF)
    password = make_password(None)  # nobody logs in
    with transaction.atomic():
        users = [User(username=f"user{number}", password=password) for number in range(given.chains)]
        strings = [peer.chain(user) for user in User.objects.bulk_create(users)]
    given.strings.write_text("".join(f"{string}\n" for string in strings))
    return 0


if __name__ == "__main__":
    sys.exit(main())
