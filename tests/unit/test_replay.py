"""The pure parts of a replay: ids, lanes, and the comparison of what was read with what was sent."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imray.cli import replay_plan
from imray.cli.replay_check import ConversationCheck, Proof, unexplained
from imray.cli.replay_plan import NO_SENDER, Chat, Lanes, lane_keys, load, message_ids
from imray.cli.replay_send import CONFLICT, NEW, Acks
from imray.client import HistoryPage, Hole, Message
from imray.core.errors import InvalidError

ROWS = [("a", "ann", "hi"), ("b", "bob", ""), ("a", "bob", "ho"), ("a", None, None), ("a", "ann", "hi")]


def chat_file(
    path: Path, rows: Sequence[tuple[Any, ...]] = ROWS, names: Sequence[str] = ("log", "nick", "text")
) -> Path:
    pq.write_table(pa.table({n: [row[i] for row in rows] for i, n in enumerate(names)}), path)
    return path


@pytest.fixture
def chat(tmp_path: Path) -> Chat:
    return load(chat_file(tmp_path / "chat.parquet"), "", None)


def test_ids_are_the_files_and_the_rows(tmp_path: Path) -> None:
    path = chat_file(tmp_path / "chat.parquet")
    whole, again, part = load(path, "", None), load(path, "other-", None), load(path, "", 2)
    assert whole.raw_ids == again.raw_ids
    assert part.raw_ids == whole.raw_ids[:32]
    assert len({whole.client_msg_id(row) for row in range(len(whole))}) == len(ROWS)
    other = load(chat_file(tmp_path / "other.parquet", ROWS[::-1]), "", None)
    assert not {other.client_msg_id(i) for i in range(5)} & {whole.client_msg_id(i) for i in range(5)}


def test_ids_never_change() -> None:
    """A replay that was started with one version and ended with another must not store anything twice."""
    assert message_ids(b"digest", 2).hex() == "".join(
        ("631bcd2443dca8c9db08bf2d61c6a017", "b37d63b4019aa8a6d90871d423a55698")
    )


def test_columns_as_the_file_has_them(chat: Chat) -> None:
    assert [chat.conversations.of(i) for i in range(5)] == ["a", "b", "a", "a", "a"]
    assert [chat.senders.of(i) for i in range(5)] == ["ann", "bob", "bob", NO_SENDER, "ann"]
    assert chat.texts.to_pylist() == ["hi", "", "ho", "", "hi"]


def test_prefix(tmp_path: Path) -> None:
    chat = load(chat_file(tmp_path / "chat.parquet"), "again-", None)
    assert chat.conversations.texts == ["again-a", "again-b"]


@pytest.mark.parametrize("names", [("conversation", "sender", "body"), ("conv_id", "nick", "text")])
def test_other_column_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    assert len(load(chat_file(tmp_path / "chat.parquet", names=names), "", None)) == len(ROWS)


@pytest.mark.parametrize(
    ("rows", "names", "says"),
    [
        (ROWS, ("log", "who", "text"), "no column sender or nick; it has log, who, text"),
        ([("x" * 129, "ann", "hi")], ("log", "nick", "text"), "row 0: log has 129 bytes"),
        ([("a", "ann", "hi"), (None, "ann", "hi")], ("log", "nick", "text"), "row 1: log is null"),
        ([("a", "ann\n", "hi")], ("log", "nick", "text"), "row 0: nick holds a control character"),
        ([("a", "ann", b"\xff")], ("log", "nick", "text"), "no Parquet file of texts"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, rows: Any, names: Any, says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        load(chat_file(tmp_path / "chat.parquet", rows, names), "", None)


def test_an_empty_file(tmp_path: Path) -> None:
    schema = pa.schema([(name, pa.string()) for name in ("log", "nick", "text")])
    pq.write_table(schema.empty_table(), tmp_path / "empty.parquet")
    chat = load(tmp_path / "empty.parquet", "", None)
    assert len(chat) == 0
    assert replay_plan.lanes_of(chat, False, 10).take() is None


@given(
    keys=st.lists(st.integers(0, 5), max_size=200),
    batch_max=st.integers(1, 20),
    in_flight_max=st.integers(1, 6),
    seed=st.integers(),
)
def test_lanes_keep_order(keys: list[int], batch_max: int, in_flight_max: int, seed: int) -> None:
    """Whatever is answered first: every row once, in its lane's order, one batch of a lane in flight."""
    order = random.Random(seed)
    lanes = Lanes(np.array(keys, np.int64), np.full(len(keys), 3, np.int64), batch_max)
    flying: list[replay_plan.Batch] = []
    sent: list[int] = []
    while True:
        while len(flying) < in_flight_max and (batch := lanes.take()) is not None:
            rows = batch.rows.tolist()
            assert 1 <= len(rows) <= batch_max
            assert rows == sorted(rows)
            mine = {keys[row] for row in rows}
            assert not any(keys[row] in mine for other in flying for row in other.rows.tolist())
            flying.append(batch)
            sent += rows
        if not flying:
            break
        lanes.release(flying.pop(order.randrange(len(flying))))
    assert sorted(sent) == list(range(len(keys)))
    for key in set(keys):
        mine_sent = [row for row in sent if keys[row] == key]
        assert mine_sent == sorted(mine_sent)


def test_batches_are_bounded_in_bytes() -> None:
    sizes = np.array([900_000, 900_000, 900_000, 5_000_000, 10], np.int64)
    lanes = Lanes(np.zeros(5, np.int64), sizes, 100)
    batches = []
    while (batch := lanes.take()) is not None:
        batches.append(batch.rows.tolist())
        lanes.release(batch)
    assert batches == [[0, 1], [2], [3], [4]]


