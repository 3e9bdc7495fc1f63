"""The server while it runs: HTTP from the first moment, the model when it has loaded."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys
from collections.abc import Coroutine
from typing import Any

from pagemill.api.app import build_app
from pagemill.api.context import ServerContext
from pagemill.cli.console import Console
from pagemill.cli.http import HttpServer
from pagemill.cli.listen import address
from pagemill.cli.settings import api_settings
from pagemill.cli.stopping import StopSignals
from pagemill.config.args import ServeArgs
from pagemill.engine.launch import EngineProcess
from pagemill.errors import EngineDeadError
from pagemill.frontend.client import ZmqEngineClient
from pagemill.frontend.text_side import TextSide, load_text_side
from pagemill.metrics.metrics import Metrics
from pagemill.prepare import Plan

INTERRUPTED = 130  # the exit code of a second Ctrl-C, as shells have it
POLL_SECONDS = 0.05
WATCH_SECONDS = 0.25
GC_THRESHOLDS = (20_000, 20, 50)


class Service:
    """One server over one engine process."""

    def __init__(
        self,
        args: ServeArgs,
        plan: Plan,
        engine: EngineProcess,
        keys: tuple[str, ...],
        console: Console,
    ) -> None:
        self._args = args
        self._plan = plan
        self._engine = engine
        self._console = console
        self._keys = keys

    async def run(self, listener: socket.socket) -> None:
        """Load, serve and drain. Raises EngineDeadError or ModelLoadError with the cause."""
        client = ZmqEngineClient(self._engine, self._plan.config)
        context = self._context(client)
        http = HttpServer.build(build_app(context), self._args, context.settings.keep_alive_seconds)
        stop = StopSignals(self._end_at_once)
        stop.install()
        await client.start()
        serving = asyncio.create_task(http.run_on(listener))
        url = address(listener, tls=self._args.ssl_certfile is not None)
        self._console.line(f"listening on {url}")
        try:
            if await _first(self._load(context, client), stop.wait()):
                self._console.ready(url, client.info, needs_key=bool(self._keys))
                if not await _first(self._wait_dead(client), stop.wait()):
                    await self._drain(context, client)
        finally:
            http.should_exit = True
            await serving
            await client.close()
            self._console.line("stopped")

    def _context(self, client: ZmqEngineClient) -> ServerContext:
        names = self._plan.config.served_model_names
        return ServerContext(
            client=client,
            served_model_names=names,
            metrics=Metrics(names[0], client),
            model_root=self._plan.config.model,
            default_params=self._plan.default_params,
            settings=api_settings(self._args, self._plan.config, self._keys),
        )

    async def _load(self, context: ServerContext, client: ZmqEngineClient) -> None:
        """Read the tokenizer while the engine loads the weights."""
        text_side = asyncio.create_task(asyncio.to_thread(self._load_text_side))
        ready = asyncio.create_task(client.wait_ready())
        pending: set[asyncio.Task[Any]] = {text_side, ready}
        while pending:
            self._console.phase(client.status.phase)
            done, pending = await asyncio.wait(pending, timeout=POLL_SECONDS)
            for task in done:
                task.result()  # raises what went wrong, without waiting for the other
        loaded = text_side.result()
        client.attach(loaded.validator, loaded.tokenizer)
        loaded.renderer.max_model_len = client.info.max_model_len
        context.renderer = loaded.renderer
        settle_memory()

    def _load_text_side(self) -> TextSide:
        return load_text_side(
            self._plan.checkpoint,
            self._plan.model,
            max_logprobs=self._plan.config.max_logprobs,
            chat_template=self._plan.chat_template,
        )

    async def _wait_dead(self, client: ZmqEngineClient) -> None:
        """Raises EngineDeadError when the engine process has ended; a stuck one may recover."""
        while (cause := self._engine.exit_cause()) is None:
            await asyncio.sleep(WATCH_SECONDS)
        await asyncio.sleep(WATCH_SECONDS)  # the client reads the last messages meanwhile
        raise EngineDeadError(client.status.detail or cause)

    async def _drain(self, context: ServerContext, client: ZmqEngineClient) -> None:
        """Refuse new requests and wait for the open ones, as long as the deadline allows."""
        context.admission.start_drain()
        if num_open := context.admission.num_open:
            self._console.line(
                f"stopping: {num_open} open requests get up to {self._args.drain_timeout:g} s; "
                "Ctrl-C again stops at once"
            )
        try:
            async with asyncio.timeout(self._args.drain_timeout):
                await _first(self._wait_dead(client), context.admission.wait_idle())
        except TimeoutError:
            self._console.line(f"stopping with {context.admission.num_open} open requests")

    def _end_at_once(self) -> None:
        self._engine.stop(timeout=0)
        sys.stdout.flush()
        os._exit(INTERRUPTED)


def settle_memory() -> None:
    """Let the collector skip what lives for ever, and run less often: requests make no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def _first(*work: Coroutine[Any, Any, None]) -> bool:
    """Run until one is done and cancel the others; whether the first one is done.

    Raises what it raised.
    """
    tasks = [asyncio.create_task(item) for item in work]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.result()
    return not tasks[0].cancelled()
