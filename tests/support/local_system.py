"""A whole system in this process, without Ray: shards, partitions and a history reader over real RPC, and engines.

For tests of what gateways and shards say to one another. Owns who is where: what Ray does otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

from analytics.history import HistoryReader
from imray.core.errors import CorruptError, DerivedError, ImrayError
from imray.core.pages import NoPage, PageFault
from imray.core.routing import home_of, log_of
from imray.engine.engine import Engine
from imray.engine.pages import decode_call, encode_answer
from imray.log.manifest import Manifest, create_or_open
from imray.log.store import LocalStore
from imray.rpc.directory import HISTORY
from imray.rpc.endpoint import Endpoint, NoAnswerError, Parts
from imray.rpc.methods import Method
from imray.rpc.server import RpcServer, ServerConnection
from imray.settings import Settings
from imray.shard.home_link import RpcHomeLink
from imray.shard.partition_writer import PartitionWriter
from imray.shard.service import partition_handlers, shard_handlers
from imray.shard.shard_writer import ShardWriter

_BYTES_MAX = 128 * 1024 * 1024
_NUMBERS = count()


class Process:
    """What serves one log, with a server of its own, as an actor's process has."""

    def __init__(self, writer: ShardWriter | PartitionWriter | None, server: RpcServer, endpoint: Endpoint) -> None:
        self.writer = writer
        self.server = server
        self.endpoint = endpoint


class _Known:
    """A directory of some processes."""

    def __init__(self, processes: dict[int, Process]) -> None:
        self._processes = processes

    async def find(self, log: int, timeout_s: float) -> Endpoint:
        """Of `Directory`."""
        if log not in self._processes:
            raise NoAnswerError(f"nobody serves log {log}")
        return self._processes[log].endpoint

    def forget(self, log: int) -> None:
        """Of `Directory`."""


class LocalSystem:
    """Where each log is served, and how that changes: also an `imray.rpc.directory.Directory`."""

    def __init__(self, root: Path, shards: int, settings: Settings) -> None:
        self.root = root
        self.settings = settings
        self.manifest: Manifest = create_or_open(LocalStore(root), shards)
        self.processes: dict[int, Process] = {}
        self.retired: list[Process] = []
        self.engines: list[Engine] = []
        self._reader = HistoryReader(str(root), settings)
        self._threads = ThreadPoolExecutor(1, "history")

    async def find(self, log: int, timeout_s: float) -> Endpoint:
        """Of `Directory`. The reader of history is asked under HISTORY and the numbers below."""
        found = self.processes.get(HISTORY if log <= HISTORY else log)
        if found is None:
            raise NoAnswerError(f"nobody serves log {log}")
        return found.endpoint

    def forget(self, log: int) -> None:
        """Of `Directory`: nothing is remembered."""

    def engine(self) -> Engine:
        """A gateway's engine; closed with the system."""
        made = Engine(self, self.manifest, self.settings)
        self.engines.append(made)
        return made

    def engine_over(self, processes: dict[int, Process]) -> Engine:
        """An engine of somebody who finds these processes."""
        made = Engine(_Known(processes), self.manifest, self.settings)
        self.engines.append(made)
        return made

    async def start(self, log: int, hidden: bool = False) -> Process:
        """A process for a log, in place of the one before, which goes on unless it was stopped. `hidden`: who looks for
        the log does not find it yet."""
        home, slot = home_of(log)
        store = LocalStore(self.root)
        store.writer_id = f"process{next(_NUMBERS)}"  # each stands for a process of its own
        seed = self.manifest.seed
        server = RpcServer(_BYTES_MAX)
        writer: ShardWriter | PartitionWriter
        if slot:
            link = RpcHomeLink(self, home, self.settings)
            writer = PartitionWriter(store, home, slot, seed, self.settings, link)
            server.serve(log, partition_handlers(writer))
        else:

            async def start_partitions(partitions: int) -> None:
                for number in range(1, partitions + 1):
                    if log_of(home, number) not in self.processes:
                        await self.start(log_of(home, number))

            writer = ShardWriter(store, log, seed, self.settings, start_partitions=start_partitions)
            server.serve(log, shard_handlers(writer))
        made = Process(writer, server, await server.open("127.0.0.1"))
        if not hidden:
            before = self.processes.get(log)
            if before is not None:
                self.retired.append(before)
            self.processes[log] = made
        starting = asyncio.create_task(writer.start())
        if not slot:
            await starting
        return made

    async def kill(self, log: int) -> None:
        """Its connections are cut, and it serves nobody any more. What it has begun to write may land."""
        await self.processes[log].server.close()

    async def replace(self, log: int) -> Process:
        """Kill, and start another."""
        await self.kill(log)
        return await self.start(log)

    async def serve_history(self) -> None:
        """The reader."""
        server = RpcServer(_BYTES_MAX)

        async def read(content: memoryview, _caller: ServerConnection) -> Parts:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._read, content)

        server.serve(HISTORY, {Method.READ_HISTORY: read})
        for other in range(1, 8):
            server.serve(HISTORY - other, {Method.READ_HISTORY: read})
        self.processes[HISTORY] = Process(None, server, await server.open("127.0.0.1"))

    def _read(self, content: memoryview) -> Parts:
        call = decode_call(content)
        ask = call.ask
        try:
            page = self._reader.read(
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
        except CorruptError as e:
            return encode_answer(NoPage(PageFault.CORRUPT, str(e)))
        except DerivedError as e:
            return encode_answer(NoPage(PageFault.DERIVED, str(e), e.file))
        except ImrayError as e:
            return encode_answer(NoPage(PageFault.UNAVAILABLE, str(e)))
        return encode_answer(page)

    async def end(self) -> None:
        """Everything, in good order."""
        for engine in self.engines:
            engine.close()
        everybody = [*self.retired, *self.processes.values()]
        await asyncio.gather(*(p.writer.stop() for p in everybody if p.writer is not None))
        for process in everybody:
            await process.server.close()
        self._threads.shutdown()


@asynccontextmanager
async def local_system(root: Path, shards: int = 2, **settings: Any) -> AsyncIterator[LocalSystem]:
    """A system over a folder, up."""
    made = LocalSystem(root, shards, Settings(**({"reopen_delay_s_max": 0.05} | settings)))
    try:
        await made.serve_history()
        for shard in range(shards):
            await made.start(shard)
        yield made
    finally:
        await made.end()
