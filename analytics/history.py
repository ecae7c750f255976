"""Pages of a conversation's history: exactly the files that can hold them, verified, then read by DuckDB.

Owns the choice of files and the answer's range. Does not own where numbers are: a shard says it (`Located`), and the
postings of sealed intervals say it for what the shard has let go of.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from analytics.verified import Verifier
from analytics.views import connect
from imray.core.errors import UnavailableError
from imray.log.rows import Void
from imray.log.sealed import Interval, read_postings
from imray.settings import Settings

_POSTINGS_BYTES_MAX = 128 * 1024 * 1024
"""Postings kept in memory: they never change, and every page of an old conversation needs them."""
_FILES_MAX = 512
"""Segments in one page: a conversation with one message a commit is read in steps, `next` leads on."""

_COLUMNS = "conv_seq, kind, client_msg_id, sender, topic, content_type, client_ts, server_ts, body"
_QUERY = """
SELECT {columns} FROM read_parquet($files)
WHERE conv_id = $conv_id AND conv_seq <= $high AND (conv_seq >= $low OR kind = 1)
ORDER BY conv_seq {order}
"""

Span = tuple[int, int, int]


@dataclass(frozen=True)
class HistoryPage:
    """Messages in the asked order, the void ranges between them, and where the next page begins (None: no more)."""

    messages: pa.Table
    holes: list[tuple[int, int, str]]
    next: int | None


class HistoryReader:
    """Reads pages from a data folder. Not thread-safe."""

    def __init__(self, data: Path | str, settings: Settings) -> None:
        self._settings = settings
        self._verifier = Verifier(data)
        self._connection: duckdb.DuckDBPyConnection = connect(settings)
        self._connection.execute("SET TimeZone = 'UTC'")
        self._postings: OrderedDict[Interval, pa.Table] = OrderedDict()

    def read(
        self,
        shard: int,
        conv_id: str,
        stable: int,
        intervals: Sequence[tuple[int, int, int]],
        spans: Sequence[Span],
        *,
        after: int,
        before: int | None,
        limit: int,
        descending: bool,
    ) -> HistoryPage:
        """The messages with after < conv_seq < before, none above `stable`, at most `limit`, nearest the asked end.

        `spans` are (segment, first, last number) since the last checkpoint, `intervals` (first segment, last segment,
        ids) lead to those before. CorruptError where a file does not verify; UnavailableError where files were merged
        meanwhile: ask the shard again."""
        low, high = after + 1, stable if before is None else min(stable, before - 1)
        if low > high:
            return HistoryPage(self._messages([], conv_id, 1, 0, descending), [], None)
        found = [*self._sealed_spans(shard, conv_id, intervals, low, high), *spans]
        chosen, edge = _choose(found, low, high, limit, descending)
        files = [str(s.path) for s in self._verifier.segments(shard, sorted({s for s, _, _ in chosen}))]
        if descending:
            low = max(low, edge)
        else:
            high = min(high, edge)
        rows = self._messages(files, conv_id, low, high, descending)
        voids = rows.filter(pc.equal(rows["kind"], 1))
        messages = rows.filter(pc.equal(rows["kind"], 0))
        cut = _cut(messages["body"], limit, self._settings.history_bytes_max)
        if cut < messages.num_rows:
            messages = messages.slice(0, cut)
            last = messages["conv_seq"][-1].as_py()
            low, high = (last, high) if descending else (low, last)
        more = low > after + 1 if descending else high < (stable if before is None else min(stable, before - 1))
        return HistoryPage(messages, _holes(voids, low, high), (low if descending else high) if more else None)

    def _sealed_spans(
        self, shard: int, conv_id: str, intervals: Sequence[tuple[int, int, int]], low: int, high: int
    ) -> list[Span]:
        found: list[Span] = []
        for first, last, ids in intervals:
            table = self._interval(Interval(shard, first, last, ids))
            wanted = (pc.field("conv_id") == conv_id) & (pc.field("first") <= high) & (pc.field("last") >= low)
            rows = table.filter(wanted).to_pylist()
            found += [(r["segment"], r["first"], r["last"]) for r in rows]
        return found

    def _interval(self, interval: Interval) -> pa.Table:
        table = self._postings.get(interval)
        if table is not None:
            self._postings.move_to_end(interval)
            return table
        if not (self._verifier.data / interval.name("postings")).exists():
            raise UnavailableError("the sealed files were merged meanwhile: ask the shard again")
        table = self._postings[interval] = read_postings(self._verifier.store, interval)
        while len(self._postings) > 1 and sum(t.nbytes for t in self._postings.values()) > _POSTINGS_BYTES_MAX:
            self._postings.popitem(last=False)
        return table

    def _messages(self, files: list[str], conv_id: str, low: int, high: int, descending: bool) -> pa.Table:
        if not files:
            return _EMPTY
        sql = _QUERY.format(columns=_COLUMNS, order="DESC" if descending else "ASC")
        params = {"files": files, "conv_id": conv_id, "low": low, "high": high}
        return self._connection.sql(sql, params=params).to_arrow_table()


_EMPTY = pa.table(
    {
        "conv_seq": pa.array([], pa.int64()),
        "kind": pa.array([], pa.int8()),
        "client_msg_id": pa.array([], pa.binary()),
        "sender": pa.array([], pa.string()),
        "topic": pa.array([], pa.string()),
        "content_type": pa.array([], pa.string()),
        "client_ts": pa.array([], pa.timestamp("ms", "UTC")),
        "server_ts": pa.array([], pa.timestamp("ms", "UTC")),
        "body": pa.array([], pa.binary()),
    }
)


def _choose(found: list[Span], low: int, high: int, limit: int, descending: bool) -> tuple[list[Span], int]:
    """The spans to read, from the asked end until they hold `limit` numbers, and the last number they answer for."""
    ordered = sorted((s for s in found if s[1] <= high and s[2] >= low), key=lambda s: s[1], reverse=descending)
    chosen: list[Span] = []
    numbers = 0
    for span in ordered:
        if numbers >= limit or len(chosen) >= _FILES_MAX:
            return chosen, span[2] + 1 if descending else span[1] - 1
        chosen.append(span)
        numbers += min(span[2], high) - max(span[1], low) + 1
    return chosen, low if descending else high


def _cut(bodies: pa.ChunkedArray, limit: int, bytes_max: int) -> int:
    """How many messages fit: at most `limit`, at most so many bytes, at least one."""
    if not len(bodies):
        return 0
    sizes = pc.cumulative_sum(pc.cast(pc.binary_length(bodies), pa.int64()))
    fitting = pc.sum(pc.less_equal(sizes, bytes_max)).as_py() or 0
    return min(limit, max(1, fitting))


def _holes(voids: pa.Table, low: int, high: int) -> list[tuple[int, int, str]]:
    holes = []
    for first, body in zip(voids["conv_seq"].to_pylist(), voids["body"].to_pylist(), strict=True):
        void = msgspec.json.decode(body, type=Void)
        if first <= high and void.last >= low:
            holes.append((max(first, low), min(void.last, high), void.reason))
    return sorted(holes)
