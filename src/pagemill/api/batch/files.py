"""`/v1/files`: upload, list, retrieve, read and delete."""

from __future__ import annotations

import asyncio

from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response

from pagemill.api.batch.objects import (
    MAX_EXPIRY_SECONDS,
    MIN_EXPIRY_SECONDS,
    DeletedFile,
    FileList,
    FileObject,
    page_ends,
)
from pagemill.api.batch.queries import one_of, page_limit, page_query, storage_of
from pagemill.api.batch.storage import BatchLimits, BatchStorage, disk_error, new_id
from pagemill.api.batch.store import BatchStore
from pagemill.api.batch.uploads import PacedReceive
from pagemill.api.context import RequestScope, ServerContext
from pagemill.api.errors import ClientDisconnected, RequestTimeout, UnsupportedMediaType
from pagemill.api.rate_limit import NOBODY
from pagemill.api.streaming import json_response
from pagemill.errors import BodyTooLarge, InvalidParams

MAX_PAGE = 10_000
MAX_FILENAME = 255
_FIELDS = ("file", "purpose", "expires_after[anchor]", "expires_after[seconds]")


async def upload(context: ServerContext, request: Request) -> Response:
    """Store a file for a batch: a form with `file`, and `purpose` "batch"."""
    storage = storage_of(context)
    async with storage.uploads.turn(_uploader(request), request.scope):
        form = await _read_form(request, storage.limits)
        try:
            file = await _store(context, storage, RequestScope.of(request).key_id, form)
        finally:
            await form.close()
    return json_response(file)


async def list_files(context: ServerContext, request: Request) -> Response:
    """The key's files, the newest first unless `order` is "asc"."""
    storage = storage_of(context)
    query = page_query(request, ("purpose", "limit", "order", "after"))
    limit = page_limit(query, MAX_PAGE, MAX_PAGE)
    found = await storage.run(
        BatchStore.files,
        RequestScope.of(request).key_id,
        query.get("purpose"),
        query.get("after"),
        limit + 1,
        ascending=one_of(query, "order", ("desc", "asc")) == "asc",
    )
    page = found[:limit]
    first_id, last_id = page_ends(page)
    has_more = len(found) > limit
    return json_response(FileList(data=page, first_id=first_id, last_id=last_id, has_more=has_more))


async def fetch(context: ServerContext, request: Request) -> Response:
    """What is known of a file."""
    return json_response(await _find(storage_of(context), request))


async def content(context: ServerContext, request: Request) -> Response:
    """A file's content."""
    storage = storage_of(context)
    file = await _find(storage, request)
    return FileResponse(storage.path(file.id), media_type="application/octet-stream")


async def delete(context: ServerContext, request: Request) -> Response:
    """Delete a file that no open batch reads."""
    storage = storage_of(context)
    file = await _find(storage, request)
    await storage.run(BatchStore.delete_file, RequestScope.of(request).key_id, file.id)
    await storage.remove(file.id)
    return json_response(DeletedFile(file.id))


async def _find(storage: BatchStorage, request: Request) -> FileObject:
    owner, file_id = RequestScope.of(request).key_id, request.path_params["file_id"]
    return await storage.run(BatchStore.file, owner, file_id)


def _uploader(request: Request) -> str:
    """Whose turn it is: the key's, or the address's of a client without one."""
    key_id = RequestScope.of(request).key_id
    return request.client.host if key_id == NOBODY and request.client is not None else key_id


async def _read_form(request: Request, limits: BatchLimits) -> FormData:
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared != "multipart/form-data":
        raise UnsupportedMediaType("The Content-Type must be multipart/form-data")
    receive = PacedReceive(request.receive, limits.pace_bytes, limits.pace_seconds)
    paced = Request(request.scope, receive)
    try:
        async with asyncio.timeout(limits.upload_timeout):
            return await paced.form(max_files=1, max_fields=len(_FIELDS))
    except TimeoutError:
        message = f"The file did not arrive within {limits.upload_timeout:g} s"
        raise RequestTimeout(message) from None
    except ClientDisconnect:
        raise ClientDisconnected from None
    except OSError as error:
        raise disk_error(error) from None


async def _store(
    context: ServerContext, storage: BatchStorage, owner: str, form: FormData
) -> FileObject:
    """Check the form and keep its file. Raises RequestError, OverloadedError."""
    source = _check_form(form)
    now = int(context.clock.wall())
    seconds = _expiry_seconds(form)
    file_id = new_id("file-")
    limits = storage.limits
    size = await storage.write(file_id, source.file)
    file = FileObject(
        id=file_id,
        bytes=size,
        created_at=now,
        expires_at=now + seconds if seconds else None,
        filename=_file_name(source.filename or ""),
        purpose="batch",
    )
    try:
        if not size:
            raise InvalidParams("file is empty", param="file")
        if size > limits.max_file_bytes:
            raise BodyTooLarge(f"file is larger than {limits.max_file_bytes} bytes", param="file")
        await storage.run(
            BatchStore.add_file, owner, file, limits.max_files, limits.max_total_bytes
        )
    except BaseException:
        await storage.remove(file_id)
        raise
    return file


def _check_form(form: FormData) -> UploadFile:
    """The file of a form whose fields are all known."""
    for name in form:
        if name not in _FIELDS:
            raise InvalidParams(f"{name[:100]}: unknown field", param=name[:100])
    if form.get("purpose") != "batch":
        raise InvalidParams('purpose must be "batch"', param="purpose")
    source = form.get("file")
    if not isinstance(source, UploadFile):
        raise InvalidParams("file: this field is required, as a file", param="file")
    return source


def _expiry_seconds(form: FormData) -> int:
    """0: the file does not expire."""
    anchor, seconds = form.get("expires_after[anchor]"), form.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return 0
    if anchor != "created_at":
        raise InvalidParams("expires_after.anchor must be created_at", "expires_after.anchor")
    text = seconds if isinstance(seconds, str) else ""
    if not (
        text.isascii()
        and text.isdecimal()
        and len(text) < 10
        and MIN_EXPIRY_SECONDS <= int(text) <= MAX_EXPIRY_SECONDS
    ):
        message = f"must be from {MIN_EXPIRY_SECONDS} to {MAX_EXPIRY_SECONDS}"
        raise InvalidParams(f"expires_after.seconds {message}", "expires_after.seconds")
    return int(text)


def _file_name(given: str) -> str:
    """The last part of a path, printable; it is shown and never used as a path."""
    name = given.replace("\\", "/").rpartition("/")[2]
    return "".join(c for c in name if c.isprintable())[:MAX_FILENAME] or "file"
