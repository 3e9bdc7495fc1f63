"""Which model fits with which context, by the same rules that a start follows."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from pagemill.config.args import ServeArgs, flags
from pagemill.config.engine import EngineConfig
from pagemill.config.facts import DeviceFacts
from pagemill.config.model import ModelConfig, RopeConfig, num_weights
from pagemill.config.resolve import resolve
from pagemill.errors import ConfigError

_CPU_SHARE = 0.9  # of the free memory, as the engine takes it
_STEP_SHARE = 0.04  # of a GPU's memory, for the largest step beside weights and cache
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Of linear layers, with their scales.
_WEIGHT_BYTES = {"int8": 1.0, "fp8": 1.0, "fp8-block": 1.03, "int4": 0.5625}


class Fit(msgspec.Struct, kw_only=True):
    """One row: `context` is the longest request, `tokens` what all requests together can hold.

    Both are 0 where not even the weights fit.
    """

    model: str
    dtype: str
    quantization: str
    weight_bytes: int
    token_bytes: int
    context: int
    tokens: int


def _shape(
    name: str,
    layers: int,
    hidden: int,
    inner: int,
    heads: tuple[int, int, int],
    tail: tuple[int, int],
) -> tuple[str, ModelConfig]:
    num_heads, kv_heads, head_dim = heads
    vocab, context = tail
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=inner,
        num_layers=layers,
        num_heads=num_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        max_position=context,
        norm_eps=1e-5,
        rope=RopeConfig(),
        tie_embeddings=hidden <= 2560,
    )
    return name, config


# From the models' published configurations; weights and cache follow from the shape.
SIZES = (
    _shape("SmolLM2-135M", 30, 576, 1536, (9, 3, 64), (49152, 8192)),
    _shape("Qwen3-0.6B", 28, 1024, 3072, (16, 8, 128), (151936, 40960)),
    _shape("Qwen3-1.7B", 28, 2048, 6144, (16, 8, 128), (151936, 40960)),
    _shape("Qwen3-4B", 36, 2560, 9728, (32, 8, 128), (151936, 40960)),
    _shape("Llama-3.1-8B", 32, 4096, 14336, (32, 8, 128), (128256, 131072)),
    _shape("Qwen3-14B", 40, 5120, 17408, (40, 8, 128), (151936, 40960)),
    _shape("Qwen3-32B", 64, 5120, 25600, (64, 8, 128), (151936, 40960)),
    _shape("Llama-3.3-70B", 80, 8192, 28672, (64, 8, 128), (128256, 131072)),
)


def fit_table(
    device: DeviceFacts, free_memory: int, models: Iterable[tuple[str, ModelConfig]] = SIZES
) -> list[Fit]:
    """Every model in every form that this device computes. `free_memory` in bytes."""
    rows = []
    for name, model in models:
        for quantization in _quantizations():
            try:
                args = ServeArgs(model=name, quantization=quantization)
                rows.append(_fit(name, args, model, device, free_memory))
            except ConfigError:
                continue  # not on this device
    return rows


def _quantizations() -> tuple[str, ...]:
    """The choices of `--quantization` whose size is known."""
    choices = next(info.choices for item, info, _ in flags() if item.name == "quantization")
    return tuple(name for name in choices if name == "none" or name in _WEIGHT_BYTES)


def _key_bytes(config: EngineConfig, model: ModelConfig) -> int:
    """Of a head's key, or value, in the cache."""
    if config.kv_cache_dtype == "int8":
        return model.head_dim + 4  # with its scale
    if config.kv_cache_dtype == "fp8":
        return model.head_dim
    rounded = config.device == "cpu" and config.quantization != "none"
    return model.head_dim * (2 if rounded else _ITEM_BYTES[config.dtype])


def _fit(
    name: str, args: ServeArgs, model: ModelConfig, device: DeviceFacts, free_memory: int
) -> Fit:
    config = resolve(args, model, device)
    item = _ITEM_BYTES[config.dtype]
    linear, embedding = num_weights(model)
    if model.tie_embeddings and config.quantization == "int8":
        linear += embedding  # the head has a packed copy
    per_weight = _WEIGHT_BYTES.get(config.quantization, float(item))
    weights = int(linear * per_weight + embedding * item)
    per_token = 2 * model.num_layers * model.num_kv_heads * _key_bytes(config, model)
    if device.type == "cuda":
        room = int(device.total_memory * (config.memory_utilization - _STEP_SHARE))
        room -= max(0, device.total_memory - free_memory)
    else:
        room = int(free_memory * _CPU_SHARE)
    room -= weights
    if config.kv_cache_bytes:
        room = min(room, config.kv_cache_bytes)
    tokens = max(0, room // (per_token * config.block_size) - 1) * config.block_size
    return Fit(
        model=name,
        dtype=config.dtype,
        quantization=config.quantization,
        weight_bytes=weights,
        token_bytes=per_token,
        context=min(tokens, config.max_model_len),
        tokens=tokens,
    )
