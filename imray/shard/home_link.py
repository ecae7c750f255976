"""A home shard as one of its partitions calls it, over RPC: `imray.shard.partition_incarnation.HomeLink`.

Owns the connection and the time-outs. Does not own retries: the partition knows what a repeated call must carry.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from typing import TypeVar

from imray.core.columns import Rows
from imray.core.grants import Declined, Granted, Report
from imray.core.replies import Refusal
from imray.rpc import messages
from imray.rpc.channel import Channel, answer_or_refusal
from imray.rpc.directory import Directory
from imray.rpc.endpoint import Parts
from imray.rpc.methods import Method
from imray.settings import Settings

AnswerT = TypeVar("AnswerT")


class RpcHomeLink:
    """One home shard, whichever process that is. Belongs to one event loop.

    Each call is one try. A Refusal that is UNAVAILABLE: no answer, whether it was executed is unknown."""

    def __init__(self, directory: Directory, home: int, settings: Settings, tls: ssl.SSLContext | None = None) -> None:
        self._settings = settings
        self._channel = Channel(directory, home, f"shard {home}", tls)

    async def register(self, slot: int, epoch: int, segment: int) -> bool | Refusal:
        """As `ShardWriter.register`."""
        content = messages.encode_register(slot, epoch, segment)
        timeout_s = self._settings.call_timeout_s
        return await self._call(Method.REGISTER, content, messages.decode_register_answer, timeout_s)

    async def ask(
        self, slot: int, epoch: int, ask: int, rows: Rows, reports: Sequence[Report]
    ) -> Granted | Declined | Refusal:
        """As `ShardWriter.ask`. Its time-out is shorter than that of other calls: senders wait for it."""
        content = messages.encode_ask(slot, epoch, ask, rows, reports)
        timeout_s = self._settings.partition_deadline_s
        return await self._call(Method.ASK, content, messages.decode_ask_answer, timeout_s)

    async def report(self, slot: int, epoch: int, reports: Sequence[Report]) -> Refusal | None:
        """As `ShardWriter.report`."""
        content = messages.encode_report(slot, epoch, reports)
        return await self._call(Method.REPORT, content, messages.decode_done, self._settings.call_timeout_s)

    async def _call(
        self, method: Method, content: Parts, decode: Callable[[memoryview], AnswerT], timeout_s: float
    ) -> AnswerT | Refusal:
        return await answer_or_refusal(self._channel, method, content, decode, timeout_s)

    def close(self) -> None:
        """Close the connection: calls that wait get no answer."""
        self._channel.close()
