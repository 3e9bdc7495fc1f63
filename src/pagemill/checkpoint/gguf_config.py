"""GGUF metadata -> the config.json that the same model has on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pagemill.checkpoint.gguf import GGUFFile, GGUFTensor
from pagemill.checkpoint.hf_config import token_ids
from pagemill.errors import ModelLoadError

HF_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
}
_GEMMA3_27B_LAYERS = 62  # the one size whose queries are not scaled by the head size


def gguf_architecture(file: GGUFFile) -> str:
    """`general.architecture`, if PageMill has it. Raises ModelLoadError."""
    name = file.metadata.get("general.architecture")
    if isinstance(name, str) and name in HF_ARCHITECTURES:
        return name
    raise ModelLoadError(
        f"{file.path}: architecture {name!r} is not supported; "
        f"supported are {', '.join(HF_ARCHITECTURES)}"
    )


def hf_config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """The keys of a config.json. Raises ModelLoadError for what PageMill cannot run."""
    architecture = gguf_architecture(file)
    keys = _Keys(file, architecture)
    if keys.get("expert_count"):
        raise ModelLoadError(f"{file.path}: mixture-of-experts models are not supported")
    embedding = _tensor(file, "token_embd.weight")
    hidden_size = keys.need("embedding_length")
    num_heads = keys.need("attention.head_count")
    config = {
        "architectures": [HF_ARCHITECTURES[architecture]],
        "vocab_size": embedding.shape[0],
        "hidden_size": hidden_size,
        "intermediate_size": keys.need("feed_forward_length"),
        "num_hidden_layers": keys.need("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": keys.get("attention.head_count_kv"),
        "head_dim": keys.get("attention.key_length"),
        "max_position_embeddings": keys.need("context_length"),
        "rms_norm_eps": keys.get("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.get("rope.freq_base"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "dtype": _dtype(file.metadata.get("general.file_type")),
        "rope_scaling": _rope_scaling(file, keys),
        **_special_ids(file.metadata),
    }
    if architecture == "gemma3":
        config |= _gemma3(keys)
    return {key: value for key, value in config.items() if value is not None}


def _gemma3(keys: _Keys) -> dict[str, Any]:
    """What Gemma 3 files leave to the reader; the scale is hidden / heads in the 27B model."""
    large = keys.need("block_count") == _GEMMA3_27B_LAYERS
    hidden_per_head = keys.need("embedding_length") // max(keys.need("attention.head_count"), 1)
    return {
        "sliding_window": keys.get("attention.sliding_window"),
        "rope_local_base_freq": keys.get("rope.freq_base_swa"),
        "query_pre_attn_scalar": hidden_per_head if large else keys.get("attention.key_length"),
        "final_logit_softcapping": keys.get("final_logit_softcapping"),
    }


def _rope_scaling(file: GGUFFile, keys: _Keys) -> dict[str, Any] | None:
    if "rope_freqs.weight" in file.tensors:
        factors = file.dequantize(_tensor(file, "rope_freqs.weight"))
        if not np.all(np.isfinite(factors)) or np.any(factors <= 0):
            raise ModelLoadError(f"{file.path}: rope_freqs.weight holds impossible factors")
        return {"rope_type": "llama3_factors", "factors": factors.tolist()}
    kind = keys.get("rope.scaling.type")
    if kind in (None, "none"):
        return None
    scaling = {"rope_type": kind, "factor": keys.get("rope.scaling.factor")}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = keys.get(
            "rope.scaling.original_context_length"
        )
        scaling["attention_factor"] = keys.get("rope.scaling.attn_factor")
        scaling["beta_fast"] = keys.get("rope.scaling.yarn_beta_fast")
        scaling["beta_slow"] = keys.get("rope.scaling.yarn_beta_slow")
    return scaling


def _special_ids(metadata: Mapping[str, Any]) -> dict[str, Any]:
    ends = token_ids([metadata.get(f"tokenizer.ggml.{k}_token_id") for k in ("eos", "eot", "eom")])
    return {
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": list(dict.fromkeys(ends)),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
    }


def _dtype(file_type: Any) -> str:
    """The precision that fits: the file's own if it is not quantised."""
    if not isinstance(file_type, int):
        return "bfloat16"
    return {0: "float32", 1: "float16"}.get(file_type, "bfloat16")


def _tensor(file: GGUFFile, name: str) -> GGUFTensor:
    if name not in file.tensors:
        raise ModelLoadError(f"{file.path}: tensor {name} is missing")
    return file.tensors[name]


class _Keys:
    """Metadata keys under the architecture's own prefix."""

    def __init__(self, file: GGUFFile, architecture: str) -> None:
        self._file = file
        self._prefix = architecture

    def get(self, key: str) -> Any:
        value = self._file.metadata.get(f"{self._prefix}.{key}")
        if not isinstance(value, np.ndarray):
            return value
        same = value.size and (value == value[0]).all()
        if not same:
            raise ModelLoadError(
                f"{self._file.path}: {self._prefix}.{key} differs by layer, which is not supported"
            )
        return value[0].item()

    def need(self, key: str) -> int:
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ModelLoadError(
                f"{self._file.path}: {self._prefix}.{key} is missing or not a whole number"
            )
        return value
