"""django-oauth-toolkit as a peer: refresh grants of the public client `default` at POST /o/token/.

Its access tokens are random strings in a table, as it comes, and not JWTs; a rotation deletes the old one.
"""
# mypy: disable-error-code="import-not-found, import-untyped"

from __future__ import annotations

import uuid
from datetime import timedelta
from functools import cache
from typing import Any

from django.conf import settings
from django.urls import include, path
from django.utils import timezone
from oauth2_provider.models import AccessToken, Application, RefreshToken
from oauthlib.common import generate_token

urlpatterns = [path("o/", include("oauth2_provider.urls", namespace="oauth2_provider"))]


def chain(user: Any) -> str:
    """The first refresh token of a new chain of that user; the rows are those of an authorization code's."""
    lifetime = timedelta(seconds=settings.OAUTH2_PROVIDER["ACCESS_TOKEN_EXPIRE_SECONDS"])
    owned = {"user": user, "application": _client()}
    access = AccessToken.objects.create(
        token=generate_token(), expires=timezone.now() + lifetime, scope="profile", **owned
    )
    string: str = generate_token()
    RefreshToken.objects.create(token=string, access_token=access, token_family=uuid.uuid4(), **owned)
    return string


@cache
def _client() -> Any:
    return Application.objects.create(
        name="benchmark",
        client_id="default",
        client_type=Application.CLIENT_PUBLIC,
        authorization_grant_type=Application.GRANT_AUTHORIZATION_CODE,
        redirect_uris="http://127.0.0.1/callback",
    )
