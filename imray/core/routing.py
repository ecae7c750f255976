"""Which shard owns a conversation. The answer may never change for a data folder: the log depends on it."""

from __future__ import annotations

import xxhash

from imray.core.errors import InvalidError

CONV_ID_BYTES_MAX = 128


def conv_key(conv_id: str) -> int:
    """The 64-bit key of a conversation (XXH64 of the UTF-8 bytes), stable over versions and machines."""
    return xxhash.xxh64_intdigest(conv_id.encode())


def shard_of(conv_id: str, shards: int) -> int:
    """The shard (0 .. shards-1) that owns `conv_id`."""
    return conv_key(conv_id) % shards


def check_conv_id(conv_id: str) -> None:
    """Refuse a conv_id that is empty, longer than 128 bytes of UTF-8, or holds control characters."""
    check_text(conv_id, "conv_id", CONV_ID_BYTES_MAX)


def check_text(text: str, name: str, bytes_max: int) -> None:
    """Refuse text that is empty, too long in UTF-8, not encodable, or holds control characters."""
    try:
        n = len(text.encode())
    except UnicodeEncodeError as e:
        raise InvalidError(f"{name} is not valid Unicode: it holds a lone surrogate") from e
    if not 1 <= n <= bytes_max:
        raise InvalidError(f"{name} has {n} bytes of UTF-8: 1 to {bytes_max} are allowed")
    if any(ord(c) < 32 or ord(c) == 127 for c in text):
        raise InvalidError(f"{name} holds a control character")
