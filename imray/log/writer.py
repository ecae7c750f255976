"""The one who may write a shard's log: puts segments in order, and stops for good at the first doubt.

Owns the fence (epoch, put-if-absent) and the chain. Owns no numbering and no recovery.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from imray.core.errors import CorruptError, FencedError, StorageError, UnavailableError
from imray.log.digest import Parts
from imray.log.schema import SEGMENT_SCHEMA
from imray.log.segment import GrantNote, SegmentMeta, encode, open_segment, segment_name
from imray.log.store import Store

_PROCESS = secrets.token_hex(8)
"""The writers of one process follow one another: their nonces begin alike."""


@dataclass(frozen=True)
class Encoded:
    """A segment ready to be put."""

    segment: int
    parts: Parts
    digest: bytes


class Writer:
    """Writes segment after segment: `encode` one while another is in `put`, puts one at a time and in order.

    After any error it is closed, and every later call raises that error again: a new writer must read the log first."""

    def __init__(
        self,
        store: Store,
        shard: int,
        segment: int,
        epoch: int,
        digest: bytes,
        sequencer: int = 0,
        by_home: bool = False,
    ) -> None:
        """Goes on after `segment`, whose digest is `digest`; `fence` must come first. `shard` is the log's number."""
        self._store = store
        self.shard = shard
        self.segment = segment
        """The last one that was encoded."""
        self.landed = segment
        """The last one that is known to be durable."""
        self.epoch = epoch
        self.digest = digest
        self.sequencer = sequencer
        self.nonce = _PROCESS + secrets.token_hex(8)
        self._by_home = by_home
        self._stopped: Exception | None = None
        """Why it writes no more."""

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
        """Make a table durable as the next segment: its number and digest. Errors as `put`."""
        encoded = self.encode(table, server_ts)
        self.put(encoded)
        return encoded.segment, encoded.digest

    def encode(self, table: pa.Table, server_ts: int, grants: Sequence[GrantNote] = (), sequencer: int = 0) -> Encoded:
        """The next segment's file. Its place in the chain is fixed from now on, so it must be put."""
        self.check()
        number = self.segment + 1
        meta = SegmentMeta(
            shard=self.shard,
            segment=number,
            epoch=self.epoch,
            nonce=self.nonce,
            previous=self.digest.hex(),
            server_ts=server_ts,
            rows=table.num_rows,
            sequencer=sequencer or self.sequencer,
            grants=list(grants),
            by_home=self._by_home,
        )
        parts, digest = encode(table, meta)
        self.segment = number
        self.digest = digest
        return Encoded(number, parts, digest)

    def put(self, encoded: Encoded) -> None:
        """Make an encoded segment durable.

        FencedError: another writer owns the log. StorageError: unknown whether it landed. Both: stop for good."""
        self.check()
        try:
            self._put(segment_name(self.shard, encoded.segment), encoded.parts, encoded.digest)
        except Exception as e:
            self._stopped = e
            raise
        self.landed = encoded.segment

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
            epoch = there.meta.epoch
            detail = f"epoch {epoch} has written {name}: the writer of epoch {self.epoch} stops"
            raise FencedError(detail, by_home=there.meta.by_home)

    def check(self) -> None:
        """The error that stopped it, where one did: what its owner knows may be wrong by now."""
        if self._stopped is not None:
            raise self._stopped

    def close(self) -> None:
        """Write no more."""
        if self._stopped is None:
            self._stopped = UnavailableError(f"the writer of log {self.shard}, epoch {self.epoch}, is closed")

    def is_last(self, or_own_process: bool = False) -> bool:
        """Whether no other writer has taken a name after this one's segments; with `or_own_process` no other process's.
        A look and no promise: only a put tells for sure."""
        own = self.nonce[: len(_PROCESS)] if or_own_process else self.nonce
        number = self.landed + 1
        while (data := self._store.get(name := segment_name(self.shard, number))) is not None:
            try:
                if not open_segment(data, name).meta.nonce.startswith(own):
                    return False
            except CorruptError:
                return False  # this writer's own segments are whole before they have their name
            number += 1  # its own, on its way
        return True
