"""Django's settings for both peers of bench/http.py; the environment says which one, and on which database.

- BENCH_PEER: `simplejwt` or `dot`, the module beside this one that has its routes and makes its chains
- BENCH_DATABASE_URL: an empty database of its own on PostgreSQL, since the tables of both have the same names
- BENCH_ATOMIC: 1 for a transaction around each request, which is Django's option ATOMIC_REQUESTS
- BENCH_GRACE_SECONDS: for dot, how long a rotated token is still answered

The packages' own defaults, but for what a server that is measured needs: no debugging, connections that stay,
and none of the middleware for browsers that the routes do not use. Lifetimes are ours.
"""
# The packages are installed in .venv beside this file, and nowhere else.
# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from psycopg.conninfo import conninfo_to_dict

_PEER = os.environ["BENCH_PEER"]
_APPS = {
    "simplejwt": ["rest_framework", "rest_framework_simplejwt.token_blacklist"],
    "dot": ["oauth2_provider"],
}
_DATABASE = conninfo_to_dict(os.environ["BENCH_DATABASE_URL"])
_PEM = Path(__file__).with_name("signing-key.pem").read_text()
_MINUTES, _MONTH = timedelta(minutes=10), timedelta(days=30)

DEBUG = False
SECRET_KEY = "nothing is ever signed with it here"
ALLOWED_HOSTS = ["127.0.0.1"]
ROOT_URLCONF = f"bench.peers.django.{_PEER}"
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth", *_APPS[_PEER]]
# It sets Content-Length; without it gunicorn answers in chunks, which takes longer.
MIDDLEWARE = ["django.middleware.common.CommonMiddleware"]
USE_I18N = False
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": _DATABASE.get("dbname", ""),
        "USER": _DATABASE.get("user", ""),
        "PASSWORD": _DATABASE.get("password", ""),
        "HOST": _DATABASE.get("host", ""),
        "PORT": str(_DATABASE.get("port", "")),
        "CONN_MAX_AGE": None,
        "ATOMIC_REQUESTS": os.environ.get("BENCH_ATOMIC") == "1",
    }
}

REST_FRAMEWORK = {
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
}

SIMPLE_JWT = {
    "ALGORITHM": "ES256",
    "SIGNING_KEY": _PEM,
    "VERIFYING_KEY": serialization.load_pem_private_key(_PEM.encode(), None)
    .public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    .decode(),
    "ROTATE_REFRESH_TOKENS": True,
    "BLACKLIST_AFTER_ROTATION": True,
    "ACCESS_TOKEN_LIFETIME": _MINUTES,
    "REFRESH_TOKEN_LIFETIME": _MONTH,
}

OAUTH2_PROVIDER = {
    "ROTATE_REFRESH_TOKEN": True,
    "REFRESH_TOKEN_GRACE_PERIOD_SECONDS": int(os.environ.get("BENCH_GRACE_SECONDS", "0")),
    "ACCESS_TOKEN_EXPIRE_SECONDS": int(_MINUTES.total_seconds()),
    "REFRESH_TOKEN_EXPIRE_SECONDS": int(_MONTH.total_seconds()),
    "SCOPES": {"profile": "the scope of the benchmark"},
}
