"""`POST /v1/completions`: text or token ids in, text out."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import cast

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.chunk_template import MARK, text_events
from pagemill.api.context import ServerContext
from pagemill.api.direct import Encode
from pagemill.api.generation import Generation
from pagemill.api.intake import Intake, take_in
from pagemill.api.logprobs import CompletionLogprobsBuilder, join, prompt_logprobs
from pagemill.api.responses import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Usage,
)
from pagemill.api.sampling import (
    check_logprobs,
    check_num_choices,
    sampling_params,
    truncate,
)
from pagemill.api.schema import CompletionRequest
from pagemill.api.sse import event
from pagemill.api.streaming import ChunkUsage, answer
from pagemill.errors import InvalidParams
from pagemill.frontend.base import Renderer
from pagemill.frontend.outputs import ChoiceUpdate, Prompt

DEFAULT_MAX_TOKENS = 16

_decoder = msgspec.json.Decoder(CompletionRequest)


async def create(context: ServerContext, request: Request) -> Response:
    """Completions of one prompt or of many, whole or as a stream.

    Raises RequestError, OverloadedError and EngineDeadError before the first token.
    """
    intake = await take_in(context, request, _decoder)
    generation = await _prepare(intake)
    echoes: list[str] = []
    if intake.body.echo:
        echoes = [await _text_of(prompt, intake.renderer) for prompt in generation.prompts]
    call = _Call(intake, generation, echoes)
    return await answer(request, intake, generation, call)


async def _prepare(intake: Intake[CompletionRequest]) -> Generation:
    body, context = intake.body, intake.context
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    score_only = max_tokens == 0 and bool(body.echo)
    if max_tokens == 0 and not score_only:
        raise InvalidParams("max_tokens may be 0 only with echo", param="max_tokens")
    check_logprobs("logprobs", body.logprobs, context.limits)
    params = sampling_params(
        body, context, max_tokens=1 if score_only else max_tokens, logprobs=body.logprobs
    )
    if body.echo and body.logprobs is not None:
        params.prompt_logprobs = max(body.logprobs, params.prompt_logprobs or 0)
    given = split_prompts(body.prompt, context.limits.max_prompts, "prompt")
    check_num_choices(len(given), params.n, context.limits)
    return Generation(
        context,
        intake.scope,
        [await _render(prompt, body, intake.renderer) for prompt in given],
        params,
        id_prefix="cmpl",
        priority=body.priority or 0,
        cache_salt=body.cache_salt,
        drop_tokens=score_only,
    )


def split_prompts(
    prompt: str | list[str | int | list[int]], limit: int, param: str
) -> list[str | list[int]]:
    """The prompts of a request, each a text or token ids. Raises InvalidParams."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidParams(f"{param} must not be empty", param=param)
    kinds = set(map(type, prompt))
    if len(kinds) > 1:
        raise InvalidParams(f"{param} must not mix texts, token ids and lists of them", param)
    if kinds == {int}:
        return [cast("list[int]", prompt)]
    if len(prompt) > limit:
        raise InvalidParams(f"{param} may hold at most {limit} of them", param)
    return cast("list[str | list[int]]", prompt)


async def _render(prompt: str | list[int], body: CompletionRequest, renderer: Renderer) -> Prompt:
    if body.suffix:
        return await _render_infill(prompt, body, renderer)
    if isinstance(prompt, str):
        special = body.add_special_tokens is not False
        rendered = await renderer.encode(prompt, add_special_tokens=special)
    else:
        rendered = renderer.check_token_ids(prompt)
    if not rendered.token_ids:
        raise InvalidParams("prompt must not be empty", param="prompt")
    return truncate(rendered, body, renderer.max_model_len)


async def _render_infill(
    prompt: str | list[int], body: CompletionRequest, renderer: Renderer
) -> Prompt:
    """The prompt between whose text and `suffix` the completion belongs."""
    assert body.suffix is not None
    if not isinstance(prompt, str):
        raise InvalidParams("suffix needs a prompt of text, not token ids", param="suffix")
    for name in ("echo", "truncate_prompt_tokens"):
        if getattr(body, name):
            raise InvalidParams(f"{name} does not go with suffix", param=name)
    return await renderer.encode_infill(prompt, body.suffix)


async def _text_of(prompt: Prompt, renderer: Renderer) -> str:
    if prompt.text is not None:
        return prompt.text
    return await renderer.decode(prompt.token_ids, skip_special_tokens=False)


