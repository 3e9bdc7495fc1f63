"""An engine client and a renderer without engine and tokenizer: one token is one byte."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import numpy as np

from pagemill.api.app import build_app
from pagemill.api.context import ApiSettings, ServerContext
from pagemill.config.pooling import PoolingConfig
from pagemill.engine.messages import EngineInfo, EngineStats, EngineStatus, FinishReason
from pagemill.errors import (
    ContextTooLong,
    InvalidParams,
    OverloadedError,
    PageMillError,
    RequestAborted,
    WrongModel,
)
from pagemill.frontend.chat_messages import normalise_messages
from pagemill.frontend.outputs import (
    ChoiceUpdate,
    PooledOutput,
    Prompt,
    TokenLogprob,
    TokenLogprobs,
)
from pagemill.frontend.pair_encoding import checked_keep
from pagemill.frontend.pooling import resolve_pooling_params
from pagemill.metrics.metrics import Metrics
from pagemill.params import PoolingParams, SamplingParams

MODEL = "fake-model"
VOCAB_SIZE = 256
MAX_MODEL_LEN = 512
REPLY = "Hello, world! How are you today?"


def token_logprobs(token_id: int, top: int) -> TokenLogprobs:
    def one(token_id: int, rank: int) -> TokenLogprob:
        return TokenLogprob(token_id, chr(token_id), bytes([token_id]), -0.5 * rank, rank)

    chosen = one(token_id, 1)
    others = [one((token_id + i) % VOCAB_SIZE, i + 1) for i in range(1, top)]
    return TokenLogprobs(chosen, [chosen, *others][:top])


class FakeRenderer:
    max_model_len = MAX_MODEL_LEN
    vocab_size = VOCAB_SIZE
    has_chat_template = True

    def __init__(self, template_text: str = "", opens: str = "") -> None:
        """`opens` is what the template writes to begin the answer."""
        self.template_text = template_text
        self.opens = opens
        self.fills_in = False
        self.last_texts: list[str | tuple[str, str]] = []
        self.last_chat: dict[str, Any] = {}

    async def render_chat(self, messages: list[dict[str, Any]], **options: Any) -> Prompt:
        self.last_chat = {"messages": messages, **options}
        messages = normalise_messages(messages)
        text = "".join(f"<{m['role']}>{m.get('content')}" for m in messages)
        return await self.encode(text + self.opens)

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> Prompt:
        return Prompt(list(text.encode()), text)

    async def encode_texts(
        self, texts: Sequence[str | tuple[str, str]], *, keep: int | None = None, **options: Any
    ) -> list[Prompt]:
        self.last_texts = list(texts)
        pairs = [(text, "") if isinstance(text, str) else text for text in texts]
        limit = checked_keep(keep, self.max_model_len)
        return [
            Prompt(list((a + b).encode())[:limit], second_text=len(a) if b else 0) for a, b in pairs
        ]

    async def encode_infill(self, prefix: str, suffix: str) -> Prompt:
        if not self.fills_in:
            raise WrongModel("this model does not fill in the middle", param="suffix")
        return await self.encode(f"<P>{prefix}<S>{suffix}<M>")

    def check_token_ids(self, token_ids: list[int], param: str = "prompt") -> Prompt:
        for token_id in token_ids:
            if not 0 <= token_id < self.vocab_size:
                raise InvalidParams(f"token id {token_id} is not in the vocabulary", param=param)
        return Prompt(list(token_ids))

    async def decode(self, token_ids: list[int], *, skip_special_tokens: bool = False) -> str:
        return "".join(map(self.token_text, token_ids))

    def token_text(self, token_id: int) -> str:
        return chr(token_id)


@dataclass
class FakeClient:
    """Answers every prompt with `reply`, a token at a time, `delay` seconds apart."""

    reply: str = REPLY
    delay: float = 0.0
    first_delay: float = 0.0
    raises: Exception | None = None
    fail_after: int | None = None
    fail_param: str | None = None  # the request's field that is at fault
    status: EngineStatus = field(default_factory=lambda: EngineStatus("ready"))
    info: EngineInfo = field(
        default_factory=lambda: EngineInfo(MAX_MODEL_LEN, 64, 16, 8, 128, device="cpu")
    )
    stats: EngineStats = field(default_factory=EngineStats)
    open_ids: set[str] = field(default_factory=set)
    cancelled: list[str] = field(default_factory=list)
    aborted: set[str] = field(default_factory=set)
    calls: list[tuple[Prompt, SamplingParams, dict[str, Any]]] = field(default_factory=list)
    pooled: list[tuple[Prompt, PoolingParams]] = field(default_factory=list)
    controls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    async def generate(
        self, prompt: Prompt, params: SamplingParams, *, request_id: str, **options: Any
    ) -> AsyncGenerator[ChoiceUpdate, None]:
        if self.raises is not None:
            raise self.raises
        if len(prompt.token_ids) + (params.max_tokens or 1) > MAX_MODEL_LEN:
            raise ContextTooLong(f"the context has {MAX_MODEL_LEN} tokens", param="max_tokens")
        assert request_id not in self.open_ids
        self.calls.append((prompt, params, {"request_id": request_id, **options}))
        self.open_ids.add(request_id)
        finished = False
        try:
            await asyncio.sleep(self.first_delay)
            async for update in self._updates(prompt, params, request_id):
                yield update
            finished = True
        finally:
            self.open_ids.discard(request_id)
            if not finished:
                self.cancelled.append(request_id)

    async def _updates(
        self, prompt: Prompt, params: SamplingParams, request_id: str
    ) -> AsyncGenerator[ChoiceUpdate, None]:
        text, reason, stop = self._output(params)
        tokens = list(text.encode())
        for i, token_id in enumerate(tokens or [None]):
            await asyncio.sleep(self.delay)
            last = i == max(0, len(tokens) - 1)
            for index in range(params.n):
                update = ChoiceUpdate(index, num_cached_tokens=2, scheduled_time=0.0)
                if token_id is not None:
                    update.text, update.token_ids = chr(token_id), [token_id]
                    if params.logprobs is not None:
                        update.logprobs = [token_logprobs(token_id, params.logprobs)]
                if i == 0 and params.prompt_logprobs is not None:
                    top = params.prompt_logprobs
                    known = [token_logprobs(t, top) for t in prompt.token_ids[1:]]
                    update.prompt_logprobs = [None, *known]
                if last:
                    update.finish_reason, update.stop_reason = reason, stop
                if self.fail_after == i:
                    update.finish_reason, update.error = "error", "secret 0xdeadbeef"
                    update.error_param = self.fail_param
                if request_id in self.aborted:
                    update.finish_reason = "abort"
                yield update
            if self.fail_after == i or request_id in self.aborted:
                return

    def _output(self, params: SamplingParams) -> tuple[str, FinishReason, str | None]:
        for stop in params.stop_strings:
            cut = self.reply.find(stop)
            if cut >= 0:
                return self.reply[:cut], "stop", stop
        if params.max_tokens is not None and params.max_tokens < len(self.reply):
            return self.reply[: params.max_tokens], "length", None
        return self.reply, "stop", None

    async def abort(self, request_ids: list[str]) -> int:
        found = self.open_ids & set(request_ids)
        self.aborted |= found
        return len(found)

    async def pool(
        self,
        prompts: Sequence[Prompt],
        params: PoolingParams,
        *,
        request_id: str,
        priority: int = 0,
    ) -> list[PooledOutput]:
        """The counts of the first bytes from "a" on; a classifier counts as many as its labels."""
        if self.raises is not None:
            raise self.raises
        assert request_id not in self.open_ids
        self.open_ids.add(request_id)
        try:
            await self._wait_unless_aborted(request_id)
        except asyncio.CancelledError:
            self.cancelled.append(request_id)
            raise
        finally:
            self.open_ids.discard(request_id)
        outputs = []
        for prompt in prompts:
            own = resolve_pooling_params(prompt, params, self.info)
            self.pooled.append((prompt, own))
            assert self.info.pooling is not None
            width = own.dimensions or self.info.pooling.width
            counts = [float(prompt.token_ids.count(ord("a") + i)) for i in range(width)]
            rows = [counts] * len(prompt.token_ids) if own.by_token else counts
            outputs.append(PooledOutput(np.array(rows, np.float32), 1, 0.0))
        return outputs

    async def _wait_unless_aborted(self, request_id: str) -> None:
        end = time.monotonic() + self.first_delay
        await asyncio.sleep(0)
        while time.monotonic() < end:
            await asyncio.sleep(0.001)
            if request_id in self.aborted:
                raise RequestAborted("the request was aborted")

    async def control(self, method: str, *args: Any) -> Any:
        if method not in ("reset_prefix_cache", "prepare_sleep", "sleep", "wake_up"):
            raise PageMillError(f"no such method: {method}")
        self.controls.append((method, args))
        if method == "wake_up":
            self.stats.sleep_level = 0
        elif method.endswith("sleep"):
            self.stats.sleep_level = args[0]
            if method == "sleep":
                self.aborted |= self.open_ids
            return len(self.open_ids)
        return True


def pooling_client(pooling: PoolingConfig, **fields: Any) -> FakeClient:
    """The client of an engine that makes vectors."""
    client = FakeClient(**fields)
    client.info = msgspec.structs.replace(client.info, pooling=pooling)
    return client


def overloaded() -> OverloadedError:
    return OverloadedError("The queue is full", retry_after=7)


def make_context(
    client: FakeClient | None = None, settings: ApiSettings | None = None, **fields: Any
) -> ServerContext:
    client = client or FakeClient()
    fields.setdefault("renderer", FakeRenderer())
    return ServerContext(
        client=client,
        served_model_names=(MODEL, "alias"),
        metrics=Metrics(MODEL, client),
        settings=settings or ApiSettings(),
        **fields,
    )


def http_client(context: ServerContext, **options: Any) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(build_app(context))
    return httpx.AsyncClient(transport=transport, base_url="http://localhost", **options)


def metric(context: ServerContext, name: str, **labels: str) -> float:
    value = context.metrics.registry.get_sample_value(
        name, {"model_name": MODEL, "engine": "0", **labels}
    )
    return value or 0.0


def sse_events(body: str) -> list[str]:
    """The data of the events of a stream; comments are left out."""
    blocks = [block for block in body.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks)
    return [block.removeprefix("data: ") for block in blocks]
