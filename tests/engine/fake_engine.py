"""An engine process without a model: it answers each prompt with the prompt, over and over.

Started with the real loop, channel and signals. `config.model` names what goes wrong.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pagemill.engine.messages import AddRequest, EngineInfo, EngineStats, RequestDelta
from pagemill.engine.process import Steppable, prepare_process, serve
from pagemill.errors import ModelLoadError, PageMillError

STEP_SECONDS = 0.002


@dataclass
class Echo:
    """A request and how many tokens it has been given."""

    request: AddRequest
    prompt: list[int]
    num_tokens: int = 0

    def step(self) -> RequestDelta:
        token_id = self.prompt[self.num_tokens % len(self.prompt)]
        self.num_tokens += 1
        done = self.num_tokens == self.request.params.max_tokens
        return RequestDelta(
            self.request.request_id,
            self.request.client_id,
            token_ids=np.asarray([token_id], "<i4").tobytes(),
            finish_reason="length" if done else None,
            num_cached_tokens=len(self.request.block_hashes) if self.num_tokens == 1 else None,
        )


class EchoEngine:
    """One token for every request in each step."""

    def __init__(self, behaviour: str) -> None:
        self.info = EngineInfo(
            max_model_len=4096,
            num_blocks=64,
            block_size=16,
            max_num_seqs=2,
            max_num_batched_tokens=64,
        )
        self._behaviour = behaviour
        self._running: dict[str, Echo] = {}
        self._unsent: list[RequestDelta] = []
        self._num_steps = 0

    def add_request(self, message: AddRequest) -> None:
        if message.priority == 99:
            refusal = RequestDelta(message.request_id, message.client_id)
            refusal.finish_reason, refusal.error = "error", "priority 99 is not possible"
            self._unsent.append(refusal)
            return
        prompt = np.frombuffer(message.token_ids, "<i4").tolist()
        self._running[message.request_id] = Echo(message, prompt)

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            echo = self._running.pop(request_id, None)
            if echo is not None:
                client_id = echo.request.client_id
                self._unsent.append(RequestDelta(request_id, client_id, finish_reason="abort"))

    def has_work(self) -> bool:
        return bool(self._running or self._unsent)

    def step(self) -> list[RequestDelta]:
        time.sleep(STEP_SECONDS)
        self._num_steps += 1
        if self._num_steps > 5:
            self._misbehave()
        deltas = [echo.step() for echo in self._running.values()]
        ended = [d.request_id for d in deltas if d.finish_reason is not None]
        for request_id in ended:
            del self._running[request_id]
        deltas, self._unsent = self._unsent + deltas, []
        return deltas

    def use_idle_time(self) -> bool:
        return False

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self._running), num_steps=self._num_steps)

    def control(self, method: str, args: list[Any]) -> Any:
        if method == "echo":
            return args
        raise PageMillError(f"there is no control method {method!r}")

    def shutdown(self) -> None:
        return

    def _misbehave(self) -> None:
        if self._behaviour == "raise":
            raise RuntimeError("the device is on fire\nsecond line")
        if self._behaviour == "memory":
            raise MemoryError("of 7 GiB")
        if self._behaviour == "hang":
            time.sleep(3600)
        if self._behaviour == "exit":
            os._exit(3)


def main() -> int:
    launch = prepare_process()
    behaviour = launch.config.model

    def build(report: Callable[[str], None]) -> Steppable:
        report("reading weights")
        if behaviour == "no-model":
            raise ModelLoadError("folder/x: no such model folder")
        if behaviour == "slow-load":
            time.sleep(0.3)
        return EchoEngine(behaviour)

    return serve(launch, build)


if __name__ == "__main__":
    sys.exit(main())
