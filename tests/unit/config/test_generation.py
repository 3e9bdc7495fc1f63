"""Sampling defaults from generation_config.json."""

from __future__ import annotations

import pytest

from pagemill.config.generation import default_params
from pagemill.errors import ModelLoadError


def test_known_keys_get_our_names() -> None:
    given = {
        "temperature": 0.6,
        "top_k": 20,
        "max_new_tokens": 100,
        "top_p": None,
        "do_sample": True,
        "eos_token_id": [1, 2],
    }
    assert default_params(given) == {"temperature": 0.6, "top_k": 20, "max_tokens": 100}
    assert default_params({}) == {}


@pytest.mark.parametrize("given", [{"temperature": "hot"}, {"top_p": 2}, {"max_new_tokens": -1}])
def test_wrong_values_name_the_file(given: dict[str, object]) -> None:
    with pytest.raises(ModelLoadError, match="generation_config"):
        default_params(given)
