"""Pages of a conversation's history: exactly the files that can hold them, verified, then read by DuckDB.

Owns the choice of files and the answer's range. Does not own where numbers are: a shard says it (`Located`), and the
postings of sealed intervals say it for what the shard has let go of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analytics.spans import FILES_MAX, Span, Window, choose, covered, mirrored
from analytics.verified import Verified, Verifier
from analytics.views import connect
from imray.core.errors import CorruptError, DerivedError, UnavailableError
from imray.core.intervals import Interval
from imray.core.pages import Page
from imray.core.routing import offset_of
from imray.log.page_schema import MESSAGES_SCHEMA as MESSAGES_SCHEMA
from imray.log.schema import RecordKind, VoidRecord
from imray.log.segment import segment_name
from imray.settings import Settings

_IN_RANGE = "conv_id = $conv_id AND conv_seq <= $high AND (conv_seq >= $low OR kind = 1)"
"""Messages of the range, and void ranges that may reach into it from below."""
_FILES = "read_parquet($files, hive_partitioning = false)"
_ASKED = "(kind = 1 OR (kind = 0 AND ($topic IS NULL OR topic = $topic)))"
"""Voids, and messages of the topic that was asked for; no records of hot groups."""
_COLUMNS = ", ".join(MESSAGES_SCHEMA.names)
_ROWS = f"SELECT kind, {_COLUMNS} FROM {_FILES} WHERE {_IN_RANGE} AND {_ASKED} ORDER BY conv_seq"
_SIZES = f"""
SELECT conv_seq, octet_length(body) AS bytes FROM {_FILES}
WHERE {_IN_RANGE} AND {_ASKED} AND kind = 0 ORDER BY conv_seq
"""
_NUMBERS = f"SELECT conv_seq FROM {_FILES} WHERE {_IN_RANGE} AND kind = 0 ORDER BY conv_seq"
_SPANS = f"""
SELECT DISTINCT place, "first", "last" FROM {_FILES}
WHERE conv_id = $conv_id AND "first" <= $high AND "last" >= $low ORDER BY {{edge}} LIMIT {FILES_MAX + 1}
"""

TOPIC_NUMBERS_MAX = 50_000
"""Numbers that are looked through for one page of a topic: about as long as a page of all topics takes at most. A topic
without messages there gives an empty page, and `next` leads on."""
_TOPIC_NUMBERS_MIN = 1000

_NONE = np.empty(0, np.int64)


@dataclass
class _OpenPage:
    """A page that is being filled."""

    room: int
    """Bytes of bodies that it may still take."""
    limit: int
    topic: str | None
    tables: list[pa.Table] = field(default_factory=list)
    holes: list[tuple[int, int, str]] = field(default_factory=list)
    rows: int = 0
    files: int = 0
    looked: int = 0
    """Numbers that were looked through."""
    full: bool = False

    @property
    def left(self) -> int:
        """Messages that it may still take."""
        return self.limit - self.rows

    @property
    def numbers(self) -> int:
        """How many numbers to look through next; each may be a message of the page, or few of them are."""
        if self.topic is None:
            return self.left
        return min(max(_TOPIC_NUMBERS_MIN, self.left, self.looked), TOPIC_NUMBERS_MAX - self.looked)

    @property
    def ended(self) -> bool:
        """Whether it takes no more; without a topic not before it has a message."""
        if self.full or self.left <= 0:
            return True
        if self.topic is None:
            return self.files >= FILES_MAX and self.rows > 0
        return self.files >= FILES_MAX or self.looked >= TOPIC_NUMBERS_MAX


class HistoryReader:
    """Reads pages from a data folder. Not thread-safe. Holds no rows between pages: DuckDB over 50 small files takes
    about 15 ms, Arrow tables of them kept in memory 5."""

    def __init__(self, data: Path | str, settings: Settings) -> None:
        self._settings = settings
        self._verifier = Verifier(data)
        self._connection = connect(settings)

    def read(
        self,
        shard: int,
        conv_id: str,
        stable: int,
        intervals: Sequence[Interval],
        spans: Sequence[Span],
        *,
        after: int,
        before: int | None,
        limit: int,
        descending: bool,
        topic: str | None = None,
    ) -> Page[pa.Table]:
        """The messages with after < conv_seq < before, none above `stable`, at most `limit`, nearest the asked end;
        with `topic` those of this topic only (then a page may have fewer or none, and `next` leads on all the same).

        `spans` are (place, first, last number) since the last checkpoint, `intervals` lead to those before. Ends early
        where the bodies would pass `history_bytes_max`, but not before one message. CorruptError: a file does not
        verify, or a number is no message and no void. DerivedError: a sealed file was merged meanwhile, or is damaged:
        have the shard look, ask it where the numbers are, and again."""
        low = after + 1
        high = stable if before is None else min(stable, before - 1)
        page = _OpenPage(self._settings.history_bytes_max, limit, topic)
        # mirrored, the descending case is the ascending one: from `begin` up to `end`, of numbers with the other sign
        begin, end = mirrored(low, high, descending)
        at = begin
        while at <= end and not page.ended:
            now = mirrored(at, end, descending)
            numbers = page.numbers
            found, horizon = self._find(shard, conv_id, intervals, spans, now, numbers, descending)
            window = choose(found, now, numbers, horizon, descending)
            reached = self._fill(page, shard, conv_id, window, descending)
            at = min(end, reached) + 1
        low, high = mirrored(begin, at - 1, descending)
        following = None if at > end else (low if descending else high)
        messages = pa.concat_tables([MESSAGES_SCHEMA.empty_table(), *page.tables])
        holes = sorted((max(a, low), min(b, high), why) for a, b, why in page.holes)
        return Page(messages, holes, low, high, following)

    def _find(
        self,
        shard: int,
        conv_id: str,
        intervals: Sequence[Interval],
        spans: Sequence[Span],
        asked: tuple[int, int],
        numbers: int,
        descending: bool,
    ) -> tuple[list[Span], int | None]:
        """The spans for the next `numbers` numbers, and up to which number they are all there (None: all asked).

        Recent ones may lie between sealed ones: a block that was lost is made void after others above it were
        sealed."""
        low, high = asked
        recent = [s for s in spans if s[1] <= high and s[2] >= low]
        wanted = (max(low, high - numbers + 1), high) if descending else (low, min(high, low + numbers - 1))
        if not intervals or covered(recent, *wanted):
            return recent, None
        found = self._sealed(shard, conv_id, intervals, asked, descending)
        old = list(zip(*(found[name].to_pylist() for name in ("place", "first", "last")), strict=True))
        horizon = None
        if len(old) > FILES_MAX:
            horizon = old[-1][2] + 1 if descending else old[-1][1] - 1
        return [*old, *recent], horizon

    def _sealed(
        self, shard: int, conv_id: str, intervals: Sequence[Interval], asked: tuple[int, int], down: bool
    ) -> pa.Table:
        """The spans that the intervals' postings name, from the asked end, at most FILES_MAX + 1."""
        sql = _SPANS.format(edge='"last" DESC, place DESC' if down else '"first", place')
        try:
            return self._query(sql, [self._verifier.postings(i) for i in intervals], conv_id, *asked)
        except CorruptError as e:
            raise DerivedError(e.file, "it was replaced while it was being read") from e

    def _fill(self, page: _OpenPage, shard: int, conv_id: str, window: Window, descending: bool) -> int:
        """Add a window's messages and holes to the page: how far (mirrored) it answers now. That may be before the
        window's end, where the page is full, or beyond it, where a void range reaches out of it."""
        files = self._files(shard, window.log_positions)
        if not files:
            _check_explained(_NONE, [], *window.range, segment_name(shard, 1), conv_id)
        page.files += len(files)
        if page.topic is not None or window.numbers * self._settings.body_bytes_max > page.room:
            fitting = self._fit(files, conv_id, window, page, descending)
            page.full = fitting != window
            window = fitting
        page.looked += window.numbers
        low, high = window.range
        begins = segment_name(*offset_of(shard, window.first))
        rows = self._query(_ROWS, files, conv_id, low, high, topic=page.topic)
        messages = rows.filter(pc.equal(rows["kind"], RecordKind.MESSAGE)).select(MESSAGES_SCHEMA.names)
        voids = _voids(rows.filter(pc.equal(rows["kind"], RecordKind.VOID)), low, high)
        there = messages if page.topic is None else self._query(_NUMBERS, files, conv_id, low, high)
        _check_explained(there["conv_seq"].to_numpy(), voids, low, high, begins, conv_id)
        page.rows += messages.num_rows
        page.room -= pc.sum(pc.binary_length(messages["body"])).as_py() or 0
        page.full |= page.room <= 0 and page.rows > 0
        page.holes += voids
        page.tables.append(_ordered(messages, descending).cast(MESSAGES_SCHEMA))
        ends = [mirrored(a, b, descending)[1] for a, b, _ in voids]
        return max([mirrored(low, high, descending)[1], *ends])

    def _files(self, shard: int, log_positions: Sequence[int]) -> list[Verified[Any]]:
        """The verified segments at some places, log by log."""
        by_log: dict[int, list[int]] = {}
        for log_position in log_positions:
            log, segment = offset_of(shard, log_position)
            by_log.setdefault(log, []).append(segment)
        return [file for log, segments in by_log.items() for file in self._verifier.segments(log, segments)]

    def _fit(
        self, files: list[Verified[Any]], conv_id: str, window: Window, page: _OpenPage, descending: bool
    ) -> Window:
        """The part of a window, from the asked end, whose messages fit into the page; one fits into any."""
        sizes = _ordered(self._query(_SIZES, files, conv_id, *window.range, topic=page.topic), descending)
        fitting = int((np.cumsum(sizes["bytes"].to_numpy().astype(np.int64)) <= page.room).sum())
        fitting = max(min(fitting, page.left), 0 if page.rows else 1)
        if fitting >= sizes.num_rows:
            return window
        low, high = window.range
        beyond = sizes["conv_seq"][fitting].as_py()
        return window.cut((beyond + 1, high) if descending else (low, beyond - 1))

    def _query(
        self, sql: str, files: list[Verified[Any]], conv_id: str, low: int, high: int, **more: str | None
    ) -> pa.Table:
        params = {"files": [str(f.path) for f in files], "conv_id": conv_id, "low": low, "high": high, **more}
        try:
            return self._connection.sql(sql, params=params).to_arrow_table()
        except duckdb.Error as e:
            raise UnavailableError(f"history: {' '.join(str(e).split())}") from e
        finally:
            self._verifier.unchanged(files)


