"""One schedule: what is asked, what breaks, and what must hold when everything works again."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from imray.rpc import messages
from imray.rpc.methods import Method
from tests.checker.invariants import judge
from tests.simulation import members
from tests.simulation.clients import Client, message
from tests.simulation.deployment import HOME, Deployment
from tests.simulation.kernel import LOST, MS, LivenessError, Process, Weather
from tests.simulation.messages import CONVS, Msg
from tests.simulation.network import call

HEAL_US = 30_000 * MS
"""After all faults are over, everything is settled within this."""


class World(Deployment):
    """Lives through a schedule."""

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
            await call(process, self.directory.get(HOME), Method.STATUS, (), 150 * MS)
            content = messages.encode_make_hot(conv, partitions)
            for _ in range(3):
                answer = await call(process, self.directory.get(HOME), Method.MAKE_HOT, content, 150 * MS)
                if answer is not None and messages.decode_done(answer) is None:
                    break
                await process.sleep(5 * MS)

    async def _keep_members(self, process: Process) -> None:
        """Create a conversation that is listened to, and remove some of its members."""
        rng = self.sim.rng
        conv = rng.choice(self.ears).conv
        users = [ear.sender for ear in self.ears]

        def home() -> Process | None:
            return self.directory.get(HOME)

        def healed() -> bool:
            return self.healed

        await process.sleep(int(rng.random() * 60 * MS))
        if not await members.change(process, home, healed, members.creation(conv, users)):
            raise LivenessError("a conversation was not created")
        marks = [members.read_up_to(process, home(), conv, user, rng.choice([0, 1, 2, 9])) for user in users]
        await asyncio.gather(*marks)
        for ear in self.ears:
            if ear.conv == conv and rng.random() < 0.6:
                await process.sleep(int(rng.random() * 40 * MS))
                self.sim.trace("remove", conv, ear.sender)
                if not await members.change(process, home, healed, members.removal(conv, ear.sender)):
                    raise LivenessError("a member was not removed")

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
        if fault == "rot":
            self.disk.rot()
        elif fault == "forget home":
            self.disk.forget()
            process.kill()
            sim.after(lasts // 4, lambda: self._exit(slot, process))
        elif fault == "kill merger":
            merger = rng.choice(self.mergers)
            merger.process.kill()
            sim.after(lasts, lambda: None if self.healed else self.new_merger())
        elif fault == "stop merger":
            stopped = rng.choice(self.mergers).process
            stopped.stop()
            if rng.random() < 0.5:
                self.new_merger()
            sim.after(lasts, stopped.resume)
        elif fault == "kill listening gateway":
            self.kill_listening_gateway()
        elif fault == "cut listening gateway":
            if self.listening:
                name = rng.choice(self.listening).process.name
                sim.trace("cut", name)
                sim.cut.add(name)
                sim.after(lasts, lambda: sim.cut.discard(name))
        elif fault == "kill gateway":
            at = rng.randrange(len(self.gateways))
            self.gateways[at].kill()
            self._new_gateway(at)
        elif how == "end":
            self.end_in_good_order(slot, process)
        elif how == "kill":
            process.kill()
            sim.after(lasts // 4, lambda: self._exit(slot, process))
        elif how == "oversleep":
            self._oversleep(slot)
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

    def _oversleep(self, slot: int) -> None:
        """A second writer falls asleep before its fence, and wakes when others have written for long."""
        sim, rng = self.sim, self.sim.rng
        first = self.directory[slot]

        def sleep(sleeper: Process) -> None:
            if not self.healed:
                sleeper.stop()
                sim.after(int((0.2 + 0.8 * rng.random()) * 500 * MS), sleeper.resume)

        self.new_writer(slot, sleep)
        self.directory[slot] = first
        if rng.random() < 0.5:
            sim.after(int(rng.random() * 200 * MS), lambda: None if self.healed else self.new_writer(slot))

    def _faults(self) -> None:
        rng = self.sim.rng
        kinds = [
            "kill home",
            "stop home",
            "replace home",
            "replace home",
            "end home",
            "kill partition",
            "stop partition",
            "replace partition",
            "end partition",
            "cut partition",
            "rot",
            "rot",
        ]
        if self.merges:
            kinds += ["kill merger", "stop merger", "forget home"]
            kinds += 2 * ["oversleep home", "oversleep partition"]
        for _ in range(rng.choice([0, 1, 2, 3, 4, 5])):
            fault = rng.choice([*kinds, "kill gateway", "kill listening gateway", "cut listening gateway"])
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
        if self.ears and rng.random() < 0.4:
            keeper = self._process("keeper")
            tasks.append(keeper.spawn(self._keep_members(keeper)))
        sim.run(400 * MS, lambda: all(t.done() for t in tasks))
        self._heal()
        if not sim.run(sim.now + HEAL_US, lambda: self._bugs() or all(t.done() for t in tasks)):
            raise LivenessError("a send has no answer")
        for task in tasks:
            task.result()
        if self.calm and self.fences:
            raise LivenessError("a healthy partition was fenced by its home shard")
        self._reap()
        self.stop_turning()
        # a home shard that another one fenced finds out when it writes
        last = Msg(2, len({k.id for k in self._known}))
        self.ask(self.clients[0]._process, self.clients[0].deliver(self.gateways, (last,)))
        self.settle()

    def settle(self) -> None:
        """Wait until nothing is under way. LivenessError where it does not end."""
        if not self.sim.run(self.sim.now + HEAL_US, lambda: self._bugs() or self._quiet()):
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
        for merger in self.mergers:
            merger.process.resume()
        if self.merges and not any(merger.process.alive for merger in self.mergers):
            self.new_merger()

    def _reap(self) -> None:
        """Those that were replaced have their last say, then they are ended."""
        old = [p for slot, p in self.writers if p.alive and self.directory.get(slot) is not p]
        if old:
            self.sim.run(self.sim.now + 100 * MS, lambda: False)
        for process in old:
            process.kill()

    def ask(self, process: Process, coroutine: Any) -> Any:
        """Do something when all is healed, and wait for it."""
        task = process.spawn(coroutine)
        if not self.sim.run(self.sim.now + HEAL_US, lambda: self._bugs() or task.done()):
            raise LivenessError("a call has no answer")
        assert task.result() != LOST
        return task.result()
