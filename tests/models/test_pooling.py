"""Models that pool give transformers' vectors, packed with others of any length."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import Unigram
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing

from models.pooling_harness import ENCODER_SIZES, Float32, engine_of, pool, save_tiny, texts
from pagemill import LLM
from pagemill.errors import ConfigError, ModelLoadError, WrongModel
from pagemill.frontend.outputs import Prompt
from pagemill.params import PoolingParams

LENGTHS = (7, 30, 1, 30, 7, 64, 2, 7, 119)
ENCODERS = {
    "bert": ("BertConfig", {}),
    "bert-tanh": ("BertConfig", {"hidden_act": "gelu_new", "num_attention_heads": 2}),
    "roberta": ("RobertaConfig", {"type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0}),
    "xlm-roberta": (
        "XLMRobertaConfig",
        {"type_vocab_size": 1, "pad_token_id": 1, "max_position_embeddings": 130},
    ),
}


def hidden_states(model: Any, prompt: Prompt) -> Float32:
    """transformers' last hidden states, [tokens, hidden]."""
    ids = prompt.token_ids
    inputs = {"input_ids": torch.tensor([ids])}
    if prompt.second_text:
        types = [int(i >= prompt.second_text) for i in range(len(ids))]
        inputs["token_type_ids"] = torch.tensor([types])
    with torch.no_grad():
        result: Float32 = model(**inputs).last_hidden_state[0].numpy()
    return result


def logits(model: Any, prompt: Prompt) -> Float32:
    inputs = {"input_ids": torch.tensor([prompt.token_ids])}
    if prompt.second_text:
        types = [int(i >= prompt.second_text) for i in range(len(prompt.token_ids))]
        inputs["token_type_ids"] = torch.tensor([types])
    with torch.no_grad():
        result: Float32 = model(**inputs).logits[0].numpy()
    return result


def unit(vector: Float32) -> Float32:
    return vector / np.linalg.norm(vector)


