"""schemathesis over the OpenAPI document: no 5xx, and no answer that the document does not name.

    python tests/fuzz/openapi.py --seconds 300 --seed 7       the application with a fake engine
    python tests/fuzz/openapi.py --url http://127.0.0.1:8000  a running server

A running server needs a small --max-model-len (256, say): many a case names no max_tokens, and then
a model fills its context. `--seconds` is looked at between cases only; one may take up to a minute.

Each case is what schemathesis makes of the document, valid or not, as it is or as some of its
fields in an otherwise good request, so that the parts behind the first check are reached, too.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from api.fakes import FakeClient, make_context, pooling_client
from pagemill.api.app import build_app
from pagemill.api.context import ApiSettings
from pagemill.config.pooling import PoolingConfig

ADMIN_KEY = "admin"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
USER = [{"role": "user", "content": "hi"}]
_PAIRS = {"text_1": "x", "text_2": ["y", "z"]}
_RERANK = ("/rerank", "/v1/rerank", "/v2/rerank")
VECTORS = {"/v1/embeddings", "/pooling", "/classify", "/score", "/v1/score", *_RERANK}
POOLINGS = (
    PoolingConfig(task="embed", method="mean", width=4, dimensions=(2, 4)),
    PoolingConfig(task="classify", method="cls", width=1, labels=("LABEL_0",)),
)
GOOD: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "x", "max_tokens": 2},
    "/v1/chat/completions": {"messages": USER, "max_tokens": 2},
    "/v1/responses": {"input": "x", "max_output_tokens": 16},
    "/v1/messages": {"model": None, "messages": USER, "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": USER},
    "/tokenize": {"prompt": "x"},
    "/detokenize": {"tokens": [1]},
    "/v1/embeddings": {"input": "x"},
    "/pooling": {"input": "x"},
    "/classify": {"input": "x"},
    "/score": _PAIRS,
    "/v1/score": _PAIRS,
    **{path: {"query": "x", "documents": ["y", "z"]} for path in _RERANK},
}
BAD_WHILE_FUZZED = {"stream", "model", "background"}  # left out of most cases
MAX_FIELDS = 3


@dataclass
class Tally:
    """How many answers there were of each endpoint and status, and what was wrong."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    @property
    def labels(self) -> set[str]:
        return {label for label, _ in self.answers}

    def statuses(self) -> Counter[int]:
        total: Counter[int] = Counter()
        for (_, status), count in self.answers.items():
            total[status] += count
        return total


def fake_schema(pooling: PoolingConfig | None = None) -> Any:
    """The document of an application with a fake engine, whose cases call that application."""
    settings_ = ApiSettings(allowed_hosts=(), admin_keys=(ADMIN_KEY,))
    client = FakeClient() if pooling is None else pooling_client(pooling)
    app = build_app(make_context(client, settings_))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def fuzz(
    schema: Any,
    *,
    examples: int,
    seed_number: int,
    key: str = ADMIN_KEY,
    seconds: float = float("inf"),
    paths: Collection[str] | None = None,
    tally: Tally | None = None,
) -> Tally:
    """Up to `examples` cases of each kind for every endpoint, for about `seconds` at most;
    of some paths only, if `paths` names them."""
    tally = tally or Tally()
    deadline = time.monotonic() + seconds
    for operation in (result.ok() for result in schema.get_all_operations()):
        if paths is not None and operation.path not in paths:
            continue
        for mode in GenerationMode:
            _fuzz_operation(operation, mode, examples, seed_number, key, tally, deadline)
    return tally


def _fuzz_operation(
    operation: Any,
    mode: GenerationMode,
    examples: int,
    seed_number: int,
    key: str,
    tally: Tally,
    deadline: float,
) -> None:
    @seed(seed_number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(operation.as_strategy(generation_mode=mode), st.integers(0, 2**32))
    def run(case: Case, choice: int) -> None:
        if time.monotonic() > deadline and operation.label in tally.labels:
            return
        _embed(case, random.Random(choice))
        try:
            response = case.call(headers={"authorization": f"Bearer {key}"}, timeout=60)
        except (ValueError, UnicodeError):
            return  # cannot be sent at all
        is_stream = "text/event-stream" in str(response.headers.get("content-type"))
        checks = [c for c in CHECKS if not is_stream or c is not response_schema_conformance]
        tally.answers[operation.label, response.status_code] += 1
        try:
            case.validate_response(response, checks=checks)
        except FailureGroup as group:
            found = "; ".join(str(error) for error in group.exceptions)
            tally.wrong.append(f"{operation.label} {case.body!r:.300}: {found:.600}")

    try:
        run()
    except Unsatisfiable:
        return  # nothing can be wrong with such a request


def _embed(case: Case, rng: random.Random) -> None:
    """Three cases of four become a good request with up to three fields of the case."""
    good = GOOD.get(case.operation.path)
    body = case.body
    if good is None or not isinstance(body, dict) or not body or rng.random() < 0.25:
        return
    names = sorted(body, key=str)
    if rng.random() < 0.8:
        names = [name for name in names if name not in BAD_WHILE_FUZZED]
    chosen = rng.sample(names, min(len(names), rng.randint(1, MAX_FIELDS)))
    case.body = {**good, **{name: body[name] for name in chosen}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--examples", type=int, default=2000, help="of each kind and endpoint")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--url", help="a running server instead of the fake one")
    parser.add_argument("--key", default=ADMIN_KEY, help="its admin key")
    args = parser.parse_args()
    options = {"examples": args.examples, "seed_number": args.seed, "seconds": args.seconds}
    schema = fake_schema()
    if args.url:
        headers = {"authorization": f"Bearer {args.key}"}
        schema = schemathesis.openapi.from_url(f"{args.url}/openapi.json", headers=headers)
    tally = fuzz(schema, key=args.key, **options)
    for pooling in () if args.url else POOLINGS:
        fuzz(fake_schema(pooling), paths=VECTORS, tally=tally, **options)
    sys.stdout.write(f"{dict(sorted(tally.statuses().items()))}\n")
    sys.stdout.writelines(f"{line}\n" for line in tally.wrong[:20])
    return 1 if tally.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
