"""The sends of one live connection: checked one by one, sent together, acknowledged together.

Owns their order on the way to the engine: what a connection says first is queued first. What is read of a connection at
once goes as one batch of columns; a single message goes alone, and is gathered with others of the gateway. Does not own
numbers, nor what waits for a shard (`imray.engine.batcher`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

from api.auth import Caller
from api.checks import check_send
from api.columns import send_columns
from api.limits import Account, over_budget
from api.live_items import AckItem, ErrorItem, SendItem
from api.outcomes import CONFLICT, CREATED, DUPLICATE, Outcomes
from api.problems import ProblemError, refused, unexpected
from api.rates import Rates
from imray.core.ids import format_client_msg_id
from imray.core.replies import Refusal
from imray.engine.batcher import SendAnswer
from imray.engine.engine import Engine
from imray.engine.sends import Send, record_batch

log = logging.getLogger("imray.live")

Answers: TypeAlias = Sequence[AckItem | ErrorItem]
_RETRY_AFTER_S = 1.0
_KINDS = {403: "forbidden", 409: "conflict", 422: "invalid", 500: "corrupt", 503: "busy", 504: "unavailable"}
_STEPS_TO_QUEUE = 2
"""Of the event loop, until a batch that was handed to the engine stands in its queues: one for our task, one for the
tasks that the engine makes of it."""


class LiveSends:
    """What one connection sends. `answer` takes what became of each message; it is called once for a batch."""

    __slots__ = (
        "_account",
        "_answer",
        "_busy",
        "_engine",
        "_rates",
        "_tasks",
        "_waiting",
        "_waiting_bytes",
        "in_flight",
    )

    def __init__(self, engine: Engine, rates: Rates, account: Account, answer: Callable[[Answers], None]) -> None:
        self._engine = engine
        self._rates = rates
        self._account = account
        self._answer = answer
        self._waiting: list[tuple[int, Send]] = []
        """By `ref`: checked, and not handed to the engine yet."""
        self._waiting_bytes = 0
        self._busy = False
        """A batch is on its way into the engine's queues: what comes behind it must not overtake it."""
        self._tasks: set[asyncio.Task[None]] = set()
        self.in_flight = 0
        """Messages without an answer."""

    def take(self, items: Sequence[SendItem], caller: Caller) -> list[ErrorItem]:
        """Check messages and queue the good ones until `flush`; what is wrong with the others."""
        settings = self._engine.settings
        errors = []
        good = []
        for item in items:
            try:
                good.append((item.ref, check_send(item, item.conv_id, caller, settings)))
            except ProblemError as e:
                errors.append(error_of(e, item.ref))
        if not good:
            return errors
        size = sum(len(send.body) for _, send in good)
        try:
            self._rates.messages(caller.sender, caller.service, len(good))
            if not self._account.take_asked(size):
                self._account.charge_asked(size)
                raise over_budget()
        except ProblemError as e:
            errors += [error_of(e, ref) for ref, _ in good]
            return errors
        self._waiting += good
        self._waiting_bytes += size
        self.in_flight += len(good)
        return errors

    def flush(self, service: bool) -> None:
        """Hand what waits to the engine, as soon as what went before is in its queues."""
        if self._busy or not self._waiting:
            return
        batch = self._waiting
        size = self._waiting_bytes
        self._waiting = []
        self._waiting_bytes = 0
        self._busy = True
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._send(batch, size, service))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._after_steps(loop, service, _STEPS_TO_QUEUE)

    def _after_steps(self, loop: asyncio.AbstractEventLoop, service: bool, steps: int) -> None:
        if steps:
            loop.call_soon(self._after_steps, loop, service, steps - 1)
            return
        self._busy = False
        self.flush(service)

    async def _send(self, batch: list[tuple[int, Send]], size: int, service: bool) -> None:
        try:
            if len(batch) == 1:
                answers: Answers = [_one(batch[0], await self._engine.send(batch[0][1]), service)]
            else:
                answers = _many(
                    batch, await send_columns(self._engine, record_batch([send for _, send in batch]), service)
                )
        except Exception:
            # nothing above this catches it: the sender must hear of it
            log.exception("sends failed")
            answers = [error_of(unexpected(), ref) for ref, _ in batch]
        self.in_flight -= len(batch)
        self._account.charge_asked(size)
        self._answer(answers)


def error_of(problem: ProblemError, ref: int | None) -> ErrorItem:
    """A problem as it is told over a live connection."""
    conv_id = problem.extra.get("conv_id")
    conv_seq = problem.extra.get("conv_seq")
    return ErrorItem(
        status=problem.status,
        kind=problem.kind,
        detail=problem.detail,
        ref=ref,
        retry_after_s=problem.retry_after_s,
        conv_id=conv_id if isinstance(conv_id, str) else None,
        conv_seq=conv_seq if isinstance(conv_seq, int) else None,
    )


def _one(asked: tuple[int, Send], sent: SendAnswer, service: bool) -> AckItem | ErrorItem:
    ref, send = asked
    answer, i = sent
    if isinstance(answer, Refusal):
        return error_of(refused(answer, service), ref)
    if answer.firsts is not None:
        # seldom: by the way of many
        return _many([asked], Outcomes.of(1, {0: answer.slice(i, 1)}, {0: slice(None)}, service))[0]
    return AckItem(
        ref=ref,
        conv_id=send.conv_id,
        conv_seq=answer.seq + i if isinstance(answer.seq, int) else int(answer.seq[i]),
        client_msg_id=format_client_msg_id(send.client_msg_id),
        duplicate=False,
        epoch=answer.epoch,
        server_ts=answer.server_ts,
        stable_seq=answer.stable if isinstance(answer.stable, int) else int(answer.stable[i]),
    )


def _many(batch: Sequence[tuple[int, Send]], outcomes: Outcomes) -> list[AckItem | ErrorItem]:
    columns = [outcomes.columns[name].tolist() for name in ("conv_seq", "epoch", "server_ts", "stable_seq")]
    answers: list[AckItem | ErrorItem] = []
    for (ref, send), status, seq, epoch, server_ts, stable in zip(
        batch, outcomes.status.tolist(), *columns, strict=True
    ):
        if status in (CREATED, DUPLICATE):
            raw = format_client_msg_id(send.client_msg_id)
            duplicate = status == DUPLICATE
            answers.append(AckItem(ref, send.conv_id, seq, raw, duplicate, epoch, server_ts, stable))
            continue
        conflict = status == CONFLICT
        error = ErrorItem(
            status=status,
            kind=_KINDS.get(status, "unavailable"),
            detail=outcomes.details.get(status, "no shard answered"),
            ref=ref,
            retry_after_s=_RETRY_AFTER_S if status in (503, 504) else None,
            conv_id=send.conv_id if conflict else None,
            conv_seq=seq if conflict else None,
        )
        answers.append(error)
    return answers
