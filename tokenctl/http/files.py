"""Files of this package that a server gives out as they are: Swagger UI, the browser client, the page.

Owns that a name leads to a file of its one directory or to nowhere, and that a browser asks whether it has
the newest: after an upgrade old and new files must not mix.
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tokenctl.http.endpoint import Answer, Endpoint
from tokenctl.http.problems import NoSuchRoute

if TYPE_CHECKING:
    from tokenctl.http.call import Call

_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".png": b"image/png",
    ".ts": b"text/plain; charset=utf-8",
}


class Files:
    """The files of one directory whose type is known here; `index.html` where no name is asked for."""

    def __init__(self, directory: Path, *, policy: bytes | None = None) -> None:
        """`policy` is the Content-Security-Policy of each."""
        self._directory = directory
        self._policy = policy

    def endpoint(self, path: str, summary: str) -> Endpoint:
        """The route to the file that `{file}` in the path names."""
        return Endpoint(
            method="GET",
            path=path,
            handler=self._answer,
            summary=summary,
            tag="system",
            cache=b"no-cache",
            documented=False,
        )

    async def _answer(self, call: Call, _: None) -> Answer:
        name = call.path_params.get("file", "index.html")
        if name not in self._contents:
            raise NoSuchRoute("there is no such file")
        content, tag = self._contents[name]
        headers = [(b"etag", tag)]
        if self._policy is not None:
            headers.append((b"content-security-policy", self._policy))
        # A proxy that compresses sends a weak one back (`W/"…"`), and a cache may send several.
        if tag in call.headers.get(b"if-none-match", b""):
            return Answer(None, headers, status=304)
        return Answer(content, headers, content_type=_TYPES[Path(name).suffix])

    @cached_property
    def _contents(self) -> dict[str, tuple[bytes, bytes]]:
        """By name the content and its entity tag. A list of names: no path can lead out of the directory."""
        return {
            path.name: (
                content := path.read_bytes(),
                b'"%s"' % hashlib.sha256(content).hexdigest()[:32].encode(),
            )
            for path in self._directory.iterdir()
            if path.suffix in _TYPES
        }
