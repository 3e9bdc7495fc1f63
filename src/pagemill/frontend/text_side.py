"""Everything of a model that turns text into tokens and back, read from its files."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pagemill.checkpoint.hf_config import merge_eos_ids
from pagemill.config.model import ModelConfig
from pagemill.frontend.renderer import ModelRenderer
from pagemill.frontend.tokenizer import Tokenizer
from pagemill.frontend.validate import RequestValidator

if TYPE_CHECKING:
    from pagemill.checkpoint.base import ChatTemplates, Checkpoint


@dataclass(frozen=True, slots=True)
class TextSide:
    """What the frontend needs besides the engine."""

    tokenizer: Tokenizer
    renderer: ModelRenderer
    validator: RequestValidator


def load_text_side(
    checkpoint: Checkpoint,
    model: ModelConfig,
    *,
    max_logprobs: int,
    chat_template: str | None = None,
) -> TextSide:
    """Read tokenizer, chat template and end tokens; `chat_template` replaces the model's own.

    Takes up to seconds for a large vocabulary. Raises ModelLoadError.
    """
    from pagemill.checkpoint.chat_template import load_chat_template
    from pagemill.checkpoint.tokenizer_spec import load_tokenizer_info

    info = load_tokenizer_info(checkpoint)
    tokenizer = Tokenizer(info.tokenizer, info.bos_token_id, info.eos_token_id)
    templates = chat_template or checkpoint.chat_template()
    template_text = _source_text(templates)
    renderer = ModelRenderer(
        tokenizer,
        load_chat_template(templates, info.special_tokens),
        vocab_size=model.vocab_size,
        max_model_len=model.max_position,
        template_text=template_text,
        developer_role="developer" in template_text,
    )
    validator = RequestValidator(
        vocab_size=model.vocab_size,
        max_logprobs=max_logprobs,
        eos_token_ids=eos_ids(checkpoint, model, info.eos_token_id),
        tokenizer=tokenizer,
    )
    return TextSide(tokenizer, renderer, validator)


def eos_ids(checkpoint: Checkpoint, model: ModelConfig, tokenizer_id: int | None) -> list[int]:
    """Every token that ends a generation, by any of the model's files."""
    return list(merge_eos_ids(model, checkpoint.generation_config(), tokenizer_id))


def _source_text(templates: ChatTemplates) -> str:
    sources = templates.values() if isinstance(templates, dict) else [templates or ""]
    return "\n".join(sources)
