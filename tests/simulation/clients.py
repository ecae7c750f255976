"""Gateways that learn which way a send takes, and clients that retry with the same id and record what they see."""

from __future__ import annotations

from typing import Any

import numpy as np

from imray.core.replies import Appended, Located, Refusal, Refused
from imray.core.routing import slot_for
from imray.rpc import messages
from imray.rpc.methods import Method
from tests.checker.events import Answer, Conversation, Read, Send
from tests.simulation.kernel import LOST, MS, Process
from tests.simulation.messages import CONVS, Files, Msg, Request, ipc_of, page
from tests.simulation.network import NO_ANSWER, call


class Gateway:
    """One gateway: `imray.engine.hot_routes` over simulated calls."""

    def __init__(self, process: Process, files: Files, directory: dict[int, Process]) -> None:
        process.serves = self
        self._process = process
        self._files = files
        self._sim = process.sim
        self._directory = directory
        self.hot: dict[str, int] = {}
        self._paused: dict[int, int] = {}

    async def send(self, request: Request, key: str, slot: int | None = None) -> Appended | Refusal:
        """By the way that it takes, else by the home shard. `slot`: this way."""
        slot = self._way(request, key) if slot is None else slot
        if slot:
            answer = await self._append(slot, request, 2)
            if isinstance(answer, Appended):
                self._learn(answer, request)
                return answer
            if answer.why is Refused.MOVED:
                for m in request:
                    self.hot.pop(CONVS[m.conv], None)
            elif answer.why is not Refused.OLD_IDS:
                self._paused[slot] = self._sim.now + 50 * MS
        answer = await self._append(0, request, 3)
        if isinstance(answer, Appended):
            self._learn(answer, request)
        return answer

    def _way(self, request: Request, key: str) -> int:
        partitions = [self.hot.get(CONVS[m.conv], 0) for m in request]
        if not min(partitions):
            return 0
        slot = slot_for(key, partitions[0])
        return 0 if self._sim.now < self._paused.get(slot, 0) else slot

    async def _append(self, slot: int, request: Request, tries: int) -> Appended | Refusal:
        answer: Appended | Refusal = NO_ANSWER
        for _ in range(tries):
            found = await call(self._process, self._directory.get(slot), Method.APPEND, [ipc_of(request)], 60 * MS)
            answer = NO_ANSWER if found is None else messages.decode_append_answer(found)
            if isinstance(answer, Appended) or answer.why is not Refused.UNAVAILABLE:
                return answer
            await self._process.sleep(4 * MS)
        return answer

    def _learn(self, answer: Appended, request: Request) -> None:
        hot = answer.hot or {}
        for m in request:
            name = CONVS[m.conv]
            if name in hot:
                self.hot[name] = hot[name]
            else:
                self.hot.pop(name, None)

    async def read(self, conv: str, after: int, limit: int) -> Any:
        """A page: messages, holes, up to which number, `stable_seq`."""
        upto = after + limit
        content = messages.encode_locate(conv, after + 1, upto)
        answer = await call(self._process, self._directory.get(0), Method.LOCATE, content, 60 * MS)
        located = None if answer is None else messages.decode_locate_answer(answer)
        if not isinstance(located, Located):
            return LOST
        upto = min(upto, located.stable)
        spans = list(located.spans)
        for interval in located.intervals:
            postings = self._files.postings(interval)
            if postings is None:
                # it was merged meanwhile, or is lost: ask again
                name = messages.encode_mend(interval.name("postings"))
                await call(self._process, self._directory.get(0), Method.MEND, name, 60 * MS)
                return LOST
            spans += [p[1:] for p in postings if p[0] == conv and p[2] <= upto and p[3] > after]
        found = page(self._files, conv, spans, after, upto)
        return LOST if found is None else (*found, upto, located.stable)


class Client:
    """Sends and reads, one thing after the other; records it as the checker wants it."""

    def __init__(self, process: Process, name: str, seen: dict[str, Conversation]) -> None:
        self._process = process
        self._sim = process.sim
        self.name = name
        self._seen = seen
        self.acked: dict[tuple[int, int], int] = {}

    def _conversation(self, conv: str) -> Conversation:
        return self._seen.setdefault(conv, Conversation())

    async def send(self, gateway: Process, request: Request, slot: int | None = None) -> bool:
        """One try; whether every message has an answer."""
        sim = self._sim
        for m in request:
            self._conversation(CONVS[m.conv]).sends.append(Send(sim.tick(), self.name, f"m{m.id}", f"v{m.variant}"))
        sim.trace("send", self.name, *request, f"by {gateway.name}")
        answer = await sim.call(self._process, gateway, "send", request, self.name, slot, timeout_us=250 * MS)
        t = sim.tick()
        if not isinstance(answer, Appended):
            why = answer if answer == LOST else answer.detail
            sim.trace("unknown", self.name, *request, why)
            for m in request:
                self._conversation(CONVS[m.conv]).answers.append(Answer(t, self.name, f"m{m.id}", "unknown"))
            return False
        return self._arrived(t, request, answer)

    def _arrived(self, t: int, request: Request, answer: Appended) -> bool:
        """Whether every message has its number."""
        seqs, stables = answer.seqs().tolist(), answer.stables().tolist()
        firsts = answer.firsts
        others = {} if firsts is None else dict(zip(firsts.at.tolist(), firsts.conflict.tolist(), strict=True))
        waiting = set() if firsts is None else set(firsts.at[firsts.waiting].tolist())
        for i, m in enumerate(request):
            conversation, known = self._conversation(CONVS[m.conv]), (t, self.name, f"m{m.id}")
            if i in waiting:
                conversation.answers.append(Answer(*known, "refused"))
            elif others.get(i):
                conversation.answers.append(Answer(*known, "conflict", seqs[i]))
            else:
                # a duplicate alone writes nothing, so no log tells a deposed home shard that its stable_seq is old
                stable = None if i in others else stables[i]
                conversation.answers.append(Answer(*known, "ack", seqs[i], i in others, stable))
                self.acked.setdefault((m.conv, m.id), seqs[i])
        self._sim.trace(
            "ack", self.name, *(f"{m}={n}" for m, n in zip(request, seqs, strict=True)), f"stable {stables}"
        )
        return not waiting

    async def deliver(self, gateways: list[Process], request: Request) -> None:
        """Until there is an answer."""
        while not await self.send(self._sim.rng.choice(gateways), request):
            await self._process.sleep(self._sim.delay())

    async def read(self, gateway: Process, conv: str, after: int, limit: int, final: bool = False) -> int | None:
        """One page; `stable_seq`, or None."""
        t0 = self._sim.tick()
        found = await self._sim.call(self._process, gateway, "read", conv, after, limit, timeout_us=150 * MS)
        if found == LOST:
            return None
        rows, holes, upto, stable = found
        page = Read(self._sim.tick(), t0, after, max(after, upto), rows, holes, stable, final)
        self._conversation(conv).reads.append(page)
        self._sim.trace("read", self.name, conv, f"after {after}:", [r[:2] for r in rows], holes, f"stable {stable}")
        return stable


def message(sim_rng: Any, fresh: int, known: list[Msg]) -> Msg:
    """The next message of a client: mostly a new one, else one that somebody sent before, now and then changed."""
    if known and sim_rng.random() < 0.15:
        old = sim_rng.choice(known)
        return Msg(old.conv, old.id, old.variant ^ (sim_rng.random() < 0.2))
    return Msg(int(np.searchsorted([0.75, 0.92], sim_rng.random())), fresh)
