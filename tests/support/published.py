"""Messages as a log's writer publishes them."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from imray.log.page_schema import MESSAGES_SCHEMA


def published(conv_id: str, seqs: Sequence[int]) -> pa.Table:
    """Rows with these numbers; the body says the number."""
    columns = {
        "conv_id": pa.array([conv_id] * len(seqs)),
        "conv_seq": pa.array(seqs, pa.int64()),
        "client_msg_id": pa.array([seq.to_bytes(16, "big") for seq in seqs], pa.binary(16)),
        "sender": pa.array(["bob"] * len(seqs)),
        "server_ts": pa.array([1] * len(seqs), MESSAGES_SCHEMA.field("server_ts").type),
        "body": pa.array([str(seq).encode() for seq in seqs], pa.binary()),
    }
    for field in MESSAGES_SCHEMA:
        columns.setdefault(field.name, pa.nulls(len(seqs), field.type))
    return pa.table(columns)
