"""Several frontends over one engine are one server: state, limits, numbers, ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from e2e.serving import RunningServer, serve_fake

NUM_FRONTENDS = 3
ADMIN = {"Authorization": "Bearer admin"}
KEY = {"Authorization": "Bearer key"}
FLAGS = ("--frontend-workers", str(NUM_FRONTENDS), "--api-key", "key", "--admin-key", "admin")
FEWER = ("--frontend-workers", "2", "--api-key", "key")
LONG = 4000


def wait_ready(server: RunningServer) -> None:
    server.wait(lambda: "PageMill answers" in server.output(), 60)


@pytest.fixture(scope="module")
def many(log_folder: Path) -> Iterator[RunningServer]:
    """Room for 60 requests, and 30 waiting."""
    limits = ("--max-num-queued-reqs", "30")
    with serve_fake(log_folder, *FLAGS, *limits, max_num_seqs=60) as running:
        wait_ready(running)
        yield running


def connect(server: RunningServer) -> http.client.HTTPConnection:
    """A new connection, which the system gives to any of the frontends."""
    port = int(server.url.rsplit(":", 1)[1])
    return http.client.HTTPConnection("127.0.0.1", port, timeout=20)


def post(
    server: RunningServer, path: str, body: dict[str, Any], **headers: str
) -> tuple[http.client.HTTPResponse, http.client.HTTPConnection]:
    connection = connect(server)
    head = {"Content-Type": "application/json", **KEY, **headers}
    connection.request("POST", path, json.dumps(body), head)
    return connection.getresponse(), connection


def ask(server: RunningServer, path: str, body: dict[str, Any], **headers: str) -> Any:
    response, connection = post(server, path, body, **headers)
    content = response.read()
    connection.close()
    assert response.status == 200, content
    return json.loads(content)


def get(server: RunningServer, path: str, **headers: str) -> tuple[int, bytes]:
    connection = connect(server)
    connection.request("GET", path, headers={**KEY, **headers})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def metric(server: RunningServer, name: str) -> float:
    lines = get(server, "/metrics")[1].decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))


def is_idle(server: RunningServer) -> bool:
    return metric(server, "vllm:num_requests_running") == 0


def children_of(server: RunningServer) -> list[psutil.Process]:
    """The engine and the further frontends."""
    return psutil.Process(server.process.pid).children()


def command_of(process: psutil.Process) -> str:
    """Empty for one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def frontends(server: RunningServer) -> list[psutil.Process]:
    return [child for child in children_of(server) if "workers.process" in command_of(child)]


def open_streams(server: RunningServer, count: int, **fields: Any) -> list[Any]:
    """Streams on connections of their own, each with its first event read."""
    body = {"prompt": "x", "max_tokens": LONG, "stream": True, "ignore_eos": True, **fields}
    streams = [post(server, "/v1/completions", body) for _ in range(count)]
    for response, _ in streams:
        assert response.status == 200
        assert response.readline().startswith(b"data: ")
    return streams


def has_ended(stream: Any) -> bool:
    """Whether the connection is gone; throws away what has arrived on it."""
    _, connection = stream
    connection.sock.setblocking(False)
    try:
        while connection.sock.recv(65536):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


def close(streams: list[Any]) -> None:
    for _, connection in streams:
        connection.close()


def test_every_frontend_answers_and_the_metrics_are_their_sum(many: RunningServer) -> None:
    before = metric(many, "vllm:generation_tokens_total")
    count = metric(many, "vllm:time_to_first_token_seconds_count")
    with ThreadPoolExecutor(16) as pool:
        body = {"prompt": "x", "max_tokens": 3}
        answers = list(pool.map(lambda _: ask(many, "/v1/completions", body), range(60)))
    assert all(answer["usage"]["completion_tokens"] == 3 for answer in answers)
    assert metric(many, "vllm:generation_tokens_total") - before == 180
    assert metric(many, "vllm:time_to_first_token_seconds_count") - count == 60
    used = [p.cpu_times().user for p in frontends(many)]
    assert len(used) == NUM_FRONTENDS - 1
    text = get(many, "/metrics")[1].decode()
    assert text.count("# TYPE vllm:generation_tokens_total") == 1
    assert text.count("vllm:num_requests_running{") == 1


def test_one_request_id_at_all_frontends_at_once(many: RunningServer) -> None:
    with ThreadPoolExecutor(16) as pool:
        body = {"prompt": "x", "max_tokens": 5}
        ids = {"X-Request-Id": "same"}
        answers = list(pool.map(lambda _: ask(many, "/v1/completions", body, **ids), range(32)))
    assert [len(answer["choices"]) for answer in answers] == [1] * 32


def test_stored_responses_are_found_from_everywhere(many: RunningServer) -> None:
    first = ask(many, "/v1/responses", {"input": "hello", "max_output_tokens": 3})
    body = {"input": "and", "max_output_tokens": 3, "previous_response_id": first["id"]}
    for _ in range(8):
        assert ask(many, "/v1/responses", body)["previous_response_id"] == first["id"]
        assert get(many, f"/v1/responses/{first['id']}")[0] == 200
    assert get(many, "/v1/responses/none")[0] == 404
    later = ask(many, "/v1/responses", {"input": "x", "max_output_tokens": 3, "background": True})
    many.wait(
        lambda: (
            b'"completed"' in get(many, f"/v1/responses/{later['id']}")[1]
            or b'"incomplete"' in get(many, f"/v1/responses/{later['id']}")[1]
        ),
        5,
    )


