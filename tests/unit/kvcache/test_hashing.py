"""Block hashes name a block and everything before it, for one key and one salt."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from pagemill.kvcache.hashing import HASH_BYTES, extend, hash_blocks, keyed_hasher, split_hashes

KEY = b"secret"


def _hashes(tokens: list[int], key: bytes = KEY, salt: str = "") -> list[bytes]:
    return split_hashes(hash_blocks(np.array(tokens, np.int32), 4, key, salt))


def test_only_full_blocks_have_a_hash() -> None:
    assert [len(_hashes(list(range(n)))) for n in (0, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]
    assert len(_hashes(list(range(4)))[0]) == HASH_BYTES


def test_arrays_and_bytes_hash_alike() -> None:
    tokens = np.arange(8, dtype=np.int32)
    assert hash_blocks(tokens, 4, KEY) == hash_blocks(tokens.tobytes(), 4, KEY)
    assert hash_blocks(tokens.astype(np.int64), 4, KEY) == hash_blocks(tokens, 4, KEY)


def test_a_hash_covers_everything_before_the_block() -> None:
    base, other = _hashes([1, 2, 3, 4, 5, 6, 7, 8]), _hashes([1, 2, 3, 9, 5, 6, 7, 8])
    assert base[0] != other[0] and base[1] != other[1]
    assert _hashes([1, 2, 3, 4, 9, 9, 9, 9])[0] == base[0]


def test_equal_blocks_at_different_places_differ() -> None:
    first, second = _hashes([1, 2, 3, 4, 1, 2, 3, 4])
    assert first != second


@pytest.mark.parametrize("change", [{"key": b"other"}, {"salt": "tenant"}])
def test_key_and_salt_separate(change: dict[str, bytes | str]) -> None:
    tokens = list(range(8))
    assert not set(_hashes(tokens)) & set(_hashes(tokens, **change))


def test_extending_gives_what_hashing_the_whole_text_gives() -> None:
    tokens = list(range(100, 119))
    hashes = _hashes(tokens[:6], salt="tenant")
    extend(hashes, array("i", tokens), 4, keyed_hasher(KEY))
    assert hashes == _hashes(tokens, salt="tenant")


def test_nothing_can_be_extended_without_the_salted_beginning() -> None:
    hashes: list[bytes] = []
    extend(hashes, array("i", range(8)), 4, keyed_hasher(KEY))
    assert hashes == []
