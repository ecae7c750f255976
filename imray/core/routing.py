"""Which shard owns a conversation, which partition takes a send of a hot one, and what their logs are called.

The first answer may never change for a data folder: the log depends on it. The second may change with every message:
numbers come from the home shard whichever way a send takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import xxhash

from imray.core.errors import InvalidError

if TYPE_CHECKING:
    from imray.kernels.arrays import I64  # numpy takes time, and clients that only need names come here, too

T = TypeVar("T", int, "I64")

CONV_ID_BYTES_MAX = 128
PARTITIONS_MAX = 99
"""Partitions of one home shard."""
PARTITION_LOGS_FROM = 10_000
"""Above every shard's number (`imray.log.manifest.SHARDS_MAX`)."""
_PARTS = 840
"""Divisible by 1 to 8: equal shares."""
_SEGMENT_BITS = 40


def conv_key(conv_id: str) -> int:
    """The 64-bit key of a conversation (XXH64 of the UTF-8 bytes), stable over versions and machines."""
    return xxhash.xxh64_intdigest(conv_id.encode())


def shard_of(conv_id: str, shards: int) -> int:
    """The shard (0 .. shards-1) that owns `conv_id`."""
    return conv_key(conv_id) % shards


def slot_for(key: str, partitions: int) -> int:
    """The slot (1 .. topics) that takes the sends of one topic or sender of a hot conversation.

    Keys hash to a fixed number of parts, and the parts to the slots: with another `topics` whole parts move."""
    return 1 + conv_key(key) % _PARTS % partitions


def log_of(home: int, slot: int) -> int:
    """The number of a log: a shard's own (slot 0) is the shard's; those of its partitions follow all shards'."""
    return home if slot == 0 else PARTITION_LOGS_FROM + home * (PARTITIONS_MAX + 1) + slot


def home_of(log: int) -> tuple[int, int]:
    """The home shard and slot of a log: the inverse of `log_of`."""
    return (log, 0) if log < PARTITION_LOGS_FROM else divmod(log - PARTITION_LOGS_FROM, PARTITIONS_MAX + 1)


def log_position_of(slot: int, segment: int) -> int:
    """Slot and segment as one number: where a message stands, as its home shard knows it."""
    return slot << _SEGMENT_BITS | segment


def slot_of(log_position: T) -> T:
    """The slot of a log position, or of each in an array."""
    return log_position >> _SEGMENT_BITS


def segment_of(log_position: T) -> T:
    """The segment of a log position, or of each in an array."""
    return log_position & ((1 << _SEGMENT_BITS) - 1)


def offset_of(home: int, log_position: T) -> tuple[T, T]:
    """Log and segment of a log position, or of each in an array."""
    slot = slot_of(log_position)
    return home + (slot > 0) * (log_of(home, 1) - 1 - home) + slot, segment_of(log_position)


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
