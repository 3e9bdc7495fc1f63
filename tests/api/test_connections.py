"""Clients that leave, read slowly or wait long; errors in the middle of a stream."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import FileResponse, Response
from starlette.types import Message

from api.fakes import FakeClient, http_client, make_context, metric, sse_events
from api.live import send_and_leave, serve, serve_app, wait_until
from pagemill.api.app import build_app
from pagemill.api.connection import run_while_connected
from pagemill.api.context import Clock, ServerContext
from pagemill.api.errors import ClientDisconnected
from pagemill.api.sse import EventStream
from pagemill.cli.http import StreamingProtocol
from pagemill.cli.listen import bind

FOREVER = 60.0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": ["a", "b", "c"], "n": 2}),
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/completions", {"prompt": "a", "user": "x" * 300_000}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ],
)
@pytest.mark.parametrize("before_first_token", [True, False])
@pytest.mark.parametrize("http", ["auto", StreamingProtocol])
def test_leaving_cancels_at_once(
    path: str, body: dict[str, Any], stream: bool, before_first_token: bool, http: Any
) -> None:
    """Also while the server reads nothing of the connection, as after a large body."""
    client = FakeClient(delay=0.05, first_delay=FOREVER if before_first_token else 0.0)
    context = make_context(client)
    with serve(context, http) as url:
        send_and_leave(url, path, {**body, "stream": stream}, client)
        assert wait_until(lambda: not client.open_ids)
        assert wait_until(lambda: context.admission.num_open == 0)
    assert len(client.cancelled) == len(client.calls)
    aborts = metric(context, "vllm:request_success_total", finished_reason="abort")
    assert aborts == sum(call[1].n for call in client.calls)


def test_error_after_the_first_token_becomes_an_event() -> None:
    async def run(path: str, body: dict[str, Any]) -> list[str]:
        async with http_client(make_context(FakeClient(fail_after=2))) as http:
            response = await http.post(path, json={**body, "stream": True})
        assert response.status_code == 200
        return sse_events(response.text)

    for path, body in [
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/completions", {"prompt": ["x", "y"]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ]:
        *_, error, done = asyncio.run(run(path, body))
        assert done == "[DONE]"
        assert json.loads(error)["error"]["code"] == 500
        assert "0xdead" not in error


def test_error_before_the_first_token_has_a_status() -> None:
    async def run() -> int:
        async with http_client(make_context(FakeClient(fail_after=0))) as http:
            return (
                await http.post("/v1/completions", json={"prompt": "x", "stream": True})
            ).status_code

    assert asyncio.run(run()) == 500


FAILING_GRAMMAR: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "x"}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ("/v1/responses", {"input": "x"}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 9}),
]


@pytest.mark.parametrize(("path", "body"), FAILING_GRAMMAR)
def test_a_grammar_that_fails_in_the_engine_is_the_clients_fault(
    path: str, body: dict[str, Any]
) -> None:
    """Known before the first token: status 400; later, in a stream: an event that tells."""

    async def run(fail_after: int, stream: bool) -> tuple[int, str]:
        client = FakeClient(fail_after=fail_after, fail_param="structured_outputs")
        async with http_client(make_context(client)) as http:
            response = await http.post(path, json={**body, "stream": stream})
        return response.status_code, response.text

    for fail_after, stream, status in ((0, False, 400), (2, False, 400), (2, True, 200)):
        found, text = asyncio.run(run(fail_after, stream))
        assert found == status
        assert "0xdeadbeef" in text and "Internal" not in text


@pytest.mark.parametrize(("path", "body"), FAILING_GRAMMAR[:2])
def test_a_stream_that_has_not_begun_is_refused_with_a_status(
    path: str, body: dict[str, Any]
) -> None:
    async def run() -> tuple[int, dict[str, Any]]:
        client = FakeClient(fail_after=0, fail_param="structured_outputs")
        async with http_client(make_context(client)) as http:
            response = await http.post(path, json={**body, "stream": True})
        return response.status_code, response.json()["error"]

    status, error = asyncio.run(run())
    assert (status, error["code"], error["param"]) == (400, 400, "structured_outputs")


def test_one_failing_prompt_ends_its_siblings() -> None:
    async def run() -> None:
        client = FakeClient(delay=0.005)
        context = make_context(client)
        async with http_client(context) as http:
            body = {"prompt": ["short", "x" * 510], "max_tokens": 30}
            response = await http.post("/v1/completions", json=body)
        assert response.status_code == 400
        assert not client.open_ids

    asyncio.run(run())


def test_unexpected_exception_in_a_stream(caplog: Any) -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        yield b"data: 1\n\n"
        raise RuntimeError("secret detail")

    body = asyncio.run(collect(stream_of(events())))
    assert body.endswith(b"data: [DONE]\n\n")
    assert b"Internal server error" in body
    assert b"secret" not in body
    assert "secret detail" in caplog.text


def stream_of(
    events: AsyncGenerator[bytes, None], keep_alive: float = 15.0, write_timeout: float = 60.0
) -> EventStream:
    return EventStream(events, clock=Clock(), keep_alive=keep_alive, write_timeout=write_timeout)


async def collect(stream: EventStream, wrote: Callable[[bytes], None] = lambda data: None) -> bytes:
    """What a stream writes; `wrote` is told each piece."""
    written = []

    async def receive() -> Message:
        await asyncio.sleep(FOREVER)
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        written.append(message.get("body", b""))
        wrote(written[-1])

    await stream({"type": "http"}, receive, send)
    return b"".join(written)


def test_silence_is_filled_with_comments() -> None:
    async def run() -> bytes:
        comments: list[bytes] = []
        two = asyncio.Event()

        async def events() -> AsyncGenerator[bytes, None]:
            await two.wait()
            yield b"data: 1\n\n"

        def wrote(data: bytes) -> None:
            comments.append(data)
            if comments.count(b": keep-alive\n\n") == 2:
                two.set()

        async with asyncio.timeout(20):
            return await collect(stream_of(events(), keep_alive=0.01), wrote)

    body = asyncio.run(run())
    assert body.startswith(b": keep-alive\n\n: keep-alive\n\n")
    assert body.endswith(b"data: 1\n\ndata: [DONE]\n\n")


def test_comments_can_be_turned_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def events() -> AsyncGenerator[bytes, None]:
        await asyncio.sleep(0.1)
        yield b"data: 1\n\n"

    monkeypatch.setattr("pagemill.api.sse.QUIET_TICK_SECONDS", 0.01)
    body = asyncio.run(collect(stream_of(events(), keep_alive=0)))
    assert body == b"data: 1\n\ndata: [DONE]\n\n"


def test_busy_stream_has_no_comments() -> None:
    """By the clock it is never silent for long, but for much longer in all; ticks come anyway."""
    now = 0.0

    async def events() -> AsyncGenerator[bytes, None]:
        nonlocal now
        for _ in range(20):
            await asyncio.sleep(0.01)
            now += 0.03
            yield b"data: 1\n\n"

    clock = Clock(monotonic=lambda: now)
    stream = EventStream(events(), clock=clock, keep_alive=0.05, write_timeout=60.0)
    assert b"keep-alive" not in asyncio.run(collect(stream))


@pytest.mark.parametrize("silent", [False, True])
def test_client_that_reads_nothing_is_dropped(silent: bool) -> None:
    """Whether events wait to be written, or a comment does."""
    closed = []

    async def events() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                if silent:
                    await asyncio.sleep(FOREVER)
                yield b"data: 1\n\n"
        finally:
            closed.append(True)

    async def run() -> None:
        async def receive() -> Message:
            await asyncio.sleep(FOREVER)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.body":
                await asyncio.sleep(FOREVER)

        stream = stream_of(events(), keep_alive=0.02, write_timeout=0.05)
        async with asyncio.timeout(20):
            await stream({"type": "http"}, receive, send)

    asyncio.run(run())
    assert closed == [True]


def test_one_write_for_all_choices_of_a_step() -> None:
    async def run() -> list[bytes]:
        writes: list[bytes] = []
        body = json.dumps({"prompt": "x", "n": 4, "max_tokens": 3, "stream": True}).encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Message:
            if messages:
                return messages.pop()
            await asyncio.sleep(FOREVER)
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            writes.append(message.get("body", b""))

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/completions",
            "headers": headers,
            "query_string": b"",
        }
        await build_app(make_context(FakeClient(delay=0.01)))(scope, receive, send)
        return writes

    with_events = [write for write in asyncio.run(run()) if b'"choices"' in write]
    assert [write.count(b"data: ") for write in with_events] == [4, 4, 4]


def test_work_is_cancelled_when_the_client_leaves() -> None:
    cancelled = []

    async def work() -> None:
        try:
            await asyncio.sleep(FOREVER)
        finally:
            cancelled.append(True)

    async def receive() -> Message:
        await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    with pytest.raises(ClientDisconnected):
        asyncio.run(run_while_connected(work(), receive))
    assert cancelled == [True]


class Client:
    """A `Connection` that says what it is told to."""

    def __init__(self, *, is_there: bool = True) -> None:
        self.is_there = is_there
        self.tell: Callable[[], None] | None = None

    def on_left(self, tell: Callable[[], None] | None) -> bool:
        self.tell = tell
        return self.is_there

    def has_left(self) -> bool:
        return not self.is_there

    def abort(self) -> None:
        self.is_there = False


async def never() -> Message:
    raise AssertionError("`receive` is for servers without a `Connection`")


def test_work_is_not_begun_when_the_client_has_left() -> None:
    begun = []

    async def work() -> None:
        begun.append(True)

    with pytest.raises(ClientDisconnected):
        asyncio.run(run_while_connected(work(), never, Client(is_there=False)))
    assert not begun


def test_whoever_cancels_is_told_apart_from_the_client() -> None:
    async def run(by_client: bool) -> asyncio.Task[None]:
        client = Client()
        work = run_while_connected(asyncio.sleep(FOREVER), never, client)
        task = asyncio.create_task(work)
        await asyncio.sleep(0)
        if by_client:
            assert client.tell is not None
            client.tell()
        else:
            task.cancel()
        await asyncio.wait({task})
        assert client.tell is None
        assert task.cancelling() == (0 if by_client else 1)
        return task

    assert isinstance(asyncio.run(run(by_client=True)).exception(), ClientDisconnected)
    assert asyncio.run(run(by_client=False)).cancelled()


def test_a_tick_that_fails_ends_the_work() -> None:
    async def tick() -> None:
        raise ValueError("as told")

    work = asyncio.sleep(FOREVER)
    running = run_while_connected(work, never, Client(), on_tick=tick, tick_seconds=0.01)
    with pytest.raises(ValueError, match="as told"):
        asyncio.run(running)


def stands_still(context: ServerContext) -> bool:
    tokens = "vllm:generation_tokens_total"
    before = metric(context, tokens)
    time.sleep(0.3)
    return metric(context, tokens) == before > 0


def test_slow_reader_does_not_grow_the_servers_memory() -> None:
    """With a reader that takes nothing, the engine client is read no further than the sockets."""
    client = FakeClient(reply="x" * 400)
    context = make_context(client)
    with serve(context) as url:
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps(
            {"prompt": ["p"] * 64, "n": 16, "max_tokens": 400, "stream": True}
        ).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            head += b"Content-Type: application/json\r\n"
            connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            assert wait_until(lambda: bool(client.open_ids), 5.0)
            assert wait_until(lambda: stands_still(context), 20.0)
            assert metric(context, "vllm:generation_tokens_total") < 64 * 16 * 400
        assert wait_until(lambda: not client.open_ids)


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels have no such bound")
@pytest.mark.parametrize("whole", [True, False])
def test_an_answer_that_nobody_reads_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """A whole answer, which the server has written long ago, and a file that is being sent."""
    monkeypatch.setattr("pagemill.cli.listen.UNREAD_SECONDS", 0.5)
    content = bytes(16 * 2**20)
    path = tmp_path / "large"
    path.write_bytes(content)
    app = Response(content) if whole else FileResponse(path)
    [listener] = bind("127.0.0.1", 0)
    with serve_app(app, listener, StreamingProtocol) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(listener.getsockname())
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
        state = server.server_state
        assert wait_until(lambda: not (state.connections or state.tasks), 20.0)
        with pytest.raises(ConnectionResetError):
            while connection.recv(65536):
                pass
