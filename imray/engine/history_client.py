"""Calls to the history reader: one page a call. Does not own where the numbers are: a shard says that before."""

from __future__ import annotations

import logging
import ssl

import pyarrow as pa

from imray.core.errors import InvalidError
from imray.core.pages import NoPage, Page, PageCall, PageFault
from imray.engine.pages import decode_answer, encode_call
from imray.rpc.channel import Channel
from imray.rpc.directory import HISTORY, Directory
from imray.rpc.endpoint import NoAnswerError
from imray.rpc.methods import Method

log = logging.getLogger("imray.clients")


class HistoryClient:
    """The history reader, whichever process that is. Belongs to one event loop."""

    def __init__(self, directory: Directory, tls: ssl.SSLContext | None = None) -> None:
        self._channel = Channel(directory, HISTORY, "history", tls)

    async def read(self, call: PageCall, timeout_s: float) -> Page[pa.Table] | NoPage:
        """One page. NoPage with UNAVAILABLE where there is no answer; a read may be repeated."""
        try:
            return decode_answer(await self._channel.call(Method.READ_HISTORY, encode_call(call), timeout_s))
        except NoAnswerError as e:
            return NoPage(PageFault.UNAVAILABLE, str(e))
        except InvalidError as e:
            log.error("the history reader: %s", e)
            return NoPage(PageFault.UNAVAILABLE, f"its answer cannot be read: {e}")

    def close(self) -> None:
        """Close the connection: calls that wait get no answer."""
        self._channel.close()
