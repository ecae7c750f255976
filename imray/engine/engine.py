"""The gateway's API to all shards: sends, heads, pages of history and figures behind one object.

Owns which way a call takes. Knows nothing of HTTP, nor of where shards run.
"""

from __future__ import annotations

import asyncio
import ssl
import time

import msgspec
import numpy as np
import pyarrow as pa

from imray.core.pages import SEQ_MAX, NoPage, Page, PageAsk, PageCall, PageFault
from imray.core.replies import Appended, Located, Refusal, Refused
from imray.core.routing import home_of, log_of, shard_of
from imray.core.status import MergerStatus, PartitionStatus, ShardStatus
from imray.engine.batcher import Batcher, SendAnswer
from imray.engine.clients import LogClient, MergerClient, ShardClient
from imray.engine.feeds import Feeds
from imray.engine.history_client import HistoryClient
from imray.engine.hot_routes import HotRoutes
from imray.engine.members import MembersClient
from imray.engine.rights import Rights
from imray.engine.sends import Send
from imray.log.manifest import Manifest
from imray.rpc.directory import Directory
from imray.rpc.publications import SignalArgs, SubscribeArgs, SubscribedMarks
from imray.settings import Settings

_STATUS_TIMEOUT_S = 2.0
_READ_S_MIN = 0.05
"""A page gets so long even where the deadline has all but passed."""


