"""What a system says of itself to its operators: the state and the figures of shards, partitions and hot groups.

Owns the types, and how they look as JSON. Does not own where the figures come from, nor how they are shown.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class ServingState(StrEnum):
    """Whether a writer takes messages, and why not."""

    SERVING = "serving"
    RECOVERING = "recovering"
    """It reads its log; this ends by itself."""
    UNWRITABLE = "unwritable"
    """It recovered and cannot write (a full disk, a store that is away): it tries again. It answers reads."""
    CORRUPT = "corrupt"
    """Stored bytes do not verify: a person must look."""
    REPLACED = "replaced"
    """Another process is the writer now; this one ends."""
    STOPPING = "stopping"
    UNREACHABLE = "unreachable"
    """It gave no answer. Said by who asked, never by the writer itself."""


class LogFigures(msgspec.Struct, frozen=True):
    """What a shard has recovered, written and remembers."""

    epoch: int
    segment: int
    """The last one that was written."""
    conversations: int
    recent_ids: int
    """In memory."""
    sealed_ids: int
    """In sealed files."""
    bytes: int
    """Memory that the state takes."""
    checkpoint_segment: int
    """Segments up to this one are covered by a checkpoint."""


class HotGroupStatus(msgspec.Struct, frozen=True):
    """One hot conversation."""

    conv_id: str
    partitions: int = msgspec.field(name="topics")
    head: int
    stable_seq: int
    lag: int
    """Numbers between `stable_seq` and `head`."""
    grants: int
    """Outstanding ones."""
    oldest_grant_age_s: float | None
    """None: no grant is outstanding."""
    oldest_grant_slot: int | None
    rate_per_s: int
    voids: int
    """Numbers that were granted and never written, in this incarnation."""
    by_rate: bool
    """It turned hot by its rate, not by an operator."""


class HotFigures(msgspec.Struct, frozen=True):
    """The hot groups of a home shard, and what its partitions cost it."""

    groups: list[HotGroupStatus]
    asks: int
    """Answered ones."""
    asks_cpu_s: float
    """CPU that answering them took."""


class LogLag(msgspec.Struct, frozen=True):
    """How far the history is behind one log."""

    log: int
    segments: int
    """Files that are not deleted yet, fences aside where they are known."""
    unmerged: int
    """Of them, those that the history does not have yet."""


class MergeStatus(msgspec.Struct, frozen=True):
    """How far the history is behind the logs of one shard, and what is in the way."""

    shard: int
    version: int
    """Of the history's table; -1: there is none yet."""
    logs: list[LogLag]
    detail: list[str]
    """Why something is not merged or not deleted; empty where nothing is in the way."""
    pid: int | None = None
    """The merger's process; None: not known."""


class MergerStatus(msgspec.Struct, frozen=True):
    """What the merger of a deployment says of itself."""

    shards: list[MergeStatus]


class PartitionStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One partition of a home shard."""

    shard: int
    """Its home."""
    slot: int
    state: ServingState
    detail: str
    """Why it does not serve; empty where it does."""
    segment: int
    """The next one that it will write; 0 before it is the writer."""
    pid: int | None = None
    """Its process. None: not known, since it gave no answer."""


class ShardStatus(msgspec.Struct, frozen=True):
    """One shard."""

    shard: int
    state: ServingState
    detail: str
    """Why it does not serve; empty where it does."""
    queued_rows: int
    notes: list[str]
    """What an operator should know of it: derived files that were made anew, say. The newest ones."""
    log: LogFigures | None = None
    """None: it is not the writer of its log yet, or it gave no answer."""
    hot: HotFigures | None = None
    """None: as `log`."""
    partitions: list[PartitionStatus] = []
    """Of its hot groups, as who asked found them; the shard itself leaves it empty."""
    pid: int | None = None
    """Its process. None: not known, since it gave no answer."""
    merge: MergeStatus | None = None
    """As the merger says it; the shard itself leaves it empty. None: nothing is merged, or the merger gave no
    answer."""

    def to_json(self) -> dict[str, object]:
        """As operators see it: one flat object; what is not known is left out."""
        shown: dict[str, object] = {
            "shard": self.shard,
            "state": self.state,
            "detail": self.detail,
            "queued_rows": self.queued_rows,
            "notes": self.notes,
        }
        if self.log is not None:
            shown |= msgspec.to_builtins(self.log)
        if self.hot is not None:
            shown["hot"] = msgspec.to_builtins(self.hot.groups)
            shown["asks"] = self.hot.asks
            shown["asks_cpu_s"] = self.hot.asks_cpu_s
        if self.partitions:
            shown["topics"] = msgspec.to_builtins(self.partitions)
        if self.pid is not None:
            shown["pid"] = self.pid
        if self.merge is not None:
            shown["merge"] = msgspec.to_builtins(self.merge)
        return shown


def no_shard_answer(shard: int, detail: str) -> ShardStatus:
    """The status of a shard that gave none."""
    return ShardStatus(shard, ServingState.UNREACHABLE, detail, 0, [])


def no_partition_answer(home: int, slot: int, detail: str) -> PartitionStatus:
    """The status of a partition that gave none."""
    return PartitionStatus(home, slot, ServingState.UNREACHABLE, detail, 0)
