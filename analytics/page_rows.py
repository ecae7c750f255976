"""The rows of a range of numbers, wherever they were read: in the asked order, cut to a page, each number explained.

Owns no reading (`analytics.history`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from imray.core.errors import CorruptError
from imray.log.page_schema import MESSAGES_SCHEMA
from imray.log.schema import RecordKind, VoidRecord

I64 = npt.NDArray[np.int64]
Void = tuple[int, int, str]

ROWS_SCHEMA = pa.schema([pa.field("kind", pa.int8()), *MESSAGES_SCHEMA])
"""A page's messages and the void records between them."""


@dataclass(frozen=True)
class ConversationRows:
    """Rows of one conversation, ascending, and their numbers at hand."""

    seq: I64
    table: pa.Table
    """ROWS_SCHEMA, in one chunk."""
    has_voids: bool
    """Then rows below a number may reach above it."""

    @classmethod
    def of(cls, table: pa.Table) -> ConversationRows:
        """The rows of a table of ROWS_SCHEMA, which is sorted."""
        has_voids = bool((table["kind"].to_numpy() == RecordKind.VOID).any())
        return cls(table["conv_seq"].to_numpy(), table.combine_chunks(), has_voids)

    def between(self, low: int, high: int) -> pa.Table:
        """Those of the numbers low..high, and with voids all below."""
        first = 0 if self.has_voids else int(np.searchsorted(self.seq, low))
        end = int(np.searchsorted(self.seq, high, "right"))
        return self.table.slice(first, max(0, end - first))


class PageRows:
    """Rows of one conversation, for the numbers of a range."""

    def __init__(self, asked: tuple[int, int], descending: bool) -> None:
        self.range = asked
        self.voids: list[Void] = []
        """Those that reach into the range: first, last number, reason."""
        self._descending = descending
        self._parts: list[pa.Table] = []
        self._seq: I64 = np.empty(0, np.int64)
        """Of the messages, as they came."""

    @property
    def numbers(self) -> int:
        """How many numbers the range has."""
        return self.range[1] - self.range[0] + 1

    @property
    def explained(self) -> bool:
        """Whether each number is a message or void."""
        low, high = self.range
        void = sum(min(b, high) - max(a, low) + 1 for a, b, _ in self.voids)
        return len(self._seq) + void >= self.numbers and len(_missing(self._seq, self.voids, low, high)) == 0

    def add(self, tables: Sequence[pa.Table]) -> None:
        """Rows of ROWS_SCHEMA, voids among them that may not reach into the range."""
        low, high = self.range
        for table in tables:
            kind = table["kind"].to_numpy()
            if kind.any():
                seq = table["conv_seq"].to_numpy()
                self._add_voids(table.filter(pa.array(kind == RecordKind.VOID)))
                table = table.filter(pa.array((kind == RecordKind.MESSAGE) & (seq >= low) & (seq <= high)))
            if table.num_rows:
                self._parts.append(table)
                self._seq = np.concatenate([self._seq, table["conv_seq"].to_numpy()])

    def _add_voids(self, rows: pa.Table) -> None:
        low, high = self.range
        for first, body in zip(rows["conv_seq"].to_pylist(), rows["body"].to_pylist(), strict=True):
            void = msgspec.json.decode(body, type=VoidRecord)
            if first <= high and void.last >= low:
                self.voids.append((first, void.last, void.reason))

    def cut(self, room: int, limit: int, topic: str | None, at_least_one: bool) -> PageRows:
        """The part, from the asked end, whose messages (of a topic, or all) fit in `room` bytes and are `limit` at
        most."""
        messages = self.messages(topic)
        lengths = pc.fill_null(pc.binary_length(messages["body"]), 0).to_numpy().astype(np.int64)
        fitting = int((np.cumsum(lengths) <= room).sum())
        fitting = max(min(fitting, limit), 1 if at_least_one else 0)
        if fitting >= messages.num_rows:
            return self
        low, high = self.range
        beyond = messages["conv_seq"][fitting].as_py()
        part = PageRows((beyond + 1, high) if self._descending else (low, beyond - 1), self._descending)
        low, high = part.range
        part.voids = [v for v in self.voids if v[0] <= high and v[1] >= low]
        part._parts = self._parts
        part._seq = self._seq
        return part

    def messages(self, topic: str | None) -> pa.Table:
        """The messages of the range (of a topic, or all), in the asked order; MESSAGES_SCHEMA."""
        if not self._parts:
            return MESSAGES_SCHEMA.empty_table()
        low, high = self.range
        order = np.argsort(self._seq, kind="stable")
        seq = self._seq[order]
        order = order[(seq >= low) & (seq <= high)]
        if self._descending:
            order = order[::-1]
        table = pa.concat_tables(self._parts).select(MESSAGES_SCHEMA.names)
        if topic is not None:
            there = pc.fill_null(pc.equal(table["topic"], topic), False).to_numpy()
            order = order[there[order]]
        return table.take(pa.array(order))

    def check(self, conv_id: str, file: str) -> None:
        """CorruptError unless each number is one message or in one void range: nothing is left out silently."""
        low, high = self.range
        seq = np.sort(self._seq[(self._seq >= low) & (self._seq <= high)])
        void = [np.arange(max(a, low), min(b, high) + 1) for a, b, _ in self.voids]
        there = np.sort(np.concatenate([seq, *void])) if void else seq
        if len(there) == high - low + 1 and (there == np.arange(low, high + 1)).all():
            return
        missing = _missing(seq, self.voids, low, high)
        number = int(missing[0]) if len(missing) else int(there[:-1][np.diff(there) == 0][0])
        what = "is neither a message nor void" if len(missing) else "stands in the log twice"
        raise CorruptError(file, f"this file, a later one, or a partition's, {conv_id!r}", f"number {number} {what}")


def _missing(seq: I64, voids: Sequence[Void], low: int, high: int) -> I64:
    """The numbers low..high that are neither in `seq` nor void."""
    there = np.zeros(high - low + 1, np.bool_)
    there[seq[(seq >= low) & (seq <= high)] - low] = True
    for first, last, _ in voids:
        there[max(first - low, 0) : max(last + 1 - low, 0)] = True
    missing: I64 = np.flatnonzero(~there) + low
    return missing
