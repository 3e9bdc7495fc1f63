"""What every endpoint works with: the engine, the renderer, the settings and the counters."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from starlette.requests import Request
from starlette.types import Scope

from pagemill.api.admission import Admission
from pagemill.api.batch.storage import BatchStorage
from pagemill.api.peers import NoPeers, Peers
from pagemill.api.responses_api.store import ResponseStore
from pagemill.api.tools.chat_format import ChatFormat
from pagemill.config.pooling import PoolingConfig
from pagemill.errors import (
    EngineDeadError,
    InvalidParams,
    OverloadedError,
    UnknownModel,
    WrongModel,
)
from pagemill.frontend.base import EngineClient, Renderer
from pagemill.metrics.metrics import Metrics, RequestObservation
from pagemill.version import __version__

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")
LOADING_RETRY_SECONDS = 5
SLEEPING_RETRY_SECONDS = 10

_SAFE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True)
class Limits:
    """Bounds on what one request, and one key, may ask for. Times are in seconds."""

    max_body_bytes: int = 32 * 2**20
    max_header_bytes: int = 32 * 1024
    max_headers: int = 128
    body_timeout: float = 60.0
    max_prompts: int = 1024
    max_inputs: int = 2048  # texts of one request for vectors
    max_numbers: int = 2**23  # of an answer with a vector for each token
    max_choices: int = 1024  # prompts x n
    max_logprobs: int = 20
    max_messages: int = 4096
    max_tools: int = 128
    max_schema_bytes: int = 128 * 1024
    max_nesting: int = 64
    max_template_kwargs_bytes: int = 16 * 1024
    max_requests_per_key: int = 4096  # open at the same time
    requests_per_minute: int = 0  # by key; 0: as many as come
    tokens_per_minute: int = 0  # by key, prompts and outputs; 0: as many as come
    write_timeout: float = 120.0  # a client that reads nothing for so long is dropped


@dataclass(frozen=True)
class ApiSettings:
    """How the HTTP side behaves. `allowed_hosts` () answers for any Host header.

    `keys` and `admin_keys` are plain, or digests as `KeyRing` reads them. Without keys every
    request is let in, and without admin keys the control endpoints are closed.
    """

    limits: Limits = field(default_factory=Limits)
    keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = LOOPBACK_HOSTS
    allowed_origins: tuple[str, ...] = ()
    sse_keep_alive: float = 15.0  # seconds of silence before a comment; 0: never
    json_access_log: bool = False
    priority_scheduling: bool = False
    tool_call_parser: str = "auto"  # a name of `FORMATS_BY_NAME`, or "none"
    reasoning_parser: str = "auto"  # a name of `REASONING_BY_NAME`, or "none"


def allowed_hosts_for(bind_host: str, names: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The Host headers to trust when listening on `bind_host`: `names`, or a safe default.

    On a loopback address only loopback names are trusted, which stops DNS rebinding; elsewhere
    the server cannot know its names, so any host is let in unless `names` says more.
    """
    if bind_host in LOOPBACK_HOSTS or bind_host.startswith("127."):
        return (*LOOPBACK_HOSTS, bind_host, *names)
    return names


@dataclass(frozen=True)
class Clock:
    """`wall` in seconds since 1970, `monotonic` for durations."""

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic


def is_safe_request_id(request_id: str) -> bool:
    """Whether a client's id may stand in headers, logs and the ids of answers."""
    return _SAFE_REQUEST_ID.fullmatch(request_id) is not None


@dataclass(slots=True)
class RequestScope:
    """What is known of one HTTP request beyond ASGI's scope; ends in the access line."""

    request_id: str
    route: str = ""
    generates: bool = False
    key_id: str = "-"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    model: str = ""
    response_id: str = ""
    seconds: float = 0.0  # how long it took, once it has ended
    generations: list[RequestObservation] = field(default_factory=list)  # of each prompt
    spend: Callable[[int], None] | None = None  # takes tokens from what the key may use
    _num_spent: int = 0

    def settle(self) -> None:
        """Count the tokens that came since the last call against the key's limit."""
        if self.spend is not None:
            num_tokens = self.prompt_tokens + self.completion_tokens
            self.spend(num_tokens - self._num_spent)
            self._num_spent = num_tokens

    def adopt_id(self, request_id: str | None) -> None:
        """Take the id in the body instead, if there is one. Raises InvalidParams."""
        if request_id is None:
            return
        if not is_safe_request_id(request_id):
            raise InvalidParams(
                "request_id must be 1 to 128 letters, digits and . _ : -", param="request_id"
            )
        self.request_id = request_id

    @staticmethod
    def of(request: Request) -> RequestScope:
        """The scope that the outermost middleware made for this request."""
        found = request.scope["pagemill"]
        assert isinstance(found, RequestScope)
        return found


