"""From the fields of a request to `SamplingParams`, in the order user, server, OpenAI's default."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

import msgspec

from pagemill.api.body import check_nesting, check_size
from pagemill.api.context import Limits, ServerContext
from pagemill.api.schema import NO_EFFECT, REFUSED, GenerationFields, ResponseFormat
from pagemill.errors import InvalidParams
from pagemill.frontend.outputs import Prompt
from pagemill.params import MAX_N, SamplingParams, StructuredOutputs

_PASSED_ON = (
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "min_tokens",
    "prompt_logprobs",
    "skip_special_tokens",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "timeout",
    "stream_interval",
)
_passed_on = attrgetter(*_PASSED_ON)
_STRUCTURAL_MEMBERS = ("structures", "triggers", "format")
_GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}


def refuse_unsupported(request: Any) -> list[str]:
    """Raise InvalidParams for a refused field; the names of fields given without effect."""
    ignored = []
    for name in request.__struct_fields__:
        value = getattr(request, name)
        if value is None:
            continue
        refusal = REFUSED.get(name)
        if refusal is not None and value not in refusal.neutral:
            raise InvalidParams(f"{name}: {refusal.reason}", param=name)
        if name in NO_EFFECT:
            ignored.append(name)
    options = getattr(request, "stream_options", None)
    if options is not None and options.include_obfuscation:
        ignored.append("stream_options.include_obfuscation")
    return ignored


def sampling_params(
    request: GenerationFields,
    context: ServerContext,
    *,
    max_tokens: int | None,
    logprobs: int | None,
) -> SamplingParams:
    """The parameters of one prompt. Raises InvalidParams."""
    if request.stream_options is not None and not request.stream:
        raise InvalidParams("stream_options needs stream to be true", param="stream_options")
    if request.priority and not context.settings.priority_scheduling:
        raise InvalidParams("priority needs a server with priority scheduling", param="priority")
    if request.prompt_logprobs is not None and request.stream:
        raise InvalidParams("prompt_logprobs cannot be streamed", param="prompt_logprobs")
    limits = context.limits
    check_logprobs("prompt_logprobs", request.prompt_logprobs, limits)
    given = zip(_PASSED_ON, _passed_on(request), strict=True)
    values = {
        **context.default_params,
        **{name: value for name, value in given if value is not None},
    }
    values["structured_outputs"] = structured_outputs(request, limits)
    values["logprobs"] = logprobs
    if max_tokens is not None or "max_tokens" not in values:
        values["max_tokens"] = max_tokens
    return SamplingParams(**values)


def check_logprobs(name: str, value: int | None, limits: Limits) -> None:
    """Bound how many log-probabilities are asked for. Raises InvalidParams."""
    if value is not None and not 0 <= value <= limits.max_logprobs:
        raise InvalidParams(
            f"{name} must be a whole number from 0 to {limits.max_logprobs}, got {value}",
            param=name,
        )


def check_num_choices(num_prompts: int, n: int, limits: Limits) -> None:
    """Bound the work of one request. Raises InvalidParams."""
    if num_prompts * n > limits.max_choices:
        raise InvalidParams(
            f"{num_prompts} prompts with n = {n} make {num_prompts * n} choices; at most "
            f"{limits.max_choices} are allowed, and n at most {MAX_N}",
            param="n",
        )


def truncate(prompt: Prompt, request: GenerationFields, max_model_len: int) -> Prompt:
    """As the request has it: the last N tokens, or the first where `truncation_side` is "right".

    -1 keeps what fits the context with one token more.
    """
    keep, side = request.truncate_prompt_tokens, request.truncation_side
    if keep is None:
        return prompt
    if keep == -1:
        keep = max_model_len - 1
    if not 1 <= keep <= max_model_len:
        raise InvalidParams(
            f"truncate_prompt_tokens must be -1 or from 1 to {max_model_len}, got {keep}",
            param="truncate_prompt_tokens",
        )
    if len(prompt.token_ids) <= keep:
        return prompt
    kept = slice(keep) if side == "right" else slice(-keep, None)
    return Prompt(token_ids=prompt.token_ids[kept])


def structured_outputs(request: GenerationFields, limits: Limits) -> StructuredOutputs | None:
    """What the output must match, from whichever of the fields says so. Raises InvalidParams."""
    found: dict[str, StructuredOutputs] = {}
    if request.structured_outputs is not None:
        found["structured_outputs"] = request.structured_outputs
    if request.response_format is not None:
        asked = _from_response_format(request.response_format)
        if asked is not None:
            found["response_format"] = asked
    for name, kind in _GUIDED.items():
        value = getattr(request, name)
        if value is not None:
            found[name] = StructuredOutputs(**{kind: value})
    blanks = request.guided_whitespace_pattern
    if not found:
        if blanks is not None:
            name = "guided_whitespace_pattern"
            raise InvalidParams(f"{name} needs a JSON schema, as in guided_json", param=name)
        return None
    if len(found) > 1:
        names = ", ".join(found)
        raise InvalidParams(f"Only one of {names} may be given", param=list(found)[1])
    ((name, outputs),) = found.items()
    if blanks is not None:
        outputs = msgspec.structs.replace(outputs, whitespace_pattern=blanks)
    check_nesting(outputs.json or outputs.structural_tag, limits.max_nesting, name)
    check_size(outputs, limits.max_schema_bytes, name)
    return outputs


def _from_response_format(wanted: ResponseFormat) -> StructuredOutputs | None:
    _check_members(wanted)
    match wanted.type:
        case "text":
            return None
        case "json_object":
            return StructuredOutputs(json_object=True)
        case "json_schema":
            return StructuredOutputs(json=_schema_of(wanted))
        case "structural_tag":
            members = ("type", *_STRUCTURAL_MEMBERS)
            tag = {name: getattr(wanted, name) for name in members}
            given = {name: value for name, value in tag.items() if value is not None}
            return StructuredOutputs(structural_tag=given)


def _check_members(wanted: ResponseFormat) -> None:
    """Refuse the members of another type, which would be dropped. Raises InvalidParams."""
    own = {"json_schema": ("json_schema",), "structural_tag": _STRUCTURAL_MEMBERS}
    for name in ("json_schema", *_STRUCTURAL_MEMBERS):
        if getattr(wanted, name) is not None and name not in own.get(wanted.type, ()):
            param = f"response_format.{name}"
            raise InvalidParams(f"{param} does not go with the type {wanted.type}", param=param)


def _schema_of(wanted: ResponseFormat) -> dict[str, Any] | bool:
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        param = "response_format.json_schema"
        raise InvalidParams(f"{param} with a schema is required", param=param)
    return wanted.json_schema.schema
