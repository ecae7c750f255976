"""Carries a delivery session out: sockets, timers, and who gets what came.

Owns the tasks of one live client and its connection. Does not own when to connect, or order (`imray.core.delivery`),
frames (`imray.client.live_socket`), or retries of asks (`imray.client.live_asks`).
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

import httpx

from imray.client.call import Environment
from imray.client.errors import AuthError, ServerError, fresh
from imray.client.follower import AsyncFollower
from imray.client.live_asks import Asks, LiveAsk, end_of, end_of_conversation
from imray.client.live_socket import LiveSocket, SocketEnd
from imray.client.live_wire import READ_ERRORS, Welcome, heard_item, written
from imray.client.models import Hole, LiveSignal, Message, Unread
from imray.client.wire import checked_token
from imray.core import delivery_items as items
from imray.core.delivery import Delivery
from imray.core.delivery_conversation import DeliveryConfig
from imray.core.errors import ImrayError, InvalidError, UnavailableError
from imray.core.reorder import Void

TokenSource: TypeAlias = Callable[[], str | Awaitable[str]]
"""Called for every connection, and when a token is about to expire."""
log = logging.getLogger("imray.client")
_END_TIMEOUT_S = 5.0
"""For good-byes: a peer that is gone must not keep a program from ending."""
_PROTOCOL_ERROR = 1002
_ANSWERS = frozenset({"ack", "ok", "page"})


class LiveDriver:
    """One session and its connection, on the running event loop. It begins with the first thing that is wanted."""

    def __init__(
        self, base: httpx.URL, token: str | TokenSource | None, env: Environment, config: DeliveryConfig
    ) -> None:
        self.session: Delivery[Message] = Delivery(config, env.random)
        self.asks = Asks(env, self.session.new_ref, self._write_ask, lambda: self.session.is_asking)
        self._base = base
        self._shown_url = str(base.copy_with(username=None, password=None))
        self._token = token
        self._env = env
        self._connect_timeout_s = config.connect_timeout_ms / 1000
        self._followers: dict[str, AsyncFollower[Any]] = {}
        self._sockets: dict[int, LiveSocket] = {}
        self._serving: dict[int, asyncio.Task[None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._up: LiveSocket | None = None
        """The socket of the connection that was welcomed."""
        self._was_welcomed = False
        self._patience: asyncio.TimerHandle | None = None
        """When followers are told that there is no welcome, where there never was one."""
        self._ticker: asyncio.Task[None] | None = None
        self._sooner = asyncio.Event()
        self._tick_at_ms: int | None = None
        self._over: ImrayError | None = None

    def begin(self) -> None:
        """Connect, where that was not done before. Raises what the session has ended with."""
        if self._over is not None:
            raise fresh(self._over)
        if self._token is None:
            raise AuthError("no token: pass token, or set IMRAY_TOKEN")
        if self._ticker is None:
            self._ticker = self._spawn(self._tick_forever())
            self._carry_out(self.session.start(self._now_ms()))

    def follow(self, follower: AsyncFollower[Any], after: int | None, passive: bool) -> None:
        """Tell a follower what comes, in place of one that follows the same conversation."""
        self.begin()
        actions = self.session.follow(follower.conv_id, after, passive, self._now_ms())
        before = self._followers.get(follower.conv_id)
        if before is not None:
            before.fail(InvalidError(f"{follower.conv_id} is followed anew: a connection has one follower for each"))
        self._followers[follower.conv_id] = follower
        self._carry_out(actions)

    def leave(self, follower: AsyncFollower[Any]) -> None:
        """Tell it nothing more."""
        if self._followers.get(follower.conv_id) is follower:
            del self._followers[follower.conv_id]
            self._carry_out(self.session.unfollow(follower.conv_id))

    def hold(self, conv_id: str) -> None:
        """Its follower has no room."""
        self._carry_out(self.session.hold(conv_id))

    def resume(self, conv_id: str) -> None:
        """Its follower has room again."""
        self._carry_out(self.session.resume(conv_id, self._now_ms()))

    def signal(self, item: dict[str, Any]) -> bool:
        """Write what may be lost; whether it was written."""
        if self._up is None or self._up.is_crowded or self.asks.is_careful:
            return False
        self._up.put(item)
        return True

    async def aclose(self) -> None:
        """Say good-bye, and leave no task behind."""
        self._carry_out(self.session.stop())
        for follower in self._followers.values():
            follower.end()
        self._followers.clear()
        self._end(UnavailableError("the client was closed"))
        self._be_patient(False)
        if self._ticker is not None:
            self._ticker.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_END_TIMEOUT_S)
            for task in late:
                task.cancel()

    def _carry_out(self, actions: list[items.DeliveryAction[Message]]) -> None:
        for action in actions:
            match action:
                case items.Connect(conn):
                    self._serving[conn] = self._spawn(self._serve(conn))
                case items.Close(conn, reason):
                    self._close(conn, reason)
                case items.Show(conv_id, parts):
                    self._tell(conv_id, [_item_of(part) for part in parts])
                case items.ShowHead(conv_id, seq, unread):
                    self._tell(conv_id, [Unread(conv_id, seq, unread)])
                case items.Over(conv_id, status, detail):
                    follower = self._followers.pop(conv_id, None)
                    if follower is not None:
                        follower.fail(end_of_conversation(status, f"{conv_id}: {detail}", self._shown_url))
                case items.Failed(status, detail):
                    self._fail(end_of(status, f"status {status}: {detail}", self._shown_url))
                case items.Renew(conn):
                    self._spawn(self._renew(conn))
                case _:
                    socket = self._sockets.get(action.conn)
                    if socket is not None:
                        socket.put(written(action))
        at_ms = self.session.timer_at_ms
        if at_ms is not None and (self._tick_at_ms is None or at_ms < self._tick_at_ms):
            self._sooner.set()

    def _tell(self, conv_id: str, told: list[Any]) -> None:
        follower = self._followers.get(conv_id)
        if follower is not None:
            follower.put(told)

    async def _tick_forever(self) -> None:
        while True:
            self._tick_at_ms = self.session.timer_at_ms
            self._sooner.clear()
            left_ms = None if self._tick_at_ms is None else max(0, self._tick_at_ms - self._now_ms())
            try:
                async with asyncio.timeout(None if left_ms is None else left_ms / 1000):
                    await self._sooner.wait()
            except TimeoutError:
                self._carry_out(self.session.tick(self._now_ms()))

    async def _serve(self, conn: int) -> None:
        """A connection from its first step to its end."""
        socket = LiveSocket()
        end = await socket.open(self._base, await self._new_token(), self._connect_timeout_s)
        if end is None:
            self._sockets[conn] = socket
            self._be_patient(True)
            writer = self._spawn(socket.write())
            try:
                async for frame in socket.frames():
                    if not self._hear(conn, socket, frame):
                        await socket.close(_PROTOCOL_ERROR, "an item was not understood")
                end = socket.end
                if self._up is socket and self.session.link.is_malformed(end.code):
                    self.asks.called_malformed(self.session.link.refusal or end.reason)
            finally:
                writer.cancel()
                self._lose(conn)
        self._serving.pop(conn, None)
        self._note_end(conn, end, socket.is_welcomed)

    def _note_end(self, conn: int, end: SocketEnd, was_up: bool) -> None:
        now_ms = self._now_ms()
        self.asks.unreachable(end.reason, was_up)
        if end.status is None:
            self._carry_out(self.session.closed(conn, end.code, end.reason, now_ms))
        else:
            retry_after_ms = int(end.retry_after_s * 1000)
            self._carry_out(self.session.refused(conn, end.status, end.reason, retry_after_ms, now_ms))

    def _hear(self, conn: int, socket: LiveSocket, frame: list[dict[str, Any]]) -> bool:
        """Take a frame; False where it is not what the contract says."""
        try:
            read = [(item, heard_item(item)) for item in frame]
            welcomes = [Welcome.of(item) for item in frame if item["t"] == "welcome"]
        except READ_ERRORS as e:
            log.warning("an item of the server is not what the contract says: %s: %s", type(e).__name__, e)
            return False
        for welcome in welcomes:
            socket.be_welcomed(welcome)
        for item, heard in read:
            self._take(conn, item, heard)
        if welcomes and self.session.link.is_current(conn):
            self._up = socket
            self._was_welcomed = True
            self._be_patient(False)
            self.asks.go_on()
        elif self.asks.is_careful:
            self.asks.go_on()
        return True

    def _be_patient(self, has_begun: bool) -> None:
        """A connection that is made and says no welcome is no server that is away: who follows must not wait for ever.
        Once there was a welcome it is known what is there."""
        if has_begun and self._patience is None and not self._was_welcomed:
            self._patience = asyncio.get_running_loop().call_later(self._env.timeout_s, self._lose_patience)
        elif not has_begun and self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        self._patience = None
        detail = f"{self._shown_url}: a connection was made, and no welcome within {self._env.timeout_s:g} s"
        for follower in list(self._followers.values()):
            self.leave(follower)
            follower.fail(UnavailableError(f"{detail}; is there an imray server, with live delivery?"))

    def _take(self, conn: int, item: dict[str, Any], heard: items.HeardItem[Message] | None) -> None:
        now_ms = self._now_ms()
        if heard is None or (isinstance(heard, items.ErrorHeard) and self.asks.refused(heard, item)):
            self.session.heard(conn, now_ms)
            ref = item.get("ref")
            if item["t"] in _ANSWERS and isinstance(ref, int):
                self.asks.answered(ref, item)
            elif item["t"] == "signal":
                self._tell_signal(item)
        else:
            self._carry_out(self.session.item(conn, heard, now_ms))

    def _tell_signal(self, item: dict[str, Any]) -> None:
        conv_id = str(item.get("conv_id"))
        follower = self._followers.get(conv_id)
        if follower is None or follower.on_signal is None:
            return
        signal = LiveSignal(conv_id, str(item.get("sender")), str(item.get("kind")), item.get("data"))
        try:
            follower.on_signal(signal)
        except Exception:  # the caller's function: it must not end the connection
            log.exception("a callback for signals failed")

    def _write_ask(self, ask: LiveAsk) -> None:
        if self._up is None or ask.is_written or ask.answer.done():
            return
        try:
            self._up.put({**ask.item, "ref": ask.ref})
        except InvalidError as e:
            ask.answer.set_exception(e)
            return
        ask.is_written = True
        ask.tries += 1
        ask.last = "no answer yet"

    def _close(self, conn: int, reason: str) -> None:
        socket = self._sockets.get(conn)
        self._lose(conn)
        if socket is not None:
            self._spawn(socket.close(reason=reason))
        elif conn in self._serving:
            self._serving.pop(conn).cancel()
            self.asks.unreachable(reason, was_up=False)

    def _lose(self, conn: int) -> None:
        """Nothing is written over this connection any more."""
        socket = self._sockets.pop(conn, None)
        if socket is not None and socket is self._up:
            self._up = None
            self.asks.disconnected()

    async def _new_token(self) -> str | None:
        if self._token is None or isinstance(self._token, str):
            return self._token
        token = self._token()
        return checked_token(await token if inspect.isawaitable(token) else token)

    async def _renew(self, conn: int) -> None:
        if not callable(self._token):
            return  # the only one there is expires, and the server says so
        token = await self._new_token()
        if conn in self._sockets and token is not None:
            self._sockets[conn].put({"t": "auth", "token": token, "ref": self.session.new_ref()})

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._note_done)
        return task

    def _note_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:  # it would wait for ever otherwise
            log.error("a live connection failed", exc_info=error)
            self._fail(error if isinstance(error, ImrayError) else ServerError(f"{type(error).__name__}: {error}"))

    def _fail(self, error: ImrayError) -> None:
        for follower in self._followers.values():
            follower.fail(error)
        self._followers.clear()
        self._end(error)

    def _end(self, error: ImrayError) -> None:
        if self._over is None:
            self._over = error
            self.asks.fail(error)
            self._carry_out(self.session.stop())

    def _now_ms(self) -> int:
        return int(self._env.clock_s() * 1000)


def _item_of(part: tuple[int, Message] | Void) -> Message | Hole:
    return Hole(part.from_seq, part.to_seq, part.reason) if isinstance(part, Void) else part[1]
