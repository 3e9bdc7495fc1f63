"""A further frontend process: `python -m pagemill.cli.workers.process`, started by the owner."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path

import msgspec

from pagemill.api.app import build_app
from pagemill.api.context import ServerContext
from pagemill.api.forward import Forwarder
from pagemill.api.middleware import KeyRing
from pagemill.checkpoint.open import open_checkpoint
from pagemill.cli.access import admin_keys
from pagemill.cli.frontend import close_context, load_text, make_context, open_for_requests
from pagemill.cli.http import HttpServer
from pagemill.cli.logs import configure_logging
from pagemill.cli.workers.control import Question, serve_control
from pagemill.cli.workers.launch import WorkerLaunch
from pagemill.engine.channel import EngineAddress
from pagemill.engine.messages import EngineStatus
from pagemill.engine.process import exit_with_parent
from pagemill.errors import PageMillError
from pagemill.frontend.board import SharedBoard
from pagemill.frontend.client import ZmqEngineClient
from pagemill.frontend.monitor import EngineMonitor
from pagemill.prepare import Plan


class RemoteEngine:
    """The engine's process as a frontend sees it that has not started it."""

    def __init__(self, address: EngineAddress, pid: int) -> None:
        self.address = address
        self._pid = pid

    def exit_cause(self) -> str | None:
        """None while it runs. The owner, its parent, knows more and says so in its log."""
        try:
            os.kill(self._pid, 0)
        except ProcessLookupError:
            return "the engine process has ended"
        return None

    def stop(self) -> None:
        """Its owner stops it."""


class Worker:
    """One frontend that owns nothing."""

    def __init__(self, launch: WorkerLaunch) -> None:
        self._launch = launch
        self._plan = _plan_of(launch)
        self._board = _board_of(launch)
        monitor = EngineMonitor()
        if launch.info is not None:
            monitor.observe(EngineStatus("ready", info=launch.info))
        self._client = ZmqEngineClient(
            RemoteEngine(launch.address, launch.engine_pid),
            launch.config,
            client_id=launch.client_id,
            monitor=monitor,
            board=self._board,
        )
        self._context = make_context(
            launch.args,
            self._plan,
            launch.keys,
            self._client,
            board=self._board,
            rate_file=launch.files.rates,
        )

    async def run(self, listener: socket.socket) -> None:
        """Serve until SIGTERM. Raises PageMillError when the model's files cannot be read."""
        launch, context = self._launch, self._context
        app = Forwarder(build_app(context), launch.files.owner)
        http = HttpServer.build(app, launch.args)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, http.stop)
        await self._client.start()
        path = launch.files.control(launch.client_id)
        Path(path).unlink(missing_ok=True)
        control = await serve_control(path, self._answer)
        if launch.info is not None:
            await self._load(context)  # first, so that no client meets a frontend that loads
        serving = asyncio.create_task(http.run_on(listener))
        try:
            loading = asyncio.create_task(self._load(context))
            await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
            await serving
        finally:
            http.stop()
            await serving
            control.close()
            await self._client.close()
            await close_context(context)

    async def _load(self, context: ServerContext) -> None:
        if context.renderer is not None:
            return
        text = await asyncio.to_thread(load_text, self._plan)
        if self._launch.info is None:
            await self._client.wait_ready()
        open_for_requests(context, self._client, text)

    async def _answer(self, question: Question) -> bytes:
        context = self._context
        encode = msgspec.msgpack.encode
        match question.method:
            case "ready":
                return encode(context.renderer is not None)
            case "metrics":
                return encode(context.metrics.snapshot())
            case "abort":
                found = context.admission.find(question.request_ids)
                return encode(await context.client.abort(found))
        raise ConnectionError(f"unknown question {question.method!r}")


def _plan_of(launch: WorkerLaunch) -> Plan:
    checkpoint = open_checkpoint(Path(launch.config.model))
    return Plan(
        checkpoint=checkpoint,
        model=checkpoint.model_config(),
        config=launch.config,
        chat_template=launch.chat_template,
        default_params=launch.default_params,
        summary="",
        remarks=[],
    )


def _board_of(launch: WorkerLaunch) -> SharedBoard:
    ids = KeyRing.of(launch.keys, admin_keys(launch.args, os.environ)).ids
    return SharedBoard(launch.files.board, launch.client_id, launch.num_frontends, ids)


def _read_launch() -> WorkerLaunch:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Unbuffered, so that nothing after the line is taken from the watching thread.
    with os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0) as stdin:
        launch = msgspec.json.decode(stdin.readline(), type=WorkerLaunch)
    exit_with_parent()
    return launch


def main() -> int:
    """Run a frontend as the launch message on standard input says."""
    import uvloop

    launch = _read_launch()
    configure_logging(launch.args.log_level, as_json=launch.args.json_logs)
    listener = socket.socket(fileno=launch.listener_fd)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(Worker(launch).run(listener))
    except PageMillError as error:
        print(f"pagemill: frontend {launch.client_id}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
