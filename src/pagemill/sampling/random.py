"""Random numbers that depend on a request's seed and the token's place, and on nothing else.

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014)
used as a counter-based generator: the seed picks the start of a sequence, the place the element.
So a token is the same in any batch, after a preemption and with any chunking.
"""

from __future__ import annotations

from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned constant."""
    return value - 2**64 if value >= 2**63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64; the operator of torch is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniform(seeds: Tensor, index: Tensor) -> Tensor:
    """float64 in [0, 1) with 53 random bits, for int64 seeds and places of the same shape."""
    # Mixing the seed first keeps neighbouring seeds from sharing parts of their sequences.
    bits = _mix(_mix(seeds + _GAMMA) + index * _GAMMA)
    return _shift_right(bits, 11).double() * 2.0**-53
