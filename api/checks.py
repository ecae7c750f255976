"""What a request must be before it may go further: JSON in, checked columns out. Refuses, never acts.

Arrow comes in at `api.arrow`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from starlette.requests import ClientDisconnect, Request
from starlette.types import Receive

from api.auth import SENDER_BYTES_MAX, Caller
from api.problems import ProblemError
from imray.core.errors import InvalidError
from imray.core.ids import ID_BYTES, parse_client_msg_id
from imray.core.routing import CONV_ID_BYTES_MAX, check_text
from imray.engine.sends import Send
from imray.log.schema import BATCH_SCHEMA, MS
from imray.settings import Settings

TOPIC_BYTES_MAX = 128
CONTENT_TYPE_BYTES_MAX = 255
CLIENT_TS_MAX = 2**53 - 1
"""The largest whole number that every reader of JSON takes exactly."""
_LENGTH_DIGITS_MAX = 20
_CLIENT_TS_HELP = f"client_ts must be a whole number from 0 to {CLIENT_TS_MAX} (ms since 1970 UTC)"
_CONTROL = re.compile("[\\x00-\\x1f\\x7f]")
_ESCAPES = 6
"""One byte of text may take six in JSON (a \\u escape)."""
_ENVELOPE_BYTES = 4096
"""Beside the body, in the JSON of one message."""


class MessageIn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """`api.schemas.SendRequest` as the hot path decodes it; a test holds the two together."""

    client_msg_id: str
    body: str
    content_type: str | None = None
    topic: str | None = None
    client_ts: int | float | None = None
    sender: str | None = None


class BatchMessageIn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """`api.schemas.BatchMessage` as the hot path decodes it."""

    conv_id: str
    client_msg_id: str
    body: str
    content_type: str | None = None
    topic: str | None = None
    client_ts: int | float | None = None
    sender: str | None = None


class BatchIn(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """`api.schemas.BatchRequest` as the hot path decodes it."""

    messages: list[BatchMessageIn]


class SendFields(Protocol):
    """What a message says, however it came."""

    client_msg_id: str
    body: str
    content_type: str | None
    topic: str | None
    client_ts: int | float | None
    sender: str | None


_decode_message = msgspec.json.Decoder(MessageIn).decode
_decode_batch = msgspec.json.Decoder(BatchIn).decode


def media_type(content_type: str | None, *known: str) -> str:
    """The media type that a header names, the first known one where there is none; ProblemError 415 for any other."""
    if content_type is None or content_type == known[0]:
        return known[0]
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in known:
        raise ProblemError(415, "media-type", f"content type {kind!r}: send {' or '.join(known)}")
    return kind


def invalid(detail: str) -> ProblemError:
    """422: the caller must fix the request."""
    return ProblemError(422, "invalid", detail)


async def read_body(request: Request, bytes_max: int) -> bytes:
    """As `receive_body`."""
    return await receive_body(request.headers.get("content-length"), request.receive, bytes_max)


async def receive_body(length: str | None, receive: Receive, bytes_max: int) -> bytes:
    """The request's body; 413 as soon as it is known to be too large, before it is read whole. `length`: the header."""
    # longer ones are refused as a number before they are one: thousands of digits are an error of their own
    if length is not None and length.isdecimal() and (len(length) > _LENGTH_DIGITS_MAX or int(length) > bytes_max):
        raise _request_too_large(bytes_max)
    chunks: list[bytes] = []
    size = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(chunk)
        if size > bytes_max:
            raise _request_too_large(bytes_max)
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _request_too_large(bytes_max: int) -> ProblemError:
    return ProblemError(413, "too-large", f"the request has more than {bytes_max} bytes: send less at once")


def single_bytes_max(settings: Settings) -> int:
    """How large the JSON of one message may be."""
    return settings.body_bytes_max * _ESCAPES + _ENVELOPE_BYTES


def check_message(data: bytes, conv_id: str, caller: Caller, settings: Settings) -> Send:
    """The message in the JSON of a single send."""
    try:
        message = _decode_message(data)
    except msgspec.ValidationError as e:
        raise invalid(str(e)) from e
    except (msgspec.DecodeError, UnicodeError) as e:
        raise ProblemError(400, "invalid", f"not valid JSON: {e}") from e
    return check_send(message, conv_id, caller, settings)


def check_send(message: SendFields, conv_id: str, caller: Caller, settings: Settings) -> Send:
    """The message as it goes on; ProblemError where a field is out of bounds."""
    try:
        _check_text(conv_id, "conv_id", CONV_ID_BYTES_MAX)
        body = message.body.encode()
        raw = parse_client_msg_id(message.client_msg_id)
        client_ts = None if message.client_ts is None else _client_ts(message.client_ts)
        if message.topic is not None:
            _check_text(message.topic, "topic", TOPIC_BYTES_MAX)
        if message.content_type is not None:
            _check_text(message.content_type, "content_type", CONTENT_TYPE_BYTES_MAX)
    except UnicodeError as e:
        raise ProblemError(400, "invalid", f"not valid JSON: {e}") from e
    except InvalidError as e:
        raise invalid(str(e)) from e
    check_size(len(body), settings, "the body")
    sender = _sender(message.sender, caller)
    return Send(
        conv_id=conv_id,
        client_msg_id=raw,
        sender=sender,
        topic=message.topic,
        content_type=message.content_type,
        client_ts=client_ts,
        body=body,
    )


