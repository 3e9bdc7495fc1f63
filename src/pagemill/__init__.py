"""PageMill: an inference server for large language models.

The names below are imported when first used: `import pagemill` must stay cheap, because the
command line and the HTTP side never need torch.
"""

from typing import TYPE_CHECKING, Any

from pagemill.version import __version__

if TYPE_CHECKING:
    from pagemill.llm import LLM
    from pagemill.params import PoolingParams, SamplingParams

__all__ = ["LLM", "PoolingParams", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "LLM":
        from pagemill.llm import LLM

        return LLM
    if name in ("PoolingParams", "SamplingParams"):
        from pagemill import params

        return getattr(params, name)
    raise AttributeError(f"module 'pagemill' has no attribute {name!r}")