@dataclass(slots=True)
class _ChoiceState:
    """A choice as far as it is sent. `echo` is the prompt's text, when it was asked for."""

    logprobs: CompletionLogprobsBuilder | None
    echo: str
    started: bool = False


@dataclass
class _Collected:
    """The parts of a choice of a whole answer."""

    text: list[str] = field(default_factory=list)
    logprobs: list[CompletionLogprobs] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    last: CompletionChoice | None = None

    def add(self, part: CompletionChoice) -> None:
        if part.prompt_logprobs is UNSET and self.last is not None:
            part.prompt_logprobs = self.last.prompt_logprobs
        if part.prompt_token_ids is UNSET and self.last is not None:
            part.prompt_token_ids = self.last.prompt_token_ids
        self.text.append(part.text)
        if part.logprobs is not None:
            self.logprobs.append(part.logprobs)
        if part.token_ids is not UNSET:
            self.token_ids += part.token_ids
        self.last = part

    def choice(self) -> CompletionChoice:
        assert self.last is not None
        whole = self.last
        whole.text = "".join(self.text)
        whole.logprobs = join(self.logprobs) if self.logprobs else None
        whole.token_ids = UNSET if whole.token_ids is UNSET else self.token_ids
        return whole


class _Call:
    """One request's way from updates to chunks, or to one answer."""

    def __init__(
        self, intake: Intake[CompletionRequest], generation: Generation, echoes: list[str]
    ) -> None:
        self._body = intake.body
        self._context = intake.context
        self._generation = generation
        self._renderer = intake.renderer
        self._model = intake.model
        self._created = int(intake.context.clock.wall())
        self._states = [self._new_state(echoes, i) for i in range(generation.num_choices)]
        self._collected = [_Collected() for _ in self._states]

    def _new_state(self, echoes: list[str], index: int) -> _ChoiceState:
        echo = echoes[index // self._generation.params.n] if echoes else ""
        builder = None
        if self._body.logprobs is not None:
            as_ids = bool(self._body.return_tokens_as_token_ids)
            builder = CompletionLogprobsBuilder(self._body.logprobs, as_ids)
        return _ChoiceState(builder, echo)

    def events_of(self, update: ChoiceUpdate, usage: ChunkUsage) -> bytes:
        return event(self._completion([self._choice(update)], usage))

    def direct_events(self, usage: ChunkUsage) -> Encode:
        general = partial(self.events_of, usage=usage)
        if self._body.logprobs is not None or self._body.return_token_ids:
            return general
        chunk = self._completion([CompletionChoice(index=0, text=MARK)], usage)
        return text_events(chunk, general)

    def usage_chunk(self, usage: Usage) -> Completion:
        return self._completion([], usage)

    def add(self, update: ChoiceUpdate) -> None:
        self._collected[update.index].add(self._choice(update))

    def result(self) -> Completion:
        choices = [parts.choice() for parts in self._collected]
        return self._completion(choices, self._generation.usage())

    def _completion(self, choices: list[CompletionChoice], usage: ChunkUsage) -> Completion:
        return Completion(
            id=self._generation.response_id,
            created=self._created,
            model=self._model,
            choices=choices,
            usage=usage,
            system_fingerprint=self._context.fingerprint,
        )

    def _choice(self, update: ChoiceUpdate) -> CompletionChoice:
        state = self._states[update.index]
        choice = CompletionChoice(
            index=update.index,
            text=update.text,
            finish_reason=update.finish_reason,
            stop_reason=update.stop_reason,
        )
        parts: list[CompletionLogprobs] = []
        if not state.started:
            state.started = True
            parts = self._begin(choice, state, update)
        if state.logprobs is not None and update.logprobs is not None:
            parts.append(state.logprobs.output(update.logprobs))
        choice.logprobs = join(parts) if parts else None
        if self._body.return_token_ids:
            choice.token_ids = update.token_ids
        return choice

    def _begin(
        self, choice: CompletionChoice, state: _ChoiceState, update: ChoiceUpdate
    ) -> list[CompletionLogprobs]:
        """Add what only the first part of a choice has; the logprobs of the echoed prompt."""
        prompt_ids = self._generation.prompt_of(choice.index).token_ids
        if self._body.return_token_ids:
            choice.prompt_token_ids = prompt_ids
        positions = update.prompt_logprobs
        if positions is not None and self._body.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(positions)
        if not self._body.echo:
            return []
        choice.text = state.echo + choice.text
        if state.logprobs is None or positions is None:
            return []
        first = prompt_ids[0]
        return [state.logprobs.prompt(self._renderer.token_text(first), first, positions)]
