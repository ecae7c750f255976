"""The rules of membership, and the state that they are judged by."""

from __future__ import annotations

import numpy as np
import pytest

from imray.core.errors import InvalidError
from imray.core.member_state import MemberState
from imray.core.members import CursorsChange, MembersChange, Role, Roles
from imray.core.membership import Change, Create, judge
from imray.core.replies import Refusal, Refused
from imray.core.user_lists import UserLists, Users

CONV = 3
OWNER, MEMBER, READER = Role.OWNER, Role.MEMBER, Role.READER


def _ask(state: MemberState, ask: Create | Change, head: int = 0) -> MembersChange | Refusal | None:
    """Judge, and where it is a change, make it durable."""
    found = judge(state, CONV, head, ask)
    if isinstance(found, MembersChange):
        state.check(found, head)
        state.reserve([found], [])
        state.mark_durable([found], [])
    return found


def _room(**roles: Role) -> MemberState:
    state = MemberState()
    assert isinstance(_ask(state, Create("room", "root", True, False, {"olga": OWNER, **roles})), MembersChange)
    return state


def _change(
    actor: str, add: dict[str, Role] | None = None, remove: tuple[str, ...] = (), service: bool = False
) -> Change:
    return Change("room", actor, service, add or {}, remove)


def _why(found: MembersChange | Refusal | None) -> Refused | None:
    assert not isinstance(found, MembersChange), found
    return None if found is None else found.why


def test_who_creates_a_conversation_is_its_owner() -> None:
    state = MemberState()
    made = _ask(state, Create("room", "olga", False, True, {"mia": MEMBER}))
    assert isinstance(made, MembersChange)
    assert state.all_roles(CONV) == {"olga": OWNER, "mia": MEMBER}
    assert (state.created, state.is_public(CONV), state.version(CONV)) == (1, True, 1)
    assert _why(_ask(MemberState(), Create("room", "olga", False, False, {"olga": READER}))) is Refused.INVALID


def test_a_service_is_no_owner_and_names_one() -> None:
    assert _why(_ask(MemberState(), Create("room", "root", True, False, {"mia": MEMBER}))) is Refused.INVALID
    assert _room().all_roles(CONV) == {"olga": OWNER}


def test_created_again_it_is_there_or_different() -> None:
    state = _room(mia=MEMBER)
    same = Create("room", "root", True, False, {"mia": MEMBER, "olga": OWNER})
    assert _ask(state, same) is None
    assert _ask(state, Create("room", "olga", False, False, {"mia": MEMBER})) is None
    for other in (
        Create("room", "root", True, True, {"mia": MEMBER, "olga": OWNER}),
        Create("room", "root", True, False, {"olga": OWNER}),
        Create("room", "root", True, False, {"mia": READER, "olga": OWNER}),
        Create("room", "mallory", False, False, {}),
    ):
        assert _why(_ask(state, other)) is Refused.EXISTS
    assert state.version(CONV) == 1


def test_what_others_wrote_in_only_a_service_may_create() -> None:
    state = MemberState()
    assert _why(_ask(state, Create("room", "mallory", False, False, {}), head=1)) is Refused.FORBIDDEN
    assert isinstance(_ask(state, Create("room", "root", True, False, {"olga": OWNER}), head=1), MembersChange)


@pytest.mark.parametrize(
    ("actor", "service", "may"),
    [("olga", False, True), ("root", True, True), ("mia", False, False), ("rita", False, False), ("eve", False, False)],
)
def test_only_owners_and_services_change_members(actor: str, service: bool, may: bool) -> None:
    for ask in (
        _change(actor, {"new": MEMBER}, service=service),
        _change(actor, {"rita": MEMBER}, service=service),
        _change(actor, {actor: OWNER}, service=service) if not may else _change(actor, {"mia": OWNER}, service=service),
        _change(actor, remove=("pia",), service=service),
    ):
        state = _room(mia=MEMBER, rita=READER, pia=MEMBER)
        before = state.all_roles(CONV)
        found = _ask(state, ask)
        if may:
            assert isinstance(found, MembersChange)
        else:
            assert _why(found) is Refused.FORBIDDEN
            assert state.all_roles(CONV) == before


def test_oneself_needs_no_right_to_leave() -> None:
    state = _room(mia=MEMBER)
    assert isinstance(_ask(state, _change("mia", remove=("mia",))), MembersChange)
    assert state.all_roles(CONV) == {"olga": OWNER}
    assert _ask(state, _change("mia", remove=("mia",))) is None, "again"
    assert _why(_ask(state, _change("mia", remove=("mia", "olga")))) is Refused.FORBIDDEN


