"""Calls to shards and partitions: deadlines, retries with the same ids, answers of older incarnations refused.

Owns what a caller may conclude from an answer, or from none. Does not own connections (`imray.rpc.channel`), nor where
a log's writer runs (a `Directory`).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Protocol, TypeVar

import pyarrow as pa

from imray.core.replies import Appended, Located, Refusal, Refused
from imray.core.routing import log_of
from imray.core.status import MergerStatus, PartitionStatus, ShardStatus, no_partition_answer, no_shard_answer
from imray.rpc import messages
from imray.rpc.channel import Channel, answer_or_refusal
from imray.rpc.directory import MERGER, Directory
from imray.rpc.endpoint import Parts
from imray.rpc.methods import Method
from imray.rpc.publications import SignalArgs, SubscribeArgs, SubscribedMarks, decode_subscribe_answer
from imray.settings import Settings

_DOUBT_S = 3.0
_TRY_S_MIN = 0.05
"""A try gets so long even where the deadline has all but passed."""

AnswerT = TypeVar("AnswerT")


class HasEpoch(Protocol):
    """An answer that says which incarnation gave it."""

    @property
    def epoch(self) -> int:
        """Of the shard's writer."""


ReadT = TypeVar("ReadT", bound=HasEpoch)


class Unasked(Protocol):
    """Who takes what writers send unasked: `imray.engine.feeds.Feeds`."""

    def on_push(self, log: int, method: Method, content: memoryview) -> None:
        """A log's writer sent something."""

    def on_lost(self, log: int) -> None:
        """What it was asked to send does not come any more."""


class LogClient:
    """Calls to the writer of one log, whichever process that is. Belongs to one event loop."""

    def __init__(
        self,
        directory: Directory,
        number: int,
        name: str,
        settings: Settings,
        tls: ssl.SSLContext | None = None,
        unasked: Unasked | None = None,
    ) -> None:
        """`number` is the log's, `name` what its writer is called in error texts. `unasked` gets what it publishes."""
        self._directory = directory
        self._number = number
        self.name = name
        self._settings = settings
        self._tls = tls
        self._unasked = unasked
        self._channel = self._new_channel()

    def _new_channel(self) -> Channel:
        unasked = self._unasked
        on_push = None if unasked is None else unasked.on_push
        on_lost = None if unasked is None else partial(unasked.on_lost, self._number)
        return Channel(self._directory, self._number, self.name, self._tls, on_push, on_lost)

    async def append(self, stream: pa.Buffer, deadline: float) -> Appended | Refusal:
        """Send a batch until it has an answer or `deadline` (time.monotonic) has passed.

        Each try carries the same ids, so a try that was executed without an answer does no harm."""
        content = (memoryview(stream),)

        async def append_once(timeout_s: float) -> Appended | Refusal:
            return await self._call(Method.APPEND, content, messages.decode_append_answer, timeout_s)

        return await self._retry(append_once, deadline)

    async def _retry(self, call: Callable[[float], Awaitable[AnswerT | Refusal]], deadline: float) -> AnswerT | Refusal:
        """Call with a time-out in seconds, until there is an answer or the deadline has passed.

        Once a try's outcome is unknown it stays so: BUSY is no answer any more, and no refusal says that nothing was
        written."""
        delay_s = self._settings.retry_delay_s_min
        unknown = False
        doubted = time.monotonic()
        while True:
            left_s = deadline - time.monotonic()
            answer = await call(max(_TRY_S_MIN, min(left_s, self._settings.call_timeout_s)))
            if not isinstance(answer, Refusal):
                return answer
            unknown = unknown or answer.why is Refused.UNAVAILABLE
            again = answer.why is Refused.UNAVAILABLE or (unknown and answer.why is Refused.BUSY)
            if unknown:
                answer = answer.after_unknown()
            if not again or time.monotonic() + delay_s >= deadline:
                return answer
            if time.monotonic() - doubted > _DOUBT_S:
                doubted = time.monotonic()
                self.doubt()  # one that answers, and refuses for so long, may have a successor
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, self._settings.retry_delay_s_max)

    async def call(
        self, method: Method, content: Parts, decode: Callable[[memoryview], AnswerT | Refusal], deadline: float
    ) -> AnswerT | Refusal:
        """A call that may be repeated, until it has an answer or `deadline` has passed."""

        async def call_once(timeout_s: float) -> AnswerT | Refusal:
            return await self._call(method, content, decode, timeout_s)

        return await self._retry(call_once, deadline)

    async def _call(
        self, method: Method, content: Parts, decode: Callable[[memoryview], AnswerT], timeout_s: float
    ) -> AnswerT | Refusal:
        """One try. UNAVAILABLE where there is no answer: whether it was executed is unknown."""
        return await answer_or_refusal(self._channel, method, content, decode, timeout_s)

    async def subscribe(self, args: SubscribeArgs) -> SubscribedMarks | Refusal:
        """Have what becomes durable in some conversations published. One try: it is asked again by who wants it."""
        content = messages.encode_struct(args)
        return await self._call(Method.SUBSCRIBE, content, decode_subscribe_answer, self._settings.call_timeout_s)

    def reconnect(self) -> None:
        """Leave who answered, and look anew for the log's writer. Calls that wait there get no answer, and are made
        again with the same ids."""
        self._channel.close()
        self._directory.forget(self._number)
        self._channel = self._new_channel()

    def doubt(self) -> None:
        """Find out before the next call who is the log's writer."""
        self._channel.doubt()

    def close(self) -> None:
        """Close the connection: calls that wait get no answer."""
        self._channel.close()


