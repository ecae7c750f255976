"""The follower: the machine at work over a history that grows, fails and is cut into pages."""

from __future__ import annotations

from typing import Any

import pytest

from imray.client import ConversationFollower, HistoryPage, Hole, InvalidError, Message, UnavailableError

PAGE = 2


def message(seq: int) -> Message:
    return Message(seq, f"id {seq}", "me", None, None, None, 0, str(seq))


class History:
    """A client's `history` over `numbers` (True: a message, False: void), in pages of two numbers."""

    def __init__(self, numbers: list[bool]) -> None:
        self.numbers = numbers
        self.asked: list[tuple[int, int | None]] = []
        self.fail_next = 0

    async def history(self, conv_id: str, after: int, before: int | None, limit: int) -> HistoryPage:
        self.asked.append((after, before))
        if self.fail_next:
            self.fail_next -= 1
            raise UnavailableError("away")
        end = len(self.numbers) if before is None else before - 1
        upto = min(end, after + PAGE)
        seqs = range(after + 1, upto + 1)
        return HistoryPage(
            conv_id,
            [message(n) for n in seqs if self.numbers[n - 1]],
            [Hole(n, n, "lost grant") for n in seqs if not self.numbers[n - 1]],
            len(self.numbers),
            1,
            upto if upto < end else None,
        )


class Following:
    """A follower on a clock that only its own sleeping moves; `grow` is called at each sleep."""

    def __init__(self, history: History, last_shown: int = 0) -> None:
        self.now_s = 0.0
        self.slept_s: list[float] = []
        self.grow: list[bool] = []
        self.history = history
        client: Any = history
        self.follower = ConversationFollower(
            client, "room", last_shown, poll_interval_s=2, sleep=self.sleep, clock_s=lambda: self.now_s
        )

    async def sleep(self, pause_s: float) -> None:
        self.slept_s.append(pause_s)
        self.now_s += pause_s
        self.history.numbers += self.grow
        self.grow = []

    async def take(self, count: int) -> list[Any]:
        taken: list[Any] = []
        async for item in self.follower:
            taken.append(item.conv_seq if isinstance(item, Message) else (item.from_seq, item.to_seq, item.reason))
            if len(taken) == count:
                break
        return taken


async def test_pages_then_polls() -> None:
    following = Following(History([True, False, True]))
    following.grow = [True, True]
    assert await following.take(5) == [1, (2, 2, "lost grant"), 3, 4, 5]
    assert following.history.asked == [(0, None), (2, None), (3, None)]
    assert following.slept_s == [2]
    assert following.follower.last_shown == 5


async def test_starts_after_the_cursor_and_goes_on_where_it_was_left() -> None:
    following = Following(History([True] * 6), last_shown=2)
    assert await following.take(1) == [3]
    assert following.follower.last_shown == 3
    assert await following.take(3) == [4, 5, 6]


async def test_waits_while_the_server_is_away() -> None:
    following = Following(History([True]))
    following.history.fail_next = 3
    assert await following.take(1) == [1]
    assert len(following.history.asked) == 4
    assert sum(following.slept_s) == pytest.approx(0.5 + 1 + 2, abs=0.01)


def test_the_interval_must_be_positive() -> None:
    client: Any = History([])
    with pytest.raises(InvalidError):
        ConversationFollower(client, "room", poll_interval_s=0)
