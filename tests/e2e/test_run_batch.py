"""`pagemill run-batch` as a process that is stopped, killed, and goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from unit.checkpoint.checkpoint_files import LLAMA_CONFIG, tokenizer_json

NUM_REQUESTS = 400
TINY = {"hidden_size": 64, "num_attention_heads": 4, "torch_dtype": "float32"}


def command(folder: Path, *flags: str) -> list[str]:
    files = ["-i", str(folder / "in.jsonl"), "-o", str(folder / "out.jsonl")]
    model = [str(folder / "tiny"), "--load-format", "dummy", "--max-num-seqs", "4"]
    return [sys.executable, "-m", "pagemill", "run-batch", *model, *files, *flags]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a model that has random weights and answers within milliseconds."""
    tiny = tmp_path / "tiny"
    tiny.mkdir()
    (tiny / "config.json").write_text(json.dumps(LLAMA_CONFIG | TINY))
    (tiny / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    return tmp_path


def write_input(folder: Path, **changes: Any) -> None:
    body = {"prompt": "abba", "temperature": 0, "max_tokens": 24, **changes}
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


def test_stopped_and_killed_runs_go_on(folder: Path) -> None:
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
    texts = {o["response"]["body"]["choices"][0]["text"] for o in found}
    assert len(texts) == 1  # greedy

    again = run(folder)
    assert (again.returncode, outputs(folder)) == (0, found)
    write_input(folder, max_tokens=1)
    refused = run(folder)
    assert refused.returncode == 1
    assert "another input" in refused.stderr
    assert outputs(folder) == found
