"""Names for blocks of tokens: chained, keyed hashes.

A block's hash covers its own tokens and, through its parent's hash, everything before it. The hash
is BLAKE2b (RFC 7693) with the server's secret key, so nobody can find text that collides with
another user's prompt. The salt (tenant, adapter) goes into the parent of the first block.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

HASH_BYTES = 16
_TOKEN_BYTES = 4


def hash_blocks(
    token_ids: NDArray[np.int32] | bytes, block_size: int, key: bytes, salt: str = ""
) -> bytes:
    """The hashes of all full blocks, `HASH_BYTES` each, one after the other.

    `token_ids` are int32, `key` has at most 64 bytes; the same blocks under another key or salt
    hash differently.
    """
    if not isinstance(token_ids, bytes):
        token_ids = np.ascontiguousarray(token_ids, "<i4").tobytes()
    hasher = keyed_hasher(key)
    root = hasher.copy()
    root.update(salt.encode())
    return b"".join(_chain(root.digest(), token_ids, block_size, hasher))


def keyed_hasher(key: bytes) -> blake2b:
    """A hasher that has seen the key only. Copies of it cost half of one that is made anew."""
    return blake2b(digest_size=HASH_BYTES, key=key)


def extend(hashes: list[bytes], token_ids: array[int], block_size: int, hasher: blake2b) -> None:
    """Append the hashes of the full blocks of `token_ids` that `hashes` does not name yet.

    The first block's parent is known only to the caller of `hash_blocks`: without any hash there
    is nothing to extend. `hasher` has seen the key only.
    """
    if not hashes:
        return
    done = len(hashes) * block_size
    hashes += _chain(hashes[-1], token_ids[done:].tobytes(), block_size, hasher)


def split_hashes(data: bytes) -> list[bytes]:
    """The single hashes of `hash_blocks`' result."""
    return [data[start : start + HASH_BYTES] for start in range(0, len(data), HASH_BYTES)]


def _chain(parent: bytes, data: bytes, block_size: int, hasher: blake2b) -> list[bytes]:
    stride = block_size * _TOKEN_BYTES
    hashes = []
    for end in range(stride, len(data) + 1, stride):
        block = hasher.copy()
        block.update(parent + data[end - stride : end])
        parent = block.digest()
        hashes.append(parent)
    return hashes
