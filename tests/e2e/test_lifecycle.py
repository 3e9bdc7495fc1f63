"""Starting, stopping, clients that leave, and servers that cannot start."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from e2e.serving import RunningServer, free_port, serve

STREAM_FOREVER = """
import json, sys, urllib.request
body = {"prompt": "Once", "max_tokens": 4000, "stream": True, "ignore_eos": True}
request = urllib.request.Request(
    sys.argv[1] + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
)
for line in urllib.request.urlopen(request):
    print(line.decode(), flush=True)
"""


def run_to_end(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pagemill", "serve", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_killed_client_frees_its_request(server: RunningServer) -> None:
    server.wait(server.is_idle, 5)
    command = [sys.executable, "-c", STREAM_FOREVER, server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        assert client.stdout.readline().startswith(b"data:")
        assert not server.is_idle()
        client.kill()
        server.wait(server.is_idle, 5)


def test_client_that_waits_no_longer_frees_its_request(server: RunningServer) -> None:
    async def leave() -> None:
        client = server.async_client()
        waiting = client.completions.create(
            model=None, prompt="Once", max_tokens=4000, extra_body={"ignore_eos": True}
        )
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting, 0.5)
        await client.close()

    server.wait(server.is_idle, 5)
    asyncio.run(leave())
    server.wait(server.is_idle, 5)


def test_64_streams_of_mixed_lengths(server: RunningServer) -> None:
    async def stream(i: int) -> int:
        answer = await client.completions.create(
            model=None,
            prompt=[1000 + i] * (1 + 7 * (i % 9)),
            max_tokens=1 + i % 24,
            stream=True,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        return sum([len(c.choices[0].model_extra["token_ids"]) async for c in answer if c.choices])

    async def stream_all() -> list[int]:
        return await asyncio.gather(*(stream(i) for i in range(64)))

    client = server.async_client()
    assert asyncio.run(stream_all()) == [1 + i % 24 for i in range(64)]
    server.wait(server.is_idle, 3)


def test_health_answers_at_once_and_ctrl_c_drains(log_folder: Path) -> None:
    with serve(log_folder) as own:
        own.wait(lambda: own.health() != 0, 10)
        assert own.get("/health").status_code == 503
        assert own.get("/health").json()["status"] == "loading"
        own.wait_ready()
        texts: list[str] = []
        ask = threading.Thread(
            target=lambda: texts.append(
                own.client()
                .completions.create(
                    model=None,
                    prompt="Once",
                    max_tokens=40,
                    extra_body={"ignore_eos": True},
                )
                .choices[0]
                .text
            )
        )
        ask.start()
        own.wait(lambda: own.metric("vllm:num_requests_running") == 1, 5)
        assert own.interrupt() == 0
        ask.join()
        assert texts and texts[0]
        assert "curl" in own.output()
        assert "Traceback" not in own.output() and "leaked" not in own.output()


def test_second_ctrl_c_ends_at_once(log_folder: Path) -> None:
    with serve(log_folder) as own:
        own.wait_ready()
        command = [sys.executable, "-c", STREAM_FOREVER, own.url]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as client:
            assert client.stdout is not None
            client.stdout.readline()
            own.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            assert own.process.poll() is None  # waits for the stream
            own.interrupt(10)  # seconds; the drain would take 30
            client.kill()
        assert "Traceback" not in own.output()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("/no/such/model",), "/no/such/model"),
        (("--max-model-len", "9000000"), "--max-model-len"),
        (("--host", "0.0.0.0"), "--no-auth"),
        (("--device", "cuda"), "CUDA"),
        (("--ssl-certfile", "/no/such/file"), "--ssl-certfile"),
    ],
)
def test_wrong_settings_are_one_line(flags: tuple[str, ...], words: str) -> None:
    done = run_to_end("--port", str(free_port()), *flags)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_taken_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run_to_end("--port", str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "is in use" in done.stderr
    assert "Traceback" not in done.stderr


def test_damaged_model_is_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    done = run_to_end("--port", str(free_port()), str(broken))
    assert done.returncode == 1
    assert "broken.gguf" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
