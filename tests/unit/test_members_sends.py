"""Who may send: judged when a batch is planned, by its senders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from imray.core.columns import RowStatus
from imray.core.members import Role
from imray.core.membership import Change
from imray.core.replies import Appended, Firsts
from imray.settings import Settings
from imray.shard.committer import Committer
from tests.support.batches import Msg, msg_id, open_committer, prepared, seal
from tests.support.membership import change, create, known, planned

OWNER, MEMBER, READER = Role.OWNER, Role.MEMBER, Role.READER
CLOSED = Settings(conversations_open=False)


def _m(n: int, sender: str, conv: str = "room", body: bytes = b"x") -> Msg:
    return Msg(conv, msg_id(n), body, sender)


def _send(committer: Committer, *requests: Sequence[Msg]) -> list[list[tuple[str, int]]]:
    """(status, number) of each row of each request."""
    told = []
    for answer in committer.commit([prepared(r) for r in requests]):
        assert isinstance(answer, Appended)
        firsts = answer.firsts
        names = ["new"] * answer.rows
        if firsts is not None:
            for at, status in zip(firsts.at.tolist(), firsts.status.tolist(), strict=True):
                names[at] = RowStatus(status).name.lower()
        told.append(list(zip(names, answer.seqs().tolist(), strict=True)))
    return told


def _room(root: Path, settings: Settings | None = None) -> Committer:
    committer = open_committer(root, settings)
    create(committer, "room", olga=OWNER, mia=MEMBER, rita=READER)
    return committer


def test_owners_and_members_send_and_nobody_else(tmp_path: Path) -> None:
    committer = _room(tmp_path)
    batch = [_m(i, who) for i, who in enumerate(["olga", "mia", "rita", "eve", "root", "mia"], 1)]
    assert _send(committer, batch) == [
        [("new", 1), ("new", 2), ("forbidden", 0), ("forbidden", 0), ("forbidden", 0), ("new", 3)]
    ]
    assert _send(committer, [_m(3, "mia"), _m(4, "mia")]) == [[("new", 4), ("new", 5)]], "their ids are free"


def test_a_batch_over_many_conversations_is_judged_row_by_row(tmp_path: Path) -> None:
    committer = _room(tmp_path)
    rows = [_m(1, "eve", "open"), _m(2, "eve"), _m(3, "mia", "new one"), _m(4, "mia"), _m(5, "eve", "open")]
    assert _send(committer, rows, [_m(6, "eve")], [_m(7, "olga")]) == [
        [("new", 1), ("forbidden", 0), ("new", 1), ("new", 1), ("new", 2)],
        [("forbidden", 0)],
        [("new", 2)],
    ]


def test_large_requests_are_judged_like_small_ones(tmp_path: Path) -> None:
    """They are not copied, so that their senders come in several chunks."""
    committer = _room(tmp_path)
    body = b"y" * 2000
    first = [_m(n, "mia" if n % 2 else "eve", body=body) for n in range(1, 301)]
    second = [_m(n, "eve" if n % 2 else "olga", body=body) for n in range(301, 601)]
    told = _send(committer, first, second)
    assert [status for status, _ in told[0]] == ["new", "forbidden"] * 150
    assert [status for status, _ in told[1]] == ["forbidden", "new"] * 150
    assert [seq for status, seq in told[0] + told[1] if status == "new"] == list(range(1, 301))


@pytest.mark.parametrize("sealed", [False, True])
def test_a_retry_of_what_was_sent_stays_a_duplicate_after_the_removal(tmp_path: Path, sealed: bool) -> None:
    committer = _room(tmp_path)
    assert _send(committer, [_m(1, "mia")]) == [[("new", 1)]]
    change(committer, Change("room", "olga", False, {}, ("mia",)))
    if sealed:
        seal(committer)
    assert _send(committer, [_m(1, "mia"), _m(2, "mia"), _m(1, "mia", body=b"other")]) == [
        [("duplicate", 1), ("forbidden", 0), ("forbidden", 0)]
    ]


def test_a_stranger_does_not_learn_which_ids_were_used(tmp_path: Path) -> None:
    committer = _room(tmp_path)
    _send(committer, [_m(1, "mia")])
    assert _send(committer, [_m(1, "eve")]) == [[("forbidden", 0)]]


def test_what_is_forbidden_repeats_nothing_and_nothing_repeats_it(tmp_path: Path) -> None:
    committer = _room(tmp_path)
    assert _send(committer, [_m(1, "eve"), _m(1, "mia"), _m(1, "eve"), _m(1, "mia")]) == [
        [("forbidden", 0), ("new", 1), ("forbidden", 0), ("duplicate", 1)]
    ]


def test_a_change_that_is_planned_counts_for_the_next_batch(tmp_path: Path) -> None:
    committer = _room(tmp_path)
    removal = planned(committer, Change("room", "olga", False, {"eve": MEMBER}, ("mia",)))
    job = committer.plan([prepared([_m(1, "mia"), _m(2, "eve")])])
    for each in (removal, job):
        committer.put(each)
        committer.mark_durable(each)
    answer = job.answers[0]
    assert isinstance(answer, Appended)
    assert isinstance(answer.firsts, Firsts)
    assert answer.firsts.forbidden.tolist() == [True]
    assert answer.firsts.at.tolist() == [0]


def test_a_batch_in_which_nobody_may_send_writes_no_segment(tmp_path: Path) -> None:
    committer = _room(tmp_path)
    before = committer.state.log.segment
    assert _send(committer, [_m(1, "eve"), _m(2, "rita")]) == [[("forbidden", 0), ("forbidden", 0)]]
    assert committer.state.log.segment == before


def test_where_conversations_are_not_open_they_must_be_created(tmp_path: Path) -> None:
    committer = _room(tmp_path, CLOSED)
    names = committer.state.conversations.count
    told = _send(committer, [_m(1, "mia", "unknown"), _m(2, "mia"), _m(3, "olga", "unknown too")])
    assert told == [[("forbidden", 0), ("new", 1), ("forbidden", 0)]]
    assert committer.state.conversations.count == names, "and their names are not kept"
    again = open_committer(tmp_path, CLOSED)
    assert known(again.state) == known(committer.state)
    create(again, "unknown", mia=OWNER)
    assert _send(again, [_m(1, "mia", "unknown")]) == [[("new", 1)]]


def test_what_was_open_is_closed_with_the_others(tmp_path: Path) -> None:
    committer = open_committer(tmp_path)
    assert _send(committer, [_m(1, "eve", "talk")]) == [[("new", 1)]]
    again = open_committer(tmp_path, CLOSED)
    assert _send(again, [_m(1, "eve", "talk"), _m(2, "eve", "talk")]) == [[("duplicate", 1), ("forbidden", 0)]]