class Tracer(Protocol):
    """Where the traces of requests go."""

    def record(self, scope: Scope, details: RequestScope, status: int, ended: float) -> None:
        """A request has ended at `ended`, in seconds since 1970."""
        ...

    def close(self) -> None:
        """Send off what is still held back; may take seconds."""
        ...


@dataclass
class ServerContext:
    """One server. Fields that loading fills in (`renderer`, `default_params`) may be set late."""

    client: EngineClient
    served_model_names: tuple[str, ...]
    metrics: Metrics
    renderer: Renderer | None = None
    model_root: str = ""
    default_params: Mapping[str, Any] = field(default_factory=dict)
    settings: ApiSettings = field(default_factory=ApiSettings)
    clock: Clock = field(default_factory=Clock)
    admission: Admission = field(default_factory=Admission)
    peers: Peers = field(default_factory=NoPeers)
    rate_file: Path | None = None  # where processes that share keys count what these use
    tracer: Tracer | None = None
    batches: BatchStorage | None = None  # where files and batches are kept, if they are
    stored: ResponseStore = field(default_factory=ResponseStore)
    probe_lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # /health needs no key
    sleep_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    sleep_deadlines: list[float] = field(default_factory=list)  # of open calls of /sleep
    num_waking: int = 0  # calls of /wake_up, which call off a /sleep that still waits
    started_at: int = field(default_factory=lambda: int(time.time()))
    _chat_format: tuple[Renderer, ChatFormat] | None = None

    @property
    def limits(self) -> Limits:
        return self.settings.limits

    def require_ready(self) -> Renderer:
        """The renderer, when requests can run. Raises OverloadedError, EngineDeadError."""
        renderer = self.require_loaded()
        self.check_awake()
        return renderer

    def check_awake(self) -> None:
        """Raises OverloadedError while the model sleeps."""
        if self.client.stats.sleep_level:
            raise OverloadedError(
                "The model sleeps until it is woken by POST /wake_up", SLEEPING_RETRY_SECONDS
            )

    def require_loaded(self) -> Renderer:
        """The renderer, once the model was loaded. Raises OverloadedError, EngineDeadError."""
        status = self.client.status
        if status.state == "failed":
            raise EngineDeadError(status.detail or "the engine has stopped")
        if status.state != "ready" or self.renderer is None:
            raise OverloadedError("The model is still loading", LOADING_RETRY_SECONDS)
        return self.renderer

    def require_generation(self) -> None:
        """Raises WrongModel when the model makes vectors."""
        pooling = self.client.info.pooling
        if pooling is None:
            return
        if pooling.task == "embed":
            raise WrongModel(
                "This model makes embeddings, no text; use /v1/embeddings, or start a server with "
                "a model that generates text"
            )
        raise WrongModel(
            "This model makes scores, no text; use /v1/score, /v1/rerank or /classify, or start a "
            "server with a model that generates text"
        )

    def require_pooling(self) -> PoolingConfig:
        """How the model pools. Raises WrongModel when it generates text."""
        pooling = self.client.info.pooling
        if pooling is None:
            raise WrongModel(
                "This model generates text; start a server with an embedding model or a "
                "cross-encoder, such as `pagemill serve minilm`, or with --runner pooling"
            )
        return pooling

    def chat_format(self, renderer: Renderer) -> ChatFormat:
        """How the model writes tool calls and reasoning. Raises ConfigError."""
        if self._chat_format is None or self._chat_format[0] is not renderer:
            settings = self.settings
            found = ChatFormat.of(
                renderer.template_text, settings.tool_call_parser, settings.reasoning_parser
            )
            self._chat_format = (renderer, found)
        return self._chat_format[1]

    def check_model(self, model: str | None) -> str:
        """The name to answer with: the first one when the request names none."""
        if model is None:
            return self.served_model_names[0]
        if model not in self.served_model_names:
            known = ", ".join(self.served_model_names)
            raise UnknownModel(
                f"The model {model[:200]!r} does not exist; this server has: {known}", param="model"
            )
        return model

    @property
    def fingerprint(self) -> str:
        """Names what may change outputs between two servers of the same model."""
        return f"pagemill-{__version__}"
