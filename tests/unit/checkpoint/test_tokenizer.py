"""Tokenizers from tokenizer.json and from GGUF vocabularies.

`golden_tokens.json` holds what transformers' own conversion of the two GGUF files gives (for
SmolLM2 with single digits split first, as its published tokenizer does). Of Gemma's vocabulary it
holds, in order, the tokens that occur in the texts; no others can take part in a merge.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pagemill.checkpoint.gguf_tokenizer import build_tokenizer
from pagemill.checkpoint.open import open_checkpoint
from pagemill.checkpoint.source import resolve_model
from pagemill.checkpoint.tokenizer_spec import TokenizerInfo, load_tokenizer, load_tokenizer_info
from pagemill.checkpoint.word_splitting import splitting
from pagemill.errors import ModelLoadError
from unit.checkpoint.checkpoint_files import WORDS, tiny_repo, tokenizer_json
from unit.checkpoint.gguf_writer import gguf_bytes, metadata, tensors

GOLDEN = json.loads((Path(__file__).parent / "golden_tokens.json").read_text())
HERE = Path("here.gguf")


def gemma_metadata() -> dict[str, Any]:
    tokens = GOLDEN["gemma3_tokens"]
    types = np.ones(len(tokens), np.int32)
    for kind, name in ((3, "control"), (4, "user_defined"), (6, "bytes")):
        types[GOLDEN[f"gemma3_{name}"]] = kind
    return {
        "general.architecture": "gemma3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": tokens.index("<bos>"),
        "tokenizer.ggml.eos_token_id": tokens.index("<eos>"),
        "tokenizer.ggml.unknown_token_id": tokens.index("<unk>"),
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_space_prefix": False,
    }


def test_gemma_tokens_are_those_of_transformers() -> None:
    tokenizer = build_tokenizer(gemma_metadata(), HERE)
    assert len(GOLDEN["texts"]) > 60
    for text, expected in zip(GOLDEN["texts"], GOLDEN["gemma3"], strict=True):
        assert tokenizer.encode(text, add_special_tokens=False).ids == expected, text
    assert tokenizer.encode("a").tokens == ["<bos>", "a"]


def test_smollm2_tokens_are_those_of_transformers() -> None:
    checkpoint = open_checkpoint(resolve_model(None).path)
    checkpoint.model_config()
    started = time.process_time()
    info = load_tokenizer_info(checkpoint)
    assert time.process_time() - started < 10.0  # 0.15 s on an idle core
    for text, expected in zip(GOLDEN["texts"], GOLDEN["smollm2"], strict=True):
        assert info.tokenizer.encode(text).ids == expected, text
        assert info.tokenizer.decode(expected, skip_special_tokens=False) == text
    assert (info.bos_token, info.bos_token_id) == ("<|im_start|>", 1)
    assert (info.eos_token, info.eos_token_id) == ("<|im_end|>", 2)
    assert (info.add_bos, info.add_eos) == (False, False)
    assert info.special_tokens["unk_token"] == "<|endoftext|>"
    assert info.special_ids == frozenset(range(17))


def test_loading_needs_neither_torch_nor_transformers() -> None:
    script = (
        "import sys\n"
        "from pagemill.checkpoint.open import open_checkpoint\n"
        "from pagemill.checkpoint.source import resolve_model\n"
        "from pagemill.checkpoint.chat_template import ChatTemplate\n"
        "assert not {'tokenizers', 'jinja2', 'huggingface_hub'} & set(sys.modules)\n"
        "from pagemill.checkpoint.tokenizer_spec import load_tokenizer_info\n"
        "checkpoint = open_checkpoint(resolve_model(None).path)\n"
        "checkpoint.model_config(); load_tokenizer_info(checkpoint)\n"
        "ChatTemplate(checkpoint.chat_template()).render([{'role': 'user', 'content': 'x'}])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def sentencepiece(**extra: Any) -> dict[str, Any]:
    """Llama 2's kind: scores, a space put before the text."""
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "▁a", "ab", "▁ab"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([2, 3, 3, 6, 1, 1, 1, 1, 1, 1], np.int32),
        "tokenizer.ggml.scores": np.array([0, 0, 0, 0, -9, -8, -7, -2, -1, -3], np.float32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **extra,
    }


def test_sentencepiece_merges_by_score_and_begins_with_bos_and_a_space() -> None:
    tokenizer = build_tokenizer(sentencepiece(), HERE)
    assert tokenizer.encode("ab a").tokens == ["<s>", "▁ab", "▁a"]
    assert tokenizer.encode("aab").tokens == ["<s>", "▁a", "ab"]
    assert tokenizer.encode("a\n").tokens == ["<s>", "▁a", "<0x0A>"]
    assert tokenizer.encode("z").tokens == ["<s>", "▁", "<unk>"]
    assert tokenizer.decode([9, 7]) == "ab a"
    bare = build_tokenizer(
        sentencepiece(
            **{"tokenizer.ggml.add_bos_token": False, "tokenizer.ggml.add_eos_token": True}
        ),
        HERE,
    )
    assert bare.encode("a").tokens == ["▁a", "</s>"]


