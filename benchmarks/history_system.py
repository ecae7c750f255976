"""A whole system over a given data folder, on the cluster that `benchmarks.engine.cluster` started.

Owns its life. Does not own what is asked of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray

from api.server import GatewayConfig, free_port
from benchmarks.harness import say
from imray.core.status import LogFigures, ServingState, ShardStatus
from imray.deploy import system
from imray.deploy.directory import RayDirectory
from imray.deploy.system import Deployment
from imray.engine.engine import Engine
from imray.log import private
from imray.log.manifest import Manifest
from imray.rpc import tls
from imray.settings import Settings

T = TypeVar("T")
_HOST = "127.0.0.1"
_KEY = "benchmark.key"
_READY_S_MAX = 120.0


@dataclass(frozen=True)
class RunningSystem:
    """Shards, readers, gateway, and mergers where the settings say so."""

    data: Path
    settings: Settings
    manifest: Manifest
    namespace: str
    started_s: float
    """What `up` took, on a Ray that ran."""

    def with_engine(self, ask: Callable[[Engine], Awaitable[T]]) -> T:
        """Something asked through an engine in this process."""

        async def run() -> T:
            engine = engine_of(self.namespace, self.manifest, self.settings)
            try:
                return await ask(engine)
            finally:
                engine.close()

        return asyncio.run(run())

    def statuses(self) -> list[ShardStatus]:
        """Each shard's; RuntimeError where one does not serve."""
        found = self.with_engine(Engine.status)
        for status in found:
            if status.state is not ServingState.SERVING or status.log is None:
                raise RuntimeError(f"shard {status.shard} does not serve: {status.detail}")
        return found

    def log(self, shard: int) -> LogFigures:
        """The figures of a shard's log."""
        found = self.statuses()[shard].log
        assert found is not None
        return found

    def pids(self) -> list[int]:
        """The shards' processes."""
        return [status.pid for status in self.statuses() if status.pid is not None]


def engine_of(namespace: str, manifest: Manifest, settings: Settings) -> Engine:
    """A gateway's engine, as gateways have it; belongs to the event loop that runs."""
    return Engine(RayDirectory(namespace), manifest, settings, tls.client_context())


@contextlib.contextmanager
def running(data: Path, settings: Settings, shards: int | None = None) -> Iterator[RunningSystem]:
    """A system over a folder, ended with the block. Needs a cluster."""
    with private.make_run(data, shared=False) as run:
        run.secret(_KEY, make=True)
        auth = {"key_file": str(run.path / _KEY), "development": "yes"}
    began = time.monotonic()
    deployment = _up(data, settings, shards, GatewayConfig(_HOST, free_port(_HOST, 0), auth))
    try:
        elapsed = time.monotonic() - began
        yield RunningSystem(data, settings, deployment.manifest, deployment.namespace, elapsed)
    finally:
        system.down(deployment.manifest)


def _up(data: Path, settings: Settings, shards: int | None, config: GatewayConfig) -> Deployment:
    steps = system.up(data, shards, settings, config)
    while True:
        try:
            next(steps)
        except StopIteration as done:
            found: Deployment = done.value
            return found


@contextlib.contextmanager
def actors_of(kind: type, count: int, *arguments: Any) -> Iterator[list[Any]]:
    """So many Ray actors of a class with a method `ready`, each in a process of its own, ended with the block. An
    actor's last argument is its number."""
    remote = ray.remote(kind).options(num_cpus=0.1, max_concurrency=64)
    made = [remote.remote(*arguments, number) for number in range(count)]
    try:
        ray.get([actor.ready.remote() for actor in made], timeout=_READY_S_MAX)
        yield made
    finally:
        for actor in made:
            ray.kill(actor)


def rss_anon(pid: int) -> int:
    """Bytes of anonymous memory of a process; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    found = next((line.split()[1] for line in lines if line.startswith("RssAnon:")), "0")
    return int(found) * 1024


def say_shards(running_system: RunningSystem) -> None:
    """Where the shards stand, beside the results."""
    for status in running_system.statuses():
        log = status.log
        assert log is not None
        say(
            f"shard {status.shard}: {log.segment:,} segments, checkpoint at {log.checkpoint_segment:,}, "
            f"{log.conversations:,} conversations, {log.recent_ids + log.sealed_ids:,} ids"
        )
        for note in [*status.notes, *(status.merge.detail if status.merge else ())]:
            say(f"shard {status.shard}: {note}")