class PartitionClient(LogClient):
    """A partition of a home shard."""

    def __init__(
        self,
        directory: Directory,
        home: int,
        slot: int,
        settings: Settings,
        tls: ssl.SSLContext | None = None,
        unasked: Unasked | None = None,
    ) -> None:
        super().__init__(directory, log_of(home, slot), f"partition {slot} of shard {home}", settings, tls, unasked)
        self.home = home
        self.slot = slot

    async def status(self, timeout_s: float) -> PartitionStatus:
        """Its figures; UNREACHABLE where it gives no answer."""
        answer = await self._call(Method.STATUS, (), messages.decode_partition_status, timeout_s)
        return no_partition_answer(self.home, self.slot, answer.detail) if isinstance(answer, Refusal) else answer


class ShardClient(LogClient):
    """A shard."""

    def __init__(
        self,
        directory: Directory,
        shard: int,
        settings: Settings,
        tls: ssl.SSLContext | None = None,
        unasked: Unasked | None = None,
    ) -> None:
        super().__init__(directory, shard, f"shard {shard}", settings, tls, unasked)
        self.shard = shard
        self._epoch = 0
        """The newest incarnation's that has answered."""

    async def append(self, stream: pa.Buffer, deadline: float) -> Appended | Refusal:
        """As `LogClient.append`. An older incarnation's answer is used, too: what is durable stays so."""
        answer = await super().append(stream, deadline)
        if isinstance(answer, Appended):
            self._epoch = max(self._epoch, answer.epoch)
        return answer

    async def locate(self, conv_id: str, low: int, high: int, deadline: float) -> Located | Refusal:
        """Where numbers low..high of a conversation are; never what an incarnation knows that has a successor."""
        content = messages.encode_locate(conv_id, low, high)

        async def locate_once(timeout_s: float) -> Located | Refusal:
            return self._newest(await self._call(Method.LOCATE, content, messages.decode_locate_answer, timeout_s))

        return await self._retry(locate_once, deadline)

    async def read(
        self, method: Method, content: Parts, decode: Callable[[memoryview], ReadT | Refusal], deadline: float
    ) -> ReadT | Refusal:
        """As `call`; never what an incarnation knows that has a successor."""

        async def read_once(timeout_s: float) -> ReadT | Refusal:
            return self._newest(await self._call(method, content, decode, timeout_s))

        return await self._retry(read_once, deadline)

    def _newest(self, answer: ReadT | Refusal) -> ReadT | Refusal:
        """The answer, where no newer incarnation is known."""
        if isinstance(answer, Refusal):
            return answer
        if answer.epoch < self._epoch:
            # its stable_seq may be lower than what its successor has told already; the directory leads to the successor
            self.reconnect()
            detail = f"{self.name}: an older incarnation answered, of epoch {answer.epoch}, not {self._epoch}"
            return Refusal(Refused.UNAVAILABLE, detail)
        self._epoch = answer.epoch
        return answer

    async def mend(self, file: str) -> None:
        """Have a derived file looked at, and made anew if it is damaged. Whether that worked shows when it is read."""
        content = messages.encode_mend(file)
        await self._call(Method.MEND, content, messages.decode_done, self._settings.call_timeout_s)

    async def make_hot(self, conv_id: str, partitions: int, deadline: float) -> Refusal | None:
        """Spread a conversation over partitions; 0: its home shard alone writes it. None: done, and durable."""
        content = messages.encode_make_hot(conv_id, partitions)

        async def make_hot_once(timeout_s: float) -> Refusal | None:
            return await self._call(Method.MAKE_HOT, content, messages.decode_done, timeout_s)

        return await self._retry(make_hot_once, deadline)

    async def signal(self, args: SignalArgs) -> Refusal | None:
        """Have who listens to a conversation told of something ephemeral. One try."""
        content = messages.encode_struct(args)
        return await self._call(Method.SIGNAL, content, messages.decode_done, self._settings.call_timeout_s)

    async def status(self, timeout_s: float) -> ShardStatus:
        """Its figures; UNREACHABLE where it gives no answer."""
        answer = await self._call(Method.STATUS, (), messages.decode_shard_status, timeout_s)
        return no_shard_answer(self.shard, answer.detail) if isinstance(answer, Refusal) else answer


class MergerClient(LogClient):
    """The merger of a deployment."""

    def __init__(self, directory: Directory, settings: Settings, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(directory, MERGER, "the merger", settings, tls)

    async def status(self, timeout_s: float) -> MergerStatus | Refusal:
        """How far it is behind the logs. UNAVAILABLE where it gives no answer."""
        return await self._call(Method.STATUS, (), messages.decode_merger_status, timeout_s)
