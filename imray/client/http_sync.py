"""The client over httpx that blocks: `Client`, with the methods of `imray.client.http.AsyncClient`.

Owns connections, time-outs and sleeping. What is asked and when it is asked again is in `calls` and `call`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import pyarrow as pa

from imray.client.call import Call, HttpRequest, HttpResponse, NoAnswer, Pause, RetryPolicy
from imray.client.calls import Calls
from imray.client.calls_members import MemberCalls
from imray.client.follower import OnSignal
from imray.client.http import PAGE_MEMBERS, PAGE_MESSAGES, TIMEOUT_S
from imray.client.live_sync import Follower, Live
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


class Client:
    """imray over HTTP, blocking. The methods, their errors and the constructor are those of `AsyncClient`."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        retry: RetryPolicy | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock_s: Callable[[], float] = time.monotonic,
        unix_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        env = environment(timeout_s, retry, clock_s, unix_ms)
        self._calls = Calls(env)
        self._member_calls = MemberCalls(env)
        self._http = httpx.Client(transport=transport, **connection(url, token))
        self._sleep = sleep
        self._new_live = partial(Live, url, token, timeout_s=timeout_s, retry=retry)
        self._live: Live | None = None

    @property
    def live(self) -> Live:
        """See `AsyncClient.live`."""
        if self._live is None:
            self._live = self._new_live()
        return self._live

    def follow(
        self, conv_id: str, after: int | None = None, *, on_signal: OnSignal | None = None
    ) -> Follower[Message | Hole]:
        """See `AsyncClient.follow`."""
        return self.live.follow(conv_id, after, on_signal=on_signal)

    def send(
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
        """See `AsyncClient.send`."""
        message = Outgoing(
            conv_id=conv_id,
            body=body,
            client_msg_id=client_msg_id,
            content_type=content_type,
            topic=topic,
            client_ts=client_ts,
            sender=sender,
        )
        return self._run(self._calls.send(message))

    def send_batch(self, messages: Iterable[Outgoing | Mapping[str, Any]]) -> list[Outcome]:
        """See `AsyncClient.send_batch`."""
        return self._run(self._calls.send_batch(messages))

    def send_arrow(self, rows: pa.Table | pa.RecordBatch) -> pa.Table:
        """See `AsyncClient.send_arrow`."""
        return self._run(self._calls.send_arrow(rows))

    def history(
        self,
        conv_id: str,
        after: int = 0,
        before: int | None = None,
        limit: int = PAGE_MESSAGES,
        order: Order = "asc",
        topic: str | None = None,
    ) -> HistoryPage:
        """See `AsyncClient.history`."""
        return self._run(self._calls.history(conv_id, after, before, limit, order, topic))

    def iter_history(
        self,
        conv_id: str,
        after: int = 0,
        before: int | None = None,
        limit: int = PAGE_MESSAGES,
        order: Order = "asc",
        topic: str | None = None,
    ) -> Iterator[HistoryPage]:
        """See `AsyncClient.iter_history`."""
        at: tuple[int, int | None] | None = (after, before)
        while at is not None:
            page = self.history(conv_id, *at, limit, order, topic)
            yield page
            at = next_range(page, *at, order)

    def head(self, conv_id: str) -> Head:
        """See `AsyncClient.head`."""
        return self._run(self._calls.head(conv_id))

    def set_topics(self, conv_id: str, topics: int) -> int:
        """See `AsyncClient.set_topics`."""
        return self._run(self._calls.set_topics(conv_id, topics))

    def create_conversation(
        self, conv_id: str, *, public: bool = False, members: Iterable[Member | Mapping[str, Any]] = ()
    ) -> Creation:
        """See `AsyncClient.create_conversation`."""
        return self._run(self._member_calls.create(conv_id, public, members))

    def add_members(self, conv_id: str, members: Iterable[Member | Mapping[str, Any]]) -> MembersNow:
        """See `AsyncClient.add_members`."""
        return self._run(self._member_calls.add(conv_id, members))

    def remove_members(self, conv_id: str, users: Iterable[str]) -> MembersNow:
        """See `AsyncClient.remove_members`."""
        return self._run(self._member_calls.remove(conv_id, users))

    def members(self, conv_id: str, after: str | None = None, limit: int = PAGE_MEMBERS) -> MemberPage:
        """See `AsyncClient.members`."""
        return self._run(self._member_calls.page(conv_id, after, limit))

    def iter_members(self, conv_id: str, after: str | None = None, limit: int = PAGE_MEMBERS) -> Iterator[Member]:
        """See `AsyncClient.iter_members`."""
        while True:
            page = self.members(conv_id, after, limit)
            yield from page.members
            after = page.next
            if after is None:
                return

    def role(self, conv_id: str, user: str) -> MemberRole:
        """See `AsyncClient.role`."""
        return self._run(self._member_calls.role(conv_id, user))

    def mark_read(self, conv_id: str, seq: int) -> int:
        """See `AsyncClient.mark_read`."""
        return self._run(self._member_calls.mark_read(conv_id, seq))

    def read_cursor(self, conv_id: str) -> int:
        """See `AsyncClient.read_cursor`."""
        return self._run(self._member_calls.read_cursor(conv_id))

    def ready(self) -> Ready:
        """See `AsyncClient.ready`."""
        return self._run(self._calls.ready())

    def version(self) -> Version:
        """See `AsyncClient.version`."""
        return self._run(self._calls.version())

    def close(self) -> None:
        """Close the connections."""
        if self._live is not None:
            self._live.close()
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: Call[R]) -> R:
        reply: HttpResponse | NoAnswer | None = None
        try:
            while True:
                step = call.send(reply)
                if isinstance(step, Pause):
                    reply = None
                    self._sleep(step.pause_s)
                else:
                    reply = self._exchange(step)
        except StopIteration as done:
            result: R = done.value
            return result

    def _exchange(self, step: HttpRequest) -> HttpResponse | NoAnswer:
        """httpx's time-out starts again with every part received; the parts together must not take longer either."""
        started_s = time.monotonic()
        parts: list[bytes] = []
        try:
            with self._http.stream(**arguments(step), timeout=step.timeout_s) as answer:
                for part in answer.iter_bytes():
                    parts.append(part)
                    if time.monotonic() - started_s > step.timeout_s:
                        return NoAnswer(f"no whole answer within {step.timeout_s:.3g} s")
        except httpx.RequestError as e:
            return no_answer(e)
        return HttpResponse(answer.status_code, answer.headers, b"".join(parts))
