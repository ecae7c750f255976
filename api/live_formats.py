"""Items as bytes and back: the two sub-protocols of a live connection, and a server's WebSocket frames.

Owns the formats, and frames of a server (RFC 6455, 5.2): they are not masked, so one that many connections get is made
once. Does not own connections, nor the frames that clients send (the `websockets` library reads those).
"""

from __future__ import annotations

import base64
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias, TypeVar, cast

import msgspec

from api.live_items import (
    REF_MAX,
    BadItem,
    BehindItem,
    ClientItem,
    EndedItem,
    HeadItem,
    LiveHole,
    LiveMessage,
    MessagesItem,
    ServerItem,
    SignalledItem,
)
from imray.core.errors import InvalidError
from imray.core.ids import format_client_msg_id
from imray.core.messages import MessageRow
from imray.engine.listening import Batch, Behind, Encoder, Ended, HeadMoved, Notice

Payload: TypeAlias = bytes | bytearray | memoryview
ItemT = TypeVar("ItemT")

SIGNAL_BYTES_MAX: Final = 1024
SIGNAL_LEVELS_MAX: Final = 32
FRAME_BYTES_MAX: Final = 1024 * 1024
"""Of several items: what clients take in one message by default. An item that is larger goes alone."""
_TEXT: Final = 0x1
_BINARY: Final = 0x2
_FIN: Final = 0x80
_LENGTH_16: Final = 126
_LENGTH_64: Final = 127
_SIGNALS_KEPT: Final = 64
"""A signal is told to all its listeners at once, so the newest few are enough."""
_TAGS: Final = frozenset(item.__struct_config__.tag for item in typing.get_args(ClientItem))
_BAD_DATA = (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError, TypeError, ValueError)
"""What data of strange make raises on its way through decoder and encoder: nests without end, numbers past every range,
keys that JSON does not know."""


@dataclass(frozen=True, eq=False)
class Format:
    """A sub-protocol. There are two, and all connections share them."""

    subprotocol: str
    opcode: int
    """Of the frames, both ways."""
    encode: Callable[[Any], bytes]
    decode_items: Callable[[Payload], list[ClientItem]]
    decode_item: Callable[[Payload], ClientItem]
    decode_parts: Callable[[Payload], list[msgspec.Raw]]
    decode_value: Callable[[Payload], object]
    texts_only: bool
    """A body that is no UTF-8 is written in base64."""
    encoder: Encoder
    """Of a batch, for `imray.engine.feeds`."""

    def decode(self, data: Payload, items_max: int) -> Sequence[ClientItem | BadItem]:
        """The items of a frame. InvalidError: it is malformed."""
        try:
            try:
                return _counted(self.decode_items(data), items_max)
            except msgspec.ValidationError:
                # seldom, so this way only then: one item that is wrong costs no other one
                return [self._decode_one(part) for part in _counted(self.decode_parts(data), items_max)]
        except RecursionError as e:
            raise InvalidError("not valid: nested too deeply") from e
        except (msgspec.MsgspecError, UnicodeError) as e:
            raise InvalidError(f"not valid: {e}") from e

    def _decode_one(self, part: msgspec.Raw) -> ClientItem | BadItem:
        data = memoryview(part)
        try:
            return self.decode_item(data)
        except msgspec.ValidationError as e:
            loose = self.decode_value(data)
            if not isinstance(loose, dict) or loose.get("t") not in _TAGS:
                raise
            ref = loose.get("ref")
            if type(ref) is not int or not -REF_MAX <= ref <= REF_MAX:
                raise
            return BadItem(ref, str(e))

    def frame(self, items: Sequence[ServerItem]) -> bytes:
        """A whole frame of these items."""
        return frame_of(self.opcode, self.encode(items))

    def signal_data(self, raw: msgspec.Raw) -> bytes:
        """The data of a client's signal as JSON, written anew, so that nothing of the sender's making goes to others.
        InvalidError where it is too large, or cannot be said in both formats."""
        data = bytes(memoryview(raw))
        if len(data) > SIGNAL_BYTES_MAX:
            raise InvalidError(f"data has {len(data)} bytes: at most {SIGNAL_BYTES_MAX}")
        try:
            value = self.decode_value(data)
            _check_levels(value, SIGNAL_LEVELS_MAX)
            made = msgspec.json.encode(value)
            msgspec.msgpack.encode(msgspec.json.decode(made))
        except _BAD_DATA as e:
            raise InvalidError(f"data is no value that JSON and MessagePack can both say: {e}") from e
        return made


def _counted(items: list[ItemT], items_max: int) -> list[ItemT]:
    if not 1 <= len(items) <= items_max:
        raise InvalidError(f"a frame of {len(items)} items: 1 to {items_max} are allowed")
    return items


