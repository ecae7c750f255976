"""The gateway as a Ray actor: runs an ASGI app under uvicorn, so that one stands on every node."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import random
import resource
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any, Protocol

import ray
import uvicorn

from imray.core.errors import InvalidError
from imray.deploy.process import tune_process
from imray.engine.engine import Engine
from imray.log.manifest import Manifest
from imray.settings import Settings

_PORTS = range(20_000, 32_000)
"""Above what Ray's workers take (10,002 to 19,999), below what Linux gives out by itself (from 32,768)."""
_PORT_TRIES_MAX = 50
_BACKLOG = 2048
_BIND_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 10.0
_KEEP_ALIVE_S = 75
"""Longer than what clients and load balancers keep a connection (60 s), so that they close it, not we."""


@dataclass(frozen=True)
class GatewayConfig:
    """Where to listen, and how callers prove who they are (read by the app's factory)."""

    host: str
    port: int
    auth: dict[str, str]


class App(Protocol):
    """What a factory makes: an ASGI app, and uvicorn's protocol class for it, which bounds what connections hold."""

    http: type[asyncio.Protocol]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None: ...


def server(app: App, settings: Settings) -> uvicorn.Server:
    """The HTTP server of an app. Bounds of connections and requests are the protocol's: health passes them."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=app.http,
            ws="none",  # it would take the connection out of the protocol's sight
            loop="uvloop",
            lifespan="off",
            log_level="warning",
            access_log=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(settings.send_deadline_s),
            server_header=False,
            proxy_headers=False,
        )
    )


class Gateway:
    """One HTTP server in a thread of its own, listening as soon as the actor lives: a restarted one serves again.

    `factory` is "module:function", called with a Backend and the config: it makes the app."""

    def __init__(
        self, factory: str, namespace: str, manifest: Manifest, settings: Settings, config: GatewayConfig
    ) -> None:
        module, function = factory.split(":")
        factory_of = getattr(importlib.import_module(module), function)
        app: App = factory_of(Engine(namespace, manifest, settings), config)
        self._listener = _bind_patiently(config.host, config.port)
        self._server = server(app, settings)
        _allow_descriptors()
        tune_process()
        self._thread = threading.Thread(target=self._server.run, args=([self._listener],), name="http", daemon=True)
        self._thread.start()

    def ping(self) -> dict[str, Any]:
        """The port and process id."""
        return {"port": self._listener.getsockname()[1], "pid": os.getpid()}

    def stop(self) -> None:
        """Answer what is under way, then close."""
        self._server.should_exit = True
        self._thread.join(timeout=_STOP_TIMEOUT_S)


def _allow_descriptors() -> None:
    """As many open files as the system lets this process have: the usual 1,024 is less than the connections' bound."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):  # some systems take less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _bind_patiently(host: str, port: int) -> socket.socket:
    """As `bind`, but a killed predecessor on the port gets a moment to be gone."""
    deadline = time.monotonic() + _BIND_TIMEOUT_S
    while True:
        try:
            return bind(host, port)
        except InvalidError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def free_port(host: str, port: int) -> int:
    """`port`, where it can be listened on; for 0 a free one. InvalidError where there is none.

    Not one that the kernel gives out: Ray's processes take those while the gateway starts."""
    wanted = [port] if port else random.sample(_PORTS, _PORT_TRIES_MAX)
    for at, candidate in enumerate(wanted):
        try:
            with bind(host, candidate):
                return candidate
        except InvalidError:
            if at == len(wanted) - 1:
                raise
    raise AssertionError("there is a candidate")


def bind(host: str, port: int) -> socket.socket:
    """A listening socket's address, taken. InvalidError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as e:
        listener.close()
        raise InvalidError(f"cannot listen on {host} port {port}: {e.strerror}; choose another with --port") from e
    return listener


def create(
    namespace: str,
    name: str,
    factory: str,
    manifest: Manifest,
    settings: Settings,
    config: GatewayConfig,
    node_id: str | None,
) -> ray.actor.ActorHandle:
    """A gateway's actor on one node (None: anywhere), made if it is not there."""
    options: dict[str, Any] = {}
    if node_id is not None:
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node_id, soft=False)
        options["scheduling_strategy"] = strategy
    return (
        ray.remote(Gateway)
        .options(
            name=name,
            namespace=namespace,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=settings.gateway_num_cpus,
            **options,
        )
        .remote(factory, namespace, manifest, settings, config)
    )
