"""The HTTP server under the app: where it listens, and how uvicorn is set up.

Owns ports and the server's settings. Does not own what connections may hold (`api.door`), nor in which process it runs
(`imray.deploy.gateway`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import resource
import socket
import time
from dataclasses import dataclass
from typing import Protocol

import uvicorn
from starlette.types import Receive, Scope, Send

from imray.core.errors import InvalidError
from imray.settings import Settings

_PORTS = range(20_000, 32_000)
"""Above what Ray's workers take (10,002 to 19,999), below what Linux gives out by itself (from 32,768)."""
_PORT_TRIES_MAX = 50
_BACKLOG = 2048
_BIND_TIMEOUT_S = 10.0
_BIND_AGAIN_S = 0.1
_KEEP_ALIVE_S = 75
"""Longer than what clients and load balancers keep a connection (60 s), so that they close it, not we."""


@dataclass(frozen=True)
class GatewayConfig:
    """Where a gateway listens, and how its callers prove who they are."""

    host: str
    port: int
    auth: dict[str, str]
    """See `api.auth.Authenticator`."""


class App(Protocol):
    """An ASGI app, and uvicorn's protocol class for it, which bounds what connections hold."""

    http: type[asyncio.Protocol]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


def server(app: App, settings: Settings) -> uvicorn.Server:
    """The HTTP server of an app. Bounds of connections and requests are the protocol's: health passes them."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=app.http,
            ws="none",  # it would take the connection out of the protocol's sight
            loop="uvloop",
            lifespan="off",
            log_level="error",  # a warning is a line for each strange request or upgrade: strangers would fill the log
            access_log=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(settings.send_deadline_s),
            server_header=False,
            proxy_headers=False,
        )
    )


def allow_descriptors() -> None:
    """Take as many open files as the system allows: the usual 1,024 is less than the connections' bound."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(ValueError, OSError):  # some systems take less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def bind_patiently(host: str, port: int) -> socket.socket:
    """As `bind`, but a killed predecessor on the port gets a moment to be gone."""
    deadline = time.monotonic() + _BIND_TIMEOUT_S
    while True:
        try:
            return bind(host, port)
        except InvalidError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_BIND_AGAIN_S)


def free_port(host: str, port: int) -> int:
    """`port`, where it can be listened on; for 0 a free one. InvalidError where there is none.

    Not one that the kernel gives out: Ray's processes take those while the gateway starts."""
    wanted = [port] if port else random.SystemRandom().sample(_PORTS, _PORT_TRIES_MAX)
    for at, candidate in enumerate(wanted):
        try:
            with bind(host, candidate):
                return candidate
        except InvalidError:
            if at == len(wanted) - 1:
                raise
    raise AssertionError("there is a candidate")


def bind(host: str, port: int) -> socket.socket:
    """A socket that has taken an address, to listen on. InvalidError where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as e:
        listener.close()
        raise InvalidError(f"cannot listen on {host} port {port}: {e.strerror}; choose another with --port") from e
    return listener