def write_modules(folder: Path, mode: str, *, normalize: bool, max_length: int = 0) -> None:
    """The files of sentence-transformers."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {
            "idx": i,
            "path": f"{i}_{kind}" if i else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps({f"pooling_mode_{mode}": True}))
    if max_length:
        lengths = {"max_seq_length": max_length, "do_lower_case": False}
        (folder / "sentence_bert_config.json").write_text(json.dumps(lengths))


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str, tmp_path: Path) -> None:
    config_class, keys = ENCODERS[name]
    model = save_tiny(tmp_path, config_class, "AutoModel", ENCODER_SIZES, **keys)
    prompts = texts(LENGTHS)
    expected = [hidden_states(model, prompt) for prompt in prompts]
    with engine_of(tmp_path, max_num_batched_tokens=128) as engine:
        assert engine.info.cache_bytes == 0
        first = pool(engine, prompts, PoolingParams(use_activation=False))
        unit_length = pool(engine, prompts)
        by_token = pool(engine, prompts, PoolingParams(task="token_embed", use_activation=False))
    for i, states in enumerate(expected):
        np.testing.assert_allclose(first[i], states[0], atol=2e-5)
        np.testing.assert_allclose(unit_length[i], unit(states[0]), atol=1e-5)
        np.testing.assert_allclose(by_token[i], states, atol=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 0.01), ("float32", 5e-3)])
def test_encoders_and_decoders_on_a_gpu(dtype: str, tolerance: float, tmp_path: Path) -> None:
    encoder, decoder = tmp_path / "encoder", tmp_path / "decoder"
    bert = save_tiny(encoder, "BertConfig", "AutoModel", ENCODER_SIZES)
    qwen = save_tiny(decoder, "Qwen3Config", "AutoModel", head_dim=32)
    prompts = texts(LENGTHS)
    for folder, model, token in ((encoder, bert, 0), (decoder, qwen, -1)):
        with engine_of(folder, device="cuda", dtype=dtype, max_num_batched_tokens=128) as engine:
            found = pool(engine, prompts)
        for vector, prompt in zip(found, prompts, strict=True):
            expected = unit(hidden_states(model, prompt)[token])
            assert float(vector @ expected) > 1 - tolerance


def test_mean_over_tokens_and_the_length_of_sentence_transformers(tmp_path: Path) -> None:
    model = save_tiny(tmp_path, "BertConfig", "AutoModel", ENCODER_SIZES)
    write_modules(tmp_path, "mean_tokens", normalize=False, max_length=64)
    prompts = texts((5, 64, 9, 5))
    with engine_of(tmp_path) as engine:
        assert engine.info.max_model_len == 64
        vectors = pool(engine, prompts)
    for vector, prompt in zip(vectors, prompts, strict=True):
        np.testing.assert_allclose(vector, hidden_states(model, prompt).mean(0), atol=2e-5)


def test_pairs_tell_the_second_text(tmp_path: Path) -> None:
    keys = {"num_labels": 1}
    model = save_tiny(
        tmp_path, "BertConfig", "AutoModelForSequenceClassification", ENCODER_SIZES, **keys
    )
    prompts = texts((12, 12, 20))
    prompts[0].second_text, prompts[2].second_text = 5, 11
    with engine_of(tmp_path) as engine:
        assert engine.info.pooling is not None and engine.info.pooling.scores_pairs
        raw = pool(engine, prompts, PoolingParams(use_activation=False))
        scores = pool(engine, prompts)
    for i, prompt in enumerate(prompts):
        expected = logits(model, prompt)
        np.testing.assert_allclose(raw[i], expected, atol=2e-5)
        np.testing.assert_allclose(scores[i], 1 / (1 + np.exp(-expected)), atol=1e-5)
    same = Prompt(prompts[0].token_ids)
    assert not np.allclose(logits(model, same), logits(model, prompts[0]), atol=1e-3)


def test_a_cross_encoder_with_a_unigram_tokenizer_scores_texts(tmp_path: Path) -> None:
    keys = {"type_vocab_size": 1, "pad_token_id": 1, "num_labels": 1}
    auto = "AutoModelForSequenceClassification"
    model = save_tiny(tmp_path, "XLMRobertaConfig", auto, ENCODER_SIZES, **keys)
    tokenizer = unigram_tokenizer()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    pairs = [("river bank", "cold river"), ("river bank", "bank")]
    llm = LLM(str(tmp_path), dtype="float32")
    outputs = llm.score("river bank", ["cold river", "bank"], use_tqdm=False)
    for output, pair in zip(outputs, pairs, strict=True):
        ids = tokenizer.encode(*pair).ids
        assert output.prompt_token_ids == ids and ids.count(2) == 3
        expected = 1 / (1 + np.exp(-logits(model, Prompt(ids))))
        assert output.outputs.score == pytest.approx(float(expected[0]), abs=1e-5)
    llm.shutdown()


def unigram_tokenizer() -> Tokenizer:
    """As XLM-R's, with few words."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "\u2581river", "\u2581bank", "\u2581cold", "\u2581"]
    made = Tokenizer(Unigram([(word, -float(i)) for i, word in enumerate(words)], unk_id=3))
    made.pre_tokenizer = Metaspace()
    made.decoder = MetaspaceDecoder()
    made.add_special_tokens(words[:4])
    made.post_processor = TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return made


@pytest.mark.parametrize(
    ("config_class", "keys"),
    [
        ("XLMRobertaConfig", {"type_vocab_size": 1, "pad_token_id": 1}),
        ("LlamaConfig", {}),
        ("Qwen3Config", {"head_dim": 32, "tie_word_embeddings": True}),
    ],
)
def test_classifiers(config_class: str, keys: dict[str, Any], tmp_path: Path) -> None:
    names = {0: "bad", 1: "fair", 2: "good"}
    sizes = {"id2label": names, "label2id": {v: k for k, v in names.items()}}
    model = save_tiny(tmp_path, config_class, "AutoModelForSequenceClassification", **keys, **sizes)
    prompts = texts((9, 40, 3))
    with engine_of(tmp_path, max_num_batched_tokens=128) as engine:
        assert engine.info.pooling is not None
        assert engine.info.pooling.labels == ("bad", "fair", "good")
        found = pool(engine, prompts)
    for probabilities, prompt in zip(found, prompts, strict=True):
        powers = np.exp(logits(model, prompt))
        np.testing.assert_allclose(probabilities, powers / powers.sum(), atol=2e-5)


