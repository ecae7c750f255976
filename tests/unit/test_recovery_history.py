"""Recovery where no checkpoint serves and the log's beginning is gone: history and log give what the whole log gave."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from imray.core.errors import CorruptError, StaleError
from imray.core.replies import Appended
from imray.core.routing import log_of
from imray.history.table import Table
from imray.log import checkpoint
from imray.log.marks import MergeMark, newest_mark, put_mark
from imray.log.segment import segment_prefix
from imray.log.store import LocalStore
from imray.settings import Settings
from imray.shard import recovery
from imray.shard.shard_writer import ShardWriter
from tests.support.analytics_logs import FastStore, HotLog
from tests.support.batches import SEED, Msg, answers_of, ipc_of, msg_id, seal
from tests.support.deleting import log_end
from tests.support.owners import until_async
from tests.support.random_log import RandomLog, cut_anywhere, delete_merged, folded, merged, remade, view


@pytest.mark.parametrize("seed", range(6))
def test_history_and_log_give_what_the_whole_log_gave(tmp_path: Path, seed: int) -> None:
    store = FastStore(tmp_path)
    made = RandomLog(tmp_path, seed)
    for _ in range(50):
        made.step()
    made.write_held()
    expected = folded(store)
    live = made.log.committer.state
    assert view(expected) | {"hot": {}} == view(live) | {"hot": {}}, "the log itself"
    merged(store, cut_anywhere(store, made.rng, sorted(expected.partitions)))
    delete_merged(store)
    before = len(store.list(segment_prefix(0)))
    assert view(remade(store)) == view(expected)
    made.may_restart = False  # there are no ids before upkeep has made them
    for _ in range(20):
        made.step()
    made.write_held()
    assert len(store.list(segment_prefix(0))) > before
    expected = live
    merged(store, {log: log_end(store, log) for log in (0, *(log_of(0, s) for s in expected.partitions))})
    delete_merged(store)
    assert view(remade(store)) == view(expected), "once more, with what came since"


def _plain(root: Path, messages: int = 6) -> tuple[FastStore, HotLog]:
    store = FastStore(root)
    log = HotLog(root)
    for n in range(messages):
        log.send(0, Msg("plain", msg_id(n)))
    return store, log


def _merge_all(store: LocalStore) -> None:
    merged(store, {0: log_end(store, 0)})
    delete_merged(store)


def test_a_shard_opens_from_the_history_alone(tmp_path: Path) -> None:
    store, log = _plain(tmp_path)
    _merge_all(store)
    log.restart()
    assert log.committer.state.log.epoch == 2
    assert any("from the history" in note for note in log.committer.notes)
    covers = [(s.interval.first, s.interval.last, s.interval.ids) for s in log.committer.intervals]
    assert (covers[0][0], covers[-1][1]) == (1, 7)
    assert all(a[1] + 1 == b[0] for a, b in pairwise(covers)), "adjacent"
    assert sum(ids for *_, ids in covers) == 6


def test_a_partition_is_opened_by_the_table_where_its_mark_is_damaged(tmp_path: Path) -> None:
    store, log = _plain(tmp_path)
    log.make_hot("room", 1)
    log.send(1, Msg("room", msg_id(100)))
    end = log_end(store, log_of(0, 1))
    merged(store, {0: log_end(store, 0), log_of(0, 1): end})
    delete_merged(store)
    assert recovery.become_partition_writer(store, 0, 1, lambda: 1)[0].segment == end.segment + 1
    name = store.list("merged/log=10001/")[-1]
    data = store.get(name)
    assert data is not None
    store.delete(name)
    store.put_if_absent(name, [data.replace(b"epoch", b"ep0ch")])
    assert recovery.become_partition_writer(store, 0, 1, lambda: 1)[0].segment == end.segment + 2


def test_a_table_that_lost_commits_is_corruption(tmp_path: Path) -> None:
    store, log = _plain(tmp_path)
    _merge_all(store)
    mark = newest_mark(store, 0)
    assert mark is not None
    store.delete(store.list("merged/log=00000/")[-1])
    put_mark(store, MergeMark(mark.end, mark.version + 1))
    with pytest.raises(CorruptError, match="version"):
        log.restart()


def test_a_damaged_run_is_corruption(tmp_path: Path) -> None:
    store, log = _plain(tmp_path)
    _merge_all(store)
    name = store.list("history/shard=0000/")[0]
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 3] ^= 1
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorruptError, match=r"history/shard=0000"):
        log.restart()


def test_without_deleted_segments_the_log_alone_serves(tmp_path: Path) -> None:
    """The history may be damaged, or not be there at all."""
    store, log = _plain(tmp_path)
    merged(store, {0: log_end(store, 0)})
    for name in store.list("history/shard=0000/"):
        store.delete(name)
    log.restart()
    assert int(log.committer.state.conversations.heads[0]) == 6


def test_a_checkpoint_that_serves_needs_no_history(tmp_path: Path) -> None:
    store, log = _plain(tmp_path)
    seal(log.committer)
    _merge_all(store)
    for name in store.list("history/shard=0000/"):
        store.delete(name)
    log.restart()
    assert int(log.committer.state.conversations.heads[0]) == 6


def test_a_run_that_was_replaced_meanwhile_is_begun_anew(tmp_path: Path) -> None:
    store, _ = _plain(tmp_path)
    _merge_all(store)
    history = recovery.HistoryState(store, 0, SEED)
    table = Table(store)
    base = table.snapshot()
    gone = base.runs[0][0].files[0]
    for name in base.files:
        store.delete(name)

    class Newer(Table):
        def snapshot(self, known: Any = None) -> Any:
            return type(base)()

    history._table = Newer(store)
    with pytest.raises(StaleError, match=gone.run):
        history.recovered()


@pytest.mark.parametrize("damage", ["no checkpoint yet", "lost", "flipped"])
async def test_old_ids_are_known_again(tmp_path: Path, damage: str) -> None:
    """Their intervals are made from the history, beside the commits; until then who may be known comes back. Fault 24:
    every derived file at once."""
    store, log = _plain(tmp_path)
    log.make_hot("room", 1)
    for n in range(3):
        log.send(1, Msg("room", msg_id(100 + n)))
    if damage != "no checkpoint yet":
        seal(log.committer)
        assert checkpoint.write_twin(store, 0)
    merged(store, {0: log_end(store, 0), log_of(0, 1): log_end(store, log_of(0, 1))})
    delete_merged(store)
    log.close()
    for name in [*store.list("checkpoint/shard=0000/"), *store.list("sealed/shard=0000/")]:
        data = bytearray((tmp_path / name).read_bytes())
        store.delete(name)
        if damage == "flipped":
            data[len(data) // 2] ^= 1
            (tmp_path / name).write_bytes(data)
    shard = ShardWriter(store, 0, SEED, Settings())
    await shard.start()
    assert shard.current is not None
    upkeep = shard.current.upkeep
    await until_async(lambda: not upkeep.at_work, "the ids are there")
    old = [Msg("plain", msg_id(n)) for n in range(6)] + [Msg("room", msg_id(100 + n)) for n in range(3)]
    answer = await shard.append(ipc_of([*old, Msg("plain", msg_id(7))]))
    assert isinstance(answer, Appended)
    rows = [(row.status, row.seq) for row in answers_of(answer)]
    assert rows == [*(("duplicate", n + 1) for n in range(6)), *(("duplicate", n + 1) for n in range(3)), ("new", 7)]
    assert checkpoint.checkpoint_meta(store, checkpoint.checkpoints(store, 0)[-1]).segment > 8, "made, as none served"
    await shard.stop()
