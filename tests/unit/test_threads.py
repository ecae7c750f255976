"""Workers of real threads: order, errors, ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from imray.shard.threads import Threads


async def test_calls_are_made_in_their_order_and_answered() -> None:
    worker = Threads("one")
    made: list[int] = []
    answers = [worker.run(made.append, n) for n in range(100)]
    await asyncio.gather(*answers)
    assert made == list(range(100))
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 // 0)
    assert await worker.run(threading.current_thread) is not threading.current_thread()
    await worker.end()


async def test_an_end_waits_for_what_was_handed_in_however_often_it_is_asked_for() -> None:
    worker, free = Threads("few", 3), threading.Event()
    answers = [worker.run(free.wait, 10) for _ in range(5)]
    ends = [asyncio.create_task(worker.end()) for _ in range(2)]
    await asyncio.sleep(0.01)
    assert not any(end.done() for end in ends)
    free.set()
    await asyncio.wait_for(asyncio.gather(*ends), 10)
    assert await asyncio.gather(*answers) == [True] * 5
    await asyncio.wait_for(worker.end(), 10)
    with pytest.raises(RuntimeError, match="few takes no calls"):
        worker.run(free.wait)
    await asyncio.wait_for(Threads("unused").end(), 10)


async def test_an_end_that_was_given_up_can_be_asked_for_again() -> None:
    worker, free = Threads("one"), threading.Event()
    answer = worker.run(free.wait, 10)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(worker.end(), 0.01)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(worker.end(drop_waiting=True), 0.01)
    free.set()
    await asyncio.wait_for(worker.end(), 10)
    assert await answer


async def test_what_waits_is_dropped_where_that_is_asked_for() -> None:
    worker, free, begun = Threads("one"), threading.Event(), threading.Event()
    first = worker.run(lambda: (begun.set(), free.wait(10)))
    later = worker.run(free.wait, 10)
    await asyncio.to_thread(begun.wait, 10)
    end = asyncio.create_task(worker.end(drop_waiting=True))
    await asyncio.sleep(0.01)
    assert later.cancelled()
    free.set()
    await asyncio.wait_for(end, 10)
    assert first.done()


def test_a_call_that_never_returns_does_not_keep_a_process_that_ends() -> None:
    code = """
import asyncio, threading
from imray.shard.threads import Threads

async def main():
    worker = Threads("hung")
    worker.run(threading.Event().wait)
    try:
        await asyncio.wait_for(worker.end(), 0.2)
    except TimeoutError:
        print("given up")

asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "given up\n"
