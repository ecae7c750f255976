"""Sealed intervals made anew from what there is: the log, the history, or a part of each; and those of version 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from imray.core.errors import CorruptError, DerivedError, StaleError, UnavailableError
from imray.core.routing import log_of
from imray.history import remake as remaking
from imray.history.remake import remake
from imray.history.table import Table
from imray.kernels import packing
from imray.log import checkpoint, checkpoint_file, sealed
from imray.log.checkpoint import write_twin
from imray.log.marks import marked
from imray.log.sealed import SealedInterval
from imray.log.segment import segment_prefix
from tests.faults.test_older_folder import _unpack
from tests.support.batches import SEED, Msg, commit, msg_id, seal
from tests.support.groups import Group
from tests.support.merging import (
    HookedStore,
    ManualClock,
    UnsyncedStore,
    WrittenLog,
    files_of,
    merger_of,
    segments_left,
    work_all,
)
from tests.support.owners import until_async


def _written(root: Path, store: UnsyncedStore | None = None) -> WrittenLog:
    """Three intervals; a conflict, a retry and a void range cost nothing."""
    log = WrittenLog(store or UnsyncedStore(root))
    for conversations in (["a", "b", "c"], ["a", "ü" * 60], ["c", "a", "d"]):
        log.write(7, conversations)
        rich = Msg("a", msg_id(10_000 + log.segment), b"\x00" * 99, "bob", "topic", "text/plain", client_ts=5)
        commit(log.committer, [rich, rich])
        log.checkpoint()
        log.reopen()
    return log


def _same(made: np.ndarray, again: SealedInterval) -> bool:
    return np.array_equal(made, again.ids)


def test_from_the_history_alone_they_are_the_same(tmp_path: Path) -> None:
    log = _written(tmp_path)
    before = [(s.interval, s.ids) for s in log.committer.intervals]
    write_twin(log.store, 0)
    clock = ManualClock()
    work_all(merger_of(log.store, clock), clock)
    filled, _ = segments_left(log.store)
    assert not filled, "no segment with rows is left"
    assert len(Table(log.store).snapshot().runs[0]) >= 1
    for interval, ids in before:
        again = remake(log.store, SEED, interval, {})
        assert _same(ids, again)
        assert not again.postings().num_rows, "the history says where their numbers are"
        assert (again.interval.version, again.interval.partitions) == (2, interval.partitions)


def test_from_both_they_are_the_same(tmp_path: Path) -> None:
    """What is marked comes from the history, the rest from the log, and nothing twice."""
    log = _written(tmp_path)
    log.write(5)
    log.checkpoint()
    whole = sealed.merge(log.store, log.committer.intervals)
    ids = whole.ids
    assert log.committer.merged(log.committer.intervals, whole)
    log.write(3)
    log.checkpoint()
    write_twin(log.store, 0)
    clock = ManualClock()
    work_all(merger_of(log.store, clock), clock)
    end = marked(log.store, 0)
    assert whole.interval.first < end
    log.write(4)
    log.checkpoint()
    both = sealed.merge(log.store, log.committer.intervals)
    assert both.interval.last > end
    again = remake(log.store, SEED, both.interval, {})
    assert _same(both.ids, again)
    assert set(again.postings().column("place").to_pylist()) == set(range(end + 1, log.segment + 1))
    assert _same(ids, remake(log.store, SEED, whole.interval, {}))


def test_what_is_merged_and_deleted_while_it_is_read(tmp_path: Path) -> None:
    """It begins anew, with the history."""
    clock = ManualClock()
    deleted: list[int] = []

    def hook(verb: str, name: str) -> None:
        if verb == "get" and name.startswith(segment_prefix(0)) and armed:
            armed.clear()
            other = UnsyncedStore(tmp_path)
            work_all(merger_of(other, clock), clock)
            deleted.append(marked(other, 0))

    armed: list[bool] = []
    log = _written(tmp_path)
    write_twin(log.store, 0)
    interval, ids = log.committer.intervals[1].interval, log.committer.intervals[1].ids
    armed.append(True)
    again = remake(HookedStore(tmp_path, hook), SEED, interval, {})
    assert deleted[0] >= interval.last
    assert _same(ids, again)


def test_many_ids_are_gathered_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million are in memory, however many there are; the pieces are removed."""
    monkeypatch.setattr(remaking, "_IDS_AT_ONCE", 10)
    log = _written(tmp_path)
    pieces = []
    real = remaking.write_interval

    def write(*args: object) -> SealedInterval:
        made = real(*args)  # type: ignore[arg-type]
        pieces.append(made.interval.ids)
        return made

    monkeypatch.setattr(remaking, "write_interval", write)
    before = set(files_of(tmp_path, "sealed"))
    (one, *_) = log.committer.intervals
    again = remake(log.store, SEED, one.interval, {})
    assert _same(one.ids, again)
    assert len(pieces) >= 3
    assert sum(pieces[:-1]) <= pieces[-1] == one.interval.ids
    assert len(set(files_of(tmp_path, "sealed")) - before) == len(again.interval.names)


