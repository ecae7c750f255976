"""Members and cursors in the log: what is read back is what was, from checkpoints and without them."""

from __future__ import annotations

from pathlib import Path

import pytest

from analytics import audit
from analytics.history import HistoryReader
from imray.core.errors import CorruptError
from imray.core.members import MembersChanged, Role
from imray.core.membership import Change
from imray.core.state import ShardState
from imray.log import checkpoint
from imray.log.checkpoint_file import read_checkpoint
from imray.log.manifest import create_or_open
from imray.log.schema import CursorsRecord, LogRecord, MembersRecord, RecordKind, record_table
from imray.log.store import LocalStore
from imray.settings import Settings
from imray.shard.recovery import replay
from tests.support.batches import SEED, Msg, commit, msg_id, open_committer, seal
from tests.support.membership import change, create, known, mark_read

OWNER, MEMBER, READER = Role.OWNER, Role.MEMBER, Role.READER


def _from_log_alone(root: Path) -> ShardState:
    state = ShardState(SEED)
    replay(LocalStore(root), 0, state)
    return state


def _as_recovered(root: Path) -> ShardState:
    state = checkpoint.restore(LocalStore(root), 0, SEED)
    replay(LocalStore(root), 0, state)
    return state


def _some_history(root: Path) -> ShardState:
    """Changes before, between and after two checkpoints."""
    committer = open_committer(root)
    commit(committer, [Msg("open", msg_id(1)), Msg("room", msg_id(2))])
    create(committer, "room", olga=OWNER, mia=MEMBER)
    create(committer, "hall", public=True, olga=OWNER)
    mark_read(committer, "room", olga=1, mia=1)
    seal(committer)
    commit(committer, [Msg("room", msg_id(3), sender="mia")])
    change(committer, Change("room", "olga", False, {"rita": READER}, ("mia",)))
    mark_read(committer, "room", rita=2)
    seal(committer)
    mark_read(committer, "open", eve=1)
    change(committer, Change("room", "olga", False, {"rita": OWNER}, ("olga",)))
    create(committer, "late", zoe=OWNER)
    return committer.state


def test_recovered_from_a_checkpoint_an_older_one_and_the_log_alone_it_is_the_same(tmp_path: Path) -> None:
    live = known(_some_history(tmp_path))
    assert live["room"] == (True, False, 3, {"rita": 3}, {"olga": 1, "mia": 1, "rita": 2})
    assert live["open"] == (False, False, 0, {}, {"eve": 1})
    assert live["created"] == 3
    store = LocalStore(tmp_path)
    newest = checkpoint.checkpoints(store, 0)[-1]
    assert checkpoint.checkpoint_meta(store, newest).users == 3, "so the checkpoint has columns of them"
    assert known(_as_recovered(tmp_path)) == live
    assert known(_from_log_alone(tmp_path)) == live
    store.delete(newest)
    assert known(_as_recovered(tmp_path)) == live
    assert known(open_committer(tmp_path).state) == live


def test_a_damaged_byte_among_the_members_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    live = known(_some_history(tmp_path))
    store = LocalStore(tmp_path)
    newest = tmp_path / checkpoint.checkpoints(store, 0)[-1]
    data = bytearray(newest.read_bytes())
    at = data.index(b"rita")
    data[at] ^= 1
    newest.chmod(0o600)
    newest.write_bytes(data)
    notes: list[str] = []
    state = checkpoint.restore(store, 0, SEED, notes)
    assert any("does not verify" in note for note in notes)
    replay(store, 0, state)
    assert known(state) == live


def test_a_folder_without_members_has_no_columns_of_them(tmp_path: Path) -> None:
    committer = open_committer(tmp_path)
    commit(committer, [Msg("open", msg_id(1))])
    seal(committer)
    store = LocalStore(tmp_path)
    file = read_checkpoint(store, checkpoint.checkpoints(store, 0)[-1])
    assert (file.meta.users, file.table().column_names) == (0, ["head", "conv_id"])
    assert _as_recovered(tmp_path).members.is_empty


