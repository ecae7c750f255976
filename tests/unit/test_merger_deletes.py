"""What the merger deletes of the log and of the table, when, and what stays."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from imray.core.intervals import VERSION
from imray.history import merging, retiring
from imray.history.cut import cut_of, deletable_up_to
from imray.history.holds import CORRUPT_AGAIN_S
from imray.history.layout import run_prefix
from imray.history.table import Table
from imray.log.marks import MergeMark, mark_prefix, marked, newest_mark, put_mark
from imray.log.segment import segment_name
from tests.support.batches import Msg, commit, msg_id
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
    segment_numbers,
    segments_left,
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


def test_a_mark_is_durable_before_the_first_delete_and_deletes_ascend(store: HookedStore, clock: ManualClock) -> None:
    log = written(store)
    calls: list[tuple[str, str]] = []
    merger = merger_of(store, clock)
    work(merger)
    log.write(2)
    log.checkpoint()
    store.hook = lambda verb, name: calls.append((verb, name))
    work_all(merger, clock)
    deletes = [i for i, (verb, name) in enumerate(calls) if verb == "delete" and name.startswith("wal/")]
    (mark,) = [i for i, (verb, name) in enumerate(calls) if verb == "put" and name.startswith("merged/")]
    synced = [i for i, call in enumerate(calls) if call == ("sync", mark_prefix(0))]
    table_synced = [i for i, call in enumerate(calls) if call == ("sync", "history/_delta_log/")]
    assert deletes
    assert min(table_synced) < mark < min(synced) < min(deletes)
    names = [calls[i][1] for i in deletes]
    assert names == sorted(names)
    found = newest_mark(store, 0)
    assert found is not None
    assert found.version <= Table(store).snapshot().version
    assert found.end.segment == marked(store, 0)
    assert calls[deletes[-1]][1] <= segment_name(0, found.end.segment)


def test_fences_stay(store: HookedStore, clock: ManualClock) -> None:
    log = written(store, 1)
    for _ in range(3):
        log.reopen()
        log.write(3)
        log.checkpoint()
    merger = merger_of(store, clock)
    work_all(merger, clock)
    log.write(1)
    log.checkpoint()
    work_all(merger, clock)
    filled, fences = segments_left(store)
    assert len(fences) == 4
    assert filled == [log.segment]  # no second checkpoint covers it yet
    (lag,) = merger.status(0).logs
    assert (lag.segments, lag.unmerged) == (1, 0)
    assert all_rows(store) == once(log)


def test_a_fence_is_small(store: HookedStore) -> None:
    """By its size it is told from a segment that need not be read."""
    log = WrittenLog(store)
    for _ in range(20):
        log.reopen()
    assert all((store.root / segment_name(0, n)).stat().st_size < retiring.FENCE_BYTES_MAX / 2 for n in range(1, 21))


def test_what_may_be_needed_for_recovery_stays(store: HookedStore, clock: ManualClock) -> None:
    log = written(store, 1)
    merger = merger_of(store, clock)
    work_all(merger, clock)
    assert merger.done.segments_deleted == 0  # there is one checkpoint
    before = log.segment
    log.write(2)
    log.checkpoint()
    assert deletable_up_to(store, 0) == {0: before}
    work_all(merger, clock)
    assert segments_left(store)[0] == [before + 1, before + 2]


def test_what_answers_retries_stays(store: HookedStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids of the former kind are answered from the segments themselves."""
    written(store)
    monkeypatch.setattr("imray.history.cut._INTERVAL_VERSION_MIN", VERSION + 1)
    merger = merger_of(store, clock)
    work_all(merger, clock)
    assert deletable_up_to(store, 0) is None
    assert merger.done.segments_deleted == 0


def test_readers_have_their_time(store: HookedStore, clock: ManualClock) -> None:
    """By the deleter's own clock, from when it saw that something was merged; so a restart begins anew."""
    log = written(store)
    work(merger_of(store, clock))
    log.write(1)
    log.checkpoint()
    clock.pass_s(READ_S_MAX / 2)
    merger = merger_of(store, clock)
    work(merger)
    clock.pass_s(READ_S_MAX * 0.99)
    work(merger)
    assert merger.done.segments_deleted == 0
    clock.pass_s(READ_S_MAX * 0.02)
    work(merger)
    assert merger.done.segments_deleted > 0


def test_a_merger_that_begins_anew_forgets_nothing(store: HookedStore, clock: ManualClock) -> None:
    """One died after its mark, another after some deletes: the next one deletes the rest."""
    log = written(store)
    work(merger_of(store, clock))
    log.write(1)
    log.checkpoint()
    for allowed in (0, 3, 1):
        left = [allowed]

        def dies(verb: str, name: str, left: list[int] = left) -> None:
            if verb == "delete" and name.startswith("wal/"):
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt

        store.hook = dies
        with pytest.raises(KeyboardInterrupt):
            work_all(merger_of(store, clock), clock)
        store.hook = lambda _verb, _name: None
    work_all(merger_of(store, clock), clock)
    filled, fences = segments_left(store)
    assert (filled, fences) == ([log.segment], [1])
    assert all_rows(store) == once(log)


