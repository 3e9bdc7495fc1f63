"""A whole model by fused layers gives the hidden states that it gives by one kernel at a time."""

from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kernels.triton_harness import DEVICES, assert_near
from models.harness import build_context, empty_cache, make_batch
from pagemill.attention.torch_sdpa import TorchAttention
from pagemill.attention.triton import TritonAttention
from pagemill.checkpoint.open import open_checkpoint
from pagemill.layers.fusion import FusedLayer
from pagemill.models.base import Model
from pagemill.models.llama import LlamaLayer
from pagemill.models.registry import build_model
from pagemill.ops.base import Ops
from pagemill.ops.fused import FusedOps, Stream
from pagemill.ops.triton.ops import TritonOps

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 50,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "max_position_embeddings": 64,
    "torch_dtype": "float32",
}
ARCHITECTURES = {"qwen3": "Qwen3ForCausalLM", "qwen2": "Qwen2ForCausalLM"}


class AlwaysFused(TritonOps):
    """Fuses whatever the type, and counts the steps in which it did."""

    num_steps = 0

    def fuses(self, num_tokens: int, in_features: int, dtype: torch.dtype) -> bool:
        return True

    def begin_stream(self, values: torch.Tensor, norm: torch.Tensor) -> Stream:
        self.num_steps += 1
        return super().begin_stream(values, norm)


def make_model(folder: Path, kind: str, device: str, ops: Ops | None) -> Model:
    config = CONFIG | {"model_type": kind, "architectures": [ARCHITECTURES[kind]]}
    (folder / "config.json").write_text(json.dumps(config))
    model = build_model(
        replace(open_checkpoint(str(folder)).model_config(), max_position=64),
        build_context(torch.float32, device, ops),
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=generator)
        parameter.data.copy_(values / values.shape[-1] ** 0.5 + (values.dim() == 1))
    model.finish_loading()
    return model


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("num_rows", [1, 3])
def test_equals_one_kernel_at_a_time(tmp_path: Path, device: str, kind: str, num_rows: int) -> None:
    ops = AlwaysFused()
    rows = [(7 * row, [5 + row]) for row in range(num_rows)]
    table = torch.randperm(2 * num_rows).int().view(num_rows, 2)
    results = []
    for own_ops, attention in ((None, TorchAttention()), (ops, TritonAttention())):
        model = make_model(tmp_path, kind, device, own_ops)
        specs = model.kv_cache_specs()
        cache = empty_cache(specs, 2 * num_rows, 16, torch.float32, device)
        with torch.inference_mode():
            hidden = model.forward(make_batch(rows, table, cache, attention))
        written = [tensor.flatten() for layer in cache for tensor in (layer.k, layer.v)]
        results.append(torch.cat([hidden.flatten(), *written]))
    assert ops.num_steps == 1
    assert_near(results[1], results[0], 2e-5)


def test_a_layer_is_recognised_by_its_class() -> None:
    """As `isinstance` does from Python 3.12 on."""
    for name in ("first_norm", "fusible", "add_fused"):
        assert inspect.getattr_static(LlamaLayer, name)
        assert hasattr(FusedLayer, name)
    for name in ("fuses", "begin_stream", "norm_linear", "norm_gate_up", "linear_add"):
        assert inspect.getattr_static(TritonOps, name) and hasattr(FusedOps, name)
