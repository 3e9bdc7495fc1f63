"""The server while it runs: HTTP from the first moment, the model when it has loaded."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Sequence

from pagemill.api.app import build_app
from pagemill.api.context import ServerContext
from pagemill.api.forward import OwnerDoor
from pagemill.api.middleware import KeyRing
from pagemill.cli.access import admin_keys
from pagemill.cli.batching import Batching
from pagemill.cli.console import Console
from pagemill.cli.frontend import close_context, make_context, open_for_requests
from pagemill.cli.http import HttpServer
from pagemill.cli.listen import address
from pagemill.cli.loading import wait_loaded
from pagemill.cli.stopping import INTERRUPTED, StopSignals, first_of
from pagemill.cli.workers.launch import WorkerFiles, WorkerLaunch
from pagemill.cli.workers.pool import WorkerPool
from pagemill.config.args import ServeArgs
from pagemill.engine.launch import EngineProcess
from pagemill.errors import EngineDeadError
from pagemill.frontend.board import SharedBoard
from pagemill.frontend.client import ZmqEngineClient
from pagemill.prepare import Plan

WATCH_SECONDS = 0.25


class Service:
    """One server over one engine process: this process, and further frontends if there are any."""

    def __init__(
        self,
        args: ServeArgs,
        plan: Plan,
        engine: EngineProcess,
        keys: tuple[str, ...],
        console: Console,
        batching: Batching,
    ) -> None:
        self._args = args
        self._plan = plan
        self._engine = engine
        self._console = console
        self._keys = keys
        self._batching = batching
        self._pool: WorkerPool | None = None

    async def run(self, listeners: Sequence[socket.socket]) -> None:
        """Load, serve and drain, with a frontend for each listening socket.

        Raises EngineDeadError or ModelLoadError with the cause.
        """
        listener, *others = listeners
        board = self._board(len(listeners)) if others else None
        client = ZmqEngineClient(self._engine, self._plan.config, board=board)
        if board is not None:
            self._pool = WorkerPool(
                self._launch(len(listeners)), others, board, client.abort_client
            )
        context = make_context(
            self._args,
            self._plan,
            self._keys,
            client,
            board=board,
            peers=self._pool,
            rate_file=None if board is None else WorkerFiles(self._engine.folder).rates,
            batches=self._batching.storage,
        )
        stop = StopSignals(self._end_at_once)
        stop.install()
        await client.start()
        servers = self._servers(context)
        serving = [asyncio.create_task(servers[0].run_on(listener))]
        serving += [asyncio.create_task(server.serve()) for server in servers[1:]]
        url = address(listener, tls=self._args.ssl_certfile is not None)
        self._console.line(f"listening on {url}")
        try:
            if await first_of(self._load(context, client), stop.wait()):
                self._batching.start(context)
                self._console.ready(url, client.info, needs_key=bool(self._keys))
                if not await first_of(self._watch(client), stop.wait()):
                    await self._drain(context, client)
        finally:
            await self._batching.stop()
            for server in servers:
                server.stop()
            if self._pool is not None:
                await asyncio.to_thread(self._pool.stop)
            await asyncio.gather(*serving)
            await client.close()
            await close_context(context)
            self._console.line("stopped")

    def _servers(self, context: ServerContext) -> list[HttpServer]:
        """For clients and, where there are further frontends, for what these forward."""
        app = build_app(context)
        servers = [HttpServer.build(app, self._args)]
        if self._pool is not None:
            path = WorkerFiles(self._engine.folder).owner
            servers.append(HttpServer.build(OwnerDoor(app), self._args, uds=path))
        return servers

    def _board(self, num_frontends: int) -> SharedBoard:
        ids = KeyRing.of(self._keys, admin_keys(self._args, os.environ)).ids
        return SharedBoard(WorkerFiles(self._engine.folder).board, 0, num_frontends, ids)

    def _launch(self, num_frontends: int) -> WorkerLaunch:
        return WorkerLaunch(
            args=self._args,
            config=self._plan.config,
            chat_template=self._plan.chat_template,
            default_params=self._plan.default_params,
            keys=self._keys,
            address=self._engine.address,
            engine_pid=self._engine.pid,
            client_id=0,
            num_frontends=num_frontends,
            listener_fd=-1,
            folder=str(self._engine.folder),
        )

    async def _load(self, context: ServerContext, client: ZmqEngineClient) -> None:
        """Read the tokenizer while the engine loads the weights."""
        text = await wait_loaded(self._plan, client, self._console.phase)
        if self._pool is not None:
            self._console.phase("waiting for the other frontends")
            await self._pool.wait_ready(client.info)
        open_for_requests(context, client, text)

    async def _watch(self, client: ZmqEngineClient) -> None:
        """Replace frontends that die. Raises EngineDeadError when the engine process has ended."""
        while (cause := self._engine.exit_cause()) is None:
            if self._pool is not None:
                self._pool.check()
            await asyncio.sleep(WATCH_SECONDS)
        await asyncio.sleep(WATCH_SECONDS)  # the clients read the last messages meanwhile
        raise EngineDeadError(client.status.detail or cause)

    async def _drain(self, context: ServerContext, client: ZmqEngineClient) -> None:
        """Refuse new requests and wait for the open ones, as long as the deadline allows."""
        context.admission.start_drain()
        await self._batching.stop()
        if num_open := context.admission.num_open:
            self._console.line(
                f"stopping: {num_open} open requests get up to {self._args.drain_timeout:g} s; "
                "Ctrl-C again stops at once"
            )
        try:
            async with asyncio.timeout(self._args.drain_timeout):
                await first_of(self._watch(client), context.admission.wait_idle())
        except TimeoutError:
            self._console.line(f"stopping with {context.admission.num_open} open requests")

    def _end_at_once(self) -> None:
        self._engine.stop(timeout=0)
        sys.stdout.flush()
        os._exit(INTERRUPTED)
