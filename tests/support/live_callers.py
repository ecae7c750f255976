"""What the tests of the live client share: clients that lose no time, and lists of what was shown."""

from __future__ import annotations

import asyncio
from typing import Any

from imray.client import AsyncLive, Hole, Message, RetryPolicy
from imray.client.follower import AsyncFollower
from imray.core.delivery_conversation import DeliveryConfig
from tests.support.live_log import VOID
from tests.support.live_server import LiveServer

QUICK = DeliveryConfig(
    connect_timeout_ms=2_000,
    backoff_ms_min=5,
    backoff_ms_max=50,
    ping_interval_ms=200,
    ping_interval_ms_min=50,
    answer_timeout_ms=200,
    stall_timeout_ms=200,
    retry_ms_min=5,
    retry_ms_max=50,
)
RETRY = RetryPolicy(pause_s_min=0.005, pause_s_max=0.02)
WAIT_S = 20
"""The most that anything here may take."""


def live_of(server: LiveServer, **arguments: Any) -> AsyncLive:
    """A client of a server, quick to come back."""
    return AsyncLive(server.url, **{"token": "me", "retry": RETRY, "config": QUICK, "timeout_s": 10.0, **arguments})


def written(item: Message | Hole) -> str:
    """An item as one text."""
    if isinstance(item, Hole):
        assert item.reason == VOID
        return f"{item.from_seq}..{item.to_seq}"
    return f"{item.conv_seq} {item.body!s}"


async def some(follower: AsyncFollower[Message | Hole], count: int) -> list[str]:
    """The next so many items."""
    async with asyncio.timeout(WAIT_S):
        return [written(await anext(follower)) for _ in range(count)]


def expected(first: int, last: int) -> list[str]:
    """What `append` has stored under these numbers."""
    return [f"{n} m{n}" for n in range(first, last + 1)]


def append(server: LiveServer, count: int, conv_id: str = "tea") -> None:
    """Store so many messages more."""
    for _ in range(count):
        server.append(conv_id, f"m{len(server.log[conv_id]) + 1}")