def test_sentencepiece_without_scores_is_a_load_error() -> None:
    with pytest.raises(ModelLoadError, match=r"here\.gguf: its tokenizer has no scores"):
        build_tokenizer(sentencepiece(**{"tokenizer.ggml.scores": None}), HERE)


def test_control_tokens_stay_whole_and_are_special(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes(metadata(tokenizer__ggml__add_bos_token=True), tensors()))
    info = load_tokenizer_info(open_checkpoint(path))
    assert info.tokenizer.encode("ab</s>b").tokens == ["<s>", "ab", "</s>", "b"]
    assert info.special_ids == {0, 1}
    assert (info.add_bos, info.add_eos, info.pad_token) == (True, False, None)
    assert load_tokenizer(open_checkpoint(path)).decode([4, 1, 3]) == "abb"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("smollm", "a 12", ["a", "Ġ", "1", "2"]),
        ("gpt-2", "a 12", ["a", "Ġ12"]),
        ("llama-bpe", "12345 I'LL", ["123", "45", "ĠI", "'LL"]),
        ("qwen2", "123 I'll", ["1", "2", "3", "ĠI", "'ll"]),
        ("tekken", "HelloWorld 12", ["Hello", "World", "Ġ", "1", "2"]),
    ],
)
def test_words_are_split_by_name(name: str, text: str, words: list[str]) -> None:
    from tokenizers import Tokenizer, models

    from pagemill.checkpoint.word_splitting import configure_splitting

    tokenizer = Tokenizer(models.BPE())
    rules = splitting(name)
    assert rules is not None
    configure_splitting(tokenizer, rules)
    assert [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(text)] == words


def test_qwen2_splits_and_normalises_as_transformers_does() -> None:
    from transformers import Qwen2Tokenizer

    from pagemill.checkpoint.word_splitting import configure_splitting

    theirs = Qwen2Tokenizer().backend_tokenizer
    ours = type(theirs)(theirs.model)
    rules = splitting("qwen2")
    assert rules is not None
    configure_splitting(ours, rules)
    for text in GOLDEN["texts"]:
        normal = ours.normalizer.normalize_str(text)
        assert normal == theirs.normalizer.normalize_str(text)
        assert ours.pre_tokenizer.pre_tokenize_str(normal) == (
            theirs.pre_tokenizer.pre_tokenize_str(normal)
        )


def load_folder(tmp_path: Path, tokenizer: Any, config: dict[str, Any]) -> TokenizerInfo:
    for name, content in tiny_repo().items():
        if "/" not in name:
            (tmp_path / name).write_bytes(content)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer_info(open_checkpoint(tmp_path))


ROLES = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}}


def test_bos_is_added_where_only_the_configuration_says_so(tmp_path: Path) -> None:
    info = load_folder(tmp_path, tokenizer_json(), ROLES | {"add_bos_token": True})
    assert info.tokenizer.encode("ab").tokens == ["<s>", "ab"]
    assert (info.add_bos, info.add_eos) == (True, False)
    assert (info.bos_token_id, info.eos_token_id) == (1, 2)
    assert info.special_tokens == {"bos_token": "<s>", "eos_token": "</s>"}
    info = load_folder(tmp_path, tokenizer_json(), ROLES)
    assert info.tokenizer.encode("ab").tokens == ["ab"]
    assert not info.add_bos


def test_the_post_processor_of_the_file_wins(tmp_path: Path) -> None:
    processor = {
        "type": "TemplateProcessing",
        "single": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "</s>", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"</s>": {"id": "</s>", "ids": [2], "tokens": ["</s>"]}},
    }
    given = tokenizer_json(post_processor=processor)
    info = load_folder(tmp_path, given, ROLES | {"add_bos_token": True})
    assert info.tokenizer.encode("ab").tokens == ["ab", "</s>"]
    assert (info.add_bos, info.add_eos) == (False, True)


def test_tokens_that_only_the_configuration_lists_are_added(tmp_path: Path) -> None:
    listed = {
        "6": {"content": "<|tool|>", "special": True},
        "3": {"content": "a", "special": False},
    }
    given = tokenizer_json(added_tokens=[])
    info = load_folder(tmp_path, given, ROLES | {"added_tokens_decoder": listed})
    assert info.tokenizer.encode("b<|tool|></s>").ids == [WORDS.index("b"), 6, 2]
    assert info.special_ids == {1, 2, 6}


def test_truncation_and_padding_of_the_file_are_undone(tmp_path: Path) -> None:
    limits = {
        "truncation": {
            "max_length": 1,
            "strategy": "LongestFirst",
            "stride": 0,
            "direction": "Right",
        },
        "padding": {
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<unk>",
        },
    }
    info = load_folder(tmp_path, tokenizer_json(**limits), {})
    assert info.tokenizer.encode("abab").tokens == ["ab", "ab"]


@pytest.mark.parametrize("content", [{}, [], {"version": "1.0", "model": {"type": "Nothing"}}])
def test_a_broken_tokenizer_is_a_load_error(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ModelLoadError, match=r"tokenizer\.json: not a usable tokenizer"):
        load_folder(tmp_path, content, {})


def test_a_missing_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelLoadError, match=r"no tokenizer\.json; convert its tokenizer"):
        load_tokenizer(open_checkpoint(tmp_path))
