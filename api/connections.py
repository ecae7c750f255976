"""Connections that cannot hold up or fill a gateway: uvicorn's HTTP/1.1 protocol with bounds and deadlines.

uvicorn bounds neither the size of headers nor the time that a client takes for its headers, its body, or for reading
its answer. In the way of a request stand a few integer operations; deadlines are looked at for all connections
together, a few times a second at most.
"""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api.limits import CALLING, Limits, announces_body, body_behind_upgrade, over_budget, refuse_crowded
from api.problems import ProblemError
from api.watch import ReadingPace, Watch, unsent
from api.whole import WHOLE, answer_whole

HEALTH = frozenset({b"/livez", b"/readyz"})
"""Answered whatever else is refused: who watches a gateway must not take a busy one for a dead one."""

_IDLE, _HEAD, _BODY, _DEAF, _LINGER = range(5)
"""What a connection waits for: a request, the rest of its headers, the rest of its body; DEAF: nothing more is read, it
is closed after the answers that are under way; LINGER: it was refused, and what still comes is thrown away."""

_PIPELINE_MAX = 32
"""Requests that wait for the answer to the one before. A read of 256 KB holds 14,000, each of 2 KB in memory."""
_LINE_BYTES = 4
"""Of a header's line, beside name and value."""
_LINGER_S = 2.0
"""A refused client may still be sending: closed at once, the kernel would take back the refusal from it, too."""


