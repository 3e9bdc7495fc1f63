"""Which quantised checkpoints can be read, from the `quantization_config` of their config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagemill.errors import ModelLoadError

BLOCK = [128, 128]
CHANNELS, BLOCKS = "fp8", "fp8-block"


def checkpoint_scheme(quantization: Mapping[str, Any]) -> str:
    """ "" for plain weights, "fp8" (a scale a row or tensor) or "fp8-block" (128 x 128).

    Raises ModelLoadError naming the method when it is none of these.
    """
    if not quantization:
        return ""
    method = quantization.get("quant_method", "an unknown method")
    if method == "fp8":
        return _by_block(quantization.get("weight_block_size"), method)
    if method == "compressed-tensors":
        return _compressed_tensors(quantization)
    raise _unsupported(str(method))


def _by_block(block: Any, method: str) -> str:
    if block is None:
        return CHANNELS
    if list(block) != BLOCK:
        raise _unsupported(f"{method} in blocks of {block}")
    return BLOCKS


def _compressed_tensors(quantization: Mapping[str, Any]) -> str:
    """All groups of layers must have the same kind of float8 weights."""
    groups = quantization.get("config_groups")
    weights = [group.get("weights") for group in groups.values()] if groups else []
    if not weights or not all(isinstance(one, Mapping) for one in weights):
        raise _unsupported("compressed-tensors without config_groups")
    schemes = {_weights_scheme(one) for one in weights}
    if len(schemes) > 1:
        raise _unsupported("compressed-tensors with several kinds of scales")
    return schemes.pop()


def _weights_scheme(weights: Mapping[str, Any]) -> str:
    strategy = weights.get("strategy")
    if weights.get("type") != "float" or weights.get("num_bits") != 8:
        raise _unsupported(f"compressed-tensors, {weights.get('num_bits')}-bit weights")
    if strategy == "block":
        return _by_block(weights.get("block_structure"), "compressed-tensors")
    if strategy not in ("tensor", "channel"):
        raise _unsupported(f"compressed-tensors with strategy {strategy}")
    return CHANNELS


def _unsupported(what: str) -> ModelLoadError:
    return ModelLoadError(
        f"the checkpoint is quantised with {what}, which is not supported (fp8 with scales for "
        "tensors, rows or blocks of 128 x 128 is); use the model's original weights"
    )
