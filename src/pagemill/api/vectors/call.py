"""What the endpoints for vectors share: reading a request, asking the engine, counting."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.body import read_body
from pagemill.api.completions import split_prompts
from pagemill.api.connection import connection_of, run_while_connected
from pagemill.api.context import RequestScope, ServerContext
from pagemill.api.errors import GenerationError
from pagemill.api.responses import PromptTokensDetails, Usage
from pagemill.api.sampling import refuse_unsupported
from pagemill.api.streaming import ignored_header, json_response
from pagemill.api.vectors.answers import AnswerList
from pagemill.api.vectors.schema import InputFields, VectorFields
from pagemill.config.pooling import PoolingConfig
from pagemill.errors import InvalidParams, PageMillError, RequestAborted
from pagemill.frontend.base import Renderer
from pagemill.frontend.outputs import PooledOutput, Prompt
from pagemill.frontend.pair_encoding import checked_keep
from pagemill.params import PoolingParams

logger = logging.getLogger(__name__)

B = TypeVar("B", bound=VectorFields)
WithInput = TypeVar("WithInput", bound=InputFields)


@dataclass(slots=True)
class VectorCall(Generic[B]):
    """One request for vectors, under the id that its answer has."""

    body: B
    context: ServerContext
    request: Request
    renderer: Renderer
    pooling: PoolingConfig
    scope: RequestScope
    model: str
    ignored: list[str]
    response_id: str

    @property
    def keep(self) -> int | None:
        return self.body.truncate_prompt_tokens

    async def encode(
        self, texts: Sequence[str | tuple[str, str]], param: str, *, special: bool = True
    ) -> list[Prompt]:
        """The tokens of texts or pairs. Raises InvalidParams."""
        return await self.renderer.encode_texts(
            texts, keep=self.keep, add_special_tokens=special, param=param
        )

    def check_size(self, num_vectors: int, dimensions: int | None) -> None:
        """Raises InvalidParams when an answer of so many vectors is too large."""
        count = num_vectors * (dimensions or self.pooling.width)
        limit = self.context.limits.max_numbers
        if count > limit:
            raise InvalidParams(
                f"the answer would have {count} numbers, and may have {limit}; send fewer inputs",
                param="input",
            )

    async def run(self, prompts: Sequence[Prompt], params: PoolingParams) -> list[PooledOutput]:
        """The vectors of all prompts. A client that leaves cancels them."""
        self.scope.prompt_tokens = sum(len(prompt.token_ids) for prompt in prompts)
        request = self.request
        connection = connection_of(request.scope)
        return await run_while_connected(self._pool(prompts, params), request.receive, connection)

    async def _pool(self, prompts: Sequence[Prompt], params: PoolingParams) -> list[PooledOutput]:
        context = self.context
        lengths = [len(prompt.token_ids) for prompt in prompts]
        with (
            context.admission.track(self.response_id, 1) as (name, ids),
            context.metrics.pooling(lengths, context.clock.monotonic) as seen,
        ):
            self.response_id = self.scope.response_id = name
            outputs = await self._ask(prompts, params, ids[0])
            seen.finish(outputs)
        self.scope.cached_tokens = sum(output.num_cached_tokens for output in outputs)
        return outputs

    async def _ask(
        self, prompts: Sequence[Prompt], params: PoolingParams, request_id: str
    ) -> list[PooledOutput]:
        priority = self.body.priority or 0
        try:
            return await self.context.client.pool(
                prompts, params, request_id=request_id, priority=priority
            )
        except RequestAborted:
            self.context.check_awake()  # it was going to sleep: another time, perhaps
            raise
        except PageMillError as error:
            if type(error) is not PageMillError:
                raise
            self.context.check_awake()  # it was going to sleep: another time, perhaps
            logger.error("request %s failed: %s", self.scope.request_id, error)
            raise GenerationError("The engine could not finish this request") from None

    def usage(self) -> Usage:
        """The counts; nothing is generated."""
        tokens = self.scope.prompt_tokens
        return Usage(tokens, 0, tokens, PromptTokensDetails(self.scope.cached_tokens))

    def respond_list(self, kind: Callable[..., AnswerList], data: list[Any]) -> Response:
        """An answer of the given kind."""
        created = int(self.context.clock.wall())
        return self.respond(
            kind(
                id=self.response_id,
                created=created,
                model=self.model,
                data=data,
                usage=self.usage(),
            )
        )

    def respond(self, answer: msgspec.Struct) -> Response:
        """The answer, with the names of fields that had no effect in a header."""
        return json_response(answer, ignored_header(self.ignored))


async def take_in(
    context: ServerContext, request: Request, decoder: msgspec.json.Decoder[B], prefix: str
) -> VectorCall[B]:
    """Read a request; `prefix` begins its id. Raises RequestError, OverloadedError and so on."""
    body = await read_body(request, decoder, context.limits.body_timeout)
    renderer = context.require_ready()
    model = context.check_model(body.model)
    pooling = context.require_pooling()
    scope = RequestScope.of(request)
    scope.model = model
    scope.adopt_id(body.request_id)
    if body.priority and not context.settings.priority_scheduling:
        raise InvalidParams("priority needs a server with priority scheduling", param="priority")
    ignored = refuse_unsupported(body)
    name = f"{prefix}-{scope.request_id}"
    return VectorCall(body, context, request, renderer, pooling, scope, model, ignored, name)


async def read_inputs(call: VectorCall[WithInput]) -> list[Prompt]:
    """The prompts of `input`: texts are tokenised, token ids taken as they are."""
    body, limits = call.body, call.context.limits
    given = split_prompts(body.input, limits.max_inputs, "input")
    texts = [item for item in given if isinstance(item, str)]
    if texts:
        prompts = await call.encode(texts, "input", special=body.add_special_tokens is not False)
    else:
        keep = checked_keep(call.keep, call.renderer.max_model_len)
        tokens = [item for item in given if not isinstance(item, str)]
        prompts = [call.renderer.check_token_ids(ids[:keep], "input") for ids in tokens]
    if not all(prompt.token_ids for prompt in prompts):
        raise InvalidParams("input must not be empty", param="input")
    return prompts
