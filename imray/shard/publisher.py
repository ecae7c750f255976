"""Tells gateways what became durable: each what it asked for, once a commit, as columns, over its own connection.

Owns who wants what, and what a gateway that does not keep up is owed. A writer never waits for a gateway. Does not own
what a gateway makes of it: what is published is a hint, and where rows are missing below a mark they are pulled.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import islice
from typing import Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from imray.core.errors import StorageError
from imray.core.messages import MessageRow
from imray.core.replies import Refusal, Refused
from imray.core.state import ShardState
from imray.log.message_rows import message_rows, text_values
from imray.rpc.endpoint import Parts
from imray.rpc.methods import Method
from imray.rpc.publications import (
    Mark,
    MembersTold,
    PublicationHead,
    SubscribeArgs,
    encode_publication,
    stream_of,
)

BEAT_S = 1.0
"""Whoever hears nothing for three beats looks for another writer."""
_OWED_AGAIN_S = 0.05
"""Between two tries to tell a gateway that did not read: longer than it takes to send what waits, at 1 Gbit/s."""
_ROWS_AT_ONCE_MAX = 256
"""Of a commit: so many are told as rows (4 us each here, and no more there); more as columns, which cost a tenth here,
where senders wait."""
_OWED_AT_ONCE_MAX = 4096
"""Marks in one publication: 0.6 MB at most, which finds room long before all that a gateway may be owed would."""
_WANTED_MAX = 200_000
"""Conversations of one connection: 25 MB of names at most."""
_COLUMNS = (
    "conv_id",
    "conv_seq",
    "client_msg_id",
    "sender",
    "topic",
    "content_type",
    "client_ts",
    "server_ts",
    "body",
)  # fmt: skip


class Subscriber(Protocol):
    """A gateway's connection: `imray.rpc.server.ServerConnection`."""

    def push(self, log_number: int, method: Method, content: Parts) -> bool:
        """Send it. False: too much waits to be sent already, or the connection is gone."""

    def add_close_callback(self, callback: Callable[[], None]) -> None:
        """Call this when the connection is gone."""


class Publisher:
    """The subscriptions of one log's writer. For its event loop; outlives incarnations."""

    def __init__(self, log: int, is_writer: Callable[[], Awaitable[bool]]) -> None:
        """`is_writer`: looks whether nobody has taken the log over. StorageError: it cannot tell."""
        self._log = log
        self.epoch = 0
        """That publications carry."""
        self._wanted: dict[Subscriber, dict[str, None]] = {}
        self._count: dict[str, int] = {}
        """How many connections want a conversation."""
        self._owed: dict[Subscriber, dict[str, Mark]] = {}
        """What a gateway that did not read is owed: where each conversation stands. Takes no room in the bound of what
        waits to be sent."""
        self._again: asyncio.TimerHandle | None = None
        self._is_writer = is_writer
        self._beating: asyncio.Task[None] | None = None

    def __bool__(self) -> bool:
        """Whether anybody listens at all."""
        return bool(self._wanted)

    def wants(self, conv_id: str) -> bool:
        """Whether anybody listens to a conversation."""
        return conv_id in self._count

    def subscribe(self, caller: Subscriber, args: SubscribeArgs) -> Refusal | None:
        """Tell a connection of `add` from now on, and no more of `drop`."""
        mine = self._wanted.get(caller)
        if mine is None:
            mine = self._wanted[caller] = {}
            caller.add_close_callback(lambda: self._leave(caller))
            if caller not in self._wanted:
                return Refusal(Refused.UNAVAILABLE, "the connection is gone")
        for name in args.drop:
            if name in mine:
                del mine[name]
                self._forget(name)
        if len(mine) + len(args.add) > _WANTED_MAX:
            return Refusal(Refused.BUSY, f"one gateway listens to {_WANTED_MAX} conversations of a shard at most")
        for name in args.add:
            if name not in mine:
                mine[name] = None
                self._count[name] = self._count.get(name, 0) + 1
        if self._beating is None or self._beating.done():
            self._beating = asyncio.create_task(self._beat())
        return None

    def _leave(self, caller: Subscriber) -> None:
        for name in self._wanted.pop(caller, ()):
            self._forget(name)
        self._owed.pop(caller, None)

    def _forget(self, name: str) -> None:
        left = self._count[name] - 1
        if left:
            self._count[name] = left
        else:
            del self._count[name]

    def publish(self, table: pa.Table | None, marks: Sequence[Mark], members: Sequence[MembersTold] = ()) -> None:
        """Tell everybody of what it listens to. `marks`: of every conversation with rows in `table`; only what
        somebody wants need be in it."""
        rows = None if table is None else _Rows(table)
        for caller, mine in list(self._wanted.items()):
            some = [mark for mark in marks if mark.conv_id in mine]
            changes = [change for change in members if change.conv_id in mine]
            messages, stream = ([], None) if rows is None else rows.of(mine)
            if some or changes or messages or stream is not None:
                self._push(caller, PublicationHead(self.epoch, some, changes, messages), stream)

    def beat(self) -> None:
        """Tell everybody that this writer lives."""
        for caller in list(self._wanted):
            self._push(caller, PublicationHead(self.epoch), None)

    def signal(self, conv_id: str, content: Parts) -> None:
        """Tell who listens to a conversation of something ephemeral. Who does not keep up is not told."""
        for caller, mine in list(self._wanted.items()):
            if conv_id in mine:
                caller.push(self._log, Method.SIGNALLED, content)

    def _push(self, caller: Subscriber, head: PublicationHead, stream: pa.Buffer | None) -> None:
        owed = self._owed.get(caller)
        if caller.push(self._log, Method.PUBLISH, encode_publication(head, stream)):
            for mark in head.marks if owed else ():
                self._owed[caller].pop(mark.conv_id, None)
            return
        if caller not in self._wanted:
            return
        # that members changed is in the mark's version: a gateway that was not told how asks
        if head.marks:
            self._owed.setdefault(caller, {}).update((mark.conv_id, mark) for mark in head.marks)
            self._later()

    def _later(self) -> None:
        if self._again is None:
            self._again = asyncio.get_running_loop().call_later(_OWED_AGAIN_S, self._tell_owed)

    def _tell_owed(self) -> None:
        self._again = None
        for caller, owed in list(self._owed.items()):
            some = list(islice(owed.values(), _OWED_AT_ONCE_MAX))
            head = PublicationHead(self.epoch, some)
            if some and caller.push(self._log, Method.PUBLISH, encode_publication(head, None)):
                for mark in some:
                    del owed[mark.conv_id]
            if not owed:
                del self._owed[caller]
        if self._owed:
            self._later()

    async def _beat(self) -> None:
        """For as long as this is the writer, and somebody listens."""
        while self:
            await asyncio.sleep(BEAT_S)
            with contextlib.suppress(StorageError):  # who cannot find out does not say so
                if await self._is_writer():
                    self.beat()

    def end(self) -> None:
        """Nothing more is told."""
        if self._beating is not None:
            self._beating.cancel()
        if self._again is not None:
            self._again.cancel()
            self._again = None


