"""What the generating endpoints share: running a call as a whole answer or as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Protocol, TypeAlias

import msgspec
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.connection import connection_of, run_while_connected
from pagemill.api.context import ServerContext
from pagemill.api.direct import DirectPath, Encode
from pagemill.api.generation import Generation
from pagemill.api.intake import Intake
from pagemill.api.responses import Usage
from pagemill.api.schema import ChatRequest, CompletionRequest, StreamOptions
from pagemill.api.sse import OPENAI_STREAM, EventStream, StreamProtocol, event
from pagemill.frontend.outputs import ChoiceUpdate

IGNORED_HEADER = "x-ignored-parameters"

ChunkUsage: TypeAlias = Usage | UnsetType | None  # a value, no such key, or null


class Collector(Protocol):
    """Collects one request's updates into one answer."""

    def add(self, update: ChoiceUpdate) -> None:
        """Collect an update."""
        ...

    def result(self) -> msgspec.Struct:
        """The whole answer, after the last update."""
        ...


class Call(Collector, Protocol):
    """Also turns the updates into OpenAI's chunks."""

    def events_of(self, update: ChoiceUpdate, usage: ChunkUsage) -> bytes:
        """The events of one update."""
        ...

    def direct_events(self, usage: ChunkUsage) -> Encode:
        """What makes the events of updates after the first, as `events_of` does; maybe faster."""
        ...

    def usage_chunk(self, usage: Usage) -> msgspec.Struct:
        """The last chunk of a stream, without choices."""
        ...


async def answer(
    request: Request,
    intake: Intake[CompletionRequest] | Intake[ChatRequest],
    generation: Generation,
    call: Call,
) -> Response:
    """Run a call and respond. The fields that had no effect are named in a header."""
    headers = ignored_header(intake.ignored)
    if not intake.body.stream:
        return await respond_whole(request, generation, call, headers)
    options = intake.body.stream_options or StreamOptions()
    if generation.is_single:
        generation.direct = DirectPath(lambda: _direct_events(generation, call, options))
    events = _events(generation, call, options)
    return stream_response(intake.context, events, headers, direct=generation.direct)


def ignored_header(ignored: list[str]) -> dict[str, str]:
    """Names the fields that had no effect."""
    return {IGNORED_HEADER: ", ".join(ignored)} if ignored else {}


async def respond_whole(
    request: Request, generation: Generation, call: Collector, headers: dict[str, str]
) -> Response:
    """The answer when it is complete; a client that leaves cancels it."""
    connection = connection_of(request.scope)
    result = await run_while_connected(collect(generation, call), request.receive, connection)
    return json_response(result, headers)


def stream_response(
    context: ServerContext,
    events: AsyncGenerator[bytes, None],
    headers: dict[str, str],
    protocol: StreamProtocol = OPENAI_STREAM,
    direct: DirectPath | None = None,
) -> EventStream:
    """The events as a stream, within the server's limits."""
    return EventStream(
        events,
        clock=context.clock,
        keep_alive=context.settings.sse_keep_alive,
        write_timeout=context.limits.write_timeout,
        headers=headers,
        protocol=protocol,
        direct=direct,
    )


def json_response(content: msgspec.Struct, headers: dict[str, str] | None = None) -> Response:
    """A struct as a JSON response."""
    body = msgspec.json.encode(content)
    return Response(body, headers=headers, media_type="application/json")


async def collect(generation: Generation, call: Collector) -> msgspec.Struct:
    """Run a generation to its end; the whole answer."""
    async with aclosing(generation.updates()) as stream:
        async for updates in stream:
            for update in updates:
                call.add(update)
    return call.result()


async def _events(
    generation: Generation, call: Call, options: StreamOptions
) -> AsyncGenerator[bytes, None]:
    """The events of the stream, those of one step together, and the usage with the last ones."""
    num_open = generation.num_choices
    async with aclosing(generation.updates()) as stream:
        async for updates in stream:
            usage = _chunk_usage(options, generation)
            events = [call.events_of(update, usage) for update in updates]
            num_open -= sum(update.finish_reason is not None for update in updates)
            if not num_open and options.include_usage:
                events.append(event(call.usage_chunk(generation.usage())))
            yield b"".join(events)


def _direct_events(generation: Generation, call: Call, options: StreamOptions) -> Encode:
    if options.include_usage and options.continuous_usage_stats:
        return lambda update: call.events_of(update, generation.usage())
    return call.direct_events(_chunk_usage(options, generation))


def _chunk_usage(options: StreamOptions, generation: Generation) -> ChunkUsage:
    if not options.include_usage:
        return UNSET
    return generation.usage() if options.continuous_usage_stats else None
