"""What a client's delivery session takes and gives: the server's items, and the actions that they lead to.

Owns these types. Does not own what an item means (`imray.core.delivery`) or how it looks on the wire: whoever has the
connection reads frames, and turns seconds into milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeAlias, TypeVar

from imray.core.reorder import Void

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class WelcomeHeard:
    """The connection is ready."""

    ping_interval_ms: int


@dataclass(frozen=True, slots=True)
class SubscribedHeard:
    """Every message above `after` follows."""

    ref: int
    conv_id: str
    after: int
    stable_seq: int
    epoch: int


@dataclass(frozen=True, slots=True)
class MessagesHeard(Generic[T]):
    """Every number above `after` up to `upto` is in `messages`, as (conv_seq, message), or in `holes`."""

    conv_id: str
    after: int
    upto: int
    stable_seq: int
    messages: list[tuple[int, T]]
    holes: list[Void] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class HeadHeard:
    """For passive listeners: the last number, and how many are unread."""

    conv_id: str
    seq: int
    unread: int


@dataclass(frozen=True, slots=True)
class BehindHeard:
    """Messages above `after` up to `head` were left out."""

    conv_id: str
    after: int
    head: int


@dataclass(frozen=True, slots=True)
class EndedHeard:
    """The subscription is over."""

    conv_id: str
    after: int
    reason: str


@dataclass(frozen=True, slots=True)
class ErrorHeard:
    """A refusal: of what `ref` asked, or without one of the whole connection, which is closed after it."""

    ref: int | None
    status: int
    detail: str
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True)
class DrainHeard:
    """The gateway ends: come back after so long."""

    reconnect_in_ms: int


@dataclass(frozen=True, slots=True)
class ExpiringHeard:
    """The token expires soon."""


HeardItem: TypeAlias = (
    WelcomeHeard
    | SubscribedHeard
    | MessagesHeard[T]
    | HeadHeard
    | BehindHeard
    | EndedHeard
    | ErrorHeard
    | DrainHeard
    | ExpiringHeard
)


@dataclass(frozen=True, slots=True)
class Connect:
    """Open a connection, and call every event of it with this number. Numbers count up and are never used again."""

    conn: int


@dataclass(frozen=True, slots=True)
class Close:
    """Close this connection; what still comes from it counts for nothing."""

    conn: int
    reason: str


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Send `subscribe`. `after` None: from now on."""

    conn: int
    ref: int
    conv_id: str
    after: int | None
    passive: bool


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Send `unsubscribe`; its answer matters to nobody."""

    conn: int
    ref: int
    conv_id: str


@dataclass(frozen=True, slots=True)
class Ping:
    """Send `ping`: nothing was heard for a while."""

    conn: int
    ref: int


@dataclass(frozen=True, slots=True)
class Renew:
    """Send `auth` with a new token."""

    conn: int


@dataclass(frozen=True, slots=True)
class Show(Generic[T]):
    """Show these in this order: (conv_seq, message), or a Void where numbers will never be messages."""

    conv_id: str
    parts: list[tuple[int, T] | Void]


@dataclass(frozen=True, slots=True)
class ShowHead:
    """A conversation that is followed passively stands there."""

    conv_id: str
    seq: int
    unread: int


@dataclass(frozen=True, slots=True)
class Over:
    """The conversation is not followed any more: `status` (as HTTP's) and `detail` say why."""

    conv_id: str
    status: int
    detail: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The whole session is over: another try would end the same. `status` as HTTP's."""

    status: int
    detail: str


DeliveryAction: TypeAlias = (
    Connect | Close | Subscribe | Unsubscribe | Ping | Renew | Show[T] | ShowHead | Over | Failed
)
