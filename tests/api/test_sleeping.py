"""`/sleep` and `/wake_up`: who is told what, and what becomes of requests that run."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, NoReturn

import httpx
import pytest

from api.fakes import (
    REPLY,
    FakeClient,
    http_client,
    make_context,
    metric,
    pooling_client,
    sse_events,
)
from api.live import serve, wait_until
from pagemill.api.context import ApiSettings, ServerContext
from pagemill.config.pooling import PoolingConfig
from pagemill.engine.messages import EngineStatus
from pagemill.errors import RequestAborted

ADMIN = {"authorization": "Bearer root"}
FOREVER = 60.0
COMPLETION = {"prompt": "x"}


def context_of(client: FakeClient) -> ServerContext:
    return make_context(client, ApiSettings(admin_keys=("root",)))


def admin_client(client: FakeClient) -> httpx.AsyncClient:
    return http_client(context_of(client), headers=ADMIN)


@pytest.mark.parametrize("level", [1, 2])
def test_sleeping_server_lives_but_takes_no_requests(level: int) -> None:
    async def run() -> None:
        client = FakeClient()
        async with admin_client(client) as http:
            state = (await http.post(f"/sleep?level={level}")).json()
            assert state == {"is_sleeping": True, "level": level}
            assert (await http.get("/is_sleeping")).json() == state
            assert client.controls == [("prepare_sleep", (level,)), ("sleep", (level,))]
            refused = await http.post("/v1/completions", json=COMPLETION)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) > 0
            assert "sleeps" in refused.json()["error"]["message"]
            assert (await http.get("/health")).status_code == 200
            assert (await http.get("/health?generate=1")).json() == {"status": "ok"}
            ready = await http.get("/ready")
            assert (ready.status_code, ready.json()) == (503, {"status": "sleeping"})
            assert (await http.post("/tokenize", json={"prompt": "x"})).status_code == 200

            awake = (await http.post("/wake_up")).json()
            assert awake == {"is_sleeping": False, "level": 0}
            assert (await http.get("/ready")).status_code == 200
            assert (await http.post("/v1/completions", json=COMPLETION)).status_code == 200
        assert not client.calls[:-1]

    asyncio.run(run())


def test_sleep_waits_for_requests_that_run() -> None:
    async def run() -> None:
        client = FakeClient(delay=0.002)
        async with admin_client(client) as http:
            running = asyncio.create_task(http.post("/v1/completions", json=COMPLETION))
            while not client.open_ids:
                await asyncio.sleep(0.001)
            assert (await http.post("/sleep")).status_code == 200
            assert running.done()
            assert (await running).json()["choices"][0]["text"] == REPLY[:16]
            assert not client.aborted

    asyncio.run(run())


def test_waking_calls_off_a_sleep_that_waits_for_requests() -> None:
    async def run() -> None:
        client = FakeClient(first_delay=FOREVER)
        async with admin_client(client) as http:
            running = asyncio.create_task(http.post("/v1/completions", json=COMPLETION))
            while not client.open_ids:
                await asyncio.sleep(0.001)
            falling = asyncio.create_task(http.post("/sleep?timeout=3600"))
            while not client.stats.sleep_level:
                await asyncio.sleep(0.001)
            awake = await http.post("/wake_up")
            assert awake.json() == {"is_sleeping": False, "level": 0}
            called_off = await falling
            assert called_off.status_code == 409
            assert "woken" in called_off.json()["error"]["message"]
            assert (await http.get("/ready")).status_code == 200
            assert client.open_ids and not running.done()
            running.cancel()

    asyncio.run(run())


@pytest.mark.parametrize("how", ["mode=abort", "timeout=0.01"])
def test_a_call_with_less_patience_cuts_a_drain_short(how: str) -> None:
    async def run() -> None:
        client = FakeClient(first_delay=FOREVER)
        context = context_of(client)
        async with http_client(context, headers=ADMIN) as http:
            running = asyncio.create_task(http.post("/v1/completions", json=COMPLETION))
            while not client.open_ids:
                await asyncio.sleep(0.001)
            patient = asyncio.create_task(http.post("/sleep?timeout=3600"))
            while not client.stats.sleep_level:
                await asyncio.sleep(0.001)
            async with asyncio.timeout(FOREVER / 2):
                answers = await asyncio.gather(patient, http.post(f"/sleep?level=2&{how}"))
            assert [answer.status_code for answer in answers] == [200, 200]
            assert client.aborted and not running.done()
            running.cancel()
            assert client.stats.sleep_level == 2
            assert not context.sleep_deadlines

    asyncio.run(run())


def test_leaving_calls_off_a_sleep_that_waits_for_requests() -> None:
    client = FakeClient(first_delay=FOREVER)
    context = context_of(client)
    with serve(context) as url, httpx.Client(base_url=url, headers=ADMIN) as http:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            content = b'{"prompt": "x"}'
            connection.sendall(request_of("/v1/completions", content))
            assert wait_until(lambda: bool(client.open_ids), 5.0)
            with socket.create_connection((host, int(port))) as leaving:
                leaving.sendall(request_of("/sleep?timeout=3600", b""))
                assert wait_until(lambda: client.stats.sleep_level == 1, 5.0)
            assert wait_until(lambda: client.stats.sleep_level == 0, 5.0)
            assert http.get("/ready").status_code == 200
            assert client.open_ids
            assert not context.sleep_lock.locked() and not context.sleep_deadlines
        assert ("sleep", (1,)) not in client.controls


def request_of(path: str, content: bytes) -> bytes:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer root\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


@pytest.mark.parametrize("how", ["mode=abort", "timeout=0.01"])
def test_what_runs_too_long_is_told_to_come_back(how: str) -> None:
    async def run() -> None:
        client = FakeClient(delay=0.2)
        context = context_of(client)
        async with http_client(context, headers=ADMIN) as http:
            whole = asyncio.create_task(http.post("/v1/completions", json=COMPLETION))
            stream = asyncio.create_task(
                http.post("/v1/completions", json={**COMPLETION, "stream": True})
            )
            while metric(context, "vllm:generation_tokens_total") < 4:  # two of each
                await asyncio.sleep(0.001)
            assert (await http.post(f"/sleep?{how}")).status_code == 200
            answer = await whole
            assert (answer.status_code, "retry-after" in answer.headers) == (503, True)
            *_, error, done = sse_events((await stream).text)
            assert ("sleeps" in error, done) == (True, "[DONE]")

    asyncio.run(run())


def test_vectors_that_take_too_long_are_told_so_too(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> httpx.Response:
        client = pooling_client(PoolingConfig(task="embed", method="mean", width=4))

        async def pool(*args: Any, **options: Any) -> NoReturn:
            client.stats.sleep_level = 1
            raise RequestAborted("the request was aborted")

        monkeypatch.setattr(client, "pool", pool)
        async with admin_client(client) as http:
            return await http.post("/v1/embeddings", json={"input": "x"})

    response = asyncio.run(run())
    assert (response.status_code, "retry-after" in response.headers) == (503, True)


@pytest.mark.parametrize(
    ("path", "param"),
    [
        ("/sleep?level=3", "level"),
        ("/sleep?level=", "level"),
        ("/sleep?mode=keep", "mode"),
        ("/sleep?timeout=-1", "timeout"),
        ("/sleep?timeout=nan", "timeout"),
        ("/sleep?timeout=x", "timeout"),
        ("/sleep?depth=1", "depth"),
        ("/wake_up?tags=weights", "tags"),
    ],
)
def test_wrong_queries_are_refused_by_name(path: str, param: str) -> None:
    async def run() -> None:
        client = FakeClient()
        async with admin_client(client) as http:
            response = await http.post(path)
            assert (response.status_code, response.json()["error"]["param"]) == (400, param)
        assert client.controls == []

    asyncio.run(run())


def test_needs_the_admin_key_and_a_loaded_model() -> None:
    async def statuses(client: FakeClient, **options: Any) -> list[int]:
        async with http_client(context_of(client), **options) as http:
            return [(await http.post(path)).status_code for path in ("/sleep", "/wake_up")]

    assert asyncio.run(statuses(FakeClient())) == [401, 401]
    loading = FakeClient(status=EngineStatus("loading"))
    assert asyncio.run(statuses(loading, headers=ADMIN)) == [503, 503]
