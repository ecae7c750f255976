"""Batches: what is refused, and the payload fingerprint that tells a retry from a conflict."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from imray.core.errors import InvalidError
from imray.kernels.hashing import hash_rows, id_fingerprints
from imray.log.rows import gather, prepare
from imray.log.schema import (
    BATCH_SCHEMA,
    TEXT,
    body_parts,
    check_batch,
    constant_text,
    encode_text,
    from_ipc,
    id_words,
    payload_fingerprints,
    segment_table,
    to_ipc,
)
from tests.support.batches import SEED, Msg, batch_of, msg_id

_BASE = Msg("c", msg_id(1), b"body", "alice", "t", "text/plain", 5)
_M = 2**64 - 1


def _mix(h: int) -> int:
    h ^= h >> 33
    h = h * 0xC2B2AE3D27D4EB4F & _M
    h ^= h >> 29
    h = h * 0x165667B19E3779F9 & _M
    return h ^ (h >> 32)


def _text(index: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(pa.array([0, index], pa.int32()), pa.array(["c"]), safe=False)


def _body(between: int) -> pa.Array:
    offsets = pa.py_buffer(np.array([0, between, 64], np.int32))
    return pa.Array.from_buffers(pa.binary(), 2, [None, offsets, pa.py_buffer(b"x" * 64)])


@pytest.mark.parametrize(
    ("column", "array"), [("conv_id", _text(7)), ("sender", _text(-2)), ("body", _body(-9)), ("body", _body(2000))]
)
def test_buffers_that_do_not_hold_what_they_say_are_refused(column: str, array: pa.Array) -> None:
    """Compiled code follows them: it would read what is not there."""
    batch = batch_of([_BASE, replace(_BASE, id=msg_id(2))])
    columns = [array if field.name == column else batch.column(field.name) for field in BATCH_SCHEMA]
    with pytest.raises(InvalidError, match="the batch is malformed"):
        check_batch(pa.RecordBatch.from_arrays(columns, schema=BATCH_SCHEMA))


def colliding_payments() -> tuple[bytes, bytes]:
    """Other words in the first and the fifth place of XXH64's first lane, so that the lane ends alike."""
    p1, p2 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F

    def lane(word: int) -> int:
        v = (p1 + p2 + word * p2) & _M
        return ((v << 31 | v >> 33) & _M) * p1 & _M

    def text(word: int) -> bytes:
        return word.to_bytes(8, "little")

    bob = int.from_bytes(b"pay Bob ", "little")
    eve = int.from_bytes(b"pay Eve ", "little")
    amount = int.from_bytes(b" 10 USD.", "little")
    other = (amount + (lane(bob) - lane(eve)) * pow(p2, -1, 1 << 64)) & _M
    middle = b"x" * 24
    return text(bob) + middle + text(amount) + middle, text(eve) + middle + text(other) + middle


def _keyed(data: bytes) -> int:
    """The keyed hash, written down once more, in plain Python."""

    def fold(a: int, b: int) -> int:
        return (a * b & _M) ^ (a * b >> 64)

    def word(at: int) -> int:
        return int.from_bytes(data[at : at + 8], "little")

    key_a = _mix(SEED ^ 0x9E3779B185EBCA87)
    key_b = _mix(SEED ^ 0xC2B2AE3D27D4EB4F)
    n = len(data)
    h = key_b ^ n
    first = int.from_bytes(data, "big")
    second = 0
    if n >= 8:
        for at in range(0, n - 16, 16):
            h = fold(word(at) ^ key_a, word(at + 8) ^ h)
        first = word(max(0, n - 16))
        second = word(n - 8)
    return fold(fold(first ^ key_a, second ^ h) ^ key_b, n ^ key_a)


def _reference(m: Msg) -> int:
    """The fingerprint, written down once more."""
    h = _keyed(m.body)
    for text in (m.sender, m.topic, m.content_type):
        key = 0x27D4EB2F165667C5 if text is None else _keyed(text.encode())
        h = _mix(((h << 17 | h >> 47) & _M) ^ key)
    return h


