"""Members and cursors as a shard answers: at their turn, and when durable."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from imray.core.columns import RowStatus
from imray.core.errors import StorageError
from imray.core.members import Changed, Cursor, MembersPage, Role, Roles
from imray.core.membership import Change, Create
from imray.core.replies import Appended, Refusal, Refused
from imray.log.store import LocalStore
from imray.shard.jobs import Records
from imray.shard.members import ShardMembers
from imray.shard.runtime import SYSTEM, StateThread
from imray.shard.shard_writer import ShardWriter
from tests.support.batches import Msg, ipc_of, msg_id, open_committer, prepared
from tests.support.owners import GatedStore, owner_of, until_async

OWNER, MEMBER, READER = Role.OWNER, Role.MEMBER, Role.READER
_ROOM = Create("room", "olga", False, False, {"mia": MEMBER, "pia": OWNER})


class _FullStore(LocalStore):
    def put_if_absent(self, name: str, parts: Sequence[bytes | memoryview]) -> bool:
        raise StorageError(f"put {name}: no space left on device")


class _LookedAt(LocalStore):
    looks = 0

    def get(self, name: str) -> bytes | None:
        self.looks += 1
        return super().get(name)


def _change(actor: str, add: dict[str, Role] | None = None, remove: tuple[str, ...] = ()) -> Change:
    return Change("room", actor, False, add or {}, remove)


async def _send(owner: ShardWriter, n: int, sender: str = "mia", rows: int = 1) -> Appended:
    answer = await owner.append(ipc_of([Msg("room", msg_id(n + i), b"x", sender) for i in range(rows)]))
    assert isinstance(answer, Appended)
    return answer


def _members_of(record: Callable[[Records], Awaitable[None]]) -> ShardMembers:
    """Over a log that is another's."""
    return ShardMembers(record, StateThread(SYSTEM, "unused"), lambda: None, lambda: Refusal(Refused.BUSY, ""))


async def _roles(members: ShardMembers, *users: str) -> Roles:
    told = await members.roles("room", list(users))
    assert isinstance(told, Roles)
    return told


async def test_a_change_is_answered_with_where_it_stands(tmp_path: Path) -> None:
    async with owner_of(LocalStore(tmp_path)) as owner:
        members = owner.members
        assert await members.change(_ROOM) == Changed(0, 1, 3, created=True)
        assert await members.change(_ROOM) == Changed(0, 1, 3)
        await _send(owner, 1, rows=3)
        assert await members.change(_change("olga", {"rita": READER}, ("mia",))) == Changed(3, 2, 3)
        await _send(owner, 4, "olga")
        again = await members.change(_change("olga", {"rita": READER}, ("mia",)))
        assert again == Changed(4, 2, 3), "it is so already, and nothing of it stands above"
        assert await _roles(members, "mia", "rita") == Roles(True, False, 2, 1, {"mia": None, "rita": READER})
        page = await members.page("room", None, 2)
        assert isinstance(page, MembersPage)
        assert ([m.user for m in page.members], page.total) == (["pia", "olga"], 3)
        last = await members.page("room", page.next, 2)
        assert isinstance(last, MembersPage)
        assert ([m.user for m in last.members], last.next) == (["rita"], None)
        missing = await members.page("room", "nobody", 2)
        assert isinstance(missing, Refusal)
        assert missing.why is Refused.ABSENT


async def test_two_changes_at_once_are_judged_one_after_the_other(tmp_path: Path) -> None:
    """Each of two owners removes the other: one of them is none any more when its turn comes."""
    async with owner_of(LocalStore(tmp_path)) as owner:
        await owner.members.change(_ROOM)
        first, second = await asyncio.gather(
            owner.members.change(_change("olga", remove=("pia",))),
            owner.members.change(_change("pia", remove=("olga",))),
        )
        assert isinstance(first, Changed)
        assert isinstance(second, Refusal)
        assert second.why is Refused.FORBIDDEN
        assert (await _roles(owner.members, "olga", "pia")).roles == {"olga": OWNER, "pia": None}


