"""The merger's process: its thread, how it ends, what it says of itself, and who asks it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imray.core.errors import StorageError
from imray.core.status import LogLag, MergerStatus, MergeStatus
from imray.deploy.merger import EndingStore, MergerProcess
from imray.engine.engine import Engine
from imray.history.merger import Merger
from imray.history.table import Table
from imray.log.manifest import create_or_open
from imray.rpc import messages
from imray.rpc.directory import MERGER, reader_of_log
from imray.rpc.endpoint import Endpoint, NoAnswerError, Parts
from imray.rpc.methods import Method
from imray.rpc.server import RpcServer, ServerConnection
from imray.settings import Settings
from tests.support.merging import SETTINGS, UnsyncedStore, files_of, once, rows_of_table, written
from tests.support.owners import until_async

QUICK = replace(SETTINGS, merge_interval_s=0.01, read_s_max=0.05, reopen_delay_s_max=0.05)


@asynccontextmanager
async def _process(root: Path, settings: Settings = QUICK, shards: int = 1) -> AsyncIterator[MergerProcess]:
    process = MergerProcess(str(root), shards, settings)
    try:
        yield process
    finally:
        await process.stop()


async def _status(process: MergerProcess, shard: int = 0) -> MergeStatus:
    parts = await process._status(memoryview(b""), None)  # type: ignore[arg-type]
    return messages.decode_merger_status(memoryview(b"".join(parts))).shards[shard]


async def test_it_merges_as_soon_as_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imray.deploy.merger._STATUS_AGE_S", 0.0)
    store = UnsyncedStore(tmp_path)
    log = written(store, 2)
    async with _process(tmp_path) as process:
        await until_async(lambda: Table(store).snapshot().merged == {0: log.segment}, "the log is merged")
        async with asyncio.timeout(10):
            while (status := await _status(process)).version < 0:
                pass  # each is counted anew; the commit was seen here before the merger has heard of it
        assert (status.version, status.logs, status.detail) == (0, [LogLag(0, log.segment, 0)], [])
        assert status.pid == await process.alive()
    assert rows_of_table(store) == once(log)


async def test_it_counts_once_for_all_who_ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    real = Merger.status

    def status(self: Merger, shard: int) -> MergeStatus:
        counted.append(shard)
        return real(self, shard)

    monkeypatch.setattr(Merger, "status", status)
    async with _process(tmp_path) as process:
        await asyncio.gather(*(_status(process) for _ in range(20)))
        assert counted == [0]


async def test_it_ends_in_the_middle_of_a_merge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it put already is removed."""
    log = written(UnsyncedStore(tmp_path), 3, commits=30)
    put = EndingStore.put_if_absent
    runs: list[str] = []

    def ends(self: EndingStore, name: str, parts: Any) -> bool:
        done = put(self, name, parts)
        if name.startswith("history/shard="):
            runs.append(name)
            self.end()
        return done

    monkeypatch.setattr(EndingStore, "put_if_absent", ends)
    async with _process(tmp_path, replace(QUICK, run_file_bytes=2000, run_group_bytes=1000)) as process:
        await until_async(lambda: runs, "it merges")
    assert not process._thread.is_alive()
    assert len(runs) == 1
    assert files_of(tmp_path, "history") == []
    monkeypatch.undo()
    async with _process(tmp_path):
        store = UnsyncedStore(tmp_path)
        await until_async(lambda: Table(store).snapshot().merged == {0: log.segment}, "another one goes on")


def test_a_store_that_ends_still_deletes(tmp_path: Path) -> None:
    store = EndingStore(str(tmp_path), 0.0)
    store.put_if_absent("a/b", [b"x"])
    store.end()
    refused: list[Callable[[], object]] = [
        lambda: store.put_if_absent("a/c", [b"x"]),
        lambda: store.get("a/b"),
        lambda: store.get_range("a/b", 0, 1),
    ]
    for call in refused:
        with pytest.raises(StorageError):
            call()
    store.delete("a/b")
    assert files_of(tmp_path, "a") == []


async def test_a_bug_is_said_and_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one shard: another one behind it goes on."""
    failing = [True]
    rounds: list[int] = []
    real = Merger.step

    def step(self: Merger, shard: int) -> bool:
        rounds.append(shard)
        if shard == 0 and failing[0]:
            raise ZeroDivisionError("by a bug")
        return real(self, shard)

    monkeypatch.setattr(Merger, "step", step)
    monkeypatch.setattr("imray.deploy.merger._STATUS_AGE_S", 0.0)
    async with _process(tmp_path, shards=2) as process:
        await until_async(lambda: rounds.count(0) > 2 and rounds.count(1) > 2, "it goes on")
        details = [(await _status(process, shard)).detail for shard in (0, 1)]
        assert details == [["the merger failed: ZeroDivisionError('by a bug')"], []]
        failing[0] = False
        seen = rounds.count(0)
        await until_async(lambda: rounds.count(0) > seen + 2, "it works again")
        assert (await _status(process)).detail == []


class _Only:
    """A directory of one process."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self.asked: list[int] = []

    async def find(self, log: int, timeout_s: float) -> Endpoint:
        """Of `Directory`."""
        self.asked.append(log)
        if log != MERGER:
            raise NoAnswerError(f"nobody serves log {log}")
        return self._endpoint

    def forget(self, log: int) -> None:
        """Of `Directory`."""


async def test_the_gateway_tells_what_the_merger_says(tmp_path: Path) -> None:
    status = MergeStatus(1, 5, [LogLag(1, 9, 2)], ["merge: the disk is full"], 77)

    async def answer(_content: memoryview, _caller: ServerConnection) -> Parts:
        return messages.encode_struct(MergerStatus([status]))

    server = RpcServer(1 << 16)
    server.serve(MERGER, {Method.STATUS: answer})
    directory = _Only(await server.open("127.0.0.1"))
    manifest = create_or_open(UnsyncedStore(tmp_path), 2)
    for merges in (True, False):
        engine = Engine(directory, manifest, replace(Settings(), merge=merges))
        first, second = await engine.full_status()
        assert first.merge is None
        assert second.merge == (status if merges else None)
        assert (MERGER in directory.asked) is merges
        directory.asked.clear()
        engine.close()
    await server.close()


def test_the_mergers_number_is_no_readers() -> None:
    assert reader_of_log(MERGER) is None
