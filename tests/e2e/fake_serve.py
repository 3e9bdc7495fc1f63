"""`pagemill serve` over an engine without a model: arguments are step-ms, max-num-seqs, flags."""

from __future__ import annotations

import sys
from pathlib import Path

from pagemill.cli.parser import parse, serve_args
from pagemill.cli.serve import serve
from pagemill.errors import PageMillError

FAKE_ENGINE = Path(__file__).parents[2] / "benchmarks" / "fake_engine.py"


def main() -> int:
    step_ms, max_num_seqs, *flags = sys.argv[1:]
    command = [sys.executable, str(FAKE_ENGINE), "--step-ms", step_ms]
    command += ["--max-num-seqs", max_num_seqs]
    try:
        return serve(serve_args(parse(["serve", *flags])), engine_command=command)
    except PageMillError as error:
        sys.stderr.write(f"pagemill: error: {error}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
