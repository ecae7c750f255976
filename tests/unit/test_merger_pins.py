"""Pins: what a long reader reads stays, for as long as it says that it lives."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from imray.core.errors import StorageError
from imray.history import merging
from imray.history.pins import Pin, PinWatch
from imray.history.snapshot import TableSnapshot
from imray.history.table import Table
from tests.support.merging import (
    READ_S_MAX,
    SETTINGS,
    HookedStore,
    ManualClock,
    UnsyncedStore,
    WrittenLog,
    files_of,
    merger_of,
    segments_left,
    work,
    work_all,
    written,
)

PIN_S = SETTINGS.pin_s_max


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def store(tmp_path: Path) -> HookedStore:
    return HookedStore(tmp_path / "data")


def _pins(store: UnsyncedStore) -> list[str]:
    return files_of(store.root, "pins")


def test_the_lowest_version_counts(store: HookedStore, clock: ManualClock) -> None:
    watch = PinWatch(store, PIN_S, clock)
    assert watch.lowest() is None
    with Pin(store, 7, PIN_S):
        with Pin(store, 4, PIN_S):
            assert watch.lowest() == 4
        assert watch.lowest() == 7
    assert watch.lowest() is None
    assert _pins(store) == []


def test_a_pin_that_is_renewed_lives(store: HookedStore, clock: ManualClock) -> None:
    watch = PinWatch(store, PIN_S, clock)
    with Pin(store, 3, PIN_S) as pin:
        for _ in range(5):
            clock.pass_s(PIN_S * 0.9)
            pin.renew()
            assert watch.lowest() == 3
            assert len(_pins(store)) == 1
        assert not pin.lost


def test_a_reader_that_died_leaves_a_pin_that_expires(store: HookedStore, clock: ManualClock) -> None:
    watch = PinWatch(store, PIN_S, clock)
    with Pin(store, 3, PIN_S) as pin:
        assert watch.lowest() == 3
        clock.pass_s(PIN_S)
        assert watch.lowest() == 3, "the time counts from when it was seen"
        clock.pass_s(1)
        assert watch.lowest() is None
        assert _pins(store) == []
        pin.renew()
        assert pin.lost, "a reader that only slept must find out"


def test_a_watch_that_begins_anew_gives_a_pin_its_time(store: HookedStore, clock: ManualClock) -> None:
    with Pin(store, 3, PIN_S):
        for _ in range(3):
            watch = PinWatch(store, PIN_S, clock)
            assert watch.lowest() == 3
            clock.pass_s(PIN_S * 0.9)
        assert watch.lowest() == 3


def test_it_renews_itself(store: HookedStore) -> None:
    with Pin(store, 3, pin_s_max=0.04):
        (first,) = _pins(store)
        end = time.monotonic() + 20
        while first in _pins(store) and time.monotonic() < end:
            time.sleep(0.005)  # between two looks
        assert first not in _pins(store)
    assert _pins(store) == []


def test_a_pin_that_cannot_be_renewed_stands(store: HookedStore) -> None:
    with Pin(store, 3, PIN_S) as pin:

        def full(verb: str, _name: str) -> None:
            if verb == "put":
                raise StorageError("the disk is full: free space")

        store.hook = full
        before = _pins(store)
        with pytest.raises(StorageError):
            pin.renew()
        assert _pins(store) == before
        store.hook = lambda _verb, _name: None
    assert _pins(store) == []


def test_a_pin_that_cannot_be_read_holds_everything_until_it_expires(store: HookedStore, clock: ManualClock) -> None:
    store.put_if_absent("pins/00ff-0000000001.json", [b""])
    store.put_if_absent("pins/notes.txt", [b"somebody's"])
    watch = PinWatch(store, PIN_S, clock)
    assert watch.lowest() == -1
    clock.pass_s(PIN_S + 1)
    assert watch.lowest() is None
    assert _pins(store) == ["pins/notes.txt"]


def test_a_pin_that_is_renewed_while_it_is_read(store: HookedStore, clock: ManualClock) -> None:
    """The listing shows a counter that is gone when it is read: the next one says the same."""
    with Pin(store, 3, PIN_S) as pin:
        renewed = [False]

        def renews(verb: str, name: str) -> None:
            if verb == "get" and name.startswith("pins/") and not renewed[0]:
                renewed[0] = True
                pin.renew()

        store.hook = renews
        assert PinWatch(store, PIN_S, clock).lowest() == 3


def _snapshot(store: UnsyncedStore) -> TableSnapshot:
    return Table(store).snapshot()


def test_nothing_goes_that_a_pin_holds(store: HookedStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither segments that were merged after its version, nor files that were replaced after it. What was merged
    before goes."""
    monkeypatch.setattr(merging, "MERGE_FANOUT", 2)
    log = written(store, 2)
    before = log.segment
    merger = merger_of(store, clock)
    work(merger)
    pinned = _snapshot(store)
    with Pin(store, pinned.version, PIN_S) as pin:
        for _ in range(3):
            log.write(2)
            log.checkpoint()
            work(merger)
        clock.pass_s(READ_S_MAX + 1)
        work(merger)
        pin.renew()
        assert all(store.exists(name) for name in pinned.files)
        assert segments_left(store)[0][0] == before + 1
        assert len(_snapshot(store).files) < len(files_of(store.root, "history/shard=0000"))
    work_all(merger, clock)
    assert segments_left(store)[0][0] > before + 1
    assert len(_snapshot(store).files) == len(files_of(store.root, "history/shard=0000"))


def test_a_pin_of_the_newest_version_holds_nothing_back(store: HookedStore, clock: ManualClock) -> None:
    log = WrittenLog(store)
    log.write(3)
    log.checkpoint()
    merger = merger_of(store, clock)
    work(merger)
    end = log.segment
    log.write(1)
    log.checkpoint()
    work(merger)
    with Pin(store, _snapshot(store).version, PIN_S):
        clock.pass_s(READ_S_MAX + 1)
        work(merger)
        assert segments_left(store)[0] == [end + 1]


def test_deletes_stop_when_a_reader_comes_in_between(
    store: HookedStore, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merger that sleeps between its look at the pins and its deletes looks again."""
    log = written(store, 3)
    merger = merger_of(store, clock)
    work(merger)
    log.write(1)
    log.checkpoint()
    gone: list[str] = []

    def sleeps(verb: str, name: str) -> None:
        if verb == "delete" and name.startswith("wal/"):
            gone.append(name)
            if len(gone) == 2:
                clock.pass_s(3600)
                store.put_if_absent("pins/00ff-0000000001.json", [b'{"version":-1}'])

    store.hook = sleeps
    work_all(merger, clock)
    assert len(gone) == 2
    store.hook = lambda _verb, _name: None
    clock.pass_s(PIN_S + 1)
    work(merger)
    clock.pass_s(PIN_S + 1)
    work_all(merger, clock)
    assert segments_left(store)[0] == [log.segment]
