"""The history's table against a list of the runs that were committed, whatever else is done with its log."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imray.core.errors import StorageError
from imray.history import table_reading
from imray.history.layout import DELTA_LOG
from imray.history.snapshot import RunFile, TableSnapshot
from imray.history.table import Table, TableConflictError
from tests.support.table_files import NOW_MS, run_file

_SHARDS = 3
_OPERATIONS = (
    "merge",
    "merge",
    "merge",
    "compact",
    "fence",
    "checkpoint",
    "clean",
    "lost answer",
    "rot",
    "lost checkpoint",
)
_steps = st.lists(
    st.tuples(st.sampled_from(_OPERATIONS), st.integers(0, _SHARDS - 1), st.integers(0, 6)), min_size=1, max_size=40
)


class _Memory:
    """Files in memory; loses the answer of a put on demand. Each name of a run is there."""

    writer_id = "memory"
    puts_at_once = 1

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.loses_answer = False

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        if name in self.files:
            return False
        self.files[name] = b"".join(parts)
        if self.loses_answer:
            self.loses_answer = False
            raise StorageError("no answer")
        return True

    def get(self, name: str) -> bytes | None:
        return self.files.get(name)

    def exists(self, name: str) -> bool:
        return name in self.files or not name.startswith(DELTA_LOG)

    def list(self, prefix: str, after: str = "") -> list[str]:
        return sorted(name for name in self.files if name.startswith(prefix) and name > after)

    def delete(self, name: str) -> None:
        self.files.pop(name, None)

    def sync(self, prefix: str) -> None:
        """Memory has nothing to wait for."""


class _Model:
    """What was committed: by shard, its runs in order; and a client of the table that may know an old version."""

    def __init__(self) -> None:
        self.store = _Memory()
        self.table = Table(self.store)  # type: ignore[arg-type]
        self.runs: dict[int, list[RunFile]] = {}
        self.fences: dict[int, int] = {}
        self.known = [TableSnapshot()]
        self.count = 0

    def merged(self, shard: int) -> int:
        runs = self.runs.get(shard)
        return runs[-1].covers[-1].last if runs else 0

    def new_run(self, shard: int, first: int, last: int, rows: int) -> RunFile:
        self.count += 1
        return run_file(None, shard, f"run{self.count}", ["a"] * rows, [(shard, first, last)])

    def step(self, operation: str, shard: int, n: int) -> None:
        base = self.known[-1 - n % len(self.known)]
        match operation:
            case "merge" | "lost answer":
                self.merge(base, shard, n + 1, operation == "lost answer")
            case "compact":
                self.compact(base, shard, n + 2)
            case "fence":
                self.known.append(self.table.fence_runs(base, shard, NOW_MS))
                self.fences[shard] = self.fences.get(shard, 0) + 1
            case "checkpoint":
                if self.known[-1].version >= 0:
                    self.checkpoint()
            case "clean":
                self.table.clean()
            case "rot" | "lost checkpoint":
                self.damage(n, operation == "rot")

    def merge(self, base: TableSnapshot, shard: int, segments: int, loses_answer: bool) -> None:
        before = self.merged(shard)
        add = self.new_run(shard, before + 1, before + segments, 1)
        moves = {shard: (before, before + segments)}
        self.store.loses_answer = loses_answer
        is_shut_out = base.fences.get(shard, 0) != self.fences.get(shard, 0)
        try:
            after = self.table.commit(base, [add], [], moves, "merge", NOW_MS)
        except TableConflictError:
            assert is_shut_out
            self.store.loses_answer = False
            return
        except StorageError:
            after = self.table.commit(base, [add], [], moves, "merge", NOW_MS + 1)
        assert not is_shut_out
        self.runs.setdefault(shard, []).append(add)
        self.known.append(after)

    def compact(self, base: TableSnapshot, shard: int, count: int) -> None:
        old = self.runs.get(shard, [])[-count:]
        if len(old) < 2:
            return
        rows = sum(file.rows for file in old)
        add = self.new_run(shard, old[0].covers[0].first, old[-1].covers[0].last, rows)
        if base.fences.get(shard, 0) != self.fences.get(shard, 0):
            with pytest.raises(TableConflictError):
                self.table.commit(base, [add], [file.name for file in old], {}, "compact", NOW_MS)
            return
        self.known.append(self.table.commit(base, [add], [file.name for file in old], {}, "compact", NOW_MS))
        self.runs[shard][-len(old) :] = [add]

    def checkpoint(self) -> None:
        if not self.table.checkpoint(self.known[-1]):
            assert self.table.damaged, "one that was damaged before has the name"

    def damage(self, n: int, rots: bool) -> None:
        """At most the newest checkpoint: the second newest serves."""
        checkpoints = [name for name in self.store.files if name.endswith(".parquet") and name.startswith(DELTA_LOG)]
        if not checkpoints or self.table.damaged:
            return
        name = max(checkpoints)
        data = bytearray(self.store.files.pop(name))
        if rots:
            data[(n * 7919) % len(data)] ^= 1 + n
            self.store.files[name] = bytes(data)
        self.table.damaged[name] = "by the test"

    def check(self) -> None:
        newest = Table(self.store).snapshot()  # type: ignore[arg-type]
        found = {shard: [file for run in runs for file in run.files] for shard, runs in newest.runs.items()}
        assert found == self.runs
        assert newest.merged == {shard: self.merged(shard) for shard in self.runs}
        assert newest.fences == self.fences
        assert newest == self.known[-1]


@given(_steps)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_table_is_what_was_committed(monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, int, int]]) -> None:
    monkeypatch.setattr(table_reading, "FENCE_EVERY", 4)
    model = _Model()
    for operation, shard, n in steps:
        model.step(operation, shard, n)
        model.check()
    for old in model.known:
        assert model.table.snapshot(old) == model.known[-1], "however old what one knows is"
