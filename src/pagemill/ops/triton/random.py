"""SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) of a slot's seed and a token's place.

Bit for bit `sampling.random.uniform` until numbers are rounded to float32.
"""

# ruff: noqa: N803 - compile-time constants are in capitals, as is usual in Triton

from __future__ import annotations

import triton.language as tl

from pagemill.ops.triton.helper import helper

GAMMA = tl.constexpr(0x9E3779B97F4A7C15 - (1 << 64))
MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9 - (1 << 64))
MIX_2 = tl.constexpr(0x94D049BB133111EB - (1 << 64))


@helper
def _shift_right(x, BITS: tl.constexpr):
    """Logical shift of int64."""
    return (x >> BITS) & ((1 << (64 - BITS)) - 1)


@helper
def _mix(x):
    x = (x ^ _shift_right(x, 30)) * MIX_1
    x = (x ^ _shift_right(x, 27)) * MIX_2
    return x ^ _shift_right(x, 31)


@helper
def uniform(seeds, index):
    """float32 in [0, 1] for int64 tensors of seeds and places."""
    bits = _shift_right(_mix(_mix(seeds + GAMMA) + index * GAMMA), 11)
    number = bits.to(tl.float64) * 1.1102230246251565e-16  # 2^-53
    return number.to(tl.float32)
