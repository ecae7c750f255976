"""Whatever a server sends: a frame is taken, or refused as a whole; nothing is raised, nothing is out of order."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from imray.client import AsyncLive, Message
from imray.client.live_socket import LiveSocket
from imray.client.live_wire import FORMATS, READ_ERRORS
from imray.core.delivery_items import SubscribedHeard, WelcomeHeard

KINDS = (
    *("welcome", "ack", "error", "subscribed", "messages", "head", "behind", "ended", "page", "signal", "ok", "pong"),
    *("expiring", "drain", "unknown"),
)
small = st.integers(-2, 6)
texts = st.sampled_from(["tea", "coffee", "", "removed", "unavailable"])
anything = st.recursive(
    st.none() | st.booleans() | small | st.floats() | texts | st.integers(-(2**63), 2**63),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
messages = st.fixed_dictionaries(
    {"conv_seq": small, "client_msg_id": texts, "sender": texts, "server_ts": small, "body": texts},
)
holes = st.fixed_dictionaries({"from": small, "to": small, "reason": texts})
fields: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(("ref", "after", "upto", "stable_seq", "epoch", "seq", "unread", "head", "live", "status"), small),
    **dict.fromkeys(("conv_id", "reason", "detail", "kind", "sender"), texts),
    **dict.fromkeys(("ping_interval_s", "reconnect_in_s", "retry_after_s"), small | st.floats()),
    **dict.fromkeys(("items_max", "frame_bytes_max"), small),
    "messages": st.lists(messages, max_size=4),
    "holes": st.lists(holes, max_size=3),
}
plausible = st.fixed_dictionaries({"t": st.sampled_from(KINDS), **fields})
strange = st.fixed_dictionaries(
    {"t": st.sampled_from(KINDS) | anything}, optional=dict.fromkeys([*fields, "body"], anything)
)
frames = st.lists(plausible | strange, min_size=1, max_size=6)


async def hear(frame: list[dict[str, Any]]) -> None:
    live = AsyncLive("http://127.0.0.1:9", "t")
    driver = live._driver
    session = driver.session
    session.start(0)
    driver._sockets[1] = LiveSocket()
    driver._sockets[1]._frame_bytes_max = 1_000_000
    driver._ticker = asyncio.create_task(asyncio.sleep(0))
    follower = live.follow("tea", 0, on_signal=lambda _: None)
    session.item(1, WelcomeHeard(20_000), 0)
    session.item(1, SubscribedHeard(1, "tea", 0, 0, 1), 0)
    driver._connect_timeout_s = 0.01
    assert driver._hear(1, driver._sockets[1], frame) in (True, False)
    cursor = 0
    for item in follower._waiting:
        first = item.conv_seq if isinstance(item, Message) else item.from_seq
        assert first == cursor + 1
        cursor = item.conv_seq if isinstance(item, Message) else item.to_seq
    for task in list(driver._tasks):
        task.cancel()
    driver._tasks.clear()
    await driver._ticker


@settings(max_examples=200, deadline=None)
@given(frames)
def test_no_frame_breaks_the_client(frame: list[dict[str, Any]]) -> None:
    asyncio.run(hear(frame))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(list(FORMATS.values())), st.binary(max_size=60))
def test_no_bytes_break_a_format(spoken: Any, data: bytes) -> None:
    for frame in (data, b"[" + data + b"]", b"\x92" + data):
        try:
            items = spoken.items_of(frame)
        except READ_ERRORS:
            continue
        assert all(isinstance(item, dict) for item in items)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(list(FORMATS.values())), st.lists(st.fixed_dictionaries({"t": texts, "ref": small}), min_size=1))
def test_items_that_are_joined_are_the_frame(spoken: Any, sent: list[dict[str, Any]]) -> None:
    assert spoken.items_of(spoken.frame_of([spoken.encoded(item) for item in sent])) == sent
