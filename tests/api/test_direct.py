"""The short way of a streamed token writes the same bytes as the usual way, and knows its place."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncGenerator
from typing import Any

import psutil
import pytest

from api.fakes import MODEL, FakeClient, FakeRenderer, make_context, metric, sse_events
from api.live import serve, wait_until
from pagemill.api.context import ApiSettings, Clock, Limits, ServerContext
from pagemill.api.direct import DirectPath
from pagemill.api.responses import ChatDelta
from pagemill.api.tools.base import ParsedDelta
from pagemill.cli.http import GatheringTransport, StreamingProtocol
from pagemill.frontend.mailbox import Mailbox, Tap
from pagemill.frontend.outputs import ChoiceUpdate, Prompt
from pagemill.params import SamplingParams

REPLY = 'Grüße, "quoted"\n\x07 back\\slash and more'


class PacedClient(FakeClient):
    """Puts its updates into a mailbox from outside the reader's task, as the real client does."""

    num_tapped = 0

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self.ended = threading.Event()

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        tap: Tap | None = None,
        **options: Any,
    ) -> AsyncGenerator[ChoiceUpdate, None]:
        def counted(update: ChoiceUpdate) -> bool:
            assert tap is not None
            taken = tap(update)
            self.num_tapped += taken
            return taken

        mailbox = Mailbox(counted if tap is not None else None)
        self.open_ids.add(request_id)

        async def feed() -> None:
            await asyncio.sleep(self.first_delay)
            async for update in self._updates(prompt, params, request_id):
                mailbox.put(update)
            self.ended.set()

        feeder = asyncio.create_task(feed())
        num_open = params.n
        try:
            while num_open:
                for update in await mailbox.take():
                    num_open -= update.finish_reason is not None
                    yield update
        finally:
            feeder.cancel()
            self.open_ids.discard(request_id)


def context_of(client: FakeClient) -> ServerContext:
    return make_context(client, clock=Clock(wall=lambda: 1000.0))


