"""Tiny models that pool, made with transformers, and an engine of this process that runs them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.tiny import SIZES
from pagemill.config.args import ServeArgs
from pagemill.config.facts import DeviceFacts, detect
from pagemill.engine.build import build_engine
from pagemill.frontend.outputs import PooledOutput, Prompt
from pagemill.frontend.pooling import PoolingCollector, pooling_request, resolve_pooling_params
from pagemill.frontend.submission import PromptHasher
from pagemill.params import PoolingParams
from pagemill.prepare import prepare

Float32 = NDArray[np.float32]
CPU = DeviceFacts("cpu", "CPU", 8 * 2**30, 2, False)
ENCODER_SIZES = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}


def save_tiny(
    folder: Path, config_class: str, auto_class: str, sizes: dict[str, Any] = SIZES, **keys: Any
) -> Any:
    """Write a random model with `auto_class`, and return it."""
    import transformers

    torch.manual_seed(2)
    config = getattr(transformers, config_class)(**(sizes | keys))
    config._attn_implementation = "eager"
    model = getattr(transformers, auto_class).from_config(config).float().eval()
    with torch.no_grad():  # initialised biases are zero and norms one: make both count
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() or name.endswith("bias"):
                parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return model


class PoolingEngine:
    """An engine on the model in `folder`."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        args = {"dtype": "float32", "kv_cache_bytes": 2**22, "device": "cpu", **options}
        facts = CPU if args["device"] == "cpu" else detect(args["device"])
        config = prepare(ServeArgs(model=str(folder), **args), facts).config
        self.engine = build_engine(config, _ignore)
        self.info = self.engine.info
        self._hasher = PromptHasher(config)

    def pool(
        self, prompts: Sequence[Prompt], params: PoolingParams | None = None
    ) -> list[PooledOutput]:
        """The vectors of prompts that are all there from the start."""
        collectors = {}
        for i, prompt in enumerate(prompts):
            own = resolve_pooling_params(prompt, params or PoolingParams(), self.info)
            collectors[str(i)] = PoolingCollector(own, len(prompt.token_ids))
            hashes = self._hasher.hash_now(prompt, self.info.block_size)
            self.engine.add_request(pooling_request(str(i), 0, prompt, hashes, own))
        open_ids = set(collectors)
        while self.engine.has_work():
            open_ids -= {
                d.request_id for d in self.engine.step() if collectors[d.request_id].add(d)
            }
        assert not open_ids
        return [collector.result() for collector in collectors.values()]


@contextmanager
def engine_of(folder: Path, **options: Any) -> Iterator[PoolingEngine]:
    """An engine that is shut down at the end."""
    running = PoolingEngine(folder, options)
    try:
        yield running
    finally:
        running.engine.shutdown()


def pool(
    engine: PoolingEngine, prompts: Sequence[Prompt], params: PoolingParams | None = None
) -> list[Float32]:
    """The bare vectors."""
    return [output.values for output in engine.pool(prompts, params)]


def texts(lengths: Sequence[int], vocab: int = SIZES["vocab_size"]) -> list[Prompt]:
    """Random prompts of these lengths; id 1, which RoBERTa takes for padding, is not in them."""
    rng = np.random.default_rng(5)
    return [Prompt(rng.integers(3, vocab, n).tolist()) for n in lengths]


def _ignore(phase: str) -> None:
    """Nobody waits for the phases of loading."""
