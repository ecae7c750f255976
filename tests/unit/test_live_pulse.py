"""When a live connection is pinged, warned and closed, and in which order its work is done."""

from __future__ import annotations

import asyncio

import pytest

from api.live_lanes import WorkLanes
from api.live_pulse import Due, Pulse
from api.watch import ReadingPace
from imray.settings import Settings


def known(expires_at: float = 1e9) -> Pulse:
    """Begun at 0; pinged after 20 s."""
    pulse = Pulse(0.0, 10.0, 20.0)
    pulse.known(expires_at)
    return pulse


def test_who_does_not_say_who_it_is_is_late() -> None:
    pulse = Pulse(0.0, 10.0, 20.0)
    pulse.heard = True
    assert pulse.look(9.9, False) is Due.NOTHING
    assert pulse.look(10.0, False) is Due.NO_TOKEN
    assert known().look(10.0, False) is Due.NOTHING


def test_the_silent_are_pinged_once_and_given_up_after_as_long_again() -> None:
    pulse = known()
    due = [pulse.look(float(now), False) for now in range(0, 41)]
    assert due[20] is Due.PING
    assert due[40] is Due.GONE
    assert [at for at, one in enumerate(due) if one is not Due.NOTHING] == [20, 40]


@pytest.mark.parametrize("excused", [False, True])
def test_a_sign_of_life_begins_the_wait_anew(excused: bool) -> None:
    pulse = known()
    assert pulse.look(20.0, False) is Due.PING
    pulse.heard = not excused
    assert pulse.look(30.0, excused) is Due.NOTHING
    assert pulse.look(49.0, False) is Due.NOTHING
    assert pulse.look(50.0, False) is Due.PING
    assert pulse.look(70.0, False) is Due.GONE


def test_a_token_is_warned_of_once_and_ends() -> None:
    pulse = known(100.0)
    due = []
    for now in range(0, 101):
        pulse.heard = True
        due.append(pulse.look(float(now), False))
    assert [at for at, one in enumerate(due) if one is Due.WARN] == [40]
    assert due[99] is Due.NOTHING
    assert due[100] is Due.EXPIRED
    pulse.known(200.0)
    pulse.heard = True
    assert pulse.look(101.0, False) is Due.NOTHING
    pulse.heard = True
    assert pulse.look(141.0, False) is Due.WARN


def test_who_does_not_answer_a_close_frame_is_gone() -> None:
    pulse = known()
    pulse.closing(5.0)
    pulse.closing(6.9)
    pulse.heard = True
    assert pulse.look(6.9, True) is Due.NOTHING
    assert pulse.look(7.0, True) is Due.GONE


class Work:
    """Pieces of work that end when they are told to."""

    def __init__(self, width: int) -> None:
        self.began: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.changes = 0
        self.lanes = WorkLanes(width, self.do, self.changed)

    def add(self, *names: str) -> None:
        for name in names:
            self.ends[name] = asyncio.Event()
            self.lanes.add(name[0], name)

    async def do(self, name: str) -> None:
        self.began.append(name)
        await self.ends[name].wait()

    def changed(self) -> None:
        self.changes += 1

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await calm()


async def calm() -> None:
    """Until nothing more happens by itself."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_of_one_key_one_after_the_other_of_several_at_once() -> None:
    work = Work(3)
    work.add("a1", "a2", "b1", "a3", "c1", "d1")
    await calm()
    assert work.began == ["a1", "b1", "c1"]
    await work.end("b1")
    assert work.began[3:] == ["d1"]
    await work.end("a1")
    assert work.began[4:] == ["a2"]
    await work.end("c1")
    assert work.began[5:] == []
    await work.end("a2")
    assert work.began[5:] == ["a3"]
    await work.end("a3")
    await work.end("d1")
    assert work.lanes.count == 0
    assert work.changes == 6
    work.add("a4")
    await calm()
    assert work.began[6:] == ["a4"]
    await work.end("a4")


async def test_a_closed_one_is_over_when_nothing_runs() -> None:
    work = Work(2)
    work.add("a1", "b1", "c1")
    await calm()
    work.lanes.close()
    assert not work.lanes.over
    await calm()
    assert work.lanes.over
    assert work.changes == 2
    work.lanes.add("d", "d1")
    await calm()
    assert work.began == ["a1", "b1"]


def test_the_pace_of_a_reader_is_measured_while_something_waits_for_it() -> None:
    settings = Settings(write_deadline_s=10.0, write_bytes_per_s_min=100)
    pace = ReadingPace()
    assert pace.keeps_up(0.0, 0, settings)
    assert pace.keeps_up(9.9, 0, settings)
    assert pace.keeps_up(10.0, 1000, settings)
    assert pace.keeps_up(19.9, 1000, settings)
    assert not pace.keeps_up(20.0, 1999, settings)
    pace.reset()
    assert pace.keeps_up(1000.0, 2000, settings), "nothing waited for a long time: that is not its slowness"
    assert pace.keeps_up(1009.0, 2000, settings)
    assert not pace.keeps_up(1010.0, 2000, settings)
