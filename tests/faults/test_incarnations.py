"""One incarnation after another in one process: acks belong to their own put, and every error leads to another try."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from imray.core.errors import StorageError
from imray.core.replies import Appended, Refusal, Refused
from imray.log.store import LocalStore
from imray.log.writer import Writer
from imray.settings import Settings
from imray.shard import shard_incarnation
from imray.shard.shard_writer import ShardWriter
from tests.support.batches import DUPLICATE, SEED, Msg, commit, ipc_of, msg_id, open_committer
from tests.support.owners import owner_of, until_async


class StallStore(LocalStore):
    """Holds the puts of segments before their bytes are written, or before the last fsync."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.write, self.sync = threading.Event(), threading.Event()
        self.write.set()
        self.sync.set()
        self.holding = threading.Event()

    def _wait(self, gate: threading.Event) -> None:
        if threading.current_thread().name.startswith("put-") and not gate.is_set():
            self.holding.set()
            assert gate.wait(60)

    def _write(self, path: str, parts: Sequence[bytes | memoryview]) -> None:
        self._wait(self.write)
        super()._write(path, parts)

    def _sync_folder(self, folder: str) -> None:
        self._wait(self.sync)
        super()._sync_folder(folder)


async def test_no_ack_before_its_own_put_whatever_ends_the_incarnation(tmp_path: Path) -> None:
    """An incarnation ends from beside while its put is in the last fsync; the next one is acked by its own put only."""
    store = StallStore(tmp_path)
    async with owner_of(store) as owner:
        assert isinstance(await owner.append(ipc_of([Msg("c", msg_id(1))])), Appended)
        store.sync.clear()
        first = asyncio.create_task(owner.append(ipc_of([Msg("c", msg_id(2))])))
        await until_async(store.holding.is_set, "the first is in its last fsync")
        owner.loop.fail(StorageError("a fence of a partition's log failed"))
        await until_async(lambda: owner.state != "serving", "the incarnation is over")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await until_async(lambda: owner.state == "serving", "nothing is opened while a put is on its way")
        store.write.clear()
        store.holding.clear()
        store.sync.set()
        answer = await asyncio.wait_for(first, 60)
        assert isinstance(answer, Refusal)
        assert answer.why is Refused.UNAVAILABLE
        store.write.set()
        await until_async(lambda: owner.state == "serving", "the next one serves")
        store.write.clear()
        store.holding.clear()
        second = asyncio.create_task(owner.append(ipc_of([Msg("c", msg_id(4), b"mine")])))
        await until_async(store.holding.is_set, "its put has not written a byte")
        for _ in range(10):
            await asyncio.sleep(0)
        assert not second.done()
        durable = [p.name for p in (tmp_path / "wal/shard=0000").iterdir()]
        store.write.set()
        told = await asyncio.wait_for(second, 60)
        assert isinstance(told, Appended)
        assert len(list((tmp_path / "wal/shard=0000").iterdir())) == len(durable) + 1
    rows = commit(open_committer(tmp_path), [Msg("c", msg_id(2)), Msg("c", msg_id(4), b"mine")])
    assert [(r.status, r.seq) for r in rows] == [(DUPLICATE, 2), (DUPLICATE, 3)]


async def test_an_error_of_an_incarnation_that_is_over_ends_no_other(tmp_path: Path) -> None:
    async with owner_of(LocalStore(tmp_path)) as owner:
        late = owner.loop.number
        owner.loop.fail(StorageError("the store is away"))
        await until_async(lambda: owner.loop.number > late and owner.state == "serving", "the next one serves")
        owner.loop.fail(StorageError("told late"), late)
        assert isinstance(await owner.append(ipc_of([Msg("c", msg_id(1))])), Appended)
        assert owner.loop._failure is None


@pytest.mark.parametrize("told", [True, False])
async def test_a_put_that_never_returns_ends_the_process(tmp_path: Path, told: bool) -> None:
    """Whether another error ends the incarnation or nobody says a word: else senders would time out for ever while the
    shard says that it serves."""
    store = StallStore(tmp_path)
    ended = asyncio.Event()
    owner = ShardWriter(store, 0, SEED, Settings(put_timeout_s=0.2), on_fenced=ended.set)
    await owner.start()
    store.write.clear()
    waiting = asyncio.create_task(owner.append(ipc_of([Msg("c", msg_id(1))])))
    await until_async(store.holding.is_set, "the put hangs")
    if told:
        owner.loop.fail(StorageError("something beside it"))
    await asyncio.wait_for(ended.wait(), 60)
    assert owner.state != "serving"
    await asyncio.wait_for(owner.loop.stop(), 60)  # though its thread hangs
    store.write.set()
    assert isinstance(await asyncio.wait_for(waiting, 60), Refusal)
    await owner.stop()


_ERRORS = [OSError(errno.EMFILE, "Too many open files"), MemoryError(), RuntimeError("a bug")]


