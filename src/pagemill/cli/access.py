"""Who may use the server: the keys, and the refusal to be open to a network by accident."""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Mapping
from pathlib import Path

from pagemill.config.args import ServeArgs
from pagemill.errors import ConfigError

KEY_VARIABLE = "PAGEMILL_API_KEY"
ADMIN_KEY_VARIABLE = "PAGEMILL_ADMIN_KEY"
HASHED = "sha256:"  # begins a key that is given as its digest

_HASHED_KEY = re.compile(f"{HASHED}[0-9a-fA-F]{{64}}")


def api_keys(args: ServeArgs, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The keys from the flags, the environment and the key file. Raises ConfigError."""
    keys = [*args.api_key, environ.get(KEY_VARIABLE, "")]
    if args.api_key_file is not None:
        lines = _read(Path(args.api_key_file)).splitlines()
        from_file = [line.strip() for line in lines if not line.lstrip().startswith("#")]
        if not any(from_file):
            raise ConfigError(f"--api-key-file {args.api_key_file} holds no key")
        keys += from_file
    return _checked(keys)


def admin_keys(args: ServeArgs, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The admin keys from the flag and the environment. Raises ConfigError."""
    return _checked([args.admin_key or "", environ.get(ADMIN_KEY_VARIABLE, "")])


def _checked(keys: list[str]) -> tuple[str, ...]:
    """Without repeats; a key that is given hashed must be so for good."""
    for key in keys:
        if key.startswith(HASHED) and not _HASHED_KEY.fullmatch(key):
            raise ConfigError(f"a key that begins with {HASHED} goes on with 64 hexadecimal digits")
    return tuple(dict.fromkeys(key for key in keys if key))


def check_exposure(args: ServeArgs, keys: tuple[str, ...]) -> None:
    """Refuse to listen beyond this machine without a key, unless told so. Raises ConfigError."""
    if not (keys or args.no_auth or is_loopback(args.host)):
        raise ConfigError(
            f"--host {args.host} lets other machines in; set --api-key, or allow everyone "
            "with --no-auth"
        )


def check_tls(args: ServeArgs) -> None:
    """Refuse certificates that cannot be used. Raises ConfigError."""
    if args.ssl_certfile is None:
        if args.ssl_keyfile is not None:
            raise ConfigError("--ssl-keyfile needs --ssl-certfile")
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(args.ssl_certfile, args.ssl_keyfile)
    except OSError as error:  # ssl.SSLError is one
        raise ConfigError(f"--ssl-certfile {args.ssl_certfile} cannot be used: {error}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--api-key-file {path} cannot be read: {error}") from None
