"""A call for vectors in the client: what waits, what is refused."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from pagemill.config.engine import EngineConfig
from pagemill.config.pooling import PoolingConfig
from pagemill.engine.channel import EngineAddress
from pagemill.engine.messages import EngineInfo, EngineStatus, RequestDelta, StepOutputs
from pagemill.errors import OverloadedError
from pagemill.frontend.client import ZmqEngineClient
from pagemill.frontend.monitor import EngineMonitor
from pagemill.frontend.outputs import PooledOutput, Prompt
from pagemill.frontend.validate import RequestValidator
from pagemill.params import PoolingParams

POOLING = PoolingConfig(task="embed", method="mean", width=2)


class NoEngine:
    """A started process that nothing is sent to."""

    address = EngineAddress("", ())

    def exit_cause(self) -> None:
        return None

    def stop(self) -> None:
        return


def make_client(max_tokens: int) -> ZmqEngineClient:
    config = EngineConfig(
        model="",
        served_model_names=("fake",),
        device="cpu",
        dtype="float32",
        max_model_len=64,
        max_num_queued_tokens=max_tokens,
        prefix_caching=False,
    )
    monitor = EngineMonitor()
    monitor.observe(EngineStatus("ready", info=EngineInfo(64, 64, 16, 8, 128, pooling=POOLING)))
    client = ZmqEngineClient(NoEngine(), config, monitor=monitor)
    client.attach(RequestValidator(vocab_size=8, max_logprobs=0, tokenizer=None), None)
    return client


async def answered(client: ZmqEngineClient) -> None:
    """Play the engine until nothing is open."""
    values = np.ones(2, "<f4").tobytes()
    while client._choices:
        deltas = [RequestDelta(i, finish_reason="stop", pooled=values) for i in client._choices]
        client._dispatch(StepOutputs(deltas))
        await asyncio.sleep(0)


def pool(
    client: ZmqEngineClient, request_id: str, lengths: list[int]
) -> asyncio.Task[list[PooledOutput]]:
    prompts = [Prompt([1] * length) for length in lengths]
    return asyncio.ensure_future(client.pool(prompts, PoolingParams(), request_id=request_id))


def test_a_call_may_have_more_tokens_than_may_wait_when_no_other_does() -> None:
    async def scenario() -> None:
        client = make_client(max_tokens=10)
        first = pool(client, "a", [8, 8])
        while not client._choices and not first.done():
            await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="prompts of 16 tokens"):
            await pool(client, "b", [1])
        await answered(client)
        assert len(await first) == 2
        last = pool(client, "c", [8, 8])  # everything was given back
        while not client._choices and not last.done():
            await asyncio.sleep(0)
        last.cancel()
        await asyncio.gather(last, return_exceptions=True)
        assert client._limit._num_tokens == 0

    asyncio.run(asyncio.wait_for(scenario(), 5))
