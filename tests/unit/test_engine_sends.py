"""Streams of single sends written by hand are, byte by byte, what Arrow writes."""

from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from imray.engine.sends import Send, record_batch, stream_of
from imray.log.schema import BATCH_SCHEMA, TEXT, check_batch, encode_text, to_ipc

_texts = st.sampled_from(["a", "tea", "é", "日本語", "x" * 128])
_maybe = st.none() | _texts
_sends = st.builds(
    Send,
    conv_id=_texts,
    client_msg_id=st.binary(min_size=16, max_size=16),
    sender=_texts,
    topic=_maybe,
    content_type=_maybe,
    client_ts=st.none() | st.integers(0, 2**53 - 1),
    body=st.binary(max_size=40),
)


def _by_arrow(sends: list[Send]) -> pa.RecordBatch:
    columns = [
        encode_text(list(values)) if field.type == TEXT else pa.array(values, field.type)
        for field, values in zip(BATCH_SCHEMA, zip(*sends, strict=True), strict=True)
    ]
    return pa.record_batch(columns, schema=BATCH_SCHEMA)


@given(st.lists(_sends, min_size=1, max_size=20))
def test_a_stream_is_the_one_that_arrow_writes(sends: list[Send]) -> None:
    assert stream_of(sends) == to_ipc(_by_arrow(sends)).to_pybytes()


@given(st.lists(_sends, min_size=1, max_size=20))
def test_a_shard_takes_it(sends: list[Send]) -> None:
    batch = record_batch(sends)
    check_batch(batch)
    assert batch.equals(_by_arrow(sends))


def test_a_large_one() -> None:
    sends = [
        Send(f"c{i % 300}", i.to_bytes(16, "big"), "ada", None, "text/plain", i, bytes(i % 7000)) for i in range(2000)
    ]
    assert stream_of(sends) == to_ipc(_by_arrow(sends)).to_pybytes()
