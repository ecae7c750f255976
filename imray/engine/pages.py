"""How a page of history travels from the process that reads it to the gateway that asked for it.

Owns the two messages of `Method.READ_HISTORY`: msgpack, with the page's messages in it as an Arrow IPC stream. Does not
own pages (`imray.core.pages`) or connections (`imray.rpc`).
"""

from __future__ import annotations

import msgspec
import pyarrow as pa

from imray.core.pages import NoPage, Page, PageCall

_OnTheWay = Page[memoryview]


class _Answer(msgspec.Struct, frozen=True):
    """One of the two is there."""

    page: _OnTheWay | None = None
    problem: NoPage | None = None


_CALLS = msgspec.msgpack.Decoder(PageCall)
_ANSWERS = msgspec.msgpack.Decoder(_Answer)


def encode_call(call: PageCall) -> bytes:
    """A call, as the history reader takes it."""
    return msgspec.msgpack.encode(call)


def decode_call(content: memoryview) -> PageCall:
    """The inverse of `encode_call`. msgspec.DecodeError: it is no call."""
    return _CALLS.decode(content)


def encode_answer(answer: Page[pa.Table] | NoPage) -> bytes:
    """An answer, as the gateway takes it."""
    if isinstance(answer, NoPage):
        return msgspec.msgpack.encode(_Answer(problem=answer))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, answer.messages.schema) as stream:
        stream.write_table(answer.messages)
    messages = memoryview(sink.getvalue())
    page = _OnTheWay(messages, answer.holes, answer.low, answer.high, answer.next)
    return msgspec.msgpack.encode(_Answer(page=page))


def decode_answer(content: memoryview) -> Page[pa.Table] | NoPage:
    """The inverse of `encode_answer`; the page keeps `content` alive. msgspec.DecodeError, pa.ArrowInvalid: it is no
    answer."""
    answer = _ANSWERS.decode(content)
    if answer.problem is not None:
        return answer.problem
    page = answer.page
    if page is None:
        raise msgspec.DecodeError("neither a page nor why there is none")
    with pa.ipc.open_stream(pa.py_buffer(page.messages)) as stream:
        messages = stream.read_all()
    return Page(messages, page.holes, page.low, page.high, page.next)
