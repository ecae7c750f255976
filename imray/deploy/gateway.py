"""The gateway as a Ray actor: the API's app over the engine, one HTTP server on every node."""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from api.app import create_app
from api.server import GatewayConfig, allow_descriptors, bind_patiently, server
from imray.deploy.directory import RayDirectory
from imray.deploy.options import lasting
from imray.deploy.process import tune_process
from imray.engine.engine import Engine
from imray.log.manifest import Manifest
from imray.rpc import tls
from imray.settings import Settings

_STOP_TIMEOUT_S = 10.0


class Listening(NamedTuple):
    """Where a gateway is."""

    port: int
    pid: int


class Gateway:
    """One HTTP server in a thread of its own, listening as soon as the actor lives: a restarted one serves again."""

    def __init__(self, namespace: str, manifest: Manifest, settings: Settings, config: GatewayConfig) -> None:
        engine = Engine(RayDirectory(namespace), manifest, settings, tls.client_context())
        app = create_app(engine, config)
        self._listener = bind_patiently(config.host, config.port)
        self._server = server(app, settings)
        allow_descriptors()
        tune_process()
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), name="http", daemon=True)
        self._thread.start()

    def ping(self) -> Listening:
        """It lives; where it is."""
        return Listening(self._listener.getsockname()[1], os.getpid())

    def stop(self) -> None:
        """Answer what is under way, then close."""
        self._server.should_exit = True
        self._thread.join(timeout=_STOP_TIMEOUT_S)


def create(
    namespace: str, name: str, manifest: Manifest, settings: Settings, config: GatewayConfig, node_id: str | None
) -> ray.actor.ActorHandle:
    """A gateway's actor on one node (None: anywhere), made if it is not there."""
    options = lasting(namespace, name, settings.gateway_num_cpus)
    if node_id is not None:
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return ray.remote(Gateway).options(**options).remote(namespace, manifest, settings, config)
