"""The rotary parameters of a config.json, in either spelling, as RopeConfig."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pagemill.checkpoint.fields import Fields
from pagemill.config.model import RopeConfig

_GLOBAL_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0  # Gemma 3's defaults

# kind -> keys that must be there
_KINDS: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "llama3_factors": ("factors",),  # ours: the table a GGUF file carries as rope_freqs
}
_IGNORED = {"type", "rope_type", "rope_theta", "partial_rotary_factor"}
_LENGTH = "original_max_position_embeddings"


@dataclass(frozen=True, slots=True)
class Rope:
    config: RopeConfig

    def max_position(self, stated: int) -> int:
        """The context length after scaling, from the `max_position_embeddings` the file states.

        llama3 and linear files state the scaled length. yarn files state it too, or the original
        length, in which case the factor applies. dynamic scaling changes nothing up to the stated
        length, and serving more would change it for every text (see layers/rope.py).
        """
        params = self.config.params
        if self.config.kind == "yarn":
            return max(stated, int(params["factor"] * params[_LENGTH]))
        return stated


def read_rope(fields: Fields) -> Rope:
    """One set of parameters for all layers."""
    given = fields.mapping("rope_scaling") or fields.mapping("rope_parameters")
    if isinstance(given.get("full_attention"), Mapping):
        given = dict(given["full_attention"])
    return Rope(_rope(fields, given, fields.number("rope_theta", 10_000.0)))


def read_gemma3_rope(fields: Fields) -> tuple[Rope, RopeConfig | None]:
    """Full-attention layers and sliding layers have a theta each; only the former are scaled."""
    nested = fields.mapping("rope_parameters")
    scaled = _nested(nested, "full_attention") | fields.mapping("rope_scaling")
    local = _nested(nested, "sliding_attention")
    theta = fields.number("rope_theta", _GLOBAL_THETA)
    local_theta = fields.number("rope_local_base_freq", _LOCAL_THETA)
    return Rope(_rope(fields, scaled, theta)), _rope(fields, local, local_theta)


def _nested(parameters: Mapping[str, Any], layer_type: str) -> dict[str, Any]:
    part = parameters.get(layer_type)
    return dict(part) if isinstance(part, Mapping) else {}


def _rope(fields: Fields, given: dict[str, Any], theta: float) -> RopeConfig:
    inner = Fields(given, f"{fields.origin}: rope parameters")
    kind = given.get("rope_type") or given.get("type") or "default"
    if kind not in _KINDS:
        supported = ", ".join(sorted(set(_KINDS) - {"llama3_factors"}))
        raise fields.error(f"rope type {kind!r} is not supported; supported are {supported}")
    missing = next((key for key in _KINDS[kind] if given.get(key) is None), None)
    if missing:
        raise fields.error(f"rope type {kind!r} needs {missing!r}")
    return RopeConfig(
        theta=inner.number("rope_theta", theta),
        kind=kind,
        rotary_dim=_rotary_dim(fields, inner),
        params=_params(fields, inner, given, kind),
    )


def _params(fields: Fields, inner: Fields, given: dict[str, Any], kind: str) -> dict[str, Any]:
    if kind == "default":
        return {}
    params = {k: v for k, v in given.items() if k not in _IGNORED and v is not None}
    if kind != "llama3_factors" and inner.number("factor", 1.0) <= 0:
        raise fields.error(f"rope factor must be positive, got {given['factor']!r}")
    if kind in ("llama3", "yarn"):
        stated = fields.size("max_position_embeddings", 2048)
        params[_LENGTH] = fields.size(_LENGTH, inner.size(_LENGTH, stated))
    elif kind == "dynamic":
        params[_LENGTH] = fields.size("max_position_embeddings", 2048)
    return params


def _rotary_dim(fields: Fields, inner: Fields) -> int:
    share = inner.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if share == 1.0:
        return 0
    if not 0 < share < 1:
        raise fields.error(f"partial_rotary_factor must be in (0, 1], got {share}")
    heads = fields.size("num_attention_heads")
    head_dim = fields.size("head_dim", fields.size("hidden_size") // heads)
    return int(head_dim * share)
