"""OpenVINO GenAI's continuous batching behind a minimal /v1/completions, to compare over HTTP.

    python benchmarks/peers/openvino_server.py model.gguf --port 8000

Prompts are lists of token ids; answers stream one event per token, greedy, end tokens ignored.
Needs `openvino-genai`, `starlette` and `uvicorn`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import openvino
import openvino_genai
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route


class Engine:
    """Steps the pipeline on a thread of its own and hands tokens to the event loop."""

    def __init__(self, model: str, cache_gb: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = cache_gb
        scheduler.enable_prefix_caching = True
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU")
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._open: dict[int, tuple[Any, asyncio.Queue[int | None]]] = {}
        self._next_id = 0
        self.loop: asyncio.AbstractEventLoop | None = None
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, ids: list[int], max_tokens: int) -> asyncio.Queue[int | None]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.ignore_eos = True
        queue: asyncio.Queue[int | None] = asyncio.Queue()
        tensor = openvino.Tensor(np.array([ids], np.int64))
        with self._lock:
            self._next_id += 1
            handle = self._pipeline.add_request(self._next_id, tensor, config)
            self._open[self._next_id] = handle, queue
        self._wake.set()
        return queue

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if not self._pipeline.has_non_finished_requests():
                self._wake.clear()
                continue
            self._pipeline.step()
            with self._lock:
                self._deliver()

    def _deliver(self) -> None:
        assert self.loop is not None
        for key, (handle, queue) in list(self._open.items()):
            while handle.can_read():
                for output in handle.read().values():
                    for token in output.generated_ids:
                        self.loop.call_soon_threadsafe(queue.put_nowait, int(token))
            if handle.get_status() != openvino_genai.GenerationStatus.RUNNING:
                del self._open[key]
                self.loop.call_soon_threadsafe(queue.put_nowait, None)


def build_app(engine: Engine) -> Starlette:
    async def models(_: Request) -> JSONResponse:
        return JSONResponse({"object": "list", "data": [{"id": "m", "object": "model"}]})

    async def completions(request: Request) -> StreamingResponse:
        body = await request.json()
        engine.loop = asyncio.get_running_loop()
        queue = engine.add(body["prompt"], body["max_tokens"])
        return StreamingResponse(events(queue, len(body["prompt"])), media_type="text/event-stream")

    return Starlette(
        routes=[
            Route("/v1/models", models),
            Route("/health", models),
            Route("/v1/completions", completions, methods=["POST"]),
        ]
    )


async def events(queue: asyncio.Queue[int | None], prompt_len: int) -> AsyncIterator[str]:
    count = 0
    while (token := await queue.get()) is not None:
        count += 1
        choice = {"index": 0, "text": f" {token}", "finish_reason": None}
        yield f"data: {json.dumps({'choices': [choice]})}\n\n"
    usage = {"prompt_tokens": prompt_len, "completion_tokens": count}
    yield f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--cache-gb", type=int, default=1)
    args = parser.parse_args()
    engine = Engine(args.model, args.cache_gb)
    uvicorn.run(build_app(engine), host="127.0.0.1", port=args.port, log_level="warning")


if __name__ == "__main__":
    main()
