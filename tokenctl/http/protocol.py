"""How bytes become requests and answers bytes: uvicorn's way, with what it leaves open closed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Bytes of one request in all, headers included: nobody needs a tenth, and nothing else bounds the headers.
_MAX_REQUEST = 262_144
#: How long a request may take to come in (s), the first one from when the connection was made; who never ends
#: one would also hold up every stop.
_REQUEST_WITHIN = 10
#: How often it is looked whether a client reads what was written for it (s), and how many bytes it must have
#: taken by then. Who takes less holds our memory, and would hold up every stop.
_READ_WITHIN = 10
_MIN_READ = 65_536
#: Bytes of a body that are copied to be written in one piece with the head.
_MAX_JOINED = 16_384


class _OneWrite:
    """A transport that keeps the head of an answer until its body comes, and writes both at once.

    uvicorn writes them one after the other, and uvloop sends each: a second system call and a second packet
    for every answer, which was a twentieth of what a refresh costs.
    """

    def __init__(self, transport: asyncio.Transport, closing: Callable[[], None]) -> None:
        self._transport = transport
        self._closing = closing
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():  # uvicorn goes on with a request whose connection was cut
            return
        if self._head:
            head, self._head = self._head, b""
            if len(data) > _MAX_JOINED:
                self._transport.writelines([head, data])
                return
            data = head + data
        elif data.endswith(b"\r\n\r\n") and data.startswith(b"HTTP/1.1 ") and data[9:10] != b"1":
            self._head = data
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Write a head that has no body."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()
        self._closing()


class Protocol(HttpToolsProtocol):
    """uvicorn's, with an end to what one client may make us hold and for how long, and deaf to `Upgrade`.

    httptools skips the body of a request with that header and reads it as the next request (uvicorn's issue
    2722): Java's clients send one with every first request, and behind a proxy it would be a smuggler's way.
    So such a request is read again without it (RFC 9110 §7.8: a server may ignore it).
    """

    _taken = 0
    _late: asyncio.TimerHandle | None = None
    #: Runs while writing is paused, and from the closing to its end.
    _unread: asyncio.TimerHandle | None = None
    _stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        self._out = _OneWrite(transport, self._watch_reader)
        super().connection_made(cast(asyncio.Transport, self._out))
        self._late = self.loop.call_later(_REQUEST_WITHIN, self.transport.abort)

    def on_response_complete(self) -> None:
        self._out.flush()
        super().on_response_complete()

    def data_received(self, data: bytes) -> None:
        self._taken += len(data)
        if self._taken > _MAX_REQUEST:
            self.transport.abort()
            return
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        # By far the most requests come at once, and need no timer.
        if self._taken and self._late is None:
            self._late = self.loop.call_later(_REQUEST_WITHIN, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)  # which closes the transport once more
        self._in_time()
        self._forget_reader()

    def _in_time(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def shutdown(self) -> None:
        self._stopping = True
        super().shutdown()

    # --- a client that does not read ---

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        self._forget_reader()
        super().resume_writing()
        if self.transport.is_closing():
            self._watch_reader()

    def _watch_reader(self) -> None:
        """Called when writing pauses, and when the transport closes: that waits until the last byte is read,
        and with TLS until the client has agreed.
        """
        if self._unread is None:
            waiting = self.transport.get_write_buffer_size()
            self._unread = self.loop.call_later(_READ_WITHIN, self._demand_read, waiting)

    def _demand_read(self, before: int) -> None:
        """Cut off a client that took too little of what waits for it; at a stop whoever has not taken all."""
        self._unread = None
        if self._stopping or self.transport.get_write_buffer_size() > before - _MIN_READ:
            self.transport.abort()
        else:
            self._watch_reader()

    def _forget_reader(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    # --- parsing ---

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if (method := self.parser.get_method()) == b"CONNECT":
                raise httptools.HttpParserError("this is no proxy") from None
            version = self.parser.get_http_version().encode()
            lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
            lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self._parse(b"\r\n".join([*lines, b"", b""]) + data[upgrade.args[0] :])

    def on_headers_complete(self) -> None:
        if not self.parser.should_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._taken = 0
            self._in_time()
            super().on_message_complete()
