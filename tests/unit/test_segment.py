"""One segment: its metadata, its rows as they were, its name."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from imray.core.errors import CorruptError
from imray.log.rows import gather, prepare
from imray.log.schema import FEW_ROWS_MAX, SCHEMA_VERSION, SEGMENT_SCHEMA, segment_table, void_table
from imray.log.segment import Segment, SegmentMeta, encode, open_segment, segment_name, segment_number
from tests.support.batches import SEED, Msg, batch_of, msg_id

_META = SegmentMeta(7, 42, 3, "n" * 32, "a" * 32, 1_700_000_000_123, 3)


def _table() -> pa.Table:
    plain = pa.schema([f.with_type(pa.string()) if pa.types.is_dictionary(f.type) else f for f in SEGMENT_SCHEMA])
    rows = [
        {
            "conv_id": "gruppe-ä", "conv_seq": 1, "kind": 0, "client_msg_id": bytes(range(16)), "sender": "alice",
            "topic": "t", "content_type": "text/plain", "client_ts": 1, "server_ts": 2, "body": b"\xff\xfe\x00 no text",
        },
        {
            "conv_id": "b", "conv_seq": 2**62, "kind": 0, "client_msg_id": b"\xff" * 16, "sender": "",
            "topic": None, "content_type": None, "client_ts": None, "server_ts": -5, "body": b"",
        },
        {
            "conv_id": "xxh3_128:", "conv_seq": 1, "kind": 0, "client_msg_id": bytes(16), "sender": "imray.digest",
            "topic": "", "content_type": "", "client_ts": -1, "server_ts": 2**40, "body": b"xxh3_128:" * 1000,
        },
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=plain).cast(SEGMENT_SCHEMA)


def _file(table: pa.Table, meta: SegmentMeta = _META) -> tuple[bytes, bytes]:
    parts, digest = encode(table, meta)
    return b"".join(parts), digest


def test_every_metadata_field_and_row_comes_back() -> None:
    data, digest = _file(_table())
    segment = open_segment(data, "a name")
    assert isinstance(segment, Segment)
    assert segment.meta == _META
    assert segment.meta.version == SCHEMA_VERSION
    assert (segment.name, segment.digest) == ("a name", digest)
    assert segment.table().to_pylist() == _table().to_pylist()
    assert segment.table().schema.equals(SEGMENT_SCHEMA, check_metadata=False)
    assert segment.table(["conv_seq"]).column_names == ["conv_seq"]


def test_any_parquet_reader_can_read_it() -> None:
    data, _ = _file(_table())
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.read().num_rows == 3
    assert set(file.metadata.metadata) >= {b"imray", b"imray.digest"}


def test_empty_segment() -> None:
    data, _ = _file(SEGMENT_SCHEMA.empty_table())
    assert open_segment(data, "x").table().num_rows == 0


@pytest.mark.parametrize(("rows", "plain"), [(1, True), (FEW_ROWS_MAX, True), (FEW_ROWS_MAX + 1, False)])
def test_few_rows_are_written_plain_and_read_as_all_others(rows: int, plain: bool) -> None:
    messages = [Msg(f"c{i % 3}", msg_id(i), b"%d" % i, topic=[None, "t"][i % 2]) for i in range(rows)]
    table, _ = gather([prepare(batch_of(messages), SEED)])
    data, _ = _file(segment_table(table, None, np.arange(rows), 77))
    back = open_segment(data, "x").table()
    assert back.schema.equals(SEGMENT_SCHEMA, check_metadata=False)
    assert back.drop_columns(["conv_seq", "kind", "server_ts"]).to_pylist() == table.to_pylist()
    chunk = pq.read_metadata(io.BytesIO(data)).row_group(0).column(0)
    assert chunk.path_in_schema == "conv_id"
    assert chunk.has_dictionary_page is not plain


def _large(names: list[str]) -> pa.Table:
    rows = 10_000
    index = (np.arange(rows) % len(names)).astype(np.int32)
    batch = batch_of([Msg("c", msg_id(i), b"%d" % i) for i in range(rows)])
    senders = pa.DictionaryArray.from_arrays(pa.array(index), pa.array(names))
    table, _ = gather([prepare(batch.set_column(2, batch.schema.field(2), senders), SEED)])
    return segment_table(table, None, np.arange(rows), 77)


def test_many_rows_are_encoded_where_they_can_be_written_from() -> None:
    table = _large(["a", "b"])
    ((data,), _) = encode(table, _META)
    assert pa.py_buffer(data).address % 4096 == 0
    assert open_segment(data, "x").table().equals(table.combine_chunks())


def test_a_file_may_be_larger_than_the_memory_that_was_set_apart() -> None:
    """pyarrow writes the rows of a second dictionary plain."""
    table = pa.concat_tables([_large([f"{r} {i:1000}" for i in range(100)]) for r in range(2)])
    ((data,), _) = encode(table, _META)
    assert len(data) > 5 * table.nbytes
    assert open_segment(data, "x").table().to_pylist() == table.to_pylist()


def test_void_record() -> None:
    data, _ = _file(void_table("c", 5, 9, "why", 1))
    (row,) = open_segment(data, "x").table().to_pylist()
    assert (row["conv_id"], row["conv_seq"], row["kind"], row["sender"]) == ("c", 5, 1, None)
    assert row["body"] == b'{"last": 9, "reason": "why"}'


def test_the_digest_covers_metadata_and_rows() -> None:
    digests = {
        _file(_table())[1],
        _file(_table().slice(1))[1],
        *(
            _file(_table(), meta)[1]
            for meta in (
                SegmentMeta(8, 42, 3, "n" * 32, "a" * 32, 1, 3),
                SegmentMeta(7, 43, 3, "n" * 32, "a" * 32, 1, 3),
                SegmentMeta(7, 42, 4, "n" * 32, "a" * 32, 1, 3),
                SegmentMeta(7, 42, 3, "m" * 32, "a" * 32, 1, 3),
                SegmentMeta(7, 42, 3, "n" * 32, "b" * 32, 1, 3),
            )
        ),
    }
    assert len(digests) == 7
    assert _file(_table())[1] == _file(_table())[1]


def test_names() -> None:
    assert segment_name(7, 42) == "wal/shard=0007/00000000000000000042.parquet"
    assert segment_number(segment_name(7, 42)) == 42
    for name in ("wal/shard=0007/42.parquet", "wal/shard=0007/x", "wal/shard=0007/0000000000000000004x.parquet"):
        with pytest.raises(CorruptError, match="foreign"):
            segment_number(name)


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1PAR1", b"PAR1\xff\xff\xff\xffPAR1", b"x" * 100, b"\xff" * 100])
def test_what_is_no_segment(data: bytes) -> None:
    with pytest.raises(CorruptError, match="a name"):
        open_segment(data, "a name")


def test_parquet_of_others_is_refused() -> None:
    sink = io.BytesIO()
    pq.write_table(pa.table({"x": [1]}), sink)
    with pytest.raises(CorruptError, match="mark"):
        open_segment(sink.getvalue(), "x")