def _fingerprint(m: Msg) -> int:
    return int(payload_fingerprints(batch_of([m]), SEED)[0])


@pytest.mark.parametrize(
    "m",
    [
        _BASE,
        replace(_BASE, topic=None),
        replace(_BASE, content_type=None),
        replace(_BASE, body=b"\xff" * 1000, sender="ä"),
    ],
)
def test_equal_to_the_reference(m: Msg) -> None:
    assert _fingerprint(m) == _reference(m)


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 100])
def test_every_length_equals_the_reference(n: int) -> None:
    m = Msg("c", msg_id(1), bytes(range(1, n + 1)))
    assert _fingerprint(m) == _reference(m)


def test_bodies_that_collide_under_xxh64_by_arithmetic_do_not() -> None:
    """Two payments, made so that XXH64 cannot tell them apart; with its seed secret it fails every second time."""
    one, other = colliding_payments()
    assert xxhash.xxh64_intdigest(one) == xxhash.xxh64_intdigest(other)
    for seed in range(64):
        batch = batch_of([Msg("c", msg_id(1), one), Msg("c", msg_id(1), other)])
        assert len(set(payload_fingerprints(batch, seed).tolist())) == 2


@pytest.mark.parametrize(
    "change",
    [
        {"body": b"Body"}, {"body": b""}, {"sender": "bob"}, {"topic": "u"}, {"topic": None}, {"topic": ""},
        {"content_type": "text/html"}, {"content_type": None}, {"sender": "t", "topic": "alice"},
    ],
)  # fmt: skip
def test_changes_with_the_payload(change: dict[str, object]) -> None:
    assert _fingerprint(replace(_BASE, **change)) != _fingerprint(_BASE)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"client_ts": 6}, {"client_ts": None}, {"conv": "d"}, {"id": msg_id(2)}])
def test_does_not_change_with_what_a_retry_may_change(change: dict[str, object]) -> None:
    assert _fingerprint(replace(_BASE, **change)) == _fingerprint(_BASE)  # type: ignore[arg-type]


def test_independent_of_dictionary_layout_and_of_slices() -> None:
    messages = [Msg("c", msg_id(i), b"%d" % i, "ab"[i % 2], [None, "t", "u"][i % 3]) for i in range(20)]
    batch = batch_of(messages)
    wanted = payload_fingerprints(batch, SEED).tolist()
    senders = pa.array(["unused", "b", "x", "a"])
    index = pa.array([3 if m.sender == "a" else 1 for m in messages], pa.int32())
    columns = batch.columns
    columns[2] = pa.DictionaryArray.from_arrays(index, senders)
    assert payload_fingerprints(pa.record_batch(columns, schema=BATCH_SCHEMA), SEED).tolist() == wanted
    assert payload_fingerprints(from_ipc(to_ipc(batch)), SEED).tolist() == wanted
    assert payload_fingerprints(batch.slice(5, 9), SEED).tolist() == wanted[5:14]
    assert payload_fingerprints(from_ipc(to_ipc(batch.slice(5, 9))), SEED).tolist() == wanted[5:14]
    assert payload_fingerprints(batch.take(pa.array([7, 3])), SEED).tolist() == [wanted[7], wanted[3]]


@pytest.mark.parametrize("n", [1, 3])
def test_constant_text(n: int) -> None:
    assert constant_text("x", n).to_pylist() == ["x"] * n
    assert constant_text(None, n).to_pylist() == [None] * n
    assert constant_text("x", n).type == constant_text(None, n).type == encode_text(["x"]).type == TEXT


def test_ids_of_a_slice() -> None:
    column = batch_of([Msg("c", msg_id(i)) for i in range(5)]).column("client_msg_id")
    assert [w.tobytes() for w in id_words(column.slice(2, 2))] == [msg_id(2), msg_id(3)]


