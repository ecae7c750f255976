"""Pages of a conversation's history: rows of the table's runs, and of the segments that are not merged yet.

Owns the answer's range, and that every number in it is explained. Does not own where numbers are: the runs are sorted;
of segments a shard says it (`Located`), and the postings of sealed intervals say it for what the shard has let go of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from analytics.page_rows import PageRows
from analytics.replaced import STARTS_MAX, was_replaced
from analytics.run_rows import RunRows
from analytics.spans import FILES_MAX, Span, Window, choose, covered, mirrored, nearest
from analytics.tail import PostingsReader, TailReader
from imray.core.errors import CorruptError, StorageError, UnavailableError
from imray.core.intervals import Interval
from imray.core.pages import Page
from imray.core.routing import log_of, offset_of
from imray.history.layout import run_prefix
from imray.history.snapshot import TableSnapshot
from imray.history.table import Table
from imray.log.page_schema import MESSAGES_SCHEMA as MESSAGES_SCHEMA
from imray.log.segment import segment_name
from imray.log.store import LocalStore
from imray.settings import Settings

TOPIC_NUMBERS_MAX = 50_000
"""Numbers that are looked through for one page of a topic: about as long as a page of all topics takes at most. A topic
without messages there gives an empty page, and `next` leads on."""
_STEP_NUMBERS_MAX = 512
"""Numbers that are read at once: their bodies (64 KB at most) are in memory before it is known what fits in a page."""


@dataclass(frozen=True)
class Asked:
    """What a page is asked of, and where the shard said that its numbers are."""

    shard: int
    conv_id: str
    stable: int
    intervals: Sequence[Interval]
    spans: Sequence[Span]
    descending: bool


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
            return min(self.left, _STEP_NUMBERS_MAX)
        return min(_STEP_NUMBERS_MAX, TOPIC_NUMBERS_MAX - self.looked)

    @property
    def ended(self) -> bool:
        """Whether it takes no more; without a topic not before it has a message."""
        if self.full or self.left <= 0:
            return True
        if self.topic is None:
            return self.files >= FILES_MAX and self.rows > 0
        return self.files >= FILES_MAX or self.looked >= TOPIC_NUMBERS_MAX


class HistoryReader:
    """Reads pages from a data folder. Not thread-safe. Holds what it decoded, up to `history_cache_bytes`."""

    def __init__(self, data: Path | str, settings: Settings) -> None:
        self._settings = settings
        store = LocalStore(data)
        self._table = Table(store)
        self._snapshot = TableSnapshot()
        eighth = settings.history_cache_bytes // 8
        self._runs = RunRows(store, 5 * eighth)
        self._tail = TailReader(data, 2 * eighth)
        self._postings = PostingsReader(data, eighth)

    @property
    def bytes_read(self) -> int:
        """Bytes of files that were read so far, without the table's log."""
        return self._runs.bytes_read + self._tail.bytes_read + self._postings.bytes_read

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

        `spans` are (place, first, last number) since the last checkpoint, `intervals` lead to those before; what they
        say of merged segments is left out, for the table is read after them. Ends early where the bodies would pass
        `history_bytes_max`, but not before one message. CorruptError: a file does not verify, or a number is no message
        and no void. DerivedError: a sealed file was merged meanwhile, or is damaged: have the shard look, ask it where
        the numbers are, and again. UnavailableError: merging and deleting outran the reader."""
        asked = Asked(shard, conv_id, stable, intervals, spans, descending)
        high = stable if before is None else min(stable, before - 1)
        for _ in range(STARTS_MAX):
            self._snapshot = self._table.snapshot(self._snapshot)
            try:
                return self._page(_unmerged(asked, self._snapshot), after + 1, high, limit, topic)
            except CorruptError as e:
                if not was_replaced(e.file, self._snapshot, self._table.snapshot(self._snapshot)):
                    raise
            except StorageError as e:
                raise UnavailableError(f"history: {e}") from e
        raise UnavailableError("history: what is read was merged and deleted again and again")

    def _page(self, asked: Asked, low: int, high: int, limit: int, topic: str | None) -> Page[pa.Table]:
        """A page of one snapshot, of the numbers low..high."""
        page = _OpenPage(self._settings.history_bytes_max, limit, topic)
        descending = asked.descending
        # mirrored, the descending case is the ascending one: from `begin` up to `end`, of numbers with the other sign
        begin, end = mirrored(low, high, descending)
        at = begin
        while at <= end and not page.ended:
            now = mirrored(at, end, descending)
            numbers = page.numbers
            found, horizon = self._find(asked, now, numbers)
            window = choose(found, now, numbers, horizon, descending)
            reached = self._fill(page, asked, window)
            at = min(end, reached) + 1
        low, high = mirrored(begin, at - 1, descending)
        following = None if at > end else (low if descending else high)
        messages = pa.concat_tables([MESSAGES_SCHEMA.empty_table(), *page.tables])
        holes = sorted((max(a, low), min(b, high), why) for a, b, why in page.holes)
        return Page(messages, holes, low, high, following)

    def _find(self, asked: Asked, now: tuple[int, int], numbers: int) -> tuple[list[Span], int | None]:
        """The spans of unmerged segments for the next `numbers` numbers, and up to which number they are all there
        (None: all asked).

        Recent ones may lie between sealed ones: a block that was lost is made void after others above it were
        sealed."""
        low, high = now
        recent = [s for s in asked.spans if s[1] <= high and s[2] >= low]
        wanted = (max(low, high - numbers + 1), high) if asked.descending else (low, min(high, low + numbers - 1))
        if not asked.intervals or covered(recent, *wanted):
            return recent, None
        old: list[Span] = []
        for interval in asked.intervals:
            spans = self._postings.spans(interval, asked.conv_id, low, high)
            old += [s for s in spans if not _is_merged(s, asked.shard, self._snapshot)]
        old = nearest(old, asked.descending)
        horizon = None
        if len(old) > FILES_MAX:
            horizon = old[-1][2] + 1 if asked.descending else old[-1][1] - 1
        return [*old, *recent], horizon

    def _fill(self, page: _OpenPage, asked: Asked, window: Window) -> int:
        """Add a window's messages and holes to the page: how far (mirrored) it answers now. That may be before the
        window's end, where the page is full, or beyond it, where a void range reaches out of it."""
        descending = asked.descending
        page.files += len(window.log_positions)
        rows = self._rows(asked, window)
        taken = rows.cut(page.room, page.left, page.topic, at_least_one=not page.rows)
        page.full |= taken.range != window.range
        page.looked += taken.numbers
        taken.check(asked.conv_id, self._begins(asked, window))
        messages = taken.messages(page.topic)
        page.rows += messages.num_rows
        page.room -= pc.sum(pc.binary_length(messages["body"])).as_py() or 0
        page.full |= page.room <= 0 and page.rows > 0
        page.holes += taken.voids
        page.tables.append(messages)
        ends = [mirrored(a, b, descending)[1] for a, b, _ in taken.voids]
        return max([mirrored(*taken.range, descending)[1], *ends])

    def _rows(self, asked: Asked, window: Window) -> PageRows:
        """The rows of a window: of segments, and of runs as long as numbers are missing."""
        low, high = window.range
        offsets = sorted(offset_of(asked.shard, position) for position in window.log_positions)
        rows = PageRows(window.range, asked.descending)
        for log, several in groupby(offsets, key=lambda offset: offset[0]):
            merged = self._snapshot.end(log) if log in self._snapshot.merged else None
            numbers = [number for _, number in several]
            rows.add(self._tail.rows(log, numbers, merged, asked.conv_id, low, high))
        if not rows.explained:
            runs = self._snapshot.runs.get(asked.shard, ())
            for found in self._runs.read(runs, asked.conv_id, window.range, asked.stable):
                rows.add([found])
                if rows.explained:
                    break
        return rows

    def _begins(self, asked: Asked, window: Window) -> str:
        """The file in which a number that is missing would stand."""
        if window.log_positions or asked.shard not in self._snapshot.runs:
            return segment_name(*offset_of(asked.shard, window.first))
        return run_prefix(asked.shard)


def _is_merged(span: Span, shard: int, snapshot: TableSnapshot) -> bool:
    log, segment = offset_of(shard, span[0])
    return segment <= snapshot.merged.get(log, 0)


def _unmerged(asked: Asked, snapshot: TableSnapshot) -> Asked:
    """Without what is in the table."""
    merged = snapshot.merged
    if not merged:
        return asked
    intervals = [
        i
        for i in asked.intervals
        if i.last > merged.get(asked.shard, 0)
        or i.partitions is None
        or any(last > merged.get(log_of(asked.shard, slot), 0) for slot, _, last in i.partitions)
    ]
    spans = [s for s in asked.spans if not _is_merged(s, asked.shard, snapshot)]
    return replace(asked, intervals=intervals, spans=spans)
