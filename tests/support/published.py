"""What shards say, by a script: what they publish, and answers that come when a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec
import pyarrow as pa

from imray.core.pages import Page, PageAsk
from imray.core.replies import Located, Refusal
from imray.engine.feeds import Feeds
from imray.engine.listening import Subscribed
from imray.engine.rights import Rights
from imray.log.page_schema import MESSAGES_SCHEMA
from imray.rpc.methods import Method
from imray.rpc.publications import (
    Mark,
    MembersTold,
    PublicationHead,
    SignalArgs,
    SubscribeArgs,
    SubscribedMarks,
    encode_publication,
    stream_of,
)
from imray.settings import Settings
from tests.support.ears import Ear

AskT = TypeVar("AskT")
AnswerT = TypeVar("AnswerT")

_SOON_S = 2.0


def published(conv_id: str, seqs: Sequence[int], body_bytes: int = 0) -> pa.Table:
    """Rows with these numbers; the body says the number, and is so long at least."""
    columns = {
        "conv_id": pa.array([conv_id] * len(seqs)),
        "conv_seq": pa.array(seqs, pa.int64()),
        "client_msg_id": pa.array([seq.to_bytes(16, "big") for seq in seqs], pa.binary(16)),
        "sender": pa.array(["bob"] * len(seqs)),
        "server_ts": pa.array([1] * len(seqs), MESSAGES_SCHEMA.field("server_ts").type),
        "body": pa.array([str(seq).encode().rjust(body_bytes, b"0") for seq in seqs], pa.binary()),
    }
    for field in MESSAGES_SCHEMA:
        columns.setdefault(field.name, pa.nulls(len(seqs), field.type))
    return pa.table(columns)


class Asked(NamedTuple, Generic[AskT, AnswerT]):
    """A question that waits for its answer."""

    what: AskT
    answer: asyncio.Future[AnswerT]


class Questions(Generic[AskT, AnswerT]):
    """What was asked, in its order."""

    def __init__(self) -> None:
        self.count = 0
        self._asked: asyncio.Queue[Asked[AskT, AnswerT]] = asyncio.Queue()

    async def ask(self, what: AskT) -> AnswerT:
        """Wait for what the test answers."""
        answer: asyncio.Future[AnswerT] = asyncio.get_running_loop().create_future()
        self.count += 1
        self._asked.put_nowait(Asked(what, answer))
        return await answer

    async def next(self) -> Asked[AskT, AnswerT]:
        """The next question."""
        async with asyncio.timeout(_SOON_S):
            return await self._asked.get()


class Only:
    """Rights: these may listen, and of them these may send."""

    def __init__(self, *members: str, readers: Sequence[str] = ()) -> None:
        self._members = members
        self._readers = readers

    def may_listen(self, user: str, service: bool) -> bool:
        """Of `Rights`."""
        return user in self._members or user in self._readers

    def may_send(self, user: str, service: bool) -> bool:
        """Of `Rights`."""
        return user in self._members


class Scripted:
    """Shards whose answers come when a test says so: what no real one can be made to do."""

    def __init__(self) -> None:
        self.subscribing: Questions[SubscribeArgs, SubscribedMarks | Refusal] = Questions()
        self.reading: Questions[PageAsk, tuple[Located, Page[pa.Table]] | Refusal] = Questions()
        self.members: Questions[list[str], Rights | Refusal] = Questions()
        self.signals: list[SignalArgs] = []
        self.elsewhere: set[str] = set()
        """Conversations of shard 1."""
        self.looked_anew = 0
        self.doubted = 0

    def shard_of(self, conv_id: str) -> int:
        """Of `Shards`."""
        return int(conv_id in self.elsewhere)

    async def subscribe(self, log: int, args: SubscribeArgs) -> SubscribedMarks | Refusal:
        """Of `Shards`."""
        return await self.subscribing.ask(args)

    def doubt(self, log: int) -> None:
        """Of `Shards`."""
        self.doubted += 1

    def look_anew(self, log: int) -> None:
        """Of `Shards`."""
        self.looked_anew += 1

    async def history(self, ask: PageAsk) -> tuple[Located, Page[pa.Table]] | Refusal:
        """Of `Shards`."""
        return await self.reading.ask(ask)

    async def signal(self, args: SignalArgs) -> Refusal | None:
        """Of `Shards`."""
        self.signals.append(args)
        return None

    async def rights(self, conv_id: str, users: list[str]) -> Rights | Refusal:
        """Of `Shards`."""
        return await self.members.ask(users)

    async def answer(self, *marks: Mark, epoch: int = 1) -> SubscribeArgs:
        """Answer the next that subscribes; what it asked for."""
        asked = await self.subscribing.next()
        asked.answer.set_result(SubscribedMarks(epoch, list(marks)))
        return asked.what


@asynccontextmanager
async def scripted(**settings: Any) -> AsyncIterator[tuple[Scripted, Feeds]]:
    """Shards, and a gateway's feeds over them."""
    shards = Scripted()
    feeds = Feeds(shards, Settings(**settings))
    try:
        yield shards, feeds
    finally:
        feeds.close()


def mark(stable: int = 0, members: int = -1, conv_id: str = "tea") -> Mark:
    """Where a conversation stands."""
    return Mark(conv_id, stable, 0, members)


def page(ask: PageAsk) -> tuple[Located, Page[pa.Table]]:
    """All that was asked for."""
    assert ask.after is not None
    assert ask.before is not None
    high = ask.before - 1
    rows = published(ask.conv_id, range(ask.after + 1, high + 1))
    return Located(high, high, 1, 0, [], []), Page(rows, [], ask.after + 1, high, None)


def publish(
    feeds: Feeds, where: Mark, rows: pa.Table | None = None, change: MembersTold | None = None, epoch: int = 1
) -> None:
    """The writer of log 0 publishes."""
    head = PublicationHead(epoch, [where], [] if change is None else [change])
    content = b"".join(encode_publication(head, None if rows is None else stream_of(rows)))
    feeds.on_push(0, Method.PUBLISH, memoryview(bytearray(content)))


def signalled(feeds: Feeds, sender: str = "bob") -> None:
    """Somebody elsewhere signals in "tea"."""
    content = msgspec.msgpack.encode(SignalArgs("tea", sender, "typing", b"1"))
    feeds.on_push(0, Method.SIGNALLED, memoryview(bytearray(content)))


async def hear(
    shards: Scripted, feeds: Feeds, ear: Ear, where: Mark | None = None, passive: bool = False, epoch: int = 1
) -> Subscribed:
    """Subscribe and start. `where`: of a conversation that the gateway does not know yet."""
    conv_id = "tea" if where is None else where.conv_id
    known = feeds.feeds.get(conv_id)
    subscribing = asyncio.create_task(feeds.subscribe(ear, conv_id, 0, passive))
    if known is None:
        await shards.answer(where or mark(), epoch=epoch)
    elif where is None:
        where = mark(members=known.members)
    if where is not None and where.members >= 0 and not ear.service:
        asked = await shards.members.next()
        asked.answer.set_result(Only(*asked.what))
    async with asyncio.timeout(_SOON_S):
        answer = await subscribing
    assert isinstance(answer, Subscribed), answer
    feeds.start(ear, conv_id)
    return answer
