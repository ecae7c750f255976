"""Arrow streams that say much in little: refused before they become what they say."""

from __future__ import annotations

import os
import random
import struct
import sys
import uuid
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from api.arrow import check_batch_arrow
from api.auth import Caller
from api.problems import ProblemError
from imray.log.schema import BATCH_SCHEMA
from imray.settings import Settings

SERVICE = Caller("bot", True)
ROWS = 10_000
_MB = 1024 * 1024


def ipc(table: pa.Table, rows_a_batch: int | None = None, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table, rows_a_batch)
    return sink.getvalue().to_pybytes()


def messages(rows: int, **columns: Any) -> pa.Table:
    known = {
        "conv_id": pa.array(["c"] * rows).dictionary_encode(),
        "client_msg_id": pa.array([os.urandom(16) for _ in range(rows)], pa.binary(16)),
        "body": pa.array([b"x"] * rows),
    }
    return pa.table(known | columns)


def same(value: bytes | str, rows: int) -> pa.DictionaryArray:
    """One value in every row."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), [value])


def refusal(data: bytes, settings: Settings | None = None) -> ProblemError:
    """How it is refused, and that this takes no memory to speak of."""
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    peak = 0

    def watch(frame: Any, event: str, arg: Any) -> None:
        nonlocal peak
        peak = max(peak, pool.bytes_allocated() - before)

    sys.setprofile(watch)
    try:
        with pytest.raises(ProblemError) as refused:
            check_batch_arrow(data, SERVICE, settings or Settings())
    finally:
        sys.setprofile(None)
    assert peak < 32 * _MB
    return refused.value


@pytest.mark.parametrize("codec", ["zstd", "lz4"])
def test_compressed_buffers_are_refused(codec: str) -> None:
    table = messages(500, body=pa.array([b"\x00" * 65_000] * 500))
    found = refusal(ipc(table, compression=codec))
    assert (found.status, "compress" in found.detail) == (422, True)


def test_a_compressed_dictionary_alone_is_refused() -> None:
    plain = ipc(messages(3))
    squeezed = ipc(messages(3, conv_id=same("c" * 5000, 3)), compression="zstd")
    assert refusal(squeezed).status == 422
    # its dictionary between the schema and the batch of another stream
    parts = [m.serialize().to_pybytes() for m in pa.ipc.MessageReader.open_stream(plain)]
    parts[1] = list(pa.ipc.MessageReader.open_stream(squeezed))[1].serialize().to_pybytes()
    found = refusal(b"".join(parts))
    assert (found.status, "compress" in found.detail) == (422, True)


def test_a_dictionary_of_bodies_is_bounded_by_what_the_rows_take() -> None:
    huge = refusal(ipc(messages(ROWS, body=same(b"x" * 8 * _MB, ROWS))))
    assert (huge.status, "largest body" in huge.detail) == (413, True)
    allowed_each = refusal(ipc(messages(ROWS, body=same(b"x" * 60_000, ROWS))))
    assert (allowed_each.status, str(60_000 * ROWS) in allowed_each.detail) == (413, True)
    few = check_batch_arrow(ipc(messages(100, body=same(b"x" * 60_000, 100))), SERVICE, Settings())
    assert few.column("body").to_pylist() == [b"x" * 60_000] * 100


def test_views_of_one_body_are_bounded_too() -> None:
    view = struct.pack("<i4sii", 60_000, b"xxxx", 0, 0)
    parts = [None, pa.py_buffer(view * ROWS), pa.py_buffer(b"x" * 60_000)]
    views = pa.Array.from_buffers(pa.binary_view(), ROWS, parts)
    assert refusal(ipc(messages(ROWS, body=views))).status == 413
    few = check_batch_arrow(ipc(messages(2, body=pa.array([b"y" * 40, b"z"], pa.binary_view()))), SERVICE, Settings())
    assert few.column("body").to_pylist() == [b"y" * 40, b"z"]


@pytest.mark.parametrize("name", ["conv_id", "sender", "topic", "content_type", "client_msg_id"])
def test_a_text_in_a_dictionary_is_measured_before_it_is_copied(name: str) -> None:
    assert refusal(ipc(messages(ROWS, **{name: same("x" * 8 * _MB, ROWS)}))).status == 422


def test_what_no_row_takes_of_a_dictionary_does_no_harm() -> None:
    names = pa.DictionaryArray.from_arrays(pa.array([1, None, 1], pa.int8()), ["x" * 5000, "topic"])
    batch = check_batch_arrow(ipc(messages(3, topic=names)), SERVICE, Settings())
    assert batch.column("topic").to_pylist() == ["topic", None, "topic"]
    assert batch.column("topic").dictionary.to_pylist() == ["topic"]


def test_rows_are_counted_before_they_are_read() -> None:
    many = pa.table({name: pa.nulls(10**9) for name in ("conv_id", "client_msg_id", "body")})
    found = refusal(ipc(many))
    assert (found.status, "messages at once" in found.detail) == (413, True)
    assert refusal(ipc(messages(6_000), 100) + b"", Settings(batch_messages_max=5_999)).status == 413
    assert refusal(ipc(messages(0))).status == 422


@pytest.mark.parametrize(
    "body",
    [
        pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array(["x" * 1000])),
        pa.array([["x"], ["y"]]),
        pa.array([{"a": 1}, {"a": 2}]),
        pa.array([True, False]),
        pa.array([1, 2]).dictionary_encode(),
        pa.array([1.5, 2.5]),
    ],
    ids=["runs", "lists", "structs", "booleans", "numbers in a dictionary", "floats"],
)
def test_types_that_are_no_text_are_refused(body: pa.Array) -> None:
    for name in ("body", "conv_id"):
        found = refusal(ipc(messages(2, **{name: body})))
        assert (found.status, name in found.detail) == (422, True)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.large_binary(), pa.binary()])
def test_every_plain_text_type_is_taken(kind: pa.DataType) -> None:
    texts = pa.array(["ä", "b"]).cast(kind) if kind != pa.large_binary() else pa.array([b"\xc3\xa4", b"b"], kind)
    table = messages(2, body=texts, conv_id=texts, client_ts=pa.array([None, 5], pa.uint32()))
    batch = check_batch_arrow(ipc(table), SERVICE, Settings())
    assert batch.schema.equals(BATCH_SCHEMA)
    assert batch.column("body").to_pylist() == ["ä".encode(), b"b"]
    assert batch.column("conv_id").to_pylist() == ["ä", "b"]
    assert batch.column("sender").to_pylist() == ["bot", "bot"]
    assert batch.column("topic").to_pylist() == [None, None]


def test_ids_as_text_and_empty_columns_are_taken() -> None:
    ids = [uuid.uuid4() for _ in range(3)]
    table = messages(3, client_msg_id=pa.array([str(i) for i in ids]).dictionary_encode(), topic=pa.nulls(3))
    batch = check_batch_arrow(ipc(table, 1), SERVICE, Settings())
    assert batch.column("client_msg_id").to_pylist() == [i.bytes for i in ids]
    assert batch.column("topic").null_count == 3


def test_dictionaries_that_grow_batch_by_batch_are_refused() -> None:
    sink = pa.BufferOutputStream()
    tables = [messages(2, conv_id=pa.array(["a", "b"][:n] * (2 // n)).dictionary_encode()) for n in (1, 2)]
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    with pa.ipc.new_stream(sink, tables[0].schema, options=options) as writer:
        for table in tables:
            writer.write_table(table)
    found = refusal(sink.getvalue().to_pybytes())
    assert (found.status, "delta" in found.detail) == (422, True)


def test_a_large_dictionary_for_many_batches_is_refused() -> None:
    partitions = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), ["t", *(["x" * 100_000] * 10)])
    found = refusal(ipc(messages(1000, topic=partitions), 1))
    assert (found.status, "fewer" in found.detail) == (413, True)


def test_more_parts_than_a_stream_needs_are_refused() -> None:
    assert refusal(ipc(messages(200), 1), Settings(arrow_parts_max=100)).status == 413


def test_more_columns_than_there_are_names_are_refused() -> None:
    found = refusal(ipc(pa.table({f"c{i}": [1] for i in range(1000)})))
    assert (found.status, "columns" in found.detail) == (422, True)
    assert "unknown columns ['more']" in refusal(ipc(messages(1, more=[1]))).detail


def test_a_stream_for_other_machines_is_refused() -> None:
    data = bytearray(ipc(messages(2)))
    message = next(iter(pa.ipc.MessageReader.open_stream(bytes(data))))
    assert refusal(_big_endian(bytes(data), message.metadata.to_pybytes())).detail.startswith(
        "the stream is big-endian"
    )


def _big_endian(data: bytes, metadata: bytes) -> bytes:
    """The same stream, whose schema says that it is big-endian: the writer leaves little-endian out of the table, so
    that its vtable gets the place of another number (a version, which is not 0)."""
    root = struct.unpack_from("<I", metadata, 0)[0]
    header = _field(metadata, root, 2)
    schema = header + struct.unpack_from("<I", metadata, header)[0]
    vtable = schema - struct.unpack_from("<i", metadata, schema)[0]
    changed = bytearray(metadata)
    assert struct.unpack_from("<H", metadata, vtable + 4)[0] in (0, _field(metadata, schema, 0) - schema)
    if struct.unpack_from("<H", metadata, vtable + 4)[0]:
        struct.pack_into("<h", changed, _field(metadata, schema, 0), 1)
    else:
        struct.pack_into("<H", changed, vtable + 4, 4)  # the first bytes of the offset to the fields: not 0
    at = data.index(metadata)
    return data[:at] + bytes(changed) + data[at + len(metadata) :]


def _field(data: bytes, table: int, slot: int) -> int:
    vtable = table - struct.unpack_from("<i", data, table)[0]
    return table + struct.unpack_from("<H", data, vtable + 4 + 2 * slot)[0]


def _streams() -> list[bytes]:
    texts = pa.array([b"y" * 40, b"z", b""], pa.binary_view())
    return [
        ipc(messages(4, topic=same("t", 4), client_ts=[1, 2, 3, 4]), 2),
        ipc(messages(3, body=texts, client_msg_id=pa.array([str(uuid.uuid4()) for _ in range(3)]))),
        ipc(messages(3, body=pa.array(["a", "b", ""]).dictionary_encode(), topic=pa.array(["a", None, "c"])), 1),
    ]


def _damaged(good: bytes, chance: random.Random) -> bytes:
    data = bytearray(good)
    for _ in range(chance.choice([1, 1, 2, 4])):
        at = chance.randrange(len(data) - 8)
        match chance.randrange(3):
            case 0:
                data[at] = chance.randrange(256)
            case 1:
                data[at : at + 8] = struct.pack("<q", chance.choice([-1, 2**31 - 1, 2**31, 2**62, -(2**63), 16]))
            case 2:
                del data[at : at + chance.choice([1, 8])]
    return bytes(data)


@pytest.mark.parametrize("kind", range(3))
def test_a_damaged_stream_is_taken_or_refused(kind: int) -> None:
    good = _streams()[kind]
    chance = random.Random(kind)
    outcomes: Counter[int] = Counter()
    for _ in range(2000):
        try:
            rows = check_batch_arrow(_damaged(good, chance), SERVICE, Settings()).num_rows
        except ProblemError as e:
            outcomes[e.status] += 1
        else:
            assert rows > 0
            outcomes[200] += 1
    assert set(outcomes) <= {200, 400, 413, 422}
    assert outcomes[200] > 0
    assert outcomes[400] > 0


def test_metadata_is_bounded_before_anything_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flatbuffer may name one entry thousands of times: what it would become is never made."""
    table = messages(2)
    many = table.replace_schema_metadata({f"k{i}": "v" for i in range(65)})
    long = table.replace_schema_metadata({"k": "v" * 70_000})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_batch(table.to_batches()[0], custom_metadata={"k": "v"})
    nested = pa.table({**{n: table[n] for n in table.schema.names}, "body": pa.array([["x"], ["y"]])})
    streams = [ipc(many), ipc(long), sink.getvalue().to_pybytes(), ipc(nested)]
    monkeypatch.setattr("pyarrow.ipc.MessageReader", None)
    monkeypatch.setattr("pyarrow.ipc.open_stream", lambda *_, **__: pytest.fail("it was read"))
    for data in streams:
        with pytest.raises(ProblemError) as refused:
            check_batch_arrow(data, SERVICE, Settings())
        assert refused.value.status == 422


def test_metadata_of_a_frame_library_passes() -> None:
    table = messages(2).replace_schema_metadata({"pandas": "x" * 5000})
    assert check_batch_arrow(ipc(table), SERVICE, Settings()).num_rows == 2
