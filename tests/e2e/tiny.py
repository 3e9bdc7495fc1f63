"""A model that has random weights and answers within milliseconds."""

from __future__ import annotations

import json
from pathlib import Path

from unit.checkpoint.checkpoint_files import LLAMA_CONFIG, tokenizer_json

TINY = {"hidden_size": 64, "num_attention_heads": 4, "torch_dtype": "float32"}


def tiny_flags(folder: Path) -> list[str]:
    """Write the model's files; the arguments that take it."""
    model = folder / "tiny"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(LLAMA_CONFIG | TINY))
    (model / "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    return [str(model), "--load-format", "dummy", "--max-num-seqs", "4"]
