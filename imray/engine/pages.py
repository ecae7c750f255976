"""How a page of history travels from the process that reads it to the gateway that asked for it.

Owns the two messages of `Method.READ_HISTORY`; a page's messages are in its answer as an Arrow IPC stream, which is
read where it lies. Does not own pages (`imray.core.pages`) or connections (`imray.rpc`).
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
import numpy as np
import pyarrow as pa

from imray.core.errors import InvalidError
from imray.core.pages import NoPage, Page, PageCall, PageFault
from imray.rpc.endpoint import Parts
from imray.rpc.messages import decode_struct, encode_struct
from imray.rpc.packing import pack, unpack


class _PageHead(msgspec.Struct, frozen=True, tag="page"):
    """Of an answer with one column: the messages."""

    holes: list[tuple[int, int, str]]
    low: int
    high: int
    next: int | None


class _NoPageHead(msgspec.Struct, frozen=True, tag="no page"):
    """Of an answer without columns."""

    fault: PageFault
    detail: str
    file: str


_Head: TypeAlias = _PageHead | _NoPageHead


def encode_call(call: PageCall) -> Parts:
    """A call, as the history reader takes it."""
    return encode_struct(call)


def decode_call(content: memoryview) -> PageCall:
    """The inverse of `encode_call`. InvalidError: it is no call."""
    return decode_struct(content, PageCall)


def encode_answer(answer: Page[pa.Table] | NoPage) -> Parts:
    """An answer, as the gateway takes it."""
    if isinstance(answer, NoPage):
        return pack(_NoPageHead(answer.fault, answer.detail, answer.file))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, answer.messages.schema) as stream:
        stream.write_table(answer.messages)
    messages = np.frombuffer(sink.getvalue(), np.uint8)
    return pack(_PageHead(answer.holes, answer.low, answer.high, answer.next), [(messages, np.uint8)])


def decode_answer(content: memoryview) -> Page[pa.Table] | NoPage:
    """The inverse of `encode_answer`; a page keeps `content` alive. InvalidError: it is no answer."""
    head, arrays = unpack(content, _Head)
    if isinstance(head, _NoPageHead):
        arrays.end()
        return NoPage(head.fault, head.detail, head.file)
    messages = arrays.take(np.uint8, None, "messages")
    arrays.end()
    try:
        with pa.ipc.open_stream(pa.py_buffer(messages)) as stream:
            table = stream.read_all()
    except pa.ArrowException as e:
        raise InvalidError(f"a page's messages are no Arrow IPC stream: {e}") from e
    return Page(table, head.holes, head.low, head.high, head.next)