def _null_in(name: str, in_dictionary: bool) -> pa.RecordBatch:
    batch, i = batch_of([_BASE]), BATCH_SCHEMA.get_field_index(name)
    column = pa.nulls(1, BATCH_SCHEMA.field(i).type)
    if in_dictionary:
        column = pa.DictionaryArray.from_arrays(pa.array([0], pa.int32()), pa.array([None], pa.string()))
    return pa.record_batch([*batch.columns[:i], column, *batch.columns[i + 1 :]], schema=BATCH_SCHEMA)


@pytest.mark.parametrize("name", ["conv_id", "client_msg_id", "sender", "body"])
def test_nulls_are_refused(name: str) -> None:
    with pytest.raises(InvalidError, match=name):
        prepare(_null_in(name, False), SEED)


@pytest.mark.parametrize("name", ["conv_id", "sender", "topic", "content_type"])
def test_nulls_inside_a_dictionary_are_refused(name: str) -> None:
    with pytest.raises(InvalidError, match=name):
        prepare(_null_in(name, True), SEED)


def test_other_columns_are_refused() -> None:
    with pytest.raises(InvalidError, match="expected"):
        prepare(batch_of([_BASE]).drop_columns(["topic"]), SEED)


def test_a_stream_without_a_batch_is_refused() -> None:
    sink = pa.BufferOutputStream()
    pa.ipc.new_stream(sink, BATCH_SCHEMA).close()
    with pytest.raises(InvalidError):
        from_ipc(sink.getvalue())


def _two_names(names: list[str]) -> pa.RecordBatch:
    batch = batch_of([_BASE, _BASE])
    column = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(names))
    return pa.record_batch([column, *batch.columns[1:]], schema=BATCH_SCHEMA)


def test_a_name_twice_in_the_dictionary_is_refused() -> None:
    with pytest.raises(InvalidError, match="twice"):
        prepare(_two_names(["a", "a"]), SEED)


def test_two_names_with_one_key_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imray.log.rows.hash_rows", lambda _, offsets: np.full(len(offsets) - 1, 5, np.uint64))
    assert len(prepare(_two_names(["a", "b"]), SEED)) == 2


@pytest.mark.parametrize(
    "sizes", [[1], [100], [101], [1, 2, 1], [100, 101], [101, 102], [1, 3000], [1500, 1500], [1, 6000]]
)
def test_fingerprints_are_those_of_each_request_by_itself(sizes: list[int]) -> None:
    """Made before a request's turn or for all at once, over one chunk or several."""
    requests = [
        [Msg(f"{r} {i % 3}", msg_id(i), b"%d" % i, f"{r}", [None, "t"][i % 2]) for i in range(n)]
        for r, n in enumerate(sizes)
    ]
    _, rows = gather([prepare(batch_of(m), SEED) for m in requests])
    messages = [m for request in requests for m in request]
    assert len(rows) == len(messages)
    assert rows.payload.tolist() == payload_fingerprints(batch_of(messages), SEED).tolist()
    assert [words.tobytes() for words in rows.ids] == [m.id for m in messages]
    conv = np.arange(len(messages), dtype=np.int32)
    keys = hash_rows(*body_parts(pa.array([m.conv for m in messages])))
    assert rows.fps.tolist() == id_fingerprints(rows.ids, conv, keys, np.uint64(SEED)).tolist()


def test_requests_become_one_table_and_the_new_rows_a_segment() -> None:
    one = prepare(batch_of([_BASE, replace(_BASE, conv="d")]), SEED)
    two = prepare(batch_of([replace(_BASE, conv="e"), _BASE]), SEED)
    table, rows = gather([one, two])
    assert len(rows) == 4
    names = [rows.names_data[a:b].tobytes() for a, b in zip(rows.names_offsets, rows.names_offsets[1:], strict=False)]
    assert [names[i] for i in rows.conv] == [b"c", b"d", b"e", b"c"]
    out = segment_table(table, np.array([True, True, True, False]), np.array([1, 1, 1]), 77).to_pylist()
    assert [r["conv_id"] for r in out] == ["c", "d", "e"]
    assert {r["server_ts"].timestamp() for r in out} == {0.077}


