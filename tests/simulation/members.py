"""Members under simulation: a conversation is created while it is listened to, and some who listen are removed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

import pyarrow as pa

from imray.core.members import Changed, Role
from imray.core.membership import Change, Create
from imray.engine.members import RightsIn
from imray.history.run_reader import RunReader
from imray.history.table import Table
from imray.log.schema import RecordKind
from imray.log.segment import open_segment
from imray.rpc import members as forms
from imray.rpc.methods import Method
from tests.simulation.kernel import MS, Process
from tests.simulation.network import call
from tests.simulation.store import Disk, LookStore

SENDER = "alice"
"""Who sends every message."""
_CALL_US = 150 * MS
_TRIES_MAX = 60
"""Once all is healed. Before that, who is to answer may be away for as long as anything lasts."""


async def change(
    process: Process, home: Callable[[], Process | None], healed: Callable[[], bool], ask: Create | Change
) -> bool:
    """Ask until it is so. False: it was not answered, though all is healed."""
    tries = 0
    while tries < _TRIES_MAX:
        tries += healed()
        content = forms.encode_change_members(ask)
        answer = await call(process, home(), Method.CHANGE_MEMBERS, content, _CALL_US)
        if answer is not None and isinstance(forms.decode_changed(answer), Changed):
            return True
        await process.sleep(5 * MS)
    return False


async def read_up_to(process: Process, home: Process | None, conv: str, user: str, seq: int) -> None:
    """Mark as read, once: a number above the head is refused. And look at the members."""
    await call(process, home, Method.MARK_READ, forms.encode_mark_read(conv, user, seq), _CALL_US)
    await call(process, home, Method.LIST_MEMBERS, forms.encode_list_members(conv, None, 2), _CALL_US)


def creation(conv: str, users: list[str]) -> Create:
    """A private conversation of the sender's, with these members."""
    return Create(conv, SENDER, True, False, {SENDER: Role.OWNER, **dict.fromkeys(users, Role.MEMBER)})


def removal(conv: str, user: str) -> Change:
    """One member less."""
    return Change(conv, SENDER, True, {}, (user,))


async def rights(process: Process, home: Process | None, conv: str, users: list[str]) -> RightsIn | None:
    """What some users may do; None: no answer."""
    answer = await call(process, home, Method.ROLES, forms.encode_roles(conv, users), _CALL_US)
    found = None if answer is None else forms.decode_roles_answer(answer)
    return RightsIn(found, True) if found is not None and not hasattr(found, "why") else None  # type: ignore[arg-type]


Removed = list[tuple[str, str, int]]
"""Conversation, user, and the number after which the user was removed."""


def removals(disk: Disk) -> dict[tuple[str, str], int]:
    """After which number each conversation and user was removed, as the logs have it: those of the home shard, what is
    in the history first."""
    if disk.looked is None or disk.looked[0] != disk.changes:
        store = LookStore(disk)
        reader = RunReader(store, 1 << 20)
        parts = [_known(disk, f.name, lambda f=f: reader.tables(f)) for f in Table(store).snapshot().files.values()]  # type: ignore[misc]
        for name in disk.list("wal/shard=0000/"):
            parts.append(_known(disk, name, lambda name=name: [_segment(disk, name)]))  # type: ignore[misc]
        found = {(conv, user): seq for part in parts for conv, user, seq in part}
        disk.looked = disk.changes, found
    return disk.looked[1]


def _known(disk: Disk, name: str, tables: Callable[[], Iterable[pa.Table]]) -> Removed:
    """The removals in a file; each is read once."""
    if name not in disk.decoded:
        disk.decoded[name] = [
            (row["conv_id"], user, row["conv_seq"])
            for table in tables()
            for row in table.select(["conv_id", "conv_seq", "kind", "body"]).to_pylist()
            if row["kind"] == RecordKind.MEMBERS
            for user in json.loads(row["body"])["removed"]
        ]
    found: Removed = disk.decoded[name]
    return found


def _segment(disk: Disk, name: str) -> pa.Table:
    data = disk.get(name)
    assert data is not None
    return open_segment(data, name).table()
