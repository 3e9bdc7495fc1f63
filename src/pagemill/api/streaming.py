"""What the generating endpoints share: whole answer or stream, and the usage in chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.connection import run_while_connected
from pagemill.api.context import ServerContext
from pagemill.api.generation import Generation
from pagemill.api.responses import Usage
from pagemill.api.schema import StreamOptions
from pagemill.api.sse import EventStream

IGNORED_HEADER = "x-ignored-parameters"


class Call(Protocol):
    """One request, ready to run one way or the other."""

    def events(self) -> AsyncGenerator[bytes, None]:
        """The server-sent events, without the [DONE] that ends them."""
        ...

    async def complete(self) -> msgspec.Struct:
        """The whole answer."""
        ...


async def answer(
    request: Request, context: ServerContext, call: Call, *, stream: bool, ignored: list[str]
) -> Response:
    """Run a call and respond; `ignored` names the fields that had no effect, in a header."""
    headers = {IGNORED_HEADER: ", ".join(ignored)} if ignored else {}
    if stream:
        return EventStream(
            call.events(),
            clock=context.clock,
            keep_alive=context.settings.keep_alive_seconds,
            write_timeout=context.limits.write_timeout,
            headers=headers,
        )
    result = await run_while_connected(call.complete(), request.receive)
    return json_response(result, headers)


def json_response(content: msgspec.Struct, headers: dict[str, str] | None = None) -> Response:
    """A struct as a JSON response."""
    body = msgspec.json.encode(content)
    return Response(body, headers=headers, media_type="application/json")


def wants_final_usage(options: StreamOptions | None) -> bool:
    """Whether the stream ends with a chunk that has only usage."""
    return options is not None and bool(options.include_usage)


def chunk_usage(options: StreamOptions | None, generation: Generation) -> Usage | UnsetType | None:
    """The `usage` of a chunk: counts so far, null before the final chunk, or no such key."""
    if options is None or not options.include_usage:
        return UNSET
    return generation.usage() if options.continuous_usage_stats else None