class Engine:
    """The gateway's API to all shards. Belongs to one event loop."""

    def __init__(
        self, directory: Directory, manifest: Manifest, settings: Settings, tls: ssl.SSLContext | None = None
    ) -> None:
        self.manifest = manifest
        self.settings = settings
        self.feeds = Feeds(self, settings)
        self._clients = [ShardClient(directory, i, settings, tls, self.feeds) for i in range(manifest.shards)]
        self._batchers = [Batcher(client, settings) for client in self._clients]
        self._hot_routes = HotRoutes(directory, settings, tls, self.feeds)
        self._history = HistoryClient(directory, tls, settings.history_readers)
        self._merger = MergerClient(directory, settings, tls)
        self.members = MembersClient(self._clients, self.shard_of, settings)

    def shard_of(self, conv_id: str) -> int:
        """The shard that owns a conversation."""
        return shard_of(conv_id, self.manifest.shards)

    async def send(self, send: Send) -> SendAnswer:
        """One message; gathered with others that take the same way."""
        home = self.shard_of(send.conv_id)
        log = self._hot_routes.log_for(home, send.conv_id, send.topic or send.sender)
        unknown = False
        if log != home:
            sent = await self._hot_routes.batcher(log).send(send)
            if self._hot_routes.is_final(log, sent.answer, [send.conv_id]):
                return sent
            unknown = _maybe_written(sent.answer)
        sent = await self._batchers[home].send(send)
        self._hot_routes.update(sent.answer, (send.conv_id,))
        return SendAnswer(_after(unknown, sent.answer), sent.row) if unknown else sent

    def ways(self, batch: pa.RecordBatch) -> np.ndarray:
        """For each conversation in a batch's dictionary the log that its messages should go to: all of them one way, so
        that the order inside a request is kept."""
        conv = batch.column("conv_id")
        found = conv.dictionary.to_pylist()
        logs = np.fromiter(map(self.shard_of, found), np.int64, len(found))
        for i, name in enumerate(found):
            if name in self._hot_routes.hot:
                row = int(np.argmax(conv.indices.to_numpy() == i))
                key = batch.column("topic")[row].as_py() or batch.column("sender")[row].as_py()
                logs[i] = self._hot_routes.log_for(int(logs[i]), name, key)
        return logs

    async def send_batches(self, batches: dict[int, pa.RecordBatch]) -> dict[int, Appended | Refusal]:
        """One batch for each log that `ways` named, at once; the order inside each is kept."""
        answers = await asyncio.gather(*(self._send_batch(log, b) for log, b in batches.items()))
        return dict(zip(batches, answers, strict=True))

    async def _send_batch(self, log: int, batch: pa.RecordBatch) -> Appended | Refusal:
        home, slot = home_of(log)
        unknown = False
        if slot:
            answer = await self._hot_routes.batcher(log).send_batch(batch)
            if self._hot_routes.is_final(log, answer, batch.column("conv_id").dictionary.to_pylist()):
                return answer
            unknown = _maybe_written(answer)
        answer = await self._batchers[home].send_batch(batch)
        if self._hot_routes.hot or (isinstance(answer, Appended) and answer.hot):
            self._hot_routes.update(answer, batch.column("conv_id").dictionary.to_pylist())
        return _after(unknown, answer)

    async def make_hot(self, conv_id: str, partitions: int) -> Refusal | None:
        """Spread a conversation over partitions; 0: its home shard alone writes it again. None: done, and durable."""
        return await self._client(conv_id).make_hot(conv_id, partitions, self._deadline())

    async def head(self, conv_id: str) -> Located | Refusal:
        """Where a conversation stands."""
        return await self._client(conv_id).locate(conv_id, 1, 0, self._deadline())

    async def history(self, ask: PageAsk) -> tuple[Located, Page[pa.Table]] | Refusal:
        """One page, and where the conversation stood when it was read."""
        deadline = self._deadline()
        if ask.after >= SEQ_MAX:
            # there is no number above the highest, and none that could be asked for
            ask = msgspec.structs.replace(ask, after=SEQ_MAX - 1)
        high = SEQ_MAX if ask.before is None else ask.before - 1
        client = self._client(ask.conv_id)
        while True:
            located = await client.locate(ask.conv_id, ask.after + 1, high, deadline)
            if isinstance(located, Refusal):
                return located
            call = PageCall(client.shard, ask, located.stable, located.intervals, located.spans)
            page = await self._history.read(call, max(_READ_S_MIN, deadline - time.monotonic()))
            if not isinstance(page, NoPage):
                return located, page
            if page.fault is PageFault.CORRUPT:
                return Refusal(Refused.CORRUPT, page.detail)
            if page.fault is PageFault.DERIVED:
                await client.mend(page.file)
            # the reader restarts, or files were merged or made anew since `locate`: ask the shard again
            if time.monotonic() + self.settings.retry_delay_s_max > deadline:
                return Refusal(Refused.UNAVAILABLE, f"history: {page.detail}")
            await asyncio.sleep(self.settings.retry_delay_s_min)

    # Of feeds

    async def subscribe(self, log: int, args: SubscribeArgs) -> SubscribedMarks | Refusal:
        """As `imray.engine.feed_links.LogSource.subscribe`."""
        return await self._log_client(log).subscribe(args)

    def look_anew(self, log: int) -> None:
        """As `imray.engine.feed_links.LogSource.look_anew`."""
        self._log_client(log).reconnect()

    def doubt(self, log: int) -> None:
        """As `imray.engine.feed_links.LogSource.doubt`."""
        self._log_client(log).doubt()

    async def signal(self, args: SignalArgs) -> Refusal | None:
        """Have every gateway with listeners of a conversation told of something ephemeral."""
        return await self._client(args.conv_id).signal(args)

    async def rights(self, conv_id: str, users: list[str]) -> Rights | Refusal:
        """What some users may do in a conversation that was created."""
        return await self.members.rights(conv_id, users)

    def _log_client(self, log: int) -> LogClient:
        home, slot = home_of(log)
        return self._hot_routes.client(log) if slot else self._clients[home]

    async def status(self) -> list[ShardStatus]:
        """Each shard's figures, with those of its hot groups' partitions; UNREACHABLE where one gives no answer."""
        return list(await asyncio.gather(*(self._status(client) for client in self._clients)))

    async def full_status(self) -> list[ShardStatus]:
        """As `status`, with what the merger says of each shard; counting what is not merged costs it a look at all
        folders of the log."""
        shards, merger = await asyncio.gather(self.status(), self._merger_status())
        merging = {} if merger is None else {merge.shard: merge for merge in merger.shards}
        return [msgspec.structs.replace(shard, merge=merging.get(shard.shard)) for shard in shards]

    async def _merger_status(self) -> MergerStatus | None:
        """None: nothing is merged, or the merger gives no answer."""
        if not self.settings.merge:
            return None
        answer = await self._merger.status(_STATUS_TIMEOUT_S)
        return None if isinstance(answer, Refusal) else answer

    async def _status(self, client: ShardClient) -> ShardStatus:
        shard = await client.status(_STATUS_TIMEOUT_S)
        groups = [] if shard.hot is None else shard.hot.groups
        slots = range(1, 1 + max((group.partitions for group in groups), default=0))
        asking = [self._hot_routes.client(log_of(client.shard, slot)).status(_STATUS_TIMEOUT_S) for slot in slots]
        partitions: list[PartitionStatus] = list(await asyncio.gather(*asking))
        return msgspec.structs.replace(shard, partitions=partitions)

    def _client(self, conv_id: str) -> ShardClient:
        return self._clients[self.shard_of(conv_id)]

    def _deadline(self) -> float:
        return time.monotonic() + self.settings.send_deadline_s

    def close(self) -> None:
        """Close all connections: what waits gets no answer, so its outcome is unknown."""
        self.feeds.close()
        for client in self._clients:
            client.close()
        self._hot_routes.close()
        self._history.close()
        self._merger.close()


def _maybe_written(answer: Appended | Refusal) -> bool:
    return not isinstance(answer, Refusal) or answer.maybe_written


def _after(unknown: bool, answer: Appended | Refusal) -> Appended | Refusal:
    """The home shard's answer; `unknown`: a try at a partition before may have been executed."""
    return answer.after_unknown() if unknown and isinstance(answer, Refusal) else answer
