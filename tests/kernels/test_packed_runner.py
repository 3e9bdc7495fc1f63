"""A whole model's steps with prompts as graphs of Triton kernels, against the same without graphs.

On a card they are captured; without one, the work is run again, interpreted.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.test_fused_decoder import make_model
from kernels.triton_harness import DEVICES, assert_near
from pagemill.attention.triton import TritonAttention
from pagemill.device.cuda import CudaDevice
from pagemill.ops.triton.ops import TritonOps
from pagemill.params import SamplingParams
from pagemill.runner import packed_graphs
from pagemill.runner.memory import allocate_cache
from pagemill.runner.runner import ModelRunner
from unit.runner.graph_harness import GraphDevice
from unit.runner.harness import BLOCK_SIZE, BLOCKS_PER_SLOT, NUM_SLOTS, Driver, Row

GREEDY = SamplingParams(temperature=0.0)
RANDOM = SamplingParams(temperature=0.9)
FILTERED = SamplingParams(temperature=0.9, top_k=7)
REQUESTS = (
    ([3] * 30 + [9, 8], GREEDY),
    ([1, 2, 3, 4], RANDOM),
    ([*range(25)], GREEDY),
    ([7], FILTERED),  # with it, the sampler is not in the graph
)
STEPS = [
    [Row(0, 30, samples=False), Row(1, 4)],
    [Row(1), Row(0, 2), Row(2, 11, samples=False)],
    [Row(2, 13, samples=False), Row(3, 1), Row(0), Row(1)],
    [Row(2, 1), Row(1), Row(3)],
]


def make_driver(folder: Path, device: str, graphs: bool) -> Driver:
    ops = TritonOps()
    model = make_model(folder, "qwen3", device, ops)
    driver = Driver(model=model)
    driver.device = CudaDevice() if device == "cuda" else GraphDevice(1)  # type: ignore[assignment]
    num_blocks = 1 + NUM_SLOTS * BLOCKS_PER_SLOT
    specs = model.kv_cache_specs()
    cache = allocate_cache(driver.device, specs, num_blocks, BLOCK_SIZE, torch.float32)
    driver.runner = ModelRunner(
        driver.config,
        model,
        driver.device,
        TritonAttention(),
        cache,
        decode_ops=ops if graphs else None,
        sampling_ops=ops,
    )
    return driver


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # of what padding holds
def test_same_tokens_and_cache_as_without_graphs(
    tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed_graphs, "_EAGER_STEPS", 1)
    if device == "cpu":  # fewer tokens are quicker to interpret; attention still has two kernels
        monkeypatch.setattr(packed_graphs, "_STEPS", ((48, 48),))
    found, caches, slots = [], [], []
    for graphs in (False, True):
        driver = make_driver(tmp_path, device, graphs)
        for slot, (text, params) in enumerate(REQUESTS):
            driver.admit(slot, text, params, seed=slot)
        found.append([driver.tokens(*rows) for rows in STEPS])
        runner = driver.runner
        caches.append(torch.cat([x.flatten() for c in runner._kv_cache for x in (c.k, c.v)]))
        slots.append(torch.stack([runner._slots.length, runner._slots.next_input[:, 0]]))
    assert runner._packed is not None and runner._packed.num_graphs == 2
    assert found[1] == found[0]
    assert torch.equal(slots[1], slots[0])
    assert_near(caches[1], caches[0], 1e-4)
