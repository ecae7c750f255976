"""A page of history, and what is asked for one: the types that the history reader, the gateway and the API share.

Owns the types. Does not own how a page is found (`analytics.history`), sent (`imray.engine.pages`) or shown
(`api.pages`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Generic, TypeVar

import msgspec

from imray.core.intervals import Interval

SEQ_MAX = 2**63 - 1

MessagesT = TypeVar("MessagesT")


class PageAsk(msgspec.Struct, frozen=True):
    """Which numbers of a conversation are wanted: those above `after` and below `before`, nearest the asked end."""

    conv_id: str
    after: int
    before: int | None
    """None: no bound."""
    limit: int
    """Messages, at most."""
    descending: bool
    topic: str | None = None
    """Only messages of this topic; None: all."""


class Page(msgspec.Struct, Generic[MessagesT], frozen=True):
    """Messages in the asked order, the void ranges between them, and where the next page begins.

    Every number from `low` to `high` is a message of the page or in one of its holes, or a message of another topic if
    one topic was asked for; an empty range has high < low."""

    messages: MessagesT
    """An Arrow table; on the way between two processes its bytes, as an Arrow IPC stream."""
    holes: list[tuple[int, int, str]]
    """First number, last number, reason."""
    low: int
    high: int
    next: int | None
    """What goes into `after` (`before`, if descending) of the next call; None: the asked range is exhausted."""


class PageFault(StrEnum):
    """Why there is no page, by what the asker must do."""

    CORRUPT = "corrupt"
    """Stored bytes do not verify: a person must look."""
    DERIVED = "derived"
    """A derived file is missing or damaged: have the shard look at it, and ask again."""
    UNAVAILABLE = "unavailable"
    """Ask the shard where the numbers are, and again."""


class NoPage(msgspec.Struct, frozen=True):
    """The history reader's answer where it has no page."""

    fault: PageFault
    detail: str
    file: str = ""
    """The derived file's name in the store, where `fault` is DERIVED."""


class PageCall(msgspec.Struct, frozen=True):
    """What the history reader is called with: what is wanted, and where the shard says it is."""

    shard: int
    ask: PageAsk
    stable: int
    intervals: list[Interval]
    spans: list[tuple[int, int, int]]
    """Log position, first and last number of what is not in an interval."""
