"""What the parts of the live side are to each other: a gateway's engine with its feeds, and a session's connection.

Owns these types, and the codes with which connections are closed. Does nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from api.auth import Authenticator, Caller
from api.live_items import ServerItem
from api.problems import ProblemError, refused
from api.rights import check_listens
from imray.core.replies import Refusal
from imray.engine.engine import Engine
from imray.engine.feeds import Feeds
from imray.engine.listening import Listener

VERSION: Final = 1
"""Of the protocol."""

GOING_AWAY: Final = 1001
WRONG_KIND: Final = 1003
UNEXPECTED: Final = 1011
LATER: Final = 1013
MALFORMED: Final = 4400
TOKEN: Final = 4401
TOO_MUCH: Final = 4429

_REASON_BYTES_MAX: Final = 123
"""Of a close frame (RFC 6455, 5.5)."""


def reason_of(problem: ProblemError | None) -> str:
    """What a close frame says."""
    return "" if problem is None else problem.detail.encode()[:_REASON_BYTES_MAX].decode(errors="ignore")


class LiveEngine:
    """What all listeners of a gateway share."""

    def __init__(self, engine: Engine, auth: Authenticator) -> None:
        self.engine = engine
        self.auth = auth
        self.settings = engine.settings

    @property
    def feeds(self) -> Feeds:
        """What listeners are told."""
        return self.engine.feeds

    async def check_listens(self, conv_id: str, caller: Caller) -> None:
        """ProblemError where the caller may not pull and listen, or nobody can say so."""
        await check_listens(self.engine, conv_id, caller)

    async def mark_read(self, conv_id: str, caller: Caller, seq: int) -> None:
        """It is durable that the caller has read up to `seq`; ProblemError where it is not."""
        await check_listens(self.engine, conv_id, caller)
        marked = await self.engine.members.mark_read(conv_id, caller.sender, seq)
        if isinstance(marked, Refusal):
            raise refused(marked, caller.service)

    def check_subscribes(self, caller: Caller) -> None:
        """One more subscription; ProblemError 429 where the caller makes too many."""
        self.auth.rates.subscribe(caller.sender, caller.service)


class Wire(Listener, Protocol):
    """A session's connection: a listener that can be answered."""

    def tell(self, items: Sequence[ServerItem]) -> None:
        """Write these, after what was told before."""

    def close(self, code: int, problem: ProblemError | None = None) -> None:
        """Say why, and close. Nothing is told after it, and nothing more is read."""

    def admitted(self, caller: Caller, left_s: float) -> None:
        """A token was taken, for so long."""

    def work_done(self) -> None:
        """Less is in work: perhaps there is reason to read on."""

    async def room(self) -> None:
        """Wait until little is unsent. A connection that is lost has room."""
