"""One schedule: what runs, what breaks, and what must hold when everything works again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tests.checker.events import Conversation
from tests.checker.invariants import judge
from tests.simulation.clients import Client, Gateway, message
from tests.simulation.disk import CONVS, Disk, Msg
from tests.simulation.home import SimHome
from tests.simulation.kernel import LOST, MS, LivenessError, Process, Simulation, Weather
from tests.simulation.owner import BugError, WriteLoop
from tests.simulation.subtopic import PartitionWriter

HEAL_US = 20_000 * MS
"""After all faults are over, everything is settled within this."""
HOME = 0


@dataclass
class Parts:
    """The actors of a run; tests of mutations put others in their place."""

    home: type[SimHome] = SimHome
    topic: type[PartitionWriter] = PartitionWriter


class World:
    """A home shard, its partitions, gateways and clients."""

    def __init__(self, seed: int, parts: Parts, keep_trace: bool = False) -> None:
        self.sim = Simulation(seed, keep_trace)
        rng, self.parts = self.sim.rng, parts
        self.disk = Disk(self.sim)
        self.directory: dict[int, Process] = {}
        """Who a call to the home shard (0) or to a partition reaches: the newest incarnation."""
        self.owners: list[WriteLoop] = []
        self._ahead = rng.choice([1, 2, 1000])
        self._ids_max = rng.choice([3, 6, 1000])
        self.seen: dict[str, Conversation] = {}
        self.gateways: list[Process] = []
        self._stale: dict[int, Process] = {}
        self.healed = False
        self.calm = rng.random() < 0.15
        """Nothing breaks and nothing is lost: calls are only repeated and reordered."""
        self._known: list[Msg] = []
        self._processes: list[Process] = []
        for _ in range(2):
            self._new_gateway()
        self.new_owner(HOME)
        self.clients = [Client(self._process(f"client{n}"), f"c{n}", self.seen) for n in range(rng.randint(2, 3))]

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
        Gateway(process, self.disk, self.directory)
        if at is None:
            self.gateways.append(process)
        else:
            self.gateways[at] = process

    def new_owner(self, slot: int) -> None:
        """A new process of the home shard or a partition; an old one is left as it is."""
        process = self._process("home" if slot == HOME else f"topic{slot}")
        if slot == HOME and HOME in self.directory:
            self._stale_handles(self.directory[HOME])
        self.directory[slot] = process

        def on_fenced() -> None:
            self.sim.after(10 * MS, lambda: self._exit(slot, process))

        owner: WriteLoop
        if slot == HOME:
            owner = self.parts.home(self.disk, process, self._ahead, self._ids_max, on_fenced, self._start_partitions)
        else:
            owner = self.parts.topic(self.disk, process, slot, lambda: self._home_of(slot), self._ahead, on_fenced)
        owner.slot, owner.replaced = slot, lambda: self.directory.get(slot) is not process
        self.owners.append(owner)
        self.sim.trace("start", process.name)
        owner.start()

    def _stale_handles(self, old: Process) -> None:
        """Some partitions go on calling the home shard's old process for a while."""
        for slot in list(self.directory):
            if slot != HOME and self.sim.chance(0.3):
                self._stale[slot] = old
                self.sim.after(int(self.sim.rng.random() * 100 * MS), partial(self._forget, slot))

    def _forget(self, slot: int) -> None:
        self._stale.pop(slot, None)

    def _home_of(self, slot: int) -> Process:
        return self._stale.get(slot) or self.directory[HOME]

    def _exit(self, slot: int, process: Process) -> None:
        """A fenced process ends; Ray restarts it if it is still the one that Ray knows."""
        process.kill()
        if self.directory.get(slot) is process:
            self.new_owner(slot)

    def _start_partitions(self, partitions: int) -> None:
        for slot in range(1, partitions + 1):
            if slot not in self.directory:
                self.new_owner(slot)

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
            method, args = ("heat", (conv, partitions)) if partitions else ("cool", (conv,))
            for _ in range(3):
                answer = await self.sim.call(process, self.directory.get(HOME), method, *args, timeout_us=150 * MS)
                if answer is None:
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
            sim.after(int(lasts * rng.random()), lambda: None if self.healed else self.new_owner(slot))
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
        sim.run(400 * MS, lambda: all(t.done.done for t in tasks))
        self._heal()
        if not sim.run(sim.now + HEAL_US, lambda: self._bugs() or all(t.done.done for t in tasks)):
            raise LivenessError("a send has no answer")
        for task in tasks:
            if task.done.error is not None:
                raise task.done.error
        if self.calm and self.stuck():
            raise LivenessError("a healthy partition was fenced by its home shard")
        self._reap()
        # a home shard that another one fenced finds out when it writes
        self.ask(self.clients[0].deliver(self.gateways, (Msg(2, len({k.id for k in self._known})),)))
        if not sim.run(sim.now + HEAL_US, lambda: self._bugs() or self._quiet()):
            report = judge(self.seen)
            also = "" if report.ok else f"; and\n{report.to_text()}"
            raise LivenessError(f"not settled: {self._unsettled()}{also}")

    def _heal(self) -> None:
        self.sim.trace("healed")
        self.healed = True
        self.sim.weather = Weather()
        self.sim.cut.clear()
        for owner in self.owners:
            owner.process.resume()
        for slot, process in list(self.directory.items()):
            if not process.alive:
                self.new_owner(slot)

    def _reap(self) -> None:
        """Those that were replaced have their last say, then they are ended."""
        old = [o for o in self.owners if o.process.alive and self.directory.get(o.slot) is not o.process]
        if old:
            self.sim.run(self.sim.now + 100 * MS, lambda: False)
        for owner in old:
            owner.process.kill()

    def stuck(self) -> int:
        """How often a home shard fenced a partition whose grant was not settled in time."""
        return sum(owner.stuck for owner in self.owners if isinstance(owner, SimHome))

    def _bugs(self) -> bool:
        for bug in self.sim.bugs:
            raise BugError(f"a call failed: {bug!r}") from bug
        for owner in self.owners:
            if owner.bug is not None:
                raise BugError(f"{owner.process.name}: {owner.bug!r}") from owner.bug
        return False

    @property
    def home(self) -> SimHome:
        """The newest."""
        found = self.directory[HOME].serves
        assert isinstance(found, SimHome)
        return found

    def _quiet(self) -> bool:
        return not self._unsettled()

    def _unsettled(self) -> str:
        home, committer = self.home, self.home.committer
        if home.refusal is not None or committer is None or home.grants is None:
            return "the home shard does not serve"
        for slot, process in self.directory.items():
            owner = process.serves
            if owner.refusal is not None and (slot == HOME or slot in committer.state.partitions):
                return f"slot {slot} does not serve"
        if home.grants.blocks.outstanding:
            return "grants are outstanding"
        if (
            committer.state.log.segment != len(self.disk.logs[HOME])
            or home._queue
            or home._commit_in_flight
            or home._checkpointing
        ):
            return "the home shard is at work"
        n, conversations = committer.state.conversations.count, committer.state.conversations
        if (conversations.heads[:n] != conversations.stable[:n]).any():
            return "stable_seq is below the head"
        return ""

    def ask(self, coroutine: Any) -> Any:
        """Do something when all is healed, and wait for it."""
        task = self._process("reader").spawn(coroutine)
        if not self.sim.run(self.sim.now + HEAL_US, lambda: self._bugs() or task.done.done):
            raise LivenessError("a call has no answer")
        if task.done.error is not None:
            raise task.done.error
        assert task.done.value != LOST
        return task.done.value
