"""Compare a model served over HTTP with its golden file, for models too large for the tests.

    python tests/e2e/compare_golden.py gemma3 model.gguf

A golden file comes from make_golden.py. Prints each prompt's agreement; ends with code 1 when the
first differing token was not a tie (a gap of the two best logits below 1e-4).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from serving import golden_cases, serve

TIE = 1e-4


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("model")
    args = parser.parse_args()
    wrong = 0
    flags = (args.model, "--dtype", "float32")
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder), *flags) as server:
        server.wait_ready()
        client = server.client()
        for case in golden_cases(args.name):
            answer = client.completions.create(
                model=client.models.list().data[0].id,
                prompt=case["prompt"],
                max_tokens=len(case["output"]),
                temperature=0,
                extra_body={"return_token_ids": True},
            )
            tokens = answer.choices[0].model_extra["token_ids"]
            wrong += report(case["text"], case["output"], tokens, case["gaps"])
    sys.stdout.write(f"{wrong} of {len(golden_cases(args.name))} prompts differ\n")
    return 1 if wrong else 0


def report(text: str, expected: list[int], tokens: list[int], gaps: list[float]) -> bool:
    """Print one line; whether the outputs differ at more than a tie."""
    pairs = enumerate(zip(expected, tokens, strict=False))
    first = next((i for i, (want, got) in pairs if want != got), None)
    if first is None:
        same = len(tokens) == len(expected)
        sys.stdout.write(f"{len(tokens):3} tokens {'equal' if same else 'SHORT'}  {text[-40:]!r}\n")
        return not same
    sys.stdout.write(f"token {first} differs, gap {gaps[first]}  {text[-40:]!r}\n")
    return gaps[first] >= TIE


if __name__ == "__main__":
    sys.exit(main())
