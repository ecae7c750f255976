"""A bounded memory of what was decoded. Owns nothing else."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_ENTRY_BYTES = 1024
"""What an entry costs beside its columns."""


class Cache(Generic[K, V]):
    """The values that were used last, up to so many bytes; the newest is kept whatever it takes."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """The value of a key, if it is remembered."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, size: int) -> None:
        """Remember a value of so many bytes, in place of the one before."""
        before = self._entries.pop(key, None)
        self._bytes += size + _ENTRY_BYTES - (before[1] if before else 0)
        self._entries[key] = (value, size + _ENTRY_BYTES)
        while self._bytes > self._bytes_max and len(self._entries) > 1:
            _, (_, freed) = self._entries.popitem(last=False)
            self._bytes -= freed
