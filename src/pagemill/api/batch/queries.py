"""The queries of lists, and the storage that files and batches need."""

from __future__ import annotations

from collections.abc import Collection

from starlette.requests import Request

from pagemill.api.batch.storage import BatchStorage
from pagemill.api.context import ServerContext
from pagemill.errors import InvalidParams, RequestError

MAX_ID = 200


class NoStorage(RequestError):
    """The server keeps no files."""

    status = 404
    kind = "NotFoundError"


def storage_of(context: ServerContext) -> BatchStorage:
    """Raises NoStorage when the server was started without one."""
    if context.batches is None:
        raise NoStorage("Files and batches are off here; pagemill serve --data-dir turns them on")
    return context.batches


def page_query(request: Request, known: Collection[str]) -> dict[str, str]:
    """The query's parameters. Raises InvalidParams for one that is not known, or is too long."""
    for name, value in request.query_params.multi_items():
        if name not in known:
            raise InvalidParams(f"{name[:100]}: unknown parameter of the query", name[:100])
        if len(value) > MAX_ID:
            raise InvalidParams(f"{name} is longer than {MAX_ID} characters", name)
    return dict(request.query_params)


def page_limit(query: dict[str, str], default: int, most: int) -> int:
    """The number of items in a page. Raises InvalidParams."""
    text = query.get("limit", str(default))
    if not (text.isascii() and text.isdecimal() and 1 <= int(text) <= most):
        raise InvalidParams(f"limit must be from 1 to {most}", param="limit")
    return int(text)


def one_of(query: dict[str, str], name: str, values: tuple[str, ...]) -> str:
    """One of the values, the first when none is given. Raises InvalidParams."""
    value = query.get(name, values[0])
    if value not in values:
        raise InvalidParams(f"{name} must be one of {', '.join(values)}", param=name)
    return value
