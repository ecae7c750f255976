"""The client over httpx for asyncio: `AsyncClient`. `imray.client.http_sync` has the same methods without it.

Owns connections, time-outs and sleeping. What is asked and when it is asked again is in `calls` and `call`; what is
followed goes over a live connection of its own (`live`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import pyarrow as pa

from imray.client.call import Call, HttpRequest, HttpResponse, NoAnswer, Pause, RetryPolicy
from imray.client.calls import Calls
from imray.client.calls_members import MemberCalls
from imray.client.follower import AsyncFollower, OnSignal
from imray.client.live import AsyncLive
from imray.client.models import (
    Creation,
    Head,
    HistoryPage,
    Hole,
    Member,
    MemberPage,
    MemberRole,
    MembersNow,
    Message,
    Order,
    Outcome,
    Outgoing,
    Ready,
    SendResult,
    Version,
)
from imray.client.wire import arguments, connection, environment, next_range, no_answer

R = TypeVar("R")
TIMEOUT_S = 30.0
PAGE_MESSAGES = 100
PAGE_MEMBERS = 100


class AsyncClient:
    """imray over HTTP, for asyncio. Use it as an async context manager, or call `aclose`.

    `url` and `token` default to the environment's IMRAY_URL and IMRAY_TOKEN. Every method raises:
    InvalidError (fix the input), AuthError (get another token), UnavailableError (no final answer within `timeout_s`,
    all tries together, or a retry was refused after a try that may have written; try later), ServerError (a person
    must look). What is passed as `sleep`, `clock_s`, `unix_ms` and `transport` replaces the real ones, for tests.
    """

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retry: RetryPolicy | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock_s: Callable[[], float] = time.monotonic,
        unix_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        env = environment(timeout_s, retry, clock_s, unix_ms)
        self._calls = Calls(env)
        self._member_calls = MemberCalls(env)
        # Time-outs are set around whole exchanges, since httpx's own start again with every byte received.
        self._http = httpx.AsyncClient(transport=transport, timeout=None, **connection(url, token))
        self._sleep = sleep
        self._new_live = partial(AsyncLive, url, token, timeout_s=timeout_s, retry=retry)
        self._live: AsyncLive | None = None

    @property
    def live(self) -> AsyncLive:
        """The live connection of this client, which is made with its first use and closed with the client."""
        if self._live is None:
            self._live = self._new_live()
        return self._live

    def follow(
        self, conv_id: str, after: int | None = None, *, on_signal: OnSignal | None = None
    ) -> AsyncFollower[Message | Hole]:
        """Every message above `after` (None: from now on), in order, each once, by push: `AsyncLive.follow`."""
        return self.live.follow(conv_id, after, on_signal=on_signal)

    async def send(
        self,
        conv_id: str,
        body: str,
        *,
        client_msg_id: str | None = None,
        content_type: str | None = None,
        topic: str | None = None,
        client_ts: int | None = None,
        sender: str | None = None,
    ) -> SendResult:
        """Store one message; it is durable when this returns. Retried with the same id until the deadline.

        Without `client_msg_id` one is made; pass your own where the send must survive this process.
        Raises ConflictError, and UnknownOutcomeError (an UnavailableError that carries the id)."""
        message = Outgoing(
            conv_id=conv_id,
            body=body,
            client_msg_id=client_msg_id,
            content_type=content_type,
            topic=topic,
            client_ts=client_ts,
            sender=sender,
        )
        return await self._run(self._calls.send(message))

    async def send_batch(self, messages: Iterable[Outgoing | Mapping[str, Any]]) -> list[Outcome]:
        """Store many messages; one outcome for each, in their order (refused ones are outcomes, not errors).

        Messages of one conversation are numbered in their order. Where some are not written at first (503, 504), only
        those are sent again: later ones of the same conversation may be numbered already, so look at `conv_seq`.
        Raises UnknownOutcomeError where some have no final outcome at the deadline, or where a retry of them was
        refused; it carries their ids and all outcomes."""
        return await self._run(self._calls.send_batch(messages))

    async def send_arrow(self, rows: pa.Table | pa.RecordBatch) -> pa.Table:
        """As `send_batch`, in columns: conv_id, client_msg_id (fixed_size_binary(16)), body (binary or utf8), and
        optionally sender, topic, content_type, client_ts (int64, ms).

        The answer's columns: status, conv_seq, duplicate, epoch, shard, segment, row, server_ts, stable_seq; its
        rows are those of the request."""
        return await self._run(self._calls.send_arrow(rows))

    async def history(
        self,
        conv_id: str,
        after: int = 0,
        before: int | None = None,
        limit: int = PAGE_MESSAGES,
        order: Order = "asc",
        topic: str | None = None,
    ) -> HistoryPage:
        """One page of the messages with after < conv_seq < before (None: to the end), final ones only; of one topic
        where `topic` is given: then a page may have fewer messages than `limit` and still a `next`."""
        return await self._run(self._calls.history(conv_id, after, before, limit, order, topic))

    async def iter_history(
        self,
        conv_id: str,
        after: int = 0,
        before: int | None = None,
        limit: int = PAGE_MESSAGES,
        order: Order = "asc",
        topic: str | None = None,
    ) -> AsyncIterator[HistoryPage]:
        """The pages of `history`, one after the other, `limit` messages each."""
        at: tuple[int, int | None] | None = (after, before)
        while at is not None:
            page = await self.history(conv_id, *at, limit, order, topic)
            yield page
            at = next_range(page, *at, order)

    async def head(self, conv_id: str) -> Head:
        """Where a conversation stands."""
        return await self._run(self._calls.head(conv_id))

    async def set_topics(self, conv_id: str, topics: int) -> int:
        """Spread a conversation over `topics` partitions (0: its home shard alone writes it); how many it has now.

        Needs a token with the role `service`."""
        return await self._run(self._calls.set_topics(conv_id, topics))

    async def create_conversation(
        self, conv_id: str, *, public: bool = False, members: Iterable[Member | Mapping[str, Any]] = ()
    ) -> Creation:
        """Create a conversation with members, 1,000 at most (then `add_members`); the caller is an owner, a service
        names one. `public`: anybody may pull and listen.

        Where it is so already, that is success. Raises ConflictError where it is there and different (nothing was
        written; the error names no message), or, after a try without an answer, UnavailableError: that try may have
        created it, and others may have changed it since. AuthError: it has messages, so only a service may."""
        return await self._run(self._member_calls.create(conv_id, public, members))

    async def add_members(self, conv_id: str, members: Iterable[Member | Mapping[str, Any]]) -> MembersNow:
        """Add members, or change the roles of those who are there. Needs an owner or a service.

        More than 1,000 go in several calls, in their order, each with `timeout_s` of its own. Where one fails, those
        before it hold, the failed one does as its error says (AuthError, InvalidError: not at all), and those after it
        were not asked. To call again with all of them is safe: what is so already is no change.
        InvalidError: nobody created the conversation, or it would be left without an owner."""
        return await self._run(self._member_calls.add(conv_id, members))

    async def remove_members(self, conv_id: str, users: Iterable[str]) -> MembersNow:
        """Remove members; who is none is no error. Needs an owner or a service, but for oneself.

        More than 1,000 go in several calls: what holds where one fails is as in `add_members`."""
        return await self._run(self._member_calls.remove(conv_id, users))

    async def members(self, conv_id: str, after: str | None = None, limit: int = PAGE_MEMBERS) -> MemberPage:
        """One page of the members after a user (None: from the first), 1,000 at most. For whom may listen.

        InvalidError: nobody created the conversation, or nobody knows the user `after`."""
        return await self._run(self._member_calls.page(conv_id, after, limit))

    async def iter_members(
        self, conv_id: str, after: str | None = None, limit: int = PAGE_MEMBERS
    ) -> AsyncIterator[Member]:
        """All members, each once, `limit` a page. A change meanwhile may be in it or not."""
        while True:
            page = await self.members(conv_id, after, limit)
            for member in page.members:
                yield member
            after = page.next
            if after is None:
                return

    async def role(self, conv_id: str, user: str) -> MemberRole:
        """A member's role. InvalidError: the user is no member, or nobody created the conversation."""
        return await self._run(self._member_calls.role(conv_id, user))

    async def mark_read(self, conv_id: str, seq: int) -> int:
        """Say that the caller has read up to `seq`; how far it has, now durable: that never goes back, so a device
        that is behind learns where the others are. InvalidError: the conversation does not go so far."""
        return await self._run(self._member_calls.mark_read(conv_id, seq))

    async def read_cursor(self, conv_id: str) -> int:
        """How far the caller has read, on whichever device; 0 where it has not said."""
        return await self._run(self._member_calls.read_cursor(conv_id))

    async def ready(self) -> Ready:
        """Whether every shard answers now; asked once, not retried. UnavailableError: no server is there."""
        return await self._run(self._calls.ready())

    async def version(self) -> Version:
        """Which imray the server is."""
        return await self._run(self._calls.version())

    async def aclose(self) -> None:
        """Close the connections."""
        if self._live is not None:
            await self._live.aclose()
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _run(self, call: Call[R]) -> R:
        reply: HttpResponse | NoAnswer | None = None
        try:
            while True:
                step = call.send(reply)
                if isinstance(step, Pause):
                    reply = None
                    await self._sleep(step.pause_s)
                else:
                    reply = await self._exchange(step)
        except StopIteration as done:
            result: R = done.value
            return result

    async def _exchange(self, step: HttpRequest) -> HttpResponse | NoAnswer:
        try:
            async with asyncio.timeout(step.timeout_s):
                answer = await self._http.request(**arguments(step))
        except TimeoutError:
            return NoAnswer(f"no whole answer within {step.timeout_s:.3g} s")
        except httpx.RequestError as e:
            return no_answer(e)
        return HttpResponse(answer.status_code, answer.headers, answer.content)
