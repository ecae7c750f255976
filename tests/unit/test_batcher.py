"""The gateway's queue for a shard: one call carries what waits, order kept, bounded, answers to their senders."""

from __future__ import annotations

import asyncio
import os

import numpy as np
import pyarrow as pa
import pytest

from imray.core.replies import Appended, Firsts, Refusal, Refused
from imray.engine.batcher import Batcher, SendAnswer
from imray.engine.sends import Send, record_batch
from imray.log.schema import from_ipc
from imray.settings import Settings


class Shard:
    """Stands where a shard's client would: answers a call when told to."""

    name = "shard-0000"

    def __init__(self) -> None:
        self.calls: list[pa.RecordBatch] = []
        self.answers: list[asyncio.Future[Appended | Refusal]] = []
        self.head = 0

    async def append(self, stream: pa.Buffer, deadline: float) -> Appended | Refusal:
        self.calls.append(from_ipc(stream))
        self.answers.append(asyncio.get_running_loop().create_future())
        return await self.answers[-1]

    async def answer(self) -> None:
        """Answer the oldest open call: all new."""
        i = next(i for i, a in enumerate(self.answers) if not a.done())
        rows = self.calls[i].num_rows
        self.answers[i].set_result(Appended(rows, 1, i + 1, 0, 0, self.head + 1, self.head + rows, None))
        self.head += rows
        await mark_durable()


async def mark_durable() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def send(body: str) -> Send:
    return Send("c", os.urandom(16), "ada", None, None, None, body.encode())


def batcher(shard: Shard, **settings: int) -> Batcher:
    return Batcher(shard, Settings(**settings))  # type: ignore[arg-type]


def number(sent: SendAnswer) -> int:
    assert isinstance(sent.answer, Appended)
    return int(sent.answer.seqs()[sent.row])


async def test_what_waits_goes_in_one_call() -> None:
    shard = Shard()
    queue = batcher(shard)
    tasks = [asyncio.create_task(queue.send(send(str(i)))) for i in range(3)]
    await mark_durable()
    tasks.append(asyncio.create_task(queue.send_batch(record_batch([send("3"), send("4")]))))
    tasks.append(asyncio.create_task(queue.send(send("5"))))
    await mark_durable()
    assert [c.num_rows for c in shard.calls] == [1]
    await shard.answer()
    assert [c.column("body").to_pylist() for c in shard.calls] == [[b"0"], [b"1", b"2", b"3", b"4", b"5"]]
    await shard.answer()
    assert [number(tasks[i].result()) for i in (0, 1, 2, 4)] == [1, 2, 3, 6]
    assert tasks[3].result().seqs().tolist() == [4, 5]


async def test_a_full_queue_says_so_and_recovers() -> None:
    shard = Shard()
    queue = batcher(shard, gateway_queue_rows_max=2)
    first, second = (asyncio.create_task(queue.send(send("x"))) for _ in range(2))
    await mark_durable()
    full = await queue.send(send("x"))
    assert isinstance(full.answer, Refusal)
    assert full.answer.why is Refused.BUSY
    await shard.answer()
    await shard.answer()
    assert {number(first.result()), number(second.result())} == {1, 2}
    third = asyncio.create_task(queue.send(send("x")))
    await mark_durable()
    await shard.answer()
    assert number(third.result()) == 3


async def test_a_second_call_starts_when_much_waits() -> None:
    shard = Shard()
    queue = batcher(shard, gateway_rows_for_another_call=3, gateway_calls_in_flight_max=2, call_rows_max=4)
    tasks = [asyncio.create_task(queue.send(send("x"))) for _ in range(12)]
    await mark_durable()
    assert [c.num_rows for c in shard.calls] == [1, 3]
    while not all(t.done() for t in tasks):
        await shard.answer()
    assert max(c.num_rows for c in shard.calls) <= 4
    assert sorted(number(t.result()) for t in tasks) == list(range(1, 13))


async def test_a_call_that_is_cancelled_ends_as_unknown() -> None:
    shard = Shard()
    queue = batcher(shard)
    sending = asyncio.create_task(queue.send(send("x")))
    await mark_durable()
    shard.answers[0].cancel()
    answer, _ = await sending
    assert isinstance(answer, Refusal)
    assert (answer.why, answer.unknown) == (Refused.UNAVAILABLE, True)


async def test_a_sender_that_goes_away_changes_no_other_ones_answer() -> None:
    shard = Shard()
    queue = batcher(shard)
    tasks = [asyncio.create_task(queue.send(send(str(i)))) for i in range(4)]
    await mark_durable()
    tasks[0].cancel()
    tasks[2].cancel()
    await mark_durable()
    await shard.answer()
    await shard.answer()
    assert [c.column("body").to_pylist() for c in shard.calls] == [[b"0"], [b"1", b"2", b"3"]]
    assert [number(tasks[i].result()) for i in (1, 3)] == [2, 4]


@pytest.mark.parametrize(("start", "rows"), [(s, n) for s in range(6) for n in (1, 2, 6) if s + n <= 6])
def test_slices_of_an_answer(start: int, rows: int) -> None:
    known = np.array([1, 4])
    firsts = Firsts(known, np.array([False, True]), *(np.array([7, 8]) + i for i in range(4)))
    seq = np.array([10, 1, 11, 12, 2, 13])
    part = Appended(6, 1, 9, 0, 100, seq, np.full(6, 13), firsts).slice(start, rows)
    assert part.seqs().tolist() == seq[start : start + rows].tolist()
    new_before = sum(i not in known for i in range(start))
    assert part.row == 100 + new_before
    inside = [int(i) - start for i in known if start <= i < start + rows]
    assert ([] if part.firsts is None else part.firsts.at.tolist()) == inside
