"""What a merger saw is looked at again before something goes on its word; and what fails, fails alone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from imray.history.cut import AGAIN_S, Cuts
from imray.history.merger import Merger
from imray.history.table import Table
from imray.log.checkpoint import write_twin
from imray.log.checkpoint_file import checkpoints
from imray.log.marks import marked
from tests.support.merging import (
    READ_S_MAX,
    SETTINGS,
    HookedStore,
    ManualClock,
    UnsyncedStore,
    merger_of,
    work,
    work_all,
    written,
)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def _flip(store: UnsyncedStore, name: str) -> None:
    data = bytearray((store.root / name).read_bytes())
    data[len(data) // 2] ^= 1
    (store.root / name).write_bytes(data)


@pytest.mark.parametrize("which", [slice(0, 1), slice(1, 2), slice(0, 2)])
def test_checkpoints_are_verified_again_before_a_mark(tmp_path: Path, clock: ManualClock, which: slice) -> None:
    store = UnsyncedStore(tmp_path)
    log = written(store, 1)
    write_twin(store, 0)
    merger = merger_of(store, clock)
    work(merger)
    assert merger.more_in_s(0) is not None, "they were seen to be sound"
    damaged = checkpoints(store, 0)[which]
    for name in damaged:
        _flip(store, name)
    clock.pass_s(READ_S_MAX + 1)
    work(merger)
    assert (merger.done.segments_deleted, marked(store, 0)) == (0, 0)
    for name in damaged:
        _flip(store, name)
    clock.pass_s(AGAIN_S)
    work(merger)
    assert merger.done.segments_deleted == log.segment - 1, "a person has put them back"


def test_a_base_that_two_build_on_is_verified_again(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imray.core.checkpoint_chain.ALWAYS_BASE_ROWS", 0)
    store = UnsyncedStore(tmp_path)
    log = written(store, 1)
    log.write(1, ["a"])
    log.checkpoint()
    write_twin(store, 0)
    cuts = Cuts(store, 0, clock)
    assert cuts.deletable() == {0: log.segment}
    base = log.committer.state.checkpoints.links[0].name
    _flip(store, base)
    assert cuts.deletable() == {0: log.segment}, "remembered"
    assert cuts.deletable(again=True) is None
    _flip(store, base)
    assert cuts.deletable() is None, "remembered, for a while"
    clock.pass_s(AGAIN_S)
    assert cuts.deletable() == {0: log.segment}


def test_time_goes_on_between_two_looks_at_the_clock(tmp_path: Path, clock: ManualClock) -> None:
    store = UnsyncedStore(tmp_path)
    log = written(store, 1)

    def ticking() -> float:
        clock.pass_s(0.001)
        return clock()

    assert Cuts(store, 0, ticking).cut()[0].segment == log.segment


def test_an_error_that_nobody_expects_takes_out_its_stage(
    tmp_path: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """Deleting goes on, and so does another shard."""
    store = HookedStore(tmp_path)
    log = written(store, 1)
    write_twin(store, 0)
    merger = Merger(store, 2, SETTINGS, clock, lambda: 1)
    work(merger)
    log.write(2)
    log.checkpoint()
    failing = [True]

    def hook(verb: str, name: str) -> None:
        if failing and verb == "get" and name.startswith("wal/shard=0000/"):
            raise ZeroDivisionError("by a bug")

    store.hook = hook
    with caplog.at_level(logging.ERROR):
        work(merger)
    assert "Traceback" in caplog.text
    assert merger.status(0).detail == ["merge: unexpected: ZeroDivisionError('by a bug')"]
    assert merger.status(1).detail == []
    clock.pass_s(READ_S_MAX + 1)
    work(merger)
    assert merger.done.segments_deleted > 0
    failing.clear()
    clock.pass_s(100)
    work(merger)
    assert Table(store).snapshot().merged == {0: log.segment}
    assert merger.status(0).detail == []


def test_a_table_that_cannot_be_read_for_no_known_reason(
    tmp_path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = UnsyncedStore(tmp_path)
    log = written(store, 1)
    merger = merger_of(store, clock)

    def snapshot(*_: object) -> object:
        raise RecursionError("deep")

    with monkeypatch.context() as patched:
        patched.setattr(Table, "snapshot", snapshot)
        assert not merger.step(0)
        assert merger.status(0).detail == ["table: unexpected: RecursionError('deep')"]
        assert not merger.step(0), "it waits"
    clock.pass_s(2)
    work_all(merger, clock)
    assert Table(store).snapshot().merged == {0: log.segment}


def test_damage_is_said_as_it_is(tmp_path: Path, clock: ManualClock) -> None:
    store = UnsyncedStore(tmp_path)
    written(store, 1)
    _flip(store, "wal/shard=0000/00000000000000000003.parquet")
    merger = merger_of(store, clock)
    work_all(merger, clock)
    (why,) = merger.status(0).detail
    assert why.startswith("log 0: corrupt file wal/shard=0000/00000000000000000003.parquet")
