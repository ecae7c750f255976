"""Merging: what is in the segments, and in the runs, is in the run that comes of them: each row once, in order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from imray.core.errors import CorruptError
from imray.core.log_progress import LogProgress
from imray.history.layout import SEGMENT_KIND
from imray.history.merging import due, merge_runs, merge_segments
from imray.history.run_reader import RunReader
from imray.history.segment_rows import SegmentNote
from imray.history.snapshot import Covered, Run, RunFile
from imray.log.marks import LogEnd
from imray.log.reader import read_log
from imray.log.schema import Record, RecordKind
from imray.log.segment import segment_name
from imray.log.store import LocalStore
from imray.settings import Settings
from tests.support.batches import Msg, commit, msg_id, open_committer
from tests.support.history_rows import SMALL, HistoryRow, LogMaker, UnsyncedStore, keys_of, put_rows, void_row

_MESSAGE = RecordKind.MESSAGE


class _WindowStore(LocalStore):
    puts_at_once = 4


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return UnsyncedStore(tmp_path)


def _read(store: LocalStore, files: Sequence[RunFile]) -> list[dict[str, object]]:
    reader = RunReader(store, 0)
    return [row for file in files for t in reader.tables(file) for row in t.to_pylist()]


def _in_the_log(store: LocalStore, log: int, begin: LogEnd | None, last: int) -> list[dict[str, object]]:
    """The rows of a log's segments, with where they stand, one of each segment itself before them."""
    found: list[dict[str, object]] = []
    for segment in read_log(store, log, begin.progress() if begin else LogProgress(), last):
        meta = segment.meta
        place = {"log": log, "segment": meta.segment, "epoch": meta.epoch}
        found.append({**place, "conv_id": "", "conv_seq": 0, "kind": SEGMENT_KIND, "row": -1})
        rows = segment.table().to_pylist()
        found += [{**place, **row, "row": i} for i, row in enumerate(rows)]
    return found


def _key(row: Mapping[str, object]) -> tuple[object, ...]:
    return (str(row["conv_id"]).encode(), row["conv_seq"], row["log"], row["segment"], row["row"])


def _check_same(store: LocalStore, files: Sequence[RunFile], expected: list[dict[str, object]]) -> None:
    found = _read(store, files)
    for want, row in zip(sorted(expected, key=_key), found, strict=True):
        assert {name: row[name] for name in want if want["kind"] != SEGMENT_KIND or name != "body"} == want


def _fill(log: LogMaker, conversations: int, segments: int, rows: int, first: int = 1) -> None:
    for s in range(first, first + segments):
        records: list[Record] = []
        for r in range(rows):
            records.append((f"room-{(s * 7 + r) % conversations}", s * rows + r, _MESSAGE, {"text": f"{s} {r}"}))
        records.append((f"room-{s % conversations}", s * rows, RecordKind.CURSORS, {"seqs": {"ann": s}}))
        log.put(records, server_ts_ms=1_000_000 + s)


def test_a_run_has_all_rows_of_its_segments(tmp_path: Path) -> None:
    """Messages as shards write them: large and small segments, all columns."""
    committer = open_committer(tmp_path)
    for k in range(8):
        count = 90 if k % 3 else 2
        batch = [
            Msg(f"c{i % 7}", msg_id(k * 100 + i), b"%d" % i, f"s{i % 5}", "t" if i % 2 else None, None, 1000 + i)
            for i in range(count)
        ]
        commit(committer, batch)
    store = LocalStore(tmp_path)
    cut = LogEnd.of(0, committer.state.progress(0))
    files, ends = merge_segments(store, 0, {0: None}, {0: cut}, SMALL)
    assert ends == {0: cut}
    assert files[0].covers == (Covered(0, 1, cut.segment),)
    assert files[0].ends == (cut,)
    _check_same(store, files, _in_the_log(store, 0, None, cut.segment))


def test_logs_of_a_shard_become_one_run(store: LocalStore) -> None:
    """Hot: a conversation's rows come from several logs, interleaved; voids are logged late."""
    logs = [LogMaker(store, 0), LogMaker(store, 10_001, sequencer=1), LogMaker(store, 10_002, sequencer=1)]
    for n, log in enumerate(logs):
        _fill(log, 5, 6, 40 if n else 3, first=n)
    logs[0].put([("room-1", 3, RecordKind.VOID, {"last": 9, "reason": "lost"}), ("room-1", 900, RecordKind.COLD, {})])
    logs[1].fence()
    cut = {log.log: log.end() for log in logs}
    files, ends = merge_segments(store, 0, dict.fromkeys(cut), cut, SMALL)
    assert ends == cut
    expected = [row for log in logs for row in _in_the_log(store, log.log, None, log.end().segment)]
    _check_same(store, files, expected)


