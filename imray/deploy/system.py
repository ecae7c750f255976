"""Bringing a system up on Ray and taking it down: which actors, where, and in what order.

Owns the life of a deployment. Owns no data: all of it can be made anew over the same folder.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

# private: Ray reads its variable for this once, at import, and only `connect` knows whether the cluster is a local one
from ray._private import ray_constants

# private: what it is told of processes that died it prints on stdout, in colour, whatever it is asked to be silent of
from ray._private import worker as ray_worker
from ray.exceptions import GetTimeoutError, RayError

from api.server import GatewayConfig
from imray.core.errors import UnavailableError
from imray.core.status import ServingState, ShardStatus
from imray.deploy import actors, history, local_ray, merger
from imray.deploy import gateway as gateways
from imray.deploy.gateway import Listening
from imray.log.manifest import Manifest, create_or_open
from imray.log.store import LocalStore
from imray.rpc import tls
from imray.settings import Settings

_START_TIMEOUT_S = 60.0
_RECOVERY_TIMEOUT_S = 1800.0
"""For a shard that reads its log: a folder of years ago without checkpoints has half a millisecond for each segment."""
_PING_TIMEOUT_S = 30.0
"""A shard that reads its log answers a ping within seconds (`imray.deploy.actors`)."""
_STOP_TIMEOUT_S = 15.0
_MERGER_TIMEOUT_S = 10.0
"""A process starts in 2 s."""


@dataclass(frozen=True)
class Deployment:
    """A running system."""

    namespace: str
    manifest: Manifest
    gateways: list[str]
    """Names of the gateways' actors."""
    port: int


def connect(address: str | None, num_cpus: int | None = None, token_file: Path | None = None) -> None:
    """Join a Ray cluster, or start a local one (address None) that ends with this process and is this user's alone.

    `token_file`: see `local_ray.prepare`. Whether a cluster that is joined wants a token, and which, its operator says
    in the environment. Call it before anything installs signal handlers: Ray replaces that of SIGTERM. InvalidError
    where the environment asks for TLS and does not name the files."""
    ray_worker.print_to_stdstream = _print_of_ray
    tls.server_context()  # Ray only waits, and does not say what is missing
    tls.client_context()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None or address.startswith("127."):
        # Ray moves a local cluster from loopback to the machine's outer address unless told that there are no others;
        # the variable is for the processes that it starts, the constant for this one, which has read it already
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        ray_constants.ENABLE_RAY_CLUSTER = False
    if address is None:
        ray.init(
            address="local",
            _temp_dir=str(local_ray.prepare(token_file)),
            num_cpus=max(4, num_cpus or 0),
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            # Ray makes workers nice (15); shards and gateways are no background work
            _system_config={"worker_niceness": 0},
        )
    else:
        ray.init(address=address, log_to_driver=False, configure_logging=False)


def _print_of_ray(data: Mapping[str, Any], ignore_prefix: bool = False) -> None:
    """A message of Ray's to whoever started a system: on stderr, since stdout is for what was asked for."""
    text = " ".join(" ".join(data["lines"]).split())
    print("ray:", "".join(c if c.isprintable() else " " for c in text), file=sys.stderr, flush=True)


def disconnect() -> None:
    """Leave the cluster; a local one ends."""
    ray.shutdown()


def namespace_of(manifest: Manifest) -> str:
    """The Ray namespace of a data folder's deployment: two deployments on one cluster do not meet."""
    return f"imray-{manifest.cluster_id}"


def up(data: Path, shards: int | None, settings: Settings, config: GatewayConfig) -> Generator[str, None, Deployment]:
    """Start everything on the Ray cluster that this process is connected to, saying each step.

    Needs `connect`. Idempotent: what runs already is kept. Ends with `StopIteration.value`, the Deployment."""
    manifest = create_or_open(LocalStore(data), shards)
    namespace = namespace_of(manifest)
    # gateways first: each is bound to its node, shards find room anywhere
    yield "starting the gateway"
    readers = [history.create(namespace, i, str(data), settings) for i in range(max(1, settings.history_readers))]
    # one gateway a machine: two raylets on one (tests do that) would want the same port
    nodes = list({n["NodeManagerAddress"]: n["NodeID"] for n in ray.nodes() if n["Alive"]}.values())
    names = [f"gateway-{node[:12]}" for node in nodes]
    servers = [
        gateways.create(namespace, name, manifest, settings, config, node)
        for name, node in zip(names, nodes, strict=True)
    ]
    try:
        ray.get([reader.alive.remote() for reader in readers], timeout=_START_TIMEOUT_S)
        listening: list[Listening] = ray.get([s.ping.remote() for s in servers], timeout=_START_TIMEOUT_S)
    except GetTimeoutError as e:
        reserved = f"{settings.gateway_num_cpus} and {settings.history_num_cpus}"
        raise UnavailableError(f"the gateway found no room: a node needs {reserved} CPUs free in Ray") from e
    except RayError as e:
        raise UnavailableError(f"the gateway did not start: {_reason(e)}") from e
    yield f"starting {manifest.shards} shards"
    started = [actors.create(namespace, str(data), i, manifest.seed, settings) for i in range(manifest.shards)]
    began = time.monotonic()
    for i, actor in enumerate(started):
        yield f"recovering shard {i}"
        _await_serving(actor, began)
    if settings.merge:
        yield "starting the merger"
        _start_merger(merger.create(namespace, str(data), manifest.shards, settings))
    return Deployment(namespace, manifest, names, listening[0].port)


def _await_serving(actor: Any, began: float) -> None:
    while True:
        left_s = began + _START_TIMEOUT_S - time.monotonic()
        try:
            shard: ShardStatus = ray.get(actor.ping.remote(), timeout=max(_PING_TIMEOUT_S, left_s))
        except RayError as e:
            raise UnavailableError(f"a shard did not start: {_reason(e)}") from e
        if shard.state is ServingState.SERVING:
            return
        if shard.state is ServingState.RECOVERING:
            left_s += _RECOVERY_TIMEOUT_S - _START_TIMEOUT_S
        if left_s <= 0 or shard.state is ServingState.CORRUPT:
            raise UnavailableError(shard.detail)


def _start_merger(actor: Any) -> None:
    try:
        ray.get(actor.alive.remote(), timeout=_MERGER_TIMEOUT_S)
    except GetTimeoutError:
        return  # senders need no merger: Ray goes on looking for room, and `status` says that there is none
    except RayError as e:
        raise UnavailableError(f"the merger did not start: {_reason(e)}") from e


def _reason(error: RayError) -> str:
    """The last line of what Ray says: the cause; the rest is a traceback."""
    return str(error).strip().splitlines()[-1]


def down(manifest: Manifest) -> int:
    """End the deployment of a data folder on the connected cluster, gateways first; how many actors there were."""
    namespace = namespace_of(manifest)
    found = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == namespace]
    ended = 0
    # senders lose their door before the shards go, and partitions outlive their homes; those of a kind stop together
    for kind in ("gateway", "history", "merger", "shard", "partition"):
        names = [name for name in found if name.startswith(kind)]
        actors = {name: actor for name in names if (actor := _actor(name, namespace)) is not None}
        if kind != "history" and actors:
            # one that is restarting or gone has nothing left to end in good order
            ray.wait([a.stop.remote() for a in actors.values()], num_returns=len(actors), timeout=_STOP_TIMEOUT_S)
        for actor in actors.values():
            ray.kill(actor, no_restart=True)
            ended += 1
    return ended


def _actor(name: str, namespace: str) -> Any | None:
    with contextlib.suppress(ValueError):
        return ray.get_actor(name, namespace)
    return None
