"""A reader of GGUF files, versions 2 and 3, little-endian.

Layout (the GGUF specification of the ggml project): magic, version, counts, key-value pairs,
tensor descriptions, padding to the alignment, tensor data. The file is mapped, not read; every
count and offset is checked against its size, so a damaged file ends in ModelLoadError.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pagemill.checkpoint.dequant import QuantFormat, quant_format
from pagemill.errors import ModelLoadError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_HEADER = struct.Struct("<4sIQQ")
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_MAX_DIMS = 4
_MAX_ARRAY_DEPTH = 4
_MAX_ALIGNMENT = 1 << 20
_STRING, _ARRAY = 8, 9
_SCALARS: dict[int, struct.Struct] = {
    0: struct.Struct("<B"),
    1: struct.Struct("<b"),
    2: struct.Struct("<H"),
    3: struct.Struct("<h"),
    4: struct.Struct("<I"),
    5: struct.Struct("<i"),
    6: struct.Struct("<f"),
    7: struct.Struct("<?"),
    10: struct.Struct("<Q"),
    11: struct.Struct("<q"),
    12: struct.Struct("<d"),
}
_ARRAY_DTYPES = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """One tensor's place in the file; `shape` is slowest dimension first, as numpy has it."""

    name: str
    shape: tuple[int, ...]
    format: QuantFormat
    offset: int  # bytes from the start of the file

    @property
    def num_bytes(self) -> int:
        return self.format.num_bytes(self.num_elements)

    @property
    def num_elements(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


class GGUFFile:
    """Metadata and tensors of one file. Numeric arrays are numpy arrays, string arrays lists.

    Raises ModelLoadError when the file is missing, truncated, damaged, of another version, split
    into several files, or holds a tensor of an unsupported type.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._data = _map(path)
        cursor = _Cursor(self._data, path)
        version, num_tensors, num_pairs = _read_header(cursor)
        self.version = version
        self.metadata: dict[str, Any] = _read_pairs(cursor, num_pairs)
        self._check_split()
        self.tensors = self._read_tensors(cursor, num_tensors)

    def raw(self, tensor: GGUFTensor) -> npt.NDArray[np.uint8]:
        """The tensor's bytes as stored, a view of the mapped file."""
        return np.frombuffer(self._data, np.uint8, tensor.num_bytes, tensor.offset)

    def dequantize(self, tensor: GGUFTensor) -> npt.NDArray[np.float32]:
        """The tensor as float32, in `tensor.shape`."""
        return tensor.format.dequantize(self.raw(tensor)).reshape(tensor.shape)

    def forget_pages(self) -> None:
        """Let the system have the memory of what was read; reading it again is still possible."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._data.madvise(mmap.MADV_DONTNEED)

    def _check_split(self) -> None:
        parts = self.metadata.get("split.count", 1)
        if isinstance(parts, int) and parts > 1:
            raise ModelLoadError(
                f"{self.path} is one of {parts} parts of a split model; merge them into one file "
                "first (llama-gguf-split --merge)"
            )

    def _read_tensors(self, cursor: _Cursor, count: int) -> dict[str, GGUFTensor]:
        cursor.check_count(count, 24, "tensors")
        described = [_read_tensor(cursor) for _ in range(count)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= _MAX_ALIGNMENT:
            raise cursor.error(f"impossible alignment {alignment!r}")
        start = -(-cursor.position // alignment) * alignment
        tensors = {}
        for name, shape, kind, offset in described:
            tensor = GGUFTensor(name, shape, kind, start + offset)
            if shape[-1] % kind.block_size:
                raise cursor.error(f"tensor {name} has rows that are no multiple of a block")
            if tensor.offset + tensor.num_bytes > len(self._data):
                raise cursor.truncated(f"tensor {name} ends at {tensor.offset + tensor.num_bytes}")
            tensors[name] = tensor
        return tensors


class _Cursor:
    """Reads forward through the mapped file and refuses to leave it."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 0

    def error(self, message: str) -> ModelLoadError:
        return ModelLoadError(f"{self.path} is not a usable GGUF file: {message}")

    def truncated(self, what: str) -> ModelLoadError:
        size = len(self.data)
        return ModelLoadError(
            f"{self.path} is truncated: {what}, but the file has {size} bytes; download it again"
        )

    def skip(self, num_bytes: int) -> int:
        """Move past `num_bytes` and return where they start."""
        start = self.position
        if num_bytes > len(self.data) - start:
            raise self.truncated(f"{num_bytes} bytes are expected at {start}")
        self.position = start + num_bytes
        return start

    def check_count(self, count: int, min_bytes: int, what: str) -> None:
        """Refuse a count that cannot fit in what is left, before looping over it."""
        if count * min_bytes > len(self.data) - self.position:
            raise self.truncated(f"it announces {count} {what}")

    def scalar(self, layout: struct.Struct) -> Any:
        return layout.unpack_from(self.data, self.skip(layout.size))[0]

    def string(self) -> str:
        length = self.scalar(_U64)
        start = self.skip(length)
        try:
            return self.data[start : start + length].decode("utf-8")
        except UnicodeDecodeError:
            raise self.error(f"text at byte {start} is not UTF-8") from None

    def strings(self, count: int) -> list[str]:
        """`string()` many times over, written out because vocabularies have 10^5 entries."""
        self.check_count(count, _U64.size, "strings")
        data, position, end = self.data, self.position, len(self.data)
        unpack: Callable[..., tuple[int]] = _U64.unpack_from
        out = []
        for _ in range(count):
            start = position + 8
            if start > end:
                raise self.truncated("a list of strings goes on")
            position = start + unpack(data, start - 8)[0]
            if position > end:
                raise self.truncated("a list of strings goes on")
            out.append(data[start:position])
        self.position = position
        try:
            return [text.decode("utf-8") for text in out]
        except UnicodeDecodeError:
            raise self.error("a list of strings is not UTF-8") from None


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise ModelLoadError(f"{path} is empty; download it again") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be opened: {error.strerror}") from None


def _read_header(cursor: _Cursor) -> tuple[int, int, int]:
    start = cursor.skip(_HEADER.size)
    magic, version, num_tensors, num_pairs = _HEADER.unpack_from(cursor.data, start)
    if magic != _MAGIC:
        raise cursor.error("it does not begin with GGUF")
    if version not in _VERSIONS:
        if _U32.unpack(version.to_bytes(4, "big"))[0] in _VERSIONS:
            raise cursor.error("it is big-endian, which is not supported")
        raise cursor.error(f"version {version} is not supported; supported are 2 and 3")
    return version, num_tensors, num_pairs


def _read_pairs(cursor: _Cursor, count: int) -> dict[str, Any]:
    cursor.check_count(count, 13, "metadata entries")
    pairs = {}
    for _ in range(count):
        key = cursor.string()
        pairs[key] = _read_value(cursor, cursor.scalar(_U32), 0)
    return pairs


def _read_value(cursor: _Cursor, kind: int, depth: int) -> Any:
    if kind == _STRING:
        return cursor.string()
    if kind == _ARRAY:
        return _read_array(cursor, depth + 1)
    if kind not in _SCALARS:
        raise cursor.error(f"unknown value type {kind} at byte {cursor.position}")
    return cursor.scalar(_SCALARS[kind])


def _read_array(cursor: _Cursor, depth: int) -> Any:
    if depth > _MAX_ARRAY_DEPTH:
        raise cursor.error("arrays are nested too deep")
    kind, count = cursor.scalar(_U32), cursor.scalar(_U64)
    if kind == _STRING:
        return cursor.strings(count)
    if kind in _ARRAY_DTYPES:
        dtype = np.dtype(_ARRAY_DTYPES[kind])
        start = cursor.skip(count * dtype.itemsize)
        return np.frombuffer(cursor.data, dtype, count, start)
    cursor.check_count(count, 12, "arrays")
    return [_read_value(cursor, kind, depth) for _ in range(count)]


def _read_tensor(cursor: _Cursor) -> tuple[str, tuple[int, ...], QuantFormat, int]:
    name = cursor.string()
    num_dims = cursor.scalar(_U32)
    if not 0 < num_dims <= _MAX_DIMS:
        raise cursor.error(f"tensor {name!r} has {num_dims} dimensions")
    shape = tuple(cursor.scalar(_U64) for _ in range(num_dims))[::-1]
    if 0 in shape:
        raise cursor.error(f"tensor {name!r} has an empty dimension")
    try:
        kind = quant_format(cursor.scalar(_U32))
    except KeyError as error:
        raise ModelLoadError(f"{cursor.path}: tensor {name} is of {error.args[0]}") from None
    return name, shape, kind, cursor.scalar(_U64)
