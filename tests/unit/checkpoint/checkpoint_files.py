"""Small model files made in tests."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

LLAMA_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "torch_dtype": "float16",
    "bos_token_id": 1,
    "eos_token_id": [2, 3],
}
WORDS = ["<unk>", "<s>", "</s>", "a", "b", "ab"]


def safetensors_bytes(tensors: dict[str, np.ndarray[Any, Any]]) -> bytes:
    names = {np.dtype("float32"): "F32", np.dtype("float16"): "F16"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        place = [len(data), len(data) + tensor.nbytes]
        shape, dtype = list(tensor.shape), names[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": place}
        data += tensor.tobytes()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tokenizer_json(**changes: Any) -> dict[str, Any]:
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [{"id": i, "content": WORDS[i], "special": True, **special} for i in range(3)]
    model = {
        "type": "BPE",
        "vocab": {word: i for i, word in enumerate(WORDS)},
        "merges": [["a", "b"]],
        "unk_token": "<unk>",
    }
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder", "truncation", "padding")
    empty = dict.fromkeys(parts)
    return {"version": "1.0", "added_tokens": added, "model": model, **empty, **changes}


def tiny_repo() -> dict[str, bytes]:
    """The files of a repository, some of which nobody should download."""
    return {
        "config.json": json.dumps(LLAMA_CONFIG).encode(),
        "tokenizer.json": json.dumps(tokenizer_json()).encode(),
        "chat_template.jinja": b"{{ messages[0].content }}",
        "model.safetensors": safetensors_bytes({"model.norm.weight": np.ones(8, np.float32)}),
        "pytorch_model.bin": b"pickle",
        "README.md": b"# tiny",
        "onnx/config.json": b"{}",
    }
