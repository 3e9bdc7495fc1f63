"""Calls of the API's own endpoints from inside the process."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import msgspec
from starlette.types import ASGIApp, Message, Scope

from pagemill.api.context import RequestScope
from pagemill.api.errors import error_response
from pagemill.api.middleware import OWNER_KEY
from pagemill.errors import InvalidParams

_DEFAULT_RETRY_SECONDS = 1


@dataclass(slots=True)
class Answer:
    """An endpoint's whole answer; `retry_after` in seconds, 0 when there is no such header."""

    status: int
    request_id: str
    body: bytes
    retry_after: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Modes(msgspec.Struct):
    """Ways to answer that make no sense in a file."""

    stream: bool | None = None
    background: bool | None = None


_modes_decoder = msgspec.json.Decoder(_Modes)


@dataclass
class _Exchange:
    """One request and what was sent back."""

    body: bytes
    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    parts: list[bytes] = field(default_factory=list)
    received: bool = False

    async def receive(self) -> Message:
        if self.received:
            await asyncio.Event().wait()  # the client never leaves; cancelled with the request
        self.received = True
        return {"type": "http.request", "body": self.body, "more_body": False}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.lower(): value for name, value in message["headers"]}
        else:
            self.parts.append(message.get("body", b""))


async def call(app: ASGIApp, url: str, body: bytes, owner: str, request_id: str) -> Answer:
    """POST a JSON body to an endpoint of `app` in the name of `owner`, a key's id."""
    exchange = _Exchange(body)
    scope = _scope(url, len(body), owner, request_id)
    refused = _refused_mode(body)
    if refused is None:
        await app(scope, exchange.receive, exchange.send)
    else:
        await error_response(refused, url)(scope, exchange.receive, exchange.send)
    details: RequestScope | None = scope.get("pagemill")
    retry_after = exchange.headers.get(b"retry-after", b"")
    return Answer(
        exchange.status,
        details.request_id if details else request_id,
        b"".join(exchange.parts),
        retry_after=int(retry_after) if retry_after.isdigit() else _DEFAULT_RETRY_SECONDS,
        prompt_tokens=details.prompt_tokens if details else 0,
        completion_tokens=details.completion_tokens if details else 0,
    )


def _refused_mode(body: bytes) -> InvalidParams | None:
    try:
        modes = _modes_decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # the endpoint says what is wrong
    for name in modes.__struct_fields__:
        if getattr(modes, name):
            return InvalidParams(f"{name} does not go with batches", param=name)
    return None


def _scope(url: str, num_bytes: int, owner: str, request_id: str) -> Scope:
    headers = {
        "host": "localhost",
        "content-type": "application/json",
        "content-length": str(num_bytes),
        "x-request-id": request_id,
    }
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": url,
        "raw_path": url.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": None,
        "server": ("localhost", None),
        OWNER_KEY: owner,
    }