def test_nobody_wants_it_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remaking, "_IDS_AT_ONCE", 10)
    log = _written(tmp_path)
    before = files_of(tmp_path, "sealed")
    wanted = [True] * 5
    with pytest.raises(UnavailableError):
        remake(log.store, SEED, log.committer.intervals[0].interval, {}, lambda: bool(wanted and wanted.pop()))
    assert files_of(tmp_path, "sealed") == before


def test_damage_to_the_log_or_the_history_is_said_and_makes_nothing(tmp_path: Path) -> None:
    log = _written(tmp_path)
    interval = log.committer.intervals[0].interval
    write_twin(log.store, 0)
    before = files_of(tmp_path, "sealed")
    wrong = sealed.draft(0, interval.first, interval.last, interval.ids + 1, ())
    with pytest.raises(DerivedError, match=f"held {interval.ids + 1} ids"):
        remake(log.store, SEED, wrong, {})
    clock = ManualClock()
    work_all(merger_of(log.store, clock), clock)
    after = files_of(tmp_path, "sealed")
    (path,) = (tmp_path / "history").glob("shard=*/*")
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptError, match="history/"):
        remake(log.store, SEED, interval, {})
    path.unlink()
    with pytest.raises((CorruptError, StaleError)):
        remake(log.store, SEED, interval, {})
    assert files_of(tmp_path, "sealed") == after
    assert set(after) >= set(before) or after, "nothing of it is left over"


async def test_intervals_of_version_1_are_made_anew_and_the_partitions_ids_with_them(tmp_path: Path) -> None:
    """Then the logs of the group are merged and deleted, and they can be made of the history, too."""
    _unpack(tmp_path, "nothing", False)
    store = UnsyncedStore(tmp_path)
    async with Group(store, checkpoint_ids_max=4) as group:
        committer = group.home.current.committer  # type: ignore[union-attr]
        assert any(s.interval.version == 1 for s in committer.intervals)

        def current() -> bool:
            return all(s.is_current for s in committer.intervals) and not group.home.current.upkeep.at_work  # type: ignore[union-attr]

        await until_async(current, "they are made anew")
        await group.send(0, Msg("den", msg_id(100)))  # a checkpoint is called after a segment

        def named() -> bool:
            newest = checkpoint_file.checkpoints(store, 0)[-1]
            return all(i.version == 2 for i in checkpoint.checkpoint_meta(store, newest).intervals) and current()

        await until_async(named, "a checkpoint names them")
        before = [(s.interval, s.ids) for s in committer.intervals]
    slots = {slot for interval, _ in before for slot, _, _ in interval.partitions or ()}
    assert slots == {1, 2}
    assert all(_same(ids, remake(store, SEED, interval, {})) for interval, ids in before)
    write_twin(store, 0)
    clock = ManualClock()
    work_all(merger_of(store, clock), clock)
    assert [bool(marked(store, log_of(0, slot))) for slot in (0, 1, 2)] == [True, True, True]
    assert all(_same(ids, remake(store, SEED, interval, {})) for interval, ids in before), "from the history"


def _fail(*_: object) -> None:
    raise AssertionError("a segment is read")


def test_a_retry_needs_no_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _written(tmp_path)
    monkeypatch.setattr("imray.log.confirm_first.read_segment", _fail)
    acked = sorted(log.acked.items())
    rows = commit(log.committer, [Msg(conv, of_id, b"other") for (conv, _), of_id in acked])
    assert [(r.status, r.seq) for r in rows] == [("conflict", seq) for (_, seq), _ in acked]


def test_what_is_stored_does_not_change_with_the_code(tmp_path: Path) -> None:
    """The keys of conversations and the fingerprints of payloads, too, are on disk now."""
    log = WrittenLog(UnsyncedStore(tmp_path))
    commit(log.committer, [Msg("room ü", msg_id(7), b"hello", "bob", "topic", "text/plain")])
    seal(log.committer)
    (found,) = log.committer.intervals[0].ids.T.tolist()
    assert [hex(found[c]) for c in (packing.FP, packing.CONV, packing.PAYLOAD)] == _STORED
    rest = [packing.SEQ, packing.LOG_POSITION, packing.ROW, packing.EPOCH, packing.SERVER_TS]
    assert [found[c] for c in rest] == [1, 2, 0, 1, 1000]


_STORED = ["0x2c26265b3ecf295d", "0x608c1edc7db1d6c0", "0xc58146d5c0204940"]
