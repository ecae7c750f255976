"""The one door to shards for those who send: deadlines, retries with the same ids, Ray's errors made plain."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from imray.cluster import shard as shards
from imray.cluster.replies import Appended, Located, Refusal, Refused
from imray.settings import Settings

log = logging.getLogger("imray.shard_client")

_INLINE_BYTES_MAX = 64 * 1024
"""Below it bytes travel inside the call; above, through shared memory without a copy."""


class ShardClient:
    """Calls to one shard. Safe for one event loop."""

    def __init__(self, namespace: str, shard: int, settings: Settings) -> None:
        self._namespace, self.shard, self._settings = namespace, shard, settings
        self._handle: ray.actor.ActorHandle | None = None

    async def append(self, stream: pa.Buffer, deadline: float) -> Appended | Refusal:
        """Send a batch until it has an answer or `deadline` (time.monotonic) has passed.

        Each try carries the same ids, so a try that was executed without an answer does no harm."""
        data = np.frombuffer(stream, np.uint8) if stream.size > _INLINE_BYTES_MAX else stream.to_pybytes()
        return await self._retry("append", (data,), deadline)

    async def locate(self, conv_id: str, low: int, high: int, deadline: float) -> Located | Refusal:
        """Where numbers low..high of a conversation are."""
        return await self._retry("locate", (conv_id, low, high), deadline)

    async def ping(self, timeout_s: float) -> dict[str, Any]:
        """The shard's figures; UNAVAILABLE is told in `state`."""
        answer = await self._call("ping", (), timeout_s)
        return {"shard": self.shard, "state": answer.detail} if isinstance(answer, Refusal) else answer

    async def _retry(self, method: str, args: tuple, deadline: float) -> Any:
        delay_s = self._settings.retry_delay_s_min
        while True:
            left_s = deadline - time.monotonic()
            answer = await self._call(method, args, max(0.05, min(left_s, self._settings.call_timeout_s)))
            if not isinstance(answer, Refusal) or answer.why is not Refused.UNAVAILABLE:
                return answer
            if time.monotonic() + delay_s >= deadline:
                return answer
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, self._settings.retry_delay_s_max)

    async def _call(self, method: str, args: tuple, timeout_s: float) -> Any:
        try:
            if self._handle is None:
                self._handle = ray.get_actor(shards.name(self.shard), self._namespace)
            ref = getattr(self._handle, method).remote(*args)
            return await asyncio.wait_for(ref, timeout_s)
        except (TimeoutError, GetTimeoutError):
            return self._unavailable(f"no answer within {timeout_s:.1f} s")
        except RayTaskError as e:
            log.error("shard %d, %s: %s", self.shard, method, e)
            return self._unavailable(f"{type(e.cause).__name__}: {e.cause}")
        except (RayActorError, RayError, ValueError) as e:
            # ValueError: get_actor finds no such name (yet). A dead handle may stand for an actor made anew.
            self._handle = None
            return self._unavailable(f"{type(e).__name__}: {str(e).splitlines()[0]}")

    def _unavailable(self, reason: str) -> Refusal:
        return Refusal(Refused.UNAVAILABLE, f"shard {self.shard}: {reason}")
