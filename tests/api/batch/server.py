"""An application with files and batches over a fake engine, and OpenAI's client for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

from api.fakes import FakeClient, make_context
from pagemill.api.app import BATCH_URLS, build_app, build_batch_app
from pagemill.api.batch.storage import BatchLimits, BatchStorage
from pagemill.api.batch.worker import BatchWorker
from pagemill.api.context import ApiSettings, Clock, ServerContext

KEYS = ("sk-one", "sk-two")


@dataclass
class Server:
    """One life of a server; `worker` is None where batches do not run."""

    context: ServerContext
    storage: BatchStorage
    worker: asyncio.Task[None] | None

    def http(self, key: str = KEYS[0]) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(build_app(self.context))
        headers = {"authorization": f"Bearer {key}"}
        return httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers)

    def openai(self, key: str = KEYS[0]) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url="http://localhost/v1", api_key=key, max_retries=0, http_client=self.http(key)
        )


@asynccontextmanager
async def server(
    folder: Path,
    client: FakeClient | None = None,
    *,
    limits: BatchLimits | None = None,
    works: bool = True,
    clock: Clock | None = None,
) -> AsyncIterator[Server]:
    """A server from its start to its end, which interrupts what runs."""
    storage = BatchStorage(folder, BATCH_URLS, limits or BatchLimits())
    context = make_context(client, ApiSettings(keys=KEYS), batches=storage, clock=clock or Clock())
    worker = BatchWorker(
        context, storage, build_batch_app(context), poll_seconds=0.02, rest_seconds=0.02
    )
    task = asyncio.create_task(worker.run()) if works else None
    try:
        yield Server(context, storage, task)
    finally:
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        storage.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))


def requests(count: int, **body: Any) -> bytes:
    lines = [
        {
            "custom_id": f"c{i}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": f"p{i}", "max_tokens": 3, **body},
        }
        for i in range(count)
    ]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


async def upload(api: openai.AsyncOpenAI, content: bytes) -> str:
    return (await api.files.create(file=("in.jsonl", content), purpose="batch")).id


async def start(api: openai.AsyncOpenAI, content: bytes, **options: Any) -> Any:
    return await api.batches.create(
        input_file_id=await upload(api, content),
        endpoint="/v1/completions",
        completion_window="24h",
        **options,
    )


async def ended(api: openai.AsyncOpenAI, batch_id: str) -> Any:
    """The batch when it has come to an end."""
    while True:
        batch = await api.batches.retrieve(batch_id)
        if batch.status not in ("validating", "in_progress", "finalizing", "cancelling"):
            return batch
        await asyncio.sleep(0.01)


async def results(api: openai.AsyncOpenAI, file_id: str | None) -> dict[str, Any]:
    """The lines of a result file by custom_id."""
    assert file_id is not None
    lines = (await api.files.content(file_id)).text.splitlines()
    found = {line["custom_id"]: line for line in map(json.loads, lines)}
    assert len(found) == len(lines)
    return found
