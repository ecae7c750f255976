"""A digest of the whole file inside the file: every byte is covered, the digest's own place counts as zeros.

The place is found by its mark: in a Parquet file the last one in the footer (the key-value metadata comes after the
statistics, which hold users' text), in a run of ids likewise, in an Arrow stream the first one, in the schema's
metadata at the front.
XXH3-128 finds accidents (bit rot, torn writes, swapped files), not forgers.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import xxhash

from imray.core.errors import CorruptError

KEY = "imray.digest"
_MARK = b"xxh3_128:"
_HEX = 32
BLANK = (_MARK + b"0" * _HEX).decode()
_PARQUET = b"PAR1"
RUN = b"IMID"
"""At both ends of a run of ids (`imray.log.id_run`); the length of its footer stands before the last one, as in
Parquet."""
_ARROW = b"\xff\xff\xff\xff"
_ARROW_HEAD_BYTES = 8192

Parts = Sequence[memoryview | bytes]


def seal(data: pa.Buffer | memoryview) -> tuple[Parts, bytes]:
    """Fill in the digest of an encoded file that holds BLANK under KEY: the file, which is `data` itself, and the 16
    bytes."""
    view = memoryview(data).cast("B")
    at = _find(view, "<new file>") + len(_MARK)
    digest = _digest(view, at)
    view[at : at + _HEX] = digest.hex().encode()
    return (view,), digest


def verify(data: bytes | memoryview | pa.Buffer, name: str) -> bytes:
    """The digest (16 bytes) of a file that is whole and unchanged; CorruptError with the place otherwise."""
    view = memoryview(data).cast("B")
    at = _find(view, name) + len(_MARK)
    digest = _digest(view, at)
    said = bytes(view[at : at + _HEX])
    if digest.hex().encode() != said:
        raise CorruptError(name, f"bytes 0 to {len(view)}", f"digest is {digest.hex()}, the file says {said!r}")
    return digest


def seal_json(data: bytes) -> bytes:
    """Fill in the digest of a JSON text that holds BLANK once, before anything that users say."""
    view = memoryview(bytearray(data))
    at = _find_in_json(view, "<new file>") + len(_MARK)
    view[at : at + _HEX] = _digest(view, at).hex().encode()
    return bytes(view)


def verify_json(data: bytes | memoryview, name: str) -> bytes:
    """As `verify`, of a text that `seal_json` made; an empty one or one that is cut off does not verify."""
    view = memoryview(data).cast("B")
    at = _find_in_json(view, name) + len(_MARK)
    digest = _digest(view, at)
    said = bytes(view[at : at + _HEX])
    if digest.hex().encode() != said:
        raise CorruptError(name, f"bytes 0 to {len(view)}", f"digest is {digest.hex()}, the file says {said!r}")
    return digest


def _find_in_json(view: memoryview, name: str) -> int:
    at = bytes(view).find(_MARK)
    if at < 0 or at + len(_MARK) + _HEX > len(view):
        raise CorruptError(name, "the whole file", "the digest's mark is not there: it is empty, cut off or changed")
    return at


def _digest(view: memoryview, at: int) -> bytes:
    h = xxhash.xxh3_128(view[:at])
    h.update(b"0" * _HEX)
    h.update(view[at + _HEX :])
    return h.digest()


def place_of_digest(view: memoryview, name: str) -> tuple[int, int]:
    """Where a file says its digest: begin and end. CorruptError where that is not found."""
    at = _find(view, name) + len(_MARK)
    return at, at + _HEX


def _find(view: memoryview, name: str) -> int:
    """Where the mark stands, after the checks that need no digest."""
    size = len(view)
    magic = bytes(view[:4])
    if magic in (_PARQUET, RUN):
        if size < 12 or bytes(view[-4:]) != magic:
            raise CorruptError(name, f"bytes {max(0, size - 4)} to {size}", "no magic at the end: cut off or changed")
        footer = int.from_bytes(view[-8:-4], "little")
        if footer > size - 12:
            raise CorruptError(name, f"bytes {size - 8} to {size - 4}", f"footer of {footer} bytes in a file of {size}")
        start = size - 8 - footer
        where = "footer"
        window = bytes(view[start : size - 8])
        at = window.rfind(_MARK)
    elif magic == _ARROW:
        start = 0
        where = "schema"
        window = bytes(view[:_ARROW_HEAD_BYTES])
        at = window.find(_MARK)
    else:
        raise CorruptError(name, "bytes 0 to 4", "no magic of Parquet, Arrow or a run of ids at the start")
    if at < 0 or at + len(_MARK) + _HEX > len(window):
        raise CorruptError(name, where, "the digest's mark is not there")
    return start + at
