"""What a shard answers: values, not exceptions, since an exception loses its type on its way between processes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from imray.core.columns import RowStatus
from imray.core.intervals import Interval
from imray.kernels.arrays import I64, U8, U32, Bools


class Refused(StrEnum):
    """Why nothing is known to be written, by what the caller must do."""

    INVALID = "invalid"
    """Fix the input. Nothing was written."""
    BUSY = "busy"
    """Retry later. Nothing was written."""
    UNAVAILABLE = "unavailable"
    """Outcome unknown: retry with the same ids."""
    CORRUPT = "corrupt"
    """The shard refuses to serve: a person must look."""
    MOVED = "moved"
    """A partition's: its conversation is not hot any more, send to the home shard. Nothing was written."""
    OLD_IDS = "old_ids"
    """A partition's: some ids were perhaps sent long ago, the home shard finds out. Send this request there; the
    conversation stays hot. Nothing was written."""
    FORBIDDEN = "forbidden"
    """Who asks may not: no member, or not in a role for it. Nothing was written."""
    EXISTS = "exists"
    """What is to be created is there, and different. Nothing was written."""
    ABSENT = "absent"
    """What is to be changed or read is not there. Nothing was written."""


_NOT_WRITTEN = (
    Refused.INVALID,
    Refused.BUSY,
    Refused.MOVED,
    Refused.OLD_IDS,
    Refused.FORBIDDEN,
    Refused.EXISTS,
    Refused.ABSENT,
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """No numbers: the reason, and what to do."""

    why: Refused
    detail: str
    retry_after_s: float = 1.0
    unknown: bool = False
    """An earlier try of the same ids may have been executed."""

    @property
    def maybe_written(self) -> bool:
        """Whether this call or an earlier try of the same ids may have been executed."""
        return self.unknown or self.why not in _NOT_WRITTEN

    def after_unknown(self) -> Refusal:
        """This answer where an earlier try of the same ids may have been executed: it never says that nothing was
        written, since who believes that makes a new id, and the message stands twice.

        MOVED and OLD_IDS stay, as the gateway must act on them; CORRUPT stays, as a person must look, and claims
        nothing."""
        if self.why in (Refused.INVALID, Refused.BUSY, Refused.FORBIDDEN, Refused.EXISTS, Refused.ABSENT):
            detail = f"{self.detail}; an earlier try may have been executed"
            return Refusal(Refused.UNAVAILABLE, detail, self.retry_after_s, True)
        return replace(self, unknown=True)


_UNREADABLE = (
    "the id was sent before, in a file of the log that does not verify: its number cannot be told, and nothing was "
    "written. A person must look: the server's log and `imray audit` name the file"
)
NOT_A_MEMBER = (
    "the sender is no member of the conversation, or may only read; or the conversation must be created first: nothing "
    "was written"
)
WAITS = "a file that says whether the id was sent before is being made anew: nothing was written; send it again"


@dataclass(frozen=True, slots=True)
class Firsts:
    """Of the rows that are no new messages: their row in the request and the first send's numbers."""

    at: I64
    status: U8
    """`RowStatus` DUPLICATE, CONFLICT, UNREADABLE, WAITING or FORBIDDEN; the last three have no numbers."""
    log_position: I64
    row: U32
    epoch: I64
    server_ts: I64

    @property
    def conflict(self) -> Bools:
        """True for each row whose id was sent before with another payload."""
        found: Bools = self.status == RowStatus.CONFLICT
        return found

    @property
    def unreadable(self) -> Bools:
        """True for each row whose first send, if there is one, cannot be read."""
        found: Bools = self.status == RowStatus.UNREADABLE
        return found

    @property
    def why(self) -> str:
        """Why rows are UNREADABLE; "" where none is."""
        return _UNREADABLE if self.unreadable.any() else ""

    @property
    def waiting(self) -> Bools:
        """True for each row that was not written and must be sent again: whether it was sent before is found out."""
        found: Bools = self.status == RowStatus.WAITING
        return found

    @property
    def forbidden(self) -> Bools:
        """True for each row that was not written because its sender may not send there."""
        found: Bools = self.status == RowStatus.FORBIDDEN
        return found

    def slice(self, begin: int, end: int, shift: int) -> Firsts:
        """Entries begin..end, their rows counted from `shift`."""
        return Firsts(
            at=self.at[begin:end] - shift,
            status=self.status[begin:end],
            log_position=self.log_position[begin:end],
            row=self.row[begin:end],
            epoch=self.epoch[begin:end],
            server_ts=self.server_ts[begin:end],
        )


@dataclass(frozen=True, slots=True)
class Appended:
    """All rows of a request are durable: success means just that.

    `seq` and `stable` have one value a row; an int `seq` stands for consecutive numbers from it, an int `stable` for
    the same in every row. New rows stand one after the other from `row` in the segment at `log_position`
    (`imray.core.routing.offset_of` says which log and segment that is)."""

    rows: int
    epoch: int
    log_position: int
    server_ts: int
    row: int
    seq: I64 | int
    stable: I64 | int
    firsts: Firsts | None
    hot: dict[str, int] | None = None
    """How many partitions take the sends of each hot conversation from now on."""

    def slice(self, start: int, rows: int) -> Appended:
        """The answer for some of the rows only."""
        if start == 0 and rows == self.rows:
            return self
        seq = self.seq + start if isinstance(self.seq, int) else self.seq[start : start + rows]
        stable = self.stable if isinstance(self.stable, int) else self.stable[start : start + rows]
        firsts = self.firsts
        before = 0
        if firsts is not None:
            before, end = (int(i) for i in np.searchsorted(firsts.at, (start, start + rows)))
            firsts = firsts.slice(before, end, start) if end > before else None
        return Appended(
            rows=rows,
            epoch=self.epoch,
            log_position=self.log_position,
            server_ts=self.server_ts,
            row=self.row + start - before,
            seq=seq,
            stable=stable,
            firsts=firsts,
            hot=self.hot,
        )

    def seqs(self) -> I64:
        """The number of each row."""
        return np.arange(self.seq, self.seq + self.rows) if isinstance(self.seq, int) else self.seq

    def stables(self) -> I64:
        """The conversation's stable_seq for each row."""
        return np.full(self.rows, self.stable) if isinstance(self.stable, int) else self.stable


@dataclass(frozen=True, slots=True)
class Located:
    """Where the numbers of a conversation are: for a reader outside the shard."""

    head: int
    """The last number given out; above `stable` only in a hot group."""
    stable: int
    epoch: int
    checkpoint: int
    """Segments up to this one are covered by sealed intervals; `spans` covers those after it."""
    intervals: list[Interval]
    """The sealed intervals."""
    spans: list[tuple[int, int, int]]
    """(log position, first, last number)."""
