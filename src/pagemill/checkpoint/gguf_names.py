"""GGUF tensor names and layouts -> those of Hugging Face checkpoints.

Two layouts differ besides the names. The `llama` architecture's q and k rows are stored with the
two halves of each rotated pair interleaved. Gemma's norm weights are stored as 1 + w.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Layout = Literal["same", "interleaved_q", "interleaved_k", "one_plus"]
Floats = npt.NDArray[np.float32]

_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)")
_OUTER = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_SHARED = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
}
_QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_PRE_NORMS = {"ffn_norm": "post_attention_layernorm"}
_SANDWICH_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_INNER = {
    "llama": _SHARED | _PRE_NORMS,
    "qwen2": _SHARED | _PRE_NORMS,
    "qwen3": _SHARED | _PRE_NORMS | _QK_NORMS,
    "gemma3": _SHARED | _SANDWICH_NORMS | _QK_NORMS,
}
# Read with the configuration, not as weights.
CONFIG_TENSORS = frozenset({"rope_freqs.weight"})


@dataclass(frozen=True, slots=True)
class HFTensor:
    name: str
    layout: Layout = "same"


def hf_tensor(architecture: str, name: str) -> HFTensor | None:
    """The Hugging Face name of a GGUF tensor, None if this architecture has no such tensor."""
    if name in _OUTER:
        return HFTensor(_OUTER[name], _layout(architecture, name.split(".")[0]))
    match = _BLOCK.fullmatch(name)
    if match is None:
        return None
    layer, part, kind = match.groups()
    inner = _INNER[architecture].get(part)
    if inner is None:
        return None
    return HFTensor(f"model.layers.{layer}.{inner}.{kind}", _layout(architecture, part))


def to_hf_layout(values: Floats, layout: Layout, num_heads: int, num_kv_heads: int) -> Floats:
    """`values` as Hugging Face stores them; may share memory with its argument."""
    if layout == "one_plus":
        return values - np.float32(1)
    if layout == "interleaved_q":
        return _undo_interleave(values, num_heads)
    if layout == "interleaved_k":
        return _undo_interleave(values, num_kv_heads)
    return values


def _undo_interleave(values: Floats, num_heads: int) -> Floats:
    """Rows of a head from x0 y0 x1 y1 ... back to x0 x1 ... y0 y1 ...; [out, in] or [out]."""
    rows, rest = values.shape[0], values.shape[1:]
    pairs = values.reshape(num_heads, rows // num_heads // 2, 2, *rest)
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)


def _layout(architecture: str, part: str) -> Layout:
    if architecture == "llama" and part == "attn_q":
        return "interleaved_q"
    if architecture == "llama" and part == "attn_k":
        return "interleaved_k"
    if architecture == "gemma3" and part.endswith("norm"):
        return "one_plus"
    return "same"
