"""GGUF's block-quantised tensor types to float32, vectorised over blocks.

The block layouts are those of ggml (`ggml-common.h`): a block holds packed codes, scales and, in
some types, minima. Every type is unpacked to `scale * code + offset`, whose rounding equals
ggml's own, in chunks that stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True, slots=True)
class _Unpacked:
    """Codes [n, groups, size], scales [n, groups, 1] and offsets of the same shape, or None."""

    codes: Array
    scale: Floats
    offset: Floats | None = None


@dataclass(frozen=True, slots=True)
class QuantFormat:
    """One tensor type: `block_size` elements in a block of `block` layout."""

    name: str
    block_size: int
    block: np.dtype[Any]
    unpack: Callable[[Array], _Unpacked] | None = None  # None: plain floats

    def num_bytes(self, num_elements: int) -> int:
        return num_elements // self.block_size * self.block.itemsize

    def dequantize(self, raw: npt.NDArray[np.uint8]) -> Floats:
        """Bytes of whole blocks [n * block bytes] to a new array [n * block_size]."""
        blocks = raw.view(self.block)
        if self.unpack is None:
            return _plain(self.name, blocks)
        out = np.empty((len(blocks), self.block_size), np.float32)
        step = _CHUNK_ELEMENTS // self.block_size
        for start in range(0, len(blocks), step):
            _expand(self.unpack(blocks[start : start + step]), out[start : start + step])
        return out.reshape(-1)


def quant_format(type_id: int) -> QuantFormat:
    """The format of a ggml type number. Raises KeyError with a phrase naming the type."""
    if type_id in _FORMATS:
        return _FORMATS[type_id]
    known = ", ".join(kind.name for kind in _FORMATS.values())
    name = _UNSUPPORTED.get(type_id, f"number {type_id}")
    raise KeyError(f"type {name}, which is not supported; supported are {known}")


def _plain(name: str, blocks: Array) -> Floats:
    if name == "BF16":
        return (blocks.astype(np.uint32) << 16).view(np.float32)
    return blocks.astype(np.float32)


def _expand(unpacked: _Unpacked, out: Floats) -> None:
    values = unpacked.codes.astype(np.float32)
    values *= unpacked.scale
    target = out.reshape(values.shape)
    if unpacked.offset is None:
        target[...] = values
    else:
        np.add(values, unpacked.offset, out=target)


def _nibbles(packed: Array) -> Array:
    """[n, b] bytes -> [n, 2b] codes: all low halves, then all high halves."""
    half = packed.shape[1]
    codes = np.empty((len(packed), 2 * half), np.uint8)
    np.bitwise_and(packed, 15, out=codes[:, :half])
    np.right_shift(packed, 4, out=codes[:, half:])
    return codes


def _shifted(packed: Array, shifts: tuple[int, ...], mask: int, run: int) -> Array:
    """[n, g * run] bytes -> [n, g * len(shifts) * run]: per run, one copy for each shift."""
    n = len(packed)
    runs = np.ascontiguousarray(packed).reshape(n, -1, 1, run)
    codes = runs >> np.array(shifts, np.uint8).reshape(1, 1, -1, 1)
    codes &= np.uint8(mask)
    return codes.reshape(n, -1)


def _fifth_bits(packed: Array) -> Array:
    """[n, 4] bytes -> [n, 32] with each bit as 16 or 0, lowest bit first."""
    bits = np.unpackbits(np.ascontiguousarray(packed), axis=1, bitorder="little")
    bits <<= 4
    return bits


def _column(half: Array) -> Floats:
    """[n] float16 -> [n, 1, 1] float32."""
    return half.astype(np.float32)[:, None, None]


def _groups(codes: Array, size: int) -> Array:
    return codes.reshape(len(codes), -1, size)


def _q4_0(b: Array) -> _Unpacked:
    codes = _nibbles(b["qs"]).view(np.int8)
    codes -= 8
    return _Unpacked(_groups(codes, 32), _column(b["d"]))


def _q4_1(b: Array) -> _Unpacked:
    return _Unpacked(_groups(_nibbles(b["qs"]), 32), _column(b["d"]), _column(b["m"]))


def _q5_0(b: Array) -> _Unpacked:
    codes = (_nibbles(b["qs"]) | _fifth_bits(b["qh"])).view(np.int8)
    codes -= 16
    return _Unpacked(_groups(codes, 32), _column(b["d"]))


def _q5_1(b: Array) -> _Unpacked:
    codes = _nibbles(b["qs"]) | _fifth_bits(b["qh"])
    return _Unpacked(_groups(codes, 32), _column(b["d"]), _column(b["m"]))


def _q8_0(b: Array) -> _Unpacked:
    return _Unpacked(_groups(b["qs"], 32), _column(b["d"]))


def _q2_k(b: Array) -> _Unpacked:
    scale = _column(b["d"]) * (b["scales"] & 15).astype(np.float32)[:, :, None]
    minimum = _column(b["dmin"]) * (b["scales"] >> 4).astype(np.float32)[:, :, None]
    return _Unpacked(_groups(_shifted(b["qs"], (0, 2, 4, 6), 3, 32), 16), scale, -minimum)


def _q3_k(b: Array) -> _Unpacked:
    low = _shifted(b["scales"][:, :8], (0, 4), 15, 8)
    high = _shifted(b["scales"][:, 8:], (0, 2, 4, 6), 3, 4)
    scales = (low | (high << 4)).view(np.int8) - np.int8(32)  # [n, 16]
    codes = _shifted(b["qs"], (0, 2, 4, 6), 3, 32).view(np.int8)
    # A clear bit in hmask means that 4 is to be subtracted.
    codes -= 4 - (_shifted(b["hmask"], tuple(range(8)), 1, 32) << 2).view(np.int8)
    return _Unpacked(_groups(codes, 16), _column(b["d"]) * scales.astype(np.float32)[:, :, None])


def _six_bit_scales(packed: Array) -> tuple[Floats, Floats]:
    """[n, 12] bytes -> eight scales and eight minima of six bits, each [n, 8, 1].

    Bytes 0-3 hold the first four scales, 4-7 the first four minima; their top two bits belong to
    the last four, whose low nibbles are in bytes 8-11 (scales low, minima high).
    """
    first, second, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([first & 63, (rest & 15) | ((first >> 2) & 48)], axis=1)
    minima = np.concatenate([second & 63, (rest >> 4) | ((second >> 2) & 48)], axis=1)
    return scales.astype(np.float32)[:, :, None], minima.astype(np.float32)[:, :, None]


def _q4_k(b: Array) -> _Unpacked:
    scales, minima = _six_bit_scales(b["scales"])
    codes = _shifted(b["qs"], (0, 4), 15, 32)
    return _Unpacked(_groups(codes, 32), _column(b["d"]) * scales, -_column(b["dmin"]) * minima)


def _q5_k(b: Array) -> _Unpacked:
    scales, minima = _six_bit_scales(b["scales"])
    codes = _shifted(b["qs"], (0, 4), 15, 32)
    codes |= _shifted(b["qh"], tuple(range(8)), 1, 32) << 4
    return _Unpacked(_groups(codes, 32), _column(b["d"]) * scales, -_column(b["dmin"]) * minima)


def _q6_k(b: Array) -> _Unpacked:
    codes = _shifted(b["ql"], (0, 4), 15, 64)
    codes |= _shifted(b["qh"], (0, 2, 4, 6), 3, 32) << 4
    signed = codes.view(np.int8)
    signed -= 32
    return _Unpacked(
        _groups(signed, 16), _column(b["d"]) * b["scales"].astype(np.float32)[:, :, None]
    )


# The 16 levels of IQ4_NL and IQ4_XS.
_IQ4_LEVELS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)


def _iq4_nl(b: Array) -> _Unpacked:
    return _Unpacked(_groups(_IQ4_LEVELS[_nibbles(b["qs"])], 32), _column(b["d"]))


def _iq4_xs(b: Array) -> _Unpacked:
    low = _shifted(b["scales_l"], (0, 4), 15, 1)  # [n, 8]
    high = (b["scales_h"][:, None] >> np.arange(0, 16, 2, dtype=np.uint16)) & 3
    scales = (low | (high.astype(np.uint8) << 4)).view(np.int8) - np.int8(32)
    codes = _IQ4_LEVELS[_shifted(b["qs"], (0, 4), 15, 16)]
    return _Unpacked(_groups(codes, 32), _column(b["d"]) * scales.astype(np.float32)[:, :, None])


def _block(*fields: tuple[str, str, int]) -> np.dtype[Any]:
    return np.dtype([(n, kind) if count == 1 else (n, kind, (count,)) for n, kind, count in fields])


_D, _M = ("d", "<f2", 1), ("m", "<f2", 1)
_DMIN = ("dmin", "<f2", 1)

# By ggml's type number.
_FORMATS = {
    0: QuantFormat("F32", 1, np.dtype("<f4")),
    1: QuantFormat("F16", 1, np.dtype("<f2")),
    30: QuantFormat("BF16", 1, np.dtype("<u2")),
    2: QuantFormat("Q4_0", 32, _block(_D, ("qs", "u1", 16)), _q4_0),
    3: QuantFormat("Q4_1", 32, _block(_D, _M, ("qs", "u1", 16)), _q4_1),
    6: QuantFormat("Q5_0", 32, _block(_D, ("qh", "u1", 4), ("qs", "u1", 16)), _q5_0),
    7: QuantFormat("Q5_1", 32, _block(_D, _M, ("qh", "u1", 4), ("qs", "u1", 16)), _q5_1),
    8: QuantFormat("Q8_0", 32, _block(_D, ("qs", "i1", 32)), _q8_0),
    10: QuantFormat("Q2_K", 256, _block(("scales", "u1", 16), ("qs", "u1", 64), _D, _DMIN), _q2_k),
    11: QuantFormat(
        "Q3_K",
        256,
        _block(("hmask", "u1", 32), ("qs", "u1", 64), ("scales", "u1", 12), _D),
        _q3_k,
    ),
    12: QuantFormat("Q4_K", 256, _block(_D, _DMIN, ("scales", "u1", 12), ("qs", "u1", 128)), _q4_k),
    13: QuantFormat(
        "Q5_K",
        256,
        _block(_D, _DMIN, ("scales", "u1", 12), ("qh", "u1", 32), ("qs", "u1", 128)),
        _q5_k,
    ),
    14: QuantFormat(
        "Q6_K",
        256,
        _block(("ql", "u1", 128), ("qh", "u1", 64), ("scales", "i1", 16), _D),
        _q6_k,
    ),
    20: QuantFormat("IQ4_NL", 32, _block(_D, ("qs", "u1", 16)), _iq4_nl),
    23: QuantFormat(
        "IQ4_XS",
        256,
        _block(_D, ("scales_h", "<u2", 1), ("scales_l", "u1", 4), ("qs", "u1", 128)),
        _iq4_xs,
    ),
}

_UNSUPPORTED = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
