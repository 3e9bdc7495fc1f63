"""One OpenTelemetry span for every generating request, sent over OTLP/HTTP.

A span is made when its request has ended, of what was noted down anyway, so tracing adds nothing
to the way of a token. OpenTelemetry is an optional dependency (extra `otel`) and is imported by
`otlp_tracer` alone. Names are those of the semantic conventions for generative AI; the latencies
have vLLM's, which has them beyond the conventions.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from pagemill.api.context import RequestScope
from pagemill.errors import ConfigError
from pagemill.metrics.metrics import RequestObservation
from pagemill.params import SamplingParams
from pagemill.version import __version__

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor

EXPORT_TIMEOUT = 5  # seconds for one batch, the last one at shutdown included
TRACES_PATH = "/v1/traces"
# Each module's parents come first, since `find_spec` imports them.
_MODULES = (
    *(
        "opentelemetry",
        "opentelemetry.sdk",
        "opentelemetry.exporter",
        "opentelemetry.exporter.otlp",
    ),
    *("opentelemetry.exporter.otlp.proto", "opentelemetry.exporter.otlp.proto.http"),
)

_OPERATIONS = {
    "/v1/completions": "text_completion",
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/embeddings": "embeddings",
}
_Attributes = dict[str, Any]


class OtelTracer:
    """Makes spans and gives them to `processor`, which sends them on a thread of its own."""

    def __init__(self, processor: SpanProcessor) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # Environment variables (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) go before these.
        own = Resource({"service.name": "pagemill", "service.version": __version__})
        self._provider = TracerProvider(resource=own.merge(Resource.create()))
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("pagemill", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def record(self, scope: Scope, details: RequestScope, status: int, ended: float) -> None:
        """A request has ended at `ended` (seconds since 1970); the caller's trace is its parent."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        operation = _OPERATIONS.get(details.route, details.route.rpartition("/")[2])
        headers = Headers(scope=scope)
        span = self._tracer.start_span(
            f"{operation} {details.model}".strip(),
            context=self._propagator.extract(dict(headers.items())),
            kind=SpanKind.SERVER,
            attributes=_http(scope, details, status) | _gen_ai(details, operation),
            start_time=int((ended - details.seconds) * 1e9),
        )
        if status >= 500 or status == 0:
            span.set_status(Status(StatusCode.ERROR))
        span.end(int(ended * 1e9))

    def close(self) -> None:
        """Send what is left; waits for the collector, but not for long."""
        self._provider.shutdown()


def traces_url(endpoint: str) -> str:
    """Where a collector takes spans: `endpoint`, with the usual path unless it has one.

    Imports nothing, so that mistakes are known at once. Raises ConfigError.
    """
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--otlp-endpoint must be like http://127.0.0.1:4318, got {endpoint!r}")
    if not all(map(find_spec, _MODULES)):
        raise ConfigError("--otlp-endpoint needs OpenTelemetry: pip install 'pagemill[otel]'")
    return parts._replace(path=TRACES_PATH).geturl() if parts.path in ("", "/") else endpoint


def otlp_tracer(endpoint: str) -> OtelTracer:
    """A tracer that sends to an OTLP collector over HTTP. Raises ConfigError."""
    url = traces_url(endpoint)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    return OtelTracer(BatchSpanProcessor(OTLPSpanExporter(url, timeout=EXPORT_TIMEOUT)))


def _http(scope: Scope, details: RequestScope, status: int) -> _Attributes:
    attributes: _Attributes = {
        "http.request.method": scope["method"],
        "http.route": details.route,
        "http.response.status_code": status,
        "pagemill.request.id": details.request_id,
    }
    if status >= 400 or status == 0:
        attributes["error.type"] = str(status) if status else "disconnected"
    return attributes


def _gen_ai(details: RequestScope, operation: str) -> _Attributes:
    attributes: _Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "pagemill",
        "gen_ai.usage.input_tokens": details.prompt_tokens,
        "gen_ai.usage.output_tokens": details.completion_tokens,
        "gen_ai.usage.cache_read.input_tokens": details.cached_tokens,
    }
    if details.model:
        attributes["gen_ai.request.model"] = attributes["gen_ai.response.model"] = details.model
    if details.response_id:
        attributes["gen_ai.response.id"] = details.response_id
    if details.generations:
        attributes |= _params(details.generations[0].params) | _outcome(details.generations)
    return attributes


def _params(params: SamplingParams) -> _Attributes:
    """What was asked for, after the server's defaults; what is not set is left out."""
    values = {
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.seed": params.seed,
        "gen_ai.request.choice.count": params.n if params.n != 1 else None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _outcome(generations: list[RequestObservation]) -> _Attributes:
    """How the choices of all prompts ended, and the times of the slowest prompt, in seconds."""
    times = [generation.times for generation in generations]
    latencies = {
        "gen_ai.latency.time_in_queue": [t.queue for t in times],
        "gen_ai.latency.time_to_first_token": [t.first_token for t in times],
        "gen_ai.latency.time_in_model_prefill": [t.prefill for t in times],
        "gen_ai.latency.time_in_model_decode": [t.decode for t in times],
        "gen_ai.latency.time_in_model_inference": [t.inference for t in times],
        "gen_ai.latency.e2e": [t.total for t in times],
    }
    found: _Attributes = {
        name: max(known)
        for name, values in latencies.items()
        if (known := [value for value in values if value is not None])
    }
    found["gen_ai.response.finish_reasons"] = [
        reason for generation in generations for reason in generation.finish_reasons
    ]
    return found
