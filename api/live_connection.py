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

from api.auth import Caller
from api.limits import Account, over_budget
from api.live_formats import JSON, Format, Payload, frames_of, notice_item
from api.live_items import DrainItem, ExpiringItem, ServerItem
from api.live_lanes import Room
from api.live_pages import LivePages
from api.live_pulse import Due, Pulse
from api.live_reader import HalfMessage, LiveReader, TooManyFramesError, WrongKindError
from api.live_sends import error_of
from api.live_session import LiveSession
from api.live_talk import SmallTalk
from api.live_wire import GOING_AWAY, LATER, MALFORMED, TOKEN, TOO_MUCH, UNEXPECTED, WRONG_KIND, LiveEngine, reason_of
from api.problems import ProblemError, unexpected
from api.watch import Watch, unsent
from imray.core.errors import InvalidError
from imray.engine.listening import Notice, Signal

log = logging.getLogger("imray.live")

_CHANCE: Final = random.SystemRandom()
_RECONNECT_S_MIN: Final = 0.5
_DRAIN_S_MAX: Final = 3.0
"""How long a gateway that ends waits for answers to what a connection has sent."""


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
        self._talk = SmallTalk(self.loop.time())
        self._reader = LiveReader(spoken.opcode, live.settings.live_frame_bytes_max, self._talk)
        self._half = HalfMessage(self._reader, account, self.loop.time())
        self._session = LiveSession(live, pages, self, account, spoken, self._talk)
        self._pulse = Pulse(self.loop.time(), live.settings.header_deadline_s, live.settings.live_ping_interval_s)
        self._told: list[ServerItem] = []
        """To be written in one frame, at the end of this step of the event loop."""
        self._written = 0
        self._taken = 0
        """Bytes that the peer has taken, as of the last look."""
        self._write_paused = False
        self._read_paused = False
        self._steps_on = False
        """The next step of reading is to come."""
        self._room = Room()
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
        self._reader.drop()
        self._siblings.discard(self)
        self._watch.leave(self)
        self._session.lost()
        self._room.give()
        self._account.end()

    def data_received(self, data: bytes) -> None:
        self._pulse.heard = True
        first = not self._reader.waiting
        self._reader.add(data)
        if first:
            self._step()

    def _step(self) -> None:
        try:
            for payload in self._reader.step():
                if not self._over:
                    self._take(payload)
            if not self._over:
                self._session.flush()
        except WrongKindError:
            kind = "text" if self._format is JSON else "binary"
            self.close(WRONG_KIND, ProblemError(400, "invalid", f"{self._format.subprotocol} is {kind} frames"))
        except TooManyFramesError:
            self.close(TOO_MUCH, ProblemError(429, "too-many", "too many frames that say nothing: pings, tiny parts"))
        except Exception:
            log.exception("a live connection failed")
            self.close(UNEXPECTED, unexpected())
        if not self._over and not self._reader.is_open:
            self._write_told()  # the client has closed, or broken the rules: the machine's answer is not written yet
            self._ends()
        if not self._over and not self._half.charge():
            self.close(LATER, over_budget())
        self._send_protocol()
        self._balance()

    def eof_received(self) -> bool:
        self._reader.drop()  # nothing is there: while something waits the socket is not read
        if not self._reader.machine.eof_sent:
            self._reader.machine.receive_eof()
        return False  # the transport closes

    def pause_writing(self) -> None:
        self._write_paused = True
        self._account.blocked = True

    def resume_writing(self) -> None:
        self._write_paused = False
        self._account.blocked = False
        self._account.charge_written()
        if self._over:
            return
        self._room.give()
        self._balance()
        self._session.resume()

    # what the client says

    def _take(self, payload: Payload) -> None:
        try:
            items = self._format.decode(payload, self._settings.live_items_max)
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
            if not self._account.take_answer(len(data), always=False):
                return False
            self._account.answer_written(len(data))
        if self._told:
            self._write_told()
        self._written += len(data)
        self.transport.write(data)
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
        self._reader.machine.send_close(code, reason_of(problem))
        if code == TOO_MUCH:
            self._reader.stop()
        self._send_protocol()
        self._ends()
        self._balance()

    def admitted(self, caller: Caller, left_s: float) -> None:
        """See `api.live_wire.Wire.admitted`."""
        self.sender = caller.sender
        self.service = caller.service
        self._pulse.known(self.loop.time() + left_s)
        self._talk.known()

    def admit(self, caller: Caller) -> None:
        """The handshake brought a token."""
        self._session.admit(caller)

    def work_done(self) -> None:
        """See `api.live_wire.Wire.work_done`."""
        if self._read_paused:
            self._balance()
        if self._drain_by is not None and self._idle():
            self.close(GOING_AWAY)

    async def room(self) -> None:
        """See `api.live_wire.Wire.room`. Without a deadline of its own: who reads nothing is closed by `look`."""
        while self._write_paused and not self._over:
            await self._room.wait()

    def _write_told(self) -> None:
        told = self._told
        if not told or self._over:
            return
        self._told = []
        for data in frames_of(self._format, told, self._settings.live_items_max):
            self._write(data)

    def _write(self, data: bytes) -> None:
        if self._write_paused:
            # what waits counts while the client does not read; what it asked for it gets
            self._account.take_answer(len(data), always=True)
            self._account.answer_written(len(data))
        self._written += len(data)
        self.transport.write(data)

    def _send_protocol(self) -> None:
        """What the machine has to say: pongs, and the end."""
        for data in self._reader.machine.data_to_send():
            if data:
                self._write(data)
            elif self.transport.can_write_eof():
                self.transport.write_eof()
            else:
                self.transport.close()

    def _ends(self) -> None:
        """Nothing is told or worked for any more, and the peer has a moment to agree."""
        self._over = True
        self._session.lost()
        self._pulse.closing(self.loop.time())
        self._room.give()

    # how much

    def _crowded(self) -> bool:
        return self._write_paused and self.transport.get_write_buffer_size() > self._settings.listener_queue_bytes_max

    def _balance(self) -> None:
        """Read on, or not: not while much is in work, or unsent. What came already is read step by step."""
        held = not self._over and (self._session.busy or self._crowded())
        waiting = self._reader.waiting
        if waiting and not held and not self._steps_on:
            self._steps_on = True
            self.loop.call_soon(self._step_on)
        wanted = held or waiting or self._reader.stopped
        if wanted == self._read_paused or self.transport.is_closing():
            return
        self._read_paused = wanted
        (self.transport.pause_reading if wanted else self.transport.resume_reading)()

    def _step_on(self) -> None:
        self._steps_on = False
        if self._reader.waiting:
            self._step()

    # when

    def look(self, now: float) -> None:
        """See `api.watch.Watched`."""
        if self._drain_by is not None and (now >= self._drain_by or self._idle()):
            self.close(GOING_AWAY)
        self._talk.look(now)
        deadline_s = self._settings.request_deadline_s
        if self._half.is_late(now, self._read_paused, deadline_s):
            self.close(MALFORMED, ProblemError(408, "late", f"a frame took longer than {deadline_s:g} s"))
        due = self._pulse.look(now, self._excused())
        if due is Due.NOTHING:
            return
        if due is Due.GONE:
            self.transport.abort()
        elif due is Due.PING:
            self._reader.machine.send_ping(b"")
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
        self.tell([DrainItem(round(_CHANCE.uniform(_RECONNECT_S_MIN, longest_s), 3))])
        self._drain_by = self.loop.time() + _DRAIN_S_MAX
        if self._idle():
            self.close(GOING_AWAY)

    def _idle(self) -> bool:
        return self._session.idle and not self._reader.waiting
