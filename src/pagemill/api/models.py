"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.context import ServerContext
from pagemill.api.responses import ModelCard, ModelList
from pagemill.api.streaming import json_response


async def list_models(context: ServerContext, request: Request) -> Response:
    """All names that this server answers to."""
    cards = [_card(context, name) for name in context.served_model_names]
    return json_response(ModelList(data=cards))


async def get_model(context: ServerContext, request: Request) -> Response:
    """One model. Raises UnknownModel."""
    return json_response(_card(context, context.check_model(request.path_params["model_id"])))


def _card(context: ServerContext, name: str) -> ModelCard:
    renderer = context.renderer
    return ModelCard(
        id=name,
        created=context.started_at,
        root=context.model_root or context.served_model_names[0],
        max_model_len=None if renderer is None else renderer.max_model_len,
    )
