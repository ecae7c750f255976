"""Messages to send: real text where the test data is at hand, columns made beforehand, ids new for each batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from imray.kernels.hashing import U8
from imray.log.schema import BATCH_SCHEMA, MS, constant_text, to_ipc

BODY_BYTES = 100
ID_BYTES = 16
_TEXT_BYTES = 8_000_000
_WORDS = 6_000
_WORD_SEED = 7


@cache
def text() -> bytes:
    """Some MB of printable ASCII without quotes and backslashes: lines of a chat log, or words where there is none."""
    path = chat_file()
    found = _chat(path) if path is not None else _words()
    keep = np.frombuffer(found, np.uint8)
    # what JSON writes as it is: so a body has the same bytes in every encoding
    keep = keep[(keep >= 32) & (keep < 127) & (keep != ord('"')) & (keep != ord("\\"))]
    return keep[:_TEXT_BYTES].tobytes()


def chat_file() -> Path | None:
    """The chat log among the test data, where it is at hand."""
    folder = os.environ.get("IMRAY_TEST_DATA")
    path = Path(folder) / "irc-ubuntu" / "train.parquet" if folder else None
    return path if path is not None and path.exists() else None


def _chat(path: Path) -> bytes:
    import pyarrow.parquet as pq

    lines = pq.read_table(path, columns=["text"], use_threads=False).column("text")
    return " ".join(filter(None, lines.to_pylist())).encode("ascii", "ignore")


def _words() -> bytes:
    """Words of 2 to 9 letters, frequent ones more often (Zipf's law); lz4 finds in them what it finds in chat."""
    rng = np.random.default_rng(_WORD_SEED)
    letters = np.frombuffer(b"etaoinshrdlucmfwypvbgk", np.uint8)
    words = [bytes(rng.choice(letters, n)) for n in rng.integers(2, 10, _WORDS)]
    share = np.arange(1, _WORDS + 1) ** -0.93
    return b" ".join(words[i] for i in rng.choice(_WORDS, _TEXT_BYTES // 6, p=share / share.sum()))


def bodies(rows: int, rng: np.random.Generator) -> pa.Array:
    """`rows` slices of the text, BODY_BYTES each, from a random place on."""
    size = rows * BODY_BYTES
    source = text()
    at = int(rng.integers(0, len(source) - size)) if len(source) > size else 0
    data = (source * (size // len(source) + 1))[at : at + size] if len(source) <= size else source[at : at + size]
    offsets = np.arange(0, size + 1, BODY_BYTES, dtype=np.int32)
    return pa.Array.from_buffers(pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def conversation_names(count: int) -> list[str]:
    """The conversations of a benchmark."""
    return [f"room-{i:06d}" for i in range(count)]


def record_batch(rows: int, names: Sequence[str], rng: np.random.Generator, topic: str | None = None) -> pa.RecordBatch:
    """A batch as a gateway makes it: random conversations of `names`, only the used ones in the dictionary."""
    if len(names) == 1:
        conv = constant_text(names[0], rows)
    else:
        used, index = np.unique(rng.integers(0, len(names), rows), return_inverse=True)
        dictionary = pa.array([names[i] for i in used])
        conv = pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), dictionary)
    ids = pa.Array.from_buffers(pa.binary(ID_BYTES), rows, [None, pa.py_buffer(rng.bytes(ID_BYTES * rows))])
    nothing = constant_text(None, rows)
    topics = constant_text(topic, rows)
    columns = [conv, ids, constant_text("alice", rows), topics, nothing, pa.nulls(rows, MS), bodies(rows, rng)]
    return pa.record_batch(columns, schema=BATCH_SCHEMA)


class Batches:
    """Arrow streams of one size, made once; only the ids are new each time, so that making them costs little.

    A stream is valid until `next` has been called as often as there are templates."""

    def __init__(
        self, rows: int, names: Sequence[str], seed: int, templates: int = 16, topic: str | None = None
    ) -> None:
        self.rows = rows
        self._rng = np.random.default_rng(seed)
        made = [_with_place(record_batch(rows, names, self._rng, topic)) for _ in range(templates)]
        self._streams: list[tuple[U8, int]] = made
        self._turn = 0

    def next(self) -> U8:
        """The next stream, with ids that were never used."""
        self._turn += 1
        stream, at = self._streams[self._turn % len(self._streams)]
        size = ID_BYTES * self.rows
        stream[at : at + size] = np.frombuffer(self._rng.bytes(size), np.uint8)
        return stream


def _with_place(batch: pa.RecordBatch) -> tuple[U8, int]:
    """A batch's stream, writable, and where its ids stand."""
    stream = to_ipc(batch).to_pybytes()
    ids = batch.column("client_msg_id").buffers()[1].to_pybytes()[: ID_BYTES * batch.num_rows]
    at = stream.find(ids)
    assert at >= 0, "the stream holds the ids as they are"
    return np.frombuffer(bytearray(stream), np.uint8), at
