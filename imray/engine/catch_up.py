"""Reads of history for those who listen: each page once, however many want it.

Owns which pages are read, shared and remembered for a while. Does not own fair turns between callers of the HTTP API
(`api.turns`), nor who is told what (`imray.engine.live_feed`).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import NamedTuple, Protocol

import pyarrow as pa

from imray.core.pages import Page, PageAsk
from imray.core.replies import Located, Refusal, Refused
from imray.engine.batches import cut, pieces, size_of
from imray.engine.listening import Batch
from imray.log.message_rows import message_rows

_BLOCK = 2048
"""Numbers of one page: pages begin at its multiples, so that those who want nearly the same share one."""
_PAGE_BYTES = 1000
"""Of a page that holds nothing."""
_READS_AT_ONCE_MAX = 8
"""Of one shard; more would only queue in the readers."""


class PageSource(Protocol):
    """Where pages come from."""

    def shard_of(self, conv_id: str) -> int:
        """The shard that owns a conversation."""

    async def history(self, ask: PageAsk) -> tuple[Located, Page[pa.Table]] | Refusal:
        """One page, and where the conversation stood when it was read."""


class _Key(NamedTuple):
    conv_id: str
    after: int
    upto: int


class CatchUp:
    """The pages of one gateway. Belongs to one event loop."""

    def __init__(self, source: PageSource, bytes_max: int) -> None:
        """`bytes_max`: of pages that are remembered."""
        self._source = source
        self._bytes_max = bytes_max
        self._bytes = 0
        self._known: OrderedDict[_Key, tuple[list[Batch], int]] = OrderedDict()
        self._reading: dict[_Key, asyncio.Task[list[Batch] | Refusal]] = {}
        self._turns: dict[tuple[int, bool], asyncio.Semaphore] = {}
        """By shard, and whether it is for a hole: a shard that does not answer holds up its own reads only, and who
        catches up does not hold up those who are live."""
        self.reads = 0
        """Pages that were read: for figures."""

    async def read(self, conv_id: str, after: int, upto: int, hole: bool = False) -> list[Batch] | Refusal:
        """What follows `after`, at most to `upto`, which is final: at least one number, in pieces that follow one
        another. What stands in them is shared: nobody may change it. `hole`: those who are live wait for it."""
        begin = after - after % _BLOCK
        found = await self._page(_Key(conv_id, begin, min(begin + _BLOCK, upto)), hole)
        if isinstance(found, Refusal):
            return found
        if found[-1].upto <= after:
            # bodies are large, and the page ends before the place that is wanted
            found = await self._page(_Key(conv_id, after, min(begin + _BLOCK, upto)), hole)
            if isinstance(found, Refusal):
                return found
        return [cut(piece, after, upto) for piece in found if piece.upto > after]

    async def _page(self, key: _Key, hole: bool) -> list[Batch] | Refusal:
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known[0]
        reading = self._reading.get(key)
        if reading is None:
            # a task of its own: whoever asked first may give up
            reading = asyncio.create_task(self._read(key, hole))
            self._reading[key] = reading
            reading.add_done_callback(lambda _: self._reading.pop(key, None))
        return await asyncio.shield(reading)

    async def _read(self, key: _Key, hole: bool) -> list[Batch] | Refusal:
        which = (self._source.shard_of(key.conv_id), hole)
        async with self._turns.setdefault(which, asyncio.Semaphore(_READS_AT_ONCE_MAX)):
            self.reads += 1
            ask = PageAsk(key.conv_id, key.after, key.upto + 1, key.upto - key.after, False)
            found = await self._source.history(ask)
        if isinstance(found, Refusal):
            return found
        located, page = found
        if page.high <= key.after or page.low != key.after + 1:
            return Refusal(Refused.UNAVAILABLE, f"history does not reach to {key.upto} yet: it ends at {page.high}")
        rows = message_rows(page.messages)
        made = list(pieces(Batch(key.conv_id, key.after, page.high, located.stable, rows, page.holes)))
        self._remember(key, made, size_of(rows))
        return made

    def _remember(self, key: _Key, made: list[Batch], size: int) -> None:
        size = 2 * size + _PAGE_BYTES  # what it becomes for listeners is about as large
        if size > self._bytes_max:
            return
        self._known[key] = (made, size)
        self._bytes += size
        while self._bytes > self._bytes_max:
            _, (_, gone) = self._known.popitem(last=False)
            self._bytes -= gone

    def close(self) -> None:
        """Read nothing more."""
        for reading in self._reading.values():
            reading.cancel()
