"""From the command line to the settings of the HTTP side."""

from __future__ import annotations

import os

from pagemill.api.context import ApiSettings, Limits, allowed_hosts_for
from pagemill.cli.access import admin_keys
from pagemill.config.args import ServeArgs
from pagemill.config.engine import EngineConfig
from pagemill.errors import ConfigError

_LEAST = {
    "max_body_bytes": 1,
    "batch_retention": 0,
    "max_requests_per_key": 1,
    "rate_limit_requests": 0,
    "rate_limit_tokens": 0,
}


def api_settings(args: ServeArgs, config: EngineConfig, keys: tuple[str, ...]) -> ApiSettings:
    """The HTTP side's settings. Raises ConfigError for numbers that can never work."""
    for name, least in _LEAST.items():
        if getattr(args, name) < least:
            raise ConfigError(f"--{name.replace('_', '-')} must be at least {least}")
    return ApiSettings(
        limits=Limits(
            max_body_bytes=args.max_body_bytes,
            max_logprobs=config.max_logprobs,
            max_requests_per_key=args.max_requests_per_key,
            requests_per_minute=args.rate_limit_requests,
            tokens_per_minute=args.rate_limit_tokens,
        ),
        keys=keys,
        admin_keys=admin_keys(args, os.environ),
        allowed_hosts=allowed_hosts_for(args.host, args.allowed_host),
        sse_keep_alive=args.sse_keep_alive,
        json_access_log=args.json_logs,
        tool_call_parser=args.tool_call_parser,
        reasoning_parser=args.reasoning_parser,
        priority_scheduling=args.scheduling_policy == "priority",
    )