def _check_levels(value: object, left: int) -> None:
    """A reader's own bound of nests may be low, and what one connection cannot read nobody should be told."""
    if isinstance(value, list | dict):
        if not left:
            raise InvalidError(f"data is nested more than {SIGNAL_LEVELS_MAX} levels deep")
        for inner in value.values() if isinstance(value, dict) else value:
            _check_levels(inner, left - 1)


def frames_of(spoken: Format, items: Sequence[ServerItem], items_max: int) -> Iterator[bytes]:
    """Frames of all these items, each of a size that clients take."""
    for at in range(0, len(items), items_max):
        yield from _frames_of(spoken, items[at : at + items_max])


def _frames_of(spoken: Format, items: Sequence[ServerItem]) -> Iterator[bytes]:
    frame = spoken.frame(items)
    if len(items) == 1 or len(frame) <= FRAME_BYTES_MAX:
        yield frame
        return
    half = len(items) // 2
    yield from _frames_of(spoken, items[:half])
    yield from _frames_of(spoken, items[half:])


def frame_of(opcode: int, payload: bytes) -> bytes:
    """A server's frame."""
    size = len(payload)
    if size < _LENGTH_16:
        return bytes((_FIN | opcode, size)) + payload
    if size < 1 << 16:
        return bytes((_FIN | opcode, _LENGTH_16)) + size.to_bytes(2, "big") + payload
    return bytes((_FIN | opcode, _LENGTH_64)) + size.to_bytes(8, "big") + payload


def live_messages(rows: Iterable[MessageRow], texts_only: bool) -> list[LiveMessage]:
    """The rows of a page or a batch."""
    messages = []
    for row in rows:
        message = LiveMessage(
            row.conv_seq,
            format_client_msg_id(row.client_msg_id),
            row.sender,
            row.server_ts,
            row.topic,
            row.content_type,
            row.client_ts,
        )
        try:
            message.body = row.body.decode()
        except UnicodeDecodeError:
            if texts_only:
                message.body_base64 = base64.b64encode(row.body).decode()
            else:
                cast(Any, message).body = row.body  # msgspec describes no type that is text or bytes
        messages.append(message)
    return messages


def live_holes(holes: Sequence[tuple[int, int, str]]) -> list[LiveHole]:
    """Holes as they are told."""
    return [LiveHole(low, high, reason) for low, high, reason in holes]


def messages_item(batch: Batch, texts_only: bool) -> MessagesItem:
    """What a listener is told of a batch."""
    return MessagesItem(
        conv_id=batch.conv_id,
        after=batch.after,
        upto=batch.upto,
        stable_seq=batch.stable,
        messages=live_messages(batch.messages, texts_only),
        holes=live_holes(batch.holes),
    )


def notice_item(notice: Notice, to_format: Format) -> ServerItem:
    """What a listener is told of a notice."""
    if isinstance(notice, Behind):
        return BehindItem(notice.conv_id, notice.after, notice.head)
    if isinstance(notice, Ended):
        return EndedItem(notice.conv_id, notice.after, notice.reason.value)
    if isinstance(notice, HeadMoved):
        return HeadItem(notice.conv_id, notice.seq, notice.unread)
    data = _signal_data(notice.data, to_format)
    return SignalledItem(notice.conv_id, notice.sender, notice.kind, data)


@lru_cache(_SIGNALS_KEPT)
def _signal_data(data: bytes, to_format: Format) -> msgspec.Raw:
    if to_format.texts_only:
        return msgspec.Raw(data)
    return msgspec.Raw(msgspec.msgpack.encode(msgspec.json.decode(data)))


def _json_batch(batch: Batch) -> bytes:
    return JSON.frame([messages_item(batch, texts_only=True)])


def _msgpack_batch(batch: Batch) -> bytes:
    return MSGPACK.frame([messages_item(batch, texts_only=False)])


JSON: Final = Format(
    subprotocol="imray.v1.json",
    opcode=_TEXT,
    encode=msgspec.json.Encoder().encode,
    decode_items=msgspec.json.Decoder(list[ClientItem]).decode,
    decode_item=msgspec.json.Decoder(ClientItem).decode,
    decode_parts=msgspec.json.Decoder(list[msgspec.Raw]).decode,
    decode_value=msgspec.json.Decoder().decode,
    texts_only=True,
    encoder=_json_batch,
)
MSGPACK: Final = Format(
    subprotocol="imray.v1.msgpack",
    opcode=_BINARY,
    encode=msgspec.msgpack.Encoder().encode,
    decode_items=msgspec.msgpack.Decoder(list[ClientItem]).decode,
    decode_item=msgspec.msgpack.Decoder(ClientItem).decode,
    decode_parts=msgspec.msgpack.Decoder(list[msgspec.Raw]).decode,
    decode_value=msgspec.msgpack.Decoder().decode,
    texts_only=False,
    encoder=_msgpack_batch,
)
FORMATS: Final = {known.subprotocol: known for known in (JSON, MSGPACK)}
