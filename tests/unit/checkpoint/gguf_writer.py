"""Writes GGUF files for tests, byte by byte, so that they can also be wrong."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
F32_TENSOR, Q8_0_TENSOR = 0, 8


def gguf_bytes(
    metadata: dict[str, Any],
    tensors: dict[str, np.ndarray[Any, Any]],
    *,
    version: int = 3,
    types: dict[str, int] | None = None,
) -> bytes:
    """A whole file; `types` overrides the type number written for a tensor."""
    head = struct.pack("<4sIQQ", b"GGUF", version, len(tensors), len(metadata))
    head += b"".join(_string(key) + _value(value) for key, value in metadata.items())
    data = b""
    for name, tensor in tensors.items():
        data += b"\0" * (-len(data) % 32)
        shape = tensor.shape[::-1]
        head += _string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        head += struct.pack("<IQ", (types or {}).get(name, F32_TENSOR), len(data))
        data += tensor.astype(np.float32).tobytes()
    return head + b"\0" * (-len(head) % 32) + data


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    kind, raw = _typed(value)
    return struct.pack("<I", kind) + raw


def _typed(value: Any) -> tuple[int, bytes]:
    if isinstance(value, bool):
        return BOOL, struct.pack("<?", value)
    if isinstance(value, int):
        return U32, struct.pack("<I", value)
    if isinstance(value, float):
        return F32, struct.pack("<f", value)
    if isinstance(value, str):
        return STRING, _string(value)
    items = [_typed(item) for item in value]
    kind = items[0][0] if items else U32
    return ARRAY, struct.pack("<IQ", kind, len(items)) + b"".join(raw for _, raw in items)


def metadata(architecture: str = "llama", **extra: Any) -> dict[str, Any]:
    """A tiny decoder: 2 layers, 4 heads of 8, 2 key-value heads; `extra` keys use __ for dots."""
    keys = {
        "block_count": 2,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 64,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 50000.0,
    }
    pairs: dict[str, Any] = {"general.architecture": architecture}
    pairs |= {f"{architecture}.{key}": value for key, value in keys.items()}
    pairs |= {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b", "ab", "Ġ"],
        "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }
    return pairs | {key.replace("__", "."): value for key, value in extra.items()}


def tensors(architecture: str = "llama", seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """The weights that go with `metadata`, embeddings tied."""
    rng = np.random.default_rng(seed)
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (6, 32), "output_norm.weight": (32,)}
    for layer in range(2):
        block = {
            "attn_q": (32, 32),
            "attn_k": (16, 32),
            "attn_v": (16, 32),
            "attn_output": (32, 32),
            "ffn_gate": (64, 32),
            "ffn_up": (64, 32),
            "ffn_down": (32, 64),
            "attn_norm": (32,),
            "ffn_norm": (32,),
        }
        if architecture in ("qwen3", "gemma3"):
            block |= {"attn_q_norm": (8,), "attn_k_norm": (8,)}
        if architecture == "gemma3":
            block |= {"post_attention_norm": (32,), "post_ffw_norm": (32,)}
        shapes |= {f"blk.{layer}.{part}.weight": shape for part, shape in block.items()}
        if architecture == "qwen2":
            sizes = {"q": 32, "k": 16, "v": 16}
            shapes |= {f"blk.{layer}.attn_{p}.bias": (n,) for p, n in sizes.items()}
    return {name: rng.standard_normal(shape, np.float32) for name, shape in shapes.items()}
