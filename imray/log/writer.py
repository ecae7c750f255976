"""The one who may write a shard's log: puts segments in order, and stops for good at the first doubt.

Owns the fence (epoch, put-if-absent) and the chain. Owns no numbering and no recovery.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from imray.core.errors import CorruptError, FencedError, StorageError, UnavailableError
from imray.core.log_progress import LogProgress
from imray.log.digest import Parts
from imray.log.marks import marked
from imray.log.schema import SEGMENT_SCHEMA
from imray.log.segment import GrantNote, SegmentMeta, encode, open_segment, segment_name
from imray.log.store import Store


@dataclass(frozen=True)
class Encoded:
    """A segment ready to be put."""

    segment: int
    parts: Parts
    digest: bytes


class Writer:
    """Writes segment after segment: `encode` one while others are in `put`, as many as the store's `puts_at_once`.

    After any error it is closed, and every later call raises that error again: a new writer must read the log first."""

    def __init__(
        self,
        store: Store,
        shard: int,
        progress: LogProgress,
        sequencer: int = 0,
        by_home: bool = False,
    ) -> None:
        """Goes on after what was read of the log; `fence` must come first. `shard` is the log's number."""
        self._store = store
        self.shard = shard
        self.segment = progress.segment
        """The last one that was encoded."""
        self._following = progress.following
        """The number of the next one."""
        self._window_before = progress.window
        self._look_from = progress.following
        """Where to look for another writer: after the last one of which all before are known to be durable."""
        self.epoch = progress.epoch
        self.digest = progress.digest
        self.sequencer = sequencer
        self.nonce = f"{store.writer_id}-{secrets.token_hex(8)}"
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
        self.acked(encoded.segment)
        return encoded.segment, encoded.digest

    def acked(self, segment: int) -> None:
        """All segments up to one are durable; called in their order."""
        self._look_from = self._following if segment == self.segment else segment + 1

    def encode(self, table: pa.Table, server_ts: int, grants: Sequence[GrantNote] = (), sequencer: int = 0) -> Encoded:
        """The next segment's file. Its place in the chain is fixed from now on, so it must be put."""
        self.check()
        number = self._following
        is_fence = not table.num_rows
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
            window=self._store.puts_at_once if is_fence else 1,
            following=number + self._window_before if is_fence and self._window_before > 1 else 0,
        )
        parts, digest = encode(table, meta)
        self.segment = number
        self.digest = digest
        # whoever is fenced off acks nothing above the fence, but may have so many puts on their way
        self._following = number + (self._window_before if is_fence else 1)
        return Encoded(number, parts, digest)

    def put(self, encoded: Encoded) -> None:
        """Make an encoded segment durable.

        FencedError: another writer owns the log. StorageError: unknown whether it landed. Both: stop for good."""
        self.check()
        try:
            self._put(encoded.segment, encoded.parts, encoded.digest)
        except Exception as e:
            self._stopped = e
            raise

    def _put(self, segment: int, parts: Parts, digest: bytes) -> None:
        name = segment_name(self.shard, segment)
        if self._store.put_if_absent(name, parts):
            return
        data = self._store.get(name)
        if data is None:
            if marked(self._store, self.shard) >= segment:
                raise FencedError(f"{name} was taken, and is merged and deleted by now")
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
        own = self._store.writer_id if or_own_process else self.nonce
        number = self._look_from
        while (data := self._store.get(name := segment_name(self.shard, number))) is not None:
            try:
                meta = open_segment(data, name).meta
            except CorruptError:
                return False  # this writer's own segments are whole before they have their name
            if not meta.nonce.startswith(own):
                return False
            number = meta.fence.following if meta.fence is not None else number + 1  # its own, on its way
        if self._look_from == self._following:
            return True  # the only name that another may have taken is that of its fence, which is never deleted
        # of what is on its way some may have landed, below a successor's fence, and be merged and deleted by now
        return marked(self._store, self.shard) < number
