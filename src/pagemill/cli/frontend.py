"""What every process that answers HTTP sets up: context, text side, memory."""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

from pagemill.api.admission import Admission
from pagemill.api.batch.storage import BatchStorage
from pagemill.api.context import ServerContext, Tracer
from pagemill.api.peers import NoPeers, Peers
from pagemill.cli.settings import api_settings
from pagemill.config.args import ServeArgs
from pagemill.frontend.board import Board
from pagemill.frontend.client import ZmqEngineClient
from pagemill.frontend.text_side import TextSide, load_text_side
from pagemill.metrics.metrics import Metrics
from pagemill.prepare import Plan

GC_THRESHOLDS = (20_000, 20, 50)


def make_context(
    args: ServeArgs,
    plan: Plan,
    keys: tuple[str, ...],
    client: ZmqEngineClient,
    *,
    board: Board | None = None,
    peers: Peers | None = None,
    rate_file: Path | None = None,
    batches: BatchStorage | None = None,
) -> ServerContext:
    """The context of one process, before the model is there."""
    names = plan.config.served_model_names
    return ServerContext(
        client=client,
        served_model_names=names,
        metrics=Metrics(names[0], client),
        model_root=plan.config.model,
        default_params=plan.default_params,
        settings=api_settings(args, plan.config, keys),
        admission=Admission(board=board),
        peers=peers or NoPeers(),
        rate_file=rate_file,
        batches=batches,
        tracer=_tracer(args.otlp_endpoint),
    )


def load_text(plan: Plan) -> TextSide:
    """Read tokenizer and template; takes up to seconds. Raises ModelLoadError."""
    return load_text_side(
        plan.checkpoint,
        plan.model,
        max_logprobs=plan.config.max_logprobs,
        chat_template=plan.chat_template,
    )


def open_for_requests(context: ServerContext, client: ZmqEngineClient, text: TextSide) -> None:
    """The engine is ready and the files are read: requests may come."""
    client.attach(text.validator, text.tokenizer)
    text.renderer.max_model_len = client.info.max_model_len
    context.renderer = text.renderer
    _settle_memory()


def _settle_memory() -> None:
    """Let the collector skip what lives for ever, and run less often: requests make no cycles."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def close_context(context: ServerContext) -> None:
    """Send off what is still held back; requests have ended."""
    if context.tracer is not None:
        await asyncio.to_thread(context.tracer.close)


def _tracer(endpoint: str | None) -> Tracer | None:
    """Imported only when asked for, since it is optional and slow to load."""
    if endpoint is None:
        return None
    from pagemill.api.tracing import otlp_tracer

    return otlp_tracer(endpoint)
