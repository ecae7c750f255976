"""Who may listen: members come and go while they listen, and what a gateway missed it finds out."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from imray.core.members import Changed, Role
from imray.core.replies import Appended, Refusal, Refused
from imray.engine.engine import Engine
from imray.engine.listening import Ended, EndReason
from imray.engine.sends import Send
from imray.rpc.endpoint import Parts
from imray.rpc.methods import Method
from imray.rpc.publications import Mark, PublicationHead, decode_publication
from imray.rpc.server import ServerConnection
from tests.support.ears import Ear, listen, send
from tests.support.local_system import local_system


async def created(engine: Engine, conv: str, *members: str, public: bool = False) -> None:
    """A conversation of bob's."""
    roles = dict.fromkeys(members, Role.MEMBER)
    answer = await engine.members.create(conv, "bob", False, public, roles)
    assert isinstance(answer, Changed), answer


async def remove(engine: Engine, conv: str, *users: str) -> Changed:
    """Bob removes members."""
    answer = await engine.members.change(conv, "bob", False, {}, list(users))
    assert isinstance(answer, Changed), answer
    return answer


async def test_only_members_may_listen(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        engine = system.engine()
        await created(engine, "tea", "ada")
        answer = await engine.feeds.subscribe(Ear("eve"), "tea", 0, False)
        assert isinstance(answer, Refusal)
        assert answer.why is Refused.FORBIDDEN
        await listen(engine, Ear("ada"), "tea")


async def test_where_conversations_are_not_open_nobody_listens_to_one_without_members(tmp_path: Path) -> None:
    async with local_system(tmp_path, conversations_open=False) as system:
        engine = system.engine()
        answer = await engine.feeds.subscribe(Ear("ada"), "tea", 0, False)
        assert isinstance(answer, Refusal)
        assert answer.why is Refused.FORBIDDEN
        service = Ear("ops")
        service.service = True
        await listen(engine, service, "tea")


async def test_anybody_may_listen_to_a_public_conversation(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        engine = system.engine()
        await created(engine, "news", public=True)
        ear = Ear("eve")
        await listen(engine, ear, "news")
        await send(engine, "news", 2)
        await ear.until(lambda: ear.upto == 2)
        assert isinstance(await engine.feeds.signal(ear, "news", "typing", b"1"), Refusal)


async def test_a_removed_listener_is_told_up_to_its_removal_at_every_gateway(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        engine = system.engine()
        other = system.engine()
        await created(engine, "tea", "ada", "eve")
        ada = Ear("ada")
        eve = Ear("eve")
        await listen(other, ada, "tea")
        await listen(other, eve, "tea")
        await send(engine, "tea", 3)
        sending = asyncio.gather(*(send(engine, "tea", 10) for _ in range(5)))
        after = (await remove(engine, "tea", "eve")).after
        await sending
        await eve.until(lambda: bool(eve.notices))
        assert eve.notices == [Ended("tea", after, EndReason.REMOVED)]
        assert eve.seqs == list(range(1, after + 1))
        await ada.until(lambda: ada.upto == 53)
        ada.check(0)


async def test_a_removal_that_a_gateway_did_not_hear_of_counts(tmp_path: Path) -> None:
    """The shard is replaced, and the member removed before the gateway has subscribed again."""
    async with local_system(tmp_path) as system:
        engine = system.engine()
        other = system.engine()
        await created(engine, "tea", "ada", "eve")
        ada = Ear("ada")
        eve = Ear("eve")
        await listen(other, ada, "tea")
        await listen(other, eve, "tea")
        shard = engine.shard_of("tea")
        await system.kill(shard)
        before = system.processes.pop(shard)
        system.retired.append(before)
        made = await system.start(shard, hidden=True)
        await send(system.engine_over({shard: made}), "tea", 2)
        await remove(system.engine_over({shard: made}), "tea", "eve")
        system.processes[shard] = made
        await eve.until(lambda: bool(eve.notices))
        assert isinstance(eve.notices[-1], Ended)
        assert eve.notices[-1].reason is EndReason.REMOVED
        await send(engine, "tea", 1)
        await ada.until(lambda: ada.upto == 3)
        assert 3 not in eve.seqs


async def test_who_listened_before_a_conversation_was_created_is_asked_about(tmp_path: Path) -> None:
    async with local_system(tmp_path) as system:
        engine = system.engine()
        ada = Ear("ada")
        eve = Ear("eve")
        await listen(engine, ada, "tea")
        await listen(engine, eve, "tea")
        await created(engine, "tea", "ada")
        await send(engine, "tea", 3)
        await ada.until(lambda: ada.upto == 3)
        await eve.until(lambda: bool(eve.notices))
        assert eve.notices == [Ended("tea", 0, EndReason.REMOVED)]
        assert not eve.seqs


async def test_a_removal_that_found_no_room_is_asked_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ServerConnection.push
    dropped: list[Parts] = []

    def push(self: ServerConnection, log_number: int, method: Method, content: Parts) -> bool:
        if method is Method.PUBLISH and _heads(content).members and not dropped:
            dropped.append(content)
            return False
        return real(self, log_number, method, content)

    async with local_system(tmp_path) as system:
        engine = system.engine()
        await created(engine, "tea", "ada", "eve")
        ada = Ear("ada")
        eve = Ear("eve")
        await listen(engine, ada, "tea")
        await listen(engine, eve, "tea")
        monkeypatch.setattr(ServerConnection, "push", push)
        await remove(engine, "tea", "eve")
        await send(engine, "tea", 1)
        await ada.until(lambda: ada.upto == 1)
        assert dropped
        assert eve.notices == [Ended("tea", 0, EndReason.REMOVED)]
        assert not eve.seqs


def _heads(content: Parts) -> PublicationHead:
    return decode_publication(memoryview(bytearray(b"".join(content)))).head


async def test_marks_of_a_hot_group_overtake_no_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While others keep the state busy: a mark with a version whose change was not published has everybody wait."""
    real = ServerConnection.push
    version = 0
    early: list[Mark] = []

    def push(self: ServerConnection, log_number: int, method: Method, content: Parts) -> bool:
        nonlocal version
        if method is Method.PUBLISH and log_number == 0:
            head = _heads(content)
            early.extend(m for m in head.marks if version and m.members > version and not head.members)
            version = max([version, *(m.members for m in head.marks)])
        return real(self, log_number, method, content)

    monkeypatch.setattr(ServerConnection, "push", push)
    async with local_system(tmp_path, shards=1) as system:
        engine = system.engine()
        await created(engine, "tea", "eve", "kim")
        assert await engine.make_hot("tea", 3) is None
        ear = Ear("bob")
        await listen(system.engine(), ear, "tea")
        busy = [asyncio.create_task(_talk(engine, n)) for n in range(6)]
        busy += [asyncio.create_task(_ask(engine)) for _ in range(3)]
        for _ in range(25):
            await remove(engine, "tea", "eve")
            assert isinstance(await engine.members.change("tea", "bob", False, {"eve": Role.MEMBER}, []), Changed)
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
    assert version
    assert not early


async def _talk(engine: Engine, number: int) -> None:
    """Somebody who sends to a hot group, one after the other, until cancelled."""
    for i in itertools.count():
        answer, _ = await engine.send(
            Send("tea", (number << 64 | i).to_bytes(16, "big"), "kim", None, None, None, b"m")
        )
        assert isinstance(answer, Appended), answer


async def _ask(engine: Engine) -> None:
    """Somebody who asks for roles all the time."""
    while True:
        await engine.members.roles("tea", ["kim"])
