"""Gateways that listen, with the feeds of production, and listeners that write down what they are told.

Between a gateway and a log's writer is a connection as TCP has it: what is pushed comes in order, or the connection is
lost, and then whoever is left may hear of it, or not.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from imray.core.pages import Page, PageAsk
from imray.core.replies import Located, Refusal, Refused
from imray.core.routing import home_of
from imray.engine.feeds import Feeds
from imray.engine.listening import Batch, Behind, Ended, EndReason, Notice, Subscribed
from imray.engine.rights import Rights
from imray.log.page_schema import MESSAGES_SCHEMA
from imray.rpc.endpoint import Parts
from imray.rpc.messages import encode_struct
from imray.rpc.methods import Method
from imray.rpc.publications import Mark, SignalArgs, SubscribeArgs, SubscribedMarks, decode_subscribe_answer
from imray.settings import Settings
from tests.simulation import members
from tests.simulation.clients import Gateway
from tests.simulation.kernel import LOST, MS, Process

_SUBSCRIBE_US = 60 * MS


class Connection:
    """One connection from a gateway to a log's writer: `imray.shard.publisher.Subscriber`."""

    def __init__(self, near: Process, far: Process, on_push: Callable[..., None], on_lost: Callable[[], None]) -> None:
        self._near = near
        self.far = far
        self._on_push = on_push
        self._on_lost = on_lost
        self._sim = near.sim
        self._callbacks: list[Callable[[], None]] = []
        self._last_us = 0
        self.open = True
        far.on_kill.append(self.cut)
        near.on_kill.append(self.cut)

    def push(self, log_number: int, method: Method, content: Parts) -> bool:
        """As `ServerConnection.push`."""
        sim = self._sim
        if not self.open or sim.chance(sim.weather.drop):
            return False  # as where too much waits to be sent
        if sim.chance(sim.weather.straggle / 4):
            self.cut()
            return False
        data = b"".join(content)
        self._last_us = max(self._last_us, sim.now + sim.delay())
        sim.after(self._last_us - sim.now, lambda: self._arrive(log_number, method, data))
        return True

    def _arrive(self, log_number: int, method: Method, data: bytes) -> None:
        if self._near.name in self._sim.cut or self.far.name in self._sim.cut:
            self.open = False  # nobody is told: only silence says it
        if self.open:
            self._near.post(
                lambda: self._on_push(log_number, method, memoryview(bytearray(data))) if self.open else None
            )

    def add_close_callback(self, callback: Callable[[], None]) -> None:
        """As `ServerConnection.add_close_callback`."""
        self._callbacks.append(callback)

    def cut(self) -> None:
        """It is lost: both ends find out, each in its time."""
        if not self.open:
            return
        self.open = False
        sim = self._sim
        sim.after(sim.delay(), lambda: self._near.post(self._on_lost))
        sim.after(sim.delay(), lambda: self.far.post(self._closed))

    def _closed(self) -> None:
        for callback in self._callbacks:
            callback()
        self._callbacks = []


class SimShards:
    """The shards as feeds need them: `imray.engine.feeds.Shards`."""

    def __init__(self, process: Process, reader: Gateway, of: Callable[[int], Process | None]) -> None:
        """`of`: where a slot's log is served, as the directory has it."""
        self._process = process
        self._reader = reader
        self._of = of
        self._connections: dict[int, Connection] = {}
        self.feeds: Feeds | None = None

    def shard_of(self, conv_id: str) -> int:
        """There is one."""
        return 0

    async def subscribe(self, log: int, args: SubscribeArgs) -> SubscribedMarks | Refusal:
        """One call, over the connection by which publications come."""
        callee = self._of(home_of(log)[1])
        connection = self._connections.get(log)
        if connection is None or not connection.open:
            if callee is None or not callee.alive:
                return Refusal(Refused.UNAVAILABLE, "nobody serves it")
            assert self.feeds is not None
            feeds = self.feeds
            if connection is not None:
                feeds.on_lost(log)  # as a channel says that uses another connection from now on
            connection = Connection(self._process, callee, feeds.on_push, lambda: feeds.on_lost(log))
            self._connections[log] = connection
        content = b"".join(encode_struct(args))
        handed = ("handle", Method.SUBSCRIBE, content, connection)
        answer = await self._process.sim.call(self._process, connection.far, *handed, timeout_us=_SUBSCRIBE_US)
        if answer == LOST:
            return Refusal(Refused.UNAVAILABLE, "no answer")
        return decode_subscribe_answer(memoryview(answer))

    def doubt(self, log: int) -> None:
        """Ask whoever the directory has."""
        self.look_anew(log)

    def look_anew(self, log: int) -> None:
        """Leave the connection."""
        connection = self._connections.pop(log, None)
        if connection is not None:
            connection.cut()

    async def history(self, ask: PageAsk) -> tuple[Located, Page[pa.Table]] | Refusal:
        """A page of what is final."""
        assert ask.before is not None
        found = await self._reader.read(ask.conv_id, ask.after, ask.before - 1 - ask.after)
        if found == LOST:
            return Refusal(Refused.UNAVAILABLE, "no answer")
        rows, holes, upto, stable = found
        table = _table([(seq, int(name[1:]), payload) for seq, name, payload in rows])
        low = ask.after + 1
        clipped = [(max(low, a), min(upto, b), why) for a, b, why in holes]
        return Located(stable, stable, 0, 0, [], []), Page(table, clipped, low, upto, None)

    async def signal(self, args: SignalArgs) -> Refusal | None:
        """Nobody does."""
        return None

    async def rights(self, conv_id: str, users: list[str]) -> Rights | Refusal:
        """As its home shard says."""
        found = await members.rights(self._process, self._of(0), conv_id, users)
        return Refusal(Refused.UNAVAILABLE, "no answer") if found is None else found


