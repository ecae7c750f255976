"""What waits for its commit: requests and records in the order they came, bounded, each with whom to answer.

Owns the bounds and the order. Does not own when a commit is made (`imray.shard.write_loop`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from imray.log.rows import Prepared
from imray.settings import Settings
from imray.shard.jobs import Job, Records

_SHARE = 4
"""A fourth of the queue's bounds, beside them, is for requests whose many old ids are looked up."""


@dataclass(slots=True, eq=False)
class Waiting:
    """One request or record."""

    what: Prepared | Records
    rows: int
    bytes: int
    answer: asyncio.Future[Any]

    def tell(self, answer: Any) -> None:
        """Answer it, unless nobody waits any more."""
        if not self.answer.done():
            self.answer.set_result(answer)


@dataclass(slots=True)
class Flight:
    """A commit on its way to the store, and whom to answer when it is durable."""

    incarnation: int
    job: Job
    taken: list[Waiting]
    returned: bool = False
    """Its put has ended, one way or the other."""
    error: BaseException | None = None
    overdue: asyncio.TimerHandle | None = None
    """Ends the incarnation where the put does not return."""


@dataclass(slots=True)
class _Room:
    """What some requests take together."""

    rows: int = 0
    bytes: int = 0


class CommitQueue:
    """Waiting requests, for one event loop."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._waiting: deque[Waiting] = deque()
        self.rows = 0
        self.bytes = 0
        self._aside: dict[Waiting, _Room] = {}
        """They are not to be planned yet, and take this room."""
        self._few = _Room()
        """Of those that come back soon: it is the queue's."""
        self._many = _Room()
        """Of those that may take long: a share of its own, so that they take none of others' room."""

    def __len__(self) -> int:
        return len(self._waiting)

    def has_room(self, rows: int, size: int) -> bool:
        """Whether so much more may wait."""
        settings = self._settings
        rows += self.rows + self._few.rows
        size += self.bytes + self._few.bytes
        return rows <= settings.shard_queue_rows_max and size <= settings.shard_queue_bytes_max

    def add(self, what: Prepared | Records, rows: int, size: int) -> asyncio.Future[Any]:
        """Let it wait; the answer will be here."""
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(Waiting(what, rows, size, answer))
        self.rows += rows
        self.bytes += size
        return answer

    def take(self) -> list[Waiting]:
        """The requests of the next commit; a record goes alone."""
        rows = 0
        size = 0
        taken: list[Waiting] = []
        while self._waiting:
            following = self._waiting[0]
            rows += following.rows
            size += following.bytes
            full = rows > self._settings.commit_rows_max or size > self._settings.commit_bytes_max
            if taken and (full or not isinstance(following.what, Prepared)):
                break
            taken.append(self._waiting.popleft())
            self.rows -= following.rows
            self.bytes -= following.bytes
            if not isinstance(following.what, Prepared):
                break
        return taken

    def set_aside(self, one: Waiting, few: bool) -> bool:
        """It was taken, and cannot be planned yet. `few`: but soon. False: there is no room for another one that is
        not, and it was not set aside. One alone has room however large it is."""
        room = self._few if few else self._many
        settings = self._settings
        if not few and room.rows and not (
            room.rows + one.rows <= settings.shard_queue_rows_max // _SHARE
            and room.bytes + one.bytes <= settings.shard_queue_bytes_max // _SHARE
        ):  # fmt: skip
            return False
        self._aside[one] = room
        room.rows += one.rows
        room.bytes += one.bytes
        return True

    def is_aside(self, one: Waiting) -> bool:
        """Whether it still waits to be put back: else it was refused meanwhile."""
        return one in self._aside

    def put_back(self, one: Waiting) -> None:
        """What was set aside can be planned now, and is the next to be."""
        room = self._aside.pop(one)
        room.rows -= one.rows
        room.bytes -= one.bytes
        self.put_first(one)

    def put_first(self, one: Waiting) -> None:
        """It was taken, and is the next to be planned."""
        self._waiting.appendleft(one)
        self.rows += one.rows
        self.bytes += one.bytes

    def refuse_all(self, before: Iterable[Waiting], refusal: object) -> None:
        """Answer `before` and everything that waits with a refusal."""
        waiting = [*before, *self._waiting, *self._aside]
        self._waiting.clear()
        self._aside.clear()
        self._few = _Room()
        self._many = _Room()
        self.rows = 0
        self.bytes = 0
        for one in waiting:
            one.tell(refusal)