def ask(url: str, path: str, body: dict[str, Any]) -> str:
    """The body of a streamed answer, chunk framing removed by hand."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps({"model": MODEL, **body, "stream": True}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"X-Request-Id: fixed\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + content)
        data = b""
        while piece := connection.recv(65536):
            data += piece
    header, _, chunked = data.partition(b"\r\n\r\n")
    assert header.startswith(b"HTTP/1.1 200"), data
    parts = []
    while chunked:
        size, _, rest = chunked.partition(b"\r\n")
        parts.append(rest[: int(size, 16)])
        chunked = rest[int(size, 16) + 2 :]
    return b"".join(parts).decode()


CHAT = {"messages": [{"role": "user", "content": "x"}]}
BODIES = [
    ("/v1/completions", {"prompt": "x"}),
    ("/v1/completions", {"prompt": "x", "stream_options": {"include_usage": True}}),
    ("/v1/completions", {"prompt": "x", "echo": True, "logprobs": 2}),
    ("/v1/completions", {"prompt": "x", "return_token_ids": True}),
    (
        "/v1/completions",
        {"prompt": "x", "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 2}),
    ("/v1/messages", {**CHAT, "max_tokens": 30}),
    ("/v1/responses", {"input": "x"}),
]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x", "echo": True}),
        ("/v1/chat/completions", {**CHAT, "stream_options": {"include_usage": True}}),
        ("/v1/messages", {**CHAT, "max_tokens": 30}),
    ],
)
def test_a_stream_that_begins_with_silence_has_its_opening(path: str, body: dict[str, Any]) -> None:
    bodies = []
    for client, http in (
        (PacedClient(first_delay=0.2, delay=0.002), StreamingProtocol),
        (FakeClient(delay=0.002), "auto"),
    ):
        settings = ApiSettings(sse_keep_alive=0.05)
        context = make_context(client, settings, clock=Clock(wall=lambda: 1000.0))
        with serve(context, http=http) as url:
            bodies.append(ask(url, path, body))
    silent, usual = bodies
    comments = silent.count(": keep-alive\n\n") + silent.count('{"type":"ping"}') - 1
    assert comments >= 2 or ("ping" not in silent and comments >= 1)
    assert without_comments(silent) == without_comments(usual)


def without_comments(text: str) -> str:
    ping = 'event: ping\ndata: {"type":"ping"}\n\n'
    return text.replace(": keep-alive\n\n", "").replace(ping, "")


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_the_same_bytes_as_the_usual_way(path: str, body: dict[str, Any]) -> None:
    client = PacedClient(reply=REPLY, delay=0.002)
    direct, usual = context_of(client), context_of(FakeClient(reply=REPLY, delay=0.002))
    with serve(direct, http=StreamingProtocol) as url:
        quick = ask(url, path, body)
    with serve(usual) as url:
        slow = ask(url, path, body)
    assert client.num_tapped > 10
    assert quick == slow
    for name in ("vllm:generation_tokens_total", "vllm:inter_token_latency_seconds_count"):
        assert metric(direct, name) == metric(usual, name) > 0


def test_text_that_a_parser_holds_back_writes_nothing() -> None:
    """An empty chunk would end the response."""
    client = PacedClient(reply="<think>why not</think>Hello <b> and so on", delay=0.002)
    renderer = FakeRenderer("<think></think>")
    settings = ApiSettings(reasoning_parser="think")
    context = make_context(client, settings, renderer=renderer)
    with serve(context, http=StreamingProtocol) as url:
        body = ask(url, "/v1/messages", {**CHAT, "max_tokens": 60})
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith("data: {")]
    deltas = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    assert "".join(delta.get("text", "") for delta in deltas) == "Hello <b> and so on"
    assert events[-1]["type"] == "message_stop"
    assert client.num_tapped > 10


def test_several_choices_take_the_usual_way() -> None:
    client = PacedClient(delay=0.001)
    with serve(context_of(client), http=StreamingProtocol) as url:
        events = sse_events(ask(url, "/v1/completions", {"prompt": "x", "n": 2}))
    assert events[-1] == "[DONE]"
    assert client.num_tapped == 0


@pytest.mark.parametrize("fields", [{}, {"logprobs": 0}])
def test_a_reader_that_stops_and_goes_on_misses_nothing(fields: dict[str, Any]) -> None:
    """Past the socket's room, updates wait merged, and the short way opens again afterwards."""
    reply = "abcdefghij" * (1500 if fields else 3000)
    client = PacedClient(reply=reply)
    context = context_of(client)
    with serve(context, http=StreamingProtocol) as url:
        host, port = url.removeprefix("http://").split(":")
        content = json.dumps(
            {"prompt": "x", "max_tokens": len(reply), "stream": True, **fields}
        ).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
            connection.sendall(head + content)
            assert wait_until(lambda: bool(client.open_ids), 5.0)
            data = connection.recv(1000)
            assert wait_until(client.ended.is_set, 20.0)  # the engine never waits for a reader
            while piece := connection.recv(65536):
                data += piece
    texts = [json.loads(line[6:]) for line in data.split(b"\n") if line.startswith(b"data: {")]
    pieces = [event["choices"][0]["text"] for event in texts]
    assert "".join(pieces) == reply
    if fields:
        offsets = [o for event in texts for o in event["choices"][0]["logprobs"]["text_offset"]]
        assert offsets == list(range(len(reply)))
    assert max(map(len, pieces)) > 1000 < client.num_tapped


