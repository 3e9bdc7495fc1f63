"""What `run-batch` refuses before it loads a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from pagemill.cli.main import main
from pagemill.cli.parser import BatchArgs, parse, serve_args
from pagemill.config.args import ServeArgs


def run(folder: Path, *flags: str, output: str = "out.jsonl") -> int:
    files = ["-i", str(folder / "in.jsonl"), "-o", str(folder / output)]
    return main(["run-batch", *files, *flags])


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        (None, (), "cannot be read: No such file"),
        ("", (), "holds no request"),
        ("\n \n", (), "holds no request"),
        ("{\n", ("--strict",), "1 malformed lines: line 1: The body is not valid JSON"),
        ('{"custom_id": "a"}\n{"custom_id": "b"}\n{"custom_id": "a"}\n', (), "1 and 3 ('a')"),
    ],
)
def test_unusable_input_is_one_line(
    tmp_path: Path,
    content: str | None,
    flags: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if content is not None:
        (tmp_path / "in.jsonl").write_text(content)
    assert run(tmp_path, *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out.jsonl").exists()


def test_output_must_not_be_the_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.jsonl").write_text("{}\n")
    assert run(tmp_path, output="in.jsonl") == 1
    assert "same file" in capsys.readouterr().err
    assert (tmp_path / "in.jsonl").read_text() == "{}\n"


def test_takes_the_settings_of_a_model_and_none_of_a_server() -> None:
    files = ["run-batch", "-i", "a", "-o", "b"]
    parsed = parse([*files, "some/model", "--dtype", "float32", "--max-inflight", "3"])
    assert serve_args(parsed) == ServeArgs(model="some/model", dtype="float32")
    assert BatchArgs.of(parsed) == BatchArgs(Path("a"), Path("b"), 3)
    for flags in (["--port", "1"], ["--api-key", "k"], ["--max-inflight", "0"]):
        with pytest.raises(SystemExit):
            parse([*files, *flags])
