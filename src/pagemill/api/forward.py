"""Requests about state that one process owns, handed to it over a local socket.

Of several frontends one owns what must exist once: stored responses, the control endpoints, the
sum of the metrics, whether the server is ready. The others answer what needs nothing of that, and
pass the rest on unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any

import httptools
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pagemill.api.connection import run_unless_left
from pagemill.api.errors import ClientDisconnected, error_response
from pagemill.errors import OverloadedError

# Every frontend can answer these by itself.
ANYWHERE = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/rerank",
        "/v2/rerank",
        "/rerank",
        "/v1/score",
        "/score",
        "/classify",
        "/pooling",
        "/v1/models",
        "/tokenize",
        "/detokenize",
        "/version",
    }
)
CLIENT_HEADER = b"x-pagemill-client"  # only trusted on the local socket
RETRY_SECONDS = 1
_READ_BYTES = 65536
_HOP_HEADERS = frozenset(
    (b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"expect", b"te", b"trailer")
)
_LENGTH = b"content-length"
_BODY_END: Message = {"type": "http.response.body", "body": b"", "more_body": False}


class Forwarder:
    """Outermost in a frontend that owns nothing."""

    def __init__(self, app: ASGIApp, owner_path: str) -> None:
        self._app = app
        self._owner_path = owner_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in ANYWHERE:
            await self._app(scope, receive, send)
            return
        try:
            reader, writer = await asyncio.open_unix_connection(self._owner_path)
        except OSError:
            error = OverloadedError("The server is restarting or stopping", RETRY_SECONDS)
            await error_response(error, scope["path"])(scope, receive, send)
            return
        exchange = _Exchange(reader, send, has_body=scope["method"] != "HEAD")
        try:
            await _first(exchange.answer(), _pass_on(writer, scope, receive))
        except (ConnectionError, asyncio.IncompleteReadError, httptools.HttpParserError):
            if not exchange.started:
                error = OverloadedError("The server is restarting or stopping", RETRY_SECONDS)
                await error_response(error, scope["path"])(scope, receive, send)
        except ClientDisconnected:
            writer.transport.abort()  # not only when the owner has read what was sent
        finally:
            writer.close()


class OwnerDoor:
    """Outermost on the owner's local socket: puts back the address of the real client."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = list(scope["headers"])
            for name, value in headers:
                if name == CLIENT_HEADER:
                    host, _, port = value.decode("latin-1").rpartition(" ")
                    scope["client"] = (host, int(port))
            scope["headers"] = [pair for pair in headers if pair[0] != CLIENT_HEADER]
        await self._app(scope, receive, send)


async def _first(answer: Coroutine[Any, Any, None], sending: Coroutine[Any, Any, None]) -> None:
    """Until there is an answer, which may come before everything was sent; raises what they do."""
    tasks = [asyncio.ensure_future(answer), asyncio.ensure_future(sending)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        (tasks[0] if tasks[0] in done else tasks[1]).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(writer: asyncio.StreamWriter, scope: Scope, receive: Receive) -> None:
    """Send the request, then wait for the client to leave. Raises ClientDisconnected."""
    with suppress(ConnectionError):  # then the owner has answered, or is gone
        await run_unless_left(_send_request(writer, scope, receive), scope)
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientDisconnected


async def _send_request(writer: asyncio.StreamWriter, scope: Scope, receive: Receive) -> None:
    """The request as it came, its body piece by piece."""
    target = scope["raw_path"]
    if scope["query_string"]:
        target += b"?" + scope["query_string"]
    lines = [b"%b %b HTTP/1.1" % (scope["method"].encode(), target)]
    chunked = any(name == b"transfer-encoding" for name, _ in scope["headers"])
    for name, value in scope["headers"]:
        # A length beside chunks would let a body pass for another request.
        if name in _HOP_HEADERS or name == CLIENT_HEADER or (chunked and name == _LENGTH):
            continue
        lines.append(name + b": " + value)
    client = scope.get("client") or ("-", 0)
    lines.append(CLIENT_HEADER + f": {client[0]} {client[1]}".encode())
    if chunked:
        lines.append(b"transfer-encoding: chunked")
    lines.append(b"connection: close")
    writer.write(b"\r\n".join(lines) + b"\r\n\r\n")
    async for piece in _body(receive):
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        await writer.drain()
    if chunked:
        writer.write(b"0\r\n\r\n")


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    """The pieces of the body. Raises ClientDisconnected."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body", False):
            return


class _Exchange:
    """Reads the owner's response and sends it on as it comes."""

    def __init__(self, reader: asyncio.StreamReader, send: Send, *, has_body: bool) -> None:
        self.started = False
        self._has_body = has_body
        self._reader = reader
        self._send = send
        self._parser = httptools.HttpResponseParser(self)
        self._headers: list[tuple[bytes, bytes]] = []
        self._messages: list[Message] = []
        self._complete = False

    async def answer(self) -> None:
        """Until the response is complete. Raises ConnectionError when it breaks off."""
        while not self._complete:
            data = await self._reader.read(_READ_BYTES)
            if not data:
                raise ConnectionResetError("the owner closed the connection")
            self._parser.feed_data(data)
            messages, self._messages = self._messages, []
            for message in messages:
                self.started = True
                await self._send(message)

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name not in _HOP_HEADERS and name != b"date":  # this server adds its own
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        start = {"type": "http.response.start", "status": status, "headers": self._headers}
        self._messages.append(start)
        if not self._has_body:
            self.on_message_complete()

    def on_body(self, body: bytes) -> None:
        self._messages.append({"type": "http.response.body", "body": body, "more_body": True})

    def on_message_complete(self) -> None:
        self._messages.append(_BODY_END)
        self._complete = True
