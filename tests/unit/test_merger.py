"""The merger's pieces of work: what is merged, in which order, and what happens where it fails."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from imray.core.errors import StorageError
from imray.history import merger as mergers
from imray.history import merging
from imray.history.changes import TableConflictError
from imray.history.cut import cut_of, deletable_up_to
from imray.history.holds import BACK_OFF_S_MAX, CORRUPT_AGAIN_S
from imray.history.table import Table
from imray.log.checkpoint_file import checkpoints
from imray.log.segment import segment_name
from tests.support.merging import (
    READ_S_MAX,
    SETTINGS,
    HookedStore,
    ManualClock,
    WrittenLog,
    all_rows,
    files_of,
    merger_of,
    once,
    rows_of_table,
    work,
    work_all,
    written,
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(tmp_path: Path) -> HookedStore:
    return HookedStore(tmp_path / "data")


def test_the_log_is_merged_up_to_the_newest_checkpoint_and_no_further(store: HookedStore, clock: ManualClock) -> None:
    log = written(store)
    cut = log.segment
    log.write(3)
    merger = merger_of(store, clock)
    work(merger)
    assert Table(store).snapshot().merged == {0: cut}
    assert all_rows(store) == once(log)
    (lag,) = merger.status(0).logs
    assert (lag.unmerged, lag.segments) == (3, log.segment)


def test_without_a_checkpoint_nothing_is_merged(store: HookedStore, clock: ManualClock) -> None:
    log = written(store, checkpoints_=0)
    log.write(5)
    assert work(merger_of(store, clock)) == 0
    assert Table(store).snapshot().version == -1


def test_a_damaged_checkpoint_is_passed_over(store: HookedStore, clock: ManualClock, tmp_path: Path) -> None:
    log = written(store, 1)
    older = log.segment
    log.write(2)
    log.checkpoint()
    path = tmp_path / "data" / checkpoints(store, 0)[-1]
    path.write_bytes(path.read_bytes()[:-9])
    assert cut_of(store, 0)[0].segment == older
    assert deletable_up_to(store, 0) is None
    work(merger_of(store, clock))
    assert Table(store).snapshot().merged == {0: older}


def test_a_large_backlog_is_merged_in_steps(
    store: HookedStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = written(store, 2, commits=20)
    small = SETTINGS.__class__(merge_step_bytes_max=16 * 1024)
    merger = merger_of(store, clock, small)
    work(merger)
    assert merger.done.runs > 3
    assert merger.done.segments == log.segment
    assert all_rows(store) == once(log)


def test_runs_become_larger_ones(store: HookedStore, clock: ManualClock) -> None:
    log = WrittenLog(store)
    merger = merger_of(store, clock)
    for _ in range(merging.MERGE_FANOUT):
        log.write(2)
        log.checkpoint()
        work(merger)
    (run,) = Table(store).snapshot().runs[0]
    assert run.tier == 1
    assert merger.done.files_replaced == merging.MERGE_FANOUT
    work_all(merger, clock)
    assert files_of(store.root, "history/shard=0000") == [f.name for f in run.files]
    assert rows_of_table(store) == once(log)


def test_work_that_never_ends_keeps_nothing_else_waiting(store: HookedStore, clock: ManualClock) -> None:
    """With segments that can always be merged, marks are put and files deleted all the same."""
    log = written(store, 3)
    merger = merger_of(store, clock)
    for _ in range(12):
        merger.step(0)
        log.write(1)
        log.checkpoint()  # there is a new cut before every step
        clock.pass_s(READ_S_MAX)
    assert merger.done.segments_deleted > 0


def test_the_table_gets_a_checkpoint_now_and_then(
    store: HookedStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mergers, "CHECKPOINT_EVERY", 3)
    log = WrittenLog(store)
    for _ in range(4):
        log.write(1)
        log.checkpoint()
        work(merger_of(store, clock))  # each a new one, which must find out
    names = [n for n in files_of(store.root, "history/_delta_log") if "checkpoint" in n]
    assert len(names) == 1
    assert Table(store).snapshot().version >= 3


# Where it fails


def test_a_damaged_segment_takes_out_its_log_only(store: HookedStore, clock: ManualClock) -> None:
    log = written(store, 2)
    path = store.root / segment_name(0, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[:200] + bytes([whole[200] ^ 1]) + whole[201:])
    merger = merger_of(store, clock)
    work_all(merger, clock)
    (why,) = merger.status(0).detail
    assert why.startswith("log 0: corrupt file wal/shard=0000/00000000000000000003.parquet (bytes 0 to ")
    assert files_of(store.root, "history") == []
    path.write_bytes(whole)  # a person restored it
    clock.pass_s(CORRUPT_AGAIN_S)
    work(merger)
    assert merger.status(0).detail == []
    assert rows_of_table(store) == once(log)


def test_a_full_disk_is_tried_again_more_and_more_seldom(store: HookedStore, clock: ManualClock) -> None:
    log = written(store, 2)
    tries: list[float] = []

    def full(verb: str, name: str) -> None:
        if verb == "put" and name.startswith("history/shard="):
            tries.append(clock.now_s)
            raise StorageError("the disk is full: free space")

    store.hook = full
    merger = merger_of(store, clock)
    for _ in range(400):
        work(merger)
        clock.pass_s(1)
    waits = [b - a for a, b in pairwise(tries)]
    assert waits[:4] == [1, 2, 4, 8]
    assert max(waits) == BACK_OFF_S_MAX
    assert merger.status(0).detail == ["merge: the disk is full: free space"]
    store.hook = lambda _verb, _name: None
    clock.pass_s(BACK_OFF_S_MAX)
    work(merger)
    assert merger.status(0).detail == []
    assert rows_of_table(store) == once(log)


def test_of_a_run_that_was_given_up_nothing_stays(store: HookedStore, clock: ManualClock) -> None:
    """The disk fills in the middle of a run of several files."""
    written(store, 3, commits=30)
    puts: list[str] = []

    def fills(verb: str, name: str) -> None:
        if verb == "put" and name.startswith("history/shard="):
            puts.append(name)
            if len(puts) == 2:
                raise StorageError("the disk is full: free space")

    store.hook = fills
    merger = merger_of(store, clock, SETTINGS.__class__(run_file_bytes=2000, run_group_bytes=1000))
    assert not merger.step(0)
    assert len(puts) == 2
    assert files_of(store.root, "history") == []


def test_a_commit_whose_answer_was_lost_is_found(store: HookedStore, clock: ManualClock) -> None:
    log = written(store, 2)
    real = store.put_if_absent

    def lost(name: str, parts: object) -> bool:
        done = real(name, parts)  # type: ignore[arg-type]
        if name.startswith("history/_delta_log/"):
            raise StorageError("no answer")
        return done

    store.put_if_absent = lost  # type: ignore[method-assign]
    merger = merger_of(store, clock)
    assert not merger.step(0)
    assert merger.status(0).detail == ["merge: no answer"]
    store.put_if_absent = real  # type: ignore[method-assign]
    clock.pass_s(1)
    work(merger)
    assert merger.done.runs == 1
    assert rows_of_table(store) == once(log)
    assert len(files_of(store.root, "history/shard=0000")) == 1


def test_a_commit_that_failed_is_made_of_the_same_files(store: HookedStore, clock: ManualClock) -> None:
    """Whether it landed is unknown, so its files stay; and no further ones are made meanwhile."""
    log = written(store, 2)

    def full(verb: str, name: str) -> None:
        if verb == "put" and name.startswith("history/_delta_log/"):
            raise StorageError("the disk is full: free space")

    store.hook = full
    merger = merger_of(store, clock)
    for _ in range(5):
        work(merger)
        clock.pass_s(BACK_OFF_S_MAX)
    assert len(files_of(store.root, "history/shard=0000")) == 1
    store.hook = lambda _verb, _name: None
    work(merger)
    assert rows_of_table(store) == once(log)
    assert len(files_of(store.root, "history/shard=0000")) == 1


def test_a_commit_that_may_have_counted_long_ago_leaves_its_files(
    store: HookedStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They may be live for others, or have been: they are for who deletes orphans."""
    written(store, 2)

    def slept(*_: object) -> None:
        raise TableConflictError("long past", is_void=False)

    monkeypatch.setattr(Table, "commit", slept)
    assert merger_of(store, clock).step(0)
    assert len(files_of(store.root, "history/shard=0000")) == 1
    monkeypatch.setattr(Table, "commit", lambda *_: (_ for _ in ()).throw(TableConflictError("somebody else's")))
    assert merger_of(store, clock).step(0)
    assert len(files_of(store.root, "history/shard=0000")) == 1


