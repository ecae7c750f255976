"""What a replay sends and in which order: the file in columns, the ids of its rows, and the lanes.

Owns the promise that within a lane a batch is sent only after the one before it was answered. No network, no clock.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from imray.core.errors import InvalidError
from imray.core.ids import ID_BYTES, format_client_msg_id
from imray.core.routing import CONV_ID_BYTES_MAX, check_text

Rows = npt.NDArray[np.int64]

CONVERSATION_COLUMNS = ("conversation", "log", "conv_id")
SENDER_COLUMNS = ("sender", "nick")
TEXT_COLUMNS = ("text", "body")
NO_SENDER = "-"
"""Who says a row that names no sender (joins and parts in an IRC log); no IRC nick starts with it."""
SENDER_BYTES_MAX = 128
BATCH_BYTES_MAX = 2 * 1024 * 1024
"""Of text in one batch: as JSON it may take six times as much, and a request may have 16 MiB."""
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Names:
    """A column of few different texts: `texts[codes[row]]`."""

    texts: list[str]
    codes: npt.NDArray[np.int32]

    def of(self, row: int) -> str:
        """The row's text."""
        return self.texts[int(self.codes[row])]


@dataclass(frozen=True)
class Chat:
    """A file's messages in columns, in the file's order."""

    conversations: Names
    senders: Names
    texts: pa.Array
    """Strings, without nulls."""
    raw_ids: bytes
    """16 bytes a row."""

    def __len__(self) -> int:
        return len(self.texts)

    def client_msg_id(self, row: int) -> str:
        """The row's id as the protocol writes it."""
        return format_client_msg_id(self.raw_ids[ID_BYTES * row : ID_BYTES * (row + 1)])


@dataclass(frozen=True)
class LaneBatch:
    """Rows that may be sent now, ascending, and the lanes that they block until `Lanes.release`."""

    rows: Rows
    lanes: list[int]


class Lanes:
    """Rows in lanes (a key for each row). A lane has one batch in flight at most, and its rows leave in their order;
    a batch may carry rows of several lanes."""

    def __init__(self, keys: Rows, sizes_bytes: Rows, batch_max: int) -> None:
        self._batch_max = batch_max
        self._order = np.argsort(keys, kind="stable")
        ordered = keys[self._order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(keys) else np.empty(0, np.int64)
        self._at: list[int] = starts.tolist()
        self._end: list[int] = np.r_[starts[1:], len(keys)].tolist() if len(keys) else []
        self._bytes = np.r_[0, np.cumsum(sizes_bytes[self._order])]
        # lanes begin as the file does, so that what is read first is sent first
        self._free = deque(np.argsort(self._order[starts], kind="stable").tolist())

    def take(self) -> LaneBatch | None:
        """The next batch; None while every lane with rows left is in flight, and once all rows are out."""
        rows: list[Rows] = []
        lanes: list[int] = []
        room = self._batch_max
        bytes_left = BATCH_BYTES_MAX
        while room and self._free:
            lane = self._free[0]
            at = self._at[lane]
            fit = int(np.searchsorted(self._bytes, self._bytes[at] + bytes_left, "right")) - 1
            stop = min(at + room, self._end[lane], fit)
            if stop == at:
                if rows:
                    break
                stop = at + 1  # larger than a batch may be: alone
            self._free.popleft()
            self._at[lane] = stop
            lanes.append(lane)
            rows.append(self._order[at:stop])
            room -= stop - at
            bytes_left -= int(self._bytes[stop] - self._bytes[at])
        return LaneBatch(np.sort(np.concatenate(rows)), lanes) if rows else None

    def release(self, batch: LaneBatch) -> None:
        """Every row of the batch is answered: its lanes may go on."""
        self._free.extend(lane for lane in batch.lanes if self._at[lane] < self._end[lane])


def lanes_of(chat: Chat, by_sender: bool, batch_max: int) -> Lanes:
    """One lane for each conversation, or for each sender in each conversation."""
    sizes = pc.binary_length(chat.texts).to_numpy(zero_copy_only=False).astype(np.int64)
    return Lanes(lane_keys(chat, by_sender), sizes, batch_max)


def lane_keys(chat: Chat, by_sender: bool) -> Rows:
    """Which lane each row is in."""
    keys = chat.conversations.codes.astype(np.int64)
    return keys * len(chat.senders.texts) + chat.senders.codes if by_sender else keys


def message_ids(content_digest: bytes, rows: int) -> bytes:
    """An id for each row, 16 bytes: always the same for the same file, so a second replay is all retries."""
    blake2b = hashlib.blake2b
    return b"".join(
        blake2b(content_digest + row.to_bytes(8, "little"), digest_size=ID_BYTES).digest() for row in range(rows)
    )


def load(path: Path, prefix: str, limit: int | None) -> Chat:
    """Read a Parquet file. InvalidError where it is none, lacks a column or holds a name that cannot be one."""
    try:
        digest = _digest(path)
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [_first(names, c, path) for c in (CONVERSATION_COLUMNS, SENDER_COLUMNS, TEXT_COLUMNS)]
            read = file.read(columns).slice(0, limit)
            texts = [pc.cast(read.column(name), pa.string()) for name in columns]
            for column in texts:
                column.validate(full=True)
    except OSError as e:
        raise InvalidError(f"{path} cannot be read: {e.strerror or e}") from e
    except pa.ArrowException as e:
        raise InvalidError(f"{path} is no Parquet file of texts: {e}") from e
    conversation, sender, text = texts
    if conversation.null_count:
        row = pc.index(pc.is_null(conversation), pa.scalar(True)).as_py()
        raise InvalidError(f"{path} row {row}: {columns[0]} is null, a conversation must be named")
    if prefix:
        conversation = pc.binary_join_element_wise(prefix, conversation, "")
    named = pc.if_else(pc.equal(pc.fill_null(sender, ""), ""), NO_SENDER, sender)
    return Chat(
        _names(conversation, path, columns[0], CONV_ID_BYTES_MAX),
        _names(named, path, columns[1], SENDER_BYTES_MAX),
        _whole(pc.fill_null(text, "")),
        message_ids(digest, read.num_rows),
    )


def _digest(path: Path) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.digest()


def _first(names: Sequence[str], wanted: Sequence[str], path: Path) -> str:
    for name in wanted:
        if name in names:
            return name
    raise InvalidError(f"{path} has no column {' or '.join(wanted)}; it has {', '.join(names)}")


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.string())


def _names(column: pa.ChunkedArray, path: Path, name: str, bytes_max: int) -> Names:
    encoded = _whole(column).dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    codes = encoded.indices.to_numpy()
    for code, text in enumerate(texts):
        try:
            check_text(text, name, bytes_max)
        except InvalidError as e:
            row = int(np.flatnonzero(codes == code)[0])
            raise InvalidError(f"{path} row {row}: {e}") from e
    return Names(texts, codes)