def test_a_client_that_reads_nothing_is_cut_off() -> None:
    """Its connection goes, although it neither reads what is there nor leaves."""
    client = PacedClient(reply="x" * 60000)
    limits = Limits(write_timeout=0.2)
    context = make_context(client, ApiSettings(limits=limits, sse_keep_alive=0.1))
    with serve(context, http=StreamingProtocol) as url, socket.socket() as connection:
        host, port = url.removeprefix("http://").split(":")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        content = json.dumps({"prompt": "x", "max_tokens": 60000, "stream": True}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(content)
        connection.sendall(head + content)
        assert wait_until(lambda: bool(client.open_ids), 5.0)
        assert wait_until(lambda: not client.open_ids, 20.0)
        mine = connection.getsockname()[1]
        assert wait_until(lambda: not server_side(mine), 2.0)


def server_side(client_port: int) -> list[Any]:
    """The server's end of a connection, in this very process."""
    own = psutil.Process().net_connections("tcp")
    return [c for c in own if c.raddr and c.raddr.port == client_port]


class Writer:
    """A `BodyWriter` that takes what it may."""

    def __init__(self) -> None:
        self.data = b""
        self.is_open = True

    def is_ready(self) -> bool:
        return self.is_open

    def write(self, data: bytes) -> None:
        assert self.is_open
        self.data += data

    def hold(self) -> None:
        raise AssertionError("a path holds nothing")

    def release(self) -> None:
        raise AssertionError("a path holds nothing")

    def abort(self) -> None:
        self.is_open = False


class Wire(asyncio.Transport):
    """Notes the pieces that are written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.written.append(b"closed")

    def abort(self) -> None:
        self.written.append(b"aborted")


def test_what_is_held_is_written_in_one_piece() -> None:
    wire = Wire()
    transport = GatheringTransport(wire)
    transport.hold()
    transport.write(b"head ")
    transport.write(b"body")
    assert wire.written == []
    transport.release()
    transport.write(b"more")
    assert wire.written == [b"head body", b"more"]


def test_closing_writes_what_is_held_and_aborting_drops_it() -> None:
    wire = Wire()
    transport = GatheringTransport(wire)
    transport.hold()
    transport.write(b"head")
    transport.close()
    transport.release()
    transport.hold()
    transport.write(b"head")
    transport.abort()
    transport.release()
    assert wire.written == [b"head", b"closed", b"aborted"]


def test_an_update_that_must_wait_is_not_encoded() -> None:
    encoded = []

    def encode(update: ChoiceUpdate) -> bytes:
        encoded.append(update.text)
        return b""

    path, writer = DirectPath(lambda: encode), Writer()
    path.open(writer)
    writer.is_open = False
    assert not path.write(ChoiceUpdate(0, "a"))
    assert encoded == []


def test_a_path_writes_only_between_begin_and_end() -> None:
    path, writer = DirectPath(lambda: lambda update: update.text.encode()), Writer()
    assert not path.write(ChoiceUpdate(0, "early"))
    path.open(writer)
    assert path.write(ChoiceUpdate(0, "a"))
    assert not path.write(ChoiceUpdate(0, "last", finish_reason="stop"))
    writer.is_open = False
    assert not path.write(ChoiceUpdate(0, "blocked"))
    writer.is_open = True
    path.close()
    assert not path.write(ChoiceUpdate(0, "late"))
    assert writer.data == b"a"


def test_nothing_is_parsed_twice_when_an_update_cannot_be_encoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The parser has moved on by then: the stream ends with the error, as it does elsewhere."""
    client = PacedClient(reply="<think>why</think>abcdefghij", delay=0.002)
    seen: list[str] = []

    def failing(parsed: ParsedDelta) -> ChatDelta:
        seen.append(parsed.content)
        if parsed.content == "e":
            raise ValueError("secret detail")
        return ChatDelta(content=parsed.content)

    monkeypatch.setattr("pagemill.api.chat._delta", failing)
    settings = ApiSettings(reasoning_parser="think")
    context = make_context(client, settings, renderer=FakeRenderer("<think></think>"))
    with serve(context, http=StreamingProtocol) as url:
        *_, error, done = sse_events(ask(url, "/v1/chat/completions", CHAT))
    assert client.num_tapped > 3
    assert "".join(seen) == "abcde"
    assert ("Internal server error" in error, "secret" in error, done) == (True, False, "[DONE]")


def test_a_path_that_failed_stays_closed_and_keeps_the_error() -> None:
    def encode(update: ChoiceUpdate) -> bytes:
        raise ValueError("no")

    path, writer = DirectPath(lambda: encode), Writer()
    path.open(writer)
    path.check()
    assert not path.write(ChoiceUpdate(0, "a"))
    assert (writer.data, path.is_open) == (b"", False)
    with pytest.raises(ValueError, match="no"):
        path.check()
