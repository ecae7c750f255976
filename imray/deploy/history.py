"""The history readers as Ray actors: pulls run here, outside the shard actors, so that none waits for a reader.

They share nothing but the files, which they only read: which of them is asked does not matter.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import ray

from analytics.history import HistoryReader
from imray.core.errors import CorruptError, DerivedError, ImrayError
from imray.core.pages import NoPage, Page, PageCall, PageFault
from imray.deploy import names
from imray.deploy.options import lasting
from imray.deploy.process import tune_process
from imray.engine.pages import decode_call, encode_answer
from imray.rpc import tls
from imray.rpc.directory import log_of_reader
from imray.rpc.endpoint import Endpoint, Parts
from imray.rpc.methods import Method
from imray.rpc.server import RpcServer, ServerConnection
from imray.settings import Settings

_CALL_BYTES_MAX = 16 * 1024 * 1024
"""A call names the intervals and spans that may hold the page: some hundred bytes each."""


class History:
    """Reads pages of history, one after the other, for gateways that call over RPC."""

    def __init__(self, number: int, data: str, settings: Settings) -> None:
        self._log = log_of_reader(number)
        self._reader = HistoryReader(data, settings)
        self._thread = ThreadPoolExecutor(1, "history")
        self._server = RpcServer(_CALL_BYTES_MAX, tls.server_context())
        self._opening: asyncio.Task[Endpoint] | None = None
        self._pages = 0
        tune_process()

    async def alive(self) -> int:
        """The process runs; its id."""
        return os.getpid()

    async def pages(self) -> int:
        """How many pages it has read."""
        return self._pages

    async def endpoint(self) -> Endpoint:
        """Where this process takes calls."""
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._open())
        return await self._opening

    async def _open(self) -> Endpoint:
        self._server.serve(self._log, {Method.READ_HISTORY: self._answer})
        return await self._server.open(ray.util.get_node_ip_address())

    async def _answer(self, content: memoryview, _caller: ServerConnection) -> Parts:
        answer = await asyncio.get_running_loop().run_in_executor(self._thread, self._read, content)
        self._pages += 1
        return answer

    def _read(self, content: memoryview) -> Parts:
        try:
            return encode_answer(self._page(decode_call(content)))
        except CorruptError as e:
            return encode_answer(NoPage(PageFault.CORRUPT, str(e)))
        except DerivedError as e:
            return encode_answer(NoPage(PageFault.DERIVED, str(e), e.file))
        except ImrayError as e:
            return encode_answer(NoPage(PageFault.UNAVAILABLE, str(e)))

    def _page(self, call: PageCall) -> Page[pa.Table]:
        ask = call.ask
        return self._reader.read(
            call.shard,
            ask.conv_id,
            call.stable,
            call.intervals,
            call.spans,
            after=ask.after,
            before=ask.before,
            limit=ask.limit,
            descending=ask.descending,
            topic=ask.topic,
        )


def create(namespace: str, number: int, data: str, settings: Settings) -> ray.actor.ActorHandle:
    """A reader's actor, made if it is not there: on another node than the others, as far as there are."""
    options = lasting(namespace, names.history(number), settings.history_num_cpus) | {"scheduling_strategy": "SPREAD"}
    return ray.remote(History).options(**options).remote(number, data, settings)
