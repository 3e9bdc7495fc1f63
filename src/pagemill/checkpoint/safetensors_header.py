"""The header of a safetensors file, read without torch: names, sizes, and whether it is whole.

Format: eight bytes length, a JSON object {name: {dtype, shape, data_offsets}}, the data.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagemill.errors import ModelLoadError

_MAX_HEADER = 100_000_000  # the format's own limit


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a tensor is in its file. `dtype` is the format's name, such as BF16."""

    dtype: str
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file
    num_bytes: int


def tensor_sizes(path: Path) -> dict[str, int]:
    """Bytes of every tensor. Raises ModelLoadError when the file is truncated or damaged."""
    return {name: stored.num_bytes for name, stored in stored_tensors(path).items()}


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a file. Raises ModelLoadError when the file is truncated or damaged."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else _MAX_HEADER + 1
            if 8 + length > size:
                raise _truncated(path, size)
            if length > _MAX_HEADER:
                raise _damaged(path, "its header is too long")
            header = json.loads(file.read(length))
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be opened: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise _damaged(path, "its header is no JSON") from None
    return _checked(path, header, 8 + length, size)


def _checked(path: Path, header: Any, base: int, file_size: int) -> dict[str, StoredTensor]:
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no JSON object")
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = _offsets(path, name, entry)
        if base + end > file_size:
            raise _truncated(path, file_size)
        dtype, shape = entry.get("dtype"), entry.get("shape")
        if not isinstance(dtype, str) or not _is_shape(shape):
            raise _damaged(path, f"tensor {name} has no type or shape")
        tensors[name] = StoredTensor(dtype, tuple(shape), base + start, end - start)
    return tensors


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(n, int) and n >= 0 for n in value)


def _offsets(path: Path, name: str, entry: Any) -> tuple[int, int]:
    offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
    if isinstance(offsets, list) and len(offsets) == 2:
        start, end = offsets
        if isinstance(start, int) and isinstance(end, int) and 0 <= start <= end:
            return start, end
    raise _damaged(path, f"tensor {name} has no place")


def _truncated(path: Path, size: int) -> ModelLoadError:
    return ModelLoadError(
        f"{path} is truncated: its header announces more than {size} bytes; download it again"
    )


def _damaged(path: Path, why: str) -> ModelLoadError:
    return ModelLoadError(f"{path} is not a usable safetensors file: {why}; download it again")
