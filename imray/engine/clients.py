"""The one door to shards and partitions: deadlines, retries with the same ids, Ray's errors made plain."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from imray.core.blocks import Declined, Granted, Report
from imray.core.columns import Rows
from imray.core.replies import Appended, Located, Refusal, Refused
from imray.deploy import names
from imray.rpc.appends import AppendClient
from imray.rpc.asks import AskClient, Door, NoAnswerError
from imray.settings import Settings

log = logging.getLogger("imray.links")


class ActorClient:
    """Calls to one actor by its name. Safe for one event loop."""

    def __init__(self, namespace: str, name: str, settings: Settings) -> None:
        self._namespace, self.name, self._settings = namespace, name, settings
        self._handle: ray.actor.ActorHandle | None = None
        self._appends: AppendClient | None = None
        self._connecting = asyncio.Lock()

    async def append(self, stream: pa.Buffer, deadline: float) -> Appended | Refusal:
        """Send a batch until it has an answer or `deadline` (time.monotonic) has passed.

        Each try carries the same ids, so a try that was executed without an answer does no harm."""
        data = memoryview(stream)
        return await self._retry(lambda timeout_s: self._append(data, timeout_s), deadline)

    async def _append(self, data: memoryview, timeout_s: float) -> Appended | Refusal:
        try:
            if self._appends is None or not self._appends.open:
                async with self._connecting:
                    if self._appends is None or not self._appends.open:
                        door = await self._call("append_door", (), timeout_s)
                        if isinstance(door, Refusal):
                            return door
                        self._appends = await AppendClient.connect(door, timeout_s)
            return await self._appends.append(data, timeout_s)
        except NoAnswerError as e:
            return self._unavailable(str(e))

    async def ping(self, timeout_s: float) -> dict[str, Any]:
        """Its figures; UNAVAILABLE is told in `state`."""
        answer = await self._call("ping", (), timeout_s)
        return {"state": answer.detail} if isinstance(answer, Refusal) else answer

    async def _retry(self, call: Callable[[float], Awaitable[Any]], deadline: float) -> Any:
        """Call with a time-out in seconds, until there is an answer or the deadline has passed.

        Once a try's outcome is unknown it stays so: BUSY is no answer any more, and no refusal says that nothing was
        written."""
        delay_s = self._settings.retry_delay_s_min
        unknown = False
        while True:
            left_s = deadline - time.monotonic()
            answer = await call(max(0.05, min(left_s, self._settings.call_timeout_s)))
            if not isinstance(answer, Refusal):
                return answer
            unknown = unknown or answer.why is Refused.UNAVAILABLE
            again = answer.why is Refused.UNAVAILABLE or (unknown and answer.why is Refused.BUSY)
            if unknown:
                answer = answer.after_unknown()
            if not again or time.monotonic() + delay_s >= deadline:
                return answer
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, self._settings.retry_delay_s_max)

    async def _call(self, method: str, args: tuple, timeout_s: float) -> Any:
        try:
            if self._handle is None:
                self._handle = ray.get_actor(self.name, self._namespace)
            ref = getattr(self._handle, method).remote(*args)
            return await asyncio.wait_for(ref, timeout_s)
        except (TimeoutError, GetTimeoutError):
            return self._unavailable(f"no answer within {timeout_s:.1f} s")
        except RayTaskError as e:
            log.error("%s, %s: %s", self.name, method, e)
            return self._unavailable(f"{type(e.cause).__name__}: {e.cause}")
        except (RayActorError, RayError, ValueError) as e:
            # ValueError: get_actor finds no such name (yet). A dead handle may stand for an actor made anew.
            self._handle = None
            return self._unavailable(f"{type(e).__name__}: {str(e).splitlines()[0]}")

    def _unavailable(self, reason: str) -> Refusal:
        return Refusal(Refused.UNAVAILABLE, f"{self.name}: {reason}")


class ShardClient(ActorClient):
    """A shard, for gateways."""

    def __init__(self, namespace: str, shard: int, settings: Settings) -> None:
        super().__init__(namespace, names.shard(shard), settings)
        self.shard = shard
        self._epoch = 0
        """The newest incarnation's that has answered."""

    async def append(self, stream: pa.Buffer, deadline: float) -> Appended | Refusal:
        """As `ActorClient.append`. An older incarnation's answer is used, too: what is durable stays so."""
        answer = await super().append(stream, deadline)
        if isinstance(answer, Appended):
            self._epoch = max(self._epoch, answer.epoch)
        return answer

    async def locate(self, conv_id: str, low: int, high: int, deadline: float) -> Located | Refusal:
        """Where numbers low..high of a conversation are; never what an incarnation knows that has a successor."""
        return await self._retry(lambda timeout_s: self._locate(conv_id, low, high, timeout_s), deadline)

    async def _locate(self, conv_id: str, low: int, high: int, timeout_s: float) -> Located | Refusal:
        answer = await self._call("locate", (conv_id, low, high), timeout_s)
        if not isinstance(answer, Located):
            return answer
        if answer.epoch < self._epoch:
            # its stable_seq may be lower than what its successor has told already; the name leads to the successor
            self._handle = None
            return self._unavailable(f"an older incarnation answered, of epoch {answer.epoch}, not {self._epoch}")
        self._epoch = answer.epoch
        return answer

    async def mend(self, file: str) -> None:
        """Have a derived file looked at, and made anew if it is damaged. Whether that worked shows when it is read."""
        await self._call("mend", (file,), self._settings.call_timeout_s)

    async def make_hot(self, conv_id: str, partitions: int, deadline: float) -> Refusal | None:
        """Turn a conversation hot; 0: cold."""
        return await self._retry(lambda timeout_s: self._call("heat", (conv_id, partitions), timeout_s), deadline)

    async def ping(self, timeout_s: float) -> dict[str, Any]:
        return {"shard": self.shard, **await super().ping(timeout_s)}


class RayHome(ActorClient):
    """A home shard, for one of its partitions: `imray.shard.partition_writer.HomeLink`."""

    def __init__(self, namespace: str, shard: int, settings: Settings) -> None:
        super().__init__(namespace, names.shard(shard), settings)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asks: AskClient | None = None

    async def register(self, slot: int, epoch: int, segment: int) -> bool | Refusal:
        """As `HotGroups.register`."""
        self._loop = asyncio.get_running_loop()
        return await self._call("register", (slot, epoch, segment), self._settings.call_timeout_s)

    def ask(
        self, slot: int, epoch: int, ask: int, rows: Rows, reports: Sequence[Report]
    ) -> Granted | Declined | Refusal:
        """As `HotGroups.ask`, over a connection of its own."""
        timeout_s = self._settings.partition_deadline_s
        try:
            if self._asks is None:
                self._asks = AskClient(self._door(timeout_s))
            return self._asks.ask(timeout_s, slot, epoch, ask, rows, reports)
        except NoAnswerError as e:
            self._asks = None
            return self._unavailable(str(e))

    def _door(self, timeout_s: float) -> Door:
        assert self._loop is not None, "register first"
        call = asyncio.run_coroutine_threadsafe(self._call("door", (), timeout_s), self._loop)
        found = call.result(2 * timeout_s)
        if isinstance(found, Refusal):
            raise NoAnswerError(found.detail)
        assert isinstance(found, Door)
        return found

    async def report(self, slot: int, epoch: int, reports: Sequence[Report]) -> Refusal | None:
        """As `HotGroups.report`."""
        return await self._call("report", (slot, epoch, reports), self._settings.call_timeout_s)