def test_the_last_owner_stays() -> None:
    state = _room(mia=MEMBER)
    for ask in (
        _change("olga", remove=("olga",)),
        _change("olga", {"olga": MEMBER}),
        _change("root", remove=("olga",), service=True),
    ):
        assert _why(_ask(state, ask)) is Refused.INVALID
    assert isinstance(_ask(state, _change("olga", {"mia": OWNER}, ("olga",))), MembersChange)
    assert state.all_roles(CONV) == {"mia": OWNER}


def test_an_owner_that_lowered_itself_may_ask_again() -> None:
    state = _room(mia=OWNER)
    lower = _change("olga", {"olga": MEMBER})
    assert isinstance(_ask(state, lower), MembersChange)
    assert _ask(state, lower) is None
    assert _why(_ask(state, _change("olga", {"olga": OWNER}))) is Refused.FORBIDDEN


def test_what_is_so_already_is_no_change() -> None:
    state = _room(mia=MEMBER)
    assert _ask(state, _change("olga", {"mia": MEMBER}, ("nobody",))) is None
    assert state.version(CONV) == 1


def test_nobody_is_added_and_removed_at_once_nor_in_what_was_not_created() -> None:
    assert _why(_ask(_room(), _change("olga", {"mia": MEMBER}, ("mia",)))) is Refused.INVALID
    assert _why(_ask(MemberState(), _change("olga", {"mia": MEMBER}))) is Refused.ABSENT


def test_what_is_not_durable_counts_for_the_next_change_and_is_not_told() -> None:
    state = _room(mia=MEMBER)
    first = judge(state, CONV, 5, _change("olga", {"nina": OWNER}, ("mia",)))
    assert isinstance(first, MembersChange)
    state.reserve([first], [])
    second = judge(state, CONV, 5, _change("nina", {"mia": READER}, ("olga",)))
    assert isinstance(second, MembersChange), "nina is an owner for what comes after"
    state.reserve([second], [])
    everybody = ["olga", "mia", "nina", "eve"]
    told = state.roles(CONV, everybody, 1)
    assert told == Roles(True, False, 1, 1, {"olga": OWNER, "mia": MEMBER, "nina": None, "eve": None})
    page = state.page(CONV, None, 10, 1)
    assert ([m.user for m in page.members], page.total, page.version) == (["olga", "mia"], 2, 1)
    state.mark_durable([first], [])
    told = state.roles(CONV, everybody, 1)
    assert told.roles == {"olga": OWNER, "mia": None, "nina": OWNER, "eve": None}
    state.mark_durable([second], [])
    assert state.roles(CONV, everybody, 1).roles == {"olga": None, "mia": READER, "nina": OWNER, "eve": None}


def test_a_creation_that_is_not_durable_is_not_told() -> None:
    state = MemberState()
    made = judge(state, CONV, 0, Create("room", "olga", False, True, {}))
    assert isinstance(made, MembersChange)
    state.reserve([made], [])
    assert _why(judge(state, CONV, 0, Create("room", "eve", False, True, {}))) is Refused.EXISTS, "for what comes after"
    assert state.roles(CONV, ["olga"], 1) == Roles(False, False, 0, 1, {"olga": None})
    page = state.page(CONV, None, 10, 1)
    assert (page.created, page.public, page.total, page.members) == (False, False, 0, [])
    assert state.version_told(CONV) == -1
    state.mark_durable([made], [])
    assert state.roles(CONV, ["olga"], 1) == Roles(True, True, 1, 1, {"olga": OWNER})
    assert (state.version_told(CONV), state.version_told(CONV + 1), state.version_told(-1)) == (1, -1, -1)


def test_a_record_that_does_not_follow_is_refused() -> None:
    state = _room()
    wrong = [
        MembersChange(CONV, 0, True, False, {"eve": OWNER}, ()),
        MembersChange(CONV + 1, 0, False, False, {"eve": OWNER}, ()),
        MembersChange(CONV, 0, False, False, {}, ("olga",)),
        MembersChange(CONV, 7, False, False, {"eve": READER}, ()),
    ]
    for change in wrong:
        with pytest.raises(InvalidError):
            state.check(change, 0)
    state.check(wrong[3], None)


