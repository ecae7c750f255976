"""The proving half of a replay: what is read back against the file and the acks.

`ConversationCheck` is pure: pages in, differences out. `read_back` feeds it from the history of a running system.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np

from imray.cli.replay_plan import Chat, Rows, lane_keys
from imray.cli.replay_send import CONFLICT, STORED_BEFORE, Acks
from imray.client import AsyncClient, HistoryPage, Hole, Message

PAGE_MESSAGES = 10_000
DIFFERENCES_MAX = 20
"""Kept and shown; all are counted."""
_STABLE_POLL_S = 0.2
_TEXT_CHARS_MAX = 60


@dataclass
class Proof:
    """What was read back, and every way in which it is not what was sent."""

    conversations: int = 0
    found: int = 0
    """Messages of the file that are where their ack said, as they were sent."""
    others: int = 0
    """Messages that are not of this file."""
    holes: list[tuple[str, Hole]] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    differences_count: int = 0

    def differ(self, text: str) -> None:
        """Note a difference."""
        self.differences_count += 1
        if len(self.differences) < DIFFERENCES_MAX:
            self.differences.append(text)


class Reads(Protocol):
    """Is told what was read."""

    def read(self, page: HistoryPage, after: int, asked_ns: int) -> None: ...


class ConversationCheck:
    """One conversation: pages in ascending order, then `finish`."""

    def __init__(self, conv_id: str, chat: Chat, rows: Rows, acks: Acks, lanes: Rows, proof: Proof) -> None:
        """`rows`: the file's rows of this conversation that were acked; `lanes`: the lane of each row of the file."""
        self._conv_id = conv_id
        self._chat = chat
        self._acks = acks
        self._lanes = lanes
        self._proof = proof
        self._rows = rows
        texts = chat.texts.take(rows).to_pylist()
        self._expected = {chat.client_msg_id(row): (row, text) for row, text in zip(rows.tolist(), texts, strict=True)}
        self._missing = set(self._expected)
        self._seqs: list[int] = []
        self._holes: list[Hole] = []

    def take(self, page: HistoryPage) -> None:
        """The next page."""
        self._holes.extend(page.holes)
        for message in page.messages:
            if self._seqs and message.conv_seq <= self._seqs[-1]:
                self._differ(f"number {message.conv_seq} was read after {self._seqs[-1]}")
            self._seqs.append(message.conv_seq)
            self._check(message)

    def finish(self, stable_seq: int) -> None:
        """All was read up to `stable_seq`."""
        for msg_id in self._missing:
            row, _ = self._expected[msg_id]
            self._differ(f"row {row}, acked as {self._acks.seq[row]}, cannot be read back")
        for low, high in unexplained(self._seqs, self._holes, stable_seq):
            self._differ(f"numbers {low} to {high} are neither messages nor explained holes")
        self._check_order()
        self._proof.conversations += 1
        # one that two pages share stands in both
        self._proof.holes.extend((self._conv_id, hole) for hole in dict.fromkeys(self._holes))

    def _check(self, message: Message) -> None:
        expected = self._expected.get(message.client_msg_id)
        if expected is None:
            self._proof.others += 1
            return
        row, text = expected
        if message.client_msg_id not in self._missing:
            self._differ(f"row {row} was read twice, again as {message.conv_seq}")
            return
        self._missing.discard(message.client_msg_id)
        wrong = [
            f"{what} {_short(is_)} instead of {_short(was)}"
            for what, is_, was in (
                ("number", message.conv_seq, int(self._acks.seq[row])),
                ("sender", message.sender, self._chat.senders.of(row)),
                ("text", message.body, text),
            )
            if is_ != was
        ]
        if wrong:
            self._differ(f"row {row} was read with {', '.join(wrong)}")
        else:
            self._proof.found += 1

    def _check_order(self) -> None:
        """Within a lane the numbers ascend as the file's rows do."""
        by_lane = self._rows[np.argsort(self._lanes[self._rows], kind="stable")]
        same = self._lanes[by_lane[1:]] == self._lanes[by_lane[:-1]]
        seqs = self._acks.seq[by_lane]
        for at in np.flatnonzero(same & (seqs[1:] <= seqs[:-1])).tolist():
            first = by_lane[at]
            second = by_lane[at + 1]
            why = ""
            if STORED_BEFORE in (self._acks.status[first], self._acks.status[second]):
                why = " (stored by an earlier replay: was that one --by-sender?)"
            self._differ(f"row {second} has number {seqs[at + 1]}, row {first} before it {seqs[at]}{why}")

    def _differ(self, text: str) -> None:
        self._proof.differ(f"{self._conv_id}: {text}")