async def test_a_removal_that_is_not_durable_is_not_told_and_holds_for_what_comes_after(tmp_path: Path) -> None:
    store = GatedStore(tmp_path, "wal/")
    async with owner_of(store) as owner:
        await owner.members.change(_ROOM)
        store.gate.clear()
        removing = asyncio.create_task(owner.members.change(_change("olga", remove=("mia",))))
        await until_async(store.holding.is_set, "the removal is on its way")
        sending = asyncio.create_task(_send(owner, 1))
        assert (await _roles(owner.members, "mia")).roles == {"mia": MEMBER}
        assert not removing.done()
        again = asyncio.create_task(owner.members.change(_change("olga", remove=("mia",))))
        await asyncio.sleep(0.02)  # it is planned, if it is ever to be told too early
        assert not again.done(), "it is so already, but not durable"
        store.gate.set()
        assert isinstance(await removing, Changed)
        assert isinstance(await again, Changed)
        answer = await sending
        assert answer.firsts is not None
        assert answer.firsts.forbidden.tolist() == [True]
        assert (await _roles(owner.members, "mia")).roles == {"mia": None}


async def test_marks_that_come_while_a_commit_is_on_its_way_are_one_record(tmp_path: Path) -> None:
    store = GatedStore(tmp_path, "wal/")
    async with owner_of(store) as owner:
        await owner.members.change(_ROOM)
        await _send(owner, 1, rows=9)
        segment = owner.current.committer.state.log.segment if owner.current else 0
        store.gate.clear()
        marks = [owner.members.mark_read("room", f"u{i % 40}", 1 + i % 9) for i in range(200)]
        marking = [asyncio.create_task(mark) for mark in marks]
        await until_async(store.holding.is_set, "a commit is on its way")
        await asyncio.sleep(0.05)  # the others wait for the next
        assert await owner.members.cursor("room", "u0") == Cursor(0, 1)
        store.gate.set()
        told = await asyncio.gather(*marking)
        assert all(isinstance(t, Cursor) for t in told)
        assert owner.current is not None
        assert owner.current.committer.state.log.segment <= segment + 2
        for i in range(40):
            expected = max(1 + j % 9 for j in range(200) if j % 40 == i)
            assert await owner.members.cursor("room", f"u{i}") == Cursor(expected, 1)


async def test_a_mark_that_comes_with_the_turn_of_others_is_answered_as_they_are(tmp_path: Path) -> None:
    """The turn comes in another thread: here wherever the interpreter lets it in."""
    committer = open_committer(tmp_path)
    committer.commit([prepared([Msg("room", msg_id(i), b"x", "mia") for i in range(9)])])

    async def record(records: Records) -> None:
        await asyncio.to_thread(records, committer.state)

    members = _members_of(record)
    end = time.monotonic() + 1.0

    async def reader(user: int) -> None:
        while time.monotonic() < end:
            assert await members.mark_read("room", f"u{user}", 9) == Cursor(9, 1)
            for _ in range(user % 7):
                await asyncio.sleep(0)

    before_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        await asyncio.gather(*(reader(user) for user in range(40)))
    finally:
        sys.setswitchinterval(before_s)


async def test_marks_go_on_after_a_record_that_failed(tmp_path: Path) -> None:
    committer = open_committer(tmp_path)
    committer.commit([prepared([Msg("room", msg_id(1), b"x", "mia")])])
    errors: list[Exception] = [RuntimeError("a bug of ours")]

    async def record(records: Records) -> None:
        await asyncio.sleep(0)
        if errors:
            raise errors.pop()
        records(committer.state)

    members = _members_of(record)
    failed = await asyncio.gather(*(members.mark_read("room", "mia", 1) for _ in range(2)), return_exceptions=True)
    assert [type(error) for error in failed] == [RuntimeError, RuntimeError]
    assert await members.mark_read("room", "mia", 1) == Cursor(1, 1)


async def test_cursors_do_not_go_back_nor_beyond_the_head(tmp_path: Path) -> None:
    async with owner_of(LocalStore(tmp_path)) as owner:
        await _send(owner, 1, rows=5)
        read = owner.members.mark_read
        assert await read("room", "mia", 4) == Cursor(4, 1)
        segment = owner.current.committer.state.log.segment if owner.current else 0
        assert await read("room", "mia", 2) == Cursor(4, 1)
        assert owner.current is not None
        assert owner.current.committer.state.log.segment == segment, "nothing was written for it"
        both = await asyncio.gather(read("room", "mia", 6), read("room", "mia", 5), read("nowhere", "mia", 1))
        assert both[1] == Cursor(5, 1)
        for wrong in (both[0], both[2]):
            assert isinstance(wrong, Refusal)
            assert wrong.why is Refused.INVALID


