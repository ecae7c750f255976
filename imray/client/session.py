"""Follow one conversation: the reorder machine at work over a client.

Owns the loop that carries the machine's actions out. New messages are found by asking the history at an interval.
Does not own order (`imray.core.reorder`) or retries of one call (`imray.client.call`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from imray.client.http import AsyncClient
from imray.client.models import Hole, Message
from imray.core.errors import InvalidError, UnavailableError
from imray.core.reorder import Action, Deliver, Pull, Reorder, ReorderConfig, Skip, Void

POLL_INTERVAL_S = 1.0
PULL_MESSAGES_MAX = 500


class ConversationFollower:
    """Every message of a conversation after `last_shown`, in order, each once: `async for item in follower`.

    Items are `Message`, or `Hole` for numbers that will never be messages. It does not end by itself; while the
    server is away it waits. After an item is taken, `last_shown` is the number to store and to start again from.
    Raises what `AsyncClient.history` raises except UnavailableError.
    """

    def __init__(
        self,
        client: AsyncClient,
        conv_id: str,
        last_shown: int = 0,
        *,
        poll_interval_s: float = POLL_INTERVAL_S,
        config: ReorderConfig | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        if poll_interval_s <= 0:
            raise InvalidError("poll_interval_s must be positive")
        self.last_shown = last_shown
        self._client = client
        self._conv_id = conv_id
        self._poll_interval_s = poll_interval_s
        self._config = config or ReorderConfig()
        self._machine: Reorder[Message] = Reorder(self._config, last_shown)
        self._sleep = sleep
        self._clock_s = clock_s

    async def __aiter__(self) -> AsyncIterator[Message | Hole]:
        # An iteration that was left may have left a pull in flight: each one starts from what was taken.
        self._machine = Reorder(self._config, self.last_shown)
        actions = self._machine.subscribed(self._now_ms())
        while True:
            pull: Pull | None = None
            for action in actions:
                match action:
                    case Deliver(messages):
                        for seq, message in messages:
                            self.last_shown = seq
                            yield message
                    case Skip(void):
                        self.last_shown = void.to_seq
                        yield Hole(void.from_seq, void.to_seq, void.reason)
                    case Pull():
                        pull = action
            actions = await (self._pull(pull) if pull else self._wait())

    async def _pull(self, pull: Pull) -> list[Action[Message]]:
        before = None if pull.upto is None else pull.upto + 1
        try:
            page = await self._client.history(self._conv_id, pull.after, before, PULL_MESSAGES_MAX)
        except UnavailableError:
            return self._machine.pull_failed(self._now_ms())
        messages = [(message.conv_seq, message) for message in page.messages]
        holes = [Void(hole.from_seq, hole.to_seq, hole.reason) for hole in page.holes]
        return self._machine.pulled(messages, holes, page.stable_seq, page.next, self._now_ms())

    async def _wait(self) -> list[Action[Message]]:
        """Until the machine's timer, or where it has none until the next poll."""
        at_ms = self._machine.timer_at_ms
        if at_ms is None:
            await self._sleep(self._poll_interval_s)
            return self._machine.subscribed(self._now_ms())
        await self._sleep(max(0, at_ms - self._now_ms()) / 1000)
        return self._machine.tick(self._now_ms())

    def _now_ms(self) -> int:
        return int(self._clock_s() * 1000)
