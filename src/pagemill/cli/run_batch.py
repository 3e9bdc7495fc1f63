"""`pagemill run-batch`: check the input, go on from the output that is there, run the rest."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Iterator, Sequence
from io import BufferedReader
from pathlib import Path

from pagemill.api.app import BATCH_URLS
from pagemill.api.batch.journal import STAMP_LENGTH, Journal, JournalError
from pagemill.api.batch.lines import BadLine, Line, LineReader, Scan, scan
from pagemill.cli.batch_service import BatchService, Tally
from pagemill.cli.console import Console
from pagemill.cli.logs import configure_logging
from pagemill.cli.parser import BatchArgs
from pagemill.cli.settings import api_settings
from pagemill.cli.stopping import INTERRUPTED
from pagemill.config.args import ServeArgs
from pagemill.config.facts import detect
from pagemill.engine.launch import EngineProcess
from pagemill.errors import ConfigError
from pagemill.prepare import prepare


def run_batch(
    args: ServeArgs, batch: BatchArgs, *, engine_command: Sequence[str] | None = None
) -> int:
    """Run until every line has its answer; returns 0 then, and `INTERRUPTED` after a signal.

    `engine_command` starts another engine process than PageMill's own, for tests.

    Raises ConfigError for an input that cannot be used, JournalError for an output that cannot be
    written, ModelLoadError and EngineDeadError as `serve` does. What was written stays.
    """
    configure_logging("warning", as_json=False)
    console = Console(sys.stderr)
    with _open(batch.input) as file:
        reader = LineReader(BATCH_URLS, args.max_body_bytes)
        found = scan(file, reader)
        _check(found, batch)
        plan = prepare(args, detect(args.device))
        journal = Journal(batch.output, _stamp(found, plan.config.served_model_names[0]))
        tally = Tally(found.num_lines, len(journal.done.lines), journal.done.num_failed)
        try:
            if tally.num_left:
                console.line(plan.summary)
                engine = EngineProcess.start(plan.config, command=engine_command)
                settings = api_settings(args, plan.config, ())
                service = BatchService(plan, settings, engine, journal, tally, console)
                _run(service, reader.read(file), batch.max_inflight)
            journal.sync()
        except JournalError as error:
            raise JournalError(f"{error}; the same command goes on from here") from None
        finally:
            journal.close()
    print(f"{tally.summary()} -> {batch.output}")
    if not tally.num_left:
        return 0
    console.line(f"stopped with {tally.num_left:,} requests left; the same command goes on")
    return INTERRUPTED


def _run(service: BatchService, lines: Iterator[Line], max_inflight: int) -> None:
    import uvloop

    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(service.run(lines, max_inflight))
    finally:
        service.engine.stop()


def _open(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise ConfigError(f"--input {path} cannot be read: {error.strerror}") from None


def _check(found: Scan, batch: BatchArgs) -> None:
    """Refuse what must not be begun. Raises ConfigError."""
    if batch.output.exists() and batch.output.samefile(batch.input):
        raise ConfigError("--output is the same file as --input")
    if not found.num_lines:
        raise ConfigError(f"--input {batch.input} holds no request")
    if found.duplicates:
        raise ConfigError(
            f"--input {batch.input} has custom_ids twice, in lines "
            + ", ".join(f"{a} and {b} ({name!r})" for name, a, b in found.duplicates)
        )
    if batch.strict and found.num_bad:
        raise ConfigError(
            f"--input {batch.input} has {found.num_bad} malformed lines: "
            + "; ".join(map(_described, found.bad))
        )


def _described(line: BadLine) -> str:
    return f"line {line.number}: {line.message}"


def _stamp(found: Scan, model: str) -> str:
    """Names the run: answers to another input, or of another model, must not be mixed with it."""
    return hashlib.sha256(found.digest + model.encode()).hexdigest()[:STAMP_LENGTH]
