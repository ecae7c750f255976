"""A window of puts: a fence says how many may be on their way, and leaves out the names that they may take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imray.core.errors import CorruptError, FencedError
from imray.core.log_progress import Fence, LogProgress
from imray.core.routing import log_of
from imray.history.remake import remake
from imray.log import checkpoint
from imray.log.reader import read_log, read_segment
from imray.log.sealed import SealedInterval
from imray.log.segment import segment_name
from imray.log.store import LocalStore
from imray.shard.committer import Committer
from imray.shard.grants import Grants
from imray.shard.jobs import Job
from tests.support.batches import SEED, Msg, Row, commit, msg_id, open_committer, prepared, seal

_WINDOW = 4


class PlainStore(LocalStore):
    """A disk that does not sync: no test here loses power."""

    def _sync_file(self, fd: int) -> None:
        pass

    def _sync_folder(self, folder: str) -> None:
        pass


class WindowStore(PlainStore):
    """Takes some puts of a log at once."""

    puts_at_once = _WINDOW


def _m(n: int) -> Msg:
    return Msg("c", msg_id(n))


def _told(rows: list[Row]) -> list[tuple[str, int]]:
    return [(r.status, r.seq) for r in rows]


def _planned(committer: Committer, *numbers: int) -> list[Job]:
    """A segment for each message, encoded and not put."""
    return [committer.plan([prepared([_m(n)])]) for n in numbers]


def _land(committer: Committer, job: Job) -> int:
    assert job.encoded is not None
    committer.writer.put(job.encoded)
    return job.encoded.segment


def _fence_of(store: LocalStore, segment: int) -> Fence | None:
    return read_segment(store, 0, segment).meta.fence


def _numbers(store: LocalStore) -> list[int]:
    """The numbers of the segments that are part of the log."""
    return [segment.meta.segment for segment in read_log(store, 0, LogProgress())]


def test_a_fence_declares_its_window_and_where_the_log_goes_on(tmp_path: Path) -> None:
    store = WindowStore(tmp_path)
    assert open_committer(store).writer.segment == 1
    assert _fence_of(store, 1) == Fence(_WINDOW, 2), "nobody was fenced off"
    second = open_committer(store)
    assert _fence_of(store, 2) == Fence(_WINDOW, 2 + _WINDOW), "the first may have a window of puts on its way"
    assert (second.state.log.segment, second.state.log.window, second.state.log.following) == (2, _WINDOW, 6)
    assert _told(commit(second, [_m(1)])) == [("new", 1)]
    assert second.state.log.segment == 6
    assert _fence_of(store, 6) is None, "only an empty segment is a fence"
    open_committer(store)
    assert _numbers(store) == [1, 2, 6, 7]
    assert _fence_of(store, 7) == Fence(_WINDOW, 7 + _WINDOW)


def test_late_puts_of_a_fenced_writer_are_never_read(tmp_path: Path) -> None:
    store = WindowStore(tmp_path)
    old = open_committer(store)
    assert _told(commit(old, [_m(0)])) == [("new", 1)]
    jobs = _planned(old, 1, 2, 3, 4)
    new = open_committer(store)
    assert [_land(old, job) for job in reversed(jobs[1:])] == [6, 5, 4], "between the fence and what follows it"
    with pytest.raises(FencedError):
        _land(old, jobs[0])
    assert not old.writer.is_last()
    assert new.writer.is_last()
    rows = commit(new, [_m(3), _m(1)])
    assert _told(rows) == [("new", 2), ("new", 3)], "nobody was ever told that they were durable"
    assert new.state.log.segment == 3 + _WINDOW
    assert _numbers(store) == [1, 2, 3, 7]
    again = open_committer(store)
    assert _told(commit(again, [_m(n) for n in range(5)])) == [
        ("duplicate", 1),
        ("duplicate", 3),
        ("new", 4),
        ("duplicate", 2),
        ("new", 5),
    ]


@pytest.mark.parametrize("landed", [[1], [2, 3], [3]])
def test_a_missing_name_within_the_window_is_the_end(tmp_path: Path, landed: list[int]) -> None:
    """Puts of one window land in any order; what stands above the first missing one was acked to nobody."""
    store = WindowStore(tmp_path)
    old = open_committer(store)
    jobs = _planned(old, 0, 1, 2, 3)
    for at in landed:
        _land(old, jobs[at])
    new = open_committer(store)
    assert new.writer.segment == 2
    assert _told(commit(new, [_m(3)])) == [("new", 1)]
    assert _numbers(store) == [1, 2, 6]


def test_what_landed_below_the_first_missing_name_counts(tmp_path: Path) -> None:
    store = WindowStore(tmp_path)
    old = open_committer(store)
    jobs = _planned(old, 0, 1, 2, 3)
    for at in (0, 1, 3):
        _land(old, jobs[at])
    new = open_committer(store)
    assert new.writer.segment == 4
    assert _told(commit(new, [_m(n) for n in range(4)])) == [
        ("duplicate", 1),
        ("duplicate", 2),
        ("new", 3),
        ("new", 4),
    ]


def test_a_missing_name_a_window_below_is_corruption(tmp_path: Path) -> None:
    """Nobody puts a name before the one that is a window below it is acked."""
    store = WindowStore(tmp_path)
    old = open_committer(store)
    jobs = _planned(old, 0, 1, 2, 3, 4)
    for job in jobs:
        _land(old, job)
    store.delete(segment_name(0, 2))
    with pytest.raises(CorruptError, match="it is not there") as error:
        open_committer(store)
    assert error.value.file == segment_name(0, 2)


def test_a_checkpoint_keeps_window_and_following(tmp_path: Path) -> None:
    store = WindowStore(tmp_path)
    commit(open_committer(store), [_m(0)])
    committer = open_committer(store)
    assert committer.state.log.following == committer.state.log.segment + _WINDOW
    seal(committer)  # its last segment is the fence
    restored = checkpoint.restore(store, 0, SEED)
    assert restored.log == committer.state.log
    assert (restored.log.window, restored.log.following) == (_WINDOW, 7)
    again = open_committer(store)
    assert again.writer.segment == 7
    assert _told(commit(again, [_m(0), _m(1)])) == [("duplicate", 1), ("new", 2)]
    assert again.state.log.segment == 7 + _WINDOW
    assert checkpoint.restore(store, 0, SEED).log.following == 7, "a checkpoint says what was so then"


def test_a_checkpoint_keeps_them_of_a_partition(tmp_path: Path) -> None:
    store = WindowStore(tmp_path)
    committer = open_committer(store)
    grants = Grants.open(committer)
    commit(committer, [_m(0)])
    job = committer.record(grants.make_hot("c", 1))
    committer.put(job)
    committer.mark_durable(job)
    for _ in range(2):
        grants.fence(1)
    progress = committer.state.partitions[1].copy()
    assert (progress.segment, progress.window, progress.following) == (2, _WINDOW, 2 + _WINDOW)
    assert read_segment(store, log_of(0, 1), 2).meta.by_home
    seal(committer)
    assert checkpoint.restore(store, 0, SEED).partitions == {1: progress}
    assert checkpoint.partition_progress(store, 0, 1) == progress
    assert open_committer(store).state.partitions[1].segment == progress.following


def _same(made: SealedInterval, again: SealedInterval) -> bool:
    return np.array_equal(again.ids, made.ids) and again.postings().equals(made.postings())


def test_an_interval_across_a_jump_is_made_anew_as_it_was(tmp_path: Path) -> None:
    store = WindowStore(tmp_path)
    old = open_committer(store)
    commit(old, [_m(0)], [_m(1)])
    jobs = _planned(old, 2, 3)
    new = open_committer(store)
    _land(old, jobs[1])  # it has rows, and is no part of the log
    commit(new, [_m(3), _m(4)])
    seal(new)
    (made,) = new.intervals
    assert made.interval.last - made.interval.first + 1 > len(_numbers(store))
    assert _same(made, remake(store, SEED, made.interval, {}))


def test_an_interval_that_begins_within_a_jump_is_made_anew_as_it_was(tmp_path: Path) -> None:
    """The checkpoint before it ends with a fence: the next interval begins with a name that is left out."""
    store = WindowStore(tmp_path)
    old = open_committer(store)
    commit(old, [_m(0)])
    jobs = _planned(old, 1, 2)
    new = open_committer(store)
    assert _land(old, jobs[1]) == new.state.log.segment + 1
    seal(new)
    commit(new, [_m(2)])
    seal(new)
    made = new.intervals[1]
    assert made.interval.first < new.state.log.segment == made.interval.last
    assert _same(made, remake(store, SEED, made.interval, {}))


def test_a_segment_without_a_window_reads_as_ever(tmp_path: Path) -> None:
    """What a store with one put at a time writes says nothing of windows, and goes on under a store with more."""
    plain = PlainStore(tmp_path)
    commit(open_committer(plain), [_m(0)])
    open_committer(plain)
    for number in (1, 2, 3):
        data = (tmp_path / segment_name(0, number)).read_bytes()
        assert b'"window"' not in data
        assert b'"following"' not in data
    assert [_fence_of(plain, n) for n in (1, 2, 3)] == [Fence(1, 2), None, Fence(1, 4)]
    committer = open_committer(WindowStore(tmp_path))
    assert committer.writer.segment == 4
    assert _fence_of(plain, 4) == Fence(_WINDOW, 5), "the one before had one put on its way"
    assert _told(commit(committer, [_m(0), _m(1)])) == [("duplicate", 1), ("new", 2)]
    back = open_committer(plain)
    assert _fence_of(plain, 6) == Fence(1, 6 + _WINDOW), "and the other way round"
    assert _told(commit(back, [_m(1), _m(2)])) == [("duplicate", 2), ("new", 3)]
    assert _numbers(plain) == [1, 2, 3, 4, 5, 6, 10]
