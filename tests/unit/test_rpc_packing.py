"""What a message promises of itself is checked before anything is made of it."""

from __future__ import annotations

import tracemalloc

import msgspec
import numpy as np
import pytest

from imray.core.errors import InvalidError
from imray.rpc import messages
from imray.rpc.endpoint import Parts
from imray.rpc.packing import pack, unpack


def _joined(content: Parts) -> memoryview:
    return memoryview(bytearray(b"".join(content)))


def _claims(columns: bytes) -> memoryview:
    head = b"\x92" + columns + b"\x91\xa4done"
    return memoryview(len(head).to_bytes(4, "little") + bytes(4) + head + bytes(-len(head) % 8))


@pytest.mark.parametrize(
    "columns",
    [
        b"\xdd\xff\xff\xff\xff",  # an array of four thousand million columns
        b"\xdc\x00\x11" + b"\x92\x01\x00" * 17,  # one column more than there may be
        b"\x91\x92\x05\xcf" + b"\xff" * 8,  # a column of 2**64 - 1 elements
        b"\x91\x92\x05\xcf\x7f" + b"\xff" * 7,
        b"\x91\x92\x05\xce\x7f\xff\xff\xff",
        b"\x91\x92\x05\xff",  # of -1 elements
    ],
)
def test_what_is_promised_and_not_there_takes_no_memory(columns: bytes) -> None:
    class Done(msgspec.Struct, array_like=True, tag="done"):
        pass

    def read() -> None:
        _, arrays = unpack(_claims(columns), Done)
        arrays.take(np.uint64, None, "claimed")

    tracemalloc.start()
    with pytest.raises(InvalidError):
        read()
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


def test_deep_nesting_is_refused() -> None:
    with pytest.raises(InvalidError):
        messages.decode_struct(memoryview(b"\x91" * 100_000 + b"\x01"), list)


def test_a_message_without_arrays_that_has_some() -> None:
    class Done(msgspec.Struct, array_like=True, tag="done"):
        pass

    content = pack(Done(), [(np.zeros(3, np.int64), np.int64)])
    with pytest.raises(InvalidError, match="more in it"):
        messages.decode_done(_joined(content))
    content = pack(Done(), [(np.zeros(0, np.int64), np.int64)])
    with pytest.raises(InvalidError, match="more in it"):
        messages.decode_done(_joined(content))
    whole = _joined(pack(Done()))
    whole[5] = 1  # where a later version may say something
    with pytest.raises(InvalidError):
        messages.decode_done(whole)
    with pytest.raises(InvalidError, match="no column"):
        unpack(_joined(pack(Done())), Done)[1].take(np.int64, None, "missing")
