"""Pulls over a live connection: pages of history in fair turns, none larger than one frame should be.

Owns where a page is cut. Does not own turns (`api.turns`), nor how a page is found.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Final

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

_BODIES_BYTES_MAX: Final = 256 * 1024
"""Bodies of one page: what clients take in one frame by default (1 MiB), in most texts and in base64. The rest follows
under `next`."""


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
            table, holes, following = cut(page, ask.descending, _BODIES_BYTES_MAX)
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


def cut(page: Page[pa.Table], descending: bool, bytes_max: int) -> tuple[pa.Table, list[LiveHole], int | None]:
    """The beginning of a page, with at least one message: its messages, its holes, and where the next page begins."""
    table = page.messages
    sizes = pc.fill_null(pc.binary_length(table.column("body")), 0).to_numpy()
    kept = int(np.searchsorted(np.cumsum(sizes), bytes_max, side="right"))
    if kept >= table.num_rows or table.num_rows <= 1:
        return table, live_holes(page.holes), page.next
    table = table.slice(0, max(kept, 1))
    last = table.column("conv_seq")[-1].as_py()
    holes = [hole for hole in page.holes if (hole[0] > last if descending else hole[0] < last)]
    return table, live_holes(holes), last


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
