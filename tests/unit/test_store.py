"""The local store: put-if-absent between real processes, the order of its steps, what crashes leave."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from imray.core.errors import StorageError
from imray.log import posix
from imray.log.posix import DIRECT_BYTES_MIN, aligned_memory
from imray.log.store import LocalStore

_NAMES = [f"wal/shard=0000/{n:04d}" for n in range(60)]


def _race(root: str, me: int, start: Any, won: Any) -> None:
    store = LocalStore(root)
    start.wait(60)
    won.put((me, [name for name in _NAMES if store.put_if_absent(name, [b"%d" % me, b"-" * 1000])]))


def test_one_process_wins_each_name(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    start, won = context.Barrier(4), context.Queue()
    racers = [context.Process(target=_race, args=(str(tmp_path), me, start, won)) for me in range(4)]
    for p in racers:
        p.start()
    wins = dict(won.get(timeout=60) for _ in racers)
    for p in racers:
        p.join(60)
        assert p.exitcode == 0
    assert sorted(name for names in wins.values() for name in names) == _NAMES, "each name exactly once"
    store = LocalStore(tmp_path)
    for me, names in wins.items():
        for name in names:
            assert store.get(name) == b"%d" % me + b"-" * 1000
    assert store.list("tmp/") == []


class StepStore(LocalStore):
    """Notes its steps; fails at one."""

    def __init__(self, root: Path, fails: str = "") -> None:
        super().__init__(root)
        self.steps: list[tuple[str, str]] = []
        self.fails = fails

    def _note(self, step: str, path: Path) -> None:
        self.steps.append((step, str(path.relative_to(self.root.parent))))
        if step == self.fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _sync_file(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        assert os.fstat(fd).st_size == 5, "all bytes are written before the fsync"
        self._note("sync file", path)
        super()._sync_file(fd)

    def _link(self, temporary: str, path: str) -> bool:
        self._note("link", Path(path))
        return super()._link(temporary, path)

    def _sync_folder(self, folder: str) -> None:
        self._note("sync folder", Path(folder))
        super()._sync_folder(folder)


def test_the_order_of_steps(tmp_path: Path) -> None:
    """Every folder's own name is durable first; the file before its name; the name before the answer."""
    store = StepStore(tmp_path / "d")
    assert store.put_if_absent("a/b/x", [b"he", b"", memoryview(b"llo")])
    kinds = [s for s, _ in store.steps]
    assert kinds[-3:] == ["sync file", "link", "sync folder"]
    assert store.steps[-2:] == [("link", "d/a/b/x"), ("sync folder", "d/a/b")]
    assert [p for s, p in store.steps[:-3]] == [".", "d", "d/a", "d"], "root, a, a/b, tmp: the parent of each"
    store.steps.clear()
    assert store.put_if_absent("a/b/y", [b"hello"])
    assert [s for s, _ in store.steps] == ["sync file", "link", "sync folder"]
    store.steps.clear()
    assert not store.put_if_absent("a/b/x", [b"other"])
    assert [s for s, _ in store.steps] == ["sync file", "link"]
    assert store.get("a/b/x") == b"hello"


def test_a_new_process_syncs_the_folders_that_it_finds(tmp_path: Path) -> None:
    """Whoever made them may have died before their names were durable."""
    LocalStore(tmp_path).put_if_absent("a/b/x", [b"hello"])
    store = StepStore(tmp_path)
    store.put_if_absent("a/b/y", [b"hello"])
    root = tmp_path.name
    assert {p for s, p in store.steps if s == "sync folder"} >= {root, f"{root}/a", f"{root}/a/b"}


