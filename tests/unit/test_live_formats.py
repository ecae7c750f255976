"""The two formats of a live connection: what they take, what they refuse, and that both say the same."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.protocol import CLIENT, OPEN, Protocol

from api.live_formats import JSON, MSGPACK, SIGNAL_BYTES_MAX, Format, frame_of, live_holes, notice_item
from api.live_items import BadItem, PingItem, PongItem, SendItem, SignalItem
from imray.core.errors import InvalidError
from imray.engine.listening import Behind, Ended, EndReason, HeadMoved, Signal
from tests.support.live_system import batch_of

BOTH = pytest.mark.parametrize("spoken", [JSON, MSGPACK], ids=["json", "msgpack"])
SEND = {"t": "send", "ref": 1, "conv_id": "c", "client_msg_id": "x", "body": "hello"}


def plain(spoken: Format, data: bytes) -> Any:
    return (msgspec.json if spoken is JSON else msgspec.msgpack).decode(data)


def payload(frame: bytes) -> tuple[Opcode, bytes]:
    """What a client reads in a server's frame, with a reader that is not ours."""
    reader = Protocol(CLIENT, state=OPEN, max_size=None)
    reader.receive_data(frame)
    (read,) = reader.events_received()
    assert isinstance(read, Frame)
    assert read.fin
    return read.opcode, bytes(read.data)


@BOTH
def test_items_come_typed_and_in_their_order(spoken: Format) -> None:
    items = spoken.decode(spoken.encode([SEND, {"t": "ping", "ref": 2}]), 1000)
    assert items == [SendItem(1, "c", "x", "hello"), PingItem(2)]


@BOTH
@pytest.mark.parametrize(
    "items",
    [
        [],
        {"t": "ping", "ref": 1},
        [{"ref": 1}],
        [{"t": "pang", "ref": 1}],
        [{"t": 7, "ref": 1}],
        [{"t": "ping"}],
        [{"t": "ping", "ref": "1"}],
        [{"t": "ping", "ref": 1.5}],
        [{"t": "ping", "ref": 2**53}],
        [{"t": "ping", "ref": True}],
        [{"t": "signal", "conv_id": "c", "kind": 7, "data": 1}],
        [{"t": "welcome", "version": 1}],
        [{"t": "welcome", "version": 1, "ref": 1}],
        [{"t": "ping", "ref": 1}] * 11,
        [{"t": "ping", "ref": 1, "more": 1}] * 11,
        [{"t": "ping", "ref": 1, "more": 1}, {"t": "pang", "ref": 1}],
        [SEND, None],
    ],
)
def test_what_is_no_frame_of_known_items_is_malformed(spoken: Format, items: Any) -> None:
    with pytest.raises(InvalidError):
        spoken.decode(spoken.encode(items), 10)


@BOTH
@pytest.mark.parametrize(
    "item",
    [
        {"t": "ping", "ref": 7, "more": 2},
        {"t": "subscribe", "ref": 7, "conv_id": "c", "after": -1},
        {"t": "subscribe", "ref": 7, "conv_id": "c", "after": 2**63},
        {"t": "pull", "ref": 7, "conv_id": "c", "before": 0},
        {"t": "pull", "ref": 7, "conv_id": "c", "order": "sideways"},
        {"t": "send", "ref": 7},
        {"t": "auth", "ref": 7, "token": None},
    ],
)
def test_an_item_with_a_bad_field_costs_no_other_one(spoken: Format, item: dict[str, Any]) -> None:
    first, bad, last = spoken.decode(spoken.encode([SEND, item, {"t": "ping", "ref": 2}]), 10)
    assert (first, last) == (SendItem(1, "c", "x", "hello"), PingItem(2))
    assert isinstance(bad, BadItem)
    assert bad.ref == 7
    assert bad.why


@BOTH
def test_data_of_a_signal_is_nested_at_most_32_levels(spoken: Format) -> None:
    value: Any = 1
    for level in range(33):
        if level < 33 - 1:
            value = [value] if level % 2 else {"x": value}
    assert plain(JSON, _signal(spoken, spoken.encode(value))) == value
    with pytest.raises(InvalidError, match="32 levels"):
        _signal(spoken, spoken.encode([value]))


@BOTH
def test_half_a_frame_and_a_frame_with_more_behind_it_are_malformed(spoken: Format) -> None:
    whole = spoken.encode([SEND])
    for end in range(len(whole)):
        with pytest.raises(InvalidError):
            spoken.decode(whole[:end], 10)
    for more in (b"x", b"]", b"\xc0", whole):
        with pytest.raises(InvalidError):
            spoken.decode(whole + more, 10)


