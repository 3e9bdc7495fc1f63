"""Running lines against the real endpoints over a fake engine."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from api.fakes import REPLY, FakeClient, make_context, overloaded
from pagemill.api.app import BATCH_URLS, build_batch_app
from pagemill.api.batch.calls import Answer
from pagemill.api.batch.execution import Execution, LineQueue
from pagemill.api.batch.journal import Journal
from pagemill.api.batch.lines import BatchOutput, Line, LineReader
from pagemill.engine.messages import EngineStatus
from pagemill.errors import EngineDeadError

STAMP = "0123456789abcdef"
COMPLETION = {"prompt": "x", "max_tokens": 3}


def request(number: int, body: Any = COMPLETION, url: str = "/v1/completions") -> dict[str, Any]:
    return {"custom_id": f"c{number}", "method": "POST", "url": url, "body": body}


def lines_of(requests: list[Any]) -> Iterator[Line]:
    data = b"".join(json.dumps(r).encode() + b"\n" for r in requests)
    return LineReader(BATCH_URLS, 10_000).read(io.BufferedReader(io.BytesIO(data)))


async def run(
    journal: Journal,
    requests: list[Any],
    client: FakeClient,
    *,
    max_inflight: int = 4,
    stop_after: int | None = None,
) -> None:
    async def write(output: BatchOutput, answer: Answer | None) -> None:
        await asyncio.to_thread(journal.append, output.encode())
        if stop_after is not None and len(client.calls) >= stop_after:
            running.cancel()

    app = build_batch_app(make_context(client))
    execution = Execution(app, client, "-", journal.id_of, write, nullcontext)
    queue = LineQueue(lines_of(requests), journal.done.lines)
    running = asyncio.create_task(execution.run(queue, max_inflight))
    await running


def run_all(path: Path, requests: list[Any], client: FakeClient | None = None) -> dict[str, Any]:
    journal = Journal(path, STAMP)
    try:
        asyncio.run(run(journal, requests, client or FakeClient()))
    finally:
        journal.close()
    return outputs(path)


def outputs(path: Path) -> dict[str, Any]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    by_id = {output["custom_id"]: output for output in found}
    assert len(by_id) == len(found)
    return by_id


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def test_every_generating_endpoint_can_be_called(path: Path) -> None:
    bodies: dict[str, dict[str, Any]] = {
        "/v1/completions": COMPLETION,
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
        "/v1/responses": {"input": "hi"},
        "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 99},
    }
    assert {*bodies, "/v1/embeddings", "/v1/rerank", "/v1/score"} <= set(BATCH_URLS)
    found = run_all(path, [request(i, bodies[url], url) for i, url in enumerate(bodies)])
    for i, url in enumerate(bodies):
        output = found[f"c{i}"]
        assert output["error"] is None
        assert output["id"] == output["response"]["request_id"] == f"batch_req_{STAMP}_{i + 1}"
        assert output["response"]["status_code"] == 200
        assert (REPLY if i else REPLY[:3]) in json.dumps(output["response"]["body"]), url


def test_bad_lines_and_bad_requests_get_their_own_answers(path: Path) -> None:
    requests = [
        request(0),
        request(1, {"prompt": "x", "temperature": 9}),
        request(2, {**COMPLETION, "stream": True}),
        request(3, {"input": "x", "background": True}, "/v1/responses"),
        request(4, {"prompt": "x", "model": "other"}),
        request(5, []),
        request(6, url="/v1/models"),
        "no object",
    ]
    found = run_all(path, requests)
    statuses = {name: (o["response"] or {}).get("status_code") for name, o in found.items()}
    assert statuses == {
        "c0": 200, "c1": 400, "c2": 400, "c3": 400, "c4": 404, "c5": 400, "c6": None, None: None,
    }  # fmt: skip
    assert found["c1"]["response"]["body"]["error"]["param"] == "temperature"
    assert found["c2"]["response"]["body"]["error"]["param"] == "stream"
    assert found["c3"]["response"]["body"]["error"]["param"] == "background"
    assert found["c6"]["error"]["code"] == "invalid_line"
    assert "line 8" in found[None]["error"]["message"]  # type: ignore[index]


def test_interrupted_runs_do_nothing_twice_and_miss_nothing(path: Path) -> None:
    requests = [request(i, {"prompt": f"p{i}", "max_tokens": 5}) for i in range(30)]
    asked: list[str] = []
    for stop_after in (5, 13, None):
        client = FakeClient(delay=0.001)
        journal = Journal(path, STAMP)
        try:
            asyncio.run(run(journal, requests, client, stop_after=stop_after))
        except asyncio.CancelledError:
            assert stop_after is not None
        finally:
            journal.close()
        answered = {o["custom_id"].replace("c", "p") for o in outputs(path).values()}
        finished = [p.text or "" for p, *_ in client.calls]
        asked += [text for text in finished if text in answered]
    assert sorted(asked) == sorted(f"p{i}" for i in range(30))
    assert len(outputs(path)) == 30


def test_no_more_run_at_once_than_allowed(path: Path) -> None:
    class Counting(FakeClient):
        most = 0

        async def generate(self, *args: Any, **options: Any) -> Any:
            self.most = max(self.most, len(self.open_ids) + 1)
            async for update in super().generate(*args, **options):
                yield update

    client = Counting(delay=0.001)
    journal = Journal(path, STAMP)
    asyncio.run(run(journal, [request(i) for i in range(20)], client, max_inflight=3))
    journal.close()
    assert client.most == 3


def test_overload_is_waited_out(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = FakeClient(raises=overloaded())
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)
        client.raises = None

    monkeypatch.setattr("pagemill.api.batch.execution.asyncio.sleep", sleep)
    client.delay = 0
    found = run_all(path, [request(0)], client)
    assert waited[0] == 7
    assert found["c0"]["response"]["status_code"] == 200


def test_dead_engine_ends_the_run_and_writes_no_answer(path: Path) -> None:
    client = FakeClient(status=EngineStatus("failed", detail="out of memory"))
    with pytest.raises(EngineDeadError, match="out of memory"):
        run_all(path, [request(0)], client)
    assert path.read_bytes() == b""


def test_failed_generation_is_an_answer(path: Path) -> None:
    found = run_all(path, [request(0)], FakeClient(fail_after=1))
    assert found["c0"]["response"]["status_code"] == 500
    assert "deadbeef" not in json.dumps(found)