@pytest.mark.parametrize(("fails", "there"), [("sync file", False), ("link", False), ("sync folder", True)])
def test_a_failed_step_is_an_unknown_outcome(tmp_path: Path, fails: str, there: bool) -> None:
    StepStore(tmp_path).put_if_absent("a/b/x", [b"hello"])
    store = StepStore(tmp_path)
    store.put_if_absent("a/b/y", [b"hello"])
    store.fails = fails
    with pytest.raises(StorageError, match=r"put a/b/z.*disk is full"):
        store.put_if_absent("a/b/z", [b"hello"])
    assert (store.get("a/b/z") is not None) is there
    assert store.list("tmp/") == []


def test_leftover_temporaries_are_harmless(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (tmp_path / "tmp").mkdir()
    for n in range(5):
        (tmp_path / "tmp" / f"{store.writer_id}x-{n}").write_bytes(b"torn")
    assert store.put_if_absent("a/x", [b"1"])
    assert store.list("a/") == ["a/x"]
    assert len(store.list("tmp/")) == 5


def test_list_get_delete(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "d")
    assert store.list("a/") == []
    assert store.get("a/1") is None
    assert store.map("a/1") is None
    for n in (3, 1, 2, 10):
        assert store.put_if_absent(f"a/{n:02d}", [b"%d" % n])
    assert store.list("a/") == ["a/01", "a/02", "a/03", "a/10"]
    assert store.list("a/", "a/02") == ["a/03", "a/10"]
    store.delete("a/02")
    store.delete("a/02")
    assert store.get("a/02") is None
    assert store.put_if_absent("a/02", [b"again"])
    with pytest.raises(StorageError):
        store.get("a")
    with pytest.raises(StorageError):
        store.list("a/01")


def test_many_parts_and_none(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    parts = [bytes([i % 256]) * (i % 5) for i in range(3000)]
    assert store.put_if_absent("a/x", parts)
    assert store.get("a/x") == b"".join(parts)
    assert store.put_if_absent("a/empty", [])
    assert store.get("a/empty") == b""
    assert (store.map("a/x"), store.map("a/empty")) == (b"".join(parts), b"")


@pytest.mark.parametrize("skipped", [0, 8])
@pytest.mark.parametrize("more", [[], [b"tail"], [b"x" * 5000, b"y" * 300_000]])
@pytest.mark.parametrize("size", [DIRECT_BYTES_MIN, DIRECT_BYTES_MIN + 1, 5 * 1024 * 1024 - 7])
def test_large_files_of_any_length_and_place_in_memory(
    tmp_path: Path, size: int, more: list[bytes], skipped: int
) -> None:
    memory = aligned_memory(size + skipped)
    memory[:] = np.random.default_rng(size).bytes(size + skipped)
    parts = [memory[skipped:], *more]
    assert LocalStore(tmp_path).put_if_absent("a/x", parts)
    assert (tmp_path / "a/x").read_bytes() == b"".join(parts)


def test_aligned_memory_is_written_from_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    monkeypatch.setattr(posix, "_set_direct", lambda _: True)
    monkeypatch.setattr(posix, "_write_copied", lambda _, views: copied.append(sum(map(len, views))))
    for skipped in (0, 1):
        with (tmp_path / f"{skipped}").open("wb") as file:
            posix.write_parts(file.fileno(), [aligned_memory(1_000_001)[skipped:]])
    assert copied == [1_000_001 % 4096, 1_000_000]


def test_aligned_memory_is_aligned_whoever_allocates_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow promises 64 bytes; its allocator of today gives whole pages, that of the system does not."""
    allocate = pa.allocate_buffer
    monkeypatch.setattr(posix.pa, "allocate_buffer", lambda n: allocate(n, memory_pool=pa.system_memory_pool()))
    for size in (1, 5000, 1_000_000):
        memory = aligned_memory(size)
        assert (len(memory), pa.py_buffer(memory).address % 4096) == (size, 0)


def test_a_store_lets_go_of_its_descriptors(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for n in range(20):
        LocalStore(tmp_path).put_if_absent(f"a/{n}", [b"x"])
    assert len(os.listdir("/proc/self/fd")) < before + 20
