"""Files and batches in SQLite. Every method blocks; `storage.py` keeps them off the event loop."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pagemill.api.batch.objects import (
    OPEN_STATUSES,
    Batch,
    FileObject,
    StoredBatch,
)
from pagemill.errors import ConfigError, InvalidParams, OverloadedError, RequestError

_BUSY_SECONDS = 10.0
_FULL_RETRY_SECONDS = 60
_SCHEMAS = (  # each makes the next version of the one before
    """
CREATE TABLE files (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    purpose TEXT NOT NULL,
    bytes INTEGER NOT NULL,
    expires_at INTEGER,
    body BLOB NOT NULL
);
CREATE INDEX files_by_owner ON files (owner, seq);
CREATE TABLE batches (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    status TEXT NOT NULL,
    input_file_id TEXT NOT NULL,
    body BLOB NOT NULL
);
CREATE INDEX batches_by_owner ON batches (owner, seq);
CREATE INDEX batches_by_status ON batches (status)
""",
    """
ALTER TABLE batches ADD COLUMN ended_at INTEGER;
CREATE INDEX batches_by_end ON batches (owner, ended_at)
""",
)
_SURPLUS = """
SELECT id FROM (
    SELECT id, row_number() OVER (PARTITION BY owner ORDER BY ended_at DESC, seq DESC) AS place
    FROM batches WHERE ended_at IS NOT NULL
) WHERE place > ?
"""
_IS_OPEN = f"status IN ({', '.join(repr(status) for status in OPEN_STATUSES)})"

_decode_file = msgspec.json.Decoder(FileObject).decode
_decode_batch = msgspec.json.Decoder(StoredBatch).decode


class UnknownObject(RequestError):
    """There is no such file or batch, or it belongs to another key."""

    status = 404
    kind = "NotFoundError"


class BatchStore:
    """The tables of one data directory; several processes may have them open."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError when it cannot be opened, or is a newer version's."""
        try:
            self._db = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode = WAL")
            self._prepare(path)
        except sqlite3.Error as error:
            raise ConfigError(f"--data-dir: {path} cannot be used: {error}") from None

    def close(self) -> None:
        self._db.close()

    def add_file(self, owner: str, file: FileObject, max_files: int, max_bytes: int) -> None:
        """Raises InvalidParams when the owner has too many, OverloadedError when all is full."""
        with self._transaction():
            (count,) = self._one("SELECT count(*) FROM files WHERE owner = ?", owner)
            (total,) = self._one("SELECT coalesce(sum(bytes), 0) FROM files")
            if count >= max_files:
                raise InvalidParams(f"This key has {count} files, as many as it may; delete some")
            if total + file.bytes > max_bytes:
                raise OverloadedError("The server has no room for more files", _FULL_RETRY_SECONDS)
            self._put_file(owner, file)

    def put_file(self, owner: str, file: FileObject) -> None:
        """Keep a result, in place of what an interrupted attempt may have left."""
        with self._transaction():
            self._put_file(owner, file)

    def file(self, owner: str, file_id: str, param: str | None = None) -> FileObject:
        """Raises UnknownObject."""
        row = self._db.execute(
            "SELECT body FROM files WHERE id = ? AND owner = ?", (file_id, owner)
        ).fetchone()
        if row is None:
            raise UnknownObject(f"There is no file {file_id[:200]!r}", param=param)
        return _decode_file(row[0])

    def files(
        self, owner: str, purpose: str | None, after: str | None, limit: int, *, ascending: bool
    ) -> list[FileObject]:
        """At most `limit` files that follow `after`. Raises UnknownObject for it."""
        rows = self._page("files", owner, after, limit, ascending, purpose)
        return [_decode_file(body) for (body,) in rows]

    def delete_file(self, owner: str, file_id: str) -> None:
        """Raises UnknownObject, and InvalidParams while a batch needs it."""
        with self._transaction():
            self.file(owner, file_id)
            user = self._db.execute(
                f"SELECT id FROM batches WHERE input_file_id = ? AND {_IS_OPEN}", (file_id,)
            ).fetchone()
            if user is not None:
                raise InvalidParams(f"The file is the input of {user[0]}, which has not ended")
            self._db.execute("DELETE FROM files WHERE id = ?", (file_id,))

    def drop_expired(self, now: float) -> list[str]:
        """Forget the files whose time is over and that no batch needs; their ids."""
        with self._transaction():
            rows = self._db.execute(
                "SELECT id FROM files WHERE expires_at <= ? AND id NOT IN "
                f"(SELECT input_file_id FROM batches WHERE {_IS_OPEN})",
                (now,),
            ).fetchall()
            self._db.executemany("DELETE FROM files WHERE id = ?", rows)
        return [file_id for (file_id,) in rows]

    def has_file(self, file_id: str) -> bool:
        return bool(self._one("SELECT count(*) FROM files WHERE id = ?", file_id)[0])

    def add_batch(self, stored: StoredBatch, max_open: int) -> None:
        """Raises UnknownObject for the input, InvalidParams when too many have not ended."""
        batch, owner = stored.batch, stored.owner
        with self._transaction():
            if self.file(owner, batch.input_file_id, "input_file_id").purpose != "batch":
                raise InvalidParams("The file's purpose is not batch", param="input_file_id")
            query = f"SELECT count(*) FROM batches WHERE owner = ? AND {_IS_OPEN}"
            (count,) = self._one(query, owner)
            if count >= max_open:
                raise InvalidParams(f"This key has {count} batches that have not ended")
            self._db.execute(
                "INSERT INTO batches (id, owner, status, input_file_id, body) VALUES (?,?,?,?,?)",
                (batch.id, owner, batch.status, batch.input_file_id, msgspec.json.encode(stored)),
            )

    def batch(self, owner: str, batch_id: str) -> Batch:
        """Raises UnknownObject."""
        stored = self._stored(batch_id)
        if stored.owner != owner:
            raise _unknown_batch(batch_id)
        return stored.batch

    def batches(self, owner: str, after: str | None, limit: int) -> list[Batch]:
        """At most `limit` batches older than `after`. Raises UnknownObject for it."""
        rows = self._page("batches", owner, after, limit, ascending=False)
        return [_decode_batch(body).batch for (body,) in rows]

    def open_batches(self) -> list[StoredBatch]:
        """Those that have not ended, the oldest first."""
        rows = self._db.execute(f"SELECT body FROM batches WHERE {_IS_OPEN} ORDER BY seq")
        return [_decode_batch(body) for (body,) in rows]

    def drop_ended(self, before: float, most: int) -> list[str]:
        """Forget batches that ended before a time, and of each key those beyond the `most` that
        ended last; the ids of their results, which are forgotten, too.
        """
        with self._transaction():
            rows = self._db.execute(
                f"SELECT id, body FROM batches WHERE ended_at < ? OR id IN ({_SURPLUS})",
                (before, most),
            ).fetchall()
            batches = [_decode_batch(body).batch for _, body in rows]
            files = [
                file_id
                for batch in batches
                for file_id in (batch.output_file_id, batch.error_file_id)
                if file_id is not None
            ]
            self._db.executemany("DELETE FROM batches WHERE id = ?", [row[:1] for row in rows])
            self._db.executemany("DELETE FROM files WHERE id = ?", [(name,) for name in files])
        return files

    def change(self, batch_id: str, edit: Callable[[Batch], None]) -> Batch:
        """Read, edit and write a batch, with nobody between. Raises what `edit` raises."""
        with self._transaction():
            stored = self._stored(batch_id)
            edit(stored.batch)
            self._put_batch(stored)
        return stored.batch

    def _prepare(self, path: Path) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        (version,) = self._one("PRAGMA user_version")
        for number, schema in enumerate(_SCHEMAS[version:], version + 1):
            for statement in schema.split(";"):
                self._db.execute(statement)
            self._db.execute(f"PRAGMA user_version = {number}")
        if version == 1:
            for (body,) in self._db.execute("SELECT body FROM batches").fetchall():
                self._put_batch(_decode_batch(body))
        self._db.execute("COMMIT")
        if version > len(_SCHEMAS):
            raise ConfigError(f"--data-dir: {path} was written by a newer version of PageMill")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _one(self, query: str, *values: object) -> tuple[int, ...]:
        found: tuple[int, ...] = self._db.execute(query, values).fetchone()
        return found

    def _put_file(self, owner: str, file: FileObject) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO files (id, owner, purpose, bytes, expires_at, body) "
            "VALUES (?,?,?,?,?,?)",
            (
                file.id,
                owner,
                file.purpose,
                file.bytes,
                file.expires_at,
                msgspec.json.encode(file),
            ),
        )

    def _put_batch(self, stored: StoredBatch) -> None:
        batch = stored.batch
        self._db.execute(
            "UPDATE batches SET status = ?, ended_at = ?, body = ? WHERE id = ?",
            (batch.status, batch.ended_at, msgspec.json.encode(stored), batch.id),
        )

    def _stored(self, batch_id: str) -> StoredBatch:
        row = self._db.execute("SELECT body FROM batches WHERE id = ?", (batch_id,)).fetchone()
        if row is None:
            raise _unknown_batch(batch_id)
        return _decode_batch(row[0])

    def _page(
        self,
        table: str,
        owner: str,
        after: str | None,
        limit: int,
        ascending: bool,
        purpose: str | None = None,
    ) -> list[tuple[bytes]]:
        where, values = ["owner = ?"], [owner]
        if purpose is not None:
            where.append("purpose = ?")
            values.append(purpose)
        if after is not None:
            row = self._db.execute(
                f"SELECT seq FROM {table} WHERE id = ? AND owner = ?", (after, owner)
            ).fetchone()
            if row is None:
                raise UnknownObject(f"There is no {after[:200]!r} to go on after", param="after")
            where.append(f"seq {'>' if ascending else '<'} {row[0]}")
        order = "ASC" if ascending else "DESC"
        query = f"SELECT body FROM {table} WHERE {' AND '.join(where)} ORDER BY seq {order} LIMIT ?"
        return self._db.execute(query, (*values, limit)).fetchall()


def _unknown_batch(batch_id: str) -> UnknownObject:
    return UnknownObject(f"There is no batch {batch_id[:200]!r}")
