"""djangorestframework-simplejwt as a peer: POST /refresh rotates, and the old token goes on the blacklist.

Its tokens are JWTs, the refresh token too. A rotation signs both and verifies one; each of its two rows is a
commit of its own, unless requests are transactions (BENCH_ATOMIC).
"""
# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

from typing import Any

from django.urls import path
from rest_framework_simplejwt.tokens import RefreshToken
from rest_framework_simplejwt.views import TokenRefreshView

urlpatterns = [path("refresh", TokenRefreshView.as_view())]


def chain(user: Any) -> str:
    """The first refresh token of a new chain of that user."""
    return str(RefreshToken.for_user(user))
