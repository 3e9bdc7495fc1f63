"""config.json of every architecture, in the spellings of transformers 4 and 5."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from pagemill.checkpoint.hf_config import (
    merge_eos_ids,
    model_config_from_hf,
    supported_architectures,
    token_ids,
)
from pagemill.config.model import ModelConfig
from pagemill.errors import ModelLoadError
from unit.checkpoint.checkpoint_files import LLAMA_CONFIG

FULL, SLIDING = "full_attention", "sliding_attention"
LENGTH = "original_max_position_embeddings"
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    LENGTH: 32,
}


def config(architecture: str = "LlamaForCausalLM", **changes: Any) -> ModelConfig:
    return model_config_from_hf({**LLAMA_CONFIG, "architectures": [architecture], **changes})


def test_llama() -> None:
    found = config(rms_norm_eps=1e-5, attention_bias=True, mlp_bias=True)
    assert (found.num_heads, found.num_kv_heads, found.head_dim) == (4, 2, 2)
    assert (found.attention_bias, found.output_bias, found.mlp_bias) == (True, True, True)
    assert not found.tie_embeddings
    assert found.dtype == "float16"
    assert (found.bos_token_id, found.eos_token_ids, found.pad_token_id) == (1, (2, 3), None)
    assert found.layer_types == ()
    assert found.raw["vocab_size"] == 16
    assert config(num_key_value_heads=None).num_kv_heads == 4
    assert config(head_dim=6).head_dim == 6
    assert config(dtype="bfloat16", torch_dtype=None).dtype == "bfloat16"


@pytest.mark.parametrize("architecture", ["Llama", "Mistral", "Qwen2", "Qwen3", "Gemma3Text"])
@pytest.mark.parametrize("rope", [None, "linear", "dynamic", "yarn", "llama3"])
def test_agrees_with_transformers(architecture: str, rope: str | None) -> None:
    import transformers

    scaling = {"rope_type": rope, "factor": 4.0} if rope else None
    if rope == "yarn":
        scaling = {**(scaling or {}), LENGTH: 16}
    if rope == "llama3":
        scaling = LLAMA3_ROPE
    given = {**LLAMA_CONFIG, "rope_scaling": scaling, "rope_theta": 5e5, "sliding_window": 16}
    if architecture == "Gemma3Text":
        given = {**given, "num_hidden_layers": 7, "hidden_activation": "gelu_pytorch_tanh"}
    del given["architectures"]
    theirs = getattr(transformers, f"{architecture}Config")(**deepcopy(given))
    name = f"{architecture.removesuffix('Text')}ForCausalLM"
    old = model_config_from_hf({**given, "architectures": [name]})
    new = model_config_from_hf({**theirs.to_dict(), "architectures": [name]})
    assert old.rope == new.rope
    assert old.local_rope == new.local_rope
    plain = [SLIDING if architecture == "Mistral" else FULL] * old.num_layers
    expected = getattr(theirs, "layer_types", plain)
    for ours in (old, new):
        assert ours.head_dim == (getattr(theirs, "head_dim", None) or 2)
        assert ours.num_kv_heads == theirs.num_key_value_heads
        assert ours.tie_embeddings == theirs.tie_word_embeddings
        assert list(ours.layer_types or [FULL] * ours.num_layers) == expected
        theta = theirs.rope_parameters.get(FULL, theirs.rope_parameters)["rope_theta"]
        assert ours.rope.theta == theta
        assert ours.rope.kind == (rope or "default")


def test_mistral_slides_everywhere_if_it_has_a_window() -> None:
    found = config("MistralForCausalLM", sliding_window=32)
    assert found.layer_types == (SLIDING, SLIDING)
    assert found.layer_window(1) == 32
    assert config("MistralForCausalLM", sliding_window=None).layer_window(1) == 0


def test_qwen_slides_from_max_window_layers_on_if_told_so() -> None:
    window = {"sliding_window": 32, "max_window_layers": 1}
    assert config("Qwen2ForCausalLM", **window).layer_window(1) == 0
    found = config("Qwen2ForCausalLM", use_sliding_window=True, **window)
    assert [found.layer_window(i) for i in range(2)] == [0, 32]
    assert found.attention_bias
    assert not found.output_bias
    found = config("Qwen3ForCausalLM")
    assert (found.head_dim, found.attention_bias) == (128, False)


def test_gemma3() -> None:
    found = config("Gemma3ForCausalLM", num_hidden_layers=7, final_logit_softcapping=30.0)
    assert found.layer_types == (SLIDING,) * 5 + (FULL, SLIDING)
    assert found.sliding_window == 4096
    assert (found.head_dim, found.tie_embeddings) == (256, True)
    assert found.attention_scale == 256**-0.5
    assert found.logit_soft_cap == 30.0
    assert found.activation == "gelu_pytorch_tanh"
    found = config("Gemma3ForCausalLM", sliding_window_pattern=2, query_pre_attn_scalar=168)
    assert found.layer_types == (SLIDING, FULL)
    assert found.query_scale == pytest.approx(168**-0.5)
    assert config("Gemma3ForCausalLM", layer_types=[FULL, FULL]).layer_types == (FULL, FULL)


def test_multimodal_gemma3_is_its_text_part() -> None:
    text = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    found = model_config_from_hf(
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": text,
            "eos_token_id": [1, 106],
        }
    )
    assert found.architecture == "Gemma3ForCausalLM"
    assert (found.vocab_size, found.num_heads, found.num_kv_heads) == (262_208, 8, 4)
    assert (found.rope.theta, found.rope.kind) == (1e6, "linear")
    assert found.max_position == 131_072
    assert found.eos_token_ids == (1, 106)
    with pytest.raises(ModelLoadError, match="without a text_config"):
        model_config_from_hf({"architectures": ["Gemma3ForConditionalGeneration"]})


@pytest.mark.parametrize(
    ("scaling", "max_position"),
    [
        ({"rope_type": "yarn", "factor": 4.0}, 256),  # the stated length is the original one
        ({"rope_type": "yarn", "factor": 4.0, LENGTH: 16}, 64),  # already scaled
        ({"rope_type": "yarn", "factor": 4.0, LENGTH: 64}, 256),
        ({"type": "linear", "factor": 2.0}, 64),
        ({"type": "dynamic", "factor": 2.0}, 64),
        (LLAMA3_ROPE, 64),
    ],
)
def test_context_length_after_scaling(scaling: dict[str, Any], max_position: int) -> None:
    assert config(rope_scaling=scaling).max_position == max_position


def test_llama3_parameters_are_kept() -> None:
    params = config(rope_scaling=LLAMA3_ROPE).rope.params
    assert params == {k: v for k, v in LLAMA3_ROPE.items() if k != "rope_type"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["FalconForCausalLM"]}, "'FalconForCausalLM' is not supported"),
        ({"architectures": None}, "None is not supported; supported are Gemma3ForCausalLM"),
        ({"rope_scaling": {"type": "longrope"}}, "rope type 'longrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "needs 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": -1}}, "must be positive"),
        ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor must be a number"),
        ({"rope_scaling": [1]}, "rope_scaling must be an object"),
        ({"rope_theta": float("nan")}, "rope_theta must be a number"),
        ({"partial_rotary_factor": 2.0}, "partial_rotary_factor must be in"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": 0}, "hidden_size must be at least 1"),
        ({"vocab_size": 10**12}, "vocab_size must be a whole number"),
        ({"num_hidden_layers": True}, "num_hidden_layers must be a whole number"),
        ({"num_key_value_heads": 3}, "is not a multiple of"),
        ({"head_dim": 3}, "head_dim 3 is odd"),
        ({"hidden_act": "relu6"}, "activation 'relu6' is not supported"),
        ({"tie_word_embeddings": "yes"}, "must be true or false"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError) as caught:
        model_config_from_hf({**LLAMA_CONFIG, **changes}, "m/config.json")
    assert str(caught.value).startswith("m/config.json: ")
    assert message in str(caught.value)


def test_layer_types_must_fit() -> None:
    with pytest.raises(ModelLoadError, match="3 entries for 2 layers"):
        config("Gemma3ForCausalLM", layer_types=[FULL] * 3)
    with pytest.raises(ModelLoadError, match="'linear_attention' is not supported"):
        config("Gemma3ForCausalLM", layer_types=["linear_attention", FULL])


def test_partial_rotation() -> None:
    assert config(head_dim=8, partial_rotary_factor=0.5).rope.rotary_dim == 4


def test_end_tokens_of_both_files_count() -> None:
    assert merge_eos_ids(config(), {"eos_token_id": [3, 5]}) == (2, 3, 5)
    assert merge_eos_ids(config(), {"eos_token_id": [3, 5]}, 5) == (2, 3, 5)
    assert merge_eos_ids(config(), {}, 0) == (2, 3, 0)
    assert merge_eos_ids(config(eos_token_id=None), {}) == ()
    assert token_ids(7) == (7,)
    assert "LlamaForCausalLM" in supported_architectures()
