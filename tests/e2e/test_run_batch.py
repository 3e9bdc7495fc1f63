"""`pagemill run-batch` as a process that is stopped, killed, and goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NUM_REQUESTS = 120


def command(folder: Path, *flags: str) -> list[str]:
    files = ["-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl")]
    script = str(Path(__file__).with_name("fake_run_batch.py"))
    return [sys.executable, script, "5", "4", *files, *flags]


def write_input(folder: Path, **changes: Any) -> None:
    body = {"prompt": "abba", "ignore_eos": True, "max_tokens": 24, **changes}
    with (folder / "in.jsonl").open("w") as file:
        for i in range(NUM_REQUESTS):
            line = {"custom_id": f"c{i}", "method": "POST", "url": "/v1/completions", "body": body}
            file.write(json.dumps(line) + "\n")


def outputs(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def stop_when_some_are_done(folder: Path, number: int, *, at_least: int) -> int:
    """Start a run, send it a signal amid its work; its exit code."""
    out = folder / "out.jsonl"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command(folder), stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 120
        while not out.exists() or out.read_bytes().count(b"\n") < at_least:
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(number)
        return process.wait(30)
    finally:
        process.kill()
        process.wait()


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *flags), capture_output=True, text=True, timeout=120, check=False
    )


def test_stopped_and_killed_runs_go_on(tmp_path: Path) -> None:
    folder = tmp_path
    write_input(folder)
    assert stop_when_some_are_done(folder, signal.SIGTERM, at_least=4) == 130
    assert "goes on" in (folder / "log").read_text()
    first = outputs(folder)
    assert 4 <= len(first) < NUM_REQUESTS

    code = stop_when_some_are_done(folder, signal.SIGKILL, at_least=len(first) + 4)
    assert code == -signal.SIGKILL
    with (folder / "out.jsonl").open("ab") as file:
        file.write(b'{"id":"batch_req_')  # as a power failure may leave it

    done = run(folder)
    assert done.returncode == 0, done.stderr
    assert f"{NUM_REQUESTS} of {NUM_REQUESTS} requests answered, 0 failed" in done.stdout
    found = outputs(folder)
    assert found[: len(first)] == first
    assert sorted(o["custom_id"] for o in found) == sorted(f"c{i}" for i in range(NUM_REQUESTS))
    assert all(o["response"]["body"]["usage"]["completion_tokens"] == 24 for o in found)

    again = run(folder)
    assert (again.returncode, outputs(folder)) == (0, found)
    write_input(folder, max_tokens=1)
    refused = run(folder)
    assert refused.returncode == 1
    assert "another input" in refused.stderr
    assert outputs(folder) == found