def test_each_segment_leaves_a_note(store: LocalStore) -> None:
    log = LogMaker(store, 10_001, sequencer=3)
    log.put([("a", 1, _MESSAGE, {})])
    files, _ = merge_segments(store, 0, {}, {10_001: log.end()}, SMALL)
    notes = [row for row in _read(store, files) if row["kind"] == SEGMENT_KIND]
    assert [(n["segment"], n["row"], n["conv_id"], n["epoch"]) for n in notes] == [(1, -1, "", 1), (2, -1, "", 1)]
    read = [msgspec.json.decode(n["body"], type=SegmentNote) for n in notes]  # type: ignore[arg-type]
    sizes = [(store.root / segment_name(10_001, n)).stat().st_size for n in (1, 2)]
    assert [n.bytes for n in read] == sizes
    assert [(n.rows, n.sequencer) for n in read] == [(0, 3), (1, 3)]


def test_a_log_goes_on_where_a_fence_says(tmp_path: Path) -> None:
    store = _WindowStore(tmp_path)
    log = LogMaker(store)
    _fill(log, 3, 2, 5)
    first = log.end()
    log.fence()
    assert log.progress.following == log.progress.segment + 4
    _fill(log, 3, 2, 5, first=9)
    _, ends = merge_segments(store, 0, {0: None}, {0: first}, SMALL)
    files, ends = merge_segments(store, 0, ends, {0: log.end()}, SMALL)
    assert ends == {0: log.end()}
    assert files[0].covers == (Covered(0, first.segment + 1, log.end().segment),), "with the names that were left out"
    _check_same(store, files, _in_the_log(store, 0, first, log.end().segment))
    between = msgspec.structs.replace(log.end(), segment=first.segment + 2)
    with pytest.raises(CorruptError, match="it is the cut, but after segment"):
        merge_segments(store, 0, {0: first}, {0: between}, SMALL)


