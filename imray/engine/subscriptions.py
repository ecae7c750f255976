"""One listener's subscription to a conversation: where it is, and what it gets now. Owns nothing else."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from enum import Enum, auto

from imray.engine.listening import Listener, Notice

log = logging.getLogger("imray.feeds")


class Stage(Enum):
    """What a listener gets now."""

    SILENT = auto()
    """Nothing yet: its subscription was not answered."""
    PASSIVE = auto()
    """Heads only."""
    LIVE = auto()
    """Each batch as it comes."""
    FULL = auto()
    """Nothing until it has room, or until it is known that it still may listen: it was live."""
    CATCHING_UP = auto()
    """What it missed, from history: nothing is left out, however long it takes."""


@dataclass(slots=True, eq=False)
class Subscription:
    """One listener of one conversation."""

    listener: Listener
    at: int
    """Everything up to it was told, or is not wanted."""
    passive: bool
    read: int
    """Of a passive one: what it has read, or began from."""
    stage: Stage = Stage.SILENT
    until: int | None = None
    """It ends after this number."""
    told_head: int = 0
    may_signal: bool = False
    task: asyncio.Task[None] | None = None
    room: asyncio.Event = field(default_factory=asyncio.Event)

    def notify(self, notice: Notice) -> None:
        """Tell the listener this. One that fails must not cost the others theirs."""
        try:
            self.listener.notify(notice)
        except Exception:
            log.exception("a listener was not told of %r", notice)