def test_by_sender_lanes(chat: Chat) -> None:
    by_conversation, by_sender = lane_keys(chat, False), lane_keys(chat, True)
    assert by_conversation[0] == by_conversation[3] != by_conversation[1]
    assert by_sender[0] == by_sender[4]
    assert len(set(by_sender.tolist())) == 4


def read_again(chat: Chat, seqs: dict[int, int]) -> list[Message]:
    """What the history says when it is right; `seqs` by row."""
    texts = chat.texts.to_pylist()
    found = [
        Message(seq, chat.client_msg_id(row), chat.senders.of(row), None, None, None, 1, texts[row])
        for row, seq in seqs.items()
    ]
    return sorted(found, key=lambda m: m.conv_seq)


def compare(
    chat: Chat,
    seqs: dict[int, int],
    messages: list[Message],
    holes: Sequence[Hole] = (),
    by_sender: bool = False,
) -> Proof:
    """The proof for conversation a, whose rows were acked as `seqs`."""
    acks = Acks.none(len(chat))
    for row, seq in seqs.items():
        acks.status[row], acks.seq[row] = NEW, seq
    proof = Proof()
    check = ConversationCheck("a", chat, np.array(list(seqs)), acks, lane_keys(chat, by_sender), proof)
    stable = max(m.conv_seq for m in messages)
    for part in (messages[:2], messages[2:]):
        check.take(HistoryPage("a", part, list(holes), stable, 1, None))
    check.finish(stable)
    return proof


IN_ORDER = {0: 1, 2: 2, 3: 3, 4: 4}


def test_a_true_history_is_proved(chat: Chat) -> None:
    proof = compare(chat, IN_ORDER, read_again(chat, IN_ORDER))
    assert (proof.found, proof.others, proof.differences) == (4, 0, [])


def test_others_and_holes_are_counted(chat: Chat) -> None:
    seqs = {0: 1, 2: 4, 3: 5, 4: 6}
    other = Message(2, "0" * 36, "eve", None, None, None, 1, "x")
    messages = sorted([*read_again(chat, seqs), other], key=lambda m: m.conv_seq)
    proof = compare(chat, seqs, messages, [Hole(3, 3, "lost grant")])
    assert (proof.found, proof.others, proof.differences) == (4, 1, [])
    assert proof.holes == [("a", Hole(3, 3, "lost grant"))]


def changed(messages: list[Message], at: int, **fields: Any) -> list[Message]:
    return [Message(**(vars(m) | fields)) if i == at else m for i, m in enumerate(messages)]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"body": "hoo"}, "text 'hoo' instead of 'ho'"),
        ({"body": b"\xff"}, r"text b'\\xff' instead of 'ho'"),
        ({"sender": "eve"}, "sender 'eve' instead of 'bob'"),
        ({"conv_seq": 1}, "number 1 was read after 1"),
    ],
)
def test_a_changed_message_differs(chat: Chat, fields: dict[str, Any], says: str) -> None:
    proof = compare(chat, IN_ORDER, changed(read_again(chat, IN_ORDER), 1, **fields))
    assert any(says.replace("\\\\", "\\") in text for text in proof.differences), proof.differences


def test_a_lost_message_differs(chat: Chat) -> None:
    messages = [m for m in read_again(chat, IN_ORDER) if m.conv_seq != 2]
    differences = compare(chat, IN_ORDER, messages).differences
    assert any("row 2, acked as 2, cannot be read back" in text for text in differences)
    assert any("numbers 2 to 2 are neither" in text for text in differences)


def test_a_message_read_twice_differs(chat: Chat) -> None:
    messages = read_again(chat, IN_ORDER)
    proof = compare(chat, IN_ORDER, [*messages, Message(**(vars(messages[0]) | {"conv_seq": 5}))])
    assert proof.differences == ["a: row 0 was read twice, again as 5"]


def test_order_is_that_of_the_file_or_of_each_sender(chat: Chat) -> None:
    seqs = {0: 2, 2: 1, 3: 4, 4: 3}  # senders: ann, bob, -, ann
    assert compare(chat, seqs, read_again(chat, seqs), by_sender=True).differences == []
    assert compare(chat, seqs, read_again(chat, seqs)).differences_count == 2
    seqs = {0: 4, 2: 1, 3: 2, 4: 3}
    differences = compare(chat, seqs, read_again(chat, seqs), by_sender=True).differences
    assert differences == ["a: row 4 has number 3, row 0 before it 4"]


@given(
    seqs=st.sets(st.integers(1, 30)),
    holes=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 5)), max_size=6),
    stable=st.integers(0, 30),
)
def test_unexplained_numbers(seqs: set[int], holes: list[tuple[int, int]], stable: int) -> None:
    explained = seqs | {n for low, more in holes for n in range(low, low + more + 1)}
    found = unexplained(sorted(seqs), [Hole(low, low + more, "why") for low, more in holes], stable)
    numbers = [n for low, high in found for n in range(low, high + 1)]
    assert numbers == [n for n in range(1, stable + 1) if n not in explained]


def test_acks_count() -> None:
    acks = Acks(np.array([NEW, CONFLICT, 0, 200]), np.array([1, 1, -1, 2]))
    assert acks.stored.tolist() == [True, False, False, True]
    assert acks.count(CONFLICT) == 1
