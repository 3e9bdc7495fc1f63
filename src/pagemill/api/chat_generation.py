"""From a chat request to its generation; shared by every endpoint that speaks in messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from pagemill.api.context import Limits, ServerContext
from pagemill.api.generation import Generation
from pagemill.api.intake import Intake
from pagemill.api.messages import check_messages, read_tool_choice, template_kwargs
from pagemill.api.sampling import (
    check_logprobs,
    check_num_choices,
    sampling_params,
    truncate,
)
from pagemill.api.schema import ChatRequest
from pagemill.api.tools.base import OutputParser, ParsedDelta
from pagemill.api.tools.chat_format import RequestFormat
from pagemill.errors import InvalidParams
from pagemill.frontend.base import Renderer
from pagemill.frontend.outputs import ChoiceUpdate, Prompt
from pagemill.params import SamplingParams

_REQUEST_TYPES = {"chatcmpl": "chat_completion", "resp": "response", "msg": "message"}


@dataclass(slots=True)
class ChoiceState:
    """A choice as far as it is sent: its parser, and whether it has called a tool."""

    parser: OutputParser
    with_reasoning: bool = True
    started: bool = False
    called_tool: bool = False
    on_end: Callable[[bool], None] | None = None  # is told whether a tool was called

    def parse(self, update: ChoiceUpdate) -> ParsedDelta:
        """What an update adds to the message."""
        delta = self.parser.push(update.text)
        if update.finish_reason is not None:
            rest = self.parser.finish()
            delta = ParsedDelta(
                delta.content + rest.content,
                delta.reasoning + rest.reasoning,
                [*delta.tool_calls, *rest.tool_calls],
            )
        if not self.with_reasoning:
            delta.reasoning = ""
        self.called_tool = self.called_tool or bool(delta.tool_calls)
        if update.finish_reason is not None and self.on_end is not None:
            self.on_end(self.called_tool)
        return delta

    def finish_reason(self, update: ChoiceUpdate) -> str | None:
        """The reason in OpenAI's terms."""
        if update.finish_reason == "stop" and self.called_tool:
            return "tool_calls"
        return update.finish_reason


async def prepare(intake: Intake[ChatRequest], id_prefix: str) -> tuple[Generation, RequestFormat]:
    """Check and render a chat request. Raises RequestError."""
    body, context = intake.body, intake.context
    intake.ignored += check_messages(body.messages, context.limits)
    choice = read_tool_choice(body, context.limits)
    params = sampling_params(
        body,
        context,
        max_tokens=_max_tokens(body),
        logprobs=_num_logprobs(body, context.limits),
    )
    check_num_choices(1, params.n, context.limits)
    with_tools = choice.mode != "none"
    prompt = await _render(body, context, intake.renderer, with_tools=with_tools)
    form = context.chat_format(intake.renderer).for_request(choice, prompt.text)
    generation = Generation(
        context,
        intake.scope,
        [truncate(prompt, body, intake.renderer.max_model_len)],
        await _shaped(params, form, body),
        id_prefix=id_prefix,
        priority=body.priority or 0,
        cache_salt=body.cache_salt,
    )
    return generation, form


def states(body: ChatRequest, generation: Generation, form: RequestFormat) -> list[ChoiceState]:
    """The state of every choice, before its first update."""
    with_reasoning = body.include_reasoning is not False
    on_end = None if form.tools is None else _counts_calls(body, generation)
    return [
        ChoiceState(form.parser(), with_reasoning, on_end=on_end)
        for _ in range(generation.params.n)
    ]


def _counts_calls(body: ChatRequest, generation: Generation) -> Callable[[bool], None]:
    metrics, kind = generation.context.metrics, _REQUEST_TYPES[generation.id_prefix]
    return lambda called: metrics.observe_tool_parse(
        kind, streaming=bool(body.stream), called=called
    )


async def _shaped(params: SamplingParams, form: RequestFormat, body: ChatRequest) -> SamplingParams:
    """With the grammar that enforces a call, the tokens that the parser must see, the budget."""
    changes: dict[str, object] = {}
    if form.choice.mode == "required":
        if params.structured_outputs is not None:
            raise InvalidParams(
                "tool_choice: a required call cannot be combined with structured output",
                param="tool_choice",
            )
        # On a thread: tools with large schemas take long to check.
        changes["structured_outputs"] = await asyncio.to_thread(form.grammar)
    if body.thinking_token_budget not in (None, -1):
        reasoning = form.model.reasoning
        changes["thinking_token_budget"] = body.thinking_token_budget
        changes["thinking_tags"] = reasoning and (reasoning.open, reasoning.close)
    if form.needs_control_tokens and body.skip_special_tokens is None:
        changes["skip_special_tokens"] = False
    return msgspec.structs.replace(params, **changes) if changes else params


def _max_tokens(body: ChatRequest) -> int | None:
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    value: int | None = getattr(body, name)
    if value is not None and value < 1:
        raise InvalidParams(f"{name} must be at least 1, got {value}", param=name)
    return value


def _num_logprobs(body: ChatRequest, limits: Limits) -> int | None:
    if body.top_logprobs and not body.logprobs:
        raise InvalidParams("top_logprobs needs logprobs to be true", param="top_logprobs")
    check_logprobs("top_logprobs", body.top_logprobs, limits)
    return (body.top_logprobs or 0) if body.logprobs else None


async def _render(
    body: ChatRequest, context: ServerContext, renderer: Renderer, *, with_tools: bool
) -> Prompt:
    continue_final = bool(body.continue_final_message)
    add_generation = body.add_generation_prompt
    if continue_final and add_generation:
        raise InvalidParams(
            "continue_final_message and add_generation_prompt exclude each other",
            param="continue_final_message",
        )
    return await renderer.render_chat(
        body.messages,
        tools=body.tools if with_tools else None,
        add_generation_prompt=not continue_final if add_generation is None else add_generation,
        continue_final_message=continue_final,
        add_special_tokens=bool(body.add_special_tokens),
        template_kwargs=template_kwargs(body, context.limits),
    )
