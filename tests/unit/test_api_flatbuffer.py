"""Flatbuffers that say one thing many times: refused before a library expands them."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pyarrow as pa
import pytest

from api.arrow import check_batch_arrow
from api.auth import Caller
from api.flatbuffer import FlatTable
from api.problems import ProblemError
from imray.settings import Settings
from tests.unit.test_api_arrow import ipc, messages, refusal

_SIZES = {"B": 1, "h": 2, "I": 4, "q": 8}
_MESSAGE = {0: ("h", 4), 1: ("B", 1), 2: ("I", 0), 3: ("q", 0), 4: ("I", 0)}
_COLUMN = {0: ("I", 0), 2: ("B", 5), 3: ("I", 0), 5: ("I", 0), 6: ("I", 0)}


class _Buffer:
    """A flatbuffer by hand: what points stands before what it points at."""

    def __init__(self) -> None:
        self.data = bytearray(4)

    def table(self, slots: dict[int, tuple[str, int]]) -> tuple[int, dict[int, int]]:
        """Where it stands, and where its fields do."""
        self.data += bytes(-len(self.data) % 8)
        count = max(slots, default=-1) + 1
        vtable = len(self.data)
        self.data += bytes(4 + 2 * count)
        self.data += bytes(-len(self.data) % 8)
        start = len(self.data)
        self.data += struct.pack("<i", start - vtable)
        log_positions = {}
        for slot, (code, value) in slots.items():
            self.data += bytes(-len(self.data) % _SIZES[code])
            log_positions[slot] = len(self.data)
            struct.pack_into("<H", self.data, vtable + 4 + 2 * slot, len(self.data) - start)
            self.data += struct.pack("<" + code, value)
        struct.pack_into("<HH", self.data, vtable, 4 + 2 * count, len(self.data) - start)
        return start, log_positions

    def point(self, log_position: int, target: int) -> None:
        struct.pack_into("<I", self.data, log_position, target - log_position)

    def text(self, value: bytes) -> int:
        self.data += bytes(-len(self.data) % 4)
        start = len(self.data)
        self.data += struct.pack("<I", len(value)) + value + b"\0"
        return start

    def many(self, count: int, make: Callable[[], int]) -> int:
        """A list that names one table so many times."""
        self.data += bytes(-len(self.data) % 4)
        start = len(self.data)
        self.data += struct.pack("<I", count) + bytes(4 * count)
        target = make() if count else 0
        for log_position in range(start + 4, start + 4 + 4 * count, 4):
            self.point(log_position, target)
        return start

    def entries(self, count: int, value: bytes) -> int:
        def entry() -> int:
            start, log_positions = self.table({0: ("I", 0), 1: ("I", 0)})
            self.point(log_positions[0], self.text(b"k"))
            self.point(log_positions[1], self.text(value))
            return start

        return self.many(count, entry)

    def column(self, children: int, entries: int, value: bytes) -> int:
        start, log_positions = self.table(_COLUMN)
        self.point(log_positions[0], self.text(b"body"))
        self.point(log_positions[3], self.table({})[0])
        self.point(log_positions[5], self.many(children, lambda: self.column(0, 0, b"")))
        self.point(log_positions[6], self.entries(entries, value))
        return start


def _schema(where: str, count: int, value: bytes = b"", columns: int = 1, children: int = 0) -> bytes:
    """A stream of a schema, with so many times one entry of metadata at a place."""
    made = _Buffer()
    root, message = made.table(_MESSAGE)
    made.point(0, root)
    schema, log_positions = made.table({1: ("I", 0), 2: ("I", 0)})
    made.point(message[2], schema)
    made.point(message[4], made.entries(count if where == "message" else 0, value))
    in_column = count if where == "column" else 0
    made.point(log_positions[1], made.many(columns, lambda: made.column(children, in_column, value)))
    made.point(log_positions[2], made.entries(count if where == "schema" else 0, value))
    made.data += bytes(-len(made.data) % 8)
    return _framed(bytes(made.data)) + _framed(b"")


def _framed(metadata: bytes) -> bytes:
    return struct.pack("<Ii", 0xFFFFFFFF, len(metadata)) + metadata


def _parts(data: bytes) -> list[bytes]:
    return [m.serialize().to_pybytes() for m in pa.ipc.MessageReader.open_stream(data)]


def _unread(monkeypatch: pytest.MonkeyPatch, data: bytes, settings: Settings | None = None) -> ProblemError:
    """How it is refused, and that no library has seen it."""
    with monkeypatch.context() as patched:
        for name in ("open_stream", "MessageReader"):
            patched.setattr(f"pyarrow.ipc.{name}", lambda *_, **__: pytest.fail("it was read"))
        return refusal(data, settings)


@pytest.mark.parametrize("where", ["message", "schema", "column"])
def test_one_entry_named_many_times_counts_as_many(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    assert "conv_id is missing" in refusal(_schema(where, 1, b"v" * 2000)).detail  # well made: it is read
    for count, size in ((60, 2000), (300, 1)):
        found = _unread(monkeypatch, _schema(where, count, b"v" * size))
        assert (found.status, "metadata" in found.detail) == (422, True)


def test_one_column_named_many_times_counts_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _unread(monkeypatch, _schema("column", 20, b"v" * 1000, columns=90))
    assert (found.status, "entries of metadata" in found.detail) == (422, True)
    assert "columns" in _unread(monkeypatch, _schema("column", 0, columns=1000)).detail
    assert "nested" in _unread(monkeypatch, _schema("column", 0, children=1000)).detail


def test_a_stream_has_one_schema_and_that_first(monkeypatch: pytest.MonkeyPatch) -> None:
    schema, dictionary, batch = _parts(ipc(messages(2)))
    for parts in ([schema, schema, dictionary, batch], [dictionary, schema, batch], [batch]):
        found = _unread(monkeypatch, b"".join(parts))
        assert (found.status, "schema" in found.detail) == (422, True)


def test_messages_are_counted_before_any_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    schema, dictionary, _ = _parts(ipc(messages(2)))
    found = _unread(monkeypatch, schema + dictionary * 200, Settings(arrow_parts_max=100))
    assert (found.status, "IPC messages" in found.detail) == (413, True)


def _changed(data: bytes, kind: int, change: Callable[[bytearray, FlatTable], None]) -> bytes:
    """The stream with another header in its messages of a kind."""
    out = bytearray()
    for part in _parts(data):
        size = struct.unpack_from("<i", part, 4)[0]
        metadata = bytearray(part[8 : 8 + size])
        message = FlatTable.root(bytes(metadata))
        header = message.table(2)
        assert header is not None
        if message.number(1, "<B") == kind:
            change(metadata, header)
        out += part[:8] + metadata + part[8 + size :]
    return bytes(out)


@pytest.mark.parametrize(
    ("slot", "code", "value", "words"),
    [(1, "I", 90, "columns"), (2, "I", 60, "buffers"), (4, "I", 50, "columns"), (4, "xxxxq", 2**31 - 1, "buffers")],
)
def test_a_batch_names_no_more_than_its_columns_have(
    monkeypatch: pytest.MonkeyPatch, slot: int, code: str, value: int, words: str
) -> None:
    def change(metadata: bytearray, header: FlatTable) -> None:
        at = header._target(slot)
        assert at is not None
        old = struct.unpack_from("<" + code, metadata, at)
        assert old[0] < value
        struct.pack_into("<" + code[-1], metadata, at + struct.calcsize("<" + code[:-1]), value)

    views = messages(2, body=pa.array([b"y" * 40, b"z"], pa.binary_view()))
    found = _unread(monkeypatch, _changed(ipc(views), 3, change))
    assert (found.status, words in found.detail) == (422, True)


def test_a_dictionary_of_nothing_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(metadata: bytearray, header: FlatTable) -> None:
        data = header.table(1)
        assert data is not None
        nodes = data._target(1)
        length = data._field(0)
        assert nodes is not None
        assert length is not None
        struct.pack_into("<q", metadata, nodes + 4, 2**40)
        struct.pack_into("<q", metadata, length, 2**40)

    empty = pa.DictionaryArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array([b"", b""], pa.binary(0)))
    texts = pa.array(["a", "b"])
    found = _unread(monkeypatch, _changed(ipc(messages(2, conv_id=texts, body=empty)), 2, change))
    assert (found.status, "more values than bytes" in found.detail) == (422, True)


def test_a_text_is_not_read_as_often_as_views_name_it() -> None:
    rows = 50
    view = struct.pack("<i4sii", 60_000, b"\xff" * 4, 0, 0)
    parts = [None, pa.py_buffer(view * rows), pa.py_buffer(b"\xff" * 60_000)]
    views = pa.Array.from_buffers(pa.string_view(), rows, parts)
    # reading it would find that it is no UTF-8
    assert "at most" in refusal(ipc(messages(rows, topic=views))).detail
    assert refusal(ipc(messages(rows, body=views)), Settings(request_bytes_max=1_000_000)).status == 413
    in_dictionary = pa.DictionaryArray.from_arrays(pa.array([None] * 2, pa.int32()), views)
    found = refusal(ipc(messages(2, topic=in_dictionary)))
    assert (found.status, "topic has the wrong type" in found.detail) == (422, True)


def test_columns_that_share_a_dictionary_count_it_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(metadata: bytearray, header: FlatTable) -> None:
        *_, last = header.tables(1, 10)
        dictionary = last.table(4)
        assert dictionary is not None
        assert dictionary.number(0, "<q") == 1
        at = dictionary._field(0)
        assert at is not None
        struct.pack_into("<q", metadata, at, 0)

    texts = pa.array(["t" * 100] * 50)
    shared = pa.DictionaryArray.from_arrays(pa.array([0] * 100, pa.int32()), texts)
    table = messages(100, conv_id=shared, topic=shared)
    parts = _parts(_changed(ipc(table, 1), 1, change))
    one = b"".join(parts[:2] + parts[3:])  # without the second of two equal dictionaries
    settings = Settings(request_bytes_max=200_000)  # of 5 KB a hundred times, and twice that
    assert check_batch_arrow(one, Caller("bot", True), Settings()).num_rows == 100
    found = _unread(monkeypatch, one, settings)
    assert (found.status, "dictionaries" in found.detail) == (413, True)


def test_a_column_of_views_may_have_a_buffer_for_each_body() -> None:
    bodies = pa.array([b"y" * 16_500] * 980, pa.binary_view())
    assert check_batch_arrow(ipc(messages(980, body=bodies)), Caller("bot", True), Settings()).num_rows == 980
