"""A shard's owner in a process of its own, driven over pipes by `process.Driver`: JSON lines in and out.

It fails on command: it kills itself, or its disk does, at the n-th time of a step of a put.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imray.core.log_progress import LogProgress
from imray.core.replies import Appended, Refusal
from imray.history.merger import Merger
from imray.log.reader import read_log
from imray.log.store import LocalStore
from imray.settings import Settings
from imray.shard.shard_writer import ShardWriter
from tests.support.batches import SEED, Msg, answers_of, ipc_of, msg_id

STEPS = ["encoded", "written", "fsynced", "linked", "folder synced", "before the answer"]


class FaultStore(LocalStore):
    """A local store with a fault armed at a step: kill, eio (once), or lose (the put lands, its answer is "exists")."""

    def __init__(self, root: Path | str) -> None:
        super().__init__(root)
        self._armed: dict[str, Any] | None = None
        self._put = threading.local()  # commits and checkpoints are written by two threads
        self.puts: list[str] = []

    def arm(self, step: str, at: int = 1, action: str = "kill", prefix: str = "wal/") -> None:
        """From now on the `at`-th time of `step`, in a put of a name under `prefix`."""
        self._armed = {"step": step, "at": at, "action": action, "prefix": prefix}

    def step(self, step: str) -> bool:
        """A step was reached; True where its answer is to be lost."""
        armed, name = self._armed, getattr(self._put, "name", "")
        if armed is None or armed["step"] != step or not name.startswith(armed["prefix"]):
            return False
        armed["at"] -= 1
        if armed["at"]:
            return False
        self._armed = None
        if armed["action"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if armed["action"] == "eio":
            raise OSError(errno.EIO, "Input/output error")
        return True

    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        self._put.name, self._put.linked = name, False
        self.puts.append(name)
        self.step("encoded")
        done = super().put_if_absent(name, parts)
        return not self.step("before the answer") and done

    def _sync_file(self, fd: int) -> None:
        self.step("written")
        super()._sync_file(fd)
        self.step("fsynced")

    def _link(self, temporary: str, path: str) -> bool:
        done = self._put.linked = super()._link(temporary, path)
        self.step("linked")
        return done

    def _sync_folder(self, folder: str) -> None:
        super()._sync_folder(folder)
        if getattr(self._put, "linked", False):
            self.step("folder synced")


def messages_of(rows: list[list[Any]]) -> list[Msg]:
    """Messages as they come over the pipe: conversation, number of the id, body."""
    return [Msg(conv, msg_id(n), body.encode()) for conv, n, body in rows]


class Service:
    """What the pipe can ask for."""

    def __init__(self, root: str, settings: Settings) -> None:
        self.store = FaultStore(root)
        self.root = Path(root)
        self._settings = settings
        self._merger: Merger | None = None
        self.fenced = asyncio.Event()
        self.owner = ShardWriter(self.store, 0, SEED, settings, on_fenced=self.fenced.set)

    async def send(self, messages: list[list[Any]]) -> dict[str, Any]:
        """Append a batch."""
        answer = await self.owner.append(ipc_of(messages_of(messages)))
        if isinstance(answer, Appended):
            stables = answer.stables().tolist()
            return {"rows": [[r.status, r.seq, s] for r, s in zip(answers_of(answer), stables, strict=True)]}
        return {"refused": answer.why, "detail": answer.detail}

    async def locate(self, conv: str) -> dict[str, Any]:
        """The head of a conversation."""
        answer = await self.owner.locate(conv, 1, 1 << 60)
        return {"refused": answer.detail} if isinstance(answer, Refusal) else {"head": answer.head}

    async def read(self) -> dict[str, Any]:
        """Every message of the log, each segment verified."""
        return {"messages": read_all(LocalStore(self.root))}

    async def arm(self, **fault: Any) -> dict[str, Any]:
        """Arm a fault."""
        self.store.arm(**fault)
        return {}

    async def status(self) -> dict[str, Any]:
        """The owner's figures."""
        return (await self.owner.status()).to_json()

    async def merge(self) -> dict[str, Any]:
        """Merge and delete all that can be now, in a thread of its own: what was done so far, and what is held back."""
        if self._merger is None:
            store = LocalStore(self.root)
            self._merger = Merger(store, 1, self._settings, time.monotonic, lambda: time.time_ns() // 1_000_000)
        merger = self._merger

        def work() -> None:
            while merger.step(0):
                pass

        await asyncio.to_thread(work)
        return {"done": vars(merger.done), "held": merger.status(0).detail}

    async def names(self, under: str) -> dict[str, Any]:
        """The files below a folder; the disk may be seen by this process only."""
        return {"names": sorted(str(path.relative_to(self.root)) for path in (self.root / under).rglob("*"))}

    async def fill(self, leave: int) -> dict[str, Any]:
        """Fill the disk but for `leave` bytes."""
        chunk = b"\0" * 65536
        with (self.root / "ballast").open("wb", buffering=0) as f:
            with contextlib.suppress(OSError):
                while f.write(chunk) == len(chunk):
                    pass
            f.truncate(max(0, f.tell() - leave))
        return {}

    async def fill_inodes(self) -> dict[str, Any]:
        """Make empty files until the disk has no inodes left."""
        with contextlib.suppress(OSError):
            for n in itertools.count():
                (self.root / f"ballast{n}").touch(exist_ok=False)
        return {}

    async def make_room(self) -> dict[str, Any]:
        """Undo `fill` or `fill_inodes`."""
        for path in self.root.glob("ballast*"):
            path.unlink()
        return {}


def read_all(store: LocalStore) -> list[list[Any]]:
    """[conv, id, seq, body] of every message in the log of shard 0, in its order."""
    out: list[list[Any]] = []
    for segment in read_log(store, 0, LogProgress()):
        for r in segment.table().to_pylist():
            number = int.from_bytes(r["client_msg_id"], "big")
            out.append([r["conv_id"], number, r["conv_seq"], r["body"].decode()])
    return out


async def _answer(service: Service, line: bytes) -> None:
    request = json.loads(line)
    tag = request.pop("tag")
    answer = await getattr(service, request.pop("op"))(**request)
    print(json.dumps({"tag": tag} | answer), flush=True)


async def _serve(root: str, settings: Settings) -> int:
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader(limit=1 << 26)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    service = Service(root, settings)
    print(json.dumps({"tag": "process", "ready": True}), flush=True)
    fault = json.loads(await stdin.readline())
    if fault:
        service.store.arm(**fault)

    async def start() -> None:
        await service.owner.start()
        print(json.dumps({"tag": "started"} | (await service.owner.status()).to_json()), flush=True)

    tasks: set[asyncio.Task[None]] = {asyncio.create_task(start())}
    fenced = asyncio.create_task(service.fenced.wait())
    while not service.fenced.is_set():
        line = asyncio.ensure_future(stdin.readline())
        await asyncio.wait([line, fenced], return_when=asyncio.FIRST_COMPLETED)
        if not line.done() or not line.result():
            break
        task = asyncio.create_task(_answer(service, line.result()))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    if tasks:
        await asyncio.wait(tasks, timeout=5)
    return 3 if service.fenced.is_set() else 0


def main() -> None:
    """ROOT SETTINGS-AS-JSON: prints a line, waits for one (a fault to arm, or null), then starts the owner."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    code = asyncio.run(_serve(sys.argv[1], Settings(**json.loads(sys.argv[2]))))
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
