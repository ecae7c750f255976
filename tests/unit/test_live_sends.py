"""What a live connection sends: in which order it reaches the engine, and what comes back."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from api.auth import Caller
from api.limits import Limits
from api.live_items import AckItem, ErrorItem, SendItem
from api.live_sends import LiveSends
from api.rates import Rates
from imray.core.columns import RowStatus
from imray.core.replies import Appended, Firsts, Refusal, Refused
from imray.engine.batcher import SendAnswer
from imray.engine.sends import Send
from imray.settings import Settings

ADA = Caller("ada", False)


class Engine:
    """Takes what comes as `imray.engine.engine.Engine` does: a batch reaches its queues a step later than a message."""

    def __init__(self, logs: int = 1, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.logs = logs
        self.queued: list[str] = []
        """Bodies, in the order in which they reached the queues."""
        self.calls: list[int] = []
        """How many messages each call had."""
        self.answers = asyncio.Event()
        self.answers.set()
        self.refusals: dict[int, Refusal] = {}
        self.fault: Exception | None = None

    def ways(self, batch: pa.RecordBatch) -> np.ndarray:
        return np.array([int(name[1:]) % self.logs for name in batch.column("conv_id").dictionary.to_pylist()])

    async def send(self, send: Send) -> SendAnswer:
        if self.fault is not None:
            raise self.fault
        self.queued.append(send.body.decode())
        self.calls.append(1)
        await self.answers.wait()
        return SendAnswer(self.refusals.get(0) or Appended(3, 7, 0, 99, 0, 10, 12, None), 2)

    async def send_batches(self, batches: dict[int, pa.RecordBatch]) -> dict[int, Appended | Refusal]:
        answers = await asyncio.gather(*(self._batch(log, batch) for log, batch in batches.items()))
        return dict(zip(batches, answers, strict=True))

    async def _batch(self, log: int, batch: pa.RecordBatch) -> Appended | Refusal:
        if self.fault is not None:
            raise self.fault
        self.queued += [body.decode() for body in batch.column("body").to_pylist()]
        self.calls.append(batch.num_rows)
        await self.answers.wait()
        return self.refusals.get(log) or Appended(batch.num_rows, 7, 0, 99, 0, 100 * (log + 1), 12, None)


class Sender:
    """A connection's sends, and what it was answered."""

    def __init__(self, engine: Engine) -> None:
        self.answered: list[list[AckItem | ErrorItem]] = []
        self.account = Limits(engine.settings).account("127.0.0.1")
        self.sends = LiveSends(
            cast(Any, engine),
            Rates(engine.settings, lambda: 0.0),
            self.account,
            self.answered.append,  # type: ignore[arg-type]
        )

    def say(self, *refs: int, conv_id: str = "c0", **more: Any) -> list[ErrorItem]:
        """One read of the connection: messages whose body is their `ref`."""
        errors = self.sends.take([item(ref, conv_id, **more) for ref in refs], ADA)
        self.sends.flush(False)
        return errors


def item(ref: int, conv_id: str = "c0", **more: Any) -> SendItem:
    fields = {"client_msg_id": f"0198c0de-0000-7000-8000-{ref:012}", "body": str(ref), **more}
    return SendItem(ref=ref, conv_id=conv_id, **fields)


async def calm() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_is_said_first_is_queued_first_however_it_is_cut() -> None:
    engine = Engine()
    sender = Sender(engine)
    engine.answers.clear()
    sender.say(1, 2)
    sender.say(3)  # alone it would take the shorter way, and overtake
    await asyncio.sleep(0)
    sender.say(4)
    await asyncio.sleep(0)
    sender.say(5, 6, 7)
    await calm()
    sender.say(8)
    await calm()
    assert engine.queued == [str(ref) for ref in range(1, 9)]
    assert sender.sends.in_flight == 8
    assert sum(engine.calls) == 8
    engine.answers.set()
    await calm()
    assert sender.sends.in_flight == 0
    assert sorted(a.ref or 0 for answers in sender.answered for a in answers) == list(range(1, 9))
    assert len(sender.answered) == len(engine.calls)
    assert sender.account.asked == 0


