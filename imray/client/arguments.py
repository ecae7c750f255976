"""What an argument must be before anything is written: its type, and the bounds of docs/live.md and the HTTP contract.

Owns what the server could only refuse, where its settings have no say. Over a live connection it matters: an item that
the server cannot read costs the connection (`imray.client.live_asks`). Raises InvalidError that says what is allowed.
"""

from __future__ import annotations

from typing import Any, get_args

from imray.client.live_wire import FORMATS, JSON
from imray.client.models import Order, Outgoing
from imray.core.errors import InvalidError
from imray.core.pages import SEQ_MAX
from imray.core.routing import CONV_ID_BYTES_MAX, check_text

TOPIC_BYTES_MAX = 128
CONTENT_TYPE_BYTES_MAX = 255
SENDER_BYTES_MAX = 128
CLIENT_TS_MAX = 2**53 - 1
KIND_BYTES_MAX = 32
SIGNAL_BYTES_MAX = 1024
_EXCERPT_CHARS_MAX = 60
_ORDERS = get_args(Order)


def check_number(value: object, name: str, low: int, high: int) -> None:
    """A whole number within bounds. True and 1.0 are none: what the server reads is not what Python calls equal."""
    if not _is_whole(value, low, high):
        raise InvalidError(f"{name} is {_excerpt(value)}: a whole number from {low} to {high} is allowed")


def check_words(value: object, name: str, bytes_max: int) -> None:
    """Text within bounds."""
    if not isinstance(value, str):
        raise InvalidError(f"{name} is {_excerpt(value)}: text of 1 to {bytes_max} bytes of UTF-8 is allowed")
    check_text(value, name, bytes_max)


def check_conversation(conv_id: object) -> None:
    """The name of a conversation."""
    check_words(conv_id, "conv_id", CONV_ID_BYTES_MAX)


def check_place(conv_id: object, after: object) -> None:
    """A conversation and where in it to begin; None: from now on."""
    check_conversation(conv_id)
    if after is not None:
        check_number(after, "after", 0, SEQ_MAX)


def check_page(conv_id: object, after: object, before: object, limit: object, order: object, topic: object) -> None:
    """Of a page."""
    check_conversation(conv_id)
    check_number(after, "after", 0, SEQ_MAX)
    if before is not None:
        check_number(before, "before", 1, SEQ_MAX)
    if not _is_whole(limit, 1, SEQ_MAX):
        allowed = "a whole number from 1 to what the server is set to (10,000, where nobody has changed it)"
        raise InvalidError(f"limit is {_excerpt(limit)}: {allowed} is allowed")
    if order not in _ORDERS:
        raise InvalidError(f"order is {_excerpt(order)}: asc or desc is allowed")
    if topic is not None:
        check_words(topic, "topic", TOPIC_BYTES_MAX)


def check_message(message: Outgoing) -> None:
    """Of a message, but for its id. How large a body may be is a setting of the server."""
    check_conversation(message.conv_id)
    if not isinstance(message.body, str):
        raise InvalidError("body must be str; bytes that are no UTF-8 text go by send_arrow")
    if message.client_msg_id is not None and not isinstance(message.client_msg_id, str):
        raise InvalidError(
            f"client_msg_id is {_excerpt(message.client_msg_id)}: a UUID, ULID or base64 as text is allowed"
        )
    if not message.body.isascii():
        try:
            message.body.encode()
        except UnicodeEncodeError as e:
            raise InvalidError("body is not valid Unicode: it holds a lone surrogate") from e
    if message.topic is not None:
        check_words(message.topic, "topic", TOPIC_BYTES_MAX)
    if message.content_type is not None:
        check_words(message.content_type, "content_type", CONTENT_TYPE_BYTES_MAX)
    if message.sender is not None:
        check_words(message.sender, "sender", SENDER_BYTES_MAX)
    if message.client_ts is not None:
        check_number(message.client_ts, "client_ts", 0, CLIENT_TS_MAX)


def check_signal(conv_id: object, kind: object, data: Any) -> None:
    """Of a signal: its data can be written in every format, and is small."""
    check_conversation(conv_id)
    check_words(kind, "kind", KIND_BYTES_MAX)
    try:
        size = len(JSON.encoded(data))
        for spoken in FORMATS.values():
            spoken.encoded(data)
    except InvalidError as e:
        raise InvalidError(f"data: {e}") from e
    if size > SIGNAL_BYTES_MAX:
        raise InvalidError(f"data has {size} bytes: at most {SIGNAL_BYTES_MAX} are allowed, as JSON")


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _excerpt(value: object) -> str:
    """A value in an error: not whole, where it is long."""
    if isinstance(value, int) and abs(value) >= 10**_EXCERPT_CHARS_MAX:
        return "a number of too many digits"  # Python refuses to write the longest
    shown = repr(value[:_EXCERPT_CHARS_MAX]) if isinstance(value, str | bytes) else repr(value)
    return shown if len(shown) <= _EXCERPT_CHARS_MAX else shown[: _EXCERPT_CHARS_MAX - 1] + "…"
