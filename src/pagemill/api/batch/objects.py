"""OpenAI's objects for files and batches, as they are answered and as they are stored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

MIN_EXPIRY_SECONDS = 3600
MAX_EXPIRY_SECONDS = 30 * 24 * 3600
WINDOW_SECONDS = 24 * 3600
MAX_METADATA = 16

OPEN_STATUSES = ("validating", "in_progress", "finalizing", "cancelling")

MetadataKey = Annotated[str, msgspec.Meta(max_length=64)]
MetadataValue = Annotated[str, msgspec.Meta(max_length=512)]


class FileObject(msgspec.Struct, kw_only=True):
    """A stored file; `purpose` is "batch" for inputs, "batch_output" for results."""

    id: str
    object: str = "file"
    bytes: int
    created_at: int
    expires_at: int | None = None
    filename: str
    purpose: str
    status: str = "processed"
    status_details: str | None = None


class FileList(msgspec.Struct, kw_only=True):
    """A page of files."""

    object: str = "list"
    data: list[FileObject]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class DeletedFile(msgspec.Struct):
    """A file that was deleted."""

    id: str
    object: str = "file"
    deleted: bool = True


class BatchIssue(msgspec.Struct):
    """Why a batch could not be run; `line` is of the input file."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


class BatchIssues(msgspec.Struct):
    """The first of the issues."""

    data: list[BatchIssue]
    object: str = "list"


class RequestCounts(msgspec.Struct):
    """Requests of a batch: all, those in the output file, those in the error file."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class Batch(msgspec.Struct, kw_only=True):
    """A batch and its history. Times are seconds since 1970."""

    id: str
    object: str = "batch"
    endpoint: str
    errors: BatchIssues | None = None
    input_file_id: str
    completion_window: str = "24h"
    status: str = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    created_at: int
    in_progress_at: int | None = None
    expires_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    request_counts: RequestCounts = msgspec.field(default_factory=RequestCounts)
    metadata: dict[str, str] | None = None

    @property
    def is_open(self) -> bool:
        """Whether there is work left on it."""
        return self.status in OPEN_STATUSES

    @property
    def ended_at(self) -> int | None:
        """When it came to its end; None while there is work left on it."""
        if self.is_open:
            return None
        return self.completed_at or self.failed_at or self.expired_at or self.cancelled_at


class BatchList(msgspec.Struct, kw_only=True):
    """A page of batches, the newest first."""

    object: str = "list"
    data: list[Batch]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class Expiry(msgspec.Struct, forbid_unknown_fields=True):
    """When output files are deleted."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, msgspec.Meta(ge=MIN_EXPIRY_SECONDS, le=MAX_EXPIRY_SECONDS)]


class CreateBatch(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /v1/batches`."""

    input_file_id: str
    endpoint: str
    completion_window: Literal["24h"]
    metadata: dict[MetadataKey, MetadataValue] | None = None
    output_expires_after: Expiry | None = None


class StoredBatch(msgspec.Struct):
    """What is kept of a batch besides the object that clients see."""

    owner: str
    batch: Batch
    output_seconds: int = 0  # after which its output files are deleted; 0: never


def page_ends(items: list[Any]) -> tuple[str | None, str | None]:
    """The ids of the first and the last item."""
    return (items[0].id, items[-1].id) if items else (None, None)