async def test_all_of_it_is_there_after_a_restart_and_while_the_disk_is_full(tmp_path: Path) -> None:
    async with owner_of(LocalStore(tmp_path)) as owner:
        await owner.members.change(_ROOM)
        await _send(owner, 1, rows=5)
        await owner.members.mark_read("room", "mia", 3)
    async with owner_of(_FullStore(tmp_path)) as owner:
        assert owner.state == "unwritable"
        told = await _roles(owner.members, "mia", "eve")
        assert told.roles == {"mia": MEMBER, "eve": None}
        assert await owner.members.cursor("room", "mia") == Cursor(3, 1)
        refused = await owner.members.change(_change("olga", remove=("mia",)))
        assert isinstance(refused, Refusal)
        assert refused.why is Refused.UNAVAILABLE


async def test_who_was_replaced_does_not_say_who_is_a_member(tmp_path: Path) -> None:
    async with owner_of(LocalStore(tmp_path)) as old:
        await old.members.change(_ROOM)
        store = LocalStore(tmp_path)
        store.writer_id = "another process"
        async with owner_of(store) as new:
            assert isinstance(await new.members.change(_change("olga", remove=("mia",))), Changed)
            told = await old.members.roles("room", ["mia"])
            assert isinstance(told, Refusal), "it knows nothing of the removal"
            assert (await _roles(new.members, "mia")).roles == {"mia": None}


async def test_who_was_replaced_gives_no_final_answer_about_members(tmp_path: Path) -> None:
    """What it says without writing may be false by now: it looks whether it is still the writer."""
    tea = Create("tea", "olga", False, False, {})
    asks: dict[str, Callable[[ShardWriter], Awaitable[object]]] = {
        "a member who is none any more": lambda old: old.members.change(_change("olga", {"mia": MEMBER})),
        "no owner, who is one": lambda old: old.members.change(_change("rita", {"kim": MEMBER})),
        "not there": lambda old: old.members.change(Change("tea", "olga", False, {"kim": MEMBER}, ())),
        "there, and different": lambda old: old.members.change(Create("room", "olga", False, False, {"rita": OWNER})),
        "read too far": lambda old: old.members.mark_read("room", "olga", 3),
        "may not send": lambda old: old.append(ipc_of([Msg("room", msg_id(9), b"x", "rita")])),
    }
    for i, (what, ask) in enumerate(asks.items()):
        async with owner_of(LocalStore(tmp_path / str(i))) as old:
            await old.members.change(_ROOM)
            await _send(old, 1)
            async with owner_of(LocalStore(tmp_path / str(i))) as new:
                await _send(new, 2, rows=2)
                assert isinstance(await new.members.change(_change("olga", {"rita": OWNER}, ("mia",))), Changed)
                assert isinstance(await new.members.change(tea), Changed)
                told = await ask(old)
                assert isinstance(told, Refusal), what
                assert told.why is Refused.UNAVAILABLE, what
                assert old.loop.replaced, what


async def test_a_duplicate_is_told_without_a_look_at_the_store(tmp_path: Path) -> None:
    """It stays true whoever is the writer."""
    store = _LookedAt(tmp_path)
    async with owner_of(store) as owner:
        await owner.members.change(_ROOM)
        await _send(owner, 1)
        store.looks = 0
        again = await _send(owner, 1)
        assert again.firsts is not None
        assert again.firsts.status.tolist() == [RowStatus.DUPLICATE]
        await _send(owner, 2)
        assert store.looks == 0
        refused = await _send(owner, 3, "rita")
        assert refused.firsts is not None
        assert refused.firsts.status.tolist() == [RowStatus.FORBIDDEN]
        assert store.looks == 1


async def test_changes_that_wait_are_bounded(tmp_path: Path) -> None:
    store = GatedStore(tmp_path, "wal/")
    async with owner_of(store) as owner:
        await owner.members.change(_ROOM)
        store.gate.clear()
        asks = [asyncio.create_task(owner.members.change(_change("olga", {f"u{i}": MEMBER}))) for i in range(1002)]
        await until_async(lambda: any(t.done() for t in asks), "one is refused")
        refused = [t.result() for t in asks if t.done()]
        assert {r.why for r in refused if isinstance(r, Refusal)} == {Refused.BUSY}
        assert len(refused) == 2
        for ask in asks:
            ask.cancel()
        store.gate.set()
        await asyncio.gather(*asks, return_exceptions=True)
        assert isinstance(await owner.members.change(_change("olga", {"last": MEMBER})), Changed)
