"""What a model's files say about pooling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pagemill.checkpoint.hf_config import model_config_from_hf
from pagemill.checkpoint.sentence_transformers import read_pooling_files
from pagemill.config.args import ServeArgs
from pagemill.config.facts import DeviceFacts
from pagemill.config.pooling import PoolingConfig, PoolingFiles, resolve_pooling
from pagemill.config.resolve import resolve
from pagemill.errors import ConfigError, ModelLoadError

CPU = DeviceFacts("cpu", "CPU", 8 * 2**30, 2, False)
GPU = DeviceFacts("cuda", "GPU", 40 * 2**30, 8, True, (9, 0))
NUMBERS = {
    "vocab_size": 50,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 514,
    "pad_token_id": 1,
}


def pooling_of(
    architecture: str, asked: str = "auto", files: PoolingFiles | None = None, **keys: Any
) -> PoolingConfig | None:
    model = model_config_from_hf({"architectures": [architecture], **NUMBERS, **keys})
    return resolve_pooling(asked, model, files)


@pytest.mark.parametrize(
    ("architecture", "task", "method"),
    [
        ("BertModel", "embed", "cls"),
        ("XLMRobertaModel", "embed", "cls"),
        ("BertForMaskedLM", "embed", "cls"),
        ("Qwen3Model", "embed", "last"),
        ("LlamaModel", "embed", "last"),
        ("BertForSequenceClassification", "classify", "cls"),
        ("Qwen2ForSequenceClassification", "classify", "last"),
    ],
)
def test_the_architecture_decides(architecture: str, task: str, method: str) -> None:
    found = pooling_of(architecture)
    assert found is not None
    assert (found.task, found.method) == (task, method)
    assert found.cached == found.method.startswith("last")


def test_a_decoder_with_a_vocabulary_generates_unless_told_otherwise() -> None:
    files = PoolingFiles("last", normalize=False)
    assert pooling_of("LlamaForCausalLM") is None
    assert pooling_of("LlamaForCausalLM", "generate", files) is None
    assert pooling_of("LlamaForCausalLM", "pooling") is not None
    told = pooling_of("LlamaForCausalLM", files=files)
    assert told is not None and not told.normalize
    with pytest.raises(ConfigError, match="BertModel has no vocabulary"):
        pooling_of("BertModel", "generate")


@pytest.mark.parametrize(
    ("keys", "activation"),
    [
        ({"id2label": {"0": "x"}}, "sigmoid"),
        ({}, "softmax"),
        ({"problem_type": "regression"}, "none"),
        ({"problem_type": "multi_label_classification"}, "sigmoid"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "none"),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.Sigmoid"}},
            "sigmoid",
        ),
    ],
)
def test_activations_of_classifiers(keys: dict[str, Any], activation: str) -> None:
    found = pooling_of("BertForSequenceClassification", **keys)
    assert found is not None and found.activation == activation


def test_an_unknown_activation_is_not_guessed() -> None:
    with pytest.raises(ConfigError, match="'Tanh' is not supported"):
        key = {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh"}
        pooling_of("BertForSequenceClassification", **key)


def test_roberta_counts_positions_from_behind_its_padding() -> None:
    model = model_config_from_hf({"architectures": ["RobertaModel"], **NUMBERS})
    assert model.max_position == 512
    assert model.encoder is not None and model.encoder.position_offset == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "relative_key"}, "only absolute"),
        ({"num_attention_heads": 3}, "not a multiple"),
        ({"is_decoder": True}, "is_decoder"),
    ],
)
def test_encoders_that_are_not_supported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        model_config_from_hf({"architectures": ["BertModel"], **NUMBERS, **changes})


def test_settings_of_an_encoder() -> None:
    model = model_config_from_hf({"architectures": ["BertModel"], **NUMBERS})
    pooling = resolve_pooling("auto", model, None)
    config = resolve(ServeArgs(model="m"), model, CPU, pooling=pooling)
    assert (config.block_size, config.prefix_caching, config.cuda_graphs) == (514, False, False)
    assert config.max_num_batched_tokens >= config.max_model_len
    on_gpu = resolve(ServeArgs(model="m"), model, GPU, pooling=pooling)
    assert on_gpu.dtype == "float16"
    with pytest.raises(ConfigError, match="--speculative"):
        resolve(ServeArgs(model="m", speculative="ngram"), model, CPU, pooling=pooling)
    with pytest.raises(ConfigError, match="--deterministic"):
        resolve(ServeArgs(model="m", deterministic=True), model, CPU, pooling=pooling)


def write(folder: Path, pooling: dict[str, Any], *kinds: str) -> None:
    modules = [{"path": kind, "type": f"sentence_transformers.models.{kind}"} for kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "Pooling").mkdir()
    (folder / "Pooling/config.json").write_text(json.dumps(pooling))


def test_modules_of_sentence_transformers(tmp_path: Path) -> None:
    assert read_pooling_files(tmp_path) is None
    flags = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    write(tmp_path, flags, "Transformer", "Pooling", "Normalize")
    assert read_pooling_files(tmp_path) == PoolingFiles("mean", normalize=True)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 99}')
    assert read_pooling_files(tmp_path) == PoolingFiles("mean", normalize=True, max_length=99)


@pytest.mark.parametrize(
    ("pooling", "kinds", "message"),
    [
        ({"pooling_mode_mean_tokens": True}, ("Transformer", "Pooling", "Dense"), "Dense"),
        ({"pooling_mode_max_tokens": True}, ("Transformer", "Pooling"), "max_tokens"),
        (
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            ("Transformer", "Pooling"),
            "mean_tokens, pooling_mode_cls_token",
        ),
        ({}, ("Transformer", "Pooling", "../.."), "in the model's folder"),
    ],
)
def test_modules_that_are_not_supported(
    pooling: dict[str, Any], kinds: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    write(tmp_path, pooling, *kinds)
    with pytest.raises(ModelLoadError, match=message):
        read_pooling_files(tmp_path)
