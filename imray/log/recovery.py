"""Becoming the writer of a log: checkpoint, then the segments after it, then the fence.

A home shard fences and reads the logs of its sub-topics, too: they hold numbers and ids of its conversations.
"""

from __future__ import annotations

from collections.abc import Callable

from imray.core.columns import Commit
from imray.core.errors import CorruptError, InvalidError, UnavailableError
from imray.core.fold import apply
from imray.core.routing import log_of
from imray.core.state import Position, ShardState
from imray.log import checkpoint
from imray.log.reader import read_log
from imray.log.rows import read_commit
from imray.log.segment import Segment
from imray.log.store import Store
from imray.log.writer import Writer

_FENCE_TRIES_MAX = 100


def replay(store: Store, shard: int, state: ShardState, slot: int = 0) -> None:
    """Fold the rest of one of a shard's logs into the state. CorruptError at the first segment that does not verify."""
    position = state.position(slot)
    for segment in read_log(store, log_of(shard, slot), position.segment, position.digest):
        commit: Commit = read_commit(state, segment)
        try:
            apply(state, commit, segment.digest)
        except InvalidError as e:
            raise CorruptError(segment.name, "numbers", str(e)) from e


def become_writer(store: Store, shard: int, seed: int, now_ms: Callable[[], int]) -> tuple[ShardState, Writer]:
    """Recover a shard and fence off every earlier writer, those of its sub-topics included.

    CorruptError: the log does not verify, a person must look. StorageError: the fence could not be written.
    UnavailableError: others keep taking the next number."""
    state = checkpoint.restore(store, shard, seed)
    # its own log first: then no earlier incarnation can make a further sub-topic, or move a ceiling
    writer = fence_log(store, shard, state.log, 0, lambda: replay(store, shard, state), now_ms)
    for slot in sorted(state.topics):
        fence_topic(store, shard, slot, state, now_ms)
    return state, writer


def fence_topic(store: Store, shard: int, slot: int, state: ShardState, now_ms: Callable[[], int]) -> None:
    """Put the home shard's fence into a sub-topic's log and fold what landed before it.

    Whoever writes there next has read the fence, and takes no grants of an older epoch than the state's."""
    fence_log(
        store, log_of(shard, slot), state.topics[slot], state.log.epoch,
        lambda: replay(store, shard, state, slot), now_ms, by_home=True,
    ).close()  # fmt: skip


def become_topic_writer(store: Store, shard: int, slot: int, now_ms: Callable[[], int]) -> tuple[Position, Writer]:
    """Become the writer of a sub-topic's log. Errors as `become_writer`.

    Numbers and ids are its home shard's business: here the segments are verified and counted."""
    position = checkpoint.topic_position(store, shard, slot)
    log = log_of(shard, slot)

    def follow() -> None:
        for segment in read_log(store, log, position.segment, position.digest):
            step(position, segment)

    writer = fence_log(store, log, position, None, follow, now_ms)
    return position, writer


def step(position: Position, segment: Segment) -> None:
    """One more verified segment of a log that is not folded."""
    position.advance(segment.meta.segment, segment.meta.epoch, segment.digest)
    position.sequencer = max(position.sequencer, segment.meta.sequencer)


def fence_log(
    store: Store,
    log: int,
    position: Position,
    sequencer: int | None,
    read_on: Callable[[], None],
    now_ms: Callable[[], int],
    by_home: bool = False,
) -> Writer:
    """Read a log to its end (`read_on` advances `position`) and take the next number, until both come together.

    `sequencer`: what the fence names; None: what the log named last."""
    for _ in range(_FENCE_TRIES_MAX):
        read_on()
        named = position.sequencer if sequencer is None else sequencer
        writer = Writer(store, log, position.segment, position.epoch, position.digest, named, by_home)
        if writer.fence(now_ms()):
            read_on()  # the fence itself, by the one way that everything takes
            if position.segment == writer.segment:
                return writer  # else another one fenced this one off already
    raise UnavailableError(f"log {log}: other writers keep taking it; is a second deployment using this data?")