def test_cursors_never_go_back() -> None:
    state = MemberState()
    for seqs, expected in (({"a": 5, "b": 2}, (5, 2)), ({"a": 3, "b": 9}, (5, 9)), ({"b": 9, "c": 1}, (5, 9))):
        change = CursorsChange(CONV, seqs)
        state.reserve([], [change])
        state.mark_durable([], [change])
        assert (state.cursor(CONV, "a"), state.cursor(CONV, "b")) == expected
    assert (state.cursor(CONV, "nobody"), state.cursor(99, "a"), state.cursor(-1, "a")) == (0, 0, 0)


def test_pages_of_members_have_everybody_once_whoever_goes_meanwhile() -> None:
    state = _room(**{f"user{i}": MEMBER for i in range(25)})
    seen: list[str] = []
    after = None
    while True:
        page = state.page(CONV, after, 10, 1)
        seen += [m.user for m in page.members]
        after = page.next
        if after is None:
            break
        # whom the next page begins after goes, and a new one comes
        assert isinstance(_ask(state, _change("olga", {f"late{len(seen)}": READER}, (after,))), MembersChange)
    assert len(seen) == len(set(seen))
    assert {f"user{i}" for i in range(25)} | {"olga"} <= set(seen)
    with pytest.raises(InvalidError, match="no such member"):
        state.page(CONV, "nobody", 10, 1)


@pytest.mark.parametrize(
    ("roles", "listens", "sends"),
    [
        (Roles(False, False, 0, 1, {"u": None}), (True, False), (True, False)),
        (Roles(True, False, 1, 1, {"u": None}), (False, False), (False, False)),
        (Roles(True, True, 1, 1, {"u": None}), (True, True), (False, False)),
        (Roles(True, False, 1, 1, {"u": READER}), (True, True), (False, False)),
        (Roles(True, False, 1, 1, {"u": MEMBER}), (True, True), (True, True)),
        (Roles(True, False, 1, 1, {"u": OWNER}), (True, True), (True, True)),
    ],
)
def test_what_a_role_may(roles: Roles, listens: tuple[bool, bool], sends: tuple[bool, bool]) -> None:
    """Where conversations are open, and where they are not."""
    assert (roles.may_listen("u", False, True), roles.may_listen("u", False, False)) == listens
    assert (roles.may_send("u", False, True), roles.may_send("u", False, False)) == sends
    assert roles.may_listen("u", True, False)
    assert roles.may_send("u", True, False)


def test_users_keep_their_index_while_the_table_grows() -> None:
    users = Users()
    names = [f"user-{i}-ä" for i in range(3000)]
    for at in range(0, 3000, 7):
        users.add([*names[at : at + 7], *names[:3]])
    assert [users.name(i) for i in range(users.count)] == names
    assert [users.index(name) for name in names] == list(range(3000))
    assert (users.index("nobody"), users.index("")) == (-1, -1)


def test_lists_share_an_arena_that_closes_its_ranks() -> None:
    lists = UserLists(np.int64)
    expected: dict[int, dict[int, int]] = {}
    for step in range(3000):
        conv = step * 7919 % 40
        mine = expected.setdefault(conv, {})
        users = np.unique(np.array([step % 97, step * 31 % 200, step], np.int32))[::-1]
        if step % 5 == 4:
            lists.remove(conv, users[:1])
            mine.pop(int(users[0]), None)
        else:
            lists.put(conv, users, users * 3 + step)
            mine |= {int(u): int(u) * 3 + step for u in users}
    for conv, mine in expected.items():
        found, values = lists.of(conv)
        assert dict(zip(found.tolist(), values.tolist(), strict=True)) == mine
        assert found.tolist() == sorted(mine)
    held = sum(map(len, expected.values()))
    assert len(lists.users) < 4 * held, "what was left behind is used again"
    again = UserLists(np.int64)
    some = np.arange(40)
    again.restore(some, *lists.columns(some))
    assert all(np.array_equal(a, b) for c in range(40) for a, b in zip(again.of(c), lists.of(c), strict=True))


def test_a_member_of_a_large_group_takes_few_bytes() -> None:
    state = MemberState()
    n = 100_000
    for first in range(0, n, 1000):
        roles = {f"user-{i:06d}": MEMBER for i in range(first, first + 1000)} | ({"olga": OWNER} if not first else {})
        change = MembersChange(CONV, 0, not first, False, roles, ())
        state.reserve([change], [])
        state.mark_durable([change], [])
    assert state.count(CONV) == n + 1
    assert state.nbytes / n < 40, "names included"
