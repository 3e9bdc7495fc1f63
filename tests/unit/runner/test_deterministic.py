"""In deterministic mode a request's numbers are the same bits alone and among any others."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch

from pagemill.attention.deterministic import make_deterministic
from pagemill.attention.select import select_attention
from pagemill.config.model import ModelConfig, RopeConfig
from pagemill.device.select import select_device
from pagemill.layers.base import BuildContext
from pagemill.models.loader import load_model
from pagemill.ops.deterministic import DeterministicOps
from pagemill.ops.select import has_native_kernels, select_ops
from pagemill.params import SamplingParams
from pagemill.quant.select import select_quant
from unit.runner.harness import DEVICES, VOCAB, Driver, Row

CONFIG = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=VOCAB,
    hidden_size=144,
    intermediate_size=328,
    num_layers=2,
    num_heads=9,
    num_kv_heads=3,
    head_dim=16,
    max_position=96,
    norm_eps=1e-5,
    rope=RopeConfig(),
    logit_soft_cap=30.0,
)
EVERYTHING = SamplingParams(temperature=0.9, top_p=0.9, logprobs=VOCAB)
TEXT = np.random.default_rng(3).integers(0, VOCAB, 40).tolist()
OTHERS = np.random.default_rng(4).integers(0, VOCAB, (4, 30)).tolist()
KERNELS = ["reference", "cpu"] if has_native_kernels() else ["reference"]
PLACES = [
    *product(["cpu"], KERNELS, [torch.float32, torch.bfloat16]),
    *product(["cpu"], KERNELS[1:], [torch.float32, torch.bfloat16], ["int8"]),
    pytest.param(("cuda", "triton", torch.bfloat16), marks=pytest.mark.gpu),
]


def make_driver(
    device: str, kernels: str, dtype: torch.dtype, quantization: str = "none"
) -> Driver:
    ops = DeterministicOps(select_ops(device, kernels), device)
    backend = "torch" if kernels == "reference" else kernels
    attention = make_deterministic(select_attention(device, backend))
    where = select_device(device).torch_device
    quant = select_quant(quantization, device, ops, dtype)
    model = load_model(CONFIG, BuildContext(where, dtype, ops, quant), None, seed=1)
    return Driver(device, model=model, attention=attention, deterministic=True, dtype=dtype)


@pytest.fixture(params=PLACES, ids=str)
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    made = make_driver(*request.param)
    yield made
    made.device.close()


def generate(driver: Driver, slot: int, chunks: list[int], others: list[Row]) -> list[bytes]:
    """The bits of the log-probabilities of eight tokens, and the tokens."""
    bits = []
    for i, chunk in enumerate([*chunks, *[0] * 7]):
        row = Row(slot, chunk, samples=i >= len(chunks) - 1)
        result = driver.step(*others[: i % 4], row, *others[i % 4 :])
        if row.samples:
            at = min(i % 4, len(others))
            assert result.logprobs is not None
            order = np.argsort(result.logprobs.token_ids[at, 0, 1:])
            values = result.logprobs.logprobs[at, 0]
            bits.append(values[0].tobytes() + values[1:][order].tobytes())
            bits.append(result.token_ids[at].tobytes())
    return bits


def test_bits_are_the_same_alone_and_in_any_company(driver: Driver) -> None:
    driver.admit(0, TEXT, EVERYTHING, seed=9)
    alone = generate(driver, 0, [len(TEXT)], [])
    driver.admit(4, TEXT, EVERYTHING, seed=9)
    assert generate(driver, 4, [7, 13, 1, 19], []) == alone
    for slot, text in enumerate(OTHERS):
        driver.admit(slot, text)
    driver.step(*(Row(slot, 30) for slot in range(4)))
    driver.admit(4, TEXT, EVERYTHING, seed=9)
    assert generate(driver, 4, [11, 29], [Row(slot) for slot in range(4)]) == alone
    driver.admit(1, TEXT, EVERYTHING, seed=9)
    assert generate(driver, 1, [len(TEXT)], [Row(0), Row(2)]) == alone


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(576, 960), (144, 61), (1536, 576)])
def test_a_row_of_a_product_is_the_same_at_any_place(shape: tuple[int, int], device: str) -> None:
    ops = DeterministicOps(select_ops(device, "reference"), device)
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(size, generator=generator).to(select_device(device).torch_device)
        for size in ((150, shape[0]), (shape[1], shape[0]))
    )
    whole = ops.linear(x, weight, None)
    torch.testing.assert_close(whole, x @ weight.T, atol=1e-3, rtol=1e-4)
    for start, end in [(0, 1), (3, 4), (149, 150), (5, 20), (7, 140)]:
        assert torch.equal(ops.linear(x[start:end], weight, None), whole[start:end])
