"""How many pages the history readers of a system that `imray up` runs have read.

`python -m benchmarks.push_reads ADDRESS NAMESPACE` joins its Ray cluster, asks them, and prints JSON. It needs Ray's
token for that cluster in the environment (see `pages_read`).
"""

from __future__ import annotations

import json
import sys

import ray

from benchmarks.harness import child
from benchmarks.processes import descendants
from benchmarks.servers import Server
from imray.deploy import names, system
from imray.settings import Settings

_TIMEOUT_S = 30.0
_ADDRESS = "--gcs-address="


def pages_read(server: Server) -> int:
    """By all readers together, asked in a process of its own."""
    words = [word for found in descendants(server.pid).values() for word in found]
    address = next(word for word in words if word.startswith(_ADDRESS)).removeprefix(_ADDRESS)
    token_file = server.data / "run" / "ray.token"
    env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token_file)}
    return int(child("benchmarks.push_reads", address, server.namespace, seconds=_TIMEOUT_S, env=env))


def main(address: str, namespace: str) -> None:
    """Print the number."""
    system.connect(address)
    try:
        readers = [ray.get_actor(names.history(i), namespace) for i in range(Settings.from_env().history_readers)]
        print(json.dumps(sum(ray.get([reader.pages.remote() for reader in readers], timeout=_TIMEOUT_S))))
    finally:
        system.disconnect()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
