"""Every tensor type against the reference implementation of the ggml project, bit by bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType

from pagemill.checkpoint.dequant import quant_format

PLAIN = ["F32", "F16", "BF16"]
QUANTS = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "IQ4_NL"]
K_QUANTS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]


def random_blocks(name: str, rng: np.random.Generator, count: int) -> np.ndarray:
    """Random bytes with finite scales."""
    kind = quant_format(GGMLQuantizationType[name].value)
    raw = rng.integers(0, 256, count * kind.block.itemsize, dtype=np.uint8)
    blocks = raw.view(kind.block)
    for scale in ("d", "dmin", "m"):
        if kind.block.names and scale in kind.block.names:
            blocks[scale] = rng.standard_normal(count).astype(np.float16)
    if not kind.block.names:
        values = rng.standard_normal(count).astype(np.float32)
        plain = {"F32": values, "F16": values.astype(np.float16)}
        raw = plain.get(name, (values.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
    return raw


@pytest.mark.parametrize("name", PLAIN + QUANTS + K_QUANTS)
@pytest.mark.parametrize("count", [1, 3, 2500])
def test_equals_the_reference(name: str, count: int) -> None:
    number = GGMLQuantizationType[name]
    kind = quant_format(number.value)
    raw = random_blocks(name, np.random.default_rng(count), count)
    found = kind.dequantize(raw)
    if name == "F32":
        expected = raw.view(np.float32)
    elif name == "F16":
        expected = raw.view(np.float16).astype(np.float32)
    else:
        expected = gguf.dequantize(raw, number).reshape(-1)
    assert kind.name == name
    assert found.dtype == np.float32
    assert found.shape == (count * kind.block_size,)
    assert kind.num_bytes(found.size) == raw.size
    np.testing.assert_array_equal(found, expected)


def test_unknown_types_are_named() -> None:
    with pytest.raises(KeyError, match="type IQ3_S, which is not supported; supported are F32"):
        quant_format(21)