def check_batch_json(data: bytes, caller: Caller, settings: Settings) -> tuple[pa.RecordBatch, list[str]]:
    """The columns of a JSON batch, and its conv_ids by row."""
    try:
        messages = _decode_batch(data).messages
    except msgspec.ValidationError as e:
        raise invalid(str(e)) from e
    except (msgspec.DecodeError, UnicodeError) as e:
        raise ProblemError(400, "invalid", f"not valid JSON: {e}") from e
    check_count(len(messages), settings)
    conv_ids = [m.conv_id for m in messages]
    try:
        ids = b"".join([parse_client_msg_id(m.client_msg_id) for m in messages])
    except InvalidError:
        raise _first_bad(messages) from None
    try:
        bodies = pa.array([m.body for m in messages], pa.string()).view(pa.binary())
        texts = [
            pa.array(values, pa.string()).dictionary_encode()
            for values in (
                conv_ids,
                [_sender(m.sender, caller) for m in messages],
                [m.topic for m in messages],
                [m.content_type for m in messages],
            )
        ]
        stamps = pa.array([None if m.client_ts is None else _client_ts(m.client_ts) for m in messages], pa.int64())
    except (UnicodeError, pa.ArrowInvalid) as e:
        raise invalid(f"a text is not valid Unicode: {e}") from e
    except InvalidError as e:
        raise invalid(str(e)) from e
    columns = [texts[0], ids_array(ids, len(messages)), *texts[1:], stamps.view(MS), bodies]
    batch = pa.record_batch(columns, schema=BATCH_SCHEMA)
    check_columns(batch, settings)
    return batch, conv_ids


def check_columns(batch: pa.RecordBatch, settings: Settings) -> None:
    """Refuse a batch in which a text, a size or a time is out of bounds. 413 for a body over the limit."""
    try:
        for name, bytes_max in (
            ("conv_id", CONV_ID_BYTES_MAX),
            ("sender", SENDER_BYTES_MAX),
            ("topic", TOPIC_BYTES_MAX),
            ("content_type", CONTENT_TYPE_BYTES_MAX),
        ):
            _check_texts(batch.column(name).dictionary, name, bytes_max)
    except InvalidError as e:
        raise invalid(str(e)) from e
    stamps = batch.column("client_ts").cast(pa.int64())
    if len(stamps) > stamps.null_count:
        low, high = pc.min_max(stamps).values()
        if low.as_py() < 0 or high.as_py() > CLIENT_TS_MAX:
            raise invalid(_CLIENT_TS_HELP)
    largest = pc.max(pc.binary_length(batch.column("body"))).as_py()
    check_size(largest, settings, "the largest body")


def _check_texts(texts: pa.Array, name: str, bytes_max: int) -> None:
    """As `check_text` for each; together, since one by one they take longer than all else that a batch needs."""
    known = texts.to_pylist()
    if known and not texts.null_count:
        # of ASCII, the length in characters is the one in bytes
        joined = "".join(known)
        sizes = list(map(len, known))
        if joined.isascii() and min(sizes) >= 1 and max(sizes) <= bytes_max and not _CONTROL.search(joined):
            return
    for text in known:
        check_text(text, name, bytes_max)


def ids_array(raw: bytes, rows: int) -> pa.Array:
    """The column of ids that stand one after the other."""
    return pa.Array.from_buffers(pa.binary(ID_BYTES), rows, [None, pa.py_buffer(raw)])


def _first_bad(messages: Sequence[BatchMessageIn]) -> ProblemError:
    for i, m in enumerate(messages):
        try:
            parse_client_msg_id(m.client_msg_id)
        except InvalidError as e:
            return invalid(f"message {i}: {e}")
    raise AssertionError("all ids are valid")


def _check_text(text: str, name: str, bytes_max: int) -> None:
    """As `check_text`, which looks at each character."""
    # of ASCII, the length in characters is the one in bytes, and what is not printable is a control character
    if not (text.isascii() and text.isprintable() and 1 <= len(text) <= bytes_max):
        check_text(text, name, bytes_max)


def _client_ts(value: int | float) -> int:
    if not 0 <= value <= CLIENT_TS_MAX:
        raise InvalidError(_CLIENT_TS_HELP)
    return whole(value, "client_ts")


def whole(value: int | float, name: str) -> int:
    """A number of JSON as the whole number it is: 4.0 is 4 (JSON Schema says so, too). InvalidError for 4.5."""
    if isinstance(value, float) and not value.is_integer():
        raise InvalidError(f"{name}={value} is not a whole number")
    return int(value)


def check_count(count: int, settings: Settings) -> None:
    """Refuse a request without messages, or with too many."""
    if not count:
        raise invalid("no messages: send at least one")
    if count > settings.batch_messages_max:
        raise ProblemError(
            413, "too-large", f"{count} messages at once: at most {settings.batch_messages_max}, send several batches"
        )


def check_size(size: int, settings: Settings, what: str) -> None:
    """Refuse a body that is too large."""
    if size > settings.body_bytes_max:
        raise ProblemError(
            413,
            "too-large",
            f"{what} has {size} bytes: at most {settings.body_bytes_max}, send a link to a file instead",
        )


def _sender(named: str | None, caller: Caller) -> str:
    if named is None or named == caller.sender:
        return caller.sender
    if not caller.service:
        raise not_service()
    try:
        _check_text(named, "sender", SENDER_BYTES_MAX)
    except InvalidError as e:
        raise invalid(str(e)) from e
    return named


def not_service() -> ProblemError:
    """403: the caller may not speak for others."""
    return ProblemError(403, "forbidden", "only a token with the role `service` may name the sender")
