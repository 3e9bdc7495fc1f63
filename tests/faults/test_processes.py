"""Processes that are killed, told to stop under load, or run out of disk."""

from __future__ import annotations

import asyncio
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from e2e.serving import RunningServer, free_port, serve

NUM_STREAMS = 4
TELL_SECONDS = 10.0


def own_processes() -> set[int]:
    """PageMill's processes that run by this Python, orphans included."""
    found = psutil.process_iter(["pid", "cmdline"])
    lines = {process.pid: process.info["cmdline"] or [] for process in found}
    return {
        pid
        for pid, line in lines.items()
        if sys.executable in line and any("pagemill" in part for part in line)
    }


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Whatever a test kills, nothing of it stays behind."""
    before = own_processes()
    yield
    assert own_processes() <= before


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


def endless(**options: Any) -> dict[str, Any]:
    return {"prompt": "Once", "max_tokens": 4000, "ignore_eos": True, "stream": True, **options}


async def read(http: httpx.AsyncClient, body: dict[str, Any], started: asyncio.Semaphore) -> Any:
    """The events of a stream and when it ended; `started` is released at the first."""
    events = []
    async with http.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: "):
                events.append(line.removeprefix("data: "))
            if len(events) == 1 and line:
                started.release()
    return events, time.monotonic()


async def kill_under_streams(server: RunningServer) -> None:
    """SIGKILL the engine while streams run; every one must be told, soon."""
    started = asyncio.Semaphore(0)
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        streams = [asyncio.create_task(read(http, endless(), started)) for _ in range(NUM_STREAMS)]
        for _ in streams:
            await started.acquire()
        (engine,) = serving_process(server).children()
        killed = time.monotonic()
        engine.kill()
        for events, ended in await asyncio.gather(*streams):
            assert events[-1] == "[DONE]"
            error = json.loads(events[-2])["error"]
            assert (error["code"], error["type"]) == (500, "InternalServerError")
            assert ended - killed < TELL_SECONDS


@contextmanager
def supervised(folder: Path) -> Iterator[RunningServer]:
    """A shell that starts the server again whenever it ends with a failure."""
    port, log = free_port(), folder / "supervised.log"
    serve_once = f"'{sys.executable}' -m pagemill serve --port {port}"
    script = f"until {serve_once}; do echo ended with $?; done"
    with log.open("wb") as out:
        shell = subprocess.Popen(["/bin/sh", "-c", script], stdout=out, stderr=out)
    try:
        yield RunningServer(shell, f"http://127.0.0.1:{port}", log, time.monotonic())
    finally:
        if shell.poll() is None:
            for process in [*psutil.Process(shell.pid).children(recursive=True), shell]:
                process.kill()
        shell.wait()


def serving_process(server: RunningServer) -> psutil.Process:
    """The server below its supervisor."""
    (process,) = psutil.Process(server.process.pid).children()
    return process


def test_killed_engine_supervisor_and_sigterm_under_load(folder: Path) -> None:
    with supervised(folder) as server:
        server.wait_ready()
        first = serving_process(server)
        asyncio.run(kill_under_streams(server))
        server.wait(lambda: "ended with 1" in server.output(), 10)
        before_end = server.output().partition("ended with 1")[0].splitlines()
        assert "killed (signal 9)" in before_end[-1]
        server.wait_ready()
        assert serving_process(server) != first
        asyncio.run(load_and_stop(server))
        assert server.process.wait(20) == 0  # the shell ends, since the server ended well
        assert "Traceback" not in server.output()


def test_killed_frontend_takes_its_engine_along(folder: Path) -> None:
    with serve(folder) as server:
        server.wait_ready()
        (engine,) = psutil.Process(server.process.pid).children()
        server.process.kill()
        engine.wait(5)
        server.process.wait()


async def load_and_stop(server: RunningServer) -> None:
    """SIGTERM while it works on streams and whole answers: all of them must be completed."""
    lengths = [120 + 30 * i for i in range(6)]
    started = asyncio.Semaphore(0)
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as http:
        streams = [
            asyncio.create_task(
                read(http, endless(max_tokens=n, stream_options={"include_usage": True}), started)
            )
            for n in lengths[:3]
        ]
        wholes = [
            asyncio.create_task(
                http.post("/v1/completions", json=endless(max_tokens=n, stream=False))
            )
            for n in lengths[3:]
        ]
        for _ in streams:
            await started.acquire()
        server.wait(lambda: server.metric("vllm:num_requests_running") == len(lengths), 5)
        serving_process(server).send_signal(signal.SIGTERM)
        await asyncio.sleep(0.2)
        refused = await http.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) > 0
        assert (await http.get("/ready")).status_code == 503
        usages = [json.loads(events[-2])["usage"] for events, _ in await asyncio.gather(*streams)]
        usages += [answer.json()["usage"] for answer in await asyncio.gather(*wholes)]
    assert [usage["completion_tokens"] for usage in usages] == lengths


def batch(folder: Path, limit: int | None) -> subprocess.CompletedProcess[str]:
    """run-batch, whose files may have `limit` bytes: what a full disk does to a write."""
    command = [sys.executable, "-m", "pagemill", "run-batch"]
    command += ["-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl")]

    def set_limit() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, preexec_fn=set_limit
    )


def test_full_disk_stops_a_batch_which_then_goes_on(tmp_path: Path) -> None:
    names = [f"r{i}" for i in range(12)]
    lines = [
        {
            "custom_id": name,
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": "x", "max_tokens": 2},
        }
        for name in names
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    full = batch(tmp_path, 2000)
    assert full.returncode == 1
    assert "cannot be written" in full.stderr
    assert "goes on from here" in full.stderr
    assert "Traceback" not in full.stderr
    written = (tmp_path / "out.jsonl").read_text().splitlines()
    assert 0 < len(written) < len(names)
    assert all(json.loads(line)["response"]["status_code"] == 200 for line in written)
    rest = batch(tmp_path, None)
    assert rest.returncode == 0, rest.stderr
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found[: len(written)] == list(map(json.loads, written))
    assert sorted(entry["custom_id"] for entry in found) == sorted(names)
