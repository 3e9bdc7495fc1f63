"""`/v1/batches`: create, retrieve, cancel and list."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from pagemill.api.batch.objects import (
    MAX_METADATA,
    WINDOW_SECONDS,
    Batch,
    BatchList,
    CreateBatch,
    StoredBatch,
    page_ends,
)
from pagemill.api.batch.queries import page_limit, page_query, storage_of
from pagemill.api.batch.storage import new_id
from pagemill.api.batch.store import BatchStore
from pagemill.api.body import read_body
from pagemill.api.context import RequestScope, ServerContext
from pagemill.api.streaming import json_response
from pagemill.errors import InvalidParams

DEFAULT_PAGE = 20
MAX_PAGE = 100

_decoder = msgspec.json.Decoder(CreateBatch)


async def create(context: ServerContext, request: Request) -> Response:
    """Run the requests of a file, within a day."""
    storage = storage_of(context)
    body = await read_body(request, _decoder, context.limits.body_timeout)
    if body.endpoint not in storage.urls:
        known = ", ".join(storage.urls)
        raise InvalidParams(f"endpoint must be one of {known}", param="endpoint")
    if body.metadata is not None and len(body.metadata) > MAX_METADATA:
        raise InvalidParams(f"metadata has more than {MAX_METADATA} pairs", param="metadata")
    now = int(context.clock.wall())
    batch = Batch(
        id=new_id("batch_"),
        endpoint=body.endpoint,
        input_file_id=body.input_file_id,
        created_at=now,
        expires_at=now + WINDOW_SECONDS,
        metadata=body.metadata,
    )
    expiry = body.output_expires_after
    stored = StoredBatch(RequestScope.of(request).key_id, batch, expiry.seconds if expiry else 0)
    await storage.run(BatchStore.add_batch, stored, storage.limits.max_open)
    storage.news.set()
    return json_response(batch)


async def fetch(context: ServerContext, request: Request) -> Response:
    """A batch and how far it is."""
    return json_response(await _find(context, request))


async def cancel(context: ServerContext, request: Request) -> Response:
    """End a batch; what is done is kept. Takes a moment, meanwhile it is "cancelling"."""
    storage = storage_of(context)
    found = await _find(context, request)
    now = int(context.clock.wall())

    def edit(batch: Batch) -> None:
        if batch.status in ("validating", "in_progress"):
            batch.status, batch.cancelling_at = "cancelling", now
        elif batch.status not in ("cancelling", "cancelled"):
            raise InvalidParams(f"A batch that is {batch.status} cannot be cancelled")

    batch = await storage.run(BatchStore.change, found.id, edit)
    storage.news.set()
    return json_response(batch)


async def list_batches(context: ServerContext, request: Request) -> Response:
    """The key's batches, the newest first."""
    storage = storage_of(context)
    query = page_query(request, ("after", "limit"))
    limit = page_limit(query, DEFAULT_PAGE, MAX_PAGE)
    owner = RequestScope.of(request).key_id
    found = await storage.run(BatchStore.batches, owner, query.get("after"), limit + 1)
    page = found[:limit]
    first_id, last_id = page_ends(page)
    has_more = len(found) > limit
    return json_response(
        BatchList(data=page, first_id=first_id, last_id=last_id, has_more=has_more)
    )


async def _find(context: ServerContext, request: Request) -> Batch:
    owner, batch_id = RequestScope.of(request).key_id, request.path_params["batch_id"]
    return await storage_of(context).run(BatchStore.batch, owner, batch_id)
