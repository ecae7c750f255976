"""One WebSocket connection: bytes in, bytes out, and the moments between.

Owns the transport of an upgraded connection. The protocol itself is a machine without I/O (`websockets.protocol`); what
this server tells goes past it, as whole frames that many connections may share. Does not own what items mean
(`api.live_session`).
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any, Final

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, SERVER
from websockets.protocol import Protocol as WebSocket

from api.auth import Caller
from api.limits import Account
from api.live_formats import JSON, Format, notice_item
from api.live_items import DrainItem, ExpiringItem, ServerItem
from api.live_pages import LivePages
from api.live_pulse import Due, Pulse
from api.live_sends import error_of
from api.live_session import LiveSession
from api.live_wire import GOING_AWAY, MALFORMED, TOKEN, UNEXPECTED, WRONG_KIND, LiveEngine
from api.problems import ProblemError, unexpected
from api.watch import Watch, unsent
from imray.core.errors import InvalidError
from imray.engine.listening import Notice, Signal

log = logging.getLogger("imray.live")

_RECONNECT_S_MIN: Final = 0.5
_DRAIN_S_MAX: Final = 3.0
"""How long a gateway that ends waits for answers to what a connection has sent."""
_REASON_BYTES_MAX: Final = 123
"""Of a close frame (RFC 6455, 5.5)."""


class LiveConnection(asyncio.Protocol):
    """A connection after its handshake. Also the listener that `imray.engine.feeds` writes to."""

    def __init__(
        self, live: LiveEngine, pages: LivePages, account: Account, watch: Watch, siblings: set[Any], spoken: Format
    ) -> None:
        """`siblings`: the server's connections, which it tells when it ends."""
        self.loop = asyncio.get_running_loop()
        self.sender = ""
        self.service = False
        self.encoder = spoken.encoder
        self._settings = live.settings
        self._format = spoken
        self._account = account
        self._watch = watch
        self._siblings = siblings
        self._socket = WebSocket(SERVER, state=OPEN, max_size=live.settings.live_frame_bytes_max)
        self._session = LiveSession(live, pages, self, account, spoken)
        self._pulse = Pulse(self.loop.time(), live.settings.header_deadline_s, live.settings.live_ping_interval_s)
        self._parts: bytearray | None = None
        """Of a message that comes in several frames."""
        self._told: list[ServerItem] = []
        """To be written in one frame, at the end of this step of the event loop."""
        self._written = 0
        self._taken = 0
        """Bytes that the peer has taken, as of the last look."""
        self._write_paused = False
        self._read_paused = False
        self._rooms: list[asyncio.Future[None]] = []
        """Pulls that wait until there is room for their page."""
        self._drain_by: float | None = None
        self._over = False
        """A close frame was written, or the connection is lost."""

    # the event loop's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._siblings.add(self)
        self._watch.join(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._siblings.discard(self)
        self._watch.leave(self)
        self._session.lost()
        self._give_room()
        self._account.end()

    def data_received(self, data: bytes) -> None:
        self._pulse.heard = True
        socket = self._socket
        socket.receive_data(data)
        try:
            for frame in socket.events_received():
                if self._over:
                    break
                if isinstance(frame, Frame):
                    self._frame(frame)
            if not self._over:
                self._session.flush()
        except Exception:
            log.exception("a live connection failed")
            self.close(UNEXPECTED, unexpected())
        if not self._over and socket.state is not OPEN:
            self._write_told()  # before the end: the client broke the protocol's rules, and the machine says so
            self._ends()
        self._send_protocol()
        self._balance()

    def eof_received(self) -> bool:
        if not self._socket.eof_sent:
            self._socket.receive_eof()
        return False  # the transport closes

    def pause_writing(self) -> None:
        self._write_paused = True
        self._account.blocked = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._account.blocked = False
        if self._over:
            return
        self._give_room()
        self._balance()
        self._session.resume()

    # what the client says

    def _frame(self, frame: Frame) -> None:
        opcode = frame.opcode
        if opcode is Opcode.CLOSE:
            self._write_told()  # the answering close frame is not written yet
            self._ends()
            return
        if opcode is Opcode.PING or opcode is Opcode.PONG:
            return
        if opcode is Opcode.CONT:
            assert self._parts is not None  # the machine takes no other one
            self._parts += frame.data
        elif opcode != self._format.opcode:
            kind = "text" if self._format is JSON else "binary"
            self.close(WRONG_KIND, ProblemError(400, "invalid", f"{self._format.subprotocol} is {kind} frames"))
            return
        elif not frame.fin:
            self._parts = bytearray(frame.data)
        if not frame.fin:
            return
        data = frame.data if self._parts is None else self._parts
        self._parts = None
        try:
            items = self._format.decode(data, self._settings.live_items_max)
        except InvalidError as e:
            self.close(MALFORMED, ProblemError(400, "invalid", str(e)))
            return
        self._session.take(items)

    # what it is told

    def tell(self, items: Sequence[ServerItem]) -> None:
        """See `api.live_wire.Wire.tell`."""
        if self._over:
            return
        if not self._told:
            self.loop.call_soon(self._write_told)
        self._told += items

    def offer(self, data: bytes) -> bool:
        """See `imray.engine.listening.Listener.offer`. Only a transport that is blocked refuses: it says when it is
        free again, so what waits is at most the bound and one more batch."""
        if self._over:
            return True
        if self._write_paused:
            size = self.transport.get_write_buffer_size()
            if size + len(data) > self._settings.listener_queue_bytes_max:
                return False
        if self._told:
            self._write_told()
        self._write(data)
        return True

    def notify(self, notice: Notice) -> None:
        """See `imray.engine.listening.Listener.notify`."""
        if self._over:
            return
        if isinstance(notice, Signal) and self._crowded():
            return
        self._session.noticed(notice)
        self.tell([notice_item(notice, self._format)])

    def close(self, code: int, problem: ProblemError | None = None) -> None:
        """See `api.live_wire.Wire.close`."""
        if self._over:
            return
        if problem is not None:
            self._told.append(error_of(problem, None))
        self._write_told()
        reason = "" if problem is None else problem.detail.encode()[:_REASON_BYTES_MAX].decode(errors="ignore")
        self._socket.send_close(code, reason)
        self._send_protocol()
        self._ends()
        self._balance()

    def admitted(self, caller: Caller, left_s: float) -> None:
        """See `api.live_wire.Wire.admitted`."""
        self.sender = caller.sender
        self.service = caller.service
        self._pulse.known(self.loop.time() + left_s)

    def admit(self, caller: Caller) -> None:
        """The handshake brought a token."""
        self._session.admit(caller)

    def work_done(self) -> None:
        """See `api.live_wire.Wire.work_done`."""
        if self._read_paused:
            self._balance()
        if self._drain_by is not None and self._session.idle:
            self.close(GOING_AWAY)

    async def room(self) -> None:
        """See `api.live_wire.Wire.room`. Without a deadline of its own: who reads nothing is closed by `look`."""
        while self._write_paused and not self._over:
            room: asyncio.Future[None] = self.loop.create_future()
            self._rooms.append(room)
            await room

    def _write_told(self) -> None:
        told = self._told
        if not told or self._over:
            return
        self._told = []
        items_max = self._settings.live_items_max
        for at in range(0, len(told), items_max):
            self._write(self._format.frame(told[at : at + items_max]))

    def _write(self, data: bytes) -> None:
        self._written += len(data)
        self.transport.write(data)

    def _send_protocol(self) -> None:
        """What the machine has to say: pongs, and the end."""
        for data in self._socket.data_to_send():
            if data:
                self._write(data)
            elif self.transport.can_write_eof():
                self.transport.write_eof()
            else:
                self.transport.close()

    def _ends(self) -> None:
        """Nothing is told any more, and the peer has a moment to agree."""
        self._over = True
        self._pulse.closing(self.loop.time())
        self._give_room()

    # how much

    def _crowded(self) -> bool:
        return self._write_paused and self.transport.get_write_buffer_size() > self._settings.listener_queue_bytes_max

    def _balance(self) -> None:
        """Read on, or not: not while much is in work, or unsent."""
        wanted = not self._over and (self._session.busy or self._crowded())
        if wanted == self._read_paused or self.transport.is_closing():
            return
        self._read_paused = wanted
        if wanted:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _give_room(self) -> None:
        rooms = self._rooms
        self._rooms = []
        for room in rooms:
            if not room.done():
                room.set_result(None)

    # when

    def look(self, now: float) -> None:
        """See `api.watch.Watched`."""
        if self._drain_by is not None and (now >= self._drain_by or self._session.idle):
            self.close(GOING_AWAY)
        due = self._pulse.look(now, self._excused())
        if due is Due.NOTHING:
            return
        if due is Due.GONE:
            self.transport.abort()
        elif due is Due.PING:
            self._socket.send_ping(b"")
            self._send_protocol()
        elif due is Due.WARN:
            self.tell([ExpiringItem(max(0, int(self._pulse.expires_at - now)))])
        elif due is Due.EXPIRED:
            self.close(TOKEN, ProblemError(401, "unauthenticated", "the token has expired: connect with a new one"))
        else:
            detail = f"no `auth` within {self._settings.header_deadline_s:g} s"
            self.close(TOKEN, ProblemError(401, "unauthenticated", detail))

    def _excused(self) -> bool:
        """It reads what waits for it, however slowly, so a ping is behind that; or it is we who do not read."""
        waiting = self.transport.get_write_buffer_size()
        if not waiting:
            return self._read_paused
        taken = self._written - waiting - unsent(self.transport)
        if taken > self._taken:
            self._taken = taken
            return True
        return False

    def shutdown(self) -> None:
        """The server ends: say when to come back, another moment for each, and close once what was sent is answered."""
        if self._over or self._drain_by is not None:
            return
        longest_s = max(_RECONNECT_S_MIN, self._settings.live_reconnect_s_max)
        self.tell([DrainItem(round(random.uniform(_RECONNECT_S_MIN, longest_s), 3))])
        self._drain_by = self.loop.time() + _DRAIN_S_MAX
        if self._session.idle:
            self.close(GOING_AWAY)
