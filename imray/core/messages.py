"""A message as listeners are told it. Owns nothing but the type."""

from __future__ import annotations

import msgspec


class MessageRow(msgspec.Struct, frozen=True, array_like=True, gc=False, forbid_unknown_fields=True):
    """One message of a conversation: the columns of a page of history."""

    conv_seq: int
    client_msg_id: bytes
    """16 bytes."""
    sender: str
    topic: str | None
    content_type: str | None
    client_ts: int | None
    """ms since 1970 UTC, as is `server_ts`."""
    server_ts: int
    body: bytes