@pytest.mark.parametrize("error", _ERRORS, ids=repr)
@pytest.mark.parametrize("first", [True, False])
async def test_no_error_in_opening_is_the_last_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, first: bool
) -> None:
    """At the first start, and when a shard opens anew: the next try may fare better."""
    real, fails = shard_incarnation.HotGroups, [0]

    def flaky(**args: Any) -> Any:
        if fails[0]:
            fails[0] -= 1
            raise error
        return real(**args)

    monkeypatch.setattr(shard_incarnation, "HotGroups", flaky)
    fails[0] = 2 if first else 0
    async with owner_of(LocalStore(tmp_path)) as owner:
        if not first:
            fails[0] = 2
            owner.loop.fail(StorageError("a put failed"))
            await until_async(lambda: fails[0] == 0, "it was tried again")
        await until_async(lambda: owner.state == "serving", "it serves in the end")
        answer = await owner.append(ipc_of([Msg("c", msg_id(1))]))
        assert isinstance(answer, Appended)
    assert len(list((tmp_path / "wal/shard=0000").iterdir())) >= 4, "each try had its fence"


async def test_a_broken_write_loop_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = asyncio.Event()
    owner = ShardWriter(LocalStore(tmp_path), 0, SEED, Settings(), on_fenced=ended.set)
    await owner.start()
    with monkeypatch.context() as patch:
        patch.setattr(owner.loop, "_end_incarnation", lambda: 1 / 0)
        owner.loop.fail(StorageError("a put failed"))
        await asyncio.wait_for(ended.wait(), 60)
    refused = await owner.append(ipc_of([Msg("c", msg_id(1))]))
    assert isinstance(refused, Refusal)
    await owner.stop()


class FullStore(LocalStore):
    """A disk that is full when it is told to be."""

    full = False

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.gate = threading.Event()
        self.gate.set()

    def _write(self, path: str, parts: Sequence[bytes | memoryview]) -> None:
        assert self.gate.wait(60)
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        super()._write(path, parts)


async def test_a_full_disk_is_never_taken_for_another_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A put fails while the next batch is planned, just before that is encoded."""
    store, fenced = FullStore(tmp_path), []
    owner = ShardWriter(store, 0, SEED, Settings(rows_to_plan_ahead=1), on_fenced=lambda: fenced.append(1))
    await owner.start()
    batches = [[Msg("c", msg_id(n))] for n in range(3)]
    assert isinstance(await owner.append(ipc_of(batches[0])), Appended)
    real = Writer.encode
    encoded = []

    def encode(self: Writer, *args: Any) -> Any:
        encoded.append(self)
        if store.full and encoded.count(self) == 2:  # the first is waiting at the gate
            store.gate.set()
            deadline = time.monotonic() + 60
            with contextlib.suppress(Exception):
                while time.monotonic() < deadline:
                    self.check()
        return real(self, *args)

    monkeypatch.setattr(Writer, "encode", encode)
    store.full = True
    store.gate.clear()
    first = asyncio.create_task(owner.append(ipc_of(batches[1])))
    await until_async(lambda: encoded, "the first is encoded")
    answers = await asyncio.gather(first, owner.append(ipc_of(batches[2])))
    assert len(encoded) >= 2
    assert all(isinstance(a, Refusal) and "disk is full" in a.detail for a in answers)
    await until_async(lambda: owner.state == "unwritable", "the state says why")
    assert owner.loop.refusal is not None
    assert "disk is full" in owner.loop.refusal.detail
    assert not fenced
    store.full = False
    await until_async(lambda: owner.state == "serving", "it goes on when there is room")
    assert isinstance(await owner.append(ipc_of(batches[1])), Appended)
    await owner.stop()


async def test_a_shard_that_starts_on_a_full_disk_is_read(tmp_path: Path) -> None:
    store = FullStore(tmp_path)
    async with owner_of(store) as owner:
        assert isinstance(await owner.append(ipc_of([Msg("c", msg_id(n)) for n in range(3)])), Appended)
    store.full = True
    async with owner_of(store) as owner:
        assert owner.state == "unwritable"
        assert "disk is full" in (await owner.status()).detail
        found = await owner.locate("c", 1, 10)
        assert not isinstance(found, Refusal), found
        assert (found.head, found.stable, len(found.spans)) == (3, 3, 1)
        open_committer(tmp_path)  # another process, where there is room, takes over
        after = await owner.locate("c", 1, 10)
        assert isinstance(after, Refusal), "what it knows may be of the past"


async def test_a_replaced_shard_says_nothing_of_what_is_stable(tmp_path: Path) -> None:
    """Its successor may have said more: `stable_seq` never goes back."""
    async with owner_of(LocalStore(tmp_path)) as old:
        assert isinstance(await old.append(ipc_of([Msg("c", msg_id(1))])), Appended)
        new = open_committer(tmp_path)
        new.writer.nonce = "0" * 32  # of another process
        commit(new, [Msg("c", msg_id(2))])
        assert new.locate("c", 1, 1).stable == 2
        assert isinstance(await old.locate("c", 1, 1), Refusal)
        await old.append(ipc_of([Msg("c", msg_id(3))]))
        assert old.loop.replaced
        assert isinstance(await old.locate("c", 1, 1), Refusal)
