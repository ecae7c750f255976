"""Pulls over a live connection: pages of history in fair turns, none larger than one frame should be.

Owns where a page is cut. Does not own turns (`api.turns`), nor how a page is found.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from api.auth import Caller
from api.checks import TOPIC_BYTES_MAX, invalid
from api.live_formats import Format, live_holes, live_messages
from api.live_items import LiveHole, LiveMessage, PageItem, PullItem
from api.problems import refused
from api.turns import SMALL_BYTES, Pulls
from imray.core.errors import InvalidError
from imray.core.pages import Page, PageAsk
from imray.core.replies import Refusal
from imray.core.routing import check_conv_id, check_text
from imray.engine.engine import Engine
from imray.log.message_rows import message_rows
from imray.settings import Settings

PAGE_BYTES_MAX: Final = 512 * 1024
"""Of one page as it is written, about; or one message. Clients take 1 MiB in one frame by default, and the largest body
may take 384 KB in JSON. The rest follows under `next`."""
_ROW_BYTES: Final = 240
"""Of a message beside its texts: the names of its fields, its numbers and its id."""
_HOLE_BYTES: Final = 100
_ESCAPED_BYTES: Final = np.ones(256, np.uint8)
"""In JSON, by byte."""
_ESCAPED_BYTES[:32] = 6
_ESCAPED_BYTES[[ord('"'), ord("\\")]] = 2


class LivePages:
    """Pulls pages, each in its turn."""

    def __init__(self, engine: Engine, pulls: Pulls) -> None:
        self._engine = engine
        self._pulls = pulls
        self._encoders = ThreadPoolExecutor(1, "live-pages")
        """For large pages: the event loop answers others meanwhile."""

    async def pull(self, item: PullItem, caller: Caller, spoken: Format) -> PageItem:
        """One page. ProblemError where there is none."""
        ask = _ask(item, self._engine.settings)
        async with self._pulls.turn(self._engine.shard_of(ask.conv_id), caller.sender, ask.limit):
            found = await self._engine.history(ask)
            if isinstance(found, Refusal):
                raise refused(found, caller.service)
            located, page = found
            # before the next turn is given
            size = page.messages.nbytes
            large = self._pulls.hold_page(caller.sender, size)
        try:
            table, holes, following = cut(page, ask.descending, PAGE_BYTES_MAX, spoken.texts_only)
            messages = await self._rows(table, spoken)
        finally:
            if large:
                self._pulls.taken(caller.sender, size)
        return PageItem(item.ref, ask.conv_id, messages, holes, located.stable, located.epoch, following)

    async def _rows(self, table: pa.Table, spoken: Format) -> list[LiveMessage]:
        if table.nbytes <= SMALL_BYTES:
            return live_messages(message_rows(table), spoken.texts_only)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._encoders, lambda: live_messages(message_rows(table), spoken.texts_only))


def cut(
    page: Page[pa.Table], descending: bool, bytes_max: int, texts_only: bool
) -> tuple[pa.Table, list[LiveHole], int | None]:
    """The beginning of a page, with at least one message: its messages, its holes, and where the next page begins.

    It takes about `bytes_max` as it is written; `texts_only`: as JSON."""
    table = page.messages
    if table.num_rows <= 1:
        return table, live_holes(page.holes), page.next
    # no byte becomes less than one: what is behind this is not looked at
    near = table.slice(0, int(np.searchsorted(np.cumsum(_lengths(table, "body")), bytes_max)) + 1)
    sizes = np.cumsum(_written_bytes(near, texts_only))
    if page.holes:
        seqs = near.column("conv_seq").to_numpy()
        lows = np.sort(np.array([hole[0] for hole in page.holes]))
        before = np.searchsorted(lows, seqs)
        sizes += _HOLE_BYTES * (len(lows) - before if descending else before)
    kept = int(np.searchsorted(sizes, bytes_max, side="right"))
    if kept >= table.num_rows:
        return table, live_holes(page.holes), page.next
    table = table.slice(0, max(kept, 1))
    last = table.column("conv_seq")[-1].as_py()
    holes = [hole for hole in page.holes if (hole[0] > last if descending else hole[0] < last)]
    return table, live_holes(holes), last


def _lengths(table: pa.Table, name: str) -> Any:
    return pc.fill_null(pc.binary_length(table.column(name)), 0).to_numpy().astype(np.int64)


def _written_bytes(table: pa.Table, texts_only: bool) -> Any:
    """What each row takes, or a little more."""
    # texts beside the body have no control characters
    sizes = _ROW_BYTES + 2 * sum(_lengths(table, name) for name in ("sender", "topic", "content_type"))
    bodies = _lengths(table, "body")
    if not texts_only:
        return sizes + bodies
    joined = np.frombuffer(b"".join(body or b"" for body in table.column("body").to_pylist()), np.uint8)
    until = np.concatenate(([0], np.cumsum(_ESCAPED_BYTES[joined], dtype=np.int64)))
    ends = np.cumsum(bodies)
    escaped = until[ends] - until[ends - bodies]
    return sizes + np.maximum(escaped, bodies * 4 // 3 + 4)  # base64, where it is no text


def _ask(item: PullItem, settings: Settings) -> PageAsk:
    limit = settings.history_limit_default if item.limit is None else item.limit
    if not 1 <= limit <= settings.history_limit_max:
        raise invalid(f"limit={limit}: a whole number from 1 to {settings.history_limit_max}")
    try:
        check_conv_id(item.conv_id)
        if item.topic is not None:
            check_text(item.topic, "topic", TOPIC_BYTES_MAX)
    except InvalidError as e:
        raise invalid(str(e)) from e
    return PageAsk(item.conv_id, item.after, item.before, limit, item.order == "desc", item.topic)
