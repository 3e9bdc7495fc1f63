"""`pagemill serve`: resolve, start the engine process, answer HTTP, and end in good order."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from pagemill.cli.access import api_keys, check_exposure, check_tls
from pagemill.cli.console import Console
from pagemill.cli.listen import bind
from pagemill.cli.logs import configure_logging
from pagemill.config.args import ServeArgs
from pagemill.config.facts import detect
from pagemill.config.open_files import allow_many
from pagemill.config.resolve import frontend_workers


def serve(args: ServeArgs, *, engine_command: Sequence[str] | None = None) -> int:
    """Run a server until it is told to stop; returns 0 then.

    `engine_command` starts another engine process than PageMill's own, for tests.

    Raises ConfigError or ModelLoadError before anything is started, EngineDeadError when the
    engine cannot load or dies.
    """
    keys = api_keys(args, os.environ)
    check_exposure(args, keys)
    check_tls(args)
    if args.otlp_endpoint is not None:
        from pagemill.api.tracing import traces_url

        traces_url(args.otlp_endpoint)  # raises what is wrong with it
    configure_logging(args.log_level, as_json=args.json_logs)
    allow_many()
    console = Console(sys.stdout)
    device = detect(args.device)
    with ExitStack() as stack:
        listeners = bind(args.host, args.port, frontend_workers(args.frontend_workers, device))
        for listener in listeners:
            stack.enter_context(listener)
        # Only now, so that wrong settings and a taken port are known at once.
        from pagemill.cli.batching import Batching
        from pagemill.engine.launch import EngineProcess
        from pagemill.prepare import prepare

        batching = Batching(args)
        stack.callback(batching.close)

        plan = prepare(args, device)
        console.line(plan.summary)
        for remark in plan.remarks:
            console.line(f"note: {remark}")
        engine = EngineProcess.start(
            plan.config, num_clients=len(listeners), command=engine_command
        )
        try:
            import uvloop

            from pagemill.cli.service import Service

            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(Service(args, plan, engine, keys, console, batching).run(listeners))
        finally:
            engine.stop()
    return 0