@pytest.mark.parametrize("config_class", ["Qwen2Config", "Qwen3Config", "MistralConfig"])
def test_decoders_by_their_last_token(config_class: str, tmp_path: Path) -> None:
    """In chunks beside others, and again with the prefix cached."""
    keys: dict[str, Any] = {"head_dim": 32} if config_class == "Qwen3Config" else {}
    model = save_tiny(tmp_path, config_class, "AutoModel", **keys)
    prompts = texts((70, 5, 33, 1))
    expected = [hidden_states(model, prompt) for prompt in prompts]
    with engine_of(tmp_path, max_num_batched_tokens=32, max_num_seqs=8) as engine:
        once, cached = pool(engine, prompts), engine.pool(prompts)
        by_token = pool(engine, prompts, PoolingParams(task="token_embed", use_activation=False))
    assert [output.num_cached_tokens for output in cached] == [64, 0, 32, 0]
    for i, states in enumerate(expected):
        np.testing.assert_allclose(once[i], unit(states[-1]), atol=1e-5)
        np.testing.assert_allclose(cached[i].values, unit(states[-1]), atol=1e-5)
        np.testing.assert_allclose(by_token[i], states, atol=5e-5)


def test_a_generating_model_pools_when_asked_to(tmp_path: Path) -> None:
    model = save_tiny(tmp_path, "Qwen3Config", "AutoModelForCausalLM", head_dim=32)
    [prompt] = texts((20,))
    with engine_of(tmp_path) as engine:
        assert engine.info.pooling is None
    with engine_of(tmp_path, runner="pooling") as engine:
        [vector] = pool(engine, [prompt])
    np.testing.assert_allclose(vector, unit(hidden_states(model.model, prompt)[-1]), atol=1e-5)
    write_modules(tmp_path, "lasttoken", normalize=True)
    with engine_of(tmp_path) as engine:  # as Qwen3-Embedding's files are
        np.testing.assert_allclose(pool(engine, [prompt])[0], vector, atol=1e-6)


def test_shorter_embeddings_where_the_model_allows(tmp_path: Path) -> None:
    save_tiny(tmp_path, "BertConfig", "AutoModel", ENCODER_SIZES, matryoshka_dimensions=[16, 64])
    prompts = texts((6, 8))
    with engine_of(tmp_path) as engine:
        whole = pool(engine, prompts)
        short = pool(engine, prompts, PoolingParams(dimensions=16))
    for own, cut in zip(whole, short, strict=True):
        np.testing.assert_allclose(cut, unit(own[:16]), atol=1e-6)


def test_offline_calls_take_more_prompts_than_a_server_would_queue(tmp_path: Path) -> None:
    save_tiny(tmp_path, "BertConfig", "AutoModel", ENCODER_SIZES)
    llm = LLM(str(tmp_path), skip_tokenizer_init=True, max_num_seqs=64)
    outputs = llm.encode([[5, i % 100 + 3] for i in range(1300)], use_tqdm=False)
    assert len(outputs) == 1300
    np.testing.assert_allclose(outputs[7].outputs.data, outputs[107].outputs.data, atol=1e-6)
    with pytest.raises(WrongModel, match="no text"):
        llm.generate([[5]])
    llm.shutdown()


def test_what_cannot_be_pooled_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, "BertConfig", "AutoModel", ENCODER_SIZES)
    with pytest.raises(ConfigError, match="no vocabulary"), engine_of(tmp_path, runner="generate"):
        pass
    with (
        pytest.raises(ConfigError, match="one step"),
        engine_of(tmp_path, max_num_batched_tokens=99),
    ):
        pass
    write_modules(tmp_path, "max_tokens", normalize=True)
    with pytest.raises(ModelLoadError, match="pooling_mode_max_tokens"), engine_of(tmp_path):
        pass
