"""The engine process: load, then turn the loop until told to stop.

Runs as `python -m pagemill.engine.process`, started by `engine/launch.py`. It ends with code 0 at
SIGTERM or when its parent is gone, and with code 1 after any error, which it has reported.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Protocol

import msgspec

from pagemill.engine.channel import EngineChannel
from pagemill.engine.clients import ClientRequests
from pagemill.engine.launch import EngineLaunch
from pagemill.engine.messages import (
    AbortClient,
    AbortRequests,
    AddRequest,
    Control,
    ControlResult,
    EngineInfo,
    EngineStats,
    EngineStatus,
    RequestDelta,
    StepOutputs,
    ToEngine,
)
from pagemill.errors import PageMillError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 1.0
QUIET_SECONDS = 0.3  # without messages, before idle time is used
MAX_MESSAGES_PER_STEP = 256


class Steppable(Protocol):
    """What the loop needs of an engine."""

    @property
    def info(self) -> EngineInfo: ...

    def add_request(self, message: AddRequest) -> None:
        """Answers with deltas from `step` in any case; raises nothing."""
        ...

    def abort(self, request_ids: Sequence[str]) -> None: ...

    def has_work(self) -> bool: ...

    def step(self) -> list[RequestDelta]: ...

    def use_idle_time(self) -> bool:
        """Prepare for what may come, for a moment; False when there is nothing to prepare."""
        ...

    def stats(self) -> EngineStats: ...

    def control(self, method: str, args: list[Any]) -> Any: ...

    def shutdown(self) -> None: ...


class EngineLoop:
    """Messages in, a step, deltas out. Sleeps while there is no work."""

    def __init__(self, engine: Steppable, channel: EngineChannel) -> None:
        self._engine = engine
        self._channel = channel
        self._clients = ClientRequests(channel.num_clients)
        self._next_heartbeat = 0.0
        self._may_prepare = True

    def turn(self) -> None:
        """One round of the loop."""
        if not self._engine.has_work():
            self._wait(self._next_heartbeat - time.monotonic())
        for message in self._channel.receive(MAX_MESSAGES_PER_STEP):
            self._handle(message)
        if self._engine.has_work():
            self._publish(self._engine.step())
        if time.monotonic() >= self._next_heartbeat:
            self._channel.broadcast(EngineStatus("ready", stats=self._engine.stats()))
            self._next_heartbeat = time.monotonic() + HEARTBEAT_SECONDS

    def _wait(self, seconds: float) -> None:
        """Sleep until there is a message; what is long enough for it is used."""
        if not self._may_prepare:
            self._channel.wait(seconds)
        elif not self._channel.wait(min(seconds, QUIET_SECONDS)) and seconds >= QUIET_SECONDS:
            self._may_prepare = self._engine.use_idle_time()

    def _handle(self, message: ToEngine) -> None:
        self._may_prepare = True
        if isinstance(message, AddRequest):
            self._clients.add(message)
            self._engine.add_request(message)
        elif isinstance(message, AbortRequests):
            self._engine.abort(message.request_ids)
        elif isinstance(message, AbortClient):
            self._engine.abort(self._clients.of(message.client_id))
        else:
            self._channel.send(message.client_id, self._call(message))
            self._next_heartbeat = 0.0  # it may have changed what every frontend should know

    def _call(self, message: Control) -> ControlResult:
        try:
            return ControlResult(
                message.call_id, self._engine.control(message.method, message.args)
            )
        except PageMillError as error:
            return ControlResult(message.call_id, error=str(error))

    def _publish(self, deltas: Iterable[RequestDelta]) -> None:
        by_client: dict[int, list[RequestDelta]] = {}
        for delta in deltas:
            by_client.setdefault(delta.client_id, []).append(delta)
        if not by_client:
            return
        stats = self._engine.stats()
        for client_id, own in by_client.items():
            self._clients.retire(own)
            self._channel.send(client_id, StepOutputs(own, stats))


def serve(launch: EngineLaunch, build: Callable[[Callable[[str], None]], Steppable]) -> int:
    """Build the engine and run its loop; returns the exit code.

    `build` gets a function that reports a phase of loading. Every error ends here: it is sent to
    the frontends, which fail their open requests with it.
    """
    channel = EngineChannel(launch.address)
    engine = None
    try:
        engine = build(lambda phase: channel.broadcast(EngineStatus("loading", phase=phase)))
        # What loading left behind lives for ever: the collector need not walk it in every pass.
        gc.collect()
        gc.freeze()
        channel.broadcast(EngineStatus("ready", info=engine.info, stats=engine.stats()))
        loop = EngineLoop(engine, channel)
        while True:
            loop.turn()
    except Exception as error:
        if not isinstance(error, PageMillError):
            logger.exception("the engine stops after an error")
        channel.broadcast(EngineStatus("failed", detail=describe_error(error)))
        return 1
    finally:
        if engine is not None:
            engine.shutdown()
        channel.close()


def describe_error(error: BaseException) -> str:
    """One readable line: what happened and, for lack of memory, what to do."""
    if isinstance(error, PageMillError):
        return str(error)
    line = next(iter(str(error).splitlines()), "") or "no details"
    # torch has its own out-of-memory errors, and this module must not import torch to name them.
    lacks_memory = isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__
    if lacks_memory or "can't allocate memory" in line:
        return (
            f"out of memory ({line}); lower --max-num-batched-tokens, --max-num-seqs, "
            "--max-model-len or --memory-utilization, or take a smaller model"
        )
    return f"{type(error).__name__}: {line}"


def exit_with_parent() -> None:
    """End this process, whatever it is doing, when standard input ends."""

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def prepare_process() -> EngineLaunch:
    """Read the launch message and set up signals."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Unbuffered, so that nothing after the line is taken from the watching thread.
    with os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0) as stdin:
        launch = msgspec.json.decode(stdin.readline(), type=EngineLaunch)
    exit_with_parent()
    return launch


def main() -> int:
    """Run an engine as the launch message on standard input says."""
    logging.basicConfig(format="%(asctime)s %(levelname)s engine: %(message)s")
    launch = prepare_process()

    def build(report: Callable[[str], None]) -> Steppable:
        from pagemill.engine.build import build_engine

        return build_engine(launch.config, report)

    return serve(launch, build)


if __name__ == "__main__":
    sys.exit(main())
