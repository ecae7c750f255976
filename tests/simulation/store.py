"""The store of all simulated processes: names that are taken once, puts that land late or without an answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import xxhash

from imray.core.errors import StorageError
from tests.simulation.kernel import MS, Process, Simulation
from tests.simulation.threads import wait_here


class Disk:
    """Every file by name."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim
        self._folders: dict[str, dict[str, bytes]] = {}
        self.put_delay_us_max = 2 * MS
        self.puts_at_once = 1
        self.rotted = False
        """Some derived file was lost or changed by a fault."""
        self.changes = 0
        """How often a name came or went."""
        self.looked: tuple[int, dict[tuple[str, str], int]] | None = None
        self.decoded: dict[str, Any] = {}
        """What a judge has read (`tests.simulation.members`): at which change, and of which files."""

    def get(self, name: str) -> bytes | None:
        """The file; None where there is none."""
        return self._folders.get(_folder(name), {}).get(name)

    def link(self, name: str, data: bytes) -> bool:
        """Give a file its name. False: the name is taken."""
        files = self._folders.setdefault(_folder(name), {})
        if name in files:
            return False
        files[name] = data
        self.changes += 1
        self._sim.trace("disk", name, len(data), f"{xxhash.xxh64_intdigest(data):016x}")
        return True

    def list(self, prefix: str, after: str = "") -> list[str]:
        """As `Store.list`."""
        names = set(self._folders.get(prefix, ()))
        names |= {
            prefix + folder[len(prefix) :].split("/")[0]
            for folder in self._folders
            if folder.startswith(prefix) and folder != prefix
        }
        return sorted(name for name in names if name > after)

    def delete(self, name: str) -> None:
        """As `Store.delete`."""
        if self._folders.get(_folder(name), {}).pop(name, None) is not None:
            self.changes += 1
            self._sim.trace("delete", name)

    def forget(self) -> None:
        """Every derived file is lost."""
        self.rotted = True
        for folder in sorted(self._folders):
            if folder.startswith(("sealed/", "checkpoint/")):
                for name in sorted(self._folders[folder]):
                    self.delete(name)

    def rot(self) -> None:
        """A derived file is lost, or one byte of it changes."""
        derived = [f for f in sorted(self._folders) if f.startswith(("sealed/", "checkpoint/"))]
        names = [name for folder in derived for name in sorted(self._folders[folder])]
        if not names:
            return
        self.rotted = True
        rng = self._sim.rng
        name = rng.choice(names)
        if rng.random() < 0.5:
            self.delete(name)
            return
        data = bytearray(self._folders[_folder(name)][name])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        self._folders[_folder(name)][name] = bytes(data)
        self._sim.trace("rot", name)


def _folder(name: str) -> str:
    return name[: name.rindex("/") + 1]


class SimStore:
    """As `imray.log.store.Store`, for one process. Every verb blocks its thread."""

    def __init__(self, disk: Disk, process: Process) -> None:
        self._disk = disk
        self._process = process
        self._sim = process.sim
        self.writer_id = f"{process.sim.rng.getrandbits(64):016x}"
        self.puts_at_once = disk.puts_at_once
        self.before_put: Callable[[], None] | None = None
        """What happens to the process just before its next put, once."""

    def _take_time(self) -> None:
        sim = self._sim
        wait_here(self._process, sim.delay() if sim.chance(0.1) else 20)

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        """As `Store.put_if_absent`. It may already be on its way when its process is killed or stopped: then it lands
        all the same; now and then much later, and twice."""
        sim = self._sim
        before = self.before_put
        self.before_put = None
        if before is not None:
            before()
        data = b"".join(parts)
        fails = sim.chance(sim.weather.put_error)
        lands = not fails or sim.chance(0.5)
        twice = lands and sim.chance(sim.weather.repeat)
        delay_us = int(
            sim.rng.random() * self._disk.put_delay_us_max * (100 if sim.chance(sim.weather.straggle) else 1)
        )
        free = [True]

        def land() -> None:
            if lands:
                free[0] = self._disk.link(name, data)
            if twice:
                free[0] = self._disk.link(name, data)

        on_its_way = sim.chance(0.5)
        post: Callable[[], None] = land if on_its_way else lambda: self._process.post(land, in_thread=True)
        sim.after(delay_us, post)
        wait_here(self._process, delay_us + 50 + sim.delay() // 2)
        if fails:
            raise StorageError(f"put {name}: no answer")
        return free[0]

    def get(self, name: str) -> bytes | None:
        """As `Store.get`."""
        self._take_time()
        return self._disk.get(name)

    def get_range(self, name: str, start: int, size: int) -> bytes | None:
        """As `Store.get_range`."""
        data = self.get(name)
        if data is None:
            return None
        return data[start:] if start < 0 else data[start : start + size]

    def exists(self, name: str) -> bool:
        """As `Store.exists`."""
        self._take_time()
        return self._disk.get(name) is not None

    def sync(self, prefix: str) -> None:
        """As `Store.sync`: a name that is there is durable."""
        self._take_time()

    def sweep(self) -> int:
        """As `Store.sweep`."""
        self._take_time()
        return 0

    def map(self, name: str) -> memoryview | None:
        """As `Store.map`."""
        data = self.get(name)
        return None if data is None else memoryview(data)

    def list(self, prefix: str, after: str = "") -> list[str]:
        """As `Store.list`."""
        self._take_time()
        return self._disk.list(prefix, after)

    def delete(self, name: str) -> None:
        """As `Store.delete`."""
        self._take_time()
        self._disk.delete(name)


class LookStore:
    """The same files for a judge, who takes no time."""

    writer_id = "judge"
    puts_at_once = 1

    def __init__(self, disk: Disk) -> None:
        self.get = disk.get
        self.list = disk.list
        self.delete: Callable[[str], None] = lambda _: None

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        """A judge writes nothing."""
        raise StorageError(f"put {name}: a judge writes nothing")

    def get_range(self, name: str, start: int, size: int) -> bytes | None:
        """As `Store.get_range`."""
        data = self.get(name)
        if data is None:
            return None
        return data[start:] if start < 0 else data[start : start + size]

    def exists(self, name: str) -> bool:
        """As `Store.exists`."""
        return self.get(name) is not None

    def map(self, name: str) -> memoryview | None:
        """As `Store.map`."""
        data = self.get(name)
        return None if data is None else memoryview(data)

    def sync(self, prefix: str) -> None:
        """As `Store.sync`."""

    def sweep(self) -> int:
        """As `Store.sweep`."""
        return 0
