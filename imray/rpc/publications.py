"""What a gateway asks to be told, and what it is told: the messages of SUBSCRIBE, PUBLISH and SIGNAL.

Owns their form on the wire. Does not own what is told to whom (`imray.shard.publisher`), nor in which order a listener
hears of it (`imray.core.feed`).
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from imray.core.errors import InvalidError
from imray.core.messages import MessageRow
from imray.core.replies import Refusal
from imray.core.routing import CONV_ID_BYTES_MAX
from imray.rpc.endpoint import Parts
from imray.rpc.packing import Array, Count, Int, pack, unpack
from imray.rpc.replies import RefusalHead, refusal_head, refusal_of

NAMES_MAX = 10_000
"""Conversations in one SUBSCRIBE call: 1.3 MB at most."""
MARKS_MAX = 65_536
_SIGNAL_BYTES_MAX = 4096
_USERS_MAX = 1000

ConvId = Annotated[str, msgspec.Meta(max_length=CONV_ID_BYTES_MAX)]


class SubscribeArgs(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Of Method.SUBSCRIBE: from now on tell this connection of `add`, and no more of `drop`."""

    add: Annotated[list[ConvId], msgspec.Meta(max_length=NAMES_MAX)]
    drop: Annotated[list[ConvId], msgspec.Meta(max_length=NAMES_MAX)]


class Mark(NamedTuple):
    """Where a conversation stands."""

    conv_id: ConvId
    stable: Count
    """Everything up to it is final. A partition does not know it: 0."""
    partitions: Count
    """That write it beside the home shard; 0: it is not hot."""
    members: Int
    """Version of its members: another one when they change; -1: it was never created, and has none."""


class SubscribedMarks(msgspec.Struct, frozen=True, array_like=True, tag="subscribed", forbid_unknown_fields=True):
    """What is published from now on comes by this connection."""

    epoch: Count
    """Of the home shard's writer; of a partition's: the one that it takes numbers from."""
    marks: Annotated[list[Mark], msgspec.Meta(max_length=NAMES_MAX)]
    """One for each of `add`, in its order; of a partition none."""


class MembersTold(NamedTuple):
    """The members of a conversation changed."""

    conv_id: ConvId
    after: Count
    """Above this number nothing is for those who were removed."""
    version: Count
    """Of the members since then. Where it is not the next one after what was known, another change was missed."""
    removed: Annotated[list[str], msgspec.Meta(max_length=_USERS_MAX)]


class PublicationHead(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Of Method.PUBLISH. The messages of a large commit follow as an Arrow IPC stream, with the columns of a segment.

    Without marks and messages it is a beat: the writer lives, and has no successor that it knows of."""

    epoch: Count
    marks: Annotated[list[Mark], msgspec.Meta(max_length=MARKS_MAX)] = []
    members: Annotated[list[MembersTold], msgspec.Meta(max_length=MARKS_MAX)] = []
    messages: Annotated[list[tuple[ConvId, list[MessageRow]]], msgspec.Meta(max_length=MARKS_MAX)] = []
    """Of a small commit: each conversation's, ascending."""


class Publication(NamedTuple):
    """Of Method.PUBLISH."""

    head: PublicationHead
    table: pa.Table | None
    """Of a large commit; `conv_id` may be a dictionary or plain."""


class SignalArgs(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Of Method.SIGNAL, both ways: something ephemeral for who listens now."""

    conv_id: ConvId
    sender: Annotated[str, msgspec.Meta(max_length=CONV_ID_BYTES_MAX)]
    kind: Annotated[str, msgspec.Meta(max_length=CONV_ID_BYTES_MAX)]
    data: Annotated[bytes, msgspec.Meta(max_length=_SIGNAL_BYTES_MAX)]


def encode_subscribe_answer(answer: SubscribedMarks | Refusal) -> Parts:
    """The answer to SUBSCRIBE."""
    return pack(refusal_head(answer) if isinstance(answer, Refusal) else answer)


def decode_subscribe_answer(data: memoryview) -> SubscribedMarks | Refusal:
    """The inverse of `encode_subscribe_answer`. InvalidError where it is malformed."""
    head, arrays = unpack(data, SubscribedMarks | RefusalHead)
    arrays.end()
    return refusal_of(head) if isinstance(head, RefusalHead) else head


def stream_of(table: pa.Table) -> pa.Buffer:
    """Messages as they are published."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return sink.getvalue()


def encode_publication(head: PublicationHead, stream: pa.Buffer | None) -> Parts:
    """Of Method.PUBLISH. `stream`: of `stream_of`."""
    columns: list[tuple[Array, type[np.generic]]] = []
    if stream is not None:
        columns.append((np.frombuffer(stream, np.uint8), np.uint8))
    return pack(head, columns)


def decode_publication(data: memoryview) -> Publication:
    """The inverse of `encode_publication`; messages lie in the memory of `data`. InvalidError where it is malformed."""
    head, arrays = unpack(data, PublicationHead)
    if arrays.empty:
        arrays.end()
        return Publication(head, None)
    raw = arrays.take(np.uint8, None, "messages")
    arrays.end()
    try:
        with pa.ipc.open_stream(pa.py_buffer(raw)) as stream:
            table = stream.read_all()
            table.validate(full=True)
    except (pa.ArrowException, OSError) as e:
        raise InvalidError(f"what was published is no Arrow IPC stream: {e}") from e
    return Publication(head, table)
