"""What goes over a live connection: frames of items, in the format that both sides speak, and what the items are.

Owns the two formats of docs/live.md and how an item of the server is read. Does not own what an item means
(`imray.core.delivery`, `imray.client.live_asks`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from imray.client.models import Message
from imray.core import delivery_items as heard
from imray.core.errors import InvalidError
from imray.core.reorder import Void

PATH = "/v1/ws"
_FRAME_BYTES_MIN = 4_096
"""Every item but a send fits in it: a server that takes less is not to be believed."""
READ_ERRORS = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError, msgspec.MsgspecError)
"""What reading raises where a frame is not what the contract says; RecursionError: it is nested too deeply."""


@dataclass(frozen=True)
class LiveFormat:
    """One sub-protocol. Items are encoded one by one, so that a frame can be filled up to its bounds."""

    name: str
    is_text: bool
    encode: Callable[[Any], bytes]
    decode: Callable[[str | bytes], Any]
    join: Callable[[Sequence[bytes]], bytes]
    head_bytes_max: int
    """What a frame has beside its items, and each item beside itself at the most."""

    def items_of(self, frame: str | bytes) -> list[dict[str, Any]]:
        """The items of a frame."""
        items = self.decode(frame)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise ValueError("a frame must be an array of maps")
        return items

    def encoded(self, item: Mapping[str, Any]) -> bytes:
        """An item's bytes; InvalidError for values that the format does not have."""
        try:
            return self.encode(item)
        except (TypeError, ValueError, OverflowError, RecursionError) as e:
            raise InvalidError(f"it cannot be written as {self.name}: {e}") from e

    def frame_of(self, items: Sequence[bytes]) -> str | bytes:
        """A frame with these items."""
        frame = self.join(items)
        return frame.decode() if self.is_text else frame


def _join_json(items: Sequence[bytes]) -> bytes:
    return b"[" + b",".join(items) + b"]"


def _join_msgpack(items: Sequence[bytes]) -> bytes:
    count = len(items)
    head = bytes([0x90 | count]) if count < 16 else b"\xdc" + struct.pack(">H", count)
    return head + b"".join(items)


MSGPACK = LiveFormat(
    name="imray.v1.msgpack",
    is_text=False,
    encode=msgspec.msgpack.Encoder().encode,
    decode=msgspec.msgpack.Decoder().decode,  # type: ignore[arg-type]
    join=_join_msgpack,
    head_bytes_max=3,
)
JSON = LiveFormat(
    name="imray.v1.json",
    is_text=True,
    encode=msgspec.json.Encoder().encode,
    decode=msgspec.json.Decoder().decode,
    join=_join_json,
    head_bytes_max=2,
)
FORMATS = {known.name: known for known in (MSGPACK, JSON)}
"""In the order in which the client asks for them."""


@dataclass(frozen=True)
class Welcome:
    """What a server says of itself and of the connection."""

    sender: str
    items_max: int
    frame_bytes_max: int

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Welcome:
        frame_bytes_max = max(_FRAME_BYTES_MIN, int(item["frame_bytes_max"]))
        return cls(str(item["sender"]), max(1, int(item["items_max"])), frame_bytes_max)


def heard_item(item: Mapping[str, Any]) -> heard.HeardItem[Message] | None:
    """An item of the server as the delivery session takes it; None: it is none of the session's.

    Raises one of READ_ERRORS where it is not what the contract says."""
    reader = _READERS.get(item["t"])
    return None if reader is None else reader(item)


def written(action: heard.Subscribe | heard.Unsubscribe | heard.Ping) -> Mapping[str, Any]:
    """An action of the session as an item of the client."""
    match action:
        case heard.Subscribe(_, ref, conv_id, after, passive):
            return {"t": "subscribe", "ref": ref, "conv_id": conv_id, "after": after, "passive": passive}
        case heard.Unsubscribe(_, ref, conv_id):
            return {"t": "unsubscribe", "ref": ref, "conv_id": conv_id}
        case heard.Ping(_, ref):
            return {"t": "ping", "ref": ref}


def ms_of(seconds: object) -> int:
    """Seconds of the wire as milliseconds."""
    return int(float(seconds) * 1000)  # type: ignore[arg-type]


def error_heard(item: Mapping[str, Any]) -> heard.ErrorHeard:
    """A refusal."""
    ref = item.get("ref")
    return heard.ErrorHeard(
        ref=None if ref is None else int(ref),
        status=int(item["status"]),
        detail=str(item.get("detail") or item.get("kind") or "no detail"),
        retry_after_ms=ms_of(item.get("retry_after_s") or 0),
    )


def _conv_id(item: Mapping[str, Any]) -> str:
    """What is looked up must be what it is said to be."""
    conv_id = item["conv_id"]
    if not isinstance(conv_id, str):
        raise TypeError(f"conv_id is {type(conv_id).__name__}")
    return conv_id


def _numbered(message: Message) -> tuple[int, Message]:
    if not isinstance(message.conv_seq, int):
        raise TypeError(f"conv_seq is {type(message.conv_seq).__name__}")
    return message.conv_seq, message


def _messages(item: Mapping[str, Any]) -> heard.MessagesHeard[Message]:
    return heard.MessagesHeard(
        conv_id=_conv_id(item),
        after=int(item["after"]),
        upto=int(item["upto"]),
        stable_seq=int(item["stable_seq"]),
        messages=[_numbered(Message.of(message)) for message in item["messages"]],
        holes=[Void(int(hole["from"]), int(hole["to"]), str(hole["reason"])) for hole in item["holes"]],
    )


def _subscribed(item: Mapping[str, Any]) -> heard.SubscribedHeard:
    return heard.SubscribedHeard(
        ref=int(item["ref"]),
        conv_id=_conv_id(item),
        after=int(item["after"]),
        stable_seq=int(item["stable_seq"]),
        epoch=int(item["epoch"]),
    )


_READERS: dict[str, Callable[[Mapping[str, Any]], heard.HeardItem[Message]]] = {
    "welcome": lambda item: heard.WelcomeHeard(ms_of(item["ping_interval_s"])),
    "subscribed": _subscribed,
    "messages": _messages,
    "head": lambda item: heard.HeadHeard(_conv_id(item), int(item["seq"]), int(item["unread"])),
    "behind": lambda item: heard.BehindHeard(_conv_id(item), int(item["after"]), int(item["head"])),
    "ended": lambda item: heard.EndedHeard(_conv_id(item), int(item["after"]), str(item["reason"])),
    "error": error_heard,
    "drain": lambda item: heard.DrainHeard(ms_of(item["reconnect_in_s"])),
    "expiring": lambda item: heard.ExpiringHeard(),
}