def test_a_former_writers_late_put_is_removed(store: HookedStore, clock: ManualClock) -> None:
    """A name below the mark that comes back, and one that a foreign program put there."""
    log = written(store)
    kept = store.get(segment_name(0, 3))
    assert kept is not None
    merger = merger_of(store, clock)
    work(merger)
    log.write(1)
    log.checkpoint()
    work_all(merger, clock)
    (store.root / segment_name(0, 3)).write_bytes(kept)
    foreign = store.root / "wal/shard=0000/00000000000000000003.parquet.tmp"
    foreign.write_bytes(b"")
    work(merger)
    assert 3 in segment_numbers(store)
    clock.pass_s(retiring.SWEEP_S)
    work(merger)
    assert 3 not in segment_numbers(store)
    assert foreign.exists()


def test_a_mark_that_is_above_the_table_stops_everything(store: HookedStore, clock: ManualClock) -> None:
    log = written(store)
    work(merger_of(store, clock))
    end = cut_of(store, 0)[0]
    put_mark(store, MergeMark(end, version=7))
    log.write(1)
    log.checkpoint()
    merger = merger_of(store, clock)
    work_all(merger, clock)
    assert merger.done.segments_deleted == 0
    (why,) = merger.status(0).detail
    assert "corrupt file" in why
    assert segments_left(store)[0][0] == 2


def test_no_segment_goes_for_the_sake_of_a_run_that_is_not_there(store: HookedStore, clock: ManualClock) -> None:
    log = written(store)
    merger = merger_of(store, clock)
    work(merger)
    name = Table(store).snapshot().runs[0][0].files[0].name
    (store.root / name).rename(store.root / "aside")
    log.write(1)
    log.checkpoint()
    work_all(merger, clock)
    assert merger.done.segments_deleted == 0
    assert any(name in why for why in merger.status(0).detail)
    (store.root / "aside").rename(store.root / name)
    clock.pass_s(CORRUPT_AGAIN_S)
    work_all(merger, clock)
    assert merger.done.segments_deleted > 0
    assert merger.status(0).detail == []


def test_orphans_go_when_nobody_adds_to_them(store: HookedStore, clock: ManualClock) -> None:
    written(store)
    merger = merger_of(store, clock)
    work_all(merger, clock)
    for part in range(2):
        store.put_if_absent(f"{run_prefix(0)}feedbeef00000000-{part:04d}-{'0' * 32}.parquet", [b"part"])
        clock.pass_s(SETTINGS.orphan_s * 0.7)
        work(merger)
    assert len(files_of(store.root, "history/shard=0000")) == 3, "its run grew: a merge may be at work"
    clock.pass_s(SETTINGS.orphan_s)
    work(merger)
    assert len(files_of(store.root, "history/shard=0000")) == 1
    assert Table(store).snapshot().fences == {0: 1}


def test_fences_are_told_from_what_looks_like_one(store: HookedStore) -> None:
    log = WrittenLog(store)
    commit(log.committer, [Msg("a", msg_id(1), b'{"rows":0}')])
    commit(log.committer, [Msg("a", msg_id(2), b"x" * retiring.FENCE_BYTES_MAX)])
    names = [segment_name(0, n) for n in (1, 2, 3)]
    assert [retiring.is_fence(store, name) for name in names] == [True, False, False]
    for name in names[:2]:
        path = store.root / name
        path.write_bytes(path.read_bytes().replace(b'"rows":', b'"rOws":'))
        assert retiring.is_fence(store, name), "whether it is one cannot be told"


def test_a_larger_run_is_read_back_before_it_takes_the_place_of_others(
    store: HookedStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that writes something else than it was given."""
    log = WrittenLog(store)
    merger = merger_of(store, clock)
    for _ in range(2):
        log.write(2)
        log.checkpoint()
        work(merger)
    real = store.put_if_absent

    def rots(name: str, parts: Sequence[bytes | memoryview]) -> bool:
        data = b"".join(parts)
        return real(name, [data[:100] + bytes([data[100] ^ 1]) + data[101:] if "history/shard=" in name else data])

    monkeypatch.setattr(store, "put_if_absent", rots)
    monkeypatch.setattr(merging, "MERGE_FANOUT", 2)
    work_all(merger, clock)
    assert all_rows(store) == once(log)
    (why,) = merger.status(0).detail
    assert why.startswith("compact: what was written reads as something else")
    assert files_of(store.root, "history/shard=0000") == sorted(Table(store).snapshot().files)


def test_replaced_runs_stay_where_what_replaces_them_is_not_there(
    store: HookedStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "MERGE_FANOUT", 2)
    log = WrittenLog(store)
    merger = merger_of(store, clock)
    for _ in range(2):
        log.write(2)
        log.checkpoint()
        work(merger)
    (name,) = Table(store).snapshot().files
    (store.root / name).rename(store.root / "aside")
    before = files_of(store.root, "history/shard=0000")
    work_all(merger, clock)
    assert len(before) == 2
    assert files_of(store.root, "history/shard=0000") == before
    assert any(name in why for why in merger.status(0).detail)
