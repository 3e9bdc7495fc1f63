"""From the command to the first token, with an empty kernel cache and with a filled one.

    PYTHONPATH=src python3 benchmarks/startup.py qwen3-0.6b [--starts 2] [--load] [-- FLAGS]

Starts `pagemill serve` on a folder of the shape with random weights and a small tokenizer, sends
one completion as soon as it listens until one is answered, and stops it. The first start has an
empty folder for compiled kernels, the others find what it left. `--load` writes the weights to a
file first and reads them instead. `smollm2`, or a folder, is served as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offline import COMMON, SHAPES

TIMEOUT = 300.0
POLL = 0.02
STOP_TIMEOUT = 30.0


@dataclass(frozen=True)
class Start:
    """Seconds since the command."""

    listening: float
    first_token: float
    lines: list[str]  # what the server said


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A word for every id, so that any token can be shown."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {f"w{i}": i for i in range(vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))


def write_weights(folder: Path) -> None:
    """Random tensors in one file, under the names that a model of this config needs."""
    import torch
    from safetensors.torch import save_file

    from pagemill.checkpoint.open import open_checkpoint
    from pagemill.layers.base import BuildContext
    from pagemill.models.registry import build_model
    from pagemill.models.weights import weight_slots
    from pagemill.ops.reference import ReferenceOps
    from pagemill.quant.unquantized import Unquantized

    ops, meta = ReferenceOps(), torch.device("meta")
    context = BuildContext(meta, torch.bfloat16, ops, Unquantized(ops))
    model = build_model(open_checkpoint(folder).model_config(), context)
    slots = weight_slots(model)  # type: ignore[arg-type]
    tensors = {
        name: 0.02 * torch.randn(slot.shape, dtype=torch.bfloat16) for name, slot in slots.items()
    }
    save_file(tensors, folder / "model.safetensors")


def prepare(name: str, folder: Path, load: bool) -> tuple[str, list[str]]:
    """What to serve, and the flags that go with it."""
    if name not in SHAPES:
        return name, []
    shape = COMMON | SHAPES[name]
    (folder / "config.json").write_text(json.dumps(shape))
    write_tokenizer(folder, int(shape["vocab_size"]))
    if load:
        write_weights(folder)
    return str(folder), ["--max-model-len", "4096"] + ([] if load else ["--load-format", "dummy"])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running(command: list[str], env: dict[str, str], log: Path) -> Iterator[None]:
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ask(url: str, data: dict[str, Any] | None = None) -> bytes | None:
    """The answer; None while there is none, or none but an error."""
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            answer: bytes = response.read()
            return answer
    except (urllib.error.URLError, ConnectionError):
        return None


def until(url: str, data: dict[str, Any] | None, begin: float, log: Path) -> float:
    """Ask until there is an answer; the seconds since `begin`."""
    while ask(url, data) is None:
        if time.perf_counter() - begin > TIMEOUT:
            raise SystemExit(f"no answer after {TIMEOUT:.0f} s:\n{log.read_text()}")
        time.sleep(POLL)
    return time.perf_counter() - begin


def start(model: str, flags: list[str], kernels: Path, log: Path) -> Start:
    port = free_port()
    env = os.environ | {"TRITON_CACHE_DIR": str(kernels), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "pagemill", "serve", model, "--port", str(port), *flags]
    prompt = {"prompt": "w1 w2 w3", "max_tokens": 1, "temperature": 0}
    url = f"http://127.0.0.1:{port}"
    begin = time.perf_counter()
    with running(command, env, log):
        listening = until(f"{url}/version", None, begin, log)
        name = Path(model).name if "/" in model else model
        served = ask(f"{url}/v1/models")
        while served is None:
            time.sleep(POLL)
            served = ask(f"{url}/v1/models")
        models = json.loads(served)["data"]
        name = models[0]["id"] if models else name
        first = until(f"{url}/v1/completions", prompt | {"model": name}, begin, log)
    return Start(listening, first, log.read_text().splitlines())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help=f"{', '.join(SHAPES)}, a built-in model or a folder")
    parser.add_argument("--starts", type=int, default=2)
    parser.add_argument("--load", action="store_true", help="read the weights from a file")
    parser.add_argument("flags", nargs="*", help="for pagemill serve, behind --")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        folder, kernels = work / "model", work / "kernels"
        folder.mkdir()
        model, flags = prepare(args.model, folder, args.load)
        for number in range(args.starts):
            done = start(model, flags + args.flags, kernels, work / "log")
            kind = "kernels on disk" if number else "nothing compiled"
            print(
                f"{args.model}, {kind}: listening after {done.listening:.2f} s, "
                f"first token after {done.first_token:.2f} s",
                flush=True,
            )
            told = ("engine up in", "was compiled for", "compiles kernels")
            lines = [line for line in done.lines if any(part in line for part in told)]
            print("\n".join("    " + line for line in lines), flush=True)


if __name__ == "__main__":
    main()
