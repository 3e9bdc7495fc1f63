"""A real `pagemill serve` process for tests, and what they ask of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

START_TIMEOUT = 120.0
GOLDEN = Path(__file__).parent / "golden"


@dataclass
class RunningServer:
    """A server process; `started` is when its command was given."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    started: float

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="unused", max_retries=0, **options)

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="unused", max_retries=0, timeout=120
        )

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", timeout=5)

    def wait(self, condition: Callable[[], bool], timeout: float) -> float:
        """Poll until it holds; returns the seconds that took, fails the test after `timeout`."""
        start = time.monotonic()
        while not condition():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() - start < timeout, self.output()
            time.sleep(0.02)
        return time.monotonic() - start

    def wait_ready(self) -> None:
        self.wait(lambda: self.health() == 200, START_TIMEOUT)

    def health(self) -> int:
        """The status of /health; 0 while nothing answers."""
        try:
            return self.get("/health").status_code
        except httpx.TransportError:
            return 0

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = self.get("/metrics").text.splitlines()
        values = [
            line.rsplit(" ", 1)[1] for line in lines if line.startswith((name + "{", name + " "))
        ]
        assert values, f"no metric {name}"
        return sum(map(float, values))

    def is_idle(self) -> bool:
        """No request runs or waits, and none holds a block."""
        names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
        return all(self.metric(f"vllm:{name}") == 0 for name in names)

    def output(self) -> str:
        """What the process printed."""
        return self.log.read_text()

    def interrupt(self, timeout: float = 20) -> int:
        """Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def serve(folder: Path, *flags: str) -> AbstractContextManager[RunningServer]:
    """Start `pagemill serve` with flags, not waiting for it, and stop it at the end."""
    return _running(folder, [sys.executable, "-m", "pagemill", "serve", *flags])


def serve_fake(
    folder: Path, *flags: str, step_ms: float = 20.0, max_num_seqs: int = 64
) -> AbstractContextManager[RunningServer]:
    """The same over an engine without a model, which gives every request a token each step."""
    script = str(Path(__file__).with_name("fake_serve.py"))
    return _running(folder, [sys.executable, script, str(step_ms), str(max_num_seqs), *flags])


@contextmanager
def _running(folder: Path, command: list[str]) -> Iterator[RunningServer]:
    port = free_port()
    log = folder / f"server-{port}.log"
    command = [*command, "--port", str(port)]
    with log.open("wb") as out:
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
    try:
        yield RunningServer(process, f"http://127.0.0.1:{port}", log, started)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def golden_cases(name: str) -> list[dict[str, Any]]:
    """Prompts with the greedy tokens of the reference; see make_golden.py."""
    cases: list[dict[str, Any]] = json.loads((GOLDEN / f"{name}.json").read_text())
    return cases
