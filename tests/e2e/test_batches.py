"""A batch over HTTP whose server is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

from e2e.serving import RunningServer, serve_fake

NUM_REQUESTS = 60


def input_file() -> bytes:
    body = {"prompt": "abba", "max_tokens": 24, "ignore_eos": True}
    return b"".join(
        json.dumps(
            {"custom_id": f"c{i}", "method": "POST", "url": "/v1/completions", "body": body}
        ).encode()
        + b"\n"
        for i in range(NUM_REQUESTS)
    )


def kill(server: RunningServer) -> None:
    """The server, and with it its engine, which notices."""
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(10)


def test_batch_goes_on_after_the_server_was_killed(tmp_path: Path) -> None:
    flags = ("--data-dir", str(tmp_path / "data"))
    with serve_fake(tmp_path, *flags, step_ms=5, max_num_seqs=8) as server:
        server.wait_ready()
        api = server.client()
        file = api.files.create(file=("in.jsonl", input_file()), purpose="batch")
        batch = api.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
        output = tmp_path / f"data/files/file-{batch.id.removeprefix('batch_')}o"
        while not output.exists() or output.read_bytes().count(b"\n") < 5:
            time.sleep(0.005)
        kill(server)
    first = output.read_bytes().rpartition(b"\n")[0]
    assert first.count(b"\n") < NUM_REQUESTS - 1

    with serve_fake(tmp_path, *flags, step_ms=5, max_num_seqs=8) as server:
        server.wait_ready()
        api = server.client()
        done = api.batches.retrieve(batch.id)
        while done.status == "in_progress":
            time.sleep(0.1)
            done = api.batches.retrieve(batch.id)
        assert done.status == "completed"
        assert done.request_counts is not None
        assert done.request_counts.completed == NUM_REQUESTS
        assert done.output_file_id is not None
        content = api.files.content(done.output_file_id).content
        assert content.startswith(first)
        lines = [json.loads(line) for line in content.splitlines()]
        assert sorted(o["custom_id"] for o in lines) == sorted(f"c{i}" for i in range(NUM_REQUESTS))
        assert server.interrupt() == 0
