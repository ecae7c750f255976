"""One schedule: what runs, what breaks, and what must hold when everything works again."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

from imray.core.errors import CorruptError, ImrayError
from imray.rpc import messages
from imray.rpc.methods import Method
from imray.settings import Settings
from imray.shard.home_link import RpcHomeLink
from imray.shard.partition_writer import PartitionWriter
from imray.shard.service import partition_handlers, shard_handlers
from imray.shard.shard_writer import ShardWriter
from tests.checker.events import Conversation
from tests.checker.invariants import judge
from tests.simulation.clients import Client, Gateway, message
from tests.simulation.kernel import LOST, MS, LivenessError, Process, Simulation, Weather
from tests.simulation.messages import CONVS, SEED, Files, Msg
from tests.simulation.network import Served, SimDirectory, call
from tests.simulation.store import Disk, SimStore
from tests.simulation.threads import runtime_of

HEAL_US = 30_000 * MS
"""After all faults are over, everything is settled within this."""
HOME = 0
_PUT_TIMEOUT_S = 0.1
"""Shorter than the slowest puts: a process ends, and its put lands later."""


class BugError(AssertionError):
    """Code under test raised what it never should."""


class Listener(logging.Handler):
    """What writers log of errors that nobody expects: a bug must not look like a fault that was survived."""

    def __init__(self, sim: Simulation) -> None:
        super().__init__(logging.WARNING)
        self._sim = sim

    def emit(self, record: logging.LogRecord) -> None:
        """Of logging."""
        self._sim.trace("log", record.getMessage().split("\n")[0][:200])
        errors = [a for a in record.args or () if isinstance(a, BaseException)]
        if record.exc_info and isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
            errors.append(record.exc_info[1])
        for error in errors:
            if isinstance(error, CorruptError) or not isinstance(error, ImrayError):
                self._sim.bugs.append(error)


class World:
    """A home shard, its partitions, gateways and clients."""

    def __init__(self, seed: int, keep_trace: bool = False) -> None:
        self.sim = Simulation(seed, keep_trace)
        rng = self.sim.rng
        self.disk = Disk(self.sim)
        self.disk.puts_at_once = rng.choice([1, 1, 2, 4])
        self.files = Files(self.disk)
        self.directory: dict[int, Process] = {}
        """Who a call to the home shard (0) or to a partition reaches: the newest incarnation."""
        self.writers: list[tuple[int, Process]] = []
        self.settings = Settings(
            rows_to_plan_ahead=rng.choice([1, 2, 1000]),
            checkpoint_ids_max=rng.choice([3, 6, 1000]),
            checkpoint_segments_max=rng.choice([4, 1000]),
            reopen_delay_s_max=0.1,
            grant_timeout_s=0.06,
            call_timeout_s=0.08,
            put_timeout_s=_PUT_TIMEOUT_S,
        )
        self.seen: dict[str, Conversation] = {}
        self.gateways: list[Process] = []
        self._stale: dict[int, Process] = {}
        self.healed = False
        self.fences = 0
        """How often a home shard fenced a partition whose grant was not settled in time."""
        self.calm = rng.random() < 0.15
        """Nothing breaks and nothing is lost: calls are only repeated and reordered."""
        self._known: list[Msg] = []
        self._processes: list[Process] = []
        for _ in range(2):
            self._new_gateway()
        self.new_writer(HOME)
        self.clients = [Client(self._process(f"client{n}"), f"c{n}", self.seen) for n in range(self._clients_count())]

    def _clients_count(self) -> int:
        """Enough for a window of puts to be full: each waits for its ack."""
        return self.sim.rng.randint(2, 3) if self.disk.puts_at_once == 1 else self.sim.rng.randint(3, 7)

    def _process(self, name: str) -> Process:
        process = Process(self.sim, f"{name}.{len(self._processes) + 1}")
        self._processes.append(process)
        return process

    def end(self) -> None:
        """Nothing runs any more."""
        for process in self._processes:
            process.kill()

    def _new_gateway(self, at: int | None = None) -> None:
        process = self._process("gateway")
        Gateway(process, self.files, self.directory)
        if at is None:
            self.gateways.append(process)
        else:
            self.gateways[at] = process

    def new_writer(self, slot: int) -> None:
        """A new process of the home shard or a partition; an old one is left as it is."""
        process = self._process("home" if slot == HOME else f"partition{slot}")
        if slot == HOME and HOME in self.directory:
            self._stale_handles(self.directory[HOME])
        self.directory[slot] = process
        self.writers.append((slot, process))
        store = SimStore(self.disk, process)
        runtime = runtime_of(process)

        def on_fenced() -> None:
            self.sim.trace("ends", process.name)
            self.sim.after(10 * MS, lambda: self._exit(slot, process))

        async def begin() -> None:
            writer: ShardWriter | PartitionWriter
            if slot == HOME:
                writer = ShardWriter(store, 0, SEED, self.settings, runtime, on_fenced, self._start_partitions)
                process.serves = Served(writer, shard_handlers(writer))
            else:
                directory = SimDirectory(process, lambda: self.home_of(slot))
                link = RpcHomeLink(directory, 0, self.settings)
                writer = PartitionWriter(store, 0, slot, SEED, self.settings, link, runtime, on_fenced)
                process.serves = Served(writer, partition_handlers(writer))
            await writer.start()
            self.sim.trace("serving", process.name)

        self.sim.trace("start", process.name)
        process.post(lambda: self._begin(process, begin()))

    def _begin(self, process: Process, work: Any) -> None:
        def begun(task: Any) -> None:
            if not task.cancelled() and task.exception() is not None:
                self.sim.failed(process, "start", task.exception())

        process.spawn(work).add_done_callback(begun)

    def _stale_handles(self, old: Process) -> None:
        """Some partitions go on calling the home shard's old process for a while."""
        for slot in list(self.directory):
            if slot != HOME and self.sim.chance(0.3):
                self._stale[slot] = old
                self.sim.after(int(self.sim.rng.random() * 100 * MS), partial(self._forget, slot))

    def _forget(self, slot: int) -> None:
        self._stale.pop(slot, None)

    def home_of(self, slot: int) -> Process:
        """Whom a partition asks."""
        return self._stale.get(slot) or self.directory[HOME]

    def _exit(self, slot: int, process: Process) -> None:
        """A fenced process ends; Ray restarts it if it is still the one that Ray knows."""
        process.kill()
        if self.directory.get(slot) is process:
            self.new_writer(slot)

    async def _start_partitions(self, partitions: int) -> None:
        for slot in range(1, partitions + 1):
            if slot not in self.directory:
                self.new_writer(slot)

    # what happens

    async def _life(self, client: Client, sends: int, pace_us: int) -> None:
        rng, process = self.sim.rng, client._process
        for _ in range(sends):
            await process.sleep(int(rng.random() * pace_us))
            request: list[Msg] = []
            for _ in range(rng.choice([1, 1, 2, 3])):
                m = message(rng, len({k.id for k in self._known}), self._known)
                if m not in request:
                    request.append(m)
                    self._known.append(m)
            await client.deliver(self.gateways, tuple(request))
            if rng.random() < 0.3:
                await client.read(rng.choice(self.gateways), rng.choice(CONVS), rng.choice([0, 0, 3]), 1 << 40)

    async def _operate(self, process: Process, orders: list[tuple[int, str, int]]) -> None:
        """Turn groups hot and cold."""
        for pause_us, conv, partitions in orders:
            await process.sleep(pause_us)
            self.sim.trace("order", conv, partitions)
            content = messages.encode_make_hot(conv, partitions)
            for _ in range(3):
                answer = await call(process, self.directory.get(HOME), Method.MAKE_HOT, content, 150 * MS)
                if answer is not None and messages.decode_done(answer) is None:
                    break
                await process.sleep(5 * MS)

    def _orders(self) -> list[tuple[int, str, int]]:
        rng = self.sim.rng
        orders = [(int(rng.random() * 5 * MS), "room", rng.randint(1, 3))]
        if rng.random() < 0.3:
            orders.append((0, "hall", rng.randint(1, 2)))
        for _ in range(rng.choice([0, 0, 1, 2, 3])):
            orders.append(
                (int(rng.random() * 60 * MS), rng.choice(["room", "room", "hall"]), rng.choice([0, 0, 1, 2, 3]))
            )
        return orders

    def _break(self, fault: str) -> None:
        """Something goes wrong now; it is mended by itself, or when all is healed."""
        if self.healed:
            return
        sim, rng = self.sim, self.sim.rng
        partitions = [slot for slot in self.directory if slot != HOME]
        slot = HOME if fault.endswith("home") else rng.choice(partitions) if partitions else HOME
        process, how = self.directory[slot], fault.split()[0]
        lasts = int(rng.random() * rng.choice([20, 200]) * MS)
        if fault == "kill gateway":
            at = rng.randrange(len(self.gateways))
            self.gateways[at].kill()
            self._new_gateway(at)
        elif how == "kill":
            process.kill()
            sim.after(lasts // 4, lambda: self._exit(slot, process))
        elif how == "stop":
            process.stop()
            sim.after(lasts, process.resume)
        elif how == "replace":
            process.stop()
            sim.after(int(lasts * rng.random()), lambda: None if self.healed else self.new_writer(slot))
            sim.after(lasts, process.resume)
        elif how == "cut":
            sim.trace("cut", process.name)
            sim.cut.add(process.name)
            sim.after(lasts, lambda: sim.cut.discard(process.name))

    def _faults(self) -> None:
        rng = self.sim.rng
        kinds = [
            "kill home",
            "stop home",
            "replace home",
            "replace home",
            "kill topic",
            "stop topic",
            "replace topic",
            "cut topic",
        ]
        for _ in range(rng.choice([0, 1, 2, 3, 4, 5])):
            fault = rng.choice([*kinds, "kill gateway"])
            self.sim.after(int(rng.random() * 120 * MS), partial(self._break, fault))

    def run(self) -> None:
        """Live through it, then heal and wait until all is settled."""
        sim, rng = self.sim, self.sim.rng
        sim.weather = Weather(
            rng.choice([0, 0, 0.02, 0.1]), rng.choice([0, 0.1]), rng.choice([0, 0.02, 0.1]),
            rng.choice([0, 0, 0.03, 0.15]),
        )  # fmt: skip
        if self.calm:
            sim.weather = Weather(repeat=0.2)
        else:
            self._faults()
        pace = rng.choice([2, 20, 60]) * MS
        lives = [c._process.spawn(self._life(c, rng.randint(2, 5), pace)) for c in self.clients]
        operator = self._process("operator")
        orders = operator.spawn(self._operate(operator, self._orders()))
        tasks = [*lives, orders]
        sim.run(400 * MS, lambda: all(t.done() for t in tasks))
        self._heal()
        if not sim.run(sim.now + HEAL_US, lambda: self._bugs() or all(t.done() for t in tasks)):
            raise LivenessError("a send has no answer")
        for task in tasks:
            task.result()
        if self.calm and self.fences:
            raise LivenessError("a healthy partition was fenced by its home shard")
        self._reap()
        # a home shard that another one fenced finds out when it writes
        last = Msg(2, len({k.id for k in self._known}))
        self.ask(self.clients[0]._process, self.clients[0].deliver(self.gateways, (last,)))
        if not sim.run(sim.now + HEAL_US, lambda: self._bugs() or self._quiet()):
            report = judge(self.seen)
            also = "" if report.ok else f"; and\n{report.to_text()}"
            raise LivenessError(f"not settled: {self.unsettled()}{also}")

    def _heal(self) -> None:
        self.sim.trace("healed")
        self.healed = True
        self.sim.weather = Weather()
        self.sim.cut.clear()
        for _, process in self.writers:
            process.resume()
        for slot, process in list(self.directory.items()):
            if not process.alive:
                self.new_writer(slot)

    def _reap(self) -> None:
        """Those that were replaced have their last say, then they are ended."""
        old = [p for slot, p in self.writers if p.alive and self.directory.get(slot) is not p]
        if old:
            self.sim.run(self.sim.now + 100 * MS, lambda: False)
        for process in old:
            process.kill()

    def _bugs(self) -> bool:
        for bug in self.sim.bugs:
            raise BugError(f"unexpected: {bug!r}") from bug
        return False

    @property
    def home(self) -> ShardWriter:
        """The newest."""
        found = self.directory[HOME].serves.writer
        assert isinstance(found, ShardWriter)
        return found

    def _quiet(self) -> bool:
        return not self.unsettled()

    def unsettled(self) -> str:
        """What is not at rest yet; "" when all is."""
        if self.directory[HOME].serves is None:
            return "the home shard has not begun"
        home = self.home
        current = home.current
        if home.loop.refusal is not None or current is None:
            return f"the home shard does not serve: {home.loop.refusal}"
        state = current.committer.state
        for slot, process in self.directory.items():
            writer = None if process.serves is None else process.serves.writer
            if slot in state.partitions and (writer is None or writer.loop.refusal is not None):
                return f"partition {slot} does not serve: {None if writer is None else writer.loop.refusal}"
        if current.hot.grants.blocks.outstanding:
            return "grants are outstanding"
        if home.loop.queued_rows or home.loop._flights or home.loop.is_planning or current.upkeep.at_work:
            return "the home shard is at work"
        n = state.conversations.count
        if (state.conversations.heads[:n] != state.conversations.stable[:n]).any():
            return "stable_seq is below the head"
        return ""

    def ask(self, process: Process, coroutine: Any) -> Any:
        """Do something when all is healed, and wait for it."""
        task = process.spawn(coroutine)
        if not self.sim.run(self.sim.now + HEAL_US, lambda: self._bugs() or task.done()):
            raise LivenessError("a call has no answer")
        assert task.result() != LOST
        return task.result()
