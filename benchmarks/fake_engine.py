"""An engine process without a model: every running request gets a token each step.

Started in the place of the real one (`python benchmarks/fake_engine.py --step-ms 7.8`), with the
real loop, messages and channel, to measure what the HTTP side costs. It imports no torch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pagemill.engine.messages import AddRequest, EngineInfo, EngineStats, RequestDelta
from pagemill.engine.process import Steppable, prepare_process, serve

MAX_MODEL_LEN = 8192
MAX_NUM_SEQS = 4096


@dataclass(slots=True)
class Running:
    """A request and how many tokens it still gets."""

    request_id: str
    client_id: int
    left: int
    started: bool = False


class FakeEngine:
    """Steps last `step_seconds`; the tokens are drawn from the lower part of the vocabulary."""

    def __init__(self, step_seconds: float, *, max_num_seqs: int = MAX_NUM_SEQS) -> None:
        self.info = EngineInfo(
            max_model_len=MAX_MODEL_LEN,
            num_blocks=2**20,
            block_size=16,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=MAX_MODEL_LEN,
            device="none",
            dtype="none",
            attention="none",
        )
        rng = np.random.default_rng(0)
        ids = rng.integers(1000, 40000, 4096, np.int32)
        self._tokens = [ids[i : i + 1].tobytes() for i in range(len(ids))]
        self._step_seconds = step_seconds
        self._running: dict[str, Running] = {}
        self._unsent: list[RequestDelta] = []
        self._num_steps = 0
        self._next_step = 0.0

    def add_request(self, message: AddRequest) -> None:
        tokens = message.params.max_tokens or 1
        self._running[message.request_id] = Running(message.request_id, message.client_id, tokens)

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            found = self._running.pop(request_id, None)
            if found is not None:
                self._unsent.append(
                    RequestDelta(request_id, found.client_id, finish_reason="abort")
                )

    def has_work(self) -> bool:
        return bool(self._running or self._unsent)

    def step(self) -> list[RequestDelta]:
        wait = self._next_step - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        self._next_step = time.monotonic() + self._step_seconds
        self._num_steps += 1
        deltas, self._unsent = self._unsent, []
        for place, running in enumerate(self._running.values()):
            deltas.append(self._delta(running, (self._num_steps + place) % len(self._tokens)))
        for delta in deltas:
            if delta.finish_reason == "length":
                del self._running[delta.request_id]
        return deltas

    def _delta(self, running: Running, token: int) -> RequestDelta:
        delta = RequestDelta(running.request_id, running.client_id, self._tokens[token])
        if not running.started:
            running.started = True
            delta.num_cached_tokens, delta.scheduled_time = 0, time.monotonic()
        running.left -= 1
        if not running.left:
            delta.finish_reason = "length"
        return delta

    def use_idle_time(self) -> bool:
        return False

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self._running), num_steps=self._num_steps)

    def control(self, method: str, args: list[Any]) -> Any:
        return True

    def shutdown(self) -> None:
        return


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step-ms", type=float, default=7.8)
    parser.add_argument("--max-num-seqs", type=int, default=MAX_NUM_SEQS)
    args = parser.parse_args()
    launch = prepare_process()

    def build(report: Callable[[str], None]) -> Steppable:
        return FakeEngine(args.step_ms / 1000, max_num_seqs=args.max_num_seqs)

    return serve(launch, build)


if __name__ == "__main__":
    sys.exit(main())
