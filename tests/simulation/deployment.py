"""What runs in a schedule: a home shard and its partitions, gateways and clients, each a process of its own."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from imray.core.errors import CorruptError, ImrayError
from imray.settings import Settings
from imray.shard.home_link import RpcHomeLink
from imray.shard.partition_writer import PartitionWriter
from imray.shard.service import partition_handlers, shard_handlers
from imray.shard.shard_writer import ShardWriter
from tests.checker.events import Conversation
from tests.simulation.clients import Client, Gateway
from tests.simulation.kernel import MS, Process, Simulation
from tests.simulation.listeners import Ear, ListeningGateway
from tests.simulation.members import removals
from tests.simulation.merging import MergerProcess, merging_settings
from tests.simulation.messages import SEED, Files, Msg
from tests.simulation.network import Served, SimDirectory
from tests.simulation.store import Disk, SimStore
from tests.simulation.threads import runtime_of

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


class Deployment:
    """A home shard, its partitions, gateways and clients."""

    def __init__(self, seed: int, keep_trace: bool = False, with_listeners: bool = True) -> None:
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
            rows_at_once_max=rng.choice([0, 1, 1000]),
            checkpoint_ids_max=rng.choice([3, 6, 1000]),
            checkpoint_segments_max=rng.choice([4, 1000]),
            reopen_delay_s_max=0.1,
            grant_timeout_s=0.06,
            call_timeout_s=0.08,
            put_timeout_s=_PUT_TIMEOUT_S,
            hot_rate_per_s=rng.choice([0, 0, 60]),
            hot_ticks=1,
            hot_partitions=2,
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
        self.ears: list[Ear] = []
        self.listening: list[ListeningGateway] = []
        self.mergers: list[MergerProcess] = []
        dice = random.Random(-seed - 2)
        self.merges = dice.random() < 0.4
        if self.merges:
            self.settings = merging_settings(self.settings, dice)
            for _ in range(dice.choice([1, 1, 2])):
                self.new_merger()
        self.new_writer(HOME)
        if with_listeners:
            self._listen()
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

    def _listen(self) -> None:
        """Gateways with listeners."""
        rng = self.sim.rng
        for _ in range(rng.choice([0, 1, 1, 3])):
            self._new_listening_gateway()
        for at, gateway in enumerate(self.listening):
            for n in range(rng.randint(1, 2)):
                ear = Ear(f"ear{at}.{n}", rng.choice(["room", "room", "hall", "den"]), 0, f"user{at}.{n}")
                self.ears.append(ear)
                self.sim.after(int(rng.random() * rng.choice([5, 60, 150]) * MS), partial(self._hear, gateway, ear))

    def _hear(self, gateway: ListeningGateway, ear: Ear) -> None:
        if gateway.process.alive:
            gateway.process.post(lambda: gateway.listen(ear))
        else:
            ear.gateway = gateway
            self._hear_elsewhere(ear)

    def _hear_elsewhere(self, ear: Ear) -> None:
        """Its gateway is gone: it goes to one that is there."""
        gateway = self.sim.rng.choice([g for g in self.listening if g.process.alive])
        self._hear(gateway, ear)

    def _new_listening_gateway(self) -> None:
        rng = self.sim.rng
        process = self._process("listening")
        settings = replace(self.settings, feed_bytes_max=rng.choice([200, 1_000_000]), send_deadline_s=0.2)
        reader = Gateway(process, self.files, self.directory)
        self.listening.append(ListeningGateway(process, reader, self._directory_of, settings))

    def _directory_of(self, slot: int) -> Process | None:
        """Who serves a log, as Ray says: for a while the one before."""
        old = [p for s, p in self.writers if s == slot and p.alive]
        return old[0] if old and not self.healed and self.sim.chance(0.3) else self.directory.get(slot)

    def kill_listening_gateway(self) -> None:
        """Its listeners go to another."""
        alive = [g for g in self.listening if g.process.alive]
        if alive:
            gone = self.sim.rng.choice(alive)
            gone.process.kill()
            self._new_listening_gateway()
            for ear in self.ears:
                if ear.gateway is gone:
                    self._hear_elsewhere(ear)

    def new_merger(self) -> None:
        """One more process that merges."""
        self.mergers.append(MergerProcess(self._process("merger"), self.disk, self.settings))

    def new_writer(self, slot: int, before_put: Callable[[Process], None] | None = None) -> None:
        """A new process of the home shard or a partition; an old one is left as it is. `before_put`: what happens to
        it before its first put, its fence."""
        process = self._process("home" if slot == HOME else f"partition{slot}")
        if slot == HOME and HOME in self.directory:
            self._stale_handles(self.directory[HOME])
        self.directory[slot] = process
        self.writers.append((slot, process))
        store = SimStore(self.disk, process)
        store.before_put = None if before_put is None else partial(before_put, process)
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

    def end_in_good_order(self, slot: int, process: Process) -> None:
        """SIGTERM: what is being written is answered; then the process ends, and Ray makes another."""
        if process.serves is None:
            return
        self.sim.trace("end", process.name)

        def ended(stopping: Any) -> None:
            if not stopping.cancelled() and (error := stopping.exception()) is not None:
                self.sim.failed(process, "stop", error)
            self.sim.after(MS, lambda: self._exit(slot, process))

        process.post(lambda: process.spawn(process.serves.writer.stop()).add_done_callback(ended))

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

    def stop_turning(self) -> None:
        """Groups neither turn hot nor cold by their rate any more: what is judged must not change meanwhile."""
        for _, process in self.writers:
            current = process.serves.writer.current if process.serves is not None else None
            if isinstance(process.serves and process.serves.writer, ShardWriter) and current is not None:
                current.committer.hot_detector.ticks = 1 << 30

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
        if home.loop.queued_rows or home.loop._flights or home.loop._planning or current.upkeep.at_work:
            return "the home shard is at work"
        n = state.conversations.count
        if (state.conversations.heads[:n] != state.conversations.stable[:n]).any():
            return "stable_seq is below the head"
        for ear in self.ears:
            if (ear.conv, ear.sender) in (gone := removals(self.disk)) or ear.removed:
                if not ear.removed:
                    return f"{ear.name} still listens, and was removed after {gone[ear.conv, ear.sender]}"
                continue
            conv = state.conversations.index(ear.conv)
            if conv >= 0 and ear.upto != state.conversations.stable[conv]:
                return f"{ear.name} was told up to {ear.upto}, not {state.conversations.stable[conv]}"
        return ""
