"""Who may listen: members come and go while they listen, and what a gateway missed it finds out."""

from __future__ import annotations

import asyncio
from pathlib import Path

from imray.core.members import Changed, Role
from imray.core.replies import Refusal, Refused
from imray.engine.engine import Engine
from imray.engine.listening import Ended, EndReason
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