def test_a_step_is_bounded_and_fair(store: LocalStore) -> None:
    """Any place below the cut is a legal end: a large backlog is merged step by step."""
    logs = [LogMaker(store, 0), LogMaker(store, 10_001), LogMaker(store, 10_002)]
    _fill(logs[0], 3, 30, 40)
    _fill(logs[1], 3, 30, 40)
    _fill(logs[2], 3, 2, 1)
    cut = {log.log: log.end() for log in logs}
    total = sum(f.stat().st_size for f in store.root.glob("wal/*/*"))
    begin: dict[int, LogEnd | None] = dict.fromkeys(cut)
    files: list[RunFile] = []
    steps = 0
    while (step := merge_segments(store, 0, begin, cut, Settings(merge_step_bytes_max=total // 5)))[1]:
        files += step[0]
        begin |= step[1]
        steps += 1
        if steps == 1:
            assert abs(step[1][0].segment - step[1][10_001].segment) <= 1
            assert step[1][10_002] == cut[10_002]
            assert 10_002 in {c.log for c in step[0][0].covers}
        else:
            assert 10_002 not in step[1], "a log that did not move has no end in the run"
    assert 4 <= steps <= 6
    assert begin == cut
    expected = [row for log in logs for row in _in_the_log(store, log.log, None, log.end().segment)]
    assert sorted(map(_key, _read(store, files))) == sorted(map(_key, expected))


def test_one_segment_is_read_however_small_the_step(store: LocalStore) -> None:
    log = LogMaker(store)
    _fill(log, 3, 3, 40)
    _, ends = merge_segments(store, 0, {0: None}, {0: log.end()}, Settings(merge_step_bytes_max=1))
    assert ends[0].segment == 1


def test_nothing_new_makes_no_run(store: LocalStore) -> None:
    log = LogMaker(store)
    cut = {0: log.end()}
    assert merge_segments(store, 0, cut, cut, SMALL) == ([], {})
    assert store.list("history/shard=0000/") == []


def test_a_cut_of_another_log_is_refused(store: LocalStore) -> None:
    """The checkpoint and the log must be of one past, where the merge begins and where it ends."""
    log = LogMaker(store)
    _fill(log, 3, 3, 4)
    end = log.end()
    wrong = msgspec.structs.replace(end, digest="0" * 32)
    for begin in (None, end):
        with pytest.raises(CorruptError, match="the checkpoint that names the cut"):
            merge_segments(store, 0, {0: begin}, {0: wrong}, SMALL)
    _fill(log, 3, 1, 4)
    with pytest.raises(CorruptError, match="it follows a segment"):
        merge_segments(store, 0, {0: wrong}, {0: log.end()}, SMALL)


def test_a_damaged_or_missing_segment_is_refused(store: LocalStore) -> None:
    log = LogMaker(store)
    _fill(log, 3, 5, 4)
    name = segment_name(0, 3)
    path = store.root / name
    data = path.read_bytes()
    for damaged in (data[:-1], data[:40] + b"?" + data[41:], None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(CorruptError, match=name):
            merge_segments(store, 0, {0: None}, {0: log.end()}, SMALL)
        path.write_bytes(data)


def _chat_runs(store: LocalStore, count: int, each: int) -> tuple[list[Run], list[HistoryRow]]:
    """Runs as a busy shard leaves them: one conversation that is larger than all others, and some that overlap."""
    rows: list[HistoryRow] = []
    runs: list[Run] = []
    for r in range(count):
        own = [HistoryRow("busy", r * each + n - r, segment=r, row=n) for n in range(each)]
        own += [HistoryRow(f"c{n % 50:02d}", r * 9 + n // 50, log=10_001 + r % 2, segment=r, row=n) for n in range(300)]
        own += [HistoryRow("", 0, segment=r * 1000 + n, row=-1, kind=SEGMENT_KIND) for n in range(each)]
        own += [void_row("zz", r * 10 + 1, r * 10 + 30, segment=r)]
        runs.append(put_rows(store, own))
        rows += own
    return runs, rows


def test_runs_become_one_run(store: LocalStore) -> None:
    runs, rows = _chat_runs(store, 4, 400)
    for step in (1 << 12, 1 << 27):
        settings = Settings(run_group_bytes=2048, run_file_bytes=16 * 1024, merge_step_bytes_max=step)
        files = merge_runs(store, 0, runs, settings)
        found = [key for file in files for key in map(_key, _read(store, [file]))]
        assert found == sorted(r.key for r in rows)
        assert {f.tier for f in files} == {1}
        assert len({f.run for f in files} | {run.files[0].run for run in runs}) == 5


def test_a_merged_run_covers_what_its_runs_did(store: LocalStore) -> None:
    logs = [LogMaker(store, 0), LogMaker(store, 10_001)]
    begin: dict[int, LogEnd | None] = {}
    runs = []
    for n in range(3):
        _fill(logs[n % 2], 3, 4, 9, first=n * 10)
        files, ends = merge_segments(store, 0, begin, {log.log: log.end() for log in logs}, SMALL)
        begin |= ends
        runs.append(Run(tuple(files)))
    (file,) = merge_runs(store, 0, runs, Settings())
    assert file.covers == (Covered(0, 1, logs[0].end().segment), Covered(10_001, 1, logs[1].end().segment))
    assert file.ends == tuple(log.end() for log in logs)
    expected = [row for log in logs for row in _in_the_log(store, log.log, None, log.end().segment)]
    _check_same(store, [file], expected)


def test_memory_of_a_merge_is_bounded(store: LocalStore) -> None:
    """However large the runs are, and a single conversation in them."""
    settings = Settings(run_group_bytes=8192, run_file_bytes=64 * 1024, merge_step_bytes_max=1 << 20)
    runs = []
    noise = random.Random(1)
    for r in range(3):
        rows = [HistoryRow("busy", n * 3 + r, segment=r, row=n, body=noise.randbytes(8000)) for n in range(400)]
        runs.append(put_rows(store, rows, settings))
    total = sum(t.nbytes for run in runs for f in run.files for t in RunReader(store, 0).tables(f))
    assert total > 9_000_000
    pool = pa.proxy_memory_pool(pa.default_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        files = merge_runs(store, 0, runs, settings)
    finally:
        pa.set_memory_pool(before)
    assert sum(f.rows for f in files) == 1200
    assert pool.max_memory() < 2 * settings.merge_step_bytes_max


def _run(tier: int) -> Run:
    return Run((RunFile("", 0, "", tier, 1, 1, "", "", (), ()),))


@pytest.mark.parametrize(
    ("tiers", "expected"),
    [
        ("", None),
        ("0000000", None),
        ("00000000", (0, 8)),
        ("1" * 7 + "0" * 9, (7, 15)),
        ("1" * 8 + "0" * 7, (0, 8)),
        ("1" * 8 + "0" * 8, (8, 16)),
        ("2" + "0" * 7 + "1" + "0" * 7, None),
    ],
)
def test_which_runs_are_due(tiers: str, expected: tuple[int, int] | None) -> None:
    found = due([_run(int(tier)) for tier in tiers])
    assert found == (None if expected is None else slice(*expected))


def test_keys_are_read_in_order_over_files(store: LocalStore) -> None:
    runs, _ = _chat_runs(store, 2, 300)
    files = merge_runs(store, 0, runs, SMALL)
    assert len(files) > 1
    keys = [key for f in files for t in RunReader(store, 0).tables(f) for key in keys_of(t)]
    assert keys == sorted(keys)
    assert [f.last for f in files[:-1]] <= [f.first for f in files[1:]]
