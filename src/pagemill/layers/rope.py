"""Rotary embedding tables (Su et al., 2021) and the ways of stretching them to longer texts.

Angles are computed in float32, as in training. A token's rotation depends on its position alone,
so that cached keys stay valid however a text was cut into steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pagemill.config.model import ModelConfig, RopeConfig
from pagemill.errors import ModelLoadError

_ORIGINAL = "original_max_position_embeddings"


@dataclass(frozen=True, slots=True)
class RopeTables:
    """A model's tables, shared by its layers: [max_position, head_dim] float32 each."""

    full: Tensor
    sliding: Tensor  # the same tensor unless sliding-window layers rotate differently

    def for_layer(self, sliding_window: int) -> Tensor:
        return self.sliding if sliding_window else self.full


def build_rope_tables(config: ModelConfig, device: torch.device) -> RopeTables:
    full = rope_table(config.rope, config.head_dim, config.max_position, device)
    if config.local_rope is None:
        return RopeTables(full, full)
    local = rope_table(config.local_rope, config.head_dim, config.max_position, device)
    return RopeTables(full, local)


def rope_table(rope: RopeConfig, head_dim: int, max_position: int, device: torch.device) -> Tensor:
    """[max_position, head_dim] float32: cosines of the head_dim / 2 angles, then their sines.

    Raises ModelLoadError for kinds that are not implemented.
    """
    if rope.kind not in _FREQUENCIES:
        raise ModelLoadError(
            f"rope type {rope.kind!r} is not supported; supported are {', '.join(_FREQUENCIES)}"
        )
    if rope.rotary_dim not in (0, head_dim):
        raise ModelLoadError(
            f"rotating {rope.rotary_dim} of {head_dim} dimensions of a head is not supported"
        )
    if device.type == "meta":  # arithmetic there would import torch's compiler, for seconds
        return torch.empty(max_position, head_dim, device=device)
    frequencies = _FREQUENCIES[rope.kind](rope, head_dim, max_position).to(device)
    angles = torch.arange(max_position, dtype=torch.float32, device=device)[:, None] * frequencies
    table = torch.cat((angles.cos(), angles.sin()), dim=1)
    return table.mul_(_yarn_magnitude(rope)) if rope.kind == "yarn" else table


def _powers(theta: float, dim: int) -> Tensor:
    return torch.pow(theta, torch.arange(0, dim, 2, dtype=torch.float32) / dim)


def _default(rope: RopeConfig, dim: int, max_position: int) -> Tensor:
    return 1.0 / _powers(rope.theta, dim)


def _linear(rope: RopeConfig, dim: int, max_position: int) -> Tensor:
    """Position interpolation (Chen et al., 2023)."""
    return _default(rope, dim, max_position) / float(rope.params["factor"])


def _dynamic(rope: RopeConfig, dim: int, max_position: int) -> Tensor:
    """NTK-aware base (bloc97, emozilla, 2023), fixed for the longest text that is served.

    The formula knows the length of the text; letting it grow with the text would turn queries by
    other frequencies than the keys already in the cache. So max_position decides: no change
    up to the trained length, beyond it what the formula says for a text of max_position tokens.
    """
    factor, trained = float(rope.params["factor"]), int(rope.params[_ORIGINAL])
    stretch = factor * max(max_position, trained) / trained - (factor - 1)
    return 1.0 / _powers(rope.theta * stretch ** (dim / (dim - 2)), dim)


def _llama3(rope: RopeConfig, dim: int, max_position: int) -> Tensor:
    """Llama 3.1: slow frequencies are divided by the factor, fast ones kept, a ramp between."""
    params = rope.params
    low, high = float(params["low_freq_factor"]), float(params["high_freq_factor"])
    frequencies = _default(rope, dim, max_position)
    turns = int(params[_ORIGINAL]) * frequencies / (2 * math.pi)  # within the trained length
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (kept + (1 - kept) / float(params["factor"]))


def _llama3_factors(rope: RopeConfig, dim: int, max_position: int) -> Tensor:
    """As a GGUF file has it: one divisor for each frequency."""
    factors = torch.tensor(rope.params["factors"], dtype=torch.float32)
    if len(factors) != dim // 2:
        raise ModelLoadError(f"{len(factors)} rope factors do not fit a head size of {dim}")
    return _default(rope, dim, max_position) / factors


def _yarn(rope: RopeConfig, dim: int, max_position: int) -> Tensor:
    """YaRN (Peng et al., 2023): interpolate the dimensions that turn slowly, keep the fast ones."""
    params = rope.params
    first = _yarn_dimension(rope, dim, float(params.get("beta_fast") or 32))
    last = _yarn_dimension(rope, dim, float(params.get("beta_slow") or 1))
    if params.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    ramp = (torch.arange(dim // 2, dtype=torch.float32) - first) / max(last - first, 0.001)
    interpolated = ramp.clamp(0, 1)
    frequencies = _default(rope, dim, max_position)
    return frequencies * (1 - interpolated) + frequencies / float(params["factor"]) * interpolated


def _yarn_dimension(rope: RopeConfig, dim: int, turns: float) -> float:
    """The dimension whose frequency makes `turns` rotations within the trained length."""
    trained = int(rope.params[_ORIGINAL])
    return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))


def _yarn_magnitude(rope: RopeConfig) -> float:
    """What queries and keys are multiplied by, to keep the entropy of attention."""
    params, factor = rope.params, float(rope.params["factor"])
    if params.get("attention_factor") is not None:
        return float(params["attention_factor"])
    mscale, all_dims = params.get("mscale"), params.get("mscale_all_dim")
    if mscale and all_dims:
        return _mscale(factor, float(mscale)) / _mscale(factor, float(all_dims))
    return _mscale(factor, 1.0)


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


_FREQUENCIES: dict[str, Callable[[RopeConfig, int, int], Tensor]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "llama3_factors": _llama3_factors,
    "yarn": _yarn,
}
