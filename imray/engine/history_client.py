"""Calls to the history readers: one page a call, to whichever reader has the least to do.

Owns which reader is asked. Does not own where the numbers are: a shard says that before.
"""

from __future__ import annotations

import asyncio
import logging
import ssl

import pyarrow as pa

from imray.core.errors import InvalidError
from imray.core.pages import NoPage, Page, PageCall, PageFault
from imray.engine.pages import decode_answer, encode_call
from imray.rpc.channel import Channel
from imray.rpc.directory import Directory, log_of_reader
from imray.rpc.endpoint import NoAnswerError, Parts
from imray.rpc.methods import Method
from imray.settings import Settings

log = logging.getLogger("imray.clients")

_PAUSE_S_MIN = 1.0
"""So long, or as long as it was waited for, a reader that gave no answer is asked after all others: a dead one has no
calls in flight, and would get every call of the second or two until it is there again."""


class HistoryClient:
    """The history readers, whichever processes they are. Belongs to one event loop."""

    def __init__(
        self, directory: Directory, tls: ssl.SSLContext | None = None, readers: int = Settings.history_readers
    ) -> None:
        self._readers = [_Reader(directory, number, tls) for number in range(max(1, readers))]

    async def read(self, call: PageCall, timeout_s: float) -> Page[pa.Table] | NoPage:
        """One page. NoPage with UNAVAILABLE where no reader answers in time; a read may be repeated.

        A reader without an answer is followed by another one, within `timeout_s`: each has an even share of what is
        left, so one that hangs leaves time for those after it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        content = encode_call(call)
        left = list(self._readers)
        why = ""
        while left:
            reader = min(left, key=lambda reader: reader.burden(loop.time()))
            share_s = (deadline - loop.time()) / len(left)
            left.remove(reader)
            try:
                return decode_answer(await reader.read(content, share_s))
            except NoAnswerError as e:
                why = str(e)
            except InvalidError as e:
                log.error("%s: %s", reader.name, e)
                why = f"its answer cannot be read: {e}"
        return NoPage(PageFault.UNAVAILABLE, why)

    def close(self) -> None:
        """Close the connections: calls that wait get no answer."""
        for reader in self._readers:
            reader.close()


class _Reader:
    """One reader, and how much it has to do for us."""

    def __init__(self, directory: Directory, number: int, tls: ssl.SSLContext | None) -> None:
        self.name = f"history reader {number}"
        self._number = number
        self._channel = Channel(directory, log_of_reader(number), self.name, tls)
        self._in_flight = 0
        self._paused_until = 0.0

    def burden(self, now: float) -> tuple[bool, int, int]:
        """By which readers are compared: the least is asked."""
        return now < self._paused_until, self._in_flight, self._number

    async def read(self, content: Parts, timeout_s: float) -> memoryview:
        """The answer's content. NoAnswerError: there is none in time."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._in_flight += 1
        try:
            return await self._channel.call(Method.READ_HISTORY, content, timeout_s)
        except NoAnswerError:
            now = loop.time()
            self._paused_until = now + max(_PAUSE_S_MIN, now - began)
            raise
        finally:
            self._in_flight -= 1

    def close(self) -> None:
        self._channel.close()
