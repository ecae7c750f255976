"""Frames as bytes: split anywhere, joined or not, bounded."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from imray.rpc.endpoint import Parts
from imray.rpc.frames import HEAD, Frame, FrameError, FrameReader, Kind, size_of, writes_of

_SIZES = (0, 1, 7, 16_383, 16_384, 16_385, 32_743, 32_744, 32_745, 100_000)


def _bytes(number: int, content: bytes) -> bytes:
    return b"".join(writes_of(Kind.CALL, 1, -5, number, (content,)))


def _read(data: bytes, pieces: list[int], reader: FrameReader | None = None) -> list[Frame]:
    """What a reader makes of bytes that come in pieces; each piece may take several reads."""
    reader = FrameReader(1_000_000) if reader is None else reader
    found: list[Frame] = []
    at = 0
    for piece in pieces:
        end = min(len(data), at + piece)
        while at < end:
            buffer = reader.get_buffer()
            assert len(buffer)
            n = min(len(buffer), end - at)
            buffer[:n] = data[at : at + n]
            at += n
            reader.received(n)
            while (frame := reader.next_frame()) is not None:
                found.append(frame)
    return found


def _content(n: int) -> bytes:
    return np.arange(n, dtype=np.uint32).astype(np.uint8).tobytes()


def test_split_at_every_boundary() -> None:
    contents = [b"", b"a", _content(30), b"", _content(9)]
    data = b"".join(_bytes(i, c) for i, c in enumerate(contents))
    for split in range(len(data) + 1):
        found = _read(data, [split, len(data)])
        assert [bytes(f.content) for f in found] == contents
        assert [(f.kind, f.method, f.log, f.call) for f in found] == [(1, 1, -5, i) for i in range(5)]
    assert [bytes(f.content) for f in _read(data, [1] * len(data))] == contents


@pytest.mark.parametrize("piece", [1_000, 4_095, 32_768, 65_536, 1_000_000])
def test_every_size_in_pieces(piece: int) -> None:
    contents = [_content(a) for pair in itertools.product(_SIZES, repeat=2) for a in pair]
    data = b"".join(_bytes(i, c) for i, c in enumerate(contents))
    assert [bytes(f.content) for f in _read(data, [piece] * (len(data) // piece + 1))] == contents


@pytest.mark.parametrize("size", [16_385, 32_744, 40_000])
def test_a_large_frame_split_near_its_ends(size: int) -> None:
    content = _content(size)
    data = _bytes(1, content) + _bytes(2, b"next")
    edges = [*range(40), *range(HEAD.size + size - 30, len(data))]
    for split in edges:
        assert [bytes(f.content) for f in _read(data, [split, len(data)])] == [content, b"next"]


def test_frames_that_are_not_taken_wait() -> None:
    reader = FrameReader(100)
    data = b"".join(_bytes(i, b"x" * i) for i in range(3))
    reader.get_buffer()[: len(data)] = data
    reader.received(len(data))
    first = reader.next_frame()
    assert first is not None
    rest = _read(_bytes(3, b"xxx"), [100], reader)
    assert [f.call for f in (first, *rest)] == [0, 1, 2, 3]


def test_contents_share_no_memory_and_are_aligned() -> None:
    found = _read(b"".join(_bytes(i, _content(n)) for i, n in enumerate((3, 16, 20_000, 50_000))), [10**6])
    for frame in found:
        array = np.frombuffer(frame.content, np.uint8)
        assert array.ctypes.data % 8 == 0
        assert array.flags.writeable
        frame.content[0] = 200
    assert [f.content[1] for f in found] == [1, 1, 1, 1]


def test_too_large_takes_no_memory() -> None:
    reader = FrameReader(1000)
    tracemalloc.start()
    with pytest.raises(FrameError, match="1001 bytes: the most is 1000"):
        _read(HEAD.pack(1, 1, 0, 1, 1, 1001), [100], reader)
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()
    assert len(_read(_bytes(1, bytes(1000)), [2000], FrameReader(1000))) == 1


def test_no_head_of_a_frame() -> None:
    with pytest.raises(FrameError, match="not the head"):
        _read(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", [100])


@pytest.mark.parametrize(
    ("content", "writes"),
    [
        ((), 1),
        ((bytes(16_384),), 1),
        ((bytes(8_000), bytes(8_384)), 1),
        ((bytes(16_385),), 2),  # head; content
        ((b"small", bytes(20_000)), 2),  # head and the small one; the large one
        ((b"small", bytes(20_000), b"a", b"b"), 3),  # ...; the two small ones
        ((bytes(20_000), bytes(20_000)), 3),
        ((bytes(10_000), bytes(10_000)), 3),  # each alone is joined with what fits
    ],
)
def test_large_parts_are_not_joined(content: Parts, writes: int) -> None:
    made = writes_of(Kind.PUSH, 64, 1, 0, content)
    assert len(made) <= writes
    assert b"".join(made)[HEAD.size :] == b"".join(content)
    large = [part for part in content if len(part) > 16_384]
    assert [w.obj for w in made if isinstance(w, memoryview)] == large


def test_parts_of_any_shape_are_counted_in_bytes() -> None:
    array = np.arange(60_000, dtype=np.uint64).reshape(-1, 2)
    made = b"".join(writes_of(Kind.CALL, 1, 1, 1, (array.data, array[:3].data, array[:0].data)))
    assert size_of((array.data,)) == 480_000
    assert made[HEAD.size :] == array.tobytes() + array[:3].tobytes()
    assert HEAD.unpack_from(made)[-1] == len(made) - HEAD.size


def test_a_part_that_is_no_buffer_is_refused_before_anything_is_written() -> None:
    with pytest.raises(TypeError):
        writes_of(Kind.CALL, 1, 1, 1, (bytes(20_000), "text"))  # type: ignore[arg-type]
    with pytest.raises((TypeError, BufferError)):
        writes_of(Kind.CALL, 1, 1, 1, (np.arange(20_000)[::2].data,))
