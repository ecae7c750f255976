"""The one who may write a shard's log: puts segments in order, and stops for good at the first doubt.

Owns the fence (epoch, put-if-absent) and the chain. Owns no numbering and no recovery.
"""

from __future__ import annotations

import secrets

import pyarrow as pa

from imray.core.errors import CorruptError, FencedError, StorageError
from imray.log.digest import Parts
from imray.log.schema import SEGMENT_SCHEMA
from imray.log.segment import SegmentMeta, encode, open_segment, segment_name
from imray.log.store import Store


class Writer:
    """Writes segment after segment. Not thread-safe: one put in flight.

    After any error it is closed, and every later call raises FencedError: a new writer must read the log first."""

    def __init__(self, store: Store, shard: int, segment: int, epoch: int, digest: bytes) -> None:
        """Goes on after `segment`, whose digest is `digest`; `fence` must come first."""
        self._store = store
        self.shard = shard
        self.segment = segment
        self.epoch = epoch
        self.digest = digest
        self.nonce = secrets.token_hex(16)
        self._open = True

    def fence(self, server_ts: int) -> bool:
        """Take the next number with an empty segment of a new epoch: from now on no earlier writer can put.

        False: the number was taken meanwhile; read on and try with a new writer."""
        self.epoch += 1
        try:
            self.append(SEGMENT_SCHEMA.empty_table(), server_ts)
        except FencedError:
            return False
        return True

    def append(self, table: pa.Table, server_ts: int) -> tuple[int, bytes]:
        """Make a table durable as the next segment: its number and digest.

        FencedError: another writer owns the log. StorageError: unknown whether it landed. Both: stop for good."""
        if not self._open:
            raise FencedError(f"the writer of shard {self.shard}, epoch {self.epoch}, has stopped")
        number = self.segment + 1
        meta = SegmentMeta(self.shard, number, self.epoch, self.nonce, self.digest.hex(), server_ts, table.num_rows)
        parts, digest = encode(table, meta)
        self._open = False
        self._put(segment_name(self.shard, number), parts, digest)
        self._open = True
        self.segment, self.digest = number, digest
        return number, digest

    def _put(self, name: str, parts: Parts, digest: bytes) -> None:
        if self._store.put_if_absent(name, parts):
            return
        data = self._store.get(name)
        if data is None:
            raise StorageError(f"put {name}: the name is taken, but there is no file")
        try:
            there = open_segment(data, name)
        except CorruptError as e:
            raise FencedError(f"{name} is taken by a file that does not verify: {e}") from e
        if there.meta.nonce != self.nonce or there.digest != digest:
            raise FencedError(f"epoch {there.meta.epoch} has written {name}: the writer of epoch {self.epoch} stops")

    def close(self) -> None:
        """Write no more."""
        self._open = False
