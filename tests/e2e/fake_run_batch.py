"""`pagemill run-batch` over an engine without a model: step-ms, max-num-seqs and flags follow."""

from __future__ import annotations

import sys
from pathlib import Path

from pagemill.cli.parser import BatchArgs, parse, serve_args
from pagemill.cli.run_batch import run_batch
from pagemill.errors import PageMillError

FAKE_ENGINE = Path(__file__).parents[2] / "benchmarks" / "fake_engine.py"


def main() -> int:
    step_ms, max_num_seqs, *flags = sys.argv[1:]
    command = [sys.executable, str(FAKE_ENGINE), "--step-ms", step_ms]
    command += ["--max-num-seqs", max_num_seqs]
    parsed = parse(["run-batch", *flags])
    try:
        return run_batch(serve_args(parsed), BatchArgs.of(parsed), engine_command=command)
    except PageMillError as error:
        sys.stderr.write(f"pagemill: error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
