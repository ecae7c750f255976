"""The columns that numbering works on: a batch's rows, what is known of them, what becomes of them, what is durable."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from imray.core.dedup import SealedIds
from imray.core.log_progress import Fence
from imray.core.members import CursorsChange, MembersChange
from imray.kernels.arrays import I32, I64, U8, U32, U64


class RowStatus(IntEnum):
    """What became of a row; columns of it are uint8."""

    NEW = 0
    DUPLICATE = 1
    CONFLICT = 2
    IN_FLIGHT = 3
    """The same id was sent before and is not settled yet: whether it will be a message is unknown."""
    UNREADABLE = 4
    """The id may have been sent before, in a segment that does not verify: it can be neither numbered nor answered."""
    WAITING = 5
    """The id may have been sent before, and a file that says so is being made anew: to be sent again."""
    FORBIDDEN = 6
    """Its sender may not send there, and its id is not known."""


@dataclass(frozen=True)
class Senders:
    """Who sends each row: names_data[names_offsets[k]:names_offsets[k+1]] for k in `of_row`."""

    names_data: U8
    names_offsets: I32
    of_row: I32


@dataclass(frozen=True)
class Rows:
    """The rows of a commit as columns. `conv` indexes names: names_data[names_offsets[k]:names_offsets[k+1]]."""

    names_data: U8
    names_offsets: I32
    conv: I32
    ids: U64
    fps: U64
    payload: U64
    senders: Senders | None = None
    """None: not at hand. Only a partition's ask has them, where its home shard wants them."""

    def __len__(self) -> int:
        return len(self.conv)


@dataclass(frozen=True)
class First:
    """What a retry is told: the numbers of the first send of an id."""

    seq: int
    payload: int
    log_position: int
    row: int
    epoch: int
    server_ts: int
    status: RowStatus | None = None
    """What to say of the row where its first send cannot be read; None: the payload tells."""
    file: SealedIds | None = None
    """The one that could not be read, where that is why: made anew, it may say more."""


@dataclass(frozen=True)
class LookedUp:
    """What sealed files said of the ids of a request, when they were asked."""

    firsts: dict[int, First]
    """By row of the request: of those that are old, or of which a file could not be read. Others are in no file."""
    last: int
    """Files of segments of the shard's own log up to this one were asked: later ones may know more."""


@dataclass(frozen=True)
class KnownIds:
    """What memory knows of a batch's ids before it is planned; `maybe` rows need a look into files."""

    conv: I32
    """State index of each row; new conversations have the next ones, in the order of their rows."""
    fresh: I32
    """Name indices of the new conversations, in that order."""
    recent: I32 | None
    frozen: I32 | None
    maybe: list[tuple[SealedIds, I64]]
    """For each sealed file with a "maybe": the rows that memory does not know."""


@dataclass(frozen=True)
class Plan:
    """What a batch becomes. Rows with status NEW are numbered in their order; the others carry the first's number."""

    status: U8
    """`RowStatus` of each row."""
    seq: I64
    new_rows: I64 | None
    """Rows that are new; None: all of them."""
    row_in_segment: U32
    """Each row's row in the new segment (new rows); that of the first send in its segment (others)."""
    log_position: I64 | None
    """Log position of the first send, for rows that are not new (-1: the segment being written). None: all are new."""
    epoch: I64 | None
    server_ts: I64 | None
    conv: I32
    fresh: I32
    touched: I32
    """State indices of conversations that get numbers; their numbers run from `touched_first` to `touched_last`."""
    touched_first: I64
    touched_last: I64


@dataclass(frozen=True)
class Control:
    """A record about a hot group; `number` is the conversation's head when it was written."""

    conv: int
    partitions: int
    """0: the conversation is cold from here on."""
    number: int
    ceiling: int
    by_rate: bool = False
    """It turned hot by its rate, so it may turn cold by it."""
    exact: bool = False
    """Nothing above `ceiling` was or will be granted in this epoch, whatever was logged before."""


@dataclass(frozen=True)
class Commit:
    """One segment's rows: from a plan or from a segment read back."""

    log_position: int
    epoch: int
    server_ts: int
    rows: Rows
    conv: I32
    fresh: I32
    seq: I64
    row: U32
    touched: I32
    """State indices of the conversations with numbers in the segment, void ranges included."""
    touched_first: I64
    touched_last: I64
    controls: tuple[Control, ...] = ()
    members: tuple[MembersChange, ...] = ()
    cursors: tuple[CursorsChange, ...] = ()
    sequencer: int = 0
    """A partition's segment: the epoch of the home shard that granted its numbers."""
    fence: Fence | None = None
    """What it says of how the log goes on, where it is a fence."""
