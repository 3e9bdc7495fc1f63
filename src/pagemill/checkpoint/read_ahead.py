"""Reads safetensors files by several threads, ahead of whoever takes the tensors.

For devices whose memory is not the host's: the bytes go straight from the file into buffers that
the device can copy from, in pieces, so that one tensor's pieces are read side by side and the disk
is busy while the device copies.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pagemill.checkpoint.safetensors_header import StoredTensor, stored_tensors
from pagemill.errors import ModelLoadError

Allocate = Callable[[int], Tensor]  # number of bytes -> uint8 [n] in host memory

THREADS = 8
PIECE_BYTES = 16 << 20
WINDOW_BYTES = 1 << 30  # read ahead at most; a larger tensor is read alone

_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(slots=True)
class _Reading:
    """A tensor on its way."""

    path: Path
    name: str
    stored: StoredTensor
    buffer: Tensor  # uint8
    pieces: list[Future[None]]

    def finish(self) -> Tensor:
        try:
            for piece in self.pieces:
                piece.result()
        except OSError as error:
            raise ModelLoadError(f"{self.path} cannot be read: {error}") from None
        return self.buffer.view(_TYPES[self.stored.dtype]).view(self.stored.shape)


def read_ahead(files: Sequence[Path], allocate: Allocate) -> Iterator[tuple[Path, str, Tensor]]:
    """(file, name, tensor) of every tensor, file by file, in the order of their places.

    A tensor may be kept; its buffer is not used again. Raises ModelLoadError.
    """
    waiting: deque[_Reading] = deque()
    in_flight = 0
    with ThreadPoolExecutor(THREADS, thread_name_prefix="weights") as threads:
        try:
            for path, name, stored in _in_order(files):
                while waiting and in_flight + stored.num_bytes > WINDOW_BYTES:
                    in_flight -= waiting[0].stored.num_bytes
                    yield _taken(waiting.popleft())
                waiting.append(_start(threads, path, name, stored, allocate))
                in_flight += stored.num_bytes
            while waiting:
                yield _taken(waiting.popleft())
        finally:  # whoever takes the tensors may stop early
            threads.shutdown(cancel_futures=True)


def _in_order(files: Sequence[Path]) -> Iterator[tuple[Path, str, StoredTensor]]:
    for path in files:
        tensors = stored_tensors(path)
        for name, stored in sorted(tensors.items(), key=lambda item: item[1].offset):
            _check(path, name, stored)
            yield path, name, stored


def _check(path: Path, name: str, stored: StoredTensor) -> None:
    dtype = _TYPES.get(stored.dtype)
    if dtype is None:
        raise ModelLoadError(f"{path}: tensor {name} has the unknown type {stored.dtype}")
    if stored.num_bytes != math.prod(stored.shape) * dtype.itemsize:
        raise ModelLoadError(
            f"{path}: tensor {name} of {stored.num_bytes} bytes does not hold {stored.dtype} "
            f"{list(stored.shape)}; download it again"
        )


def _start(
    threads: ThreadPoolExecutor, path: Path, name: str, stored: StoredTensor, allocate: Allocate
) -> _Reading:
    buffer = allocate(stored.num_bytes)
    starts = range(0, stored.num_bytes, PIECE_BYTES)
    pieces = [threads.submit(_read, path, stored.offset, buffer, start) for start in starts]
    return _Reading(path, name, stored, buffer, pieces)


def _taken(reading: _Reading) -> tuple[Path, str, Tensor]:
    return reading.path, reading.name, reading.finish()


def _read(path: Path, offset: int, buffer: Tensor, start: int) -> None:
    """Fill a piece of the buffer."""
    target = buffer.numpy().data[start : start + PIECE_BYTES]
    with path.open("rb", buffering=0) as file:
        while target:
            count = os.preadv(file.fileno(), [target], offset + start)
            if not count:
                raise OSError(f"it ended at byte {offset + start}")
            target, start = target[count:], start + count
