"""The same random model on every set of kernels that this machine can run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from models.harness import ModelHarness, build_context
from pagemill.attention.select import select_attention
from pagemill.config.model import ModelConfig, RopeConfig
from pagemill.models.loader import load_model
from pagemill.models.registry import SUPPORTED_ARCHITECTURES, build_model
from pagemill.models.weights import weight_slots
from pagemill.ops.select import has_native_kernels, select_ops

TEXT = list(range(40, 80))


@dataclass(frozen=True)
class Kernels:
    device: str
    ops: str
    attention: str


def available() -> list[Any]:
    found: list[Any] = [Kernels("cpu", "reference", "torch")]
    if has_native_kernels():
        found.append(Kernels("cpu", "cpu", "cpu"))
    if torch.cuda.is_available():
        on_gpu = (Kernels("cuda", "reference", "torch"), Kernels("cuda", "default", "default"))
        found += [pytest.param(kernels, marks=pytest.mark.gpu) for kernels in on_gpu]
    return found


def config(architecture: str) -> ModelConfig:
    gemma = architecture.startswith("Gemma")
    return ModelConfig(
        architecture=architecture,
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        max_position=64,
        norm_eps=1e-5,
        rope=RopeConfig(),
        activation="gelu_pytorch_tanh" if gemma else "silu",
        tie_embeddings=gemma,
        sliding_window=6,
        layer_types=("sliding_attention", "full_attention"),
        attention_soft_cap=3.0 if gemma else 0.0,
    )


def random_weights(model: ModelConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    slots = weight_slots(build_model(model, build_context()))
    return {name: torch.randn(s.shape, generator=generator) * 0.2 for name, s in slots.items()}


def run(architecture: str, kernels: Kernels, dtype: torch.dtype) -> Tensor:
    """Logits of a prompt, then of a mixed step, then of a step of single tokens."""
    context = build_context(dtype, kernels.device, select_ops(kernels.device, kernels.ops))
    model = load_model(config(architecture), context, random_weights(config(architecture)).items())
    attention = select_attention(kernels.device, kernels.attention)
    harness = ModelHarness(model, attention, block_size=16, dtype=dtype, device=kernels.device)
    first = harness.step({0: TEXT[:25], 1: TEXT[:3]})
    second = harness.step({1: TEXT[3:4], 0: TEXT[25:31], 2: TEXT[5:30]})
    third = harness.step(dict.fromkeys(range(3), TEXT[31:32]))
    return torch.cat([logits for step in (first, second, third) for logits in step.values()])


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
@pytest.mark.parametrize("kernels", available(), ids=str)
def test_float32_equals_the_reference(architecture: str, kernels: Kernels) -> None:
    expected = run(architecture, Kernels("cpu", "reference", "torch"), torch.float32)
    ours = run(architecture, kernels, torch.float32)
    assert (ours - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
@pytest.mark.parametrize("kernels", available(), ids=str)
def test_bfloat16_is_close_to_float32(architecture: str, kernels: Kernels) -> None:
    expected = run(architecture, Kernels("cpu", "reference", "torch"), torch.float32)
    ours = run(architecture, kernels, torch.bfloat16)
    assert (ours - expected).square().mean() < 0.04**2 * expected.square().mean()


@contextmanager
def waiting_is_an_error(device: str) -> Iterator[None]:
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("kernels", available(), ids=str)
def test_a_step_does_not_wait_for_the_device(kernels: Kernels) -> None:
    context = build_context(torch.float32, kernels.device, select_ops(kernels.device, kernels.ops))
    model = load_model(config("Qwen3ForCausalLM"), context, None)
    attention = select_attention(kernels.device, kernels.attention)
    harness = ModelHarness(model, attention, block_size=16, device=kernels.device)
    harness.step({0: TEXT[:9]})  # compiles
    batch = harness.batch({0: TEXT[9:10], 1: TEXT[:4]})
    with torch.inference_mode(), waiting_is_an_error(kernels.device):
        batch.plan = attention.plan(batch)
        logits = model.compute_logits(model.forward(batch)[batch.logits_rows])
    assert logits.isfinite().all()