@pytest.mark.parametrize(
    ("spoken", "data"),
    [
        (JSON, b"[" * 100_000),
        (JSON, b'[{"t":"ping","ref":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}]"),
        (JSON, b'[{"t":"auth","token":"\xff"}]'),
        (JSON, b'[{"t":"ping","ref":' + b"9" * 5000 + b"}]"),
        (MSGPACK, b"\x91" * 100_000),
        (MSGPACK, b"\xdd\xff\xff\xff\xff"),
        (MSGPACK, b"\x91\x82\xa1t\xa4auth\xa5token\xa1\xff"),
        (MSGPACK, b"\x91\x83\xa1t\xa4ping\xa3ref\x01\xa1x" + b"\x91" * 100_000 + b"\xc0"),
    ],
)
def test_frames_made_to_break_a_decoder_are_malformed(spoken: Format, data: bytes) -> None:
    with pytest.raises(InvalidError):
        spoken.decode(data, 1000)


@BOTH
@given(data=st.binary(max_size=200))
def test_any_bytes_are_items_or_malformed(spoken: Format, data: bytes) -> None:
    try:
        items = spoken.decode(data, 1000)
    except InvalidError:
        return
    assert 1 <= len(items) <= 1000


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65_535, 65_536, 70_000])
def test_a_servers_frame_reads_as_it_was_made(size: int) -> None:
    assert payload(frame_of(Opcode.TEXT, b"x" * size)) == (Opcode.TEXT, b"x" * size)


@BOTH
def test_what_is_told_is_a_whole_frame_of_the_formats_kind(spoken: Format) -> None:
    kind, data = payload(spoken.frame([PongItem(1), PongItem(2)]))
    assert kind == spoken.opcode
    assert plain(spoken, data) == [{"t": "pong", "ref": 1}, {"t": "pong", "ref": 2}]


@BOTH
def test_a_batch_is_encoded_once_for_all_who_share_the_format(spoken: Format) -> None:
    batch = batch_of("c", 3, ["héllo".encode(), b"\xff\x00"])
    frame = batch.encoded(spoken.encoder)
    assert batch.encoded(spoken.encoder) is frame
    (item,) = plain(spoken, payload(frame)[1])
    first, second = item.pop("messages")
    assert item == {"t": "messages", "conv_id": "c", "after": 3, "upto": 5, "stable_seq": 5, "holes": []}
    assert first == {
        "conv_seq": 4,
        "client_msg_id": "00000000-0000-0000-0000-000000000000",
        "sender": "ada",
        "client_ts": 0,
        "server_ts": 0,
        "body": "héllo",
    }
    body = {"body_base64": "/wA="} if spoken is JSON else {"body": b"\xff\x00"}
    assert {name: second[name] for name in second if name.startswith("body")} == body


def test_holes_are_told_as_in_the_history() -> None:
    assert plain(JSON, JSON.encode(live_holes([(2, 4, "void")]))) == [{"from": 2, "to": 4, "reason": "void"}]


@BOTH
@pytest.mark.parametrize(
    ("notice", "told"),
    [
        (Behind("c", 1, 9), {"t": "behind", "conv_id": "c", "after": 1, "head": 9}),
        (Ended("c", 0, EndReason.REMOVED), {"t": "ended", "conv_id": "c", "after": 0, "reason": "removed"}),
        (HeadMoved("c", 5, 0), {"t": "head", "conv_id": "c", "seq": 5, "unread": 0}),
        (
            Signal("c", "ada", "typing", b'{"on":[true,null,1.5]}'),
            {"t": "signal", "conv_id": "c", "sender": "ada", "kind": "typing", "data": {"on": [True, None, 1.5]}},
        ),
    ],
)
def test_a_notice_is_told(spoken: Format, notice: Any, told: dict[str, Any]) -> None:
    assert plain(spoken, spoken.encode([notice_item(notice, spoken)])) == [told]


def _signal(spoken: Format, data: bytes) -> bytes:
    head = spoken.encode([{"t": "signal", "conv_id": "c", "kind": "k", "data": None}])
    nothing = spoken.encode(None)
    (item,) = spoken.decode(head.replace(nothing, data), 10)
    assert isinstance(item, SignalItem)
    return spoken.signal_data(item.data)


@BOTH
def test_a_signals_data_becomes_json_of_our_own_making(spoken: Format) -> None:
    value = {"a": [1, "é", None, 2.5], "b": {}}
    assert plain(JSON, _signal(spoken, spoken.encode(value))) == value
    assert _signal(JSON, b'{ "a" :\t1 }') == b'{"a":1}'


@pytest.mark.parametrize(
    ("spoken", "data"),
    [
        (JSON, b'"\xff"'),
        (JSON, b"1" * 100),
        (JSON, b"1e999"),
        (JSON, b'"' + b"x" * SIGNAL_BYTES_MAX + b'"'),
        (MSGPACK, b"\xa1\xff"),
        (MSGPACK, b"\x81\x91\x01\x01"),
        (MSGPACK, b"\xc7\x01\x05x"),
        (MSGPACK, msgspec.msgpack.encode("x" * SIGNAL_BYTES_MAX)),
    ],
)
def test_data_that_others_could_not_read_is_refused(spoken: Format, data: bytes) -> None:
    with pytest.raises(InvalidError):
        _signal(spoken, data)
