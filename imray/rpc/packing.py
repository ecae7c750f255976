"""One message as bytes: a small head in msgpack, and behind it the arrays that it speaks of.

    bytes of the head (u32), zero (u32) | head: (dtype and length of each array, fields) | array | array | ...

Arrays are raw little-endian buffers, each aligned to 8 bytes, so that numpy reads them where they lie. Nothing that
comes in is trusted: types and lengths are checked against what is there before anything is made of them. Does not know
any message: `imray.rpc.replies`, `imray.rpc.grants` and `imray.rpc.arguments` do.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any, TypeAlias, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt

from imray.core.errors import InvalidError
from imray.rpc.endpoint import Part

T = TypeVar("T")
Scalar = TypeVar("Scalar", bound=np.generic)
Array: TypeAlias = npt.NDArray[Any]

Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""What fits into an int64 column."""
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
ROWS_MAX = 1 << 24
"""Rows of one message. Where an answer has no column of them, this alone keeps a wrong number from taking memory."""
Rows = Annotated[int, msgspec.Meta(ge=0, le=ROWS_MAX)]

_ARRAYS_MAX = 16
_ALIGNMENT = 8
_PREFIX = struct.Struct("<II")
_DTYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u1"),
    2: np.dtype("<i4"),
    3: np.dtype("<u4"),
    4: np.dtype("<i8"),
    5: np.dtype("<u8"),
}
"""All that may be in a message. The numbers stand on the wire."""
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_Columns = Annotated[list[tuple[int, Count]], msgspec.Meta(max_length=_ARRAYS_MAX)]
"""Dtype and elements of each array."""


def _plain(value: object) -> int:
    """Of msgspec: a number of numpy's among the fields of a head."""
    if isinstance(value, np.integer):
        return int(value)
    raise TypeError(f"a message cannot hold {type(value).__name__}")


encoder = msgspec.msgpack.Encoder(enc_hook=_plain)


@lru_cache(maxsize=256)
def decoder(type_: Any) -> msgspec.msgpack.Decoder[Any]:
    """One for each type: making one costs more than using it."""
    return msgspec.msgpack.Decoder(type_)


@lru_cache(maxsize=256)
def _head_decoder(type_: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(tuple[_Columns, type_])


def decode(with_: msgspec.msgpack.Decoder[Any], data: memoryview) -> Any:
    """InvalidError where it is not of the decoder's type."""
    try:
        return with_.decode(data)
    except (ValueError, RecursionError) as e:  # msgspec's own errors and those of text are ValueErrors
        raise InvalidError(f"a message is malformed: {e}") from e


def decode_struct(data: memoryview, type_: type[T]) -> T:
    """A typed structure of msgspec's, or a NamedTuple. InvalidError where it is no such thing."""
    hashable: Any = type_
    value: T = decode(decoder(hashable), data)
    return value


def _pad(size: int) -> int:
    return -size % _ALIGNMENT


def pack(head: object, arrays: Sequence[tuple[Array, type[np.generic]]] = ()) -> list[Part]:
    """A message. Each array with its dtype on the wire; TypeError where that could not hold its values."""
    columns: list[tuple[int, int]] = []
    parts: list[Part] = [b""]
    for array, dtype in arrays:
        stored = np.ascontiguousarray(array.astype(np.dtype(dtype).newbyteorder("<"), casting="safe", copy=False))
        columns.append((_CODES[stored.dtype], stored.size))
        if stored.size:
            parts.append(stored.data.cast("B"))
            if extra := _pad(stored.nbytes):
                parts.append(bytes(extra))
    encoded = encoder.encode((columns, head))
    parts[0] = _PREFIX.pack(len(encoded), 0) + encoded + bytes(_pad(len(encoded)))
    return parts


class ArrayReader:
    """The arrays of a message, in their order. All must be taken."""

    def __init__(self, data: memoryview, at: int, columns: list[tuple[int, int]]) -> None:
        """`at`: where the first one begins."""
        self._data = data
        self._at = at
        self._columns = columns
        self._next = 0

    def take(self, dtype: type[Scalar], length: int | None, name: str) -> npt.NDArray[Scalar]:
        """The next array, in the message's own memory. InvalidError where it is not of this dtype and length (None: of
        any length)."""
        if self._next == len(self._columns):
            raise InvalidError(f"a message has no column {name}")
        code, elements = self._columns[self._next]
        wanted = np.dtype(dtype)
        if _DTYPES.get(code) != wanted:
            raise InvalidError(f"column {name} of a message is not of {wanted}")
        if length is not None and elements != length:
            raise InvalidError(f"column {name} of a message has {elements} elements, not {length}")
        size = elements * wanted.itemsize
        end = self._at + size + _pad(size)
        if end > len(self._data):
            raise InvalidError(f"column {name} of a message ends behind the message")
        begin = self._at
        self._next += 1
        self._at = end
        if not elements:
            return np.empty(0, wanted)
        return np.frombuffer(self._data, wanted, elements, begin)

    @property
    def empty(self) -> bool:
        """All were taken."""
        return self._next == len(self._columns)

    def end(self) -> None:
        """InvalidError: something was not taken."""
        if self._next != len(self._columns) or self._at != len(self._data):
            raise InvalidError("a message has more in it than it should")


def unpack(data: memoryview, type_: Any) -> tuple[Any, ArrayReader]:
    """The head, of `type_`, and the arrays of a message. InvalidError where it is malformed."""
    if len(data) < _PREFIX.size:
        raise InvalidError("a message is cut short")
    head_bytes, zero = _PREFIX.unpack_from(data)
    head_end = _PREFIX.size + head_bytes
    at = head_end + _pad(head_bytes)
    if zero or at > len(data):
        raise InvalidError("the head of a message ends behind the message")
    columns, head = decode(_head_decoder(type_), data[_PREFIX.size : head_end])
    return head, ArrayReader(data, at, columns)


def check_ascending(rows: npt.NDArray[np.int64], below: int, name: str) -> None:
    """InvalidError unless these are row numbers in 0 .. below - 1, each higher than the one before."""
    if not len(rows):
        return
    if rows[0] < 0 or rows[-1] >= below or not (rows[1:] > rows[:-1]).all():
        raise InvalidError(f"column {name} of a message does not name rows in their order")
