"""The rows of a checkpoint's files, and the state that they give: all conversations, or those that changed.

Rows of a base stand in the order of the conversations' indices. A delta names those, and has a name only for what is
new; its members are null where they did not change. Does not own their columns (`imray.log.checkpoint_members`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from imray.core.errors import DerivedError, InvalidError
from imray.core.state import ShardState
from imray.kernels.arrays import I64
from imray.log.checkpoint_file import CheckpointFile
from imray.log.checkpoint_members import member_columns, restore_members
from imray.log.checkpoint_snapshot import Snapshot
from imray.log.schema import body_parts


def rows_of(snap: Snapshot) -> pa.Table:
    """The rows of a snapshot."""
    if snap.before:
        new_names = snap.names.take(pa.array(snap.rows, mask=snap.rows < snap.conversations_before))
        columns = {"row": pa.array(snap.rows, pa.int32()), "head": snap.heads[snap.rows]}
    else:
        new_names = snap.names
        columns = {"head": snap.heads}
    columns["conv_id"] = new_names.cast(pa.string())
    if snap.members is not None:
        columns |= member_columns(snap.members, np.searchsorted(snap.rows, snap.member_rows), len(snap.rows))
    return pa.table(columns)


def restore_rows(state: ShardState, files: Sequence[CheckpointFile]) -> None:
    """Fill an empty state with the conversations of a checkpoint's files, the base first. DerivedError where they do
    not fit together."""
    for file in files:
        try:
            _restore_file(state, file)
        except InvalidError as e:
            raise DerivedError(file.name, str(e)) from e
        if state.conversations.count != file.meta.conversations or state.members.users.count != file.meta.users:
            found = f"{state.conversations.count} conversations and {state.members.users.count} users"
            said = f"{file.meta.conversations} and {file.meta.users}"
            raise DerivedError(file.name, f"with what it builds on there are {found}, it says {said}")
    conversations = state.conversations
    count = conversations.count
    conversations.stable[:count] = conversations.heads[:count]
    conversations.take_changed()
    state.members.take_changed()
    state.checkpoints.made(tuple(file.link for file in files), count)


def _restore_file(state: ShardState, file: CheckpointFile) -> None:
    table = file.table()
    if not table.num_rows:
        return
    conversations = state.conversations
    names = table.column("conv_id").chunk(0)
    rows: I64
    if file.meta.chain:
        rows = table.column("row").to_numpy().astype(np.int64)
        names = names.drop_null()
    else:
        rows = np.arange(table.num_rows)
    if len(names):
        _, offsets = parts = body_parts(names)
        before = conversations.count
        conversations.add(*parts, np.arange(len(offsets) - 1, dtype=np.int32))
        if not np.array_equal(rows[rows >= before], np.arange(before, conversations.count)):
            raise InvalidError("its new conversations are not those that follow")
    if rows.min() < 0 or rows.max() >= conversations.count:
        raise InvalidError("it has a conversation without a name")
    conversations.heads[rows] = table.column("head").to_numpy()
    restore_members(state.members, table, rows, file.meta.users)
