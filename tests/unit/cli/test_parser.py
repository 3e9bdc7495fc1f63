"""The command line: built from `ServeArgs`, quick, and readable when wrong."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from pagemill.cli.parser import parse, serve_args
from pagemill.config.args import ServeArgs, flags


def parsed(*argv: str) -> ServeArgs:
    return serve_args(parse(["serve", *argv]))


def test_defaults_are_those_of_serve_args() -> None:
    assert parsed() == ServeArgs()


def test_every_field_can_be_set() -> None:
    argv = ["some/model"]
    expected: dict[str, object] = {"model": "some/model"}
    for item, info, name in flags():
        if item.name == "model":
            continue
        if info.kind is bool:
            argv.append(name)
            expected[item.name] = not item.default
            continue
        value = info.choices[-1] if info.choices else "7"
        argv += [name, value]
        expected[item.name] = (value,) if info.repeat else info.kind(value)
    assert dataclasses.asdict(parsed(*argv)) == expected


def test_repeated_flags_add_up_and_leave_the_model_alone() -> None:
    args = parsed("--api-key", "a", "--api-key", "b", "m")
    assert (args.api_key, args.model) == (("a", "b"), "m")
    assert parsed().api_key == ()


@pytest.mark.parametrize(
    "argv",
    [["--port", "x"], ["--dtype", "int3"], ["--nonsense"], ["a", "b"]],
)
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parsed(*argv)
    assert exit_info.value.code == 2
    assert "usage: pagemill" in capsys.readouterr().err


def test_help_imports_little_and_nothing_heavy() -> None:
    """The modules are what its time is made of."""
    code = (
        "import sys\n"
        "from pagemill.cli.main import main\n"
        "try:\n    main(['serve', '--help'])\n"
        "except SystemExit:\n"
        "    heavy = {'torch', 'numpy', 'starlette', 'uvicorn'} & set(sys.modules)\n"
        "    own = sorted(name for name in sys.modules if name.startswith('pagemill'))\n"
        "    print(len(sys.modules), *own, file=sys.stderr)\n"
        "    sys.exit(','.join(heavy) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"scheduling:" in done.stdout
    num_modules, *own = done.stderr.split()
    assert int(num_modules) < 200, own


def test_other_servers_name_of_a_flag() -> None:
    assert parsed("--gpu-memory-utilization", "0.5").memory_utilization == 0.5