def _ordered(table: pa.Table, descending: bool) -> pa.Table:
    return table.take(pa.array(np.arange(table.num_rows)[::-1])) if descending else table


def _voids(rows: pa.Table, low: int, high: int) -> list[tuple[int, int, str]]:
    """The void ranges that reach into low..high."""
    voids = []
    for first, body in zip(rows["conv_seq"].to_pylist(), rows["body"].to_pylist(), strict=True):
        void = msgspec.json.decode(body, type=VoidRecord)
        if first <= high and void.last >= low:
            voids.append((first, void.last, void.reason))
    return voids


def _check_explained(
    seq: np.ndarray, voids: list[tuple[int, int, str]], low: int, high: int, file: str, conv_id: str
) -> None:
    """CorruptError unless each number low..high is one message or in one void range: nothing is left out silently."""
    void = [np.arange(max(a, low), min(b, high) + 1) for a, b, _ in voids]
    there = np.sort(np.concatenate([seq, *void])) if void else seq
    if len(there) == high - low + 1 and (not len(there) or (there == np.arange(low, high + 1)).all()):
        return
    missing = np.setdiff1d(np.arange(low, high + 1), there)
    number = int(missing[0]) if len(missing) else int(there[:-1][np.diff(there) == 0][0])
    what = "is neither a message nor void" if len(missing) else "stands in the log twice"
    raise CorruptError(file, f"this segment, a later one, or a partition's, {conv_id!r}", f"number {number} {what}")
