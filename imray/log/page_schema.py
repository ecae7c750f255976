"""The columns of messages as readers get them: in pages of history, and live. Owns nothing else."""

from __future__ import annotations

import pyarrow as pa

from imray.log.schema import MS

MESSAGES_SCHEMA = pa.schema(
    [
        ("conv_seq", pa.int64()),
        ("client_msg_id", pa.binary(16)),
        ("sender", pa.string()),
        ("topic", pa.string()),
        ("content_type", pa.string()),
        ("client_ts", MS),
        ("server_ts", MS),
        ("body", pa.binary()),
    ]
)
