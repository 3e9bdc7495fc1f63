"""`POST /tokenize` and `POST /detokenize`."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.body import read_body
from pagemill.api.context import ServerContext
from pagemill.api.messages import check_messages, check_tools, checked_kwargs
from pagemill.api.responses import DetokenizeResponse, TokenizeResponse
from pagemill.api.sampling import refuse_unsupported
from pagemill.api.schema import DetokenizeRequest, TokenizeRequest
from pagemill.api.streaming import json_response
from pagemill.errors import InvalidParams
from pagemill.frontend.base import Renderer
from pagemill.frontend.outputs import Prompt

_tokenize_decoder = msgspec.json.Decoder(TokenizeRequest)
_detokenize_decoder = msgspec.json.Decoder(DetokenizeRequest)


async def tokenize(context: ServerContext, request: Request) -> Response:
    """Tokens of a text, or of messages after the chat template. Raises RequestError."""
    body = await read_body(request, _tokenize_decoder, context.limits.body_timeout)
    renderer = context.require_loaded()
    context.check_model(body.model)
    refuse_unsupported(body)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidParams("Exactly one of prompt and messages is needed", param="prompt")
    prompt = await _render(body, context, renderer)
    strings = None
    if body.return_token_strs:
        strings = [renderer.token_text(token_id) for token_id in prompt.token_ids]
    count = len(prompt.token_ids)
    return json_response(TokenizeResponse(count, renderer.max_model_len, prompt.token_ids, strings))


async def _render(body: TokenizeRequest, context: ServerContext, renderer: Renderer) -> Prompt:
    if body.messages is None:
        assert body.prompt is not None
        special = body.add_special_tokens is not False
        return await renderer.encode(body.prompt, add_special_tokens=special)
    check_messages(body.messages, context.limits)
    check_tools(body.tools, context.limits)
    continue_final = bool(body.continue_final_message)
    if continue_final and body.add_generation_prompt:
        raise InvalidParams(
            "continue_final_message and add_generation_prompt exclude each other",
            param="continue_final_message",
        )
    wanted = body.add_generation_prompt
    return await renderer.render_chat(
        body.messages,
        tools=body.tools,
        add_generation_prompt=not continue_final if wanted is None else wanted,
        continue_final_message=continue_final,
        add_special_tokens=bool(body.add_special_tokens),
        template_kwargs=checked_kwargs(
            body.chat_template_kwargs, context.limits, "chat_template_kwargs"
        ),
    )


async def detokenize(context: ServerContext, request: Request) -> Response:
    """The text of tokens. Raises RequestError."""
    body = await read_body(request, _detokenize_decoder, context.limits.body_timeout)
    renderer = context.require_loaded()
    context.check_model(body.model)
    if not body.tokens:
        return json_response(DetokenizeResponse(""))
    renderer.check_token_ids(body.tokens, "tokens")
    return json_response(DetokenizeResponse(await renderer.decode(body.tokens)))
