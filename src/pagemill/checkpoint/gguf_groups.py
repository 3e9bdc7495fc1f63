"""Quantised GGUF tensors by groups of 32, without a float32 copy in between."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from pagemill.checkpoint.dequant import QuantFormat
from pagemill.checkpoint.groups import GROUP, GroupedWeight

_FOUR_BITS = frozenset({"Q4_0", "Q4_1", "Q4_K"})
_EIGHT_BITS = frozenset({"Q5_0", "Q5_1", "Q5_K", "Q8_0", "IQ4_NL", "IQ4_XS"})
_WITH_OFFSETS = frozenset({"Q4_1", "Q4_K", "Q5_1", "Q5_K"})
_FOUR_BITS_MIDDLE = 8
_ELEMENTS_AT_ONCE = 1 << 18


def read_groups(
    kind: QuantFormat, raw: npt.NDArray[np.uint8], shape: tuple[int, ...]
) -> GroupedWeight | None:
    """The matrix as its file holds it, or None for types that have no groups of 32.

    Scales that the file keeps in two parts are multiplied and rounded to float16.
    """
    name = kind.name
    if len(shape) != 2 or name not in _FOUR_BITS | _EIGHT_BITS:
        return None
    rows, in_features = shape
    codes = np.empty((rows * in_features // GROUP, GROUP), np.uint8)
    scale = np.empty(len(codes), np.float16)
    offset = np.empty(len(codes), np.float16) if name in _WITH_OFFSETS else None
    _unpack(kind, raw, codes, scale, offset)
    bits = 4 if name in _FOUR_BITS else 8
    if bits == 4 and offset is None:
        codes += _FOUR_BITS_MIDDLE  # wraps around: -8 to 7 become 0 to 15

    def by_row(values: npt.NDArray[np.float16]) -> torch.Tensor:
        return torch.from_numpy(values.reshape(rows, -1))

    return GroupedWeight(
        torch.from_numpy(codes.reshape(rows, -1)).view(torch.uint8 if bits == 4 else torch.int8),
        by_row(scale),
        None if offset is None else by_row(offset),
        bits,
        in_features,
    )


def _unpack(
    kind: QuantFormat,
    raw: npt.NDArray[np.uint8],
    codes: npt.NDArray[np.uint8],
    scale: npt.NDArray[np.float16],
    offset: npt.NDArray[np.float16] | None,
) -> None:
    assert kind.unpack is not None
    blocks, per_block = raw.view(kind.block), kind.block_size // GROUP
    step = _ELEMENTS_AT_ONCE // kind.block_size
    for start in range(0, len(blocks), step):
        unpacked = kind.unpack(blocks[start : start + step])
        count = len(unpacked.codes)
        at = slice(start * per_block, (start + count) * per_block)
        codes[at] = unpacked.codes.reshape(-1, GROUP).view(np.uint8)
        scale[at] = np.broadcast_to(unpacked.scale, (count, per_block, 1)).reshape(-1)
        if offset is not None and unpacked.offset is not None:
            offset[at] = np.broadcast_to(unpacked.offset, (count, per_block, 1)).reshape(-1)
