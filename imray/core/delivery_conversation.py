"""One conversation that a client follows: what was shown, what the server's items add to it, when to ask again.

Owns the numbers of one conversation and its pauses. Pure. Does not own connections, refs or the clock
(`imray.core.delivery`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from imray.core.delivery_items import MessagesHeard, SubscribedHeard
from imray.core.errors import InvalidError
from imray.core.reorder import Void

T = TypeVar("T")
_DOUBLINGS_MAX = 30  # beyond it any minimum is past any maximum


def jittered_pause_ms(pause_ms_min: int, pause_ms_max: int, tries: int, share: float) -> int:
    """Full jitter: a `share` (0 to 1, drawn by chance) of a ceiling that doubles with every try."""
    return int(share * min(pause_ms_max, pause_ms_min << min(tries, _DOUBLINGS_MAX)))


class FollowPhase(Enum):
    """What a conversation waits for."""

    IDLE = "a connection: there is none"
    ASKED = "the answer to a subscribe: until then nothing that comes is of that subscription"
    LIVE = "messages"
    PAUSED = "the time to subscribe again"
    HELD = "room for more, on the side of the caller"


@dataclass(frozen=True)
class DeliveryConfig:
    """Bounds of a session."""

    connect_timeout_ms: int = 10_000
    """From the first step of a connection to its welcome: some round trips, and a gateway that just starts."""
    backoff_ms_min: int = 1_000
    backoff_ms_max: int = 30_000
    """The ceiling of the pause before a reconnect; it doubles from the minimum to the maximum."""
    hold_ms: int = 5_000
    """So long a connection must have held before the pauses begin anew: a gateway that takes connections and drops
    them must not be asked ever faster."""
    ping_interval_ms: int = 30_000
    """Until the server has said its own."""
    ping_interval_ms_min: int = 1_000
    ping_interval_ms_max: int = 300_000
    reconnect_ms_max: int = 120_000
    """What `drain` and `retry_after` may ask for: a broken number must not silence a client for ever."""
    answer_timeout_ms: int = 15_000
    """A subscribe without an answer is sent again."""
    stall_timeout_ms: int = 15_000
    """Numbers that the server has named and does not tell are asked for again: longer than a slow catch-up pauses."""
    retry_ms_min: int = 200
    retry_ms_max: int = 15_000
    """The ceiling of the pause before a conversation is asked for again without anything new in between."""
    conversations_max: int = 1_000
    """A gateway takes no more over one connection, unless it is told to."""

    def __post_init__(self) -> None:
        if not (0 < self.backoff_ms_min <= self.backoff_ms_max and 0 < self.retry_ms_min <= self.retry_ms_max):
            raise InvalidError(f"pauses must be positive, and each minimum at most its maximum: {self}")
        if min(vars(self).values()) <= 0:
            raise InvalidError(f"every bound must be positive: {self}")


class FollowedConversation(Generic[T]):
    """Where a client is in one conversation."""

    def __init__(
        self, conv_id: str, after: int | None, passive: bool, before: FollowedConversation[T] | None = None
    ) -> None:
        """`before`: what was followed of the same conversation until now. What it knows of writers stays true."""
        self.conv_id = conv_id
        self.passive = passive
        self.phase = FollowPhase.IDLE
        self.last_shown = after
        """Everything up to it is done. None: it begins with what comes from now on, and where that is was not said."""
        self.due_ms: int | None = None
        """When something is to be done although nothing came."""
        self.ref: int | None = None
        """Of the subscribe without an answer."""
        self.tries = 0
        """How often it was asked for since something new was shown."""
        self.doubts = 0
        """How often in a row its subscribe was out when the server could not read something."""
        self._epoch: int = 0 if before is None else before._epoch
        self._head_told = 0
        self._known = 0
        """The highest number that the server has named."""

    def is_stale(self, item: SubscribedHeard) -> bool:
        """Whether a writer answers that has a successor: it may not know what that one told us already."""
        return item.epoch < self._epoch

    def leaves_gap(self, after: int) -> bool:
        """Whether numbers up to `after` should have been told and were not."""
        return self.last_shown is not None and after > self.last_shown

    def begin(self, item: SubscribedHeard) -> None:
        """A subscription that is believed: messages follow."""
        self.phase = FollowPhase.LIVE
        self.ref = None
        self._epoch = item.epoch
        if self.last_shown is None:
            self.last_shown = item.after
        self.note_number(item.stable_seq)

    def take(self, item: MessagesHeard[T]) -> list[tuple[int, T] | Void]:
        """What of an item is new, in order, up to the first number that it does not explain."""
        if self.last_shown is None:
            return []
        messages = dict(item.messages)
        holes = sorted(item.holes, key=lambda void: void.from_seq)
        parts: list[tuple[int, T] | Void] = []
        at = 0
        while self.last_shown < item.upto:
            seq = self.last_shown + 1
            if seq in messages:
                parts.append((seq, messages[seq]))
                self.last_shown = seq
                continue
            while at < len(holes) and holes[at].to_seq < seq:
                at += 1
            if at == len(holes) or holes[at].from_seq > seq:
                break
            upto = min(holes[at].to_seq, item.upto)
            parts.append(Void(seq, upto, holes[at].reason))
            self.last_shown = upto
        if parts:
            self.tries = 0
        return parts

    def note_number(self, seq: int) -> None:
        """The server has named a number."""
        self._known = max(self._known, seq)

    @property
    def is_missing_some(self) -> bool:
        """Whether a number that the server has named was not told yet."""
        return not self.passive and self.last_shown is not None and self.last_shown < self._known

    def is_newer_head(self, seq: int) -> bool:
        """Whether a head may be told: it never goes back."""
        if seq < self._head_told:
            return False
        self._head_told = seq
        return True

    def disconnect(self) -> None:
        """The connection is gone, and with it whatever was asked on it."""
        if self.phase is not FollowPhase.HELD:
            self.phase = FollowPhase.IDLE
        self.ref = None
        self.due_ms = None
