"""The header of a safetensors file, read without torch: names, sizes, and whether it is whole.

Format: eight bytes length, a JSON object {name: {dtype, shape, data_offsets}}, the data.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from pagemill.errors import ModelLoadError

_MAX_HEADER = 100_000_000  # the format's own limit


def tensor_sizes(path: Path) -> dict[str, int]:
    """Bytes of every tensor. Raises ModelLoadError when the file is truncated or damaged."""
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
    return _checked_sizes(path, header, size - 8 - length)


def _checked_sizes(path: Path, header: Any, data_bytes: int) -> dict[str, int]:
    if not isinstance(header, dict):
        raise _damaged(path, "its header is no JSON object")
    sizes = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        start, end = _offsets(path, name, entry)
        if end > data_bytes:
            raise _truncated(path, data_bytes + 8)
        sizes[name] = end - start
    return sizes


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
