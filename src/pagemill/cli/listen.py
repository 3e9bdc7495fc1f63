"""The listening socket, bound before anything slow so that a taken port is known at once."""

from __future__ import annotations

import errno
import socket
import sys
from contextlib import suppress

from pagemill.errors import ConfigError

BACKLOG = 2048
MAX_PORT = 65535
UNREAD_SECONDS = 120.0  # as streams have it; see `Limits.write_timeout`


def bind(host: str, port: int, count: int = 1) -> list[socket.socket]:
    """Listening sockets for one address, which the system shares its connections among.

    Raises ConfigError with what to change.
    """
    first = _bind(host, port, shared=False)
    if count == 1:
        return [first]
    port = first.getsockname()[1]
    first.close()  # only by a socket that does not share was it found out whether the port is free
    return [_bind(host, port, shared=True) for _ in range(count)]


def _bind(host: str, port: int, *, shared: bool) -> socket.socket:
    if not 0 <= port <= MAX_PORT:
        raise ConfigError(f"--port must be from 0 to {MAX_PORT}, got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(
            address[:2], family=family, backlog=BACKLOG, reuse_port=shared
        )
    except OSError as error:
        raise ConfigError(_reason(error, host, port)) from None
    _bound_unread(listener)
    return listener


def _bound_unread(listener: socket.socket) -> None:
    """Let the kernel end connections whose client takes nothing of what was written.

    Its connections inherit the option (RFC 5482, tcp(7)). Only the kernel sees how far a client
    has read: an answer may be in its buffers, or below TLS, when the server has long written it.
    """
    if sys.platform == "linux":
        milliseconds = int(UNREAD_SECONDS * 1000)
        with suppress(OSError):  # where Linux is emulated it may be missing
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


def address(listener: socket.socket, *, tls: bool) -> str:
    """The URL that a client on this machine can use."""
    host, port = listener.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1" if host == "0.0.0.0" else "::1"
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"


def _reason(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is in use; choose another with --port"
    if error.errno == errno.EACCES:
        return f"port {port} needs more rights; choose one from 1024 with --port"
    return f"cannot listen on {host}: {error.strerror or error}"
