"""Models with packed weights on CPUs: whole layers equal their parts, tied tables are one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.harness import ModelHarness, build_context
from pagemill.attention.select import select_attention
from pagemill.config.model import ModelConfig, RopeConfig
from pagemill.models.loader import load_model
from pagemill.models.registry import build_model
from pagemill.models.weights import weight_slots
from pagemill.ops.base import Ops
from pagemill.ops.deterministic import DeterministicOps
from pagemill.ops.select import has_native_kernels, select_ops
from pagemill.quant.base import HoldsMatrices, QuantMethod
from pagemill.quant.select import select_quant

pytestmark = pytest.mark.skipif(not has_native_kernels(), reason="built without a compiler")

TEXT = torch.randint(0, 100, (40,), generator=torch.Generator().manual_seed(1)).tolist()
FORMS = [("none", torch.bfloat16), ("int8", torch.float32), ("int4", torch.float32)]


def config(architecture: str, *, tied: bool = True) -> ModelConfig:
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
        attention_bias=architecture.startswith("Qwen2"),
        tie_embeddings=tied,
    )


def random_weights(model: ModelConfig) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    slots = weight_slots(build_model(model, build_context()))
    tensors = {n: torch.randn(s.shape, generator=generator) * 0.2 for n, s in slots.items()}
    return {name: tensor.bfloat16() for name, tensor in tensors.items()}


def run(model: ModelConfig, ops: Ops, quant: QuantMethod) -> tuple[nn.Module, Tensor]:
    """Logits of prompts, then of a step of single tokens."""
    context = replace(build_context(ops=ops), quant=quant)
    loaded = load_model(model, context, random_weights(model).items())
    harness = ModelHarness(loaded, select_attention("cpu"), block_size=16, dtype=torch.float16)
    steps = (harness.step({0: TEXT[:25], 1: TEXT[:3]}), harness.step({0: [5], 1: [7]}))
    assert isinstance(loaded, nn.Module)
    return loaded, torch.cat([logits for step in steps for logits in step.values()])


def error(ours: Tensor, expected: Tensor) -> float:
    return float((ours - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    "architecture", ["LlamaForCausalLM", "Qwen2ForCausalLM", "Gemma3ForCausalLM"]
)
@pytest.mark.parametrize(("quantization", "dtype"), FORMS, ids=str)
def test_whole_layers_compute_what_their_parts_do(
    architecture: str, quantization: str, dtype: torch.dtype
) -> None:
    model, ops = config(architecture), select_ops("cpu")
    quant = select_quant(quantization, "cpu", ops, dtype)
    _, whole = run(model, ops, quant)
    _, parts = run(model, DeterministicOps(ops, "cpu"), quant)
    assert error(whole, parts) < 1e-2  # values next to the middle of two others round either way


@pytest.mark.parametrize("tied", [False, True])
def test_bfloat16_weights_lose_little(tied: bool) -> None:
    model, ops = config("LlamaForCausalLM", tied=tied), select_ops("cpu")
    _, expected = run(model, ops, select_quant("none", "cpu", ops, torch.float32))
    _, ours = run(model, ops, select_quant("none", "cpu", ops, torch.bfloat16))
    assert error(ours, expected) < 1e-2


@pytest.mark.parametrize(("quantization", "dtype"), FORMS, ids=str)
def test_a_tied_table_is_held_once(quantization: str, dtype: torch.dtype) -> None:
    ops = select_ops("cpu")
    quant = select_quant(quantization, "cpu", ops, dtype)
    model, _ = run(config("LlamaForCausalLM"), ops, quant)
    embedding, head = (model.get_submodule(name) for name in ("model.embed_tokens", "lm_head"))
    assert isinstance(quant, HoldsMatrices)
    assert quant.matrix(embedding) is quant.matrix(head)
    assert not any(name.endswith("embed_tokens.weight") for name, _ in model.named_parameters())


def test_rounded_tables_of_their_own_are_kept_as_they_are() -> None:
    """Only a head's matrix is rounded: an embedding of its own loses nothing."""
    ops = select_ops("cpu")
    model, _ = run(
        config("LlamaForCausalLM", tied=False), ops, select_quant("int8", "cpu", ops, torch.float32)
    )
    stored = random_weights(config("LlamaForCausalLM", tied=False))["model.embed_tokens.weight"]
    assert torch.equal(model.get_parameter("model.embed_tokens.weight"), stored.float())