async def test_acks_of_a_batch_come_together_with_their_numbers() -> None:
    sender = Sender(Engine(logs=2))
    sender.sends.take([item(1, "c0"), item(2, "c1"), item(3, "c0")], ADA)
    sender.sends.flush(False)
    await calm()
    (acks,) = sender.answered
    assert [(a.ref, a.conv_id, a.conv_seq) for a in acks] == [(1, "c0", 100), (2, "c1", 200), (3, "c0", 101)]
    first = acks[0]
    assert isinstance(first, AckItem)
    assert (first.client_msg_id, first.duplicate) == ("0198c0de-0000-7000-8000-000000000001", False)
    assert (first.epoch, first.server_ts, first.stable_seq) == (7, 99, 12)


async def test_one_message_has_its_row_of_the_answer() -> None:
    sender = Sender(Engine())
    sender.say(5)
    await calm()
    ((ack,),) = sender.answered
    assert isinstance(ack, AckItem)
    assert (ack.conv_seq, ack.stable_seq) == (12, 12)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    ("why", "status", "kind", "again"),
    [
        (Refused.BUSY, 503, "busy", True),
        (Refused.UNAVAILABLE, 504, "unavailable", True),
        (Refused.CORRUPT, 500, "corrupt", False),
        (Refused.FORBIDDEN, 403, "forbidden", False),
    ],
)
async def test_a_refusal_goes_to_each_message(count: int, why: Refused, status: int, kind: str, again: bool) -> None:
    engine = Engine()
    engine.refusals[0] = Refusal(why, "no")
    sender = Sender(engine)
    sender.say(*range(count))
    await calm()
    (errors,) = sender.answered
    assert [e.ref for e in errors] == list(range(count))
    for error in errors:
        assert isinstance(error, ErrorItem)
        assert (error.status, error.kind, error.retry_after_s is not None) == (status, kind, again)


async def test_a_conflict_names_the_first_number() -> None:
    engine = Engine()

    async def conflicts(send: Send) -> SendAnswer:
        one = np.array([0])
        status = np.array([RowStatus.CONFLICT], np.uint8)
        firsts = Firsts(one, status, one, np.array([0], np.uint32), np.array([1]), np.array([50]))
        return SendAnswer(Appended(1, 7, 0, 99, 0, np.array([4]), 12, firsts), 0)

    engine.send = conflicts  # type: ignore[method-assign]
    sender = Sender(engine)
    sender.say(1)
    await calm()
    ((error,),) = sender.answered
    assert isinstance(error, ErrorItem)
    assert (error.status, error.kind, error.conv_id, error.conv_seq) == (409, "conflict", "c0", 4)


async def test_one_bad_message_refuses_itself_only() -> None:
    engine = Engine()
    sender = Sender(engine)
    bad = [item(2, client_msg_id="short"), item(3, ""), item(4, sender="bob"), item(5, body="x" * 70_000)]
    errors = sender.sends.take([item(1), *bad, item(6)], ADA)
    sender.sends.flush(False)
    await calm()
    assert [(e.ref, e.status) for e in errors] == [(2, 422), (3, 422), (4, 403), (5, 413)]
    assert engine.queued == ["1", "6"]


async def test_a_fault_is_told_and_nothing_is_left(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine()
    engine.fault = RuntimeError("secret")
    sender = Sender(engine)
    sender.say(1, 2)
    await calm()
    (errors,) = sender.answered
    assert [(e.ref, cast(ErrorItem, e).status) for e in errors] == [(1, 500), (2, 500)]
    assert "secret" not in repr(errors)
    assert "secret" in caplog.text
    assert (sender.sends.in_flight, sender.account.asked) == (0, 0)


async def test_rates_and_bytes_in_flight_refuse_what_is_too_much() -> None:
    sender = Sender(Engine(caller_messages_per_s=1.0, caller_burst_s=3.0))
    assert sender.say(1, 2, 3) == []
    (error,) = sender.say(4)
    assert (error.ref, error.status, error.kind) == (4, 429, "too-many")
    held = Sender(Engine(flight_bytes_per_caller_max=10))
    errors = held.say(1, body="x" * 11)
    assert [(e.status, e.kind) for e in errors] == [(503, "busy")]
    assert held.account.asked == 0
    await calm()
    assert held.say(2, body="x" * 10) == []
    await calm()