def test_forwarded_streams_arrive_piece_by_piece(many: RunningServer) -> None:
    """Whichever frontend has them; the client that leaves frees its request."""
    many.wait(lambda: is_idle(many), 5)
    streams = []
    for _ in range(6):
        body = {"input": "hello", "max_output_tokens": LONG, "stream": True}
        response, connection = post(many, "/v1/responses", body)
        assert response.status == 200
        assert b"response.created" in response.readline()
        streams.append((response, connection))
    assert metric(many, "vllm:num_requests_running") == 6
    close(streams)
    many.wait(lambda: is_idle(many), 5)


def test_abort_and_load_reach_every_frontend(many: RunningServer) -> None:
    streams = open_streams(many, 12)
    status, load = get(many, "/load", **ADMIN)
    assert status == 200 and json.loads(load)["server_load"] == 12
    named = [
        post(
            many,
            "/v1/completions",
            {"prompt": "x", "max_tokens": LONG, "stream": True},
            **{"X-Request-Id": f"mine-{i}"},
        )
        for i in range(9)
    ]
    assert all(response.status == 200 for response, _ in named)
    ids = {"request_ids": [f"mine-{i}" for i in range(9)]}
    assert ask(many, "/abort", ids, **ADMIN)["aborted"] == 9
    assert all(b'"finish_reason":"abort"' in response.read() for response, _ in named)
    close(streams + named)
    many.wait(lambda: is_idle(many), 5)
    assert get(many, "/load")[0] == 403


def test_the_queue_limit_counts_all_frontends(many: RunningServer) -> None:
    streams = open_streams(many, 90)
    refused = []
    for _ in range(12):
        response, connection = post(many, "/v1/completions", {"prompt": "x"})
        refused.append((response.status, response.getheader("retry-after")))
        connection.close()
    assert all(status == 503 and int(wait or 0) >= 1 for status, wait in refused)
    close(streams)
    many.wait(lambda: is_idle(many), 5)
    assert ask(many, "/v1/completions", {"prompt": "x", "max_tokens": 1})


def test_a_frontend_that_dies_is_replaced(many: RunningServer) -> None:
    streams = open_streams(many, 30)
    tokens = metric(many, "vllm:generation_tokens_total")
    frontends(many)[0].kill()
    many.wait(lambda: any(map(has_ended, streams)), 5)
    time.sleep(0.2)
    num_alive = sum(not has_ended(stream) for stream in streams)
    assert 0 < num_alive < 30
    many.wait(lambda: metric(many, "vllm:num_requests_running") == num_alive, 5)
    many.wait(lambda: len(frontends(many)) == NUM_FRONTENDS - 1, 5)
    assert "died of signal 9" in many.output()
    for _ in range(12):
        assert ask(many, "/v1/completions", {"prompt": "x", "max_tokens": 1})
    assert metric(many, "vllm:generation_tokens_total") >= tokens + 12
    assert json.loads(get(many, "/load", **ADMIN)[1])["server_load"] == num_alive
    close(streams)
    many.wait(lambda: is_idle(many), 5)


def test_a_killed_engine_ends_streams_of_all_frontends_with_an_error(many: RunningServer) -> None:
    """Last of those that use the server: it ends here."""
    streams = open_streams(many, 20)
    children = children_of(many)
    (engine,) = [child for child in children if "fake_engine" in command_of(child)]
    engine.kill()
    begin = time.monotonic()
    endings = [response.read()[-300:] for response, _ in streams]
    assert time.monotonic() - begin < 10
    assert all(b'"error"' in end and end.endswith(b"[DONE]\n\n") for end in endings)
    assert many.process.wait(10) == 1
    _, alive = psutil.wait_procs(children, 5)
    assert not alive
    assert "killed (signal 9)" in many.output().splitlines()[-1]


def test_sigterm_lets_streams_of_all_frontends_finish(log_folder: Path) -> None:
    with serve_fake(log_folder, *FEWER) as own:
        wait_ready(own)
        streams = open_streams(own, 20, max_tokens=100)
        own.process.send_signal(signal.SIGTERM)
        own.wait(lambda: get(own, "/ready")[0] == 503, 5)
        for _ in range(6):
            response, connection = post(own, "/v1/completions", {"prompt": "x"})
            assert response.status == 503 and response.getheader("retry-after")
            connection.close()
        for response, _ in streams:
            assert response.read().endswith(b"data: [DONE]\n\n")
        assert own.process.wait(10) == 0
        assert "Traceback" not in own.output()


def test_frontends_end_with_their_owner(log_folder: Path) -> None:
    with serve_fake(log_folder, *FEWER) as own:
        wait_ready(own)
        children = children_of(own)
        assert len(children) == 2
        os.kill(own.process.pid, signal.SIGKILL)
        own.process.wait()
        _, alive = psutil.wait_procs(children, 5)
        assert not alive
