"""A shard's log with checkpoints, and mergers over it with a clock that tests move."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from imray.history.merger import Merger
from imray.history.run_reader import RunReader
from imray.history.table import Table
from imray.log.segment import open_segment, segment_prefix
from imray.log.store import LocalStore, Store
from imray.settings import Settings
from imray.shard.committer import Committer
from tests.support.batches import Msg, commit, msg_id, open_committer, seal

READ_S_MAX = 20.0
SETTINGS = Settings(run_file_bytes=64 * 1024, run_group_bytes=4 * 1024)
STEPS_MAX = 10_000
Row = tuple[str, int, int, int]
"""Conversation, number, and where it stood: segment and row."""


class ManualClock:
    """Monotonic seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        """Time passes."""
        self.now_s += seconds


class UnsyncedStore(LocalStore):
    """A disk for tests that ask no question of durability: a hundred times faster."""

    def _sync_file(self, fd: int) -> None:
        pass

    def _sync_folder(self, folder: str) -> None:
        pass


class HookedStore(UnsyncedStore):
    """Tells of each call before it is made; the hook may raise, and then it is not made."""

    def __init__(self, root: Path, hook: Callable[[str, str], None] = lambda _verb, _name: None) -> None:
        super().__init__(root)
        self.hook = hook

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        self.hook("put", name)
        return super().put_if_absent(name, parts)

    def get(self, name: str) -> bytes | None:
        self.hook("get", name)
        return super().get(name)

    def get_range(self, name: str, start: int, size: int) -> bytes | None:
        self.hook("get_range", name)
        return super().get_range(name, start, size)

    def exists(self, name: str) -> bool:
        self.hook("exists", name)
        return super().exists(name)

    def sync(self, prefix: str) -> None:
        self.hook("sync", prefix)
        super().sync(prefix)

    def list(self, prefix: str, after: str = "") -> list[str]:
        self.hook("list", prefix)
        return super().list(prefix, after)

    def delete(self, name: str) -> None:
        self.hook("delete", name)
        super().delete(name)


def merger_of(
    store: Store, clock: Callable[[], float], settings: Settings = SETTINGS, only_vacuum: bool = False
) -> Merger:
    """A merger of shard 0."""
    return Merger(store, 1, settings, clock, lambda: 1_700_000_000_000, only_vacuum)


def work(merger: Merger, shard: int = 0) -> int:
    """Let it do all that is to be done now: how many pieces of work that were."""
    for n in range(STEPS_MAX):
        if not merger.step(shard):
            return n
    raise AssertionError(f"{STEPS_MAX} steps, and no end")


def work_all(merger: Merger, clock: ManualClock) -> None:
    """Let it do all that is to be done, until readers need nothing of what was replaced."""
    work(merger)
    while (wait_s := merger.more_in_s(0)) is not None:
        clock.pass_s(wait_s + 0.001)
        if not work(merger):
            break  # held back, or by a pin


class WrittenLog:
    """A shard's log, written as in life: fences, commits, checkpoints."""

    def __init__(self, store: LocalStore, settings: Settings = SETTINGS) -> None:
        self.store = store
        self._settings = settings
        self._n = 0
        self.acked: dict[tuple[str, int], bytes] = {}
        """By conversation and number: the id."""
        self.bodies: dict[bytes, bytes] = {}
        """By id."""
        self.committer: Committer = open_committer(store, settings)

    def write(self, commits: int, conversations: Sequence[str] = ("a", "b", "c")) -> None:
        """Commits of a few messages."""
        for _ in range(commits):
            messages = [
                Msg(conv, msg_id(self._n * 100 + i), b"hello %d" % self._n) for i, conv in enumerate(conversations)
            ]
            self._n += 1
            for message, row in zip(messages, commit(self.committer, messages), strict=True):
                self.acked[message.conv, row.seq] = message.id
                self.bodies[message.id] = message.body

    def checkpoint(self, times: int = 1) -> None:
        """Seal what came; each needs a segment of its own."""
        for _ in range(times):
            seal(self.committer)

    def reopen(self) -> None:
        """A new incarnation: one more fence."""
        self.committer.writer.close()
        self.committer = open_committer(self.store, self._settings)

    @property
    def segment(self) -> int:
        """The last one."""
        return self.committer.state.log.segment


def segments_left(store: Store, log: int = 0) -> tuple[list[int], list[int]]:
    """The numbers of a log's files: those with rows, and fences."""
    filled: list[int] = []
    fences: list[int] = []
    for name in store.list(segment_prefix(log)):
        data = store.get(name)
        assert data is not None
        meta = open_segment(data, name).meta
        (filled if meta.rows else fences).append(meta.segment)
    return filled, fences


def rows_of_table(store: Store) -> Counter[tuple[str, int]]:
    """How often each message (conversation, number) is in the history. Every file is verified."""
    found: Counter[tuple[str, int]] = Counter()
    reader = RunReader(store, 0)
    for file in Table(store).snapshot().files.values():
        reader.verify(file)
        for table in reader.tables(file, ["conv_id", "conv_seq", "kind"]):
            names, numbers, kinds = (column.to_pylist() for column in table.columns)
            found.update((c, n) for c, n, kind in zip(names, numbers, kinds, strict=True) if kind == 0)
    return found


def rows_of_log(store: Store, log: int = 0) -> Counter[tuple[str, int]]:
    """As `rows_of_table`, of the segments above what is merged."""
    merged = Table(store).snapshot().merged.get(log, 0)
    found: Counter[tuple[str, int]] = Counter()
    for name in store.list(segment_prefix(log)):
        data = store.get(name)
        assert data is not None
        segment = open_segment(data, name)
        if segment.meta.segment > merged and segment.meta.rows:
            rows = segment.table(["conv_id", "conv_seq", "kind"]).to_pylist()
            found.update((r["conv_id"], r["conv_seq"]) for r in rows if r["kind"] == 0)
    return found


def all_rows(store: Store) -> Counter[tuple[str, int]]:
    """How often a reader sees each message: in the history, or in the log above it."""
    return rows_of_table(store) + rows_of_log(store)


def files_of(root: Path, folder: str) -> list[str]:
    """Names of the files below a folder."""
    return sorted(str(p.relative_to(root)) for p in (root / folder).rglob("*") if p.is_file())


def written(store: UnsyncedStore, checkpoints_: int = 3, commits: int = 4) -> WrittenLog:
    """A log with a checkpoint after every few commits."""
    log = WrittenLog(store)
    for _ in range(checkpoints_):
        log.write(commits)
        log.checkpoint()
    return log


def once(log: WrittenLog) -> Counter[tuple[str, int]]:
    """Every acked message, once."""
    return Counter(dict.fromkeys(log.acked, 1))


def segment_numbers(store: Store, log: int = 0) -> list[int]:
    """The numbers of a log's files, by their names."""
    return [int(name[-28:-8]) for name in store.list(segment_prefix(log)) if name.endswith(".parquet")]
