"""What a frontend does not own reaches the owner unchanged, and so does the answer."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from pagemill.api.app import ENDPOINTS
from pagemill.api.connection import run_unless_left
from pagemill.api.errors import ClientDisconnected
from pagemill.api.forward import ANYWHERE, Forwarder, OwnerDoor
from pagemill.cli.http import StreamingProtocol


def test_the_paths_that_are_answered_anywhere_exist() -> None:
    assert {endpoint.path for endpoint in ENDPOINTS} >= ANYWHERE


async def local(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"by": "frontend"})(scope, receive, send)


class Owner:
    """Tells what it was asked; `/stream` and `/unread` go on until their client leaves."""

    def __init__(self) -> None:
        self.left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if request.url.path == "/stream":
            await StreamingResponse(self._events())(scope, receive, send)
            return
        if request.url.path == "/unread":
            try:
                await run_unless_left(asyncio.sleep(3600), scope)
            except ClientDisconnected:
                self.left.set()
            return
        if request.url.path == "/early":
            await JSONResponse({"by": "owner"}, status_code=413)(scope, receive, send)
            return
        body = await request.body()
        seen = {
            "by": "owner",
            "method": request.method,
            "path": str(scope["raw_path"], "ascii"),
            "query": str(scope["query_string"], "ascii"),
            "headers": dict(request.headers),
            "client": list(scope["client"] or ()),
            "length": len(body),
        }
        await JSONResponse(seen, status_code=207, headers={"x-own": "1"})(scope, receive, send)

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"data: 1\n\n"
                await asyncio.sleep(0.01)
        finally:
            self.left.set()


@asynccontextmanager
async def running(owner: Owner) -> AsyncIterator[httpx.AsyncClient]:
    """A frontend before an owner, both real servers."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "owner")
        behind = uvicorn.Server(
            uvicorn.Config(
                OwnerDoor(owner),
                uds=path,
                http=StreamingProtocol,
                lifespan="off",
                log_level="warning",
            )
        )
        app = Forwarder(local, path)
        front = uvicorn.Server(
            uvicorn.Config(app, port=0, http=StreamingProtocol, lifespan="off", log_level="warning")
        )
        tasks = [asyncio.create_task(server.serve()) for server in (behind, front)]
        while not (behind.started and front.started):
            await asyncio.sleep(0.01)
        port = front.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
            yield http
        for server in (behind, front):
            server.should_exit = True
        await asyncio.gather(*tasks)


def test_requests_and_answers_pass_unchanged() -> None:
    async def scenario() -> None:
        async with running(Owner()) as http:
            assert (await http.post("/v1/completions")).json() == {"by": "frontend"}
            headers = {"x-a": "b", "x-pagemill-client": "6.6.6.6 1"}
            response = await http.post(
                "/v1/resp%20onses?a=1&b=%20", content=b"x" * 300_000, headers=headers
            )
            seen: dict[str, Any] = response.json()
            assert response.status_code == 207
            assert response.headers["x-own"] == "1"
            assert (seen["by"], seen["method"], seen["length"]) == ("owner", "POST", 300_000)
            assert (seen["path"], seen["query"]) == ("/v1/resp%20onses", "a=1&b=%20")
            assert seen["headers"]["x-a"] == "b"
            assert "x-pagemill-client" not in seen["headers"]
            assert seen["client"][0] == "127.0.0.1" and seen["client"][1] > 0
            assert (await http.get("/metrics")).json()["method"] == "GET"
            assert (await http.delete("/v1/responses/1")).json()["method"] == "DELETE"
            head = await http.head("/metrics")
            assert (head.status_code, head.content) == (207, b"")
            early = await http.post("/early", content=b"x" * 4_000_000)
            assert (early.status_code, early.json()) == (413, {"by": "owner"})

            async def pieces() -> AsyncIterator[bytes]:
                for _ in range(5):
                    yield b"abc"
                    await asyncio.sleep(0)

            for method in ("POST", "GET", "DELETE"):
                response = await http.request(method, "/x", content=pieces())
                assert (response.status_code, response.json()["length"]) == (207, 15)

    asyncio.run(scenario())


def test_streams_come_piece_by_piece_and_end_with_their_client() -> None:
    async def scenario() -> None:
        owner = Owner()
        async with running(owner) as http:
            async with http.stream("GET", "/stream") as response:
                async for line in response.aiter_lines():
                    assert line == "data: 1"
                    break
            await asyncio.wait_for(owner.left.wait(), 20)

    asyncio.run(scenario())


def test_a_client_that_leaves_ends_a_request_whose_body_nobody_reads() -> None:
    async def scenario() -> None:
        owner = Owner()
        async with running(owner) as http:
            port = http.base_url.port
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n")
            writer.write(b"x" * 600_000)  # more than the buffers between frontend and owner hold
            await writer.drain()
            writer.close()
            await asyncio.wait_for(owner.left.wait(), 5)

    asyncio.run(scenario())


def test_an_owner_that_is_gone_is_503() -> None:
    async def scenario() -> httpx.Response:
        app = Forwarder(local, "/nonexistent/owner")
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
            return await http.get("/metrics")

    response = asyncio.run(scenario())
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) >= 1