@pytest.mark.parametrize("dropped", [[], [range(30)], [range(100, 130), range(590, 610)], [range(0, 1200, 3)]])
def test_a_segment_holds_just_the_rows_that_are_new(dropped: list[range]) -> None:
    requests = [prepare(batch_of([replace(_BASE, body=b"%d" % i) for i in range(a, a + 600)]), SEED) for a in (0, 600)]
    table, _ = gather(requests)
    keep = np.ones(1200, np.bool_)
    for rows in dropped:
        keep[rows] = False
    seq = np.arange(1, keep.sum() + 1)
    out = segment_table(table, keep, seq, 77)
    assert out.column("body").to_pylist() == [b"%d" % i for i in np.flatnonzero(keep)]
    assert out.column("conv_seq").to_pylist() == seq.tolist()


@pytest.mark.parametrize(
    ("rows", "body", "chunks"), [(2, 10, 1), (2000, 10, 1), (2500, 10, 2), (2, 60_000, 1), (3, 60_000, 2), (2, 0, 1)]
)
def test_small_requests_become_one_chunk_and_large_ones_stay_where_they_are(rows: int, body: int, chunks: int) -> None:
    messages = [
        [
            replace(_BASE, conv=f"{r} {i % 3}", sender=f"{r}", topic=[None, "t"][i % 2], body=bytes(body))
            for i in range(rows)
        ]
        for r in range(2)
    ]
    table, columns = gather([prepare(batch_of(m), SEED) for m in messages])
    assert {column.num_chunks for column in table.columns} == {chunks}
    assert table.column("topic").to_pylist() == [m.topic for request in messages for m in request]
    assert table.column("conv_id").to_pylist() == [m.conv for request in messages for m in request]
    names = [columns.names_data[a:b].tobytes().decode() for a, b in pairwise(columns.names_offsets)]
    assert [names[i] for i in columns.conv] == table.column("conv_id").to_pylist()


@pytest.mark.parametrize("keep", [[0], [1], [4], [5], [0, 4], [3, 4], [0, 1, 2, 3, 4, 5]])
def test_plain_texts_of_few_rows_are_those_of_the_dictionaries(keep: list[int]) -> None:
    """One row has a dictionary of one value, and of more, and none; more rows have one value, and only nulls."""
    texts = [("a", None, "x"), ("b", None, "x"), ("b", "t", "x"), ("c", None, "x"), ("c", None, "x"), ("d", "u", None)]
    messages = [replace(_BASE, conv=conv, topic=topic, content_type=kind) for conv, topic, kind in texts]
    table, _ = gather([prepare(batch_of(messages), SEED)])
    kept = np.isin(np.arange(len(texts)), keep)
    out = segment_table(table, kept, np.arange(len(keep)), 77)
    assert out.schema.field("topic").type == pa.string()
    columns = [out.column(name).to_pylist() for name in ("conv_id", "topic", "content_type")]
    assert list(zip(*columns, strict=True)) == [texts[i] for i in keep]
    assert out.column("sender").to_pylist() == ["alice"] * len(keep)


def test_one_row_in_a_batch_of_its_own_is_plain_too() -> None:
    for topic in (None, "t"):
        table, _ = gather([prepare(batch_of([replace(_BASE, topic=topic)]), SEED)])
        (row,) = segment_table(table, None, np.array([5]), 77).to_pylist()
        assert (row["conv_id"], row["topic"], row["body"], row["conv_seq"]) == ("c", topic, b"body", 5)


def test_bytes_behind_the_ids_that_a_batch_needs_are_not_looked_at() -> None:
    batch = batch_of([_BASE])
    ids = batch.column("client_msg_id").buffers()[1].to_pybytes() + b"more"
    longer = pa.Array.from_buffers(pa.binary(16), 1, [None, pa.py_buffer(ids)])
    odd = batch.set_column(1, batch.schema.field(1), longer)
    _, rows = gather([prepare(odd, SEED)])
    _, plain = gather([prepare(batch, SEED)])
    assert rows.ids.tolist() == plain.ids.tolist()
    assert rows.fps.tolist() == plain.fps.tolist()
