"""Keys, exposure, TLS files and the listening socket."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from pagemill.cli.access import admin_keys, api_keys, check_exposure, check_tls, is_loopback
from pagemill.cli.listen import address, bind
from pagemill.config.args import ServeArgs
from pagemill.errors import ConfigError


def test_keys_come_from_everywhere_once(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# comment\nthree\n\n one \n")
    args = ServeArgs(api_key=("one", "two"), api_key_file=str(file))
    assert api_keys(args, {"PAGEMILL_API_KEY": "env"}) == ("one", "two", "env", "three")
    assert api_keys(ServeArgs(), {}) == ()


def test_admin_keys_come_from_flag_and_environment() -> None:
    assert admin_keys(ServeArgs(), {}) == ()
    both = admin_keys(ServeArgs(admin_key="one"), {"PAGEMILL_ADMIN_KEY": "two"})
    assert both == ("one", "two")


@pytest.mark.parametrize("key", ["sha256:", "sha256:abc", "sha256:" + "g" * 64])
def test_half_a_digest_is_no_key(key: str) -> None:
    with pytest.raises(ConfigError, match="64 hexadecimal"):
        api_keys(ServeArgs(api_key=(key,)), {})
    with pytest.raises(ConfigError, match="64 hexadecimal"):
        admin_keys(ServeArgs(admin_key=key), {})
    assert api_keys(ServeArgs(api_key=("sha256:" + "aB" * 32,)), {})


@pytest.mark.parametrize("content", ["", "# only a comment\n"])
def test_empty_key_file_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigError, match="holds no key"):
        api_keys(ServeArgs(api_key_file=str(file)), {})


def test_missing_key_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        api_keys(ServeArgs(api_key_file="/no/such/file"), {})


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_open_without_a_key(host: str) -> None:
    assert is_loopback(host)
    check_exposure(ServeArgs(host=host), ())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_other_addresses_need_a_key_or_a_word(host: str) -> None:
    check_exposure(ServeArgs(host=host), ("key",))
    check_exposure(ServeArgs(host=host, no_auth=True), ())
    with pytest.raises(ConfigError, match="--no-auth"):
        check_exposure(ServeArgs(host=host), ())


def test_tls_files_are_checked(tmp_path: Path) -> None:
    check_tls(ServeArgs())
    broken = tmp_path / "cert.pem"
    broken.write_text("no certificate")
    for args in (
        ServeArgs(ssl_keyfile="key.pem"),
        ServeArgs(ssl_certfile="/no/such/file"),
        ServeArgs(ssl_certfile=str(broken)),
    ):
        with pytest.raises(ConfigError, match="--ssl-certfile"):
            check_tls(args)


def test_bind_gives_an_address() -> None:
    with bind("127.0.0.1", 0)[0] as listener:
        port = listener.getsockname()[1]
        assert address(listener, tls=False) == f"http://127.0.0.1:{port}"
        assert address(listener, tls=True) == f"https://127.0.0.1:{port}"
        with pytest.raises(ConfigError, match=f"port {port} .* in use"):
            bind("127.0.0.1", port)


def test_wildcard_address_is_shown_as_loopback() -> None:
    with bind("0.0.0.0", 0)[0] as listener:
        assert address(listener, tls=False).startswith("http://127.0.0.1:")


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("no.such.host.invalid", 0)])
def test_unusable_host_is_one_line(host: str, port: int) -> None:
    with pytest.raises(ConfigError, match=f"cannot listen on {host}"):
        bind(host, port)


@pytest.mark.parametrize("port", [-1, 65536])
def test_impossible_port_is_one_line(port: int) -> None:
    with pytest.raises(ConfigError):
        bind("127.0.0.1", port)


def test_ipv6_address_has_brackets() -> None:
    class Listener(socket.socket):
        def getsockname(self) -> tuple[str, int, int, int]:  # type: ignore[override]
            return ("::1", 80, 0, 0)

    with Listener() as listener:
        assert address(listener, tls=False) == "http://[::1]:80"
