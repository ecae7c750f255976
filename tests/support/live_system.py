"""The API's live side under the gateway's real HTTP server, over an engine that answers as a test says."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, TypeVar

import pyarrow as pa
import uvloop

from api.app import create_app
from api.auth import make_token
from api.server import GatewayConfig, bind, server
from imray.core.members import Cursor, Role, Roles
from imray.core.replies import Refusal, Refused
from imray.engine.listening import Batch, Listener, Notice, Signal, Subscribed
from imray.log.message_rows import message_rows
from imray.settings import Settings
from tests.support.api_system import KEY, FakeBackend, page_of

T = TypeVar("T")

_TIMEOUT_S = 10.0
PRIVATE = "private"
"""A conversation that has members: `READER` reads, `MEMBER` may signal, too; others may nothing."""
READER = "rhea"
MEMBER = "mina"
STRANGER = "stan"


class FakeFeeds:
    """Feeds of one process: what a test publishes goes to who listens."""

    def __init__(self) -> None:
        self.listeners: dict[str, dict[Listener, bool]] = {}
        """By conversation; whether it flows."""
        self.left: list[Listener] = []
        self.resumed: list[Listener] = []
        self.reads: list[tuple[Listener, str, int]] = []
        self.refused: list[tuple[str, int]] = []
        """Batches that a listener had no room for, as (conversation, upto)."""
        self.gate = asyncio.Event()
        """Subscriptions are not made before."""
        self.gate.set()

    async def subscribe(
        self, listener: Listener, conv_id: str, after: int | None, passive: bool
    ) -> Subscribed | Refusal:
        await self.gate.wait()
        if conv_id == PRIVATE and not listener.service and listener.sender not in (READER, MEMBER):
            return Refusal(Refused.FORBIDDEN, "only members may listen")
        self.listeners.setdefault(conv_id, {})[listener] = False
        return Subscribed(conv_id, 3 if after is None else after, 4, 3, 1)

    def start(self, listener: Listener, conv_id: str) -> None:
        if listener in self.listeners.get(conv_id, {}):
            self.listeners[conv_id][listener] = True

    def unsubscribe(self, listener: Listener, conv_id: str) -> None:
        self.listeners.get(conv_id, {}).pop(listener, None)

    def resume(self, listener: Listener) -> None:
        self.resumed.append(listener)

    def read(self, listener: Listener, conv_id: str, seq: int) -> None:
        self.reads.append((listener, conv_id, seq))

    def leave(self, listener: Listener) -> None:
        self.left.append(listener)
        for listening in self.listeners.values():
            listening.pop(listener, None)

    async def signal(self, listener: Listener, conv_id: str, kind: str, data: bytes) -> Refusal | None:
        if conv_id == PRIVATE and not listener.service and listener.sender != MEMBER:
            return Refusal(Refused.FORBIDDEN, "only members may signal")
        for other in self.listeners.get(conv_id, {}):
            if other is not listener:
                other.notify(Signal(conv_id, listener.sender, kind, data))
        return None

    def wait(self, making: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(making, self.loop).result(_TIMEOUT_S)

    def publish(self, batch: Batch) -> None:
        """Tell everybody who listens."""
        for listener, flows in list(self.listeners.get(batch.conv_id, {}).items()):
            if flows and not listener.offer(batch.encoded(listener.encoder)):
                self.refused.append((batch.conv_id, batch.upto))

    def notice(self, notice: Notice) -> None:
        """Notify everybody who listens."""
        for listener in list(self.listeners.get(notice.conv_id, {})):
            listener.notify(notice)


class FakeMembers:
    """Everybody may everything, but for PRIVATE."""

    open_to_all = True

    def __init__(self) -> None:
        self.marks: list[tuple[str, str, int]] = []

    async def roles(self, conv_id: str, users: list[str]) -> Roles | Refusal:
        known = {READER: Role.READER, MEMBER: Role.MEMBER}
        return Roles(conv_id == PRIVATE, False, 1, 1, {user: known.get(user) for user in users})

    async def mark_read(self, conv_id: str, user: str, seq: int) -> Cursor | Refusal:
        self.marks.append((conv_id, user, seq))
        return Cursor(seq, 1)


class LiveBackend(FakeBackend):
    """With feeds and members."""

    def __init__(self, settings: Settings, page: pa.Table | None = None) -> None:
        super().__init__(settings, page)
        self.feeds = FakeFeeds()
        self.members = FakeMembers()


def batch_of(conv_id: str, after: int, bodies: list[bytes]) -> Batch:
    """Messages above `after`."""
    page = page_of(bodies)
    upto = after + len(bodies)
    numbered = page.set_column(0, page.schema.field(0), pa.array(range(after + 1, upto + 1), pa.int64()))
    return Batch(conv_id, after, upto, upto, message_rows(numbered), [])


class LiveServer:
    """A running gateway; a context manager. `engine_of` makes its engine inside its event loop, or an async context
    manager around it."""

    def __init__(self, folder: Path, engine_of: Callable[[Settings], Any] = LiveBackend, **settings: Any) -> None:
        self.settings = replace(Settings(), **settings)
        self._folder = folder
        self._engine_of = engine_of
        self._listener = bind("127.0.0.1", 0)
        self._listener.listen(2048)
        self.port: int = self._listener.getsockname()[1]
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()), daemon=True)
        self.engine: Any = SimpleNamespace()

    @property
    def url(self) -> str:
        """Of the WebSocket."""
        return f"ws://127.0.0.1:{self.port}/v1/ws"

    @property
    def http(self) -> str:
        """Of everything else."""
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        made = self._engine_of(self.settings)
        async with contextlib.AsyncExitStack() as opened:
            if isinstance(made, AbstractAsyncContextManager):
                made = await opened.enter_async_context(made)
            await self._serve_engine(made)

    async def _serve_engine(self, engine: Any) -> None:
        self.engine = engine
        (self._folder / "key").write_bytes(KEY)
        app = create_app(self.engine, GatewayConfig("127.0.0.1", 0, {"key_file": str(self._folder / "key")}))
        self.app = app
        self.server = server(app, self.settings)
        self._ready.set()
        await self.server.serve(sockets=[self._listener])

    def call(self, function: Callable[[], T]) -> T:
        """Run something in the server's event loop."""
        result: Future[T] = Future()

        def run() -> None:
            try:
                result.set_result(function())
            except Exception as e:  # noqa: BLE001 - whatever it is, it is the caller's
                result.set_exception(e)

        self.loop.call_soon_threadsafe(run)
        return result.result(_TIMEOUT_S)

    def wait(self, making: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's event loop."""
        return asyncio.run_coroutine_threadsafe(making, self.loop).result(_TIMEOUT_S)

    def publish(self, batch: Batch) -> None:
        """Tell everybody who listens."""
        self.call(lambda: self.engine.feeds.publish(batch))

    def stop(self) -> None:
        """Begin to end."""
        self.server.should_exit = True

    def join(self) -> None:
        """Wait until it has ended."""
        self._thread.join(_TIMEOUT_S)
        assert not self._thread.is_alive()

    def __enter__(self) -> LiveServer:
        self._thread.start()
        assert self._ready.wait(_TIMEOUT_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self.server.force_exit = True
        self.join()


def token_of(sender: str, service: bool = False, lifetime_s: float = 600, key: bytes = KEY) -> str:
    """A token."""
    return make_token(key, sender, service, lifetime_s)
