"""The application behind a real server on a free loopback port, in a thread."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from api.fakes import FakeClient
from pagemill.api.app import build_app
from pagemill.api.context import ServerContext


@contextmanager
def serve(context: ServerContext, http: Any = "auto") -> Iterator[str]:
    """The server's URL while it runs."""
    listener = socket.create_server(("127.0.0.1", 0))
    with serve_app(build_app(context), listener, http):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def serve_app(
    app: ASGIApp, listener: socket.socket, http: Any = "auto"
) -> Iterator[uvicorn.Server]:
    """An application's server while it runs; closes the listening socket."""
    config = uvicorn.Config(app, log_level="warning", lifespan="off", http=http)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        listener.close()


def wait_until(done: Callable[[], bool], seconds: float = 10.0) -> bool:
    """Whether `done` came true in time."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def send_and_leave(url: str, path: str, body: dict[str, Any], client: FakeClient) -> None:
    """Post a request and close the connection as soon as the engine has it."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + content)
        assert wait_until(lambda: bool(client.open_ids), 5.0)
