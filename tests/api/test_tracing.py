"""One span for each generating request, with the caller's trace, counts and times; sent as OTLP."""

from __future__ import annotations

import asyncio
import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from api.fakes import MODEL, FakeClient, http_client, make_context, overloaded, pooling_client
from pagemill.api import tracing
from pagemill.api.tracing import OtelTracer, otlp_tracer, traces_url
from pagemill.config.pooling import PoolingConfig
from pagemill.errors import ConfigError

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"}
USER = [{"role": "user", "content": "hi"}]


def spans(client: FakeClient, *requests: tuple[str, dict[str, Any]]) -> list[ReadableSpan]:
    """The spans of requests to an application with an in-memory collector."""
    exporter = InMemorySpanExporter()
    tracer = OtelTracer(SimpleSpanProcessor(exporter))

    async def run() -> None:
        async with http_client(make_context(client, tracer=tracer), headers=PARENT) as http:
            for path, body in requests:
                await http.post(path, json=body)
            await http.get("/v1/models")

    asyncio.run(run())
    return list(exporter.get_finished_spans())


def test_a_request_for_vectors() -> None:
    client = pooling_client(PoolingConfig(task="embed", method="mean", width=4))
    (span,) = spans(client, ("/v1/embeddings", {"input": "hi"}))
    assert span.name == f"embeddings {MODEL}"
    attributes = dict(span.attributes or {})
    assert attributes["gen_ai.request.model"] == MODEL
    assert str(attributes["gen_ai.response.id"]).startswith("embd-")
    assert attributes["gen_ai.usage.input_tokens"] == 2


def test_a_chat_request() -> None:
    body = {"messages": USER, "max_tokens": 4, "temperature": 0.5, "seed": 7}
    (span,) = spans(FakeClient(delay=0.002), ("/v1/chat/completions", body))
    assert span.name == f"chat {MODEL}"
    assert span.kind.name == "SERVER"
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    attributes = dict(span.attributes or {})
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == MODEL
    assert attributes["gen_ai.request.temperature"] == 0.5
    assert attributes["gen_ai.request.seed"] == 7
    assert attributes["gen_ai.request.max_tokens"] == 4
    assert attributes["gen_ai.usage.output_tokens"] == 4
    assert attributes["gen_ai.usage.input_tokens"] > 0  # type: ignore[operator]
    assert attributes["gen_ai.response.finish_reasons"] == ("length",)
    assert str(attributes["gen_ai.response.id"]).startswith("chatcmpl-")
    assert attributes["http.route"] == "/v1/chat/completions"
    assert attributes["http.response.status_code"] == 200
    assert attributes["gen_ai.latency.time_in_model_decode"] >= 0.003  # type: ignore[operator]
    assert attributes["gen_ai.latency.e2e"] >= attributes["gen_ai.latency.time_to_first_token"]  # type: ignore[operator]
    assert span.end_time and span.start_time
    assert (span.end_time - span.start_time) / 1e9 >= attributes["gen_ai.latency.e2e"]  # type: ignore[operator]


def test_every_choice_of_every_prompt_and_no_prompt_text() -> None:
    body = {"prompt": ["secret one", "secret two"], "n": 2, "max_tokens": 1, "stream": True}
    (span,) = spans(FakeClient(), ("/v1/completions", body))
    attributes = dict(span.attributes or {})
    assert attributes["gen_ai.operation.name"] == "text_completion"
    assert attributes["gen_ai.response.finish_reasons"] == ("length",) * 4
    assert attributes["gen_ai.request.choice.count"] == 2
    assert "secret" not in span.to_json()


def test_refusals_and_failures() -> None:
    (refused,) = spans(FakeClient(), ("/v1/completions", {"prompt": "x", "n": 0}))
    assert (refused.attributes or {})["error.type"] == "400"
    assert refused.status.status_code is StatusCode.UNSET
    (failed,) = spans(FakeClient(raises=overloaded()), ("/v1/completions", {"prompt": "x"}))
    assert failed.status.status_code is StatusCode.ERROR


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An OTLP endpoint on loopback: its address, and the (path, body) of what it was sent."""
    received: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            received.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Keep quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_spans_arrive_at_a_collector() -> None:
    async def run(tracer: OtelTracer) -> None:
        async with http_client(make_context(tracer=tracer), headers=PARENT) as http:
            await http.post("/v1/completions", json={"prompt": "x", "max_tokens": 1})

    with collector() as (url, received):
        tracer = otlp_tracer(url)
        asyncio.run(run(tracer))
        tracer.close()
    ((path, body),) = received
    assert path == "/v1/traces"
    assert bytes.fromhex(TRACE) in body
    assert b"gen_ai.usage.output_tokens" in body
    assert b"pagemill" in body


def test_addresses() -> None:
    assert traces_url("http://h:4318") == "http://h:4318/v1/traces"
    assert traces_url("https://h/own/path") == "https://h/own/path"
    for wrong in ("h:4318", "ftp://h", "http://", ""):
        with pytest.raises(ConfigError, match="--otlp-endpoint"):
            traces_url(wrong)


def test_without_the_extra_a_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pagemill\[otel\]"):
        traces_url("http://h:4318")


def test_nothing_is_imported_when_off() -> None:
    code = "import sys, pagemill.cli.service; sys.exit('opentelemetry' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