def test_a_record_says_after_which_number_it_stands(tmp_path: Path) -> None:
    committer = open_committer(tmp_path)
    commit(committer, [Msg("room", msg_id(n)) for n in range(1, 5)])
    made = create(committer, "room", olga=OWNER, mia=MEMBER)
    assert made.members == (MembersChanged("room", 4, 1, (), public=False),)
    commit(committer, [Msg("room", msg_id(9), sender="olga")])
    gone = change(committer, Change("room", "mia", False, {}, ("mia",)))
    assert gone.members == (MembersChanged("room", 5, 2, ("mia",), public=False),)
    assert change(committer, Change("room", "mia", False, {}, ("mia",))).members == ()


@pytest.mark.parametrize(
    "record",
    [
        LogRecord("room", 1, RecordKind.MEMBERS, MembersRecord(False, {"eve": OWNER}, [], created=True)),
        LogRecord("room", 3, RecordKind.MEMBERS, MembersRecord(False, {"eve": OWNER}, [], created=False)),
        LogRecord("room", 2, RecordKind.MEMBERS, MembersRecord(False, {}, ["olga"], created=False)),
        LogRecord("other", 0, RecordKind.MEMBERS, MembersRecord(False, {"eve": OWNER}, [], created=False)),
        ("room", 2, RecordKind.MEMBERS, {"public": False, "set": {"eve": "king"}, "removed": [], "created": False}),
        ("room", 2, RecordKind.CURSORS, {"seqs": {"eve": "far"}}),
    ],
)
def test_a_record_that_no_writer_makes_is_corruption(tmp_path: Path, record: LogRecord) -> None:
    committer = open_committer(tmp_path)
    commit(committer, [Msg("room", msg_id(1)), Msg("room", msg_id(2))])
    create(committer, "room", olga=OWNER)
    committer.writer.append(record_table([record], 1000), 1000)
    with pytest.raises(CorruptError):
        _from_log_alone(tmp_path)


def test_segments_of_cursors_make_a_checkpoint_due(tmp_path: Path) -> None:
    """They have no ids and no numbers, and recovery reads them all the same."""
    committer = open_committer(tmp_path, Settings(checkpoint_segments_max=4))
    commit(committer, [Msg("room", msg_id(n)) for n in range(1, 9)])
    seal(committer)
    for seq in range(1, 5):
        assert not committer.checkpoint_due
        mark_read(committer, "room", olga=seq)
    assert committer.checkpoint_due
    seal(committer)
    assert not committer.checkpoint_due
    assert not committer.checkpoint_overdue
    for seq in range(1, 65):
        mark_read(committer, "room", olga=seq)
    assert committer.checkpoint_overdue, "senders wait, or the next recovery has no bound"


def test_cursors_of_many_are_one_record(tmp_path: Path) -> None:
    committer = open_committer(tmp_path)
    commit(committer, [Msg("room", msg_id(1))])
    many = {f"u{i}": 1 for i in range(5000)}
    job = mark_read(committer, "room", **many)
    assert job.table is not None
    assert job.table.num_rows == 1
    assert known(_from_log_alone(tmp_path))["room"][4] == many


def test_bodies_are_json_as_the_page_of_the_log_says() -> None:
    body = MembersRecord(public=True, set={"ä": READER}, removed=["b"], created=True)
    records = [
        LogRecord("c", 7, RecordKind.MEMBERS, body),
        LogRecord("c", 7, RecordKind.CURSORS, CursorsRecord({"ä": 3})),
    ]
    found = record_table(records, 5).to_pylist()
    assert [(r["kind"], r["conv_seq"], r["body"]) for r in found] == [
        (4, 7, b'{"public": true, "set": {"\\u00e4": "reader"}, "removed": ["b"], "created": true}'),
        (5, 7, b'{"seqs": {"\\u00e4": 3}}'),
    ]


def test_audits_and_history_take_the_records_for_what_they_are(tmp_path: Path) -> None:
    create_or_open(LocalStore(tmp_path), 1)
    _some_history(tmp_path)
    report = audit.run(tmp_path)
    assert report.ok, report.to_dict()
    committer = open_committer(tmp_path)
    there = committer.locate("room", 1, 2)
    reader = HistoryReader(str(tmp_path), Settings())
    page = reader.read(
        0, "room", there.stable, there.intervals, there.spans, after=0, before=None, limit=10, descending=False
    )
    assert (page.messages.column("conv_seq").to_pylist(), page.holes) == ([1, 2], [])