def unexplained(seqs: Sequence[int], holes: Iterable[Hole], stable_seq: int) -> list[tuple[int, int]]:
    """Ranges up to `stable_seq` that are neither in `seqs` (ascending) nor in a hole."""
    found = np.array([seq for seq in seqs if seq <= stable_seq], np.int64)
    edges = np.concatenate([[0], np.sort(found), [stable_seq + 1]])
    gaps = [(int(edges[i]) + 1, int(edges[i + 1]) - 1) for i in np.flatnonzero(np.diff(edges) > 1)]
    ordered = sorted(holes, key=lambda hole: hole.from_seq)
    first = 0
    open_: list[tuple[int, int]] = []
    for low, high in gaps:
        while first < len(ordered) and ordered[first].to_seq < low:
            first += 1
        at = low
        for hole in islice(ordered, first, None):
            if hole.from_seq > high:
                break
            if hole.from_seq > at:
                open_.append((at, hole.from_seq - 1))
            at = max(at, hole.to_seq + 1)
        if at <= high:
            open_.append((at, high))
    return open_


async def read_back(
    client: AsyncClient,
    chat: Chat,
    acks: Acks,
    by_sender: bool,
    concurrency: int,
    on_messages: Callable[[int], None] = lambda messages: None,
    reads: Reads | None = None,
) -> Proof:
    """Read every conversation of the chat whole, several at once, and compare."""
    proof = Proof()
    lanes = lane_keys(chat, by_sender)
    for row in np.flatnonzero(acks.status == CONFLICT).tolist():
        where = f"{chat.conversations.of(row)}: row {row}"
        proof.differ(f"{where} has an id that number {acks.seq[row]} has with another sender or text")
    rows = np.flatnonzero(acks.stored)
    rows = rows[np.argsort(chat.conversations.codes[rows], kind="stable")]
    codes = chat.conversations.codes[rows]
    cuts = np.flatnonzero(np.diff(codes)) + 1
    slots = asyncio.Semaphore(concurrency)

    async def one(of_conversation: Rows) -> None:
        async with slots:
            conv_id = chat.conversations.of(int(of_conversation[0]))
            check = ConversationCheck(conv_id, chat, of_conversation, acks, lanes, proof)
            upto = int(acks.seq[of_conversation].max())
            check.finish(await _read(client, conv_id, upto, check, on_messages, reads))

    try:
        async with asyncio.TaskGroup() as group:
            for part in np.split(rows, cuts) if len(rows) else []:
                group.create_task(one(part))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return proof


async def _read(
    client: AsyncClient,
    conv_id: str,
    upto: int,
    check: ConversationCheck,
    on_messages: Callable[[int], None],
    reads: Reads | None,
) -> int:
    """Feed all pages; the stable number they go up to. Waits until what was acked is stable."""
    after = 0
    while True:
        asked_ns = time.monotonic_ns()
        page = await client.history(conv_id, after, limit=PAGE_MESSAGES)
        if reads is not None:
            reads.read(page, after, asked_ns)
        check.take(page)
        on_messages(len(page.messages))
        if page.next is not None:
            after = page.next
        elif page.stable_seq >= upto:
            return page.stable_seq
        else:
            after = max(after, page.stable_seq)
            await asyncio.sleep(_STABLE_POLL_S)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _TEXT_CHARS_MAX else text[: _TEXT_CHARS_MAX - 3] + "..."
