"""The server while it runs: HTTP from the first moment, the model when it has loaded."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import sys

from pagemill.api.app import build_app
from pagemill.api.context import ServerContext
from pagemill.cli.console import Console
from pagemill.cli.http import HttpServer
from pagemill.cli.listen import address
from pagemill.cli.loading import load
from pagemill.cli.settings import api_settings
from pagemill.cli.stopping import INTERRUPTED, StopSignals, first_of
from pagemill.config.args import ServeArgs
from pagemill.engine.launch import EngineProcess
from pagemill.errors import EngineDeadError
from pagemill.frontend.client import ZmqEngineClient
from pagemill.metrics.metrics import Metrics
from pagemill.prepare import Plan

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
            loading = load(self._plan, context, client, self._console.phase)
            if await first_of(loading, stop.wait()):
                settle_memory()
                self._console.ready(url, client.info, needs_key=bool(self._keys))
                if not await first_of(self._wait_dead(client), stop.wait()):
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
                await first_of(self._wait_dead(client), context.admission.wait_idle())
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
