"""Who a live connection speaks for, and which way each of its items takes.

Owns tokens and their renewal, and the order of a frame's items. Does not own bytes or moments (`api.live_connection`),
nor what is done about an item (`api.live_sends`, `api.live_work`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from api.auth import Caller
from api.checks import invalid
from api.limits import Account
from api.live_formats import Format
from api.live_items import (
    AuthItem,
    BadItem,
    ClientItem,
    OkItem,
    PingItem,
    PongItem,
    PullItem,
    ReadItem,
    SendItem,
    ServerItem,
    SubscribeItem,
    WelcomeItem,
)
from api.live_pages import LivePages
from api.live_sends import LiveSends, error_of
from api.live_talk import SmallTalk
from api.live_wire import LATER, TOKEN, TOO_MUCH, VERSION, LiveEngine, Wire
from api.live_work import LiveWork
from api.problems import ProblemError
from imray.engine.listening import Notice

_CLOSE_CODES: Final = {401: TOKEN, 429: TOO_MUCH}
"""By the status of a problem with the first token; any other means to come back later."""
_REQUESTS: Final = (PullItem, ReadItem, SubscribeItem, AuthItem)
"""Each counts as a request, as it would over HTTP."""


class LiveSession:
    """One connection's."""

    __slots__ = ("_account", "_caller", "_format", "_live", "_pages", "_sends", "_talk", "_wire", "_work")

    def __init__(
        self, live: LiveEngine, pages: LivePages, wire: Wire, account: Account, spoken: Format, talk: SmallTalk
    ) -> None:
        """`talk` counts items that ask for nothing."""
        self._live = live
        self._pages = pages
        self._wire = wire
        self._account = account
        self._format = spoken
        self._talk = talk
        self._caller: Caller | None = None
        self._sends: LiveSends | None = None
        """Made when it sends: most connections listen."""
        self._work: LiveWork | None = None

    @property
    def busy(self) -> bool:
        """So much is in work that nothing more should be read."""
        sends = self._sends
        if sends is not None and sends.in_flight >= self._live.settings.live_sends_in_flight_max:
            return True
        return self._work is not None and self._work.busy

    @property
    def idle(self) -> bool:
        """No send is without its answer, and nothing else is in work."""
        return (self._sends is None or not self._sends.in_flight) and (self._work is None or not self._work.count)

    def admit(self, caller: Caller) -> None:
        """The first token is good: welcome."""
        self._caller = caller
        self._account.subject = caller.sender
        self._account.identify()
        self._account.arrive()
        left_s = self._live.auth.seconds_left(caller)
        self._wire.admitted(caller, left_s)
        settings = self._live.settings
        welcome = WelcomeItem(
            version=VERSION,
            sender=caller.sender,
            service=caller.service,
            expires_in_s=int(left_s),
            ping_interval_s=settings.live_ping_interval_s,
            items_max=settings.live_items_max,
            frame_bytes_max=settings.live_frame_bytes_max,
        )
        self._wire.tell([welcome])

    def take(self, items: Sequence[ClientItem | BadItem]) -> None:
        """The items of a frame, in their order."""
        if self._caller is None:
            if not self._first(items[0]):
                return
            items = items[1:]
            if not items:
                return
        if not self._within_rates(items):
            return
        sends: list[SendItem] = []
        for item in items:
            if isinstance(item, SendItem):
                sends.append(item)
            elif isinstance(item, PingItem | AuthItem | BadItem):
                if not self._converse(item):
                    return
            else:
                if self._work is None:
                    self._work = LiveWork(self._live, self._pages, self._wire, self._format, self._known)
                self._work.add(item)
        if sends:
            self._send(sends)

    def flush(self) -> None:
        """Everything that came with one read is here."""
        if self._sends is not None:
            self._sends.flush(self._known().service)

    def noticed(self, notice: Notice) -> None:
        """The connection is told this."""
        if self._work is not None:
            self._work.noticed(notice)

    def resume(self) -> None:
        """There is room again for what listeners are told."""
        if self._work is not None:
            self._work.resume()

    def lost(self) -> None:
        """The connection is over. What was sent goes on: it may be written already."""
        if self._work is not None:
            self._work.close()

    def _known(self) -> Caller:
        assert self._caller is not None
        return self._caller

    def _converse(self, item: PingItem | AuthItem | BadItem) -> bool:
        """False: the connection is closed."""
        if not self._talk.more():
            detail = "too many items that ask for nothing: `ping`, `auth`, bad fields"
            self._wire.close(TOO_MUCH, ProblemError(429, "too-many", detail))
            return False
        if isinstance(item, AuthItem):
            return self._renew(item)
        self._wire.tell([PongItem(item.ref) if isinstance(item, PingItem) else error_of(invalid(item.why), item.ref)])
        return True

    def _verified(self, item: AuthItem) -> Caller:
        return self._live.auth.verify(f"Bearer {item.token}")

    def _first(self, item: ClientItem | BadItem) -> bool:
        if not isinstance(item, AuthItem):
            problem = ProblemError(401, "unauthenticated", "the first item must be `auth`, with a token")
            self._wire.close(TOKEN, problem)
            return False
        try:
            caller = self._verified(item)
            self._live.auth.rates.request(caller.sender, caller.service)
        except ProblemError as e:
            self._wire.close(_CLOSE_CODES.get(e.status, LATER), e)
            return False
        self.admit(caller)
        return True

    def _renew(self, item: AuthItem) -> bool:
        """False: the connection is closed."""
        try:
            caller = self._verified(item)
            known = self._known()
            if (caller.sender, caller.service) != (known.sender, known.service):
                # what was asked for was allowed for the role that it had
                detail = "the token speaks for somebody else, or in another role, than the one before: connect anew"
                raise ProblemError(401, "unauthenticated", detail)
        except ProblemError as e:
            if e.status == 401:
                self._wire.close(TOKEN, e)
                return False
            if item.ref is not None:
                self._wire.tell([error_of(e, item.ref)])
            return True  # the token before is good still
        self._caller = caller
        self._wire.admitted(caller, self._live.auth.seconds_left(caller))
        if item.ref is not None:
            self._wire.tell([OkItem(item.ref)])
        return True

    def _within_rates(self, items: Sequence[ClientItem | BadItem]) -> bool:
        """A frame counts as a request, or as many as are in it."""
        caller = self._known()
        count = sum(isinstance(item, _REQUESTS) for item in items)
        try:
            self._live.auth.rates.request(caller.sender, caller.service, max(1, count))
        except ProblemError as e:
            self._wire.tell([error_of(e, item.ref) for item in items if item.ref is not None])
            return False
        return True

    def _send(self, items: list[SendItem]) -> None:
        if self._sends is None:
            self._sends = LiveSends(self._live.engine, self._live.auth.rates, self._account, self._answered)
        if errors := self._sends.take(items, self._known()):
            self._wire.tell(errors)

    def _answered(self, answers: Sequence[ServerItem]) -> None:
        self._wire.tell(answers)
        self._wire.work_done()
