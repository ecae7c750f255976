"""What feeds tell those who listen, and what they need of a listener's connection.

Owns the types between `imray.engine.feeds` and whoever has connections. Does not own how anything looks on the wire: an
`Encoder` makes that, once for all who share it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, TypeAlias

from imray.core.messages import MessageRow


@dataclass(slots=True, eq=False)
class Batch:
    """Numbers of one conversation in their order: each above `after` up to `upto` is a message or in a hole."""

    conv_id: str
    after: int
    upto: int
    stable: int
    messages: list[MessageRow]
    """Ascending. Nobody changes them: other batches may share them."""
    holes: list[tuple[int, int, str]]
    """First number, last number, reason."""
    _encoded: dict[Encoder, bytes] = field(default_factory=dict)

    def encoded(self, encoder: Encoder) -> bytes:
        """What goes to a listener; made once for each encoder."""
        found = self._encoded.get(encoder)
        if found is None:
            found = self._encoded[encoder] = encoder(self)
        return found

    @property
    def encoded_bytes(self) -> int:
        """Bytes of what was made for listeners."""
        return sum(map(len, self._encoded.values()))


Encoder: TypeAlias = Callable[[Batch], bytes]
"""Makes the bytes that a connection writes for a batch: a whole frame of its protocol. One function for each protocol,
not one for each connection: its results are shared."""


class EndReason(StrEnum):
    """Why a subscription ended."""

    REMOVED = "removed"
    """The listener is no member any more."""
    UNAVAILABLE = "unavailable"
    """Nothing can be told now: to be subscribed again later."""


@dataclass(frozen=True, slots=True)
class Behind:
    """A listener did not keep up: what is above `after` up to `head` was left out, and live goes on above."""

    conv_id: str
    after: int
    head: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A subscription is over; every message up to `after` was told."""

    conv_id: str
    after: int
    reason: EndReason


@dataclass(frozen=True, slots=True)
class HeadMoved:
    """For passive listeners: the last number, and how many are above what the listener had."""

    conv_id: str
    seq: int
    unread: int


@dataclass(frozen=True, slots=True)
class Signal:
    """An ephemeral signal of somebody who listens, or not."""

    conv_id: str
    sender: str
    kind: str
    data: bytes
    """JSON."""


Notice: TypeAlias = Behind | Ended | HeadMoved | Signal


class Listener(Protocol):
    """One device's connection, as feeds see it. All of it is called on the event loop, and must not raise."""

    sender: str
    """Whom the connection's token speaks for."""
    service: bool
    encoder: Encoder

    def offer(self, data: bytes) -> bool:
        """Write this, after what was offered before. False: too much waits already, and nothing was taken;
        `Feeds.resume` must be called once there is room again."""

    def notify(self, notice: Notice) -> None:
        """Tell this, after what was offered before. Small and seldom: it is taken even where there is no room; a signal
        may be dropped then."""


@dataclass(frozen=True, slots=True)
class Subscribed:
    """A subscription is there, and silent until `Feeds.start`."""

    conv_id: str
    after: int
    """Everything above it will be told."""
    live: int
    """From this number on live."""
    stable: int
    epoch: int