def _table(rows: list[tuple[int, int, str]]) -> pa.Table:
    none: list[None] = [None] * len(rows)
    columns = {
        "conv_seq": [seq for seq, _, _ in rows],
        "client_msg_id": [(number + 1).to_bytes(16, "big") for _, number, _ in rows],
        "sender": none,
        "topic": none,
        "content_type": none,
        "client_ts": none,
        "server_ts": none,
        "body": [payload.encode() for _, _, payload in rows],
    }
    return pa.table(columns, schema=MESSAGES_SCHEMA)


def as_json(batch: Batch) -> bytes:
    """An encoder."""
    rows = [
        (row.conv_seq, f"m{int.from_bytes(row.client_msg_id, 'big') - 1}", row.body.decode()) for row in batch.messages
    ]
    return json.dumps([batch.after, batch.upto, rows, batch.holes]).encode()


@dataclass(eq=False)
class Ear:
    """One listener of one conversation. What it was shown outlives its gateway."""

    name: str
    conv: str
    start: int
    sender: str = "ear"
    service: bool = False
    encoder: Any = as_json
    shown: list[tuple[int, str, str]] = field(default_factory=list)
    upto: int = -1
    behind: bool = False
    removed: bool = False
    """It may not listen any more, and knows it."""
    gateway: ListeningGateway | None = None
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.upto = self.start

    def offer(self, data: bytes) -> bool:
        """As `Listener.offer`. Now and then there is no room."""
        gateway = self.gateway
        assert gateway is not None
        sim = gateway.process.sim
        if sim.chance(gateway.full):
            sim.after(sim.delay(), lambda: gateway.process.post(lambda: gateway.feeds.resume(self)))
            return False
        after, upto, rows, holes = json.loads(data)
        sim.trace("told", self.name, f"{after}-{upto}", rows, holes)
        if after != self.upto:
            if not self.behind:
                self.errors.append(f"{self.name}: told {after}-{upto}, and was at {self.upto}")
            return True
        self.shown += [(seq, name, payload) for seq, name, payload in rows]
        self.upto = upto
        return True

    def notify(self, notice: Notice) -> None:
        """As `Listener.notify`."""
        assert self.gateway is not None
        self.gateway.process.sim.trace("notice", self.name, notice)
        if isinstance(notice, Ended) and notice.reason is EndReason.REMOVED:
            self.removed = True
            if notice.after != self.upto:
                self.errors.append(f"{self.name}: {notice}, and was told up to {self.upto}")
        elif isinstance(notice, Behind | Ended):
            self.behind = isinstance(notice, Behind)
            self.gateway.listen(self)


class ListeningGateway:
    """A gateway with listeners."""

    def __init__(
        self, process: Process, reader: Gateway, of: Callable[[int], Process | None], settings: Settings
    ) -> None:
        self.process = process
        rng = process.sim.rng
        self.full = rng.choice([0.0, 0.0, 0.1, 0.4])
        self._shards = SimShards(process, reader, of)
        self.feeds = Feeds(self._shards, settings)
        self._shards.feeds = self.feeds
        self.errors: list[str] = []
        self._epoch = 0
        """Of the home shard, as it was believed last."""
        self._real_marks = self.feeds._on_marks
        self.feeds._on_marks = self._on_marks  # type: ignore[method-assign]

    def _on_marks(self, epoch: int, marks: list[Mark], *changes: Any) -> None:
        if marks and epoch < self._epoch:
            self.errors.append(f"{self.process.name} believes epoch {epoch} after {self._epoch}")
        self._epoch = max(self._epoch, epoch)
        self._real_marks(epoch, marks, *changes)

    def listen(self, ear: Ear) -> None:
        """Subscribe a listener, from where it is."""
        ear.gateway = self
        self.process.spawn(self._listen(ear))

    async def _listen(self, ear: Ear) -> None:
        while True:
            answer = await self.feeds.subscribe(ear, ear.conv, ear.upto, False)
            if isinstance(answer, Subscribed):
                break
            if answer.why is Refused.FORBIDDEN:
                ear.removed = True
                return
            await self.process.sleep(self.process.sim.delay())
        ear.behind = False
        self.feeds.start(ear, ear.conv)


def wrong(
    gateways: list[ListeningGateway],
    ears: list[Ear],
    final: dict[str, list[tuple[int, str, str]]],
    removals: dict[tuple[str, str], int],
) -> list[str]:
    """Which listeners were not told what is readable above their start, in order and each once; and what gateways
    believed that they should not."""
    found = [error for who in (*gateways, *ears) for error in who.errors]
    for ear in ears:
        last = removals.get((ear.conv, ear.sender))
        if ear.removed and last is None:
            found.append(f"{ear.name} was put out, and is a member")
        if last is not None and ear.upto > last:
            found.append(f"{ear.name} was told up to {ear.upto}, and removed after {last}")
        upto = ear.upto if ear.removed else 1 << 60
        wanted = [row for row in final.get(ear.conv, []) if ear.start < row[0] <= upto]
        if ear.shown != wanted:
            found.append(f"{ear.name} from {ear.start} was shown {ear.shown}, and readable is {wanted}")
    return found
