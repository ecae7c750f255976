"""The client's reorder buffer: whatever is delayed, repeated, reordered or dropped, the same order comes out.

Owns which number is shown next, what is held back, when a gap is pulled. Pure: the caller passes the time in, feeds
events, and carries out the actions returned, in their order.
Does not own connections, paging limits or what a message is. `reorder_cases.json` beside this file is the table of
cases that every SDK's machine is proved against.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from imray.core.errors import InvalidError

T = TypeVar("T")
_DOUBLINGS_MAX = 30  # beyond it any minimum is past any maximum


class Phase(Enum):
    """What the machine is doing about numbers that it has not seen."""

    FLOWING = "nothing is missing"
    WAITING = "a gap is open; its messages may still be under way"
    PULLING = "a pull is in flight; its answer decides"
    BACKING_OFF = "the last pull failed or could not explain the gap; it is asked again later"


class Cue(Enum):
    """What an event came to, once its messages were shown or kept."""

    KEEP = "nothing to decide"
    CLOSED = "nothing is missing any more"
    NEW_GAP = "a number is missing that was not missed before"
    UNEXPLAINED = "the pull is over, and the number it was about is still missing"
    ASK = "time to pull"


TRANSITIONS: dict[Phase, dict[Cue, Phase]] = {
    Phase.FLOWING: {
        Cue.CLOSED: Phase.FLOWING,
        Cue.NEW_GAP: Phase.WAITING,
        Cue.ASK: Phase.PULLING,
    },
    Phase.WAITING: {
        Cue.KEEP: Phase.WAITING,
        Cue.CLOSED: Phase.FLOWING,
        Cue.NEW_GAP: Phase.WAITING,
        Cue.ASK: Phase.PULLING,
    },
    Phase.PULLING: {
        Cue.KEEP: Phase.PULLING,
        Cue.CLOSED: Phase.FLOWING,
        Cue.NEW_GAP: Phase.WAITING,
        Cue.UNEXPLAINED: Phase.BACKING_OFF,
        Cue.ASK: Phase.PULLING,
    },
    Phase.BACKING_OFF: {
        Cue.KEEP: Phase.BACKING_OFF,
        Cue.CLOSED: Phase.FLOWING,
        Cue.NEW_GAP: Phase.WAITING,
        Cue.ASK: Phase.PULLING,
    },
}


@dataclass(frozen=True)
class ReorderConfig:
    """Bounds of the machine."""

    gap_timeout_ms: int = 500
    """How long a gap may stay open before it is pulled: longer than commits of two partitions overtake one another."""
    retry_ms_min: int = 500
    retry_ms_max: int = 15_000
    """The pause after a pull that failed or explained nothing; it doubles from the minimum to the maximum."""
    buffer_messages_max: int = 1024
    """Messages held above a gap. More are dropped, farthest first, and pulled later."""

    def __post_init__(self) -> None:
        if not (self.gap_timeout_ms >= 0 and 0 < self.retry_ms_min <= self.retry_ms_max):
            raise InvalidError(f"time-outs must be positive and retry_ms_min <= retry_ms_max: {self}")
        if self.buffer_messages_max < 1:
            raise InvalidError("buffer_messages_max must be at least 1")


@dataclass(frozen=True)
class Void:
    """Numbers from_seq..to_seq (both included) that will never be messages."""

    from_seq: int
    to_seq: int
    reason: str


@dataclass(frozen=True)
class Deliver(Generic[T]):
    """Show these (conv_seq, message), in this order."""

    messages: list[tuple[int, T]]


@dataclass(frozen=True)
class Skip:
    """These numbers are void: nothing to show, the cursor moves on to `void.to_seq`."""

    void: Void


@dataclass(frozen=True)
class Pull:
    """Ask the history for after < conv_seq <= upto (None: to its end), then call `pulled` or `pull_failed` once."""

    after: int
    upto: int | None


@dataclass(frozen=True)
class SetTimer:
    """Call `tick` at this time. There is one timer: this replaces it; None takes it away."""

    at_ms: int | None


Action = Deliver[T] | Skip | Pull | SetTimer


class Reorder(Generic[T]):
    """The machine for one conversation. Times are monotonic milliseconds; they never decide order.

    Start it with the last number shown (0: none) and call `subscribed` once live messages can arrive: what was
    missed before is pulled, what comes meanwhile is held. Call `subscribed` again after every reconnect.
    """

    def __init__(self, config: ReorderConfig, last_shown: int = 0) -> None:
        if last_shown < 0:
            raise InvalidError(f"last_shown is {last_shown}: numbers start at 1, 0 stands for none")
        self.phase = Phase.FLOWING
        self.next_seq = last_shown + 1
        """The next number to show or skip; everything below is done."""
        self.timer_at_ms: int | None = None
        """When `tick` is due; None: no timer."""
        self._config = config
        self._buffer: dict[int, T] = {}
        self._known = last_shown  # the highest number known to exist; below it every absence is a gap
        self._asked: Pull | None = None
        self._resync = False  # an open-ended pull is owed
        self._failing = False  # the last pull failed: new gaps must not shorten the back-off
        self._tries = 0
        self._out: list[Action[T]] = []

    @property
    def buffered(self) -> list[int]:
        """The numbers held back, ascending."""
        return sorted(self._buffer)

    def subscribed(self, now_ms: int) -> list[Action[T]]:
        """Live messages arrive from now on (again): pull everything up to the history's end."""
        self._resync = True
        return self._finish(Cue.KEEP if self.phase is Phase.PULLING else Cue.ASK, now_ms)

    def live(self, messages: Iterable[tuple[int, T]], now_ms: int) -> list[Action[T]]:
        """Pushed messages as (conv_seq, message), in whatever order."""
        before = self.next_seq
        for seq, message in messages:
            self._known = max(self._known, seq)
            if seq == self.next_seq:
                self._show(message)
                self._advance({}, [])
            else:
                self._hold(seq, message)
        return self._finish(self._arrival_cue(before), now_ms)

    def head(self, seq: int, now_ms: int) -> list[Action[T]]:
        """The server says that numbers up to `seq` exist (heartbeat, inbox, a listener that fell behind)."""
        self._known = max(self._known, seq)
        return self._finish(self._arrival_cue(self.next_seq), now_ms)

    def pulled(
        self,
        messages: Iterable[tuple[int, T]],
        holes: Iterable[Void],
        stable_seq: int,
        page_next: int | None,
        now_ms: int,
    ) -> list[Action[T]]:
        """The pull's answer. `page_next` is the answer's `next`: where a page that was cut ends; None: not cut.

        An answer that comes though no pull is in flight is used all the same: what it says is true."""
        before = self.next_seq
        answer = dict(messages)
        self._known = max(self._known, stable_seq, *answer, 0)
        self._advance(answer, sorted(holes, key=lambda void: void.from_seq))
        for seq in sorted(answer):
            self._hold(seq, answer[seq])
        if self._asked is None:
            return self._finish(self._arrival_cue(before), now_ms)
        return self._finish(self._answer_cue(self._asked, stable_seq, page_next), now_ms)

    def pull_failed(self, now_ms: int) -> list[Action[T]]:
        """The pull in flight has no answer and will get none (the caller gave it up)."""
        if self._asked is None:
            return []
        if not self._failing:
            self._tries = 0
        self._failing = True
        self._end_pull(answered=False)
        return self._finish(Cue.UNEXPLAINED, now_ms)

    def tick(self, now_ms: int) -> list[Action[T]]:
        """The timer fired. Where it fired early it is set again."""
        if self.timer_at_ms is None:
            return []
        if now_ms < self.timer_at_ms:
            return [SetTimer(self.timer_at_ms)]
        self.timer_at_ms = None
        return self._finish(Cue.ASK, now_ms)

    def _arrival_cue(self, before: int) -> Cue:
        if self.phase is Phase.PULLING:
            return Cue.KEEP
        if self.next_seq > self._known:
            return Cue.KEEP if self._resync else Cue.CLOSED
        if self.phase is Phase.FLOWING:
            return Cue.NEW_GAP
        if self.next_seq == before or (self.phase is Phase.BACKING_OFF and self._failing):
            return Cue.KEEP
        return Cue.NEW_GAP

    def _answer_cue(self, asked: Pull, stable_seq: int, page_next: int | None) -> Cue:
        if self._failing or self.next_seq > asked.after + 1:
            self._tries = 0
        self._failing = False
        if self.next_seq > (stable_seq if asked.upto is None else asked.upto):
            self._end_pull(answered=True)
            if self._resync:
                return Cue.ASK
            return Cue.NEW_GAP if self.next_seq <= self._known else Cue.CLOSED
        self._end_pull(answered=False)
        cut = page_next is not None and asked.after < page_next < self.next_seq
        return Cue.ASK if cut else Cue.UNEXPLAINED

    def _end_pull(self, answered: bool) -> None:
        if not answered and self._asked is not None and self._asked.upto is None:
            self._resync = True
        self._asked = None

    def _advance(self, answer: dict[int, T], holes: list[Void]) -> None:
        """Show and skip from `next_seq` on for as long as the buffer, the answer or a hole explains it."""
        at = 0
        while True:
            seq = self.next_seq
            if seq in self._buffer:
                self._show(self._buffer.pop(seq))
                continue
            if seq in answer:
                self._show(answer[seq])
                continue
            while at < len(holes) and holes[at].to_seq < seq:
                at += 1
            if at == len(holes) or holes[at].from_seq > seq:
                return
            self._skip(Void(seq, holes[at].to_seq, holes[at].reason))

    def _show(self, message: T) -> None:
        last = self._out[-1] if self._out else None
        if isinstance(last, Deliver):
            last.messages.append((self.next_seq, message))
        else:
            self._out.append(Deliver([(self.next_seq, message)]))
        self.next_seq += 1

    def _skip(self, void: Void) -> None:
        self._out.append(Skip(void))
        self.next_seq = void.to_seq + 1
        for seq in [s for s in self._buffer if s < self.next_seq]:
            del self._buffer[seq]

    def _hold(self, seq: int, message: T) -> None:
        """Keep a message above a gap; one that is done or held already is a repetition."""
        if seq < self.next_seq or seq in self._buffer:
            return
        if len(self._buffer) == self._config.buffer_messages_max:
            farthest = max(self._buffer)
            if seq > farthest:
                return
            del self._buffer[farthest]
        self._buffer[seq] = message

    def _finish(self, cue: Cue, now_ms: int) -> list[Action[T]]:
        """Move to the next phase and hand the actions out."""
        self.phase = TRANSITIONS[self.phase][cue]
        if cue is Cue.CLOSED:
            self._set_timer(None)
        elif cue is Cue.NEW_GAP:
            if not self._failing:
                self._tries = 0
            self._set_timer(now_ms + self._config.gap_timeout_ms)
        elif cue is Cue.UNEXPLAINED:
            pause_ms = self._config.retry_ms_min << min(self._tries, _DOUBLINGS_MAX)
            self._tries += 1
            self._set_timer(now_ms + min(pause_ms, self._config.retry_ms_max))
        elif cue is Cue.ASK:
            self._set_timer(None)
            self._asked = Pull(self.next_seq - 1, None if self._resync else self._highest_missing())
            self._resync = False
            self._out.append(self._asked)
        out = self._out
        self._out = []
        return out

    def _set_timer(self, at_ms: int | None) -> None:
        if at_ms != self.timer_at_ms:
            self.timer_at_ms = at_ms
            self._out.append(SetTimer(at_ms))

    def _highest_missing(self) -> int:
        """One pull closes every gap that is open now, not just the first."""
        seq = self._known
        while seq in self._buffer:
            seq -= 1
        return seq
