"""Changes, cursors and sends in any order against a model of a few lines; recovered, the state is the same."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from imray.core.columns import RowStatus
from imray.core.member_state import CODES
from imray.core.members import Role
from imray.core.membership import Change, Create
from imray.core.replies import Appended
from imray.core.state import ShardState
from imray.log import checkpoint
from imray.log.store import LocalStore
from imray.shard.recovery import replay
from tests.support.batches import SEED, Msg, collect, msg_id, open_committer, prepared, seal
from tests.support.membership import change, known, mark_read

_USERS = ["ann", "bob", "cy", "dee"]
_CONVS = ["x", "y"]
_user = st.sampled_from(_USERS)
_conv = st.sampled_from(_CONVS)
_roles = st.dictionaries(_user, st.sampled_from(list(Role)), max_size=3)
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("create"), _conv, _user, st.booleans(), _roles),
        st.tuples(st.just("change"), _conv, _user, _roles, st.lists(_user, max_size=2, unique=True)),
        st.tuples(st.just("read"), _conv, _user, st.integers(0, 9)),
        st.tuples(st.just("send"), _conv, st.lists(_user, min_size=1, max_size=4)),
        st.tuples(st.just("seal")),
    ),
    max_size=25,
)


class _Model:
    """What should be known: by conversation its roles (None: not created), cursors, head."""

    def __init__(self) -> None:
        self.roles: dict[str, dict[str, Role] | None] = dict.fromkeys(_CONVS)
        self.cursors: dict[str, dict[str, int]] = {c: {} for c in _CONVS}
        self.heads = dict.fromkeys(_CONVS, 0)

    def create(self, conv: str, actor: str, roles: dict[str, Role]) -> None:
        wanted = {actor: Role.OWNER, **roles}
        if self.roles[conv] is None and not self.heads[conv] and wanted[actor] is Role.OWNER:
            self.roles[conv] = wanted

    def change(self, conv: str, actor: str, add: dict[str, Role], remove: list[str]) -> None:
        there = self.roles[conv]
        if there is None or set(add) & set(remove):
            return
        after = {u: r for u, r in {**there, **add}.items() if u not in remove}
        may = there.get(actor) is Role.OWNER or (not add and set(remove) <= {actor})
        if may and Role.OWNER in after.values():
            self.roles[conv] = after

    def send(self, conv: str, senders: list[str]) -> list[bool]:
        there = self.roles[conv]
        sent = [there is None or there.get(s) in (Role.OWNER, Role.MEMBER) for s in senders]
        self.heads[conv] += sum(sent)
        return sent


def _from(root: Path, with_checkpoints: bool) -> ShardState:
    state = checkpoint.restore(LocalStore(root), 0, SEED) if with_checkpoints else ShardState(SEED)
    replay(LocalStore(root), 0, state)
    return state


def _judge(state: ShardState, model: _Model) -> None:
    found = known(state)
    for conv in _CONVS:
        created, _, version, roles, cursors = found.get(conv, (False, False, 0, {}, {}))
        expected = model.roles[conv]
        assert created == (expected is not None)
        assert bool(version) == created
        assert roles == {user: CODES[role] for user, role in (expected or {}).items()}
        assert cursors == model.cursors[conv]


@settings(max_examples=60, deadline=None)
@given(_steps)
def test_members_follow_the_rules_and_come_back(steps: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        committer = open_committer(root)
        model = _Model()
        sent = 0
        for step in steps:
            match step:
                case ("create", conv, actor, public, roles):
                    change(committer, Create(conv, actor, False, public, roles))
                    model.create(conv, actor, roles)
                case ("change", conv, actor, add, remove):
                    change(committer, Change(conv, actor, False, add, tuple(remove)))
                    model.change(conv, actor, add, remove)
                case ("read", conv, user, seq):
                    if 0 < seq <= model.heads[conv]:
                        mark_read(committer, conv, **{user: seq})
                        model.cursors[conv][user] = max(seq, model.cursors[conv].get(user, 0))
                case ("send", conv, senders):
                    rows = [Msg(conv, msg_id(sent + i), b"x", sender) for i, sender in enumerate(senders)]
                    sent += len(rows)
                    (answer,) = committer.commit([prepared(rows)])
                    assert isinstance(answer, Appended)
                    forbidden = [] if answer.firsts is None else answer.firsts.at[answer.firsts.forbidden].tolist()
                    assert [i not in forbidden for i in range(len(rows))] == model.send(conv, senders)
                    assert answer.firsts is None or set(answer.firsts.status.tolist()) == {RowStatus.FORBIDDEN}
                case _:
                    seal(committer)
                    collect(committer)
        _judge(committer.state, model)
        live = known(committer.state)
        assert known(_from(root, with_checkpoints=False)) == live
        store = LocalStore(root)
        while True:
            assert known(_from(root, with_checkpoints=True)) == live
            there = checkpoint.checkpoints(store, 0)
            if not there:
                break
            store.delete(there[-1])