def test_a_checkpoint_of_the_table_that_is_damaged_is_said(
    store: HookedStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mergers, "CHECKPOINT_EVERY", 1)
    log = written(store, 1)
    work(merger_of(store, clock))
    (name,) = [n for n in files_of(store.root, "history/_delta_log") if "checkpoint" in n]
    path = store.root / name
    path.write_bytes(path.read_bytes()[:-1])
    log.write(1)
    log.checkpoint()
    merger = merger_of(store, clock)
    work(merger)
    assert rows_of_table(store) == once(log)
    (why,) = merger.status(0).detail
    assert why.startswith(f"passed over: {name}: ")


def test_a_damaged_table_stops_merging_and_is_said(store: HookedStore, clock: ManualClock) -> None:
    log = written(store, 1)
    work(merger_of(store, clock))
    path = store.root / "history/_delta_log/00000000000000000000.json"
    path.write_bytes(path.read_bytes().replace(b'"txn"', b'"tXn"'))
    log.write(1)
    log.checkpoint()
    merger = merger_of(store, clock)
    assert work(merger) == 0
    (why,) = merger.status(0).detail
    assert why.startswith("table: corrupt file history/_delta_log/00000000000000000000.json")


def test_what_was_written_is_read_back_before_it_counts(store: HookedStore, clock: ManualClock) -> None:
    """A disk that writes something else than it was given: no commit names that."""
    log = written(store, 2)
    real = store.put_if_absent

    def rots(name: str, parts: object) -> bool:
        data = b"".join(parts)  # type: ignore[arg-type]
        if name.startswith("history/shard="):
            data = data[:100] + bytes([data[100] ^ 1]) + data[101:]
        return real(name, [data])

    store.put_if_absent = rots  # type: ignore[method-assign]
    merger = merger_of(store, clock)
    work(merger)
    assert Table(store).snapshot().version == -1
    (why,) = merger.status(0).detail
    assert why.startswith("merge: what was written reads as something else: corrupt file history/shard=0000/")
    assert files_of(store.root, "history/shard=0000") == []
    store.put_if_absent = real  # type: ignore[method-assign]
    clock.pass_s(CORRUPT_AGAIN_S)
    work(merger)
    assert rows_of_table(store) == once(log)


def test_the_one_error_that_is_no_fault_of_the_disk_is_told(store: HookedStore, clock: ManualClock) -> None:
    """A bug of ours leaves no files, and is not swallowed."""
    written(store, 1)

    def bug(verb: str, name: str) -> None:
        if verb == "get_range" and name.startswith("history/shard="):
            raise ZeroDivisionError

    store.hook = bug
    merger = merger_of(store, clock)
    assert not merger.step(0)
    assert merger.status(0).detail == ["merge: unexpected: ZeroDivisionError()"]
    assert files_of(store.root, "history") == []