class GuardedProtocol(HttpToolsProtocol):
    """One connection. `api.live_upgrade.guarded` makes the class that uvicorn takes."""

    limits: ClassVar[Limits]
    watch: ClassVar[Watch]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._stage = _HEAD
        self._step = 0  # counts changes of the stage, so that no clock is read in the way of a request
        self._seen_step = 0
        self._seen_at = self.loop.time()
        self._pace = ReadingPace()
        self._progress = 0
        self._fed = b""
        self._bare_bytes = 0
        self.url = b""
        self.headers = []
        self._reading: RequestResponseCycle | None = None
        self._running: RequestResponseCycle | None = None
        self._postponed: tuple[RequestResponseCycle, Any] | None = None
        self._upgrades = False
        self.account = self.limits.account(self.client[0] if self.client else "")
        self._refusal = self.account.admit(transport.abort)
        self.watch.join(self)
        if self._refusal is not None:
            self.watch.join_spare(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._running is not None:
            cast(Any, self._running.scope).pop(WHOLE, None)  # it holds the connection, which holds it
        self.watch.leave(self)
        self.account.end()

    def data_received(self, data: bytes) -> None:
        if self._stage >= _DEAF:
            return
        if self._stage == _IDLE:
            self._enter(_HEAD)
        elif self._stage == _BODY and self.account.subject is not None:
            # not with the first bytes: by now the app has looked at the token
            self.account.identify()
        progress = self._progress
        self._fed = data
        super().data_received(data)
        self._fed = b""
        if self._progress != progress or (self._stage != _HEAD and self._stage != _BODY):
            self._bare_bytes = 0
            return
        # nothing but a part of headers, or of what stands around a body's chunks and after them
        self._bare_bytes += len(data)
        self._check_head(self._bare_bytes)

    def _check_head(self, size: int) -> bool:
        """Refuse headers over a bound; of the lines after a chunked body, too."""
        settings = self.limits.settings
        if len(self.url) > settings.url_bytes_max:
            detail = f"the path and query have more than {settings.url_bytes_max} bytes"
            self._refuse(ProblemError(414, "too-large", detail))
        elif size > settings.header_bytes_max or len(self.headers) > settings.header_lines_max:
            detail = f"more than {settings.header_bytes_max} bytes or {settings.header_lines_max} lines of headers"
            self._refuse(ProblemError(431, "too-large", detail))
        else:
            return True
        return False

    def _enter(self, stage: int) -> None:
        self._stage = stage
        self._step += 1

    # what the parser finds

    def on_message_begin(self) -> None:
        if self._stage >= _DEAF:
            return
        super().on_message_begin()
        self._reading = None
        self._trailers = 0
        self._enter(_HEAD)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage == _HEAD:
            super().on_header(name, value)
            if len(self.headers) > self.limits.settings.header_lines_max:
                self._check_head(0)
        elif self._stage == _BODY:
            # lines after a chunked body: nothing reads them, and they must not pass for headers
            self._trailers += 1
            if self._trailers > self.limits.settings.header_lines_max:
                self._check_head(self.limits.settings.header_bytes_max + 1)

    def on_headers_complete(self) -> None:
        if self._stage >= _DEAF:
            return
        self._progress += 1
        self.account.arrive()
        if len(self.pipeline) >= _PIPELINE_MAX:
            self._close_after(self.cycle)
            return
        if not self._check_head(self._head_bytes()):
            return
        upgrade = self.parser.should_upgrade()
        if upgrade and announces_body(self.headers):
            self._refuse(body_behind_upgrade())
            return
        self._enter(_BODY)
        self.account.begin()
        crowded = len(self.tasks) >= self.limits.settings.requests_at_once_max
        if not crowded and self._refusal is None:
            self._upgrades = upgrade and self._may_upgrade()
            if self._upgrades:
                return
            super().on_headers_complete()
            self._reading = self.cycle
            self.cycle.keep_alive &= not upgrade  # the parser reads no further
            return
        healthy = self.url.partition(b"?")[0] in HEALTH
        if self._refusal is not None and not healthy:
            self._refuse(self._refusal, with_body=self.parser.get_method() != b"HEAD")
            return
        if not healthy:
            self.app = cast(Any, refuse_crowded)
        super().on_headers_complete()
        self._reading = self.cycle
        self.app = self.config.loaded_app
        if self._refusal is not None:
            self.cycle.keep_alive = False

    def _may_upgrade(self) -> bool:
        """Whether the request's connection becomes another protocol's: see `api.live_upgrade`."""
        return False

    def _head_bytes(self) -> int:
        """Of complete headers; counted only where they can be too large."""
        if self._bare_bytes + len(self._fed) <= self.limits.settings.header_bytes_max:
            return 0
        return len(self.url) + sum(len(name) + len(value) + _LINE_BYTES for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        if self._stage >= _DEAF:
            return
        self._progress += 1
        if self.cycle.response_complete:
            return
        cycle = cast(Any, self.cycle)
        cycle.asked_bytes = getattr(cycle, "asked_bytes", 0) + len(body)
        if self.account.take_asked(len(body)):
            super().on_body(body)
        else:
            self._refuse(over_budget())

    def on_message_complete(self) -> None:
        if self._stage >= _DEAF:
            return
        self._enter(_IDLE)
        super().on_message_complete()

    # what the app does

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        if self.flow.write_paused:
            # no answer is made for a client that has not read the one before: it would have to be kept, too
            self._postponed = (cycle, app)
            return
        cast(Any, cycle.scope)[WHOLE] = self._answer_whole
        CALLING.set(self.account)  # the task takes it along
        super()._start_asgi_task(cycle, app)

    def _answer_whole(self, status: int, content: bytes) -> bool:
        """For the request in work. No `partial` over its cycle: the two would hold each other."""
        return answer_whole(cast(RequestResponseCycle, self._running), status, content)

    def on_response_complete(self) -> None:
        self._charge_asked(self._running)
        self._pace.reset()
        self.account.rest()
        super().on_response_complete()

    def _charge_asked(self, cycle: RequestResponseCycle | None) -> None:
        """A request is answered: its body is gone. That of one behind it is not."""
        size = getattr(cycle, "asked_bytes", 0)
        if size:
            cast(Any, cycle).asked_bytes = 0
            self.account.charge_asked(size)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.account.blocked = True

    def resume_writing(self) -> None:
        super().resume_writing()
        self._pace.reset()  # it has read what waited: a long answer is written part by part
        self.account.blocked = False
        self.account.charge_written()
        if self._postponed is not None:
            cycle, app = self._postponed
            self._postponed = None
            self._start_asgi_task(cycle, app)

    # deadlines

    def look(self, now: float) -> None:
        """Refuse or close what is late."""
        unread = self.transport.get_write_buffer_size()
        stream = self.account.stream
        if unread:
            # of an answer that does not end something is written all the time
            taken = (0 if stream is None else stream.written) - unread - unsent(self.transport)
            if not self._pace.keeps_up(now, taken, self.limits.settings):
                self.transport.abort()
                return
        elif stream is not None:
            self._pace.reset()
        busy = self._running is not None and not self._running.response_complete and not self._running.disconnected
        if self._step != self._seen_step or self.flow.read_paused or (self._stage == _IDLE and busy):
            # time in which we do not read is not the client's
            self._seen_step = self._step
            self._seen_at = now
            return
        if now - self._seen_at > self._deadline_s():
            self._late()

    def _deadline_s(self) -> float:
        settings = self.limits.settings
        if self._stage == _HEAD:
            return settings.header_deadline_s
        if self._stage == _BODY:
            return settings.request_deadline_s
        if self._stage == _LINGER:
            return _LINGER_S
        if self._stage == _IDLE:
            return self.timeout_keep_alive + 1  # uvicorn's own timer is lost when a body ends after its answer
        return float("inf")

    def _late(self) -> None:
        if self._stage == _LINGER:
            self.transport.abort()
        elif self._stage == _IDLE or (self._stage == _HEAD and not self._bare_bytes):
            self.transport.close()  # it said nothing: there is nothing to answer
        elif self._stage == _BODY and self._reading is not None and self._reading.response_complete:
            self.transport.abort()  # it has its answer, and does not stop sending
        else:
            what = "headers" if self._stage == _HEAD else "body"
            self._refuse(ProblemError(408, "late", f"the request's {what} took longer than {self._deadline_s():g} s"))

    # refusals

    def send_400_response(self, msg: str) -> None:
        if self._stage < _DEAF:
            self._refuse(ProblemError(400, "invalid", msg))

    def _close_after(self, cycle: RequestResponseCycle) -> None:
        """Read no more; answers to earlier requests still go out."""
        cycle.keep_alive = False
        self._enter(_DEAF)

    def _refuse(self, problem: ProblemError, with_body: bool = True) -> None:
        """Answer the request that is being read, and close. What it sends from now on is thrown away."""
        own = self._reading if self._stage == _BODY else None
        if own is not None and self.pipeline and self.pipeline[0][0] is own:
            self.pipeline.popleft()
        before = self.pipeline[0][0] if self.pipeline else self._running
        if before is not None and before is not own and not before.response_complete:
            self._close_after(before)
            return
        self._enter(_LINGER)
        self._unset_keepalive_if_required()
        self._charge_asked(own)
        self.headers = []
        started = False
        if own is not None and not own.response_complete:
            started = own.response_started
            own.disconnected = True
            own.body = bytearray()
            own.message_event.set()
        if self.transport.is_closing():
            return
        if started or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.flow.resume_reading()
        self.transport.write(self._document(problem, with_body))
        self.transport.write_eof()

    def _document(self, problem: ProblemError, with_body: bool) -> bytes:
        response = problem.response()
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
        lines = b"".join(b"%b: %b\r\n" % header for header in headers)
        return STATUS_LINE[problem.status] + lines + b"\r\n" + (bytes(response.body) if with_body else b"")