Messages: TypeAlias = list[tuple[str, list[MessageRow]]]


class _Rows:
    """The rows of one commit, for gateways that want different ones of them."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self._small = table.num_rows <= _ROWS_AT_ONCE_MAX
        self._by_name: dict[str, list[MessageRow]] = {}
        self._names: list[str] = []
        self._streams: dict[bytes, pa.Buffer | None] = {}
        if self._small:
            names = text_values(table.column("conv_id"))
            for name, row in zip(names, message_rows(table), strict=True):
                self._by_name.setdefault(name, []).append(row)
        else:
            self._table = table.select(_COLUMNS)
            self._column = self._table.column("conv_id").unify_dictionaries()
            self._names = self._column.chunk(0).dictionary.to_pylist()

    def of(self, wanted: dict[str, None]) -> tuple[Messages, pa.Buffer | None]:
        """Those of wanted conversations: as rows, or as a stream, which is made once for all who want the same."""
        if self._small:
            return [(name, rows) for name, rows in self._by_name.items() if name in wanted], None
        hits = bytes(name in wanted for name in self._names)
        if hits not in self._streams:
            self._streams[hits] = self._make(hits)
        return [], self._streams[hits]

    def _make(self, hits: bytes) -> pa.Buffer | None:
        if not any(hits):
            return None
        if all(hits):
            return stream_of(self._table)
        of_row = np.concatenate([chunk.indices.to_numpy() for chunk in self._column.chunks])
        keep = np.frombuffer(hits, np.bool_)[of_row]
        return stream_of(self._table.filter(pa.array(keep))) if keep.any() else None


def marks_of(state: ShardState, names: Sequence[str]) -> list[Mark]:
    """Where conversations stand. In the thread of the state."""
    raw = [name.encode() for name in names]
    offsets = np.cumsum([0, *map(len, raw)], dtype=np.int32)
    found = state.conversations.find(np.frombuffer(b"".join(raw), np.uint8), offsets).tolist()
    return [_mark(state, name, index) for name, index in zip(names, found, strict=True)]


def _mark(state: ShardState, name: str, index: int) -> Mark:
    group = state.hot.get(index)
    stable = int(state.conversations.stable[index]) if index >= 0 else 0
    return Mark(name, stable, 0 if group is None else group.partitions, state.members.version_told(index))


def names_in(table: pa.Table) -> Iterable[str]:
    """The conversations that a segment's table may have rows of."""
    column = table.column("conv_id")
    if pa.types.is_dictionary(column.type):
        return dict.fromkeys(name for chunk in column.chunks for name in chunk.dictionary.to_pylist())
    return dict.fromkeys(column.to_pylist())
