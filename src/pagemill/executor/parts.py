"""What a configuration and a device make of kernels, attention, cache and runner."""

from __future__ import annotations

import torch

from pagemill.attention.base import AttentionBackend, FusedAttention
from pagemill.attention.deterministic import make_deterministic
from pagemill.attention.select import select_attention
from pagemill.config.engine import EngineConfig
from pagemill.config.model import ModelConfig
from pagemill.config.quantization import checkpoint_scheme
from pagemill.device.base import Device
from pagemill.executor.base import Runner
from pagemill.executor.cache import CachePlan
from pagemill.executor.pooling import build_pooling_runner
from pagemill.layers.base import BuildContext
from pagemill.models.base import AnyModel, PooledModel
from pagemill.ops.base import Ops
from pagemill.ops.decode import DecodeOps
from pagemill.ops.deterministic import DeterministicOps
from pagemill.ops.sampling import SamplingOps
from pagemill.ops.select import select_ops
from pagemill.quant.select import select_quant
from pagemill.runner.runner import ModelRunner
from pagemill.speculative.select import select_speculator

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
_CACHE_DTYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}


def find_decode_ops(
    config: EngineConfig, ops: Ops, attention: AttentionBackend
) -> DecodeOps | None:
    """The kernels around decode steps; None where these are neither captured nor native.

    Deterministic mode goes without: a row's kernels would depend on the padded number of rows.
    """
    captured = config.cuda_graphs and isinstance(attention, FusedAttention)
    if config.deterministic or not (captured or config.device == "cpu"):
        return None
    return ops if isinstance(ops, DecodeOps) else None


def choose_attention(config: EngineConfig, device: Device) -> AttentionBackend:
    attention = select_attention(device.type, config.attention_backend)
    return make_deterministic(attention) if config.deterministic else attention


def build_context(config: EngineConfig, model: ModelConfig, device: Device) -> BuildContext:
    ops = select_ops(device.type, config.ops)
    if config.deterministic:
        ops = DeterministicOps(ops, device.type)
    dtype, stored_fp8 = _DTYPES[config.dtype], bool(checkpoint_scheme(model.quantization))
    quant = select_quant(config.quantization, device.type, ops, dtype, stored_fp8=stored_fp8)
    return BuildContext(device.torch_device, quant.activations or dtype, ops, quant)


def cache_type(config: EngineConfig, device: Device, context: BuildContext) -> torch.dtype:
    """What was asked for; on CPUs, half the bytes of float32 where weights are rounded as well."""
    if config.kv_cache_dtype != "model":
        return _CACHE_DTYPES[config.kv_cache_dtype]
    rounded = context.quant.name != "none"
    if device.type == "cpu" and context.dtype == torch.float32 and rounded:
        return torch.float16
    return context.dtype


def build_runner(
    config: EngineConfig,
    model: AnyModel,
    device: Device,
    attention: AttentionBackend,
    plan: CachePlan,
    num_blocks: int,
    ops: Ops,
    decode_ops: DecodeOps | None = None,
) -> Runner:
    cache = plan.allocate(device, num_blocks)
    if isinstance(model, PooledModel):
        return build_pooling_runner(config, model, device, attention, cache)
    speculator, tables = select_speculator(config), plan.layer_tables
    sampling_ops = ops if isinstance(ops, SamplingOps) else None
    return ModelRunner(
        config, model, device, attention, cache, speculator, decode_ops, tables, sampling_ops
    )
