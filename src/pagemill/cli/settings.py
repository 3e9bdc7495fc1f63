"""From the command line to the settings of the HTTP side."""

from __future__ import annotations

from pagemill.api.context import ApiSettings, Limits, allowed_hosts_for
from pagemill.config.args import ServeArgs
from pagemill.config.engine import EngineConfig


def api_settings(args: ServeArgs, config: EngineConfig, keys: tuple[str, ...]) -> ApiSettings:
    """The HTTP side's settings."""
    return ApiSettings(
        limits=Limits(max_body_bytes=args.max_body_bytes, max_logprobs=config.max_logprobs),
        keys=keys,
        admin_keys=(args.admin_key,) if args.admin_key else (),
        allowed_hosts=allowed_hosts_for(args.host),
        sse_keep_alive=args.sse_keep_alive,
        json_access_log=args.json_logs,
        tool_call_parser=args.tool_call_parser,
        reasoning_parser=args.reasoning_parser,
        priority_scheduling=args.scheduling_policy == "priority",
    )
