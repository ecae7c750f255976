"""What passes through a write loop, and who plans, writes and applies it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from imray.core.columns import Commit
from imray.core.grants import Report
from imray.core.members import MembersChanged
from imray.core.replies import Appended, Refusal
from imray.core.state import ShardState
from imray.log.rows import Prepared
from imray.log.schema import LogRecord
from imray.log.writer import Encoded
from imray.shard.old_ids import Aside

Records = Callable[[ShardState], list[LogRecord]]
"""Makes records that are no messages from the state as it is when their turn comes."""


@dataclass
class Job:
    """One commit, planned and encoded: its answers are true once it is durable."""

    answers: list[Appended | Refusal]
    """One for each request that is not set aside; empty for records."""
    commit: Commit | None
    """How the state changes. None: nothing in it is new, or the state is another process's."""
    encoded: Encoded | None
    """The segment to be written. None: there is none."""
    report: Report | None = None
    """What a partition's home shard must hear once it is durable."""
    table: pa.Table | None = None
    """The segment's rows. None: there are none."""
    members: tuple[MembersChanged, ...] = ()
    """How the members of conversations change with it."""
    sequencer: int = 0
    """The epoch of the home shard that granted a partition its numbers."""
    of_last_writer: bool = False
    """Its answers are true only as long as nobody else writes: what is so already, and who may not. Where no segment's
    put tells that, a look at the store must. What was sent before stays true."""
    aside: tuple[Aside, ...] = ()
    """Requests that were left out: to be planned once they are looked up."""


class Incarnation(Protocol):
    """One incarnation of a log's writer: the steps of a commit."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether senders must wait for another reason than a full queue."""

    @abstractmethod
    async def plan(self, what: list[Prepared] | Records) -> Job:
        """Number and encode requests, or records that are no messages. Every error ends the incarnation."""

    @abstractmethod
    def write(self, job: Job) -> None:
        """Make a job durable; in a thread, where others of its window may be written at the same time."""

    @abstractmethod
    def apply(self, job: Job) -> None:
        """The job is durable; in the event loop, in the order of the jobs."""

    @abstractmethod
    async def end(self) -> None:
        """The writer is over; end what stands beside it."""


Open = Callable[[int], Awaitable[Incarnation]]
"""Recover, fence, and be the log's writer: the incarnation of a number. Every error leads to another try."""
