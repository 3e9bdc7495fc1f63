"""What the server prints and logs."""

from __future__ import annotations

import io
import json
import logging

from pagemill.cli.console import Console
from pagemill.cli.logs import JsonFormatter
from pagemill.engine.messages import EngineInfo

INFO = EngineInfo(
    max_model_len=8192,
    num_blocks=100,
    block_size=16,
    max_num_seqs=64,
    max_num_batched_tokens=512,
    device="cpu",
    dtype="float32",
    attention="sdpa",
    cache_tokens=1600,
)


def test_phases_are_printed_once_with_seconds() -> None:
    out = io.StringIO()
    console = Console(out, started=10.0, clock=lambda: 12.5)
    for text in ("", "loading weights: 1 %", "loading weights: 9 %", "warming up"):
        console.phase(text)
    assert out.getvalue() == "   2.50 s  loading weights\n   2.50 s  warming up\n"


def test_ready_says_what_to_try() -> None:
    out = io.StringIO()
    Console(out).ready("http://127.0.0.1:8000", INFO, needs_key=False)
    text = out.getvalue()
    assert "1,600 tokens" in text
    assert "curl http://127.0.0.1:8000/v1/chat/completions" in text
    assert "pagemill chat\n" in text
    assert "KEY" not in text


def test_ready_never_shows_a_key_but_says_one_is_needed() -> None:
    out = io.StringIO()
    Console(out).ready("http://127.0.0.1:9", INFO, needs_key=True)
    assert "pagemill chat --url http://127.0.0.1:9 --api-key KEY" in out.getvalue()
    assert "Authorization: Bearer KEY" in out.getvalue()


def test_json_log_is_one_object_a_line() -> None:
    record = logging.LogRecord("a.b", logging.INFO, "", 0, "two\n%s", ("lines",), None)
    line = JsonFormatter().format(record)
    assert "\n" not in line
    shown = json.loads(line)
    assert (shown["level"], shown["logger"], shown["message"]) == ("info", "a.b", "two\nlines")
    assert shown["time"].endswith("Z")


def test_json_log_of_a_request_is_not_quoted_twice() -> None:
    record = logging.LogRecord(
        "pagemill.access", logging.INFO, "", 0, "%s", ('{"status": 200}',), None
    )
    assert json.loads(JsonFormatter().format(record))["message"] == {"status": 200}
