"""What Python calls the threads of a shard that `imray up` runs: the kernel knows them all by one name.

`python -m benchmarks.thread_names ADDRESS NAMESPACE` joins its Ray cluster, asks shard 0, and prints JSON. It needs
Ray's token for that cluster in the environment (see `known_by`).
"""

from __future__ import annotations

import json
import sys

import ray

from benchmarks.engine import own_threads
from benchmarks.harness import child
from benchmarks.processes import descendants
from benchmarks.servers import Server
from imray.deploy import names, system

_TIMEOUT_S = 30.0
_ADDRESS = "--gcs-address="


def known_by(server: Server) -> dict[int, str]:
    """The names of the shard's threads by their numbers, asked in a process of its own."""
    words = [word for found in descendants(server.pid).values() for word in found]
    address = next(word for word in words if word.startswith(_ADDRESS)).removeprefix(_ADDRESS)
    token_file = server.data / "run" / "ray.token"
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    found = child("benchmarks.thread_names", address, server.namespace, seconds=_TIMEOUT_S, env=env)
    return {int(number): name for number, name in found.items()}


def main(address: str, namespace: str) -> None:
    """Print the names."""
    system.connect(address)
    try:
        shard = ray.get_actor(names.shard(0), namespace)
        print(json.dumps(ray.get(shard.__ray_call__.remote(own_threads), timeout=_TIMEOUT_S)))
    finally:
        system.disconnect()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
