"""What the load generators of live delivery send, and what they read out of frames without decoding them."""

from __future__ import annotations

import msgspec
import pytest

from api.live_formats import FORMATS
from api.live_items import AckItem, ErrorItem, LiveMessage, MessagesItem, PongItem, SendItem
from benchmarks.push_frames import BadFrameError, SendFrame, acks_in, items_of, latencies_of, span_of
from benchmarks.push_wire import JSON, MSGPACK


def payload_of(frame: bytes) -> bytes:
    """A client's frame without its head; it is masked with zeros."""
    size = frame[1] & 0x7F
    start = {126: 4, 127: 10}.get(size, 2)
    assert frame[start : start + 4] == bytes(4)
    return frame[start + 4 :]


def acks(subprotocol: str, count: int, duplicate: bool = False) -> bytes:
    items = [AckItem(10_000 + i, "room", i + 1, "a" * 32, duplicate, 1, 2, i + 1) for i in range(count)]
    return FORMATS[subprotocol].encode(items)


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_a_frame_is_what_the_server_takes_and_its_ids_are_new(subprotocol: str, count: int) -> None:
    frame = SendFrame(subprotocol, "room", count, sender="ann")
    first, second = payload_of(frame.next(1.5)), payload_of(frame.next(2.5))
    spoken = FORMATS[subprotocol]
    sent = [*spoken.decode(first, 1000), *spoken.decode(second, 1000)]
    assert all(isinstance(item, SendItem) for item in sent)
    assert {item.conv_id for item in sent} == {"room"}  # type: ignore[union-attr]
    assert {item.sender for item in sent} == {"ann"}  # type: ignore[union-attr]
    assert len({item.client_msg_id for item in sent}) == 2 * count  # type: ignore[union-attr]
    assert len({item.ref for item in sent}) == count
    assert {len(item.body) for item in sent} == {100}  # type: ignore[union-attr]
    assert {item.body[:20] for item in sent} == {f"{1_500_000_000:020d}", f"{2_500_000_000:020d}"}  # type: ignore[union-attr]


@pytest.mark.parametrize("subprotocol", [JSON, MSGPACK])
def test_acks_are_counted_and_only_those_of_new_messages_count(subprotocol: str) -> None:
    assert acks_in(subprotocol, acks(subprotocol, 7)) == 7
    assert acks_in(subprotocol, FORMATS[subprotocol].encode([PongItem(1)])) == 0
    with pytest.raises(BadFrameError):
        acks_in(subprotocol, acks(subprotocol, 1, duplicate=True))
    with pytest.raises(BadFrameError):
        acks_in(subprotocol, FORMATS[subprotocol].encode([ErrorItem(503, "unavailable", "x", 10_000)]))


def test_an_item_of_messages_says_what_it_spans_and_when_they_were_sent() -> None:
    sent = payload_of(SendFrame(JSON, "room", 2).next(10.0))
    told = [
        LiveMessage(8 + i, item["client_msg_id"], "ann", 5, body=item["body"]) for i, item in enumerate(items_of(sent))
    ]
    payload = FORMATS[JSON].encode([MessagesItem("room", 7, 9, 9, told, [])])
    assert span_of(payload) == (7, 9)
    assert latencies_of(payload, 10.25) == [0.25, 0.25]
    assert span_of(FORMATS[JSON].encode([PongItem(1)])) is None
    assert msgspec.json.decode(payload) == items_of(payload)
